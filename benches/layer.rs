//! What a layer adds to a request it lets in, and what a refusal costs.

mod support;

use std::convert::Infallible;
use std::future::poll_fn;
use std::hint::black_box;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use criterion::BenchmarkGroup;
use criterion::measurement::WallTime;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use support::OneTask;
use tower::{Layer, Service, ServiceBuilder, service_fn};
use tower_adaptive_pool::{AdaptivePoolLayer, Class, Limiter, Permit, Terms};
use tower_resilience_adaptive::{AdaptiveLimiterLayer, Aimd};

/// What nothing here ever exceeds: requests at once, and the time one takes.
const ROOMY: usize = 50;
const PATIENT: Duration = Duration::from_secs(3600);

fn main() {
    let mut criterion = support::criterion();
    let task = OneTask::new();
    let _inside = task.runtime().enter();
    let mut group = criterion.benchmark_group("layer");
    admitted(&mut group, &task);
    refused(&mut group, &task);
    group.finish();
    criterion.final_summary();
}

/// The service under all layers: it answers at once.
fn bare()
-> impl Service<Request<()>, Response = Response<()>, Error = Infallible, Future: Send> + Clone + Send {
    service_fn(async |_: Request<()>| Ok(Response::new(())))
}

fn admitted(group: &mut BenchmarkGroup<'_, WallTime>, task: &OneTask) {
    measure(group, task, "bare", &bare());

    let tower = ServiceBuilder::new().load_shed().concurrency_limit(ROOMY).service(bare());
    measure(group, task, "load_shed_concurrency_limit", &tower);

    // The weight of a new latency, as its own example has it.
    let little = little_loadshedder::LoadShed::new(bare(), 0.01, PATIENT);
    measure(group, task, "little_loadshedder", &little);

    let aimd =
        Aimd::builder().initial_limit(ROOMY).min_limit(ROOMY).max_limit(ROOMY).latency_threshold(PATIENT);
    let aimd = AdaptiveLimiterLayer::new(aimd.build().expect("settings"));
    measure(group, task, "tower_resilience_aimd", &aimd.layer(bare()));

    let limiter = Limiter::builder().build().expect("a limiter");
    measure(group, task, "adaptive", &AdaptivePoolLayer::new(limiter.clone()).layer(bare()));
    // More than one service is behind this one's layer, as in a router: its requests are marked.
    let routes = Limiter::builder().build().expect("a limiter");
    let [routed, _other] = [(); 2].map(|()| AdaptivePoolLayer::new(routes.clone()).layer(bare()));
    let with_an_extension = || {
        let mut request = Request::new(());
        request.extensions_mut().insert(());
        request
    };
    measure_with(group, task, "bare_with_extension", &bare(), with_an_extension);
    measure_with(group, task, "adaptive_routed", &routed, with_an_extension);
    let classes = Limiter::builder().build().expect("a limiter");
    let classed = AdaptivePoolLayer::new(classes)
        .with_classifier(|request: &Request<()>| match request.uri().path() {
            "/" => Class::Critical,
            _ => Class::High,
        })
        .with_deadline_header(DEADLINE.as_str())
        .expect("a header's name");
    // A request that brings a header costs more by itself: what classes and deadlines add is over this one.
    measure_with(group, task, "bare_with_header", &bare(), with_deadline);
    // What http itself takes for the first thing that is put into a request's extensions.
    let with_extension = || {
        let mut request = with_deadline();
        request.extensions_mut().insert(Terms::from(Class::Critical));
        request
    };
    measure_with(group, task, "bare_with_header_and_extension", &bare(), with_extension);
    measure_with(group, task, "adaptive_classed", &classed.layer(bare()), with_deadline);
    group.bench_function("decision", |bencher| bencher.iter(|| limiter.gate().admit()));
}

fn refused(group: &mut BenchmarkGroup<'_, WallTime>, task: &OneTask) {
    let (limiter, _held) = exhausted();
    // The one place in the queue. It is never polled again, so it stays taken.
    let mut waiting = Box::pin(limiter.acquire());
    assert!(waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    let mut ours = AdaptivePoolLayer::new(limiter.clone()).layer(bare());
    let refusal = task.runtime().block_on(answer(&mut ours, Request::new(()))).expect("a response");
    assert_eq!(refusal.status(), StatusCode::SERVICE_UNAVAILABLE);
    measure(group, task, "refuse", &ours);

    let tower = ServiceBuilder::new().load_shed().concurrency_limit(1).service(bare());
    let mut holder = tower.clone();
    assert!(holder.poll_ready(&mut Context::from_waker(Waker::noop())).is_ready());
    // Its refusal is an error; somebody still has to make a response of it. The least there is: a status alone.
    let tower = tower::util::MapResult::new(tower, |outcome: Result<Response<()>, tower::BoxError>| {
        outcome.or_else(|error| {
            assert!(error.is::<tower::load_shed::error::Overloaded>());
            let mut response = Response::new(());
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            Ok::<_, tower::BoxError>(response)
        })
    });
    measure(group, task, "refuse_load_shed", &tower);
}

/// A limiter whose only permit is held, with room for one waiter.
fn exhausted() -> (Limiter, Permit) {
    let builder = Limiter::builder().fixed_size(1).hard_cap(1).acquire_timeout(PATIENT);
    let limiter = builder.build().expect("a limiter");
    let held = limiter.try_acquire().expect("the only permit");
    (limiter, held)
}

const DEADLINE: HeaderName = HeaderName::from_static("x-request-timeout-ms");

fn with_deadline() -> Request<()> {
    let mut request = Request::new(());
    request.headers_mut().insert(DEADLINE, HeaderValue::from_static("1500"));
    request
}

fn measure<S>(group: &mut BenchmarkGroup<'_, WallTime>, task: &OneTask, name: &str, service: &S)
where
    S: Service<Request<()>> + Clone,
{
    measure_with(group, task, name, service, || Request::new(()));
}

fn measure_with<S>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    task: &OneTask,
    name: &str,
    service: &S,
    make: impl Fn() -> Request<()> + Copy,
) where
    S: Service<Request<()>> + Clone,
{
    group.bench_function(name, |bencher| {
        bencher.to_async(task).iter_custom(|iterations| {
            let mut service = service.clone();
            async move {
                let started = Instant::now();
                for _ in 0..iterations {
                    drop(black_box(answer(&mut service, make()).await));
                }
                started.elapsed()
            }
        });
    });
}

/// One request as a server makes it: wait until the service is ready, call it, await the response.
async fn answer<S>(service: &mut S, request: Request<()>) -> Result<S::Response, S::Error>
where
    S: Service<Request<()>>,
{
    poll_fn(|context| service.poll_ready(context)).await?;
    service.call(black_box(request)).await
}
