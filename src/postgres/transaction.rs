//! A transaction on a tracked connection. Whether it is stored is asked of the server, and never guessed.

use std::fmt;

use tokio::time::{Instant, timeout_at};
use tokio_postgres::Row;
use tokio_postgres::error::{Severity, SqlState};
use tokio_postgres::types::{BorrowToSql, ToSql};

use super::ask::Ask;
use super::doubt::Doubt;
use super::query::queries;
use super::status::Ending;
use super::track::{Sends, Track};
use super::{CopyIn, CopyOut, Rows, Sql, Statement};
use crate::error::QueryError;

/// A transaction: committed by [`commit`](Self::commit), rolled back when it is dropped.
#[must_use = "a transaction that is dropped at once is rolled back"]
pub struct Transaction<'a> {
    inner: tokio_postgres::Transaction<'a>,
    track: Track<'a>,
    accepts_abandoned: bool,
}

impl<'a> Transaction<'a> {
    /// `inner` has begun.
    pub(super) fn new(inner: tokio_postgres::Transaction<'a>, track: Track<'a>) -> Self {
        Self { inner, track, accepts_abandoned: false }
    }

    queries!();

    /// Lets [`commit`](Self::commit) store what became of statements that were given up: that timed out, or whose futures
    /// were dropped. Without it a transaction with such a statement is not committed
    /// ([`QueryError::StatementAbandoned`]), because the server may have finished what its caller was told had failed.
    ///
    /// `commit` then waits up to `query_timeout` for those statements to end, and the transaction is stored with them, or,
    /// if one of them failed, not at all ([`QueryError::RolledBack`]).
    pub fn accept_abandoned(&mut self) {
        self.accepts_abandoned = true;
    }

    /// Makes it last. `Ok` is the server's own word: it has answered `COMMIT`.
    ///
    /// A `COMMIT` that was sent is waited for as long as `query_timeout`, past the request's deadline too, and is never
    /// cancelled: not by us, nor by dropping this future. Its connection keeps its place until the server has answered.
    ///
    /// # Errors
    /// Nothing is stored, except where [`CommitUnknown`](QueryError::CommitUnknown) says that nobody knows. (Where statements
    /// given as text end the transaction, see the table in `docs/RELIABILITY.md`: of `rollback; commit` in one text, or of a
    /// `COMMIT` as text that was given up, `commit` cannot tell what became.)
    ///
    ///
    /// - [`QueryError::StatementAbandoned`] when a statement was given up before it had ended: it timed out, or its future
    ///   was dropped ([`accept_abandoned`](Self::accept_abandoned)). A stream of rows that was left is none of these: the
    ///   server says whether it failed.
    /// - [`QueryError::RolledBack`] when a statement had failed, seen or unseen, or the transaction had been rolled back
    ///   with a statement given as text.
    /// - [`QueryError::NoTransaction`] when there is none any more for another reason.
    /// - [`QueryError::Timeout`] when the deadline had passed before `COMMIT` was sent, or what had been left running
    ///   did not end within `query_timeout`.
    /// - [`QueryError::CopyUnfinished`] when a COPY was left before its end, and [`QueryError::StreamOpen`] when a stream was
    ///   forgotten.
    /// - [`QueryError::CommitUnknown`] when `COMMIT` was sent, and its answer did not come in time or not at all. Who must know
    ///   keeps the transaction's number:
    ///
    /// ```no_run
    /// # use tower_adaptive_pool::{AdaptivePool, Postgres, QueryError};
    /// # async fn f(pool: AdaptivePool<Postgres>) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut connection = pool.acquire().await?;
    /// let transaction = connection.transaction().await?;
    /// transaction.execute("update accounts set cents = cents - 100 where id = 1", &[]).await?;
    /// let number: String = transaction.query_one("select pg_current_xact_id()::text", &[]).await?.get(0);
    /// if let Err(QueryError::CommitUnknown { .. }) = transaction.commit().await {
    ///     let question = "select pg_xact_status($1::text::xid8)";
    ///     let other = pool.acquire().await?;
    ///     // "committed", "aborted", "in progress"; NULL long afterwards. Before PostgreSQL 13: txid_current, txid_status.
    ///     let state: Option<String> = other.query_one(question, &[&number]).await?.get(0);
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// - Else as [`query`](Self::query): the server refused, for a deferred constraint, say.
    pub async fn commit(self) -> Result<(), QueryError> {
        let known = self.track.known;
        if known.status.is_idle() && known.status.ending() == Some(Ending::Committed) {
            // As text, by its user.
            return Ok(());
        }
        if known.doubts.has(Doubt::Abandoned) && !self.accepts_abandoned {
            return Err(QueryError::StatementAbandoned);
        }
        if known.doubts.is_unread() || self.inner.client().is_closed() {
            // Only the end of what was left tells whether the transaction failed with it. And before that end no COMMIT may
            // be sent: it would wait there, and nobody could take it back.
            self.track.fence(self.inner.client()).await?;
        }
        if known.status.is_open() {
            return self.send_commit().await;
        }
        if known.status.is_failed() {
            // Should this fail, the connection is settled before anybody else gets it.
            let _ = self.rollback().await;
            return Err(QueryError::RolledBack);
        }
        // As text, by its user; or by an error that is the end of a transaction.
        match known.status.ending() {
            Some(Ending::Committed) => Ok(()),
            Some(Ending::RolledBack) => Err(QueryError::RolledBack),
            None => Err(QueryError::NoTransaction),
        }
    }

    async fn send_commit(self) -> Result<(), QueryError> {
        let Self { inner, track, .. } = self;
        let known = track.known;
        // A deadline that has passed is the last word before COMMIT; once that is sent, its answer is waited for.
        let commit = track.begin(Some("COMMIT"), Sends::Text)?;
        commit.commits();
        let started = Instant::now();
        let unknown =
            |timed_out, cause| QueryError::CommitUnknown { waited: started.elapsed(), timed_out, cause };
        let answer = timeout_at(track.to_the_end().limit.next(), inner.commit()).await;
        // The tag has the last word: after it, an error is none of the transaction's.
        match (known.status.ending(), answer) {
            (Some(Ending::Committed), answer) => {
                if let Ok(Err(error)) = &answer {
                    commit.doubt_after(error);
                }
                commit.end(Ok(()))
            }
            (Some(Ending::RolledBack), _) => Err(commit.end_by(QueryError::RolledBack)),
            (None, Ok(Ok(()))) => Err(commit.fail(unknown(false, None))),
            (None, Ok(Err(error))) if says_no(&error) => Err(commit.end_with(error)),
            (None, Ok(Err(error))) => {
                commit.doubt_after(&error);
                Err(commit.fail(unknown(false, Some(error))))
            }
            (None, Err(_)) => Err(commit.fail(unknown(true, None))),
        }
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
        self.track.known.doubts.is_running()
    }

    fn ask(&self) -> Ask<'_> {
        Ask { client: self.inner.client(), track: self.track }
    }
}

/// Whether this answer to COMMIT means that nothing is stored. An error does, but not one that ends the session, which may
/// come after the fact, nor one that says that the outcome is unknown: 40003, and class 08, with which proxies tell that
/// the connection behind them was lost.
fn says_no(error: &tokio_postgres::Error) -> bool {
    let Some(said) = error.as_db_error() else { return false };
    let is_unknown =
        *said.code() == SqlState::T_R_STATEMENT_COMPLETION_UNKNOWN || said.code().code().starts_with("08");
    // Not every proxy sends the severity that is not translated.
    let is_error =
        said.parsed_severity().map_or(said.severity() == "ERROR", |severity| severity == Severity::Error);
    is_error && !is_unknown
}

impl fmt::Debug for Transaction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction").finish_non_exhaustive()
    }
}
