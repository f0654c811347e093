//! The check of a connection that may have died unheard, inside its acquire's deadline.

use std::time::Duration;

use tokio::time::Instant;

use super::{Inner, Item};
use crate::backend::Backend;
use crate::error::AcquireError;
use crate::gate::permits::Leave;
use crate::gate::{Span, guarded_future, timed_out};

/// The longest a check may take before its connection counts as dead; a round trip takes a thousandth of it.
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);
/// A check takes no more than a third of what is left until the deadline, so that there is time for a dial; but a round
/// trip over half the world is let finish.
const SHORTEST_CHECK_TIMEOUT: Duration = Duration::from_millis(100);
/// A silence shorter than that, cut off by a request's deadline, tells nothing about other connections.
const TELLING: Duration = Duration::from_millis(50);

impl<B: Backend> Inner<B> {
    /// Checks a granted connection inside the acquire's deadline. The inner error is the dead connection; the outer
    /// one the deadline.
    ///
    /// Where nobody answers, a middlebox has forgotten the connection, and with it all that was idle for as long: they go
    /// together, so that one silence is waited out and not one after the other.
    pub(super) async fn check(
        &self,
        item: Item<B>,
        span: Span,
    ) -> Result<Result<Item<B>, Item<B>>, AcquireError> {
        let mut grant = Checking { item: Some(item), inner: self, why: Leave::Cancelled };
        let Some(item) = grant.item.as_mut() else { return Err(AcquireError::Closed) };
        let (now, deadline) = (Instant::now(), span.deadline());
        let third = deadline.saturating_duration_since(now) / 3;
        let patience = now + third.clamp(SHORTEST_CHECK_TIMEOUT, CHECK_TIMEOUT);
        let connection = &mut *item.connection;
        // Its error is dropped inside as well.
        let check = guarded_future(async move { self.backend.check(connection).await.is_ok() });
        let checked = self.gate.until(deadline.min(patience), check).await;
        if checked.is_none() && now.elapsed() >= TELLING {
            self.slots.close_unproven();
        }
        if checked.is_none() && deadline < patience {
            grant.why = Leave::TimedOut;
            drop(grant);
            let dial_error = self.dialing.blocking_error(&self.slots.counts());
            return Err(timed_out(&self.gate, &self.slots, span, dial_error));
        }
        let item = grant.item.take().ok_or(AcquireError::Closed)?;
        Ok(if matches!(checked, Some(Some(true))) { Ok(item) } else { Err(item) })
    }
}

/// A grant that has not reached its caller: dropped, it is taken back and its connection, in doubt, discarded.
struct Checking<'a, B: Backend> {
    item: Option<Item<B>>,
    inner: &'a Inner<B>,
    why: Leave,
}

impl<B: Backend> Drop for Checking<'_, B> {
    fn drop(&mut self) {
        if let Some(item) = self.item.take() {
            self.inner.slots.revoke(item, self.why, || Instant::now().into_std());
            self.inner.reconcile();
        }
    }
}
