//! What `tracing` is told by the observer of the feature `tracing`.
#![cfg(feature = "tracing")]

mod support;

use std::{
    convert::Infallible,
    fmt::Debug,
    sync::{Arc, Mutex},
    time::Duration,
};

use support::{
    eventually,
    line::line_up,
    sim::{Refused, Sim},
};
use tower_adaptive_pool::{
    AdaptivePool, Backend, ConnectionState, Limiter, Place, QueueDepth, Tracing, Verdict,
};
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
    subscriber::DefaultGuard,
};
use tracing_subscriber::{
    Layer,
    layer::{Context, SubscriberExt},
    registry,
};

const DEADLINE: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_millis(750);

/// One event: its level, its message, and its other fields as `name=value`.
#[derive(Clone, Debug, Default)]
struct Line {
    level: Option<Level>,
    message: String,
    fields: Vec<String>,
}

/// Keeps the events of our target.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<Line>>>);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            name => self.fields.push(format!("{name}={value:?}")),
        }
    }
}

impl<S: Subscriber> Layer<S> for Log {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target().starts_with("tower_adaptive_pool") {
            let mut line = Line { level: Some(*event.metadata().level()), ..Line::default() };
            event.record(&mut line);
            self.0.lock().unwrap().push(line);
        }
    }
}

impl Log {
    /// Listens on this thread, which under a test's runtime is the only one.
    fn listen() -> (Self, DefaultGuard) {
        let log = Self::default();
        let guard = tracing::subscriber::set_default(registry().with(log.clone()));
        (log, guard)
    }

    fn lines(&self, message: &str) -> Vec<Line> {
        let lines = self.0.lock().unwrap();
        lines.iter().filter(|line| line.message == message).cloned().collect()
    }
}

impl Line {
    #[track_caller]
    fn assert_is(&self, level: Level, fields: &[&str]) {
        assert_eq!(self.level, Some(level));
        for field in fields {
            assert!(self.fields.iter().any(|has| has == field), "no {field} in {:?}", self.fields);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn refusals_and_time_outs_reach_a_subscriber() {
    let (log, _guard) = Log::listen();
    let builder = Limiter::builder().name("orders").fixed_size(1).soft_cap(1).hard_cap(1);
    let limiter = builder.acquire_timeout(PATIENCE).observer(Tracing::new()).build().unwrap();
    let _held = limiter.try_acquire().unwrap();
    let mut line = line_up(&limiter, 1);

    assert!(matches!(limiter.gate().admit(), Verdict::Shed(_)));
    assert!(limiter.acquire().await.is_err());
    assert!(limiter.try_acquire().is_err());
    assert!(line.remove(0).await.is_err());

    let refused = log.lines("refused");
    assert_eq!(refused.len(), 3, "{refused:?}");
    let common = [r#"pool="orders""#, "queue_depth=1", "retry_after_s=1"];
    for (line, own) in refused.iter().zip([
        [r#"by="layer""#, r#"reason="hard_cap""#],
        [r#"by="gate""#, r#"reason="hard_cap""#],
        [r#"by="gate""#, r#"reason="none_idle""#],
    ]) {
        line.assert_is(Level::DEBUG, &own);
        line.assert_is(Level::DEBUG, &common);
    }
    let [timed_out] = &log.lines("acquire timed out")[..] else { panic!("one time-out") };
    timed_out.assert_is(Level::WARN, &[r#"pool="orders""#, r#"code="pool_wait_timeout""#]);
    let error = timed_out.fields.iter().find(|field| field.starts_with("error=")).expect("an error");
    assert!(error.contains("no connection within 750ms (acquire_timeout)"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn changes_of_size_reach_a_subscriber_with_their_reason() {
    let (log, _guard) = Log::listen();
    let law = QueueDepth { threshold: 2, grow_factor: 3.0, ..QueueDepth::default() };
    let builder = Limiter::builder().name("orders").min_size(1).max_size(3).controller(law);
    let limiter = builder.observer(Tracing::new()).build().unwrap();
    let limit = || limiter.gate().snapshot().limit;

    let held = limiter.try_acquire().unwrap();
    let line = line_up(&limiter, 5);
    eventually(DEADLINE, async || limit() == 3).await;
    drop((line, held));
    eventually(DEADLINE, async || limit() == 1).await;

    let resized = log.lines("limit changed");
    let [grown, shrunk] = &resized[..] else { panic!("there and back: {resized:?}") };
    let pool = r#"pool="orders""#;
    let reason = "reason=QueueOverThreshold { queue_depth: 5, threshold: 2 }";
    grown.assert_is(Level::INFO, &[pool, "from=1", "to=3", reason]);
    shrunk.assert_is(Level::INFO, &[pool, "from=3", "to=1"]);
    let reason = shrunk.fields.iter().find(|field| field.starts_with("reason=Drained"));
    assert!(reason.is_some(), "{shrunk:?}");
}

#[tokio::test(start_paused = true)]
async fn dials_and_what_they_fail_of_reach_a_subscriber() {
    let (log, _guard) = Log::listen();
    let sim = Sim::default();
    sim.go_down(true);
    let builder = AdaptivePool::builder(sim.clone()).name("orders").fixed_size(2).max_dialing(1);
    let pool = builder.observer(Tracing::new()).build().unwrap();
    eventually(DEADLINE, async || pool.snapshot().dial_failures == 3).await;
    sim.go_down(false);
    pool.ready().await.unwrap();

    let failed = log.lines("dial failed");
    assert_eq!(failed.len() as u64, pool.snapshot().dial_failures);
    failed[0].assert_is(Level::WARN, &[r#"pool="orders""#, &format!("error={Refused}")]);
    let opened = log.lines("connection opened");
    assert_eq!(opened.len(), 2);
    opened[0].assert_is(Level::DEBUG, &[r#"pool="orders""#]);
}

/// A server that is never heard from again.
struct Mute;

/// A connection to it: when it is dropped, its place is given up.
struct Lost(Option<Place>);

impl Drop for Lost {
    fn drop(&mut self) {
        if let Some(place) = self.0.take() {
            place.write_off();
        }
    }
}

impl Backend for Mute {
    type Connection = Lost;
    type Error = Infallible;

    async fn dial(&self, place: Place) -> Result<Lost, Infallible> {
        Ok(Lost(Some(place)))
    }

    fn state(&self, _: &Lost) -> ConnectionState {
        ConnectionState::Ready
    }
}

#[tokio::test(start_paused = true)]
async fn a_place_that_was_written_off_reaches_a_subscriber() {
    let (log, _guard) = Log::listen();
    let builder = AdaptivePool::builder(Mute).name("orders").fixed_size(1);
    let pool = builder.observer(Tracing::new()).build().unwrap();
    pool.ready().await.unwrap();
    pool.drain(DEADLINE).await.unwrap();
    assert_eq!(pool.snapshot().written_off, 1);
    let written_off = log.lines("connection written off: the server was not heard from");
    let [line] = &written_off[..] else { panic!("one: {written_off:?}") };
    line.assert_is(Level::ERROR, &[r#"pool="orders""#]);
}
