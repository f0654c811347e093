//! The extractor and the errors of the feature `axum`, over a database that is only simulated.
#![cfg(feature = "axum")]

mod support;

use std::{error::Error as _, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{FromRef, State},
    response::IntoResponse,
    routing::get,
};
use http::{
    Request, Response, StatusCode,
    header::{CACHE_CONTROL, RETRY_AFTER},
};
use http_body_util::BodyExt;
use support::{
    line::{assert_ledgers_add_up, begin},
    sim::{Refused, Sim},
};
use tokio::time::Instant;
use tower::ServiceExt;
use tower_adaptive_pool::{
    AcquireError, AdaptivePool, AdaptivePoolLayer, Builder, Shed, ShedReason,
    axum::{Error, Pooled},
};

const PATIENCE: Duration = Duration::from_millis(1_500);

/// A state that has more in it than the pool.
#[derive(Clone)]
struct App {
    greeting: &'static str,
    pool: AdaptivePool<Sim>,
}

impl FromRef<App> for AdaptivePool<Sim> {
    fn from_ref(app: &App) -> Self {
        app.pool.clone()
    }
}

fn one_connection(sim: &Sim) -> Builder<Sim> {
    let builder = AdaptivePool::builder(sim.clone()).fixed_size(1).soft_cap(1).hard_cap(1);
    builder.seed(7).acquire_timeout(PATIENCE)
}

async fn use_connection(db: Pooled<Sim>) -> Result<String, Error> {
    let connection = db.acquire().await?;
    Ok(format!("connection {}", connection.serial))
}

/// No layer: what is refused here is refused by the gate.
fn app(pool: &AdaptivePool<Sim>) -> Router {
    Router::new().route("/", get(use_connection)).with_state(pool.clone())
}

async fn ask(app: &Router, path: &str) -> Response<Body> {
    let request = Request::get(path).body(Body::empty()).unwrap();
    app.clone().oneshot(request).await.unwrap()
}

async fn text(response: Response<Body>) -> String {
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A response for strangers: it says nothing about the database, and nobody keeps it.
async fn assert_discreet(response: Response<Body>) {
    assert_eq!(response.headers()[CACHE_CONTROL], "no-store");
    assert_eq!(text(response).await, "");
}

#[tokio::test(start_paused = true)]
async fn the_pool_is_extracted_from_a_bigger_state() {
    let pool = one_connection(&Sim::default()).build().unwrap();
    let greet = async |State(app): State<App>, db: Pooled<Sim>| -> Result<String, Error> {
        let connection = db.acquire().await?;
        assert_eq!(db.pool().snapshot().in_use, 1);
        Ok(format!("{} from connection {}", app.greeting, connection.serial))
    };
    let app = Router::new()
        .route("/", get(greet))
        .layer(AdaptivePoolLayer::new(pool.clone()))
        .with_state(App { greeting: "hello", pool: pool.clone() });

    assert_eq!(text(ask(&app, "/").await).await, "hello from connection 0");
    assert_eq!(text(ask(&app, "/").await).await, "hello from connection 0");
    let seen = pool.snapshot();
    assert_eq!((seen.in_use, seen.admissions.admitted, seen.acquires.granted), (0, 2, 2));
}

#[tokio::test(start_paused = true)]
async fn the_pool_itself_can_be_the_state() {
    let pool = one_connection(&Sim::default()).build().unwrap();
    assert_eq!(text(ask(&app(&pool), "/").await).await, "connection 0");
}

#[cfg(feature = "postgres")]
#[test]
fn db_is_the_extractor_of_a_postgres_pool() {
    use tower_adaptive_pool::{Postgres, axum::Db};
    fn takes_postgres(db: Db) -> Pooled<Postgres> {
        db
    }
    let _ = takes_postgres;
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_a_503_with_retry_after() {
    let pool = one_connection(&Sim::default()).build().unwrap();
    let app = app(&pool);
    let _held = pool.acquire().await.unwrap();
    let waiting = pool.clone();
    let _waiting = begin(async move { waiting.acquire().await.map(drop) });

    let response = ask(&app, "/").await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    let shed = *response.extensions().get::<Shed>().expect("the reason is in the extensions");
    assert_eq!((shed.reason, shed.queue_depth), (ShedReason::HardCap, 1));
    assert!(shed.retry_after >= Duration::from_secs(1));
    assert_eq!(response.headers()[RETRY_AFTER], shed.retry_after.as_secs().to_string());
    assert_discreet(response).await;
    assert_eq!(pool.snapshot().acquires.shed, 1);
}

#[tokio::test(start_paused = true)]
async fn a_time_out_is_a_504() {
    let pool = one_connection(&Sim::default()).build().unwrap();
    let app = app(&pool);
    let _held = pool.acquire().await.unwrap();

    let asked = Instant::now();
    let response = ask(&app, "/").await;
    assert_eq!(asked.elapsed(), PATIENCE);
    assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
    assert!(response.headers().get(RETRY_AFTER).is_none());
    assert_discreet(response).await;
    let seen = pool.snapshot();
    assert_eq!(seen.acquires.timed_out, 1);
    assert_ledgers_add_up(&seen);
}

#[tokio::test(start_paused = true)]
async fn a_drained_pool_is_a_503() {
    let pool = one_connection(&Sim::default()).build().unwrap();
    pool.ready().await.unwrap();
    let app = app(&pool);
    pool.drain(PATIENCE).await.unwrap();

    let response = ask(&app, "/").await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(response.extensions().get::<Shed>().is_none(), "closed for good is no refusal for now");
    assert_discreet(response).await;
    assert_ledgers_add_up(&pool.snapshot());
}

#[tokio::test(start_paused = true)]
async fn a_database_that_is_away_is_a_503_under_fail_fast_and_nobody_learns_where_it_is() {
    let sim = Sim::default();
    sim.go_down(true);
    let pool = one_connection(&sim).fail_fast(true).build().unwrap();
    let app = app(&pool);
    let asked = Instant::now();
    let response = ask(&app, "/").await;
    assert!(asked.elapsed() < PATIENCE, "it does not wait for its deadline");
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_discreet(response).await;
}

#[tokio::test(start_paused = true)]
async fn a_database_that_comes_back_is_used_without_a_restart() {
    let sim = Sim::default();
    sim.go_down(true);
    let pool = one_connection(&sim).build().unwrap();
    let app = app(&pool);
    assert_eq!(ask(&app, "/").await.status(), StatusCode::GATEWAY_TIMEOUT);
    sim.go_down(false);
    assert_eq!(ask(&app, "/").await.status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn the_503s_of_a_server_are_those_of_its_layer_and_its_gate() {
    // A handler that yields before it acquires: the layer sees an empty queue and admits more than the gate takes.
    let pool = one_connection(&Sim::default()).build().unwrap();
    pool.ready().await.unwrap();
    let slow = async |db: Pooled<Sim>| -> Result<(), Error> {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let _connection = db.acquire().await?;
        tokio::time::sleep(Duration::from_millis(5)).await;
        Ok(())
    };
    let app = Router::new()
        .route("/", get(slow))
        .layer(AdaptivePoolLayer::new(pool.clone()))
        .with_state(pool.clone());

    let mut calls = Vec::new();
    for _ in 0..2 {
        for _ in 0..10 {
            let app = app.clone();
            calls.push(tokio::spawn(async move { ask(&app, "/").await.status() }));
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let mut refused = 0;
    for call in calls {
        refused += u64::from(call.await.unwrap() == StatusCode::SERVICE_UNAVAILABLE);
    }
    let seen = pool.snapshot();
    assert!(seen.admissions.shed > 0 && seen.acquires.shed > 0, "both refuse in this run: {seen:?}");
    assert_eq!(refused, seen.admissions.shed + seen.acquires.shed);
    assert_ledgers_add_up(&seen);
}

#[test]
fn an_error_says_what_it_is_made_of() {
    let dial = Error::from(AcquireError::Dial(Arc::new(Refused)));
    assert_eq!(dial.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(dial.to_string(), format!("no connection could be opened: {Refused}"));
    assert_eq!(dial.source().unwrap().to_string(), Refused.to_string());
    let closed = Error::from(AcquireError::Closed);
    assert_eq!((closed.to_string().as_str(), closed.source().is_none()), ("the pool is closed", true));
    assert_eq!(closed.into_response().status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn a_query_that_ran_out_of_time_is_a_504_and_one_that_failed_a_500() {
    use tower_adaptive_pool::QueryError;

    let late = Error::from(QueryError::Timeout(PATIENCE)).into_response();
    assert_eq!(late.status(), StatusCode::GATEWAY_TIMEOUT);
    assert_discreet(late).await;

    let failed = "port=secret".parse::<tokio_postgres::Config>().unwrap_err();
    let failed = Error::from(QueryError::from(failed)).into_response();
    assert_eq!(failed.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_discreet(failed).await;
}
