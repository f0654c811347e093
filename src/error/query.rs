//! What can go wrong with a query, and what it says of its connection and its server.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use tokio_postgres::error::SqlState;

/// A query that brought no result.
#[derive(Debug)]
#[non_exhaustive]
pub enum QueryError {
    /// `query_timeout` or the request's deadline came first, after so long. The query is cancelled on the server before its
    /// connection is handed on; when the deadline had passed before, it was not even sent. Outside a transaction it may
    /// have been stored all the same.
    Timeout(Duration),
    /// `commit` was called on a transaction in which a statement had failed, or that its user had rolled back: nothing is
    /// stored.
    RolledBack,
    /// `commit` was called on a transaction in which a statement had been given up before it had ended: it timed out, or its
    /// future was dropped. Nothing is stored, unless the transaction
    /// [accepts](crate::postgres::Transaction::accept_abandoned) such statements.
    StatementAbandoned,
    /// `commit` was called, and no transaction was open any more: a statement given as text had ended it, or an error. Nothing
    /// was stored by `commit`.
    NoTransaction,
    /// `COMMIT` was sent and not answered: the transaction is stored, or not, or will yet be. It was not cancelled.
    ///
    /// To find out, keep the transaction's number and ask `pg_xact_status`, as the example at
    /// [`commit`](crate::postgres::Transaction::commit) does; or look for a key that the transaction wrote.
    #[non_exhaustive]
    CommitUnknown {
        /// How long its answer was waited for.
        waited: Duration,
        /// `query_timeout` had passed.
        timed_out: bool,
        /// How the connection ended, or which error came instead, if one did.
        cause: Option<tokio_postgres::Error>,
    },
    /// `query_one` found no row.
    NoRow,
    /// `query_one` or `query_opt` found more than one row.
    TooManyRows,
    /// Rows or a COPY are being read or written on this connection, and as long as their stream is held the answer to
    /// anything else may have to wait for it: nothing was sent. Read the stream to its end, drop it, or take a second
    /// connection.
    StreamOpen,
    /// A COPY in was dropped before its end on this connection, was begun as text, or ended in a way that puts the driver
    /// out of step with the server: no query could be sure to get its own answer, so none was sent. Take another
    /// connection; begin a COPY with `copy_in` and end it with [`finish`](crate::postgres::CopyIn::finish) or
    /// [`abort`](crate::postgres::CopyIn::abort).
    CopyUnfinished,
    /// The server's answer, or the loss of the connection.
    Postgres(tokio_postgres::Error),
}

impl QueryError {
    /// A stable code, as telemetry's `error.type` has it: `timeout`, the server's SQLSTATE, `connection`, or the name of the
    /// variant in snake case.
    pub fn code(&self) -> &str {
        match self {
            Self::Timeout(_) => "timeout",
            Self::RolledBack => SqlState::IN_FAILED_SQL_TRANSACTION.code(),
            Self::StatementAbandoned => "statement_abandoned",
            Self::NoTransaction => "no_transaction",
            Self::CommitUnknown { .. } => "commit_unknown",
            Self::NoRow => "no_row",
            Self::TooManyRows => "too_many_rows",
            Self::StreamOpen => "stream_open",
            Self::CopyUnfinished => "copy_unfinished",
            Self::Postgres(error) => error.code().map_or("connection", |state| state.code()),
        }
    }

    /// Whether the time ran out: ours, or the server's own `statement_timeout`. Its SQLSTATE, 57014, is also that of a
    /// query cancelled by an administrator. The work may be done all the same, after
    /// [`CommitUnknown`](Self::CommitUnknown) above all: to try it again may do it twice.
    pub fn is_timeout(&self) -> bool {
        match self {
            Self::Timeout(_) | Self::CommitUnknown { timed_out: true, .. } => true,
            Self::Postgres(error) => error.code() == Some(&SqlState::QUERY_CANCELED),
            _ => false,
        }
    }
}

/// Whether the connection is of no more use: the server is shutting down, or has crashed.
pub(crate) fn ends_the_session(error: &tokio_postgres::Error) -> bool {
    let ends = [SqlState::ADMIN_SHUTDOWN, SqlState::CRASH_SHUTDOWN];
    error.code().is_some_and(|state| ends.contains(state))
}

/// Whether the server could not work, or was gone: out of resources (class 53), shut down (57P), system errors (58, XX).
/// What it answers then comes fast, and is no work done.
pub(crate) fn is_the_servers_own(error: &tokio_postgres::Error) -> bool {
    let own =
        |state: &SqlState| ["53", "57P", "58", "XX"].iter().any(|class| state.code().starts_with(class));
    error.is_closed() || error.code().is_some_and(own)
}

impl fmt::Display for QueryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout(after) => {
                write!(f, "no result within {after:?} (query_timeout, or the request's deadline)")
            }
            Self::RolledBack => {
                f.write_str("the transaction was rolled back, not committed: a statement of it had failed, or was a ROLLBACK")
            }
            Self::StatementAbandoned => f.write_str(
                "a statement of the transaction was given up before it had ended: the transaction was rolled back, not \
                 committed (accept_abandoned commits it all the same)",
            ),
            Self::NoTransaction => {
                f.write_str("nothing was committed: no transaction was open any more, its statements had ended it")
            }
            Self::CommitUnknown { waited, timed_out, cause } => {
                match (cause, timed_out) {
                    (Some(cause), _) => write!(f, "COMMIT was sent and not answered within {waited:?} ({})", Said(cause))?,
                    (None, true) => write!(f, "COMMIT was sent and not answered within {waited:?} (query_timeout)")?,
                    (None, false) => f.write_str("COMMIT was answered with neither COMMIT nor ROLLBACK")?,
                }
                f.write_str(
                    ": the transaction may be stored, or yet be stored; pg_xact_status tells, given its \
                     pg_current_xact_id",
                )
            }
            Self::NoRow => f.write_str("the query found no row, where one was asked for"),
            Self::TooManyRows => f.write_str("the query found more than one row, where one was asked for"),
            Self::StreamOpen => f.write_str(
                "a stream of rows or a COPY is open on this connection: end or drop it first, or take another connection",
            ),
            Self::CopyUnfinished => f.write_str(
                "a COPY on this connection did not end in an orderly way: take another one (copy_in begins a COPY, \
                 finish or abort ends it)",
            ),
            Self::Postgres(error) => Said(error).fmt(f),
        }
    }
}

/// tokio-postgres prints only "db error": the server's sentence is one level down.
struct Said<'a>(&'a tokio_postgres::Error);

impl fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_db_error() {
            Some(said) => write!(f, "{} ({})", said.message(), said.code().code()),
            None => self.0.fmt(f),
        }
    }
}

impl Error for QueryError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Postgres(error) | Self::CommitUnknown { cause: Some(error), .. } => Some(error),
            _ => None,
        }
    }
}

impl From<tokio_postgres::Error> for QueryError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Postgres(error)
    }
}
