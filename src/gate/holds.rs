//! Who holds what, since when, and where it was acquired: for the warning of a leak, and for the error of one who waited in
//! vain.
//!
//! Beginning a hold costs two relaxed atomic operations: its time is the driver's, good to a tick, and its place is
//! written only when it is another than the last time.

use std::panic::Location;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::error::Hold;

/// How often holds are looked at for one that is too long, in milliseconds: a tenth of the shortest bound that makes sense.
const LOOK_EVERY: u64 = 100;

/// Where a hold began.
pub(crate) type At = &'static Location<'static>;

/// Milliseconds of a gate's life, as of the last look: free to read, good to a tick of the driver (10 ms) while anything
/// is held or awaited.
#[derive(Debug)]
pub(crate) struct SlowClock {
    began: Instant,
    millis: AtomicU64,
}

impl SlowClock {
    pub fn new() -> Self {
        Self { began: Instant::now(), millis: AtomicU64::new(0) }
    }

    #[inline]
    pub fn set(&self, now: Instant) {
        self.millis.store(millis(now.saturating_duration_since(self.began)), Relaxed);
    }

    /// Sets it, and says what time it is.
    #[inline]
    pub fn look(&self) -> Instant {
        let now = Instant::now();
        self.set(now);
        now
    }

    #[inline]
    pub fn read(&self) -> u64 {
        self.millis.load(Relaxed)
    }
}

/// In whole milliseconds, those beyond any clock cut off: two such times can be added.
pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).min(u64::MAX / 2)
}

/// What a permit carries: it knows whether somebody holds it.
pub(crate) trait Held {
    /// Granted to somebody who waited, and who may fetch it later or never.
    fn begin_hold(&mut self, at: At);
    /// Nobody's again.
    fn end_hold(&self);
}

/// One connection's place in the list, owned by the connection.
#[derive(Debug)]
pub(crate) struct Holder {
    shared: Arc<Shared>,
    /// What `shared` has.
    place: Option<At>,
}

#[derive(Debug)]
struct Shared {
    clock: Arc<SlowClock>,
    /// Milliseconds of the gate's life, plus one; 0 while nobody holds it.
    since: AtomicU64,
    place: Mutex<Option<At>>,
}

impl Holder {
    #[inline]
    pub fn begin(&mut self, clock: &SlowClock, place: At) {
        if self.place.is_none_or(|known| !ptr::eq(known, place)) {
            self.place = Some(place);
            *self.shared.place.lock().unwrap_or_else(PoisonError::into_inner) = Some(place);
        }
        // Release: who sees the hold sees its place.
        self.shared.since.store(clock.read() + 1, Release);
    }

    #[inline]
    pub fn end(&self) {
        self.shared.since.store(0, Relaxed);
    }
}

impl Held for Holder {
    fn begin_hold(&mut self, at: At) {
        let shared = self.shared.clone();
        self.begin(&shared.clock, at);
    }

    fn end_hold(&self) {
        self.end();
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    /// Since when, plus one, and where, if it is held.
    fn read(&self) -> Option<(u64, At)> {
        let since = self.since.load(Acquire);
        let place = *self.place.lock().unwrap_or_else(PoisonError::into_inner);
        place.filter(|_| since > 0).map(|place| (since, place))
    }
}

/// All holds of a gate.
#[derive(Debug)]
pub(crate) struct Holds {
    pub clock: Arc<SlowClock>,
    warn_after: Option<u64>,
    list: Mutex<List>,
}

#[derive(Debug, Default)]
struct List {
    known: Vec<Known>,
    /// At how many those that are gone are taken out: twice as many as were left the last time, so that a connection costs
    /// no more however many there are.
    crowded: usize,
    looked: u64,
}

/// Fewer than so many are not worth a look at who is gone.
const FEW: usize = 16;

#[derive(Debug)]
struct Known {
    shared: Arc<Shared>,
    /// The hold that was told of, by its beginning.
    told: u64,
}

impl Holds {
    pub fn new(warn_after: Option<Duration>) -> Self {
        Self { clock: Arc::new(SlowClock::new()), warn_after: warn_after.map(millis), list: Mutex::default() }
    }

    /// A place in the list for a new connection.
    pub fn join(&self) -> Holder {
        let (since, place) = (AtomicU64::new(0), Mutex::new(None));
        let shared = Arc::new(Shared { clock: self.clock.clone(), since, place });
        let mut list = self.lock();
        if list.known.len() >= list.crowded.max(FEW) {
            list.known.retain(|known| Arc::strong_count(&known.shared) > 1);
            list.crowded = list.known.len() * 2;
        }
        list.known.push(Known { shared: shared.clone(), told: 0 });
        Holder { shared, place: None }
    }

    /// The longest hold there is now.
    pub fn oldest(&self) -> Option<Hold> {
        self.clock.look();
        let oldest =
            self.lock().known.iter().filter_map(|known| known.shared.read()).min_by_key(|(at, _)| *at);
        oldest.map(|(since, place)| self.hold(since, place))
    }

    /// The holds that have become too long since the last look; each is told once.
    pub fn overdue(&self) -> Vec<Hold> {
        let (Some(bound), now) = (self.warn_after, self.clock.read()) else { return Vec::new() };
        let mut list = self.lock();
        if now < list.looked + LOOK_EVERY {
            return Vec::new();
        }
        list.looked = now;
        let mut overdue = Vec::new();
        for known in &mut list.known {
            if let Some((since, place)) = known.shared.read()
                && since != known.told
                && now + 1 >= since + bound
            {
                known.told = since;
                overdue.push(self.hold(since, place));
            }
        }
        overdue
    }

    fn hold(&self, since: u64, acquired_at: At) -> Hold {
        Hold { held: Duration::from_millis((self.clock.read() + 1).saturating_sub(since)), acquired_at }
    }

    fn lock(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
