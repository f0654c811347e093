//! A dry run: what would have been done, counted and told.

use std::cmp::Ordering;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::Gate;
use crate::error::ShedReason;
use crate::law::{Decision, Reason};
use crate::observe::{Event, ShedBy};
use crate::terms::Class;

/// What a [dry run](crate::Builder::dry_run) would have done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DryRun {
    /// Requests the layer would have let in.
    pub would_admit: u64,
    /// Requests the layer would have refused, and let in.
    pub would_shed: u64,
    /// Ticks (10 ms) at which the controller would have raised the limit.
    pub would_grow: u64,
    /// Ticks at which it would have left it.
    pub would_stay: u64,
    /// Ticks at which it would have lowered it.
    pub would_shrink: u64,
}

/// The counters of a dry run.
#[derive(Debug, Default)]
pub(super) struct DryRunLedger {
    admit: AtomicU64,
    shed: AtomicU64,
    grow: AtomicU64,
    stay: AtomicU64,
    shrink: AtomicU64,
}

impl DryRunLedger {
    pub fn read(&self) -> DryRun {
        DryRun {
            would_admit: self.admit.load(Relaxed),
            would_shed: self.shed.load(Relaxed),
            would_grow: self.grow.load(Relaxed),
            would_stay: self.stay.load(Relaxed),
            would_shrink: self.shrink.load(Relaxed),
        }
    }
}

impl Gate {
    /// Takes note of a verdict in a dry run, and lets everybody in; a pool that is closed is closed all the same.
    pub(super) fn overrule(
        &self,
        refused: Option<ShedReason>,
        queue_depth: usize,
        class: Class,
    ) -> Option<ShedReason> {
        let Some(ledger) = &self.inner.dry_run else { return refused };
        match refused {
            Some(ShedReason::Draining) => return refused,
            Some(reason) => {
                ledger.shed.fetch_add(1, Relaxed);
                let shed = self.refusal(reason, queue_depth, class);
                self.observe(|| Event::WouldShed { shed, by: ShedBy::Layer });
            }
            None => {
                ledger.admit.fetch_add(1, Relaxed);
            }
        }
        None
    }

    pub(crate) fn is_dry_run(&self) -> bool {
        self.inner.dry_run.is_some()
    }

    /// Takes note of a decision in a dry run, and is true then: nothing is to be done about it. Told when it is another
    /// than the one before.
    pub(super) fn only_noted(&self, from: usize, decision: Decision) -> bool {
        let Some(ledger) = &self.inner.dry_run else { return false };
        let Decision { limit: to, reason } = decision;
        let way = match to.cmp(&from) {
            Ordering::Greater => &ledger.grow,
            Ordering::Equal => &ledger.stay,
            Ordering::Less => &ledger.shrink,
        };
        way.fetch_add(1, Relaxed);
        if reason != Reason::Steady {
            let last = &self.inner.last_decision;
            let before =
                std::mem::replace(&mut *last.lock().unwrap_or_else(PoisonError::into_inner), decision);
            if to != from && to != before.limit {
                self.observe(|| Event::WouldChangeLimit { from, to, reason });
            }
        }
        true
    }
}
