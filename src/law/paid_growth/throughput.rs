//! The throughput model: what each number of connections in use completed, the older the less.

use std::time::{Duration, Instant};

use crate::law::scale::UseTimes;

/// Limits remembered: a search and its probes visit two dozen.
const LIMITS: usize = 64;
/// Half of what was seen is forgotten after so many seconds and so many completions; after so many seconds in any case.
const HALF_LIFE: (f64, f64, f64) = (20.0, 4_000.0, 600.0);
/// Between two decays, in seconds.
const DECAY_EVERY: f64 = 1.0;
/// Completions, times the scatter, that make one of ticks in which the limit did not bind.
const FREE_BLOCK: f64 = 50.0;
/// Error of what use times say of throughput, in parts of the ln of the ratio of two limits: their distribution may change.
const SHAPE: f64 = 0.1;
/// Standard errors by which a use is taken for longer than it was seen: the shortest of many noisy ones is too short.
const MARGIN: f64 = 1.5;
/// Standard errors by which the two measures contradict each other.
const APART: f64 = 2.5;
/// Completions that make a block: enough to see a throughput move by a fifth.
const BLOCK: f64 = 60.0;
/// A change of throughput at the same limit that is a change of the database, in ln, and in standard errors.
const CHANGED: (f64, f64) = (0.2, 4.0);
/// Completions that each limit keeps when the database has changed: the shape of the curve is a guess from then on.
const KEPT: f64 = 30.0;

/// What so many connections in use completed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Seen {
    pub limit: usize,
    pub completions: f64,
    pub seconds: f64,
    pub uses: UseTimes,
}

impl Seen {
    fn add(&mut self, more: &Self) {
        self.completions += more.completions;
        self.seconds += more.seconds;
        self.uses.merge(&more.uses);
    }

    fn keep(&mut self, part: f64) {
        self.completions *= part;
        self.seconds *= part;
        self.uses.keep(part);
    }

    /// Half a completion more than were counted, so that none at all is a number too.
    fn ln_rate(&self) -> f64 {
        ((self.completions + 0.5) / self.seconds.max(1e-6)).ln()
    }
}

/// A number and its standard error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Estimate {
    pub value: f64,
    pub error: f64,
}

impl Estimate {
    /// Two independent estimates of one number.
    pub fn with(self, other: Self) -> Self {
        let (a, b) = (self.error.powi(-2), other.error.powi(-2));
        Self { value: (a * self.value + b * other.value) / (a + b), error: (a + b).powf(-0.5) }
    }
}

#[derive(Debug)]
pub(super) struct Throughput {
    seen: [Seen; LIMITS],
    /// This stay at this limit, and since it was last compared with what was known of it.
    pub stay: Seen,
    block: Seen,
    /// A block in which the limit did not bind, and its connection-seconds.
    free: Seen,
    free_held: f64,
    /// Variance of a count, in Poisson's: of a renewal process it is the scatter of the use times. And of ln of a use time.
    dispersion: f64,
    ln_variance: f64,
    decayed: Option<Instant>,
    since_decay: f64,
}

impl Throughput {
    pub fn new() -> Self {
        Self {
            seen: [Seen::default(); LIMITS],
            stay: Seen::default(),
            block: Seen::default(),
            free: Seen::default(),
            free_held: 0.0,
            dispersion: 1.0,
            ln_variance: 1.0,
            decayed: None,
            since_decay: 0.0,
        }
    }

    pub fn set_scatter(&mut self, scatter: f64, ln_variance: f64) {
        (self.dispersion, self.ln_variance) = (scatter.max(1.0), ln_variance.max(0.01));
    }

    /// A stay at another limit begins.
    pub fn begin(&mut self, limit: usize) {
        self.stay = Seen { limit, ..Seen::default() };
        self.block = self.stay;
    }

    /// One saturated tick at the limit that was begun.
    pub fn add(&mut self, completions: f64, seconds: f64, uses: UseTimes) {
        let tick = Seen { limit: self.stay.limit, completions, seconds, uses };
        self.add_at(&tick);
        self.stay.add(&tick);
        self.block.add(&tick);
    }

    /// One tick in which the limit did not bind: so many in use did so much. They are taken together until they are many, as of
    /// long and short queries mixed the long ones are in use while the short ones complete.
    pub fn add_free(&mut self, in_use: f64, completions: f64, seconds: f64, uses: UseTimes) {
        self.free.add(&Seen { limit: 0, completions, seconds, uses });
        self.free_held += in_use * seconds;
        if self.free.completions >= FREE_BLOCK * self.dispersion {
            self.free.limit = (self.free_held / self.free.seconds).round() as usize;
            let block = self.free;
            self.add_at(&block);
            (self.free, self.free_held) = (Seen::default(), 0.0);
        }
    }

    fn add_at(&mut self, more: &Seen) {
        let limit = more.limit;
        if limit == 0 {
            return;
        }
        let place = self.seen.iter().position(|seen| seen.limit == limit).unwrap_or_else(|| {
            // When all places are taken, the limit of which least is known makes room.
            let least = |a: &usize, b: &usize| self.seen[*a].seconds.total_cmp(&self.seen[*b].seconds);
            let place = (0..LIMITS).min_by(least).unwrap_or(0);
            self.seen[place] = Seen { limit, ..Seen::default() };
            place
        });
        self.seen[place].add(more);
    }

    pub fn of(&self, limit: usize) -> Option<Seen> {
        self.known().find(|seen| seen.limit == limit).copied()
    }

    /// Every limit of which something is known, in no order.
    pub fn known(&self) -> impl Iterator<Item = &Seen> {
        self.seen.iter().filter(|seen| seen.limit > 0 && seen.seconds > 0.0)
    }

    /// ln of the throughput of `to` over that of `from`, from two measures: completions counted, whose variance is the scatter
    /// of the uses; and the uses' logarithms, to which a database that shares itself adds the same whatever their length.
    pub fn ln_ratio(&self, from: &Seen, to: &Seen) -> Estimate {
        let counted = Estimate {
            value: to.ln_rate() - from.ln_rate(),
            error: (self.variance(from) + self.variance(to)).sqrt(),
        };
        let (Some(ln_from), Some(ln_to)) = (from.uses.ln_mean(), to.uses.ln_mean()) else {
            // Nothing is measured at all, or nothing has ended: that may be uses of another kind.
            let measured = from.uses.count + to.uses.count > 0.0;
            return if measured { Estimate { error: f64::INFINITY, ..counted } } else { counted };
        };
        let ln_limits = (to.limit as f64 / from.limit as f64).ln();
        let variance = self.ln_variance * (1.0 / from.uses.count + 1.0 / to.uses.count);
        let timed = Estimate {
            value: ln_limits + ln_from - ln_to,
            error: (variance + (SHAPE * ln_limits).powi(2)).sqrt(),
        };
        // Where they contradict each other, uses of another kind hold the connections: what ends tells of the database.
        let apart = (counted.value - timed.value).abs();
        if apart > APART * counted.error.hypot(timed.error) { timed } else { counted.with(timed) }
    }

    /// ln of one limit's throughput by its completions, less its standard error.
    pub fn ln_rate_at_least(&self, seen: &Seen) -> f64 {
        seen.ln_rate() - self.variance(seen).sqrt()
    }

    /// Variance that one completion has for the ln of a throughput.
    pub fn noise(&self) -> f64 {
        self.dispersion.min(self.ln_variance)
    }

    /// Variance of the ln of one limit's count: of the uses, and of where in them the connections were when it began and ended.
    fn variance(&self, seen: &Seen) -> f64 {
        let count = seen.completions + 0.5;
        self.dispersion / count + ((seen.limit as f64 / count).powi(2) / 12.0).min(1.0)
    }

    /// The least mean logarithm of a use at any limit, each taken for longer by its error.
    pub fn unloaded(&self) -> Option<f64> {
        let longest =
            |seen: &Seen| Some(seen.uses.ln_mean()? + MARGIN * (self.ln_variance / seen.uses.count).sqrt());
        self.known().filter(|seen| seen.uses.count >= 5.0).filter_map(longest).min_by(f64::total_cmp)
    }

    /// Once a block is full: whether the throughput of this limit is not what it was. The other limits are then scaled to
    /// the change, and little of them is still believed. By how much it is faster, in ln.
    pub fn changed(&mut self) -> Option<f64> {
        let block = self.block;
        if block.completions < BLOCK {
            return None;
        }
        self.block = Seen { limit: block.limit, ..Seen::default() };
        let mut past = self.of(block.limit)?;
        past.completions -= block.completions;
        past.seconds -= block.seconds;
        past.uses.count -= block.uses.count;
        past.uses.ln_sum -= block.uses.ln_sum;
        if past.completions < KEPT || past.seconds <= 0.0 || past.uses.count < KEPT {
            return None;
        }
        let faster = self.ln_ratio(&past, &block);
        if faster.value.abs() <= CHANGED.0.max(CHANGED.1 * faster.error) {
            return None;
        }
        for seen in &mut self.seen {
            seen.keep((KEPT / seen.completions.max(KEPT)).min(1.0));
            seen.seconds *= (-faster.value).exp();
            seen.uses.ln_sum -= faster.value * seen.uses.count;
            if seen.limit == block.limit {
                *seen = block;
            }
        }
        Some(faster.value)
    }

    /// Lets what was seen grow old.
    pub fn decay(&mut self, now: Instant, completions: u64) {
        self.since_decay += completions as f64;
        let decayed = *self.decayed.get_or_insert(now);
        let since = now.saturating_duration_since(decayed);
        if since < Duration::from_secs_f64(DECAY_EVERY) {
            return;
        }
        let since = since.as_secs_f64();
        let half_lives = (since / HALF_LIFE.0).min((self.since_decay / HALF_LIFE.1).max(since / HALF_LIFE.2));
        (self.decayed, self.since_decay) = (Some(now), 0.0);
        let kept = (-half_lives).exp2();
        for seen in &mut self.seen {
            seen.keep(kept);
            if seen.completions + seen.seconds < 0.1 {
                *seen = Seen::default();
            }
        }
    }
}
