//! The guard: a permit with its connection, in the caller's hands.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::{Inner, Item};
use crate::backend::{Backend, ConnectionState};
#[cfg(feature = "postgres")]
use crate::gate::Gate;
use crate::gate::holds::At;
use crate::terms::{Deadline, Terms};

/// The longest a connection may take to be settled before it is discarded instead.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection in use. Dropping it gives it to the next in line.
#[must_use = "a connection that is dropped at once was acquired for nothing"]
pub struct Connection<B: Backend> {
    /// `None` only while it is being dropped.
    item: Option<Item<B>>,
    /// Where the hold is measured.
    since: Option<Instant>,
    /// The request's, which bounds its queries.
    deadline: Option<Deadline>,
    /// Told to have failed, by its user or by the backend.
    failed: AtomicBool,
    pool: Arc<Inner<B>>,
}

impl<B: Backend> Connection<B> {
    pub(super) fn new(mut item: Item<B>, pool: &Arc<Inner<B>>, terms: Terms, at: At) -> Self {
        item.holder.begin(&pool.gate.holds().clock, at);
        pool.served(&item);
        let since = pool.slots.measure(Instant::now);
        let (deadline, failed) = (terms.deadline, AtomicBool::new(false));
        Self { item: Some(item), since, deadline, failed, pool: pool.clone() }
    }

    /// Tells the controller, in its next [`Sample`](crate::Sample), that this use failed: a time-out or an error that
    /// speaks of overload, as the caller judges. However often it is called, one use fails once.
    ///
    /// Nothing else follows from it: the connection goes on to the next in line as usual.
    pub fn failed(&mut self) {
        self.pool.gate.use_failed(&self.failed);
    }

    /// Since when it was held, where that is measured and tells something. A use that its deadline cut short, or that failed,
    /// would have taken longer: were it counted, a database that became slow would seem the quicker, the less it gets done.
    fn telling(&self) -> Option<Instant> {
        let since = self.since?;
        let cut =
            self.failed.load(Relaxed) || self.deadline.is_some_and(|deadline| deadline.remaining().is_zero());
        let usual = self.pool.slots.published.use_time();
        (!cut || usual.is_none_or(|usual| since.elapsed() > usual)).then_some(since)
    }

    #[cfg(feature = "postgres")]
    pub(crate) fn deadline(&self) -> Option<Deadline> {
        self.deadline
    }

    #[cfg(feature = "postgres")]
    pub(crate) fn gate(&self) -> &Gate {
        &self.pool.gate
    }

    #[cfg(feature = "postgres")]
    pub(crate) fn backend(&self) -> &B {
        &self.pool.backend
    }

    /// Whether the use was told to have failed, for [`Gate::use_failed`].
    #[cfg(feature = "postgres")]
    pub(crate) fn told_failed(&self) -> &AtomicBool {
        &self.failed
    }

    #[cfg(feature = "postgres")]
    pub(crate) fn parts(&mut self) -> (&mut B::Connection, &Gate, &B, &AtomicBool) {
        let Self { item, failed, pool, .. } = self;
        (&mut item.as_mut().expect(HELD).connection, &pool.gate, &pool.backend, failed)
    }
}

impl<B: Backend> Deref for Connection<B> {
    type Target = B::Connection;

    fn deref(&self) -> &B::Connection {
        &self.item.as_ref().expect(HELD).connection
    }
}

impl<B: Backend> DerefMut for Connection<B> {
    fn deref_mut(&mut self) -> &mut B::Connection {
        &mut self.item.as_mut().expect(HELD).connection
    }
}

const HELD: &str = "a guard holds its connection until it is dropped";

impl<B: Backend> Drop for Connection<B> {
    fn drop(&mut self) {
        let since = self.telling();
        let Some(item) = self.item.take() else { return };
        item.holder.end();
        let pool = &self.pool;
        match pool.state_of(&item) {
            ConnectionState::Ready | ConnectionState::Check => pool.give_back(item, since),
            ConnectionState::Settle => {
                // Made here: a task that is never polled must give its permit back too.
                let held = Unsettled { item: Some(item), since, pool: pool.clone() };
                drop(pool.gate.spawn(settle(held)));
            }
            ConnectionState::Dead => pool.discard(item, since),
        }
    }
}

impl<B: Backend> Inner<B> {
    fn give_back(&self, mut item: Item<B>, since: Option<Instant>) {
        let is_over = self.lifetime.used_up(&mut item, &self.gate.holds().clock);
        if is_over {
            return self.discard(item, since);
        }
        if self.slots.release(item, since.map(Instant::into_std), || Instant::now().into_std()) {
            self.reconcile();
        }
    }

    fn discard(&self, item: Item<B>, since: Option<Instant>) {
        self.slots.retire(item, since.map(Instant::into_std), || Instant::now().into_std());
        self.reconcile();
    }
}

/// Settles a connection in the background: it keeps its permit, and nobody gets it, until it is clean.
async fn settle<B: Backend>(mut held: Unsettled<B>) {
    let Some(item) = held.item.as_mut() else { return };
    let settled = timeout(SETTLE_TIMEOUT, held.pool.backend.settle(&mut item.connection)).await;
    let clean = matches!(settled, Ok(Ok(()))) && held.pool.state_of(item) == ConnectionState::Ready;
    if clean && let Some(item) = held.item.take() {
        held.pool.give_back(item, held.since);
    }
}

/// A connection in doubt: discarded unless it was taken out, also when its task is dropped.
struct Unsettled<B: Backend> {
    item: Option<Item<B>>,
    /// Where the hold is measured, as in [`Connection`].
    since: Option<Instant>,
    pool: Arc<Inner<B>>,
}

impl<B: Backend> Drop for Unsettled<B> {
    fn drop(&mut self) {
        if let Some(item) = self.item.take() {
            self.pool.discard(item, self.since);
        }
    }
}

impl<B: Backend> fmt::Debug for Connection<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("since", &self.since).finish_non_exhaustive()
    }
}
