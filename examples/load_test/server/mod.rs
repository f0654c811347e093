//! The server under test: an axum router over a pool of fixed size, or over the adaptive one behind its layer.

mod fixed;
mod meter;
mod own;
mod peers;
pub mod work;

use std::{net::SocketAddr, sync::atomic::Ordering::Relaxed};

use crate::{
    Error,
    args::{Args, PoolSpec},
    database::Database,
    http::HttpServer,
    report::{LedgerCounts, ServerReport},
    scenario::{SLOWED, Scenario, Work},
};
use meter::Meter;

/// A server that is being loaded.
pub struct RunningServer {
    http: HttpServer,
    meter: Meter,
    pool: Pool,
}

enum Pool {
    Fixed(deadpool_postgres::Pool),
    Own(own::Own, Work),
}

pub async fn serve(
    database: &Database,
    args: &Args,
    pool: PoolSpec,
    scenario: &Scenario,
) -> Result<RunningServer, Error> {
    work::draw_anew();
    let (waits, dials) = (meter::Waits::default(), meter::Moments::default());
    let (router, meter, pool) = match pool {
        PoolSpec::Static(size)
        | PoolSpec::Naive(size)
        | PoolSpec::LoadShed(size)
        | PoolSpec::Little(size) => {
            let fixed = fixed::open(database.config(), size.get(), dials.clone()).await?;
            let meter = Meter::start({
                let fixed = fixed.clone();
                move || fixed::sizes(&fixed)
            });
            let router = fixed::router(fixed.clone(), scenario.work, waits.clone());
            (peers::in_front_of(router, pool), meter, Pool::Fixed(fixed))
        }
        PoolSpec::Fixed(_) | PoolSpec::Adaptive | PoolSpec::Warm => {
            let own = own::open(database.config(), args, pool, scenario, dials.clone()).await?;
            let meter = Meter::start({
                let gate = own.pool.gate().clone();
                move || own::sizes(&gate)
            });
            (own::router(&own.pool, scenario, waits.clone())?, meter, Pool::Own(own, scenario.work))
        }
    };
    Ok(RunningServer { http: HttpServer::start(router).await?, meter: meter.with(waits, dials), pool })
}

impl RunningServer {
    pub fn addr(&self) -> SocketAddr {
        self.http.addr
    }

    /// The database has a quarter of its speed from now on in the slow phase of a storm, and all of it in the others.
    pub fn enter_phase(scenario: &Scenario, phase: usize) {
        work::SLOW.store(scenario.retries > 0 && phase == SLOWED, Relaxed);
    }

    /// Stops, and tells what was seen.
    pub async fn finish(self, database: &Database) -> Result<ServerReport, Error> {
        drop(self.http);
        let seen = self.meter.stop();
        let ledger = match self.pool {
            Pool::Fixed(pool) => {
                pool.close();
                None
            }
            Pool::Own(own, work) => Some(own.finish(work).await?),
        };
        Ok(ServerReport {
            acquires: seen.waits,
            dials: seen.dials,
            limits: seen.limits,
            peak_connections: seen.peak,
            too_many_connections: database.refused(),
            connection_seconds: seen.connection_seconds,
            samples: seen.samples,
            ledger,
        })
    }
}

/// Connections by state, as a pool tells them.
#[derive(Clone, Copy)]
pub struct Sizes {
    pub size: usize,
    pub limit: usize,
    pub in_use: usize,
    pub idle: usize,
    pub reserve: usize,
    pub queue_depth: usize,
}

impl From<&tower_adaptive_pool::Snapshot> for LedgerCounts {
    fn from(seen: &tower_adaptive_pool::Snapshot) -> Self {
        Self {
            layer_shed: seen.admissions.shed,
            gate_shed: seen.acquires.shed,
            acquire_timeouts: seen.acquires.timed_out,
            query_timeouts: seen.queries.timed_out,
            queries_ok: seen.queries.ok,
            queries_per_request: Some(1),
        }
    }
}
