//! Snapshots for readers at their own pace.

use std::fmt;
use std::sync::Arc;

use tokio::sync::watch::{Receiver, Sender};

use super::{Gate, Snapshot, guarded};

/// Snapshots as they are taken, made by [`Gate::watch`]: the newest, and a wait for the next.
///
/// It hands out no lock: however long a reader keeps what it got, nobody waits for it.
///
/// ```
/// # use tower_adaptive_pool::Limiter;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let limiter = Limiter::builder().min_size(2).max_size(20).build()?;
/// let mut watch = limiter.gate().watch();
/// # let _permit = limiter.acquire().await?;
/// while watch.changed().await {
///     let seen = watch.get();
///     println!("{} of {} in use, {} waiting", seen.in_use, seen.limit, seen.queue_depth);
/// #   break;
/// }
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct SnapshotWatch {
    receiver: Receiver<Arc<Snapshot>>,
}

impl SnapshotWatch {
    /// The newest snapshot. [`changed`](Self::changed) waits for a later one.
    pub fn get(&mut self) -> Arc<Snapshot> {
        self.receiver.borrow_and_update().clone()
    }

    /// Resolves to true when there is a snapshot that neither [`get`](Self::get) nor an earlier `changed` has shown; to false
    /// when the gate is gone, and there will be none.
    ///
    /// Dropped before it resolves, it has shown nothing.
    #[must_use = "false says that there will be no other snapshot"]
    pub async fn changed(&mut self) -> bool {
        self.receiver.changed().await.is_ok()
    }
}

impl fmt::Debug for SnapshotWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let newest = self.receiver.borrow().clone();
        f.debug_tuple("SnapshotWatch").field(&newest).finish()
    }
}

/// The other end of all watches of a gate.
#[derive(Default)]
pub(super) struct Publisher {
    sender: Sender<Arc<Snapshot>>,
}

impl Publisher {
    /// Those who watch are woken here, by code of their executors.
    ///
    /// The snapshot is taken under the lock: of two at once the later one stays.
    fn show(&self, snapshot: impl FnOnce() -> Snapshot) {
        guarded(|| self.sender.send_modify(|newest| *newest = Arc::new(snapshot())));
    }
}

impl Gate {
    /// Snapshots as the driver takes them: one a tick (10 ms) while there is work, one when it comes to rest, and one
    /// whenever a connection was opened, lost or closed, a dial failed, or the bounds were changed.
    #[must_use]
    pub fn watch(&self) -> SnapshotWatch {
        let sender = &self.inner.publisher.sender;
        // Not to be the last to let go of the pool, with the watch locked.
        let _plant = self.plant();
        self.inner.publisher.show(|| self.snapshot());
        SnapshotWatch { receiver: sender.subscribe() }
    }

    pub(crate) fn publish_snapshot(&self) {
        let publisher = &self.inner.publisher;
        if publisher.sender.receiver_count() > 0 {
            publisher.show(|| self.snapshot());
        }
    }
}
