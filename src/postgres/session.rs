//! A tracked connection: what is under way on it is known, so that its state can be told when it comes back.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use deadpool_postgres::ClientWrapper;
use tokio::sync::oneshot;

use super::DialError;
use super::dial::Dial;
use super::wire::Status;
use crate::backend::{ConnectionState, Place};

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
    /// `raw()` was used, or the server has gone away or become read-only: of no more use.
    pub lost: AtomicBool,
    /// A query was left before its end, and may be running: to be cancelled.
    pub running: AtomicBool,
    /// A query failed: the driver says so before the end of the server's answer, which alone tells whether a
    /// transaction is open. To be fenced.
    pub unread: AtomicBool,
}

impl Doubt {
    fn is_any(&self) -> bool {
        self.running.load(Relaxed) || self.has_failures()
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
        if self.doubt.running.load(Relaxed) {
            dialer.cancel(self.client.cancel_token()).await?;
        }
        self.client.check_connection().await.map_err(DialError::Postgres)?;
        if !self.status.is_idle() {
            self.client.batch_execute("ROLLBACK").await.map_err(DialError::Postgres)?;
        }
        self.doubt = Doubt::default();
        Ok(())
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("state", &self.state()).finish_non_exhaustive()
    }
}
