//! As `cancel.rs`, for what may cost its connection: COPY and the raw client, dropped wherever they wait.

#![cfg(feature = "postgres")]

mod support;

#[path = "support/faults.rs"]
#[allow(dead_code)] // made for the faults' own suite
mod harness;

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;

use futures_util::StreamExt;
use harness::{Db, Pool, SOON};
use support::eventually;
use support::line::assert_ledgers_add_up;
use tokio::time::timeout;
use tower_adaptive_pool::{Builder, Postgres, QueryError};

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

/// Each is dropped wherever it waits.
fn uses() -> Vec<Use> {
    vec![
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
    db.builder(db.server.port()).fixed_size(1).acquire_timeout(SOON)
}

#[tokio::test]
async fn clean_hand_over_wherever_a_copy_or_a_raw_client_was_dropped() {
    let db = db_with_a_row().await;
    let pool = one(&db).build().unwrap();
    pool.ready().await.unwrap();
    let mut serial = 0;
    for (name, work) in uses() {
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

async fn at_rest(pool: &Pool, db: &Db) {
    pool.drain(SOON).await.unwrap();
    db.no_backend_is_left().await;
    let seen = pool.snapshot();
    assert_ledgers_add_up(&seen);
    let queries = seen.queries;
    assert_eq!(queries.started, queries.ok + queries.failed + queries.timed_out + queries.cancelled);
    assert_eq!((seen.size, seen.written_off), (0, 0));
}
