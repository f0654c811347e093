//! The pool: a gate, its slots full of connections, and the dials and closes that the gate's limit asks for.

mod back_off;
mod check;
mod connection;
mod dial;
mod lifetime;
mod plant;

use std::fmt;
use std::future::Future;
use std::panic::Location;
use std::sync::{Arc, Weak};
use std::time::Duration;

use http::Extensions;
use tokio::sync::Notify;
use tokio::task::coop::consume_budget;
use tokio::time::Instant as Clock;

use crate::backend::{Backend, ConnectionState};
use crate::config::{Builder, ConfigError};
use crate::error::{AcquireError, DrainTimeout, NotReady, ShedReason};
use crate::gate::counts::Counts;
use crate::gate::holds::At;
use crate::gate::home::NoRuntime;
use crate::gate::permits::{Entry, Keeps};
use crate::gate::queue::Grant;
use crate::gate::slots::Slots;
use crate::gate::{Acquiring, Gate, GateHandle, Snapshot, SnapshotWatch, Span, drain, guarded, start_driver};
use crate::observe::ShedBy;
use crate::terms::{Terms, after};

use back_off::Dialing;
pub use connection::Connection;
use lifetime::{Lifetime, Pooled};

/// A pool of connections that finds how many of them to use at once, up to `max_size`.
///
/// Cheap to clone; every clone is the same pool. When the last clone, the last [`Connection`] and the last layer made from it
/// are gone, the idle connections close.
///
/// ```no_run
/// # #[cfg(feature = "postgres")]
/// # mod example {
/// use std::time::Duration;
/// use tower_adaptive_pool::{AdaptivePool, Postgres};
/// use tokio_postgres::NoTls;
///
/// # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let config = "postgres://app:secret@localhost/app".parse()?;
/// let pool = AdaptivePool::builder(Postgres::new(config, NoTls))
///     .min_size(10)
///     .max_size(50)
///     .acquire_timeout(Duration::from_secs(2))
///     .build()?;
/// pool.ready().await?;
/// let connection = pool.acquire().await?;
/// let row = connection.query_one("select 1 + 1", &[]).await?;
/// assert_eq!(row.get::<_, i32>(0), 2);
/// # Ok(()) }
/// # }
/// ```
pub struct AdaptivePool<B: Backend> {
    inner: Arc<Inner<B>>,
}

/// What the slots hand from one to the next: a pointer, because a connection may be a few hundred bytes.
pub(crate) type Item<B> = Box<Pooled<<B as Backend>::Connection>>;

pub(crate) struct Inner<B: Backend> {
    gate: Gate,
    slots: Slots<Item<B>>,
    backend: Arc<B>,
    dialing: Dialing,
    lifetime: Lifetime,
    /// Notified whenever a connection was opened, could not be opened, or is gone.
    changed: Notify,
    this: Weak<Self>,
}

impl<B: Backend> AdaptivePool<B> {
    /// Starts from the defaults.
    pub fn builder(backend: B) -> Builder<B> {
        Builder::new(backend)
    }

    /// A connection, now or before `acquire_timeout` has passed.
    ///
    /// Dropping the future gives its place in the queue up. The caller never dials: connections are opened in the
    /// background, and a waiter takes whichever comes first, a returned one or a fresh one.
    ///
    /// # Errors
    /// [`AcquireError::Shed`] when the queue is full, [`AcquireError::Timeout`] at the deadline,
    /// [`AcquireError::Dial`] when no connection is open and none can be in time, [`AcquireError::Closed`] once drained.
    #[track_caller]
    pub fn acquire(&self) -> impl Future<Output = Result<Connection<B>, AcquireError>> + Send + use<'_, B> {
        self.acquire_at(Terms::default(), Location::caller())
    }

    /// A connection for the request with these extensions: its class says where in the queue it stands, and its deadline
    /// bounds the wait and the queries ([`Terms::of`]). Else as [`acquire`](Self::acquire).
    ///
    /// # Errors
    /// As there.
    #[track_caller]
    pub fn acquire_for(
        &self,
        extensions: &Extensions,
    ) -> impl Future<Output = Result<Connection<B>, AcquireError>> + Send + use<'_, B> {
        self.acquire_at(Terms::of(extensions), Location::caller())
    }

    /// A connection on these terms: a [`Terms`], a [`Class`](crate::Class) or a [`Deadline`](crate::Deadline). Else as
    /// [`acquire_for`](Self::acquire_for).
    ///
    /// # Errors
    /// As there.
    #[track_caller]
    pub fn acquire_with<T: Into<Terms>>(
        &self,
        terms: T,
    ) -> impl Future<Output = Result<Connection<B>, AcquireError>> + Send + use<'_, B, T> {
        self.acquire_at(terms.into(), Location::caller())
    }

    async fn acquire_at(&self, terms: Terms, at: At) -> Result<Connection<B>, AcquireError> {
        consume_budget().await; // a loop of acquires must let other tasks run
        let inner = &self.inner;
        let mut taken = match terms.deadline {
            None => inner.slots.take(terms.class),
            Some(_) => None, // the clock has to be looked at
        };
        if let Some(item) = taken.take_if(|item| inner.state_of(item) == ConnectionState::Ready) {
            return Ok(Connection::new(item, inner, terms, at));
        }
        let mut acquiring = Acquiring::new(&inner.gate, &inner.slots, terms, at);
        if let Some(item) = taken {
            acquiring.resume(Entry::Granted(Grant { item, unproven: false }));
        }
        loop {
            let Grant { item, unproven } = match (&mut acquiring).await {
                Ok(grant) => grant,
                Err(denied) => {
                    let dial_error = || inner.dialing.blocking_error(&inner.slots.counts());
                    return Err(denied.into_error(&inner.gate, &inner.slots, acquiring.span(), dial_error));
                }
            };
            let dead = match inner.state_of(&item) {
                ConnectionState::Ready if !unproven => return Ok(Connection::new(item, inner, terms, at)),
                ConnectionState::Ready | ConnectionState::Check => {
                    match inner.check(item, acquiring.span()).await? {
                        Ok(item) => return Ok(Connection::new(item, inner, terms, at)),
                        Err(dead) => dead,
                    }
                }
                ConnectionState::Settle | ConnectionState::Dead => item,
            };
            let entry = inner.replace(dead, Some(acquiring.span()));
            acquiring.resume(entry);
        }
    }

    /// A connection now or none: never waits, never dials, never checks, and never overtakes a waiter.
    ///
    /// # Errors
    /// [`AcquireError::Shed`] when none is free, [`AcquireError::Closed`] once drained.
    #[track_caller]
    pub fn try_acquire(&self) -> Result<Connection<B>, AcquireError> {
        self.try_acquire_at(Terms::default(), Location::caller())
    }

    pub(crate) fn try_acquire_at(&self, terms: Terms, at: At) -> Result<Connection<B>, AcquireError> {
        let inner = &self.inner;
        inner.gate.revive();
        let mut entry = inner.slots.try_enter(|| inner.gate.holds().clock.look().into_std());
        loop {
            match entry {
                Entry::Granted(Grant { item, .. }) => match inner.state_of(&item) {
                    ConnectionState::Ready | ConnectionState::Check => {
                        return Ok(Connection::new(item, inner, terms, at));
                    }
                    ConnectionState::Settle | ConnectionState::Dead => entry = inner.replace(item, None),
                },
                Entry::Full(depth) => {
                    let shed = inner.gate.shed(ShedReason::NoneIdle, depth, terms.class, ShedBy::Gate);
                    return Err(AcquireError::Shed(shed));
                }
                Entry::Queued(_) | Entry::Failed(_) | Entry::TimedOut | Entry::Closed => {
                    return Err(AcquireError::Closed);
                }
            }
        }
    }

    /// Waits until `min_size` connections are open, and gives up when for a whole `dial_timeout` not one more was opened, or
    /// at once when the server rejects us.
    ///
    /// The pool goes on trying afterwards, and heals by itself: a service may start without its database.
    ///
    /// # Errors
    /// How many are open, and why there are no more.
    pub async fn ready(&self) -> Result<(), NotReady> {
        let inner = &self.inner;
        let limit = inner.dialing.timeout();
        let mut deadline = after(Clock::now(), limit);
        let mut most = 0;
        loop {
            let runs = inner.gate.revive();
            let changed = inner.changed.notified();
            let counts = inner.slots.counts();
            let open = counts.open();
            if open >= counts.min_size {
                return Ok(());
            }
            if open > most {
                (most, deadline) = (open, after(Clock::now(), limit));
            }
            let hopeless = inner.slots.published.draining() || (open == 0 && inner.dialing.is_rejected());
            if !runs || hopeless || inner.gate.until(deadline, changed).await.is_none() {
                let error = if runs { inner.dialing.last_error() } else { Some(Arc::new(NoRuntime) as _) };
                return Err(NotReady { open, min_size: counts.min_size, error });
            }
        }
    }

    /// Stops for good: refuses new acquires at once, serves those who wait, and resolves when the server has let go of
    /// every connection.
    ///
    /// There is no way back. Dropping this future half-way leaves the pool draining, with no deadline: new acquires are
    /// refused, those who wait are served, connections close as they come back. A second call waits on, with its own.
    ///
    /// # Errors
    /// After `deadline`: how many connections are still out. Those who wait are answered [`AcquireError::Closed`], and
    /// what is still held closes when it comes back.
    pub async fn drain(&self, deadline: Duration) -> Result<(), DrainTimeout> {
        drain(&self.inner.gate, &self.inner.slots, &self.inner.changed, deadline).await
    }

    /// Everything there is to see, read together. Short for `gate().snapshot()`.
    pub fn snapshot(&self) -> Snapshot {
        self.inner.gate.snapshot()
    }

    /// Snapshots at the driver's pace. Short for `gate().watch()`.
    #[must_use]
    pub fn watch(&self) -> SnapshotWatch {
        self.inner.gate.watch()
    }

    /// The gate, for the layer, the bounds and everything there is to see.
    pub fn gate(&self) -> &Gate {
        &self.inner.gate
    }

    pub(crate) fn start(builder: Builder<B>) -> Result<Self, ConfigError> {
        let (settings, backend, runtime) = builder.checked()?;
        let slots = Slots::new(settings.bounds(), Keeps::Reserve);
        let gate = Gate::new(&settings, slots.published.clone(), runtime);
        let inner = Arc::new_cyclic(|this| Inner {
            gate: gate.clone(),
            slots,
            backend: Arc::new(backend),
            dialing: Dialing::new(&settings),
            lifetime: Lifetime::new(&settings),
            changed: Notify::new(),
            this: this.clone(),
        });
        let idle_timeout = Some(settings.idle_timeout);
        start_driver(&gate, &inner, settings.controller.into_controller(), idle_timeout);
        Ok(Self { inner })
    }
}

impl<B: Backend> Inner<B> {
    /// How a connection is. One that its backend cannot even tell of is of no more use.
    fn state_of(&self, item: &Item<B>) -> ConnectionState {
        if item.lost.is_lost() {
            return ConnectionState::Dead;
        }
        guarded(|| self.backend.state(&item.connection)).unwrap_or(ConnectionState::Dead)
    }

    /// A dead connection goes, and its acquire goes on with the next one; it waits for one only if it has a span to do so.
    fn replace(&self, dead: Item<B>, span: Option<Span>) -> Entry<Item<B>> {
        self.died_at_hand_out(&dead);
        let waits = span.map(|span| (span.class, span.times()));
        let entry = self.slots.reject(dead, waits, || Clock::now().into_std());
        self.reconcile();
        entry
    }
}

impl<B: Backend> Drop for Inner<B> {
    fn drop(&mut self) {
        self.slots.close();
        // The places of what has just been closed can no longer report to anybody.
        let counts = self.slots.counts();
        self.gate.plant_gone(Counts { places: 0, opening: 0, ..counts });
    }
}

impl<B: Backend> Clone for AdaptivePool<B> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

impl<B: Backend> From<AdaptivePool<B>> for GateHandle {
    fn from(pool: AdaptivePool<B>) -> Self {
        Self::new(pool.gate().clone(), pool)
    }
}

impl<B: Backend> fmt::Debug for AdaptivePool<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AdaptivePool").field(&self.snapshot()).finish()
    }
}
