//! A gate, and what keeps it working.

use std::fmt;
use std::sync::Arc;

use super::Gate;

/// What a layer is made from. Made from a pool or a limiter it keeps that alive; made from a [`Gate`] it does not.
///
/// Cheap to clone.
#[derive(Clone)]
pub struct GateHandle {
    // One pointer to both, because a service may be cloned for each request.
    kept: Arc<Kept<dyn Send + Sync>>,
}

struct Kept<K: ?Sized> {
    gate: Gate,
    _keeps: K,
}

impl GateHandle {
    pub(crate) fn new(gate: Gate, keeps: impl Send + Sync + 'static) -> Self {
        Self { kept: Arc::new(Kept { gate, _keeps: keeps }) }
    }

    pub(crate) fn gate(&self) -> &Gate {
        &self.kept.gate
    }
}

impl From<Gate> for GateHandle {
    fn from(gate: Gate) -> Self {
        Self::new(gate, ())
    }
}

impl fmt::Debug for GateHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("GateHandle").field(self.gate()).finish()
    }
}
