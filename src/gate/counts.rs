//! What there is to count: published for the layer, read together for everybody else.

use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use super::ledger::Acquires;
use crate::config::usual_base_limit;
use crate::law::UseTimes;
use crate::law::admit::Occupancy;
use crate::terms::{CLASSES, Class};

/// On lines of the cache of its own, beside which nothing is written: two, because processors fetch them in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Apart<T>(T);

impl<T> Apart<T> {
    pub fn new(value: T) -> Self {
        Self(value)
    }
}

impl<T> Deref for Apart<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// What the layer reads instead of taking the lock. Each value is true by itself at some moment; they are advice for a
/// verdict, so nothing hangs on seeing them together, and Relaxed is enough.
#[derive(Debug, Default)]
pub(crate) struct Published {
    pub(super) queue_depth: AtomicUsize,
    /// Of these, how many of each class.
    waiting: [AtomicUsize; CLASSES],
    pub(super) idle: AtomicUsize,
    pub(super) capacity: AtomicUsize,
    /// Nanoseconds; 0 is unknown.
    pub(super) use_time: AtomicU64,
    pub(super) draining: AtomicBool,
    /// The driver is there to answer those whose deadline comes.
    pub(super) driven: AtomicBool,
}

impl Published {
    pub fn occupancy(&self) -> Occupancy {
        Occupancy {
            queue_depth: self.queue_depth.load(Relaxed),
            idle: self.idle.load(Relaxed),
            capacity: self.capacity.load(Relaxed),
        }
    }

    pub(super) fn set_waiting(&self, lengths: [usize; CLASSES]) {
        for (published, length) in self.waiting.iter().zip(lengths) {
            published.store(length, Relaxed);
        }
    }

    /// Waiters who are served before a newcomer of this class.
    pub fn ahead_of(&self, class: Class) -> usize {
        self.waiting[..=class.line()].iter().map(|waiting| waiting.load(Relaxed)).sum()
    }

    pub fn use_time(&self) -> Option<Duration> {
        let nanos = self.use_time.load(Relaxed);
        (nanos > 0).then(|| Duration::from_nanos(nanos))
    }

    pub fn draining(&self) -> bool {
        self.draining.load(Relaxed)
    }

    pub fn driven(&self) -> bool {
        self.driven.load(Relaxed)
    }
}

/// The bounds that may change at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Connections in use at once, at least and while there is no load.
    pub min_limit: usize,
    pub base_limit: usize,
    /// Connections open, at least and at most.
    pub min_size: usize,
    pub max_size: usize,
    pub hard_cap: usize,
    /// How long a connection may be idle before it is checked at its hand-out.
    pub check_after: Duration,
}

/// Everything there is to count, read together under the lock.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Counts {
    pub in_use: usize,
    pub peak_in_use: usize,
    /// Free, and may be used at once.
    pub idle: usize,
    /// Free, and over the limit.
    pub reserve: usize,
    pub opening: usize,
    pub places: usize,
    pub limit: usize,
    pub queue_depth: usize,
    /// Somebody has waited for long.
    pub impatient: bool,
    pub min_limit: usize,
    pub base_limit: usize,
    pub min_size: usize,
    pub max_size: usize,
    pub hard_cap: usize,
    pub completions: u64,
    pub use_time: Option<Duration>,
    pub use_time_scatter: f64,
    /// Since the last sample; known to it alone.
    pub use_times: UseTimes,
    pub acquires: Acquires,
    pub misses: u64,
    pub entered: [u64; CLASSES],
}

impl Bounds {
    /// With other bounds of the size. A fixed size makes a fixed pool a fixed one again; a `base_limit` that was the usual one
    /// for the old bounds is so for the new ones; and both limits are lowered to `max_size`.
    pub fn with_size(self, min_size: usize, max_size: usize, dry_run: bool) -> Self {
        let stays_fixed = self.min_limit == self.max_size && min_size == max_size;
        let min_limit = if stays_fixed { max_size } else { self.min_limit.min(max_size) };
        let is_usual = self.base_limit == usual_base_limit(self.min_size, dry_run);
        let base_limit = if is_usual { usual_base_limit(min_size, dry_run) } else { self.base_limit };
        let base_limit = base_limit.min(max_size).max(min_limit);
        Self { min_limit, base_limit, min_size, max_size, ..self }
    }
}

impl Counts {
    /// Places that neither a permit nor a dial stands for: connections whose server side has not gone yet.
    pub fn closing(&self) -> usize {
        self.places.saturating_sub(self.open() + self.opening)
    }

    /// Connections that are there, in use or free.
    pub fn open(&self) -> usize {
        self.in_use + self.idle + self.reserve
    }

    /// How many of them may be in use at once.
    pub fn capacity(&self) -> usize {
        self.open().min(self.limit)
    }
}
