//! One seam for telemetry: an [`Observer`] is told each [`Event`]; nothing here knows how it is shown.

mod otel;
#[cfg(feature = "tracing")]
mod tracing;

use std::time::Duration;

use crate::error::{AcquireError, Hold, SharedError, Shed};
use crate::gate::{Gate, WeakGate};
use crate::law::Reason;

pub use otel::Otel;
#[cfg(feature = "tracing")]
pub use tracing::Tracing;

/// Is told what happens. Never called under a lock, but on the path of requests: do little, and never block.
pub trait Observer: Send + Sync + 'static {
    /// Called once, at build, with the gate to be observed.
    fn attach(&self, gate: &WeakGate) {
        let _ = gate;
    }

    /// Something happened at this gate.
    fn on_event(&self, gate: &Gate, event: &Event<'_>);
}

/// What happened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A request or an acquire was refused at once.
    #[non_exhaustive]
    Shed {
        /// Why, and when to come back.
        shed: Shed,
        /// Who refused.
        by: ShedBy,
    },
    /// An acquire ran into its deadline, or learnt that it would: no connection can be had in its time.
    #[non_exhaustive]
    AcquireTimedOut {
        /// The error the caller gets.
        error: &'a AcquireError,
        /// How long it waited, up to now.
        waited: Duration,
    },
    /// A query ran into `query_timeout`, or into the server's own.
    #[non_exhaustive]
    QueryTimedOut {
        /// How long it ran, up to now.
        ran: Duration,
        /// Its text, with `$1` for the parameters; never the parameters. `None` for a prepared statement.
        text: Option<&'a str>,
        /// `timeout` (ours) or `57014` (the server's).
        code: &'a str,
        /// Where it ran.
        server: &'a ServerInfo,
    },
    /// A query took longer than `slow_query_after`, whatever came of it.
    #[non_exhaustive]
    SlowQuery {
        /// How long it ran.
        ran: Duration,
        /// Its text, with `$1` for the parameters; never the parameters. `None` for a prepared statement.
        text: Option<&'a str>,
        /// Where it ran.
        server: &'a ServerInfo,
    },
    /// The limit changed: how many connections may be in use at once.
    #[non_exhaustive]
    LimitChanged {
        /// The limit before.
        from: usize,
        /// The limit now.
        to: usize,
        /// Why.
        reason: Reason,
    },
    /// A dry run let somebody in who would have been refused.
    #[non_exhaustive]
    WouldShed {
        /// Why, and when to come back.
        shed: Shed,
        /// Who would have refused.
        by: ShedBy,
    },
    /// A dry run would have changed the limit.
    #[non_exhaustive]
    WouldChangeLimit {
        /// The limit as it stays.
        from: usize,
        /// What it would have been.
        to: usize,
        /// Why.
        reason: Reason,
    },
    /// A connection was opened.
    #[non_exhaustive]
    Dialed {
        /// How long it took.
        took: Duration,
    },
    /// A connection could not be opened.
    #[non_exhaustive]
    DialFailed {
        /// Why.
        error: &'a SharedError,
    },
    /// Connections were free for `idle_timeout`, and more were open than `min_size` and the limit ask for: they were closed.
    #[non_exhaustive]
    IdleClosed {
        /// How many.
        closed: usize,
    },
    /// Somebody has held a connection for longer than `leak_warning_after`; told once for each hold.
    #[non_exhaustive]
    HeldForLong {
        /// For how long so far, and where it was acquired.
        hold: Hold,
    },
    /// Connections end before anybody has used them, each soon after it was opened: an `idle_session_timeout` on the server, a
    /// proxy without its database. While nobody waits they are opened again ever more slowly, up to 300 ms apart. Told at the third
    /// in a row, and once more when there were none for ten seconds in between.
    #[non_exhaustive]
    DyingYoung {},
    /// A place under the ceiling was given up as lost: the server may still count a connection for it.
    #[non_exhaustive]
    WrittenOff {},
    /// The server does not take a setting that the backend sends by itself to each new connection, and is used without it.
    /// Told once for each setting.
    #[non_exhaustive]
    SettingRefused {
        /// The setting.
        name: &'a str,
        /// What the server said.
        why: &'a str,
    },
}

/// Who refused.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ShedBy {
    /// The layer, before the request reached its handler.
    Layer,
    /// The gate, when the handler asked for a connection.
    Gate,
}

impl ShedBy {
    /// A stable code for telemetry.
    pub fn code(self) -> &'static str {
        match self {
            Self::Layer => "layer",
            Self::Gate => "gate",
        }
    }
}

/// Where queries run, for spans.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerInfo {
    /// Host name or socket directory.
    pub address: String,
    /// Port.
    pub port: u16,
    /// Name of the database.
    pub database: String,
}
