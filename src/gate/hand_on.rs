//! Who gets a free permit, and where one goes that nobody holds any more: under the lock, without the lock.

use std::task::Waker;
use std::time::Instant;

use super::holds::Held;
use super::permits::{Free, State};
use super::queue::{Answer, Grant};
use super::slots::wake;
use crate::terms::Class;

/// Whom to wake and what to drop when the lock is gone.
#[must_use]
pub(super) struct HandedOn<T> {
    pub granted: Option<Waker>,
    /// Of those whose deadline had come, and of those who were granted what else was free.
    pub others: Vec<Option<Waker>>,
    pub surplus: Option<T>,
}

impl<T> HandedOn<T> {
    /// True when the permit was one too many and is gone.
    pub fn finish(self) -> bool {
        wake(self.granted);
        self.others.into_iter().for_each(wake);
        self.surplus.is_some()
    }
}

impl<T: Held> State<T> {
    /// The most recently used connection, if it was used just now and the driver is awake.
    pub fn take_proven(&mut self, class: Class) -> Option<T> {
        if self.parked.is_some() || self.free.back().is_none_or(|free| free.unproven) {
            return None;
        }
        let grant = self.take_idle()?;
        self.counts.acquires.started += 1;
        self.counts.entered[class.line()] += 1;
        Some(grant.item)
    }

    /// The most recently used connection, so that what is not needed grows old and can close; none over the limit.
    pub fn take_idle(&mut self) -> Option<Grant<T>> {
        if self.counts.in_use >= self.counts.limit {
            return None;
        }
        let Free { item, unproven, .. } = self.free.pop_back()?;
        self.counts.acquires.granted += 1;
        self.use_one_more();
        Some(Grant { item, unproven })
    }

    fn use_one_more(&mut self) {
        self.counts.in_use += 1;
        debug_assert!(self.counts.in_use <= self.counts.limit, "{:?}", self.counts);
        self.counts.peak_in_use = self.counts.peak_in_use.max(self.counts.in_use);
    }

    /// Nobody waits, and nothing is over its bound: what comes back is free.
    pub fn is_calm(&self) -> bool {
        self.queue.len() == 0
            && !self.draining
            && self.counts.in_use <= self.counts.limit
            && self.open() <= self.most_open()
    }

    /// What was in use is free.
    pub fn put_back(&mut self, free: Free<T>) {
        self.counts.in_use -= 1;
        self.free.push_back(free);
    }

    /// Where a permit goes that nobody holds any more, and that is still counted as in use: away if it is one too many, to
    /// the first in line, or free. Over the limit nobody gets it, whoever waits.
    ///
    /// With `now`, those whose deadline has come are told so first: nobody is granted what comes too late.
    pub fn hand_on(&mut self, free: Free<T>, now: Option<Instant>) -> HandedOn<T> {
        let others = now.map_or_else(Vec::new, |now| self.queue.answer_until(now, || Answer::TimedOut));
        let (granted, surplus) = self.place(free);
        HandedOn { granted, others, surplus }
    }

    fn place(&mut self, free: Free<T>) -> (Option<Waker>, Option<T>) {
        let over_limit = self.counts.in_use > self.counts.limit;
        let unwanted = self.draining && (over_limit || self.queue.len() == 0);
        if unwanted || self.open() > self.most_open() {
            self.counts.in_use -= 1;
            return (None, Some(free.item));
        }
        let Free { item, since, unproven } = free;
        let answer = Answer::Granted(Grant { item, unproven });
        let back = if over_limit { Err(answer) } else { self.queue.answer_first(answer) };
        match back {
            Ok(waker) => {
                // It may have been opened just now, and not counted yet.
                self.counts.peak_in_use = self.counts.peak_in_use.max(self.counts.in_use);
                (waker, None)
            }
            Err(Answer::Granted(Grant { item, unproven })) => {
                self.put_back(Free { item, since, unproven });
                (None, None)
            }
            Err(_) => unreachable!("the answer that comes back is the one that was given"),
        }
    }

    /// After a change that may have left something free under the limit: it goes to those who wait. `now` is asked when there
    /// is somebody and something.
    pub fn hand_out(&mut self, now: impl FnOnce() -> Instant) -> HandedOn<T> {
        let mut others = Vec::new();
        if self.idle() > 0 && self.queue.len() > 0 {
            others = self.queue.answer_until(now(), || Answer::TimedOut);
            while self.idle() > 0 && self.queue.len() > 0 {
                let Some(Free { item, unproven, .. }) = self.free.pop_back() else { break };
                self.use_one_more();
                others.extend(self.queue.answer_first(Answer::Granted(Grant { item, unproven })).ok());
            }
        }
        HandedOn { granted: None, others, surplus: None }
    }
}
