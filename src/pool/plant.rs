//! What the pool adds to its slots: limits become dials, old and lost connections close, places are given back.

use std::time::Duration;

use tokio::sync::Notify;

use super::{Inner, Item};
use crate::backend::{Backend, PlaceOwner};
use crate::gate::Gate;
use crate::gate::plant::HasSlots;
use crate::gate::slots::Slots;
use crate::observe::Event;

impl<B: Backend> HasSlots for Inner<B> {
    type Item = Item<B>;

    fn slots(&self) -> &Slots<Item<B>> {
        &self.slots
    }

    fn refill(&self) {
        self.reconcile();
    }

    fn gate(&self) -> &Gate {
        &self.gate
    }

    fn changed(&self) -> &Notify {
        &self.changed
    }

    fn close_old(&self) {
        let clock = &self.gate.holds().clock;
        clock.look();
        self.slots.close_idle_if(|item| item.is_over(clock), |_| {});
        self.reconcile();
    }

    fn close_old_every(&self) -> Option<Duration> {
        self.lifetime.look_every()
    }
}

impl<B: Backend> Inner<B> {
    /// Closes what the server has ended and nobody holds. No user code runs under the lock: the place has said so.
    pub(super) fn close_lost(&self) {
        self.slots.close_idle_if(|item| item.lost.is_lost(), |item| self.died(item));
    }
}

impl<B: Backend> PlaceOwner for Inner<B> {
    fn place_freed(&self) {
        self.slots.free_place();
        self.reconcile();
        self.tell();
    }

    fn connection_lost(&self) {
        self.close_lost();
        self.reconcile();
    }

    fn place_written_off(&self) {
        self.gate.wrote_off();
        self.gate.observe(|| Event::WrittenOff {});
    }

    #[cfg(feature = "postgres")]
    fn setting_refused(&self, name: &str, why: &str) {
        self.gate.observe(|| Event::SettingRefused { name, why });
    }
}
