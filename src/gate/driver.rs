//! The loop that asks the controller and makes its answer come true, and the one that keeps deadlines: the only file with an
//! interval.

use std::future::poll_fn;
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout_at};

use super::counts::Counts;
use super::load::Load;
use super::plant::Plant;
use super::{Gate, guarded};
use crate::law::{Controller, Decision, Reason, Sample};
use crate::observe::Event;

/// Between two samples: several of them in one cooldown, and well under any wait a person would notice.
pub(super) const TICK: Duration = Duration::from_millis(10);

/// The controller, with what it remembers from tick to tick. It outlives the runtime that runs it.
pub(super) struct Driver {
    controller: Box<dyn Controller>,
    upkeep: Upkeep,
    last: Last,
}

/// The driver in its task. Dropped before the plant is gone, its runtime is gone: another one may take over.
struct Seat {
    gate: Gate,
    plant: Weak<dyn Plant>,
    driver: Option<Driver>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let (Some(driver), Some(plant)) = (self.driver.take(), self.plant.upgrade()) {
            self.gate.inner.home.keep(driver);
            plant.set_driven(false);
        }
    }
}

/// Runs until the plant is gone. Parked while nothing is held or awaited, the limit is `base_limit` and nobody is expected back
/// who was refused: a pool at rest costs no CPU, but to close what has been free for too long, and for a look at the age of
/// its connections now and then.
async fn drive(mut seat: Seat) {
    let Seat { gate, plant, driver } = &mut seat;
    let Some(Driver { controller, upkeep, last }) = driver else { return };
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        match wait(plant, last, upkeep.due()).await {
            Wake::Gone => return,
            Wake::Upkeep => {
                let Some(plant) = plant.upgrade() else { return };
                upkeep.keep(gate, &*plant);
                gate.publish_snapshot();
                continue;
            }
            Wake::Busy => ticks.reset(),
        }
        last.at_rest = false;
        while !last.at_rest {
            ticks.tick().await;
            let Some(plant) = plant.upgrade() else { return };
            // Each by itself, should one of them panic.
            guarded(|| tick(gate, &*plant, &mut **controller, last));
            upkeep.keep(gate, &*plant);
            gate.publish_snapshot();
        }
    }
}

/// Answers the waiters at their deadlines. A task of its own: no user code runs in it that could hold it up.
///
/// Parked while nobody waits; awake it looks once a tick, so that a queue that is empty now and then does not wake it each time.
async fn keep_deadlines(plant: Weak<dyn Plant>) {
    loop {
        let now = Instant::now();
        let Some(due) = plant.upgrade().map(|plant| guarded(|| plant.expire(now.into_std()))) else { return };
        let due = due.flatten();
        sleep_until(due.map_or(now + TICK, |due| (now + TICK).min(due.into()))).await;
        if due.is_none() {
            poll_fn(|cx| match plant.upgrade() {
                None => Poll::Ready(()),
                Some(plant) => plant.poll_waited(cx.waker()),
            })
            .await;
        }
    }
}

/// What is closed for its age: what has been free for `idle_timeout`, and what has lived for `max_lifetime`.
struct Upkeep {
    idle_timeout: Option<Duration>,
    sweep_every: Option<Duration>,
    next_idle: Option<Instant>,
    last_sweep: Instant,
}

impl Upkeep {
    fn new(idle_timeout: Option<Duration>, sweep_every: Option<Duration>) -> Self {
        Self { idle_timeout, sweep_every, next_idle: None, last_sweep: Instant::now() }
    }

    /// When there is something to do next, though nothing happens.
    fn due(&self) -> Option<Instant> {
        let sweep = self.sweep_every.and_then(|every| self.last_sweep.checked_add(every));
        [sweep, self.next_idle].into_iter().flatten().min()
    }

    fn keep(&mut self, gate: &Gate, plant: &dyn Plant) {
        let now = Instant::now();
        if let Some(timeout) = self.idle_timeout {
            let cutoff = now.checked_sub(timeout).map(Instant::into_std);
            self.next_idle = guarded(|| {
                let (closed, next) = plant.close_idle_since(cutoff);
                if closed > 0 {
                    gate.observe(|| Event::IdleClosed { closed });
                }
                next.and_then(|since| Instant::from_std(since).checked_add(timeout))
            })
            .unwrap_or(Some(now + TICK)); // it panicked: there may be more to close
        }
        if self.sweep_every.is_some_and(|every| now.saturating_duration_since(self.last_sweep) >= every) {
            self.last_sweep = now;
            guarded(|| plant.sweep());
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
    Upkeep,
    Gone,
}

/// Rests until there is something to control, or something to close.
async fn wait(plant: &Weak<dyn Plant>, last: &Last, due: Option<Instant>) -> Wake {
    let busy = poll_fn(|cx| match plant.upgrade() {
        None => Poll::Ready(Wake::Gone),
        Some(plant) => plant.poll_busy(last.counts.acquires.started, cx.waker()).map(|()| Wake::Busy),
    });
    match due {
        None => busy.await,
        Some(due) => timeout_at(due, busy).await.unwrap_or(Wake::Upkeep),
    }
}

fn tick(gate: &Gate, plant: &dyn Plant, controller: &mut dyn Controller, last: &mut Last) {
    let now = Instant::now();
    gate.holds().clock.set(now);
    for hold in gate.holds().overdue() {
        gate.observe(|| Event::HeldForLong { hold });
    }
    let counts = plant.sample(now.into_std());
    let (dial_failures, failures) = (gate.dial_failures(), gate.failed_uses());
    let shed = gate.inner.admissions.read().shed;
    // In a dry run the way down is looked at too.
    let (min_limit, base_limit) =
        if gate.is_dry_run() { (1, 1) } else { (counts.min_limit, counts.base_limit) };
    let sample = Sample {
        queue_depth: counts.queue_depth,
        impatient: counts.impatient,
        in_use: counts.in_use,
        peak_in_use: counts.peak_in_use,
        idle: counts.idle,
        reserve: counts.reserve,
        opening: counts.opening,
        limit: counts.limit,
        min_limit,
        base_limit,
        max_size: counts.max_size,
        hard_cap: counts.hard_cap,
        arrivals: counts.acquires.started.wrapping_sub(last.counts.acquires.started),
        refused: shed.wrapping_sub(last.shed),
        completions: counts.completions.wrapping_sub(last.counts.completions),
        failures: failures.wrapping_sub(last.failures),
        timeouts: counts.acquires.timed_out.wrapping_sub(last.counts.acquires.timed_out),
        dial_failures: dial_failures.wrapping_sub(last.dial_failures),
        use_time: counts.use_time,
        use_time_scatter: counts.use_time_scatter,
        use_times: counts.use_times,
        share: gate.share(),
    };
    let elapsed = last.tick.replace(now).map_or(TICK, |before| now - before);
    last.load.sample(&counts, shed, elapsed, &gate.inner.advice);
    let now = now.into_std();
    let quiet = sample.arrivals == 0 && sample.in_use == 0 && sample.queue_depth == 0;
    last.at_rest = quiet && counts.limit == counts.base_limit && last.load.is_calm();
    if last.at_rest {
        gate.inner.advice.rest();
    }
    (last.counts, last.dial_failures, last.failures, last.shed) = (counts, dial_failures, failures, shed);

    // A law of the user's own that panics must not stop the loop for ever: the next tick asks it again.
    let kept = Decision { limit: counts.limit, reason: Reason::ControllerPanicked };
    let mut decision = guarded(|| controller.on_sample(now, &sample)).unwrap_or(kept);
    decision.limit = decision.limit.clamp(sample.min_limit, counts.max_size);
    if gate.only_noted(counts.limit, decision) {
        return;
    }
    if decision.limit != counts.limit {
        // The bounds may have been changed since the sample.
        let (from, limit) = plant.set_limit(decision.limit);
        if from != limit {
            gate.limit_changed(from, Decision { limit, ..decision });
        }
    } else if decision.reason != Reason::Steady {
        gate.decided(decision);
    }
}

/// Starts the driver of a plant.
pub(crate) fn start(
    gate: &Gate,
    plant: &Arc<impl Plant + 'static>,
    controller: Box<dyn Controller>,
    idle_timeout: Option<Duration>,
) {
    let plant: Arc<dyn Plant> = plant.clone();
    gate.control(Arc::downgrade(&plant));
    let upkeep = Upkeep::new(idle_timeout, plant.sweep_every());
    run(gate, &plant, Driver { controller, upkeep, last: Last::default() });
}

/// Runs a driver in the runtime where the gate is at home.
pub(super) fn run(gate: &Gate, plant: &Arc<dyn Plant>, driver: Driver) {
    plant.set_driven(true);
    let (gate, plant) = (gate.clone(), Arc::downgrade(plant));
    drop(gate.spawn(keep_deadlines(plant.clone())));
    drop(gate.clone().spawn(drive(Seat { gate, plant, driver: Some(driver) })));
}
