//! The feature `tonic`: errors of a handler as statuses, over a real server and a real client on the loopback interface.
#![cfg(feature = "tonic")]

mod support;

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use support::{
    eventually,
    line::assert_ledgers_add_up,
    sim::{Refused, Sim},
};
use tokio::net::TcpListener;
use tokio::sync::Barrier;
use tonic::{
    Code, Request, Response, Status,
    transport::{Channel, Endpoint, Server, server::TcpIncoming},
};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_check_response::ServingStatus,
    health_client::HealthClient,
    health_server::{Health, HealthServer},
};
use tower_adaptive_pool::{AcquireError, AdaptivePool, AdaptivePoolLayer, Limiter};

const DEADLINE: Duration = Duration::from_secs(10);
const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// Acquires when so many calls have been let in.
struct Handler {
    limiter: Limiter,
    all: Barrier,
}

#[tonic::async_trait]
impl Health for Handler {
    async fn check(&self, _: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        self.all.wait().await;
        let _permit = self.limiter.acquire().await?;
        Ok(Response::new(HealthCheckResponse { status: ServingStatus::Serving.into() }))
    }

    type WatchStream = tokio_stream::Once<Result<HealthCheckResponse, Status>>;

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }
}

/// Serves until the test ends.
async fn serve(limiter: &Limiter, calls: usize) -> HealthClient<Channel> {
    let service = HealthServer::new(Handler { limiter: limiter.clone(), all: Barrier::new(calls) });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server::builder().layer(AdaptivePoolLayer::new(limiter.clone())).add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    HealthClient::new(endpoint.connect().await.unwrap())
}

fn pushback(status: &Status) -> Option<u64> {
    status.metadata().get(PUSHBACK).map(|millis| millis.to_str().unwrap().parse().unwrap())
}

fn assert_refused(status: &Status) {
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "hard_cap"));
    let pushback = pushback(status).expect("when to come back");
    assert!((1_000..=120_000).contains(&pushback), "{pushback} ms");
}

#[tokio::test]
async fn each_refusal_of_a_burst_over_one_connection_says_when_to_come_back_whoever_refused_it() {
    const CALLS: usize = 50;
    let builder = Limiter::builder().fixed_size(1).soft_cap(2).hard_cap(2).acquire_timeout(DEADLINE);
    let limiter = builder.build().unwrap();
    let client = serve(&limiter, CALLS).await;
    let held = limiter.try_acquire().unwrap();
    let calls: Vec<_> = (0..CALLS)
        .map(|_| {
            let mut client = client.clone();
            tokio::spawn(async move { client.check(HealthCheckRequest::default()).await })
        })
        .collect();
    eventually(DEADLINE, async || limiter.gate().snapshot().acquires.shed == CALLS as u64 - 2).await;
    let by_layer = client.clone().check(HealthCheckRequest::default()).await.unwrap_err();
    assert_refused(&by_layer);
    drop(held);
    let mut served = 0;
    for call in calls {
        match call.await.unwrap() {
            Ok(_) => served += 1,
            Err(by_acquire) => assert_refused(&by_acquire),
        }
    }
    assert_eq!(served, 2);
    let seen = limiter.gate().snapshot();
    assert_eq!((seen.admissions.admitted, seen.admissions.shed), (CALLS as u64, 1));
    assert_ledgers_add_up(&seen);
}

#[tokio::test(start_paused = true)]
async fn an_acquire_error_is_unavailable_with_a_pushback_or_a_deadline_exceeded_without() {
    let pool = AdaptivePool::builder(Sim::default()).fixed_size(1).build().unwrap();
    pool.ready().await.unwrap();
    let held = pool.acquire().await.unwrap();
    let Err(late) = pool.acquire().await else { panic!("nothing came back") };
    let Err(shed) = pool.try_acquire() else { panic!("nothing is free") };
    let AcquireError::Shed(told) = &shed else { panic!("{shed:?}") };
    let (told, reason) = (u64::try_from(told.retry_after.as_millis()).unwrap(), told.reason.code());
    drop(held);
    let table = [
        (shed, Code::Unavailable, reason, Some(told)),
        (late, Code::DeadlineExceeded, "pool_wait_timeout", None),
        (AcquireError::Closed, Code::Unavailable, "pool_closed", Some(1_000)),
        (AcquireError::Dial(Arc::new(Refused)), Code::Unavailable, "pool_dial_failed", Some(1_000)),
    ];
    for (error, code, message, millis) in table {
        let text = error.to_string();
        let status = Status::from(error);
        assert_eq!((status.code(), status.message(), pushback(&status)), (code, message, millis));
        assert_eq!(status.source().expect("for the logs").to_string(), text);
    }
}

#[cfg(feature = "postgres")]
#[test]
fn a_query_that_ran_out_of_time_is_a_deadline_exceeded_and_one_that_failed_is_internal() {
    use tower_adaptive_pool::QueryError;

    let failed = "port=secret".parse::<tokio_postgres::Config>().unwrap_err();
    let table = [
        (QueryError::Timeout(DEADLINE), Code::DeadlineExceeded, "query_timeout"),
        (QueryError::NoRow, Code::Internal, "query_failed"),
        (QueryError::from(failed), Code::Internal, "query_failed"),
    ];
    for (error, code, message) in table {
        let text = error.to_string();
        let status = Status::from(error);
        assert_eq!((status.code(), status.message(), pushback(&status)), (code, message, None));
        assert_eq!(status.source().expect("for the logs").to_string(), text);
    }
}
