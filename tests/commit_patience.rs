//! A COMMIT that nobody answers outlasts every limit of the pool's own. Part of `make test-more`, because those are seconds.

#![cfg(feature = "postgres")]

#[path = "support/standby.rs"]
mod standby;
mod support;

use std::time::Duration;

use standby::{WRITE, Waiting};
use tokio::time::{sleep, timeout};
use tower_adaptive_pool::QueryError;

/// The pool has then settled what it could settle (5 s) and hung up on what it could hang up on (5 s more), and the server
/// has looked for its client (2 s).
const ALL_LIMITS: Duration = Duration::from_secs(13);

const KNOWN: &str = "select 'known'";

#[tokio::test]
async fn a_commit_is_neither_cancelled_nor_hung_up_on_however_long_it_takes() {
    let waiting = Waiting::start().await;
    let pool = waiting.pool(Duration::from_millis(200)).await;
    let mut connection = pool.acquire().await.unwrap();
    let backend: i32 = connection.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);
    connection.prepare_cached(KNOWN).await.unwrap();
    let transaction = connection.transaction().await.unwrap();
    transaction.batch_execute(WRITE).await.unwrap();
    let error = transaction.commit().await.unwrap_err();
    assert!(matches!(error, QueryError::CommitUnknown { timed_out: true, .. }), "{error}");
    // From the cache, without a word from the server; the query then waits in vain.
    let statement = connection.prepare_cached(KNOWN).await.unwrap();
    connection.query(&statement, &[]).await.unwrap_err();
    drop((statement, connection));
    sleep(ALL_LIMITS).await; // nothing must happen
    waiting.commits(backend).await;
    let seen = pool.snapshot();
    assert_eq!(
        (seen.size, seen.in_use, seen.closing),
        (1, 0, 1),
        "its place is taken as long as the server has it"
    );

    waiting.let_go().await;
    let next = timeout(Duration::from_secs(10), pool.acquire()).await.unwrap().unwrap();
    assert_eq!(next.query("select from t", &[]).await.unwrap().len(), 1, "stored");
    waiting.assert_none_was_cancelled();
    assert_eq!(waiting.proxy.openings().len(), 2, "two sessions, and no cancel request");
}
