//! The HTTP client: a handful of HTTP/2 connections that carry any number of requests at once.
//!
//! A static pool lets 15,000 requests wait. Over HTTP/1.1 each would hold a connection, more than the file
//! descriptors many machines grant a process (often 1,024); over HTTP/2 they are streams.

use std::{io, net::SocketAddr};

use http_body_util::{BodyExt, Empty};
use hyper::{
    Request, Response, StatusCode,
    body::{Body, Bytes, Incoming},
    client::conn::http2::{Builder, SendRequest},
    header::{HeaderName, HeaderValue, RETRY_AFTER},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::stats::Outcome;

/// Enough that no connection's lock or window becomes the bottleneck; more only cost further system calls.
const CONNECTIONS: usize = 4;

/// How long the client waits for its answer, in milliseconds: for a server that is told to look.
pub const BUDGET: HeaderName = HeaderName::from_static("x-budget-ms");

pub struct Client {
    connections: Vec<SendRequest<Empty<Bytes>>>,
    turn: usize,
    url: hyper::Uri,
    budget: Option<HeaderValue>,
}

impl Client {
    /// Opens the connections, so that no request has to.
    pub async fn connect(server: SocketAddr, budget_ms: Option<u32>) -> io::Result<Self> {
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS {
            let stream = TcpStream::connect(server).await?;
            stream.set_nodelay(true)?;
            let mut http2 = Builder::new(TokioExecutor::new());
            // Without this, hyper holds requests back until the server's own limit has arrived.
            http2.initial_max_send_streams(crate::http::MAX_STREAMS as usize);
            let (sender, connection) =
                http2.handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
            tokio::spawn(connection);
            connections.push(sender);
        }
        let url = format!("http://{server}/").parse().map_err(io::Error::other)?;
        Ok(Self { connections, turn: 0, url, budget: budget_ms.map(HeaderValue::from) })
    }

    /// Sends a request now; the future resolves when its answer has been read to the end.
    pub fn send(&mut self) -> impl Future<Output = Outcome> + use<> {
        self.turn = (self.turn + 1) % self.connections.len();
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = self.url.clone();
        request.headers_mut().extend(self.budget.clone().map(|budget| (BUDGET, budget)));
        let answer = self.connections[self.turn].send_request(request);
        async move {
            match answer.await {
                Ok(response) => outcome(response).await,
                Err(_) => Outcome::Error,
            }
        }
    }
}

async fn outcome(response: Response<Incoming>) -> Outcome {
    let (head, body) = response.into_parts();
    if !body.is_end_stream() && body.collect().await.is_err() {
        return Outcome::Error;
    }
    match head.status {
        StatusCode::OK => Outcome::Served,
        StatusCode::SERVICE_UNAVAILABLE => {
            // Our servers send whole seconds, two minutes at most; a date would be valid HTTP, but not what they promise.
            let value = head.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
            Outcome::Shed { retry_after: value.and_then(|value| value.parse().ok()) }
        }
        StatusCode::GATEWAY_TIMEOUT => Outcome::Timeout,
        _ => Outcome::Error,
    }
}
