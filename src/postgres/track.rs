//! A query under way: counted once, under `query_timeout`, and a doubt about its session until it has ended.

use std::future::Future;
use std::sync::atomic::Ordering::Relaxed;

use tokio::time::{Instant, timeout};

use super::Postgres;
use super::session::Doubt;
use super::wire::Status;
use crate::error::QueryError;
use crate::gate::Gate;
use crate::gate::ledger::QueryEnd;
use crate::observe::Event;

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
        self.finish(self.begin(text)?, query).await
    }

    /// Prepares a statement under `query_timeout`. Only a failure counts as a query: a request whose statement is
    /// cached has sent nothing, and one whose statement is not has yet to send its query.
    pub async fn prepare<T>(
        self,
        text: &str,
        prepare: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, QueryError> {
        self.finish(self.watch(Some(text), true)?, prepare).await
    }

    pub fn begin<'t>(self, text: Option<&'t str>) -> Result<Running<'a, 't>, QueryError> {
        let running = self.watch(text, false)?;
        self.gate.queries().started();
        Ok(running)
    }

    fn watch<'t>(self, text: Option<&'t str>, preparing: bool) -> Result<Running<'a, 't>, QueryError> {
        if self.doubt.out_of_step.load(Relaxed) {
            return Err(QueryError::CopyUnfinished);
        }
        Ok(Running { track: self, text, started: Instant::now(), preparing, ended: false })
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
