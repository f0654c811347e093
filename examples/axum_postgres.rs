//! The example of the README: an axum service over an adaptive PostgreSQL pool.
//!
//! `DATABASE_URL=postgres://user:password@localhost/database cargo run --example axum_postgres --features axum`

#[path = "support/telemetry.rs"]
mod telemetry;

use std::time::Duration;

use axum::{Json, Router, routing::get};
use tokio::net::TcpListener;
use tokio_postgres::NoTls;
use tower_adaptive_pool::axum::{Db, Error};
use tower_adaptive_pool::{AdaptivePool, AdaptivePoolLayer, Postgres};

/// How long a shutdown waits for requests under way.
const DRAIN: Duration = Duration::from_secs(20);

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let telemetry = telemetry::Telemetry::from_env()?;
    let mut builder = AdaptivePool::builder(Postgres::from_env(NoTls))
        .min_size(10)
        .max_size(50)
        .soft_cap(100)
        .hard_cap(200)
        .acquire_timeout(Duration::from_secs(2))
        .from_env();
    if let Some(otel) = telemetry.observer() {
        builder = builder.observer(otel);
    }
    let pool = builder.build()?;
    pool.ready().await?;

    let app = Router::new()
        .route("/now", get(now))
        .layer(AdaptivePoolLayer::new(pool.clone()))
        // Behind the layer, so that it answers under overload too.
        .route("/pool", get(status))
        .with_state(pool.clone());

    let listener = TcpListener::bind("127.0.0.1:3000").await?;
    println!("try: curl -i http://127.0.0.1:3000/now");
    axum::serve(listener, app).with_graceful_shutdown(async { drop(tokio::signal::ctrl_c().await) }).await?;
    pool.drain(DRAIN).await?;
    telemetry.shutdown();
    Ok(())
}

async fn now(db: Db) -> Result<Json<String>, Error> {
    let connection = db.acquire().await?;
    let row = connection.query_one("select now()::text", &[]).await?;
    Ok(Json(row.get(0)))
}

async fn status(db: Db) -> String {
    format!("{:#?}\n", db.pool().snapshot())
}
