//! Adaptive backpressure for [tower] services: a layer that refuses at once what cannot be served in time, in front of
//! a connection pool that finds how many connections to use at once.
//!
//! Put [`AdaptivePoolLayer`] in front of a service that talks to a database. Then
//!
//! 1. as many connections are in use at once as pay, and no more;
//! 2. what cannot be served in time is refused at once, with a 503 whose `Retry-After` is true;
//! 3. the server never sees more connections than the ceiling, whatever is cancelled, resized, killed or restarted;
//! 4. every decision (grow, shrink, shed, time out) can be seen and explains itself.
//!
//! ```no_run
//! # #[cfg(all(feature = "axum", feature = "postgres"))]
//! # mod example {
//! use std::time::Duration;
//!
//! use axum::{Json, Router, routing::get};
//! use tokio_postgres::NoTls;
//! use tower_adaptive_pool::axum::{Db, Error};
//! use tower_adaptive_pool::{AdaptivePool, AdaptivePoolLayer, Postgres};
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let pool = AdaptivePool::builder(Postgres::from_env(NoTls))   // DATABASE_URL
//!         .min_size(10).max_size(50)                                // connections
//!         .soft_cap(100).hard_cap(200)                              // queue
//!         .acquire_timeout(Duration::from_secs(2))
//!         .build()?;                                                // ConfigError, never a panic
//!     pool.ready().await?;                                          // min_size open, or why not
//!
//!     let app = Router::new()
//!         .route("/orders", get(orders))
//!         .layer(AdaptivePoolLayer::new(pool.clone()))
//!         .with_state(pool);                                        // Db finds its pool through FromRef
//!
//!     axum::serve(tokio::net::TcpListener::bind("127.0.0.1:3000").await?, app).await?;
//!     Ok(())
//! }
//!
//! async fn orders(db: Db) -> Result<Json<Vec<i32>>, Error> {
//!     let conn = db.acquire().await?;                               // 503 or 504 by itself when it fails
//!     let rows = conn.query("select id from orders", &[]).await?;
//!     Ok(Json(rows.iter().map(|row| row.get(0)).collect()))
//! }
//! # }
//! ```
//!
//! # What is here
//!
//! - [`AdaptivePool`] over a [`Backend`]: [`Postgres`], any deadpool manager (`Deadpool`), or one of your own. Its connections are handed out as
//!   [`Connection`] guards.
//! - [`Limiter`]: the same without connections, for a client that owns its pool.
//! - [`Gate`]: the face of both that needs no type parameter. The layer asks it; it shows a [`Snapshot`].
//! - [`AdaptivePoolLayer`]: asks the gate about each request, on its [`Terms`]: its [`Class`] and its [`Deadline`].
//! - [`Controller`]: the law that moves the limit: how many connections may be in use at once. [`PaidGrowth`] is the default, [`QueueDepth`] the simpler one.
//! - [`sizing`]: what to begin with; `AdaptivePool::preflight` compares it with what PostgreSQL allows.
//! - [`AcquireError`] and `QueryError` are responses: an `http::Response` of any body by `From`, and with the features `axum` and
//!   `tonic` what a handler may fail with.
//! - [`Observer`]: is told each [`Event`]; [`Otel`] speaks OpenTelemetry.
//!
//! # Invariants
//!
//! - **Ceiling.** in use + idle + reserve + opening + closing ≤ `max_size`, as the server counts them: a connection that was
//!   thrown away keeps its [`Place`] until the server has closed its side.
//! - **Limit.** in use ≤ limit, but for what was in use when it fell. What comes back over the limit goes to the reserve though
//!   somebody waits; when the limit rises, the reserve goes to the waiters.
//! - **Permits are connections.** Whoever gets a permit has the connection; only the holder may destroy it.
//! - **Queue bound.** No more than `hard_cap` wait; the layer lets in fewer where the wait would use up their time.
//! - **Classes.** The higher class is served first, first come first served in it; the lowest is refused first.
//! - **Never starve a free server.** Under `hard_cap` nothing is refused while a connection is idle, or fewer wait than
//!   may be used.
//! - **No time-out below the ceiling.** No acquire times out while the limit is below `max_size`, unless growth was shown not
//!   to pay; the error says so.
//! - **Clean hand-over.** Nobody receives a connection with an open transaction, a running query or an unread result.
//! - **Truth.** `commit` is Ok when the server has answered `COMMIT`, and a `COMMIT` is never cancelled.
//! - **One deadline.** `acquire_timeout`, or the request's own [`Deadline`], bounds queue, check and dial together.
//! - **Ledgers, exact at rest.** [`Admissions`], [`Acquires`], [`Queries`].
//! - **Nothing parked.** The verdict falls synchronously in `call`; `poll_ready` is the inner service's.
//!
//! # Features
//!
//! `postgres` (default), `axum`, `deadpool` (the adapter), `tonic` (the errors as a `tonic::Status`), `tracing`.
//!
//! # Reading order
//!
//! `law` (pure functions), `gate/permits.rs` and `gate/slots.rs` (permits and queue under one lock), `gate/mod.rs`, `pool/mod.rs`, `layer`,
//! `postgres`.
//!
//! [tower]: https://docs.rs/tower

mod backend;
mod config;
mod error;
mod gate;
mod law;
mod layer;
mod linger;
mod observe;
mod pool;
pub mod sizing;
mod terms;

#[cfg(feature = "axum")]
pub mod axum;
#[cfg(feature = "deadpool")]
pub mod deadpool;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "tonic")]
mod tonic;

#[cfg(feature = "deadpool")]
pub use self::deadpool::Deadpool;
pub use backend::{Backend, ConnectionState, Place, Refusal};
pub use config::{Builder, ConfigError, ControllerChoice, LimitOnly, Problem};
pub use error::{AcquireError, AcquireTimeout, DrainTimeout, Hold, NotReady, SharedError, Shed, ShedReason};
pub use gate::ledger::{Acquires, Admissions, Queries};
pub use gate::limiter::{Limiter, Permit};
pub use gate::{DryRun, Gate, GateHandle, Snapshot, SnapshotWatch, Verdict, WeakGate};
pub use law::{Controller, Decision, PaidGrowth, Phase, QueueDepth, Reason, Sample, UseTimes};
pub use layer::{
    AdaptivePoolLayer, AdaptivePoolService, Classify, ProblemJson, Respond, ResponseFuture, StatusOnly,
    Unclassed,
};
pub use linger::LingeringClose;
#[cfg(feature = "tracing")]
pub use observe::Tracing;
pub use observe::{Event, Observer, Otel, ServerInfo, ShedBy};
pub use pool::{AdaptivePool, Connection};
pub use terms::{Class, Deadline, Terms};

#[cfg(feature = "postgres")]
pub use error::QueryError;
#[cfg(feature = "postgres")]
pub use postgres::Postgres;

/// What a simulation of a pool needs so that it runs the very laws that production runs. Not part of the API.
#[doc(hidden)]
pub mod simulation {
    pub use crate::law::Mechanism;
    pub use crate::law::admit::{Caps, Claim, Occupancy, admit};
    pub use crate::law::estimate::MeanTime;
    use crate::law::{Controller, PaidGrowth, PaidGrowthController};

    /// The default law without one of its parts.
    pub fn without(mechanism: Mechanism) -> impl Controller {
        PaidGrowthController::without(PaidGrowth::default(), mechanism)
    }
}

/// The README's examples are compiled with the tests.
#[cfg(all(doctest, feature = "axum", feature = "postgres"))]
#[doc = include_str!("../README.md")]
struct Readme;
