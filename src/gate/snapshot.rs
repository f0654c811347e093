//! The public view of a gate.

use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::Inner;
use super::counts::Counts;
use super::dry_run::{DryRun, DryRunLedger};
use super::ledger::{Acquires, Admissions, Queries};
use crate::law::{Decision, Reason};

/// How things stand. Connections, queue and acquires are of one moment, the other ledgers of the next.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Snapshot {
    /// The pool's name.
    pub name: Arc<str>,
    /// All connections: `in_use` + `idle` + `reserve` + `opening` + `closing`, never over `max_size`.
    pub size: usize,
    /// Connections held by callers, and those being settled: never over `limit`, but for what was held when it fell.
    pub in_use: usize,
    /// Connections free to be handed out.
    pub idle: usize,
    /// Connections that are free too, and kept for when the limit rises.
    pub reserve: usize,
    /// Connections being opened.
    pub opening: usize,
    /// Connections thrown away whose server side has not gone yet.
    pub closing: usize,
    /// Waiters.
    pub queue_depth: usize,
    /// How many connections may be in use at once, for now: the controller moves it.
    pub limit: usize,
    /// Lower bound of the limit.
    pub min_limit: usize,
    /// The limit while there is no load.
    pub base_limit: usize,
    /// Connections kept open whatever the load.
    pub min_size: usize,
    /// Upper bound of size and limit.
    pub max_size: usize,
    /// Waiters up to which the layer refuses nothing.
    pub soft_cap: usize,
    /// Upper bound of the queue.
    pub hard_cap: usize,
    /// Smoothed time a connection is held, once known.
    pub use_time: Option<Duration>,
    /// The layer's ledger.
    pub admissions: Admissions,
    /// The gate's ledger.
    pub acquires: Acquires,
    /// The queries' ledger; zeros without a backend that counts queries.
    pub queries: Queries,
    /// Dials that failed so far.
    pub dial_failures: u64,
    /// Connections written off: nothing at all was heard from the server, and the place under the ceiling was
    /// given up as lost. Each is a connection the server may still count.
    pub written_off: u64,
    /// Whether the driver is there, which moves the limit, and answers those whose deadline comes: from build until the pool or its
    /// runtime is gone.
    pub driven: bool,
    /// The last decision that was not [`Reason::Steady`]; in a dry run, what it would have been.
    pub last_decision: Decision,
    /// What a dry run would have done; `None` when this is none.
    pub dry_run: Option<DryRun>,
}

impl Snapshot {
    pub(super) fn new(gate: &Inner, counts: Counts) -> Self {
        Self {
            name: gate.name.clone(),
            size: counts.places,
            in_use: counts.in_use,
            idle: counts.idle,
            reserve: counts.reserve,
            opening: counts.opening,
            closing: counts.closing(),
            queue_depth: counts.queue_depth,
            limit: counts.limit,
            min_limit: counts.min_limit,
            base_limit: counts.base_limit,
            min_size: counts.min_size,
            max_size: counts.max_size,
            soft_cap: gate.soft_cap.load(Relaxed),
            hard_cap: gate.hard_cap.load(Relaxed),
            use_time: counts.use_time,
            admissions: gate.admissions.read(),
            acquires: counts.acquires,
            queries: gate.queries.read(),
            dial_failures: gate.dial_failures.load(Relaxed),
            written_off: gate.written_off.load(Relaxed),
            driven: gate.published.driven(),
            last_decision: *gate.last_decision.lock().unwrap_or_else(PoisonError::into_inner),
            dry_run: gate.dry_run.as_ref().map(DryRunLedger::read),
        }
    }
}

impl Default for Snapshot {
    fn default() -> Self {
        Self {
            name: "".into(),
            size: 0,
            in_use: 0,
            idle: 0,
            reserve: 0,
            opening: 0,
            closing: 0,
            queue_depth: 0,
            limit: 0,
            min_limit: 0,
            base_limit: 0,
            min_size: 0,
            max_size: 0,
            soft_cap: 0,
            hard_cap: 0,
            use_time: None,
            admissions: Admissions::default(),
            acquires: Acquires::default(),
            queries: Queries::default(),
            dial_failures: 0,
            written_off: 0,
            driven: false,
            last_decision: Decision { limit: 0, reason: Reason::Started },
            dry_run: None,
        }
    }
}
