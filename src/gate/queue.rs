//! The waiters: a line for each class, first come first served in it, the most urgent class before the others. A slab with
//! index links, so that joining, answering and leaving are O(1).

use std::num::NonZeroU32;
use std::task::Waker;
use std::time::{Duration, Instant};

use slab::Slab;

use super::deadlines::Deadlines;
use super::holds::{At, Held};
use crate::error::SharedError;
use crate::terms::{CLASSES, Class};

/// A permit with what it carries.
#[derive(Debug)]
pub(crate) struct Grant<T> {
    pub item: T,
    /// It was free for so long that it may have died unheard: it is checked before it is used.
    pub unproven: bool,
}

/// When an acquire begins that may have to wait, by when it must have ended, and where it was called.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub now: Instant,
    pub deadline: Instant,
    pub at: At,
}

/// What a waiter is told.
#[derive(Debug)]
pub(crate) enum Answer<T> {
    Granted(Grant<T>),
    /// Pushed out of a full queue by an acquire of a higher class, or by one with older rights that came back to its head.
    PushedOut,
    /// No connection can be opened.
    Failed(SharedError),
    /// The deadline came first.
    TimedOut,
    /// The pool is closed.
    Closed,
}

/// A waiter's place. It stays valid until its owner calls [`Queue::take`] successfully or [`Queue::leave`].
///
/// Half as wide as an index, so that a waiter fits into a line of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key(NonZeroU32);

impl Key {
    fn of(index: usize) -> Self {
        let next = u32::try_from(index + 1).ok().and_then(NonZeroU32::new);
        Self(next.expect("fewer wait than there are numbers"))
    }

    fn index(self) -> usize {
        self.0.get() as usize - 1
    }
}

#[derive(Debug)]
enum State<T> {
    Waiting(Option<Waker>),
    Answered(Answer<T>),
}

#[derive(Debug)]
struct Waiter<T> {
    state: State<T>,
    at: At,
    deadline: Instant,
    /// From its arrival to its deadline, in seconds: a whole `Duration` would not fit into the line of the cache.
    budget: f32,
    ahead: Option<Key>,
    behind: Option<Key>,
    class: Class,
}

/// Those of one class.
#[derive(Clone, Copy, Debug, Default)]
struct Line {
    first: Option<Key>,
    last: Option<Key>,
    len: usize,
}

/// A queue whose members leave from anywhere. An answered waiter is out of line at once, but its answer stays in the
/// slab until it is fetched.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    waiters: Slab<Waiter<T>>,
    lines: [Line; CLASSES],
    len: usize,
    deadlines: Deadlines,
    /// Nobody in line is impatient before this.
    impatient_from: Option<Instant>,
}

/// Who has waited for a twentieth of the budget is impatient: not before 20 ms, which nobody notices, and after a second in
/// any case.
const PATIENCE: (f32, Duration, Duration) = (0.05, Duration::from_millis(20), Duration::from_secs(1));

impl<T> Waiter<T> {
    fn new(state: State<T>, class: Class, times: Times, ahead: Option<Key>, behind: Option<Key>) -> Self {
        let Times { now, deadline, at } = times;
        let budget = deadline.saturating_duration_since(now).as_secs_f32();
        Self { state, at, deadline, budget, ahead, behind, class }
    }

    /// When its wait has become so long that more connections should be in use.
    fn impatient_from(&self) -> Instant {
        let (part, least, most) = PATIENCE;
        let seconds = |seconds: f32| Duration::try_from_secs_f32(seconds).unwrap_or_default();
        let arrived = self.deadline.checked_sub(seconds(self.budget)).unwrap_or(self.deadline);
        arrived + seconds(self.budget * part).clamp(least, most)
    }
}

impl<T: Held> Queue<T> {
    pub fn with_capacity(capacity: usize) -> Self {
        Self {
            waiters: Slab::with_capacity(capacity),
            lines: Default::default(),
            len: 0,
            deadlines: Deadlines::with_capacity(capacity),
            impatient_from: None,
        }
    }

    /// Those still waiting for an answer.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The line of the lowest class that waits.
    pub fn lowest(&self) -> Option<usize> {
        self.lines.iter().rposition(|line| line.last.is_some())
    }

    /// How many of each class wait, the most urgent first.
    pub fn lengths(&self) -> [usize; CLASSES] {
        self.lines.map(|line| line.len)
    }

    /// When the next deadline comes; the driver need not look before.
    pub fn earliest(&mut self) -> Option<Instant> {
        let Self { deadlines, waiters, .. } = self;
        deadlines.next(|deadline, key| is_in_line(waiters, deadline, key))
    }

    /// Whether somebody has waited for long, measured by the budget. O(1) while nobody can have, else it goes through the
    /// line up to the first who has.
    pub fn is_impatient(&mut self, now: Instant) -> bool {
        if self.impatient_from.is_none_or(|from| from > now) {
            return false;
        }
        self.impatient_from = None;
        for line in 0..CLASSES {
            let mut next = self.lines[line].first;
            while let Some(key) = next {
                let waiter = &self.waiters[key.index()];
                next = waiter.behind;
                let from = waiter.impatient_from();
                self.note_impatience(from);
                if from <= now {
                    self.impatient_from = Some(from);
                    return true;
                }
            }
        }
        false
    }

    pub fn push_last(&mut self, class: Class, times: Times, waker: Option<Waker>) -> Key {
        self.note_impatience(times.now + PATIENCE.1);
        let ahead = self.lines[class.line()].last;
        let waiter = Waiter::new(State::Waiting(waker), class, times, ahead, None);
        let key = self.insert(waiter);
        match ahead {
            Some(ahead) => self.waiters[ahead.index()].behind = Some(key),
            None => self.lines[class.line()].first = Some(key),
        }
        self.lines[class.line()].last = Some(key);
        key
    }

    pub fn push_first(&mut self, class: Class, times: Times) -> Key {
        self.note_impatience(times.now + PATIENCE.1);
        let behind = self.lines[class.line()].first;
        let waiter = Waiter::new(State::Waiting(None), class, times, None, behind);
        let key = self.insert(waiter);
        match behind {
            Some(behind) => self.waiters[behind.index()].ahead = Some(key),
            None => self.lines[class.line()].last = Some(key),
        }
        self.lines[class.line()].first = Some(key);
        key
    }

    /// Answers the first in line and returns whom to wake, or gives the answer back when nobody waits.
    pub fn answer_first(&mut self, answer: Answer<T>) -> Result<Option<Waker>, Answer<T>> {
        match self.lines.iter().find_map(|line| line.first) {
            Some(key) => Ok(self.answer(key, answer)),
            None => Err(answer),
        }
    }

    /// Answers the last of the lowest class, as [`answer_first`](Self::answer_first) does the first of the highest.
    pub fn answer_last(&mut self, answer: Answer<T>) -> Result<Option<Waker>, Answer<T>> {
        match self.lines.iter().rev().find_map(|line| line.last) {
            Some(key) => Ok(self.answer(key, answer)),
            None => Err(answer),
        }
    }

    /// Answers all whose deadline is `until` or before, the earliest first, and returns whom to wake.
    pub fn answer_until(&mut self, until: Instant, answer: impl Fn() -> Answer<T>) -> Vec<Option<Waker>> {
        let mut wakers = Vec::new();
        while let Some((deadline, key)) = self.deadlines.take_until(until) {
            if is_in_line(&self.waiters, deadline, key) {
                wakers.push(self.answer(key, answer()));
            }
        }
        wakers
    }

    /// Everybody in line who is to be woken, to look at the clock themselves.
    pub fn take_wakers(&mut self) -> Vec<Option<Waker>> {
        let waiting = self.waiters.iter_mut().map(|(_, waiter)| match &mut waiter.state {
            State::Waiting(waker) => waker.take(),
            State::Answered(_) => None,
        });
        waiting.collect()
    }

    /// Fetches the answer and gives up the place. Without an answer yet it remembers whom to wake, and returns who was
    /// to be woken before, to be dropped outside of any lock.
    pub fn take(&mut self, key: Key, waker: &Waker) -> Result<Answer<T>, Option<Waker>> {
        match &mut self.waiters[key.index()].state {
            State::Waiting(Some(known)) if known.will_wake(waker) => Err(None),
            State::Waiting(known) => Err(known.replace(waker.clone())),
            State::Answered(_) => self.leave(key),
        }
    }

    /// Gives up the place, and returns the answer that had been given already, or who was to be woken, to be dropped outside of
    /// any lock.
    pub fn leave(&mut self, key: Key) -> Result<Answer<T>, Option<Waker>> {
        if matches!(self.waiters[key.index()].state, State::Waiting(_)) {
            self.unlink(key);
        }
        match self.waiters.remove(key.index()).state {
            State::Waiting(waker) => Err(waker),
            State::Answered(answer) => Ok(answer),
        }
    }

    fn insert(&mut self, waiter: Waiter<T>) -> Key {
        self.len += 1;
        self.lines[waiter.class.line()].len += 1;
        let deadline = waiter.deadline;
        let key = Key::of(self.waiters.insert(waiter));
        let Self { deadlines, waiters, .. } = self;
        deadlines.add(deadline, key, self.len, |deadline, key| is_in_line(waiters, deadline, key));
        key
    }

    fn note_impatience(&mut self, from: Instant) {
        self.impatient_from = Some(self.impatient_from.map_or(from, |known| known.min(from)));
    }

    fn answer(&mut self, key: Key, mut answer: Answer<T>) -> Option<Waker> {
        self.unlink(key);
        let waiter = &mut self.waiters[key.index()];
        if let Answer::Granted(grant) = &mut answer {
            grant.item.begin_hold(waiter.at); // it may never be fetched
        }
        match std::mem::replace(&mut waiter.state, State::Answered(answer)) {
            State::Waiting(waker) => waker,
            State::Answered(_) => unreachable!("an answered waiter is not in line"),
        }
    }

    fn unlink(&mut self, key: Key) {
        let Waiter { ahead, behind, class, .. } = self.waiters[key.index()];
        match ahead {
            Some(ahead) => self.waiters[ahead.index()].behind = behind,
            None => self.lines[class.line()].first = behind,
        }
        match behind {
            Some(behind) => self.waiters[behind.index()].ahead = ahead,
            None => self.lines[class.line()].last = ahead,
        }
        self.lines[class.line()].len -= 1;
        self.len -= 1;
        if self.len == 0 {
            self.deadlines.clear();
            self.impatient_from = None;
        }
    }
}

/// Whether a waiter is still in line that has this deadline; its place may be another's by now.
fn is_in_line<T>(waiters: &Slab<Waiter<T>>, deadline: Instant, key: Key) -> bool {
    let waiter = waiters.get(key.index());
    waiter.is_some_and(|waiter| waiter.deadline == deadline && matches!(waiter.state, State::Waiting(_)))
}

#[cfg(test)]
mod tests;
