//! The layer: decides on each request before any work is done, synchronously, in `call`.

mod future;
mod response;
mod service;

use tower_layer::Layer;

use crate::gate::Gate;

pub use future::ResponseFuture;
#[cfg(feature = "axum")]
pub(crate) use response::refusal;
pub use response::{Respond, StatusOnly};
pub use service::AdaptivePoolService;

/// Puts a gate in front of a service: what cannot be served in time is answered at once.
///
/// Every service made by this layer, by a clone of it, or by another layer over the same pool asks the same gate: a
/// router that calls `layer` once for each route still has one queue.
///
/// It does not keep the pool alive: once the last handle on that is dropped, everything is refused.
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
#[derive(Clone, Debug)]
pub struct AdaptivePoolLayer<R = StatusOnly> {
    gate: Gate,
    responder: R,
}

impl AdaptivePoolLayer {
    /// A layer that asks the gate of this pool or limiter, and refuses with a 503 that has headers only.
    pub fn new(gate: impl Into<Gate>) -> Self {
        Self { gate: gate.into(), responder: StatusOnly::default() }
    }
}

impl<R> AdaptivePoolLayer<R> {
    /// The same layer with another response to a refusal: any `Fn(&Shed) -> http::Response<_>` will do.
    #[must_use]
    pub fn with_responder<N>(self, responder: N) -> AdaptivePoolLayer<N> {
        AdaptivePoolLayer { gate: self.gate, responder }
    }
}

impl<S, R: Clone> Layer<S> for AdaptivePoolLayer<R> {
    type Service = AdaptivePoolService<S, R>;

    fn layer(&self, inner: S) -> Self::Service {
        AdaptivePoolService::new(inner, self.gate.clone(), self.responder.clone())
    }
}
