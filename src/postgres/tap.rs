//! The stream under a connection, and what becomes of it: a place under the ceiling is free when the *server* has
//! closed its side.
//!
//! PostgreSQL keeps a client's socket open until its backend process has exited, so reading EOF is how one knows that
//! the backend is gone. Whatever way a connection ends (Terminate sent, an error, a dial that timed out), its stream is
//! dropped, and the drop hands the socket to a reaper that reads until that EOF.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_postgres::tls::{ChannelBinding, TlsStream};

use super::wire::{Frames, Status};
use crate::backend::Place;

/// How long nothing at all may be heard from a server that was told goodbye before its place is written off as lost; as
/// long as the kernel waits for one that was not (see `dial`).
const UNHEARD_OF: Duration = Duration::from_secs(60);

/// The socket of one connection, with its place under the ceiling. Appears in the bounds of
/// [`Postgres::new`](super::Postgres::new): it is what a TLS connector is given to wrap.
#[derive(Debug)]
pub struct Tap {
    /// `None` only while it is being dropped.
    socket: Option<Socket>,
    witness: Option<Witness>,
    /// The server has closed its side.
    ended: bool,
    frames: Frames,
    status: Arc<Status>,
    runtime: Handle,
}

/// Who waits for the server to let go.
#[derive(Debug)]
pub(super) enum Witness {
    /// A connection's place, free when this is dropped.
    Place(Arc<Place>),
    /// A cancel request: the server closes its side when it has acted. Dropped unsent, nothing is known.
    Cancel(oneshot::Sender<()>),
}

impl Witness {
    fn saw_the_end(self) {
        if let Self::Cancel(done) = self {
            let _ = done.send(());
        }
    }

    fn write_off(&self) {
        if let Self::Place(place) = self {
            place.write_off();
        }
    }

    /// A reset comes from the server's side (or from what stands before it); these errors mean that nobody answered, and
    /// that the kernel gave up.
    fn saw(&self, error: &io::Error) {
        use io::ErrorKind::{HostUnreachable, NetworkUnreachable, TimedOut};
        if matches!(error.kind(), HostUnreachable | NetworkUnreachable | TimedOut) {
            self.write_off();
        }
    }
}

#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(UnixStream),
}

impl Tap {
    /// To be called inside the runtime.
    pub(super) fn new(socket: Socket, witness: Witness, status: Arc<Status>) -> Self {
        let runtime = Handle::current();
        let (socket, witness) = (Some(socket), Some(witness));
        Self { socket, witness, ended: false, frames: Frames::Start, status, runtime }
    }

    fn socket(&mut self) -> io::Result<Pin<&mut Socket>> {
        self.socket.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let (Some(socket), Some(witness)) = (self.socket.take(), self.witness.take()) else { return };
        if self.ended {
            witness.saw_the_end();
        } else {
            self.runtime.spawn(reap(socket, witness));
        }
    }
}

/// Reads until the server has closed its side; its words are of no interest any more.
async fn reap(mut socket: Socket, witness: Witness) {
    let _ = socket.shutdown().await;
    let mut ignored = [0; 4096];
    loop {
        match timeout(UNHEARD_OF, socket.read(&mut ignored)).await {
            Ok(Ok(0)) => return witness.saw_the_end(),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return witness.saw(&error),
            Err(_) => return witness.write_off(),
        }
    }
}

impl AsyncRead for Tap {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let outcome = ready!(self.socket()?.poll_read(cx, buf));
        let tap = &mut *self;
        let heard = &buf.filled()[before..];
        if let (Err(error), Some(witness)) = (&outcome, &tap.witness) {
            witness.saw(error);
        }
        tap.ended |= outcome.is_err() || (heard.is_empty() && buf.remaining() > 0);
        tap.frames.read(heard, &tap.status);
        Poll::Ready(outcome)
    }
}

impl AsyncWrite for Tap {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.socket()?.poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket()?.poll_shutdown(cx)
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_read(cx, buf),
            #[cfg(unix)]
            Self::Unix(socket) => Pin::new(socket).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_write(cx, buf),
            #[cfg(unix)]
            Self::Unix(socket) => Pin::new(socket).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_flush(cx),
            #[cfg(unix)]
            Self::Unix(socket) => Pin::new(socket).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_shutdown(cx),
            #[cfg(unix)]
            Self::Unix(socket) => Pin::new(socket).poll_shutdown(cx),
        }
    }
}

/// A TLS stream with an ear above the encryption: only there can the messages be read.
#[derive(Debug)]
pub(super) struct Overheard<S> {
    stream: S,
    frames: Frames,
    status: Arc<Status>,
}

impl<S> Overheard<S> {
    pub fn new(stream: S, status: Arc<Status>) -> Self {
        Self { stream, frames: Frames::inside_tls(), status }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Overheard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let outcome = ready!(Pin::new(&mut self.stream).poll_read(cx, buf));
        let this = &mut *self;
        this.frames.read(&buf.filled()[before..], &this.status);
        Poll::Ready(outcome)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Overheard<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl<S: TlsStream + Unpin> TlsStream for Overheard<S> {
    fn channel_binding(&self) -> ChannelBinding {
        self.stream.channel_binding()
    }
}
