//! The plain law: grow when people queue, shrink when nobody does.

use std::cmp::Ordering;
use std::time::{Duration, Instant};

use super::scale::{Controller, Decision, Reason, Sample};
use crate::config::Problem;

/// Grows by a factor when the queue reaches a threshold or somebody waits for long, at most once a cooldown, and shrinks by
/// the same factor towards what is used, and never below `base_limit`, when nobody has waited for a while.
///
/// n ← min(`max_size`, ⌈`grow_factor` · n⌉) when q ≥ `threshold`, or somebody has waited for a twentieth of their time
/// (20 ms to 1 s), and the cooldown has passed.
///
/// It asks for connections whenever requests wait, so it grows as well when the database itself is the bottleneck:
/// choose a `max_size` the database can bear.
///
/// ```
/// use std::time::Duration;
/// use tower_adaptive_pool::QueueDepth;
///
/// let law = QueueDepth { grow_factor: 2.0, cooldown: Duration::from_millis(250), ..QueueDepth::default() };
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QueueDepth {
    /// Waiters that make the limit grow. Default 4: a queue of a few is already people waiting.
    pub threshold: usize,
    /// Factor of one growth, over 1. Default 1.5: 10 connections become 50 in four steps.
    pub grow_factor: f64,
    /// Least time between two growths. Default 100 ms: time enough to see the queue fall.
    pub cooldown: Duration,
    /// How long nobody must have waited before one shrink. Default 1 s: a pause between two bursts is not the end of
    /// the load.
    pub shrink_after: Duration,
}

impl Default for QueueDepth {
    fn default() -> Self {
        Self {
            threshold: 4,
            grow_factor: 1.5,
            cooldown: Duration::from_millis(100),
            shrink_after: Duration::from_secs(1),
        }
    }
}

impl QueueDepth {
    /// The law at work, for a [`Controller`] of one's own that wraps it.
    pub fn into_controller(self) -> impl Controller {
        QueueDepthController::new(self)
    }

    pub(crate) fn check(&self, problems: &mut Vec<Problem>) {
        if self.threshold == 0 {
            problems.push(Problem::new("threshold", 0, "must be at least 1 waiter"));
        }
        if !(self.grow_factor > 1.0 && self.grow_factor.is_finite()) {
            problems.push(Problem::new("grow_factor", self.grow_factor, "must be over 1, such as 1.5"));
        }
        Problem::unless_positive(problems, "cooldown", self.cooldown);
        Problem::unless_positive(problems, "shrink_after", self.shrink_after);
    }
}

/// [`QueueDepth`] at work: its settings and what it remembers.
#[derive(Debug)]
pub(crate) struct QueueDepthController {
    law: QueueDepth,
    last_growth: Option<Instant>,
    /// Since when nobody waited, and the most connections held since.
    quiet: Option<(Instant, usize)>,
}

impl QueueDepthController {
    pub fn new(law: QueueDepth) -> Self {
        Self { law, last_growth: None, quiet: None }
    }

    fn grow(&mut self, now: Instant, sample: &Sample) -> Decision {
        let queue_depth = sample.queue_depth;
        let limit = sample.limit;
        if limit >= sample.max_size {
            return Decision { limit, reason: Reason::AtMaxSize { queue_depth } };
        }
        let since = self.last_growth.map(|at| now.saturating_duration_since(at));
        if let Some(remaining) = since.and_then(|since| self.law.cooldown.checked_sub(since))
            && !remaining.is_zero()
        {
            return Decision { limit, reason: Reason::Cooldown { queue_depth, remaining } };
        }
        self.last_growth = Some(now);
        let grown = (limit as f64 * self.law.grow_factor).ceil() as usize;
        Decision {
            limit: grown.min(sample.max_size),
            reason: Reason::QueueOverThreshold { queue_depth, threshold: self.law.threshold },
        }
    }

    fn shrink(&mut self, now: Instant, sample: &Sample) -> Decision {
        let (since, peak) = self.quiet.get_or_insert((now, 0));
        *peak = (*peak).max(sample.peak_in_use).max(sample.in_use);
        let peak_in_use = *peak;
        let steady = Decision { limit: sample.limit, reason: Reason::Steady };
        if now.saturating_duration_since(*since) < self.law.shrink_after {
            return steady;
        }
        // One step down a period: the next one is decided by the use seen after this one.
        self.quiet = Some((now, 0));
        let step = (sample.limit as f64 / self.law.grow_factor).floor() as usize;
        let limit = step.max(peak_in_use).min(sample.limit).max(sample.base_limit);
        match limit.cmp(&sample.limit) {
            Ordering::Less => Decision { limit, reason: Reason::Drained { peak_in_use } },
            Ordering::Equal => steady,
            Ordering::Greater => Decision { limit, reason: Reason::Rested },
        }
    }
}

impl Controller for QueueDepthController {
    fn on_sample(&mut self, now: Instant, sample: &Sample) -> Decision {
        if sample.queue_depth > 0 {
            self.quiet = None;
        }
        // A queue that is full cannot reach a threshold beyond.
        if sample.queue_depth >= self.law.threshold.min(sample.hard_cap) || sample.impatient {
            self.grow(now, sample)
        } else if sample.queue_depth == 0 {
            self.shrink(now, sample)
        } else {
            Decision { limit: sample.limit, reason: Reason::Steady }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(10);

    /// Feeds the law `ticks` samples 10 ms apart and returns the limit after each.
    fn run(
        law: &mut QueueDepthController,
        now: &mut Instant,
        ticks: usize,
        mut sample: Sample,
    ) -> Vec<usize> {
        (0..ticks)
            .map(|_| {
                *now += TICK;
                sample.limit = law.on_sample(*now, &sample).limit;
                sample.limit
            })
            .collect()
    }

    fn sample(queue_depth: usize, in_use: usize, limit: usize) -> Sample {
        Sample {
            queue_depth,
            in_use,
            peak_in_use: in_use,
            limit,
            min_limit: 1,
            base_limit: 10,
            max_size: 50,
            hard_cap: 200,
            ..Sample::default()
        }
    }

    fn law() -> (QueueDepthController, Instant) {
        (QueueDepthController::new(QueueDepth::default()), Instant::now())
    }

    #[test]
    fn a_lasting_queue_grows_the_pool_by_the_factor_once_a_cooldown() {
        let (mut law, mut now) = law();
        let limits = run(&mut law, &mut now, 45, sample(100, 10, 10));
        let mut steps = limits.clone();
        steps.dedup();
        assert_eq!(steps, [15, 23, 35, 50]);
        assert_eq!(limits.iter().filter(|t| **t == 15).count(), 10, "a cooldown is ten ticks");
    }

    #[test]
    fn a_full_queue_grows_the_pool_however_short_it_is() {
        let (mut law, mut now) = law();
        let full = Sample { hard_cap: 2, ..sample(2, 10, 10) };
        assert_eq!(run(&mut law, &mut now, 45, full).pop(), Some(50));
    }

    #[test]
    fn a_short_queue_changes_nothing() {
        let (mut law, mut now) = law();
        assert!(run(&mut law, &mut now, 300, sample(3, 10, 10)).iter().all(|t| *t == 10));
    }

    #[test]
    fn an_idle_pool_shrinks_by_the_factor_once_a_period_down_to_base_limit() {
        let (mut law, mut now) = law();
        let mut limits = run(&mut law, &mut now, 800, sample(0, 0, 50));
        limits.dedup();
        assert_eq!(limits, [50, 33, 22, 14, 10]);
    }

    #[test]
    fn it_shrinks_no_further_than_what_is_used() {
        let (mut law, mut now) = law();
        let last = run(&mut law, &mut now, 1_000, sample(0, 27, 50)).pop();
        assert_eq!(last, Some(27));
    }

    #[test]
    fn a_limit_that_was_lowered_below_base_limit_returns_there_when_nobody_waits() {
        let (mut law, mut now) = law();
        let limits = run(&mut law, &mut now, 150, sample(0, 4, 4));
        assert_eq!((limits[90], limits[149]), (4, 10));
    }

    #[test]
    fn one_who_waits_for_long_makes_it_grow_though_the_queue_is_short() {
        let (mut law, mut now) = law();
        let impatient = Sample { impatient: true, ..sample(1, 10, 10) };
        assert_eq!(run(&mut law, &mut now, 45, impatient).pop(), Some(50));
    }

    #[test]
    fn a_single_waiter_restarts_the_wait_for_a_shrink() {
        let (mut law, mut now) = law();
        for _ in 0..20 {
            assert_eq!(run(&mut law, &mut now, 90, sample(0, 0, 50)).pop(), Some(50));
            assert_eq!(run(&mut law, &mut now, 1, sample(1, 50, 50)).pop(), Some(50));
        }
    }

    #[test]
    fn a_clock_that_stands_still_or_jumps_back_leaves_the_limit_in_bounds() {
        let (mut law, now) = law();
        for at in [now, now, now + Duration::from_secs(86_400), now] {
            for q in [0, 1, usize::MAX] {
                let limit = law.on_sample(at, &sample(q, 10, 10)).limit;
                assert!((10..=50).contains(&limit));
            }
        }
    }
}
