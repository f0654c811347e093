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
            share: 1.0,
        }
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
    /// The queue asks for growth, and the load needs more connections by Little's law, but nothing was seen yet of what
    /// more connections bring: the limit grows, and looks. In a dry run evidence from other limits is always missing, so this
    /// is all it can say.
    Unproven {
        /// Waiters.
        queue_depth: usize,
        /// Until somebody who came now would be served.
        estimated_wait: Duration,
        /// Connections the load needs, if the database can bear them.
        needed: usize,
    },
    /// The queue asks for growth, but the load does not need more by Little's law, and this limit has not been reached
    /// for long enough to be judged, or no smaller one to be compared with.
    GatheringEvidence {
        /// Waiters.
        queue_depth: usize,
        /// Until somebody who came now would be served.
        estimated_wait: Duration,
    },
    /// The queue asks for growth, and growth so far did not pay.
    NotPaying {
        /// Waiters.
        queue_depth: usize,
        /// How throughput followed the limit, as in [`GrowthPays`](Self::GrowthPays).
        elasticity: f64,
        /// Its standard error.
        error: f64,
    },
    /// The queue asks for growth, and the next limit was seen not to pay.
    Ceiling {
        /// Waiters.
        queue_depth: usize,
        /// The smallest limit seen not to pay.
        ceiling: usize,
        /// When it is tried again.
        expires_in: Duration,
    },
    /// A smaller limit was shown to do as much: growth is taken back.
    TakenBack {
        /// How throughput followed the limit between the two.
        elasticity: f64,
        /// Its standard error.
        error: f64,
        /// The smallest limit seen not to pay.
        ceiling: usize,
        /// When it is tried again.
        expires_in: Duration,
    },
    /// A limit 15 % or more away is tried for a moment.
    Probe {
        /// From this limit.
        from: usize,
        /// To this one.
        to: usize,
    },
    /// A limit less than 15 % away is tried.
    Adjusting {
        /// From this limit.
        from: usize,
        /// To this one.
        to: usize,
    },
    /// A limit that was tried is worth more than the one before: it stays.
    TrialKept {
        /// From this limit.
        from: usize,
        /// To this one.
        to: usize,
    },
    /// A limit that was tried is not worth more than the one before: it goes back there.
    TrialEnded {
        /// From the limit that was tried.
        from: usize,
        /// To the one before.
        to: usize,
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
            Self::Unproven { .. } => "unproven",
            Self::GatheringEvidence { .. } => "gathering_evidence",
            Self::NotPaying { .. } => "not_paying",
            Self::Ceiling { .. } => "ceiling",
            Self::TakenBack { .. } => "taken_back",
            Self::Probe { .. } => "probe",
            Self::Adjusting { .. } => "adjusting",
            Self::TrialKept { .. } => "trial_kept",
            Self::TrialEnded { .. } => "trial_ended",
            Self::Vetoed { .. } => "vetoed",
            Self::Drained { .. } => "drained",
            Self::Rested => "rested",
            Self::ServerFull => "server_full",
            Self::BoundsChanged => "bounds_changed",
            Self::ControllerPanicked => "controller_panicked",
            Self::Custom(code) => code,
        }
    }

    /// Whether it made the limit grow.
    pub(crate) fn is_growth(&self) -> bool {
        matches!(self, Self::QueueOverThreshold { .. } | Self::GrowthPays { .. } | Self::Unproven { .. })
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
            Self::Unproven { needed, .. } => write!(f, "{needed} seem to be needed"),
            Self::GatheringEvidence { .. } => f.write_str("too little is known of this limit"),
            Self::NotPaying { elasticity, error, .. } => {
                write!(f, "more connections brought no more (elasticity {elasticity:.2} ± {error:.2})")
            }
            Self::Ceiling { ceiling, expires_in, .. } => {
                write!(f, "{ceiling} were seen to bring no more; tried again in {expires_in:.1?}")
            }
            Self::TakenBack { ceiling, expires_in, .. } => {
                write!(f, "fewer do as much; {ceiling} are tried again in {expires_in:.1?}")
            }
            Self::Probe { from, to } | Self::Adjusting { from, to } => {
                write!(f, "{to} are tried instead of {from}")
            }
            Self::TrialKept { from, to } => write!(f, "{to} do more than {from}"),
            Self::TrialEnded { from, to } => write!(f, "{from} did no more than {to}"),
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
