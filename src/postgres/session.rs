//! A tracked connection: what is under way on it is known, so that its state can be told when it comes back.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use deadpool_postgres::ClientWrapper;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::DialError;
use super::dial::Dial;
use super::wire::Status;
use crate::backend::{ConnectionState, Place};

/// How long the fence after `raw()` or a COPY that was left is waited for before what may be running is cancelled: a round
/// trip, with some room. A COPY in ends by itself, and a cancel that comes before its first byte puts the driver out of step.
const PATIENCE: Duration = Duration::from_millis(50);

/// What becomes of a connection when its [`raw`](crate::Connection::raw) client was used: only its user knows what was
/// left in the session on purpose (`SET`, temporary tables, `LISTEN`, session advisory locks).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum AfterRaw {
    /// It is closed when it comes back, and what was left in the session goes with it. Costs a new connection.
    #[default]
    Discard,
    /// It is handed on with its session state, but never with work in it: what still runs is cancelled, a transaction
    /// rolled back, a COPY ended. Costs two round trips in the background; where something still runs after 50 ms,
    /// a cancel request as well; and what does not end within 5 s is closed all the same.
    Keep,
}

/// One PostgreSQL session, with what is known about it. Queries go through [`Connection`](crate::Connection).
pub struct Session {
    pub(super) client: ClientWrapper,
    pub(super) status: Arc<Status>,
    pub(super) doubt: Doubt,
    /// Shared with the stream: the place is taken until both are gone, whichever goes first.
    _place: Arc<Place>,
    /// Dropped with the session: the connection's task learns that nobody waits for answers any more.
    _in_use: oneshot::Sender<()>,
}

/// What a session's next user must be spared.
#[derive(Debug, Default)]
pub(super) struct Doubt {
    /// `raw()` was used and nothing of it is to be kept, or the server has gone away or become read-only: of no more use.
    pub lost: AtomicBool,
    /// A query was left before its end, and may be running: to be cancelled.
    pub running: AtomicBool,
    /// A query failed: the driver says so before the end of the server's answer, which alone tells whether a
    /// transaction is open. To be fenced.
    pub unread: AtomicBool,
    /// A COPY in was left before its end, or failed so that the driver got out of step: no query gets an answer it could
    /// be sure of. To be proven to be in step.
    pub out_of_step: AtomicBool,
    /// `raw()` was used, in a way that nobody knows. To be fenced, perhaps cancelled, and proven to be in step.
    raw: AtomicBool,
}

impl Doubt {
    fn is_any(&self) -> bool {
        [&self.running, &self.unread, &self.out_of_step, &self.raw].iter().any(|doubt| doubt.load(Relaxed))
    }

    pub fn used_raw(&self, after: AfterRaw) {
        match after {
            AfterRaw::Discard => self.lost.store(true, Relaxed),
            AfterRaw::Keep => self.raw.store(true, Relaxed),
        }
    }

    pub fn has_failures(&self) -> bool {
        self.unread.load(Relaxed)
    }
}

impl Session {
    pub(super) fn new(
        client: ClientWrapper,
        status: Arc<Status>,
        place: Arc<Place>,
        in_use: oneshot::Sender<()>,
    ) -> Self {
        Self { client, status, doubt: Doubt::default(), _place: place, _in_use: in_use }
    }

    pub(super) fn state(&self) -> ConnectionState {
        if self.doubt.lost.load(Relaxed) || self.client.is_closed() {
            ConnectionState::Dead
        } else if self.doubt.is_any() || !self.status.is_idle() {
            ConnectionState::Settle
        } else {
            ConnectionState::Ready
        }
    }

    /// A round trip.
    pub(super) async fn check(&self) -> Result<(), tokio_postgres::Error> {
        self.client.check_connection().await
    }

    /// Cancels what still runs; then a fence (what was sent before it has been answered after it), and the end of any
    /// transaction left open.
    ///
    /// The cancel has been acted upon before the fence is sent, and nobody else has the connection until the fence has
    /// come back: it cannot hit anybody else's query.
    pub(super) async fn settle(&mut self, dialer: &dyn Dial) -> Result<(), DialError> {
        let in_doubt = self.doubt.raw.load(Relaxed) || self.doubt.out_of_step.load(Relaxed);
        if self.doubt.running.load(Relaxed) || (in_doubt && self.is_slow().await) {
            dialer.cancel(self.client.cancel_token()).await?;
        }
        self.client.check_connection().await.map_err(DialError::Postgres)?;
        if !self.status.is_idle() {
            self.client.batch_execute("ROLLBACK").await.map_err(DialError::Postgres)?;
        }
        if in_doubt && !is_in_step(&self.client).await {
            return Err(DialError::Connect(io::Error::other("the driver is out of step with the server")));
        }
        self.doubt = Doubt::default();
        Ok(())
    }

    /// Whether something seems to be running.
    async fn is_slow(&self) -> bool {
        timeout(PATIENCE, self.client.check_connection()).await.is_err()
    }
}

/// Whether the next answer is the answer to the next question. To be asked after a COPY in that may have failed:
/// tokio-postgres 0.7 then sends a second Sync where the server has not swallowed the first, and from the extra answer
/// on takes each answer for that of the query after.
///
/// An extra answer brings neither a row nor an error (which is what a failed transaction answers).
pub(super) async fn is_in_step(client: &Client) -> bool {
    const PROOF: &str = "in step";
    match client.simple_query("select 'in step'").await {
        Ok(messages) => messages.iter().any(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0) == Some(PROOF),
            _ => false,
        }),
        Err(error) => error.code() == Some(&SqlState::IN_FAILED_SQL_TRANSACTION),
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("state", &self.state()).finish_non_exhaustive()
    }
}
