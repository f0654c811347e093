//! What OpenTelemetry is told. Providers are injected; nothing here is global but in the one test that is about that.

mod support;

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use futures_util::FutureExt as _;
use http::{Request, Response};
use opentelemetry::{
    Context, KeyValue, Value, global,
    trace::{FutureExt as _, SpanId, SpanKind, Status, TraceContextExt, Tracer, TracerProvider},
};
use opentelemetry_sdk::{
    metrics::{
        InMemoryMetricExporter, SdkMeterProvider,
        data::{AggregatedMetrics, MetricData, ResourceMetrics},
    },
    trace::{InMemorySpanExporter, SdkTracerProvider, SpanData},
};
use support::{
    eventually,
    line::{line_up, one_permit},
    sim::Sim,
};
use tokio::time::{advance, sleep};
use tower::{Layer, Service, service_fn};
use tower_adaptive_pool::{
    AcquireError, AdaptivePool, AdaptivePoolLayer, Builder, LimitOnly, Limiter, Otel, QueueDepth, Verdict,
};

const DEADLINE: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_millis(750);
const POOL: (&str, &str) = ("db.client.connection.pool.name", "orders");

/// Providers that keep what they are told.
struct Telemetry {
    spans: InMemorySpanExporter,
    tracers: SdkTracerProvider,
    metrics: InMemoryMetricExporter,
    meters: SdkMeterProvider,
}

/// The values of one metric, by their attributes other than the pool's name.
type Series = BTreeMap<String, f64>;

/// One metric as it is exported.
#[derive(Debug, PartialEq)]
struct Metric {
    kind: &'static str,
    unit: String,
    series: Series,
}

impl Telemetry {
    fn new() -> Self {
        let spans = InMemorySpanExporter::default();
        let tracers = SdkTracerProvider::builder().with_simple_exporter(spans.clone()).build();
        let metrics = InMemoryMetricExporter::default();
        let meters = SdkMeterProvider::builder().with_periodic_exporter(metrics.clone()).build();
        Self { spans, tracers, metrics, meters }
    }

    fn observer(&self) -> Otel<SdkTracerProvider> {
        Otel::new(self.tracers.clone(), &self.meters)
    }

    /// A builder of a limiter of one permit that is observed.
    fn one_permit(&self) -> Builder<LimitOnly> {
        let builder = Limiter::builder().name("orders").fixed_size(1).soft_cap(1).hard_cap(2).seed(7);
        builder.acquire_timeout(PATIENCE).observer(self.observer())
    }

    fn spans(&self) -> Vec<SpanData> {
        self.spans.get_finished_spans().unwrap()
    }

    /// Every metric as of now, by its name.
    fn metrics(&self) -> BTreeMap<String, Metric> {
        self.metrics.reset();
        self.meters.force_flush().unwrap();
        let exported = self.metrics.get_finished_metrics().unwrap();
        let scopes = exported.iter().flat_map(ResourceMetrics::scope_metrics);
        let metrics = scopes.flat_map(|scope| {
            assert_eq!(scope.scope().name(), "tower-adaptive-pool");
            scope.metrics()
        });
        metrics
            .map(|metric| {
                let (kind, series) = match metric.data() {
                    AggregatedMetrics::F64(data) => values(data, |value| value),
                    AggregatedMetrics::I64(data) => values(data, |value| value as f64),
                    AggregatedMetrics::U64(data) => values(data, |value| value as f64),
                };
                (metric.name().to_owned(), Metric { kind, unit: metric.unit().to_owned(), series })
            })
            .collect()
    }

    fn series(&self, name: &str) -> Series {
        self.metrics().remove(name).map(|metric| metric.series).unwrap_or_default()
    }
}

fn values<T: Copy>(data: &MetricData<T>, number: impl Fn(T) -> f64) -> (&'static str, Series) {
    match data {
        MetricData::Gauge(gauge) => {
            let points = gauge.data_points();
            ("gauge", points.map(|point| (labels(point.attributes()), number(point.value()))).collect())
        }
        MetricData::Sum(sum) => {
            let kind = if sum.is_monotonic() { "counter" } else { "up-down counter" };
            let points = sum.data_points();
            (kind, points.map(|point| (labels(point.attributes()), number(point.value()))).collect())
        }
        _ => ("histogram", Series::new()),
    }
}

/// The attributes in the order of their names, without the pool's name, which all must have.
fn labels<'a>(attributes: impl Iterator<Item = &'a KeyValue>) -> String {
    let mut all: BTreeMap<_, _> =
        attributes.map(|pair| (pair.key.to_string(), pair.value.to_string())).collect();
    assert_eq!(all.remove(POOL.0).as_deref(), Some(POOL.1), "every series says whose it is");
    let all: Vec<_> = all.into_iter().map(|(key, value)| format!("{key}={value}")).collect();
    all.join(" ")
}

fn series<const N: usize>(expected: [(&str, u64); N]) -> Series {
    expected.map(|(labels, value)| (labels.to_owned(), value as f64)).into()
}

#[track_caller]
fn attribute<'a>(span: &'a SpanData, key: &str) -> &'a Value {
    let found = span.attributes.iter().find(|pair| pair.key.as_str() == key);
    &found.unwrap_or_else(|| panic!("no {key} in {:?}", span.attributes)).value
}

#[tokio::test(start_paused = true)]
async fn the_six_metrics_exist_and_counters_start_at_zero() {
    let telemetry = Telemetry::new();
    let _limiter = telemetry.one_permit().build().unwrap();

    let metric = |kind, unit: &str, series| Metric { kind, unit: unit.into(), series };
    let backpressure = series([
        ("by=layer reason=soft_cap", 0),
        ("by=layer reason=estimated_wait", 0),
        ("by=layer reason=expired", 0),
        ("by=layer reason=retry_budget", 0),
        ("by=layer reason=hard_cap", 0),
        ("by=layer reason=draining", 0),
        ("by=gate reason=hard_cap", 0),
        ("by=gate reason=none_idle", 0),
    ]);
    let scale = series([("direction=grow", 0), ("direction=shrink", 0)]);
    let one = || series([("", 0)]);
    let expected = [
        ("db.pool.active_connections", metric("up-down counter", "{connection}", one())),
        ("db.pool.waiting_requests", metric("up-down counter", "{request}", one())),
        ("db.pool.backpressure_events", metric("counter", "{event}", backpressure)),
        ("db.pool.scale_events", metric("counter", "{event}", scale)),
        ("db.pool.utilization", metric("gauge", "1", one())),
        ("adaptive_pool.held_for_long", metric("counter", "{event}", one())),
    ];
    assert_eq!(telemetry.metrics(), expected.map(|(name, metric)| (name.to_owned(), metric)).into());
}

#[tokio::test(start_paused = true)]
async fn gauges_follow_the_pool() {
    let telemetry = Telemetry::new();
    let limiter = telemetry.one_permit().fixed_size(4).build().unwrap();
    let assert_shown = |active, waiting, percent| {
        assert_eq!(telemetry.series("db.pool.active_connections"), series([("", active)]));
        assert_eq!(telemetry.series("db.pool.waiting_requests"), series([("", waiting)]));
        let utilization = telemetry.series("db.pool.utilization");
        assert_eq!(utilization.into_values().map(|share| share * 100.0).collect::<Vec<_>>(), [percent]);
    };
    let mut held: Vec<_> = (0..3).map(|_| limiter.try_acquire().unwrap()).collect();
    assert_shown(3, 0, 75.0);
    held.push(limiter.try_acquire().unwrap());
    let line = line_up(&limiter, 2);
    assert_shown(4, 2, 100.0);
    drop((line, held));
    assert_shown(0, 0, 0.0);
}

#[tokio::test(start_paused = true)]
async fn scale_events_count_growth_and_shrinking_with_the_law() {
    let telemetry = Telemetry::new();
    let law = QueueDepth { threshold: 1, grow_factor: 2.0, ..QueueDepth::default() };
    let builder = telemetry.one_permit().max_size(8).hard_cap(100).acquire_timeout(DEADLINE);
    let limiter = builder.controller(law).build().unwrap();
    let limit = || limiter.gate().snapshot().limit;

    // 1 → 2 → 4 → 8 and back.
    let held = limiter.try_acquire().unwrap();
    let line = line_up(&limiter, 50);
    eventually(DEADLINE, async || limit() == 8).await;
    let grown = series([("direction=grow", 3), ("direction=shrink", 0)]);
    assert_eq!(telemetry.series("db.pool.scale_events"), grown);

    drop((line, held));
    eventually(DEADLINE, async || limit() == 1).await;
    let both = series([("direction=grow", 3), ("direction=shrink", 3)]);
    assert_eq!(telemetry.series("db.pool.scale_events"), both);
}

#[tokio::test(start_paused = true)]
async fn a_change_of_the_bounds_that_moves_the_limit_is_a_scale_event() {
    let telemetry = Telemetry::new();
    let limiter = telemetry.one_permit().max_size(8).build().unwrap();
    limiter.gate().set_size(4, 8).unwrap();
    limiter.gate().set_size(1, 2).unwrap();
    assert_eq!(limiter.gate().snapshot().limit, 1, "at rest it follows base_limit");
    let both = series([("direction=grow", 1), ("direction=shrink", 1)]);
    assert_eq!(telemetry.series("db.pool.scale_events"), both);

    limiter.gate().set_size(1, 4).unwrap();
    assert_eq!(telemetry.series("db.pool.scale_events"), both, "the limit has not moved");
}

#[tokio::test(start_paused = true)]
async fn a_hold_past_the_bound_is_counted_once_with_a_pool_and_with_a_limiter() {
    const BOUND: Duration = Duration::from_millis(500);
    let held_for_long = |telemetry: &Telemetry| telemetry.series("adaptive_pool.held_for_long");
    let telemetry = Telemetry::new();
    let limiter = telemetry.one_permit().leak_warning_after(BOUND).build().unwrap();
    let brief = limiter.acquire().await.unwrap();
    sleep(BOUND * 9 / 10).await;
    drop(brief);
    let leaked = limiter.acquire().await.unwrap();
    sleep(BOUND * 9 / 10).await;
    assert_eq!(
        held_for_long(&telemetry),
        series([("", 0)]),
        "not yet, and never for who gave it back in time"
    );
    sleep(BOUND * 10).await;
    assert_eq!(held_for_long(&telemetry), series([("", 1)]));
    drop(leaked);
    let _again = limiter.acquire().await.unwrap();
    sleep(BOUND * 2).await;
    assert_eq!(held_for_long(&telemetry), series([("", 2)]), "once for each hold");

    let telemetry = Telemetry::new();
    let builder = AdaptivePool::builder(Sim::default()).name("orders").fixed_size(1);
    let pool = builder.leak_warning_after(BOUND).observer(telemetry.observer()).build().unwrap();
    let _leaked = pool.acquire().await.unwrap();
    sleep(BOUND * 2).await;
    assert_eq!(held_for_long(&telemetry), series([("", 1)]));
}

#[tokio::test(start_paused = true)]
async fn backpressure_events_equal_the_ledgers() {
    let telemetry = Telemetry::new();
    let limiter = telemetry.one_permit().soft_cap(4).hard_cap(8).build().unwrap();
    let gate = limiter.gate().clone();
    let admit = |times| (0..times).filter(|_| matches!(gate.admit(), Verdict::Shed(_))).count() as u64;

    let held = limiter.try_acquire().unwrap();
    assert!(limiter.try_acquire().is_err() && limiter.try_acquire().is_err());
    let mut line = line_up(&limiter, 6);
    let soft = admit(200);
    line.extend(line_up(&limiter, 2));
    let hard = admit(5);
    for _ in 0..3 {
        assert!(limiter.acquire().await.is_err());
    }
    drop((line, held));
    limiter.drain(Duration::ZERO).await.unwrap();
    let draining = admit(7);

    assert!(soft > 0 && soft < 200, "on the ramp some are refused: {soft}");
    let expected = series([
        ("by=layer reason=soft_cap", soft),
        ("by=layer reason=estimated_wait", 0),
        ("by=layer reason=expired", 0),
        ("by=layer reason=retry_budget", 0),
        ("by=layer reason=hard_cap", hard),
        ("by=layer reason=draining", draining),
        ("by=gate reason=hard_cap", 3),
        ("by=gate reason=none_idle", 2),
    ]);
    assert_eq!(telemetry.series("db.pool.backpressure_events"), expected);
    let seen = gate.snapshot();
    assert_eq!((hard, draining), (5, 7));
    assert_eq!(seen.admissions.shed, soft + hard + draining);
    assert_eq!(seen.acquires.shed, 3 + 2);
}

#[tokio::test(start_paused = true)]
async fn an_acquire_time_out_is_one_span_made_afterwards() {
    let telemetry = Telemetry::new();
    let limiter = telemetry.one_permit().build().unwrap();
    let _held = limiter.try_acquire().unwrap();
    let _line = line_up(&limiter, 1);

    let tracer = telemetry.tracers.tracer("application");
    let request = tracer.start("GET /orders");
    let context = Context::new().with_span(request);
    let before = SystemTime::now();
    let Err(error) = limiter.acquire().with_context(context.clone()).await else { panic!("a time-out") };
    let after = SystemTime::now();
    let AcquireError::Timeout(timeout) = &error else { panic!("{error}") };
    assert_eq!(timeout.waited, PATIENCE);

    let [span] = &telemetry.spans()[..] else { panic!("one span: {:?}", telemetry.spans()) };
    assert_eq!((span.name.as_ref(), &span.span_kind), ("adaptive_pool.acquire", &SpanKind::Internal));
    assert_eq!(span.status, Status::error(error.to_string()));
    assert_eq!(attribute(span, "error.type"), &Value::from("pool_wait_timeout"));
    assert_eq!(attribute(span, POOL.0), &Value::from(POOL.1));
    assert!((before..=after).contains(&span.end_time));
    assert_eq!(span.end_time.duration_since(span.start_time).unwrap(), PATIENCE);

    let request = context.span().span_context().clone();
    assert_eq!(span.span_context.trace_id(), request.trace_id());
    assert_eq!(span.parent_span_id, request.span_id());
    assert_eq!(span.instrumentation_scope.name(), "tower-adaptive-pool");
}

#[tokio::test(start_paused = true)]
async fn an_acquire_time_out_without_a_caller_s_context_is_a_root_span() {
    let telemetry = Telemetry::new();
    let limiter = telemetry.one_permit().build().unwrap();
    let _held = limiter.try_acquire().unwrap();
    assert!(limiter.acquire().await.is_err());
    let [span] = &telemetry.spans()[..] else { panic!("one span: {:?}", telemetry.spans()) };
    assert_eq!(span.parent_span_id, SpanId::INVALID);
}

#[tokio::test(start_paused = true)]
async fn a_time_out_because_nothing_could_be_dialed_says_so() {
    let telemetry = Telemetry::new();
    let sim = Sim::default();
    sim.go_down(true);
    sim.dial_takes(PATIENCE * 2);
    let builder = AdaptivePool::builder(sim.clone()).name("orders").acquire_timeout(PATIENCE);
    let pool = builder.observer(telemetry.observer()).build().unwrap();
    assert!(pool.acquire().await.is_err());
    let [span] = &telemetry.spans()[..] else { panic!("one span: {:?}", telemetry.spans()) };
    assert_eq!(attribute(span, "error.type"), &Value::from("pool_wait_timeout"), "nothing has failed yet");

    // The first dial has failed, and the next one is under way.
    sleep(PATIENCE).await;
    assert!(pool.acquire().await.is_err());
    assert_eq!(attribute(&telemetry.spans()[1], "error.type"), &Value::from("pool_dial_timeout"));

    // Between two dials, with no time to wait for the next one.
    sim.dial_takes(Duration::ZERO);
    let codes = async || {
        let _ = pool.acquire().await;
        telemetry.spans().last().map(|span| attribute(span, "error.type").clone())
    };
    eventually(PATIENCE * 20, async || codes().await == Some(Value::from("pool_dial_failed"))).await;
}

#[tokio::test(start_paused = true)]
async fn only_time_outs_make_spans() {
    let telemetry = Telemetry::new();
    let limiter = telemetry.one_permit().build().unwrap();

    // At once; after a wait; refused; cancelled.
    let held = limiter.acquire().await.unwrap();
    let mut line = line_up(&limiter, 2);
    assert!(limiter.acquire().await.is_err());
    advance(PATIENCE / 2).await;
    drop(held);
    drop(line.remove(0).await.unwrap());
    drop(line);
    let seen = limiter.gate().snapshot().acquires;
    assert_eq!((seen.granted, seen.shed, seen.cancelled), (2, 1, 1));
    assert_eq!(telemetry.spans().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_shed_is_shown_on_the_request_s_span() {
    let telemetry = Telemetry::new();
    let limiter = telemetry.one_permit().soft_cap(2).build().unwrap();
    let mut service = AdaptivePoolLayer::new(limiter.clone())
        .layer(service_fn(async |_: Request<()>| Ok::<_, AcquireError>(Response::new(()))));
    let tracer = telemetry.tracers.tracer("application");
    let mut ask = |name: &'static str| {
        let context = Context::new().with_span(tracer.start(name));
        let guard = context.clone().attach();
        let response = service.call(Request::new(())).now_or_never().unwrap().unwrap();
        drop(guard);
        context.span().end();
        response
    };

    ask("admitted");
    let _held = limiter.try_acquire().unwrap();
    let _line = line_up(&limiter, 2);
    let refused = ask("refused");

    let spans = telemetry.spans();
    let [admitted, shed] = &spans[..] else { panic!("the requests' spans and no more: {spans:?}") };
    assert!(admitted.attributes.is_empty(), "{:?}", admitted.attributes);
    assert_eq!(attribute(shed, "adaptive_pool.shed.reason"), &Value::from("hard_cap"));
    assert_eq!(attribute(shed, "adaptive_pool.queue.depth"), &Value::I64(2));
    let told = refused.headers()[http::header::RETRY_AFTER].to_str().unwrap().parse().unwrap();
    assert_eq!(attribute(shed, "adaptive_pool.retry_after"), &Value::I64(told));
    assert_eq!(shed.status, Status::Unset, "whether a 503 is an error is for the request's span to say");
}

#[tokio::test(start_paused = true)]
async fn without_an_observer_nothing_is_told() {
    let telemetry = Telemetry::new();
    global::set_tracer_provider(telemetry.tracers.clone());
    global::set_meter_provider(telemetry.meters.clone());

    let ordeal = async |limiter: &Limiter| {
        let _held = limiter.try_acquire().unwrap();
        let line = line_up(limiter, 2);
        assert!(limiter.acquire().await.is_err(), "refused");
        drop(line);
        assert!(limiter.acquire().await.is_err(), "timed out");
        limiter.gate().set_size(1, 5).unwrap();
    };
    ordeal(&one_permit(2, 2)).await;
    assert_eq!(telemetry.spans().len(), 0);
    assert!(telemetry.metrics().is_empty());

    // The same, observed: the global providers would have heard of it.
    let observed = telemetry.one_permit().observer(Otel::global()).build().unwrap();
    ordeal(&observed).await;
    assert_eq!(telemetry.spans().len(), 2, "one for each of the two observers");
}

#[tokio::test(start_paused = true)]
async fn the_gauges_of_a_limiter_that_is_gone_fall_silent() {
    let telemetry = Telemetry::new();
    let limiter = telemetry.one_permit().build().unwrap();
    let gate = limiter.gate().downgrade();
    drop(limiter);
    // Whatever the driver still held goes with its task.
    eventually(DEADLINE, async || gate.upgrade().is_none()).await;
    assert_silent(&telemetry);
}

#[tokio::test(start_paused = true)]
async fn the_gauges_of_a_pool_that_is_gone_fall_silent() {
    let telemetry = Telemetry::new();
    let builder = AdaptivePool::builder(Sim::default()).name("orders").observer(telemetry.observer());
    let pool = builder.build().unwrap();
    pool.ready().await.unwrap();
    drop(pool.acquire().await.unwrap());
    let gate = pool.gate().clone();
    drop(pool);
    let active = telemetry.series("db.pool.active_connections");
    assert_eq!(active, series([("", 0)]), "whoever has the gate still asks it");

    let weak = gate.downgrade();
    drop(gate);
    eventually(DEADLINE, async || weak.upgrade().is_none()).await;
    assert_silent(&telemetry);
}

fn assert_silent(telemetry: &Telemetry) {
    let metrics = telemetry.metrics();
    for name in ["db.pool.active_connections", "db.pool.waiting_requests", "db.pool.utilization"] {
        let silent = metrics.get(name).is_none_or(|metric| metric.series.is_empty());
        assert!(silent, "{name}: {:?}", metrics[name]);
    }
    assert_eq!(metrics["db.pool.scale_events"].series.len(), 2, "what was counted stays counted");
}
