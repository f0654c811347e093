//! The way up and back: growth, trials and what is taken back; part of [`PaidGrowth`](super::PaidGrowth).

use std::time::{Duration, Instant};

use super::evidence::{Estimate, Seen};
use super::judge::{BELIEVED, UNSEEN};
use super::trial::{STEP, Trial};
use super::{PaidGrowthController, duration, estimated_wait};
use crate::law::scale::{Decision, Reason, Sample};

/// Between two growths that no evidence stands behind: time to see the queue fall.
const COOLDOWN: Duration = Duration::from_millis(100);
/// And for one of many that knows nothing of the database at ease: the others grow as well.
const COOLDOWN_BLIND: Duration = Duration::from_secs(1);
/// A database that stands still for so long is taken for one whose uses are long.
const STANDSTILL: Duration = Duration::from_millis(500);
/// So many times the use time at ease, the database is not at ease any more.
const AT_EASE: f64 = 1.35;
/// Completions before a size is judged, and as many as it has connections.
pub(super) const FEWEST: f64 = 40.0;
/// Standard errors that decide a trial, or growth past what the load seems to need.
const DECIDED: f64 = 2.0;
/// The least and the most of one growth, as powers of two: 11 % to double.
const STEPS: (f64, f64) = (0.15, 1.0);
/// Connections that every server bears, in all: below, growth goes there at once.
const BORNE: f64 = 8.0;
/// A ceiling this far over a growth does not concern it; one this close leaves nothing to try below it.
const CEILING_FAR: f64 = 1.5;
const CEILING_CLOSE: f64 = 1.2;
/// A size this far over what the load needs is tried downwards in larger steps, of at most this ratio.
const OVER_NEED: (f64, f64) = (1.25, 1.5);
/// Failures, as one in so many completions, at which growth is not the remedy.
const ONE_IN: u64 = 20;

impl PaidGrowthController {
    pub(super) fn grow(&mut self, now: Instant, sample: &Sample) -> Decision {
        let size = sample.limit;
        let stay = |reason| Decision { limit: size, reason };
        if sample.in_use < size {
            return stay(Reason::Steady);
        }
        let &Sample { queue_depth, failures, dial_failures, completions, .. } = sample;
        let vetoed = stay(Reason::Vetoed { queue_depth, dial_failures, failures });
        let many = |count: u64| completions < ONE_IN.saturating_mul(count);
        if many(failures) {
            return vetoed; // what was seen of them is no evidence for anything
        }
        let enough = FEWEST.max(size as f64);
        let here = self.evidence.of(size).filter(|here| here.completions >= enough);
        if let Some(trial) = self.trials.current {
            return self.on_trial(now, sample, trial, here);
        }
        let stuck = self.is_stuck(now, COOLDOWN);
        // What was seen was seen of shorter uses, unless this is a database that stands still for a moment.
        let of_others = self.is_stuck(now, STANDSTILL);
        let known = here.filter(|_| !of_others);
        let known = known.and_then(|here| self.go_where_it_is_known_to_pay(now, sample, &here));
        let no_growth = dial_failures > 0;
        match known {
            Some(known) if known.limit < size || !no_growth => return known,
            _ if no_growth => return vetoed,
            _ => {}
        }
        if size >= sample.max_size {
            return self.hold(now, sample, here, Reason::AtMaxSize { queue_depth });
        }
        let arrivals = if self.share < 1.0 {
            self.load.steady_arrivals_per_s() // few arrivals scatter much
        } else {
            self.load.arrivals_per_s()
        };
        let mut need = self.need(arrivals, sample);
        if stuck {
            // Each of those who wait needs a connection: what is in use does not come back for them.
            need = need.max(size as f64 + queue_depth as f64);
        }
        let blindly = self.grows_blindly(size);
        let rested = self.moved.is_none_or(|at| now.saturating_duration_since(at) > COOLDOWN_BLIND);
        let needed = (size + 1) as f64 <= need && (rested || !blindly);
        let Some(here) = here else { return self.grow_unproven(now, sample, need, stuck) };
        let (mut believed, shown) = self.elasticity_here(&here);
        if stuck {
            // Long uses are no sign of a database that is full: only what was shown counts.
            believed = if shown.error.is_finite() { shown.value + shown.error } else { BELIEVED.value };
        }
        let surely = |e: Estimate| e.value - DECIDED * e.error >= self.law.pays;
        if believed < self.law.pays || !(needed || (surely(shown) && surely(self.slope_here(&here)))) {
            return self.hold(now, sample, Some(here), not_paying(sample, shown));
        }
        let to = self.step(sample, believed, need);
        let grown = Decision { limit: to, reason: growing(sample, need, shown) };
        if of_others {
            return grown;
        }
        self.grow_under_ceiling(now, sample, here, to).unwrap_or(grown)
    }

    /// Nothing is known of this size yet: growth goes by what the load needs, with a pause between two steps.
    fn grow_unproven(&mut self, now: Instant, sample: &Sample, need: f64, stuck: bool) -> Decision {
        let &Sample { queue_depth, limit: size, .. } = sample;
        let since = self.moved.map_or(Duration::MAX, |at| now.saturating_duration_since(at));
        let blindly = self.grows_blindly(size) && !(stuck && since >= COOLDOWN_BLIND);
        if blindly || (size + 1) as f64 > need {
            let estimated_wait = duration(estimated_wait(sample));
            return Decision {
                limit: size,
                reason: Reason::GatheringEvidence { queue_depth, estimated_wait },
            };
        }
        if let Some(remaining) = COOLDOWN.checked_sub(since).filter(|left| !left.is_zero()) {
            return Decision { limit: size, reason: Reason::Cooldown { queue_depth, remaining } };
        }
        let to = self.step(sample, BELIEVED.value, need).max(self.known_need(sample));
        let unknown = Seen { size, ..Seen::default() };
        let grown = Decision { limit: to, reason: growing(sample, need.min(sample.max_size as f64), UNSEEN) };
        if self.is_stuck(now, STANDSTILL) {
            return grown;
        }
        self.grow_under_ceiling(now, sample, unknown, to).unwrap_or(grown)
    }

    /// What the load needs while the database is as fast as it was at ease: growth goes there in one go, and every use that ends
    /// on the way is evidence. 0 where it is slower, or was not seen at ease.
    fn known_need(&self, sample: &Sample) -> usize {
        let at_ease = self.load.unloaded_use(self.shortest_use).filter(|_| self.load.knows_low_use());
        let use_time = sample.use_time.unwrap_or_default().as_secs_f64();
        if at_ease.is_none_or(|at_ease| use_time > AT_EASE * at_ease) {
            return 0;
        }
        (self.need(self.load.arrivals_per_s(), sample) as usize).min(sample.max_size)
    }

    /// For so long somebody has waited for long, behind uses that are much longer than those that end, and the last move is as
    /// long ago. A database that its load slows down slows all uses down: that is none of this.
    fn is_stuck(&self, now: Instant, at_least: Duration) -> bool {
        let rested = self.moved.is_none_or(|at| now.saturating_duration_since(at) >= COOLDOWN);
        rested
            && self
                .stuck_since
                .is_some_and(|since| now.saturating_duration_since(since) + COOLDOWN >= at_least)
    }

    /// One of many that has never seen the database at ease cannot tell its own need from the load of the others.
    fn grows_blindly(&self, size: usize) -> bool {
        self.share < 1.0 && size as f64 >= BORNE * self.share && !self.load.knows_low_use()
    }

    /// The size after one growth: the better it paid so far the larger the step, and none beyond what the load needs but
    /// the smallest.
    fn step(&self, sample: &Sample, elasticity: f64, need: f64) -> usize {
        let size = sample.limit as f64;
        let step = size * elasticity.max(STEPS.0).min(STEPS.1).exp2();
        let to = step.min(need.max(size * STEP)) as usize;
        let borne = (BORNE * self.share).min(need) as usize;
        to.max(sample.limit + 1).max(borne).min(sample.max_size)
    }

    /// Growth is taken back when a smaller size was shown to be worth more, and repeated when a larger one was.
    fn go_where_it_is_known_to_pay(
        &mut self,
        now: Instant,
        sample: &Sample,
        here: &Seen,
    ) -> Option<Decision> {
        let size = here.size;
        let back = self.best(here, |seen| seen.size < size && seen.size >= sample.min_limit);
        let best =
            back.or_else(|| self.best(here, |seen| seen.size > size && seen.size <= sample.max_size))?;
        let (less, more) = if best.size < size { (&best, here) } else { (here, &best) };
        let Estimate { value: elasticity, error } = self.of_the_whole(self.evidence.elasticity(less, more));
        let reason = if best.size > size {
            growing(sample, 0.0, Estimate { value: elasticity, error })
        } else {
            let worse = self.evidence.known().filter(|seen| seen.size > best.size && seen.size < size);
            let worse = worse.filter(|seen| {
                let gain = self.gain(&best, seen);
                gain.value < -gain.error
            });
            let ceiling = self.trials.cap(now, worse.map(|seen| seen.size).min().unwrap_or(size));
            let expires_in = ceiling.until - now;
            Reason::TakenBack { elasticity, error, ceiling: ceiling.size, expires_in }
        };
        Some(Decision { limit: best.size, reason })
    }

    /// Near a ceiling growth is a trial, and none when there is nothing left to try.
    fn grow_under_ceiling(
        &mut self,
        now: Instant,
        sample: &Sample,
        here: Seen,
        to: usize,
    ) -> Option<Decision> {
        let ceiling =
            self.trials.ceiling.filter(|ceiling| (ceiling.size as f64) < CEILING_FAR * to as f64)?;
        let size = sample.limit;
        if self.trials.expired(now) {
            let next = ((size as f64 * STEP) as usize).max(size + 1);
            return Some(self.start_trial(now, sample, next));
        }
        let middle = (size as f64 * ceiling.size as f64).sqrt() as usize;
        if middle > size && ceiling.size as f64 > CEILING_CLOSE * size as f64 {
            return Some(self.start_trial(now, sample, to.min(middle)));
        }
        let expires_in = ceiling.until.saturating_duration_since(now);
        let &Sample { queue_depth, .. } = sample;
        let reason = Reason::Ceiling { queue_depth, ceiling: ceiling.size, expires_in };
        Some(self.hold(now, sample, Some(here).filter(|here| here.seconds > 0.0), reason))
    }

    /// Growth is out of the question: a size nearby is tried, when it is time and a trial could tell.
    fn hold(&mut self, now: Instant, sample: &Sample, here: Option<Seen>, reason: Reason) -> Decision {
        let size = sample.limit;
        let stay = Decision { limit: size, reason };
        let Some(here) = here else { return stay };
        if !self.trials.due(now) {
            return stay;
        }
        let need = self.need(self.load.steady_arrivals_per_s(), sample);
        let wide = size as f64;
        let up = ((wide * STEP).round() as usize).max(size + 1).min(sample.max_size);
        let down = if wide > OVER_NEED.0 * need {
            (need * wide).sqrt().max(wide / OVER_NEED.1)
        } else {
            wide / self.trials.step()
        };
        let down = (down.round() as usize).min(size.saturating_sub(1)).max(sample.min_limit);
        let Some(to) = self.more_promising(&here, up, down).filter(|to| self.would_tell(&here, *to)) else {
            self.trials.postpone(now);
            return stay;
        };
        self.start_trial(now, sample, to)
    }

    fn start_trial(&mut self, now: Instant, sample: &Sample, to: usize) -> Decision {
        let trial = self.trials.start(now, sample.limit, to.min(sample.max_size));
        let reason = if trial.near {
            Reason::Adjusting { from: trial.from, to: trial.to }
        } else {
            Reason::Probe { from: trial.from, to: trial.to }
        };
        Decision { limit: trial.to, reason }
    }

    fn on_trial(&mut self, now: Instant, sample: &Sample, trial: Trial, here: Option<Seen>) -> Decision {
        let size = sample.limit;
        if size != trial.to {
            self.trials.current = None; // not followed, as in a dry run: nothing is learnt
            return Decision { limit: size, reason: Reason::Steady };
        }
        if self.load.stalled(now, sample.use_time.unwrap_or_default()) {
            if sample.impatient {
                self.trials.current = None; // nor is there anything to learn: somebody waits behind uses that do not end
            }
            return Decision { limit: size, reason: Reason::Steady }; // which size it is makes no difference
        }
        let over = now >= trial.until;
        let gain = here.zip(self.evidence.of(trial.from)).map(|(here, from)| self.gain(&from, &here));
        let worth_it = match gain {
            Some(gain) if gain.value > DECIDED * gain.error => Some(true),
            Some(gain) if gain.value < -DECIDED * gain.error => Some(false),
            Some(gain) if over => Some(gain.value > 0.0),
            _ => over.then_some(false),
        };
        let Trial { from, to, .. } = trial;
        match worth_it {
            None => Decision { limit: size, reason: Reason::Steady },
            Some(true) => {
                self.trials.succeeded(now, trial);
                Decision { limit: size, reason: Reason::TrialKept { from, to } }
            }
            Some(false) => {
                self.trials.failed(now, trial);
                end_trial(trial)
            }
        }
    }
}

/// Back to where a trial began.
pub(super) fn end_trial(trial: Trial) -> Decision {
    let Trial { from, to, .. } = trial;
    Decision { limit: from, reason: Reason::TrialEnded { from: to, to: from } }
}

/// Why it grows: as what was shown says, or because the load needs it and nothing was shown yet.
fn growing(sample: &Sample, need: f64, shown: Estimate) -> Reason {
    let &Sample { queue_depth, .. } = sample;
    let estimated_wait = duration(estimated_wait(sample));
    let Estimate { value: elasticity, error } = shown;
    if error.is_finite() {
        Reason::GrowthPays { queue_depth, estimated_wait, elasticity, error }
    } else {
        Reason::Unproven { queue_depth, estimated_wait, needed: need.ceil() as usize }
    }
}

/// Why it does not grow.
fn not_paying(sample: &Sample, shown: Estimate) -> Reason {
    let &Sample { queue_depth, .. } = sample;
    let Estimate { value: elasticity, error } = shown;
    if error.is_finite() {
        Reason::NotPaying { queue_depth, elasticity, error }
    } else {
        Reason::GatheringEvidence { queue_depth, estimated_wait: duration(estimated_wait(sample)) }
    }
}
