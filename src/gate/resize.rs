//! How the number of permits changes: the right to open one, what becomes of it, and what closes.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use super::counts::Bounds;
use super::guarded::Guarded;
use super::holds::Held;
use super::permits::{Free, NoDial};
use super::queue::Answer;
use super::slots::{Slots, wake};
use crate::error::SharedError;

impl<T: Held> Slots<T> {
    /// Whether limit, `min_size` and ceiling leave room for one more than those `dialers` who may be about to begin.
    pub fn wants_dial(&self, dialers: usize) -> bool {
        let state = self.lock();
        state.room() + state.counts.opening > dialers
    }

    /// The right to open one connection, if limit, `min_size` and ceiling leave room for it.
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
        let no_dial = state.no_dial.take();
        let free = Free { item, since: Some(now), unproven: false };
        let handed_on = state.hand_on(free, Some(now));
        self.publish(&state);
        drop(state);
        handed_on.finish();
        drop(no_dial);
    }

    /// A dial failed. Its place may stay taken until the server has let go.
    pub fn open_failed(&self) {
        self.lock().counts.opening -= 1;
    }

    /// The server side of one connection is gone.
    pub fn free_place(&self) {
        self.lock().counts.places -= 1;
    }

    /// No dial begins before `until`. While no connection is there and none is being opened, whoever must have one by then
    /// waits in vain, and is told why at once: those who wait, and those who come.
    pub fn no_dial_before(&self, until: Instant, error: &SharedError) {
        let mut state = self.lock();
        let old = state.no_dial.replace(NoDial { until, error: Guarded::new(error.clone()) });
        let wakers = match state.hopeless() {
            Some(_) => state.queue.answer_until(until, || Answer::Failed(error.clone())),
            None => Vec::new(),
        };
        self.publish(&state);
        drop(state);
        wakers.into_iter().for_each(wake);
        drop(old);
    }

    /// Sets the limit, within its bounds, and returns what it was and what it is. When it rises, those who wait get what was in
    /// reserve; when it falls, what is in use over it stays with its holders.
    pub fn set_limit(&self, limit: usize, now: Instant) -> (usize, usize) {
        let mut state = self.lock();
        let from = state.counts.limit;
        let to = limit.clamp(state.bounds.min_limit, state.bounds.max_size);
        state.counts.limit = to;
        let surplus = state.take_surplus();
        let handed_on = state.hand_out(|| now);
        self.publish(&state);
        drop(state);
        handed_on.finish();
        drop(surplus);
        (from, to)
    }

    /// Lowers the limit to what is open, or about to be by the dials under way. Returns what it was and what it is, if it fell.
    pub fn lower_limit_to_open(&self) -> Option<(usize, usize)> {
        let mut state = self.lock();
        let from = state.counts.limit;
        let to = (state.open() + state.counts.opening).max(state.bounds.min_limit).min(from);
        state.counts.limit = to;
        // A driver at rest has the limit to bring back to rest.
        let parked = if to < from { state.parked.take() } else { None };
        self.publish(&state);
        drop(state);
        wake(parked);
        (to < from).then_some((from, to))
    }

    /// Changes the bounds. Nobody who waits is sent away; what is free over `max_size` closes, the longest free first. A limit
    /// at rest stays at rest; under load it rises by the controller alone.
    ///
    /// Returns the limit before and the one now, or nothing where the bounds are not `known` any more: another change came
    /// first, and nothing has happened.
    pub fn set_bounds(&self, known: Bounds, bounds: Bounds, now: Instant) -> Option<(usize, usize)> {
        let mut state = self.lock();
        if state.bounds != known {
            return None;
        }
        let from = state.counts.limit;
        let idle = state.counts.in_use == 0 && state.queue.len() == 0;
        let follows = from == known.base_limit && (idle || bounds.base_limit < known.base_limit);
        let to = if follows { bounds.base_limit } else { from }.clamp(bounds.min_limit, bounds.max_size);
        state.bounds = bounds;
        state.counts.limit = to;
        let surplus = state.take_surplus();
        let handed_on = state.hand_out(|| now);
        // The driver may have something to do now: more than a lower min_size may have been free for long.
        state.bounds_changed = true;
        let parked = state.parked.take();
        if parked.is_some() {
            // The driver rested, so nobody has looked at the clock.
            state.age(now);
        }
        self.publish(&state);
        drop(state);
        handed_on.finish();
        wake(parked);
        drop(surplus);
        Some((from, to))
    }

    /// Closes what has been free since before `cutoff`, the longest free first, but nothing that limit or `min_size` would
    /// have opened again. Returns how many, and since when the next one has been free that may be closed then.
    pub fn close_idle_since(&self, cutoff: Option<Instant>) -> (usize, Option<Instant>) {
        let mut state = self.lock();
        let spare = state.open().saturating_sub(state.goal());
        let is_old = |free: &Free<T>| free.since.zip(cutoff).is_some_and(|(since, cutoff)| since <= cutoff);
        let old = state.free.iter().take(spare).take_while(|free| is_old(free)).count();
        let surplus: Vec<_> = state.free.drain(..old).collect();
        let next = if spare > old { state.free.front().and_then(|free| free.since) } else { None };
        self.publish(&state);
        drop(state);
        drop(surplus);
        (old, next)
    }

    /// Closes the free connections of which `dead` is true, and shows each to `closing` before it is dropped. They are replaced
    /// where limit or `min_size` ask for it.
    ///
    /// `dead` runs under the lock: no code of a user's.
    pub fn close_idle_if(&self, dead: impl Fn(&T) -> bool, closing: impl Fn(&T)) {
        let dead = self.take_those(|free| dead(&free.item));
        for free in &dead {
            closing(&free.item);
        }
    }

    /// Closes what has been free for so long that it would be checked, as [`close_idle_if`](Self::close_idle_if) does.
    pub fn close_unproven(&self) {
        drop(self.take_those(|free| free.unproven));
    }

    fn take_those(&self, condemned: impl Fn(&Free<T>) -> bool) -> Vec<Free<T>> {
        let mut closing = Vec::new();
        let mut state = self.lock();
        for _ in 0..state.free.len() {
            let Some(free) = state.free.pop_front() else { break };
            if condemned(&free) {
                closing.push(free);
            } else {
                state.free.push_back(free);
            }
        }
        self.publish(&state);
        closing
    }

    /// Refuses new acquires from now on; those who wait are still served.
    pub fn start_drain(&self) {
        let mut state = self.lock();
        state.draining = true;
        self.published.draining.store(true, Relaxed);
        let free = std::mem::take(&mut state.free);
        self.publish(&state);
        drop(state);
        drop(free);
    }

    /// Answers those who still wait, and lets nobody in any more: the pool is closed.
    pub fn close(&self) {
        let mut wakers = Vec::new();
        let mut state = self.lock();
        (state.draining, state.closed) = (true, true);
        self.published.draining.store(true, Relaxed);
        let free = std::mem::take(&mut state.free);
        while let Ok(waker) = state.queue.answer_first(Answer::Closed) {
            wakers.push(waker);
        }
        wakers.extend([state.parked.take(), state.keeper.take()]);
        self.publish(&state);
        drop(state);
        wakers.into_iter().for_each(wake);
        drop(free);
    }
}
