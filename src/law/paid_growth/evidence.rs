//! What each size completed while it was saturated: the memory of [`PaidGrowth`](super::PaidGrowth).

use std::time::{Duration, Instant};

/// Sizes remembered: a search and its trials visit two dozen.
const SIZES: usize = 64;
/// After so long half of what was seen is forgotten: databases change over minutes, and evidence should not outlive one.
const HALF_LIFE: Duration = Duration::from_secs(20);
/// Between two decays: forgetting need not be smoother than a tenth of the half-life.
const DECAY_EVERY: Duration = Duration::from_secs(2);
/// Completions that make a block: enough to see a throughput move by a fifth, few enough to see it within a second.
const BLOCK: f64 = 300.0;
/// Completions that must have been seen before a block for a comparison with them.
const PAST: f64 = 50.0;
/// A change of throughput at the same size that is a change of the database, in ln: a fifth, as sizes 15 % apart show.
const CHANGED: f64 = 0.2;
/// Standard errors such a change must have: one false alarm in 30,000 blocks.
const CHANGE_PROVEN: f64 = 4.0;
/// Completions that each size keeps when the database has changed: the shape of the curve is a guess from then on.
const KEPT: f64 = 30.0;
/// How long completions are counted before they are compared with those of the next window: ten ticks.
const WINDOW: f64 = 0.1;
/// Weight of one pair of windows in the mean scatter: two seconds are remembered.
const SCATTER_WEIGHT: f64 = 0.05;
/// Standard errors by which a use time is taken longer than it was seen: the shortest of many noisy ones is too short.
const USE_TIME_MARGIN: f64 = 1.5;

/// Completions of one size over the time it was saturated.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Seen {
    pub size: usize,
    pub completions: f64,
    pub seconds: f64,
}

impl Seen {
    fn add(&mut self, completions: f64, seconds: f64) {
        self.completions += completions;
        self.seconds += seconds;
    }

    /// Completions a second.
    pub fn rate(&self) -> f64 {
        self.ln_rate().exp()
    }

    /// Half a completion more than were counted, so that none at all is a number too.
    pub fn ln_rate(&self) -> f64 {
        ((self.completions + 0.5) / self.seconds.max(1e-6)).ln()
    }

    /// Variance of [`ln_rate`](Self::ln_rate), as of a Poisson count.
    pub fn variance(&self) -> f64 {
        1.0 / (self.completions + 0.5)
    }
}

/// A number and its standard error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Estimate {
    pub value: f64,
    pub error: f64,
}

/// What was seen of each size, the older the less.
#[derive(Debug)]
pub(super) struct Evidence {
    seen: [Seen; SIZES],
    /// This stay at this size, since it was last compared with what was known of it.
    block: Seen,
    /// The window being counted, and the one before it: completions and seconds.
    window: (f64, f64),
    last_window: Option<(f64, f64)>,
    /// Variance of the counts, in Poisson's: 1 or more.
    scatter: f64,
    decayed: Option<Instant>,
}

impl Evidence {
    pub fn new() -> Self {
        Self {
            seen: [Seen::default(); SIZES],
            block: Seen::default(),
            window: (0.0, 0.0),
            last_window: None,
            scatter: 1.0,
            decayed: None,
        }
    }

    /// A stay at another size begins.
    pub fn begin(&mut self, size: usize) {
        self.block = Seen { size, ..Seen::default() };
        (self.window, self.last_window) = ((0.0, 0.0), None);
    }

    /// One saturated tick at the size that was begun.
    pub fn add(&mut self, completions: f64, seconds: f64) {
        let size = self.block.size;
        let place = self.seen.iter().position(|seen| seen.size == size).unwrap_or_else(|| {
            // When all places are taken, the size of which least is known makes room.
            let least = |a: &usize, b: &usize| self.seen[*a].seconds.total_cmp(&self.seen[*b].seconds);
            let place = (0..SIZES).min_by(least).unwrap_or(0);
            self.seen[place] = Seen { size, ..Seen::default() };
            place
        });
        self.seen[place].add(completions, seconds);
        self.block.add(completions, seconds);
        self.measure_scatter(completions, seconds);
    }

    /// Once a block is full: whether the throughput of this size is not what it was. The other sizes are then scaled to
    /// the change, and little of them is still believed.
    pub fn changed(&mut self) -> bool {
        let block = self.block;
        if block.completions < BLOCK {
            return false;
        }
        self.block = Seen { size: block.size, ..Seen::default() };
        let Some(mut past) = self.of(block.size) else { return false };
        past.add(-block.completions, -block.seconds);
        if past.completions < PAST || past.seconds <= 0.0 {
            return false;
        }
        let slower = past.ln_rate() - block.ln_rate();
        let error = (self.scatter * (block.variance() + past.variance())).sqrt();
        if slower.abs() <= CHANGED.max(CHANGE_PROVEN * error) {
            return false;
        }
        for seen in &mut self.seen {
            let kept = (KEPT / seen.completions.max(KEPT)).min(1.0);
            seen.completions *= kept;
            seen.seconds *= kept * slower.exp();
            if seen.size == block.size {
                *seen = block;
            }
        }
        true
    }

    pub fn of(&self, size: usize) -> Option<Seen> {
        self.known().find(|seen| seen.size == size).copied()
    }

    /// Every size of which something is known, in no order.
    pub fn known(&self) -> impl Iterator<Item = &Seen> {
        self.seen.iter().filter(|seen| seen.size > 0 && seen.seconds > 0.0)
    }

    /// How throughput follows size between two sizes: 1 when twice the connections do twice the work, 0 when they do
    /// the same.
    pub fn elasticity(&self, less: &Seen, more: &Seen) -> Estimate {
        let ratio = (more.size as f64 / less.size as f64).ln();
        let error = self.error(less, more) / ratio.abs();
        Estimate { value: (more.ln_rate() - less.ln_rate()) / ratio, error }
    }

    /// Standard error of the difference of two sizes' ln of throughput.
    pub fn error(&self, a: &Seen, b: &Seen) -> f64 {
        (self.variance(a) + self.variance(b)).sqrt()
    }

    /// Variance of the ln of one size's throughput.
    pub fn variance(&self, seen: &Seen) -> f64 {
        self.scatter * seen.variance()
    }

    /// The shortest mean time a connection was held at any size, in seconds, by Little's law.
    pub fn shortest_use(&self) -> Option<f64> {
        let use_time = |seen: &Seen| {
            let slowest = seen.ln_rate() - USE_TIME_MARGIN * self.variance(seen).sqrt();
            seen.size as f64 / slowest.exp()
        };
        self.known().map(use_time).min_by(f64::total_cmp)
    }

    /// Lets what was seen grow old.
    pub fn decay(&mut self, now: Instant) {
        let since = now.saturating_duration_since(*self.decayed.get_or_insert(now));
        if since < DECAY_EVERY {
            return;
        }
        self.decayed = Some(now);
        let kept = (-since.as_secs_f64() / HALF_LIFE.as_secs_f64()).exp2();
        for seen in &mut self.seen {
            seen.completions *= kept;
            seen.seconds *= kept;
            if seen.completions < 1.0 {
                *seen = Seen::default();
            }
        }
    }

    /// Two windows that follow each other at one size should differ as Poisson counts do. Where they differ more, as with
    /// long and short queries mixed, every error grows with them.
    fn measure_scatter(&mut self, completions: f64, seconds: f64) {
        self.window.0 += completions;
        self.window.1 += seconds;
        let (count, lasted) = self.window;
        if lasted < WINDOW || count < 4.0 {
            return;
        }
        if let Some((last_count, last_lasted)) = self.last_window {
            let differ = count / lasted - last_count / last_lasted;
            let expected = count / (lasted * lasted) + last_count / (last_lasted * last_lasted);
            let scatter = (differ * differ / expected).min(20.0); // one outlier is not yet a law
            self.scatter = (self.scatter + SCATTER_WEIGHT * (scatter - self.scatter)).max(1.0);
        }
        self.last_window = Some(self.window);
        self.window = (0.0, 0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: f64 = 0.010;

    fn stay(evidence: &mut Evidence, size: usize, per_tick: f64, ticks: usize) {
        evidence.begin(size);
        for _ in 0..ticks {
            evidence.add(per_tick, TICK);
        }
    }

    #[test]
    fn elasticity_is_one_while_throughput_follows_size_and_its_error_falls_with_the_count() {
        let mut evidence = Evidence::new();
        stay(&mut evidence, 10, 10.0, 20);
        stay(&mut evidence, 20, 20.0, 20);
        let (less, more) = (evidence.of(10).unwrap(), evidence.of(20).unwrap());
        let early = evidence.elasticity(&less, &more);
        assert!((early.value - 1.0).abs() < 0.01, "{early:?}");
        stay(&mut evidence, 10, 10.0, 60);
        stay(&mut evidence, 20, 20.0, 60);
        let late = evidence.elasticity(&evidence.of(10).unwrap(), &evidence.of(20).unwrap());
        assert!((early.error / late.error - 2.0).abs() < 0.02, "four times the count: {early:?}, {late:?}");
    }

    #[test]
    fn a_database_that_halves_is_noticed_and_the_other_sizes_are_scaled_and_doubted() {
        let mut evidence = Evidence::new();
        stay(&mut evidence, 10, 10.0, 100);
        stay(&mut evidence, 20, 20.0, 100);
        assert!(!evidence.changed());
        stay(&mut evidence, 20, 10.0, 40);
        assert!(evidence.changed());
        let ten = evidence.of(10).unwrap();
        assert!(ten.completions <= KEPT && (ten.rate() / 500.0 - 1.0).abs() < 0.1, "{ten:?}");
    }

    #[test]
    fn what_was_seen_is_forgotten_by_half_each_half_life() {
        let (mut evidence, now) = (Evidence::new(), Instant::now());
        evidence.decay(now);
        stay(&mut evidence, 10, 10.0, 100);
        evidence.decay(now + HALF_LIFE);
        let half = evidence.of(10).unwrap();
        assert!((half.completions - 500.0).abs() < 0.1 && (half.rate() - 1_000.0).abs() < 2.0, "{half:?}");
        evidence.decay(now + HALF_LIFE * 100);
        assert_eq!(evidence.of(10), None);
    }

    #[test]
    fn bursts_of_completions_widen_every_error() {
        let (mut calm, mut wild) = (Evidence::new(), Evidence::new());
        calm.begin(10);
        wild.begin(10);
        for tick in 0..400 {
            calm.add(10.0, TICK);
            wild.add(if tick / 10 % 2 == 0 { 2.0 } else { 18.0 }, TICK);
        }
        let error =
            |evidence: &Evidence| evidence.error(&evidence.of(10).unwrap(), &evidence.of(10).unwrap());
        assert!(error(&wild) > 2.0 * error(&calm));
    }

    #[test]
    fn the_table_holds_what_it_can_and_keeps_what_it_knows_best() {
        let mut evidence = Evidence::new();
        stay(&mut evidence, 1_000, 10.0, 100);
        for size in 1..500 {
            stay(&mut evidence, size, 1.0, 1);
        }
        assert!(evidence.of(1_000).is_some() && evidence.of(499).is_some());
        assert_eq!(evidence.known().count(), SIZES);
    }
}
