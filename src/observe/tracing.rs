//! Events for `tracing`, for those who read logs.

use super::{Event, Observer};
use crate::gate::Gate;

/// Tells `tracing` what happens, under the target `tower_adaptive_pool`.
///
/// Changes of the limit are `info`, time-outs, slow queries, failed dials and refused settings `warn`, a place written off `error`; refusals are `debug`,
/// because under overload there are thousands of them.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Tracing {}

impl Tracing {
    /// An observer that tells `tracing`.
    #[must_use]
    pub fn new() -> Self {
        Self {}
    }
}

impl Observer for Tracing {
    fn on_event(&self, gate: &Gate, event: &Event<'_>) {
        let pool = gate.name();
        match event {
            Event::Shed { shed, by } => {
                tracing::debug!(
                    pool,
                    by = by.code(),
                    reason = shed.reason.code(),
                    class = shed.class.code(),
                    queue_depth = shed.queue_depth,
                    retry_after_s = shed.retry_after.as_secs(),
                    "refused"
                );
            }
            Event::AcquireTimedOut { error, .. } => {
                tracing::warn!(pool, code = error.code(), %error, "acquire timed out");
            }
            Event::QueryTimedOut { ran, text, code, .. } => {
                tracing::warn!(pool, code, ?ran, text, "query timed out");
            }
            Event::SlowQuery { ran, text, .. } => tracing::warn!(pool, ?ran, text, "slow query"),
            Event::LimitChanged { from, to, reason } => {
                tracing::info!(pool, from, to, reason = reason.code(), ?reason, "limit changed");
            }
            Event::WouldShed { shed, by } => {
                tracing::debug!(pool, by = by.code(), reason = shed.reason.code(), "would have refused");
            }
            Event::WouldChangeLimit { from, to, reason } => {
                tracing::info!(
                    pool,
                    from,
                    to,
                    reason = reason.code(),
                    ?reason,
                    "would have changed the limit"
                );
            }
            Event::Dialed { took } => tracing::debug!(pool, ?took, "connection opened"),
            Event::DialFailed { error } => tracing::warn!(pool, %error, "dial failed"),
            Event::IdleClosed { closed } => tracing::debug!(pool, closed, "idle connections closed"),
            Event::HeldForLong { hold } => {
                tracing::warn!(pool, held = ?hold.held, acquired_at = %hold.acquired_at, "connection held for long: leaked?");
            }
            Event::DyingYoung {} => {
                tracing::warn!(pool, "connections end before they are used: opened again ever more slowly");
            }
            Event::WrittenOff {} => {
                tracing::error!(pool, "connection written off: the server was not heard from");
            }
            Event::SettingRefused { name, why } => {
                tracing::warn!(pool, setting = name, why, "the server does without this setting");
            }
        }
    }
}
