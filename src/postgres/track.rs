//! A query under way: counted once, under `query_timeout`, and a doubt about its session until it has ended.

use std::future::Future;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::Postgres;
use super::doubt::Doubt;
use super::session::Known;
use super::statement::is_stale;
use crate::error::{QueryError, query};
use crate::gate::Gate;
use crate::gate::ledger::QueryEnd;
use crate::observe::Event;
use crate::terms::{Deadline, after};

/// How long a query may take: `query_timeout` for each step of it, and all together until its request's deadline.
#[derive(Clone, Copy)]
pub(super) struct Limit {
    pub each: Duration,
    pub until: Option<Deadline>,
}

impl Limit {
    /// By when the step that begins now must have ended.
    pub fn next(self) -> Instant {
        let next = after(Instant::now(), self.each);
        self.until.map_or(next, |until| next.min(until.instant()))
    }

    pub fn has_passed(self) -> bool {
        self.until.is_some_and(|until| until.remaining().is_zero())
    }
}

/// What tracking a query needs: where it is counted, how long it may take, and whose session is in doubt until it has ended.
#[derive(Clone, Copy)]
pub(super) struct Track<'a> {
    pub gate: &'a Gate,
    pub backend: &'a Postgres,
    pub known: &'a Known,
    /// Of the use that it belongs to.
    pub failed: &'a AtomicBool,
    pub limit: Limit,
}

impl<'a> Track<'a> {
    /// Without the request's deadline: for what must be brought to its end once it has begun.
    pub fn to_the_end(self) -> Self {
        Self { limit: Limit { until: None, ..self.limit }, ..self }
    }

    /// Runs one query to its end under its limit.
    pub async fn run<T>(
        self,
        text: Option<&str>,
        query: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, QueryError> {
        self.finish(self.begin(text, Sends::Text)?, query).await
    }

    /// Prepares a statement under the same limit. Only a failure counts as a query: a request whose statement is
    /// cached has sent nothing, and one whose statement is not has yet to send its query.
    pub async fn prepare<T>(
        self,
        text: &str,
        prepare: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, QueryError> {
        self.finish(self.begin(Some(text), Sends::ToBePrepared)?, prepare).await
    }

    /// A query begins, unless its answer could not be told from others, or its deadline has passed.
    pub fn begin<'t>(self, text: Option<&'t str>, sends: Sends) -> Result<Running<'a, 't>, QueryError> {
        let doubts = &self.known.doubts;
        if doubts.has(Doubt::OutOfStep) {
            return Err(QueryError::CopyUnfinished);
        }
        if doubts.has_stream() {
            return Err(QueryError::StreamOpen);
        }
        if sends != Sends::ToBePrepared {
            self.gate.queries().started();
        }
        let (number, started) = (doubts.begin(), Instant::now());
        let running = Running { track: self, text, number, started, sends, opened: false, ended: false };
        running.in_time()
    }

    pub async fn finish<T>(
        self,
        running: Running<'_, '_>,
        query: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, QueryError> {
        let (value, running) = self.begun(running, query).await?;
        running.end(Ok(value))
    }

    /// Waits until everything that was sent before has been answered. To be called while nothing else is under way.
    pub async fn fence(self, client: &Client) -> Result<(), QueryError> {
        self.run(Some("SYNC"), client.check_connection()).await?;
        self.known.doubts.all_has_ended();
        Ok(())
    }

    /// The first half of [`finish`](Self::finish): its answer has begun, or it has ended.
    pub async fn begun<'r, 't, T>(
        self,
        running: Running<'r, 't>,
        query: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<(T, Running<'r, 't>), QueryError> {
        match timeout_at(self.limit.next(), query).await {
            Ok(Ok(value)) => Ok((value, running)),
            Ok(Err(error)) => Err(running.end_with(error)),
            Err(_) => Err(running.time_out()),
        }
    }
}

/// What a query under way sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sends {
    /// A text.
    Text,
    /// A statement that was prepared before, and so may be stale.
    Statement,
    /// A statement to be prepared, which is not counted unless it fails.
    ToBePrepared,
}

/// A query under way. Dropped before its end it is cancelled, here and, once its connection comes back, on the server.
pub(super) struct Running<'a, 't> {
    track: Track<'a>,
    text: Option<&'t str>,
    number: u32,
    started: Instant,
    sends: Sends,
    /// Its caller has begun to read the answer.
    opened: bool,
    ended: bool,
}

impl Running<'_, '_> {
    pub fn end<T>(mut self, outcome: Result<T, tokio_postgres::Error>) -> Result<T, QueryError> {
        match outcome {
            Ok(value) => {
                // What was to be prepared may have been in the cache: then nobody was asked.
                if self.sends != Sends::ToBePrepared {
                    self.track.known.doubts.answered(self.number);
                }
                self.ended(QueryEnd::Ok);
                Ok(value)
            }
            Err(error) => Err(self.end_with(error)),
        }
    }

    pub fn end_with(self, error: tokio_postgres::Error) -> QueryError {
        self.doubt_after(&error);
        self.fail(QueryError::Postgres(error))
    }

    /// A COMMIT, about to be sent.
    pub fn commits(&self) {
        self.track.known.doubts.commit(self.number);
    }

    /// Answered, and all the same failed.
    pub fn end_by(self, error: QueryError) -> QueryError {
        self.track.known.doubts.answered(self.number);
        self.fail(error)
    }

    /// Failed, with nothing left running.
    pub fn fail(mut self, error: QueryError) -> QueryError {
        let timed_out = error.is_timeout();
        self.ended(if timed_out { QueryEnd::TimedOut } else { QueryEnd::Failed });
        if timed_out {
            self.tell(error.code());
        }
        error
    }

    /// What an error says of its session.
    pub fn doubt_after(&self, error: &tokio_postgres::Error) {
        let Known { status, doubts, cache } = self.track.known;
        doubts.add(Doubt::Unread);
        if error.as_db_error().is_some() {
            doubts.answered(self.number);
        }
        if query::is_the_servers_own(error) {
            self.track.gate.use_failed(self.track.failed);
        }
        if query::ends_the_session(error) {
            doubts.add(Doubt::Lost);
        }
        if error.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION) {
            doubts.add(Doubt::ReadOnly);
        }
        if self.sends == Sends::Statement && is_stale(error) {
            cache.forget();
        }
        // The driver did not expect a COPY: data that still come, or a server that waits for them.
        if error.as_db_error().is_none() && status.is_copying() {
            doubts.add(Doubt::Running);
            if status.is_copying_in() {
                doubts.add(Doubt::OutOfStep);
                doubts.add(Doubt::Unwanted);
            }
        }
    }

    /// Its outcome is unknown from here on, and it may still run.
    pub fn time_out(self) -> QueryError {
        self.track.known.doubts.add(Doubt::Running);
        self.track.known.doubts.add(Doubt::Abandoned);
        self.not_begun()
    }

    /// Only before the deadline: past it nothing is sent.
    fn in_time(self) -> Result<Self, QueryError> {
        if self.track.limit.has_passed() { Err(self.not_begun()) } else { Ok(self) }
    }

    /// The deadline has passed before anything was sent.
    fn not_begun(mut self) -> QueryError {
        self.ended(QueryEnd::TimedOut);
        let limit = self.track.limit;
        let error = QueryError::Timeout(if limit.has_passed() { self.started.elapsed() } else { limit.each });
        self.tell(error.code());
        error
    }

    /// Given up in an orderly way: nothing is left running.
    pub fn give_up(mut self) {
        self.track.known.doubts.add(Doubt::Unread);
        self.ended(QueryEnd::Cancelled);
    }

    /// Failed with this error of ours, while the rest of its answer is still to come.
    pub fn leave(mut self, error: QueryError) -> QueryError {
        self.track.known.doubts.add(Doubt::Running);
        self.ended(QueryEnd::Failed);
        error
    }

    /// Its caller reads the answer from here on.
    pub fn opened(mut self) -> Self {
        self.opened = true;
        self
    }

    fn ended(&mut self, end: QueryEnd) {
        self.ended = true;
        self.track.known.doubts.end();
        self.tell_if_slow();
        let ledger = self.track.gate.queries();
        match (self.sends == Sends::ToBePrepared, end) {
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
            if std::thread::panicking() {
                // A parameter that panics while it is written leaves half a message in the driver's buffer.
                self.track.known.doubts.add(Doubt::Lost);
            }
            self.track.known.doubts.add(Doubt::Running);
            // A stream that is left has told its caller what it does.
            if !self.opened {
                self.track.known.doubts.add(Doubt::Abandoned);
            }
            self.ended(QueryEnd::Cancelled);
        }
    }
}
