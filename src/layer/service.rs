//! The service the layer makes.

use std::task::{Context, Poll};

use http::{Request, Response};
use tower_service::Service;

use super::{Respond, ResponseFuture};
use crate::gate::{Gate, Verdict};

/// Asks the gate about each request and passes on what is admitted. Made by
/// [`AdaptivePoolLayer`](super::AdaptivePoolLayer).
#[derive(Clone, Debug)]
pub struct AdaptivePoolService<S, R> {
    inner: S,
    gate: Gate,
    responder: R,
}

impl<S, R> AdaptivePoolService<S, R> {
    pub(super) fn new(inner: S, gate: Gate, responder: R) -> Self {
        Self { inner, gate, responder }
    }
}

impl<S, R, B, Body> Service<Request<B>> for AdaptivePoolService<S, R>
where
    S: Service<Request<B>, Response = Response<Body>>,
    R: Respond<Body>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, Body>;

    /// The inner service's readiness and nothing else: no permit is ever parked here.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        match self.gate.admit() {
            Verdict::Admit => ResponseFuture::inner(self.inner.call(request)),
            Verdict::Shed(shed) => {
                let mut response = self.responder.respond(&shed);
                response.extensions_mut().insert(shed);
                ResponseFuture::shed(response)
            }
        }
    }
}
