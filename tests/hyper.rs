//! The layer under bare hyper, over real sockets on the loopback interface.

mod support;

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use http::{
    Request, Response, StatusCode, Version,
    header::{CACHE_CONTROL, RETRY_AFTER},
};
use http_body_util::{Empty, Full};
use hyper::{
    body::{Bytes, Incoming},
    client::conn::http2,
    server::conn::http1,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use support::{
    eventually,
    line::{assert_ledgers_add_up, line_up, one_permit},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tower::{Service, ServiceBuilder, service_fn};
use tower_adaptive_pool::{AdaptivePoolLayer, Limiter, Snapshot};

const DEADLINE: Duration = Duration::from_secs(10);
const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: test\r\n\r\n";

#[derive(Clone, Copy)]
enum Protocol {
    Http1,
    Auto,
}

/// The layer over a handler that needs a permit and says so.
fn service(
    limiter: Limiter,
) -> impl Service<Request<Incoming>, Response = Response<Full<Bytes>>, Error = Infallible, Future: Send + 'static>
+ Clone
+ Send
+ 'static {
    let layer = AdaptivePoolLayer::new(limiter.clone());
    ServiceBuilder::new().layer(layer).service(service_fn(move |_: Request<Incoming>| {
        let limiter = limiter.clone();
        async move {
            let served = limiter.acquire().await.is_ok();
            let body = if served { "served" } else { "no permit" };
            Ok(Response::new(Full::from(body)))
        }
    }))
}

/// Serves until the test ends.
async fn serve(limiter: &Limiter, protocol: Protocol) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = TowerToHyperService::new(service(limiter.clone()));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (stream, service) = (TokioIo::new(stream), service.clone());
            // A client that goes away ends its connection with an error: that is what the tests are about.
            tokio::spawn(async move {
                match protocol {
                    Protocol::Http1 => drop(http1::Builder::new().serve_connection(stream, service).await),
                    Protocol::Auto => {
                        let server = auto::Builder::new(TokioExecutor::new());
                        drop(server.serve_connection(stream, service).await);
                    }
                }
            });
        }
    });
    address
}

/// A client that speaks HTTP/1.1 by hand, so that what it reads is what was on the wire.
async fn send(server: SocketAddr) -> TcpStream {
    let mut client = TcpStream::connect(server).await.unwrap();
    client.write_all(GET).await.unwrap();
    client
}

/// Reads one response, up to the end of its head and its announced body.
async fn read(client: &mut TcpStream) -> (String, String) {
    let mut text = String::new();
    loop {
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = header(head, "content-length").expect("a length").parse::<usize>().unwrap();
            if body.len() >= length {
                return (head.to_owned(), body.to_owned());
            }
        }
        let mut bytes = [0; 1024];
        let read = timeout(DEADLINE, client.read(&mut bytes)).await.expect("an answer").unwrap();
        assert!(read > 0, "the server hung up after {text:?}");
        text.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines()
        .filter_map(|line| line.split_once(": "))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value)
}

async fn connect_http2(server: SocketAddr) -> http2::SendRequest<Empty<Bytes>> {
    let stream = TokioIo::new(TcpStream::connect(server).await.unwrap());
    let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn request() -> Request<Empty<Bytes>> {
    Request::get("http://test/").body(Empty::new()).unwrap()
}

async fn until(limiter: &Limiter, condition: impl Fn(&Snapshot) -> bool) -> Snapshot {
    eventually(DEADLINE, async || condition(&limiter.gate().snapshot())).await;
    limiter.gate().snapshot()
}

#[tokio::test]
async fn a_shed_over_http_1_has_the_right_status_line_and_headers_and_keeps_the_connection() {
    let limiter = one_permit(1, 1);
    let server = serve(&limiter, Protocol::Http1).await;
    let held = limiter.try_acquire().unwrap();
    let line = line_up(&limiter, 1);

    let mut client = send(server).await;
    let (head, body) = read(&mut client).await;
    assert_eq!(head.lines().next(), Some("HTTP/1.1 503 Service Unavailable"));
    assert!(header(&head, "retry-after").unwrap().parse::<u64>().unwrap() >= 1, "{head}");
    assert_eq!(header(&head, "cache-control"), Some("no-store"));
    assert_eq!(header(&head, "content-length"), Some("0"));
    assert_eq!(body, "");

    drop((line, held));
    client.write_all(GET).await.unwrap();
    let (head, body) = read(&mut client).await;
    assert_eq!((head.lines().next(), body.as_str()), (Some("HTTP/1.1 200 OK"), "served"));
    let admissions = limiter.gate().snapshot().admissions;
    assert_eq!((admissions.arrivals, admissions.admitted, admissions.shed), (2, 1, 1));
}

#[tokio::test]
async fn a_shed_over_http_2_has_the_right_status_and_headers_and_keeps_the_connection() {
    let limiter = one_permit(1, 1);
    let server = serve(&limiter, Protocol::Auto).await;
    let held = limiter.try_acquire().unwrap();
    let line = line_up(&limiter, 1);

    let mut client = connect_http2(server).await;
    let refused = timeout(DEADLINE, client.send_request(request())).await.unwrap().unwrap();
    assert_eq!((refused.version(), refused.status()), (Version::HTTP_2, StatusCode::SERVICE_UNAVAILABLE));
    let seconds = refused.headers()[RETRY_AFTER].to_str().unwrap();
    assert!(seconds.parse::<u64>().unwrap() >= 1, "{seconds}");
    assert_eq!(refused.headers()[CACHE_CONTROL], "no-store");

    drop((line, held));
    let served = timeout(DEADLINE, client.send_request(request())).await.unwrap().unwrap();
    assert_eq!(served.status(), StatusCode::OK);
    let admissions = limiter.gate().snapshot().admissions;
    assert_eq!((admissions.arrivals, admissions.admitted, admissions.shed), (2, 1, 1));
}

#[tokio::test]
async fn the_streams_of_one_http_2_connection_share_one_queue() {
    let limiter = one_permit(2, 2);
    let server = serve(&limiter, Protocol::Auto).await;
    let held = limiter.try_acquire().unwrap();
    let mut client = connect_http2(server).await;

    let waiting = [(); 2].map(|()| tokio::spawn(client.send_request(request())));
    until(&limiter, |seen| seen.queue_depth == 2).await;
    let refused = timeout(DEADLINE, client.send_request(request())).await.unwrap().unwrap();
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);

    drop(held);
    for waiting in waiting {
        let served = timeout(DEADLINE, waiting).await.unwrap().unwrap().unwrap();
        assert_eq!(served.status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn an_http_1_client_that_disconnects_mid_wait_frees_its_queue_place() {
    let limiter = one_permit(2, 2);
    let server = serve(&limiter, Protocol::Http1).await;
    let held = limiter.try_acquire().unwrap();

    let leaves = send(server).await;
    until(&limiter, |seen| seen.queue_depth == 1).await;
    let mut stays = send(server).await;
    until(&limiter, |seen| seen.queue_depth == 2).await;

    drop(leaves);
    let seen = until(&limiter, |seen| seen.queue_depth == 1).await;
    assert_eq!(seen.acquires.cancelled, 1);
    assert_ledgers_add_up(&seen);

    drop(held);
    assert_eq!(read(&mut stays).await.1, "served", "the one who stayed is served");
    let seen = until(&limiter, |seen| seen.in_use == 0).await;
    assert_eq!((seen.queue_depth, seen.idle), (0, 1));
    assert_ledgers_add_up(&seen);
}

#[tokio::test]
async fn an_http_2_stream_that_is_reset_mid_wait_frees_its_queue_place() {
    let limiter = one_permit(2, 2);
    let server = serve(&limiter, Protocol::Auto).await;
    let _held = limiter.try_acquire().unwrap();
    let mut client = connect_http2(server).await;

    let waiting = tokio::spawn(client.send_request(request()));
    until(&limiter, |seen| seen.queue_depth == 1).await;
    waiting.abort();
    let seen = until(&limiter, |seen| seen.queue_depth == 0).await;
    assert_eq!(seen.acquires.cancelled, 1);
    assert_ledgers_add_up(&seen);
    assert!(client.is_ready(), "only the stream is gone, not its connection");
}

#[tokio::test]
async fn idle_keep_alive_connections_hold_nothing_while_the_pool_is_full() {
    const CLIENTS: u64 = 40;
    let limiter = one_permit(1, 1);
    let server = serve(&limiter, Protocol::Auto).await;
    let (mut http1, mut http2) = (Vec::new(), Vec::new());
    for _ in 0..CLIENTS / 2 {
        let mut client = send(server).await;
        assert_eq!(read(&mut client).await.1, "served");
        http1.push(client);
        let mut client = connect_http2(server).await;
        assert_eq!(client.send_request(request()).await.unwrap().status(), StatusCode::OK);
        http2.push(client);
    }
    let seen = until(&limiter, |seen| seen.in_use == 0).await;
    assert_eq!((seen.idle, seen.queue_depth, seen.acquires.granted), (1, 0, CLIENTS));

    // They are all still connected, and the one permit is there to be taken, and the one place in the queue.
    let held = limiter.try_acquire().expect("free");
    let line = line_up(&limiter, 1);
    for client in &mut http1 {
        client.write_all(GET).await.unwrap();
        let (head, _) = read(client).await;
        assert_eq!(head.lines().next(), Some("HTTP/1.1 503 Service Unavailable"));
    }
    for client in &mut http2 {
        assert_eq!(client.send_request(request()).await.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
    }

    drop((line, held));
    for client in &mut http1 {
        client.write_all(GET).await.unwrap();
        assert_eq!(read(client).await.1, "served");
    }
    for client in &mut http2 {
        assert_eq!(client.send_request(request()).await.unwrap().status(), StatusCode::OK);
    }
    let seen = until(&limiter, |seen| seen.in_use == 0).await;
    assert_eq!((seen.admissions.arrivals, seen.admissions.shed), (3 * CLIENTS, CLIENTS));
    assert_ledgers_add_up(&seen);
}
