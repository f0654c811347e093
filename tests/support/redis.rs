//! A throw-away Redis: its own directory, its own port, and gone with the process that started it.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::postgres::host::free_port;

const PATIENCE: Duration = Duration::from_secs(20);

/// Is the server's parent, and ends it when standard input ends. That pipe is held by the process that wants the
/// server, so it ends with that process however it dies, SIGKILL included.
///
/// `read` is the shell's own, so the server's id stays the server's until `wait`, even if the server has ended.
const SUPERVISE: &str = r#"
trap '' INT HUP PIPE
cd "$DIRECTORY" || exit 1
redis-server --bind 127.0.0.1 --port "$PORT" --save '' --appendonly no --dir "$DIRECTORY" --daemonize no >log 2>&1 &
while read -r _; do :; done
kill -s KILL $! # nothing is worth saving
wait
cd / && rm -rf "$DIRECTORY"
"#;

/// A running server.
pub struct RedisServer {
    supervisor: Child,
    directory: TempDir,
    port: u16,
}

impl RedisServer {
    /// Returns when it accepts connections.
    pub fn start() -> Self {
        let found = Command::new("redis-server").arg("--version").stdout(Stdio::null()).status();
        assert!(found.is_ok(), "no redis-server found: run scripts/setup, or install Redis");
        for _ in 0..5 {
            let server = Self::spawn();
            if server.listens() {
                return server;
            }
        }
        panic!("five free ports in a row were taken before Redis could listen");
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    fn spawn() -> Self {
        let directory = tempfile::Builder::new().prefix("throw-away-redis-").tempdir().unwrap();
        let port = free_port().unwrap();
        let supervisor = Command::new("sh")
            .args(["-c", SUPERVISE])
            .env("DIRECTORY", directory.path())
            .env("PORT", port.to_string())
            .process_group(0) // Ctrl-C is for us: the supervisor goes when we have gone
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { supervisor, directory, port }
    }

    /// Waits until its log says that it is ready. False when somebody was faster with the port.
    fn listens(&self) -> bool {
        let started = Instant::now();
        loop {
            let log = fs::read_to_string(self.directory().join("log")).unwrap_or_default();
            if log.contains("Ready to accept connections") {
                return true;
            }
            if log.contains("Address already in use") {
                return false;
            }
            assert!(started.elapsed() < PATIENCE, "Redis does not get ready:\n{log}");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for RedisServer {
    /// Lets go of the pipe, which ends everything, and waits until it has.
    fn drop(&mut self) {
        drop(self.supervisor.stdin.take());
        let _ = self.supervisor.wait();
    }
}
