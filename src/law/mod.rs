//! The laws: pure functions of values.
//!
//! Nothing below this module reads a clock, draws a random number, locks, or does I/O: `now` and the draw are
//! arguments. So each law is tested as a table, and a simulation runs the very code that production runs.

pub(crate) mod admit;
pub(crate) mod estimate;
mod paid_growth;
mod queue_depth;
pub(crate) mod retry_after;
mod scale;

pub(crate) use paid_growth::PaidGrowthController;
pub use paid_growth::{Mechanism, PaidGrowth};
pub use queue_depth::QueueDepth;
pub(crate) use queue_depth::QueueDepthController;
pub use scale::{Controller, Decision, Phase, Reason, Sample, UseTimes};
