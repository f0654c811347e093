//! The default law: grows while growth pays.

mod demand;
mod grow;
mod judge;
mod mechanism;
mod probe;
mod throughput;

use std::time::{Duration, Instant};

use super::{Controller, Decision, Reason, Sample, UseTimes};
use crate::config::Problem;
use demand::Demand;
pub use mechanism::Mechanism;
use probe::Probes;
use throughput::Throughput;

/// Evidence counts from so many uses after a move, but between so many seconds: the connections just put to use or out of it
/// have had their effect by then.
const SETTLE: (f64, f64, f64) = (1.0, 0.020, 5.0);
/// A wait that is worth a connection to somebody, in seconds, whatever the load seems to need.
const LONG_WAIT: f64 = 0.020;
/// One shrink: at most to this ratio, once in so many seconds, to so many times the peak use.
const SHRINK: (f64, f64, f64) = (0.85, 0.200, 1.15);
/// And not before so many uses went without a wait.
const SHRINK_USES: f64 = 4.0;
/// Completions before a limit is judged.
const FEWEST: f64 = 10.0;

/// Grows while growth pays: the default law.
///
/// It acts when requests wait: somebody has waited for a twentieth of their time (20 ms to 1 s), [`threshold`](Self::threshold)
/// or more wait, the queue is full, or requests are refused while every connection is in use. It is always in one
/// [`Phase`](crate::Phase); [`Reason`](crate::Reason) has the figures of each decision.
///
/// - **`FollowDemand`**: the limit grows towards the need n = 1.1 a + √a, with a = arrivals/s × unloaded use time (Little's law;
///   room for scatter by square-root staffing, Halfin and Whitt, 1981). While uses take at most 1.35 times as long as
///   unloaded, the limit grows by half of itself in the time of one use, and past the need by a quarter each 100 ms. A loaded
///   database takes steps: after 100 ms and as many completions as connections the limit grows 2^e times, as long as the elasticity
///   e of throughput is believed to be at least [`pays`](Self::pays). What is believed starts from the Universal Scalability
///   Law (Gunther, 1993), e = 1.5 E − 0.5 ± 0.4, where E is unloaded ÷ present use time, and follows what was seen at other limits.
/// - **`Hold`**: growth does not pay, or too little is known. When it has just stopped paying, the limit goes back to the one seen to
///   be worth most (`TakenBack`), where worth = ln throughput − `pays` × ln limit; the next growth waits for twice as long each
///   time. A limit that is proven to be worth more, by three standard errors, is taken at once.
/// - **`Probe`**: a limit 15 % away is tried, the first time up to where the scalability law has its knee; steps widen up to 60 % while
///   probes succeed. A probe ends when the elasticity between the two limits is decided, after 2 s or 10 uses in any case; it is
///   kept when growth in its direction pays. Each that fails doubles the wait, up to 64 times as long as the probe lasted.
/// - **`Shrink`**: nobody has waited for [`shrink_after`](Self::shrink_after) or four uses. The limit falls by 15 % each 200 ms
///   to 1.15 times the peak use of the last periods, and never below `base_limit`.
///
/// Throughput is measured in two ways: completions counted, and the logarithms of use times. A database that is twice as slow adds
/// ln 2 to each logarithm, however long and short queries are mixed; where the two measures contradict each other, the logarithms
/// are believed. Evidence loses half of its weight in 20 s and 4,000 completions. When the throughput of one limit has moved by a
/// fifth and four standard errors, the database has changed: all evidence is scaled to it, and little of it is still believed.
///
/// While nothing ends at all, the limit grows 1.5 times, ever more rarely: whoever waits may wait for uses that hold their connection
/// for long. One of several instances sees e too large; it corrects for its [`share`](crate::Builder::share) f of the load,
/// e = 1 − (1 − e_own) ÷ f. A failed dial, or one failure in twenty uses, vetoes growth.
///
/// ```
/// use tower_adaptive_pool::PaidGrowth;
///
/// let law = PaidGrowth { pays: 0.2, ..PaidGrowth::default() }; // fewer connections, a little less throughput
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PaidGrowth {
    /// Waiters that ask for growth where the load needs more connections. Default 4: a queue of a few is already people
    /// waiting.
    pub threshold: usize,
    /// Least elasticity at which growth pays, 0 to 1. Default 0.1: twice the connections do 7 % more work. Near the
    /// knee that costs half a percent of the throughput, and saves a tenth of the connections.
    pub pays: f64,
    /// How long nobody must have waited before a shrink. Default 500 ms: longer than the pauses of steady traffic.
    pub shrink_after: Duration,
}

impl Default for PaidGrowth {
    fn default() -> Self {
        Self { threshold: 4, pays: 0.1, shrink_after: Duration::from_millis(500) }
    }
}

impl PaidGrowth {
    /// The law at work, for a [`Controller`] of one's own that wraps it.
    pub fn into_controller(self) -> impl Controller {
        PaidGrowthController::new(self)
    }

    pub(crate) fn check(&self, problems: &mut Vec<Problem>) {
        if self.threshold == 0 {
            problems.push(Problem::new("threshold", 0, "must be at least 1 waiter"));
        }
        if !(0.0..1.0).contains(&self.pays) {
            problems.push(Problem::new("pays", self.pays, "must be at least 0 and under 1, such as 0.1"));
        }
        Problem::unless_positive(problems, "shrink_after", self.shrink_after);
    }
}

/// [`PaidGrowth`] at work: its settings and what it remembers. Of a fixed size: a tick allocates nothing.
#[derive(Debug)]
pub(crate) struct PaidGrowthController {
    law: PaidGrowth,
    /// Switched off, in a simulation.
    without: Option<Mechanism>,
    share: f64,
    demand: Demand,
    model: Throughput,
    probes: Probes,
    limit: usize,
    in_use: usize,
    moved: Option<Instant>,
    /// Completions since then, and when the last one was.
    since_move: u64,
    ended: Option<Instant>,
    saturated: bool,
    counts_from: Option<Instant>,
    quiet_since: Option<Instant>,
    shrunk: Option<Instant>,
    hungry_since: Option<Instant>,
    /// How often growth was taken back: each time the next one waits for twice as long.
    taken_back: i32,
}

impl PaidGrowthController {
    pub fn new(law: PaidGrowth) -> Self {
        Self {
            law,
            without: None,
            share: 1.0,
            demand: Demand::default(),
            model: Throughput::new(),
            probes: Probes::new(),
            limit: 0,
            in_use: 0,
            moved: None,
            since_move: 0,
            ended: None,
            saturated: false,
            counts_from: None,
            quiet_since: None,
            shrunk: None,
            hungry_since: None,
            taken_back: 0,
        }
    }

    /// Without one of its parts, to see what that earns.
    pub fn without(law: PaidGrowth, mechanism: Mechanism) -> Self {
        Self { without: Some(mechanism), ..Self::new(law) }
    }

    fn has(&self, mechanism: Mechanism) -> bool {
        self.without != Some(mechanism)
    }

    fn observe(&mut self, now: Instant, sample: &Sample) {
        let share = if sample.share > 0.0 && sample.share < 1.0 { sample.share } else { 1.0 };
        if (share - self.share).abs() > f64::EPSILON {
            // What was seen is of another part of the database.
            (self.share, self.model, self.probes) = (share, Throughput::new(), Probes::new());
            self.model.begin(self.limit);
        }
        let seconds = self.demand.observe(now, sample);
        self.model.set_scatter(sample.use_time_scatter, self.demand.ln_variance());
        if sample.limit != self.limit {
            (self.limit, self.moved, self.since_move, self.saturated) = (sample.limit, Some(now), 0, false);
            self.model.begin(sample.limit);
        }
        // What failed is no work done, however fast it was.
        let useful = sample.completions.saturating_sub(sample.failures) as f64;
        let measured = sample.failures == 0 && self.has(Mechanism::Logarithms);
        let uses = if measured { sample.use_times } else { UseTimes::default() };
        // More than the limit are in use where it was lowered: that says nothing of either.
        let saturated = sample.queue_depth > 0 && sample.in_use == sample.limit;
        self.since_move += sample.completions;
        if sample.completions > 0 {
            self.ended = Some(now);
        }
        if !saturated || !self.saturated {
            let settle = (SETTLE.0 * self.demand.usual_use_s().unwrap_or(0.0)).clamp(SETTLE.1, SETTLE.2);
            self.counts_from = Some(now + duration(settle));
        } else if seconds > 0.0 && self.counts_from.is_some_and(|from| now > from) {
            self.model.add(useful, seconds, uses);
            if self.has(Mechanism::Changed)
                && let Some(faster) = self.model.changed()
            {
                self.demand.shift(faster);
                self.probes = Probes::new();
                self.taken_back = 0;
            }
        }
        if seconds > 0.0 && !saturated && self.has(Mechanism::FreeTicks) {
            let in_use = f64::midpoint(self.in_use as f64, sample.in_use as f64);
            self.model.add_free(in_use, useful, seconds, uses);
        }
        (self.in_use, self.saturated) = (sample.in_use, saturated);
        self.model.decay(now, sample.completions);
    }

    /// Whether the queue asks for more.
    fn hungry(&self, sample: &Sample) -> bool {
        let queue_depth = sample.queue_depth;
        let lasting = self.demand.queue() >= self.law.threshold as f64;
        queue_depth > 0
            && (sample.impatient
                || queue_depth >= sample.hard_cap
                || (sample.refused > 0 && sample.in_use >= sample.limit)
                || (queue_depth >= self.law.threshold && lasting)
                || estimated_wait(sample) > LONG_WAIT)
    }

    /// Connections that the load needs; infinite while it is not known how long a use takes.
    fn need(&self, sample: &Sample) -> f64 {
        if !self.has(Mechanism::Need) {
            return f64::INFINITY;
        }
        let lasting = self.demand.queue() >= self.law.threshold as f64 && self.share >= 1.0;
        let (fast, steady) = self.demand.arrivals_per_s();
        let arrivals = if lasting { fast.max(steady) } else { steady };
        self.demand.need(arrivals, sample.queue_depth, self.unloaded())
    }

    /// How long a use takes that is neither short nor long where the database has nothing else to do, in seconds.
    fn unloaded_use_s(&self) -> f64 {
        self.unloaded().map_or(1.0, f64::exp)
    }

    /// The mean logarithm of a use where the database has nothing else to do.
    fn unloaded(&self) -> Option<f64> {
        [self.model.unloaded(), self.demand.unloaded()].into_iter().flatten().min_by(f64::total_cmp)
    }

    /// Towards what was used of late, slowly: a high limit is a trap for the next burst where the database has a knee. Lack of
    /// load leads to `base_limit`, from either side.
    fn rest(&mut self, now: Instant, sample: &Sample) -> Decision {
        let limit = sample.limit;
        let stay = Decision { limit, reason: Reason::Steady };
        let since = *self.quiet_since.get_or_insert(now);
        let after =
            self.law.shrink_after.max(duration(SHRINK_USES * self.demand.usual_use_s().unwrap_or(0.0)));
        if now.saturating_duration_since(since) < after
            || self.shrunk.is_some_and(|at| now.saturating_duration_since(at).as_secs_f64() < SHRINK.1)
        {
            return stay;
        }
        self.taken_back = 0;
        if limit < sample.base_limit {
            self.probes.current = None;
            return Decision { limit: sample.base_limit, reason: Reason::Rested };
        }
        let peak_in_use = self.demand.peak_in_use();
        let used = ((peak_in_use as f64 * SHRINK.2).round() as usize).max(peak_in_use.saturating_add(1));
        let used = used.max(sample.base_limit);
        if used >= limit {
            return stay;
        }
        self.shrunk = Some(now);
        self.probes.current = None;
        let limit = ((limit as f64 * SHRINK.0) as usize).max(used);
        Decision { limit, reason: Reason::Drained { peak_in_use } }
    }
}

impl Controller for PaidGrowthController {
    fn on_sample(&mut self, now: Instant, sample: &Sample) -> Decision {
        let is_sane = sample.is_sane();
        if !is_sane || self.demand.is_before_the_last(now) {
            // Nonsense, or a clock set back: nothing seen or dated is worth keeping.
            *self = Self { without: self.without, ..Self::new(self.law) };
        }
        if !is_sane {
            let limit = sample.limit.max(sample.min_limit).min(sample.max_size);
            return Decision { limit, reason: Reason::Steady };
        }
        self.observe(now, sample);
        if sample.queue_depth > 0 {
            self.quiet_since = None;
        }
        let hungry = self.hungry(sample);
        self.hungry_since = hungry.then(|| self.hungry_since.unwrap_or(now));
        let mut decision = if hungry {
            self.steer(now, sample)
        } else if sample.queue_depth == 0 {
            self.rest(now, sample)
        } else {
            Decision { limit: sample.limit, reason: Reason::Steady }
        };
        decision.limit = decision.limit.max(sample.min_limit).min(sample.max_size);
        decision
    }
}

/// Seconds until somebody who comes now is served, if uses last as long as those that ended.
fn estimated_wait(sample: &Sample) -> f64 {
    let use_time = sample.use_time.unwrap_or_default().as_secs_f64();
    use_time * sample.queue_depth as f64 / sample.limit.max(1) as f64
}

fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests;
