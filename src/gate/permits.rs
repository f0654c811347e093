//! Permits, free and held, and who gets the next one: what happens under the lock, without the lock.

use std::collections::VecDeque;
use std::task::Waker;
use std::time::{Duration, Instant};

use super::counts::{Bounds, Counts};
use super::guarded::Guarded;
use super::holds::Held;
use super::ledger::Acquires;
use super::queue::{Answer, Grant, Key, Queue, Times};
use crate::error::SharedError;
use crate::law::UseTimes;
use crate::law::estimate::MeanTime;
use crate::terms::{CLASSES, Class};

/// Places made in advance, for connections and for waiters; higher bounds grow them when they are really needed.
const PRESIZED: usize = 1024;

/// Without a completion for so long, the use time is not known any more; where three uses take longer, for those.
const STALE: Duration = Duration::from_secs(1);

/// How an acquire begins.
#[derive(Debug)]
pub(crate) enum Entry<T> {
    Granted(Grant<T>),
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
    /// No runtime is there to wait in.
    Failed,
}

/// What becomes of free permits over the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keeps {
    /// They stay in reserve, and are closed only over `max_size` or after `idle_timeout`.
    Reserve,
    /// They go: they cost nothing to make.
    Nothing,
}

/// A permit that nobody holds.
#[derive(Debug)]
pub(super) struct Free<T> {
    pub item: T,
    /// `None` until the driver's next sample: a release need not read the clock for it.
    pub since: Option<Instant>,
    /// Free for so long that it is to be checked before it is used.
    pub unproven: bool,
}

impl<T> From<Grant<T>> for Free<T> {
    fn from(Grant { item, unproven }: Grant<T>) -> Self {
        Self { item, since: None, unproven }
    }
}

/// Dialing pauses.
#[derive(Debug)]
pub(super) struct NoDial {
    pub until: Instant,
    /// Why the last one failed.
    pub error: Guarded<SharedError>,
}

/// What is counted as it happens; [`Counts`] are these with what follows from the rest.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub in_use: usize,
    pub peak_in_use: usize,
    pub limit: usize,
    pub opening: usize,
    pub places: usize,
    pub completions: u64,
    pub acquires: Acquires,
    /// Of those shed, the ones that would not have waited.
    pub misses: u64,
    /// Acquires begun that may wait, by class.
    pub entered: [u64; CLASSES],
}

/// What the lock of [`Slots`](super::slots::Slots) protects, and how it changes. A change returns whom to wake and what
/// to drop, for when the lock is gone.
///
/// In this order, so that what every acquire and release touches is together, and moves together from core to core.
#[derive(Debug)]
#[repr(C)]
pub(super) struct State<T> {
    /// The longest free first.
    pub free: VecDeque<Free<T>>,
    /// The driver, parked until somebody comes.
    pub parked: Option<Waker>,
    /// The keeper of deadlines, parked until somebody waits.
    pub keeper: Option<Waker>,
    /// The bounds were changed, and the driver has not looked since.
    pub bounds_changed: bool,
    pub counts: Tally,
    pub queue: Queue<T>,
    pub draining: bool,
    /// Drained: nobody waits any more, and nobody will.
    pub closed: bool,
    pub bounds: Bounds,
    keeps: Keeps,
    /// Since a dial failed, until one succeeds.
    pub no_dial: Option<NoDial>,
    pub use_time: MeanTime,
    /// How many completions there were, and since when no more.
    pub last_completion: Option<(u64, Instant)>,
}

impl<T: Held> State<T> {
    pub fn new(bounds: Bounds, keeps: Keeps) -> Self {
        Self {
            free: VecDeque::with_capacity(bounds.max_size.min(PRESIZED)),
            queue: Queue::with_capacity(bounds.hard_cap.min(PRESIZED)),
            bounds,
            keeps,
            counts: Tally { limit: bounds.base_limit, ..Tally::default() },
            no_dial: None,
            use_time: MeanTime::default(),
            last_completion: None,
            draining: false,
            closed: false,
            parked: None,
            keeper: None,
            bounds_changed: false,
        }
    }

    /// Connections that are there, in use or free.
    pub fn open(&self) -> usize {
        self.counts.in_use + self.free.len()
    }

    /// Of those that are free, how many may be used.
    pub fn idle(&self) -> usize {
        self.free.len().min(self.counts.limit.saturating_sub(self.counts.in_use))
    }

    /// How many are to be open, if nothing closes them.
    pub fn goal(&self) -> usize {
        match self.keeps {
            Keeps::Reserve if !self.draining => self.counts.limit.max(self.bounds.min_size),
            _ => self.counts.limit,
        }
    }

    pub fn most_open(&self) -> usize {
        match self.keeps {
            Keeps::Reserve => self.bounds.max_size,
            Keeps::Nothing => self.counts.limit,
        }
    }

    /// How many more connections may be opened now: limit and `min_size` ask for them, and the ceiling has places.
    pub fn room(&self) -> usize {
        if self.closed || (self.draining && self.queue.len() == 0) {
            return 0;
        }
        let wanted = self.goal().saturating_sub(self.open() + self.counts.opening);
        wanted.min(self.bounds.max_size.saturating_sub(self.counts.places))
    }

    pub fn enter(
        &mut self,
        waker: &Waker,
        class: Class,
        times: Times,
        pushed_out: &mut Option<Waker>,
    ) -> Entry<T> {
        let Times { now, deadline, .. } = times;
        self.counts.entered[class.line()] += 1;
        if self.draining {
            self.counts.acquires.failed += 1;
            return Entry::Closed;
        }
        if deadline <= now {
            return self.expired();
        }
        if let Some(grant) = self.take_idle() {
            return Entry::Granted(grant);
        }
        if self.is_full() && self.queue.lowest().is_none_or(|lowest| lowest <= class.line()) {
            return self.full();
        }
        if let Some(failed) = self.fail_if_hopeless(deadline) {
            return failed;
        }
        self.make_room(pushed_out);
        Entry::Queued(self.queue.push_last(class, times, Some(waker.clone())))
    }

    /// In a full queue the youngest of the lowest class makes room.
    fn make_room(&mut self, pushed_out: &mut Option<Waker>) {
        if self.is_full() {
            *pushed_out = self.queue.answer_last(Answer::PushedOut).ok().flatten();
        }
    }

    /// Back at the head of its class, as the same acquire: older rights go first, and the bound of the queue holds. The
    /// youngest of the lowest class makes room, unless that would be one of a higher class.
    pub fn rejoin(&mut self, class: Class, times: Times, pushed_out: &mut Option<Waker>) -> Entry<T> {
        if let Some(failed) = self.fail_if_hopeless(times.deadline) {
            return failed;
        }
        if self.is_full() && self.queue.lowest().is_none_or(|lowest| lowest < class.line()) {
            return self.full();
        }
        self.make_room(pushed_out);
        Entry::Queued(self.queue.push_first(class, times))
    }

    /// The keeper of deadlines, if it has to be woken.
    pub fn take_keeper(&mut self) -> Option<Waker> {
        if self.queue.len() > 0 { self.keeper.take() } else { None }
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
        self.no_dial.as_ref().filter(|_| self.open() + self.counts.opening == 0)
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

    /// What came back since the last time counts as idle from now; what has been idle for `check_after` is unproven.
    pub fn age(&mut self, now: Instant) {
        for free in &mut self.free {
            let since = *free.since.get_or_insert(now);
            free.unproven |= now.saturating_duration_since(since) >= self.bounds.check_after;
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

    /// What is free and one too many, the longest free first.
    pub fn take_surplus(&mut self) -> Vec<Free<T>> {
        let over = self.open().saturating_sub(self.most_open());
        self.free.drain(..over.min(self.free.len())).collect()
    }

    pub fn count(&mut self, why: Leave) {
        match why {
            Leave::TimedOut => self.counts.acquires.timed_out += 1,
            Leave::Cancelled => self.counts.acquires.cancelled += 1,
            Leave::Failed => self.counts.acquires.failed += 1,
        }
    }

    pub fn read(&self) -> Counts {
        let idle = self.idle();
        let reserve = self.free.len() - idle;
        // A place may be given up a moment before its dial or permit is: never show a size below its parts.
        let Tally { in_use, peak_in_use, limit, opening, places, completions, acquires, misses, entered } =
            self.counts;
        let parts = self.open() + opening;
        Counts {
            idle,
            reserve,
            in_use,
            peak_in_use,
            opening,
            limit,
            completions,
            acquires,
            misses,
            entered,
            places: places.max(parts),
            queue_depth: self.queue.len(),
            impatient: false, // known to the sample alone
            min_limit: self.bounds.min_limit,
            base_limit: self.bounds.base_limit,
            min_size: self.bounds.min_size,
            max_size: self.bounds.max_size,
            hard_cap: self.bounds.hard_cap,
            use_time: self.use_time.get(),
            use_time_scatter: self.use_time.scatter(),
            use_times: UseTimes::default(), // so are these
        }
    }
}
