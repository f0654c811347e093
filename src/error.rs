//! What can go wrong, typed, with codes that stay the same from release to release.

use std::error::Error;
use std::fmt;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "postgres")]
use tokio_postgres::error::SqlState;

use crate::terms::Class;

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
    /// How long until it pays to come back: whole seconds, 1 to 120, with a jitter of its own for each refusal.
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
    Timeout(AcquireTimeout),
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
            Self::Timeout(AcquireTimeout { dial_error: Some(_), .. }) => "pool_dial_timeout",
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
        let Self { waited, in_use, size, queue_depth, by_request, oldest_hold, dial_error } = self;
        let limit = if *by_request { "the request's deadline" } else { "acquire_timeout" };
        write!(
            f,
            "no connection within {waited:?} ({limit}): {in_use} of {size} connections in use, \
             {queue_depth} others waiting"
        )?;
        if let Some(Hold { held, acquired_at }) = oldest_hold {
            write!(f, "; the oldest has been held for {held:?}, acquired at {acquired_at}")?;
        }
        match dial_error {
            Some(error) => write!(f, "; the last dial failed: {error}"),
            None => Ok(()),
        }
    }
}

impl Error for AcquireError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Dial(error) | Self::Timeout(AcquireTimeout { dial_error: Some(error), .. }) => {
                Some(error.as_ref())
            }
            _ => None,
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

/// A query that brought no result.
#[cfg(feature = "postgres")]
#[derive(Debug)]
#[non_exhaustive]
pub enum QueryError {
    /// `query_timeout` or the request's deadline came first, after so long. The query is cancelled on the server before its
    /// connection is handed on; when the deadline had passed before, it was not even sent.
    Timeout(Duration),
    /// `commit` was called on a transaction in which a statement had failed: it was rolled back.
    RolledBack,
    /// A COPY in was dropped before its end on this connection, or ended in a way that puts the driver out of step with
    /// the server: no query could be sure to get its own answer, so none was sent. Take another connection; end a COPY
    /// with [`finish`](crate::postgres::CopyIn::finish) or [`abort`](crate::postgres::CopyIn::abort).
    CopyUnfinished,
    /// The server's answer, or the loss of the connection.
    Postgres(tokio_postgres::Error),
}

#[cfg(feature = "postgres")]
impl QueryError {
    /// A stable code, as telemetry's `error.type` has it: `timeout`, the server's SQLSTATE, or `connection`.
    pub fn code(&self) -> &str {
        match self {
            Self::Timeout(_) => "timeout",
            Self::RolledBack => SqlState::IN_FAILED_SQL_TRANSACTION.code(),
            Self::CopyUnfinished => "copy_unfinished",
            Self::Postgres(error) => error.code().map_or("connection", |state| state.code()),
        }
    }

    /// Whether the connection is of no more use: the server is shutting down (57P01, 57P02), or has become a read-only
    /// standby (25006), while the primary is elsewhere now.
    pub(crate) fn ends_the_session(&self) -> bool {
        let Self::Postgres(error) = self else { return false };
        let ends = [SqlState::ADMIN_SHUTDOWN, SqlState::CRASH_SHUTDOWN, SqlState::READ_ONLY_SQL_TRANSACTION];
        error.code().is_some_and(|state| ends.contains(state))
    }

    /// Whether the server could not work, or was gone: out of resources (class 53), shut down (57P), system errors (58, XX).
    /// What it answers then comes fast, and is no work done.
    pub(crate) fn is_the_servers_own(&self) -> bool {
        let Self::Postgres(error) = self else { return false };
        let own =
            |state: &SqlState| ["53", "57P", "58", "XX"].iter().any(|class| state.code().starts_with(class));
        error.is_closed() || error.code().is_some_and(own)
    }

    /// Whether the time ran out: ours, or the server's own `statement_timeout`. Its SQLSTATE, 57014, is also that of a
    /// query cancelled by an administrator.
    pub fn is_timeout(&self) -> bool {
        match self {
            Self::Timeout(_) => true,
            Self::RolledBack | Self::CopyUnfinished => false,
            Self::Postgres(error) => error.code() == Some(&SqlState::QUERY_CANCELED),
        }
    }
}

#[cfg(feature = "postgres")]
impl fmt::Display for QueryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout(after) => {
                write!(f, "no result within {after:?} (query_timeout, or the request's deadline)")
            }
            Self::RolledBack => {
                f.write_str("a statement of the transaction had failed: it was rolled back, not committed")
            }
            Self::CopyUnfinished => f.write_str(
                "a COPY on this connection did not end in an orderly way: take another one \
                 (finish or abort ends a COPY)",
            ),
            // tokio-postgres prints only «db error»: the server's sentence is one level down.
            Self::Postgres(error) => match error.as_db_error() {
                Some(said) => write!(f, "{} ({})", said.message(), said.code().code()),
                None => error.fmt(f),
            },
        }
    }
}

#[cfg(feature = "postgres")]
impl Error for QueryError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Timeout(_) | Self::RolledBack | Self::CopyUnfinished => None,
            Self::Postgres(error) => Some(error),
        }
    }
}

#[cfg(feature = "postgres")]
impl From<tokio_postgres::Error> for QueryError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Postgres(error)
    }
}
