//! Whatever is dropped wherever it waits, the next borrower of the connection notices nothing; and a cancel that is late
//! hits nobody else.

mod support;

#[path = "support/faults.rs"]
#[allow(dead_code)] // made for the faults' own suite
mod harness;

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::Poll;
use std::time::Duration;

use futures_util::StreamExt;
use harness::{Db, MAX_SIZE, Pool, SOON};
use support::eventually;
use support::line::assert_ledgers_add_up;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_postgres::NoTls;
use tokio_postgres::error::SqlState;
use tower_adaptive_pool::{AdaptivePool, Builder, Postgres, QueryError};

type Connection = tower_adaptive_pool::Connection<Postgres>;
type Use = (&'static str, fn(Connection) -> Work);
type Work = Pin<Box<dyn Future<Output = Result<(), QueryError>>>>;

/// Drops a future after it has said so often that it waits. True when it came to its end before.
async fn drop_after(waits: usize, future: impl Future) -> bool {
    let mut future = pin!(future);
    let mut seen = 0;
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(_) => Poll::Ready(true),
        Poll::Pending if seen == waits => Poll::Ready(false),
        Poll::Pending => {
            seen += 1;
            Poll::Pending
        }
    })
    .await
}

/// Its own result, in no transaction and no failed one.
async fn echo(connection: &Connection, serial: i64) -> Result<(), QueryError> {
    let sql = "select $1::bigint, pg_current_xact_id_if_assigned() is null";
    let row = connection.query_one(sql, &[&serial]).await?;
    assert_eq!(
        (row.get::<_, i64>(0), row.get::<_, bool>(1)),
        (serial, true),
        "somebody else's work is in it"
    );
    Ok(())
}

async fn db_with_a_row() -> Db {
    let db = Db::shared().await;
    let Db { role, .. } = &db;
    let sql = format!(
        "create schema authorization {role}; create table {role}.t (id int primary key, n int); \
         insert into {role}.t values (1, 0); grant all on {role}.t to {role}"
    );
    db.admin.batch_execute(&sql).await.unwrap();
    db
}

/// The next borrower of the only connection finds it clean, and nobody is in the way of others.
async fn assert_clean(db: &Db, pool: &Pool, serial: i64, after: &str) {
    let next = timeout(SOON, pool.acquire()).await.unwrap_or_else(|_| panic!("{after}: a hang")).unwrap();
    echo(&next, serial).await.unwrap_or_else(|error| panic!("{after}: {error}"));
    let sql = format!("select from {}.t where id = 1 for update nowait", db.role);
    let locked = db.admin.query(&sql, &[]).await;
    locked.unwrap_or_else(|error| panic!("{after}: the row is locked: {error:?}"));
    let sql =
        "select count(*) from pg_stat_activity where usename = $1 and state not in ('idle', 'disabled')";
    // What was thrown away rather than settled may still be ending.
    eventually(SOON, async || db.admin.query_one(sql, &[&db.role]).await.unwrap().get::<_, i64>(0) == 0)
        .await;
}

/// What borrowers do with a connection. Each is dropped wherever it waits.
fn uses() -> Vec<Use> {
    vec![
        ("query", |c| Box::pin(async move { c.query("select generate_series(1, 10)", &[]).await.map(drop) })),
        ("query_one", |c| {
            Box::pin(async move { c.query_one("select pg_sleep(0.002)", &[]).await.map(drop) })
        }),
        ("query_opt", |c| Box::pin(async move { c.query_opt("select 1 where false", &[]).await.map(drop) })),
        ("execute", |c| Box::pin(async move { c.execute("update t set n = n + 1", &[]).await.map(drop) })),
        ("batch_execute", |c| {
            Box::pin(async move { c.batch_execute("update t set n = n; select pg_sleep(0.002)").await })
        }),
        ("prepare_cached", |c| {
            Box::pin(async move {
                let statement = c.prepare_cached("update t set n = n + 1 where id = $1").await?;
                c.execute(&statement, &[&1]).await.map(drop)
            })
        }),
        ("rows of a stream", |c| {
            Box::pin(async move {
                let none: [i32; 0] = [];
                let rows = c
                    .query_raw("select repeat('x', 9000), pg_sleep(0.001) from generate_series(1, 5)", none)
                    .await?;
                let mut rows = pin!(rows);
                while rows.next().await.transpose()?.is_some() {}
                Ok(())
            })
        }),
        ("transaction, committed", |mut c| {
            Box::pin(async move {
                let transaction = c.transaction().await?;
                transaction.execute("update t set n = n + 1", &[]).await?;
                transaction.commit().await
            })
        }),
        ("transaction, rolled back", |mut c| {
            Box::pin(async move {
                let transaction = c.transaction().await?;
                transaction.execute("update t set n = n + 1", &[]).await?;
                transaction.rollback().await
            })
        }),
        ("transaction that fails", |mut c| {
            Box::pin(async move {
                let transaction = c.transaction().await?;
                let _ = transaction.execute("select 1 / 0", &[]).await;
                assert!(matches!(transaction.commit().await, Err(QueryError::RolledBack)));
                Ok(())
            })
        }),
        ("in_transaction", |mut c| {
            Box::pin(async move {
                c.in_transaction(async |transaction| {
                    transaction.execute("update t set n = n + 1", &[]).await?;
                    transaction.query("select pg_sleep(0.002)", &[]).await.map(drop)
                })
                .await
            })
        }),
    ]
}

fn unusual_uses() -> Vec<Use> {
    vec![
        ("BEGIN as text", |c| {
            Box::pin(
                async move { c.batch_execute("begin; update t set n = n + 1; select pg_sleep(0.002)").await },
            )
        }),
        ("BEGIN as text, failed", |c| {
            Box::pin(async move {
                let _ = c.batch_execute("begin; update t set n = n + 1; select 1 / 0").await;
                Ok(())
            })
        }),
        ("COPY in", |c| {
            Box::pin(async move {
                let mut copy = c.copy_in("copy t from stdin").await?;
                for id in 100_000..100_020 {
                    copy.send(format!("{id}\t{}\n", "0".repeat(8_000))).await?;
                }
                assert!(copy.finish().await.is_err(), "not a number");
                Ok(())
            })
        }),
        ("COPY in, given up", |c| {
            Box::pin(async move {
                let mut copy = c.copy_in("copy t from stdin").await?;
                copy.send("7\t7\n").await?;
                copy.abort().await
            })
        }),
        ("COPY out", |c| {
            Box::pin(async move {
                let sql =
                    "copy (select repeat('x', 9000), pg_sleep(0.001) from generate_series(1, 5)) to stdout";
                let mut rows = pin!(c.copy_out(sql).await?);
                while rows.next().await.transpose()?.is_some() {}
                Ok(())
            })
        }),
        ("raw client", |mut c| {
            Box::pin(async move {
                c.raw().batch_execute("begin; update t set n = n + 1; select pg_sleep(0.002)").await?;
                Ok(())
            })
        }),
    ]
}

fn one(db: &Db) -> Builder<Postgres> {
    db.builder(db.server.port()).min_size(1).max_size(1).acquire_timeout(SOON)
}

#[tokio::test]
async fn clean_hand_over_wherever_the_last_users_future_was_dropped() {
    let db = db_with_a_row().await;
    let pool = one(&db).build().unwrap();
    pool.ready().await.unwrap();
    let mut serial = 0;
    for (name, work) in uses().into_iter().chain(unusual_uses()) {
        for waits in 0.. {
            let connection = pool.acquire().await.unwrap();
            let ended = drop_after(waits, work(connection)).await;
            serial += 1;
            assert_clean(&db, &pool, serial, &format!("{name}, dropped at its wait {waits}")).await;
            if ended {
                println!("{name}: {waits} waits");
                assert!(waits > 0, "{name} never waited: nothing was tested");
                break;
            }
        }
    }
    at_rest(&pool, &db).await;
}

#[tokio::test]
async fn clean_hand_over_wherever_an_acquire_was_dropped() {
    let db = db_with_a_row().await;
    // Each hand-out is checked first.
    let pool = one(&db).check_after(Duration::ZERO).build().unwrap();
    pool.ready().await.unwrap();
    let mut checked = 0;
    for waits in 0..20 {
        let acquire = async { drop(pool.acquire().await) };
        checked += u64::from(!drop_after(waits, acquire).await);
        assert_clean(&db, &pool, waits as i64, "an acquire that checks").await;
    }
    assert!(checked > 0, "no acquire waited for its check");
    for waits in 0..3 {
        let held = pool.acquire().await.unwrap();
        let queued = async { drop(pool.acquire().await) };
        assert!(!drop_after(0, queued).await, "there is only one");
        let handed_on = async {
            let wait = async { pool.acquire().await.map(drop).is_ok() };
            let give_back = async move { drop(held) };
            tokio::join!(wait, give_back)
        };
        drop_after(waits, handed_on).await;
        assert_clean(&db, &pool, i64::from(waits as i32), "an acquire in the queue").await;
    }
    at_rest(&pool, &db).await;
}

#[tokio::test]
async fn a_pools_own_futures_may_be_dropped_wherever_they_wait() {
    let db = db_with_a_row().await;
    for waits in 0.. {
        let pool = one(&db).build().unwrap();
        let ended = drop_after(waits, pool.ready()).await;
        assert_clean(&db, &pool, 1, "ready").await;
        let asked = drop_after(waits, pool.preflight(1)).await;
        assert_clean(&db, &pool, 2, "preflight").await;
        let held = pool.acquire().await.unwrap();
        let drained = drop_after(waits, async {
            let give_back = async move { drop(held) };
            tokio::join!(pool.drain(SOON), give_back)
        })
        .await;
        assert!(pool.acquire().await.is_err(), "a drain that began is not taken back");
        at_rest(&pool, &db).await;
        if ended && asked && drained {
            assert!(waits > 0, "nothing waited: nothing was tested");
            return;
        }
    }
}

async fn at_rest(pool: &Pool, db: &Db) {
    pool.drain(SOON).await.unwrap();
    db.no_backend_is_left().await;
    let seen = pool.snapshot();
    assert_ledgers_add_up(&seen);
    let queries = seen.queries;
    assert_eq!(queries.started, queries.ok + queries.failed + queries.timed_out + queries.cancelled);
    assert_eq!((seen.size, seen.written_off), (0, 0));
}

const RACES: u64 = 10_000;
const RACERS: u64 = 8;
const QUERY_TIMEOUT: Duration = Duration::from_millis(8);

/// Queries are given up, by their time-out or by their caller, around the moment when they end by themselves; the cancel
/// comes a connection and a process later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_never_hits_the_query_of_another_borrower() {
    let db = db_with_a_row().await;
    let backend = Postgres::new(db.config(db.server.port()), NoTls).query_timeout(QUERY_TIMEOUT);
    let pool = AdaptivePool::builder(backend).min_size(MAX_SIZE).max_size(MAX_SIZE).acquire_timeout(SOON);
    let pool = pool.build().unwrap();
    pool.ready().await.unwrap();
    let cancelled_before = db.server.count_in_log("canceling statement due to user request");
    let (races, in_time, late_others) = (Arc::<AtomicU64>::default(), Arc::default(), Arc::default());
    let mut racers = JoinSet::new();
    for _ in 0..RACERS {
        racers.spawn(race(pool.clone(), Arc::clone(&races), Arc::clone(&in_time), Arc::clone(&late_others)));
    }
    racers.join_all().await;
    at_rest(&pool, &db).await;

    let ended = |counter: &Arc<AtomicU64>| counter.load(Relaxed);
    let (in_time, late_others) = (ended(&in_time), ended(&late_others));
    let given_up = RACES - in_time;
    let hit = (db.server.count_in_log("canceling statement due to user request") - cancelled_before) as u64;
    let too_late = (given_up + late_others).saturating_sub(hit);
    println!("{RACES} races: {in_time} queries ended in time, {given_up} were given up");
    println!("of their cancels {hit} ended a query, {too_late} came when it had ended by itself");
    assert!(in_time > RACES / 20, "no race: hardly any query ended in time");
    assert!(too_late * 10 >= given_up, "no race: hardly any cancel came too late");
    assert!(hit > RACES / 100, "no race: hardly any cancel came in time");
}

async fn race(pool: Pool, races: Arc<AtomicU64>, in_time: Arc<AtomicU64>, late_others: Arc<AtomicU64>) {
    loop {
        let number = races.fetch_add(1, Relaxed);
        if number >= RACES {
            return;
        }
        let connection = pool.acquire().await.unwrap();
        // Spread as evenly as can be, by the golden ratio.
        let draw = (number as f64 * 0.618_033_988_75).fract();
        let ended = if number.is_multiple_of(4) {
            let sleep = format!("select pg_sleep({})", QUERY_TIMEOUT.as_secs_f64() * 2.0 * draw);
            connection.batch_execute(&sleep).await.is_ok()
        } else {
            let patience = Duration::from_micros(300 + number % 13 * 200);
            let sleep = format!("select pg_sleep({})", patience.as_secs_f64() * 3.0 * draw);
            matches!(timeout(patience, connection.batch_execute(&sleep)).await, Ok(Ok(())))
        };
        in_time.fetch_add(u64::from(ended), Relaxed);
        drop(connection);
        let other = pool.acquire().await.unwrap();
        match echo(&other, number as i64).await {
            Ok(()) => {}
            // Two cores have much to do here.
            Err(QueryError::Timeout(_)) => drop(late_others.fetch_add(1, Relaxed)),
            Err(error) => {
                assert_ne!(error.code(), SqlState::QUERY_CANCELED.code(), "hit by the cancel of another");
                panic!("{error}");
            }
        }
    }
}
