//! The layer: decides on each request before any work is done, synchronously, in `call`.

mod classify;
mod decided;
mod future;
mod headers;
mod response;
mod service;
mod status;

use std::fmt;
use std::sync::Arc;

use tower_layer::Layer;

use crate::config::ConfigError;
use crate::gate::GateHandle;

pub use classify::{Classify, Unclassed};
pub use future::ResponseFuture;
pub use response::{ProblemJson, Respond, StatusOnly};
pub use service::AdaptivePoolService;

use headers::{Headers, header_name};
use service::Asking;

/// Puts a gate in front of a service: what cannot be served in time is answered at once.
///
/// Every service made by this layer, by a clone of it, or by another layer over the same pool asks the same gate: a
/// router that calls `layer` once for each route still has one queue. A request that passes two layers over the same pool, as
/// in nested routers, is judged and counted once, by the outer one: its class and its deadline hold, and the inner one can
/// only find an earlier deadline. Layers over two pools know nothing of each other's verdicts.
///
/// Made from a pool or a limiter, it and its services keep that alive; made from a [`Gate`](crate::Gate) they do not, and refuse
/// everything as [`Draining`](crate::ShedReason::Draining) once its pool is gone.
///
/// The service's error type is unchanged, and it needs neither `Clone` nor a box.
///
/// ```
/// # use tower_adaptive_pool::{AdaptivePoolLayer, Limiter};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use tower::{ServiceBuilder, service_fn};
/// # let limiter = Limiter::builder().build()?;
/// let service = ServiceBuilder::new()
///     .layer(AdaptivePoolLayer::new(limiter.clone()))
///     .service(service_fn(async |_: http::Request<()>| {
///         Ok::<_, std::convert::Infallible>(http::Response::new(String::from("served")))
///     }));
/// # let _ = service;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct AdaptivePoolLayer<R = StatusOnly, C = Unclassed> {
    asking: Asking<R, C>,
}

impl AdaptivePoolLayer {
    /// A layer that asks the gate of this pool or limiter, and refuses with a 503 that has headers only.
    pub fn new(gate: impl Into<GateHandle>) -> Self {
        let (responder, classifier) = (StatusOnly::default(), Unclassed::default());
        let asking = Asking { gate: gate.into(), responder, classifier, headers: None, pool_status: false };
        Self { asking }
    }
}

impl<R, C> AdaptivePoolLayer<R, C> {
    /// The same layer with another response to a refusal: [`ProblemJson`], any `Fn(&Shed) -> http::Response<_>` whose body has a
    /// `Default`, or a [`Respond`]. Should it panic, the answer is 500. gRPC calls are answered without it.
    #[must_use]
    pub fn with_responder<N>(self, responder: N) -> AdaptivePoolLayer<N, C> {
        let Asking { gate, classifier, headers, pool_status, .. } = self.asking;
        AdaptivePoolLayer { asking: Asking { gate, responder, classifier, headers, pool_status } }
    }

    /// The same layer with classes: of those that arrive the lowest are refused first, and of those that wait the higher
    /// are served first, if their handlers acquire with [`acquire_for`](crate::AdaptivePool::acquire_for), as `Db` does.
    ///
    /// A classifier is any `Fn(&http::Request<B>) -> Class`, or a [`Classify`]. Should it panic, its request is served as one
    /// that it knows nothing of.
    ///
    /// ```
    /// # use http::{Method, Request};
    /// # use tower_adaptive_pool::{AdaptivePoolLayer, Class, Limiter};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let limiter = Limiter::builder().build()?;
    /// let layer = AdaptivePoolLayer::new(limiter.clone())
    ///     .with_classifier(|request: &Request<axum::body::Body>| match request.uri().path() {
    ///         "/health" => Class::Exempt,
    ///         "/checkout" => Class::Critical,
    ///         "/export" => Class::Background,
    ///         _ if request.method() == Method::OPTIONS => Class::Exempt,
    ///         _ => Class::High,
    ///     });
    /// # let _ = layer.with_deadline_header("grpc-timeout")?.with_retry_header("x-retry")?.with_pool_status();
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn with_classifier<N>(self, classifier: N) -> AdaptivePoolLayer<R, N> {
        let Asking { gate, responder, headers, pool_status, .. } = self.asking;
        AdaptivePoolLayer { asking: Asking { gate, responder, classifier, headers, pool_status } }
    }

    /// Takes a request's time budget from this header: `grpc-timeout` in gRPC's format, any other in whole milliseconds.
    /// May be called several times; the shortest counts. It can only shorten what `acquire_timeout` and `query_timeout` allow.
    ///
    /// A value that cannot be read is as if it were not there, and so is `0` in milliseconds, which many mean as "no limit". A
    /// `grpc-timeout` of zero is a deadline that has passed: such a request is refused as [`Expired`](crate::ShedReason).
    ///
    /// # Errors
    /// When that is not the name of a header.
    pub fn with_deadline_header(mut self, name: &str) -> Result<Self, ConfigError> {
        let name = header_name("deadline_header", name)?;
        self.headers().deadlines.push(name);
        Ok(self)
    }

    /// Tells retries by this header, which they have with another value than `0`: they enter one class lower, and while nothing
    /// is free they are refused when they make up more than a tenth of the first attempts.
    ///
    /// gRPC's clients send `grpc-previous-rpc-attempts`. A header that counts from 1 for the first attempt, such as Envoy's
    /// `x-envoy-attempt-count`, will not do.
    ///
    /// # Errors
    /// When that is not the name of a header.
    pub fn with_retry_header(mut self, name: &str) -> Result<Self, ConfigError> {
        let name = header_name("retry_header", name)?;
        self.headers().retry = Some(name);
        Ok(self)
    }

    /// Sends [`Snapshot`](crate::Snapshot)'s numbers as JSON in the header `X-Pool-Status` of every response. It tells
    /// strangers how much the service can take: meant for tests and for services behind others of one's own.
    #[must_use]
    pub fn with_pool_status(mut self) -> Self {
        self.asking.pool_status = true;
        self
    }

    fn headers(&mut self) -> &mut Headers {
        Arc::make_mut(self.asking.headers.get_or_insert_default())
    }
}

impl<S, R: Clone, C: Clone> Layer<S> for AdaptivePoolLayer<R, C> {
    type Service = AdaptivePoolService<S, R, C>;

    fn layer(&self, inner: S) -> Self::Service {
        AdaptivePoolService::new(inner, self.asking.clone())
    }
}

impl<R, C> fmt::Debug for AdaptivePoolLayer<R, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AdaptivePoolLayer").field(&self.asking).finish()
    }
}
