//! The loop that asks the controller and makes its answer come true: the only file with an interval.

use std::future::poll_fn;
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, timeout, timeout_at};

use super::counts::Counts;
use super::load::Load;
use super::{Gate, Plant, guarded};
use crate::law::{Controller, Decision, Reason, Sample};
use crate::observe::Event;

/// Between two samples: several of them in one cooldown, and well under any wait a person would notice.
pub(super) const TICK: Duration = Duration::from_millis(10);

/// Runs until the plant is gone. Parked while nothing is held or awaited and the size is `min_size`: a pool at rest
/// costs no CPU, but for a look at the age of its connections now and then.
async fn drive(
    gate: Gate,
    plant: Weak<dyn Plant>,
    mut controller: Box<dyn Controller>,
    idle_timeout: Option<Duration>,
) {
    let Some(sweep_every) = plant.upgrade().map(|plant| plant.sweep_every()) else { return };
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = Last::default();
    let mut last_sweep = Instant::now();
    loop {
        match wait(&plant, &last, sweep_every).await {
            Wake::Gone => return,
            Wake::Sweep => {
                if let Some(plant) = plant.upgrade() {
                    guarded(|| plant.sweep());
                }
                last_sweep = Instant::now();
                continue;
            }
            Wake::Busy => ticks.reset(),
        }
        last.at_rest = false;
        while !last.at_rest {
            let Some(due) = plant.upgrade().map(|plant| guarded(|| plant.expire(Instant::now().into_std())))
            else {
                return;
            };
            let next_tick = match due.flatten() {
                None => Ok(ticks.tick().await),
                Some(due) => timeout_at(due.into(), ticks.tick()).await,
            };
            if next_tick.is_err() {
                continue;
            }
            let Some(plant) = plant.upgrade() else { return };
            // Each by itself: the drop of a connection that one of them closes may panic, and wakers may.
            guarded(|| tick(&gate, &*plant, &mut *controller, &mut last));
            if let Some(cutoff) = idle_timeout.and_then(|t| Instant::now().checked_sub(t)) {
                guarded(|| close_idle(&gate, &*plant, cutoff));
            }
            if sweep_every.is_some_and(|every| last_sweep.elapsed() >= every) {
                last_sweep = Instant::now();
                guarded(|| plant.sweep());
            }
            guarded(|| gate.publish_snapshot());
        }
    }
}

/// What the driver remembers from one sample to the next.
#[derive(Default)]
struct Last {
    counts: Counts,
    dial_failures: u64,
    failures: u64,
    shed: u64,
    at_rest: bool,
    tick: Option<Instant>,
    load: Load,
}

/// Why the driver does not rest any more.
enum Wake {
    Busy,
    Sweep,
    Gone,
}

/// Rests until there is something to control, or it is time to sweep.
async fn wait(plant: &Weak<dyn Plant>, last: &Last, sweep_every: Option<Duration>) -> Wake {
    let busy = poll_fn(|cx| match plant.upgrade() {
        None => Poll::Ready(Wake::Gone),
        Some(plant) => plant.poll_busy(last.counts.acquires.started, cx.waker()).map(|()| Wake::Busy),
    });
    match sweep_every {
        None => busy.await,
        Some(every) => timeout(every, busy).await.unwrap_or(Wake::Sweep),
    }
}

fn tick(gate: &Gate, plant: &dyn Plant, controller: &mut dyn Controller, last: &mut Last) {
    let now = Instant::now();
    gate.holds().clock.set(now);
    for hold in gate.holds().overdue() {
        gate.observe(|| Event::HeldForLong { hold });
    }
    let counts = plant.sample(now.into_std());
    let (dial_failures, failures) = (gate.dial_failures(), counts.failures.wrapping_add(gate.failed_uses()));
    let shed = gate.inner.admissions.read().shed;
    let sample = Sample {
        queue_depth: counts.queue_depth,
        in_use: counts.in_use,
        peak_in_use: counts.peak_in_use,
        idle: counts.idle,
        opening: counts.opening,
        target: counts.target,
        min_size: if gate.is_dry_run() { 1 } else { counts.min_size }, // shrinking is looked at too
        max_size: counts.max_size,
        hard_cap: counts.hard_cap,
        arrivals: counts.acquires.started.wrapping_sub(last.counts.acquires.started),
        refused: shed.wrapping_sub(last.shed),
        completions: counts.completions.wrapping_sub(last.counts.completions),
        failures: failures.wrapping_sub(last.failures),
        timeouts: counts.acquires.timed_out.wrapping_sub(last.counts.acquires.timed_out),
        dial_failures: dial_failures.wrapping_sub(last.dial_failures),
        use_time: counts.use_time,
        share: gate.share(),
    };
    let elapsed = last.tick.replace(now).map_or(TICK, |before| now - before);
    last.load.sample(&counts, shed, elapsed, &gate.inner.advice);
    let now = now.into_std();
    let quiet = sample.arrivals == 0 && sample.in_use == 0 && sample.queue_depth == 0;
    last.at_rest = quiet && counts.target == counts.min_size;
    (last.counts, last.dial_failures, last.failures, last.shed) = (counts, dial_failures, failures, shed);

    // A law of the user's own that panics must not stop the loop for ever: the next tick asks it again.
    let kept = Decision { target: counts.target, reason: Reason::ControllerPanicked };
    let mut decision = guarded(|| controller.on_sample(now, &sample)).unwrap_or(kept);
    decision.target = decision.target.clamp(sample.min_size, counts.max_size);
    if gate.only_noted(counts.target, decision) {
        return;
    }
    if decision.reason != Reason::Steady {
        gate.decided(decision);
    }
    if decision.target != counts.target {
        plant.set_target(decision.target);
        resized(gate, counts.target, decision);
    }
}

fn close_idle(gate: &Gate, plant: &dyn Plant, cutoff: Instant) {
    let before = plant.counts().target;
    let closed = plant.close_idle_since(cutoff.into_std());
    if closed > 0 {
        let target = plant.counts().target;
        let decision = Decision { target, reason: Reason::IdleTimeout { closed } };
        gate.decided(decision);
        resized(gate, before, decision);
    }
}

fn resized(gate: &Gate, from: usize, decision: Decision) {
    gate.observe(|| Event::Resized { from, to: decision.target, reason: decision.reason });
}

/// Starts the driver of a plant.
pub(crate) fn start(
    runtime: &tokio::runtime::Handle,
    gate: &Gate,
    plant: &Arc<impl Plant + 'static>,
    controller: Box<dyn Controller>,
    idle_timeout: Option<Duration>,
) {
    let plant: Weak<dyn Plant> = Arc::downgrade(plant) as _;
    gate.control(plant.clone());
    let driven = Driven::new(plant.clone());
    let drive = drive(gate.clone(), plant, controller, idle_timeout);
    runtime.spawn(async move {
        let _driven = driven;
        drive.await;
    });
}

/// The driver is there, until this goes: also when its runtime is shut down before the pool is dropped.
struct Driven(Weak<dyn Plant>);

impl Driven {
    fn new(plant: Weak<dyn Plant>) -> Self {
        let driven = Self(plant);
        driven.tell(true);
        driven
    }

    fn tell(&self, driven: bool) {
        if let Some(plant) = self.0.upgrade() {
            plant.set_driven(driven);
        }
    }
}

impl Drop for Driven {
    fn drop(&mut self) {
        self.tell(false);
    }
}
