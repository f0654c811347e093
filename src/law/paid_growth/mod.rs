//! The default law: grows while growth pays.

mod evidence;
mod fit;
mod grow;
mod judge;
mod load;
mod trial;

use std::time::{Duration, Instant};

use super::{Controller, Decision, Reason, Sample};
use crate::config::Problem;
use evidence::Evidence;
use grow::{FEWEST, end_trial};
use load::Load;
use trial::Trials;

/// Evidence counts from so long after a move, and from two use times after it if that is longer, but never longer than
/// this: the connections just put to use or out of it have had their effect by then. Two, because the first to end on new
/// connections are the short ones.
const SETTLE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// A wait that is worth a connection to somebody, in seconds, whatever the load seems to need.
const LONG_WAIT: f64 = 0.020;
/// One shrink: at most to this ratio, once in so long, to so many times the peak use.
const SHRINK: (f64, Duration, f64) = (0.85, Duration::from_millis(200), 1.15);

/// The most that the limit grows by in one tick (10 ms) to where nothing was seen yet. A limit moves at no cost, but what
/// the database makes of it must show: so many were dialed in a tick when each step had to be.
const PACE: usize = 3;

/// Uses that became so many times as long, and by so much more than the limit became wider, are a collapse: noise is less.
const COLLAPSED: (f64, f64) = (2.0, 1.1);
/// So many times the use time of those that ended, uses in progress are of another kind.
const LONGER: f64 = 4.0;

/// The time in which those who wait should be served, in seconds, beside those who arrive.
const DRAIN: f64 = 0.5;

/// Grows while growth pays: the default law.
///
/// It remembers what each size completed while it was saturated (somebody waits, every connection is held), and so
/// learns the elasticity e of throughput over size: 1 when twice the connections do twice the work, 0 when they do the
/// same. It grows towards what the load needs by Little's law, further only when that was shown to pay, takes growth
/// back that was shown not to, tries sizes nearby now and then, and shrinks when nobody has waited for a while. When the
/// throughput at one size has clearly moved, the database has changed and what was seen counts for little.
///
/// An instance that is one of several on a database sees e too large; it corrects for its
/// [`share`](crate::Builder::share).
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
    share: f64,
    load: Load,
    evidence: Evidence,
    /// As of this tick: it is asked for several times in one.
    shortest_use: Option<f64>,
    trials: Trials,
    limit: usize,
    /// Growth that is under way.
    heading: Option<Heading>,
    moved: Option<Instant>,
    saturated: bool,
    counts_from: Option<Instant>,
    quiet_since: Option<Instant>,
    /// Somebody has waited for long, behind uses that are much longer than those that end.
    stuck_since: Option<Instant>,
    shrunk: Option<Instant>,
}

/// Growth to where nothing was seen yet, a few connections a tick.
#[derive(Clone, Copy, Debug)]
struct Heading {
    /// The limit and the use time, in seconds, when it began.
    from: usize,
    use_time: f64,
    to: Decision,
    by_now: usize,
}

impl PaidGrowthController {
    pub fn new(law: PaidGrowth) -> Self {
        Self {
            law,
            share: 1.0,
            load: Load::default(),
            evidence: Evidence::new(),
            shortest_use: None,
            trials: Trials::new(),
            limit: 0,
            heading: None,
            moved: None,
            saturated: false,
            counts_from: None,
            quiet_since: None,
            stuck_since: None,
            shrunk: None,
        }
    }

    fn observe(&mut self, now: Instant, sample: &Sample) {
        let share = if sample.share > 0.0 && sample.share < 1.0 { sample.share } else { 1.0 };
        if (share - self.share).abs() > f64::EPSILON {
            self.share = share;
            // What was seen is of another part of the database.
            self.evidence = Evidence::new();
            self.evidence.begin(self.limit);
            self.trials.forget();
        }
        let seconds = self.load.observe(now, sample);
        if sample.limit != self.limit {
            if self.heading.is_none() {
                self.moved = Some(now);
            }
            self.limit = sample.limit;
            self.saturated = false;
            self.evidence.begin(sample.limit);
        }
        let use_time = sample.use_time.unwrap_or_default();
        let saturated =
            sample.queue_depth > 0 && sample.in_use == sample.limit && !self.load.stalled(now, use_time);
        if !saturated || !self.saturated {
            self.counts_from = Some(now + use_time.saturating_mul(2).max(SETTLE.0).min(SETTLE.1));
        } else if seconds > 0.0 && self.counts_from.is_some_and(|from| now > from) {
            // What failed is no work done, however fast it was.
            let useful = sample.completions.saturating_sub(sample.failures);
            self.evidence.add(useful as f64, seconds);
            // With siblings on the database, a change is as likely theirs.
            if self.share >= 1.0 && self.evidence.changed() {
                self.trials.forget();
            }
        }
        self.saturated = saturated;
        let stuck = sample.impatient && self.load.use_in_progress() > LONGER * use_time.as_secs_f64();
        self.stuck_since = stuck.then(|| self.stuck_since.unwrap_or(now));
        self.evidence.decay(now);
        self.shortest_use = self.evidence.shortest_use();
    }

    /// Whether the queue asks for more.
    fn hungry(&self, sample: &Sample) -> bool {
        let queue_depth = sample.queue_depth;
        let lasting = self.load.queue() >= self.law.threshold as f64;
        let steady = self.load.steady_arrivals_per_s();
        let arrivals = if lasting { steady.max(self.load.arrivals_per_s()) } else { steady };
        let short = sample.limit as f64 + 1.0 <= self.need(arrivals, sample);
        queue_depth > 0
            && (sample.impatient
                || queue_depth >= sample.hard_cap
                || (queue_depth >= self.law.threshold && short)
                || estimated_wait(sample) > LONG_WAIT)
    }

    fn need(&self, arrivals_per_s: f64, sample: &Sample) -> f64 {
        // Those who wait already are to be served too.
        let arrivals_per_s = arrivals_per_s.max(sample.queue_depth as f64 / DRAIN);
        self.load.need(arrivals_per_s, self.shortest_use, sample.use_time)
    }

    /// Where the limit goes in this tick.
    fn pace(&mut self, now: Instant, sample: &Sample, mut decision: Decision) -> Decision {
        decision.limit = decision.limit.max(sample.min_limit).min(sample.max_size);
        let next = sample.limit.saturating_add(PACE).max(sample.min_limit);
        let is_known = self.evidence.of(decision.limit).is_some_and(|seen| seen.completions >= FEWEST);
        if decision.limit <= next || is_known {
            return decision;
        }
        self.moved = Some(now);
        let use_time = sample.use_time.map_or(f64::INFINITY, |time| time.as_secs_f64());
        self.heading = Some(Heading { from: sample.limit, use_time, to: decision, by_now: next });
        Decision { limit: next, ..decision }
    }

    /// The next tick of growth that is under way; or back to where it began, if by Little's law less is done than there.
    fn go_on(&mut self, now: Instant, sample: &Sample, heading: Heading) -> Decision {
        let Heading { from, use_time, to, .. } = heading;
        let slower = sample.use_time.unwrap_or_default().as_secs_f64() / use_time;
        let wider = sample.limit as f64 / from.max(1) as f64;
        if slower > COLLAPSED.0 && slower > COLLAPSED.1 * wider {
            self.trials.current = None;
            self.trials.cap(now, sample.limit);
            return Decision { limit: from, reason: Reason::TrialEnded { from: sample.limit, to: from } };
        }
        let decision = self.pace(now, sample, to);
        if let Some(next) = &mut self.heading {
            (next.from, next.use_time) = (from, use_time);
        }
        decision
    }

    /// Towards what was used of late, slowly: a high limit is a trap for the next burst where the database has a knee. Lack of
    /// load leads to `base_limit`, from either side.
    fn rest(&mut self, now: Instant, sample: &Sample) -> Decision {
        let limit = sample.limit;
        let stay = Decision { limit, reason: Reason::Steady };
        let since = *self.quiet_since.get_or_insert(now);
        if now.saturating_duration_since(since) < self.law.shrink_after
            || self.shrunk.is_some_and(|at| now.saturating_duration_since(at) < SHRINK.1)
        {
            return stay;
        }
        if limit < sample.base_limit {
            self.trials.current = None;
            return Decision { limit: sample.base_limit, reason: Reason::Rested };
        }
        let peak_in_use = self.load.peak_in_use();
        let used = ((peak_in_use as f64 * SHRINK.2).round() as usize).max(peak_in_use.saturating_add(1));
        let used = used.max(sample.base_limit);
        if used >= limit {
            return stay;
        }
        self.shrunk = Some(now);
        self.trials.current = None;
        let limit = ((limit as f64 * SHRINK.0) as usize).max(used);
        Decision { limit, reason: Reason::Drained { peak_in_use } }
    }
}

impl Controller for PaidGrowthController {
    fn on_sample(&mut self, now: Instant, sample: &Sample) -> Decision {
        if self.load.is_before_the_last(now) {
            *self = Self::new(self.law); // a clock set back: nothing dated is worth keeping
        }
        self.observe(now, sample);
        if sample.queue_depth > 0 {
            self.quiet_since = None;
        }
        let hungry = self.hungry(sample);
        if let Some(heading) = self.heading.take()
            && hungry
            && sample.limit == heading.by_now
            && sample.dial_failures == 0
            && sample.failures == 0
        {
            return self.go_on(now, sample, heading);
        }
        let lapsed = self.trials.current.filter(|trial| !hungry && now >= trial.until);
        let decision = if let Some(trial) = lapsed {
            // The queue asks for no more, so a trial of more has served, and one of less has nothing to show.
            self.trials.current = None;
            self.trials.postpone(now);
            let (from, to) = (trial.from, trial.to);
            let kept = Decision { limit: sample.limit, reason: Reason::TrialKept { from, to } };
            if sample.limit < trial.from { end_trial(trial) } else { kept }
        } else if hungry {
            self.grow(now, sample)
        } else if sample.queue_depth == 0 {
            self.rest(now, sample)
        } else {
            Decision { limit: sample.limit, reason: Reason::Steady }
        };
        self.pace(now, sample, decision)
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
