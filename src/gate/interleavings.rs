//! In which order a few tasks come to the lock must not matter: the real [`Slots`], [`Wait`] and [`Place`] under shuttle,
//! which decides at each lock who runs next, and finds who waits for ever. A failure prints its schedule; give it to
//! `shuttle::replay` in place of `interleave`'s two calls.

use std::collections::BTreeSet;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use shuttle::future::block_on;
use shuttle::rand::{Rng, thread_rng};
use shuttle::thread::{JoinHandle, spawn};

use super::acquire::Wait;
use super::counts::{Bounds, Counts};
use super::ledger::Acquires;
use super::permits::{Entry, Leave};
use super::queue::{Answer, Key};
use super::slots::{Slots, Times};
use crate::backend::{Place, PlaceOwner};
use crate::error::SharedError;
use crate::terms::Class;

const BOUNDS: Bounds = Bounds { min_size: 1, max_size: 2, hard_cap: 2, check_after: Duration::ZERO };

/// Half of the schedules are random; half are PCT's, which finds what needs a few turns in just the wrong places.
fn interleave(test: fn()) {
    shuttle::check_random(test, 1_000);
    shuttle::check_pct(test, 1_000, 3);
}

/// Like a real one it dies when it likes, and makes room when it is dropped.
struct Conn {
    id: usize,
    dead: Arc<AtomicBool>,
    server: Arc<Server>,
    /// Dropped after the server has been told.
    _place: Place,
}

#[derive(Default)]
struct Server {
    /// Shuttle's: others have their turn while a connection closes.
    open: shuttle::sync::atomic::AtomicUsize,
    most_open: AtomicUsize,
}

impl Drop for Conn {
    fn drop(&mut self) {
        self.server.open.fetch_sub(1, Relaxed);
    }
}

/// What a pool does with its slots; dials take no time. Everything but the slots is bookkeeping of the test, under std's
/// locks and atomics: nobody's turn ends there (but for `open`).
struct Pool {
    slots: Slots<Conn>,
    server: Arc<Server>,
    /// Of every connection made, whether it is dead.
    made: Mutex<Vec<Arc<AtomicBool>>>,
    /// So many of the next dials fail.
    failing: AtomicUsize,
    held: Mutex<BTreeSet<usize>>,
    /// The ledger as its callers would keep it.
    told: Mutex<Acquires>,
    /// The only reading of the clock: a schedule can be replayed.
    now: Instant,
    this: Weak<Self>,
}

/// Who comes for a connection.
#[derive(Clone, Copy)]
enum Caller {
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
    fn new(bounds: Bounds, target: usize) -> Arc<Self> {
        let pool = Arc::new_cyclic(|this| Self {
            slots: Slots::new(bounds),
            server: Arc::default(),
            made: Mutex::default(),
            failing: AtomicUsize::new(0),
            held: Mutex::default(),
            told: Mutex::default(),
            now: Instant::now(),
            this: this.clone(),
        });
        pool.set_target(target);
        pool
    }

    fn spawn<R: Send + 'static>(&self, task: impl FnOnce(&Self) -> R + Send + 'static) -> JoinHandle<R> {
        let pool = self.this.upgrade().expect("a pool that is used is there");
        spawn(move || task(&pool))
    }

    /// The reconciliation, with its dials.
    fn fill(&self) {
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

    fn set_target(&self, target: usize) {
        self.slots.set_target(target);
        self.fill();
    }

    /// The server ends a connection, wherever it is.
    fn kill(&self, id: usize) {
        if let Some(dead) = self.made.lock().unwrap().get(id) {
            dead.store(true, Relaxed);
        }
        self.connection_lost();
    }

    /// An acquire as the pool does it: what turns out dead is rejected, and the same acquire goes on.
    fn acquire(&self, caller: Caller) -> Option<Conn> {
        self.tell(|told| told.started += 1);
        let may_wait = !matches!(caller, Caller::Tries);
        // Before or after what `no_dial_before` says, and never past already.
        let deadline = self.now + Duration::from_secs(thread_rng().gen_range(1..3));
        let enter = || self.slots.enter(Waker::noop(), Class::High, Times { now: self.now, deadline });
        let mut entry = match self.slots.take(Class::High) {
            Some(conn) => Entry::Granted(conn),
            None if may_wait => enter(),
            None => self.slots.try_enter(|| self.now),
        };
        loop {
            let conn = match entry {
                Entry::Granted(conn) | Entry::Unproven(conn) => conn,
                Entry::Queued(key) => self.wait(key, caller)?,
                Entry::Full(_) => return self.refused(|told| told.shed += 1),
                Entry::TimedOut => return self.left(Leave::TimedOut),
                Entry::Failed(_) | Entry::Closed => return self.refused(|told| told.failed += 1),
            };
            if let Caller::LeavesChecking(why) = caller {
                self.slots.revoke(conn, why);
                self.fill();
                return self.left(why);
            }
            if !conn.dead.load(Relaxed) {
                self.tell(|told| told.granted += 1);
                assert!(self.held.lock().unwrap().insert(conn.id), "{} has two holders", conn.id);
                return Some(conn);
            }
            entry = self.slots.reject(conn, may_wait.then_some((Class::High, deadline)));
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
            (Some(Answer::Granted(conn)), _) => Some(conn),
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

    fn give_back(&self, conn: Conn) {
        self.held.lock().unwrap().remove(&conn.id);
        if conn.dead.load(Relaxed) {
            self.slots.retire(conn);
            self.fill();
        } else if self.slots.release(conn, Some(Duration::from_millis(1)), || self.now) {
            self.fill();
        }
    }

    /// Acquires, looks around, gives back. True when there was something to give back.
    fn call(&self, caller: Caller) -> bool {
        let conn = self.acquire(caller);
        self.look();
        conn.map(|conn| self.give_back(conn)).is_some()
    }

    fn tell(&self, write: impl FnOnce(&mut Acquires)) {
        write(&mut self.told.lock().unwrap());
    }

    fn refused(&self, write: impl FnOnce(&mut Acquires)) -> Option<Conn> {
        self.tell(write);
        None
    }

    fn left(&self, why: Leave) -> Option<Conn> {
        self.refused(|told| match why {
            Leave::TimedOut => told.timed_out += 1,
            Leave::Cancelled => told.cancelled += 1,
        })
    }

    /// What holds at every moment.
    fn look(&self) -> Counts {
        let counts = self.slots.counts();
        assert!(counts.queue_depth == 0 || counts.idle == 0, "somebody waits beside an idle one: {counts:?}");
        assert!(counts.queue_depth <= counts.hard_cap, "too many wait: {counts:?}");
        assert!(counts.queue_depth as u64 <= counts.acquires.waiting(), "{counts:?}");
        counts
    }

    /// What holds when all are done: nothing is lost, nothing is left over, and everybody was counted once.
    fn at_rest(&self, ceiling: usize) {
        let counts = self.look();
        assert_eq!((counts.in_use, counts.opening, counts.queue_depth), (0, 0, 0), "{counts:?}");
        let expected = if self.slots.published.draining() { 0 } else { counts.target };
        assert_eq!((counts.idle, counts.places), (expected, expected), "{counts:?}");
        assert_eq!(self.server.open.load(Relaxed), expected, "{counts:?}");
        assert!(self.server.most_open.load(Relaxed) <= ceiling, "{:?} > {ceiling}", self.server.most_open);
        assert_eq!(counts.acquires, *self.told.lock().unwrap());
        let seen = self.slots.published.occupancy();
        assert_eq!((seen.queue_depth, seen.idle, seen.capacity), (0, expected, expected));
    }
}

impl PlaceOwner for Pool {
    fn place_freed(&self) {
        self.slots.free_place();
        self.fill();
    }

    fn connection_lost(&self) {
        self.slots.close_idle_if(|conn| conn.dead.load(Relaxed));
        self.fill();
    }

    fn place_written_off(&self) {}
}

fn soon() -> Caller {
    let why = if thread_rng().gen_bool(0.5) { Leave::Cancelled } else { Leave::TimedOut };
    Caller::Leaves(thread_rng().gen_range(0..4), why)
}

#[test]
fn a_granted_waiter_cancelled_while_the_target_shrinks_and_its_connection_dies_loses_nothing() {
    interleave(|| {
        let pool = Pool::new(BOUNDS, 2);
        let [dying, other] = [Caller::Tries; 2].map(|caller| pool.acquire(caller).expect("two are idle"));
        let dies = dying.id;
        let leaving = pool.spawn(|pool| pool.call(soon()));
        let waiting = pool.spawn(|pool| pool.call(Caller::Waits));
        let server = pool.spawn(move |pool| pool.kill(dies));
        pool.give_back(dying);
        pool.set_target(1);
        pool.give_back(other);
        let counts = pool.look();
        assert!(counts.in_use + counts.idle <= 1, "what came back since is surplus: {counts:?}");
        leaving.join().unwrap();
        server.join().unwrap();
        assert!(waiting.join().unwrap(), "who stays is served");
        pool.at_rest(2);
    });
}

#[test]
fn a_dead_grant_goes_back_to_the_head_of_a_full_queue_and_nobody_is_forgotten() {
    interleave(|| {
        let pool = Pool::new(Bounds { max_size: 1, hard_cap: 1, ..BOUNDS }, 1);
        let held = pool.acquire(Caller::Tries).expect("one is idle");
        let callers = [Caller::Waits, soon(), Caller::LeavesChecking(Leave::Cancelled)];
        let callers = callers.map(|caller| pool.spawn(move |pool| pool.call(caller)));
        held.dead.store(thread_rng().gen_bool(0.5), Relaxed);
        let server = pool.spawn(|pool| [1, 2].map(|id| pool.kill(id)));
        pool.give_back(held);
        for caller in callers {
            caller.join().unwrap();
        }
        server.join().unwrap();
        pool.at_rest(1);
    });
}

#[test]
fn a_drain_serves_who_waits_though_connections_die_and_leaves_nothing_open() {
    interleave(|| {
        let pool = Pool::new(BOUNDS, 1);
        let held = pool.acquire(Caller::Tries).expect("one is idle");
        let callers = [Caller::Waits, soon()].map(|caller| pool.spawn(move |pool| pool.call(caller)));
        let server = pool.spawn(|pool| pool.kill(0));
        pool.slots.start_drain();
        let to_serve = pool.look().queue_depth;
        pool.give_back(held);
        let served = callers.map(|caller| caller.join().unwrap());
        server.join().unwrap();
        assert!(to_serve < 2 || served[0], "who waited when the drain began is served");
        pool.at_rest(2);
    });
}

#[test]
fn a_close_answers_everybody_whoever_comes_leaves_or_gives_back_meanwhile() {
    interleave(|| {
        let pool = Pool::new(BOUNDS, 2);
        let [dying, kept] = [Caller::Tries; 2].map(|caller| pool.acquire(caller).expect("two are idle"));
        let dies = dying.id;
        let callers = [Caller::Waits, soon()].map(|caller| pool.spawn(move |pool| pool.call(caller)));
        let server = pool.spawn(move |pool| {
            pool.kill(dies);
            pool.set_target(1);
        });
        pool.give_back(dying);
        pool.slots.close();
        for caller in callers {
            caller.join().unwrap();
        }
        pool.give_back(kept);
        server.join().unwrap();
        pool.at_rest(2);
    });
}

#[test]
fn whoever_comes_wakes_the_driver() {
    interleave(|| {
        let pool = Pool::new(BOUNDS, 1);
        let driver = pool.spawn(|pool| block_on(poll_fn(|cx| pool.slots.poll_busy(0, cx.waker()))));
        let caller = [Caller::Waits, Caller::Tries, soon()][thread_rng().gen_range(0..3)];
        pool.call(caller);
        driver.join().unwrap();
        pool.at_rest(2);
    });
}

#[test]
fn whatever_three_tasks_do_nothing_is_lost() {
    interleave(|| {
        let pool = Pool::new(Bounds { hard_cap: 1, ..BOUNDS }, 2);
        let tasks = [(); 3].map(|()| pool.spawn(|pool| (0..3).for_each(|_| acquire_and_do_anything(pool))));
        for task in tasks {
            task.join().unwrap();
        }
        pool.at_rest(2);
    });
}

fn acquire_and_do_anything(pool: &Pool) {
    let mut draw = thread_rng();
    let held = match draw.gen_range(0..10) {
        0..4 => pool.acquire(Caller::Waits),
        4..7 => pool.acquire(soon()),
        7 => pool.acquire(Caller::LeavesChecking(Leave::TimedOut)),
        8 => pool.acquire(Caller::Tries),
        _ => None,
    };
    match draw.gen_range(0..40) {
        0..10 => pool.set_target(draw.gen_range(1..3)),
        10..20 => pool.kill(draw.gen_range(0..6)),
        20..24 => pool.failing.store(draw.gen_range(1..3), Relaxed),
        24..30 => {
            let max_size = draw.gen_range(1..3);
            pool.slots.set_bounds(Bounds { max_size, ..pool.slots.bounds() });
            pool.fill();
        }
        30..33 => drop(pool.slots.sample(pool.now)),
        33..35 => drop(pool.slots.close_idle_since(pool.now)),
        35 => drop(pool.slots.expire(pool.now + Duration::from_secs(thread_rng().gen_range(0..3)))),
        36 => pool.slots.start_drain(),
        37 => pool.slots.close(),
        _ => {}
    }
    pool.look();
    if let Some(conn) = held {
        pool.give_back(conn);
    }
}
