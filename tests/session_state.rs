//! What is left in a session on purpose: kept or discarded as `after_raw` says, and never with work under way.
#![cfg(feature = "postgres")]

mod support;

#[path = "support/role.rs"]
mod role; // not in `support`: not every test has the feature `postgres`

use std::time::Duration;

use futures_util::StreamExt;
use role::{Db, SOON, finish, pid};
use support::eventually;
use tokio::time::timeout;
use tower_adaptive_pool::postgres::AfterRaw;
use tower_adaptive_pool::{Connection, Postgres};

/// Leaves one of each kind in the session.
const STATE: &str = "set search_path = elsewhere; create temporary table mine as select 7 as id; listen news; \
                     select pg_advisory_lock(4711)";

/// How many of each kind are in this session: its setting, tables, channels and locks.
async fn state_in(connection: &Connection<Postgres>) -> [i64; 4] {
    let sql = "select (current_setting('search_path') = 'elsewhere')::int::bigint, \
                      (select count(*) from pg_class where relname = 'mine' and pg_table_is_visible(oid)), \
                      (select count(*) from pg_listening_channels()), \
                      (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid())";
    let row = connection.query_one(sql, &[]).await.unwrap();
    [row.get(0), row.get(1), row.get(2), row.get(3)]
}

fn keep(backend: Postgres) -> Postgres {
    backend.after_raw(AfterRaw::Keep)
}

#[tokio::test]
async fn session_state_left_through_raw_is_discarded_by_default() {
    let db = Db::start().await;
    let pool = db.pool(|backend| backend).await;
    let mut connection = pool.acquire().await.unwrap();
    let before = pid(&connection).await;
    connection.raw().batch_execute(STATE).await.unwrap();
    assert_eq!(state_in(&connection).await, [1; 4]);
    drop(connection);
    let next = pool.acquire().await.unwrap();
    assert_ne!(pid(&next).await, before);
    assert_eq!(state_in(&next).await, [0; 4]);
    let locks = "select count(*) from pg_locks where locktype = 'advisory' and objid = 4711";
    eventually(SOON, async || db.admin.query_one(locks, &[]).await.unwrap().get::<_, i64>(0) == 0).await;
    drop(next);
    finish(pool).await;
}

#[tokio::test]
async fn session_state_left_through_raw_is_kept_where_the_setting_says_so() {
    let db = Db::start().await;
    let pool = db.pool(keep).await;
    let mut connection = pool.acquire().await.unwrap();
    let before = pid(&connection).await;
    connection.raw().batch_execute(STATE).await.unwrap();
    drop(connection);
    let next = pool.acquire().await.unwrap();
    assert_eq!(pid(&next).await, before);
    assert_eq!(state_in(&next).await, [1; 4]);
    drop(next);
    finish(pool).await;
}

#[tokio::test]
async fn session_state_left_through_a_query_stays_unless_it_ends_with_its_transaction() {
    let db = Db::start().await;
    let pool = db.pool(|backend| backend).await;
    let mut connection = pool.acquire().await.unwrap();
    let before = pid(&connection).await;
    connection
        .in_transaction(async |transaction| transaction.batch_execute("set local work_mem = '77kB'").await)
        .await
        .unwrap();
    connection.batch_execute("set lock_timeout = '77s'").await.unwrap();
    drop(connection);
    let next = pool.acquire().await.unwrap();
    assert_eq!(pid(&next).await, before);
    let sql = "select current_setting('work_mem') = '77kB', current_setting('lock_timeout')";
    let row = next.query_one(sql, &[]).await.unwrap();
    assert_eq!((row.get(0), row.get(1)), (false, "77s"));
}

#[tokio::test]
async fn clean_hand_over_after_a_kept_raw_use_whatever_it_left_under_way() {
    const FOR_EVER: &str = "select pg_sleep(3600)";
    let db = Db::start().await;
    let pool = db.pool(keep).await;
    let mut connection = pool.acquire().await.unwrap();
    connection.batch_execute("create table t (id int)").await.unwrap();
    let before = pid(&connection).await;

    for left_open in ["begin; insert into t values (1)", "begin; select no_such_column"] {
        let _ = connection.raw().batch_execute(left_open).await;
        drop(connection);
        connection = timeout(SOON, pool.acquire()).await.unwrap().unwrap();
        assert_eq!(pid(&connection).await, before);
        assert_eq!(db.state_of(before).await.as_deref(), Some("idle"), "after {left_open:?}");
    }

    let running = connection.raw().query(FOR_EVER, &[]);
    timeout(Duration::from_millis(50), running).await.expect_err("it runs for ever");
    drop(connection);
    connection = timeout(SOON, pool.acquire()).await.unwrap().unwrap();
    assert_eq!(pid(&connection).await, before, "cancelled and settled, not thrown away");

    let sql = "select generate_series(1, 1000000000)";
    let unread = connection.raw().query_raw(sql, Vec::<i32>::new()).await.unwrap();
    let mut unread = Box::pin(unread);
    unread.next().await.unwrap().unwrap();
    drop(unread);
    drop(connection);
    connection = timeout(SOON, pool.acquire()).await.unwrap().unwrap();
    assert_eq!(pid(&connection).await, before);

    let copy = connection.raw().copy_in::<_, std::io::Cursor<Vec<u8>>>("copy t from stdin").await.unwrap();
    drop(copy);
    drop(connection);
    connection = timeout(SOON, pool.acquire()).await.unwrap().unwrap();
    assert_eq!(pid(&connection).await, before);
    assert!(connection.query("select * from t", &[]).await.unwrap().is_empty());
    drop(connection);
    finish(pool).await;
}

/// tokio-postgres takes each answer for that of the query after, once it has sent a Sync too many.
#[tokio::test]
async fn a_driver_that_is_out_of_step_after_a_kept_raw_use_is_not_handed_on() {
    let db = Db::start().await;
    let pool = db.pool(keep).await;
    for _ in 0..20 {
        let mut connection = pool.acquire().await.unwrap();
        let sql = "copy no_such_table from stdin";
        assert!(connection.raw().copy_in::<_, std::io::Cursor<Vec<u8>>>(sql).await.is_err());
        drop(connection);
        let next = timeout(SOON, pool.acquire()).await.unwrap().unwrap();
        let row = next.query_one("select 'mine'", &[]).await.unwrap();
        assert_eq!(row.get::<_, &str>(0), "mine");
    }
    finish(pool).await;
}
