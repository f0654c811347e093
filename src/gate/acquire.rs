//! From an entry to a grant: the wait, its deadline, and what a waiter leaves behind when it is dropped.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::Gate;
use super::permits::{Entry, Leave};
use super::queue::{Answer, Key};
use super::slots::Slots;
use crate::error::{AcquireError, AcquireTimeout, SharedError, ShedReason};
use crate::observe::{Event, ShedBy};

/// When an acquire began and by when it must have ended: one deadline for queue, check and dial together. Made only when
/// something has to be waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub started: Instant,
    timeout: Duration,
}

impl Span {
    pub fn from_now(gate: &Gate) -> Self {
        Self { started: Instant::now(), timeout: gate.acquire_timeout() }
    }

    pub fn deadline(self) -> Instant {
        after(self.started, self.timeout)
    }
}

/// So much later. `Duration::MAX`, which no clock can count to, is thirty years, as in tokio's own timers.
pub(crate) fn after(now: Instant, timeout: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(30 * 365 * 86_400);
    now.checked_add(timeout).unwrap_or(now + FAR)
}

/// Waits for what an entry promises. `dial_error` is asked only when the deadline came first.
pub(crate) async fn granted<T>(
    gate: &Gate,
    slots: &Slots<T>,
    span: Span,
    entry: Entry<T>,
    dial_error: impl FnOnce() -> Option<SharedError>,
) -> Result<T, AcquireError> {
    let key = match entry {
        Entry::Granted(item) | Entry::Unproven(item) => return Ok(item),
        Entry::Queued(key) => key,
        Entry::Full(queue_depth) => {
            return Err(AcquireError::Shed(gate.shed(ShedReason::HardCap, queue_depth, ShedBy::Gate)));
        }
        Entry::Closed => return Err(AcquireError::Closed),
    };
    let mut wait = Wait { slots, key: Some(key) };
    match timeout_at(span.deadline(), &mut wait).await {
        Ok(Answer::Granted(item)) => Ok(item),
        Ok(Answer::PushedOut) => {
            let queue_depth = slots.published.occupancy().queue_depth;
            Err(AcquireError::Shed(gate.shed(ShedReason::HardCap, queue_depth, ShedBy::Gate)))
        }
        Ok(Answer::Failed(error)) => Err(AcquireError::Dial(error)),
        Ok(Answer::Closed) => Err(AcquireError::Closed),
        Err(_) => {
            wait.leave(Leave::TimedOut);
            Err(timed_out(gate, slots, span, dial_error()))
        }
    }
}

/// The error of an acquire whose deadline came first, told to the observers.
pub(crate) fn timed_out<T>(
    gate: &Gate,
    slots: &Slots<T>,
    span: Span,
    dial_error: Option<SharedError>,
) -> AcquireError {
    let counts = slots.counts();
    let error = AcquireError::Timeout(AcquireTimeout {
        waited: span.started.elapsed(),
        in_use: counts.in_use,
        size: counts.places,
        queue_depth: counts.queue_depth,
        dial_error,
    });
    gate.observe(|| Event::AcquireTimedOut { error: &error, waited: span.started.elapsed() });
    error
}

/// A place in the queue. Dropping it gives the place up, and a permit already set aside goes to the next in line.
pub(super) struct Wait<'a, T> {
    pub slots: &'a Slots<T>,
    pub key: Option<Key>,
}

impl<T> Wait<'_, T> {
    pub fn leave(&mut self, why: Leave) {
        if let Some(key) = self.key.take() {
            self.slots.leave(key, why);
        }
    }
}

impl<T> Future for Wait<'_, T> {
    type Output = Answer<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer<T>> {
        let Some(key) = self.key else { return Poll::Ready(Answer::Closed) };
        let answer = ready!(self.slots.poll_wait(key, cx.waker()));
        self.key = None;
        Poll::Ready(answer)
    }
}

impl<T> Drop for Wait<'_, T> {
    fn drop(&mut self) {
        self.leave(Leave::Cancelled);
    }
}
