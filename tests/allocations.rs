//! What costs no memory: an acquire, a wait, a request that is let in, a tick of the driver.

mod support;

use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::hint::black_box;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use allocation_counter::measure;
use axum::{Router, body::Body, routing::get};
use http::{Request, Response};
use support::sim::Sim;
use tokio::runtime::{Builder, Runtime};
use tokio::time::sleep;
use tower::util::MapResponseLayer;
use tower_adaptive_pool::{AdaptivePool, AdaptivePoolLayer};
use tower_layer::Layer;
use tower_service::Service;

/// Everything that is made once has been made by the first of them.
const ROUNDS: usize = 100;

/// A pool of `size` simulated connections, in a runtime on paused time.
fn pool(size: usize) -> (Runtime, AdaptivePool<Sim>) {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let pool = runtime.block_on(async {
        let pool = AdaptivePool::builder(Sim::default()).fixed_size(size).build().unwrap();
        pool.ready().await.unwrap();
        pool
    });
    (runtime, pool)
}

fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

fn allocated(round: impl Fn()) -> u64 {
    round();
    measure(|| (0..ROUNDS).for_each(|_| round())).count_total
}

#[test]
fn an_acquire_allocates_nothing() {
    let (runtime, pool) = pool(4);
    let _inside = runtime.enter();
    let acquire = || {
        let Poll::Ready(connection) = poll(pin!(pool.acquire())) else { panic!("there are idle ones") };
        drop(black_box(connection));
    };
    assert_eq!(allocated(acquire), 0);
    assert_eq!(allocated(|| drop(black_box(pool.try_acquire()))), 0);
}

#[test]
fn a_wait_that_is_served_or_given_up_allocates_nothing() {
    let (runtime, pool) = pool(1);
    let _inside = runtime.enter();
    let wait = || {
        let held = pool.try_acquire().unwrap();
        let mut served = pin!(pool.acquire());
        assert!(poll(served.as_mut()).is_pending());
        {
            let mut given_up = pin!(pool.acquire());
            assert!(poll(given_up.as_mut()).is_pending());
        }
        drop(held);
        assert!(poll(served).is_ready());
    };
    assert_eq!(allocated(wait), 0);
    assert_eq!(pool.snapshot().acquires.cancelled as usize, ROUNDS + 1);
}

/// A service that does nothing.
#[derive(Clone)]
struct Nothing;

impl Service<Request<()>> for Nothing {
    type Response = Response<()>;
    type Error = Infallible;
    type Future = Ready<Result<Response<()>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        ready(Ok(Response::new(())))
    }
}

#[test]
fn a_request_that_is_let_in_allocates_nothing() {
    let (_runtime, pool) = pool(1);
    let service = AdaptivePoolLayer::new(pool.clone()).layer(Nothing);
    let request = || {
        let mut service = service.clone();
        assert!(poll(pin!(service.call(Request::new(())))).is_ready());
    };
    assert_eq!(allocated(request), 0);
    assert_eq!(pool.snapshot().admissions.admitted as usize, ROUNDS + 1);
}

#[test]
fn a_layer_behind_which_there_is_more_than_one_service_marks_its_requests_at_no_cost_but_that_of_their_extensions()
 {
    let (_runtime, pool) = pool(1);
    let layer = AdaptivePoolLayer::new(pool.clone());
    let (service, _other) = (layer.layer(Nothing), layer.layer(Nothing));
    let request = || {
        let mut request = Request::new(());
        request.extensions_mut().insert(0u8);
        request
    };
    let bare = allocated(|| drop(black_box(request())));
    let marked = allocated(|| assert!(poll(pin!(service.clone().call(request()))).is_ready()));
    assert_eq!(marked, bare);
}

#[test]
fn under_axum_the_layer_allocates_one_more_than_any_layer_does() {
    let (_runtime, pool) = pool(1);
    let answer = |router: &Router| {
        let mut router = router.clone();
        let request = Request::new(Body::empty());
        assert!(poll(pin!(Service::<Request<Body>>::call(&mut router, request))).is_ready());
    };
    let routed = || Router::new().route("/", get(async || ()));
    // A router boxes the layer and what it makes: the same as for one of tower's that does nothing, and has a pointer.
    let pointer = Arc::new(());
    let nothing = MapResponseLayer::new(move |response: Response<Body>| {
        black_box(&pointer);
        response
    });
    let nothing = routed().layer(nothing);
    let ours = routed().layer(AdaptivePoolLayer::new(pool.clone()));
    let (nothing, ours) = (allocated(|| answer(&nothing)), allocated(|| answer(&ours)));
    // A router applies a layer to each route and to its fallbacks, so its requests are marked. Axum itself puts three things
    // into their extensions, as many as fit without growing.
    assert_eq!(ours, nothing + ROUNDS as u64);
    assert_eq!(pool.snapshot().admissions.admitted as usize, ROUNDS + 1);
}

#[test]
fn a_refusal_allocates_its_headers_and_its_extension() {
    let (runtime, pool) = pool(1);
    let _inside = runtime.enter();
    let _held = pool.try_acquire().unwrap();
    pool.gate().set_caps(0, 1).unwrap();
    let mut waiting = pin!(pool.acquire());
    assert!(poll(waiting.as_mut()).is_pending());
    let service = AdaptivePoolLayer::new(pool.clone()).layer(Nothing);
    let refused = || {
        let mut service = service.clone();
        let Poll::Ready(Ok(response)) = poll(pin!(service.call(Request::new(())))) else { panic!("refused") };
        assert_eq!(response.status(), 503);
    };
    // A header map is two allocations, an extension three.
    assert_eq!(allocated(refused), 5 * ROUNDS as u64);
}

#[test]
fn a_tick_of_the_driver_allocates_nothing() {
    let (runtime, pool) = pool(2);
    let _held = pool.try_acquire().unwrap();
    // A hundred of them, with what the clock itself costs.
    let ticks = || runtime.block_on(async { sleep(Duration::from_secs(1)).await });
    ticks();
    assert_eq!(measure(ticks).count_total, 0);
}
