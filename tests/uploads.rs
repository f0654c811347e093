//! Clients that write all of their upload before they read, over HTTP/1 and real sockets, in front of a pool that refuses.

mod support;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::routing::any;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use support::line::one_permit;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};
use tower::{Layer, service_fn};
use tower_adaptive_pool::{AdaptivePoolLayer, LingeringClose, Shed};

const DEADLINE: Duration = Duration::from_secs(10);
const SIZES: [usize; 6] = [10, 10_000, 100_000, 1_000_000, 8_000_000, 50_000_000];
const ROUNDS: usize = 10;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Close {
    /// As hyper does it.
    Bare,
    /// The same, with `Connection: close` in the refusal.
    Told,
    Lingering,
}

/// Refuses everything, until the test ends.
async fn serve(close: Close) -> SocketAddr {
    let limiter = one_permit(1, 1);
    limiter.drain(DEADLINE).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let layer = AdaptivePoolLayer::new(limiter).with_responder(move |shed: &Shed| {
        let mut response: Response<Full<Bytes>> = Response::from(*shed);
        if close == Close::Told {
            response.headers_mut().insert("connection", "close".parse().unwrap());
        }
        response
    });
    let inner = service_fn(async |_: Request<Incoming>| Ok::<_, Infallible>(Response::new(Full::default())));
    let service = TowerToHyperService::new(layer.layer(inner));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service.clone();
            tokio::spawn(async move {
                let server = auto::Builder::new(TokioExecutor::new());
                // A client that is reset ends its connection with an error: that is what the tests are about.
                if close == Close::Lingering {
                    let stream = TokioIo::new(LingeringClose::new(stream, DEADLINE));
                    drop(server.serve_connection(stream, service).await);
                } else {
                    drop(server.serve_connection(TokioIo::new(stream), service).await);
                }
            });
        }
    });
    address
}

/// Writes all, then reads, and gives up at the first error, as simple clients do. What it learned, if anything.
async fn upload(server: SocketAddr, bytes: usize) -> Option<String> {
    let mut client = TcpStream::connect(server).await.ok()?;
    let head = format!("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: {bytes}\r\n\r\n");
    client.write_all(head.as_bytes()).await.ok()?;
    client.write_all(&vec![b'x'; bytes]).await.ok()?;
    let mut said = vec![0; 4096];
    let read = timeout(DEADLINE, client.read(&mut said)).await.expect("an answer, or an end").ok()?;
    Some(String::from_utf8_lossy(&said[..read]).into_owned()).filter(|said| !said.is_empty())
}

/// How many of [`ROUNDS`] uploads of each size learned that they were refused, and when to come back.
async fn learned(close: Close) -> Vec<usize> {
    let server = serve(close).await;
    let mut learned = Vec::new();
    for bytes in SIZES {
        let mut good = 0;
        for _ in 0..ROUNDS {
            let said = upload(server, bytes).await;
            good += usize::from(said.is_some_and(|said| {
                said.starts_with("HTTP/1.1 503") && said.to_lowercase().contains("retry-after: ")
            }));
        }
        learned.push(good);
    }
    println!("{close:?}: of {ROUNDS} uploads of {SIZES:?} bytes {learned:?} learned of their refusal");
    learned
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_lingering_close_every_upload_learns_that_it_was_refused() {
    learned(Close::Bare).await; // printed, for docs/RELIABILITY.md
    learned(Close::Told).await;
    assert_eq!(learned(Close::Lingering).await, [ROUNDS; SIZES.len()]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_http_2_and_where_the_client_asks_first_an_upload_learns_that_it_was_refused_by_itself() {
    let server = serve(Close::Bare).await;
    for bytes in SIZES {
        let mut client = TcpStream::connect(server).await.unwrap();
        let head = format!(
            "POST / HTTP/1.1\r\nhost: test\r\nexpect: 100-continue\r\ncontent-length: {bytes}\r\n\r\n"
        );
        client.write_all(head.as_bytes()).await.unwrap();
        let mut said = [0; 12];
        timeout(DEADLINE, client.read_exact(&mut said)).await.unwrap().unwrap();
        assert_eq!(&said, b"HTTP/1.1 503", "{bytes} bytes");

        let stream = TokioIo::new(TcpStream::connect(server).await.unwrap());
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
        tokio::spawn(connection);
        for _ in 0..ROUNDS {
            let upload = Full::<Bytes>::from(vec![b'x'; bytes]);
            let request = Request::post("http://test/").body(upload).unwrap();
            let response = timeout(DEADLINE, sender.send_request(request)).await.unwrap().unwrap();
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "{bytes} bytes");
        }
    }
}

/// A listener as `axum::serve` takes it.
struct Lingering(TcpListener);

impl axum::serve::Listener for Lingering {
    type Io = LingeringClose<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        let (stream, address) = axum::serve::Listener::accept(&mut self.0).await;
        (LingeringClose::new(stream, DEADLINE), address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_axum_too_every_upload_learns_that_it_was_refused_and_connections_are_kept_as_ever() {
    let limiter = one_permit(1, 1);
    let app = Router::new().route("/", any(async || "served")).layer(AdaptivePoolLayer::new(limiter.clone()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(Lingering(listener), app).await });

    let mut kept = TcpStream::connect(address).await.unwrap();
    for _ in 0..3 {
        kept.write_all(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n").await.unwrap();
        let mut said = Vec::new();
        while !said.ends_with(b"served") {
            assert!(timeout(DEADLINE, kept.read_buf(&mut said)).await.unwrap().unwrap() > 0);
        }
    }
    limiter.drain(DEADLINE).await.unwrap();
    for _ in 0..ROUNDS {
        let said = upload(address, 8_000_000).await.expect("an answer");
        assert!(said.starts_with("HTTP/1.1 503"), "{said}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lingering_close_ends_with_its_client_or_after_a_quiet_second_or_when_its_time_is_over() {
    let linger = async |client: &mut tokio::io::DuplexStream, every: Option<u64>, server| {
        let mut server = LingeringClose::new(server, DEADLINE);
        let began = Instant::now();
        let sending = async {
            while let Some(millis) = every {
                tokio::time::sleep(Duration::from_millis(millis)).await;
                if client.write_all(b"more").await.is_err() {
                    break;
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = sending => {}
            ended = server.shutdown() => ended.unwrap(),
        }
        began.elapsed()
    };
    for (every, lingers) in [(None, 1_000), (Some(1_500), 1_000), (Some(900), 10_000)] {
        let (mut client, server) = duplex(64);
        assert_eq!(linger(&mut client, every, server).await, Duration::from_millis(lingers), "{every:?}");
    }
    let (client, server) = duplex(64);
    drop(client);
    let mut server = LingeringClose::new(server, DEADLINE);
    let began = Instant::now();
    server.shutdown().await.unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO);
}
