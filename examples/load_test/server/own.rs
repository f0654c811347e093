//! The pool of this crate behind its layer.

use std::time::{Duration, Instant};

use axum::{Extension, Router, routing::get};
use tokio_postgres::{Config, NoTls};
use tower_adaptive_pool::{
    AdaptivePool, AdaptivePoolLayer, Event, Gate, Observer, Postgres,
    axum::{Db, Error as Answer},
};

use super::{
    Sizes,
    meter::{Moments, Waits},
};
use crate::{
    Error,
    args::{Args, PoolSpec},
    generator::client::BUDGET,
    report::LedgerCounts,
    scenario::{Scenario, Work},
    telemetry::Telemetry,
};

/// Longer than any query of the scenarios takes.
const DRAIN: Duration = Duration::from_secs(10);

pub struct Own {
    pub pool: AdaptivePool<Postgres>,
    telemetry: Telemetry,
}

/// Keeps when connections were opened.
struct DialObserver(Moments);

impl Observer for DialObserver {
    fn on_event(&self, _: &Gate, event: &Event<'_>) {
        if let Event::Dialed { .. } = event {
            self.0.record();
        }
    }
}

pub async fn open(
    config: &Config,
    args: &Args,
    pool: PoolSpec,
    scenario: &Scenario,
    dials: Moments,
) -> Result<Own, Error> {
    let telemetry = Telemetry::from_env()?;
    let (start, most) = (args.min_size(scenario), pool.most(args, scenario));
    let builder = AdaptivePool::builder(Postgres::new(config.clone(), NoTls))
        .name("load_test")
        .max_dialing(args.max_dialing.get())
        .observer(DialObserver(dials));
    let builder = match pool {
        PoolSpec::Adaptive => builder.min_size(start).base_limit(start).max_size(most),
        // It may use as few as the other at first: only what is open differs.
        PoolSpec::Warm => builder.min_size(most).base_limit(start).max_size(most),
        _ => builder.fixed_size(most),
    };
    let builder = match telemetry.observer() {
        Some(observer) => builder.observer(observer),
        None => builder,
    };
    let pool = builder.build()?;
    pool.ready().await?;
    Ok(Own { pool, telemetry })
}

pub fn router(pool: &AdaptivePool<Postgres>, scenario: &Scenario, waits: Waits) -> Result<Router, Error> {
    let layer = AdaptivePoolLayer::new(pool.clone());
    let layer = match scenario.budget_ms {
        Some(_) => layer.with_deadline_header(BUDGET.as_str())?,
        None => layer,
    };
    let router = Router::new()
        .route("/", get(handle))
        .layer(layer)
        .layer(Extension((scenario.work, waits)))
        .with_state(pool.clone());
    Ok(router)
}

async fn handle(db: Db, Extension((work, waits)): Extension<(Work, Waits)>) -> Result<&'static str, Answer> {
    let asked = Instant::now();
    let connection = db.acquire().await?;
    waits.record(asked);
    work.adaptive(connection).await?;
    Ok("ok")
}

pub fn sizes(gate: &Gate) -> Sizes {
    let seen = gate.snapshot();
    Sizes {
        size: seen.size,
        limit: seen.limit,
        in_use: seen.in_use,
        idle: seen.idle,
        reserve: seen.reserve,
        queue_depth: seen.queue_depth,
    }
}

impl Own {
    /// Drains, and reads the ledgers when nothing is under way any more.
    pub async fn finish(self, work: Work) -> Result<LedgerCounts, Error> {
        self.pool.drain(DRAIN).await?;
        let ledger = LedgerCounts::from(&self.pool.snapshot());
        self.telemetry.shutdown();
        Ok(LedgerCounts { queries_per_request: work.queries(), ..ledger })
    }
}
