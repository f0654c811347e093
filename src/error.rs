//! What can go wrong, typed, with codes that stay the same from release to release.

use std::error::Error;
use std::fmt;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use crate::law::Reason;
use crate::terms::Class;

#[cfg(feature = "postgres")]
pub(crate) mod query;
#[cfg(feature = "postgres")]
pub use query::QueryError;
pub(crate) mod response;

/// A backend's error, shared: one failed dial can answer several waiters.
pub type SharedError = Arc<dyn Error + Send + Sync + 'static>;

/// A request that was refused at once, because it could not have been served in time.
///
/// The layer turns it into a response and puts it into that response's extensions, where an outer layer finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Shed {
    /// Why.
    pub reason: ShedReason,
    /// How long until it pays to come back: whole seconds, from 1 to `max_retry_after`, with a jitter of its own for each
    /// refusal.
    pub retry_after: Duration,
    /// Waiters at that moment.
    pub queue_depth: usize,
    /// The class it was refused in.
    pub class: Class,
}

impl fmt::Display for Shed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { reason, retry_after, queue_depth, .. } = self;
        let told = retry_after.as_secs();
        write!(f, "refused ({reason}): {queue_depth} waiting; come back in {told} s")
    }
}

impl Error for Shed {}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ShedReason {
    /// The queue is between `soft_cap` and `hard_cap`, and the draw fell on this request.
    SoftCap,
    /// The queue holds `hard_cap` waiters.
    HardCap,
    /// The wait to be expected would use up the request's time: `acquire_timeout`, or its own deadline.
    EstimatedWait,
    /// The request's deadline had passed when it came.
    Expired,
    /// A retry, and retries make up more than a tenth of the first attempts already.
    RetryBudget,
    /// `try_acquire` found no free connection: it never waits.
    NoneIdle,
    /// The pool is being drained or is gone.
    Draining,
}

impl ShedReason {
    /// A stable code for telemetry and clients, in snake case.
    pub fn code(self) -> &'static str {
        match self {
            Self::SoftCap => "soft_cap",
            Self::HardCap => "hard_cap",
            Self::EstimatedWait => "estimated_wait",
            Self::Expired => "expired",
            Self::RetryBudget => "retry_budget",
            Self::NoneIdle => "none_idle",
            Self::Draining => "draining",
        }
    }
}

impl fmt::Display for ShedReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// An acquire that got no connection.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum AcquireError {
    /// Refused at once: the queue is full, or `try_acquire` found nothing free.
    Shed(Shed),
    /// The deadline came first.
    Timeout(Box<AcquireTimeout>),
    /// No connection is open, a dial failed, and the next one begins after the deadline: waiting would not help. Under
    /// `fail_fast` whenever the deadline is.
    Dial(SharedError),
    /// The pool was drained.
    Closed,
}

/// How things stood when an acquire ran into its deadline.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AcquireTimeout {
    /// How long it waited.
    pub waited: Duration,
    /// Connections held by others at the end.
    pub in_use: usize,
    /// All connections at the end.
    pub size: usize,
    /// How many might be in use at once, at the end.
    pub limit: usize,
    /// The most that the limit can be.
    pub max_size: usize,
    /// Why the limit was not at `max_size`; `None` when it was, or when fewer were in use than it allows: then connections were
    /// missing.
    pub not_growing: Option<Reason>,
    /// Others still waiting.
    pub queue_depth: usize,
    /// It was the request's own deadline that came, before `acquire_timeout` had passed.
    pub by_request: bool,
    /// The connection that had been held for the longest time, if any was held.
    pub oldest_hold: Option<Hold>,
    /// Why no connection could be opened, when dialing is what failed.
    pub dial_error: Option<SharedError>,
}

/// A connection in somebody's hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hold {
    /// For how long, to within 10 ms.
    pub held: Duration,
    /// Where it was acquired.
    pub acquired_at: &'static Location<'static>,
}

impl AcquireError {
    /// A stable code, as telemetry's `error.type` has it.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Shed(_) => "pool_shed",
            Self::Timeout(timeout) if timeout.dial_error.is_some() => "pool_dial_timeout",
            Self::Timeout(_) => "pool_wait_timeout",
            Self::Dial(_) => "pool_dial_failed",
            Self::Closed => "pool_closed",
        }
    }
}

impl fmt::Display for AcquireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shed(shed) => shed.fmt(f),
            Self::Timeout(timeout) => timeout.fmt(f),
            Self::Dial(error) => write!(f, "no connection could be opened: {error}"),
            Self::Closed => f.write_str("the pool is closed"),
        }
    }
}

impl fmt::Display for AcquireTimeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { waited, in_use, limit, max_size, queue_depth, by_request, .. } = self;
        let whose = if *by_request { "the request's deadline" } else { "acquire_timeout" };
        write!(f, "no connection within {waited:?} ({whose}): {in_use} of at most {max_size} in use; ")?;
        match &self.not_growing {
            Some(reason) if reason.is_growth() => write!(f, "the limit, {limit} now, grows: {reason}; ")?,
            Some(reason) => write!(f, "not growing: {reason}; ")?,
            None => {}
        }
        write!(f, "{queue_depth} others waiting")?;
        if let Some(Hold { held, acquired_at }) = &self.oldest_hold {
            write!(f, "; the oldest has been held for {held:?}, acquired at {acquired_at}")?;
        }
        match &self.dial_error {
            Some(error) => write!(f, "; the last dial failed: {error}"),
            None => Ok(()),
        }
    }
}

impl Error for AcquireError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Dial(error) => Some(error.as_ref()),
            Self::Timeout(timeout) => Some(timeout.dial_error.as_ref()?.as_ref()),
            Self::Shed(_) | Self::Closed => None,
        }
    }
}

/// Fewer than `min_size` connections could be opened in time.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct NotReady {
    /// Connections that are open.
    pub open: usize,
    /// Connections that should be.
    pub min_size: usize,
    /// Why the last dial failed, if one did.
    pub error: Option<SharedError>,
}

impl fmt::Display for NotReady {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { open, min_size, error } = self;
        write!(f, "{open} of {min_size} connections (min_size) could be opened")?;
        match error {
            Some(error) => write!(f, ": {error}"),
            None => f.write_str(": no more were opened within dial_timeout"),
        }
    }
}

impl Error for NotReady {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.error.as_ref().map(|error| &**error as &(dyn Error + 'static))
    }
}

/// [`drain`](crate::AdaptivePool::drain) ran into its deadline with connections still open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DrainTimeout {
    /// Connections still held by callers.
    pub in_use: usize,
    /// Dials still under way.
    pub opening: usize,
    /// Connections whose server side has not gone yet.
    pub closing: usize,
}

impl fmt::Display for DrainTimeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { in_use, opening, closing } = self;
        write!(
            f,
            "drain's deadline came with {in_use} connections in use, {opening} opening and {closing} closing"
        )
    }
}

impl Error for DrainTimeout {}
