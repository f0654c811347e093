//! Limits tried to learn what they bring: part of [`PaidGrowth`](super::PaidGrowth).

use std::time::Instant;

use super::throughput::{Estimate, Seen};
use super::{FEWEST, Mechanism, PaidGrowthController};
use crate::law::scale::{Decision, Reason, Sample};

/// Ratio of the first probe's limit to the present one, and the most to which steps widen as probes succeed; the most of a first
/// probe downwards, which goes as far as the knee seems to be.
const STEP: (f64, f64, f64) = (1.15, 1.6, 3.0);
/// Standard errors that decide a probe before its time is over.
const DECIDED: f64 = 2.0;
/// A probe has seen enough when its error is this part of what a limit that pays fully would have brought.
const ENOUGH: f64 = 0.5;
/// The longest that a probe lasts: seconds, and uses.
const LASTS: (f64, f64) = (2.0, 10.0);
/// The time between two probes, in durations of the last one, doubled by each that fails, and the most of it in seconds.
const WAIT: (f64, f64, f64) = (4.0, 64.0, 60.0);

/// A limit being tried.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probe {
    pub from: usize,
    pub to: usize,
    pub begun: Instant,
}

/// What is being tried, and when the next one is due.
#[derive(Debug)]
pub(super) struct Probes {
    pub current: Option<Probe>,
    next: Option<Instant>,
    step: f64,
    wait: f64,
    /// Where the last one leads: on when it succeeded, else the other way.
    upwards: Option<bool>,
}

impl Probes {
    pub fn new() -> Self {
        Self { current: None, next: None, step: STEP.0, wait: WAIT.0, upwards: None }
    }

    fn ended(&mut self, now: Instant, probe: Probe, kept: bool) {
        let lasted = now.saturating_duration_since(probe.begun).as_secs_f64();
        self.current = None;
        if kept {
            self.step = (self.step * self.step).min(STEP.1);
            self.wait = WAIT.0;
            self.upwards = Some(probe.to > probe.from);
            self.next = None;
        } else {
            self.step = STEP.0;
            self.wait = (2.0 * self.wait).min(WAIT.1);
            self.upwards = Some(probe.to < probe.from);
            self.next = Some(now + super::duration((self.wait * lasted).min(WAIT.2)));
        }
    }
}

impl PaidGrowthController {
    /// Tries a limit nearby, when it is time.
    pub(super) fn probe(&mut self, now: Instant, sample: &Sample, here: &Seen) -> Decision {
        let limit = sample.limit;
        let &Sample { queue_depth, .. } = sample;
        let (_, shown) = self.elasticity_here(here);
        let (elasticity, error) = (shown.value, shown.error);
        let stay = Decision { limit, reason: Reason::NotPaying { queue_depth, elasticity, error } };
        if self.probes.next.is_some_and(|next| now < next) || !self.has(Mechanism::Probes) {
            return stay;
        }
        let wide = limit as f64;
        let step = self.probes.step.max(self.telling_step(here));
        if self.model.noise() / here.completions > (ENOUGH * step.ln()).powi(2) / 2.0 {
            let estimated_wait = super::duration(super::estimated_wait(sample));
            return Decision { limit, reason: Reason::GatheringEvidence { queue_depth, estimated_wait } };
        }
        let knee = if self.probes.upwards.is_none() { self.knee(here) } else { wide };
        let up = (wide * step).max(knee.min(wide * STEP.1));
        let up = (up.round() as usize).max(limit + 1).min(sample.max_size);
        let down = (wide / step).min(knee.max(wide / STEP.2));
        let down = (down.round() as usize).min(limit.saturating_sub(1)).max(sample.min_limit);
        let upwards =
            self.probes.upwards.unwrap_or(knee >= wide / STEP.0 && self.known_worse(sample) >= wide * STEP.1);
        let to = if (upwards || down >= limit) && up > limit { up } else { down };
        if to == limit {
            return stay;
        }
        self.probes.current = Some(Probe { from: limit, to, begun: now });
        Decision { limit: to, reason: Reason::Probe { from: limit, to } }
    }

    /// The ratio of two limits that a probe can tell apart in its time.
    fn telling_step(&self, here: &Seen) -> f64 {
        let completions = (here.completions / here.seconds.max(1e-6) * LASTS.0).max(1.0);
        let error = (2.0 * self.model.noise() / completions).sqrt();
        (error / ENOUGH).exp().min(STEP.1)
    }

    /// Where the Universal Scalability Law (Gunther, 1993) with coherency alone has its knee, from what a connection brings here
    /// in parts of what it brings unloaded: E = 1 ÷ (1 + (n ÷ knee)²).
    fn knee(&self, here: &Seen) -> f64 {
        let limit = here.limit as f64;
        let Some(brings) = self.brings(here) else { return limit };
        let brings = brings.clamp(0.001, 0.999);
        limit / (1.0 / brings - 1.0).sqrt()
    }

    pub(super) fn on_probe(&mut self, now: Instant, sample: &Sample, probe: Probe) -> Decision {
        let Probe { from, to, begun } = probe;
        let stay = Decision { limit: sample.limit, reason: Reason::Steady };
        if sample.limit != to {
            self.probes.current = None; // not followed, as in a dry run: nothing is learnt
            return stay;
        }
        let lasted = now.saturating_duration_since(begun).as_secs_f64();
        let over = lasted > LASTS.0.max(LASTS.1 * self.demand.usual_use_s().unwrap_or(0.0));
        let seen = self.model.of(to).zip(self.model.of(from));
        let Some((here, before)) =
            seen.filter(|_| over || self.model.stay.completions >= FEWEST.min(to as f64))
        else {
            if !over {
                return stay;
            }
            self.probes.ended(now, probe, false);
            let Estimate { value: elasticity, error } = super::judge::UNSEEN;
            return Decision {
                limit: from,
                reason: Reason::ProbeEnded { from: to, to: from, elasticity, error },
            };
        };
        let (less, more) = if to > from { (&before, &here) } else { (&here, &before) };
        let shown = self.elasticity(less, more);
        let believed = self.believed(&before).with(shown);
        let beyond = believed.value - self.law.pays;
        let enough = shown.error < ENOUGH * (1.0 - self.law.pays);
        if !over && !enough && beyond.abs() < DECIDED * believed.error {
            return stay;
        }
        let kept = (beyond > 0.0) == (to > from);
        self.probes.ended(now, probe, kept);
        let Estimate { value: elasticity, error } = believed;
        if kept {
            Decision { limit: to, reason: Reason::ProbeKept { from, to, elasticity, error } }
        } else {
            Decision { limit: from, reason: Reason::ProbeEnded { from: to, to: from, elasticity, error } }
        }
    }
}
