//! A query under way: counted once, under `query_timeout`, and a doubt about its session until it has ended.

use std::future::Future;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::Postgres;
use super::session::Doubt;
use super::wire::Status;
use crate::error::QueryError;
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

/// What tracking a query needs: where it is counted, how long it may take, and whose doubt it is until it has ended.
#[derive(Clone, Copy)]
pub(super) struct Track<'a> {
    pub gate: &'a Gate,
    pub backend: &'a Postgres,
    pub doubt: &'a Doubt,
    pub status: &'a Status,
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
        self.finish(self.begin(text)?, query).await
    }

    /// Prepares a statement under the same limit. Only a failure counts as a query: a request whose statement is
    /// cached has sent nothing, and one whose statement is not has yet to send its query.
    pub async fn prepare<T>(
        self,
        text: &str,
        prepare: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, QueryError> {
        self.finish(self.watch(Some(text), true)?.in_time()?, prepare).await
    }

    pub fn begin<'t>(self, text: Option<&'t str>) -> Result<Running<'a, 't>, QueryError> {
        let running = self.watch(text, false)?;
        self.gate.queries().started();
        running.in_time()
    }

    fn watch<'t>(self, text: Option<&'t str>, preparing: bool) -> Result<Running<'a, 't>, QueryError> {
        if self.doubt.out_of_step.load(Relaxed) {
            return Err(QueryError::CopyUnfinished);
        }
        Ok(Running { track: self, text, started: Instant::now(), preparing, ended: false })
    }

    pub async fn finish<T>(
        self,
        running: Running<'_, '_>,
        query: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, QueryError> {
        match timeout_at(self.limit.next(), query).await {
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
                if error.is_the_servers_own() {
                    self.track.gate.use_failed();
                }
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

    pub fn time_out(self) -> QueryError {
        self.track.doubt.running.store(true, Relaxed);
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
        self.track.doubt.unread.store(true, Relaxed);
        self.ended(QueryEnd::Cancelled);
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
