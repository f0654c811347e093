//! COPY in and out over a real PostgreSQL: under `query_timeout` between two pieces, counted once, and never left in a
//! connection that is handed on.
#![cfg(feature = "postgres")]

mod support;

#[path = "support/role.rs"]
mod role; // not in `support`: not every test has the feature `postgres`

use std::time::Duration;

use futures_util::StreamExt;
use role::{Db, Pool, SOON, finish, pid};
use support::eventually;
use tokio::time::{Instant, sleep, timeout};
use tower_adaptive_pool::{Postgres, QueryError};

type Connection = tower_adaptive_pool::Connection<Postgres>;

/// Longer than anything takes that does not stall.
const LIMIT: Duration = Duration::from_millis(500);

/// A pool of one connection, with a table `t (id int primary key)`, and one whose key is checked at the end of the transaction.
async fn pool_with_table(db: &Db) -> Pool {
    with_table(db.pool(|backend| backend).await).await
}

async fn strict_pool_with_table(db: &Db) -> Pool {
    with_table(db.pool(|backend| backend.query_timeout(LIMIT)).await).await
}

async fn with_table(pool: Pool) -> Pool {
    let connection = pool.acquire().await.unwrap();
    connection
        .batch_execute("create table t (id int primary key); create table late (id int primary key deferrable initially deferred)")
        .await
        .unwrap();
    drop(connection);
    pool
}

async fn stored(connection: &Connection) -> i64 {
    connection.query_one("select count(*) from t", &[]).await.unwrap().get(0)
}

/// How many queries ended so, beginning with `ok`.
fn ends(pool: &Pool) -> [u64; 4] {
    let queries = pool.snapshot().queries;
    [queries.ok, queries.failed, queries.timed_out, queries.cancelled]
}

async fn next(pool: &Pool) -> Connection {
    timeout(SOON, pool.acquire()).await.unwrap().unwrap()
}

#[tokio::test]
async fn rows_go_in_and_come_out_and_each_copy_is_counted_once() {
    const ROWS: i32 = 20_000;
    let db = Db::start().await;
    let pool = pool_with_table(&db).await;
    let mut connection = pool.acquire().await.unwrap();
    let before = pool.snapshot().queries;

    let mut copy = connection.copy_in("copy t from stdin").await.unwrap();
    for id in 0..ROWS {
        copy.send(format!("{id}\n")).await.unwrap();
    }
    assert_eq!(copy.finish().await.unwrap(), ROWS as u64);

    let transaction = connection.transaction().await.unwrap();
    let mut copy = transaction.copy_in("copy t from stdin").await.unwrap();
    copy.send(format!("{ROWS}\n")).await.unwrap();
    assert_eq!(copy.finish().await.unwrap(), 1);
    let rows = transaction.copy_out("copy (select id from t order by id) to stdout").await.unwrap();
    let rows: Vec<_> = rows.map(|row| String::from_utf8(row.unwrap().to_vec()).unwrap()).collect().await;
    transaction.commit().await.unwrap();
    let expected: Vec<_> = (0..=ROWS).map(|id| format!("{id}\n")).collect();
    assert!(rows == expected, "{} rows", rows.len());

    let after = pool.snapshot().queries;
    // Three COPYs, BEGIN, COMMIT.
    assert_eq!((after.started - before.started, after.ok - before.ok), (5, 5));
    drop(connection);
    assert_eq!(pool.snapshot().idle, 1, "nothing to settle");
    finish(pool).await;
}

#[tokio::test]
async fn what_the_server_has_against_the_data_is_told_and_costs_no_connection() {
    let db = Db::start().await;
    let pool = pool_with_table(&db).await;
    let connection = pool.acquire().await.unwrap();
    let before = pid(&connection).await;
    for (data, code) in [("1\nnot a number\n", "22P02"), ("1\n1\n", "23505")] {
        let mut copy = connection.copy_in("copy t from stdin").await.unwrap();
        copy.send(data).await.unwrap();
        assert_eq!(copy.finish().await.unwrap_err().code(), code);
        assert_eq!(stored(&connection).await, 0, "and the connection goes on");
    }
    // Found out only after tokio-postgres has counted the rows.
    let mut copy = connection.copy_in("copy late from stdin").await.unwrap();
    copy.send("1\n1\n").await.unwrap();
    assert_eq!(copy.finish().await.unwrap_err().code(), "23505");
    assert_eq!(stored(&connection).await, 0);
    drop(connection);
    assert_eq!(pid(&next(&pool).await).await, before);
    assert_eq!(ends(&pool)[1..], [3, 0, 0]);
    finish(pool).await;
}

#[tokio::test]
async fn a_copy_in_that_is_dropped_stores_nothing_and_the_next_borrower_is_clean() {
    let db = Db::start().await;
    let pool = pool_with_table(&db).await;
    let mut connection = pool.acquire().await.unwrap();
    let before = pid(&connection).await;
    for pieces in [0, 1, 5_000] {
        let mut copy = connection.copy_in("copy t from stdin").await.unwrap();
        for id in 0..pieces {
            copy.send(format!("{id}\n")).await.unwrap();
        }
        drop(copy);
        let error = connection.query("select 1", &[]).await.unwrap_err();
        assert!(matches!(error, QueryError::CopyUnfinished), "{error}");
        drop(connection);
        connection = next(&pool).await;
        assert_eq!(pid(&connection).await, before, "settled, not thrown away");
        assert_eq!(stored(&connection).await, 0);
    }
    let transaction = connection.transaction().await.unwrap();
    drop(transaction.copy_in("copy t from stdin").await.unwrap());
    assert_eq!(transaction.commit().await.unwrap_err().code(), "copy_unfinished");
    drop(connection);
    connection = next(&pool).await;
    assert_eq!(pid(&connection).await, before);
    assert_eq!(db.state_of(before).await.as_deref(), Some("idle"), "rolled back");
    assert_eq!(ends(&pool)[1..], [0, 0, 4]);
    drop(connection);
    finish(pool).await;
}

#[tokio::test]
async fn a_copy_in_that_is_aborted_leaves_the_connection_to_its_borrower() {
    let db = Db::start().await;
    let pool = pool_with_table(&db).await;
    let mut connection = pool.acquire().await.unwrap();
    let mut copy = connection.copy_in("copy t from stdin").await.unwrap();
    copy.send("1\n").await.unwrap();
    copy.abort().await.unwrap();
    assert_eq!(stored(&connection).await, 0);
    let transaction = connection.transaction().await.unwrap();
    transaction.copy_in("copy t from stdin").await.unwrap().abort().await.unwrap();
    assert!(matches!(transaction.commit().await.unwrap_err(), QueryError::RolledBack));
    assert_eq!(stored(&connection).await, 0);
    assert_eq!(ends(&pool)[1..], [0, 0, 2]);
    drop(connection);
    finish(pool).await;
}

/// tokio-postgres sends a Sync too many then, and takes each answer for that of the query after.
#[tokio::test]
async fn a_copy_in_that_puts_the_driver_out_of_step_gets_nobody_a_wrong_answer() {
    let db = Db::start().await;
    let pool = pool_with_table(&db).await;
    let connection = pool.acquire().await.unwrap();
    connection
        .batch_execute(
            "create table guarded (id int); \
             create function refuse() returns trigger language plpgsql as 'begin raise ''no''; end'; \
             create trigger refuse before insert on guarded for each statement execute function refuse()",
        )
        .await
        .unwrap();
    drop(connection);
    for _ in 0..10 {
        for sql in ["copy no_such_table from stdin", "copy guarded from stdin", "select 1"] {
            let connection = next(&pool).await;
            let refused = match connection.copy_in(sql).await {
                Ok(copy) => copy.finish().await.map(drop),
                Err(error) => Err(error),
            };
            refused.unwrap_err();
            let row = match connection.query_one("select 'mine'", &[]).await {
                Ok(row) => row,
                Err(QueryError::CopyUnfinished) => {
                    drop(connection);
                    next(&pool).await.query_one("select 'mine'", &[]).await.unwrap()
                }
                Err(error) => panic!("{sql}: {error}"),
            };
            assert_eq!(row.get::<_, &str>(0), "mine");
        }
    }
    assert_eq!(ends(&pool)[1..], [30, 0, 0]);
    finish(pool).await;
}

#[tokio::test]
async fn a_copy_out_that_stalls_times_out_and_is_cancelled_on_the_server() {
    let db = Db::start().await;
    let pool = db.pool(|backend| backend.query_timeout(LIMIT)).await;
    let connection = pool.acquire().await.unwrap();
    let before = pid(&connection).await;
    let started = Instant::now();
    // The server says nothing at all before it has a bufferful to say; the second stalls after some rows.
    let begun = connection.copy_out("copy (select pg_sleep(3600)) to stdout").await;
    assert!(matches!(begun.unwrap_err(), QueryError::Timeout(after) if after == LIMIT));
    drop(connection);
    let connection = next(&pool).await;
    assert_eq!(pid(&connection).await, before, "cancelled and settled, not thrown away");
    let sql = "copy (select repeat('x', 1000) from generate_series(1, 100) \
               union all select pg_sleep(3600)::text) to stdout";
    let rows: Vec<_> = connection.copy_out(sql).await.unwrap().collect().await;
    let (last, first) = rows.split_last().unwrap();
    assert!(first.len() > 10 && first.iter().all(Result::is_ok));
    assert!(matches!(last, Err(QueryError::Timeout(after)) if *after == LIMIT), "{last:?}");
    assert!(started.elapsed() < SOON);
    drop(connection);
    let connection = next(&pool).await;
    assert_eq!(pid(&connection).await, before, "cancelled and settled, not thrown away");
    assert_eq!(ends(&pool)[1..], [0, 2, 0]);
    drop(connection);
    finish(pool).await;
}

#[tokio::test]
async fn the_time_out_of_a_copy_is_between_its_pieces_and_not_over_the_whole() {
    let db = Db::start().await;
    let pool = strict_pool_with_table(&db).await;
    let connection = pool.acquire().await.unwrap();
    // The server's own limit, twice ours, is over the whole: not here.
    connection.batch_execute("set statement_timeout = 0").await.unwrap();
    // Twelve pieces of more than the server's buffer, a fifth of the limit apart.
    let sql = "copy (select repeat('x', 10000) || pg_sleep(0.1)::text from generate_series(1, 12)) to stdout";
    let started = Instant::now();
    let rows = connection.copy_out(sql).await.unwrap();
    let rows: Vec<_> = rows.collect().await;
    assert!(started.elapsed() > 2 * LIMIT && rows.len() == 12 && rows.iter().all(Result::is_ok), "{rows:?}");

    // The caller's own slowness is no time-out.
    let mut copy = connection.copy_in("copy t from stdin").await.unwrap();
    for id in 0..2 {
        sleep(LIMIT + LIMIT / 2).await;
        copy.send(format!("{id}\n")).await.unwrap();
    }
    assert_eq!(copy.finish().await.unwrap(), 2);
    assert_eq!(ends(&pool)[1..], [0; 3]);
    drop(connection);
    finish(pool).await;
}

#[tokio::test]
async fn a_copy_out_that_is_dropped_is_cancelled_and_an_error_in_it_is_told() {
    let db = Db::start().await;
    let pool = pool_with_table(&db).await;
    let connection = pool.acquire().await.unwrap();
    let before = pid(&connection).await;
    let mut copy = Box::pin(
        connection.copy_out("copy (select generate_series(1, 1000000000)) to stdout").await.unwrap(),
    );
    copy.next().await.unwrap().unwrap();
    drop(copy);
    drop(connection);
    let connection = next(&pool).await;
    assert_eq!(pid(&connection).await, before);

    let sql = "copy (select 1 / (3 - id) from generate_series(1, 5) id) to stdout";
    let rows: Vec<_> = connection.copy_out(sql).await.unwrap().collect().await;
    assert_eq!(rows.last().unwrap().as_ref().unwrap_err().code(), "22012");
    // Found out only after the last row.
    let sql = "copy (insert into late values (1), (1) returning id) to stdout";
    let rows: Vec<_> = connection.copy_out(sql).await.unwrap().collect().await;
    assert_eq!(rows.last().unwrap().as_ref().unwrap_err().code(), "23505");
    assert_eq!(stored(&connection).await, 0);
    assert_eq!(ends(&pool)[1..], [2, 0, 1]);
    drop(connection);
    finish(pool).await;
}

#[tokio::test]
async fn a_copy_in_whose_server_stalls_times_out() {
    let db = Db::start().await;
    let pool = strict_pool_with_table(&db).await;
    let connection = pool.acquire().await.unwrap();
    let before = pid(&connection).await;
    connection
        .batch_execute(
            "create function stall() returns trigger language plpgsql \
                 as 'begin perform pg_sleep(3600); return new; end'; \
             create trigger stall before insert on t for each row execute function stall()",
        )
        .await
        .unwrap();
    let mut copy = connection.copy_in("copy t from stdin").await.unwrap();
    // More than sockets and buffers hold.
    let piece = "1\n".repeat(500_000);
    let error = loop {
        if let Err(error) = copy.send(piece.clone()).await {
            break error;
        }
    };
    assert!(matches!(error, QueryError::Timeout(_)), "{error}");
    assert!(matches!(copy.finish().await.unwrap_err(), QueryError::CopyUnfinished));
    drop(connection);
    let connection = next(&pool).await;
    assert_eq!(pid(&connection).await, before, "cancelled and settled, not thrown away");

    let mut copy = connection.copy_in("copy t from stdin").await.unwrap();
    copy.send("1\n").await.unwrap();
    let error = copy.finish().await.unwrap_err();
    assert!(matches!(error, QueryError::Timeout(_)), "{error}");
    drop(connection);
    let connection = next(&pool).await;
    assert_eq!((pid(&connection).await, stored(&connection).await), (before, 0));
    assert_eq!(ends(&pool)[1..], [0, 2, 0]);
    eventually(SOON, async || db.state_of(before).await.as_deref() == Some("idle")).await;
    drop(connection);
    finish(pool).await;
}
