//! The permits, each carrying what it is a permit for, and the queue in front of them, under one mutex.
//!
//! Whoever gets a permit *has* the connection: they cannot come apart. Every critical section is a few instructions;
//! wakers are called and connections dropped after the lock is gone. No clock and no runtime here: `now` is an
//! argument, waiting is a [`Waker`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Poll, Waker};
use std::time::Instant;

#[cfg(not(test))]
use parking_lot::{Mutex, MutexGuard}; // spins first: what it protects is over sooner than a thread sleeps
#[cfg(test)]
use shuttle::sync::{Mutex, MutexGuard}; // for the interleaving tests, which decide who runs next at each lock

use super::counts::{Apart, Bounds, Counts, Published};
use super::guarded;
use super::hand_on::HandedOn;
use super::holds::Held;
use super::permits::{Entry, Free, Keeps, Leave, State};
use super::queue::{Answer, Key, Times};
use crate::terms::Class;

/// One hold in so many is timed.
const SAMPLED: u64 = 16;
/// From so many nanoseconds on, two readings of the clock (40) do not count.
const LONG: u64 = 1_000_000;

/// Permits and waiters. See the module; what changes how many permits there are is in [`resize`](super::resize).
#[derive(Debug)]
pub(crate) struct Slots<T> {
    state: Mutex<State<T>>,
    pub published: Arc<Published>,
    turn: Apart<AtomicU64>,
}

impl<T: Held> Slots<T> {
    pub fn new(bounds: Bounds, keeps: Keeps) -> Self {
        Self {
            state: Mutex::new(State::new(bounds, keeps)),
            published: Arc::default(),
            turn: Apart::default(),
        }
    }

    /// The usual acquire: a permit at once that needs no look at the clock. Otherwise nothing has happened, and the acquire
    /// begins with [`enter`](Self::enter).
    pub fn take(&self, class: Class) -> Option<T> {
        if self.published.idle.load(Relaxed) == 0 {
            return None;
        }
        let mut state = self.lock();
        let item = state.take_proven(class)?;
        self.published.idle.store(state.idle(), Relaxed); // nothing else has changed
        Some(item)
    }

    /// Begins an acquire: a permit at once, or a place in the queue, where `waker` is woken with the answer.
    pub fn enter(&self, waker: &Waker, class: Class, times: Times) -> Entry<T> {
        let mut state = self.lock();
        state.counts.acquires.started += 1;
        let parked = state.parked.take();
        if parked.is_some() {
            // The driver rested, so nobody has looked at the clock.
            state.age(times.now);
        }
        let mut late = Vec::new();
        if state.is_full() {
            // Whose time has come does not stand in anybody's way.
            late = state.queue.answer_until(times.now, || Answer::TimedOut);
        }
        let mut pushed_out = None;
        let entry = state.enter(waker, class, times, &mut pushed_out);
        let keeper = state.take_keeper();
        self.publish(&state);
        drop(state);
        wake(parked);
        wake(keeper);
        wake(pushed_out);
        late.into_iter().for_each(wake);
        entry
    }

    /// A permit at once or nothing. Never overtakes a waiter: while somebody waits nothing is free under the limit.
    pub fn try_enter(&self, now: impl FnOnce() -> Instant) -> Entry<T> {
        let mut state = self.lock();
        state.counts.acquires.started += 1;
        let parked = state.parked.take();
        if parked.is_some() {
            state.age(now());
        }
        let entry = state.take_idle().map_or_else(|| state.miss(), Entry::Granted);
        self.publish(&state);
        drop(state);
        wake(parked);
        entry
    }

    /// Asks for a waiter's answer. After `Ready` the place is gone.
    pub fn poll_wait(&self, key: Key, waker: &Waker) -> Poll<Answer<T>> {
        let mut state = self.lock();
        let answer = match state.queue.take(key, waker) {
            Ok(answer) => answer,
            Err(stale) => {
                drop(state);
                drop(stale);
                return Poll::Pending;
            }
        };
        let acquires = &mut state.counts.acquires;
        match &answer {
            Answer::Granted(_) => acquires.granted += 1,
            Answer::PushedOut => acquires.shed += 1,
            Answer::TimedOut => acquires.timed_out += 1,
            Answer::Failed(_) | Answer::Closed => acquires.failed += 1,
        }
        Poll::Ready(answer)
    }

    /// Ends a wait without having fetched its answer: a permit that was set aside goes to the next in line.
    pub fn leave(&self, key: Key, why: Leave, now: impl FnOnce() -> Instant) {
        let mut state = self.lock();
        let left = state.queue.leave(key);
        state.count(why);
        let (handed_on, other) = match left {
            Ok(Answer::Granted(grant)) => {
                grant.item.end_hold();
                (Some(state.hand_on(grant.into(), Some(now()))), None)
            }
            other => (None, Some(other)),
        };
        self.publish(&state);
        drop(state);
        handed_on.map(HandedOn::finish);
        guarded(|| drop(other)); // a backend's error, or an executor's waker
    }

    /// Takes a grant back that never reached its caller: the permit is destroyed, the acquire ends as `why`.
    pub fn revoke(&self, item: T, why: Leave, now: impl FnOnce() -> Instant) {
        let mut state = self.lock();
        state.counts.acquires.granted -= 1;
        state.counts.in_use -= 1;
        state.count(why);
        let handed_on = state.hand_out(now);
        self.publish(&state);
        drop(state);
        handed_on.finish();
        drop(item);
    }

    /// A grant whose connection turned out dead: its permit is destroyed, and the same acquire goes on with the next
    /// free connection, or at the head of its class until its deadline, or, where it may not wait, not at all.
    pub fn reject(&self, dead: T, waits: Option<(Class, Times)>, now: impl FnOnce() -> Instant) -> Entry<T> {
        let mut state = self.lock();
        state.counts.in_use -= 1;
        state.counts.acquires.granted -= 1;
        let mut pushed_out = None;
        let entry = match waits {
            Some((_, times)) if times.deadline <= times.now => state.expired(),
            _ => match (state.take_idle(), waits) {
                (Some(grant), _) => Entry::Granted(grant),
                (None, Some((class, times))) if !state.closed => state.rejoin(class, times, &mut pushed_out),
                (None, _) => state.miss(),
            },
        };
        let handed_on = state.hand_out(now);
        let keeper = state.take_keeper();
        self.publish(&state);
        drop(state);
        wake(keeper);
        wake(pushed_out);
        handed_on.finish();
        drop(dead);
        entry
    }

    /// Gives a permit back: to the next in line if there is one, or free. It was held `since` then, where that is measured;
    /// `now` is asked once, when that is so or somebody waits. True when it was one too many and is gone.
    pub fn release(&self, item: T, since: Option<Instant>, now: impl FnOnce() -> Instant) -> bool {
        // Looked at before the lock: who joins in between is not late yet.
        let waited_for = self.published.queue_depth.load(Relaxed) > 0;
        let now = (waited_for || since.is_some()).then(now);
        let mut state = self.lock();
        self.complete(&mut state, since, now);
        let free = Free { item, since: None, unproven: false };
        if state.is_calm() {
            state.put_back(free);
            self.published.idle.store(state.idle(), Relaxed); // nothing else has changed
            return false;
        }
        let handed_on = state.hand_on(free, now);
        self.publish(&state);
        drop(state);
        handed_on.finish()
    }

    /// A use has ended, whatever becomes of its connection.
    fn complete(&self, state: &mut State<T>, since: Option<Instant>, now: Option<Instant>) {
        state.counts.completions += 1;
        if let Some((since, now)) = since.zip(now) {
            state.use_time.add(now.saturating_duration_since(since));
            let nanos = state.use_time.get().map_or(0, |mean| mean.as_nanos() as u64);
            self.published.use_time.store(nanos, Relaxed);
        }
    }

    /// Measures one hold in [`SAMPLED`]: a mean needs no more, and the others save two readings of the clock. Whose turn
    /// it is need not be exact, so no read-modify-write is paid for it. While somebody waits every hold is measured: a
    /// database that has just become slow must be known to be so before all that wait have come too late.
    pub fn measure<C>(&self, clock: impl FnOnce() -> C) -> Option<C> {
        let turn = self.turn.load(Relaxed);
        self.turn.store(turn.wrapping_add(1), Relaxed);
        let waited_for = self.published.queue_depth.load(Relaxed) > 0;
        let use_time = self.published.use_time.load(Relaxed);
        let is_long = use_time == 0 || use_time >= LONG;
        (is_long || waited_for || turn.is_multiple_of(SAMPLED)).then(clock)
    }

    /// Destroys a permit whose use has ended; `since` as in [`release`](Self::release). What it carried is dropped after the lock
    /// is gone.
    pub fn retire(&self, item: T, since: Option<Instant>, now: impl Fn() -> Instant) {
        let ended = since.map(|_| now());
        let mut state = self.lock();
        self.complete(&mut state, since, ended);
        state.counts.in_use -= 1;
        let handed_on = state.hand_out(now);
        self.publish(&state);
        drop(state);
        handed_on.finish();
        drop(item);
    }

    /// Parks the driver while nothing is held or awaited and the limit is `base_limit`; `Ready` when there is something to
    /// do.
    pub fn poll_busy(&self, seen: u64, waker: &Waker) -> Poll<()> {
        let mut state = self.lock();
        if std::mem::take(&mut state.bounds_changed) {
            return Poll::Ready(());
        }
        let counts = &state.counts;
        let quiet = counts.acquires.started == seen
            && counts.in_use == 0
            && state.queue.len() == 0
            // Else what is dialed is one too many, and will have to be closed.
            && (counts.opening == 0 || state.open() + counts.opening <= state.goal())
            && counts.limit == state.bounds.base_limit;
        if !quiet {
            return Poll::Ready(());
        }
        state.parked = Some(waker.clone());
        Poll::Pending
    }

    pub fn bounds(&self) -> Bounds {
        self.lock().bounds
    }

    pub fn counts(&self) -> Counts {
        self.lock().read()
    }

    /// [`counts`](Self::counts), and the peak starts anew; what is idle grows older.
    pub fn sample(&self, now: Instant) -> Counts {
        let mut state = self.lock();
        let impatient = state.queue.is_impatient(now);
        let use_times = state.use_time.take_recent();
        let counts = Counts { impatient, use_times, ..state.read() };
        state.counts.peak_in_use = state.counts.in_use;
        state.age(now);
        if state.is_stalled(now) {
            self.published.use_time.store(0, Relaxed);
        }
        counts
    }

    /// Answers those whose deadline has come, and says when the next one may.
    pub fn expire(&self, now: Instant) -> Option<Instant> {
        let mut state = self.lock();
        let wakers = state.queue.answer_until(now, || Answer::TimedOut);
        let next = state.queue.earliest();
        self.publish(&state);
        drop(state);
        wakers.into_iter().for_each(wake);
        next
    }

    /// Parks the keeper of deadlines while nobody waits; `Ready` when somebody does.
    pub fn poll_waited(&self, waker: &Waker) -> Poll<()> {
        let mut state = self.lock();
        if state.queue.len() > 0 {
            return Poll::Ready(());
        }
        let old = state.keeper.replace(waker.clone());
        drop(state);
        // Another keeper's, from a runtime that has just come or is about to go: it looks again.
        wake(old.filter(|old| !old.will_wake(waker)));
        Poll::Pending
    }

    /// Whether somebody calls [`expire`](Self::expire) and [`sample`](Self::sample). Without it every waiter must look at the
    /// clock itself. Whoever does so from now on does it in another runtime, in which what is free may not work any more.
    pub fn set_driven(&self, driven: bool) {
        let mut state = self.lock();
        self.published.driven.store(driven, Relaxed);
        for free in &mut state.free {
            free.unproven = true;
        }
        if !driven {
            // The next acquire is not to pass by without a look at the driver.
            let parked = state.parked.replace(Waker::noop().clone());
            let wakers = state.queue.take_wakers();
            drop(state);
            wake(parked); // it may be the next driver's already
            wakers.into_iter().for_each(wake);
        }
    }

    pub(super) fn publish(&self, state: &State<T>) {
        let waiting = state.queue.len();
        if waiting > 0 || self.published.queue_depth.load(Relaxed) > 0 {
            self.published.set_waiting(state.queue.lengths());
        }
        self.published.queue_depth.store(waiting, Relaxed);
        self.published.idle.store(state.idle(), Relaxed);
        self.published.capacity.store(state.open().min(state.counts.limit), Relaxed);
    }

    /// A panic cannot leave the counts half changed, because no foreign code runs in a critical section: a poisoned lock is
    /// still a good one.
    pub(super) fn lock(&self) -> MutexGuard<'_, State<T>> {
        #[cfg(test)]
        return self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        #[cfg(not(test))]
        self.state.lock()
    }
}

pub(super) fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        // An executor's own code: those who are woken after it must not pay for its panic.
        guarded(|| waker.wake());
    }
}
