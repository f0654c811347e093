//! What the driver makes of a pool: limits become grants and dials, old connections close.

use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use tokio::time::Instant as Clock;

use super::Inner;
use crate::backend::Backend;
use crate::gate::Plant;
use crate::gate::counts::{Bounds, Counts};

impl<B: Backend> Plant for Inner<B> {
    fn counts(&self) -> Counts {
        self.slots.counts()
    }

    fn bounds(&self) -> Bounds {
        self.slots.bounds()
    }

    fn sample(&self, now: Instant) -> Counts {
        self.slots.sample(now)
    }

    fn expire(&self, now: Instant) -> Option<Instant> {
        self.slots.expire(now)
    }

    fn set_driven(&self, driven: bool) {
        self.slots.set_driven(driven);
    }

    fn set_limit(&self, limit: usize) -> (usize, usize) {
        let moved = self.slots.set_limit(limit, Clock::now().into_std());
        self.reconcile();
        moved
    }

    fn set_bounds(&self, bounds: Bounds) {
        self.slots.set_bounds(bounds, Clock::now().into_std());
        self.reconcile();
    }

    fn close_idle_since(&self, cutoff: Option<Instant>) -> (usize, Option<Instant>) {
        self.slots.close_idle_since(cutoff)
    }

    fn sweep(&self) {
        let clock = &self.gate.holds().clock;
        clock.look();
        self.slots.close_idle_if(|item| item.is_over(clock));
        self.reconcile();
    }

    fn sweep_every(&self) -> Option<Duration> {
        self.lifetime.look_every()
    }

    fn poll_busy(&self, seen: u64, waker: &Waker) -> Poll<()> {
        self.slots.poll_busy(seen, waker)
    }
}
