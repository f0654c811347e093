//! When the next deadline in the queue comes: a heap, so that a waiter costs O(log n) however the deadlines are spread.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

use super::queue::Key;

/// So many entries of waiters that have left are kept without a look.
const SPARE: usize = 64;

/// Deadlines with their waiters. An entry outlives its waiter: it is skipped when it comes up, and those that outnumber
/// the others are thrown out together.
#[derive(Debug)]
pub(super) struct Deadlines {
    heap: BinaryHeap<Reverse<(Instant, Key)>>,
}

impl Deadlines {
    /// For so many waiters without an allocation.
    pub fn with_capacity(waiters: usize) -> Self {
        Self { heap: BinaryHeap::with_capacity(2 * waiters + SPARE) }
    }

    /// Adds one. `waiting` waiters are in line with it, and `is_current` knows them.
    pub fn add(
        &mut self,
        deadline: Instant,
        key: Key,
        waiting: usize,
        is_current: impl Fn(Instant, Key) -> bool,
    ) {
        if self.heap.len() >= 2 * waiting + SPARE {
            self.heap.retain(|Reverse((deadline, key))| is_current(*deadline, *key));
        }
        self.heap.push(Reverse((deadline, key)));
    }

    /// Takes out the next entry whose deadline is `until` or before.
    pub fn take_until(&mut self, until: Instant) -> Option<(Instant, Key)> {
        self.heap.peek().filter(|Reverse((deadline, _))| *deadline <= until)?;
        self.heap.pop().map(|Reverse(entry)| entry)
    }

    /// The next deadline of a waiter that is still in line.
    pub fn next(&mut self, is_current: impl Fn(Instant, Key) -> bool) -> Option<Instant> {
        while let Some(Reverse((deadline, key))) = self.heap.peek() {
            if is_current(*deadline, *key) {
                return Some(*deadline);
            }
            self.heap.pop();
        }
        None
    }

    pub fn clear(&mut self) {
        self.heap.clear();
    }
}
