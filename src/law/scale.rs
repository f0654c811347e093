//! What a controller sees and says.

use std::time::{Duration, Instant};

/// Decides the size the pool should have. The driver asks it once a tick (10 ms) while there is work, and never while
/// the pool is at rest.
///
/// A controller is a law: it must take the time from `now` and everything else from the sample. What it answers is
/// clamped to `min_size ..= max_size`, so a law cannot break the ceiling.
pub trait Controller: Send + 'static {
    /// The target for this sample, and why.
    fn on_sample(&mut self, now: Instant, sample: &Sample) -> Decision;
}

/// What happened since the sample before, and how things stand now.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Sample {
    /// Waiters now.
    pub queue_depth: usize,
    /// Connections held now.
    pub in_use: usize,
    /// The most connections held at once since the last sample.
    pub peak_in_use: usize,
    /// Connections free now.
    pub idle: usize,
    /// Connections being opened now.
    pub opening: usize,
    /// The size desired so far.
    pub target: usize,
    /// Lower bound of the target.
    pub min_size: usize,
    /// Upper bound of the target.
    pub max_size: usize,
    /// Waiters at which acquires are refused: the queue is never longer.
    pub hard_cap: usize,
    /// Acquires begun since the last sample.
    pub arrivals: u64,
    /// Requests that the layer refused since the last sample: more would have arrived.
    pub refused: u64,
    /// Connections given back since the last sample.
    pub completions: u64,
    /// Uses that were told to have failed ([`Connection::failed`](crate::Connection::failed),
    /// [`Permit::failed`](crate::Permit::failed)) since the last sample, and queries that PostgreSQL answered with an error
    /// of its own: out of resources, shut down, a system error. Counted when told: one sample may see the failure, the next
    /// the completion.
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
            in_use: 0,
            peak_in_use: 0,
            idle: 0,
            opening: 0,
            target: 0,
            min_size: 0,
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
    /// The size the pool should have, in connections.
    pub target: usize,
    /// Why.
    pub reason: Reason,
}

/// Why the target is what it is, with the figures it was decided from.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Reason {
    /// Nothing was decided yet: the pool starts at `min_size`.
    Started,
    /// Nothing asks for a change.
    Steady,
    /// The queue reached the threshold: the pool grows.
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
    /// The queue asks for growth, and growth so far paid, or a larger size was seen to pay: the pool grows.
    GrowthPays {
        /// Waiters.
        queue_depth: usize,
        /// Until somebody who came now would be served.
        estimated_wait: Duration,
        /// How throughput followed size: 1 when twice the connections did twice the work, 0 when they did the same. Of
        /// the whole database, where this instance has a share of it.
        elasticity: f64,
        /// Its standard error.
        error: f64,
    },
    /// The queue asks for growth, and the load needs more connections by Little's law, but nothing was seen yet of what
    /// more connections bring: the pool grows, and looks. In a dry run evidence from resizing is always missing, so this
    /// is all it can say.
    Unproven {
        /// Waiters.
        queue_depth: usize,
        /// Until somebody who came now would be served.
        estimated_wait: Duration,
        /// Connections the load needs, if the database can bear them.
        needed: usize,
    },
    /// The queue asks for growth, but the load does not need more by Little's law, and this size has not been saturated
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
        /// How throughput followed size, as in [`GrowthPays`](Self::GrowthPays).
        elasticity: f64,
        /// Its standard error.
        error: f64,
    },
    /// The queue asks for growth, and the next size was seen not to pay.
    Ceiling {
        /// Waiters.
        queue_depth: usize,
        /// The smallest size seen not to pay.
        ceiling: usize,
        /// When it is tried again.
        expires_in: Duration,
    },
    /// A smaller size was shown to do as much: growth is taken back.
    TakenBack {
        /// How throughput followed size between the two.
        elasticity: f64,
        /// Its standard error.
        error: f64,
        /// The smallest size seen not to pay.
        ceiling: usize,
        /// When it is tried again.
        expires_in: Duration,
    },
    /// A size 15 % or more away is tried for a moment.
    Probe {
        /// From this size.
        from: usize,
        /// To this one.
        to: usize,
    },
    /// A size less than 15 % away is tried.
    Adjusting {
        /// From this size.
        from: usize,
        /// To this one.
        to: usize,
    },
    /// A size that was tried is worth more than the one before: the pool stays there.
    TrialKept {
        /// From this size.
        from: usize,
        /// To this one.
        to: usize,
    },
    /// A size that was tried is not worth more than the one before: the pool goes back there.
    TrialEnded {
        /// From the size that was tried.
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
        /// Acquires that ran into their deadline.
        timeouts: u64,
        /// Uses that failed.
        failures: u64,
    },
    /// Nobody waited for a while: the pool shrinks towards what was used.
    Drained {
        /// The most connections held at once in that while.
        peak_in_use: usize,
    },
    /// Connections were idle for longer than `idle_timeout`.
    IdleTimeout {
        /// How many were closed.
        closed: usize,
    },
    /// The server refused a connection because it has too many: the pool stays with what it has.
    ServerFull,
    /// The bounds were changed.
    BoundsChanged,
    /// The controller panicked: the target stays.
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
            Self::IdleTimeout { .. } => "idle_timeout",
            Self::ServerFull => "server_full",
            Self::BoundsChanged => "bounds_changed",
            Self::ControllerPanicked => "controller_panicked",
            Self::Custom(code) => code,
        }
    }
}
