//! The future of a request: the inner service's, or a refusal that is ready.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::Response;
use pin_project_lite::pin_project;

use super::status::{POOL_STATUS, pool_status};
use crate::gate::Gate;

pin_project! {
    /// The response to a request. Made by [`AdaptivePoolService`](super::AdaptivePoolService).
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F, B> {
        #[pin]
        kind: Kind<F, B>,
        // Where `X-Pool-Status` is switched on.
        status: Option<Gate>,
    }
}

pin_project! {
    #[project = KindProj]
    enum Kind<F, B> {
        Inner { #[pin] future: F },
        // `None` once it was taken.
        Shed { response: Option<Response<B>> },
    }
}

impl<F, B> ResponseFuture<F, B> {
    pub(super) fn inner(future: F, status: Option<Gate>) -> Self {
        Self { kind: Kind::Inner { future }, status }
    }

    pub(super) fn shed(response: Response<B>, status: Option<Gate>) -> Self {
        Self { kind: Kind::Shed { response: Some(response) }, status }
    }
}

impl<F, B, E> Future for ResponseFuture<F, B>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<B>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut outcome = match this.kind.project() {
            KindProj::Inner { future } => ready!(future.poll(cx)),
            KindProj::Shed { response } => match response.take() {
                Some(response) => Ok(response),
                // Polled again after it was ready, which no caller may do, it stays pending rather than panic.
                None => return Poll::Pending,
            },
        };
        if let (Some(gate), Ok(response)) = (this.status, &mut outcome)
            && let Some(status) = pool_status(&gate.snapshot())
        {
            response.headers_mut().insert(POOL_STATUS, status);
        }
        Poll::Ready(outcome)
    }
}

impl<F, B> std::fmt::Debug for ResponseFuture<F, B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
