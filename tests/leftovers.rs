//! What a use leaves under way holds nobody up, and nothing of it reaches the next one, on a real PostgreSQL.

#![cfg(feature = "postgres")]

#[path = "support/role.rs"]
mod role;
mod support;

use std::time::Duration;

use bytes::BytesMut;
use futures_util::future::{join_all, poll_immediate};
use futures_util::{StreamExt, TryStreamExt};
use role::{Db, Pool, SOON, finish, pid};
use support::eventually;
use support::postgres::{Options, PostgresServer};
use support::proxy::Proxy;
use tokio::join;
use tokio::net::TcpStream;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};
use tokio_postgres::{Config, NoTls};
use tower_adaptive_pool::postgres::{AfterRaw, CancelError};
use tower_adaptive_pool::{AdaptivePool, Connection, Postgres, QueryError};

const FOR_EVER: &str = "select pg_sleep(3600)";
const MANY_ROWS: &str = "select generate_series(1, 1000000000)";
/// A time that is long for a cancel and short for any time-out there is: those are seconds.
const AT_ONCE: Duration = Duration::from_millis(1_500);

/// The next borrower, who hardly waits.
async fn next(pool: &Pool) -> Connection<Postgres> {
    timeout(AT_ONCE, pool.acquire()).await.expect("at once").unwrap()
}

fn keep(backend: Postgres) -> Postgres {
    backend.after_raw(AfterRaw::Keep)
}

#[tokio::test]
async fn a_query_for_one_row_that_finds_more_is_cancelled_and_the_next_user_does_not_wait_for_it() {
    let db = Db::start().await;
    let pool = db.pool(|backend| backend).await;
    for one in [true, false] {
        let connection = pool.acquire().await.unwrap();
        let backend = pid(&connection).await;
        let error = if one {
            connection.query_one(MANY_ROWS, &[]).await.unwrap_err()
        } else {
            connection.query_opt(MANY_ROWS, &[]).await.unwrap_err()
        };
        assert!(matches!(error, QueryError::TooManyRows), "{error}");
        drop(connection);
        assert_eq!(pid(&next(&pool).await).await, backend, "cancelled and settled, not thrown away");
    }
    let queries = pool.snapshot().queries;
    assert_eq!((queries.failed, queries.cancelled), (2, 0));
    finish(pool).await;
}

#[tokio::test]
async fn a_query_for_one_row_that_finds_none_or_one_leaves_nothing_behind() {
    let db = Db::start().await;
    let pool = db.pool(|backend| backend).await;
    let connection = pool.acquire().await.unwrap();
    let error = connection.query_one("select 1 where false", &[]).await.unwrap_err();
    assert!(matches!(error, QueryError::NoRow), "{error}");
    assert!(connection.query_opt("select 1 where false", &[]).await.unwrap().is_none());
    assert_eq!(connection.query_opt("select 7", &[]).await.unwrap().unwrap().get::<_, i32>(0), 7);
    drop(connection);
    assert_eq!(pool.snapshot().idle, 1, "not even settled");
    finish(pool).await;
}

/// Holds the one connection after a use that left something running, by the time its backend takes to go.
async fn is_discarded_at_once(db: &Db, pool: &Pool, connection: Connection<Postgres>, backend: i32) {
    drop(connection);
    let next = next(pool).await;
    assert_ne!(pid(&next).await, backend);
    assert_eq!(db.state_of(backend).await, None, "its backend is gone");
}

#[tokio::test]
async fn a_raw_client_left_with_a_query_running_is_cancelled_and_discarded() {
    let db = Db::start().await;
    let pool = db.pool(|backend| backend).await;
    for streams in [false, true] {
        let mut connection = next(&pool).await;
        let backend = pid(&connection).await;
        if streams {
            let rows = connection.raw().query_raw(MANY_ROWS, Vec::<i32>::new()).await.unwrap();
            Box::pin(rows).next().await.unwrap().unwrap();
        } else {
            let query = connection.raw().query(FOR_EVER, &[]);
            timeout(Duration::from_millis(50), query).await.expect_err("it runs for ever");
        }
        is_discarded_at_once(&db, &pool, connection, backend).await;
    }
    finish(pool).await;
}

#[tokio::test]
async fn a_copy_in_begun_as_text_is_cancelled_and_discarded() {
    const COPY: &str = "copy t from stdin";
    let db = Db::start().await;
    for after in [AfterRaw::Discard, AfterRaw::Keep] {
        let pool = db.pool(|backend| backend.after_raw(after)).await;
        next(&pool).await.batch_execute("create table if not exists t (id int)").await.unwrap();
        for by in 0..5 {
            let mut connection = next(&pool).await;
            let backend = pid(&connection).await;
            match by {
                0 => drop(connection.batch_execute(COPY).await.unwrap_err()),
                1 => drop(connection.execute(COPY, &[]).await.unwrap_err()),
                2 => drop(connection.copy_out(COPY).await.unwrap_err()),
                3 => drop(connection.raw().batch_execute(COPY).await.unwrap_err()),
                _ => {
                    let transaction = connection.transaction().await.unwrap();
                    transaction.batch_execute(COPY).await.unwrap_err();
                }
            }
            if by < 3 {
                let error = connection.query("select 1", &[]).await.unwrap_err();
                assert!(matches!(error, QueryError::CopyUnfinished), "told at once: {error}");
            }
            is_discarded_at_once(&db, &pool, connection, backend).await;
        }
        finish(pool).await;
    }
}

#[tokio::test]
async fn a_copy_out_begun_as_text_costs_no_connection() {
    let db = Db::start().await;
    let pool = db.pool(|backend| backend).await;
    let connection = next(&pool).await;
    let backend = pid(&connection).await;
    connection.batch_execute("copy (select generate_series(1, 1000000000)) to stdout").await.unwrap_err();
    drop(connection);
    assert_eq!(pid(&next(&pool).await).await, backend);
    finish(pool).await;
}

#[tokio::test]
async fn a_stream_of_rows_or_a_statement_that_was_forgotten_is_cancelled_and_discarded() {
    let db = Db::start().await;
    let pool = db.pool(|backend| backend).await;
    let connection = next(&pool).await;
    let backend = pid(&connection).await;
    let rows = connection.query_raw(MANY_ROWS, Vec::<i32>::new()).await.unwrap();
    let mut rows = Box::pin(rows);
    rows.next().await.unwrap().unwrap();
    std::mem::forget(rows);
    is_discarded_at_once(&db, &pool, connection, backend).await;

    let connection = next(&pool).await;
    let backend = pid(&connection).await;
    let mut query = Box::pin(connection.query(FOR_EVER, &[]));
    assert!(poll_immediate(query.as_mut()).await.is_none());
    std::mem::forget(query);
    is_discarded_at_once(&db, &pool, connection, backend).await;

    // One that had run into its time-out before.
    let hasty = db.pool(|backend| backend.query_timeout(Duration::from_millis(200))).await;
    let connection = next(&hasty).await;
    let backend = pid(&connection).await;
    let sql = "select repeat('x', 1000) from generate_series(1, 100) union all select pg_sleep(3600)::text";
    let mut rows = Box::pin(connection.query_raw(sql, Vec::<i32>::new()).await.unwrap());
    while rows.next().await.unwrap().is_ok() {}
    std::mem::forget(rows);
    is_discarded_at_once(&db, &hasty, connection, backend).await;
    hasty.drain(SOON).await.unwrap();
    pool.drain(SOON).await.unwrap();
}

/// Otherwise its answer might wait for rows that nobody reads, until its time-out.
#[tokio::test]
async fn whoever_asks_beside_a_stream_that_is_held_is_told_at_once() {
    let db = Db::start().await;
    let pool = db.pool(|backend| backend).await;
    let mut connection = next(&pool).await;
    connection.batch_execute("create table t (id int)").await.unwrap();
    let transaction = connection.transaction().await.unwrap();

    let mut rows = Box::pin(transaction.query_raw(MANY_ROWS, Vec::<i32>::new()).await.unwrap());
    rows.next().await.unwrap().unwrap();
    is_told(timeout(AT_ONCE, transaction.query("select 1", &[])).await.unwrap());
    is_told(transaction.batch_execute("select 1").await);
    is_told(transaction.prepare_cached("select 1").await);
    is_told(transaction.query_raw("select 1", Vec::<i32>::new()).await);
    is_told(transaction.copy_in("copy t from stdin").await);
    // Not only once it is open.
    let (first, second) =
        join!(transaction.query_raw("select 1", Vec::<i32>::new()), transaction.query("select 1", &[]));
    is_told(first);
    is_told(second);
    drop(rows);
    drop(transaction);
    drop(connection);

    let connection = next(&pool).await;
    let (rows, other) =
        join!(connection.query_raw(MANY_ROWS, Vec::<i32>::new()), connection.query("select 1", &[]));
    is_told(other);
    drop(rows);
    drop(connection);

    let connection = next(&pool).await;
    let copy = connection.copy_in("copy t from stdin").await.unwrap();
    is_told(connection.query("select 1", &[]).await);
    assert_eq!(copy.finish().await.unwrap(), 0);
    let data = connection.copy_out("copy t to stdout").await.unwrap();
    is_told(connection.query("select 1", &[]).await);
    assert!(data.try_collect::<Vec<_>>().await.unwrap().is_empty());
    // Read to its end, or dropped, a stream is in nobody's way.
    let mut rows = Box::pin(connection.query_raw("select 1", Vec::<i32>::new()).await.unwrap());
    while rows.next().await.is_some() {}
    connection.query("select 1", &[]).await.unwrap();
    drop(rows);
    drop(connection);
    let queries = pool.snapshot().queries;
    assert_eq!(queries.failed, 0, "nothing was sent, and nothing counted");
    finish(pool).await;
}

#[tokio::test]
async fn a_stream_that_ran_into_its_time_out_is_held_until_it_is_dropped() {
    let db = Db::start().await;
    let pool = db.pool(|backend| backend.query_timeout(Duration::from_millis(200))).await;
    let connection = next(&pool).await;
    let sql = "select repeat('x', 1000) from generate_series(1, 100) union all select pg_sleep(3600)::text";
    let mut rows = Box::pin(connection.query_raw(sql, Vec::<i32>::new()).await.unwrap());
    while rows.next().await.unwrap().is_ok() {}
    is_told(connection.query("select 1", &[]).await);
    drop(rows);
    drop(connection);
    next(&pool).await.query("select 1", &[]).await.unwrap();
    finish(pool).await;
}

/// Panics while it is written.
#[derive(Debug)]
struct Bomb;

impl ToSql for Bomb {
    fn to_sql(&self, _: &Type, _: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        panic!("as asked");
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

#[tokio::test]
async fn a_parameter_that_panics_costs_its_connection_and_nobody_elses_query() {
    let db = Db::start().await;
    let pool = db.pool(|backend| backend).await;
    let connection = next(&pool).await;
    let backend = pid(&connection).await;
    let panicked = tokio::spawn(async move {
        let statement = connection.prepare_cached("select $1::int").await.unwrap();
        connection.query(&statement, &[&Bomb]).await.unwrap();
    });
    assert!(panicked.await.unwrap_err().is_panic());
    let connection = next(&pool).await;
    assert_eq!(connection.query_one("select 7", &[]).await.unwrap().get::<_, i32>(0), 7);
    assert_ne!(pid(&connection).await, backend);
    drop(connection);
    finish(pool).await;
}

fn is_told<T: std::fmt::Debug>(outcome: Result<T, QueryError>) {
    assert!(matches!(outcome, Err(QueryError::StreamOpen)), "{outcome:?}");
}

#[tokio::test]
async fn a_cancel_token_ends_with_its_use() {
    let db = Db::start().await;
    for after in [AfterRaw::Discard, AfterRaw::Keep] {
        let pool = db.pool(|backend| backend.after_raw(after)).await;
        let mut connection = next(&pool).await;
        let token = connection.cancel_token();
        // As long as the use lasts, it cancels: a tracked query and a raw one.
        let (cancelled, sent) = join!(connection.query(FOR_EVER, &[]), after_it_runs(&db, &token));
        sent.unwrap();
        assert_eq!(cancelled.unwrap_err().code(), "57014");
        let (cancelled, sent) = join!(connection.raw().query(FOR_EVER, &[]), after_it_runs(&db, &token));
        sent.unwrap();
        assert!(cancelled.unwrap_err().as_db_error().is_some());
        drop(connection);

        let connection = next(&pool).await;
        assert!(matches!(token.cancel().await, Err(CancelError::UseEnded)));
        let other = connection.cancel_token();
        drop(connection);
        let connection = next(&pool).await;
        assert!(matches!(other.clone().cancel().await, Err(CancelError::UseEnded)));
        assert_eq!(connection.query_one("select 7", &[]).await.unwrap().get::<_, i32>(0), 7);
        drop(connection);
        finish(pool).await;
    }
}

async fn after_it_runs(
    db: &Db,
    token: &tower_adaptive_pool::postgres::CancelToken,
) -> Result<(), CancelError> {
    eventually(SOON, async || db.runs("pg_sleep").await).await;
    token.cancel().await
}

#[tokio::test]
async fn a_cancel_whose_future_was_dropped_half_way_does_not_reach_the_next_user() {
    let db = Db::start().await;
    let pool = db.pool(|backend| backend).await;
    for waits in 0..60 {
        let connection = next(&pool).await;
        let token = connection.cancel_token();
        let mut cancel = Box::pin(token.cancel());
        for _ in 0..waits {
            if poll_immediate(cancel.as_mut()).await.is_some() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(cancel);
        drop(connection);
        let connection = next(&pool).await;
        connection.query("select pg_sleep(0.01)", &[]).await.unwrap();
    }
    finish(pool).await;
}

#[tokio::test]
async fn a_connection_whose_cancel_may_yet_arrive_is_not_handed_on() {
    let server = spawn_blocking(|| PostgresServer::start(Options::default())).await.unwrap().unwrap();
    let proxy = Proxy::before(server.port()).await;
    let pool = pool_of(&server, proxy.port(), 1).await;
    let connection = next(&pool).await;
    let backend = pid(&connection).await;
    proxy.refuse().await;
    let error = connection.cancel_token().cancel().await.unwrap_err();
    assert!(matches!(error, CancelError::Dial(_)), "{error}");
    proxy.pass().await;
    drop(connection);
    assert_ne!(pid(&next(&pool).await).await, backend);
    pool.drain(SOON).await.unwrap();
}

async fn pool_of(server: &PostgresServer, port: u16, size: usize) -> Pool {
    let app: Config = server.app_url().parse().unwrap();
    let mut config = Config::new();
    config.host("127.0.0.1").port(port).user("app").password(app.get_password().unwrap()).dbname("app");
    let builder = AdaptivePool::builder(Postgres::new(config, NoTls)).fixed_size(size);
    let pool = builder.build().unwrap();
    pool.ready().await.unwrap();
    pool
}

/// The driver's own token knows nothing of uses. Where connections are kept, the server does not know it.
#[tokio::test]
async fn the_drivers_cancel_token_of_a_kept_raw_use_does_not_reach_the_next_user() {
    let db = Db::start().await;
    let pool = db.pool(keep).await;
    let mut connection = next(&pool).await;
    let token = connection.raw().cancel_token();
    let backend = pid(&connection).await;
    drop(connection);
    let connection = next(&pool).await;
    assert_eq!(pid(&connection).await, backend);
    let port: i32 = connection.query_one("select inet_server_port()", &[]).await.unwrap().get(0);
    let cancel = async {
        eventually(SOON, async || db.runs("pg_sleep").await).await;
        let socket = TcpStream::connect(("127.0.0.1", port as u16)).await.unwrap();
        token
            .cancel_query_raw(socket, MakeTlsConnect::<TcpStream>::make_tls_connect(&mut NoTls, "").unwrap())
            .await
    };
    let (outcome, sent) = join!(connection.query("select pg_sleep(0.5)", &[]), cancel);
    sent.unwrap();
    outcome.unwrap();
    drop(connection);
    // What the pool itself cancels, it cancels all the same.
    let connection = next(&pool).await;
    timeout(Duration::from_millis(50), connection.query(FOR_EVER, &[])).await.unwrap_err();
    drop(connection);
    assert_eq!(pid(&next(&pool).await).await, backend);
    finish(pool).await;
}

#[tokio::test]
async fn cancel_requests_are_bounded_however_many_queries_are_dropped_at_once() {
    const QUERIES: usize = 30;
    const AT_ONCE: usize = 4;
    let server = spawn_blocking(|| PostgresServer::start(Options::default())).await.unwrap().unwrap();
    let proxy = Proxy::before(server.port()).await;
    let pool = pool_of(&server, proxy.port(), QUERIES).await;
    let cancels = || proxy.accepted() - QUERIES;

    let dropped = (0..QUERIES).map(async |_| {
        let connection = pool.acquire().await.unwrap();
        timeout(Duration::from_secs(3), connection.query(FOR_EVER, &[])).await.unwrap_err();
        drop(connection);
    });
    let mut config: Config = server.superuser_url().parse().unwrap();
    let (admin, connection) = config.dbname("app").connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    let held = async {
        eventually(SOON, async || {
            let running = "select count(*) from pg_stat_activity where query = $1 and state = 'active'";
            admin.query_one(running, &[&FOR_EVER]).await.unwrap().get::<_, i64>(0) == QUERIES as i64
        })
        .await;
        proxy.black_hole().await;
    };
    join!(join_all(dropped), held);
    // None of them gets an answer: those that are out stay out, and no other goes.
    eventually(SOON, async || cancels() >= AT_ONCE).await;
    for _ in 0..100 {
        admin.query("select 1", &[]).await.unwrap();
    }
    assert_eq!(cancels(), AT_ONCE);

    proxy.pass().await;
    eventually(SOON, async || pool.snapshot().idle == QUERIES).await;
    assert_eq!(cancels(), QUERIES);
    pool.drain(SOON).await.unwrap();
}
