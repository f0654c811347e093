//! What is asked of a connection: the queries, and its transactions.

use tokio::time::timeout_at;
use tokio_postgres::types::{BorrowToSql, ToSql};
use tokio_postgres::{Client, Row, Statement};

use super::session::Session;
use super::track::{Limit, Track};
use super::{CopyIn, CopyOut, Postgres, Rows, Sql, Transaction};
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
            self.track().run(sql.text(), self.client().query(sql, params)).await
        }

        /// The one row of a query.
        ///
        /// # Errors
        /// As [`query`](Self::query); also when there is not exactly one row.
        pub async fn query_one<S: Sql + ?Sized>(
            &self,
            sql: &S,
            params: &[&(dyn ToSql + Sync)],
        ) -> Result<Row, QueryError> {
            self.track().run(sql.text(), self.client().query_one(sql, params)).await
        }

        /// The row of a query, if there is one.
        ///
        /// # Errors
        /// As [`query`](Self::query); also when there is more than one row.
        pub async fn query_opt<S: Sql + ?Sized>(
            &self,
            sql: &S,
            params: &[&(dyn ToSql + Sync)],
        ) -> Result<Option<Row>, QueryError> {
            self.track().run(sql.text(), self.client().query_opt(sql, params)).await
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
            let running = self.track().begin(sql.text())?;
            let limit = self.track().limit;
            match timeout_at(limit.next(), self.client().query_raw(sql, params)).await {
                Ok(Ok(rows)) => Ok(Rows::new(rows, running, limit)),
                Ok(Err(error)) => running.end(Err(error)),
                Err(_) => Err(running.time_out()),
            }
        }

        /// Begins a `COPY … FROM STDIN`: rows in, as fast as the server takes them. Nothing of it is stored unless it is
        /// [`finish`](CopyIn::finish)ed.
        ///
        /// A refusal by the server (no such table, say) may cost the connection, which then takes no more queries
        /// ([`QueryError::CopyUnfinished`]): tokio-postgres gets out of step by it.
        ///
        /// # Errors
        /// As [`query`](Self::query).
        pub async fn copy_in<'c, S: Sql + ?Sized>(&'c self, sql: &'c S) -> Result<CopyIn<'c>, QueryError> {
            let (client, track) = (self.driver(), self.track());
            CopyIn::begin(client, track, track.begin(sql.text())?, self.client().copy_in(sql)).await
        }

        /// Begins a `COPY … TO STDOUT`: its data as they come. When the stream is dropped before its end, the query is
        /// cancelled on the server before anybody else gets the connection.
        ///
        /// # Errors
        /// As [`query`](Self::query), here and for each piece; `query_timeout` holds between two pieces. For the server's own
        /// limit over the whole, see [`Postgres::query_timeout`](crate::Postgres::query_timeout).
        pub async fn copy_out<'c, S: Sql + ?Sized>(&'c self, sql: &'c S) -> Result<CopyOut<'c>, QueryError> {
            let running = self.track().begin(sql.text())?;
            let limit = self.track().limit;
            match timeout_at(limit.next(), self.client().copy_out(sql)).await {
                Ok(Ok(data)) => Ok(CopyOut::new(data, running, limit)),
                Ok(Err(error)) => running.end(Err(error)),
                Err(_) => Err(running.time_out()),
            }
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
            self.track().run(sql.text(), self.client().execute(sql, params)).await
        }

        /// Runs several statements, separated by semicolons, without parameters.
        ///
        /// # Errors
        /// As [`query`](Self::query).
        pub async fn batch_execute(&self, sql: &str) -> Result<(), QueryError> {
            self.track().run(Some(sql), self.client().batch_execute(sql)).await
        }
    };
}
pub(super) use queries;

impl Connection<Postgres> {
    queries!();

    /// A prepared statement from this connection's cache, prepared now if it is not there yet.
    ///
    /// The cache keeps every text it was given for as long as the connection lives: use it for texts that are fixed in
    /// the program.
    ///
    /// # Errors
    /// As [`query`](Self::query).
    pub async fn prepare_cached(&self, sql: &str) -> Result<Statement, QueryError> {
        self.track().prepare(sql, self.session().client.prepare_cached(sql)).await
    }

    /// Begins a transaction. It is rolled back unless it is committed.
    ///
    /// # Errors
    /// As [`query`](Self::query).
    pub async fn transaction(&mut self) -> Result<Transaction<'_>, QueryError> {
        let deadline = self.deadline();
        let (session, gate, backend) = self.parts();
        let limit = Limit { each: backend.query_timeout, until: deadline };
        let track = Track { gate, backend, doubt: &session.doubt, status: &session.status, limit };
        let inner = track.run(Some("BEGIN"), session.client.transaction()).await?;
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

    /// The client underneath, for everything else (`LISTEN`, say). Its cancel token does not know the server's address:
    /// give `cancel_query_raw` a stream of your own.
    ///
    /// What is done with it cannot be tracked. So [`Postgres::after_raw`] decides whether the connection is closed when
    /// it comes back, which is the default, or cleaned of what is under way and kept with its session state. Leave the
    /// client where it is: one that was swapped for another is not noticed.
    pub fn raw(&mut self) -> &mut Client {
        let (session, _, backend) = self.parts();
        session.doubt.used_raw(backend.after_raw);
        &mut session.client
    }

    fn session(&self) -> &Session {
        self
    }

    fn client(&self) -> &Client {
        &self.session().client
    }

    fn driver(&self) -> &Client {
        self.client()
    }

    fn track(&self) -> Track<'_> {
        let Session { doubt, status, .. } = self.session();
        let limit = Limit { each: self.backend().query_timeout, until: self.deadline() };
        Track { gate: self.gate(), backend: self.backend(), doubt, status, limit }
    }
}
