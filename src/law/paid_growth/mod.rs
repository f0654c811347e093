//! The default law: grows while growth pays.

mod demand;
mod mechanism;
mod probe;
mod throughput;

use std::time::{Duration, Instant};

use super::{Controller, Decision, Reason, Sample, UseTimes};
use crate::config::Problem;
use demand::Demand;
pub use mechanism::Mechanism;
use probe::Probes;
use throughput::{Estimate, Seen, Throughput};

/// Evidence counts from so many uses after a move, but between so many seconds: the connections just put to use or out of it
/// have had their effect by then. Two, because the first to end on new connections are the short ones.
const SETTLE: (f64, f64, f64) = (1.0, 0.020, 5.0);
/// A wait that is worth a connection to somebody, in seconds, whatever the load seems to need.
const LONG_WAIT: f64 = 0.020;
/// One shrink: at most to this ratio, once in so many seconds, to so many times the peak use.
const SHRINK: (f64, f64, f64) = (0.85, 0.200, 1.15);
/// And not before so many uses went without a wait.
const SHRINK_USES: f64 = 4.0;
/// So many times the unloaded use time, the database is loaded.
const LOADED: f64 = 1.35;
/// While it is not, the limit grows by this part of itself in a use time, counted from so many connections.
const PACE: (f64, f64) = (0.5, 6.0);
/// Between two growths that no evidence stands behind, in seconds; while nothing ends each is the longer the later it comes.
const COOLDOWN: f64 = 0.100;
/// After each growth that was taken back the next one waits for twice as long, so many times.
const TAKEN_BACK: i32 = 6;
/// In so many usual uses something ends, or those who wait are stuck.
const STUCK_USES: f64 = 10.0;
/// While nothing ends, each growth waits for this part of that time: the longer it lasts the rarer they are.
const STUCK_PART: f64 = 0.3;
/// Connections that are dialed ahead of those in use.
const AHEAD: usize = 4;
/// Factor of a growth of which nothing is known.
const BLIND: f64 = 1.5;
/// What is believed of growth before anything was seen: that it mostly pays. An elasticity.
const BELIEVED: Estimate = Estimate { value: 0.8, error: 0.4 };
/// What was shown while no smaller limit was seen.
const UNSEEN: Estimate = Estimate { value: BELIEVED.value, error: f64::INFINITY };
/// The least and the most of one growth, as powers of two: 11 % to double; and one past what the load seems to need.
const STEPS: (f64, f64, f64) = (0.15, 1.0, 1.25);
/// Ratio of limits between which elasticity says more than noise.
const SPAN: f64 = 1.4;
/// Standard error of an elasticity that is not yet a reason to give growth up.
const WEAK: f64 = 0.5;
/// Ratio of the next larger limit, and the most that the elasticity falls by on the way there.
const NEXT: f64 = 1.1;
const BEND: f64 = 0.7;
/// Completions before a limit is judged, and as many as it has connections.
const FEWEST: f64 = 10.0;
/// Standard errors that prove a difference that is looked at a hundred times a second.
const PROVEN: f64 = 3.0;
/// And that are enough for the way back, once growth does not pay any more.
const RETREAT: f64 = 1.0;
/// Standard errors by which a limit was seen to be worth less before growth halts below it.
const WORSE: f64 = 1.5;
/// How far elasticities lie from the one that pays, as a standard deviation: of two limits next to each other a great
/// difference is more likely noise.
const PLAUSIBLE: f64 = 1.0;
/// Failures, as one in so many completions, at which growth is not the remedy.
const ONE_IN: u64 = 20;

/// Grows while growth pays: the default law.
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
            if let Some(faster) = self.model.changed().filter(|_| self.has(Mechanism::Changed)) {
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

    /// The queue asks for more: where to go.
    fn steer(&mut self, now: Instant, sample: &Sample) -> Decision {
        let limit = sample.limit;
        let stay = |reason| Decision { limit, reason };
        if sample.in_use < limit {
            return self.grow_ahead(now, sample); // there are dials under way
        }
        if sample.in_use > limit && !self.is_stuck(now) {
            // A lower limit has no effect before the uses beyond it ended: neither the wait nor the probe has begun.
            self.moved = Some(now);
            if let Some(probe) = &mut self.probes.current {
                probe.begun = now;
            }
            return stay(Reason::Steady);
        }
        let &Sample { queue_depth, failures, dial_failures, completions, .. } = sample;
        if completions < ONE_IN.saturating_mul(failures) {
            return stay(Reason::Vetoed { queue_depth, dial_failures, failures });
        }
        let here = self.model.of(limit);
        let here =
            here.filter(|here| here.completions >= FEWEST || here.seconds > FEWEST * self.unloaded_use_s());
        if let Some(probe) = self.probes.current {
            return self.on_probe(now, sample, probe);
        }
        let proven = here.filter(|_| self.has(Mechanism::Proven));
        if let Some(best) = proven.and_then(|here| self.better(&here, sample, PROVEN, sample.max_size)) {
            return best;
        }
        if dial_failures > 0 {
            return stay(Reason::Vetoed { queue_depth, dial_failures, failures });
        }
        if limit < sample.max_size
            && let Some(grown) = self.follow_demand(now, sample)
        {
            return grown;
        }
        let Some(here) = here else {
            let estimated_wait = duration(estimated_wait(sample));
            return stay(Reason::GatheringEvidence { queue_depth, estimated_wait });
        };
        // Growth did not pay: back to what did.
        let errors = if self.share < 1.0 { PROVEN } else { RETREAT };
        if self.has(Mechanism::Retreat)
            && let Some(best) = self.better(&here, sample, errors, limit)
        {
            self.taken_back =
                if self.has(Mechanism::BackOff) { (self.taken_back + 1).min(TAKEN_BACK) } else { 0 };
            return best;
        }
        self.probe(now, sample, &here)
    }

    /// While dials are under way: as many again as are in use, so that the next ones follow at once.
    fn grow_ahead(&self, now: Instant, sample: &Sample) -> Decision {
        let &Sample { queue_depth, limit, in_use, .. } = sample;
        let can =
            sample.dial_failures == 0 && self.demand.present().is_some() && self.has(Mechanism::GrowAhead);
        if sample.opening == 0 || !can {
            return Decision { limit, reason: Reason::Steady };
        }
        let known = self.demand.unloaded().is_some();
        let rested = self.moved.is_none_or(|at| now.saturating_duration_since(at).as_secs_f64() >= COOLDOWN);
        let most = if known { 2 * in_use + AHEAD } else { in_use + AHEAD * usize::from(rested) };
        let to = self.need(sample).min(most as f64).min(self.known_worse(sample)) as usize;
        // A database that is slow to open connections may be so for its load.
        if to <= limit || !self.is_unloaded() {
            return Decision { limit, reason: Reason::Steady };
        }
        let estimated_wait = duration(estimated_wait(sample));
        Decision { limit: to, reason: Reason::FollowDemand { queue_depth, estimated_wait, needed: to } }
    }

    /// How long somebody has waited in which nothing ended, in seconds.
    fn nothing_ended_for(&self, now: Instant) -> f64 {
        let since = |at: Option<Instant>| {
            at.map_or(f64::INFINITY, |at| now.saturating_duration_since(at).as_secs_f64())
        };
        since(self.ended).min(since(self.hungry_since))
    }

    /// Nothing ends: those who wait wait for others who hold, or for a database that stands still.
    fn is_stuck(&self, now: Instant) -> bool {
        self.has(Mechanism::Stuck)
            && self.nothing_ended_for(now)
                > COOLDOWN.max(STUCK_USES * self.demand.usual_use_s().unwrap_or(0.0))
    }

    /// Whether uses take hardly longer than where nothing waits for the database, as far as that is known.
    fn is_unloaded(&self) -> bool {
        let uses = self.demand.present().zip(self.unloaded());
        uses.is_none_or(|(present, unloaded)| present <= unloaded + LOADED.ln()) && !self.demand.slows_down()
    }

    /// Grows while growth pays: as fast as an unloaded database shows its load, and step by step towards the need after that.
    fn follow_demand(&self, now: Instant, sample: &Sample) -> Option<Decision> {
        let limit = sample.limit as f64;
        let &Sample { queue_depth, .. } = sample;
        let need = self.need(sample).min(sample.max_size as f64);
        let most = self.known_worse(sample);
        if limit + 1.0 > most {
            return None;
        }
        let stay = |reason| Some(Decision { limit: sample.limit, reason });
        let to = |to: f64, reason| {
            let to = (to.min(most) as usize).max(sample.limit + 1).min(sample.max_size);
            Some(Decision { limit: to, reason })
        };
        let since = |at: Option<Instant>| {
            at.map_or(f64::INFINITY, |at| now.saturating_duration_since(at).as_secs_f64())
        };
        let rested = since(self.moved);
        let estimated_wait = duration(estimated_wait(sample));
        let reason = Reason::FollowDemand { queue_depth, estimated_wait, needed: need.ceil() as usize };
        let usual_s = self.demand.usual_use_s().unwrap_or(0.0);
        if self.is_stuck(now) {
            // More than the limit may be in use, where it was lowered.
            let next = (limit.max(sample.in_use as f64) * BLIND).ceil();
            let due = rested >= self.nothing_ended_for(now) * STUCK_PART;
            return if due { to(next, reason) } else { stay(Reason::Steady) };
        }
        if self.taken_back > 0 && rested < COOLDOWN * f64::from(self.taken_back).exp2() {
            return None;
        }
        let unloaded =
            self.demand.unloaded().is_some() && self.is_unloaded() && self.has(Mechanism::FastGrowth);
        if unloaded && need >= limit + 1.0 {
            let grown = PACE.0 * limit.max(PACE.1) * (rested / usual_s).min(1.0);
            return if grown >= 1.0 { to((limit + grown).min(need.max(limit + 1.0)), reason) } else { None };
        }
        if rested < COOLDOWN || self.since_move < sample.limit as u64 {
            let remaining = duration((COOLDOWN - rested).max(0.0));
            return stay(Reason::Cooldown { queue_depth, remaining });
        }
        if unloaded {
            return to(limit * STEPS.2, reason);
        }
        if need < limit + 1.0 {
            return None;
        }
        let unseen = Seen { limit: sample.limit, ..Seen::default() };
        let (believed, shown) = match self.model.of(sample.limit) {
            Some(here) => self.elasticity_here(&here),
            None => (self.believed(&unseen).value, UNSEEN),
        };
        if believed < self.law.pays {
            let weak = shown.error.is_finite() && shown.error > WEAK;
            return if weak { stay(Reason::GatheringEvidence { queue_depth, estimated_wait }) } else { None };
        }
        let Estimate { value: elasticity, error } = shown;
        let reason = if error.is_finite() {
            Reason::GrowthPays { queue_depth, estimated_wait, elasticity, error }
        } else {
            reason
        };
        to((limit * believed.clamp(STEPS.0, STEPS.1).exp2()).min(need), reason)
    }

    /// The middle between this limit and the next larger one that was seen to be worth less than one up to here.
    fn known_worse(&self, sample: &Sample) -> f64 {
        let limit = sample.limit;
        let worse = |more: &&Seen| {
            more.limit > limit
                && self.has(Mechanism::KnownWorse)
                && self.model.known().filter(|less| less.limit <= limit).any(|less| {
                    let gain = self.gain(less, more);
                    gain.value < -WORSE * gain.error
                })
        };
        let least = self.model.known().filter(worse).map(|seen| seen.limit).min();
        least.map_or(f64::INFINITY, |least| (limit as f64 * least as f64).sqrt())
    }

    /// What growth to this limit brought, as elasticity of the whole database: what is believed of it, and what was shown.
    ///
    /// Throughput is concave up to its knee, so the elasticity from any smaller limit is an upper bound of what is to be had
    /// here: the least of them is believed. And it falls by no more than so much to the next limit that was seen. Shown is the one with the smallest error.
    fn elasticity_here(&self, here: &Seen) -> (f64, Estimate) {
        let before = self.believed(here);
        let (mut believed, mut shown) = (before.value, UNSEEN);
        for less in self.model.known().filter(|less| less.limit as f64 * SPAN <= here.limit as f64) {
            let whole = self.elasticity(less, here);
            believed = believed.min(before.with(whole).value);
            if whole.error < shown.error {
                shown = whole;
            }
        }
        for more in self.model.known().filter(|more| more.limit as f64 >= here.limit as f64 * NEXT) {
            let Estimate { value, error } = self.elasticity(here, more);
            believed = believed.min(before.with(Estimate { value: value + BEND, error }).value);
        }
        (believed, shown)
    }

    /// What is believed of growth by what a connection brings here, in parts of what it brings unloaded: for such an E the
    /// Universal Scalability Law (Gunther) leaves an elasticity between 2 E - 1 (coherency alone) and E (contention alone). The
    /// middle is believed.
    fn believed(&self, here: &Seen) -> Estimate {
        let Some(brings) = self.brings(here).filter(|_| self.has(Mechanism::Prior)) else { return BELIEVED };
        Estimate { value: (1.5 * brings - 0.5).clamp(0.0, BELIEVED.value), ..BELIEVED }
    }

    /// What a connection brings here, in parts of what it brings where the database has nothing else to do.
    fn brings(&self, here: &Seen) -> Option<f64> {
        let seen = here.uses.ln_mean().filter(|_| here.uses.count >= 5.0);
        let mean = seen.or_else(|| self.demand.present());
        Some((self.unloaded()? - mean?).exp())
    }

    /// How throughput follows the limit from `less` to `more`, of the whole database: a share f of the load sees
    /// e_own = 1 - f (1 - e).
    fn elasticity(&self, less: &Seen, more: &Seen) -> Estimate {
        let ln_limits = (more.limit as f64 / less.limit as f64).ln();
        let Estimate { value, error } = self.model.ln_ratio(less, more);
        Estimate {
            value: 1.0 - (1.0 - value / ln_limits) / self.share,
            error: error / ln_limits / self.share,
        }
    }

    /// How much more `to` is worth than `from`: ln of the throughput, less what so many connections must bring. The less
    /// certain, the less plausible it is at all.
    fn gain(&self, from: &Seen, to: &Seen) -> Estimate {
        let ln_limits = (to.limit as f64 / from.limit as f64).ln();
        let Estimate { value, error } = self.model.ln_ratio(from, to);
        let plausible = PLAUSIBLE * ln_limits.abs();
        let doubt = if plausible > 0.0 { error.hypot(plausible) / plausible } else { 1.0 };
        let pays = 1.0 - self.share * (1.0 - self.law.pays);
        Estimate { value: value - pays * ln_limits, error: error * doubt }
    }

    /// The limit worth most of those that are worth more than this one by so many standard errors.
    fn better(&self, here: &Seen, sample: &Sample, errors: f64, most: usize) -> Option<Decision> {
        let gains = self
            .model
            .known()
            .filter(|seen| (sample.min_limit..=most).contains(&seen.limit) && seen.limit != here.limit)
            .filter(|seen| seen.completions >= FEWEST)
            .map(|seen| (seen, self.gain(here, seen)))
            .filter(|(_, gain)| gain.value > errors * gain.error);
        let worst_case = |gain: &Estimate| gain.value - gain.error;
        let (best, _) = gains.max_by(|a, b| worst_case(&a.1).total_cmp(&worst_case(&b.1)))?;
        let (less, more) = if best.limit < here.limit { (best, here) } else { (here, best) };
        let Estimate { value: elasticity, error } = self.elasticity(less, more);
        let &Sample { queue_depth, .. } = sample;
        let reason = if best.limit > here.limit {
            let estimated_wait = duration(estimated_wait(sample));
            Reason::GrowthPays { queue_depth, estimated_wait, elasticity, error }
        } else {
            Reason::TakenBack { from: here.limit, to: best.limit, elasticity, error }
        };
        Some(Decision { limit: best.limit, reason })
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
            *self = Self { without: self.without, ..Self::new(self.law) }; // nonsense, or a clock set back: nothing seen or dated is worth keeping
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
