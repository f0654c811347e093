//! A transaction on a tracked connection.

use std::fmt;
use std::sync::atomic::Ordering::Relaxed;

use tokio::time::timeout_at;
use tokio_postgres::types::{BorrowToSql, ToSql};
use tokio_postgres::{Client, Row, Statement};

use super::query::queries;
use super::track::Track;
use super::{CopyIn, CopyOut, Rows, Sql};
use crate::error::QueryError;

/// A transaction: committed by [`commit`](Self::commit), rolled back when it is dropped.
#[must_use = "a transaction that is dropped at once is rolled back"]
pub struct Transaction<'a> {
    inner: deadpool_postgres::Transaction<'a>,
    track: Track<'a>,
}

impl<'a> Transaction<'a> {
    pub(super) fn new(inner: deadpool_postgres::Transaction<'a>, track: Track<'a>) -> Self {
        Self { inner, track }
    }

    queries!();

    /// A prepared statement from the connection's cache, as
    /// [`Connection::prepare_cached`](crate::Connection::prepare_cached).
    ///
    /// # Errors
    /// As [`query`](Self::query).
    pub async fn prepare_cached(&self, sql: &str) -> Result<Statement, QueryError> {
        self.track.prepare(sql, self.inner.prepare_cached(sql)).await
    }

    /// Makes it last.
    ///
    /// # Errors
    /// [`QueryError::RolledBack`] when a statement had failed before: PostgreSQL answers such a `COMMIT` with a rollback
    /// and no error. Else as [`query`](Self::query); the transaction is rolled back then, unless the connection was
    /// lost meanwhile: then only the server knows.
    pub async fn commit(self) -> Result<(), QueryError> {
        if self.track.doubt.has_failures() {
            // Only the end of the failed statement's answer tells whether the transaction failed with it.
            let fence = self.inner.client().check_connection();
            self.track.run(Some("SYNC"), fence).await?;
            if self.track.status.is_failed() {
                self.rollback().await?;
                return Err(QueryError::RolledBack);
            }
        }
        // A deadline that has passed is the last word before COMMIT; once that is sent, its answer is waited for.
        let commit = self.track.begin(Some("COMMIT"))?;
        self.track.to_the_end().finish(commit, self.inner.commit()).await
    }

    /// Undoes it, and waits for that: also for a query before it that timed out and still runs. To be spared that, drop the
    /// transaction: it is undone too, and what runs is cancelled when the connection comes back.
    ///
    /// # Errors
    /// As [`query`](Self::query); it is undone all the same.
    pub async fn rollback(self) -> Result<(), QueryError> {
        self.track.run(Some("ROLLBACK"), self.inner.rollback()).await
    }

    /// One that was left before its end.
    pub(super) fn has_a_query_running(&self) -> bool {
        self.track.doubt.running.load(Relaxed)
    }

    fn client(&self) -> &tokio_postgres::Transaction<'a> {
        &self.inner
    }

    fn driver(&self) -> &Client {
        self.inner.client()
    }

    fn track(&self) -> Track<'_> {
        self.track
    }
}

impl fmt::Debug for Transaction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction").finish_non_exhaustive()
    }
}
