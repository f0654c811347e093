//! A close that lets a client finish its upload, so that it gets to read what it was answered meanwhile.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::terms::after;

/// A client that sends nothing for so long has nothing more to send, or is not there.
const QUIET: Duration = Duration::from_secs(1);

pin_project! {
    /// A server's connection whose close lingers: it ends its own side, then reads and forgets what its client still sends, until
    /// the client closes, is quiet for a second, or `at_most` has passed.
    ///
    /// A refusal over HTTP/1 is often there before the request's body is. Hyper then closes the connection, and the kernel
    /// answers what still comes with a reset: a client that writes all of its upload before it reads sees its write fail, and
    /// never learns of the 503 and its `Retry-After`. Give hyper's connections this one instead of the bare socket; axum's
    /// `serve` takes it from a `Listener` whose `Io` it is. HTTP/2 does not need it.
    ///
    /// ```no_run
    /// # use std::{io, net::SocketAddr, time::Duration};
    /// # use tokio::net::{TcpListener, TcpStream};
    /// # use tower_adaptive_pool::LingeringClose;
    /// struct Lingering(TcpListener);
    ///
    /// impl axum::serve::Listener for Lingering {
    ///     type Io = LingeringClose<TcpStream>;
    ///     type Addr = SocketAddr;
    ///
    ///     async fn accept(&mut self) -> (Self::Io, SocketAddr) {
    ///         let (stream, address) = axum::serve::Listener::accept(&mut self.0).await;
    ///         (LingeringClose::new(stream, Duration::from_secs(10)), address)
    ///     }
    ///
    ///     fn local_addr(&self) -> io::Result<SocketAddr> {
    ///         self.0.local_addr()
    ///     }
    /// }
    /// # async fn serve(app: axum::Router) -> io::Result<()> {
    /// let listener = Lingering(TcpListener::bind("127.0.0.1:3000").await?);
    /// axum::serve(listener, app).await
    /// # }
    /// ```
    #[derive(Debug)]
    pub struct LingeringClose<IO> {
        #[pin]
        io: IO,
        at_most: Duration,
        // Once its own side is closed: when to give up, at the latest and for now.
        lingers: Option<(Instant, Pin<Box<Sleep>>)>,
    }
}

impl<IO> LingeringClose<IO> {
    /// A connection that lingers for no longer than this.
    pub fn new(io: IO, at_most: Duration) -> Self {
        Self { io, at_most, lingers: None }
    }
}

impl<IO: AsyncRead> AsyncRead for LingeringClose<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.project().io.poll_read(cx, buf)
    }
}

impl<IO: AsyncRead + AsyncWrite> AsyncWrite for LingeringClose<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.project().io.poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().io.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut this = self.project();
        if this.lingers.is_none() {
            ready!(this.io.as_mut().poll_shutdown(cx))?;
        }
        let (latest, timer) = this.lingers.get_or_insert_with(|| {
            let latest = after(Instant::now(), *this.at_most);
            (latest, Box::pin(sleep_until(latest.min(Instant::now() + QUIET))))
        });
        let mut scrap = [MaybeUninit::uninit(); 8 * 1024];
        loop {
            let mut scrap = ReadBuf::uninit(&mut scrap);
            match this.io.as_mut().poll_read(cx, &mut scrap) {
                Poll::Pending => return timer.as_mut().poll(cx).map(Ok),
                // A reset is an end too, and the last word has been said.
                Poll::Ready(outcome) if outcome.is_err() || scrap.filled().is_empty() => {
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(_) if Instant::now() >= *latest => return Poll::Ready(Ok(())),
                Poll::Ready(_) => timer.as_mut().reset((*latest).min(Instant::now() + QUIET)),
            }
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.project().io.poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
