//! How the number of permits changes: the right to open one, what becomes of it, and what closes.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use super::counts::Bounds;
use super::permits::{Idle, NoDial};
use super::queue::Answer;
use super::slots::{Slots, wake};
use crate::error::SharedError;

impl<T> Slots<T> {
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
        let no_dial = state.no_dial.take();
        let handed_on = state.hand_on(item, Some(now), Some(now));
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
        let old = state.no_dial.replace(NoDial { until, error: error.clone() });
        let wakers = match state.hopeless() {
            Some(_) => state.queue.answer_until(until, || Answer::Failed(error.clone())),
            None => Vec::new(),
        };
        self.publish(&state);
        drop(state);
        wakers.into_iter().for_each(wake);
        drop(old);
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
        self.close_those(|idle| dead(&idle.item));
    }

    /// Closes what has been idle for so long that it would be checked; the target stays, so that it is replaced.
    pub fn close_unproven(&self) {
        self.close_those(|idle| idle.unproven);
    }

    fn close_those(&self, condemned: impl Fn(&Idle<T>) -> bool) {
        let mut closing = Vec::new();
        let mut state = self.lock();
        for _ in 0..state.idle.len() {
            let Some(idle) = state.idle.pop_front() else { break };
            if condemned(&idle) {
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
}
