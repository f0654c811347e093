//! Rows as they come, tracked until the last one.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep_until};
use tokio_postgres::{Row, RowStream};

use super::track::{Limit, Running};
use crate::error::QueryError;

pin_project! {
    /// The rows of a query as they come: a [`Stream`].
    ///
    /// Dropped before its end, the query counts as cancelled, and is cancelled on the server before its connection is
    /// handed on.
    #[must_use = "a stream that is dropped at once cancels its query"]
    pub struct Rows<'a> {
        #[pin]
        stream: RowStream,
        // `None` once the query has ended.
        query: Option<Running<'a, 'a>>,
        limit: Limit,
        #[pin]
        timer: Sleep,
    }
}

impl<'a> Rows<'a> {
    pub(super) fn new(rows: RowStream, running: Running<'a, 'a>, limit: Limit) -> Self {
        Self { stream: rows, query: Some(running), limit, timer: sleep_until(limit.next()) }
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
                    let running = this.query.take();
                    running.and_then(|running| running.end::<Row>(Err(error)).err()).map(Err)
                }
                None => {
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
