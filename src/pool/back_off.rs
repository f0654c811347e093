//! How many dials there may be at once, and when the next one may begin: a jittered back-off while the database is away, or ends
//! what it has let in.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::backend::Refusal;
use crate::config::Settings;
use crate::error::SharedError;
use crate::gate::Guarded;
use crate::gate::counts::Counts;

/// The first pause after a failed dial; it doubles with each further failure.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// The longest pause: a database that is back is noticed within a third of a second.
const LONGEST_PAUSE: Duration = Duration::from_millis(300);

/// A connection that ends unused within this time has died young: longer than servers and middleboxes usually wait for a first
/// query, shorter than they keep what is idle.
pub(super) const YOUNG: Duration = Duration::from_secs(10);
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
}

struct State {
    /// Tasks that dial, or pause before they dial again.
    dialers: usize,
    /// Failures since the last success.
    failures: u32,
    not_before: Instant,
    /// Connections in a row that were dead when they were handed out for the first time.
    stillborn: u32,
    /// Connections in a row that died young.
    died_young: u32,
    last_death: Option<Instant>,
    /// When the next dial may begin that nobody waits for.
    calm_not_before: Instant,
    last_error: Option<Guarded<SharedError>>,
    /// The last dial was refused for a reason that waiting does not mend.
    rejected: bool,
}

impl Dialing {
    pub fn new(settings: &Settings) -> Self {
        let state = State {
            dialers: 0,
            failures: 0,
            not_before: Instant::now(),
            stillborn: 0,
            died_young: 0,
            last_death: None,
            calm_not_before: Instant::now(),
            last_error: None,
            rejected: false,
        };
        Self {
            at_once: settings.max_dialing,
            timeout: settings.dial_timeout,
            fail_fast: settings.fail_fast,
            state: Mutex::new(state),
        }
    }

    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    pub fn fails_fast(&self) -> bool {
        self.fail_fast
    }

    /// When the next dial may begin, where somebody waits for it and where not.
    pub fn not_before(&self, waited_for: bool) -> Instant {
        let state = self.lock();
        if waited_for { state.not_before } else { state.not_before.max(state.calm_not_before) }
    }

    /// One more dialer, if there may be one, and it is wanted beside so many.
    pub fn take_turn(&self, waited_for: bool, wanted: impl FnOnce(usize) -> bool) -> bool {
        let mut state = self.lock();
        let more = state.dialers < state.allowed(self.at_once, waited_for) && wanted(state.dialers);
        state.dialers += usize::from(more);
        more
    }

    /// Whether a dialer goes on, if it may and `begins` a dial; else its turn is given back.
    pub fn keep_turn(&self, waited_for: bool, begins: impl FnOnce() -> bool) -> bool {
        let mut state = self.lock();
        let goes_on = state.dialers <= state.allowed(self.at_once, waited_for) && begins();
        state.dialers -= usize::from(!goes_on);
        goes_on
    }

    pub fn give_turn_back(&self) {
        self.lock().dialers -= 1;
    }

    /// Why the last dial failed, until one succeeds.
    pub fn last_error(&self) -> Option<SharedError> {
        self.lock().last_error.as_deref().cloned()
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
    pub fn succeeded(&self, draw: f64) -> Option<Guarded<SharedError>> {
        let mut state = self.lock();
        state.failures = 0;
        state.hold_back(draw);
        state.rejected = false;
        state.last_error.take()
    }

    /// Returns when the next dial may begin, and what the last error was.
    pub fn failed(
        &self,
        error: &SharedError,
        refusal: Refusal,
        draw: f64,
    ) -> (Instant, Option<Guarded<SharedError>>) {
        let mut state = self.lock();
        state.failures += 1;
        state.not_before = Instant::now() + pause(refusal, state.failures, draw);
        state.rejected = refusal == Refusal::Rejected;
        (state.not_before, state.last_error.replace(Guarded::new(error.clone())))
    }

    /// A connection ended that was opened so long ago and that nobody had used. At the third in a row, each opened after the one
    /// before had ended, the next dial that nobody waits for waits as after a failed one. True when it is time to tell.
    pub fn died_young(&self, age: Duration, draw: f64) -> bool {
        let mut state = self.lock();
        let now = Instant::now();
        match state.last_death.map(|last| now - last) {
            Some(before) if age > before => return false, // of those that were open then
            Some(before) if before <= YOUNG => {}
            _ => state.died_young = 0,
        }
        state.last_death = Some(now);
        state.died_young = state.died_young.saturating_add(1);
        state.hold_back(draw);
        state.died_young == TOLD
    }

    /// A connection that was opened just now was dead when it was handed out. From the third in a row on the next dial waits as
    /// after a failed one, also where somebody waits for it: more dials would not serve anybody.
    pub fn stillborn(&self, draw: f64) {
        let mut state = self.lock();
        state.stillborn = state.stillborn.saturating_add(1);
        if state.stillborn >= TOLD {
            let pause = pause(Refusal::Away, state.stillborn - TOLD + 1, draw);
            state.not_before = state.not_before.max(Instant::now() + pause);
        }
    }

    /// A connection is used for the first time: what is opened serves.
    pub fn serves(&self) {
        self.lock().stillborn = 0;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// While dials fail, or what they bring dies at once, one dialer probes; the others would only hammer.
    fn allowed(&self, at_once: usize, waited_for: bool) -> usize {
        let probes = self.failures > 0 || self.stillborn >= TOLD || (self.die_young() && !waited_for);
        if probes { 1 } else { at_once }
    }

    /// Connections die young, as far as known.
    fn die_young(&self) -> bool {
        self.died_young >= TOLD && self.last_death.is_some_and(|last| last.elapsed() <= YOUNG)
    }

    /// Where connections die young the next dial waits.
    fn hold_back(&mut self, draw: f64) {
        if self.die_young() {
            let pause = pause(Refusal::Away, self.died_young - TOLD + 1, draw);
            self.calm_not_before = Instant::now() + pause;
        }
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
