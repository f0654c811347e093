//! What a controller sees and says.

use std::fmt;
use std::time::{Duration, Instant};

/// Decides how many connections may be in use at once. The driver asks it once a tick (10 ms) while there is work, and
/// never while the pool is at rest: nothing is in use or awaited, and the limit is `base_limit`. A controller should lead it
/// back there when the load is gone.
///
/// A controller is a law: it must take the time from `now` and everything else from the sample. What it answers is
/// clamped to `min_limit ..= max_size`, so a law cannot break the ceiling.
pub trait Controller: Send + 'static {
    /// The limit for this sample, and why.
    fn on_sample(&mut self, now: Instant, sample: &Sample) -> Decision;
}

/// What happened since the sample before, and how things stand now.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Sample {
    /// Waiters now.
    pub queue_depth: usize,
    /// Somebody of them has waited for a twentieth of their time, but for 20 ms at least, or for a second.
    pub impatient: bool,
    /// Connections held now.
    pub in_use: usize,
    /// The most connections held at once since the last sample.
    pub peak_in_use: usize,
    /// Connections free now, and within the limit.
    pub idle: usize,
    /// Connections free now beyond it: a higher limit has them at once, without a dial.
    pub reserve: usize,
    /// Connections being opened now.
    pub opening: usize,
    /// How many connections may be in use at once so far.
    pub limit: usize,
    /// Lower bound of the limit.
    pub min_limit: usize,
    /// The limit while there is no load: lack of load alone should not take it lower.
    pub base_limit: usize,
    /// Upper bound of the limit.
    pub max_size: usize,
    /// Waiters at which acquires are refused: the queue is never longer.
    pub hard_cap: usize,
    /// Acquires begun since the last sample.
    pub arrivals: u64,
    /// Requests that the layer refused since the last sample: more would have arrived.
    pub refused: u64,
    /// Connections given back since the last sample.
    pub completions: u64,
    /// Uses that failed since the last sample, each counted once: that were told to have
    /// ([`Connection::failed`](crate::Connection::failed), [`Permit::failed`](crate::Permit::failed)), or one of whose queries
    /// PostgreSQL answered with an error of its own (out of resources, shut down, a system error). Counted when told: one
    /// sample may see the failure, the next the completion.
    pub failures: u64,
    /// Acquires that ran into their deadline since the last sample.
    pub timeouts: u64,
    /// Dials that failed since the last sample.
    pub dial_failures: u64,
    /// Smoothed time a connection is held, once known.
    pub use_time: Option<Duration>,
    /// How far those times scatter: their variance in squares of the mean. 1 for exponential ones, 25 where one query in a
    /// hundred takes a hundred times as long.
    pub use_time_scatter: f64,
    /// The times of the uses that ended since the last sample, as far as they were measured.
    pub use_times: UseTimes,
    /// This instance's share of the load on the database, over 0 and up to 1: 0.25 for one of four.
    pub share: f64,
}

impl Default for Sample {
    fn default() -> Self {
        Self {
            queue_depth: 0,
            impatient: false,
            in_use: 0,
            peak_in_use: 0,
            idle: 0,
            reserve: 0,
            opening: 0,
            limit: 0,
            min_limit: 0,
            base_limit: 0,
            max_size: 0,
            hard_cap: 0,
            arrivals: 0,
            refused: 0,
            completions: 0,
            failures: 0,
            timeouts: 0,
            dial_failures: 0,
            use_time: None,
            use_time_scatter: 1.0,
            use_times: UseTimes::default(),
            share: 1.0,
        }
    }
}

impl Sample {
    /// Whether it can be true: no number that is none, no size or count beyond reason, no more uses measured than ended.
    pub(crate) fn is_sane(&self) -> bool {
        let Self { use_times: UseTimes { count, ln_sum, ln_squares }, use_time_scatter, .. } = *self;
        let sizes = [self.queue_depth, self.in_use, self.peak_in_use, self.idle, self.reserve, self.opening];
        let counts = [self.arrivals, self.refused, self.completions, self.failures, self.timeouts];
        let most = u64::from(u32::MAX);
        sizes.iter().chain([&self.limit, &self.max_size]).all(|&size| size as u64 <= most)
            && counts.iter().chain([&self.dial_failures]).all(|&count| count <= most)
            && self.limit > 0
            && self.min_limit <= self.max_size
            && [count, ln_sum, ln_squares, use_time_scatter].iter().all(|number| number.is_finite())
            && (0.0..=self.completions as f64).contains(&count)
            && use_time_scatter >= 0.0
    }
}

/// Logarithms of use times: a database that is twice as slow adds ln 2 to each, however long and short queries are mixed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct UseTimes {
    /// How many were measured.
    pub count: f64,
    /// The sum of ln(seconds).
    pub ln_sum: f64,
    /// The sum of their squares.
    pub ln_squares: f64,
}

impl UseTimes {
    /// Takes in a use of so many seconds; none of zero.
    pub fn add(&mut self, seconds: f64) {
        if seconds > 0.0 {
            let ln = seconds.ln();
            self.count += 1.0;
            self.ln_sum += ln;
            self.ln_squares += ln * ln;
        }
    }

    /// The mean logarithm; none without a measurement.
    pub fn ln_mean(&self) -> Option<f64> {
        (self.count > 0.0).then(|| self.ln_sum / self.count)
    }

    pub(crate) fn merge(&mut self, more: &Self) {
        self.count += more.count;
        self.ln_sum += more.ln_sum;
        self.ln_squares += more.ln_squares;
    }

    pub(crate) fn keep(&mut self, part: f64) {
        self.count *= part;
        self.ln_sum *= part;
        self.ln_squares *= part;
    }
}

/// A controller's answer.
#[derive(Clone, Copy, Debug, PartialEq)]
#[must_use]
pub struct Decision {
    /// How many connections may be in use at once.
    pub limit: usize,
    /// Why.
    pub reason: Reason,
}

/// What the default law is doing: the state that a [`Reason`] belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// Requests wait: the limit grows towards what the load needs, as long as growth pays.
    FollowDemand,
    /// Requests wait, and the limit stays: growth does not pay, or it is not known yet whether it does.
    Hold,
    /// Another limit is tried.
    Probe,
    /// Nobody waits: the limit falls towards what is used.
    Shrink,
}

/// Why the limit is what it is, with the figures it was decided from.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Reason {
    /// Nothing was decided yet: the limit starts at `base_limit`.
    Started,
    /// Nothing asks for a change.
    Steady,
    /// The queue reached the threshold, or somebody waits for long: the limit grows.
    QueueOverThreshold {
        /// Waiters.
        queue_depth: usize,
        /// The law's threshold, in waiters.
        threshold: usize,
    },
    /// The queue asks for growth, but the last growth is too recent to have shown its effect.
    Cooldown {
        /// Waiters.
        queue_depth: usize,
        /// How long growth has still to wait.
        remaining: Duration,
    },
    /// The queue asks for growth, and `max_size` forbids it.
    AtMaxSize {
        /// Waiters.
        queue_depth: usize,
    },
    /// The queue asks for growth, and growth so far paid, or a larger limit was seen to pay: the limit grows.
    GrowthPays {
        /// Waiters.
        queue_depth: usize,
        /// Until somebody who came now would be served.
        estimated_wait: Duration,
        /// How throughput followed the limit: 1 when twice the connections did twice the work, 0 when they did the same. Of
        /// the whole database, where this instance has a share of it.
        elasticity: f64,
        /// Its standard error.
        error: f64,
    },
    /// The queue asks for growth, and the load needs more connections by Little's law, or nothing ends: the limit grows. Nothing
    /// was seen yet of what more connections bring; in a dry run evidence from other limits is always missing, so this is all it
    /// can say.
    FollowDemand {
        /// Waiters.
        queue_depth: usize,
        /// Until somebody who came now would be served.
        estimated_wait: Duration,
        /// Connections the load needs, if the database can bear them.
        needed: usize,
    },
    /// The queue asks for growth, but too few uses have ended at this limit to judge it.
    GatheringEvidence {
        /// Waiters.
        queue_depth: usize,
        /// Until somebody who came now would be served.
        estimated_wait: Duration,
    },
    /// The queue asks for growth, and growth so far did not pay: the limit stays.
    NotPaying {
        /// Waiters.
        queue_depth: usize,
        /// How throughput followed the limit, as in [`GrowthPays`](Self::GrowthPays).
        elasticity: f64,
        /// Its standard error.
        error: f64,
    },
    /// A smaller limit was seen to be worth more: the limit falls to it.
    TakenBack {
        /// From this limit.
        from: usize,
        /// To this one.
        to: usize,
        /// How throughput followed the limit between the two.
        elasticity: f64,
        /// Its standard error.
        error: f64,
    },
    /// Another limit is tried.
    Probe {
        /// From this limit.
        from: usize,
        /// To this one.
        to: usize,
    },
    /// The limit that was tried is worth more than the one before: it stays.
    ProbeKept {
        /// From this limit.
        from: usize,
        /// To this one.
        to: usize,
        /// What is believed of the elasticity between the two.
        elasticity: f64,
        /// Its standard error.
        error: f64,
    },
    /// The limit that was tried is not worth more than the one before: it goes back there.
    ProbeEnded {
        /// From the limit that was tried.
        from: usize,
        /// To the one before.
        to: usize,
        /// What is believed of the elasticity between the two; its error is infinite where nothing was seen.
        elasticity: f64,
        /// Its standard error.
        error: f64,
    },
    /// The queue asks for growth, but something else is wrong, and more connections would not help.
    Vetoed {
        /// Waiters.
        queue_depth: usize,
        /// Dials that failed.
        dial_failures: u64,
        /// Uses that failed.
        failures: u64,
    },
    /// Nobody waited for a while: the limit shrinks towards what was used.
    Drained {
        /// The most connections held at once in that while.
        peak_in_use: usize,
    },
    /// Nobody waited for a while, and the limit was below `base_limit`: it goes back there.
    Rested,
    /// The server refused a connection because it has too many: the limit is what is open.
    ServerFull,
    /// The bounds were changed.
    BoundsChanged,
    /// The controller panicked: the limit stays.
    ControllerPanicked,
    /// A controller of the user's own decided, in its own words.
    Custom(&'static str),
}

impl Reason {
    /// A stable code for telemetry, in snake case.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Steady => "steady",
            Self::QueueOverThreshold { .. } => "queue_over_threshold",
            Self::Cooldown { .. } => "cooldown",
            Self::AtMaxSize { .. } => "at_max_size",
            Self::GrowthPays { .. } => "growth_pays",
            Self::FollowDemand { .. } => "follow_demand",
            Self::GatheringEvidence { .. } => "gathering_evidence",
            Self::NotPaying { .. } => "not_paying",
            Self::TakenBack { .. } => "taken_back",
            Self::Probe { .. } => "probe",
            Self::ProbeKept { .. } => "probe_kept",
            Self::ProbeEnded { .. } => "probe_ended",
            Self::Vetoed { .. } => "vetoed",
            Self::Drained { .. } => "drained",
            Self::Rested => "rested",
            Self::ServerFull => "server_full",
            Self::BoundsChanged => "bounds_changed",
            Self::ControllerPanicked => "controller_panicked",
            Self::Custom(code) => code,
        }
    }

    /// What the default law is doing; none where another one, or the pool itself, decided.
    pub fn phase(&self) -> Option<Phase> {
        match self {
            Self::FollowDemand { .. } | Self::GrowthPays { .. } => Some(Phase::FollowDemand),
            Self::GatheringEvidence { .. }
            | Self::NotPaying { .. }
            | Self::TakenBack { .. }
            | Self::ProbeKept { .. }
            | Self::ProbeEnded { .. }
            | Self::AtMaxSize { .. }
            | Self::Cooldown { .. }
            | Self::Vetoed { .. } => Some(Phase::Hold),
            Self::Probe { .. } => Some(Phase::Probe),
            Self::Drained { .. } | Self::Rested => Some(Phase::Shrink),
            _ => None,
        }
    }

    /// Whether it made the limit grow.
    pub(crate) fn is_growth(&self) -> bool {
        matches!(self, Self::QueueOverThreshold { .. } | Self::GrowthPays { .. } | Self::FollowDemand { .. })
    }
}

/// One clause, in words, for the error of an acquire that waited in vain.
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started => f.write_str("nothing was decided yet"),
            Self::Steady => f.write_str("nothing asked for it"),
            Self::QueueOverThreshold { queue_depth, .. } => write!(f, "{queue_depth} waited"),
            Self::Cooldown { remaining, .. } => {
                write!(f, "the last growth is too recent, the next is {remaining:?} away")
            }
            Self::AtMaxSize { .. } => f.write_str("the limit is max_size"),
            Self::GrowthPays { elasticity, error, .. } => {
                write!(f, "more connections bring more (elasticity {elasticity:.2} ± {error:.2})")
            }
            Self::FollowDemand { needed, .. } => write!(f, "{needed} seem to be needed"),
            Self::GatheringEvidence { .. } => f.write_str("too little is known of this limit"),
            Self::NotPaying { elasticity, error, .. } => {
                write!(f, "more connections brought no more (elasticity {elasticity:.2} ± {error:.2})")
            }
            Self::TakenBack { from, to, elasticity, error } => {
                write!(f, "{from} brought no more than {to} (elasticity {elasticity:.2} ± {error:.2})")
            }
            Self::Probe { from, to } => write!(f, "{to} are tried instead of {from}"),
            Self::ProbeKept { from, to, .. } => write!(f, "{to} do more than {from}"),
            Self::ProbeEnded { from, to, .. } => write!(f, "{from} did no more than {to}"),
            Self::Vetoed { dial_failures, failures, .. } => {
                write!(f, "{dial_failures} dials and {failures} uses failed")
            }
            Self::Drained { peak_in_use } => {
                write!(f, "nobody had waited, with at most {peak_in_use} in use")
            }
            Self::Rested => f.write_str("nobody had waited"),
            Self::ServerFull => f.write_str("the server has too many connections"),
            Self::BoundsChanged => f.write_str("its bounds were changed"),
            Self::ControllerPanicked => f.write_str("the controller panicked"),
            Self::Custom(code) => f.write_str(code),
        }
    }
}
