//! Futures are dropped wherever they can be, against a real PostgreSQL: whoever borrows next must not notice.
//!
//! Each piece of [`WARM`], [`CHECKED`] and [`COLD`] is dropped at each of its await points; then cancel requests race
//! against the ends of their queries, and the server's log tells who won.
//! `cargo test --test cancel -- --nocapture` prints the tallies.

#![cfg(feature = "postgres")]

mod support;

use std::{
    collections::HashSet,
    convert::Infallible,
    fmt,
    future::poll_fn,
    ops::Range,
    pin::{Pin, pin},
    sync::atomic::{AtomicI32, Ordering::Relaxed},
    task::Poll,
    time::Duration,
};

use futures_util::{StreamExt, TryStreamExt, future::join_all};
use http::{Request, Response};
use support::{
    eventually,
    line::assert_ledgers_add_up,
    postgres::{Options, PostgresServer},
    proxy::Proxy,
};
use tokio::{
    join, select,
    task::{spawn, spawn_blocking, yield_now},
    time::{Instant, sleep, timeout},
};
use tokio_postgres::{Client, Config, NoTls};
use tower::{Layer, ServiceExt, service_fn};
use tower_adaptive_pool::{
    AcquireError, AdaptivePool, AdaptivePoolLayer, Builder, Connection, Postgres, Queries, QueryError,
    ShedReason, postgres::Transaction,
};

const SOON: Duration = Duration::from_secs(10);

type Pool = AdaptivePool<Postgres>;

/// A server with one table of one row, and somebody who sees everything.
struct Db {
    server: PostgresServer,
    admin: Client,
}

impl Db {
    async fn start() -> Self {
        let settings = [("log_connections", "on"), ("log_min_messages", "error")];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let options = Options { settings, ..Options::default() };
        let server = spawn_blocking(|| PostgresServer::start(options)).await.unwrap().unwrap();
        let mut superuser: Config = server.superuser_url().parse().unwrap();
        let (admin, connection) = superuser.dbname("app").connect(NoTls).await.unwrap();
        spawn(connection);
        let table = "create table public.t (id int primary key, n int); grant all on public.t to app; \
                     insert into public.t values (1, 0)";
        admin.batch_execute(table).await.unwrap();
        Self { server, admin }
    }

    /// A pool of one connection: the next borrower has the one that was dropped.
    fn builder(&self, query_timeout: Duration) -> Builder<Postgres> {
        self.builder_at(self.server.port(), query_timeout)
    }

    fn builder_at(&self, port: u16, query_timeout: Duration) -> Builder<Postgres> {
        let url = self.server.app_url().replace(&format!(":{}/", self.server.port()), &format!(":{port}/"));
        let mut config: Config = url.parse().unwrap();
        // The server's own time-out has the same SQLSTATE as a cancel: keep it away.
        config.options("-c statement_timeout=60s");
        let backend = Postgres::new(config, NoTls).query_timeout(query_timeout);
        AdaptivePool::builder(backend).fixed_size(1).acquire_timeout(SOON)
    }

    /// Nothing of `pid` is left on the server: no transaction, no lock, least of all on the row.
    async fn assert_at_rest(&self, pid: i32, story: &Story) {
        let seen = "select state, backend_xid is null and backend_xmin is null and xact_start is null, \
                    (select count(*) from pg_locks where pg_locks.pid = $1) from pg_stat_activity where pid = $1";
        let seen = self.admin.query_one(seen, &[&pid]).await.unwrap();
        let seen: (&str, bool, i64) = (seen.get(0), seen.get(1), seen.get(2));
        assert_eq!(seen, ("idle", true, 0), "{story}: state, no transaction, locks");
        self.assert_row_is_free(story).await;
    }

    async fn assert_row_is_free(&self, story: &Story) {
        let locked = self.admin.execute("select from t where id = 1 for update nowait", &[]).await;
        assert_eq!(locked.unwrap_or_else(|error| panic!("{story}: {error}")), 1);
    }

    async fn backends(&self) -> i64 {
        let count = "select count(*) from pg_stat_activity where usename = 'app'";
        self.admin.query_one(count, &[]).await.unwrap().get(0)
    }
}

/// What is done to a pool, and dropped in the middle.
type Work = for<'a> fn(&'a Pool) -> Pin<Box<dyn Future<Output = ()> + 'a>>;

const UPDATE: &str = "update t set n = n + 1 where id = 1";

/// On a pool with its connection open. A public future that is new goes here.
const WARM: &[(&str, Work)] = &[
    ("acquire, queued", |pool| {
        Box::pin(async move {
            let held = pool.acquire().await.unwrap();
            let release = async move {
                held.query("select 1", &[]).await.unwrap();
                drop(held);
            };
            let (second, ()) = join!(pool.acquire(), release);
            second.unwrap().query("select 2", &[]).await.unwrap();
        })
    }),
    ("query", |pool| {
        Box::pin(async move {
            let connection = pool.acquire().await.unwrap();
            assert_eq!(connection.query("select generate_series(1, 1000)", &[]).await.unwrap().len(), 1000);
        })
    }),
    ("query, slow", |pool| {
        Box::pin(async move {
            pool.acquire().await.unwrap().query("select pg_sleep(0.005)", &[]).await.unwrap();
        })
    }),
    ("query, failing", |pool| {
        Box::pin(async move {
            pool.acquire().await.unwrap().query("select 1 / 0", &[]).await.unwrap_err();
        })
    }),
    ("query_one", |pool| {
        Box::pin(async move {
            pool.acquire().await.unwrap().query_one("select $1::int", &[&-1]).await.unwrap();
        })
    }),
    ("query_opt", |pool| {
        Box::pin(async move {
            let connection = pool.acquire().await.unwrap();
            assert!(connection.query_opt("select 1 where false", &[]).await.unwrap().is_none());
        })
    }),
    ("execute", |pool| {
        Box::pin(async move {
            assert_eq!(pool.acquire().await.unwrap().execute(UPDATE, &[]).await.unwrap(), 1);
        })
    }),
    ("batch_execute", |pool| {
        Box::pin(async move {
            let sql = format!("{UPDATE}; select pg_sleep(0.002); {UPDATE}");
            pool.acquire().await.unwrap().batch_execute(&sql).await.unwrap();
        })
    }),
    ("batch_execute, BEGIN as text", |pool| {
        Box::pin(async move {
            let connection = pool.acquire().await.unwrap();
            connection.batch_execute(&format!("begin; {UPDATE}")).await.unwrap();
            connection.query("select * from t", &[]).await.unwrap();
        })
    }),
    ("batch_execute, BEGIN as text and a failure", |pool| {
        Box::pin(async move {
            let connection = pool.acquire().await.unwrap();
            connection.batch_execute(&format!("begin; {UPDATE}; select 1 / 0")).await.unwrap_err();
        })
    }),
    ("query_raw, to its end", |pool| {
        Box::pin(async move {
            let connection = pool.acquire().await.unwrap();
            let rows = connection.query_raw("select generate_series(1, 5)", Vec::<i32>::new()).await.unwrap();
            let mut rows = pin!(rows);
            while let Some(row) = rows.next().await {
                row.unwrap();
                yield_now().await; // to be dropped after each row, also where several came at once
            }
        })
    }),
    ("query_raw, left unread", |pool| {
        Box::pin(async move {
            let connection = pool.acquire().await.unwrap();
            let sql = "select repeat('x', 10000) from generate_series(1, 1000)";
            let rows = connection.query_raw(sql, Vec::<i32>::new()).await.unwrap();
            let mut rows = pin!(rows.take(5));
            while let Some(row) = rows.next().await {
                row.unwrap();
                yield_now().await;
            }
        })
    }),
    ("prepare_cached", |pool| {
        Box::pin(async move {
            let connection = pool.acquire().await.unwrap();
            let sql = format!("select n + {} from t", unique());
            let statement = connection.prepare_cached(&sql).await.unwrap();
            connection.query(&statement, &[]).await.unwrap();
        })
    }),
    ("transaction, commit", |pool| {
        Box::pin(async move {
            let mut connection = pool.acquire().await.unwrap();
            let transaction = connection.transaction().await.unwrap();
            let statement =
                transaction.prepare_cached(&format!("{UPDATE} and n <> -{}", unique())).await.unwrap();
            assert_eq!(transaction.execute(&statement, &[]).await.unwrap(), 1);
            transaction.commit().await.unwrap();
        })
    }),
    ("transaction, rollback", |pool| {
        Box::pin(async move {
            let mut connection = pool.acquire().await.unwrap();
            let transaction = connection.transaction().await.unwrap();
            transaction.execute(UPDATE, &[]).await.unwrap();
            transaction.rollback().await.unwrap();
        })
    }),
    ("transaction, dropped with its rows", |pool| {
        Box::pin(async move {
            let mut connection = pool.acquire().await.unwrap();
            let transaction = connection.transaction().await.unwrap();
            transaction.batch_execute(UPDATE).await.unwrap();
            let rows = transaction.query_raw("select * from t for update", Vec::<i32>::new()).await.unwrap();
            let mut rows = pin!(rows);
            rows.next().await.unwrap().unwrap();
            yield_now().await;
        })
    }),
    ("transaction, commit after a failure", |pool| {
        Box::pin(async move {
            let mut connection = pool.acquire().await.unwrap();
            let transaction = connection.transaction().await.unwrap();
            transaction.execute(UPDATE, &[]).await.unwrap();
            transaction.query_opt("select 1 / 0", &[]).await.unwrap_err();
            assert!(matches!(transaction.commit().await, Err(QueryError::RolledBack)));
        })
    }),
    ("in_transaction", |pool| {
        Box::pin(async move {
            let mut connection = pool.acquire().await.unwrap();
            let work = async |transaction: &mut Transaction<'_>| transaction.execute(UPDATE, &[]).await;
            assert_eq!(connection.in_transaction(work).await.unwrap(), 1);
        })
    }),
    ("in_transaction, failing", |pool| {
        Box::pin(async move {
            let mut connection = pool.acquire().await.unwrap();
            let work = async |transaction: &mut Transaction<'_>| {
                transaction.execute(UPDATE, &[]).await?;
                transaction.query_one("select 1 / 0", &[]).await
            };
            connection.in_transaction(work).await.unwrap_err();
        })
    }),
    ("preflight", |pool| {
        Box::pin(async move {
            pool.preflight(1).await.unwrap();
        })
    }),
    ("a request through the layer", |pool| {
        Box::pin(async move {
            let handler = service_fn(|_: Request<()>| async {
                pool.acquire().await.unwrap().execute(UPDATE, &[]).await.unwrap();
                Ok::<_, Infallible>(Response::new(String::new()))
            });
            let service = AdaptivePoolLayer::new(pool.clone()).layer(handler);
            assert!(service.oneshot(Request::new(())).await.unwrap().status().is_success());
        })
    }),
];

/// Once the connection has been idle for so long that it is checked before it is handed out.
const CHECKED: &[(&str, Work)] = &[("acquire, with a check", |pool| {
    Box::pin(async move {
        pool.acquire().await.unwrap().query("select 1", &[]).await.unwrap();
    })
})];

/// Each time on a new pool, whose connection is not open yet.
const COLD: &[(&str, Work)] = &[
    ("ready", |pool| Box::pin(async move { pool.ready().await.unwrap() })),
    ("acquire, during the dial", |pool| {
        Box::pin(async move {
            pool.acquire().await.unwrap().execute(UPDATE, &[]).await.unwrap();
        })
    }),
    ("drain", |pool| {
        Box::pin(async move {
            pool.ready().await.unwrap();
            pool.drain(SOON).await.unwrap();
        })
    }),
    ("drain, while one holds and one waits", |pool| {
        Box::pin(async move {
            let mut held = pool.acquire().await.unwrap();
            let release = async move {
                let work = async |transaction: &mut Transaction<'_>| transaction.execute(UPDATE, &[]).await;
                held.in_transaction(work).await.unwrap();
            };
            let waiter = async { pool.acquire().await.unwrap().execute(UPDATE, &[]).await.unwrap() };
            let (_, (), drained) = join!(waiter, release, pool.drain(SOON));
            drained.unwrap();
        })
    }),
];

/// Never the same twice.
fn unique() -> i32 {
    static NEXT: AtomicI32 = AtomicI32::new(1);
    NEXT.fetch_add(1, Relaxed)
}

/// Uniform in `[0, 1)`, the same for the same seed (SplitMix64).
fn draw(seed: u64) -> f64 {
    let mut mixed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed >> 11) as f64 / (1_u64 << 53) as f64
}

/// To the microsecond, where tokio's timers count milliseconds.
async fn spin(time: Duration) {
    let started = Instant::now();
    while started.elapsed() < time {
        yield_now().await;
    }
}

/// What was dropped, and when.
struct Story {
    name: &'static str,
    pendings: usize,
    linger: Duration,
}

impl fmt::Display for Story {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, pendings, linger } = self;
        write!(f, "«{name}», dropped {linger:?} after it was pending for the {pendings}th time")
    }
}

impl Story {
    /// Runs `work` until it has been pending so often, then for a short time more, and drops it. True when it came to its
    /// end before.
    async fn tell(&self, work: Work, pool: &Pool) -> bool {
        let mut future = work(pool);
        let mut left = self.pendings;
        let ended = poll_fn(|cx| {
            if left == 0 {
                return false.into();
            }
            left -= 1;
            match future.as_mut().poll(cx) {
                Poll::Pending if left == 0 => false.into(),
                outcome => outcome.map(|()| true),
            }
        });
        let ended = timeout(SOON, ended).await.unwrap_or_else(|_| panic!("{self}: it hangs"));
        if ended || self.linger.is_zero() {
            return ended;
        }
        select! {
            biased;
            () = spin(self.linger) => false,
            () = future => true,
        }
    }

    /// The next borrower notices nothing. Returns which backend served it; none after a drain.
    async fn assert_forgotten(&self, db: &Db, pool: &Pool) -> Option<i32> {
        let next = timeout(SOON, pool.acquire()).await.unwrap_or_else(|_| panic!("{self}: no connection"));
        let pid = match next {
            Ok(connection) => Some(self.assert_clean(db, connection).await),
            Err(error) if self.name.starts_with("drain") && speaks_of_a_drain(&error) => None,
            Err(error) => panic!("{self}: {error}"),
        };
        if pid.is_none() {
            eventually(SOON, async || db.backends().await == 0).await;
            eventually(SOON, async || pool.snapshot().size == 0).await;
            db.assert_row_is_free(self).await;
        }
        eventually(SOON, async || pool.snapshot().in_use == 0).await;
        let seen = pool.snapshot();
        assert_eq!((seen.queue_depth, seen.acquires.timed_out), (0, 0), "{self}");
        assert_ledgers_add_up(&seen);
        let Queries { started, ok, failed, timed_out, cancelled, .. } = seen.queries;
        assert_eq!(started, ok + failed + timed_out + cancelled, "{self}: {:?}", seen.queries);
        pid
    }

    async fn assert_clean(&self, db: &Db, connection: Connection<Postgres>) -> i32 {
        let echo = unique();
        let sql = "select $1::int, pg_backend_pid(), pg_current_xact_id_if_assigned() is null";
        let row = connection.query_one(sql, &[&echo]).await.unwrap_or_else(|error| panic!("{self}: {error}"));
        assert_eq!(row.get::<_, i32>(0), echo, "{self}: somebody else's result");
        assert!(row.get::<_, bool>(2), "{self}: a transaction is open");
        let pid = row.get(1);
        db.assert_at_rest(pid, self).await;
        pid
    }
}

fn speaks_of_a_drain(error: &AcquireError) -> bool {
    match error {
        AcquireError::Closed => true,
        AcquireError::Shed(shed) => shed.reason == ShedReason::Draining,
        _ => false,
    }
}

/// Just at an await point the first time, else a random short time later.
fn linger(pendings: usize, variant: u64) -> Duration {
    let longest = Duration::from_micros(if variant == 0 { 0 } else { 1_000 });
    longest.mul_f64(draw(pendings as u64 * 100 + variant))
}

/// More await points than any of this has: a scenario that never ends.
const TOO_MANY: usize = 500;
/// How often a future must come to its end before it is believed to have no more of them.
const TRIES: usize = 3;

/// Drops `work` at each of its await points, `variants` times. `before` brings the pool of each run. Returns how often the
/// next borrower had another connection than the one before.
async fn drop_everywhere(
    db: &Db,
    name: &'static str,
    work: Work,
    variants: u64,
    mut before: impl AsyncFnMut() -> Pool,
) -> usize {
    let (mut drops, mut replaced, mut last) = (0, 0, None);
    for pendings in 0..TOO_MANY {
        let mut ended = false;
        for variant in 0..variants {
            let story = Story { name, pendings, linger: linger(pendings, variant) };
            // Only the drop exactly there tells whether there are more await points; and as a thread may be stopped so long
            // that an answer is there before it was waited for, an end is believed when it comes again.
            let tries = if variant == 0 { TRIES } else { 1 };
            let mut ends = 0;
            for _ in 0..tries {
                let pool = before().await;
                let to_its_end = story.tell(work, &pool).await;
                let pid = story.assert_forgotten(db, &pool).await;
                replaced += usize::from(last.is_some() && pid != last);
                last = pid;
                if !to_its_end {
                    drops += 1;
                    break;
                }
                ends += 1;
            }
            ended |= variant == 0 && ends == TRIES;
        }
        if ended {
            let waits = pendings.saturating_sub(1);
            assert!(waits > 0, "«{name}» never waits: nothing was dropped in it");
            println!("{name:<45} {waits:>3} waits, dropped {drops:>3} times");
            return replaced;
        }
    }
    panic!("«{name}» does not end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clean_hand_over_wherever_a_future_is_dropped() {
    let db = Db::start().await;
    let pool = db.builder(SOON).build().unwrap();
    for (name, work) in WARM {
        let replaced = drop_everywhere(&db, name, *work, 8, async || pool.clone()).await;
        assert_eq!(replaced, 0, "«{name}»: a connection was thrown away instead of settled");
    }
    pool.drain(SOON).await.unwrap();

    let pool = db.builder(SOON).check_after(Duration::ZERO).build().unwrap();
    for (name, work) in CHECKED {
        let idle_for_long = async || {
            sleep(Duration::from_millis(100)).await; // two looks of the driver: being idle is the point
            pool.clone()
        };
        let replaced = drop_everywhere(&db, name, *work, 8, idle_for_long).await;
        assert!(replaced > 0, "«{name}»: no check was dropped, for it would have cost the connection");
    }
    pool.drain(SOON).await.unwrap();

    for (name, work) in COLD {
        drop_everywhere(&db, name, *work, 8, async || db.builder(SOON).build().unwrap()).await;
    }
}

/// Each has a pool of one connection, and races on it one after the other.
const LANES: u64 = 8;
const RACES_A_LANE: u64 = 1_280;

/// One query of a lane.
struct Sent {
    id: u64,
    /// For a race: how long the query was to take, in quarters of what it raced against.
    race: Option<usize>,
    /// Its caller timed out or dropped it: it is to be cancelled.
    given_up: bool,
}

struct Lane {
    number: u64,
    pool: Pool,
    /// The pool's `query_timeout`, where that is what is raced against; else futures are dropped.
    query_timeout: Option<Duration>,
    sent: Vec<Sent>,
}

impl Lane {
    /// Half of them race against `query_timeout`, half against a drop.
    async fn open(db: &Db, number: u64) -> Self {
        let query_timeout = number.is_multiple_of(2).then(|| Duration::from_millis(1 + number / 2 % 3));
        let pool = db.builder(query_timeout.unwrap_or(SOON)).build().unwrap();
        pool.ready().await.unwrap();
        Self { number, pool, query_timeout, sent: Vec::new() }
    }

    /// A mark by which the server's log tells queries apart.
    fn next_id(&self) -> u64 {
        self.number * 1_000_000 + self.sent.len() as u64
    }

    async fn run(mut self) -> Vec<Sent> {
        for race in 0..RACES_A_LANE {
            let mut connection = timeout(SOON, self.pool.acquire()).await.unwrap().unwrap();
            let id = self.next_id();
            // Most end at about that time, when the cancel is under way; of some the cancel finds something.
            let share = 2.0 * draw(3 * id) * if draw(3 * id + 1) < 0.3 { 20.0 } else { 1.0 };
            let given_up = match self.query_timeout {
                Some(limit) => {
                    let sql = asleep(limit.mul_f64(share), id);
                    let begin = if race % 2 == 0 { "" } else { "begin; " };
                    is_given_up(connection.batch_execute(&format!("{begin}{sql}")).await)
                }
                None => {
                    let limit = Duration::from_secs_f64(0.001 + 0.004 * draw(3 * id + 2));
                    let sql = asleep(limit.mul_f64(share), id);
                    dropped_after(limit, &mut connection, &sql, race).await
                }
            };
            self.sent.push(Sent { id, race: Some((share * 4.0) as usize), given_up });
            // The other borrower waits already when the connection comes back.
            let (next, ()) = join!(self.pool.acquire(), async { drop(connection) });
            self.borrow(next.unwrap()).await;
        }
        self.sent
    }

    /// Another borrower's query: it brings its own result, or times out by itself, which is another query to cancel.
    async fn borrow(&mut self, mut connection: Connection<Postgres>) {
        loop {
            let id = self.next_id();
            // Where it may, it takes long enough for a cancel that is late.
            let length = if self.query_timeout.is_some() { "" } else { ", pg_sleep(0.001)" };
            let own = connection.query_one(&format!("select {id}::int8{length} {}", mark(id)), &[]).await;
            let given_up = match own {
                Ok(row) => {
                    assert_eq!(row.get::<_, i64>(0), id as i64, "somebody else's result");
                    false
                }
                other => is_given_up(other),
            };
            self.sent.push(Sent { id, race: None, given_up });
            if !given_up {
                return;
            }
            drop(connection);
            connection = timeout(SOON, self.pool.acquire()).await.unwrap().unwrap();
        }
    }
}

fn mark(id: u64) -> String {
    format!("/* query {id} */")
}

fn asleep(length: Duration, id: u64) -> String {
    format!("select pg_sleep({:.6}) {}", length.as_secs_f64(), mark(id))
}

/// Its own time-out; a cancel that was meant for another query would be the server's error.
fn is_given_up<T>(outcome: Result<T, QueryError>) -> bool {
    match outcome {
        Ok(_) => false,
        Err(QueryError::Timeout(_)) => true,
        Err(error) => panic!("not its own failure: {error}"),
    }
}

/// A query of one of four kinds, dropped after `limit`, unless it has ended.
async fn dropped_after(limit: Duration, connection: &mut Connection<Postgres>, sql: &str, race: u64) -> bool {
    // Prepared before the race, so that a cancel finds the query itself or nothing.
    let raced = match race % 4 {
        0 => timeout(limit, connection.batch_execute(sql)).await,
        1 => {
            let statement = connection.prepare_cached(sql).await.unwrap();
            timeout(limit, connection.query(&statement, &[])).await.map(|rows| rows.map(drop))
        }
        2 => {
            let statement = connection.prepare_cached(sql).await.unwrap();
            let rows = async {
                let rows = connection.query_raw(&statement, Vec::<i32>::new()).await?;
                rows.try_for_each(async |_| Ok(())).await
            };
            timeout(limit, rows).await
        }
        _ => {
            let transaction = connection.transaction().await.unwrap();
            let statement = transaction.prepare_cached(sql).await.unwrap();
            timeout(limit, transaction.execute(&statement, &[])).await.map(|changed| changed.map(drop))
        }
    };
    raced.map_or(true, is_given_up)
}

/// What the server's log says of cancels.
struct Cancels {
    /// Requests that reached it: connections that never became sessions.
    arrived: usize,
    /// The marked queries that one ended.
    hit: HashSet<u64>,
    /// Other statements that one ended.
    others: Vec<String>,
}

impl Cancels {
    fn read(server: &PostgresServer) -> Self {
        let log = server.log();
        let arrived =
            log.matches("connection received:").count() - log.matches("connection authorized:").count();
        let statements = log.lines().filter_map(|line| line.split_once("STATEMENT:  "));
        let (mut hit, mut others) = (HashSet::new(), Vec::new());
        for (_, statement) in statements {
            let marked = statement.split_once("/* query ").and_then(|(_, id)| id.split_once(" */"));
            match marked {
                Some((id, _)) => drop(hit.insert(id.parse().unwrap())),
                None => others.push(statement.to_owned()),
            }
        }
        assert_eq!(log.matches("ERROR:").count(), hit.len() + others.len(), "each error tells its statement");
        assert_eq!(log.matches("canceling statement due to user request").count(), hit.len() + others.len());
        Self { arrived, hit, others }
    }
}

/// Of queries that raced: how many ended in time, were cancelled, or had ended when their cancel arrived.
#[derive(Clone, Copy, Default)]
struct Tally {
    in_time: usize,
    cancelled: usize,
    ended_before: usize,
}

impl Tally {
    fn of<'a>(races: impl Iterator<Item = &'a Sent>, hit: &HashSet<u64>) -> Self {
        races.fold(Self::default(), |mut tally, sent| {
            *(match (sent.given_up, hit.contains(&sent.id)) {
                (false, _) => &mut tally.in_time,
                (true, true) => &mut tally.cancelled,
                (true, false) => &mut tally.ended_before,
            }) += 1;
            tally
        })
    }

    fn cancels(self) -> usize {
        self.cancelled + self.ended_before
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>8} {:>20} {:>25}", self.in_time, self.cancelled, self.ended_before)
    }
}

/// An error, or the last row, is there before the end of the answer, which alone tells whether a transaction is open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clean_hand_over_when_the_ends_of_answers_come_late() {
    let db = Db::start().await;
    let proxy = Proxy::before(db.server.port()).await;
    proxy.late_ends(Duration::from_millis(1));
    let pool = db.builder_at(proxy.port(), SOON).build().unwrap();
    for (name, work) in WARM {
        let replaced = drop_everywhere(&db, name, *work, 3, async || pool.clone()).await;
        assert_eq!(replaced, 0, "«{name}»: a connection was thrown away instead of settled");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_never_hits_the_query_of_another_borrower() {
    let db = Db::start().await;
    let lanes = join_all((0..LANES).map(|number| Lane::open(&db, number))).await;
    let lanes = join_all(lanes.into_iter().map(|lane| spawn(lane.run()))).await;
    let sent: Vec<Sent> = lanes.into_iter().flat_map(Result::unwrap).collect();
    let cancels = Cancels::read(&db.server);

    let races = || sent.iter().filter(|sent| sent.race.is_some());
    println!("length / limit   in time   cancelled running   ended before the cancel");
    let tally_of = |quarters: Range<usize>| {
        let those = races().filter(|sent| sent.race.is_some_and(|length| quarters.contains(&length)));
        Tally::of(those, &cancels.hit)
    };
    for quarter in 0..8 {
        let (from, to) = (quarter as f64 / 4.0, (quarter + 1) as f64 / 4.0);
        println!("{from:.2} to {to:.2}    {}", tally_of(quarter..quarter + 1));
    }
    println!("longer          {}", tally_of(8..usize::MAX));
    let tally = tally_of(0..usize::MAX);
    println!("all             {tally}");
    let given_up: HashSet<u64> = sent.iter().filter(|sent| sent.given_up).map(|sent| sent.id).collect();
    let late = 100 * tally.ended_before / tally.cancels();
    println!("{late} % of {} cancels came too late; {} in all were sent", tally.cancels(), cancels.arrived);

    assert!(races().count() >= 10_000);
    let foreign: Vec<_> = cancels.hit.difference(&given_up).collect();
    assert!(foreign.is_empty(), "cancelled, and nobody had given them up: {foreign:?}");
    // The end of a transaction that was dropped with its query is the same borrower's.
    assert!(cancels.others.iter().all(|statement| statement == "ROLLBACK"), "{:?}", cancels.others);
    assert_eq!(cancels.arrived, given_up.len(), "one cancel for each query that was given up");
    assert!(late >= 10 && tally.cancelled * 10 >= tally.cancels(), "no race: {late} % too late");
    assert!(tally.in_time * 10 >= races().count(), "no race: {} ended in time", tally.in_time);
    let sessions = db.server.count_in_log("connection authorized: user=app");
    assert_eq!(sessions as u64, LANES, "every connection was settled, none thrown away");
}
