//! The verdict on a request, and what goes with a refusal.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::time::Instant;

use super::{Gate, Inner};
use crate::error::{Shed, ShedReason};
use crate::law::admit::{Caps, Claim, Occupancy, admit};
use crate::law::retry_after::retry_after;
use crate::observe::{Event, ShedBy};
use crate::terms::{Class, Deadline, Terms};

/// The verdict on a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// Let it in.
    Admit,
    /// Refuse it now.
    Shed(Shed),
}

/// Whether somebody asks for the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    First,
    Retry,
}

impl Gate {
    /// The verdict on one request, from a few atomic loads: never waits, never locks.
    ///
    /// Every call counts as an arrival; the layer calls it once for each request.
    pub fn admit(&self) -> Verdict {
        self.decide(Terms::default(), None, None)
    }

    /// The verdict on a request of this class or with this deadline, as [`admit`](Self::admit).
    pub fn admit_with(&self, terms: impl Into<Terms>) -> Verdict {
        self.decide(terms.into(), None, None)
    }

    /// The verdict; `attempt` where retries are told from first attempts, `now` where the clock has been looked at.
    pub(crate) fn decide(&self, terms: Terms, attempt: Option<Attempt>, now: Option<Instant>) -> Verdict {
        let inner = &*self.inner;
        let seen = inner.published.occupancy();
        let refused = match terms.class {
            Class::Exempt => None,
            class => {
                inner.mix.arrived(class);
                self.judge(seen, terms, attempt, now)
            }
        };
        match self.overrule(refused, seen.queue_depth, terms.class) {
            None => {
                inner.admissions.admitted();
                Verdict::Admit
            }
            Some(reason) => {
                inner.admissions.shed();
                Verdict::Shed(self.shed(reason, seen.queue_depth, terms.class, ShedBy::Layer))
            }
        }
    }

    fn judge(
        &self,
        seen: Occupancy,
        terms: Terms,
        attempt: Option<Attempt>,
        now: Option<Instant>,
    ) -> Option<ShedReason> {
        let inner = &*self.inner;
        if inner.published.draining() {
            return Some(ShedReason::Draining);
        }
        let left = |deadline: Deadline| {
            deadline.instant().saturating_duration_since(now.unwrap_or_else(Instant::now))
        };
        let budget = match terms.deadline.map(left) {
            Some(Duration::ZERO) => return Some(ShedReason::Expired),
            Some(left) => left.min(inner.acquire_timeout),
            None => inner.acquire_timeout,
        };
        let refused = self.measure(seen, terms.class, budget);
        if refused.is_some() {
            return refused;
        }
        match attempt {
            None => None,
            Some(Attempt::First) => {
                inner.retry_budget.first_attempt();
                None
            }
            // Spent by those let in, but what is free may be used without.
            Some(Attempt::Retry) => {
                let covered = inner.retry_budget.retry() || seen.is_free();
                (!covered).then_some(ShedReason::RetryBudget)
            }
        }
    }

    /// The law's verdict; asked only for what it needs.
    fn measure(&self, seen: Occupancy, class: Class, budget: Duration) -> Option<ShedReason> {
        let (inner, caps) = (&*self.inner, self.caps());
        // Of a full queue the lowest class makes room for the higher ones.
        if seen.queue_depth >= caps.hard && inner.published.ahead_of(class) >= caps.hard {
            return Some(ShedReason::HardCap);
        }
        let taken = inner.advice.taken_before(class);
        if seen.idle > 0 || (taken <= 0.0 && seen.is_free()) {
            return None;
        }
        let (lower, same) = inner.mix.below(class);
        let claim = Claim {
            ahead: inner.published.ahead_of(class),
            budget,
            use_time: inner.published.use_time(),
            taken,
            lower,
            same,
            draw: self.draw(),
        };
        admit(seen, caps, &claim)
    }

    /// A refusal with a `retry_after` of its own, told to the observers.
    pub(crate) fn shed(&self, reason: ShedReason, queue_depth: usize, class: Class, by: ShedBy) -> Shed {
        let shed = self.refusal(reason, queue_depth, class);
        self.observe(|| Event::Shed { shed, by });
        shed
    }

    pub(super) fn refusal(&self, reason: ShedReason, queue_depth: usize, class: Class) -> Shed {
        let Inner { published, advice, .. } = &*self.inner;
        let capacity = published.occupancy().capacity;
        let (use_time, window) = (published.use_time(), advice.window());
        let retry_after = retry_after(queue_depth, capacity, use_time, window, self.draw());
        Shed { reason, retry_after, queue_depth, class }
    }

    /// Uniform in `[0, 1)`: SplitMix64 (Steele, Lea and Flood, 2014) over a shared counter.
    pub(crate) fn draw(&self) -> f64 {
        let seed = self.inner.draws.fetch_add(0x9E37_79B9_7F4A_7C15, Relaxed);
        let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn caps(&self) -> Caps {
        Caps { soft: self.inner.soft_cap.load(Relaxed), hard: self.inner.hard_cap.load(Relaxed) }
    }
}
