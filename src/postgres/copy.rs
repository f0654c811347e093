//! COPY in and out, tracked until the server has ended it.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_core::Stream;
use futures_sink::Sink;
use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep_until, timeout, timeout_at};
use tokio_postgres::{Client, CopyInSink, CopyOutStream, Error};

use super::doubt::{Doubt, Doubts, Held};
use super::session::is_in_step;
use super::track::{Limit, Running, Track};
use crate::error::QueryError;

/// A `COPY … FROM STDIN` under way: [`send`](Self::send) what the statement's format asks for, in pieces of any size, then
/// [`finish`](Self::finish).
///
/// Dropped before that, it counts as cancelled and nothing of it is stored (only the server knows, outside a transaction, when
/// the future of `finish` is what was dropped); so with [`abort`](Self::abort), after which
/// this connection or transaction can go on at once, while after a drop it answers no query any more
/// ([`QueryError::CopyUnfinished`]) until it was settled for the next user. While it is held nothing else can be asked of
/// its connection ([`QueryError::StreamOpen`]).
#[must_use = "a COPY that is dropped at once stores nothing"]
pub struct CopyIn<'a> {
    sink: Pin<Box<CopyInSink<Bytes>>>,
    step: Step<'a>,
    client: &'a Client,
    limit: Limit,
    /// Nothing else is asked until it is known to be in step.
    _held: Held<'a>,
}

/// Until the COPY has ended and the driver is known to be in step, it is in doubt.
struct Step<'a> {
    /// `None` once it is over.
    query: Option<Running<'a, 'a>>,
    doubts: &'a Doubts,
    known: bool,
}

impl Step<'_> {
    /// Over: by the server's error, or else by a time-out.
    async fn fail(&mut self, error: Option<Error>, client: &Client, limit: Limit) -> QueryError {
        let Some(query) = self.query.take() else { return QueryError::CopyUnfinished };
        let Some(error) = error else { return query.time_out() };
        let failed = query.end::<()>(Err(error)).err().unwrap_or(QueryError::CopyUnfinished);
        self.prove(client, limit).await;
        failed
    }

    /// After a COPY that was not completed: asks whether the next answer is the right one.
    async fn prove(&mut self, client: &Client, limit: Limit) {
        self.known = matches!(timeout(limit.each, is_in_step(client)).await, Ok(true));
    }
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        // Not to be cancelled: with its sink it has ended by itself.
        if let Some(query) = self.query.take() {
            query.give_up();
        }
        if !self.known {
            self.doubts.add(Doubt::OutOfStep);
        }
    }
}

impl<'a> CopyIn<'a> {
    pub(super) async fn begin(
        client: &'a Client,
        track: Track<'a>,
        query: Running<'a, 'a>,
        held: Held<'a>,
        begin: impl Future<Output = Result<CopyInSink<Bytes>, Error>>,
    ) -> Result<Self, QueryError> {
        let limit = track.limit;
        let mut step = Step { query: Some(query), doubts: &track.known.doubts, known: false };
        let error = match timeout_at(limit.next(), begin).await {
            Ok(Ok(sink)) => return Ok(Self { sink: Box::pin(sink), step, client, limit, _held: held }),
            Ok(Err(error)) => Some(error),
            Err(_) => None,
        };
        Err(step.fail(error, client, limit).await)
    }

    /// Sends a piece. Resolves when there is room for it; a send that is dropped before that has sent nothing.
    ///
    /// # Errors
    /// [`QueryError::Timeout`] when the server takes nothing for `query_timeout`; the time between two sends is the
    /// caller's own. The COPY is over then. What the server has against the data is told by [`finish`](Self::finish).
    pub async fn send(&mut self, data: impl Into<Bytes>) -> Result<(), QueryError> {
        let data = data.into();
        if self.step.query.is_none() {
            return Err(QueryError::CopyUnfinished);
        }
        let room = timeout_at(self.limit.next(), poll_fn(|cx| self.sink.as_mut().poll_ready(cx))).await;
        let Some(query) = self.step.query.take() else { return Err(QueryError::CopyUnfinished) };
        let sent = match room {
            // The server may always have room.
            Ok(room) if !self.limit.has_passed() => room.and_then(|()| self.sink.as_mut().start_send(data)),
            Ok(_) | Err(_) => return Err(query.time_out()),
        };
        match sent {
            Ok(()) => {
                self.step.query = Some(query);
                Ok(())
            }
            Err(error) => Err(query.end_with(error)),
        }
    }

    /// Ends the data, and returns how many rows were stored.
    ///
    /// # Errors
    /// The server's error, about any of the data; [`QueryError::Timeout`] when the request's deadline has passed before, or
    /// it is not done `query_timeout` after the last piece. Nothing is stored then, except that outside a transaction only the
    /// server knows after `query_timeout`, and when the connection was lost.
    pub async fn finish(mut self) -> Result<u64, QueryError> {
        if self.step.query.is_none() {
            return Err(QueryError::CopyUnfinished);
        }
        if self.limit.has_passed() {
            return Err(self.too_late().await);
        }
        // As a COMMIT: once the end is sent, its answer is waited for.
        let limit = Limit { until: None, ..self.limit };
        let completed = timeout_at(limit.next(), complete(self.sink.as_mut())).await;
        let error = match completed {
            Ok(Ok(rows)) => {
                self.step.known = true;
                return self.step.query.take().map_or(Ok(rows), |query| query.end(Ok(rows)));
            }
            Ok(Err(error)) => Some(error),
            Err(_) => None,
        };
        Err(self.step.fail(error, self.client, self.limit).await)
    }

    /// Past the deadline it is given up, so that nothing is stored.
    async fn too_late(self) -> QueryError {
        let Self { sink, mut step, client, limit, .. } = self;
        drop(sink);
        let late = step.query.take().map_or(QueryError::CopyUnfinished, Running::time_out);
        step.prove(client, limit).await;
        late
    }

    /// Gives it up: nothing is stored. In a transaction, that has failed then.
    ///
    /// # Errors
    /// [`QueryError::CopyUnfinished`] when the server does not confirm it within `query_timeout`.
    pub async fn abort(self) -> Result<(), QueryError> {
        let Self { sink, mut step, client, limit, .. } = self;
        drop(sink);
        if let Some(query) = step.query.take() {
            query.give_up();
        }
        step.prove(client, limit).await;
        if step.known { Ok(()) } else { Err(QueryError::CopyUnfinished) }
    }
}

/// To the very end: what a deferred constraint has to say comes after the count of rows, where tokio-postgres's `finish`
/// does not look.
async fn complete(mut sink: Pin<&mut CopyInSink<Bytes>>) -> Result<u64, Error> {
    let rows = sink.as_mut().finish().await?;
    match sink.finish().await {
        Err(error) if !is_unexpected(&error) => Err(error),
        _ => Ok(rows),
    }
}

/// tokio-postgres found a message that it did not expect there, as we did.
fn is_unexpected(error: &Error) -> bool {
    error.as_db_error().is_none() && !error.is_closed()
}

impl fmt::Debug for CopyIn<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CopyIn").field("ended", &self.step.query.is_none()).finish_non_exhaustive()
    }
}

/// CommandComplete and ReadyForQuery, or an error instead: what comes after the end of the data.
const AFTER_THE_DATA: u8 = 2;

pin_project! {
    /// The data of a `COPY … TO STDOUT` as they come: a [`Stream`] of rows in the text format, of pieces in the others.
    ///
    /// Dropped before its end, the query counts as cancelled, and is cancelled on the server before its connection is
    /// handed on. While it is held nothing else can be asked of its connection ([`QueryError::StreamOpen`]).
    #[must_use = "a stream that is dropped at once cancels its query"]
    pub struct CopyOut<'a> {
        #[pin]
        stream: CopyOutStream,
        // `None` once the query has ended.
        query: Option<Running<'a, 'a>>,
        // `None` once the answer has.
        held: Option<Held<'a>>,
        // Messages to come after the data; 0 before their end.
        to_come: u8,
        limit: Limit,
        #[pin]
        timer: Sleep,
    }
}

impl<'a> CopyOut<'a> {
    pub(super) fn new(stream: CopyOutStream, query: Running<'a, 'a>, held: Held<'a>, limit: Limit) -> Self {
        Self {
            stream,
            query: Some(query.opened()),
            held: Some(held),
            to_come: 0,
            limit,
            timer: sleep_until(limit.next()),
        }
    }
}

impl Stream for CopyOut<'_> {
    type Item = Result<Bytes, QueryError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut this = self.project();
        while this.query.is_some() {
            // The data may come faster than they are read.
            if this.limit.has_passed() {
                return Poll::Ready(this.query.take().map(|query| Err(query.time_out())));
            }
            let Poll::Ready(next) = this.stream.as_mut().poll_next(cx) else {
                ready!(this.timer.as_mut().poll(cx));
                return Poll::Ready(this.query.take().map(|query| Err(query.time_out())));
            };
            match next {
                Some(Ok(data)) => {
                    this.timer.reset(this.limit.next());
                    return Poll::Ready(Some(Ok(data)));
                }
                None => *this.to_come = AFTER_THE_DATA,
                Some(Err(error)) if *this.to_come > 0 && is_unexpected(&error) => {
                    *this.to_come -= 1;
                    if *this.to_come == 0 {
                        *this.held = None;
                        let _ = this.query.take().map(|query| query.end(Ok(())));
                    }
                }
                Some(Err(error)) => {
                    *this.held = None;
                    let query = this.query.take();
                    return Poll::Ready(
                        query.and_then(|query| query.end::<Bytes>(Err(error)).err()).map(Err),
                    );
                }
            }
        }
        Poll::Ready(None)
    }
}

impl fmt::Debug for CopyOut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CopyOut").field("ended", &self.query.is_none()).finish_non_exhaustive()
    }
}
