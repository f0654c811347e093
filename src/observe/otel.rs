//! Telemetry for OpenTelemetry, over its API alone: the SDK, and where it sends things, are the application's.

use std::fmt;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use opentelemetry::metrics::{Counter, Meter, MeterProvider};
use opentelemetry::trace::{Span, SpanBuilder, SpanKind, Status, TraceContextExt, TracerProvider};
use opentelemetry::{Context, KeyValue, global};

use super::{Event, Observer, ServerInfo, ShedBy};
use crate::error::{AcquireError, Shed, ShedReason};
use crate::gate::{Gate, Snapshot, WeakGate};

const SCOPE: &str = "tower-adaptive-pool";
const POOL_NAME: &str = "db.client.connection.pool.name";

/// Metrics and spans of one pool. Give it to [`Builder::observer`](crate::Builder::observer).
///
/// | Instrument | Kind, unit | What |
/// |---|---|---|
/// | `db.pool.active_connections` | ObservableUpDownCounter `{connection}` | connections held |
/// | `db.pool.waiting_requests` | ObservableUpDownCounter `{request}` | waiters |
/// | `db.pool.utilization` | ObservableGauge `1` | connections held ÷ connections that serve |
/// | `db.pool.backpressure_events` | Counter `{event}` | refusals, by `reason` and `by` |
/// | `db.pool.scale_events` | Counter `{event}` | changes of the limit, by `direction` |
/// | `adaptive_pool.held_for_long` | Counter `{event}` | holds past `leak_warning_after`, each once |
///
/// Spans are made afterwards, with the time they began, and only for what went wrong: `adaptive_pool.acquire` when an
/// acquire timed out, and a client span when a query did. Both are children of the caller's current context. A refusal
/// becomes attributes of the span that is current.
pub struct Otel<P> {
    tracers: P,
    meter: Meter,
    counters: OnceLock<Counters>,
}

/// The counters, with the attribute that all their series share.
struct Counters {
    pool: KeyValue,
    backpressure: Counter<u64>,
    scale: Counter<u64>,
    held_for_long: Counter<u64>,
}

impl<P> Otel<P>
where
    P: TracerProvider + Send + Sync + 'static,
{
    /// Telemetry into these providers. One for each pool: it carries that pool's name.
    pub fn new(tracers: P, meters: &(impl MeterProvider + ?Sized)) -> Self {
        Self { tracers, meter: meters.meter(SCOPE), counters: OnceLock::new() }
    }

    fn acquire_span(&self, gate: &Gate, error: &AcquireError, waited: Duration) {
        let Snapshot { queue_depth, in_use, size, .. } = gate.snapshot();
        let attributes = vec![
            pool_name(gate),
            KeyValue::new("error.type", error.code()),
            KeyValue::new("adaptive_pool.queue.depth", count(queue_depth)),
            KeyValue::new("adaptive_pool.in_use", count(in_use)),
            KeyValue::new("adaptive_pool.size", count(size)),
        ];
        let span = SpanBuilder::from_name("adaptive_pool.acquire").with_kind(SpanKind::Internal);
        self.failed_span(span.with_attributes(attributes), waited, error.to_string());
    }

    fn query_span(&self, gate: &Gate, ran: Duration, text: Option<&str>, code: &str, server: &ServerInfo) {
        let mut attributes = vec![
            pool_name(gate),
            KeyValue::new("db.system.name", "postgresql"),
            KeyValue::new("db.namespace", server.database.clone()),
            KeyValue::new("server.address", server.address.clone()),
            KeyValue::new("server.port", i64::from(server.port)),
            KeyValue::new("error.type", code.to_owned()),
        ];
        if code != "timeout" {
            attributes.push(KeyValue::new("db.response.status_code", code.to_owned()));
        }
        if let Some(text) = text {
            attributes.push(KeyValue::new("db.query.text", text.to_owned()));
        }
        let operation = text.and_then(|text| text.split_whitespace().next());
        let name = operation.map_or_else(|| "postgresql".to_owned(), str::to_uppercase);
        let span = SpanBuilder::from_name(name).with_kind(SpanKind::Client);
        self.failed_span(span.with_attributes(attributes), ran, format!("no result within {ran:?}"));
    }

    /// A span that ends now and began `lasted` ago, under the caller's current context.
    fn failed_span(&self, span: SpanBuilder, lasted: Duration, why: String) {
        let ended = SystemTime::now();
        let started = ended.checked_sub(lasted).unwrap_or(SystemTime::UNIX_EPOCH);
        // Resolved late: a tracer made before its provider was set would stay silent for ever.
        let tracer = self.tracers.tracer(SCOPE);
        let mut span = span.with_start_time(started).start(&tracer);
        span.set_status(Status::error(why));
        span.end_with_timestamp(ended);
    }
}

impl Otel<global::GlobalTracerProvider> {
    /// Telemetry into the global providers. Set them first: instruments bind to the meter provider of this moment.
    #[must_use]
    pub fn global() -> Self {
        Self::new(global::tracer_provider(), &*global::meter_provider())
    }
}

impl<P> Observer for Otel<P>
where
    P: TracerProvider + Send + Sync + 'static,
{
    fn attach(&self, gate: &WeakGate) {
        let Some(pool) = gate.upgrade().map(|gate| pool_name(&gate)) else { return };
        observe_gauges(&self.meter, gate, &pool);
        let counters = Counters::new(&self.meter, pool);
        counters.start_at_zero();
        let _ = self.counters.set(counters);
    }

    fn on_event(&self, gate: &Gate, event: &Event<'_>) {
        let Some(counters) = self.counters.get() else { return };
        match event {
            Event::Shed { shed, by } => {
                counters.shed(1, shed.reason, *by);
                mark_shed(shed);
            }
            Event::LimitChanged { from, to, .. } => counters.scaled(1, to > from),
            Event::AcquireTimedOut { error, waited } => self.acquire_span(gate, error, *waited),
            Event::QueryTimedOut { ran, text, code, server } => {
                self.query_span(gate, *ran, *text, code, server);
            }
            Event::HeldForLong { .. } => counters.held_for_long(1),
            Event::SlowQuery { .. }
            | Event::WouldShed { .. }
            | Event::WouldChangeLimit { .. }
            | Event::Dialed { .. }
            | Event::DialFailed { .. }
            | Event::IdleClosed { .. }
            | Event::DyingYoung {}
            | Event::WrittenOff {}
            | Event::SettingRefused { .. } => {}
        }
    }
}

impl Counters {
    fn new(meter: &Meter, pool: KeyValue) -> Self {
        let counter =
            |name, what| meter.u64_counter(name).with_unit("{event}").with_description(what).build();
        Self {
            pool,
            backpressure: counter("db.pool.backpressure_events", "Requests refused at once"),
            scale: counter("db.pool.scale_events", "Changes of the pool's limit"),
            held_for_long: counter("adaptive_pool.held_for_long", "Holds past leak_warning_after"),
        }
    }

    /// Every series exists from the start: a counter that is born at 40 never fires an `increase()` alert.
    fn start_at_zero(&self) {
        use ShedReason::{Draining, EstimatedWait, Expired, HardCap, NoneIdle, RetryBudget, SoftCap};
        for reason in [SoftCap, HardCap, EstimatedWait, Expired, RetryBudget, Draining] {
            self.shed(0, reason, ShedBy::Layer);
        }
        for reason in [HardCap, NoneIdle] {
            self.shed(0, reason, ShedBy::Gate);
        }
        self.scaled(0, true);
        self.scaled(0, false);
        self.held_for_long(0);
    }

    fn shed(&self, times: u64, reason: ShedReason, by: ShedBy) {
        let reason = KeyValue::new("reason", reason.code());
        self.backpressure.add(times, &[self.pool.clone(), reason, KeyValue::new("by", by.code())]);
    }

    fn scaled(&self, times: u64, grown: bool) {
        let direction = KeyValue::new("direction", if grown { "grow" } else { "shrink" });
        self.scale.add(times, &[self.pool.clone(), direction]);
    }

    fn held_for_long(&self, times: u64) {
        self.held_for_long.add(times, std::slice::from_ref(&self.pool));
    }
}

/// Instruments that are asked, not told. They hold the gate weakly: a callback cannot be taken back.
fn observe_gauges(meter: &Meter, gate: &WeakGate, pool: &KeyValue) {
    let up_down = |name, unit, what, read: fn(&Snapshot) -> usize| {
        let (gate, attributes) = (gate.clone(), [pool.clone()]);
        meter
            .i64_observable_up_down_counter(name)
            .with_unit(unit)
            .with_description(what)
            .with_callback(move |observer| {
                if let Some(gate) = gate.upgrade() {
                    observer.observe(count(read(&gate.snapshot())), &attributes);
                }
            })
            .build()
    };
    let active = "Connections held by callers";
    up_down("db.pool.active_connections", "{connection}", active, |seen| seen.in_use);
    let waiting = "Acquires waiting for a connection";
    up_down("db.pool.waiting_requests", "{request}", waiting, |seen| seen.queue_depth);

    let (gate, attributes) = (gate.clone(), [pool.clone()]);
    meter
        .f64_observable_gauge("db.pool.utilization")
        .with_unit("1")
        .with_description("Connections held, as a share of those that serve")
        .with_callback(move |observer| {
            if let Some(gate) = gate.upgrade() {
                let Snapshot { in_use, idle, .. } = gate.snapshot();
                let serving = (in_use + idle).max(1);
                observer.observe(in_use as f64 / serving as f64, &attributes);
            }
        })
        .build();
}

fn mark_shed(shed: &Shed) {
    let context = Context::current();
    let span = context.span();
    if span.is_recording() {
        span.set_attributes([
            KeyValue::new("adaptive_pool.shed.reason", shed.reason.code()),
            KeyValue::new("adaptive_pool.shed.class", shed.class.code()),
            KeyValue::new("adaptive_pool.queue.depth", count(shed.queue_depth)),
            KeyValue::new("adaptive_pool.retry_after", shed.retry_after.as_secs() as i64),
        ]);
    }
}

fn pool_name(gate: &Gate) -> KeyValue {
    KeyValue::new(POOL_NAME, gate.shared_name())
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl<P> fmt::Debug for Otel<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Otel").finish_non_exhaustive()
    }
}
