//! What sizes are worth, judged from the evidence: part of [`PaidGrowth`](super::PaidGrowth).

use super::PaidGrowthController;
use super::evidence::{Estimate, Seen};
use super::fit::Fit;
use super::grow::FEWEST;
use super::trial::Trials;

/// What is believed of growth before anything was seen: that it mostly pays. An elasticity.
pub(super) const BELIEVED: Estimate = Estimate { value: 0.8, error: 0.3 };
/// How far elasticities lie from the one that pays, as a standard deviation: of two sizes next to each other a great
/// difference is more likely noise.
const PLAUSIBLE: f64 = 1.0;
/// Completions of a smaller size before growth is measured against it.
const FEWEST_BELOW: f64 = 5.0;
/// Standard errors that prove a difference that is looked at a hundred times a second.
const PROVEN: f64 = 3.0;
/// Standard errors, and completions, that are enough for a move of 15 %: a wrong one costs little and is seen soon.
const NEAR: (f64, f64, f64) = (1.0, 300.0, 0.15);
/// Ratio of sizes between which elasticity says more than noise.
const SPAN: f64 = 1.5;
/// What is believed of the bend of throughput over size, in ln over ln: half of what the elasticity loses from one size to
/// one e times as large.
const BEND: Estimate = Estimate { value: -0.3, error: 0.5 };
/// Variance that a parabola has left at a size e times as large or small, in ln of the throughput; it grows with the cube.
const MISFIT: f64 = 0.1;
/// What was shown while no smaller size was seen.
pub(super) const UNSEEN: Estimate = Estimate { value: BELIEVED.value, error: f64::INFINITY };

impl PaidGrowthController {
    /// What growth to this size brought, as elasticity of the whole database: what is believed of it, and what was shown.
    ///
    /// Throughput over size is concave up to its knee, so the elasticity from any smaller size is an upper bound of what
    /// is to be had here: the least of them is believed, and never more than what was to be expected. Shown is the one with the smallest error.
    pub(super) fn elasticity_here(&self, here: &Seen) -> (f64, Estimate) {
        let before = self.believed(here);
        let prior = before.error.powi(-2);
        let (mut believed, mut shown) = (before.value, UNSEEN);
        for less in self.evidence.known() {
            if less.size as f64 * SPAN > here.size as f64 || less.completions < FEWEST_BELOW {
                continue;
            }
            let whole = self.of_the_whole(self.evidence.elasticity(less, here));
            let weight = whole.error.powi(-2);
            believed = believed.min((prior * before.value + weight * whole.value) / (prior + weight));
            if whole.error < shown.error {
                shown = whole;
            }
        }
        (believed, shown)
    }

    /// The slope of a parabola through all that is known, the nearer the more it counts, with what is believed beforehand:
    /// beyond the knee it falls long before the mean over the way from a small size does.
    pub(super) fn slope_here(&self, here: &Seen) -> Estimate {
        let f = self.share;
        let before = self.believed(here);
        let slope = Estimate { value: 1.0 - f * (1.0 - before.value), error: f * before.error };
        let mut fit = Fit::new(slope, Estimate { value: f * BEND.value, error: f * BEND.error });
        for seen in self.evidence.known().filter(|seen| seen.completions >= FEWEST_BELOW) {
            let away = (seen.size as f64 / here.size as f64).ln();
            let misfit = f * f * MISFIT * away.abs().powi(3);
            fit.add(away, seen.ln_rate(), 1.0 / (self.evidence.variance(seen) + misfit));
        }
        self.of_the_whole(fit.slope())
    }

    /// What is believed of growth by what a connection brings here, in parts of what it brings where the database has nothing
    /// else to do: for such an E the Universal Scalability Law (Gunther) leaves an elasticity between 2 E - 1 (coherency
    /// alone) and E (contention alone), for more than a few connections. The middle is believed.
    pub(super) fn believed(&self, here: &Seen) -> Estimate {
        let Some(unloaded) = self.load.unloaded_use(self.shortest_use) else { return BELIEVED };
        let brings = here.rate() * unloaded / here.size as f64;
        Estimate { value: (1.5 * brings - 0.5).clamp(0.0, BELIEVED.value), ..BELIEVED }
    }

    /// A share f of the load sees e_own = 1 - f (1 - e).
    pub(super) fn of_the_whole(&self, own: Estimate) -> Estimate {
        Estimate { value: 1.0 - (1.0 - own.value) / self.share, error: own.error / self.share }
    }

    /// ln of the throughput, less what so many connections must bring.
    pub(super) fn worth(&self, seen: &Seen) -> f64 {
        let pays = 1.0 - self.share * (1.0 - self.law.pays);
        seen.ln_rate() - pays * (seen.size as f64).ln()
    }

    /// How much more worth `to` is than `from`; the less certain, the less plausible it is at all.
    pub(super) fn gain(&self, from: &Seen, to: &Seen) -> Estimate {
        let error = self.evidence.error(from, to);
        let plausible = PLAUSIBLE * (to.size as f64 / from.size as f64).ln().abs();
        let doubt = if plausible > 0.0 { error.hypot(plausible) / plausible } else { 1.0 };
        Estimate { value: self.worth(to) - self.worth(from), error: error * doubt }
    }

    /// The size worth most, in the worse case, of those proven to be worth more than this one.
    pub(super) fn best(&self, here: &Seen, eligible: impl Fn(&Seen) -> bool) -> Option<Seen> {
        let worst_case = |seen: &Seen| self.worth(seen) - self.evidence.variance(seen).sqrt();
        self.evidence
            .known()
            .filter(|seen| seen.completions >= FEWEST && eligible(seen))
            .filter(|seen| {
                let near = seen.size.abs_diff(here.size) as f64 <= NEAR.2 * here.size as f64
                    && seen.completions.min(here.completions) > NEAR.1;
                let gain = self.gain(here, seen);
                gain.value > gain.error * if near { NEAR.0 } else { PROVEN }
            })
            .max_by(|a, b| worst_case(a).total_cmp(&worst_case(b)))
            .copied()
    }

    /// Of two sizes the one that could be worth more; where the last trial points, if that could be worth anything.
    pub(super) fn more_promising(&self, here: &Seen, up: usize, down: usize) -> Option<usize> {
        let promise = |size: usize| match self.evidence.of(size) {
            _ if size == here.size => f64::NEG_INFINITY,
            Some(seen) => {
                let gain = self.gain(here, &seen);
                gain.value + PROVEN * gain.error
            }
            None if size < here.size => f64::MAX, // never seen, and it costs less to look
            None => f64::MAX / 2.0,
        };
        let (promise_up, promise_down) = (promise(up), promise(down));
        let to = match self.trials.upwards {
            Some(true) if promise_up > 0.0 => up,
            Some(false) if promise_down > 0.0 => down,
            _ if promise_up > promise_down => up,
            _ => down,
        };
        (promise_up.max(promise_down) >= 0.0).then_some(to)
    }

    /// Whether a trial could tell whether the size pays: few completions, or a small share, drown it in noise.
    pub(super) fn would_tell(&self, here: &Seen, to: usize) -> bool {
        let seconds = Trials::lasts(here.size, to).as_secs_f64();
        let there = Seen { size: to, completions: here.rate() * seconds, seconds };
        let ratio = (to as f64 / here.size as f64).ln().abs();
        self.share * (1.0 - self.law.pays) * ratio >= self.evidence.error(here, &there)
    }
}
