//! Limit-only mode: permits without connections, for a client that owns its pool.

use std::future::Future;
use std::panic::Location;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Weak};
use std::time::Duration;

use http::Extensions;
use tokio::sync::Notify;
use tokio::task::coop::consume_budget;
use tokio::time::Instant as Clock;

use super::acquire::Acquiring;
use super::drain::drain;
use super::holds::{At, Held, Holder};
use super::permits::{Entry, Keeps};
use super::plant::HasSlots;
use super::slots::Slots;
use super::{Gate, GateHandle, driver, guarded};
use crate::backend::{Place, PlaceOwner};
use crate::config::{Builder, ConfigError, LimitOnly};
use crate::error::{AcquireError, DrainTimeout, ShedReason};
use crate::observe::ShedBy;
use crate::terms::{Class, Terms};

/// The same layer, shedding and controller for a client that owns its pool (sqlx, bb8, MongoDB's driver, an upstream):
/// the handler holds a [`Permit`] while it uses that client.
///
/// ```
/// # use tower_adaptive_pool::Limiter;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let limiter = Limiter::builder().name("upstream").min_size(2).max_size(20).build()?;
/// let permit = limiter.acquire().await?;
/// // ... use the client ...
/// drop(permit);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Limiter {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    gate: Gate,
    slots: Slots<Limited>,
    /// Notified whenever a permit is gone.
    changed: Notify,
    this: Weak<Inner>,
}

/// What a limiter's slots carry.
#[derive(Debug)]
struct Limited {
    _place: Place,
    holder: Holder,
}

impl Held for Limited {
    fn begin_hold(&mut self, at: At) {
        self.holder.begin_hold(at);
    }

    fn end_hold(&self) {
        self.holder.end_hold();
    }
}

/// The right to one use of what a [`Limiter`] limits; dropping it gives it to the next in line.
#[derive(Debug)]
#[must_use = "a permit that is dropped at once limits nothing"]
pub struct Permit {
    place: Option<Limited>,
    /// Where the hold is measured.
    since: Option<Clock>,
    /// Told to have failed.
    failed: AtomicBool,
    limiter: Arc<Inner>,
}

impl Limiter {
    /// Starts from the defaults.
    pub fn builder() -> Builder<LimitOnly> {
        Builder::new(LimitOnly::default())
    }

    /// A permit, now or before `acquire_timeout` has passed.
    ///
    /// # Errors
    /// [`AcquireError::Shed`] when the queue is full, [`AcquireError::Timeout`] at the deadline,
    /// [`AcquireError::Closed`] once drained.
    #[track_caller]
    pub fn acquire(&self) -> impl Future<Output = Result<Permit, AcquireError>> + Send + use<'_> {
        self.acquire_at(Terms::default(), Location::caller())
    }

    /// A permit for the request with these extensions: its class says where in the queue it stands, and its deadline bounds
    /// the wait ([`Terms::of`]). Else as [`acquire`](Self::acquire).
    ///
    /// # Errors
    /// As there.
    #[track_caller]
    pub fn acquire_for(
        &self,
        extensions: &Extensions,
    ) -> impl Future<Output = Result<Permit, AcquireError>> + Send + use<'_> {
        self.acquire_at(Terms::of(extensions), Location::caller())
    }

    /// A permit on these terms: a [`Terms`], a [`Class`](crate::Class) or a [`Deadline`](crate::Deadline). Else as
    /// [`acquire_for`](Self::acquire_for).
    ///
    /// # Errors
    /// As there.
    #[track_caller]
    pub fn acquire_with<T: Into<Terms>>(
        &self,
        terms: T,
    ) -> impl Future<Output = Result<Permit, AcquireError>> + Send + use<'_, T> {
        self.acquire_at(terms.into(), Location::caller())
    }

    async fn acquire_at(&self, terms: Terms, at: At) -> Result<Permit, AcquireError> {
        consume_budget().await; // a loop of acquires must let other tasks run
        let Inner { gate, slots, .. } = &*self.inner;
        if terms.deadline.is_none()
            && let Some(place) = slots.take(terms.class)
        {
            return Ok(self.permit(place, at));
        }
        let mut acquiring = Acquiring::new(gate, slots, terms, at);
        match (&mut acquiring).await {
            Ok(grant) => Ok(self.permit(grant.item, at)),
            Err(denied) => Err(denied.into_error(gate, slots, acquiring.span(), || None)),
        }
    }

    /// A permit now or none: never waits and never overtakes a waiter.
    ///
    /// # Errors
    /// [`AcquireError::Shed`] when none is free, [`AcquireError::Closed`] once drained.
    #[track_caller]
    pub fn try_acquire(&self) -> Result<Permit, AcquireError> {
        let (Inner { gate, slots, .. }, at) = (&*self.inner, Location::caller());
        gate.revive();
        match slots.try_enter(|| gate.holds().clock.look().into_std()) {
            Entry::Granted(grant) => Ok(self.permit(grant.item, at)),
            Entry::Full(depth) => Err(AcquireError::Shed(gate.shed(
                ShedReason::NoneIdle,
                depth,
                Class::default(),
                ShedBy::Gate,
            ))),
            Entry::Queued(_) | Entry::Failed(_) | Entry::TimedOut | Entry::Closed => {
                Err(AcquireError::Closed)
            }
        }
    }

    /// The gate, for the layer and for everything there is to see.
    pub fn gate(&self) -> &Gate {
        &self.inner.gate
    }

    /// Stops for good, as [`AdaptivePool::drain`](crate::AdaptivePool::drain): refuses new acquires at once, serves those
    /// who wait, and resolves when every permit has come back.
    ///
    /// There is no way back: dropping this future half-way leaves the limiter draining, with no deadline. A second call
    /// waits on, with its own.
    ///
    /// # Errors
    /// After `deadline`: how many permits are still out.
    pub async fn drain(&self, deadline: Duration) -> Result<(), DrainTimeout> {
        drain(&self.inner.gate, &self.inner.slots, &self.inner.changed, deadline).await
    }

    pub(crate) fn start(builder: Builder<LimitOnly>) -> Result<Self, ConfigError> {
        let (settings, _, runtime) = builder.checked()?;
        let slots = Slots::new(settings.bounds(), Keeps::Nothing);
        let gate = Gate::new(&settings, slots.published.clone(), runtime);
        let inner = Arc::new_cyclic(|this| Inner {
            gate: gate.clone(),
            slots,
            changed: Notify::new(),
            this: this.clone(),
        });
        driver::start(&gate, &inner, settings.controller.into_controller(), None);
        Ok(Self { inner })
    }

    fn permit(&self, mut place: Limited, at: At) -> Permit {
        place.holder.begin(&self.inner.gate.holds().clock, at);
        Permit {
            place: Some(place),
            since: self.inner.slots.measure(Clock::now),
            failed: AtomicBool::new(false),
            limiter: self.inner.clone(),
        }
    }
}

impl From<Limiter> for GateHandle {
    fn from(limiter: Limiter) -> Self {
        Self::new(limiter.gate().clone(), limiter)
    }
}

impl Permit {
    /// Tells the controller, in its next [`Sample`](crate::Sample), that this use failed: a time-out or an error that
    /// speaks of overload, as the caller judges. However often it is called, one use fails once.
    ///
    /// Nothing else follows from it: the permit goes on to the next in line as usual.
    pub fn failed(&mut self) {
        self.limiter.gate.use_failed(&self.failed);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            place.holder.end();
            let since = self.since.map(Clock::into_std);
            self.limiter.slots.release(place, since, || Clock::now().into_std());
        }
    }
}

impl Inner {
    /// Permits cost nothing to make: there are always as many as the limit says, and none in reserve.
    fn fill(&self) {
        while self.slots.begin_open() {
            let place = Limited { _place: Place::new(self.this.clone()), holder: self.gate.holds().join() };
            self.slots.opened(place, Clock::now().into_std());
        }
    }
}

impl PlaceOwner for Inner {
    fn place_freed(&self) {
        self.slots.free_place();
        self.fill();
        guarded(|| self.changed.notify_waiters());
    }

    fn connection_lost(&self) {}

    fn place_written_off(&self) {}
}

impl HasSlots for Inner {
    type Item = Limited;

    fn slots(&self) -> &Slots<Limited> {
        &self.slots
    }

    fn refill(&self) {
        self.fill();
    }

    fn gate(&self) -> &Gate {
        &self.gate
    }

    fn changed(&self) -> &Notify {
        &self.changed
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.slots.close();
        self.gate.plant_gone(self.slots.counts());
    }
}
