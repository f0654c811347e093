//! From an entry to a grant: the wait, its deadline, and what a waiter leaves behind when it is dropped.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use super::Gate;
use super::driver::TICK;
use super::permits::{Entry, Leave};
use super::queue::{Answer, Key};
use super::slots::{Slots, Times};
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

    /// Whether the wait needs a timer of its own: nobody else answers at the deadline, or they might oversleep it.
    fn is_short(self) -> bool {
        self.timeout < 2 * TICK
    }
}

/// Begins an acquire. `span` begins with it, if it may have to wait.
pub(crate) async fn enter<T>(gate: &Gate, slots: &Slots<T>, span: &mut Option<Span>) -> Entry<T> {
    let mut times = || {
        let span = span.get_or_insert_with(|| {
            let span = Span::from_now(gate);
            gate.holds().clock.set(span.started);
            span
        });
        Times { now: span.started.into_std(), deadline: span.deadline().into_std() }
    };
    poll_fn(|cx| Poll::Ready(slots.enter(cx.waker(), &mut times))).await
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
    match answered(slots, span, key).await {
        Answer::Granted(item) => Ok(item),
        Answer::PushedOut => {
            let queue_depth = slots.published.occupancy().queue_depth;
            Err(AcquireError::Shed(gate.shed(ShedReason::HardCap, queue_depth, ShedBy::Gate)))
        }
        Answer::Failed(error) => Err(AcquireError::Dial(error)),
        Answer::Closed => Err(AcquireError::Closed),
        Answer::TimedOut => Err(timed_out(gate, slots, span, dial_error())),
    }
}

/// The answer to a wait. The driver answers at the deadline, so that thousands of waits need no timer each; only where it
/// is gone with its runtime, or the deadline is nearer than it looks, the wait has one of its own.
async fn answered<T>(slots: &Slots<T>, span: Span, key: Key) -> Answer<T> {
    let mut wait = Wait { slots, key: Some(key) };
    let mut timer = pin!(None::<Sleep>);
    let answer = poll_fn(|cx| {
        if let Poll::Ready(answer) = Pin::new(&mut wait).poll(cx) {
            return Poll::Ready(Some(answer));
        }
        if timer.is_none() && (span.is_short() || !slots.published.driven()) {
            timer.set(Some(sleep_until(span.deadline())));
        }
        match timer.as_mut().as_pin_mut() {
            Some(timer) => timer.poll(cx).map(|()| None),
            None => Poll::Pending,
        }
    });
    match answer.await {
        Some(answer) => answer,
        None => {
            wait.leave(Leave::TimedOut);
            Answer::TimedOut
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
        oldest_hold: gate.holds().oldest(),
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
