//! Serves a router to the generator.
//!
//! `axum::serve` would do, but for hyper's default of 200 concurrent requests per HTTP/2 connection: the limit under
//! test must be the pool's, not the protocol's.

use std::{io, net::SocketAddr};

use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use tokio::{
    net::TcpListener,
    task::{AbortHandle, JoinSet},
};

/// Requests that may be under way on one connection: never the limit that is met first.
pub const MAX_STREAMS: u32 = 100_000;

/// A server on a free port of this machine; it and its connections end when this is dropped.
pub struct HttpServer {
    pub addr: SocketAddr,
    accepting: AbortHandle,
}

impl HttpServer {
    pub async fn start(router: Router) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let addr = listener.local_addr()?;
        let accepting = tokio::spawn(accept(listener, router)).abort_handle();
        Ok(Self { addr, accepting })
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, router: Router) {
    // Owned here, so that aborting this task also ends every connection.
    let mut connections = JoinSet::new();
    loop {
        // An accept can fail for that one connection (it was reset meanwhile); the next is none the worse.
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(router.clone());
        connections.spawn(async move {
            let mut http = Builder::new(TokioExecutor::new());
            http.http2().max_concurrent_streams(MAX_STREAMS);
            // A connection that breaks is the client's to report: it counts the requests it lost.
            let _ = http.serve_connection(TokioIo::new(stream), service).await;
        });
        while connections.try_join_next().is_some() {}
    }
}
