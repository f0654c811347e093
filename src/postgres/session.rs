//! A tracked connection: what is under way on it is known, so that its state can be told when it comes back.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use deadpool_postgres::ClientWrapper;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use tokio_postgres::types::{BorrowToSql, ToSql};
use tokio_postgres::{Client, Row, Statement};

use super::dial::Dial;
use super::wire::Status;
use super::{DialError, Postgres, Rows, Sql, Transaction};
use crate::backend::{ConnectionState, Place};
use crate::error::QueryError;
use crate::gate::Gate;
use crate::gate::ledger::QueryEnd;
use crate::observe::Event;
use crate::pool::Connection;

/// One PostgreSQL session, with what is known about it. Queries go through [`Connection`].
pub struct Session {
    client: ClientWrapper,
    status: Arc<Status>,
    doubt: Doubt,
    /// Shared with the stream: the place is taken until both are gone, whichever goes first.
    _place: Arc<Place>,
    /// Dropped with the session: the connection's task learns that nobody waits for answers any more.
    _in_use: oneshot::Sender<()>,
}

/// What a session's next user must be spared.
#[derive(Debug, Default)]
pub(super) struct Doubt {
    /// `raw()` was used, or the server has gone away or become read-only: of no more use.
    lost: AtomicBool,
    /// A query was left before its end, and may be running: to be cancelled.
    running: AtomicBool,
    /// A query failed: the driver says so before the end of the server's answer, which alone tells whether a
    /// transaction is open. To be fenced.
    unread: AtomicBool,
}

impl Doubt {
    fn is_any(&self) -> bool {
        self.running.load(Relaxed) || self.has_failures()
    }

    pub fn has_failures(&self) -> bool {
        self.unread.load(Relaxed)
    }
}

impl Session {
    pub(super) fn new(
        client: ClientWrapper,
        status: Arc<Status>,
        place: Arc<Place>,
        in_use: oneshot::Sender<()>,
    ) -> Self {
        Self { client, status, doubt: Doubt::default(), _place: place, _in_use: in_use }
    }

    pub(super) fn state(&self) -> ConnectionState {
        if self.doubt.lost.load(Relaxed) || self.client.is_closed() {
            ConnectionState::Dead
        } else if self.doubt.is_any() || !self.status.is_idle() {
            ConnectionState::Settle
        } else {
            ConnectionState::Ready
        }
    }

    /// A round trip.
    pub(super) async fn check(&self) -> Result<(), tokio_postgres::Error> {
        self.client.check_connection().await
    }

    /// Cancels what still runs; then a fence (what was sent before it has been answered after it), and the end of any
    /// transaction left open.
    ///
    /// The cancel has been acted upon before the fence is sent, and nobody else has the connection until the fence has
    /// come back: it cannot hit anybody else's query.
    pub(super) async fn settle(&mut self, dialer: &dyn Dial) -> Result<(), DialError> {
        if self.doubt.running.load(Relaxed) {
            dialer.cancel(self.client.cancel_token()).await?;
        }
        self.client.check_connection().await.map_err(DialError::Postgres)?;
        if !self.status.is_idle() {
            self.client.batch_execute("ROLLBACK").await.map_err(DialError::Postgres)?;
        }
        self.doubt = Doubt::default();
        Ok(())
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("state", &self.state()).finish_non_exhaustive()
    }
}

/// What tracking a query needs: where it is counted, how long it may take, and whose doubt it is until it has ended.
#[derive(Clone, Copy)]
pub(super) struct Track<'a> {
    pub gate: &'a Gate,
    pub backend: &'a Postgres,
    pub doubt: &'a Doubt,
    pub status: &'a Status,
}

impl<'a> Track<'a> {
    /// Runs one query to its end under `query_timeout`.
    pub async fn run<T>(
        self,
        text: Option<&str>,
        query: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, QueryError> {
        self.finish(self.begin(text), query).await
    }

    /// Prepares a statement under `query_timeout`. Only a failure counts as a query: a request whose statement is
    /// cached has sent nothing, and one whose statement is not has yet to send its query.
    pub async fn prepare<T>(
        self,
        text: &str,
        prepare: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, QueryError> {
        self.finish(self.watch(Some(text), true), prepare).await
    }

    pub fn begin<'t>(self, text: Option<&'t str>) -> Running<'a, 't> {
        self.gate.queries().started();
        self.watch(text, false)
    }

    fn watch<'t>(self, text: Option<&'t str>, preparing: bool) -> Running<'a, 't> {
        Running { track: self, text, started: Instant::now(), preparing, ended: false }
    }

    async fn finish<T>(
        self,
        running: Running<'_, '_>,
        query: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, QueryError> {
        match timeout(self.backend.query_timeout, query).await {
            Ok(outcome) => running.end(outcome),
            Err(_) => Err(running.time_out()),
        }
    }
}

/// A query under way. Dropped before its end it is cancelled, here and, once its connection comes back, on the server.
pub(super) struct Running<'a, 't> {
    track: Track<'a>,
    text: Option<&'t str>,
    started: Instant,
    /// Not counted yet.
    preparing: bool,
    ended: bool,
}

impl Running<'_, '_> {
    pub fn end<T>(mut self, outcome: Result<T, tokio_postgres::Error>) -> Result<T, QueryError> {
        let outcome = outcome.map_err(QueryError::Postgres);
        match &outcome {
            Ok(_) => self.ended(QueryEnd::Ok),
            Err(error) => {
                self.track.doubt.unread.store(true, Relaxed);
                if error.ends_the_session() {
                    self.track.doubt.lost.store(true, Relaxed);
                }
                let timed_out = error.is_timeout();
                self.ended(if timed_out { QueryEnd::TimedOut } else { QueryEnd::Failed });
                if timed_out {
                    self.tell(error.code());
                }
            }
        }
        outcome
    }

    pub fn time_out(mut self) -> QueryError {
        self.track.doubt.running.store(true, Relaxed);
        self.ended(QueryEnd::TimedOut);
        let error = QueryError::Timeout(self.track.backend.query_timeout);
        self.tell(error.code());
        error
    }

    fn ended(&mut self, end: QueryEnd) {
        self.ended = true;
        self.tell_if_slow();
        let ledger = self.track.gate.queries();
        match (self.preparing, end) {
            (true, QueryEnd::Ok) => return,
            (true, _) => ledger.started(),
            (false, _) => {}
        }
        ledger.ended(end);
    }

    fn tell_if_slow(&self) {
        let Some(bound) = self.track.backend.slow_query_after else { return };
        let (ran, text) = (self.started.elapsed(), self.text);
        if ran >= bound {
            let server = &self.track.backend.server;
            self.track.gate.observe(|| Event::SlowQuery { ran, text, server });
        }
    }

    fn tell(&self, code: &str) {
        let server = &self.track.backend.server;
        let (ran, text) = (self.started.elapsed(), self.text);
        self.track.gate.observe(|| Event::QueryTimedOut { ran, text, code, server });
    }
}

impl Drop for Running<'_, '_> {
    fn drop(&mut self) {
        if !self.ended {
            self.track.doubt.running.store(true, Relaxed);
            self.ended(QueryEnd::Cancelled);
        }
    }
}

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
            let running = self.track().begin(sql.text());
            let limit = self.track().backend.query_timeout;
            match timeout(limit, self.client().query_raw(sql, params)).await {
                Ok(Ok(rows)) => Ok(Rows::new(rows, running, limit)),
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
        let (session, gate, backend) = self.parts();
        let track = Track { gate, backend, doubt: &session.doubt, status: &session.status };
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
                // Should this fail, the connection is settled before anybody else gets it; the first error tells more.
                let _ = transaction.rollback().await;
                Err(error)
            }
        }
    }

    /// The client underneath, for everything else (`LISTEN`, `COPY`). Its cancel token does not know the server's address:
    /// give `cancel_query_raw` a stream of your own.
    ///
    /// What is done with it cannot be tracked, so the connection is not handed on afterwards: it is closed when it
    /// comes back.
    pub fn raw(&mut self) -> &mut Client {
        let (session, ..) = self.parts();
        session.doubt.lost.store(true, Relaxed);
        &mut session.client
    }

    fn session(&self) -> &Session {
        self
    }

    fn client(&self) -> &Client {
        &self.session().client
    }

    fn track(&self) -> Track<'_> {
        let Session { doubt, status, .. } = self.session();
        Track { gate: self.gate(), backend: self.backend(), doubt, status }
    }
}
