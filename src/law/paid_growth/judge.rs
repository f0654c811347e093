//! What limits are worth, by what was seen of them; part of [`PaidGrowth`](super::PaidGrowth).

use super::throughput::{Estimate, Seen};
use super::{FEWEST, Mechanism, PaidGrowthController, duration, estimated_wait};
use crate::law::scale::{Decision, Reason, Sample};

/// What is believed of growth before anything was seen: that it mostly pays. An elasticity.
const BELIEVED: Estimate = Estimate { value: 0.8, error: 0.4 };
/// What was shown while no smaller limit was seen.
pub(super) const UNSEEN: Estimate = Estimate { value: BELIEVED.value, error: f64::INFINITY };
/// Ratio of limits between which elasticity says more than noise.
const SPAN: f64 = 1.4;
/// Ratio of the next larger limit, and the most that the elasticity falls by on the way there.
const NEXT: f64 = 1.1;
const BEND: f64 = 0.7;
/// How far elasticities lie from the one that pays, as a standard deviation: of two limits next to each other a great
/// difference is more likely noise.
const PLAUSIBLE: f64 = 1.0;

impl PaidGrowthController {
    /// What growth to this limit brought, as elasticity of the whole database: what is believed of it, and what was shown.
    ///
    /// Throughput is concave up to its knee, so the elasticity from any smaller limit is an upper bound of what is to be had
    /// here: the least of them is believed. It falls by no more than `BEND` to the next larger limit that was seen. Shown is the
    /// one with the smallest error.
    pub(super) fn elasticity_here(&self, here: &Seen) -> (f64, Estimate) {
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
    pub(super) fn believed(&self, here: &Seen) -> Estimate {
        let Some(brings) = self.brings(here).filter(|_| self.has(Mechanism::Prior)) else { return BELIEVED };
        Estimate { value: (1.5 * brings - 0.5).clamp(0.0, BELIEVED.value), ..BELIEVED }
    }

    /// What a connection brings here, in parts of what it brings where the database has nothing else to do.
    pub(super) fn brings(&self, here: &Seen) -> Option<f64> {
        let seen = here.uses.ln_mean().filter(|_| here.uses.count >= 5.0);
        let mean = seen.or_else(|| self.demand.present());
        Some((self.unloaded()? - mean?).exp())
    }

    /// How throughput follows the limit from `less` to `more`, of the whole database: a share f of the load sees
    /// e_own = 1 - f (1 - e).
    pub(super) fn elasticity(&self, less: &Seen, more: &Seen) -> Estimate {
        let ln_limits = (more.limit as f64 / less.limit as f64).ln();
        let Estimate { value, error } = self.model.ln_ratio(less, more);
        Estimate {
            value: 1.0 - (1.0 - value / ln_limits) / self.share,
            error: error / ln_limits / self.share,
        }
    }

    /// What a limit is worth in the worse case, by its completions alone: cheap enough to look for the best.
    pub(super) fn at_least(&self, seen: &Seen) -> f64 {
        let pays = 1.0 - self.share * (1.0 - self.law.pays);
        self.model.ln_rate_at_least(seen) - pays * (seen.limit as f64).ln()
    }

    /// How much more `to` is worth than `from`: ln of the throughput, less what so many connections must bring. The less
    /// certain, the less plausible it is at all.
    pub(super) fn gain(&self, from: &Seen, to: &Seen) -> Estimate {
        let ln_limits = (to.limit as f64 / from.limit as f64).ln();
        let Estimate { value, error } = self.model.ln_ratio(from, to);
        let plausible = PLAUSIBLE * ln_limits.abs();
        let doubt = if plausible > 0.0 { error.hypot(plausible) / plausible } else { 1.0 };
        let pays = 1.0 - self.share * (1.0 - self.law.pays);
        Estimate { value: value - pays * ln_limits, error: error * doubt }
    }

    /// The limit worth most of those that are worth more than this one by so many standard errors.
    pub(super) fn better(&self, here: &Seen, sample: &Sample, errors: f64, most: usize) -> Option<Decision> {
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
}
