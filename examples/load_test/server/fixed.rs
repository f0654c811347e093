//! What people have today: plain deadpool-postgres of a fixed size with a wait time-out.

use std::time::{Duration, Instant};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use deadpool_postgres::{Hook, Manager, ManagerConfig, Pool, PoolError, RecyclingMethod, Runtime, Timeouts};
use tokio_postgres::{Config, NoTls};

use super::{
    Sizes,
    meter::{Moments, Waits},
};
use crate::{Error, scenario::Work};

/// HikariCP's default, and a usual choice.
const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

pub async fn open(config: &Config, size: usize, dials: Moments) -> Result<Pool, Error> {
    let manager = Manager::from_config(
        config.clone(),
        NoTls,
        ManagerConfig { recycling_method: RecyclingMethod::Fast },
    );
    let timeouts = Timeouts { wait: Some(WAIT_TIMEOUT), ..Timeouts::new() };
    let opened = Hook::sync_fn(move |_, _| {
        dials.record();
        Ok(())
    });
    let builder = Pool::builder(manager).max_size(size).timeouts(timeouts).post_create(opened);
    let pool = builder.runtime(Runtime::Tokio1).build()?;
    // Warm, as after some time in production: the comparison is of sizes, not of cold starts.
    let mut all = Vec::new();
    for _ in 0..size {
        all.push(pool.get().await.map_err(|error| format!("cannot open {size} connections: {error}"))?);
    }
    Ok(pool)
}

pub fn router(pool: Pool, work: Work, waits: Waits) -> Router {
    Router::new().route("/", get(handle)).with_state((pool, work, waits))
}

async fn handle(State((pool, work, waits)): State<(Pool, Work, Waits)>) -> Result<&'static str, StatusCode> {
    let asked = Instant::now();
    let client = pool.get().await.map_err(|error| match error {
        PoolError::Timeout(_) => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    })?;
    waits.record(asked);
    work.plain(client).await.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    Ok("ok")
}

pub fn sizes(pool: &Pool) -> Sizes {
    let status = pool.status();
    Sizes {
        size: status.size,
        limit: status.max_size,
        in_use: status.size - status.available,
        idle: status.available,
        reserve: 0,
        queue_depth: status.waiting,
    }
}
