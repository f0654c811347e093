//! The service the layer makes.

use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use tokio::time::Instant;
use tower_service::Service;

use super::decided::mark;
use super::headers::Headers;
use super::response::{broken, grpc_kind, grpc_refusal};
use super::{Classify, Respond, ResponseFuture, StatusOnly, Unclassed};
use crate::error::Shed;
use crate::gate::{Attempt, GateHandle, Verdict, guarded};
use crate::terms::{Class, Deadline, Terms};

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
    pub gate: GateHandle,
    pub responder: R,
    pub classifier: C,
    /// Shared, and only there where headers are looked at: a service may be cloned for each request.
    pub headers: Option<Arc<Headers>>,
    pub pool_status: bool,
}

impl<S, R, C> AdaptivePoolService<S, R, C> {
    pub(super) fn new(inner: S, asking: Asking<R, C>) -> Self {
        asking.gate.gate().layered();
        Self { inner, asking }
    }
}

impl<R, C> Asking<R, C> {
    /// The verdict on a request. A layer further out, over the same gate, may have let it in already: then it is neither
    /// judged nor counted again, keeps its class, and can only get an earlier deadline.
    fn decide<B>(&self, request: &mut Request<B>) -> Verdict
    where
        C: Classify<B>,
    {
        let gate = self.gate.gate();
        if gate.layered_number().is_none_or(|number| mark(request.extensions_mut(), number)) {
            let (terms, attempt, now) = self.terms(request);
            return gate.decide(terms, attempt, now);
        }
        let given = Terms::of(request.extensions());
        let earlier = self.headers.as_ref().and_then(|headers| deadline(headers, request).0);
        put(request, given, given.until(earlier));
        Verdict::Admit
    }

    /// A request's class and deadline, from its extensions, its headers and the classifier. What was found out is put into
    /// its extensions, for those who acquire for it. The time, where the clock was looked at.
    fn terms<B>(&self, request: &mut Request<B>) -> (Terms, Option<Attempt>, Option<Instant>)
    where
        C: Classify<B>,
    {
        let given = Terms::of(request.extensions());
        let class = guarded(|| self.classifier.classify(request)).flatten();
        let mut terms = Terms { class: class.unwrap_or(given.class), ..given };
        let (mut attempt, mut now) = (None, None);
        if let Some(headers) = &self.headers {
            let until;
            (until, now) = deadline(headers, request);
            terms = terms.until(until);
            attempt = headers.attempt(request.headers());
            if attempt == Some(Attempt::Retry) {
                let seen = request.extensions_mut().insert(SeenAsRetry).is_some();
                // A layer over another gate has lowered the class that it found: once is enough.
                if class.is_some() || !seen {
                    terms.class = terms.class.lowered();
                }
            }
        }
        put(request, given, terms);
        (terms, attempt, now)
    }

    /// The response to a refusal. Where the responder panics, 500.
    fn refuse<B, Body>(&self, request: &Request<B>, shed: Shed) -> Response<Body>
    where
        R: Respond<Body>,
    {
        let responder = &self.responder;
        let mut response = match grpc_kind(request.headers()) {
            None => guarded(|| responder.respond(&shed)).unwrap_or_else(|| broken(responder.empty())),
            Some(kind) => grpc_refusal(&shed, kind, responder.empty()),
        };
        response.extensions_mut().insert(shed);
        response
    }
}

/// The deadline that the headers speak of, and the time now, if they do.
fn deadline<B>(headers: &Headers, request: &Request<B>) -> (Option<Deadline>, Option<Instant>) {
    let budget = headers.budget(request.headers());
    let now = budget.map(|_| Instant::now());
    (now.zip(budget).map(|(now, budget)| Deadline::after(now, budget)), now)
}

/// Puts what was found out into a request's extensions, if it is something new.
fn put<B>(request: &mut Request<B>, given: Terms, terms: Terms) {
    if terms != given {
        // Both are in the terms now; what is put in after this is newer, and counts.
        request.extensions_mut().remove::<Class>();
        request.extensions_mut().insert(terms);
    }
}

/// In a request's extensions: it was lowered as a retry.
#[derive(Clone, Copy, Debug)]
struct SeenAsRetry;

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
        let verdict = asking.decide(&mut request);
        let status = asking.pool_status.then(|| asking.gate.gate().clone());
        match verdict {
            Verdict::Admit => ResponseFuture::inner(self.inner.call(request), status),
            Verdict::Shed(shed) => ResponseFuture::shed(asking.refuse(&request, shed), status),
        }
    }
}

impl<R, C> std::fmt::Debug for Asking<R, C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Asking")
            .field("gate", self.gate.gate())
            .field("headers", &self.headers)
            .finish_non_exhaustive()
    }
}
