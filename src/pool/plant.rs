//! What the pool adds to its slots: limits become dials, old connections close.

use std::time::Duration;

use super::{Inner, Item};
use crate::backend::Backend;
use crate::gate::plant::HasSlots;
use crate::gate::slots::Slots;

impl<B: Backend> HasSlots for Inner<B> {
    type Item = Item<B>;

    fn slots(&self) -> &Slots<Item<B>> {
        &self.slots
    }

    fn refill(&self) {
        self.reconcile();
    }

    fn close_old(&self) {
        let clock = &self.gate.holds().clock;
        clock.look();
        self.slots.close_idle_if(|item| item.is_over(clock));
        self.reconcile();
    }

    fn close_old_every(&self) -> Option<Duration> {
        self.lifetime.look_every()
    }
}
