//! Statements that the server has forgotten, or no longer takes: each connection fails once at most, on a real PostgreSQL.

#![cfg(feature = "postgres")]

#[path = "support/role.rs"]
mod role;
mod support;

use std::error::Error;

use bytes::BytesMut;
use futures_util::TryStreamExt;
use role::{Db, Pool, finish, pid};
use tokio_postgres::types::{Format, IsNull, ToSql, Type};
use tower_adaptive_pool::postgres::Transaction;
use tower_adaptive_pool::{Connection, Postgres};

const SELECT: &str = "select * from t";

/// What makes statements stale, and a statement that it makes so.
const CHANGES: [(&str, &str); 5] = [
    ("alter table t add column note text", SELECT),
    ("drop table t; create table t (note text); insert into t values ('new')", SELECT),
    ("discard all", SELECT),
    ("deallocate all", SELECT),
    (
        "drop table moods; drop type mood; create type mood as enum ('good', 'bad'); create table moods (mood mood)",
        "select mood from moods",
    ),
];

async fn tables(connection: &Connection<Postgres>) {
    let sql = "drop table if exists t, moods; drop type if exists mood; \
               create table t (id int); insert into t values (1); \
               create type mood as enum ('good'); create table moods (mood mood)";
    connection.batch_execute(sql).await.unwrap();
}

/// A pool of one connection with its statements prepared, and that connection's backend.
async fn prepared(db: &Db, statement: &str) -> (Pool, i32) {
    let pool = db.pool(|backend| backend).await;
    let connection = pool.acquire().await.unwrap();
    tables(&connection).await;
    for sql in [statement, "select id from t"] {
        let statement = connection.prepare_cached(sql).await.unwrap();
        connection.query(&statement, &[]).await.unwrap();
    }
    let backend = pid(&connection).await;
    drop(connection);
    (pool, backend)
}

#[tokio::test]
async fn outside_a_transaction_a_stale_statement_is_prepared_again_and_nobody_notices() {
    let db = Db::start().await;
    for (change, sql) in CHANGES {
        let (pool, backend) = prepared(&db, sql).await;
        let connection = pool.acquire().await.unwrap();
        let kept = connection.prepare_cached(sql).await.unwrap();
        connection.batch_execute(change).await.unwrap();
        let started = pool.snapshot().queries.started;
        // By each method; the first finds it stale, the others with a statement that was prepared before.
        connection.query(&kept, &[]).await.unwrap_or_else(|error| panic!("{change}: {error}"));
        connection.query_opt(&kept, &[]).await.unwrap();
        connection.execute(&kept, &[]).await.unwrap();
        connection.query_raw(&kept, Vec::<i32>::new()).await.unwrap().try_collect::<Vec<_>>().await.unwrap();
        assert_eq!(pool.snapshot().queries.started - started, 4, "each is one query, tried twice or not");
        drop(kept);
        drop(connection);
        for _ in 0..10 {
            let connection = pool.acquire().await.unwrap();
            assert_eq!(pid(&connection).await, backend, "it costs no connection");
            let statement = connection.prepare_cached(sql).await.unwrap();
            connection.query(&statement, &[]).await.unwrap();
        }
        assert_eq!(pool.snapshot().queries.failed, 0, "{change}");
        finish(pool).await;
    }
}

#[tokio::test]
async fn each_method_prepares_a_stale_statement_again_with_its_parameters() {
    let db = Db::start().await;
    let (pool, _) = prepared(&db, SELECT).await;
    let connection = pool.acquire().await.unwrap();
    let statement = connection.prepare_cached("select $1::int + count(*) from t").await.unwrap();
    let forget = async || connection.batch_execute("deallocate all").await.unwrap();
    let value = |row: &tokio_postgres::Row| row.get::<_, i64>(0);

    forget().await;
    assert_eq!(value(&connection.query(&statement, &[&1]).await.unwrap()[0]), 2);
    forget().await;
    assert_eq!(value(&connection.query_one(&statement, &[&2]).await.unwrap()), 3);
    forget().await;
    assert_eq!(value(&connection.query_opt(&statement, &[&3]).await.unwrap().unwrap()), 4);
    forget().await;
    assert_eq!(connection.execute(&statement, &[&4]).await.unwrap(), 1);
    forget().await;
    let rows: Vec<_> = connection.query_raw(&statement, [5]).await.unwrap().try_collect().await.unwrap();
    assert_eq!(value(&rows[0]), 6);
    forget().await;
    let copy = connection.prepare_cached("copy t to stdout").await.unwrap();
    forget().await;
    let data: Vec<_> = connection.copy_out(&copy).await.unwrap().try_collect().await.unwrap();
    assert_eq!(data.concat(), b"1\n");
    assert_eq!(pool.snapshot().queries.failed, 0);
    drop(connection);
    finish(pool).await;
}

#[tokio::test]
async fn in_a_transaction_a_stale_statement_fails_once_and_the_next_transaction_goes_well() {
    let db = Db::start().await;
    for (change, sql) in CHANGES {
        let (pool, backend) = prepared(&db, sql).await;
        let mut connection = pool.acquire().await.unwrap();
        let kept = connection.prepare_cached(sql).await.unwrap();
        connection.batch_execute(change).await.unwrap();
        let mut outcomes = Vec::new();
        for _ in 0..3 {
            // With the statement that was prepared before the change, as who tries a transaction again does.
            let work =
                async |transaction: &mut Transaction<'_>| transaction.query(&kept, &[]).await.map(drop);
            outcomes.push(connection.in_transaction(work).await.map_err(|error| error.code().to_owned()));
        }
        assert!(outcomes[0].is_err(), "{change}: a failed transaction cannot go on");
        assert!(outcomes[1..].iter().all(Result::is_ok), "{change}: {outcomes:?}");
        drop(kept);
        drop(connection);
        let connection = pool.acquire().await.unwrap();
        assert_eq!(pid(&connection).await, backend);
        let other = connection.prepare_cached("select 2").await.unwrap();
        connection.query(&other, &[]).await.unwrap();
        drop(other);
        drop(connection);
        finish(pool).await;
    }
}

#[tokio::test]
async fn in_a_transaction_begun_as_text_nothing_is_tried_again() {
    let db = Db::start().await;
    let (pool, _) = prepared(&db, SELECT).await;
    let connection = pool.acquire().await.unwrap();
    let statement = connection.prepare_cached("insert into t values (2)").await.unwrap();
    connection.batch_execute("deallocate all; begin; insert into t values (3)").await.unwrap();
    let error = connection.execute(&statement, &[]).await.unwrap_err();
    assert_eq!(error.code(), "26000");
    drop(statement);
    connection.batch_execute("commit").await.unwrap();
    let rows = connection.query("select from t where id > 1", &[]).await.unwrap();
    assert!(rows.is_empty(), "neither half of the transaction is stored");
    drop(connection);
    finish(pool).await;
}

/// A text as a parameter of any type.
#[derive(Debug)]
struct Any(&'static str);

impl ToSql for Any {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        out.extend_from_slice(self.0.as_bytes());
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn to_sql_checked(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        self.to_sql(ty, out)
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }
}

/// Changes after which a parameter has a type that is gone, or one that no longer fits.
const OF_PARAMETERS: [(&str, &str, &str); 2] = [
    (
        "select count(*) from moods where mood = $1",
        "good",
        "drop table moods; drop type mood; create type mood as enum ('good'); create table moods (mood mood)",
    ),
    ("select count(*) from t where id = $1", "1", "alter table t alter column id type text"),
];

#[tokio::test]
async fn a_statement_whose_parameters_type_is_gone_or_fits_no_more_is_prepared_again() {
    let db = Db::start().await;
    for (sql, value, change) in OF_PARAMETERS {
        for in_transaction in [false, true] {
            let (pool, backend) = prepared(&db, SELECT).await;
            let mut connection = pool.acquire().await.unwrap();
            let statement = connection.prepare_cached(sql).await.unwrap();
            connection.query(&statement, &[&Any(value)]).await.unwrap();
            connection.batch_execute(change).await.unwrap();
            let mut failed = 0;
            for _ in 0..3 {
                let outcome = if in_transaction {
                    let work = async |transaction: &mut Transaction<'_>| {
                        let statement = transaction.prepare_cached(sql).await?;
                        transaction.query(&statement, &[&Any(value)]).await.map(drop)
                    };
                    connection.in_transaction(work).await
                } else {
                    connection.query(&statement, &[&Any(value)]).await.map(drop)
                };
                if let Err(error) = outcome {
                    println!("{change}: {error}");
                    failed += 1;
                }
            }
            assert_eq!(failed, usize::from(in_transaction), "{change}");
            assert_eq!(pid(&connection).await, backend);
            drop((statement, connection));
            finish(pool).await;
        }
    }
}

#[tokio::test]
async fn a_deallocate_of_a_statement_that_does_not_exist_leaves_the_cache_alone() {
    let db = Db::start().await;
    let (pool, _) = prepared(&db, SELECT).await;
    let connection = pool.acquire().await.unwrap();
    let statements = "select count(*) from pg_prepared_statements";
    let count = async || connection.query_one(statements, &[]).await.unwrap().get::<_, i64>(0);
    let before = count().await;
    assert_eq!(connection.batch_execute("deallocate no_such_statement").await.unwrap_err().code(), "26000");
    assert_eq!(count().await, before);
    drop(connection);
    finish(pool).await;
}

/// tokio-postgres looks types up with statements of its own, which nobody can make it forget.
#[tokio::test]
async fn a_connection_whose_driver_has_lost_its_own_statements_fails_once_and_is_not_handed_on() {
    let db = Db::start().await;
    let (pool, backend) = prepared(&db, "select mood from moods").await;
    let connection = pool.acquire().await.unwrap();
    connection.batch_execute("create type size as enum ('small')").await.unwrap();
    connection.batch_execute("discard all").await.unwrap();
    let error = connection.prepare_cached("select 'small'::size").await.unwrap_err();
    assert_eq!(error.code(), "26000");
    drop(connection);
    for _ in 0..3 {
        let connection = pool.acquire().await.unwrap();
        assert_ne!(pid(&connection).await, backend);
        let statement = connection.prepare_cached("select 'small'::size").await.unwrap();
        connection.query(&statement, &[]).await.unwrap();
    }
    finish(pool).await;
}

#[tokio::test]
async fn what_was_stale_is_tried_again_once_and_not_for_ever() {
    let db = Db::start().await;
    let (pool, _) = prepared(&db, SELECT).await;
    let connection = pool.acquire().await.unwrap();
    // Fails each time that it is planned.
    let sql = "create function stale() returns int language plpgsql immutable as \
               $$ begin raise exception 'cache lookup failed for type 1' using errcode = 'XX000'; end $$";
    connection.batch_execute(sql).await.unwrap();
    let statement = connection.prepare_cached("select stale()").await.unwrap();
    let error = connection.query(&statement, &[]).await.unwrap_err();
    assert_eq!(error.code(), "XX000");
    let other = connection.query("select 1", &[]).await;
    assert!(matches!(&other, Ok(rows) if rows.len() == 1), "the connection goes on: {other:?}");
    drop(statement);
    drop(connection);
    finish(pool).await;
}

/// Of ten statements on the same table the first that fails takes the others along.
#[tokio::test]
async fn a_connection_with_many_stale_statements_fails_once() {
    let db = Db::start().await;
    let (pool, _) = prepared(&db, SELECT).await;
    let texts: Vec<_> = (0..10).map(|number| format!("select *, {number} from t")).collect();
    let mut connection = pool.acquire().await.unwrap();
    for text in &texts {
        connection.prepare_cached(text).await.unwrap();
    }
    connection.batch_execute("alter table t add column note text").await.unwrap();
    let mut failed = 0;
    for text in &texts {
        let work = async |transaction: &mut Transaction<'_>| {
            let statement = transaction.prepare_cached(text).await?;
            transaction.query(&statement, &[]).await.map(drop)
        };
        failed += usize::from(connection.in_transaction(work).await.is_err());
    }
    assert_eq!(failed, 1);
    drop(connection);
    finish(pool).await;
}

#[tokio::test]
async fn a_statement_of_another_connection_is_prepared_here() {
    let db = Db::start().await;
    let (pool, other) = (db.pool(|backend| backend).await, db.pool(|backend| backend).await);
    let statement = other.acquire().await.unwrap().prepare_cached("select 7").await.unwrap();
    let mut connection = pool.acquire().await.unwrap();
    let work = async |transaction: &mut Transaction<'_>| transaction.query_one(&statement, &[]).await;
    assert_eq!(connection.in_transaction(work).await.unwrap().get::<_, i32>(0), 7);
    let own = connection.prepare_cached("select 7").await.unwrap();
    assert_eq!(connection.query_one(&own, &[]).await.unwrap().get::<_, i32>(0), 7);
    assert_eq!(pool.snapshot().queries.failed, 0);
    drop((statement, own, connection));
    finish(pool).await;
    finish(other).await;
}
