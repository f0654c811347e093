//! The seam between the pool and what it pools.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Weak};

use crate::config::ConfigError;

/// Opens connections and knows how they are. [`Postgres`](crate::Postgres) is one.
///
/// A connection is closed by dropping it; its [`Place`] says when the server has let go.
pub trait Backend: Send + Sync + 'static {
    /// What is pooled.
    type Connection: Send + 'static;
    /// Why a dial, check or settlement failed.
    type Error: Error + Send + Sync + 'static;

    /// Opens one connection. Runs in the background, under `dial_timeout`.
    ///
    /// `place` is the right to have that connection: keep it for as long as the server may count the connection, also
    /// when the dial fails half-way or this future is dropped. Dropping it makes room for the next one.
    fn dial(&self, place: Place) -> impl Future<Output = Result<Self::Connection, Self::Error>> + Send;

    /// How a connection is. Must not block: it is asked at every hand-out, and when a guard is dropped. A connection whose
    /// `state` panics counts as [`ConnectionState::Dead`].
    fn state(&self, connection: &Self::Connection) -> ConnectionState;

    /// What a failed dial means for the next one. A panic is as [`Refusal::Away`].
    fn refusal(&self, error: &Self::Error) -> Refusal {
        let _ = error;
        Refusal::Away
    }

    /// Makes sure that a connection still works before it is handed out: one that says [`ConnectionState::Check`], or that
    /// was idle for longer than `check_after`. Runs inside the caller's deadline; an error, or a panic, costs the caller
    /// nothing but the next connection.
    ///
    /// It has a second, or a third of what is left until the deadline if that is less (but 100 ms). When it has not
    /// ended by then, every other connection that was idle for longer than `check_after` is closed too.
    fn check(
        &self,
        connection: &mut Self::Connection,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send {
        let _ = connection;
        async { Ok(()) }
    }

    /// Brings a [`ConnectionState::Settle`] connection into a state fit for the next caller. Runs in the background; an error,
    /// a panic, or any state but ready afterwards, discards the connection.
    fn settle(
        &self,
        connection: &mut Self::Connection,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send {
        let _ = connection;
        async { Ok(()) }
    }

    /// What is wrong with the backend's own settings, checked at `build()`.
    ///
    /// # Errors
    /// The problems found.
    fn validate(&self) -> Result<(), ConfigError> {
        Ok(())
    }
}

/// What a failed dial means for the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// Nobody answered, or not yet: try again soon, at most 300 ms apart.
    Away,
    /// The server has no place for us: stay with what is open, and ask again in a second.
    Full,
    /// The server knows us and does not want us (a wrong password, no such database): ask again every two seconds, until
    /// somebody mends it. [`ready`](crate::AdaptivePool::ready) says so at once.
    Rejected,
}

/// How a connection is.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionState {
    /// Clean, and as far as known alive.
    Ready,
    /// Clean, but to be checked before it is handed out.
    Check,
    /// Something is open or under way: to be settled in the background before anybody gets it.
    Settle,
    /// Of no more use.
    Dead,
}

/// A place under the ceiling: the right to have one connection on the server.
///
/// There are never more than `max_size` of them. It travels with the connection, through the dial, the life and the
/// closing of it, and makes room when it is dropped: when the server has let go *and* the pool no longer hands the
/// connection out. A backend whose connection and socket end apart shares it between both.
#[must_use = "dropping a place says that the server counts no connection for it"]
pub struct Place {
    owner: Weak<dyn PlaceOwner>,
    lost: Lost,
}

/// Whether the server has ended a connection by itself: known to its place, and to the pool.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lost(Arc<AtomicBool>);

impl Lost {
    pub fn is_lost(&self) -> bool {
        self.0.load(Relaxed)
    }
}

/// Who is told that a place is free again.
pub(crate) trait PlaceOwner: Send + Sync {
    fn place_freed(&self);
    fn connection_lost(&self);
    fn place_written_off(&self);
    #[cfg(feature = "postgres")]
    fn setting_refused(&self, name: &str, why: &str) {
        let _ = (name, why);
    }
}

impl Place {
    pub(crate) fn new(owner: Weak<impl PlaceOwner + 'static>) -> Self {
        Self { owner, lost: Lost::default() }
    }

    pub(crate) fn is_lost(&self) -> Lost {
        self.lost.clone()
    }

    /// Says that the server has ended the connection by itself, so that the pool need not find out at the next
    /// hand-out: it counts as [`ConnectionState::Dead`], and is closed and replaced, at once if it is idle.
    pub fn lost(&self) {
        self.lost.0.store(true, Relaxed);
        if let Some(owner) = self.owner.upgrade() {
            owner.connection_lost();
        }
    }

    /// Says that the place is about to be given up without knowing that the server has let go: nothing at all was heard
    /// from it. Shown in [`Snapshot::written_off`](crate::Snapshot::written_off) and told to the observers.
    pub fn write_off(&self) {
        if let Some(owner) = self.owner.upgrade() {
            owner.place_written_off();
        }
    }

    /// Says that the server does not take a setting that nobody asked for, and is used without it.
    #[cfg(feature = "postgres")]
    pub(crate) fn setting_refused(&self, name: &str, why: &str) {
        if let Some(owner) = self.owner.upgrade() {
            owner.setting_refused(name, why);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(owner) = self.owner.upgrade() {
            owner.place_freed();
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Place")
    }
}
