//! The permits, each carrying what it is a permit for, and the queue in front of them, under one mutex.
//!
//! Whoever gets a permit *has* the connection: they cannot come apart. Every critical section is a few instructions;
//! wakers are called and connections dropped after the lock is gone. No clock and no runtime here: `now` is an
//! argument, waiting is a [`Waker`].

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError};
#[cfg(not(test))]
use std::sync::{Mutex, MutexGuard};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

#[cfg(test)]
use shuttle::sync::{Mutex, MutexGuard}; // for the interleaving tests, which decide who runs next at each lock

use super::counts::{Bounds, Counts, Published};
use super::permits::{Entry, Leave, State};
use super::queue::{Answer, Key};
use crate::error::SharedError;

/// What an acquire that may wait needs to know.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub now: Instant,
    pub deadline: Instant,
}

/// One hold in so many is timed.
const SAMPLED: u64 = 16;

/// Permits and waiters. See the module.
#[derive(Debug)]
pub(crate) struct Slots<T> {
    state: Mutex<State<T>>,
    pub published: Arc<Published>,
    turn: AtomicU64,
}

impl<T> Slots<T> {
    pub fn new(bounds: Bounds) -> Self {
        Self { state: Mutex::new(State::new(bounds)), published: Arc::default(), turn: AtomicU64::new(0) }
    }

    /// Begins an acquire: a permit at once, or a place in the queue, where `waker` is woken with the answer. `times` says
    /// what time it is, and by when the acquire must have ended; it is asked only for a wait and after a rest.
    pub fn enter(&self, waker: &Waker, mut times: impl FnMut() -> Times) -> Entry<T> {
        // Nothing idle most likely means a wait: then the clock is read before the lock is taken, not under it.
        if self.published.idle.load(Relaxed) == 0 {
            times();
        }
        let mut state = self.lock();
        state.counts.acquires.started += 1;
        let parked = state.parked.take();
        if parked.is_some() {
            // The driver rested, so nobody has looked at the clock.
            state.age(times().now);
        }
        let entry = state.enter(waker, || times().deadline);
        self.publish(&state);
        drop(state);
        wake(parked);
        entry
    }

    /// A permit at once or nothing. Never overtakes a waiter: while somebody waits nothing is idle.
    pub fn try_enter(&self, now: impl FnOnce() -> Instant) -> Entry<T> {
        let mut state = self.lock();
        state.counts.acquires.started += 1;
        let parked = state.parked.take();
        if parked.is_some() {
            state.age(now());
        }
        let entry = state.take_idle().unwrap_or_else(|| state.miss());
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
    pub fn leave(&self, key: Key, why: Leave) {
        let mut state = self.lock();
        let answer = state.queue.leave(key);
        state.count(why);
        let (waker, surplus) = match answer {
            Some(Answer::Granted(item)) => state.hand_on(item, None),
            _ => (None, None),
        };
        self.publish(&state);
        drop(state);
        wake(waker);
        drop(surplus);
    }

    /// Takes a grant back that never reached its caller: the permit is destroyed, the acquire ends as `why`.
    pub fn revoke(&self, item: T, why: Leave) {
        let mut state = self.lock();
        state.counts.acquires.granted -= 1;
        state.counts.in_use -= 1;
        state.count(why);
        self.publish(&state);
        drop(state);
        drop(item);
    }

    /// A grant whose connection turned out dead: its permit is destroyed, and the same acquire goes on with the next
    /// free connection, or at the head of the queue until its `deadline`, or, without one, not at all.
    pub fn reject(&self, dead: T, deadline: Option<Instant>) -> Entry<T> {
        let mut state = self.lock();
        state.counts.in_use -= 1;
        state.counts.acquires.granted -= 1;
        let mut pushed_out = None;
        let entry = match (state.take_idle(), deadline) {
            (Some(entry), _) => entry,
            (None, Some(deadline)) if !state.closed => {
                // Older rights go first, and the bound of the queue holds: its youngest member makes room.
                if state.queue.len() >= state.bounds.hard_cap {
                    pushed_out = state.queue.answer_last(Answer::PushedOut).ok().flatten();
                }
                Entry::Queued(state.queue.push_first(deadline))
            }
            (None, _) => state.miss(),
        };
        self.publish(&state);
        drop(state);
        wake(pushed_out);
        drop(dead);
        entry
    }

    /// Gives a permit back, to the next in line if there is one. `held` is the time it was held, where that
    /// was measured. True when it was surplus and is gone.
    pub fn release(&self, item: T, held: Option<Duration>) -> bool {
        let mut state = self.lock();
        state.counts.completions += 1;
        if let Some(held) = held {
            state.use_time.add(held);
            let nanos = state.use_time.get().map_or(0, |mean| mean.as_nanos() as u64);
            self.published.use_time.store(nanos, Relaxed);
        }
        let (waker, surplus) = state.hand_on(item, None);
        self.publish(&state);
        drop(state);
        wake(waker);
        surplus.is_some()
    }

    /// A holder says that its use failed.
    pub fn failed(&self) {
        self.lock().counts.failures += 1;
    }

    /// Measures one hold in [`SAMPLED`]: a mean needs no more, and the others save two readings of the clock. Whose turn
    /// it is need not be exact, so no read-modify-write is paid for it.
    pub fn measure<C>(&self, clock: impl FnOnce() -> C) -> Option<C> {
        let turn = self.turn.load(Relaxed);
        self.turn.store(turn.wrapping_add(1), Relaxed);
        turn.is_multiple_of(SAMPLED).then(clock)
    }

    /// Destroys a permit. What it carried is dropped after the lock is gone.
    pub fn retire(&self, item: T) {
        let mut state = self.lock();
        state.counts.completions += 1;
        state.counts.in_use -= 1;
        self.publish(&state);
        drop(state);
        drop(item);
    }

    /// Whether target and ceiling leave room for one more than those `dialers` who may be about to begin.
    pub fn wants_dial(&self, dialers: usize) -> bool {
        let state = self.lock();
        state.room() + state.counts.opening > dialers
    }

    /// The right to open one connection, if target and ceiling leave room for it.
    #[must_use]
    pub fn begin_open(&self) -> bool {
        let mut state = self.lock();
        let room = state.room() > 0;
        if room {
            state.counts.opening += 1;
            state.counts.places += 1;
        }
        room
    }

    /// A dial succeeded: its connection becomes a permit.
    pub fn opened(&self, item: T, now: Instant) {
        let mut state = self.lock();
        state.counts.opening -= 1;
        state.counts.in_use += 1;
        let (waker, surplus) = state.hand_on(item, Some(now));
        self.publish(&state);
        drop(state);
        wake(waker);
        drop(surplus);
    }

    /// A dial failed. Its place may stay taken until the server has let go.
    pub fn open_failed(&self) {
        self.lock().counts.opening -= 1;
    }

    /// The server side of one connection is gone.
    pub fn free_place(&self) {
        self.lock().counts.places -= 1;
    }

    /// Answers everybody with the error, if no connection is there and none is being opened.
    pub fn fail_waiters(&self, error: &SharedError) {
        let mut wakers = Vec::new();
        let mut state = self.lock();
        if state.permits() + state.counts.opening == 0 {
            while let Ok(waker) = state.queue.answer_first(Answer::Failed(error.clone())) {
                wakers.push(waker);
            }
        }
        self.publish(&state);
        drop(state);
        wakers.into_iter().for_each(wake);
    }

    /// Sets the desired size, within the bounds; idle connections over it close, the longest idle first.
    pub fn set_target(&self, target: usize) {
        let mut state = self.lock();
        let target = target.clamp(state.bounds.min_size, state.bounds.max_size);
        state.counts.target = target;
        let surplus = state.take_surplus();
        self.publish(&state);
        drop(state);
        drop(surplus);
    }

    /// Changes the bounds. Nobody who waits is sent away.
    pub fn set_bounds(&self, bounds: Bounds) {
        let mut state = self.lock();
        state.bounds = bounds;
        let target = state.counts.target.clamp(bounds.min_size, bounds.max_size);
        state.counts.target = target;
        let surplus = state.take_surplus();
        // The driver may have something to do now: a lower min_size, for one.
        let parked = state.parked.take();
        self.publish(&state);
        drop(state);
        wake(parked);
        drop(surplus);
    }

    /// Closes what has been idle since before `cutoff`, down to `min_size`, and lowers the target with it.
    /// Returns how many.
    pub fn close_idle_since(&self, cutoff: Instant) -> usize {
        let mut state = self.lock();
        let spare = state.permits().saturating_sub(state.bounds.min_size);
        let old = state
            .idle
            .iter()
            .take(spare)
            .take_while(|idle| idle.since.is_some_and(|since| since <= cutoff))
            .count();
        let surplus: Vec<_> = state.idle.drain(..old).collect();
        if old > 0 {
            state.counts.target = state.permits().max(state.bounds.min_size);
        }
        self.publish(&state);
        drop(state);
        drop(surplus);
        old
    }

    /// Closes the idle connections of which `dead` is true; the target stays, so that they are replaced.
    ///
    /// `dead` runs under the lock. Should it panic, what it condemned is dropped after the lock is gone.
    pub fn close_idle_if(&self, dead: impl Fn(&T) -> bool) {
        let mut closing = Vec::new();
        let mut state = self.lock();
        for _ in 0..state.idle.len() {
            let Some(idle) = state.idle.pop_front() else { break };
            if dead(&idle.item) {
                closing.push(idle);
            } else {
                state.idle.push_back(idle);
            }
        }
        self.publish(&state);
        drop(state);
        drop(closing);
    }

    /// Refuses new acquires from now on; those who wait are still served.
    pub fn start_drain(&self) {
        let mut state = self.lock();
        state.draining = true;
        self.published.draining.store(true, Relaxed);
        let idle = std::mem::take(&mut state.idle);
        self.publish(&state);
        drop(state);
        drop(idle);
    }

    /// Answers those who still wait, and lets nobody in any more: the pool is closed.
    pub fn close(&self) {
        let mut wakers = Vec::new();
        let mut state = self.lock();
        (state.draining, state.closed) = (true, true);
        self.published.draining.store(true, Relaxed);
        let idle = std::mem::take(&mut state.idle);
        while let Ok(waker) = state.queue.answer_first(Answer::Closed) {
            wakers.push(waker);
        }
        wakers.push(state.parked.take());
        self.publish(&state);
        drop(state);
        drop(idle);
        wakers.into_iter().for_each(wake);
    }

    /// Parks the driver while nothing is held, awaited, or over `min_size`; `Ready` when there is something to do.
    pub fn poll_busy(&self, seen: u64, waker: &Waker) -> Poll<()> {
        let mut state = self.lock();
        let counts = &state.counts;
        let quiet = counts.acquires.started == seen
            && counts.in_use == 0
            && state.queue.len() == 0
            && counts.target == state.bounds.min_size;
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
        let counts = state.read();
        state.counts.peak_in_use = state.counts.in_use;
        state.age(now);
        counts
    }

    /// Answers those whose deadline has come, and says when the next one may.
    pub fn expire(&self, now: Instant) -> Option<Instant> {
        let mut wakers = Vec::new();
        let mut state = self.lock();
        state.queue.expire(now, &mut wakers);
        let next = state.queue.earliest();
        self.publish(&state);
        drop(state);
        wakers.into_iter().for_each(wake);
        next
    }

    /// Whether somebody calls [`expire`](Self::expire). Without it everybody must look at the clock themselves.
    pub fn set_driven(&self, driven: bool) {
        self.published.driven.store(driven, Relaxed);
        if !driven {
            let wakers = self.lock().queue.take_wakers();
            wakers.into_iter().for_each(wake);
        }
    }

    fn publish(&self, state: &State<T>) {
        self.published.queue_depth.store(state.queue.len(), Relaxed);
        self.published.idle.store(state.idle.len(), Relaxed);
        self.published.capacity.store(state.permits(), Relaxed);
    }

    /// A panic cannot leave the counts half changed (the only foreign code in a critical section is `close_idle_if`'s
    /// question), so a poisoned lock is still a good one.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}
