//! What a query may be given as.

use tokio_postgres::{Statement, ToStatement};

/// A statement, as SQL text or prepared. Implemented for `str`, `String` and
/// [`Statement`].
///
/// Text is prepared anew each time, which costs a round trip: for what runs often, take
/// [`prepare_cached`](crate::Connection::prepare_cached) first.
pub trait Sql: ToStatement + Sync {
    /// The text, with `$1` for the parameters, for telemetry; unknown for a prepared statement.
    fn text(&self) -> Option<&str>;
}

impl Sql for str {
    fn text(&self) -> Option<&str> {
        Some(self)
    }
}

impl Sql for String {
    fn text(&self) -> Option<&str> {
        Some(self)
    }
}

impl Sql for Statement {
    fn text(&self) -> Option<&str> {
        None
    }
}
