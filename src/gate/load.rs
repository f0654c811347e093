//! What the gate knows of its load: who arrives, how much of it are retries, and what was refused lately.

use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::counts::Counts;
use crate::law::estimate::Rate;
use crate::law::retry_after::{Window, longest};
use crate::terms::{CLASSES, Class};

/// Arrivals of one class at which those of all classes are halved: a few seconds of a busy service, and enough that the
/// parts are known to within a few percent.
const REMEMBERED: u32 = 1024;

/// How the arrivals divide into classes, those refused included: else what is refused would seem ever rarer.
#[derive(Debug, Default)]
pub(super) struct Mix {
    seen: [AtomicU32; CLASSES],
}

impl Mix {
    /// An estimate need not be exact, so no read-modify-write is paid for it.
    pub fn arrived(&self, class: Class) {
        let seen = &self.seen[class.line()];
        let more = seen.load(Relaxed).wrapping_add(1);
        seen.store(more, Relaxed);
        if more >= REMEMBERED {
            for seen in &self.seen {
                seen.store(seen.load(Relaxed) / 2, Relaxed);
            }
        }
    }

    /// The part of the arrivals that is of lower classes, and the part that is of this one.
    pub fn below(&self, class: Class) -> (f64, f64) {
        let seen = self.seen.each_ref().map(|seen| f64::from(seen.load(Relaxed)));
        let sum = |part: &[f64]| part.iter().sum::<f64>();
        let line = class.line();
        let (higher, same, lower) = (sum(&seen[..line]), seen[line].max(1.0), sum(&seen[line + 1..]));
        let all = higher + same + lower;
        (lower / all, same / all)
    }
}

/// What a first attempt pays in; a retry costs ten times that, so that retries may be a tenth of the first attempts.
const PAID_IN: i64 = 1;
const COST: i64 = 10;
/// The most that is saved up: a hundred retries.
const SAVINGS: i64 = 100 * COST;
/// What there is to begin with: ten retries, so that a service with little traffic has some too.
const BEGINNING: i64 = 10 * COST;

/// The retries that are served like anything else: a token bucket that first attempts fill (as Finagle's `RetryBudget`).
#[derive(Debug)]
pub(super) struct RetryBudget {
    saved: AtomicI64,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { saved: AtomicI64::new(BEGINNING) }
    }
}

impl RetryBudget {
    pub fn first_attempt(&self) {
        if self.saved.load(Relaxed) < SAVINGS {
            self.saved.fetch_add(PAID_IN, Relaxed);
        }
    }

    /// Whether there is enough for one more.
    pub fn retry(&self) -> bool {
        self.saved.fetch_update(Relaxed, Relaxed, |saved| (saved >= COST).then(|| saved - COST)).is_ok()
    }
}

/// What the driver finds out, for the verdicts until its next tick.
#[derive(Debug)]
pub(super) struct Advice {
    /// Connections per second that the classes above this one take: the bits of an `f64`.
    taken: [AtomicU64; CLASSES],
    /// Over how many seconds those refused are told to come back: the bits of an `f64`.
    window: AtomicU64,
    /// The longest that anybody is told to stay away, in seconds.
    longest: f64,
}

impl Advice {
    pub fn new(max_retry_after: Duration) -> Self {
        Self { taken: Default::default(), window: AtomicU64::default(), longest: longest(max_retry_after) }
    }

    pub fn taken_before(&self, class: Class) -> f64 {
        f64::from_bits(self.taken[class.line()].load(Relaxed))
    }

    /// Over how long those refused are told to come back, and the longest that anybody is told, in seconds.
    pub fn window(&self) -> (f64, f64) {
        (f64::from_bits(self.window.load(Relaxed)), self.longest)
    }

    /// Nobody takes anything: what was taken before must not be held against whoever comes after a rest, however long
    /// that was.
    pub fn rest(&self) {
        for taken in &self.taken {
            taken.store(0.0f64.to_bits(), Relaxed);
        }
    }
}

/// The driver's book about the load.
#[derive(Debug)]
pub(super) struct Load {
    last: Counts,
    last_shed: u64,
    /// Acquires by class over a second: as long as a burst that matters.
    entered: [Rate; CLASSES],
    /// Acquires over ten seconds, those apart in which somebody was refused.
    demand: Rate,
    window: Window,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            last: Counts::default(),
            last_shed: 0,
            entered: [Rate::over(1.0); CLASSES],
            demand: Rate::over(10.0),
            window: Window::default(),
        }
    }
}

impl Load {
    /// Takes a sample in, `elapsed` after the last one; `layer_shed` is what the layer has refused in all.
    pub fn sample(&mut self, counts: &Counts, layer_shed: u64, elapsed: Duration, advice: &Advice) {
        // A miss of `try_acquire` is no demand that waits, and nobody is told to come back.
        let demand = |counts: &Counts| counts.acquires.started - counts.misses;
        let refused = |counts: &Counts| counts.acquires.shed - counts.misses;
        let mut taken = 0.0;
        for class in 0..CLASSES {
            advice.taken[class].store(f64::to_bits(taken), Relaxed);
            self.entered[class].add(counts.entered[class] - self.last.entered[class], elapsed);
            taken += self.entered[class].per_second();
        }
        let refusals = refused(counts) - refused(&self.last) + layer_shed - self.last_shed;
        // Else those who come back are among them: they are what is to be served besides the load.
        if refusals == 0 {
            self.demand.add(demand(counts) - demand(&self.last), elapsed);
        }
        (self.last, self.last_shed) = (*counts, layer_shed);

        let serving = counts.capacity() as f64;
        let capacity =
            counts.use_time.map_or(0.0, |held| serving / held.as_secs_f64().max(f64::MIN_POSITIVE));
        let load = self.demand.per_second();
        let window = self.window.add(refusals, elapsed, capacity, load, advice.longest);
        advice.window.store(window.to_bits(), Relaxed);
    }

    /// Nobody who was refused is still told to stay away for long.
    pub fn is_calm(&self) -> bool {
        self.window.is_shortest()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_a_tenth_of_the_first_attempts() {
        let budget = RetryBudget::default();
        assert_eq!((0..20).filter(|_| budget.retry()).count(), 10, "the beginning");
        let mut served = 0;
        for _ in 0..1_000 {
            budget.first_attempt();
            served += usize::from(budget.retry());
        }
        assert_eq!(served, 100);
        (0..1_000_000).for_each(|_| budget.first_attempt());
        assert_eq!((0..1_000).filter(|_| budget.retry()).count(), 100, "no more is saved up");
    }

    #[test]
    fn the_mix_follows_the_arrivals() {
        let mix = Mix::default();
        assert_eq!(mix.below(Class::High), (0.0, 1.0), "alone it is everything");
        for turn in 0..10_000 {
            mix.arrived(if turn % 4 == 0 { Class::Background } else { Class::High });
        }
        let (lower, same) = mix.below(Class::High);
        assert!((0.24..0.26).contains(&lower) && (0.74..0.76).contains(&same), "{lower} {same}");
        for _ in 0..10_000 {
            mix.arrived(Class::Critical);
        }
        assert!(mix.below(Class::Critical).1 > 0.99, "what was is forgotten");
    }

    #[test]
    fn what_higher_classes_take_and_how_long_the_refused_stay_away() {
        let (mut load, advice) = (Load::default(), Advice::new(Duration::from_secs(15)));
        let tick = Duration::from_millis(10);
        let mut counts =
            Counts { in_use: 10, limit: 10, use_time: Some(Duration::from_millis(10)), ..Counts::default() };
        for _ in 0..3_000 {
            counts.entered[Class::Critical.line()] += 3;
            counts.entered[Class::Low.line()] += 2;
            counts.acquires.started += 5;
            load.sample(&counts, 0, tick, &advice);
        }
        let taken =
            [Class::Critical, Class::High, Class::Low, Class::Background].map(|c| advice.taken_before(c));
        for (taken, expected) in taken.into_iter().zip([0.0, 300.0, 300.0, 500.0]) {
            assert!((taken - expected).abs() <= 0.02 * expected, "{taken}, expected {expected}");
        }
        let window = || advice.window().0;
        assert!((window() - 1.0).abs() < 1e-9, "nothing was refused: {}", window());
        // Whoever tries without waiting is neither load nor somebody who comes back.
        let tried = 100_000;
        (counts.misses, counts.acquires.shed) = (tried, tried);
        counts.acquires.started += tried;
        load.sample(&counts, 0, tick, &advice);
        assert!((window() - 1.0).abs() < 1e-9, "{}", window());
        // 500 of 1,000 a second are spare: 5,000 refused at once can be served in ten seconds.
        counts.acquires.shed += 2_000;
        load.sample(&counts, 3_000, tick, &advice);
        assert!((9.0..11.0).contains(&window()), "{}", window());
        assert!(!load.is_calm());
        load.sample(&counts, 3_000, Duration::from_secs(11), &advice);
        assert!(load.is_calm());
    }
}
