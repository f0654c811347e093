//! Shapes of routers and services that broke other layers: nested and merged routers, slow uploads, inner services that
//! have to be ready, handlers that fail; and what an outer layer and a client get to see.

mod support;

use std::{
    convert::Infallible,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::Poll,
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    middleware::{Next, from_fn},
    routing::{get, post},
};
use futures_util::{FutureExt, future::join_all, stream};
use http::{
    HeaderMap, Request, Response, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER},
};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use support::{
    eventually,
    line::{Pending, assert_ledgers_add_up, begin, line_up, one_permit, poll_once},
};
use tokio::time::sleep;
use tower::{
    BoxError, Layer, Service, ServiceBuilder, ServiceExt, buffer::Buffer, limit::ConcurrencyLimit, service_fn,
};
use tower_adaptive_pool::{AdaptivePoolLayer, Class, Limiter, Permit, ProblemJson, Shed, ShedReason};
use tower_test::{assert_request_eq, mock};

const DEADLINE: Duration = Duration::from_secs(10);

fn request(path: &str) -> Request<Body> {
    Request::get(path).body(Body::empty()).unwrap()
}

async fn ask(app: &Router, path: &str) -> Response<Body> {
    app.clone().oneshot(request(path)).await.unwrap()
}

async fn body_of(response: Response<Body>) -> Bytes {
    response.into_body().collect().await.unwrap().to_bytes()
}

/// A handler that holds a permit for ever.
async fn hold(limiter: Limiter) -> StatusCode {
    match limiter.acquire().await {
        Ok(_permit) => std::future::pending().await,
        Err(_) => StatusCode::GATEWAY_TIMEOUT,
    }
}

/// A limiter that is full: one permit held, one waiter, and no room for another.
fn full() -> (Limiter, (Permit, Vec<Pending<impl Sized>>)) {
    let limiter = one_permit(1, 1);
    let held = limiter.try_acquire().unwrap();
    let line = line_up(&limiter, 1);
    (limiter, (held, line))
}

#[tokio::test(start_paused = true)]
async fn nested_and_merged_routers_share_one_queue_and_ask_once_for_each_request() {
    let limiter = one_permit(2, 2);
    let layer = AdaptivePoolLayer::new(limiter.clone());
    let holds = || {
        let limiter = limiter.clone();
        get(move || hold(limiter))
    };
    let orders = Router::new().route("/", holds()).route("/{id}", holds()).route_layer(layer.clone());
    let api = Router::new().nest("/orders", orders).route("/items", holds().layer(layer.clone()));
    let admin = Router::new().route("/admin", holds()).layer(layer);
    let app = Router::new().nest("/api/v1", api).merge(admin);
    let paths = ["/api/v1/orders/7", "/api/v1/items", "/admin"];
    let asked = |path| {
        poll_once(app.clone().oneshot(request(path)).map(|answer: Result<_, Infallible>| match answer {
            Ok(response) => response.status(),
        }))
    };

    let under_way: Vec<_> = paths.map(|path| asked(path).expect_err("it holds, or waits")).into();
    assert_eq!(limiter.gate().snapshot().queue_depth, 2);
    for path in paths {
        assert_eq!(asked(path).ok(), Some(StatusCode::SERVICE_UNAVAILABLE), "{path}");
    }
    let seen = limiter.gate().snapshot();
    assert_eq!((seen.admissions.arrivals, seen.admissions.admitted, seen.admissions.shed), (6, 3, 3));
    drop(under_way);
    let seen = limiter.gate().snapshot();
    assert_eq!((seen.in_use, seen.queue_depth), (0, 0));
    assert_ledgers_add_up(&seen);
}

/// A body that comes in ten pieces, a second apart.
fn dripping(number: u64) -> Body {
    Body::from_stream(stream::unfold(0u64, move |piece| async move {
        // No two uploads in step.
        sleep(Duration::from_millis(900 + number)).await;
        (piece < 10).then(|| (Ok::<_, Infallible>(Bytes::from_static(b"drip")), piece + 1))
    }))
}

#[tokio::test(start_paused = true)]
async fn two_hundred_slow_uploads_in_front_of_an_idle_database_shed_nobody() {
    const UPLOADS: u64 = 200;
    let limiter = Limiter::builder().fixed_size(2).soft_cap(1).hard_cap(3).seed(7).build().unwrap();
    let store = async |limiter: Limiter, body: Bytes| -> StatusCode {
        let Ok(_permit) = limiter.acquire().await else { return StatusCode::INSUFFICIENT_STORAGE };
        sleep(Duration::from_millis(1)).await;
        if body.len() == 40 { StatusCode::CREATED } else { StatusCode::BAD_REQUEST }
    };
    let (uploading, quick) = (limiter.clone(), limiter.clone());
    let app = Router::new()
        .route("/upload", post(async move |body: Bytes| store(uploading, body).await))
        .route("/quick", get(async move || store(quick, Bytes::from(vec![0; 40])).await))
        .layer(AdaptivePoolLayer::new(limiter.clone()));

    let uploads: Vec<_> = (0..UPLOADS)
        .map(|number| {
            let upload = Request::post("/upload").body(dripping(number)).unwrap();
            tokio::spawn(app.clone().oneshot(upload))
        })
        .collect();
    eventually(DEADLINE, async || limiter.gate().snapshot().admissions.admitted == UPLOADS).await;
    // All are under way, and nothing is in use.
    for _ in 0..500 {
        let seen = limiter.gate().snapshot();
        assert_eq!((seen.idle, seen.in_use, seen.queue_depth), (2, 0, 0));
        assert_eq!(ask(&app, "/quick").await.status(), StatusCode::CREATED);
        sleep(Duration::from_millis(10)).await;
    }
    for upload in uploads {
        assert_eq!(upload.await.unwrap().unwrap().status(), StatusCode::CREATED);
    }
    let seen = limiter.gate().snapshot();
    assert_eq!((seen.admissions.shed, seen.acquires.shed, seen.acquires.timed_out), (0, 0, 0));
    assert_eq!(seen.acquires.granted, UPLOADS + 500);
}

/// Serves after a moment, and knows how many it ever served at once.
#[derive(Clone, Default)]
struct Counting {
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl Counting {
    async fn serve(self, _: Request<()>) -> Result<Response<()>, Infallible> {
        self.most.fetch_max(self.now.fetch_add(1, SeqCst) + 1, SeqCst);
        sleep(Duration::from_millis(1)).await;
        self.now.fetch_sub(1, SeqCst);
        Ok(Response::new(()))
    }
}

/// Drives a service that must be ready before each call, as clones and as one, while every other request is refused.
/// Both inner services panic when they are called without having been ready.
async fn drive<S, E>(service: S, limiter: &Limiter)
where
    S: Service<Request<()>, Response = Response<()>, Error = E, Future: Send> + Clone + Send + 'static,
    E: std::fmt::Debug + Send,
{
    let mut one = service.clone();
    for round in 0..100 {
        let full = (round % 2 == 0).then(|| (limiter.try_acquire().unwrap(), line_up(limiter, 1)));
        let expected = if full.is_some() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
        let answers = join_all((0..10).map(|_| service.clone().oneshot(Request::new(())))).await;
        for answer in answers {
            assert_eq!(answer.unwrap().status(), expected, "round {round}, a clone");
        }
        let answer = one.ready().await.unwrap().call(Request::new(())).await.unwrap();
        assert_eq!(answer.status(), expected, "round {round}, always the same one");
    }
    let seen = limiter.gate().snapshot().admissions;
    assert_eq!((seen.admitted, seen.shed), (550, 550));
}

/// A service that got ready and was then refused is still ready: it keeps its place inside until it is called or dropped, as
/// `poll_ready` demands. Hyper and axum take a clone for each request, which goes with its answer.
#[tokio::test(start_paused = true)]
async fn a_concurrency_limit_inside_is_driven_right_and_loses_no_place_by_refusals() {
    let (limiter, counting) = (one_permit(1, 1), Counting::default());
    let inner = counting.clone();
    let inner = ConcurrencyLimit::new(service_fn(move |request| inner.clone().serve(request)), 3);
    let service = AdaptivePoolLayer::new(limiter.clone()).layer(inner);
    drive(service.clone(), &limiter).await;
    assert!(counting.most.load(SeqCst) <= 3);
    counting.most.store(0, SeqCst);
    join_all((0..10).map(|_| service.clone().oneshot(Request::new(())))).await;
    assert_eq!((counting.now.load(SeqCst), counting.most.load(SeqCst)), (0, 3), "all places are there");
}

#[tokio::test(start_paused = true)]
async fn a_buffer_inside_is_driven_right() {
    let (limiter, counting) = (one_permit(1, 1), Counting::default());
    let inner = counting.clone();
    // Not `Clone`: that is what people buffer for.
    let worker = ServiceBuilder::new().service(service_fn(move |request| inner.clone().serve(request)));
    let service = AdaptivePoolLayer::new(limiter.clone()).layer(Buffer::new(worker, 3));
    drive(service, &limiter).await;
    assert_eq!(counting.now.load(SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_admitted_reaches_the_inner_service_once_and_in_order_and_its_answers_come_back() {
    let (limiter, full) = full();
    // A body that the mock can compare.
    let layer = ServiceBuilder::new()
        .map_request(|number: u32| Request::new(number))
        .layer(AdaptivePoolLayer::new(limiter.clone()))
        .map_request(|request: Request<u32>| request.into_body());
    let (mut service, mut inner) = mock::spawn_layer::<u32, Response<&'static str>, _>(layer.into_inner());

    assert!(matches!(service.poll_ready(), Poll::Ready(Ok(()))));
    let refused = service.call(1).await.unwrap();
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    drop(full);
    for (number, answer) in [(2, Some("two")), (3, None), (4, Some("four"))] {
        assert!(matches!(service.poll_ready(), Poll::Ready(Ok(()))));
        let call = service.call(number);
        match answer {
            Some(text) => {
                assert_request_eq!(inner, number).send_response(Response::new(text));
                assert_eq!(*call.await.unwrap().body(), text);
            }
            None => {
                assert_request_eq!(inner, number).send_error("broken");
                assert_eq!(call.await.unwrap_err().to_string(), "broken");
            }
        }
    }
    assert!(inner.poll_request().is_pending(), "nothing else has reached it");
    assert_eq!(limiter.gate().snapshot().admissions.admitted, 3);
}

#[tokio::test(start_paused = true)]
async fn whatever_an_inner_service_does_everything_is_released() {
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Fault {
        Error,
        PanicInCall,
        PanicInFuture,
        Dropped,
    }
    let limiter = one_permit(3, 3);
    let handler = limiter.clone();
    let mut service =
        AdaptivePoolLayer::new(limiter.clone()).layer(service_fn(move |request: Request<Option<Fault>>| {
            let (limiter, fault) = (handler.clone(), request.into_body());
            let permit = limiter.try_acquire().expect("whoever came before has released it");
            assert_ne!(fault, Some(Fault::PanicInCall), "as asked");
            async move {
                let _permit = permit;
                let _second = limiter.acquire(); // begun by nobody
                match fault {
                    None => Ok(Response::new(())),
                    Some(Fault::Error) => Err(BoxError::from("as asked")),
                    Some(Fault::Dropped) => std::future::pending().await,
                    Some(_) => panic!("as asked"),
                }
            }
        }));
    for fault in [Fault::Error, Fault::PanicInCall, Fault::PanicInFuture, Fault::Dropped] {
        let called = catch_unwind(AssertUnwindSafe(|| service.call(Request::new(Some(fault)))));
        match (fault, called) {
            (Fault::PanicInCall, Err(_)) => {}
            (Fault::Error, Ok(call)) => assert!(call.await.is_err()),
            (Fault::PanicInFuture, Ok(call)) => {
                assert!(AssertUnwindSafe(call).catch_unwind().await.is_err());
            }
            (Fault::Dropped, Ok(call)) => drop(begin(call)),
            (fault, called) => panic!("{fault:?} ended as {:?}", called.is_ok()),
        }
        let seen = limiter.gate().snapshot();
        assert_eq!((seen.in_use, seen.idle, seen.queue_depth), (0, 1, 0), "after {fault:?}");
        assert!(service.call(Request::new(None)).await.is_ok(), "the next one after {fault:?}");
    }
    let seen = limiter.gate().snapshot();
    assert_eq!((seen.admissions.admitted, seen.acquires.granted), (8, 8));
    assert_ledgers_add_up(&seen);
}

#[tokio::test(start_paused = true)]
async fn an_outer_layer_sees_why_a_request_was_refused() {
    let (limiter, full) = full();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let trace = {
        let seen = seen.clone();
        from_fn(move |request: axum::extract::Request, next: Next| {
            let seen = seen.clone();
            async move {
                let response = next.run(request).await;
                let shed = response.extensions().get::<Shed>().copied();
                seen.lock().unwrap().push((response.status(), shed));
                response
            }
        })
    };
    let layer = AdaptivePoolLayer::new(limiter.clone()).with_classifier(|_: &Request<Body>| Class::Low);
    let app = Router::new().route("/", get(async || "served")).layer(layer).layer(trace);

    let refused = ask(&app, "/").await;
    drop(full);
    ask(&app, "/").await;
    let seen = seen.lock().unwrap();
    let [(status, Some(shed)), (StatusCode::OK, None)] = seen[..] else { panic!("{seen:?}") };
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!((shed.reason, shed.class, shed.queue_depth), (ShedReason::HardCap, Class::Low, 1));
    assert_eq!(refused.headers()[RETRY_AFTER], shed.retry_after.as_secs().to_string());
}

#[tokio::test(start_paused = true)]
async fn the_pools_numbers_are_in_a_header_only_where_that_is_switched_on() {
    let (limiter, full) = full();
    let plain = AdaptivePoolLayer::new(limiter.clone());
    let telling = plain.clone().with_pool_status();
    let app = Router::new()
        .route("/plain", get(async || "served").layer(plain))
        .route("/telling", get(async || "served").layer(telling));
    let status = |headers: &HeaderMap| -> Value {
        serde_json::from_slice(headers["x-pool-status"].as_bytes()).expect("JSON")
    };

    for path in ["/plain", "/nowhere"] {
        assert!(ask(&app, path).await.headers().get("x-pool-status").is_none());
    }
    let told = status(ask(&app, "/telling").await.headers());
    assert_eq!((&told["in_use"], &told["queue_depth"], &told["hard_cap"]), (&json!(1), &json!(1), &json!(1)));
    drop(full);
    let served = ask(&app, "/telling").await;
    assert_eq!(served.status(), StatusCode::OK);
    let told = status(served.headers());
    assert_eq!((&told["in_use"], &told["idle"], &told["size"]), (&json!(0), &json!(1), &json!(1)));
    assert!(ask(&app, "/plain").await.headers().get("x-pool-status").is_none());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_as_problem_json_is_what_rfc_9457_says() {
    let (limiter, full) = full();
    let layer = AdaptivePoolLayer::new(limiter.clone()).with_responder(ProblemJson::default());
    let app = Router::new().route("/", get(async || "served")).layer(layer);

    let refused = ask(&app, "/").await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers()[CONTENT_TYPE], "application/problem+json");
    assert_eq!(refused.headers()[CACHE_CONTROL], "no-store");
    let seconds: u64 = refused.headers()[RETRY_AFTER].to_str().unwrap().parse().unwrap();
    let problem: Value = serde_json::from_slice(&body_of(refused).await).unwrap();
    let expected = json!({
        "type": "about:blank",
        "title": "Service Unavailable",
        "status": 503,
        "code": "hard_cap",
        "retry_after_ms": seconds * 1_000,
    });
    assert_eq!(problem, expected);

    // A gRPC call cannot read it: it is told in headers, and gets no body.
    let mut call = request("/");
    call.headers_mut().insert(CONTENT_TYPE, "application/grpc+proto".parse().unwrap());
    let refused = app.clone().oneshot(call).await.unwrap();
    assert_eq!(refused.status(), StatusCode::OK);
    assert_eq!(refused.headers()["grpc-status"], "14");
    assert_eq!(refused.headers()["grpc-message"], "hard_cap");
    assert_eq!(refused.headers()[CONTENT_TYPE], "application/grpc+proto", "as it asked");
    assert!(refused.extensions().get::<Shed>().is_some());
    assert!(body_of(refused).await.is_empty());

    drop(full);
    assert_eq!(body_of(ask(&app, "/").await).await, "served");
}
