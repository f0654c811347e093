//! The layer between a real tonic server and a real tonic client, over loopback: gRPC's own health service stands for any.

mod support;

use std::time::Duration;

use http::Request;
use support::{
    eventually,
    line::{assert_ledgers_add_up, line_up_as},
};
use tokio::{net::TcpListener, sync::mpsc};
use tonic::{
    Code, Response, Status,
    body::Body,
    transport::{Channel, Endpoint, Server, server::TcpIncoming},
};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_check_response::ServingStatus,
    health_client::HealthClient,
    health_server::{Health, HealthServer},
};
use tower_adaptive_pool::{AcquireError, AdaptivePoolLayer, Class, Limiter, Permit, Terms};

const DEADLINE: Duration = Duration::from_secs(10);

/// What a call came to in its handler.
type Handled = (Terms, Result<Permit, AcquireError>);

/// Acquires for each call, and tells what came of it.
struct Handler {
    limiter: Limiter,
    handled: mpsc::UnboundedSender<Handled>,
}

impl Handler {
    async fn serve<T>(&self, request: tonic::Request<T>) -> Result<HealthCheckResponse, Status> {
        let (limiter, handled) = (self.limiter.clone(), self.handled.clone());
        let extensions = request.extensions().clone();
        // In a task of its own, because tonic drops the handler at the client's deadline too, and one of them is first.
        let acquire = tokio::spawn(async move {
            let outcome = limiter.acquire_for(&extensions).await;
            let served = outcome.is_ok();
            handled.send((Terms::of(&extensions), outcome)).expect("the test listens");
            served
        });
        match acquire.await {
            Ok(true) => Ok(HealthCheckResponse { status: ServingStatus::Serving.into() }),
            _ => Err(Status::deadline_exceeded("no permit")),
        }
    }
}

#[tonic::async_trait]
impl Health for Handler {
    async fn check(
        &self,
        request: tonic::Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        self.serve(request).await.map(Response::new)
    }

    type WatchStream = tokio_stream::Once<Result<HealthCheckResponse, Status>>;

    async fn watch(
        &self,
        request: tonic::Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let first = self.serve(request).await?;
        Ok(Response::new(tokio_stream::once(Ok(first))))
    }
}

/// Serves until the test ends. The class of a call is in its metadata.
async fn serve(limiter: &Limiter) -> (HealthClient<Channel>, mpsc::UnboundedReceiver<Handled>) {
    let (sender, handled) = mpsc::unbounded_channel();
    let service = HealthServer::new(Handler { limiter: limiter.clone(), handled: sender });
    let layer = AdaptivePoolLayer::new(limiter.clone())
        .with_classifier(|request: &Request<Body>| match request.headers().get("x-class") {
            Some(class) if class == "exempt" => Class::Exempt,
            Some(class) if class == "critical" => Class::Critical,
            _ => Class::High,
        })
        .with_deadline_header("grpc-timeout")
        .unwrap()
        .with_retry_header("grpc-previous-rpc-attempts")
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server::builder().layer(layer).add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    (HealthClient::new(endpoint.connect().await.unwrap()), handled)
}

fn one_permit() -> Limiter {
    let limiter = Limiter::builder().fixed_size(1).soft_cap(2).hard_cap(2).seed(7);
    limiter.acquire_timeout(DEADLINE).build().unwrap()
}

/// A call with this metadata.
fn call(metadata: &[(&'static str, &'static str)]) -> tonic::Request<HealthCheckRequest> {
    let mut request = tonic::Request::new(HealthCheckRequest::default());
    for (name, value) in metadata {
        request.metadata_mut().insert(*name, value.parse().unwrap());
    }
    request
}

/// Unavailable, why, and when to come back, as the official clients understand it.
fn assert_refused(status: &Status, code: &str) {
    assert_eq!((status.code(), status.message()), (Code::Unavailable, code));
    let pushback = status.metadata().get("grpc-retry-pushback-ms").expect("when to come back");
    let pushback: u64 = pushback.to_str().unwrap().parse().unwrap();
    assert!((1_000..=120_000).contains(&pushback), "{pushback} ms");
}

#[tokio::test]
async fn an_admitted_call_works_and_its_class_reaches_the_handler() {
    let limiter = one_permit();
    let (mut client, mut handled) = serve(&limiter).await;
    for (metadata, class) in [
        (&[][..], Class::High),
        (&[("x-class", "critical")], Class::Critical),
        (&[("grpc-previous-rpc-attempts", "1")], Class::Low),
        (&[("x-class", "critical"), ("grpc-previous-rpc-attempts", "2")], Class::High),
    ] {
        let answer = client.check(call(metadata)).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving);
        let (terms, outcome) = handled.recv().await.unwrap();
        assert_eq!((terms, outcome.is_ok()), (Terms::from(class), true), "{metadata:?}");
    }
    let mut stream = client.watch(call(&[])).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap().map(|told| told.status()), Some(ServingStatus::Serving));
    assert!(stream.message().await.unwrap().is_none());
    let seen = limiter.gate().snapshot();
    assert_eq!((seen.admissions.admitted, seen.admissions.shed), (5, 0));
}

#[tokio::test]
async fn a_refused_call_is_unavailable_with_the_reason_and_a_pushback_and_the_channel_stays() {
    let limiter = one_permit();
    let (mut client, mut handled) = serve(&limiter).await;
    let held = limiter.try_acquire().unwrap();
    let line = line_up_as(&limiter, Class::Exempt, 2);

    assert_refused(&client.check(call(&[])).await.unwrap_err(), "hard_cap");
    assert_refused(&client.watch(call(&[])).await.unwrap_err(), "hard_cap");
    // Exempt from the verdict, and still bound by hard_cap in the handler.
    let status = client.check(call(&[("x-class", "exempt")])).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    let (terms, outcome) = handled.recv().await.unwrap();
    assert_eq!(terms.class, Class::Exempt);
    assert!(matches!(outcome, Err(AcquireError::Shed(_))), "{outcome:?}");

    drop((line, held));
    client.check(call(&[])).await.expect("served on the same channel");
    let seen = limiter.gate().snapshot();
    assert_eq!((seen.admissions.admitted, seen.admissions.shed), (2, 2));
    assert_ledgers_add_up(&seen);
}

#[tokio::test]
async fn a_drained_limiter_is_unavailable() {
    let limiter = one_permit();
    let (mut client, _handled) = serve(&limiter).await;
    limiter.drain(DEADLINE).await.unwrap();
    assert_refused(&client.check(call(&[])).await.unwrap_err(), "draining");
}

#[tokio::test]
async fn the_clients_timeout_bounds_the_acquire_in_the_handler() {
    let limiter = one_permit();
    let (mut client, mut handled) = serve(&limiter).await;
    let _held = limiter.try_acquire().unwrap();
    let budget = Duration::from_millis(150);
    let mut request = call(&[]);
    request.set_timeout(budget);

    let status = client.check(request).await.unwrap_err();
    // Of the client's timer, the server's and ours any may be the first.
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
    let (terms, outcome) = handled.recv().await.unwrap();
    assert!(terms.deadline.is_some());
    match outcome {
        Err(AcquireError::Timeout(told)) => {
            assert!(told.by_request && told.waited < DEADLINE / 2, "{told:?}");
        }
        other => panic!("it waited no longer than its client: {other:?}"),
    }
    assert_eq!(limiter.gate().snapshot().acquires.timed_out, 1);
}

#[tokio::test]
async fn the_calls_of_one_channel_share_one_queue() {
    let limiter = one_permit();
    let (client, mut handled) = serve(&limiter).await;
    let held = limiter.try_acquire().unwrap();
    let calls: Vec<_> = (0..2)
        .map(|_| {
            let mut client = client.clone();
            tokio::spawn(async move { client.check(call(&[])).await })
        })
        .collect();
    eventually(DEADLINE, async || limiter.gate().snapshot().queue_depth == 2).await;
    assert_refused(&client.clone().check(call(&[])).await.unwrap_err(), "hard_cap");
    drop(held);
    for call in calls {
        call.await.unwrap().expect("those who waited are served");
        assert!(handled.recv().await.unwrap().1.is_ok());
    }
    eventually(DEADLINE, async || limiter.gate().snapshot().in_use == 0).await;
    assert_ledgers_add_up(&limiter.gate().snapshot());
}
