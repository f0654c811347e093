//! The service the layer makes.

use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Request, Response};
use tower_service::Service;

use super::headers::Headers;
use super::{Classify, Respond, ResponseFuture, StatusOnly, Unclassed};
use crate::gate::{Attempt, Gate, Verdict};
use crate::terms::{Class, Terms};

/// Asks the gate about each request and passes on what is admitted. Made by
/// [`AdaptivePoolLayer`](super::AdaptivePoolLayer).
#[derive(Clone, Debug)]
pub struct AdaptivePoolService<S, R = StatusOnly, C = Unclassed> {
    inner: S,
    asking: Asking<R, C>,
}

/// How a layer and its services ask, and answer.
#[derive(Clone)]
pub(super) struct Asking<R, C> {
    pub gate: Gate,
    pub responder: R,
    pub classifier: C,
    /// Shared, and only there where headers are looked at: a service may be cloned for each request.
    pub headers: Option<Arc<Headers>>,
    pub pool_status: bool,
}

impl<S, R, C> AdaptivePoolService<S, R, C> {
    pub(super) fn new(inner: S, asking: Asking<R, C>) -> Self {
        Self { inner, asking }
    }
}

impl<R, C> Asking<R, C> {
    /// A request's class and deadline, from its extensions, its headers and the classifier. What was found out is put into
    /// its extensions, for those who acquire for it.
    fn terms<B>(&self, request: &mut Request<B>) -> (Terms, Option<Attempt>)
    where
        C: Classify<B>,
    {
        let given = Terms::of(request.extensions());
        let mut terms = given;
        if let Some(class) = self.classifier.classify(request) {
            terms.class = class;
        }
        let mut attempt = None;
        if let Some(headers) = &self.headers {
            terms = terms.until(headers.deadline(request.headers()));
            // A layer further out may have seen the retry already: once is enough.
            if request.extensions().get::<SeenAsRetry>().is_none() {
                attempt = headers.attempt(request.headers());
            }
            if attempt == Some(Attempt::Retry) {
                terms.class = terms.class.lowered();
                request.extensions_mut().insert(SeenAsRetry);
            }
        }
        if terms != given {
            // Both are in the terms now; what is put in after this is newer, and counts.
            request.extensions_mut().remove::<Class>();
            request.extensions_mut().insert(terms);
        }
        (terms, attempt)
    }
}

/// In a request's extensions: it was lowered as a retry.
#[derive(Clone, Copy, Debug)]
struct SeenAsRetry;

/// As gRPC over HTTP/2 tells its calls from other requests.
fn grpc_kind(headers: &HeaderMap) -> Option<&HeaderValue> {
    headers.get(CONTENT_TYPE).filter(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

impl<S, R, C, B, Body> Service<Request<B>> for AdaptivePoolService<S, R, C>
where
    S: Service<Request<B>, Response = Response<Body>>,
    R: Respond<Body>,
    C: Classify<B>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, Body>;

    /// The inner service's readiness and nothing else: no permit is ever parked here.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let asking = &self.asking;
        let (terms, attempt) = asking.terms(&mut request);
        let status = asking.pool_status.then(|| asking.gate.clone());
        match asking.gate.decide(terms, attempt) {
            Verdict::Admit => ResponseFuture::inner(self.inner.call(request), status),
            Verdict::Shed(shed) => {
                let responder = &asking.responder;
                let mut response = match grpc_kind(request.headers()) {
                    None => responder.respond(&shed),
                    Some(kind) => {
                        let mut response = responder.respond_grpc(&shed);
                        response.headers_mut().insert(CONTENT_TYPE, kind.clone());
                        response
                    }
                };
                response.extensions_mut().insert(shed);
                ResponseFuture::shed(response, status)
            }
        }
    }
}

impl<R, C> std::fmt::Debug for Asking<R, C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Asking")
            .field("gate", &self.gate)
            .field("headers", &self.headers)
            .finish_non_exhaustive()
    }
}
