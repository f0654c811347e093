//! Requests wait: where the limit goes; part of [`PaidGrowth`](super::PaidGrowth).

use std::time::Instant;

use super::judge::UNSEEN;
use super::throughput::{Estimate, Seen};
use super::{FEWEST, Mechanism, PaidGrowthController, duration, estimated_wait};
use crate::law::scale::{Decision, Reason, Sample};

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
/// The least and the most of one growth, as powers of two: 11 % to double; and one past what the load seems to need.
const STEPS: (f64, f64, f64) = (0.15, 1.0, 1.25);
/// Standard error of an elasticity that is not yet a reason to give growth up.
const WEAK: f64 = 0.5;
/// Standard errors that prove a difference that is looked at a hundred times a second.
const PROVEN: f64 = 3.0;
/// And that are enough for the way back, once growth does not pay any more.
const RETREAT: f64 = 1.0;
/// Standard errors by which a limit was seen to be worth less before growth halts below it.
const WORSE: f64 = 1.5;
/// Failures, as one in so many completions, at which growth is not the remedy.
const ONE_IN: u64 = 20;

impl PaidGrowthController {
    /// The queue asks for more: where to go.
    pub(super) fn steer(&mut self, now: Instant, sample: &Sample) -> Decision {
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
        self.step(sample, need.min(most), reason)
    }

    /// One step of a loaded database, if growth is believed to pay.
    fn step(&self, sample: &Sample, most: f64, unproven: Reason) -> Option<Decision> {
        let limit = sample.limit as f64;
        let (queue_depth, estimated_wait) = (sample.queue_depth, duration(estimated_wait(sample)));
        let unseen = Seen { limit: sample.limit, ..Seen::default() };
        let (believed, shown) = match self.model.of(sample.limit) {
            Some(here) => self.elasticity_here(&here),
            None => (self.believed(&unseen).value, UNSEEN),
        };
        let Estimate { value: elasticity, error } = shown;
        if believed < self.law.pays {
            let weak = error.is_finite() && error > WEAK;
            let reason = Reason::GatheringEvidence { queue_depth, estimated_wait };
            return weak.then_some(Decision { limit: sample.limit, reason });
        }
        let reason = if error.is_finite() {
            Reason::GrowthPays { queue_depth, estimated_wait, elasticity, error }
        } else {
            unproven
        };
        let to = (limit * believed.clamp(STEPS.0, STEPS.1).exp2()).min(most) as usize;
        Some(Decision { limit: to.max(sample.limit + 1).min(sample.max_size), reason })
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
    pub(super) fn is_unloaded(&self) -> bool {
        let uses = self.demand.present().zip(self.unloaded());
        uses.is_none_or(|(present, unloaded)| present <= unloaded + LOADED.ln()) && !self.demand.slows_down()
    }

    /// The middle between this limit and the next larger one that was seen to be worth less than the best up to here.
    pub(super) fn known_worse(&self, sample: &Sample) -> f64 {
        let limit = sample.limit;
        let up_to_here = self.model.known().filter(|seen| seen.limit <= limit);
        let best = up_to_here.max_by(|a, b| self.at_least(a).total_cmp(&self.at_least(b)));
        let Some(best) = best.filter(|_| self.has(Mechanism::KnownWorse)) else { return f64::INFINITY };
        let worse = |more: &&Seen| {
            let gain = self.gain(best, more);
            gain.value < -WORSE * gain.error
        };
        let least = self.model.known().filter(|more| more.limit > limit).filter(worse);
        let least = least.map(|seen| seen.limit).min();
        least.map_or(f64::INFINITY, |least| (limit as f64 * least as f64).sqrt())
    }
}
