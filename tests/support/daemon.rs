//! A throw-away server program: its own directory, its own port, and gone with the process that started it.

use std::{
    fs,
    os::unix::fs::OpenOptionsExt,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use std::io::Write;

use tempfile::TempDir;

use super::postgres::host::{ServerUser, free_port};

const PATIENCE: Duration = Duration::from_secs(20);

/// Is the server's parent, and ends it when standard input ends. That pipe is held by the process that wants the
/// server, so it ends with that process however it dies, SIGKILL included.
///
/// `read` is the shell's own, so the server's id stays the server's until `wait`, even if the server has ended.
const SUPERVISE: &str = r#"
trap '' INT HUP PIPE
cd "$DIRECTORY" || exit 1
PATH=$PATH:/usr/sbin
eval "$SERVER" >log 2>&1 &
while read -r _; do :; done
kill -s KILL $! # nothing is worth saving
wait
cd / && rm -rf "$DIRECTORY"
"#;

/// What to run.
pub struct Program<'a> {
    pub name: &'static str,
    /// With `exec`, so that the program itself is ended. `$PORT` is its port; its directory is the current one.
    pub command: &'static str,
    /// Its log says so when it accepts connections.
    pub ready: &'static str,
    /// Names and texts of files in its directory, given its port.
    pub files: &'a dyn Fn(u16) -> Vec<(&'static str, String)>,
}

/// A running server.
pub struct Daemon {
    supervisor: Child,
    directory: TempDir,
    port: u16,
}

impl Daemon {
    /// Returns when it accepts connections.
    pub fn start(program: &Program<'_>) -> Self {
        for _ in 0..5 {
            let server = Self::spawn(program);
            if server.listens(program) {
                return server;
            }
        }
        panic!("five free ports in a row were taken before {} could listen", program.name);
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.directory().join("log")).unwrap_or_default()
    }

    fn spawn(program: &Program<'_>) -> Self {
        let directory =
            tempfile::Builder::new().prefix(&format!("throw-away-{}-", program.name)).tempdir().unwrap();
        let port = free_port().unwrap();
        let user = ServerUser::of(&directory).unwrap();
        for (name, text) in (program.files)(port) {
            let path = directory.path().join(name);
            let mut file =
                fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).unwrap();
            file.write_all(text.as_bytes()).unwrap();
            user.own(&path).unwrap();
        }
        let supervisor = user
            .shell(SUPERVISE)
            .env("DIRECTORY", directory.path())
            .env("PORT", port.to_string())
            .env("SERVER", program.command)
            .current_dir("/")
            .process_group(0) // Ctrl-C is for us: the supervisor goes when we have gone
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { supervisor, directory, port }
    }

    /// Waits until its log says that it is ready. False when somebody was faster with the port.
    fn listens(&self, program: &Program<'_>) -> bool {
        let started = Instant::now();
        loop {
            let log = self.log();
            if log.contains(program.ready) {
                return true;
            }
            if log.contains("Address already in use") {
                return false;
            }
            let name = program.name;
            assert!(
                !log.contains("not found"),
                "no {name} found: run `scripts/setup more`, or install it\n{log}"
            );
            assert!(started.elapsed() < PATIENCE, "{name} does not get ready:\n{log}");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Daemon {
    /// Lets go of the pipe, which ends everything, and waits until it has.
    fn drop(&mut self) {
        drop(self.supervisor.stdin.take());
        let _ = self.supervisor.wait();
    }
}
