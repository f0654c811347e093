//! What a query may be given as; statements that are prepared once for each connection, and forgotten when the server has.

use std::collections::HashMap;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;
use tokio_postgres::error::{DbError, SqlState};
use tokio_postgres::{Client, Error};

/// A statement, as SQL text or prepared. Implemented for `str`, `String`, [`Statement`] and tokio-postgres's own.
///
/// Text is prepared anew each time, which costs a round trip: for what runs often, take
/// [`prepare_cached`](crate::Connection::prepare_cached) first.
pub trait Sql: Sync {
    /// The text, with `$1` for the parameters, for telemetry; unknown for a statement of tokio-postgres's.
    fn text(&self) -> Option<&str>;

    /// What it is.
    #[doc(hidden)]
    fn form(&self) -> Form<'_>;
}

/// The forms a statement comes in.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub enum Form<'a> {
    Text(&'a str),
    Cached(&'a Statement),
    Driver(&'a tokio_postgres::Statement),
}

impl Sql for str {
    fn text(&self) -> Option<&str> {
        Some(self)
    }

    fn form(&self) -> Form<'_> {
        Form::Text(self)
    }
}

impl Sql for String {
    fn text(&self) -> Option<&str> {
        Some(self)
    }

    fn form(&self) -> Form<'_> {
        Form::Text(self)
    }
}

impl Sql for Statement {
    fn text(&self) -> Option<&str> {
        Some(&self.0.text)
    }

    fn form(&self) -> Form<'_> {
        Form::Cached(self)
    }
}

impl Sql for tokio_postgres::Statement {
    fn text(&self) -> Option<&str> {
        None
    }

    fn form(&self) -> Form<'_> {
        Form::Driver(self)
    }
}

/// A prepared statement from a connection's cache, for use on that connection (on another it is prepared there). It
/// dereferences to tokio-postgres's own, which knows its parameters and columns. Cheap to clone.
///
/// When the server no longer takes it (after `ALTER TABLE`, `DISCARD ALL` and the like), it is prepared anew: see
/// [`prepare_cached`](crate::Connection::prepare_cached).
#[derive(Clone)]
pub struct Statement(Arc<Prepared>);

struct Prepared {
    text: Box<str>,
    driver: tokio_postgres::Statement,
    /// Of the cache, when this was prepared.
    epoch: u64,
}

impl Deref for Statement {
    type Target = tokio_postgres::Statement;

    fn deref(&self) -> &tokio_postgres::Statement {
        &self.0.driver
    }
}

impl fmt::Debug for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Statement").field(&self.0.text).finish()
    }
}

/// The statements of one connection, by their text.
#[derive(Debug, Default)]
pub(super) struct Cache(Mutex<Statements>);

#[derive(Debug)]
struct Statements {
    by_text: HashMap<Box<str>, Statement>,
    /// Another one for each cache, and each time it has forgotten everything: a statement of this epoch was prepared on this
    /// connection, and has not been forgotten since.
    epoch: u64,
}

impl Default for Statements {
    fn default() -> Self {
        static EPOCHS: AtomicU64 = AtomicU64::new(0);
        Self { by_text: HashMap::new(), epoch: EPOCHS.fetch_add(1, Relaxed) }
    }
}

impl Cache {
    /// The statement of this text, prepared now if it is not there.
    pub async fn prepare(&self, client: &Client, text: &str) -> Result<Statement, Error> {
        let epoch = {
            let statements = self.0.lock();
            if let Some(known) = statements.by_text.get(text) {
                return Ok(known.clone());
            }
            statements.epoch
        };
        let driver = client.prepare(text).await?;
        let statement = Statement(Arc::new(Prepared { text: text.into(), driver, epoch }));
        let mut statements = self.0.lock();
        // What was forgotten meanwhile may be stale already.
        if statements.epoch == epoch {
            statements.by_text.insert(text.into(), statement.clone());
        }
        Ok(statement)
    }

    /// This statement, or the one of its text here: the cache may have forgotten it since, or it is another connection's.
    pub async fn current(&self, client: &Client, statement: &Statement) -> Result<Statement, Error> {
        if self.0.lock().epoch == statement.0.epoch {
            return Ok(statement.clone());
        }
        self.prepare(client, &statement.0.text).await
    }

    /// Everything: what made one statement stale (`DISCARD ALL`, another table) has most likely made others so.
    pub fn forget(&self) {
        let forgotten = std::mem::take(&mut *self.0.lock());
        // Not under the lock: those that nobody holds are closed on the server.
        drop(forgotten);
    }
}

/// Whether the server no longer takes a prepared statement that it took before: its columns have changed (0A000, from
/// `RevalidateCachedQuery`, which checks a plan before it is run), it was deallocated (26000), something it names by a
/// number, such as a type, is gone (XX000 "cache lookup failed"), or its parameters no longer fit what they are compared
/// with (42883, 42804, 42704).
pub(super) fn is_stale(error: &Error) -> bool {
    let Some(said) = error.as_db_error() else { return false };
    match *said.code() {
        SqlState::FEATURE_NOT_SUPPORTED => said.routine() == Some("RevalidateCachedQuery"),
        SqlState::INTERNAL_ERROR => is_lookup(said),
        SqlState::INVALID_SQL_STATEMENT_NAME
        | SqlState::UNDEFINED_FUNCTION
        | SqlState::DATATYPE_MISMATCH
        | SqlState::UNDEFINED_OBJECT => true,
        _ => false,
    }
}

fn is_lookup(said: &DbError) -> bool {
    said.message().starts_with("cache lookup failed")
}
