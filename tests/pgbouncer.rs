//! Cancels behind PgBouncer: each arrives, and none harms the bouncer. Part of `make test-more`, which installs it.

#![cfg(feature = "postgres")]

#[path = "support/authority.rs"]
mod authority;
#[path = "support/pgbouncer.rs"]
mod pgbouncer;
mod support;

use std::time::Duration;

use authority::Authority;
use pgbouncer::{Options, PgBouncer};
use support::eventually;
use support::postgres::PostgresServer;
use tokio::select;
use tokio::task::spawn_blocking;
use tokio::time::Instant;
use tokio_postgres::config::SslMode;
use tokio_postgres::{Config, NoTls};
use tower_adaptive_pool::{AdaptivePool, Postgres};

const CANCELS: usize = 20;
const SOON: Duration = Duration::from_secs(10);
/// What is dropped would run for so long.
const LONG: &str = "select pg_sleep(5)";

async fn start(options: Options) -> (PostgresServer, PgBouncer) {
    spawn_blocking(move || {
        let server = PostgresServer::start(support::postgres::Options::default()).unwrap();
        let bouncer = PgBouncer::before(&server, &options);
        (server, bouncer)
    })
    .await
    .unwrap()
}

/// Drops queries through one connection, one after the other, and returns how long the next borrower waited each time.
async fn drop_queries(server: &PostgresServer, backend: Postgres) -> Vec<Duration> {
    let mut superuser: Config = server.superuser_url().parse().unwrap();
    let (admin, connection) = superuser.dbname("app").connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    let running = "select count(*) from pg_stat_activity where state = 'active' and query = $1";
    let runs = async || admin.query_one(running, &[&LONG]).await.unwrap().get::<_, i64>(0) == 1;
    let pool = AdaptivePool::builder(backend).fixed_size(1).acquire_timeout(SOON).build().unwrap();
    pool.ready().await.unwrap();
    let mut waits = Vec::new();
    for _ in 0..CANCELS {
        let connection = pool.acquire().await.unwrap();
        select! {
            outcome = connection.query(LONG, &[]) => panic!("it has ended: {outcome:?}"),
            () = eventually(SOON, runs) => {}
        }
        drop(connection);
        let began = Instant::now();
        let connection = pool.acquire().await.unwrap();
        waits.push(began.elapsed());
        connection.query("select 1", &[]).await.unwrap();
    }
    pool.drain(SOON).await.unwrap();
    waits
}

fn assert_all_arrived(server: &PostgresServer, bouncer: &PgBouncer, mut waits: Vec<Duration>, story: &str) {
    waits.sort();
    println!(
        "{story}: next borrower after {:?} (median), {:?} (most)",
        waits[waits.len() / 2],
        waits[waits.len() - 1]
    );
    assert_eq!(server.count_in_log("canceling statement due to user request"), CANCELS, "{story}");
    assert!(waits.iter().all(|wait| *wait < Duration::from_secs(1)), "{story}: {waits:?}");
    for trouble in ["FATAL", "unexpected eof"] {
        assert_eq!(bouncer.count_in_log(trouble), 0, "{story}: {}", bouncer.0.log());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_cancel_behind_a_bouncer_arrives_and_does_it_no_harm() {
    for (pool_mode, pool_size) in [("session", 5), ("transaction", 5), ("session", 1), ("transaction", 1)] {
        let (server, bouncer) = start(Options { pool_mode, pool_size, tls: None }).await;
        let waits = drop_queries(&server, Postgres::new(bouncer.config(), NoTls)).await;
        assert_all_arrived(
            &server,
            &bouncer,
            waits,
            &format!("pool_mode {pool_mode}, {pool_size} connections"),
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_does_each_over_tls() {
    let authority = Authority::named("ours");
    let tls = Some(authority.certify("127.0.0.1"));
    let (server, bouncer) = start(Options { pool_mode: "transaction", pool_size: 1, tls }).await;
    let mut config: Config = bouncer.config();
    config.ssl_mode(SslMode::Require);
    let waits = drop_queries(&server, Postgres::new(config, authority.connector())).await;
    assert_all_arrived(&server, &bouncer, waits, "over TLS");
}
