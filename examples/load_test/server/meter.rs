//! Watches a pool from beside it.

use std::{
    mem,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use tokio::{task::JoinHandle, time};

use super::Sizes;
use crate::{
    generator::unix_s,
    report::{Acquire, Limits, ServerSample},
};

/// Fine enough to see a peak that lasts for one dial.
const LOOK: Duration = Duration::from_millis(5);
/// Every so many looks one is kept for the timeline: each 100 ms.
const KEEP: u32 = 20;

/// The waits of all acquires that ended with a connection.
#[derive(Clone, Default)]
pub struct Waits(Arc<Mutex<Vec<Acquire>>>);

impl Waits {
    pub fn record(&self, asked: Instant) {
        let wait_ms = asked.elapsed().as_secs_f64() * 1e3;
        let acquire = Acquire { unix_s: unix_s(SystemTime::now()), wait_ms };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(acquire);
    }

    fn take(&self) -> Vec<Acquire> {
        mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// When something happened, in seconds since 1970.
#[derive(Clone, Default)]
pub struct Moments(Arc<Mutex<Vec<f64>>>);

impl Moments {
    pub fn record(&self) {
        let now = unix_s(SystemTime::now());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(now);
    }

    fn take(&self) -> Vec<f64> {
        mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What a meter saw.
#[derive(Default)]
pub struct Seen {
    pub waits: Vec<Acquire>,
    pub dials: Vec<f64>,
    pub peak: u64,
    pub limits: Option<Limits>,
    pub connection_seconds: f64,
    pub samples: Vec<ServerSample>,
}

pub struct Meter {
    seen: Arc<Mutex<Seen>>,
    waits: Waits,
    dials: Moments,
    task: JoinHandle<()>,
}

impl Meter {
    pub fn start(look: impl Fn() -> Sizes + Send + 'static) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let task = tokio::spawn(watch(seen.clone(), look));
        Self { seen, waits: Waits::default(), dials: Moments::default(), task }
    }

    pub fn with(self, waits: Waits, dials: Moments) -> Self {
        Self { waits, dials, ..self }
    }

    pub fn stop(self) -> Seen {
        self.task.abort();
        let mut seen = mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner));
        (seen.waits, seen.dials) = (self.waits.take(), self.dials.take());
        seen
    }
}

async fn watch(seen: Arc<Mutex<Seen>>, look: impl Fn() -> Sizes) {
    let mut ticks = time::interval(LOOK);
    ticks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    let mut last = Instant::now();
    for turn in 0u32.. {
        ticks.tick().await;
        let sizes = look();
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.peak = seen.peak.max(sizes.size as u64);
        seen.limits = Some(Limits::with(seen.limits, sizes.limit as u64));
        seen.connection_seconds += sizes.size as f64 * last.elapsed().as_secs_f64();
        last = Instant::now();
        if turn.is_multiple_of(KEEP) {
            seen.samples.push(ServerSample {
                unix_s: unix_s(SystemTime::now()),
                limit: sizes.limit as u64,
                in_use: sizes.in_use as u64,
                idle: sizes.idle as u64,
                reserve: sizes.reserve as u64,
                queue_depth: sizes.queue_depth as u64,
                too_many_connections: 0,
            });
        }
    }
}
