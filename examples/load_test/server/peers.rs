//! What others put in front of a pool of a fixed size.

use std::time::Duration;

use axum::{
    BoxError, Router,
    error_handling::HandleErrorLayer,
    http::{StatusCode, header::RETRY_AFTER},
    response::{IntoResponse, Response},
};
use little_loadshedder::{LoadShedLayer, LoadShedResponse};
use tower::{ServiceBuilder, limit::GlobalConcurrencyLimitLayer, load_shed};

use crate::args::PoolSpec;

/// Waiters that look harmless, and stand for two seconds of work.
const NAIVE_CAP: usize = 1_600;
/// little-loadshedder aims at a mean latency: half of what its clients bear. The weight is that of its own example.
const LITTLE: (f64, Duration) = (0.01, Duration::from_millis(50));

pub fn in_front_of(router: Router, pool: PoolSpec) -> Router {
    match pool {
        // LoadShed + ConcurrencyLimit: as many at once as there are connections, the rest is refused.
        PoolSpec::LoadShed(size) => capped(router, size.get()),
        // The same with room for many to wait, and nothing that looks at the time.
        PoolSpec::Naive(size) => capped(router, size.get() + NAIVE_CAP),
        PoolSpec::Little(_) => {
            let answer = |response: LoadShedResponse<Response>| match response {
                LoadShedResponse::Inner(response) => response,
                LoadShedResponse::Overload => refusal(),
            };
            let (weight, target) = LITTLE;
            let layers = ServiceBuilder::new().map_response(answer).layer(LoadShedLayer::new(weight, target));
            router.layer(layers)
        }
        _ => router,
    }
}

fn capped(router: Router, at_once: usize) -> Router {
    let layers = ServiceBuilder::new()
        .layer(HandleErrorLayer::new(async |_: BoxError| refusal()))
        .layer(load_shed::LoadShedLayer::new())
        .layer(GlobalConcurrencyLimitLayer::new(at_once));
    router.layer(layers)
}

fn refusal() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, "1")]).into_response()
}
