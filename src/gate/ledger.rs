//! What happened, counted once. The sums are exact whenever nothing is under way.

use std::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

/// The layer's verdicts: `arrivals` = `admitted` + `shed`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Admissions {
    /// Requests that reached the layer.
    pub arrivals: u64,
    /// Requests passed on to the inner service.
    pub admitted: u64,
    /// Requests answered with a refusal.
    pub shed: u64,
}

/// The gate's acquires. A server's 503s are the layer's `shed` + `shed` here + `failed`, its acquires' 504s `timed_out`.
///
/// `started` = `granted` + `shed` + `timed_out` + `cancelled` + `failed` + `waiting`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Acquires {
    /// Calls of `acquire` and `try_acquire`.
    pub started: u64,
    /// Calls that got a connection.
    pub granted: u64,
    /// Calls refused at once: `hard_cap` reached, or nothing free for `try_acquire`.
    pub shed: u64,
    /// Calls that ran into their deadline.
    pub timed_out: u64,
    /// Calls dropped by their caller, also those dropped after a connection was set aside for them.
    pub cancelled: u64,
    /// Calls answered by a failed dial or a closed pool.
    pub failed: u64,
}

impl Acquires {
    /// Calls under way.
    pub fn waiting(&self) -> u64 {
        self.started - (self.granted + self.shed + self.timed_out + self.cancelled + self.failed)
    }
}

/// Queries: `started` = `ok` + `failed` + `timed_out` + `cancelled` + those running.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Queries {
    /// Queries sent.
    pub started: u64,
    /// Queries that brought their result.
    pub ok: u64,
    /// Queries the server refused, or whose connection was lost.
    pub failed: u64,
    /// Queries that ran into `query_timeout`.
    pub timed_out: u64,
    /// Queries whose future was dropped.
    pub cancelled: u64,
}

/// The layer's counters.
#[derive(Debug, Default)]
pub(crate) struct AdmissionLedger {
    admitted: AtomicU64,
    shed: AtomicU64,
}

impl AdmissionLedger {
    pub fn admitted(&self) {
        self.admitted.fetch_add(1, Relaxed);
    }

    pub fn shed(&self) {
        self.shed.fetch_add(1, Relaxed);
    }

    pub fn read(&self) -> Admissions {
        let (admitted, shed) = (self.admitted.load(Relaxed), self.shed.load(Relaxed));
        Admissions { arrivals: admitted + shed, admitted, shed }
    }
}

/// How a query ended.
#[cfg_attr(not(feature = "postgres"), allow(dead_code, reason = "only PostgreSQL has queries"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QueryEnd {
    Ok,
    Failed,
    TimedOut,
    Cancelled,
}

/// The queries' counters.
#[derive(Debug, Default)]
pub(crate) struct QueryLedger {
    started: AtomicU64,
    ok: AtomicU64,
    failed: AtomicU64,
    timed_out: AtomicU64,
    cancelled: AtomicU64,
}

#[cfg_attr(not(feature = "postgres"), allow(dead_code, reason = "only PostgreSQL has queries"))]
impl QueryLedger {
    pub fn started(&self) {
        self.started.fetch_add(1, Relaxed);
    }

    pub fn ended(&self, end: QueryEnd) {
        let counter = match end {
            QueryEnd::Ok => &self.ok,
            QueryEnd::Failed => &self.failed,
            QueryEnd::TimedOut => &self.timed_out,
            QueryEnd::Cancelled => &self.cancelled,
        };
        counter.fetch_add(1, Release);
    }

    pub fn read(&self) -> Queries {
        // What ended is read before what began, so that no more seem to have ended than began: Acquire pairs with the
        // Release of `ended`.
        let (ok, failed) = (self.ok.load(Acquire), self.failed.load(Acquire));
        let (timed_out, cancelled) = (self.timed_out.load(Acquire), self.cancelled.load(Acquire));
        Queries { started: self.started.load(Relaxed), ok, failed, timed_out, cancelled }
    }
}
