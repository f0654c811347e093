//! Sizes tried to learn what they bring, and the ceiling that such lessons leave: part of
//! [`PaidGrowth`](super::PaidGrowth).

use std::time::{Duration, Instant};

/// Ratio of the first trial's size to the present one: a difference that a second of completions can show.
pub(super) const STEP: f64 = 1.12;
/// Ratio to which steps widen as one trial after the other succeeds: the knee is far, then.
const LONGEST_STEP: f64 = 1.6;
/// A trial closer than this in size costs so little that it may last.
const NEAR: f64 = 1.15;
/// How long a trial lasts at the most, with the settling: a quarter of a second is 2 % of the longest time between two.
const FAR_LASTS: Duration = Duration::from_millis(250);
const NEAR_LASTS: Duration = Duration::from_millis(1_500);
/// Before the first trial, and after one that failed; each failure makes the next wait longer.
const FIRST_WAIT: Duration = Duration::from_millis(300);
const LONGEST_WAIT: Duration = Duration::from_secs(15);
/// After one that succeeded: on, while it pays.
const NEXT_STEP: Duration = Duration::from_millis(200);
/// After growth was taken back: time for the pool to shrink and for the first completions there.
const AFTER_RETREAT: Duration = Duration::from_millis(300);
/// How long a ceiling holds, and, doubled by halves, how long at the most.
const CEILING_LASTS: Duration = Duration::from_secs(5);
const CEILING_LONGEST: Duration = Duration::from_secs(60);
/// What each wait grows by; after a trial that was far away, which costs more.
const BACK_OFF: f64 = 1.5;
const FAR_BACK_OFF: f64 = 2.0;

/// A size that was seen not to pay.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ceiling {
    pub size: usize,
    pub until: Instant,
    lasts: Duration,
}

/// A size being tried.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trial {
    pub from: usize,
    pub to: usize,
    pub until: Instant,
    pub near: bool,
}

/// Whether `a` and `b` are so close that a move between them may last.
fn near(a: usize, b: usize) -> bool {
    (a.max(b) as f64) < NEAR * a.min(b) as f64
}

/// What is being tried, what is not to be tried, and when the next trial is due.
#[derive(Debug)]
pub(super) struct Trials {
    pub current: Option<Trial>,
    pub ceiling: Option<Ceiling>,
    next: Option<Instant>,
    wait: Duration,
    step: f64,
    /// Where the last one leads: on when it succeeded, else the other way.
    pub upwards: Option<bool>,
}

impl Trials {
    pub fn new() -> Self {
        Self { current: None, ceiling: None, next: None, wait: FIRST_WAIT, step: STEP, upwards: None }
    }

    /// The database has changed: nothing learnt here is true any more.
    pub fn forget(&mut self) {
        let next = self.next;
        *self = Self { next, step: self.step, ..Self::new() };
    }

    /// Whether it is time for a trial.
    pub fn due(&mut self, now: Instant) -> bool {
        now >= *self.next.get_or_insert(now + self.wait)
    }

    /// Not now.
    pub fn postpone(&mut self, now: Instant) {
        self.next = Some(now + self.wait);
    }

    pub fn start(&mut self, now: Instant, from: usize, to: usize) -> Trial {
        let trial = Trial { from, to, until: now + Self::lasts(from, to), near: near(from, to) };
        self.current = Some(trial);
        trial
    }

    /// How long a trial of one size from another lasts.
    pub fn lasts(from: usize, to: usize) -> Duration {
        if near(from, to) { NEAR_LASTS } else { FAR_LASTS }
    }

    pub fn step(&self) -> f64 {
        self.step
    }

    pub fn succeeded(&mut self, now: Instant, trial: Trial) {
        self.current = None;
        self.upwards = Some(trial.to > trial.from);
        self.step = (self.step * self.step).min(LONGEST_STEP);
        self.next = Some(now + NEXT_STEP);
        if trial.to < trial.from {
            self.lower_ceiling(trial.from, now + CEILING_LASTS);
        }
    }

    pub fn failed(&mut self, now: Instant, trial: Trial) {
        self.current = None;
        self.upwards = Some(trial.to < trial.from);
        self.step = STEP;
        self.wait = self.wait.mul_f64(if trial.near { BACK_OFF } else { FAR_BACK_OFF }).min(LONGEST_WAIT);
        self.next = Some(now + self.wait);
        if trial.to > trial.from {
            self.lower_ceiling(trial.to, now);
        }
    }

    /// `size` does not pay: if no ceiling holds yet, until then.
    fn lower_ceiling(&mut self, size: usize, until: Instant) {
        let ceiling = self.ceiling.get_or_insert(Ceiling { size, until, lasts: CEILING_LASTS });
        ceiling.size = ceiling.size.min(size);
    }

    /// Growth was taken back: `size` does not pay, for longer each time.
    pub fn cap(&mut self, now: Instant, size: usize) -> Ceiling {
        let lasts = self.ceiling.map_or(CEILING_LASTS, |ceiling| longer(ceiling.lasts));
        let ceiling = Ceiling { size, until: now + lasts, lasts };
        self.ceiling = Some(ceiling);
        self.next = Some(now + AFTER_RETREAT);
        self.wait = FIRST_WAIT;
        ceiling
    }

    /// True when the ceiling has held for its time: it may be tried, and holds for longer from now.
    pub fn expired(&mut self, now: Instant) -> bool {
        let Some(ceiling) = &mut self.ceiling else { return false };
        let expired = now >= ceiling.until;
        if expired {
            ceiling.lasts = longer(ceiling.lasts);
            ceiling.until = now + ceiling.lasts;
        }
        expired
    }
}

fn longer(lasts: Duration) -> Duration {
    lasts.mul_f64(BACK_OFF).min(CEILING_LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ceiling_holds_for_longer_each_time_up_to_a_minute() {
        let (mut trials, mut now) = (Trials::new(), Instant::now());
        assert_eq!(trials.cap(now, 30).until, now + CEILING_LASTS);
        let mut held = Vec::new();
        for _ in 0..8 {
            now += CEILING_LONGEST;
            assert!(trials.expired(now));
            assert!(!trials.expired(now));
            held.push(trials.ceiling.unwrap().until - now);
        }
        assert!(held.is_sorted() && held[0] == CEILING_LASTS.mul_f64(1.5), "{held:?}");
        assert_eq!(held[7], CEILING_LONGEST);
    }

    #[test]
    fn steps_widen_while_trials_succeed_and_the_next_one_goes_the_other_way_when_one_fails() {
        let (mut trials, now) = (Trials::new(), Instant::now());
        let down = trials.start(now, 40, 36);
        assert!(down.near && down.until == now + NEAR_LASTS);
        trials.succeeded(now, down);
        assert!(trials.step() > STEP && trials.upwards == Some(false));
        let far = trials.start(now, 36, 28);
        assert!(!far.near && far.until == now + FAR_LASTS);
        trials.failed(now, far);
        assert_eq!((trials.step(), trials.upwards), (STEP, Some(true)));
        assert!(!trials.due(now + FIRST_WAIT.mul_f64(1.9)) && trials.due(now + FIRST_WAIT * 2));
    }

    #[test]
    fn a_trial_upwards_that_fails_lowers_the_ceiling() {
        let (mut trials, now) = (Trials::new(), Instant::now());
        trials.cap(now, 30);
        let up = trials.start(now, 20, 24);
        trials.failed(now, up);
        assert_eq!(trials.ceiling.unwrap().size, 24);
    }
}
