//! What a fault suite needs: a steady load over a pool, what its callers got, and what the server counted meanwhile.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread::panicking;
use std::time::Duration;

use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep};
use tokio_postgres::{Client, Config, NoTls};
use tower_adaptive_pool::postgres::DialError;
use tower_adaptive_pool::{AcquireError, AdaptivePool, Builder, Postgres};

use crate::support::postgres::{Options, PostgresServer};
use crate::support::{eventually, line::assert_ledgers_add_up};

/// Past this something must be wrong; nothing waits for it to pass.
pub const SOON: Duration = Duration::from_secs(15);
/// `CONNECTION LIMIT` of each test's role: the server itself refuses one more.
pub const MAX_SIZE: usize = 4;
/// Twice the connections: there is always somebody waiting.
const CALLERS: usize = 8;
pub const ACQUIRE_TIMEOUT: Duration = Duration::from_millis(400);
pub const QUERY_TIMEOUT: Duration = Duration::from_millis(400);
pub const DIAL_TIMEOUT: Duration = Duration::from_millis(500);
/// By how much a deadline may be missed here: a busy machine of two cores, in debug.
const LATE: Duration = Duration::from_secs(1);
/// So many queries in a row without a failure are called healthy.
const HEALTHY: u32 = 20;

pub type Pool = AdaptivePool<Postgres>;

/// One server for all tests that leave it running.
static SHARED: LazyLock<Arc<PostgresServer>> =
    LazyLock::new(|| Arc::new(PostgresServer::start(Options::default()).unwrap()));

/// A role of a test's own, and somebody who can look and kill.
pub struct Db {
    pub server: Arc<PostgresServer>,
    pub admin: Client,
    pub role: String,
}

impl Db {
    pub async fn shared() -> Self {
        Self::on(spawn_blocking(|| SHARED.clone()).await.unwrap()).await
    }

    pub async fn alone(options: Options) -> Self {
        let server = spawn_blocking(|| PostgresServer::start(options)).await.unwrap();
        Self::on(Arc::new(server.unwrap())).await
    }

    async fn on(server: Arc<PostgresServer>) -> Self {
        static ROLES: AtomicUsize = AtomicUsize::new(0);
        let role = format!("role{}", ROLES.fetch_add(1, Relaxed));
        let admin = superuser(&server).await.unwrap();
        // Some tests crash the server, which may forget what it has not yet written.
        admin.batch_execute("set synchronous_commit = on").await.unwrap();
        let sql = format!("create role {role} login password 'secret' connection limit {MAX_SIZE}");
        admin.batch_execute(&sql).await.unwrap();
        Self { server, admin, role }
    }

    /// After a stop of the server.
    pub async fn reconnect(&mut self) {
        self.admin = superuser(&self.server).await.unwrap();
    }

    /// The role's way in; through a proxy if that is its port.
    pub fn config(&self, port: u16) -> Config {
        let mut config = Config::new();
        config.host(self.server.host()).port(port).dbname("app").user(&self.role).password("secret");
        config
    }

    pub fn builder(&self, port: u16) -> Builder<Postgres> {
        let backend = Postgres::new(self.config(port), NoTls).query_timeout(QUERY_TIMEOUT);
        AdaptivePool::builder(backend)
            .fixed_size(MAX_SIZE)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .dial_timeout(DIAL_TIMEOUT)
    }

    pub async fn pids(&self) -> Vec<i32> {
        let sql = "select pid from pg_stat_activity where usename = $1";
        self.admin.query(sql, &[&self.role]).await.unwrap().iter().map(|row| row.get(0)).collect()
    }

    pub async fn kill(&self, pids: &[i32]) {
        for pid in pids {
            self.admin.execute("select pg_terminate_backend($1)", &[pid]).await.unwrap();
        }
    }

    pub async fn no_backend_is_left(&self) {
        eventually(SOON, async || self.pids().await.is_empty()).await;
    }
}

async fn superuser(server: &PostgresServer) -> Result<Client, tokio_postgres::Error> {
    let mut superuser: Config = server.superuser_url().parse()?;
    let (admin, connection) = superuser.dbname("app").connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(admin)
}

/// Processes that were stopped with SIGSTOP, until this is dropped: also when a test fails.
pub struct Stopped(Vec<i32>);

impl Stopped {
    pub fn stop(pids: Vec<i32>) -> Self {
        let stopped = Self(pids);
        assert!(stopped.signal("STOP"));
        stopped
    }

    fn signal(&self, name: &str) -> bool {
        let pids = self.0.iter().map(ToString::to_string);
        let kill = Command::new("kill").args(["-s", name, "--"]).args(pids).status();
        kill.is_ok_and(|status| status.success())
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let thawed = self.signal("CONT");
        // A panic during a panic would abort, and take the first one's message and the other tests with it.
        assert!(thawed || panicking());
    }
}

/// What callers got, by code: `ok`, an acquire's or a query's. A failed dial's SQLSTATE is appended.
pub type Got = BTreeMap<String, u64>;

#[derive(Default)]
struct Seen {
    got: Got,
    /// Queries in a row without a failure, of those begun after the fault was over.
    streak: u32,
    over: Option<Instant>,
    healthy: Option<Instant>,
    longest_wait: Duration,
    longest_query: Duration,
}

/// A pool with a load on it, and a fault.
pub struct Trial {
    name: &'static str,
    pub db: Db,
    pub pool: Pool,
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    callers: Vec<JoinHandle<()>>,
    peak: Arc<AtomicI64>,
    sampler: JoinHandle<()>,
}

impl Trial {
    /// Waits until the load runs well over all connections; what happened so far is forgotten.
    pub async fn start(name: &'static str, db: Db, builder: Builder<Postgres>) -> Self {
        let pool = builder.build().unwrap();
        pool.ready().await.unwrap();
        let (seen, stop, peak) = (Arc::default(), Arc::default(), Arc::default());
        let caller = |_| tokio::spawn(call(pool.clone(), Arc::clone(&seen), Arc::clone(&stop)));
        let callers = (0..CALLERS).map(caller).collect();
        let sampler = tokio::spawn(sample(db.server.clone(), db.role.clone(), Arc::clone(&peak)));
        let trial = Self { name, db, pool, seen, stop, callers, peak, sampler };
        trial.over();
        trial.healthy().await;
        trial.seen().got.clear();
        trial
    }

    /// As [`start`](Self::start), with nothing between the pool and the server.
    pub async fn direct(name: &'static str, db: Db) -> Self {
        let builder = db.builder(db.server.port());
        Self::start(name, db, builder).await
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often callers got this so far.
    pub fn count(&self, code: &str) -> u64 {
        self.seen().got.get(code).copied().unwrap_or(0)
    }

    /// Waits until so many more callers have got this.
    #[track_caller]
    pub fn sees(&self, more: u64, code: &str) -> impl Future<Output = ()> {
        let before = self.count(code);
        eventually(SOON, async move || self.count(code) >= before + more)
    }

    /// From here on the pool should heal.
    pub fn over(&self) {
        let mut seen = self.seen();
        (seen.streak, seen.over, seen.healthy) = (0, Some(Instant::now()), None);
    }

    /// How long it took from then on until twenty queries in a row had gone well.
    pub async fn healthy(&self) -> Duration {
        eventually(SOON, async || self.seen().healthy.is_some()).await;
        let seen = self.seen();
        seen.healthy.unwrap() - seen.over.unwrap()
    }

    /// Ends the load, and sees that nothing is left behind. Prints the row of `docs/RELIABILITY.md`.
    pub async fn finish(self, healthy: Duration, allowed: &[&str]) -> Got {
        self.stop.store(true, Relaxed);
        for caller in self.callers {
            caller.await.unwrap();
        }
        let at_rest = self.pool.snapshot();
        assert_ledgers_add_up(&at_rest);
        assert_eq!(at_rest.acquires.waiting(), 0);
        let drained = self.pool.drain(SOON).await;
        let backends = self.db.pids().await.len();
        self.sampler.abort();

        let seen = std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner));
        let got: Vec<_> = seen.got.iter().map(|(code, count)| format!("{count} {code}")).collect();
        let (got, peak) = (got.join(", "), self.peak.load(Relaxed));
        let (name, healthy) = (self.name, healthy.as_millis());
        println!("| {name} | {got} | {healthy} ms | {peak} of {MAX_SIZE} | {backends} |");

        drained.unwrap();
        assert_eq!(backends, 0, "drain resolves when the server has let go");
        let end = self.pool.snapshot();
        assert_eq!((end.size, end.written_off), (0, 0));
        let queries = end.queries;
        assert_eq!(queries.started, queries.ok + queries.failed + queries.timed_out + queries.cancelled);
        let refusal = format!("too many connections for role \"{}\"", self.db.role);
        let log = self.db.server.log();
        // The socket of a killed process is closed before the server has buried it: one dial may come in between.
        let (before, log) = log.split_once("was terminated by signal 9").unwrap_or(("", &log));
        let refused = (before.matches(&refusal).count(), log.matches(&refusal).count());
        assert!(refused.0 <= 1 && refused.1 == 0, "{refused:?} {before} {log}");
        assert!((1..=MAX_SIZE as i64).contains(&peak), "the server was looked at, and counted {peak}");
        assert!(seen.longest_wait < ACQUIRE_TIMEOUT + LATE, "waited {:?}", seen.longest_wait);
        assert!(seen.longest_query < QUERY_TIMEOUT + LATE, "a query took {:?}", seen.longest_query);
        for code in seen.got.keys() {
            assert!(code == "ok" || allowed.contains(&code.as_str()), "{code} in {got}");
        }
        seen.got
    }
}

/// One caller: short queries, one after the other; after a failure a pause, as a client makes.
async fn call(pool: Pool, seen: Arc<Mutex<Seen>>, stop: Arc<AtomicBool>) {
    while !stop.load(Relaxed) {
        let began = Instant::now();
        let acquired = pool.acquire().await;
        let (waited, granted) = (began.elapsed(), Instant::now());
        let code = match &acquired {
            Ok(connection) => match connection.query_one("select pg_sleep(0.005)", &[]).await {
                Ok(_) => "ok".to_owned(),
                Err(error) => error.code().to_owned(),
            },
            Err(error) => code(error),
        };
        let ran = granted.elapsed();
        drop(acquired);
        let ok = code == "ok";
        {
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            *seen.got.entry(code).or_default() += 1;
            seen.longest_wait = seen.longest_wait.max(waited);
            seen.longest_query = seen.longest_query.max(ran);
            if seen.over.is_some_and(|over| began >= over) {
                seen.streak = if ok { seen.streak + 1 } else { 0 };
                if seen.streak == HEALTHY {
                    seen.healthy.get_or_insert_with(Instant::now);
                }
            }
        }
        sleep(Duration::from_millis(if ok { 1 } else { 10 })).await;
    }
}

fn code(error: &AcquireError) -> String {
    let dial = match error {
        AcquireError::Timeout(timeout) => timeout.dial_error.as_ref(),
        AcquireError::Dial(error) => Some(error),
        _ => None,
    };
    let state = match dial.and_then(|error| error.downcast_ref()) {
        Some(DialError::Postgres(error)) => error.code(),
        _ => None,
    };
    match state {
        Some(state) => format!("{} {}", error.code(), state.code()),
        None => error.code().to_owned(),
    }
}

/// Asks the server for the role's backends, over and over, over restarts too.
async fn sample(server: Arc<PostgresServer>, role: String, peak: Arc<AtomicI64>) {
    loop {
        if let Ok(admin) = superuser(&server).await {
            let sql = "select count(*) from pg_stat_activity where usename = $1";
            while let Ok(row) = admin.query_one(sql, &[&role]).await {
                peak.fetch_max(row.get(0), Relaxed);
                sleep(Duration::from_millis(3)).await;
            }
        }
        sleep(Duration::from_millis(20)).await;
    }
}
