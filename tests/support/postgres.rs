//! A throw-away PostgreSQL: its own directory, its own port, and gone with the process that started it.
//!
//! Only std and `tempfile`, and synchronous, so that tests, benches and examples can all have it:
//! `#[path = "../tests/support/postgres.rs"] mod postgres;`

#[path = "postgres/host.rs"] // said here, because this file is itself included by path
pub mod host;

use std::{
    fmt, fs,
    io::{self, BufRead, BufReader, Write},
    os::unix::{fs::OpenOptionsExt, process::CommandExt},
    path::Path,
    process::{Child, Stdio},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use self::host::{ServerUser, find_binaries, free_port, random_hex};

/// How long initdb, a start or a stop may take before something must be wrong.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a server should be like.
#[derive(Clone, Debug)]
pub struct Options {
    /// `CONNECTION LIMIT` of the application's role: how the server itself enforces a ceiling.
    pub role_connection_limit: Option<u32>,
    pub max_connections: u32,
    /// Lines of postgresql.conf; they win over our own.
    pub settings: Vec<(String, String)>,
    /// Names and texts of files beside the data directory (`../name` in a setting), for the server's eyes only.
    pub files: Vec<(String, String)>,
}

impl Default for Options {
    fn default() -> Self {
        Self { role_connection_limit: None, max_connections: 120, settings: Vec::new(), files: Vec::new() }
    }
}

/// The three ways in which PostgreSQL can be asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Accepts no one new and waits until every client has left.
    Smart,
    /// Ends every session, then stops properly.
    Fast,
    /// Drops everything; the next start recovers as after a crash.
    Immediate,
}

/// Why there is no server.
pub struct StartError(String);

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The same text: this is what `unwrap` and a `main` that returns the error show.
impl fmt::Debug for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for StartError {}

impl From<io::Error> for StartError {
    fn from(error: io::Error) -> Self {
        Self(format!("cannot set up a throw-away PostgreSQL: {error}"))
    }
}

/// A running (or, between [`stop`](Self::stop) and [`start_again`](Self::start_again), stopped) server.
pub struct PostgresServer {
    supervisor: Mutex<Supervisor>, // dropped before the directory it works in
    directory: TempDir,
    port: u16,
    postmaster_pid: AtomicU32,
    superuser_password: String,
    app_password: String,
}

impl PostgresServer {
    /// Makes a database cluster with a superuser `postgres` and a plain role `app` that owns a database of
    /// that name, starts it, and returns when it accepts connections.
    pub fn start(options: Options) -> Result<Self, StartError> {
        let bin = find_binaries()?;
        let directory = tempfile::Builder::new().prefix("throw-away-postgres-").tempdir()?;
        let user = ServerUser::of(&directory)?;
        let (superuser_password, app_password) = (random_hex()?, random_hex()?);
        let ours = [
            ("password", &superuser_password),
            ("roles.sql", &roles(&options, &app_password)),
            ("settings", &settings(&options, directory.path())),
        ];
        let theirs = options.files.iter().map(|(name, text)| (name.as_str(), text));
        for (name, text) in ours.into_iter().chain(theirs) {
            let path = directory.path().join(name);
            // A private key that others can read is one that PostgreSQL refuses.
            let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
            file.write_all(text.as_bytes())?;
            user.own(&path)?;
        }

        let mut supervisor = Supervisor::spawn(&user, &bin, directory.path())?;
        if supervisor.report(PATIENCE).as_deref() != Ok("initialised") {
            let log = read(&directory.path().join("init.log"));
            return Err(StartError(format!("initdb failed:\n{log}")));
        }
        let mut server = Self {
            supervisor: Mutex::new(supervisor),
            directory,
            port: 0,
            postmaster_pid: AtomicU32::new(0),
            superuser_password,
            app_password,
        };
        for _ in 0..5 {
            server.port = free_port()?;
            match server.start_again() {
                Err(_) if server.count_in_log("Address already in use") > 0 => {
                    // Somebody was faster. Another port, and a log that knows nothing of this one.
                    fs::remove_file(server.directory.path().join("log"))?;
                }
                outcome => return outcome.map(|()| server),
            }
        }
        Err(StartError("five free ports in a row were taken before PostgreSQL could listen".into()))
    }

    #[allow(clippy::unused_self, reason = "one day it may be another address")]
    pub fn host(&self) -> &'static str {
        "127.0.0.1"
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The directory of the unix socket.
    pub fn socket_dir(&self) -> &Path {
        self.directory.path()
    }

    pub fn superuser_url(&self) -> String {
        self.url("postgres", &self.superuser_password)
    }

    pub fn app_url(&self) -> String {
        self.url("app", &self.app_password)
    }

    fn url(&self, role: &str, password: &str) -> String {
        format!("postgres://{role}:{password}@{}:{}/{role}", self.host(), self.port)
    }

    /// The process id of the latest start.
    pub fn postmaster_pid(&self) -> u32 {
        self.postmaster_pid.load(Ordering::Acquire)
    }

    /// Everything the server has logged, over all its starts.
    pub fn log(&self) -> String {
        read(&self.directory.path().join("log"))
    }

    pub fn count_in_log(&self, text: &str) -> usize {
        self.log().matches(text).count()
    }

    /// Stops the server and returns when its last process is gone. Nothing happens if it is not running.
    pub fn stop(&self, mode: StopMode) -> Result<(), StartError> {
        let mut supervisor = self.supervisor();
        if !supervisor.is_running() {
            return Ok(());
        }
        let signal = match mode {
            StopMode::Smart => "TERM",
            StopMode::Fast => "INT",
            StopMode::Immediate => "QUIT",
        };
        supervisor.order(&format!("signal {signal}"))?;
        match supervisor.report(PATIENCE).as_deref() {
            Ok("gone") => Ok(()),
            _ => Err(StartError(format!("PostgreSQL did not stop:\n{}", self.log()))),
        }
    }

    /// Starts the stopped server: same port, same data. Returns when it accepts connections.
    pub fn start_again(&self) -> Result<(), StartError> {
        let mut supervisor = self.supervisor();
        if supervisor.is_running() {
            return Err(StartError("PostgreSQL is running already".into()));
        }
        let failed = |how: &str| StartError(format!("PostgreSQL {how}:\n{}", self.log()));
        supervisor.order(&format!("start {}", self.port))?;
        let report = supervisor.report(PATIENCE).map_err(|_| failed("could not be started"))?;
        let pid = report.strip_prefix("started ").ok_or_else(|| failed("could not be started"))?;
        self.postmaster_pid.store(pid.parse().unwrap_or(0), Ordering::Release);

        let started = Instant::now();
        while !self.is_ready(pid) {
            if supervisor.report(Duration::from_millis(2)).is_ok() {
                return Err(failed("ended before it was ready"));
            }
            if started.elapsed() > PATIENCE {
                return Err(failed("does not get ready"));
            }
        }
        Ok(())
    }

    pub fn restart(&self) -> Result<(), StartError> {
        self.stop(StopMode::Fast)?;
        self.start_again()
    }

    fn supervisor(&self) -> MutexGuard<'_, Supervisor> {
        self.supervisor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks as `pg_ctl` does: the eighth line of postmaster.pid. A killed server may have left an older file.
    fn is_ready(&self, pid: &str) -> bool {
        let file = read(&self.directory.path().join("data/postmaster.pid"));
        let mut lines = file.lines().map(str::trim);
        lines.next() == Some(pid) && matches!(lines.nth(6), Some("ready" | "standby"))
    }
}

/// The shell that has the server as its child, see `supervise.sh`.
struct Supervisor {
    child: Child,
    reports: Receiver<String>,
    running: bool,
}

impl Supervisor {
    fn spawn(user: &ServerUser, bin: &Path, directory: &Path) -> Result<Self, StartError> {
        let mut child = user
            .shell(include_str!("postgres/supervise.sh"))
            .envs([("DIRECTORY", directory), ("BIN", bin)])
            .env("LC_ALL", "C") // we read its messages
            .env_remove("PGDATA")
            .env_remove("PGPORT")
            .process_group(0) // Ctrl-C is for us: the supervisor goes when we have gone
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let lines = BufReader::new(child.stdout.take().expect("standard output is piped")).lines();
        let (sender, reports) = mpsc::channel();
        thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Ok(Self { child, reports, running: false })
    }

    fn order(&mut self, order: &str) -> io::Result<()> {
        let stdin = self.child.stdin.as_mut().expect("standard input is piped and open until drop");
        writeln!(stdin, "{order}")
    }

    /// A server may also have ended by itself: what was reported since the last order counts.
    fn is_running(&mut self) -> bool {
        while self.report(Duration::ZERO).is_ok() {}
        self.running
    }

    fn report(&mut self, patience: Duration) -> Result<String, RecvTimeoutError> {
        let report = self.reports.recv_timeout(patience)?;
        self.running = report.starts_with("started");
        Ok(report)
    }
}

impl Drop for Supervisor {
    /// Lets go of the pipe, which ends everything, and waits until it has.
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

fn roles(options: &Options, app_password: &str) -> String {
    let limit = options.role_connection_limit.map_or(-1, i64::from);
    format!(
        "CREATE ROLE app LOGIN CONNECTION LIMIT {limit} PASSWORD '{app_password}'\n\
         CREATE DATABASE app OWNER app\n"
    )
}

fn settings(options: &Options, directory: &Path) -> String {
    let ours = [
        ("listen_addresses", "127.0.0.1".into()),
        ("unix_socket_directories", directory.display().to_string()),
        ("max_connections", options.max_connections.to_string()),
        // Nothing here has to survive a power cut.
        ("fsync", "off".into()),
        ("synchronous_commit", "off".into()),
        ("full_page_writes", "off".into()),
    ];
    let line = |(name, value): (&str, &str)| format!("{name} = '{}'\n", value.replace('\'', "''"));
    let ours = ours.iter().map(|(name, value)| line((name, value)));
    let theirs = options.settings.iter().map(|(name, value)| line((name, value)));
    ours.chain(theirs).collect()
}

/// What is in the file so far; nothing if it is not there yet.
fn read(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}
