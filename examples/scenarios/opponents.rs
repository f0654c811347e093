//! Who plays: our default, the plain law, fixed sizes, and the usual limiters over the same pool.
//!
//! The limiters are written from the published formulas of Netflix's concurrency-limits
//! (<https://github.com/Netflix/concurrency-limits>, `AIMDLimit`, `VegasLimit`, `Gradient2Limit`) with their published
//! defaults; only the bounds and the first limit are the pool's. They see one sample a tick (10 ms) in which a query ended:
//! its mean time held is their round-trip time, an acquire that timed out or a failed use their drop.

use std::fmt;
use std::str::FromStr;
use std::time::Instant;

use tower_adaptive_pool::simulation::{Mechanism, without};
use tower_adaptive_pool::{Builder, Controller, Decision, PaidGrowth, QueueDepth, Reason, Sample};

use crate::database::Database;
use crate::random::Random;
use crate::scenario::Scenario;

/// Who decides the size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The builder's default.
    Adaptive,
    QueueDepth,
    Aimd,
    Vegas,
    Gradient2,
    Static(usize),
    /// The default without one of its parts.
    Without(&'static str, Mechanism),
}

impl Choice {
    pub const RIVALS: [Self; 5] =
        [Self::Adaptive, Self::QueueDepth, Self::Aimd, Self::Vegas, Self::Gradient2];

    /// Whether it is the default law, in part or whole.
    pub fn is_ours(self) -> bool {
        matches!(self, Self::Adaptive | Self::Without(..))
    }

    /// The controller, for limits that begin at `first`.
    pub fn controller(self, first: usize) -> Box<dyn Controller> {
        let limit = first as f64;
        match self {
            Self::Adaptive | Self::Static(_) => Box::new(PaidGrowth::default().into_controller()),
            Self::Without(_, mechanism) => Box::new(without(mechanism)),
            Self::QueueDepth => Box::new(QueueDepth::default().into_controller()),
            Self::Aimd => Box::new(Limits { limit, rule: Aimd }),
            Self::Vegas => Box::new(Limits { limit, rule: Vegas::default() }),
            Self::Gradient2 => Box::new(Limits { limit, rule: Gradient2::default() }),
        }
    }

    /// Puts the controller in.
    pub fn over(self, builder: Builder<Database>, scenario: &Scenario) -> Builder<Database> {
        let first = scenario.min_size as f64;
        match self {
            Self::Adaptive => builder,
            Self::Static(size) => builder.fixed_size(size),
            Self::Without(_, mechanism) => builder.controller(without(mechanism)),
            Self::QueueDepth => builder.controller(QueueDepth::default()),
            Self::Aimd => builder.controller(Limits { limit: first, rule: Aimd }),
            Self::Vegas => builder.controller(Limits { limit: first, rule: Vegas::default() }),
            Self::Gradient2 => builder.controller(Limits { limit: first, rule: Gradient2::default() }),
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Adaptive => f.write_str("adaptive"),
            Self::QueueDepth => f.write_str("queue_depth"),
            Self::Aimd => f.write_str("aimd"),
            Self::Vegas => f.write_str("vegas"),
            Self::Gradient2 => f.write_str("gradient2"),
            Self::Static(size) => write!(f, "static:{size}"),
            Self::Without(name, _) => write!(f, "without:{name}"),
        }
    }
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(size) = text.strip_prefix("static:").and_then(|size| size.parse().ok())
            && size > 0
        {
            return Ok(Self::Static(size));
        }
        if let Some(part) = text.strip_prefix("without:") {
            let known = Mechanism::ALL.into_iter().find(|(name, _)| *name == part);
            let names = Mechanism::ALL.map(|(name, _)| name).join(", ");
            return known
                .map(|(name, mechanism)| Self::Without(name, mechanism))
                .ok_or(format!("parts are {names}"));
        }
        let named = Self::RIVALS.into_iter().find(|choice| choice.to_string() == text);
        named.ok_or_else(|| "expected adaptive, queue_depth, aimd, vegas, gradient2 or static:N".into())
    }
}

/// What a limiter is told.
struct Seen {
    /// Seconds.
    rtt: f64,
    in_flight: f64,
    dropped: bool,
}

/// From one limit to the next.
trait Rule: Send + 'static {
    fn next(&mut self, limit: f64, seen: &Seen) -> f64;
}

/// A limiter's rule as a controller of the pool's size.
struct Limits<R> {
    limit: f64,
    rule: R,
}

impl<R: Rule> Controller for Limits<R> {
    fn on_sample(&mut self, _: Instant, sample: &Sample) -> Decision {
        let dropped = sample.timeouts > 0 || sample.failures > 0;
        if let Some(use_time) = sample.use_time
            && (sample.completions > 0 || dropped)
        {
            let seen = Seen { rtt: use_time.as_secs_f64(), in_flight: sample.peak_in_use as f64, dropped };
            let next = self.rule.next(self.limit, &seen);
            self.limit = next.clamp(sample.min_limit as f64, sample.max_size as f64);
        }
        Decision { limit: self.limit as usize, reason: Reason::Custom("limiter") }
    }
}

/// One more for each sample without a drop, 0.9 times after one (or after 5 s). Growth needs half of the limit in use.
struct Aimd;

impl Rule for Aimd {
    fn next(&mut self, limit: f64, seen: &Seen) -> f64 {
        if seen.dropped || seen.rtt > 5.0 {
            (limit * 0.9).floor().min(limit - 1.0)
        } else if seen.in_flight * 2.0 >= limit {
            limit + 1.0
        } else {
            limit
        }
    }
}

/// Reads the queue in the server from the shortest round trip (Brakmo and Peterson, 1994), with steps of log₁₀ of the limit;
/// forgets the shortest after 15 to 30 times the limit in samples.
struct Vegas {
    shortest: f64,
    samples: f64,
    jitter: f64,
    random: Random,
}

impl Default for Vegas {
    fn default() -> Self {
        Self { shortest: f64::INFINITY, samples: 0.0, jitter: 0.75, random: Random::new(0, "vegas") }
    }
}

impl Rule for Vegas {
    fn next(&mut self, limit: f64, seen: &Seen) -> f64 {
        self.samples += 1.0;
        if self.jitter * 30.0 * limit <= self.samples {
            (self.samples, self.jitter) = (0.0, 0.5 + self.random.uniform() / 2.0);
            self.shortest = seen.rtt;
            return limit;
        }
        if seen.rtt < self.shortest {
            self.shortest = seen.rtt;
            return limit;
        }
        let step = limit.log10().floor().max(1.0);
        let queue = (limit * (1.0 - self.shortest / seen.rtt)).ceil();
        if seen.dropped {
            limit - step
        } else if seen.in_flight * 2.0 < limit {
            limit
        } else if queue <= step {
            limit + 6.0 * step
        } else if queue < 3.0 * step {
            limit + step
        } else if queue > 6.0 * step {
            limit - step
        } else {
            limit
        }
    }
}

/// Compares the round trip with its own long mean (600 samples, the first ten averaged plainly), tolerates 1.5 times it, and
/// allows a queue of 4; a fifth of the way at each sample.
#[derive(Default)]
struct Gradient2 {
    mean: f64,
    samples: f64,
}

impl Rule for Gradient2 {
    fn next(&mut self, limit: f64, seen: &Seen) -> f64 {
        self.samples += 1.0;
        let weight = if self.samples <= 10.0 { 1.0 / self.samples } else { 2.0 / 601.0 };
        self.mean += weight * (seen.rtt - self.mean);
        let ratio = self.mean / seen.rtt;
        if ratio > 2.0 {
            self.mean *= 0.95;
        }
        if seen.in_flight < limit / 2.0 {
            return limit;
        }
        let gradient = (1.5 * ratio).clamp(0.5, 1.0);
        0.8 * limit + 0.2 * (limit * gradient + 4.0)
    }
}
