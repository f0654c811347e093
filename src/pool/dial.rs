//! Dials: in the background, at most `max_dialing` at once, with a jittered back-off while the database is away.

use std::error::Error;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout};

use super::{Inner, Item};
use crate::backend::{Backend, Lost, Place, Refusal};
use crate::config::Settings;
use crate::error::SharedError;
use crate::gate::counts::Counts;
use crate::law::{Decision, Reason};
use crate::observe::Event;
use crate::terms::after;

/// The first pause after a failed dial; it doubles with each further failure.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// The longest pause: a database that is back is noticed within a third of a second.
const LONGEST_PAUSE: Duration = Duration::from_millis(300);

/// At so many deaths of unused connections in a row it is told: one or two are chance.
const TOLD: u32 = 3;

/// Between two dials while the server is full: asking costs it a process each time.
const FULL_PAUSE: Duration = Duration::from_secs(1);
/// Between two dials while it rejects us: hammering with a wrong password locks accounts.
const REJECTED_PAUSE: Duration = Duration::from_secs(2);

/// What all dials share.
pub(super) struct Dialing {
    at_once: usize,
    timeout: Duration,
    fail_fast: bool,
    state: Mutex<State>,
    /// Connections have died young, and none has been used since.
    wary: AtomicBool,
}

struct State {
    /// Tasks that dial, or pause before they dial again.
    dialers: usize,
    /// Failures since the last success.
    failures: u32,
    /// Connections that died young since one was used.
    died_young: u32,
    not_before: Instant,
    last_error: Option<SharedError>,
    /// The last dial was refused for a reason that waiting does not mend.
    rejected: bool,
}

impl Dialing {
    pub fn new(settings: &Settings) -> Self {
        let state = State {
            dialers: 0,
            failures: 0,
            died_young: 0,
            not_before: Instant::now(),
            last_error: None,
            rejected: false,
        };
        Self {
            at_once: settings.max_dialing,
            timeout: settings.dial_timeout,
            fail_fast: settings.fail_fast,
            state: Mutex::new(state),
            wary: AtomicBool::new(false),
        }
    }

    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Why the last dial failed, until one succeeds.
    pub fn last_error(&self) -> Option<SharedError> {
        self.lock().last_error.clone()
    }

    pub fn is_rejected(&self) -> bool {
        self.lock().rejected
    }

    /// The reason of a wait in vain, when dialing is what failed: no connection serves.
    pub fn blocking_error(&self, counts: &Counts) -> Option<SharedError> {
        if counts.open() == 0 { self.last_error() } else { None }
    }

    /// Returns what the last error was, to be dropped outside of the lock. Where connections die young the next dial waits
    /// for what becomes of this one.
    fn succeeded(&self, draw: f64) -> Option<SharedError> {
        let mut state = self.lock();
        state.failures = 0;
        if state.died_young >= TOLD {
            state.not_before = Instant::now() + pause(Refusal::Away, state.died_young, draw);
        }
        state.rejected = false;
        state.last_error.take()
    }

    /// Returns when the next dial may begin, and what the last error was.
    fn failed(&self, error: &SharedError, refusal: Refusal, draw: f64) -> (Instant, Option<SharedError>) {
        let mut state = self.lock();
        state.failures += 1;
        state.not_before = Instant::now() + pause(refusal, state.failures, draw);
        state.rejected = refusal == Refusal::Rejected;
        (state.not_before, state.last_error.replace(error.clone()))
    }

    /// A connection ended that nobody had used: the next dial waits as after a failed one. Deaths before it has begun count as
    /// one. True when it is time to tell.
    fn died_young(&self, draw: f64) -> bool {
        let mut state = self.lock();
        let now = Instant::now();
        if state.died_young < TOLD && now < state.not_before {
            return false;
        }
        self.wary.store(true, Relaxed);
        state.died_young = state.died_young.saturating_add(1);
        state.not_before = state.not_before.max(now + pause(Refusal::Away, state.died_young, draw));
        state.died_young == TOLD
    }

    /// A connection was used: what is opened lives.
    fn lives(&self) {
        if self.wary.swap(false, Relaxed) {
            self.lock().died_young = 0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// While dials fail, or what they bring dies at once, one dialer probes; the others would only hammer.
    fn allowed(&self, at_once: usize) -> usize {
        if self.failures > 0 || self.died_young >= TOLD { 1 } else { at_once }
    }
}

impl<B: Backend> Inner<B> {
    /// Starts the dials that limit, `min_size` and ceiling ask for. To be called after everything that makes room or need.
    ///
    /// No need is lost: a dialer looks again under the same lock before it ends.
    pub(super) fn reconcile(&self) {
        while let Some(turn) = self.next_dialer() {
            // Ended already, it found nothing to dial, or its runtime is gone: then dials begin again where the gate is revived.
            if self.gate.spawn(dialer(turn, self.backend.clone())).is_finished() {
                break;
            }
        }
    }

    fn next_dialer(&self) -> Option<Turn<B>> {
        let mut state = self.dialing.lock();
        if state.dialers >= state.allowed(self.dialing.at_once) || !self.slots.wants_dial(state.dialers) {
            return None;
        }
        state.dialers += 1;
        Some(Turn { pool: self.this.clone(), begun: false, given_back: false })
    }

    /// The right to dial now, or the end of a dialer, which gives its turn back.
    fn next_dial(&self, turn: &mut Turn<B>) -> Option<Attempt<B>> {
        let mut state = self.dialing.lock();
        let over = state.dialers > state.allowed(self.dialing.at_once);
        if over || !self.slots.begin_open() {
            state.dialers -= 1;
            turn.given_back = true;
            return None;
        }
        Some(Attempt { pool: self.this.clone(), ended: false })
    }

    fn pause(&self) -> Instant {
        self.dialing.lock().not_before
    }

    /// A connection has died that nobody holds, or that nobody could use.
    pub(super) fn died(&self, item: &Item<B>) {
        let clock = &self.gate.holds().clock;
        clock.look();
        if item.is_young(clock) && self.dialing.died_young(self.gate.draw()) {
            self.gate.observe(|| Event::DyingYoung {});
        }
    }

    /// A connection comes back from its use.
    pub(super) fn used(&self, item: &Item<B>) {
        if item.was_used_once() && self.dialing.wary.load(Relaxed) {
            self.dialing.lives();
        }
    }

    /// Uses no more than what is open, or about to be by other dials, for now: the controller may ask again, and the dials are a
    /// second apart.
    fn stay(&self) {
        if self.gate.is_dry_run() {
            return;
        }
        if let Some((from, limit)) = self.slots.lower_limit_to_open() {
            self.gate.limit_changed(from, Decision { limit, reason: Reason::ServerFull });
        }
    }

    fn dialed(&self, Dialed { connection, lost, took }: Dialed<B>) {
        drop(self.dialing.succeeded(self.gate.draw()));
        let holds = self.gate.holds();
        let pooled =
            self.lifetime.begin(connection, lost.clone(), holds.join(), &holds.clock, self.gate.draw());
        self.slots.opened(Box::new(pooled), Instant::now().into_std());
        if lost.is_lost() {
            self.close_lost(); // it was said before there was anything to close
        }
        self.gate.observe(|| Event::Dialed { took });
        self.reconcile();
        self.tell();
    }

    fn dial_failed(&self, error: &SharedError, refusal: Refusal) {
        let (not_before, old) = self.dialing.failed(error, refusal, self.gate.draw());
        drop(old);
        self.slots.open_failed();
        if refusal == Refusal::Full {
            self.stay();
        }
        self.gate.dial_failed();
        self.gate.observe(|| Event::DialFailed { error });
        let patience = if self.dialing.fail_fast { Duration::MAX } else { Duration::ZERO };
        self.slots.no_dial_before(after(not_before, patience).into_std(), error);
        self.tell();
    }
}

/// With full jitter over its upper half, so that a fleet does not come back in step; doubling while nobody answers.
fn pause(refusal: Refusal, failures: u32, draw: f64) -> Duration {
    let longest = match refusal {
        Refusal::Away => FIRST_PAUSE.saturating_mul(1 << (failures - 1).min(16)).min(LONGEST_PAUSE),
        Refusal::Full => FULL_PAUSE,
        Refusal::Rejected => REJECTED_PAUSE,
    };
    longest.mul_f64(0.5 + draw / 2.0)
}

/// Dials until nothing more is wanted. Holds the pool only between two dials, so that a pool whose last handle is
/// dropped goes at once.
async fn dialer<B: Backend>(mut turn: Turn<B>, backend: Arc<B>) {
    let pool = turn.pool.clone();
    turn.begun = true;
    loop {
        let Some(not_before) = pool.upgrade().map(|pool| pool.pause()) else { return };
        if not_before > Instant::now() {
            sleep_until(not_before).await;
        }
        let (attempt, limit) = match pool.upgrade() {
            None => return,
            Some(pool) => match pool.next_dial(&mut turn) {
                None => {
                    // A drain may wait for the waiters this dialer was for; they have left.
                    pool.changed.notify_waiters();
                    return;
                }
                Some(attempt) => (attempt, pool.dialing.timeout),
            },
        };
        let started = Instant::now();
        let place = Place::new(pool.clone());
        let lost = place.is_lost();
        let outcome = timeout(limit, backend.dial(place)).await;
        attempt.end(match outcome {
            Ok(Ok(connection)) => Ok(Dialed { connection, lost, took: started.elapsed() }),
            Ok(Err(error)) => {
                let refusal = backend.refusal(&error);
                Err((Arc::new(error), refusal))
            }
            Err(_) => Err((Arc::new(DialTimeout(limit)), Refusal::Away)),
        });
    }
}

/// What a dial brought.
struct Dialed<B: Backend> {
    connection: B::Connection,
    lost: Lost,
    took: Duration,
}

/// One of those who may dial at once. Dropped before it was given back, its dialer was lost: user code panicked, or the
/// runtime is going down. Another one takes over.
struct Turn<B: Backend> {
    pool: Weak<Inner<B>>,
    /// Its dialer has run at all: else there is no runtime that would run another.
    begun: bool,
    given_back: bool,
}

impl<B: Backend> Drop for Turn<B> {
    fn drop(&mut self) {
        if !self.given_back
            && let Some(pool) = self.pool.upgrade()
        {
            pool.dialing.lock().dialers -= 1;
            if self.begun {
                pool.reconcile();
            }
        }
    }
}

/// One dial under way: it is counted as `opening` until it ends, also when the backend panics.
struct Attempt<B: Backend> {
    pool: Weak<Inner<B>>,
    ended: bool,
}

impl<B: Backend> Attempt<B> {
    fn end(mut self, outcome: Result<Dialed<B>, (SharedError, Refusal)>) {
        self.ended = true;
        if let Some(pool) = self.pool.upgrade() {
            match outcome {
                Ok(dialed) => pool.dialed(dialed),
                Err((error, refusal)) => pool.dial_failed(&error, refusal),
            }
        }
    }
}

impl<B: Backend> Drop for Attempt<B> {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        // The backend panicked, or the runtime is going down.
        if let Some(pool) = self.pool.upgrade() {
            let error: SharedError = Arc::new(DialPanicked);
            pool.dial_failed(&error, Refusal::Away);
        }
    }
}

/// A dial took longer than `dial_timeout`.
#[derive(Clone, Copy, Debug)]
struct DialTimeout(Duration);

impl fmt::Display for DialTimeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the database did not answer within {:?} (dial_timeout)", self.0)
    }
}

impl Error for DialTimeout {}

#[derive(Clone, Copy, Debug)]
struct DialPanicked;

impl fmt::Display for DialPanicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the dial panicked or was aborted")
    }
}

impl Error for DialPanicked {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_their_cap_and_keep_at_least_half() {
        for (failures, most) in [(1, 20), (2, 40), (3, 80), (4, 160), (5, 300), (99, 300)] {
            let most = Duration::from_millis(most);
            assert_eq!(pause(Refusal::Away, failures, 0.0), most / 2, "{failures} failures");
            assert!(pause(Refusal::Away, failures, 0.999) <= most, "{failures} failures");
        }
    }
}
