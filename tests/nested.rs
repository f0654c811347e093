//! Requests that pass two layers: over one pool, as in nested routers, and over two pools.

mod support;

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use futures_util::FutureExt;
use http::{HeaderMap, Request, Response, StatusCode};
use support::line::{assert_ledgers_add_up, line_up, one_permit};
use tower::buffer::Buffer;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_adaptive_pool::{AdaptivePoolLayer, Admissions, Class, Deadline, Limiter, Shed, ShedReason, Terms};

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// Answers with the terms it finds.
async fn tell(request: Request<()>) -> Result<Response<Terms>, Infallible> {
    Ok(Response::new(Terms::of(request.extensions())))
}

fn of(class: Class) -> impl Fn(&Request<()>) -> Class + Clone {
    move |_| class
}

fn ask<S>(service: &mut S, request: Request<()>) -> Response<Terms>
where
    S: Service<Request<()>, Response = Response<Terms>, Error = Infallible>,
{
    let answer = service.call(request).now_or_never().expect("the answer is there at once");
    answer.unwrap_or_else(|never| match never {})
}

fn shed(response: &Response<Terms>) -> Option<ShedReason> {
    response.extensions().get::<Shed>().map(|shed| shed.reason)
}

fn retry() -> Request<()> {
    Request::builder().header("x-retry", "1").body(()).unwrap()
}

#[track_caller]
fn assert_admissions(limiter: &Limiter, admitted: u64, shed: u64) {
    let seen = limiter.gate().snapshot();
    let Admissions { arrivals, admitted: let_in, shed: refused, .. } = seen.admissions;
    assert_eq!((arrivals, let_in, refused), (admitted + shed, admitted, shed));
    assert_ledgers_add_up(&seen);
}

#[tokio::test(start_paused = true)]
async fn a_request_through_two_layers_over_one_pool_is_counted_once() {
    let limiter = one_permit(9, 9);
    let layer = AdaptivePoolLayer::new(limiter.clone());
    let mut service = layer.layer(AdaptivePoolLayer::new(limiter.clone()).layer(service_fn(tell)));
    for _ in 0..5 {
        assert_eq!(ask(&mut service, Request::new(())).status(), StatusCode::OK);
    }
    assert_admissions(&limiter, 5, 0);
    // The same through a queue in between, from which another task takes them.
    let inner = Buffer::new(layer.layer(service_fn(tell)), 3);
    let mut service = layer.layer(inner);
    for _ in 0..5 {
        let answer = service.ready().await.unwrap().call(Request::new(())).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
    }
    assert_admissions(&limiter, 10, 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_through_nested_routers_with_a_layer_each_is_counted_once_and_beside_them_too() {
    let limiter = one_permit(9, 9);
    let layer = AdaptivePoolLayer::new(limiter.clone());
    let inner = Router::new().route("/inner", get(async || "served")).layer(layer.clone());
    let innermost = Router::new().route("/inner", get(async || "served").layer(layer.clone()));
    let app = Router::new()
        .route("/", get(async || "served"))
        .nest("/two", inner.clone())
        .nest("/three", innermost.layer(layer.clone()))
        .nest_service("/service", inner)
        .layer(layer);
    let mut asked = 0;
    for path in ["/", "/two/inner", "/three/inner", "/service/inner"] {
        for _ in 0..3 {
            let request = Request::get(path).body(Body::empty()).unwrap();
            assert_eq!(app.clone().oneshot(request).await.unwrap().status(), StatusCode::OK, "{path}");
            asked += 1;
            assert_admissions(&limiter, asked, 0);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn between_the_caps_the_share_refused_by_two_layers_over_one_pool_is_the_ramp_once() {
    const DRAWS: u64 = 4_000;
    let limiter = one_permit(10, 20);
    let _held = limiter.try_acquire().unwrap();
    let _line = line_up(&limiter, 15);
    let layer = AdaptivePoolLayer::new(limiter.clone());
    let mut service = layer.layer(layer.layer(service_fn(tell)));
    let refused = (0..DRAWS).filter(|_| shed(&ask(&mut service, Request::new(()))).is_some()).count() as u64;
    let (part, sigma) = (refused as f64 / DRAWS as f64, (0.25 / DRAWS as f64).sqrt());
    assert!((part - 0.5).abs() < 4.0 * sigma, "{part}");
    assert_admissions(&limiter, DRAWS - refused, refused);
}

#[tokio::test(start_paused = true)]
async fn a_retry_through_two_layers_over_one_pool_is_lowered_and_paid_for_once() {
    let limiter = one_permit(50, 100);
    let _held = limiter.try_acquire().unwrap();
    let _line = line_up(&limiter, 1);
    let layer = AdaptivePoolLayer::new(limiter.clone()).with_retry_header("x-retry").unwrap();
    let layer = layer.with_classifier(of(Class::Critical));
    let mut service = layer.layer(layer.layer(service_fn(tell)));
    for _ in 0..10 {
        let answer = ask(&mut service, retry());
        assert_eq!((shed(&answer), answer.body().class), (None, Class::High), "ten to begin with");
    }
    assert_eq!(shed(&ask(&mut service, retry())), Some(ShedReason::RetryBudget));
    // Ten first attempts pay for one more, not for two.
    for _ in 0..10 {
        assert_eq!(shed(&ask(&mut service, Request::new(()))), None);
    }
    assert_eq!(shed(&ask(&mut service, retry())), None);
    assert_eq!(shed(&ask(&mut service, retry())), Some(ShedReason::RetryBudget));
}

#[tokio::test(start_paused = true)]
async fn of_two_layers_over_one_pool_the_outer_class_holds_and_the_inner_can_only_shorten_the_deadline() {
    let limiter = one_permit(9, 9);
    let layer = AdaptivePoolLayer::new(limiter.clone());
    let inner = layer.clone().with_classifier(of(Class::Background));
    let inner = inner.with_deadline_header("x-inner-ms").unwrap();
    let outer = layer.with_classifier(of(Class::Critical)).with_deadline_header("x-outer-ms").unwrap();
    let mut service = outer.layer(inner.layer(service_fn(tell)));
    for (outer, inner, expected) in [
        (None, None, None),
        (Some("9000"), None, Some(secs(9))),
        (None, Some("5000"), Some(secs(5))),
        (Some("9000"), Some("5000"), Some(secs(5))),
        (Some("5000"), Some("9000"), Some(secs(5))),
    ] {
        let mut headers = HeaderMap::new();
        headers.extend([("x-outer-ms", outer), ("x-inner-ms", inner)].into_iter().filter_map(
            |(name, value)| {
                Some((http::HeaderName::from_static(name), http::HeaderValue::from_static(value?)))
            },
        ));
        let mut request = Request::new(());
        *request.headers_mut() = headers;
        let terms = *ask(&mut service, request).body();
        let left = terms.deadline.map(Deadline::remaining);
        assert_eq!((terms.class, left), (Class::Critical, expected), "{outer:?} and {inner:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_outer_layer_exempts_the_inner_one_over_the_same_pool_does_not_refuse() {
    let limiter = one_permit(1, 1);
    let _held = limiter.try_acquire().unwrap();
    let _line = line_up(&limiter, 1);
    let layer = AdaptivePoolLayer::new(limiter.clone());
    let mut service =
        layer.clone().with_classifier(of(Class::Exempt)).layer(layer.clone().layer(service_fn(tell)));
    assert_eq!(shed(&ask(&mut service, Request::new(()))), None);
    let mut service = layer.clone().layer(layer.with_classifier(of(Class::Exempt)).layer(service_fn(tell)));
    assert_eq!(shed(&ask(&mut service, Request::new(()))), Some(ShedReason::HardCap));
    assert_admissions(&limiter, 1, 1);
}

#[tokio::test(start_paused = true)]
async fn two_layers_over_two_pools_each_judge_count_and_charge_for_themselves() {
    let (front, back) = (one_permit(50, 100), one_permit(50, 100));
    let full = |limiter: &Limiter| (limiter.try_acquire().unwrap(), line_up(limiter, 1));
    let layer =
        |limiter: &Limiter| AdaptivePoolLayer::new(limiter.clone()).with_retry_header("x-retry").unwrap();
    let (outer, inner) = (layer(&front), layer(&back).with_classifier(of(Class::Critical)));
    let inside = inner.layer(service_fn(tell));
    let mut service = outer.layer(inside.clone());
    // Each of them over another service as well: both mark what they let in.
    let (_other, mut alone) = (outer.layer(service_fn(tell)), inner.layer(service_fn(tell)));

    let _busy = full(&back);
    for _ in 0..10 {
        let answer = ask(&mut service, retry());
        assert_eq!(
            (shed(&answer), answer.body().class),
            (None, Class::High),
            "lowered by each, from its own"
        );
    }
    assert_eq!(shed(&ask(&mut service, retry())), Some(ShedReason::RetryBudget), "of the inner one");
    assert_eq!(shed(&ask(&mut alone, retry())), Some(ShedReason::RetryBudget), "it is the same budget");
    assert_admissions(&front, 11, 0);
    assert_admissions(&back, 10, 2);

    // What the outer one refuses does not reach the inner one.
    let (_held, mut line) = full(&front);
    line.extend(line_up(&front, 99));
    assert_eq!(shed(&ask(&mut service, Request::new(()))), Some(ShedReason::HardCap));
    assert_admissions(&front, 11, 1);
    assert_admissions(&back, 10, 2);
}

#[tokio::test(start_paused = true)]
async fn a_class_that_a_layer_over_another_pool_has_lowered_is_not_lowered_again() {
    let (front, back) = (one_permit(9, 9), one_permit(9, 9));
    let outer = AdaptivePoolLayer::new(front).with_retry_header("x-retry").unwrap();
    let inner = AdaptivePoolLayer::new(back).with_retry_header("x-retry").unwrap();
    let mut service = outer.with_classifier(of(Class::Critical)).layer(inner.layer(service_fn(tell)));
    assert_eq!(ask(&mut service, retry()).body().class, Class::High);
}
