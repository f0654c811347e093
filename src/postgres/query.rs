//! What is asked of a connection: the queries, and its transactions.

use tokio_postgres::types::{BorrowToSql, ToSql};
use tokio_postgres::{Client, Row};

use super::ask::Ask;
use super::session::Session;
use super::track::{Limit, Track};
use super::{CancelToken, CopyIn, CopyOut, Postgres, Rows, Sql, Statement, Transaction};
use crate::error::QueryError;
use crate::pool::Connection;

/// The queries, for a connection and for a transaction on it: the same methods over the same tracking.
macro_rules! queries {
    () => {
        /// All rows of a query.
        ///
        /// # Errors
        /// The server's error, or [`QueryError::Timeout`].
        pub async fn query<S: Sql + ?Sized>(
            &self,
            sql: &S,
            params: &[&(dyn ToSql + Sync)],
        ) -> Result<Vec<Row>, QueryError> {
            self.ask().query(sql, params).await
        }

        /// The one row of a query.
        ///
        /// # Errors
        /// As [`query`](Self::query); [`QueryError::NoRow`] or [`QueryError::TooManyRows`] when there is not exactly one row.
        pub async fn query_one<S: Sql + ?Sized>(
            &self,
            sql: &S,
            params: &[&(dyn ToSql + Sync)],
        ) -> Result<Row, QueryError> {
            self.ask().query_one(sql, params).await
        }

        /// The row of a query, if there is one.
        ///
        /// # Errors
        /// As [`query`](Self::query); [`QueryError::TooManyRows`] when there is more than one row. A second row is as far as
        /// it is read: what else there is, is cancelled when the connection comes back.
        pub async fn query_opt<S: Sql + ?Sized>(
            &self,
            sql: &S,
            params: &[&(dyn ToSql + Sync)],
        ) -> Result<Option<Row>, QueryError> {
            self.ask().query_opt(sql, params).await
        }

        /// The rows of a query as they come. When the stream is dropped before its end, the query is cancelled on the
        /// server before anybody else gets the connection.
        ///
        /// # Errors
        /// As [`query`](Self::query), here and for each row; `query_timeout` holds between two rows.
        pub async fn query_raw<'c, S, P, I>(&'c self, sql: &'c S, params: I) -> Result<Rows<'c>, QueryError>
        where
            S: Sql + ?Sized,
            P: BorrowToSql,
            I: IntoIterator<Item = P>,
            I::IntoIter: ExactSizeIterator,
        {
            self.ask().query_raw(sql, params).await
        }

        /// Begins a `COPY … FROM STDIN`: rows in, as fast as the server takes them. Nothing of it is stored unless it is
        /// [`finish`](CopyIn::finish)ed.
        ///
        /// A refusal by the server (no such table, say) may cost the connection, which then takes no more queries
        /// ([`QueryError::CopyUnfinished`]): tokio-postgres gets out of step by it.
        ///
        /// A statement that the server has forgotten is not prepared again here.
        ///
        /// # Errors
        /// As [`query`](Self::query).
        pub async fn copy_in<'c, S: Sql + ?Sized>(&'c self, sql: &'c S) -> Result<CopyIn<'c>, QueryError> {
            self.ask().copy_in(sql).await
        }

        /// Begins a `COPY … TO STDOUT`: its data as they come. When the stream is dropped before its end, the query is
        /// cancelled on the server before anybody else gets the connection.
        ///
        /// # Errors
        /// As [`query`](Self::query), here and for each piece; `query_timeout` holds between two pieces. For the server's own
        /// limit over the whole, see [`Postgres::query_timeout`](crate::Postgres::query_timeout).
        pub async fn copy_out<'c, S: Sql + ?Sized>(&'c self, sql: &'c S) -> Result<CopyOut<'c>, QueryError> {
            self.ask().copy_out(sql).await
        }

        /// Runs a statement and returns how many rows it changed.
        ///
        /// # Errors
        /// As [`query`](Self::query).
        pub async fn execute<S: Sql + ?Sized>(
            &self,
            sql: &S,
            params: &[&(dyn ToSql + Sync)],
        ) -> Result<u64, QueryError> {
            self.ask().execute(sql, params).await
        }

        /// Runs several statements, separated by semicolons, without parameters.
        ///
        /// # Errors
        /// As [`query`](Self::query).
        pub async fn batch_execute(&self, sql: &str) -> Result<(), QueryError> {
            self.ask().batch_execute(sql).await
        }

        /// A prepared statement from this connection's cache, prepared now if it is not there yet.
        ///
        /// The cache keeps every text it was given for as long as the connection lives: use it for texts that are fixed in
        /// the program.
        ///
        /// When the server no longer takes a statement (0A000 after `ALTER TABLE`, 26000 after `DISCARD ALL`, XX000,
        /// 42883, 42804 or 42704 after a type was dropped or changed), the connection forgets all it has prepared. Outside a transaction the statement is then
        /// prepared again and tried once more, before its first row; a transaction has failed by the error, and the next
        /// one prepares anew. So each connection fails once at most.
        ///
        /// # Errors
        /// As [`query`](Self::query).
        pub async fn prepare_cached(&self, sql: &str) -> Result<Statement, QueryError> {
            self.ask().prepare_cached(sql).await
        }
    };
}
pub(super) use queries;

impl Connection<Postgres> {
    queries!();

    /// Begins a transaction. It is rolled back unless it is committed.
    ///
    /// # Errors
    /// As [`query`](Self::query).
    pub async fn transaction(&mut self) -> Result<Transaction<'_>, QueryError> {
        let deadline = self.deadline();
        let (session, gate, backend, failed) = self.parts();
        let limit = Limit { each: backend.query_timeout, until: deadline };
        let Session { client, known, .. } = session;
        let track = Track { gate, backend, known, failed, limit };
        if known.doubts.is_unread() {
            // What was left running before is none of the transaction's statements, unless one was begun as text.
            track.run(Some("SYNC"), client.check_connection()).await?;
            if known.status.is_idle() {
                known.doubts.all_has_ended();
            }
        }
        let inner = track.run(Some("BEGIN"), client.transaction()).await?;
        Ok(Transaction::new(inner, track))
    }

    /// Runs `work` in a transaction: committed when it is `Ok`, rolled back when it is `Err`, panics or is dropped.
    ///
    /// ```no_run
    /// # use tower_adaptive_pool::{AdaptivePool, Postgres, QueryError};
    /// # async fn f(pool: AdaptivePool<Postgres>) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut connection = pool.acquire().await?;
    /// connection
    ///     .in_transaction(async |transaction| {
    ///         transaction.execute("update accounts set cents = cents - 100 where id = 1", &[]).await?;
    ///         transaction.execute("update accounts set cents = cents + 100 where id = 2", &[]).await?;
    ///         Ok::<_, QueryError>(())
    ///     })
    ///     .await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// What `work` fails with; or beginning or committing fails.
    pub async fn in_transaction<T, E: From<QueryError>>(
        &mut self,
        work: impl AsyncFnOnce(&mut Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut transaction = self.transaction().await?;
        match work(&mut transaction).await {
            Ok(done) => {
                transaction.commit().await?;
                Ok(done)
            }
            Err(error) => {
                // A query that timed out still runs: dropped, the transaction is undone when that has been cancelled.
                if !transaction.has_a_query_running() {
                    // Should this fail, the connection is settled before anybody else gets it; the first error tells more.
                    let _ = transaction.rollback().await;
                }
                Err(error)
            }
        }
    }

    /// The client underneath, for everything else (`LISTEN`, say).
    ///
    /// What is done with it cannot be tracked. So [`Postgres::after_raw`] decides whether the connection is closed when
    /// it comes back, which is the default, or cleaned of what is under way and kept with its session state. Leave the
    /// client where it is: one that was swapped for another is not noticed.
    ///
    /// To cancel what it runs, take [`cancel_token`](Self::cancel_token). The client's own token does not know the server's
    /// address, and with [`AfterRaw::Keep`](super::AfterRaw::Keep) the server does not know it either: kept beyond this
    /// use, it would cancel somebody else's query.
    pub fn raw(&mut self) -> &mut Client {
        let (session, _, backend, _) = self.parts();
        session.used_raw(backend.after_raw);
        &mut session.client
    }

    /// Cancels what runs on this connection, from anywhere, until the connection is given back. To be taken before a
    /// transaction begins, which has the connection to itself. A connection with a token is settled when it comes back: a
    /// round trip in the background.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use tower_adaptive_pool::{AdaptivePool, Postgres};
    /// # async fn f(pool: AdaptivePool<Postgres>) -> Result<(), Box<dyn std::error::Error>> {
    /// let connection = pool.acquire().await?;
    /// let token = connection.cancel_token();
    /// let after_a_second = async {
    ///     tokio::time::sleep(Duration::from_secs(1)).await;
    ///     token.cancel().await
    /// };
    /// let (rows, cancelled) = tokio::join!(connection.query("select pg_sleep(3)", &[]), after_a_second);
    /// cancelled?;
    /// assert_eq!(rows.unwrap_err().code(), "57014");
    /// # Ok(()) }
    /// ```
    pub fn cancel_token(&self) -> CancelToken {
        self.session().cancel_token(self.backend().dialer.clone())
    }

    fn session(&self) -> &Session {
        self
    }

    fn ask(&self) -> Ask<'_> {
        let Session { client, known, .. } = self.session();
        let limit = Limit { each: self.backend().query_timeout, until: self.deadline() };
        let (gate, backend, failed) = (self.gate(), self.backend(), self.told_failed());
        Ask { client, track: Track { gate, backend, known, failed, limit } }
    }
}
