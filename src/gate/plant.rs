//! What a gate controls (control theory's word): slots, with the dials and closes that a limit asks for.

use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::Instant as Clock;

use super::counts::{Bounds, Counts};
use super::holds::Held;
use super::slots::Slots;
use super::{Gate, guarded};

/// A pool or a limiter, as the gate and its driver see it: whatever its slots carry.
pub(crate) trait Plant: Send + Sync {
    fn counts(&self) -> Counts;
    fn bounds(&self) -> Bounds;
    /// The counts; the peak starts anew, and so does the age of what came back.
    fn sample(&self, now: Instant) -> Counts;
    /// Answers the waiters whose deadline has come, and returns when the next one may.
    fn expire(&self, now: Instant) -> Option<Instant>;
    /// The driver begins to run, or runs no more.
    fn set_driven(&self, driven: bool);
    /// Returns the limit before, and the one now.
    fn set_limit(&self, limit: usize) -> (usize, usize);
    /// Returns the limit before, and the one now; nothing where the bounds are not `known` any more.
    fn set_bounds(&self, known: Bounds, bounds: Bounds) -> Option<(usize, usize)>;
    /// Closes what has been free since before `cutoff`, and returns how many, and since when the next one has been free.
    fn close_idle_since(&self, cutoff: Option<Instant>) -> (usize, Option<Instant>);
    /// Closes what has lived for too long.
    fn sweep(&self);
    fn sweep_every(&self) -> Option<Duration>;
    /// Ready while there is something to control.
    fn poll_busy(&self, seen: u64, waker: &Waker) -> Poll<()>;
    /// Ready while somebody waits.
    fn poll_waited(&self, waker: &Waker) -> Poll<()>;
}

/// What a plant adds to its slots.
pub(crate) trait HasSlots: Send + Sync {
    type Item: Held + Send;

    fn slots(&self) -> &Slots<Self::Item>;
    /// Opens what limit and bounds ask for.
    fn refill(&self);
    fn gate(&self) -> &Gate;
    /// Where `ready` and `drain` wait.
    fn changed(&self) -> &Notify;
    /// Something has changed that the driver may not see: it rests while nothing is acquired.
    fn tell(&self) {
        guarded(|| self.changed().notify_waiters());
        self.gate().publish_snapshot();
    }
    /// Closes what has lived for too long.
    fn close_old(&self) {}
    fn close_old_every(&self) -> Option<Duration> {
        None
    }
}

impl<P: HasSlots> Plant for P {
    fn counts(&self) -> Counts {
        self.slots().counts()
    }

    fn bounds(&self) -> Bounds {
        self.slots().bounds()
    }

    fn sample(&self, now: Instant) -> Counts {
        self.slots().sample(now)
    }

    fn expire(&self, now: Instant) -> Option<Instant> {
        self.slots().expire(now)
    }

    fn set_driven(&self, driven: bool) {
        self.slots().set_driven(driven);
        if driven {
            self.refill();
        }
        self.tell();
    }

    fn set_limit(&self, limit: usize) -> (usize, usize) {
        let moved = self.slots().set_limit(limit, Clock::now().into_std());
        self.refill();
        moved
    }

    fn set_bounds(&self, known: Bounds, bounds: Bounds) -> Option<(usize, usize)> {
        let moved = self.slots().set_bounds(known, bounds, Clock::now().into_std());
        self.refill();
        moved
    }

    fn close_idle_since(&self, cutoff: Option<Instant>) -> (usize, Option<Instant>) {
        self.slots().close_idle_since(cutoff)
    }

    fn sweep(&self) {
        self.close_old();
    }

    fn sweep_every(&self) -> Option<Duration> {
        self.close_old_every()
    }

    fn poll_busy(&self, seen: u64, waker: &Waker) -> Poll<()> {
        self.slots().poll_busy(seen, waker)
    }

    fn poll_waited(&self, waker: &Waker) -> Poll<()> {
        self.slots().poll_waited(waker)
    }
}
