//! A pool as small as it can be over the real slots: what the interleaving tests drive.

use std::collections::BTreeSet;
use std::future::{Future, poll_fn};
use std::panic::Location;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use shuttle::future::block_on;
use shuttle::rand::{Rng, thread_rng};
use shuttle::thread::{JoinHandle, spawn};

use crate::backend::{Place, PlaceOwner};
use crate::error::SharedError;
use crate::gate::acquire::Wait;
use crate::gate::counts::{Bounds, Counts};
use crate::gate::holds::{At, Held};
use crate::gate::ledger::Acquires;
use crate::gate::permits::{Entry, Keeps, Leave};
use crate::gate::queue::{Answer, Grant, Key, Times};
use crate::gate::slots::Slots;
use crate::terms::Class;

/// Like a real one it dies when it likes, and makes room when it is dropped.
pub(super) struct Conn {
    pub id: usize,
    pub dead: Arc<AtomicBool>,
    server: Arc<Server>,
    /// Dropped after the server has been told.
    _place: Place,
}

#[derive(Default)]
pub(super) struct Server {
    /// Shuttle's: others have their turn while a connection closes.
    open: shuttle::sync::atomic::AtomicUsize,
    most_open: AtomicUsize,
}

impl Held for Conn {
    fn begin_hold(&mut self, _: At) {}

    fn end_hold(&self) {}
}

impl Drop for Conn {
    fn drop(&mut self) {
        self.server.open.fetch_sub(1, Relaxed);
    }
}

/// What a pool does with its slots; dials take no time. Everything but the slots is bookkeeping of the test, under std's
/// locks and atomics: nobody's turn ends there (but for `open`).
pub(super) struct Pool {
    pub slots: Slots<Conn>,
    keeps: Keeps,
    server: Arc<Server>,
    /// Of every connection made, whether it is dead.
    made: Mutex<Vec<Arc<AtomicBool>>>,
    /// So many of the next dials fail.
    pub failing: AtomicUsize,
    held: Mutex<BTreeSet<usize>>,
    /// The ledger as its callers would keep it.
    told: Mutex<Acquires>,
    /// The only reading of the clock: a schedule can be replayed.
    pub now: Instant,
    this: Weak<Self>,
}

/// Who comes for a connection.
#[derive(Clone, Copy)]
pub(super) enum Caller {
    /// Waits for as long as it takes: must be woken.
    Waits,
    /// Gives up after so many looks in vain.
    Leaves(usize, Leave),
    /// Gives up during the check of what it was granted.
    LeavesChecking(Leave),
    /// Does not wait.
    Tries,
}

impl Pool {
    /// With so many open, and the limit there too.
    pub fn new(bounds: Bounds, limit: usize) -> Arc<Self> {
        Self::of(bounds, limit, Keeps::Reserve)
    }

    pub fn of(bounds: Bounds, limit: usize, keeps: Keeps) -> Arc<Self> {
        let pool = Arc::new_cyclic(|this| Self {
            slots: Slots::new(bounds, keeps),
            keeps,
            server: Arc::default(),
            made: Mutex::default(),
            failing: AtomicUsize::new(0),
            held: Mutex::default(),
            told: Mutex::default(),
            now: Instant::now(),
            this: this.clone(),
        });
        pool.set_limit(limit);
        pool
    }

    pub fn spawn<R: Send + 'static>(&self, task: impl FnOnce(&Self) -> R + Send + 'static) -> JoinHandle<R> {
        let pool = self.this.upgrade().expect("a pool that is used is there");
        spawn(move || task(&pool))
    }

    /// The reconciliation, with its dials.
    pub fn fill(&self) {
        while self.slots.begin_open() {
            let place = Place::new(self.this.clone());
            if self.failing.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok() {
                let error: SharedError = Arc::new(std::fmt::Error);
                self.slots.open_failed();
                self.slots
                    .no_dial_before(self.now + Duration::from_secs(thread_rng().gen_range(0..3)), &error);
                continue;
            }
            let server = self.server.clone();
            server.most_open.fetch_max(server.open.fetch_add(1, Relaxed) + 1, Relaxed);
            let dead = Arc::new(AtomicBool::new(false));
            let id = {
                let mut made = self.made.lock().unwrap();
                made.push(dead.clone());
                made.len() - 1
            };
            self.slots.opened(Conn { id, dead, server, _place: place }, self.now);
        }
    }

    pub fn set_limit(&self, limit: usize) {
        let _ = self.slots.set_limit(limit, self.now);
        self.fill();
    }

    /// The server ends a connection, wherever it is.
    pub fn kill(&self, id: usize) {
        if let Some(dead) = self.made.lock().unwrap().get(id) {
            dead.store(true, Relaxed);
        }
        self.connection_lost();
    }

    /// An acquire as the pool does it: what turns out dead is rejected, and the same acquire goes on.
    pub fn acquire(&self, caller: Caller) -> Option<Conn> {
        self.tell(|told| told.started += 1);
        let may_wait = !matches!(caller, Caller::Tries);
        // Before or after what `no_dial_before` says, and never past already.
        let deadline = self.now + Duration::from_secs(thread_rng().gen_range(1..3));
        // In a full queue the higher one pushes the lower one out.
        let class = if thread_rng().gen_bool(0.3) { Class::Critical } else { Class::High };
        let enter = || self.slots.enter(Waker::noop(), class, self.until(deadline));
        let mut entry = match self.slots.take(class) {
            Some(item) => Entry::Granted(Grant { item, unproven: false }),
            None if may_wait => enter(),
            None => self.slots.try_enter(|| self.now),
        };
        loop {
            let conn = match entry {
                Entry::Granted(grant) => grant.item,
                Entry::Queued(key) => self.wait(key, caller)?,
                Entry::Full(_) => return self.refused(|told| told.shed += 1),
                Entry::TimedOut => return self.left(Leave::TimedOut),
                Entry::Failed(_) | Entry::Closed => return self.refused(|told| told.failed += 1),
            };
            if let Caller::LeavesChecking(why) = caller {
                self.slots.revoke(conn, why, || self.now);
                self.fill();
                return self.left(why);
            }
            if !conn.dead.load(Relaxed) {
                self.tell(|told| told.granted += 1);
                assert!(self.held.lock().unwrap().insert(conn.id), "{} has two holders", conn.id);
                return Some(conn);
            }
            let waits = may_wait.then_some((class, self.until(deadline)));
            entry = self.slots.reject(conn, waits, || self.now);
            self.fill();
        }
    }

    fn wait(&self, key: Key, caller: Caller) -> Option<Conn> {
        let mut wait = Wait { slots: &self.slots, key: Some(key) };
        let mut patience = if let Caller::Leaves(looks, _) = caller { Some(looks) } else { None };
        let answer = block_on(poll_fn(|cx| match Pin::new(&mut wait).poll(cx) {
            Poll::Ready(answer) => Poll::Ready(Some(answer)),
            Poll::Pending if patience == Some(0) => Poll::Ready(None),
            Poll::Pending => {
                if let Some(looks) = &mut patience {
                    *looks -= 1;
                    cx.waker().wake_by_ref();
                }
                Poll::Pending
            }
        }));
        match (answer, caller) {
            (Some(Answer::Granted(grant)), _) => Some(grant.item),
            (Some(Answer::PushedOut), _) => self.refused(|told| told.shed += 1),
            (Some(Answer::TimedOut), _) => self.left(Leave::TimedOut),
            (Some(Answer::Failed(_) | Answer::Closed), _) => self.refused(|told| told.failed += 1),
            (None, Caller::Leaves(_, Leave::TimedOut)) => {
                wait.leave(Leave::TimedOut);
                self.left(Leave::TimedOut)
            }
            (None, _) => {
                drop(wait);
                self.left(Leave::Cancelled)
            }
        }
    }

    pub fn give_back(&self, conn: Conn) {
        self.held.lock().unwrap().remove(&conn.id);
        if conn.dead.load(Relaxed) {
            self.slots.retire(conn, None, || self.now);
            self.fill();
        } else if self.slots.release(conn, Some(self.now), || self.now) {
            self.fill();
        }
    }

    /// Acquires, looks around, gives back. True when there was something to give back.
    pub fn call(&self, caller: Caller) -> bool {
        let conn = self.acquire(caller);
        self.look();
        conn.map(|conn| self.give_back(conn)).is_some()
    }

    fn tell(&self, write: impl FnOnce(&mut Acquires)) {
        write(&mut self.told.lock().unwrap());
    }

    fn until(&self, deadline: Instant) -> Times {
        Times { now: self.now, deadline, at: Location::caller() }
    }

    fn refused(&self, write: impl FnOnce(&mut Acquires)) -> Option<Conn> {
        self.tell(write);
        None
    }

    fn left(&self, why: Leave) -> Option<Conn> {
        self.refused(|told| match why {
            Leave::TimedOut => told.timed_out += 1,
            Leave::Cancelled => told.cancelled += 1,
            Leave::Failed => told.failed += 1,
        })
    }

    /// What holds at every moment.
    pub fn look(&self) -> Counts {
        let counts = self.slots.counts();
        assert!(counts.queue_depth == 0 || counts.idle == 0, "somebody waits beside an idle one: {counts:?}");
        assert!(counts.idle == 0 || counts.in_use + counts.idle <= counts.limit, "{counts:?}");
        assert!(counts.queue_depth <= counts.hard_cap, "too many wait: {counts:?}");
        assert!(counts.queue_depth as u64 <= counts.acquires.waiting(), "{counts:?}");
        counts
    }

    /// What holds when all are done: nothing is lost, nothing is left over, and everybody was counted once.
    pub fn at_rest(&self, ceiling: usize) {
        let counts = self.look();
        assert_eq!((counts.in_use, counts.opening, counts.queue_depth), (0, 0, 0), "{counts:?}");
        let open = counts.open();
        if self.slots.published.draining() {
            assert_eq!(open, 0, "{counts:?}");
        } else {
            let goal = if self.keeps == Keeps::Reserve { counts.min_size } else { 0 };
            assert!(open >= counts.limit.max(goal) && open <= counts.max_size, "{counts:?}");
            assert!(open == counts.limit || self.keeps == Keeps::Reserve, "{counts:?}");
        }
        assert_eq!((counts.idle, counts.places), (open.min(counts.limit), open), "{counts:?}");
        assert_eq!(self.server.open.load(Relaxed), open, "{counts:?}");
        assert!(self.server.most_open.load(Relaxed) <= ceiling, "{:?} > {ceiling}", self.server.most_open);
        assert_eq!(counts.acquires, *self.told.lock().unwrap());
        let seen = self.slots.published.occupancy();
        assert_eq!((seen.queue_depth, seen.idle, seen.capacity), (0, counts.idle, counts.capacity()));
    }
}

impl PlaceOwner for Pool {
    fn place_freed(&self) {
        self.slots.free_place();
        self.fill();
    }

    fn connection_lost(&self) {
        self.slots.close_idle_if(|conn| conn.dead.load(Relaxed), |_| {});
        self.fill();
    }

    fn place_written_off(&self) {}
}
