//! The stream under a connection, and what becomes of it: a place under the ceiling is free when the *server* has
//! closed its side.
//!
//! PostgreSQL keeps a client's socket open until its backend process has exited, so reading EOF is how one knows that
//! the backend is gone. Whatever way a connection ends (Terminate sent, an error, a dial that timed out), its stream is
//! dropped, and the drop hands the socket to a reaper that reads until that EOF.

use std::future::pending;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::runtime::Handle;
use tokio::select;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_postgres::tls::{ChannelBinding, TlsStream};

use super::socket::Socket;
use super::wire::{CANCEL_REQUEST_LENGTH, Ear, with_true_key};
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
    purpose: Purpose,
    runtime: Handle,
}

/// What a stream is for.
#[derive(Debug)]
pub(super) enum Purpose {
    /// A session, which is listened to.
    Session(Ear),
    /// One cancel request, sent with the true key of a disguised one if it `has_disguised_key`.
    ///
    /// Our side of it stays open until the server has closed its own, as libpq keeps it: PgBouncer takes a half-closed
    /// socket for a client that has gone, and forgets its request.
    Cancel { has_disguised_key: bool },
}

impl Purpose {
    fn hear(&mut self, bytes: &mut [u8]) {
        if let Self::Session(ear) = self {
            ear.hear(bytes);
        }
    }

    /// What is to be written in place of `bytes`.
    fn instead(&self, bytes: &[u8]) -> Option<[u8; CANCEL_REQUEST_LENGTH]> {
        match self {
            Self::Cancel { has_disguised_key: true } => with_true_key(bytes),
            _ => None,
        }
    }

    fn stays_open(&self) -> bool {
        matches!(self, Self::Cancel { .. })
    }

    fn poll_write<S: AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Some(request) = self.instead(bytes) else { return Pin::new(stream).poll_write(cx, bytes) };
        match ready!(Pin::new(stream).poll_write(cx, &request))? {
            CANCEL_REQUEST_LENGTH => Poll::Ready(Ok(CANCEL_REQUEST_LENGTH)),
            // The rest would no longer be known for what it is.
            _ => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
        }
    }

    fn poll_shutdown<S: AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if self.stays_open() { Pin::new(stream).poll_flush(cx) } else { Pin::new(stream).poll_shutdown(cx) }
    }
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
        if let Self::Cancel(acted) = self {
            let _ = acted.send(());
        }
    }

    /// Nobody waits for the end of a cancel request any more.
    async fn is_forgotten(&mut self) {
        match self {
            Self::Place(_) => pending().await,
            Self::Cancel(acted) => acted.closed().await,
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

impl Tap {
    /// To be called inside the runtime.
    pub(super) fn new(socket: Socket, witness: Witness, purpose: Purpose) -> Self {
        let runtime = Handle::current();
        let (socket, witness) = (Some(socket), Some(witness));
        Self { socket, witness, ended: false, purpose, runtime }
    }

    /// The socket, and what it is for.
    fn parts(&mut self) -> io::Result<(&mut Socket, &mut Purpose)> {
        let socket = self.socket.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        Ok((socket, &mut self.purpose))
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let (Some(socket), Some(witness)) = (self.socket.take(), self.witness.take()) else { return };
        if self.ended {
            witness.saw_the_end();
        } else {
            self.runtime.spawn(reap(socket, witness, self.purpose.stays_open()));
        }
    }
}

/// Reads until the server has closed its side; its words are of no interest any more.
async fn reap(mut socket: Socket, mut witness: Witness, stays_open: bool) {
    if !stays_open {
        let _ = socket.shutdown().await;
    }
    let mut ignored = [0; 4096];
    loop {
        let read = select! {
            read = timeout(UNHEARD_OF, socket.read(&mut ignored)) => read,
            () = witness.is_forgotten() => return,
        };
        match read {
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
        let (socket, _) = self.parts()?;
        let outcome = ready!(Pin::new(socket).poll_read(cx, buf));
        let tap = &mut *self;
        let room = buf.remaining() > 0;
        let heard = &mut buf.filled_mut()[before..];
        if let (Err(error), Some(witness)) = (&outcome, &tap.witness) {
            witness.saw(error);
        }
        tap.ended |= outcome.is_err() || (heard.is_empty() && room);
        tap.purpose.hear(heard);
        Poll::Ready(outcome)
    }
}

impl AsyncWrite for Tap {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let (socket, purpose) = self.parts()?;
        purpose.poll_write(socket, cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.parts()?.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (socket, purpose) = self.parts()?;
        purpose.poll_shutdown(socket, cx)
    }
}

/// A TLS stream with the tap's purpose above the encryption: only there can the messages be read.
#[derive(Debug)]
pub(super) struct Overheard<S> {
    stream: S,
    purpose: Purpose,
}

impl<S> Overheard<S> {
    pub fn new(stream: S, purpose: Purpose) -> Self {
        Self { stream, purpose }
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
        self.purpose.hear(&mut buf.filled_mut()[before..]);
        Poll::Ready(outcome)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Overheard<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let Self { stream, purpose } = &mut *self;
        purpose.poll_write(stream, cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { stream, purpose } = &mut *self;
        purpose.poll_shutdown(stream, cx)
    }
}

impl<S: TlsStream + Unpin> TlsStream for Overheard<S> {
    fn channel_binding(&self) -> ChannelBinding {
        self.stream.channel_binding()
    }
}
