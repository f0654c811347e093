//! Stopping for good.

use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::Gate;
use super::holds::Held;
use super::slots::Slots;
use crate::error::DrainTimeout;
use crate::terms::after;

/// Refuses new acquires, serves those who wait, and ends when every place is free; after `deadline` at the latest, when
/// those who still wait are answered. `changed` is notified whenever a place is freed or a dial ends.
pub(crate) async fn drain<T: Held>(
    gate: &Gate,
    slots: &Slots<T>,
    changed: &Notify,
    deadline: Duration,
) -> Result<(), DrainTimeout> {
    let deadline = after(Instant::now(), deadline);
    slots.start_drain();
    let over = || {
        let counts = slots.counts();
        counts.places == 0 && counts.queue_depth == 0
    };
    loop {
        let changed = changed.notified();
        if over() || gate.until(deadline, changed).await.is_none() {
            break;
        }
    }
    let over = over();
    slots.close();
    let counts = slots.counts();
    let (in_use, opening, closing) = (counts.in_use, counts.opening, counts.closing());
    if over { Ok(()) } else { Err(DrainTimeout { in_use, opening, closing }) }
}
