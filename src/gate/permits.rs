//! Permits, free and held, and who gets the next one: what happens under the lock, without the lock.

use std::collections::VecDeque;
use std::task::Waker;
use std::time::{Duration, Instant};

use super::counts::{Bounds, Counts};
use super::ledger::Acquires;
use super::queue::{Answer, Key, Queue};
use super::slots::{Times, wake};
use crate::error::SharedError;
use crate::law::estimate::MeanTime;
use crate::terms::{CLASSES, Class};

/// Places made in advance, for connections and for waiters; higher bounds grow them when they are really needed.
const PRESIZED: usize = 1024;

/// Without a completion for so long, the use time is not known any more; where three uses take longer, for those.
const STALE: Duration = Duration::from_secs(1);

/// How an acquire begins.
#[derive(Debug)]
pub(crate) enum Entry<T> {
    Granted(T),
    /// Granted too, but it was idle for so long that it may have died unheard.
    Unproven(T),
    Queued(Key),
    /// The queue is full; so many wait.
    Full(usize),
    /// Nothing can be had before the deadline, and why.
    Failed(SharedError),
    /// The deadline had passed before it began.
    TimedOut,
    Closed,
}

/// How an acquire ends without a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leave {
    TimedOut,
    Cancelled,
}

#[derive(Debug)]
pub(super) struct Idle<T> {
    pub item: T,
    /// `None` until the driver's next sample: a release need not read the clock for it.
    pub since: Option<Instant>,
    /// Idle for so long that it is to be checked before it is handed out.
    pub unproven: bool,
}

impl<T> From<Idle<T>> for Entry<T> {
    fn from(Idle { item, unproven, .. }: Idle<T>) -> Self {
        if unproven { Self::Unproven(item) } else { Self::Granted(item) }
    }
}

/// Dialing pauses.
#[derive(Debug)]
pub(super) struct NoDial {
    pub until: Instant,
    /// Why the last one failed.
    pub error: SharedError,
}

/// What is counted as it happens; [`Counts`] are these with what follows from the rest.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub in_use: usize,
    pub peak_in_use: usize,
    pub target: usize,
    pub opening: usize,
    pub places: usize,
    pub completions: u64,
    pub failures: u64,
    pub acquires: Acquires,
    /// Of those shed, the ones that would not have waited.
    pub misses: u64,
    /// Acquires begun that may wait, by class.
    pub entered: [u64; CLASSES],
}

/// Whom to wake and what to drop when the lock is gone.
#[must_use]
pub(super) struct HandedOn<T> {
    pub granted: Option<Waker>,
    pub expired: Vec<Option<Waker>>,
    pub surplus: Option<T>,
}

impl<T> HandedOn<T> {
    /// True when the permit was one too many and is gone.
    pub fn finish(self) -> bool {
        wake(self.granted);
        self.expired.into_iter().for_each(wake);
        self.surplus.is_some()
    }
}

/// What the lock of [`Slots`](super::slots::Slots) protects, and how it changes. A change returns whom to wake and what
/// to drop, for when the lock is gone.
///
/// In this order, so that what every acquire and release touches is together, and moves together from core to core.
#[derive(Debug)]
#[repr(C)]
pub(super) struct State<T> {
    pub idle: VecDeque<Idle<T>>,
    /// The driver, parked until somebody comes.
    pub parked: Option<Waker>,
    pub counts: Tally,
    pub queue: Queue<T>,
    pub draining: bool,
    /// Drained: nobody waits any more, and nobody will.
    pub closed: bool,
    pub bounds: Bounds,
    /// Since a dial failed, until one succeeds.
    pub no_dial: Option<NoDial>,
    pub use_time: MeanTime,
    /// How many completions there were, and since when no more.
    pub last_completion: Option<(u64, Instant)>,
}

impl<T> State<T> {
    pub fn new(bounds: Bounds) -> Self {
        Self {
            idle: VecDeque::with_capacity(bounds.max_size.min(PRESIZED)),
            queue: Queue::with_capacity(bounds.hard_cap.min(PRESIZED)),
            bounds,
            counts: Tally { target: bounds.min_size, ..Tally::default() },
            no_dial: None,
            use_time: MeanTime::default(),
            last_completion: None,
            draining: false,
            closed: false,
            parked: None,
        }
    }

    pub fn permits(&self) -> usize {
        self.counts.in_use + self.idle.len()
    }

    /// How many more connections may be opened now: the target asks for them, and the ceiling has places.
    pub fn room(&self) -> usize {
        if self.closed || (self.draining && self.queue.len() == 0) {
            return 0;
        }
        let wanted = self.counts.target.saturating_sub(self.permits() + self.counts.opening);
        wanted.min(self.bounds.max_size.saturating_sub(self.counts.places))
    }

    pub fn enter(&mut self, waker: &Waker, class: Class, times: Times) -> Entry<T> {
        let Times { now, deadline } = times;
        self.counts.entered[class.line()] += 1;
        if self.draining {
            self.counts.acquires.failed += 1;
            return Entry::Closed;
        }
        if deadline <= now {
            return self.expired();
        }
        if let Some(idle) = self.take_idle() {
            return idle.into();
        }
        if self.is_full() {
            return self.full();
        }
        if let Some(failed) = self.fail_if_hopeless(deadline) {
            return failed;
        }
        Entry::Queued(self.queue.push_last(class, deadline, Some(waker.clone())))
    }

    /// Back at the head of its class, as the same acquire: older rights go first, and the bound of the queue holds. The
    /// youngest of the lowest class makes room, unless that would be one of a higher class.
    pub fn rejoin(&mut self, class: Class, times: Times, pushed_out: &mut Option<Waker>) -> Entry<T> {
        if let Some(failed) = self.fail_if_hopeless(times.deadline) {
            return failed;
        }
        if self.is_full() {
            if self.queue.lowest().is_some_and(|lowest| lowest < class.line()) {
                return self.full();
            }
            *pushed_out = self.queue.answer_last(Answer::PushedOut).ok().flatten();
        }
        Entry::Queued(self.queue.push_first(class, times.deadline))
    }

    pub fn is_full(&self) -> bool {
        self.queue.len() >= self.bounds.hard_cap
    }

    fn full(&mut self) -> Entry<T> {
        self.counts.acquires.shed += 1;
        Entry::Full(self.queue.len())
    }

    pub fn expired(&mut self) -> Entry<T> {
        self.counts.acquires.timed_out += 1;
        Entry::TimedOut
    }

    /// No connection is there, none is being opened, and none will be for a while.
    pub fn hopeless(&self) -> Option<&NoDial> {
        self.no_dial.as_ref().filter(|_| self.permits() + self.counts.opening == 0)
    }

    pub fn fail_if_hopeless(&mut self, deadline: Instant) -> Option<Entry<T>> {
        let error = self.hopeless().filter(|no_dial| deadline <= no_dial.until)?.error.clone();
        self.counts.acquires.failed += 1;
        Some(Entry::Failed(error))
    }

    /// Nothing is free for somebody who does not wait.
    pub fn miss(&mut self) -> Entry<T> {
        if self.draining {
            self.counts.acquires.failed += 1;
            return Entry::Closed;
        }
        self.counts.misses += 1;
        self.full()
    }

    /// The most recently used connection, if it was used just now and the driver is awake.
    pub fn take_proven(&mut self, class: Class) -> Option<T> {
        if self.parked.is_some() || self.idle.back().is_none_or(|idle| idle.unproven) {
            return None;
        }
        self.counts.acquires.started += 1;
        self.counts.entered[class.line()] += 1;
        self.take_idle().map(|idle| idle.item)
    }

    /// The most recently used connection, so that a surplus goes idle and can close.
    pub fn take_idle(&mut self) -> Option<Idle<T>> {
        let idle = self.idle.pop_back()?;
        self.counts.acquires.granted += 1;
        self.counts.in_use += 1;
        self.counts.peak_in_use = self.counts.peak_in_use.max(self.counts.in_use);
        Some(idle)
    }

    /// Where a permit goes that nobody holds any more: away if it is one too many, to the first in line, or idle.
    ///
    /// With `now`, those whose deadline has come are told so first: nobody is granted what comes too late.
    pub fn hand_on(&mut self, item: T, since: Option<Instant>, now: Option<Instant>) -> HandedOn<T> {
        let expired = now.map_or_else(Vec::new, |now| self.queue.answer_until(now, || Answer::TimedOut));
        let (granted, surplus) = self.place(item, since);
        HandedOn { granted, expired, surplus }
    }

    fn place(&mut self, item: T, since: Option<Instant>) -> (Option<Waker>, Option<T>) {
        let unwanted = self.draining && self.queue.len() == 0;
        if unwanted || self.permits() > self.counts.target {
            self.counts.in_use -= 1;
            return (None, Some(item));
        }
        match self.queue.answer_first(Answer::Granted(item)) {
            Ok(waker) => {
                self.counts.peak_in_use = self.counts.peak_in_use.max(self.counts.in_use);
                (waker, None)
            }
            Err(Answer::Granted(item)) => {
                self.counts.in_use -= 1;
                self.idle.push_back(Idle { item, since, unproven: false });
                (None, None)
            }
            Err(_) => unreachable!("the answer that comes back is the one that was given"),
        }
    }

    /// What came back since the last time counts as idle from now; what has been idle for `check_after` is unproven.
    pub fn age(&mut self, now: Instant) {
        for idle in &mut self.idle {
            let since = *idle.since.get_or_insert(now);
            idle.unproven = now.saturating_duration_since(since) >= self.bounds.check_after;
        }
    }

    /// Nothing has come back for so long that the use time says nothing any more: not about a database that stands still,
    /// nor, afterwards, about one that is well again.
    pub fn is_stalled(&mut self, now: Instant) -> bool {
        let completions = self.counts.completions;
        let since = match self.last_completion {
            Some((known, since)) if known == completions => since,
            _ => now,
        };
        self.last_completion = Some((completions, since));
        let usual = self.use_time.get().unwrap_or_default();
        now.saturating_duration_since(since) >= STALE.max(usual.saturating_mul(3))
    }

    pub fn take_surplus(&mut self) -> Vec<Idle<T>> {
        let over = self.permits().saturating_sub(self.counts.target);
        let closing = over.min(self.idle.len());
        self.idle.drain(..closing).collect()
    }

    pub fn count(&mut self, why: Leave) {
        match why {
            Leave::TimedOut => self.counts.acquires.timed_out += 1,
            Leave::Cancelled => self.counts.acquires.cancelled += 1,
        }
    }

    pub fn read(&self) -> Counts {
        let idle = self.idle.len();
        // A place may be given up a moment before its dial or permit is: never show a size below its parts.
        let Tally {
            in_use,
            peak_in_use,
            target,
            opening,
            places,
            completions,
            failures,
            acquires,
            misses,
            entered,
        } = self.counts;
        let parts = in_use + idle + opening;
        Counts {
            idle,
            in_use,
            peak_in_use,
            opening,
            target,
            completions,
            failures,
            acquires,
            misses,
            entered,
            places: places.max(parts),
            queue_depth: self.queue.len(),
            min_size: self.bounds.min_size,
            max_size: self.bounds.max_size,
            hard_cap: self.bounds.hard_cap,
            use_time: self.use_time.get(),
        }
    }
}
