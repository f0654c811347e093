//! Errors of a handler as responses of any body, without axum: under bare hyper and over a real socket too.

mod support;

use std::convert::Infallible;
use std::sync::Arc;

use http::header::{CACHE_CONTROL, RETRY_AFTER};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1 as client;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use support::line::{line_up, one_permit};
use support::sim::{Refused, Sim};
use tokio::net::{TcpListener, TcpStream};
use tower_adaptive_pool::{AcquireError, AdaptivePool, Shed, ShedReason, Verdict};

/// Status, `Retry-After`, and nothing that a stranger could learn from.
fn answer(error: AcquireError) -> (StatusCode, Option<String>, Response<String>) {
    let code = error.code();
    let response = Response::<String>::from(error);
    assert_eq!(
        (response.body().as_str(), &response.headers()[CACHE_CONTROL]),
        ("", &"no-store".parse().unwrap())
    );
    assert_eq!(response.extensions().get::<AcquireError>().expect("the reason").code(), code);
    let retry_after = response.headers().get(RETRY_AFTER).map(|value| value.to_str().unwrap().to_owned());
    assert_eq!(response.headers().len(), 1 + usize::from(retry_after.is_some()));
    (response.status(), retry_after, response)
}

#[tokio::test(start_paused = true)]
async fn an_acquire_error_is_a_response_by_itself() {
    let pool = AdaptivePool::builder(Sim::default()).fixed_size(1).build().unwrap();
    pool.ready().await.unwrap();
    let _held = pool.acquire().await.unwrap();

    let Err(error) = pool.try_acquire() else { panic!("nothing is free") };
    let (status, retry_after, response) = answer(error);
    let shed = response.extensions().get::<Shed>().expect("why it was refused");
    assert_eq!((status, shed.reason), (StatusCode::SERVICE_UNAVAILABLE, ShedReason::NoneIdle));
    assert_eq!(retry_after, Some(shed.retry_after.as_secs().to_string()));

    let Err(error) = pool.acquire().await else { panic!("nothing came back") };
    let (status, retry_after, response) = answer(error);
    assert_eq!((status, retry_after), (StatusCode::GATEWAY_TIMEOUT, None));
    assert!(response.extensions().get::<Shed>().is_none());

    for error in [AcquireError::Closed, AcquireError::Dial(Arc::new(Refused))] {
        let (status, retry_after, _) = answer(error);
        assert_eq!((status, retry_after.as_deref()), (StatusCode::SERVICE_UNAVAILABLE, Some("1")));
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_by_the_gate_alone_is_the_response_that_the_layer_gives() {
    let limiter = one_permit(1, 1);
    let _held = limiter.try_acquire().unwrap();
    let _line = line_up(&limiter, 1);
    let Verdict::Shed(shed) = limiter.gate().admit() else { panic!("it is full") };
    let response = Response::<String>::from(shed);
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()[RETRY_AFTER], shed.retry_after.as_secs().to_string());
    assert_eq!((response.headers().len(), response.extensions().get()), (2, Some(&shed)));
}

#[cfg(feature = "postgres")]
#[test]
fn a_query_error_is_a_response_by_itself_and_says_nothing_to_strangers() {
    use tower_adaptive_pool::QueryError;

    let failed = "port=secret".parse::<tokio_postgres::Config>().unwrap_err();
    for (error, status) in [
        (QueryError::Timeout(std::time::Duration::from_secs(1)), StatusCode::GATEWAY_TIMEOUT),
        (QueryError::NoRow, StatusCode::INTERNAL_SERVER_ERROR),
        (QueryError::from(failed), StatusCode::INTERNAL_SERVER_ERROR),
    ] {
        let response = Response::<String>::from(error);
        assert_eq!((response.status(), response.body().as_str()), (status, ""));
        assert_eq!(
            (response.headers().len(), &response.headers()[CACHE_CONTROL]),
            (1, &"no-store".parse().unwrap())
        );
    }
}

#[tokio::test]
async fn under_bare_hyper_a_handlers_error_is_a_503_with_retry_after() {
    let limiter = one_permit(1, 1);
    let _held = limiter.try_acquire().unwrap();
    let _line = line_up(&limiter, 1);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let service = service_fn(|_: Request<Incoming>| async {
            let served = limiter.acquire().await.map(|_permit| Response::new(Full::<Bytes>::default()));
            Ok::<_, Infallible>(served.unwrap_or_else(Response::from))
        });
        http1::Builder::new().serve_connection(TokioIo::new(stream), service).await
    });
    let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (mut sender, connection) = client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let response = sender.send_request(Request::new(Empty::<Bytes>::new())).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(response.headers()[RETRY_AFTER].to_str().unwrap().parse::<u64>().unwrap() >= 1);
    assert!(response.collect().await.unwrap().to_bytes().is_empty());
}
