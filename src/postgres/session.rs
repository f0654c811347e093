//! A tracked connection: what is under way on it is known, so that its state can be told when it comes back.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::DialError;
use super::cancel::{CancelToken, Target, Use};
use super::dial::Dial;
use super::doubt::{Doubt, Doubts};
use super::statement::Cache;
use super::status::Status;
use crate::backend::{ConnectionState, Place};

/// How long the fence after `raw()` or a COPY that was left is waited for before what may be running is cancelled, at least:
/// a round trip, with some room. A COPY in ends by itself, and a cancel that comes before its first byte puts the driver out
/// of step.
const PATIENCE: Duration = Duration::from_millis(50);
/// The same in round trips, where those are long.
const PATIENCE_IN_ROUND_TRIPS: u32 = 4;

/// What becomes of a connection when its [`raw`](crate::Connection::raw) client was used: only its user knows what was
/// left in the session on purpose (`SET`, temporary tables, `LISTEN`, session advisory locks).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum AfterRaw {
    /// It is closed when it comes back, and what was left in the session goes with it; what still runs is cancelled
    /// first. Costs a round trip in the background, and a new connection.
    #[default]
    Discard,
    /// It is handed on with its session state, but never with work in it: what still runs is cancelled, a transaction
    /// rolled back, a COPY ended. Costs two round trips in the background; where something still runs after 50 ms, or four
    /// round trips if those are longer, a cancel request as well; and what does not end within 5 s is closed all the same.
    Keep,
}

/// One PostgreSQL session, with what is known about it. Queries go through [`Connection`](crate::Connection).
pub struct Session {
    pub(super) client: Client,
    pub(super) known: Known,
    pub(super) target: Target,
    /// How long a fence is waited for before something seems to be running.
    patience: Duration,
    /// The present use, once a cancel token was made for it.
    user: Use,
    /// Shared with the stream: the place is taken until both are gone, whichever goes first.
    _place: Arc<Place>,
    /// Told when the session goes. `None` only then.
    leave: Option<oneshot::Sender<Leave>>,
}

/// What is known of a session, apart from its client: a transaction has that to itself.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub status: Arc<Status>,
    pub doubts: Doubts,
    pub cache: Cache,
}

impl Known {
    /// A COMMIT has no answer yet. It was sent in a transaction, and its answer is the end of that.
    fn is_committing(&self) -> bool {
        self.doubts.has(Doubt::Committing) && !self.status.is_idle()
    }
}

/// How the connection's task takes its leave of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leave {
    /// At once: nobody waits for what is still running.
    Now,
    /// When the last answer is in, for which it does not wait for long.
    WithLastAnswer,
    /// When the COMMIT was answered, however long that takes: a server that finds its client gone may undo it.
    WithCommit,
}

impl Session {
    pub(super) fn new(
        client: Client,
        status: Arc<Status>,
        target: Target,
        round_trip: Duration,
        place: Arc<Place>,
        leave: oneshot::Sender<Leave>,
    ) -> Self {
        let known = Known { status, ..Known::default() };
        let patience = PATIENCE.max(round_trip.saturating_mul(PATIENCE_IN_ROUND_TRIPS));
        Self { client, known, target, patience, user: Use::default(), _place: place, leave: Some(leave) }
    }

    pub(super) fn state(&self) -> ConnectionState {
        let Known { status, doubts, .. } = &self.known;
        if doubts.has(Doubt::Lost) || self.client.is_closed() {
            ConnectionState::Dead
        } else if doubts.is_any() || !status.is_idle() {
            ConnectionState::Settle
        } else {
            ConnectionState::Ready
        }
    }

    pub(super) fn used_raw(&self, after: AfterRaw) {
        self.known.doubts.add(match after {
            AfterRaw::Discard => Doubt::Unwanted,
            AfterRaw::Keep => Doubt::Raw,
        });
    }

    /// Cancels what runs on this session, as long as its present use lasts.
    pub(super) fn cancel_token(&self, dialer: Arc<dyn Dial>) -> CancelToken {
        self.known.doubts.add(Doubt::Token);
        self.user.token(dialer, self.target.clone())
    }

    /// A round trip.
    pub(super) async fn check(&self) -> Result<(), tokio_postgres::Error> {
        self.client.check_connection().await
    }

    /// Waits for a COMMIT, and cancels what else still runs; then a fence (what was sent before it has been answered after
    /// it), and the end of any transaction left open.
    ///
    /// The cancel has been acted upon before the fence is sent, and nobody else has the connection until the fence has
    /// come back: it cannot hit anybody else's query.
    pub(super) async fn settle(&mut self, dialer: &dyn Dial) -> Result<(), DialError> {
        if !self.user.end().await {
            self.known.doubts.add(Doubt::Unwanted);
        }
        let doubts = &self.known.doubts;
        if self.known.is_committing() {
            self.fence().await?;
        }
        self.stop_what_runs(dialer).await?;
        self.fence().await?;
        if !self.known.status.is_idle() {
            self.client.batch_execute("ROLLBACK").await.map_err(DialError::Postgres)?;
        }
        if (doubts.has(Doubt::Raw) || doubts.has(Doubt::OutOfStep)) && !is_in_step(&self.client).await {
            return Err(unfit("the driver is out of step with the server"));
        }
        if doubts.has(Doubt::ReadOnly) && is_read_only(&self.client).await? {
            dialer.avoid(&self.target);
            return Err(unfit("the server is read-only"));
        }
        self.known.doubts = Doubts::default();
        Ok(())
    }

    async fn stop_what_runs(&self, dialer: &dyn Dial) -> Result<(), DialError> {
        let Known { status, doubts, .. } = &self.known;
        let may_run =
            [Doubt::Raw, Doubt::OutOfStep, Doubt::Unwanted].into_iter().any(|doubt| doubts.has(doubt));
        let forgotten = doubts.is_under_way() || doubts.has_stream();
        if doubts.is_running() || forgotten || (may_run && self.is_slow().await) {
            // Until the fence has been answered, it is hung up on rather than waited for.
            doubts.add(Doubt::Running);
            dialer.cancel(&self.target).await?;
            // An answer that nobody reads and nobody has dropped: the driver waits for that for ever.
            if forgotten {
                return Err(unfit("a future or stream of it was forgotten"));
            }
            // No cancel is heard by a server that waits for data, which here nobody will send.
            if status.is_copying_in() && self.is_slow().await {
                return Err(unfit("the server waits for the data of a COPY"));
            }
        }
        if doubts.has(Doubt::Unwanted) {
            return Err(unfit(
                "its raw client was used, a COPY was begun as text, or a cancel may yet arrive",
            ));
        }
        Ok(())
    }

    /// When it is answered, so is all that was sent before: there is nothing left to cancel, or to hang up on.
    async fn fence(&self) -> Result<(), DialError> {
        self.check().await.map_err(DialError::Postgres)?;
        self.known.doubts.all_has_ended();
        Ok(())
    }

    /// Whether something seems to be running.
    async fn is_slow(&self) -> bool {
        timeout(self.patience, self.client.check_connection()).await.is_err()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let leave = if self.known.is_committing() {
            Leave::WithCommit
        } else if self.known.doubts.is_running() {
            Leave::Now
        } else {
            Leave::WithLastAnswer
        };
        let _ = self.leave.take().map(|task| task.send(leave));
    }
}

fn unfit(why: &'static str) -> DialError {
    DialError::Connect(io::Error::other(why))
}

/// Whether the next answer is the answer to the next question. To be asked after a COPY in that may have failed:
/// tokio-postgres 0.7 then sends a second Sync where the server has not swallowed the first, and from the extra answer
/// on takes each answer for that of the query after.
///
/// An extra answer brings neither a row nor an error (which is what a failed transaction answers).
pub(super) async fn is_in_step(client: &Client) -> bool {
    const PROOF: &str = "in step";
    match client.simple_query("select 'in step'").await {
        Ok(messages) => first(&messages) == Some(PROOF),
        Err(error) => error.code() == Some(&SqlState::IN_FAILED_SQL_TRANSACTION),
    }
}

/// Whether no new transaction can write, and nobody wants it so: in a standby, or where the server or the database was made
/// read-only. A role, or a connection string, that asks for read-only transactions does so on purpose.
async fn is_read_only(client: &Client) -> Result<bool, DialError> {
    const QUESTION: &str = "select pg_is_in_recovery() or exists (select from pg_settings \
        where name = 'default_transaction_read_only' and setting = 'on' \
        and source not in ('user', 'database user', 'client'))";
    let answer = client.simple_query(QUESTION).await.map_err(DialError::Postgres)?;
    Ok(first(&answer) != Some("f"))
}

/// The first column of the first row.
fn first(answer: &[SimpleQueryMessage]) -> Option<&str> {
    answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    })
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("state", &self.state()).finish_non_exhaustive()
    }
}
