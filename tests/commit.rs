//! `commit` tells the truth: every way to leave a statement of a transaction, what `commit` answers, and what is stored, on a
//! real PostgreSQL. `cargo test --all-features --test commit -- --nocapture` prints the table of `docs/RELIABILITY.md`.

#![cfg(feature = "postgres")]

#[path = "support/role.rs"]
mod role;
#[path = "support/standby.rs"]
mod standby;
mod support;

use std::pin::{Pin, pin};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{join_all, poll_immediate};
use role::{Db, Pool, SOON, finish, pid};
use standby::{WRITE, Waiting};
use support::eventually;
use support::postgres::{Options, PostgresServer};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_postgres::NoTls;
use tower_adaptive_pool::postgres::Transaction;
use tower_adaptive_pool::{AdaptivePool, Postgres, QueryError};

/// Each step may take that long.
const LIMIT: Duration = Duration::from_millis(500);
/// The caller's own patience: `commit` has until `SHORTER + LIMIT` to see the end of what was given up.
const SHORTER: Duration = Duration::from_millis(450);

/// Longer than [`LIMIT`], shorter than `SHORTER + LIMIT`: `commit` still sees its end.
const ENDS_WELL: &str = "insert into t select 2 from pg_sleep(0.7)";
const FAILS: &str =
    "do $$ begin insert into t values (2); perform pg_sleep(0.7); raise exception 'late'; end $$";
/// `statement_timeout` ends it; nobody is there to see that.
const IS_ENDED: &str = "select pg_sleep(3600)";
const ROWS_THAT_END_WELL: &str = "select i from generate_series(1, 5) i";
const ROWS_THAT_FAIL: &str = "select 100 / (5 - i) from generate_series(1, 10) i";

type Leave = for<'a> fn(&'a mut Transaction<'_>) -> Pin<Box<dyn Future<Output = ()> + 'a>>;

/// A way to leave a statement, after `insert into t values (1)`.
struct Way {
    statement: &'static str,
    leave: Leave,
    /// What `commit` answers, and which rows are stored.
    commit: (&'static str, &'static [i32]),
    /// The same where the transaction accepts statements that were given up.
    accepting: (&'static str, &'static [i32]),
}

const ABANDONED: (&str, &[i32]) = ("statement_abandoned", &[]);
const ROLLED_BACK: (&str, &[i32]) = ("25P02", &[]);
const STORED: (&str, &[i32]) = ("ok", &[1]);
const STORED_WITH_IT: (&str, &[i32]) = ("ok", &[1, 2]);
const UNFINISHED: (&str, &[i32]) = ("copy_unfinished", &[]);

/// A row of [`WAYS`].
macro_rules! way {
    ($statement:literal, |$transaction:ident| $leave:block => $commit:expr, accepting $accepting:expr) => {
        Way {
            statement: $statement,
            leave: |$transaction| Box::pin(async move { $leave }),
            commit: $commit,
            accepting: $accepting,
        }
    };
    ($statement:literal, |$transaction:ident| $leave:block => $commit:expr) => {
        way!($statement, |$transaction| $leave => $commit, accepting $commit)
    };
}

const WAYS: &[Way] = &[
    way!("ended", |t| { t.execute("insert into t values (2)", &[]).await.unwrap(); } => STORED_WITH_IT),
    way!("failed, and its caller saw it", |t| { t.execute("select 1 / 0", &[]).await.unwrap_err(); } => ROLLED_BACK),
    way!("not sent: a parameter of the wrong type", |t| {
        t.execute("insert into t values ($1)", &[&"text"]).await.unwrap_err();
    } => STORED),
    way!("prepared, and failed at that", |t| { t.prepare_cached("selec").await.unwrap_err(); } => ROLLED_BACK),
    way!("ran into `query_timeout`, ends well later", |t| {
        let error = t.execute(ENDS_WELL, &[]).await.unwrap_err();
        assert!(matches!(error, QueryError::Timeout(_)), "{error}");
    } => ABANDONED, accepting STORED_WITH_IT),
    way!("ran into `query_timeout`, fails later", |t| {
        t.batch_execute(FAILS).await.unwrap_err();
    } => ABANDONED, accepting ROLLED_BACK),
    way!("ran into `query_timeout`, ended by `statement_timeout`", |t| {
        t.batch_execute("set local statement_timeout = 700").await.unwrap();
        t.execute(IS_ENDED, &[]).await.unwrap_err();
    } => ABANDONED, accepting ROLLED_BACK),
    way!("ran into `query_timeout`, and still runs", |t| {
        t.batch_execute("set local statement_timeout = 0").await.unwrap();
        t.execute(IS_ENDED, &[]).await.unwrap_err();
    } => ABANDONED, accepting ("timeout", &[])),
    way!("ended by `lock_timeout`, and its caller saw it", |t| {
        t.batch_execute("set local lock_timeout = 20").await.unwrap();
        let error = t.execute("lock table held", &[]).await.unwrap_err();
        assert_eq!(error.code(), "55P03");
    } => ROLLED_BACK),
    way!("dropped by its caller's own timeout, ends well later", |t| {
        timeout(SHORTER, t.execute(ENDS_WELL, &[])).await.unwrap_err();
    } => ABANDONED, accepting STORED_WITH_IT),
    way!("dropped by its caller's own timeout, fails later", |t| {
        timeout(SHORTER, t.batch_execute(FAILS)).await.unwrap_err();
    } => ABANDONED, accepting ROLLED_BACK),
    way!("dropped by its caller's own timeout, ended by `lock_timeout`", |t| {
        t.batch_execute("set local lock_timeout = 700").await.unwrap();
        timeout(SHORTER, t.execute("lock table held", &[])).await.unwrap_err();
    } => ABANDONED, accepting ROLLED_BACK),
    way!("dropped as soon as it was sent", |t| {
        // So slow that no answer can come before it is dropped.
        let mut sent = pin!(t.batch_execute("insert into t select 2 from pg_sleep(0.05)"));
        assert!(poll_immediate(sent.as_mut()).await.is_none());
    } => ABANDONED, accepting STORED_WITH_IT),
    way!("prepared, and dropped as soon as it was sent", |t| {
        let mut sent = pin!(t.prepare_cached("select 'dropped'"));
        assert!(poll_immediate(sent.as_mut()).await.is_none());
    } => ABANDONED, accepting STORED),
    way!("rows left half-read, the rest ends well", |t| { half_read_rows(t, ROWS_THAT_END_WELL).await; } => STORED),
    way!("rows left half-read, the rest fails", |t| { half_read_rows(t, ROWS_THAT_FAIL).await; } => ROLLED_BACK),
    way!("rows that ran into `query_timeout`, the rest ends well", |t| {
        late_rows(t, "select pg_sleep(0.7)::text").await;
    } => ABANDONED, accepting STORED),
    way!("rows that ran into `query_timeout`, the rest fails", |t| {
        late_rows(t, "select (1 / length(pg_sleep(0.7)::text))::text").await;
    } => ABANDONED, accepting ROLLED_BACK),
    way!("`query_one` of more rows, the rest ends well", |t| {
        let error = t.query_one("insert into t values (2), (3) returning id", &[]).await.unwrap_err();
        assert!(matches!(error, QueryError::TooManyRows), "{error}");
    } => ("ok", &[1, 2, 3])),
    way!("`query_opt` of more rows, the rest fails", |t| {
        t.query_opt(ROWS_THAT_FAIL, &[]).await.unwrap_err();
    } => ROLLED_BACK),
    way!("`query_one` of no row", |t| {
        let error = t.query_one("select id from t where id > 1", &[]).await.unwrap_err();
        assert!(matches!(error, QueryError::NoRow), "{error}");
    } => STORED),
    way!("COPY out left half-read, the rest ends well", |t| { half_read_copy(t, ROWS_THAT_END_WELL).await; } => STORED),
    way!("COPY out left half-read, the rest fails", |t| { half_read_copy(t, ROWS_THAT_FAIL).await; } => ROLLED_BACK),
    way!("COPY out as text", |t| {
        t.batch_execute("copy (select 1) to stdout").await.unwrap_err();
    } => STORED),
    way!("COPY in finished", |t| {
        let mut copy = t.copy_in("copy t from stdin").await.unwrap();
        copy.send("2\n").await.unwrap();
        assert_eq!(copy.finish().await.unwrap(), 1);
    } => STORED_WITH_IT),
    way!("COPY in finished, and refused", |t| {
        let mut copy = t.copy_in("copy t from stdin").await.unwrap();
        copy.send("two\n").await.unwrap();
        copy.finish().await.unwrap_err();
    } => ROLLED_BACK),
    way!("COPY in aborted", |t| {
        t.copy_in("copy t from stdin").await.unwrap().abort().await.unwrap();
    } => ROLLED_BACK),
    way!("COPY in dropped", |t| { drop(t.copy_in("copy t from stdin").await.unwrap()); } => UNFINISHED),
    way!("COPY in as text", |t| { t.batch_execute("copy t from stdin").await.unwrap_err(); } => UNFINISHED),
    way!("a savepoint as text, rolled back to", |t| {
        t.batch_execute("savepoint s; insert into t values (2); rollback to s").await.unwrap();
    } => STORED),
    way!("`COMMIT` as text", |t| { t.batch_execute("commit").await.unwrap(); } => STORED),
    way!("`ROLLBACK` as text", |t| { t.batch_execute("rollback").await.unwrap(); } => ROLLED_BACK),
    way!("`ROLLBACK` as text, then a failure", |t| {
        t.batch_execute("rollback; select 1 / 0").await.unwrap_err();
    } => ROLLED_BACK),
    way!("`COMMIT` as text, refused", |t| {
        t.batch_execute("insert into unique_at_the_end values (1), (1)").await.unwrap();
        assert_eq!(t.batch_execute("commit").await.unwrap_err().code(), "23505");
    } => ("no_transaction", &[])),
    way!("`COMMIT` as text, dropped by its caller's own timeout and refused later", |t| {
        t.batch_execute("insert into unique_at_the_end values (1), (1)").await.unwrap();
        timeout(SHORTER, t.batch_execute("select pg_sleep(0.7); commit")).await.unwrap_err();
    } => ABANDONED, accepting ("no_transaction", &[])),
    way!("`ROLLBACK` as text, then `COMMIT` as text", |t| {
        t.batch_execute("rollback").await.unwrap();
        t.batch_execute("commit").await.unwrap();
    } => ROLLED_BACK),
    way!("`COMMIT` as text, then `ROLLBACK` as text", |t| {
        t.batch_execute("commit").await.unwrap();
        t.batch_execute("rollback").await.unwrap();
    } => STORED),
    way!("`COMMIT` as text, then a statement that timed out", |t| {
        t.batch_execute("commit").await.unwrap();
        t.batch_execute("select pg_sleep(0.7)").await.unwrap_err();
    } => STORED),
    way!("`COMMIT` as text, then the backend was ended", |t| {
        t.batch_execute("commit").await.unwrap();
        t.batch_execute("select pg_terminate_backend(pg_backend_pid())").await.unwrap_err();
    } => STORED),
    way!("`COMMIT` and `BEGIN` as text, then a `COMMIT` as text that is refused", |t| {
        t.batch_execute("commit; begin; insert into t values (2)").await.unwrap();
        t.batch_execute("insert into unique_at_the_end values (1), (1)").await.unwrap();
        t.batch_execute("commit").await.unwrap_err();
    } => ("no_transaction", &[1])),
    way!("the backend was ended, and its caller saw it", |t| {
        t.batch_execute("select pg_terminate_backend(pg_backend_pid())").await.unwrap_err();
    } => ("connection", &[])),
];

async fn half_read_rows(transaction: &Transaction<'_>, sql: &str) {
    let mut rows = pin!(transaction.query_raw(sql, Vec::<i32>::new()).await.unwrap());
    rows.next().await.unwrap().unwrap();
}

/// Rows that come at once, more than fit in the server's buffer, and then one that is late.
async fn late_rows(transaction: &Transaction<'_>, late: &str) {
    let sql = format!("select repeat('x', 1000) from generate_series(1, 100) union all {late}");
    let rows = transaction.query_raw(&sql, Vec::<i32>::new()).await.unwrap();
    let last = pin!(rows).fold(None, async |_, row| Some(row)).await;
    assert!(matches!(last, Some(Err(QueryError::Timeout(_)))), "{last:?}");
}

async fn half_read_copy(transaction: &Transaction<'_>, sql: &str) {
    let sql = format!("copy ({sql}) to stdout");
    let mut data = pin!(transaction.copy_out(&sql).await.unwrap());
    data.next().await.unwrap().unwrap();
}

fn said(outcome: &Result<(), QueryError>) -> &str {
    outcome.as_ref().map_or_else(QueryError::code, |()| "ok")
}

async fn stored(pool: &Pool) -> Vec<i32> {
    let connection = timeout(SOON, pool.acquire()).await.unwrap().unwrap();
    let rows = connection.query("select id from t order by id", &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

async fn begun(pool: &Pool) -> tower_adaptive_pool::Connection<Postgres> {
    let connection = timeout(SOON, pool.acquire()).await.unwrap().unwrap();
    let tables = "create table if not exists t (id int); truncate t; \
                  create table if not exists unique_at_the_end (id int unique deferrable initially deferred)";
    connection.batch_execute(tables).await.unwrap();
    connection
}

/// How a transaction is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Commit,
    Accepting,
    InTransaction,
}

/// Most of the ways sleep: so many sleep beside each other.
const BESIDE: usize = 5;

/// What each way leads to.
async fn outcomes(end: End) -> Vec<(String, Vec<i32>)> {
    let parts = join_all((0..BESIDE).map(|part| outcomes_of(part, end))).await;
    let mut parts: Vec<_> = parts.into_iter().map(Vec::into_iter).collect();
    (0..WAYS.len()).map(|number| parts[number % BESIDE].next().unwrap()).collect()
}

/// The same for each so manyth, with a role of its own.
async fn outcomes_of(part: usize, end: End) -> Vec<(String, Vec<i32>)> {
    let db = Db::start().await;
    let pool = db.pool(|backend| backend.query_timeout(LIMIT)).await;
    // Somebody else holds this lock throughout.
    let role: String =
        pool.acquire().await.unwrap().query_one("select current_user::text", &[]).await.unwrap().get(0);
    let held = format!("create table {role}.held (); grant all on {role}.held to {role}");
    db.admin.batch_execute(&held).await.unwrap();
    db.admin.batch_execute(&format!("begin; lock table {role}.held")).await.unwrap();
    let mut seen = Vec::new();
    for way in WAYS.iter().skip(part).step_by(BESIDE) {
        let mut connection = begun(&pool).await;
        let outcome = if end == End::InTransaction {
            let work = async |transaction: &mut Transaction<'_>| {
                transaction.execute("insert into t values (1)", &[]).await?;
                (way.leave)(transaction).await;
                Ok(())
            };
            connection.in_transaction(work).await
        } else {
            let mut transaction = connection.transaction().await.unwrap();
            transaction.execute("insert into t values (1)", &[]).await.unwrap();
            if end == End::Accepting {
                transaction.accept_abandoned();
            }
            (way.leave)(&mut transaction).await;
            transaction.commit().await
        };
        drop(connection);
        seen.push((said(&outcome).to_owned(), stored(&pool).await));
    }
    drop(db);
    finish(pool).await;
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commit_answers_what_is_stored_whatever_way_a_statement_was_left() {
    let (commit, accepting, in_transaction) =
        tokio::join!(outcomes(End::Commit), outcomes(End::Accepting), outcomes(End::InTransaction));
    println!(
        "| A statement of the transaction | `commit` answers | stored | with `accept_abandoned` | stored |"
    );
    println!("|---|---|---|---|---|");
    for (way, (commit, accepting)) in WAYS.iter().zip(commit.iter().zip(&accepting)) {
        println!(
            "| {} | {} | {:?} | {} | {:?} |",
            way.statement, commit.0, commit.1, accepting.0, accepting.1
        );
    }
    for (number, way) in WAYS.iter().enumerate() {
        let expected = |(said, rows): (&str, &[i32])| (said.to_owned(), rows.to_vec());
        assert_eq!(commit[number], expected(way.commit), "{}", way.statement);
        assert_eq!(accepting[number], expected(way.accepting), "{}, accepting", way.statement);
        assert_eq!(in_transaction[number], expected(way.commit), "{}, in_transaction", way.statement);
    }
}

#[tokio::test]
async fn what_was_left_running_before_a_transaction_is_none_of_its_statements() {
    let db = Db::start().await;
    let pool = db.pool(|backend| backend.query_timeout(SOON)).await;
    let mut connection = begun(&pool).await;
    timeout(SHORTER, connection.query("select pg_sleep(0.6)", &[])).await.unwrap_err();
    let transaction = connection.transaction().await.unwrap();
    transaction.execute("insert into t values (1)", &[]).await.unwrap();
    transaction.commit().await.unwrap();
    drop(connection);
    assert_eq!(stored(&pool).await, [1]);
    finish(pool).await;
}

/// A statement begun as text is one of the transaction's, whoever began that.
#[tokio::test]
async fn a_statement_given_up_in_a_transaction_begun_as_text_is_not_committed() {
    let db = Db::start().await;
    let pool = db.pool(|backend| backend.query_timeout(LIMIT)).await;
    let mut connection = begun(&pool).await;
    connection.batch_execute("begin").await.unwrap();
    connection.execute(ENDS_WELL, &[]).await.unwrap_err();
    let transaction = connection.transaction().await.unwrap();
    let error = transaction.commit().await.unwrap_err();
    assert!(matches!(error, QueryError::StatementAbandoned), "{error}");
    drop(connection);
    assert!(stored(&pool).await.is_empty());
    finish(pool).await;
}

#[tokio::test]
async fn a_commit_that_the_server_refuses_is_told_as_the_servers_error() {
    let db = Db::start().await;
    let pool = db.pool(|backend| backend).await;
    let mut connection = begun(&pool).await;
    connection.batch_execute("alter table t add unique (id) deferrable initially deferred").await.unwrap();
    let transaction = connection.transaction().await.unwrap();
    transaction.execute("insert into t values (1), (1)", &[]).await.unwrap();
    let error = transaction.commit().await.unwrap_err();
    assert_eq!(error.code(), "23505");
    drop(connection);
    assert!(stored(&pool).await.is_empty());
    finish(pool).await;
}

#[tokio::test]
async fn a_commit_that_times_out_or_is_dropped_is_not_cancelled_and_its_connection_stays() {
    for dropped in [false, true] {
        let waiting = Waiting::start().await;
        let pool = waiting.pool(LIMIT).await;
        let mut connection = pool.acquire().await.unwrap();
        let backend = pid(&connection).await;
        let transaction = connection.transaction().await.unwrap();
        transaction.batch_execute(WRITE).await.unwrap();
        if dropped {
            timeout(SHORTER, transaction.commit()).await.unwrap_err();
        } else {
            let error = transaction.commit().await.unwrap_err();
            assert!(
                matches!(error, QueryError::CommitUnknown { timed_out: true, waited, .. } if waited >= LIMIT),
                "{error}"
            );
            assert!(error.is_timeout(), "a 504");
            assert_eq!(error.code(), "commit_unknown");
            assert!(error.to_string().contains("pg_xact_status"), "how to find out: {error}");
        }
        drop(connection);
        waiting.commits(backend).await;
        assert_eq!(pool.snapshot().in_use, 1, "nobody else gets it");

        waiting.let_go().await;
        let next = timeout(SOON, pool.acquire()).await.unwrap().unwrap();
        assert_eq!(pid(&next).await, backend, "settled, not thrown away");
        assert_eq!(next.query("select from t", &[]).await.unwrap().len(), 1, "stored");
        waiting.assert_none_was_cancelled();
        assert_eq!(waiting.proxy.openings().len(), 1, "no cancel request was sent");
        drop(next);
        finish(pool).await;
    }
}

#[tokio::test]
async fn a_commit_whose_connection_is_lost_before_its_answer_is_unknown() {
    let waiting = Waiting::start().await;
    let pool = waiting.pool(SOON).await;
    for ends_the_backend in [false, true] {
        let mut connection = pool.acquire().await.unwrap();
        let backend = pid(&connection).await;
        let transaction = connection.transaction().await.unwrap();
        transaction.batch_execute(WRITE).await.unwrap();
        let before = waiting.stored().await;
        let lost = async {
            waiting.commits(backend).await;
            if ends_the_backend {
                // Which has then committed here, and says so in a warning before its error.
                waiting.admin.execute("select pg_terminate_backend($1)", &[&backend]).await.unwrap();
            } else {
                waiting.proxy.forget();
                waiting.proxy.reset_forgotten();
            }
        };
        let (outcome, ()) = tokio::join!(transaction.commit(), lost);
        let error = outcome.unwrap_err();
        assert!(matches!(error, QueryError::CommitUnknown { cause: Some(_), .. }), "{error}");
        assert!(!error.is_timeout());
        drop(connection);
        if !ends_the_backend {
            waiting.admin.execute("select pg_terminate_backend($1)", &[&backend]).await.unwrap();
        }
        eventually(SOON, async || waiting.stored().await == before + 1).await;
    }
}

/// What is done on the connection afterwards is no COMMIT any more.
#[tokio::test]
async fn after_an_unknown_commit_was_answered_what_else_is_left_running_is_cancelled() {
    let waiting = Waiting::start().await;
    let pool = waiting.pool(LIMIT).await;
    let mut connection = pool.acquire().await.unwrap();
    let backend = pid(&connection).await;
    let transaction = connection.transaction().await.unwrap();
    transaction.batch_execute(WRITE).await.unwrap();
    transaction.commit().await.unwrap_err();
    waiting.let_go().await;
    eventually(SOON, async || connection.query("select 1", &[]).await.is_ok()).await;
    // In a transaction, and with no other limit than ours.
    connection.batch_execute("set statement_timeout = 0; begin").await.unwrap();
    connection.query("select pg_sleep(3600)", &[]).await.unwrap_err();
    drop(connection);
    let next = timeout(Duration::from_secs(2), pool.acquire()).await.expect("at once").unwrap();
    assert_eq!(pid(&next).await, backend);
    drop(next);
    finish(pool).await;
}

/// The server may log a slow COMMIT after it has answered it, and acts on a cancel then.
#[tokio::test]
async fn a_cancel_that_comes_after_the_commit_was_answered_does_not_make_it_a_failure() {
    let settings = [("log_min_duration_statement", "0"), ("fsync", "on"), ("synchronous_commit", "on")];
    let settings = [&settings[..], &[("commit_delay", "100000"), ("commit_siblings", "0")]].concat();
    let settings = settings.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let options = Options { settings, ..Options::default() };
    let server = spawn_blocking(|| PostgresServer::start(options)).await.unwrap().unwrap();
    let backend = Postgres::new(server.app_url().parse().unwrap(), NoTls);
    let pool = AdaptivePool::builder(backend).fixed_size(1).build().unwrap();
    let mut connection = begun(&pool).await;
    for number in 1..=5 {
        let token = connection.cancel_token();
        let transaction = connection.transaction().await.unwrap();
        transaction.execute("insert into t values ($1)", &[&number]).await.unwrap();
        let cancel = async {
            tokio::time::sleep(Duration::from_millis(30)).await; // in the middle of the delay
            token.cancel().await.unwrap();
        };
        let (outcome, ()) = tokio::join!(transaction.commit(), cancel);
        let is_stored = connection.query("select from t where id = $1", &[&number]).await.unwrap().len() == 1;
        assert_eq!(outcome.is_ok(), is_stored, "{outcome:?}");
    }
}
