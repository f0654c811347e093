//! What growing costs those who are at work meanwhile: from 10 to 50 connections on a real PostgreSQL, with SCRAM, four
//! handshakes at once, while ten tasks ask for `pg_sleep(0.006)` without a pause.
//!
//! The peer, in turns with it: as many bare tokio-postgres connections, opened by four tasks over the same load.
//!
//! Not a criterion bench: each round is one growth of a pool of its own, and what is shown is the medians with their range.

#[path = "../tests/support/postgres.rs"]
#[allow(dead_code, clippy::pedantic)] // made for the tests, which use all of it and lint it
mod postgres;

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_postgres::{Client, NoTls};
use tower_adaptive_pool::{AdaptivePool, ConfigError, Postgres};

const ROUNDS: usize = 20;
const BUSY: usize = 10;
const SMALL: usize = 10;
const LARGE: usize = 50;
const QUERY: &str = "select pg_sleep(0.006)";
const BASELINE: Duration = Duration::from_secs(1);

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Box<dyn Error>> {
    // `cargo test --benches` only wants to know that it runs.
    let rounds = if std::env::args().any(|arg| arg == "--bench") { ROUNDS } else { 1 };
    let server = postgres::PostgresServer::start(postgres::Options::default())?;
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        ours.push(
            round(&server, async |pool| pool.gate().set_size(LARGE, LARGE).map(|()| Vec::new())).await?,
        );
        bare.push(round(&server, async |_| Ok(dial_bare(&server.app_url()).await)).await?);
    }
    println!("from {SMALL} to {LARGE} connections, {rounds} times: median (least .. most)");
    show("the pool grows, max_dialing 4", &ours);
    show("bare tokio-postgres, four tasks", &bare);
    Ok(())
}

fn show(name: &str, rounds: &[Round]) {
    let times = |read: fn(&Round) -> Duration| spread(rounds.iter().map(read).collect());
    let mut ratios: Vec<_> =
        rounds.iter().map(|round| round.p99_during.div_duration_f64(round.p99_before)).collect();
    ratios.sort_by(f64::total_cmp);
    println!("{name}");
    println!("  until all are open       {}", times(|round| round.took));
    println!("  p99 of a query before    {}", times(|round| round.p99_before));
    println!("  p99 of a query meanwhile {}", times(|round| round.p99_during));
    let (least, most) = (ratios[0], ratios[ratios.len() - 1]);
    println!("  ratio of these two       {:.2} ({least:.2} .. {most:.2})", ratios[ratios.len() / 2]);
}

struct Round {
    took: Duration,
    p99_before: Duration,
    p99_during: Duration,
}

/// One pool under load, while something is opened.
async fn round(
    server: &postgres::PostgresServer,
    open: impl AsyncFnOnce(&AdaptivePool<Postgres>) -> Result<Vec<Client>, ConfigError>,
) -> Result<Round, Box<dyn Error>> {
    let backend = Postgres::new(server.app_url().parse()?, NoTls);
    let pool = AdaptivePool::builder(backend).fixed_size(SMALL).max_dialing(4).build()?;
    pool.ready().await?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut busy = JoinSet::new();
    for _ in 0..BUSY {
        busy.spawn(work(pool.clone(), stop.clone()));
    }
    sleep(BASELINE).await;
    let began = Instant::now();
    let opened = open(&pool).await?;
    pool.ready().await?;
    let ended = Instant::now();
    stop.store(true, Relaxed);
    let (mut before, mut during) = (Vec::new(), Vec::new());
    for (asked, took) in busy.join_all().await.into_iter().flatten() {
        // The first tenth warms up.
        if asked + took > began && asked < ended {
            during.push(took);
        } else if asked < began && began - asked < BASELINE * 9 / 10 {
            before.push(took);
        }
    }
    drop(opened);
    pool.drain(Duration::from_secs(5)).await?;
    Ok(Round { took: ended - began, p99_before: p99(before), p99_during: p99(during) })
}

async fn dial_bare(url: &str) -> Vec<Client> {
    let mut dialing = JoinSet::new();
    for _ in 0..4 {
        let url = url.to_owned();
        dialing.spawn(async move {
            let mut opened = Vec::new();
            for _ in 0..(LARGE - SMALL) / 4 {
                let (client, connection) = tokio_postgres::connect(&url, NoTls).await.expect("a connection");
                tokio::spawn(connection);
                opened.push(client);
            }
            opened
        });
    }
    dialing.join_all().await.into_iter().flatten().collect()
}

/// When each query was asked, and how long it took, the acquire included.
async fn work(pool: AdaptivePool<Postgres>, stop: Arc<AtomicBool>) -> Vec<(Instant, Duration)> {
    let mut seen = Vec::new();
    while !stop.load(Relaxed) {
        let asked = Instant::now();
        let connection = pool.acquire().await.expect("a connection");
        let statement = connection.prepare_cached(QUERY).await.expect("a statement");
        connection.query_one(&statement, &[]).await.expect("a row");
        seen.push((asked, asked.elapsed()));
    }
    seen
}

fn p99(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[(times.len() * 99).div_ceil(100) - 1]
}

fn spread(mut times: Vec<Duration>) -> String {
    times.sort();
    let [least, median, most] = [0, times.len() / 2, times.len() - 1].map(|at| times[at].as_secs_f64() * 1e3);
    format!("{median:.1} ms ({least:.1} .. {most:.1})")
}
