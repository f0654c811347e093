//! From an entry to a grant: the wait, its deadline, and what a waiter leaves behind when it is dropped.

use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use super::Gate;
use super::driver::TICK;
use super::holds::{At, Held};
use super::home::{NoRuntime, poll_timer};
use super::permits::{Entry, Leave};
use super::queue::{Answer, Grant, Key, Times};
use super::slots::Slots;
use crate::error::{AcquireError, AcquireTimeout, SharedError, ShedReason};
use crate::observe::{Event, ShedBy};
use crate::terms::{Class, Terms, after};

/// When an acquire began, by when it must have ended, and how much it matters: one deadline for queue, check and dial together. Made only when
/// something has to be waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub started: Instant,
    timeout: Duration,
    /// The request's own deadline comes first.
    by_request: bool,
    pub class: Class,
    at: At,
}

impl Span {
    pub fn from_now(gate: &Gate, terms: Terms, at: At) -> Self {
        let (started, timeout) = (Instant::now(), gate.acquire_timeout());
        let use_time = gate.inner.published.use_time().unwrap_or_default();
        let left = terms.deadline.map(|deadline| {
            let left = deadline.instant().saturating_duration_since(started);
            // Granted later it would be cut short, and its connection have worked for nobody. Half of it may be waited in any
            // case: the use time is a guess.
            left.saturating_sub(use_time).max(left / 2)
        });
        let by_request = left.is_some_and(|left| left < timeout);
        let timeout = left.map_or(timeout, |left| left.min(timeout));
        Self { started, timeout, by_request, class: terms.class, at }
    }

    pub fn deadline(self) -> Instant {
        after(self.started, self.timeout)
    }

    /// The same deadline, as seen now.
    pub fn times(self) -> Times {
        self.times_at(Instant::now())
    }

    fn times_at(self, now: Instant) -> Times {
        Times { now: now.into_std(), deadline: self.deadline().into_std(), at: self.at }
    }

    /// Whether the wait needs a timer of its own: nobody else answers at the deadline, or they might oversleep it.
    fn is_short(self) -> bool {
        self.timeout < 2 * TICK
    }
}

/// An acquire under way that found nothing in passing: what it does next, and by when it must have ended.
///
/// A future by hand, polled again after [`resume`](Self::resume): it is a tenth of a kilobyte where nested `async fn`s are
/// half of one, and thousands may wait.
pub(crate) struct Acquiring<'a, T: Held> {
    gate: &'a Gate,
    slots: &'a Slots<T>,
    terms: Terms,
    at: At,
    span: Option<Span>,
    stage: Stage<'a, T>,
    /// Where the driver runs; asked when it has to wait.
    at_home: Option<bool>,
    /// Boxed, because hardly any wait has one.
    timer: Option<Pin<Box<Sleep>>>,
}

enum Stage<'a, T: Held> {
    Arrived,
    Entered(Entry<T>),
    Waiting(Wait<'a, T>),
    Ended,
}

/// Why an acquire was given nothing.
#[derive(Debug)]
pub(crate) enum Denied {
    /// So many wait.
    Full(usize),
    Failed(SharedError),
    TimedOut,
    Closed,
}

impl Denied {
    /// As the caller gets it, told to the observers. `dial_error` is asked only when the deadline came first.
    pub fn into_error<T: Held>(
        self,
        gate: &Gate,
        slots: &Slots<T>,
        span: Span,
        dial_error: impl FnOnce() -> Option<SharedError>,
    ) -> AcquireError {
        match self {
            Self::Full(depth) => {
                AcquireError::Shed(gate.shed(ShedReason::HardCap, depth, span.class, ShedBy::Gate))
            }
            Self::Failed(error) => {
                let (error, waited) = (AcquireError::Dial(error), span.started.elapsed());
                gate.observe(|| Event::AcquireTimedOut { error: &error, waited });
                error
            }
            Self::TimedOut => timed_out(gate, slots, span, dial_error()),
            Self::Closed => AcquireError::Closed,
        }
    }
}

impl<'a, T: Held> Acquiring<'a, T> {
    pub fn new(gate: &'a Gate, slots: &'a Slots<T>, terms: Terms, at: At) -> Self {
        Self { gate, slots, terms, at, span: None, stage: Stage::Arrived, at_home: None, timer: None }
    }

    /// Goes on, as the same acquire, with what took the place of a dead connection.
    pub fn resume(&mut self, entry: Entry<T>) {
        self.stage = Stage::Entered(entry);
    }

    /// Begins now, if it had no reason to look at the clock before.
    pub fn span(&mut self) -> Span {
        *self.span.get_or_insert_with(|| {
            let span = Span::from_now(self.gate, self.terms, self.at);
            self.gate.holds().clock.set(span.started);
            span
        })
    }

    fn enter(&mut self, waker: &Waker) -> Entry<T> {
        let span = self.span();
        self.gate.revive();
        self.slots.enter(waker, span.class, span.times_at(span.started))
    }

    /// The driver answers at the deadline, so that thousands of waits need no timer each. A wait has one of its own where the
    /// deadline is nearer than the driver looks, or the driver is gone, or in another runtime, which may be busy or not driven.
    ///
    /// Ready with why to stop waiting.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<Leave> {
        if !self.slots.published.driven() {
            self.at_home = None; // it may move
            if !self.gate.revive() {
                return Poll::Ready(Leave::Failed);
            }
        }
        let span = self.span();
        for _ in 0..2 {
            if self.timer.is_none() {
                let at_home = *self.at_home.get_or_insert_with(|| self.gate.is_home());
                if at_home && !span.is_short() && self.slots.published.driven() {
                    return Poll::Pending;
                }
                self.timer = self.gate.timer(span.deadline()).map(Box::pin);
            }
            let Some(timer) = &mut self.timer else { return Poll::Ready(Leave::Failed) };
            ready!(poll_timer(timer.as_mut(), cx));
            if Instant::now() >= span.deadline() {
                return Poll::Ready(Leave::TimedOut);
            }
            // Early it fires where its runtime is gone. Another may have taken over.
            self.timer = None;
        }
        Poll::Ready(Leave::Failed)
    }
}

// Nothing in it is pinned: what is awaited is in a box or in the slots.
impl<T: Held> Unpin for Acquiring<'_, T> {}

impl<T: Held> Future for Acquiring<'_, T> {
    type Output = Result<Grant<T>, Denied>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let arrived = matches!(this.stage, Stage::Arrived);
        let entry = match mem::replace(&mut this.stage, Stage::Ended) {
            Stage::Arrived => Some(this.enter(cx.waker())),
            Stage::Entered(entry) => Some(entry),
            Stage::Waiting(wait) => {
                this.stage = Stage::Waiting(wait);
                None
            }
            Stage::Ended => Some(Entry::Closed),
        };
        match entry {
            Some(Entry::Granted(grant)) => return Poll::Ready(Ok(grant)),
            Some(Entry::Full(depth)) => return Poll::Ready(Err(Denied::Full(depth))),
            Some(Entry::Failed(error)) => return Poll::Ready(Err(Denied::Failed(error))),
            Some(Entry::TimedOut) => return Poll::Ready(Err(Denied::TimedOut)),
            Some(Entry::Closed) => return Poll::Ready(Err(Denied::Closed)),
            Some(Entry::Queued(key)) => {
                this.stage = Stage::Waiting(Wait { slots: this.slots, key: Some(key) });
            }
            None => {}
        }
        if arrived && this.poll_timer(cx).is_pending() {
            return Poll::Pending; // the queue knows whom to wake
        }
        let Stage::Waiting(wait) = &mut this.stage else { return Poll::Ready(Err(Denied::Closed)) };
        let answer = match Pin::new(&mut *wait).poll(cx) {
            Poll::Ready(answer) => answer,
            Poll::Pending => {
                let why = ready!(this.poll_timer(cx));
                if let Stage::Waiting(wait) = &mut this.stage {
                    wait.leave(why);
                }
                if why == Leave::Failed { Answer::Failed(Arc::new(NoRuntime)) } else { Answer::TimedOut }
            }
        };
        this.stage = Stage::Ended;
        Poll::Ready(match answer {
            Answer::Granted(grant) => Ok(grant),
            Answer::PushedOut => Err(Denied::Full(this.slots.published.occupancy().queue_depth)),
            Answer::Failed(error) => Err(Denied::Failed(error)),
            Answer::Closed => Err(Denied::Closed),
            Answer::TimedOut => Err(Denied::TimedOut),
        })
    }
}

/// The error of an acquire whose deadline came first, told to the observers.
pub(crate) fn timed_out<T: Held>(
    gate: &Gate,
    slots: &Slots<T>,
    span: Span,
    dial_error: Option<SharedError>,
) -> AcquireError {
    let counts = slots.counts();
    let error = AcquireError::Timeout(Box::new(AcquireTimeout {
        waited: span.started.elapsed(),
        in_use: counts.in_use,
        size: counts.places,
        limit: counts.limit,
        max_size: counts.max_size,
        not_growing: (counts.limit < counts.max_size && counts.in_use >= counts.limit)
            .then(|| gate.last_reason()),
        queue_depth: counts.queue_depth,
        by_request: span.by_request,
        oldest_hold: gate.holds().oldest(),
        dial_error,
    }));
    gate.observe(|| Event::AcquireTimedOut { error: &error, waited: span.started.elapsed() });
    error
}

/// A place in the queue. Dropping it gives the place up, and a permit already set aside goes to the next in line.
pub(super) struct Wait<'a, T: Held> {
    pub slots: &'a Slots<T>,
    pub key: Option<Key>,
}

impl<T: Held> Wait<'_, T> {
    pub fn leave(&mut self, why: Leave) {
        if let Some(key) = self.key.take() {
            self.slots.leave(key, why, || Instant::now().into_std());
        }
    }
}

impl<T: Held> Future for Wait<'_, T> {
    type Output = Answer<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer<T>> {
        let Some(key) = self.key else { return Poll::Ready(Answer::Closed) };
        let answer = ready!(self.slots.poll_wait(key, cx.waker()));
        self.key = None;
        Poll::Ready(answer)
    }
}

impl<T: Held> Drop for Wait<'_, T> {
    fn drop(&mut self) {
        self.leave(Leave::Cancelled);
    }
}
