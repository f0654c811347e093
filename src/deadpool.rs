//! Any [`deadpool::managed::Manager`] as a [`Backend`]: what deadpool pools, pooled here.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use ::deadpool::managed::{Manager, Metrics, RecycleError};

use crate::backend::{Backend, ConnectionState, Place};

/// A deadpool manager as a [`Backend`].
///
/// ```no_run
/// # async fn example<M>(manager: M) -> Result<(), Box<dyn std::error::Error>>
/// # where M: deadpool::managed::Manager + 'static, M::Error: std::error::Error + Sync + 'static {
/// use tower_adaptive_pool::{AdaptivePool, Deadpool};
///
/// // `manager` is deadpool_redis::Manager::new("redis://localhost")?, for example.
/// let pool = AdaptivePool::builder(Deadpool::new(manager)).max_size(20).build()?;
/// let object = pool.acquire().await?; // derefs to what the manager makes
/// # drop(object);
/// # Ok(()) }
/// ```
///
/// - An object is recycled at every hand-out by [`acquire`](crate::AdaptivePool::acquire), a fresh one too: inside the
///   caller's deadline, and for no longer than a second, or a third of the time left if that is less (see
///   [`Backend::check`]). One that cannot be recycled is discarded, as is one whose caller gave up meanwhile; the same
///   acquire goes on with the next. A manager that refuses even what it has just made serves nobody: the pool then dials
///   no faster than while the database is away.
/// - [`try_acquire`](crate::AdaptivePool::try_acquire) never waits, so it hands out what was not recycled.
/// - [`Manager::detach`] is called for every object that is discarded, right before its drop.
/// - A manager cannot say when the server has let go of a connection: its place under the ceiling is free as soon as the
///   object was dropped, so for a moment the server may count more. Nor can it tell what the last user left behind,
///   unless its `recycle` does.
pub struct Deadpool<M: Manager> {
    manager: Arc<M>,
    /// A fresh object could not be recycled: `create` alone proves nothing (it may be lazy), so dials recycle too until
    /// one succeeds. That way the failure is a dial's, with a reason for those who wait and with the dials' back-off.
    doubted: AtomicBool,
}

impl<M: Manager> Deadpool<M> {
    /// A backend that opens and recycles with this manager.
    pub fn new(manager: M) -> Self {
        Self { manager: Arc::new(manager), doubted: AtomicBool::new(false) }
    }
}

impl<M> Backend for Deadpool<M>
where
    M: Manager + 'static,
    M::Error: Error + Sync + 'static,
{
    type Connection = Pooled<M>;
    type Error = DeadpoolError<M::Error>;

    async fn dial(&self, place: Place) -> Result<Pooled<M>, Self::Error> {
        let object = self.manager.create().await.map_err(DeadpoolError::Create)?;
        let manager = self.manager.clone();
        let mut pooled =
            Pooled { object, metrics: Metrics::default(), served: false, manager, _place: place };
        if self.doubted.load(Relaxed) {
            pooled.recycle().await?;
            self.doubted.store(false, Relaxed);
        }
        Ok(pooled)
    }

    fn state(&self, _: &Pooled<M>) -> ConnectionState {
        ConnectionState::Check
    }

    async fn check(&self, pooled: &mut Pooled<M>) -> Result<(), Self::Error> {
        let recycled = pooled.recycle().await;
        if recycled.is_ok() {
            pooled.served = true;
        } else if !pooled.served {
            self.doubted.store(true, Relaxed);
        }
        recycled
    }
}

impl<M: Manager> fmt::Debug for Deadpool<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deadpool").finish_non_exhaustive()
    }
}

/// What a manager made, in the pool. Derefs to it.
pub struct Pooled<M: Manager> {
    object: M::Type,
    metrics: Metrics,
    /// Was handed out at least once.
    served: bool,
    manager: Arc<M>,
    /// Dropped after the object, so that the next is not opened before this one is gone.
    _place: Place,
}

impl<M: Manager> Pooled<M> {
    /// What deadpool knows about an object: its age, and how often it was recycled.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    async fn recycle(&mut self) -> Result<(), DeadpoolError<M::Error>> {
        self.manager.recycle(&mut self.object, &self.metrics).await?;
        self.metrics.recycle_count += 1;
        self.metrics.recycled = Some(Instant::now());
        Ok(())
    }
}

impl<M: Manager> Deref for Pooled<M> {
    type Target = M::Type;

    fn deref(&self) -> &M::Type {
        &self.object
    }
}

impl<M: Manager> DerefMut for Pooled<M> {
    fn deref_mut(&mut self) -> &mut M::Type {
        &mut self.object
    }
}

impl<M: Manager> Drop for Pooled<M> {
    fn drop(&mut self) {
        self.manager.detach(&mut self.object);
    }
}

impl<M: Manager> fmt::Debug for Pooled<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pooled").field("metrics", &self.metrics).finish_non_exhaustive()
    }
}

/// Why a manager's object could not be had.
#[derive(Debug)]
#[non_exhaustive]
pub enum DeadpoolError<E> {
    /// The manager could not create it.
    Create(E),
    /// Recycling it failed at the server.
    Recycle(E),
    /// The manager would not recycle it, and says why.
    Refused(Cow<'static, str>),
}

impl<E> From<RecycleError<E>> for DeadpoolError<E> {
    fn from(error: RecycleError<E>) -> Self {
        match error {
            RecycleError::Backend(error) => Self::Recycle(error),
            RecycleError::Message(message) => Self::Refused(message),
        }
    }
}

impl<E: fmt::Display> fmt::Display for DeadpoolError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create(error) => write!(f, "the manager could not create an object: {error}"),
            Self::Recycle(error) => write!(f, "the manager could not recycle an object: {error}"),
            Self::Refused(message) => write!(f, "the manager refused to recycle an object: {message}"),
        }
    }
}

impl<E: Error + 'static> Error for DeadpoolError<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Create(error) | Self::Recycle(error) => Some(error),
            Self::Refused(_) => None,
        }
    }
}
