//! A mixed load over two pools while everything that can fail does, at random: ten seconds with the other tests, five
//! minutes with `make soak`. Nothing may be left behind: no backend, no file descriptor, no task, no memory.
//!
//! `SOAK_SECONDS` is how long, `SOAK_SEED` which draws; the seed is printed.

#![cfg(feature = "postgres")]

mod support;

#[path = "support/faults.rs"]
#[allow(dead_code)] // made for the faults' own suite
mod harness;

use std::collections::BTreeMap;
use std::fs;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use harness::{Db, MAX_SIZE, Pool, SOON, Stopped};
use support::eventually;
use support::line::assert_ledgers_add_up;
use support::postgres::{Options, StopMode};
use support::proxy::Proxy;
use tokio::runtime::Handle;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::error::SqlState;
use tower_adaptive_pool::{QueryError, Snapshot};

const CALLERS: u64 = 8;
/// Before the first measurement: caches are filled, the allocator has its arenas.
const WARM_UP: f64 = 0.3;
/// What the allocator may keep more than after the warm-up: a connection is some 50 KiB, and in five minutes thousands come
/// and go.
const SLACK_KIB: u64 = 2 * 1024;

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct Draws(u64);

impl Draws {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % bound
    }

    fn millis(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(least + self.below(most - least))
    }
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// Callers and faults rest while this is set.
    pause: AtomicBool,
    got: Mutex<BTreeMap<String, u64>>,
    faults: Mutex<BTreeMap<&'static str, u64>>,
    serial: AtomicI64,
    resting: AtomicI64,
}

impl Shared {
    /// Sleeps through a pause; false when it is time to go home.
    async fn goes_on(&self) -> bool {
        if self.pause.load(Relaxed) {
            self.resting.fetch_add(1, Relaxed);
            while self.pause.load(Relaxed) && !self.stop.load(Relaxed) {
                sleep(Duration::from_millis(5)).await;
            }
            self.resting.fetch_sub(1, Relaxed);
        }
        !self.stop.load(Relaxed)
    }

    fn fault(&self, name: &'static str) {
        *self.faults.lock().unwrap().entry(name).or_default() += 1;
    }
}

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name}={value}")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_fails_nothing_is_left_behind() {
    let length = Duration::from_secs(from_environment("SOAK_SECONDS", 10));
    let seed = from_environment("SOAK_SEED", u64::from(std::process::id()));
    println!("{} s, SOAK_SEED={seed}", length.as_secs());

    // One pool whose server fails, and which must keep its ceiling; one whose network does.
    let (direct, far) = (Db::alone(Options::default()).await, Db::shared().await);
    let proxy = Proxy::before(far.server.port()).await;
    let pools = [open(&direct, direct.server.port()), open(&far, proxy.port())];
    for db in [&direct, &far] {
        db.admin.batch_execute("create table tally (id int primary key, n bigint)").await.unwrap();
        db.admin.batch_execute("insert into tally values (1, 0)").await.unwrap();
        db.admin.batch_execute(&format!("grant all on tally to {}", db.role)).await.unwrap();
    }
    let shared = Arc::<Shared>::default();
    let mut tasks = JoinSet::new();
    for caller in 0..2 * CALLERS {
        let pool = pools[(caller % 2) as usize].clone();
        tasks.spawn(call(pool, shared.clone(), Draws(seed.wrapping_add(caller * 7919))));
    }
    let server_fails = tokio::spawn(fail_server(direct, pools[0].clone(), shared.clone(), Draws(seed ^ 1)));
    let network_fails = tokio::spawn(fail_network(far, proxy, shared.clone(), Draws(seed ^ 2)));

    let began = Instant::now();
    progress(&shared, &pools, began, length.mul_f64(WARM_UP)).await;
    let warm = at_rest(&shared, &pools, |_| true).await;
    progress(&shared, &pools, began, length).await;
    // What was thrown away may wait five seconds for its last answer.
    let end = at_rest(&shared, &pools, |now| now.files <= warm.files && now.tasks <= warm.tasks).await;
    shared.stop.store(true, Relaxed);
    tasks.join_all().await;
    let (direct, far) = (server_fails.await.unwrap(), network_fails.await.unwrap());

    println!("got    {:?}\nfaults {:?}", shared.got.lock().unwrap(), shared.faults.lock().unwrap());
    println!("after the warm-up {warm:?}\nat the end        {end:?}");
    for (pool, db) in pools.iter().zip([&direct, &far.0]) {
        pool.drain(SOON).await.unwrap();
        db.no_backend_is_left().await;
        assert_ledgers_add_up(&pool.snapshot());
        let queries = pool.snapshot().queries;
        assert_eq!(queries.started, queries.ok + queries.failed + queries.timed_out + queries.cancelled);
        assert_eq!((pool.snapshot().size, pool.snapshot().written_off), (0, 0), "drained");
    }
    let refusal = format!("too many connections for role \"{}\"", direct.role);
    assert_eq!(direct.server.count_in_log(&refusal), 0, "over the ceiling");
    assert!(end.kib <= warm.kib + SLACK_KIB, "{warm:?} {end:?}");
}

fn open(db: &Db, port: u16) -> Pool {
    let builder = db.builder(port).min_size(2).min_limit(1).idle_timeout(Duration::from_millis(500));
    builder.check_after(Duration::from_millis(50)).max_uses(200).build().unwrap()
}

/// What this process has while nothing happens.
#[derive(Debug)]
struct Held {
    kib: u64,
    files: usize,
    tasks: usize,
}

impl Held {
    fn now() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        Self {
            kib: resident.trim().trim_end_matches(" kB").parse().unwrap(),
            files: fs::read_dir("/proc/self/fd").unwrap().count(),
            tasks: Handle::current().metrics().num_alive_tasks(),
        }
    }
}

/// Lets everybody rest, and the pools heal: both serve, nothing closes any more, they are as small as they may be, and what
/// this process has is flat.
async fn at_rest(shared: &Shared, pools: &[Pool], flat: impl Fn(&Held) -> bool) -> Held {
    shared.pause.store(true, Relaxed);
    let everybody = 2 * CALLERS as i64 + 2;
    eventually(SOON * 4, async || shared.resting.load(Relaxed) == everybody).await;
    for pool in pools {
        eventually(
            SOON,
            async || matches!(pool.acquire().await, Ok(connection) if echo(&connection, 1).await.is_ok()),
        )
        .await;
        // To ask again and again would be a load, which keeps the limit one above what it uses.
        eventually(SOON, async || {
            let Snapshot { size, idle, reserve, min_size, limit, base_limit, .. } = pool.snapshot();
            size == idle + reserve && size == min_size && limit == base_limit
        })
        .await;
    }
    eventually(SOON, async || flat(&Held::now())).await;
    let held = Held::now();
    shared.pause.store(false, Relaxed);
    held
}

/// Looks at the pools until so long after the beginning.
async fn progress(shared: &Shared, pools: &[Pool], began: Instant, until: Duration) {
    let mut told = began.elapsed().as_secs() / 10;
    while began.elapsed() < until {
        for pool in pools {
            let seen = pool.snapshot();
            let parts = seen.in_use + seen.idle + seen.reserve + seen.opening + seen.closing;
            assert_eq!(seen.size, parts, "{seen:?}");
            assert!(seen.idle == 0 || seen.in_use + seen.idle <= seen.limit, "{seen:?}");
            assert!(seen.reserve == 0 || seen.in_use + seen.idle >= seen.limit, "{seen:?}");
            assert!(seen.idle == 0 || seen.queue_depth == 0, "somebody waits beside an idle one: {seen:?}");
            assert!(seen.size <= MAX_SIZE, "{seen:?}");
        }
        if began.elapsed().as_secs() / 10 > told {
            told = began.elapsed().as_secs() / 10;
            println!("{:>4} s {:?}", told * 10, shared.got.lock().unwrap());
        }
        sleep(Duration::from_millis(2)).await;
    }
}

type Connection = tower_adaptive_pool::Connection<tower_adaptive_pool::Postgres>;

/// Its own result, outside any transaction: whoever gets a connection finds it clean.
async fn echo(connection: &Connection, serial: i64) -> Result<(), QueryError> {
    let sql = "select $1::bigint, pg_current_xact_id_if_assigned() is null";
    let row = connection.query_one(sql, &[&serial]).await.inspect_err(|error| {
        assert_ne!(error.code(), SqlState::IN_FAILED_SQL_TRANSACTION.code(), "somebody else's transaction");
    })?;
    let (mine, unassigned): (i64, bool) = (row.get(0), row.get(1));
    assert_eq!((mine, unassigned), (serial, true), "somebody else's work is in it");
    Ok(())
}

async fn call(pool: Pool, shared: Arc<Shared>, mut draws: Draws) {
    while shared.goes_on().await {
        let serial = shared.serial.fetch_add(1, Relaxed);
        let patience = draws.millis(1, 12);
        let code = match pool.acquire().await {
            Err(error) => error.code().to_owned(),
            Ok(mut connection) => match echo(&connection, serial).await {
                Err(error) => error.code().to_owned(),
                Ok(()) => match use_it(&mut connection, draws.below(100), patience).await {
                    Ok(what) => what.to_owned(),
                    Err(error) => error.code().to_owned(),
                },
            },
        };
        let failed = code.starts_with("pool") || code == "connection";
        *shared.got.lock().unwrap().entry(code).or_default() += 1;
        sleep(Duration::from_millis(if failed { 10 } else { draws.below(3) })).await;
    }
}

/// One of the things that callers do, well or badly.
async fn use_it(
    connection: &mut Connection,
    draw: u64,
    patience: Duration,
) -> Result<&'static str, QueryError> {
    match draw {
        0..40 => {
            connection.query_one("select pg_sleep(0.002)", &[]).await?;
            Ok("query")
        }
        40..55 => {
            connection
                .in_transaction(async |transaction| {
                    transaction.execute("update tally set n = n + 1 where id = 1", &[]).await?;
                    Ok::<_, QueryError>(())
                })
                .await?;
            Ok("transaction")
        }
        55..65 => {
            let future = connection.in_transaction(async |transaction| {
                transaction.execute("update tally set n = n + 1 where id = 1", &[]).await?;
                transaction.execute("select pg_sleep(0.006)", &[]).await?;
                Ok::<_, QueryError>(())
            });
            Ok(dropped(patience, future).await?.unwrap_or("transaction dropped"))
        }
        65..75 => {
            let sleep = connection.batch_execute("select pg_sleep(0.006)");
            Ok(dropped(patience, sleep).await?.unwrap_or("query dropped"))
        }
        75..85 => {
            let none: [i32; 0] = [];
            let mut rows = pin!(connection.query_raw("select generate_series(1, 20000)", none).await?);
            for _ in 0..patience.as_millis() {
                rows.next().await.transpose()?;
            }
            Ok("stream dropped")
        }
        85..90 => {
            let refused = connection.batch_execute("begin; select 1 / 0").await;
            refused.map(|()| "divided by zero")
        }
        90..95 => {
            connection.batch_execute("begin; update tally set n = n where id = 1").await?;
            Ok("transaction left open")
        }
        95..99 => {
            connection.raw().batch_execute("set application_name = 'raw'").await?;
            Ok("raw")
        }
        _ => {
            connection.batch_execute("select pg_sleep(10)").await?;
            Ok("never")
        }
    }
}

/// `None` when it was dropped first.
async fn dropped<T>(
    patience: Duration,
    future: impl Future<Output = Result<T, QueryError>>,
) -> Result<Option<&'static str>, QueryError> {
    match timeout(patience, future).await {
        Ok(outcome) => outcome.map(|_| Some("in time")),
        Err(_) => Ok(None),
    }
}

/// Faults of the server, which answers: its role may have `MAX_SIZE` connections and not one more.
async fn fail_server(mut db: Db, pool: Pool, shared: Arc<Shared>, mut draws: Draws) -> Db {
    while shared.goes_on().await {
        sleep(draws.millis(20, 400)).await;
        let pids = db.pids().await;
        let victim = pids.get(draws.below(MAX_SIZE as u64) as usize).copied();
        match (draws.below(20), victim) {
            (0..8, Some(pid)) => {
                db.kill(&[pid]).await;
                shared.fault("backend killed");
            }
            (8..12, Some(pid)) => {
                db.admin.execute("select pg_cancel_backend($1)", &[&pid]).await.unwrap();
                shared.fault("query cancelled by somebody");
            }
            // A backend that has ended meanwhile cannot be stopped, and need not be.
            (12..14, Some(pid)) if fs::exists(format!("/proc/{pid}")).unwrap() => {
                let frozen = Stopped::stop(vec![pid]);
                sleep(draws.millis(50, 600)).await;
                drop(frozen);
                shared.fault("backend frozen");
            }
            (14..17, _) => {
                let max_size = 2 + draws.below(MAX_SIZE as u64 - 1) as usize;
                pool.gate().set_size(2, max_size).unwrap();
                shared.fault("resized");
            }
            (17..19, _) => {
                // Below what is in use, as it comes; a base_limit of 2 is one that any size allows.
                pool.gate().set_limits(1, 1 + draws.below(2) as usize).unwrap();
                shared.fault("limits changed");
            }
            (19, _) => {
                let mode = if draws.below(2) == 0 { StopMode::Fast } else { StopMode::Immediate };
                let server = db.server.clone();
                let stopped = spawn_blocking(move || server.stop(mode).and_then(|()| server.start_again()));
                stopped.await.unwrap().unwrap();
                db.reconnect().await;
                shared.fault("server restarted");
            }
            _ => {}
        }
    }
    db
}

/// Faults of the network. The server behind it may see more connections than the pool knows of: a reset says nothing.
async fn fail_network(db: Db, proxy: Proxy, shared: Arc<Shared>, mut draws: Draws) -> (Db, Proxy) {
    while shared.goes_on().await {
        sleep(draws.millis(100, 1_000)).await;
        match draws.below(5) {
            0 => {
                proxy.reset().await;
                shared.fault("connections reset");
            }
            1 => {
                proxy.black_hole().await;
                shared.fault("network black-holed");
            }
            2 => {
                proxy.refuse().await;
                shared.fault("port refuses");
            }
            3 => {
                proxy.forget();
                shared.fault("connections forgotten");
            }
            _ => {
                proxy.delay(draws.millis(1, 700));
                shared.fault("authentication slow");
            }
        }
        sleep(draws.millis(10, 700)).await;
        proxy.reset_forgotten();
        proxy.delay(Duration::ZERO);
        proxy.pass().await;
    }
    (db, proxy)
}
