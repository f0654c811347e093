//! What the layer promises to the services around it.

mod support;

use std::{
    convert::Infallible,
    future::{Ready, pending, ready},
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, body::Body, routing::get};
use futures_util::FutureExt;
use http::{
    Request, Response, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER},
};
use support::{
    eventually,
    line::{Pending, assert_ledgers_add_up, begin, line_up, one_permit, poll_once},
    sim::Sim,
};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_adaptive_pool::{
    AdaptivePool, AdaptivePoolLayer, AdaptivePoolService, Admissions, Class, Classify, Limiter, Respond,
    Shed, ShedReason, StatusOnly, Terms,
};
use tower_test::mock;

const DEADLINE: Duration = Duration::from_secs(10);

/// A service that serves at once, and is not `Clone`.
struct Serving;

impl Service<Request<()>> for Serving {
    type Response = Response<String>;
    type Error = Infallible;
    type Future = Ready<Result<Response<String>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        ready(Ok(Response::new("served".into())))
    }
}

/// [`Serving`] behind the layer.
fn behind(limiter: &Limiter) -> AdaptivePoolService<Serving, StatusOnly> {
    AdaptivePoolLayer::new(limiter.clone()).layer(Serving)
}

/// Calls the service and takes its answer, which must be there at the first poll.
#[track_caller]
fn answer<S, B>(service: &mut S) -> Response<B>
where
    S: Service<Request<()>, Response = Response<B>, Error = Infallible>,
{
    let answer = service.call(Request::new(())).now_or_never();
    let Ok(response) = answer.expect("the answer is there at once");
    response
}

/// How many of so many requests are refused.
fn refused_of(service: &mut AdaptivePoolService<Serving, StatusOnly>, many: usize) -> usize {
    (0..many).filter(|_| answer(service).status() == StatusCode::SERVICE_UNAVAILABLE).count()
}

fn retry_after<B>(response: &Response<B>) -> u64 {
    let text = response.headers()[RETRY_AFTER].to_str().unwrap();
    assert!(text.bytes().all(|byte| byte.is_ascii_digit()), "Retry-After speaks in whole seconds: {text}");
    text.parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn shed_is_a_response_not_an_error() {
    let limiter = one_permit(1, 1);
    let _held = limiter.try_acquire().unwrap();
    let _line = line_up(&limiter, 1);

    let response = answer(&mut behind(&limiter));

    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()[CACHE_CONTROL], "no-store");
    assert_eq!(response.headers().len(), 2, "{:?}", response.headers());
    assert!(response.body().is_empty());
    let shed = response.extensions().get::<Shed>().expect("the reason is in the extensions");
    assert_eq!((shed.reason, shed.queue_depth), (ShedReason::HardCap, 1));
    assert_eq!(shed.retry_after, Duration::from_secs(retry_after(&response)));
    assert!(retry_after(&response) >= 1);
}

#[tokio::test(start_paused = true)]
async fn the_error_type_is_unchanged() {
    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Broken;
    fn has_error<E>(_: &impl Service<Request<()>, Error = E>) {}

    let limiter = one_permit(1, 1);
    let layer = AdaptivePoolLayer::new(limiter.clone());
    has_error::<Infallible>(&layer.layer(Serving));
    let mut broken = layer.layer(service_fn(async |_: Request<()>| Err::<Response<()>, _>(Broken)));
    has_error::<Broken>(&broken);

    // What goes wrong inside passes through, and was an admitted request.
    assert_eq!(broken.call(Request::new(())).await.err(), Some(Broken));
    assert_eq!(limiter.gate().snapshot().admissions.admitted, 1);
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_the_time_to_drain_the_queue() {
    let limiter = one_permit(10, 10);
    let held = limiter.try_acquire().unwrap();
    tokio::time::advance(Duration::from_millis(550)).await;
    drop(held);
    let _held = limiter.try_acquire().unwrap();
    let _line = line_up(&limiter, 10);

    // Ten times 0.55 s in front of one connection, and a draw under a second.
    let mut service = behind(&limiter);
    let mut told: Vec<_> = (0..100).map(|_| retry_after(&answer(&mut service))).collect();
    told.sort_unstable();
    told.dedup();
    assert_eq!(told, [6, 7], "those refused together do not come back together");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_refused_under_the_soft_cap() {
    let limiter = one_permit(3, 10);
    let mut service = behind(&limiter);
    assert_eq!(refused_of(&mut service, 100), 0, "nobody holds anything");
    let _held = limiter.try_acquire().unwrap();
    let mut line = Vec::new();
    for depth in 0..=3 {
        assert_eq!(limiter.gate().snapshot().queue_depth, depth);
        assert_eq!(refused_of(&mut service, 1_000), 0, "{depth} waiting");
        line.extend(line_up(&limiter, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn everything_is_refused_at_the_hard_cap() {
    let limiter = one_permit(3, 10);
    let _held = limiter.try_acquire().unwrap();
    let _line = line_up(&limiter, 10);
    assert_eq!(refused_of(&mut behind(&limiter), 1_000), 1_000);
}

#[tokio::test(start_paused = true)]
async fn between_the_caps_the_share_refused_is_a_ramp() {
    const DRAWS: usize = 4_000;
    let limiter = one_permit(10, 20);
    let _held = limiter.try_acquire().unwrap();
    let mut line = line_up(&limiter, 10);
    let mut service = behind(&limiter);
    for depth in 11..20 {
        line.extend(line_up(&limiter, 1));
        let expected = f64::from(depth - 10) / 10.0;
        let sigma = (expected * (1.0 - expected) / DRAWS as f64).sqrt();
        let refused = refused_of(&mut service, DRAWS) as f64 / DRAWS as f64;
        assert!(
            (refused - expected).abs() < 4.0 * sigma,
            "{depth} waiting: refused {refused}, not {expected}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_free_server_is_never_starved() {
    let limiter = Limiter::builder().fixed_size(4).soft_cap(0).hard_cap(8).seed(7).build().unwrap();
    let mut service = behind(&limiter);
    let mut held: Vec<_> = (0..4).map(|_| limiter.try_acquire().unwrap()).collect();

    // Fewer wait than there are connections: well over the soft cap, and nothing is refused.
    let mut line = line_up(&limiter, 3);
    assert_eq!(refused_of(&mut service, 1_000), 0);
    line.extend(line_up(&limiter, 1));
    assert!(refused_of(&mut service, 1_000) > 0, "as many wait as there are connections: the ramp counts");

    // At the hard cap everything is refused, until a connection is free again.
    line.extend(line_up(&limiter, 4));
    assert_eq!(refused_of(&mut service, 10), 10);
    line.clear();
    held.pop();
    assert_eq!(limiter.gate().snapshot().idle, 1);
    assert_eq!(refused_of(&mut service, 1_000), 0);
}

#[tokio::test(start_paused = true)]
async fn poll_ready_forwards_the_inner_services_readiness_and_nothing_is_parked() {
    let limiter = one_permit(1, 1);
    let layer = AdaptivePoolLayer::new(limiter.clone());
    let (mut service, mut inner) = mock::spawn_layer::<Request<()>, Response<()>, _>(layer);

    inner.allow(0);
    assert!(service.poll_ready().is_pending());
    inner.allow(1);
    assert!(service.is_woken());
    assert!(matches!(service.poll_ready(), Poll::Ready(Ok(()))));

    // Ready, and yet it holds nothing and nothing was decided.
    let held = limiter.try_acquire().expect("no permit is parked");
    assert_eq!(limiter.gate().snapshot().admissions, Admissions::default());

    // A full gate is decided on in `call`: it does not make the service less ready, nor reach the inner one.
    let _line = line_up(&limiter, 1);
    assert!(matches!(service.poll_ready(), Poll::Ready(Ok(()))));
    let refused = service.call(Request::new(())).await.unwrap();
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(inner.poll_request().is_pending());
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn an_inner_service_that_fails_to_get_ready_says_so_through_the_layer() {
    let layer = AdaptivePoolLayer::new(one_permit(1, 1));
    let (mut service, mut inner) = mock::spawn_layer::<Request<()>, Response<()>, _>(layer);
    inner.send_error("worn out");
    let Poll::Ready(Err(error)) = service.poll_ready() else { panic!("the error is there") };
    assert_eq!(error.to_string(), "worn out");
}

#[tokio::test(start_paused = true)]
async fn admission_is_decided_in_call_and_never_waits() {
    let limiter = one_permit(1, 1);
    let mut service = behind(&limiter);
    let _held = limiter.try_acquire().unwrap();

    // Admitted before the first poll, so also when there never is one.
    drop(service.call(Request::new(())));
    assert_eq!(limiter.gate().snapshot().admissions.admitted, 1);

    // What was decided stays: the queue empties between call and poll, and it is still a refusal.
    let line = line_up(&limiter, 1);
    let refused = service.call(Request::new(()));
    drop(line);
    let Ok(refused) = refused.now_or_never().expect("a refusal is ready");
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test(start_paused = true)]
async fn any_closure_can_make_the_refusal() {
    #[derive(Debug, Default, PartialEq)]
    struct Text(String);

    let limiter = one_permit(1, 1);
    let _held = limiter.try_acquire().unwrap();
    let line = line_up(&limiter, 1);
    let layer = AdaptivePoolLayer::new(limiter.clone()).with_responder(|shed: &Shed| {
        let body = Text(format!("{} with {} ahead", shed.reason, shed.queue_depth));
        Response::builder().status(StatusCode::TOO_MANY_REQUESTS).body(body).unwrap()
    });
    let mut service = layer
        .layer(service_fn(async |_: Request<()>| Ok::<_, Infallible>(Response::new(Text("served".into())))));

    let refused = answer(&mut service);
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.body(), &Text("hard_cap with 1 ahead".into()));
    assert!(refused.extensions().get::<Shed>().is_some(), "the reason is there whoever made the response");
    drop(line);
    assert_eq!(answer(&mut service).body(), &Text("served".into()));
}

#[tokio::test(start_paused = true)]
async fn a_layer_that_was_given_the_last_handle_keeps_its_limiter_and_a_drain_still_ends_it() {
    let limiter = one_permit(1, 1);
    let layer = AdaptivePoolLayer::new(limiter.clone());
    let mut service = layer.clone().layer(Serving);
    drop((layer, limiter.clone()));
    assert_eq!(answer(&mut service).status(), StatusCode::OK);
    limiter.drain(DEADLINE).await.unwrap();
    assert_eq!(answer(&mut service).extensions().get::<Shed>().unwrap().reason, ShedReason::Draining);

    let mut service = AdaptivePoolLayer::new(one_permit(1, 1)).layer(Serving);
    for _ in 0..3 {
        tokio::time::sleep(DEADLINE).await;
        assert_eq!(answer(&mut service).status(), StatusCode::OK);
    }
}

#[tokio::test(start_paused = true)]
async fn a_layer_that_was_given_the_last_handle_keeps_its_pool_and_closes_it_with_the_last_service() {
    let sim = Sim::default();
    let pool = AdaptivePool::builder(sim.clone()).fixed_size(3).build().unwrap();
    pool.ready().await.unwrap();
    let layer = AdaptivePoolLayer::new(pool);
    let mut service = layer.layer(Serving);
    drop(layer);
    assert_eq!(answer(&mut service).status(), StatusCode::OK);
    assert_eq!(sim.open(), 3);
    drop(service);
    eventually(DEADLINE, async || sim.open() == 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_layer_that_was_given_a_gate_alone_refuses_when_its_limiter_is_gone() {
    let limiter = one_permit(1, 1);
    let mut service = AdaptivePoolLayer::new(limiter.gate().clone()).layer(Serving);
    assert_eq!(answer(&mut service).status(), StatusCode::OK);
    drop(limiter);
    let refused = answer(&mut service);
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.extensions().get::<Shed>().unwrap().reason, ShedReason::Draining);
    assert!(retry_after(&refused) >= 1);
}

/// A limiter that refuses everything.
async fn drained() -> Limiter {
    let limiter = one_permit(1, 1);
    limiter.drain(DEADLINE).await.unwrap();
    limiter
}

fn text() -> impl Service<Request<()>, Response = Response<String>, Error = Infallible, Future: Send> + Clone
{
    service_fn(async |_: Request<()>| Ok(Response::new(String::from("served"))))
}

/// A responder and a classifier of types of their own, with faults.
#[derive(Clone)]
struct Faulty;

impl Respond<String> for Faulty {
    fn respond(&self, _: &Shed) -> Response<String> {
        panic!("the responder's own fault")
    }

    fn empty(&self) -> String {
        String::new()
    }
}

impl Classify<()> for Faulty {
    fn classify(&self, _: &Request<()>) -> Option<Class> {
        panic!("the classifier's own fault")
    }
}

#[tokio::test(start_paused = true)]
async fn a_responder_that_panics_costs_its_answer_and_its_refusal_is_counted() {
    let limiter = drained().await;
    let closure = |_: &Shed| -> Response<String> { panic!("the responder's own fault") };
    let layer = AdaptivePoolLayer::new(limiter.clone());
    let answers = [
        answer(&mut layer.clone().with_responder(closure).layer(text())),
        answer(&mut layer.with_responder(Faulty).layer(text())),
    ];
    for response in answers {
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(
            (response.headers().len(), &response.headers()[CACHE_CONTROL]),
            (1, &"no-store".parse().unwrap())
        );
        assert_eq!(response.body(), "");
        assert_eq!(response.extensions().get::<Shed>().unwrap().reason, ShedReason::Draining);
    }
    let seen = limiter.gate().snapshot();
    assert_eq!((seen.admissions.arrivals, seen.admissions.shed), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn a_classifier_of_any_type_that_panics_says_nothing_and_its_request_is_counted() {
    let limiter = one_permit(9, 9);
    let tell = service_fn(async |request: Request<()>| {
        Ok::<_, Infallible>(Response::new(Terms::of(request.extensions())))
    });
    let mut service = AdaptivePoolLayer::new(limiter.clone()).with_classifier(Faulty).layer(tell);
    assert_eq!(answer(&mut service).body(), &Terms::default());
    let mut request = Request::new(());
    request.extensions_mut().insert(Class::Critical);
    let Ok(told) = service.call(request).await;
    assert_eq!(told.body().class, Class::Critical, "what others have said");
    assert_eq!(limiter.gate().snapshot().admissions.admitted, 2);
}

#[tokio::test(start_paused = true)]
async fn only_grpcs_own_content_types_are_answered_as_grpc_and_never_with_a_body() {
    async fn refuse<R: Respond<String> + Clone>(layer: AdaptivePoolLayer<R>, kind: &str) -> Response<String> {
        let request = Request::post("/").header(CONTENT_TYPE, kind).body(()).unwrap();
        let Ok(response) = layer.layer(text()).call(request).await;
        response
    }
    let layer = AdaptivePoolLayer::new(drained().await);
    let busy = layer.clone().with_responder(|shed: &Shed| {
        let mut response = Response::new(format!("busy: {shed}"));
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        response.headers_mut().insert("x-ours", "1".parse().unwrap());
        response
    });
    for kind in [
        "application/grpc",
        "application/grpc+proto",
        "application/grpc+json",
        "application/grpc; charset=utf-8",
        "application/grpc-web",
        "application/grpc-web+proto",
        "application/grpc-web-text",
        "application/grpc-web-text+proto",
    ] {
        let answers = [refuse(layer.clone(), kind).await, refuse(busy.clone(), kind).await];
        for response in answers {
            assert_eq!((response.status(), response.body().as_str()), (StatusCode::OK, ""), "{kind}");
            assert_eq!(
                (&response.headers()["grpc-status"], response.headers().len()),
                (&"14".parse().unwrap(), 4)
            );
            assert_eq!(response.headers()[CONTENT_TYPE], kind);
        }
    }
    for kind in ["application/grpcx", "application/grpc-", "application/grpc-webx", "application/json"] {
        let response = refuse(busy.clone(), kind).await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "{kind}");
        assert_eq!(response.headers()["x-ours"], "1");
        assert!(response.headers().get("grpc-status").is_none() && response.body().starts_with("busy: "));
    }
}

/// A handler that holds a permit for ever.
async fn hold(limiter: Limiter) -> StatusCode {
    match limiter.acquire().await {
        Ok(_permit) => pending().await,
        Err(_) => StatusCode::GATEWAY_TIMEOUT,
    }
}

fn ask(app: &Router, path: &str) -> Result<StatusCode, Pending<StatusCode>> {
    let request = Request::get(path).body(Body::empty()).unwrap();
    poll_once(app.clone().oneshot(request).map(|answered| answered.unwrap().status()))
}

/// Three requests to three paths fill a limiter of one permit and two waiters; then every path refuses.
#[track_caller]
fn assert_one_queue(limiter: &Limiter, app: &Router) {
    let mut under_way = Vec::new();
    for path in ["/a", "/b", "/c"] {
        under_way.push(ask(app, path).expect_err("admitted, and held or waiting"));
    }
    assert_eq!(limiter.gate().snapshot().queue_depth, 2);
    for path in ["/a", "/b", "/c"] {
        assert_eq!(ask(app, path).ok(), Some(StatusCode::SERVICE_UNAVAILABLE), "{path}");
    }
    let seen = limiter.gate().snapshot();
    assert_eq!((seen.admissions.arrivals, seen.admissions.admitted, seen.admissions.shed), (6, 3, 3));
    assert_eq!(seen.acquires.shed, 0, "the layer refused, not the gate");
    assert_ledgers_add_up(&seen);

    drop(under_way);
    let seen = limiter.gate().snapshot();
    assert_eq!((seen.in_use, seen.queue_depth, seen.acquires.cancelled), (0, 0, 2));
    assert_ledgers_add_up(&seen);
}

fn one_permit_two_waiters() -> (Limiter, AdaptivePoolLayer) {
    let limiter = one_permit(2, 2);
    let layer = AdaptivePoolLayer::new(limiter.clone());
    (limiter, layer)
}

/// A router with the three paths.
fn routes(limiter: &Limiter) -> Router {
    let handler = || {
        let limiter = limiter.clone();
        get(move || hold(limiter))
    };
    Router::new().route("/a", handler()).route("/b", handler()).route("/c", handler())
}

#[tokio::test(start_paused = true)]
async fn one_state_under_router_layer() {
    let (limiter, layer) = one_permit_two_waiters();
    assert_one_queue(&limiter, &routes(&limiter).layer(layer));
}

#[tokio::test(start_paused = true)]
async fn one_state_under_router_route_layer() {
    let (limiter, layer) = one_permit_two_waiters();
    let app = routes(&limiter).route_layer(layer);
    assert_one_queue(&limiter, &app);
    assert_eq!(ask(&app, "/nowhere").ok(), Some(StatusCode::NOT_FOUND));
    assert_eq!(
        limiter.gate().snapshot().admissions.arrivals,
        6,
        "a route layer does not see what no route takes"
    );
}

#[tokio::test(start_paused = true)]
async fn one_state_under_a_layer_for_each_method_router() {
    let (limiter, layer) = one_permit_two_waiters();
    let mut app = Router::new();
    for path in ["/a", "/b", "/c"] {
        let limiter = limiter.clone();
        app = app.route(path, get(move || hold(limiter)).layer(layer.clone()));
    }
    assert_one_queue(&limiter, &app);
}

#[tokio::test(start_paused = true)]
async fn one_state_under_a_new_layer_for_each_route() {
    let limiter = one_permit(2, 2);
    let mut app = Router::new();
    for path in ["/a", "/b", "/c"] {
        let own = AdaptivePoolLayer::new(limiter.clone());
        let limiter = limiter.clone();
        app = app.route(path, get(move || hold(limiter)).layer(own));
    }
    assert_one_queue(&limiter, &app);
}

#[tokio::test(start_paused = true)]
async fn one_state_in_cloned_services() {
    let (limiter, layer) = one_permit_two_waiters();
    let handler = limiter.clone();
    let service = ServiceBuilder::new().layer(layer).service(service_fn(move |_: Request<()>| {
        hold(handler.clone()).map(|status| Ok::<_, Infallible>(Response::new(status.to_string())))
    }));
    let under_way: Vec<_> = (0..3).map(|_| begin(service.clone().oneshot(Request::new(())))).collect();
    assert_eq!(answer(&mut service.clone()).status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(limiter.gate().snapshot().queue_depth, 2);
    drop(under_way);
}

#[tokio::test(start_paused = true)]
async fn ledgers_are_exact_at_rest() {
    const REQUESTS: u64 = 2_000;
    let limiter = Limiter::builder()
        .fixed_size(2)
        .soft_cap(2)
        .hard_cap(6)
        .seed(7)
        .acquire_timeout(Duration::from_millis(20))
        .build()
        .unwrap();
    let handler = limiter.clone();
    let app = Router::new()
        .route(
            "/",
            get(async move || match handler.acquire().await {
                Ok(_permit) => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    StatusCode::OK
                }
                Err(_) => StatusCode::GATEWAY_TIMEOUT,
            }),
        )
        .layer(AdaptivePoolLayer::new(limiter.clone()));

    // Three requests every 10 ms to what serves two, and every seventh client gives up after 5 ms.
    let mut clients = Vec::new();
    for number in 0..REQUESTS {
        let call = app.clone().oneshot(Request::get("/").body(Body::empty()).unwrap());
        let patience = Duration::from_millis(if number.is_multiple_of(7) { 5 } else { 1_000 });
        clients.push(tokio::spawn(async move {
            tokio::time::timeout(patience, call).await.ok().map(|response| response.unwrap().status())
        }));
        if number.is_multiple_of(3) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    let mut seen_by_clients = Vec::new();
    for client in clients {
        seen_by_clients.push(client.await.unwrap());
    }

    let count = |status| seen_by_clients.iter().filter(|seen| **seen == status).count() as u64;
    let seen = limiter.gate().snapshot();
    assert_eq!((seen.in_use, seen.queue_depth), (0, 0));
    assert_ledgers_add_up(&seen);
    assert_eq!(seen.admissions.arrivals, REQUESTS);
    assert_eq!(seen.admissions.shed, count(Some(StatusCode::SERVICE_UNAVAILABLE)));
    assert_eq!(seen.acquires.started, seen.admissions.admitted);
    assert_eq!(seen.acquires.timed_out, count(Some(StatusCode::GATEWAY_TIMEOUT)));
    assert!(seen.acquires.cancelled <= count(None), "those who gave up waited or were being served");
    for (name, times) in [
        ("shed", seen.admissions.shed),
        ("timed out", seen.acquires.timed_out),
        ("cancelled", seen.acquires.cancelled),
        ("served", count(Some(StatusCode::OK))),
    ] {
        assert!(times > 0, "this run was to have {name} ones");
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_dropped_midway_releases_everything() {
    let limiter = one_permit(2, 2);
    let app = routes(&limiter).layer(AdaptivePoolLayer::new(limiter.clone()));
    let holding = ask(&app, "/a").unwrap_err();
    let waiting = ask(&app, "/b").unwrap_err();
    let behind = ask(&app, "/c").unwrap_err();

    drop(waiting);
    let seen = limiter.gate().snapshot();
    assert_eq!((seen.in_use, seen.queue_depth, seen.acquires.cancelled), (1, 1, 1));
    assert_ledgers_add_up(&seen);

    // The permit goes to the next in line, who is dropped before it could take it: nothing is lost on the way.
    drop(holding);
    drop(behind);
    let seen = limiter.gate().snapshot();
    assert_eq!((seen.in_use, seen.idle, seen.queue_depth), (0, 1, 0));
    assert_eq!((seen.acquires.granted, seen.acquires.cancelled), (1, 2));
    assert_ledgers_add_up(&seen);
    assert!(limiter.try_acquire().is_ok(), "the permit is free again");
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_panics_leaks_nothing() {
    let limiter = one_permit(4, 4);
    let handler = limiter.clone();
    let app = Router::new()
        .route(
            "/",
            get(async move || -> StatusCode {
                let _permit = handler.acquire().await.unwrap();
                panic!("the handler's own fault")
            }),
        )
        .layer(AdaptivePoolLayer::new(limiter.clone()));

    for _ in 0..3 {
        let call = app.clone().oneshot(Request::get("/").body(Body::empty()).unwrap());
        let ended = tokio::spawn(call).await;
        assert!(ended.unwrap_err().is_panic());
    }
    eventually(DEADLINE, async || limiter.gate().snapshot().in_use == 0).await;
    let seen = limiter.gate().snapshot();
    assert_eq!((seen.idle, seen.queue_depth), (1, 0));
    assert_eq!((seen.acquires.started, seen.acquires.granted), (3, 3));
    assert_eq!(seen.admissions.admitted, 3);
    assert_ledgers_add_up(&seen);
}
