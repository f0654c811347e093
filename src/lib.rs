//! crate docs
mod backend;
mod config;
mod error;
mod gate;
mod law;
mod layer;
mod observe;
mod pool;

#[cfg(feature = "axum")]
pub mod axum;
#[cfg(feature = "postgres")]
pub mod postgres;

pub use backend::{Backend, Place, State};
pub use config::{Builder, ConfigError, ControllerChoice, LimitOnly, Problem};
pub use error::{AcquireError, AcquireTimeout, DrainTimeout, SharedError, Shed, ShedReason};
pub use gate::ledger::{Acquires, Admissions, Queries};
pub use gate::limiter::{Limiter, Permit};
pub use gate::{Gate, Snapshot, Verdict, WeakGate};
pub use law::{Controller, Decision, QueueDepth, Reason, Sample};
pub use layer::{AdaptivePoolLayer, AdaptivePoolService, Respond, ResponseFuture, StatusOnly};
#[cfg(feature = "tracing")]
pub use observe::Tracing;
pub use observe::{Event, Observer, Otel, ServerInfo, ShedBy};
pub use pool::{AdaptivePool, Connection, NotReady};

#[cfg(feature = "postgres")]
pub use error::QueryError;
#[cfg(feature = "postgres")]
pub use postgres::Postgres;
