//! The face that needs no type parameter: caps, admission, ledgers, snapshot, driver. The layer needs only this.

mod acquire;
mod admission;
mod bounds;
pub(crate) mod counts;
mod deadlines;
mod drain;
mod driver;
mod dry_run;
mod guarded;
mod hand_on;
mod handle;
pub(crate) mod holds;
pub(crate) mod home;
#[cfg(test)]
mod interleavings;
mod layered;
pub(crate) mod ledger;
pub(crate) mod limiter;
mod load;
pub(crate) mod permits;
pub(crate) mod plant;
pub(crate) mod queue;
mod resize;
pub(crate) mod slots;
mod snapshot;
mod watch;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use tokio::runtime::Handle;

use crate::config::Settings;
use crate::law::{Decision, Reason};
use crate::observe::{Event, Observer};

pub(crate) use acquire::{Acquiring, Span, timed_out};
pub(crate) use admission::Attempt;
pub use admission::Verdict;
use counts::{Apart, Counts, Published};
pub(crate) use drain::drain;
pub(crate) use driver::start as start_driver;
pub use dry_run::DryRun;
use dry_run::DryRunLedger;
pub(crate) use guarded::{Guarded, guarded, guarded_future};
pub use handle::GateHandle;
use holds::Holds;
use home::Home;
use layered::Layered;
use ledger::{AdmissionLedger, QueryLedger};
use load::{Advice, Mix, RetryBudget};
use plant::Plant;
pub use snapshot::Snapshot;
use watch::Publisher;
pub use watch::SnapshotWatch;

/// The gate in front of a pool or a limiter: decides on requests, and shows everything there is to see.
///
/// Cheap to clone; every clone is the same gate.
#[derive(Clone)]
pub struct Gate {
    inner: Arc<Inner>,
}

struct Inner {
    name: Arc<str>,
    acquire_timeout: Duration,
    soft_cap: AtomicUsize,
    hard_cap: AtomicUsize,
    published: Arc<Published>,
    plant: OnceLock<Weak<dyn Plant>>,
    /// What the plant had counted when it went.
    last_counts: OnceLock<Counts>,
    admissions: Apart<AdmissionLedger>,
    queries: QueryLedger,
    mix: Apart<Mix>,
    retry_budget: Apart<RetryBudget>,
    layered: Layered,
    advice: Advice,
    holds: Holds,
    home: Home,
    dial_failures: AtomicU64,
    failed_uses: AtomicU64,
    written_off: AtomicU64,
    draws: Apart<AtomicU64>,
    /// The bits of an `f64`.
    share: AtomicU64,
    dry_run: Option<DryRunLedger>,
    last_decision: Mutex<Decision>,
    publisher: Publisher,
    observers: Box<[Arc<dyn Observer>]>,
}

impl Gate {
    pub(crate) fn new(settings: &Settings, published: Arc<Published>, runtime: Handle) -> Self {
        let started = Decision { limit: settings.base_limit(), reason: Reason::Started };
        let inner = Inner {
            name: settings.name.as_str().into(),
            acquire_timeout: settings.acquire_timeout,
            soft_cap: AtomicUsize::new(settings.soft_cap()),
            hard_cap: AtomicUsize::new(settings.hard_cap),
            published,
            plant: OnceLock::new(),
            last_counts: OnceLock::new(),
            admissions: Apart::default(),
            queries: QueryLedger::default(),
            mix: Apart::default(),
            retry_budget: Apart::default(),
            layered: Layered::default(),
            advice: Advice::new(settings.max_retry_after),
            holds: Holds::new(settings.leak_warning_after),
            home: Home::new(runtime),
            dial_failures: AtomicU64::new(0),
            failed_uses: AtomicU64::new(0),
            written_off: AtomicU64::new(0),
            draws: Apart::new(settings.seed().into()),
            share: AtomicU64::new(settings.share.to_bits()),
            dry_run: settings.dry_run.then(DryRunLedger::default),
            last_decision: Mutex::new(started),
            publisher: Publisher::default(),
            observers: settings.observers.clone().into(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Ties the gate to what it controls; once, at build.
    pub(crate) fn control(&self, plant: Weak<dyn Plant>) {
        let _ = self.inner.plant.set(plant);
        for observer in &self.inner.observers {
            guarded(|| observer.attach(&self.downgrade()));
        }
    }

    /// Keeps what a plant had counted, so that the ledger outlives it.
    pub(crate) fn plant_gone(&self, counts: Counts) {
        let _ = self.inner.last_counts.set(counts);
    }

    /// Everything there is to see. Connections, queue and acquires are read together, at one moment; the other ledgers
    /// right after.
    pub fn snapshot(&self) -> Snapshot {
        let inner = &*self.inner;
        let counts = match self.plant() {
            Some(plant) => plant.counts(),
            None => inner.last_counts.get().copied().unwrap_or_default(),
        };
        Snapshot::new(inner, counts)
    }

    /// The name given to the builder.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    pub(crate) fn shared_name(&self) -> Arc<str> {
        self.inner.name.clone()
    }

    /// How long an acquire waits at the most.
    pub fn acquire_timeout(&self) -> Duration {
        self.inner.acquire_timeout
    }

    /// A handle that does not keep the gate alive, for callbacks that cannot be taken back.
    #[must_use]
    pub fn downgrade(&self) -> WeakGate {
        WeakGate { inner: Arc::downgrade(&self.inner) }
    }

    pub(crate) fn observe<'a>(&self, event: impl FnOnce() -> Event<'a>) {
        if !self.inner.observers.is_empty() {
            let event = event();
            for observer in &self.inner.observers {
                guarded(|| observer.on_event(self, &event));
            }
        }
    }

    pub(crate) fn decided(&self, decision: Decision) {
        *self.inner.last_decision.lock().unwrap_or_else(PoisonError::into_inner) = decision;
    }

    pub(crate) fn dial_failures(&self) -> u64 {
        self.inner.dial_failures.load(Relaxed)
    }

    pub(crate) fn dial_failed(&self) {
        self.inner.dial_failures.fetch_add(1, Relaxed);
    }

    pub(crate) fn failed_uses(&self) -> u64 {
        self.inner.failed_uses.load(Relaxed)
    }

    /// A use failed, as its holder or its backend says. However often they do, one use fails once: `told` is its own.
    pub(crate) fn use_failed(&self, told: &AtomicBool) {
        if !told.swap(true, Relaxed) {
            self.inner.failed_uses.fetch_add(1, Relaxed);
        }
    }

    pub(crate) fn wrote_off(&self) {
        self.inner.written_off.fetch_add(1, Relaxed);
    }

    pub(crate) fn holds(&self) -> &Holds {
        &self.inner.holds
    }

    #[cfg(feature = "postgres")]
    pub(crate) fn queries(&self) -> &QueryLedger {
        &self.inner.queries
    }

    fn plant(&self) -> Option<Arc<dyn Plant>> {
        self.inner.plant.get()?.upgrade()
    }

    /// Why the limit is what it is.
    pub(crate) fn last_reason(&self) -> Reason {
        let last = self.inner.last_decision.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_dry_run() { Reason::Custom("a dry run moves nothing") } else { last.reason }
    }

    /// The limit is another one now: told to the observers.
    pub(crate) fn limit_changed(&self, from: usize, decision: Decision) {
        self.decided(decision);
        let Decision { limit: to, reason } = decision;
        self.observe(|| Event::LimitChanged { from, to, reason });
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("name", &self.inner.name).finish_non_exhaustive()
    }
}

/// A [`Gate`] that may be gone.
#[derive(Clone)]
pub struct WeakGate {
    inner: Weak<Inner>,
}

impl WeakGate {
    /// The gate, while somebody else still holds it.
    #[must_use]
    pub fn upgrade(&self) -> Option<Gate> {
        Some(Gate { inner: self.inner.upgrade()? })
    }
}

impl fmt::Debug for WeakGate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WeakGate").finish_non_exhaustive()
    }
}
