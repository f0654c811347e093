//! Whether a request may pass two layers of one gate: nested routers may have one each.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use super::Gate;

/// How often layers over a gate were applied to services. More than once need not be nesting, since a router applies its layer
/// to each route; but with one service there is none.
#[derive(Debug, Default)]
pub(super) struct Layered {
    once: AtomicBool,
    number: OnceLock<usize>,
}

impl Gate {
    /// A layer over this gate was applied to a service.
    pub(crate) fn layered(&self) {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let Layered { once, number } = &self.inner.layered;
        // Some routers do this for each request: then nothing is written any more.
        if number.get().is_none() && once.swap(true, Relaxed) {
            number.get_or_init(|| NEXT.fetch_add(1, Relaxed));
        }
    }

    /// The gate's number among those with more than one service behind a layer; `None` where it has only one.
    pub(crate) fn layered_number(&self) -> Option<usize> {
        self.inner.layered.number.get().copied()
    }
}
