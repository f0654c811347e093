//! Dials, in the background.

use std::error::Error;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::runtime::Id;
use tokio::time::{Instant, sleep_until, timeout};

use super::back_off::YOUNG;
use super::{Inner, Item};
use crate::backend::{Backend, Lost, Place, Refusal};
use crate::error::SharedError;
use crate::gate::guarded;
use crate::gate::plant::HasSlots;
use crate::law::{Decision, Reason};
use crate::observe::Event;
use crate::terms::after;

/// A connection that was opened within this time went to somebody who had waited for it.
const FRESH: Duration = Duration::from_millis(100);

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
        let wanted = self.dialing.take_turn(self.is_waited_for(), |dialers| self.slots.wants_dial(dialers));
        wanted.then(|| Turn {
            pool: self.this.clone(),
            home: self.gate.home(),
            begun: false,
            given_back: false,
        })
    }

    /// The right to dial now, or the end of a dialer, which gives its turn back.
    fn next_dial(&self, turn: &mut Turn<B>) -> Option<Attempt<B>> {
        let goes_on = self.dialing.keep_turn(self.is_waited_for(), || self.slots.begin_open());
        turn.given_back = !goes_on;
        goes_on.then(|| Attempt { pool: self.this.clone(), ended: false })
    }

    fn is_waited_for(&self) -> bool {
        self.slots.published.occupancy().queue_depth > 0
    }

    /// A connection is about to be used.
    pub(super) fn served(&self, item: &Item<B>) {
        if item.unused_for().is_some() {
            self.dialing.serves();
        }
    }

    /// A connection is dead at its hand-out.
    pub(super) fn died_at_hand_out(&self, item: &Item<B>) {
        self.died(item);
        if item.unused_for().is_some_and(|age| age <= FRESH) {
            self.dialing.stillborn(self.gate.draw());
        }
    }

    /// A connection has died that nobody holds, or that nobody could use.
    pub(super) fn died(&self, item: &Item<B>) {
        if let Some(age) = item.unused_for().filter(|age| *age <= YOUNG)
            && self.dialing.died_young(age, self.gate.draw())
        {
            self.gate.observe(|| Event::DyingYoung {});
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
        let old = self.dialing.succeeded(self.gate.draw());
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
        drop(old);
    }

    fn dial_failed(&self, error: &SharedError, refusal: Refusal) {
        let (not_before, old) = self.dialing.failed(error, refusal, self.gate.draw());
        self.slots.open_failed();
        if refusal == Refusal::Full {
            self.stay();
        }
        self.gate.dial_failed();
        self.gate.observe(|| Event::DialFailed { error });
        let patience = if self.dialing.fails_fast() { Duration::MAX } else { Duration::ZERO };
        self.slots.no_dial_before(after(not_before, patience).into_std(), error);
        self.tell();
        drop(old);
    }
}

/// Dials until nothing more is wanted. Holds the pool only between two dials, so that a pool whose last handle is
/// dropped goes at once.
async fn dialer<B: Backend>(mut turn: Turn<B>, backend: Arc<B>) {
    let pool = turn.pool.clone();
    turn.begun = true;
    loop {
        let Some(not_before) = pool.upgrade().map(|pool| pool.dialing.not_before(pool.is_waited_for()))
        else {
            return;
        };
        if not_before > Instant::now() {
            sleep_until(not_before).await;
        }
        let (attempt, limit) = match pool.upgrade() {
            None => return,
            Some(pool) => match pool.next_dial(&mut turn) {
                None => {
                    // A drain may wait for the waiters this dialer was for; they have left.
                    guarded(|| pool.changed.notify_waiters());
                    return;
                }
                Some(attempt) => (attempt, pool.dialing.timeout()),
            },
        };
        let started = Instant::now();
        let place = Place::new(pool.clone());
        let lost = place.is_lost();
        let outcome = timeout(limit, backend.dial(place)).await;
        attempt.end(match outcome {
            Ok(Ok(connection)) => Ok(Dialed { connection, lost, took: started.elapsed() }),
            Ok(Err(error)) => {
                let refusal = guarded(|| backend.refusal(&error)).unwrap_or(Refusal::Away);
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
    /// The runtime that was to run it.
    home: Id,
    /// Its dialer has run at all: else that runtime is gone, and would run no other.
    begun: bool,
    given_back: bool,
}

impl<B: Backend> Drop for Turn<B> {
    fn drop(&mut self) {
        if !self.given_back
            && let Some(pool) = self.pool.upgrade()
        {
            pool.dialing.give_turn_back();
            if self.begun || self.home != pool.gate.home() {
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
