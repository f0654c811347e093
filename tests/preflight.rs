//! Preflight against a real PostgreSQL: what fits, what does not, and what it says about that.

#![cfg(feature = "postgres")]

mod support;

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use support::postgres::{Options, PostgresServer};
use tokio::task::spawn_blocking;
use tokio_postgres::{Client, Config, NoTls};
use tower_adaptive_pool::postgres::{Finding, PreflightError};
use tower_adaptive_pool::{AcquireError, AdaptivePool, Postgres};

const PATIENCE: Duration = Duration::from_secs(10);

type Pool = AdaptivePool<Postgres>;

static SHARED: LazyLock<Arc<PostgresServer>> =
    LazyLock::new(|| Arc::new(PostgresServer::start(Options::default()).unwrap()));

/// `max_connections` is 120, of which 3 are reserved.
async fn shared() -> Arc<PostgresServer> {
    spawn_blocking(|| SHARED.clone()).await.unwrap()
}

async fn start(options: Options) -> PostgresServer {
    spawn_blocking(|| PostgresServer::start(options)).await.unwrap().unwrap()
}

async fn admin(server: &PostgresServer) -> Client {
    let (client, connection) = tokio_postgres::connect(&server.superuser_url(), NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

fn pool(config: Config, max_size: usize) -> Pool {
    let backend = Postgres::new(config, NoTls);
    AdaptivePool::builder(backend).min_size(1).max_size(max_size).acquire_timeout(PATIENCE).build().unwrap()
}

fn app(server: &PostgresServer, max_size: usize) -> Pool {
    pool(server.app_url().parse().unwrap(), max_size)
}

#[tokio::test]
async fn a_pool_that_fits_is_told_so_with_the_figures() {
    let server = shared().await;
    let preflight = app(&server, 10).preflight(2).await.unwrap();
    assert!(preflight.is_well(), "{preflight}");
    assert_eq!((preflight.max_size, preflight.instances, preflight.wanted()), (10, 2, 20));
    assert_eq!((preflight.role.as_str(), preflight.database.as_str()), ("app", "app"));
    assert_eq!((preflight.max_connections, preflight.superuser_reserved_connections), (120, 3));
    assert_eq!(preflight.reserved, 3 + preflight.reserved_connections);
    assert_eq!((preflight.role_limit, preflight.database_limit, preflight.superuser), (None, None, false));
    assert_eq!(preflight.to_string(), "max_size (10) × 2 instances fits into max_connections (120)");

    let same = app(&server, 10).preflight(0).await.unwrap();
    assert_eq!(same.instances, 1, "no instance counts as one");
}

#[tokio::test]
async fn many_instances_are_over_max_connections() {
    let server = shared().await;
    let pool = app(&server, 50);
    assert!(pool.preflight(1).await.unwrap().is_well());
    let preflight = pool.preflight(4).await.unwrap();
    assert_eq!(
        preflight.to_string(),
        "max_size (50) × 4 instances is over max_connections (120) − 3 reserved: \
         lower max_size to 23 or raise max_connections to 253"
    );
    assert_eq!(preflight.findings[0].code(), "over_max_connections");

    let absurd = pool.preflight(usize::MAX).await.unwrap().to_string();
    assert!(absurd.contains("reserved: run fewer instances or raise"), "{absurd}");
}

#[tokio::test]
async fn the_advice_holds() {
    let server = shared().await;
    assert!(app(&server, 23).preflight(4).await.unwrap().is_well());
}

#[tokio::test]
async fn a_role_whose_limit_is_too_small_is_named() {
    let server = shared().await;
    let admin = admin(&server).await;
    let sql = "create role \"odd \"\" name\" login password 'secret' connection limit 8";
    admin.batch_execute(sql).await.unwrap();
    let mut config: Config = server.app_url().parse().unwrap();
    config.user("odd \" name").password("secret");
    let pool = pool(config, 5);
    let fits = pool.preflight(1).await.unwrap();
    assert!(fits.is_well(), "{fits}");
    assert_eq!(fits.role_limit, Some(8));

    let preflight = pool.preflight(2).await.unwrap();
    let said = preflight.to_string();
    assert_eq!(
        said,
        "max_size (5) × 2 instances is over the connection limit of role odd \" name (8): \
         lower max_size to 4 or ALTER ROLE \"odd \"\" name\" CONNECTION LIMIT 10"
    );
    // Its advice can be followed to the letter.
    admin.batch_execute(said.split(" or ").last().unwrap()).await.unwrap();
    assert!(pool.preflight(2).await.unwrap().is_well());
}

#[tokio::test]
async fn what_others_use_now_and_what_the_database_allows_counts() {
    let server = start(Options { max_connections: 20, ..Options::default() }).await;
    let pool = app(&server, 10);
    let before = pool.preflight(1).await.unwrap();
    assert_eq!(
        (before.others, before.is_well()),
        (0, true),
        "the pool's own connections are not others: {before}"
    );

    let mut others = Vec::new();
    for _ in 0..9 {
        others.push(admin(&server).await);
    }
    let preflight = pool.preflight(1).await.unwrap();
    assert_eq!(preflight.others, 9);
    assert_eq!(
        preflight.to_string(),
        "max_size (10) is over max_connections (20) − 3 reserved − 9 in use by others now: \
         lower max_size to 6 or raise max_connections to 25"
    );

    others[0].batch_execute("alter database app connection limit 7").await.unwrap();
    let findings = pool.preflight(1).await.unwrap().findings;
    assert_eq!(findings.len(), 2, "{findings:?}");
    assert_eq!(
        findings[1].to_string(),
        "max_size (10) is over the connection limit of database app (7): \
         lower max_size to 7 or ALTER DATABASE \"app\" CONNECTION LIMIT 10"
    );
}

#[tokio::test]
async fn a_superuser_is_bound_by_nothing_and_told_so() {
    let server = start(Options { max_connections: 20, ..Options::default() }).await;
    admin(&server).await.batch_execute("alter role postgres connection limit 2").await.unwrap();
    let preflight = pool(server.superuser_url().parse().unwrap(), 20).preflight(1).await.unwrap();
    assert_eq!((preflight.reserved, preflight.role_limit), (0, None));
    assert!(preflight.findings.contains(&Finding::Superuser { role: "postgres".into() }), "{preflight}");
    assert!(preflight.findings.iter().all(|finding| finding.code() != "over_role_limit"), "{preflight}");
}

#[tokio::test]
async fn a_pool_that_is_full_serves_its_preflight_in_turn_or_says_why_not() {
    let server = shared().await;
    let pool = Postgres::new(server.app_url().parse().unwrap(), NoTls);
    let short = Duration::from_millis(300);
    let pool = AdaptivePool::builder(pool).fixed_size(1).acquire_timeout(short).build().unwrap();
    pool.ready().await.unwrap();
    let held = pool.acquire().await.unwrap();
    let error = pool.preflight(1).await.unwrap_err();
    assert!(matches!(error, PreflightError::Acquire(AcquireError::Timeout(_))), "{error}");
    drop(held);
    assert!(pool.preflight(1).await.is_ok());
}
