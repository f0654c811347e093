//! Rows as they come, tracked until the last one.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep_until};
use tokio_postgres::{Row, RowStream};

use super::doubt::Held;
use super::track::{Limit, Running};
use crate::error::QueryError;

pin_project! {
    /// The rows of a query as they come: a [`Stream`].
    ///
    /// Dropped before its end, the query counts as cancelled, and is cancelled on the server before its connection is
    /// handed on.
    ///
    /// A connection has one answer at a time: while this is held, anything else asked of it fails at once
    /// ([`QueryError::StreamOpen`]), because its answer might wait for rows that nobody reads. Read the stream to its end,
    /// or take a second connection. When it is dropped, what is asked next of the same connection waits until the server
    /// has sent the rest: where that is long, give the connection back.
    #[must_use = "a stream that is dropped at once cancels its query"]
    pub struct Rows<'a> {
        #[pin]
        stream: RowStream,
        // `None` once the query has ended.
        query: Option<Running<'a, 'a>>,
        // `None` once the answer has.
        held: Option<Held<'a>>,
        limit: Limit,
        #[pin]
        timer: Sleep,
    }
}

impl<'a> Rows<'a> {
    pub(super) fn new(rows: RowStream, running: Running<'a, 'a>, held: Held<'a>, limit: Limit) -> Self {
        Self {
            stream: rows,
            query: Some(running.opened()),
            held: Some(held),
            limit,
            timer: sleep_until(limit.next()),
        }
    }
}

impl Stream for Rows<'_> {
    type Item = Result<Row, QueryError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut this = self.project();
        if this.query.is_none() {
            return Poll::Ready(None);
        }
        // The rows may come faster than they are read.
        if this.limit.has_passed() {
            return Poll::Ready(this.query.take().map(|running| Err(running.time_out())));
        }
        if let Poll::Ready(next) = this.stream.poll_next(cx) {
            return Poll::Ready(match next {
                Some(Ok(row)) => {
                    this.timer.reset(this.limit.next());
                    Some(Ok(row))
                }
                Some(Err(error)) => {
                    *this.held = None;
                    let running = this.query.take();
                    running.and_then(|running| running.end::<Row>(Err(error)).err()).map(Err)
                }
                None => {
                    *this.held = None;
                    let _ = this.query.take().map(|running| running.end(Ok(())));
                    None
                }
            });
        }
        ready!(this.timer.as_mut().poll(cx));
        Poll::Ready(this.query.take().map(|running| Err(running.time_out())))
    }
}

impl fmt::Debug for Rows<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rows").field("ended", &self.query.is_none()).finish_non_exhaustive()
    }
}
