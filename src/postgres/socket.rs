//! Where the server is: the addresses of a name, one after the other, and a socket to one of them.

use std::io;
use std::net::SocketAddr;
#[cfg(unix)]
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout};
use tokio_postgres::Config;
use tokio_postgres::config::Host;

/// PostgreSQL's well-known port.
const DEFAULT_PORT: u16 = 5432;
/// tokio-postgres's own default, which no middlebox waits for.
const DRIVERS_KEEPALIVE: Duration = Duration::from_secs(2 * 60 * 60);
const KEEPALIVE: Duration = Duration::from_secs(10);
/// A peer that is silent for a minute (10 s, then five times 10 s) is gone; the kernels' own would be eleven minutes.
const KEEPALIVE_RETRIES: u32 = 5;
/// The same for bytes the peer does not acknowledge, for which the kernel alone would try a quarter of an hour.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED: Duration = Duration::from_secs(60);

/// How long one of several addresses may take, where `connect_timeout` says nothing: a handshake over half the world takes
/// a third of it, and the next address must have its turn within `dial_timeout`.
const ONE_OF_SEVERAL: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(UnixStream),
}

/// One address of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    Tcp(SocketAddr),
    #[cfg(unix)]
    Unix(PathBuf),
}

/// With which of several addresses a dial begins.
#[derive(Debug)]
enum Begin {
    /// It answered last.
    With(Peer),
    /// It did not, or is not wanted.
    After(Peer),
}

impl Begin {
    fn among(&self, peers: &[Peer]) -> usize {
        let (Self::With(known) | Self::After(known)) = self;
        match (self, peers.iter().position(|peer| peer == known)) {
            (_, None) => 0,
            (Self::With(_), Some(at)) => at,
            (Self::After(_), Some(at)) => (at + 1) % peers.len(),
        }
    }
}

/// Finds the server.
#[derive(Debug)]
pub(super) struct Finder {
    config: Config,
    begin: Mutex<Option<Begin>>,
    #[cfg(test)]
    pub instead: Vec<SocketAddr>,
}

impl Finder {
    pub fn new(config: Config) -> Self {
        Self {
            config,
            begin: Mutex::default(),
            #[cfg(test)]
            instead: Vec::new(),
        }
    }

    /// A socket to the first of the server's addresses that takes one, each within its own limit, and how long it took:
    /// a round trip.
    pub async fn connect(&self) -> io::Result<(Socket, Peer, Duration)> {
        let mut peers = self.peers().await?;
        let limit = match self.config.get_connect_timeout() {
            None if peers.len() > 1 => Some(ONE_OF_SEVERAL),
            limit => limit.copied(),
        };
        let begin = self.begin.lock().as_ref().map_or(0, |begin| begin.among(&peers));
        peers.rotate_left(begin);
        let mut failed = io::Error::other("the host has no address");
        for peer in &peers {
            // Not only when it fails: a dial that takes too long is dropped in the middle.
            let skip = Skip { finder: self, peer };
            let began = Instant::now();
            match self.reach(peer, limit).await {
                Ok(socket) => {
                    std::mem::forget(skip);
                    *self.begin.lock() = Some(Begin::With(peer.clone()));
                    return Ok((socket, peer.clone(), began.elapsed()));
                }
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    /// The next dial begins with another address than this, unless that is known already.
    pub fn avoid(&self, peer: &Peer) {
        let mut begin = self.begin.lock();
        if !matches!(&*begin, Some(Begin::With(other)) if other != peer) {
            *begin = Some(Begin::After(peer.clone()));
        }
    }

    /// A socket to this address, for what must not go to any other.
    pub async fn connect_to(&self, peer: &Peer) -> io::Result<Socket> {
        self.reach(peer, self.config.get_connect_timeout().copied()).await
    }

    async fn reach(&self, peer: &Peer, limit: Option<Duration>) -> io::Result<Socket> {
        let Some(limit) = limit else { return self.open(peer).await };
        timeout(limit, self.open(peer)).await.unwrap_or_else(|_| {
            let why = match peer {
                Peer::Tcp(address) => {
                    format!("no connection to {address} within {limit:?} (connect_timeout)")
                }
                #[cfg(unix)]
                Peer::Unix(_) => format!("no connection within {limit:?} (connect_timeout)"),
            };
            Err(io::Error::new(io::ErrorKind::TimedOut, why))
        })
    }

    async fn open(&self, peer: &Peer) -> io::Result<Socket> {
        match peer {
            Peer::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                prepare(&stream, &self.config)?;
                Ok(Socket::Tcp(stream))
            }
            #[cfg(unix)]
            Peer::Unix(path) => Ok(Socket::Unix(UnixStream::connect(path).await?)),
        }
    }

    async fn peers(&self) -> io::Result<Vec<Peer>> {
        #[cfg(test)]
        if !self.instead.is_empty() {
            return Ok(self.instead.iter().copied().map(Peer::Tcp).collect());
        }
        let config = &self.config;
        let port = port(config);
        match (config.get_hostaddrs().first(), config.get_hosts().first()) {
            (Some(&address), _) => Ok(vec![Peer::Tcp((address, port).into())]),
            (None, Some(Host::Tcp(host))) => {
                Ok(lookup_host((host.as_str(), port)).await?.map(Peer::Tcp).collect())
            }
            #[cfg(unix)]
            (None, Some(Host::Unix(directory))) => {
                Ok(vec![Peer::Unix(directory.join(format!(".s.PGSQL.{port}")))])
            }
            (None, None) => Err(io::Error::other("no host is configured")),
        }
    }
}

/// Dropped, it has the next dial begin with another address, unless a dial has said so, or found a better one, meanwhile.
struct Skip<'a> {
    finder: &'a Finder,
    peer: &'a Peer,
}

impl Drop for Skip<'_> {
    fn drop(&mut self) {
        self.finder.avoid(self.peer);
    }
}

pub(super) fn port(config: &Config) -> u16 {
    config.get_ports().first().copied().unwrap_or(DEFAULT_PORT)
}

fn prepare(stream: &TcpStream, config: &Config) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    if config.get_keepalives() {
        socket.set_tcp_keepalive(&keepalive(config))?;
    }
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(config.get_tcp_user_timeout().copied().unwrap_or(UNACKNOWLEDGED)))?;
    Ok(())
}

fn keepalive(config: &Config) -> TcpKeepalive {
    let idle = match config.get_keepalives_idle() {
        DRIVERS_KEEPALIVE => KEEPALIVE,
        idle => idle,
    };
    TcpKeepalive::new()
        .with_time(idle)
        .with_interval(config.get_keepalives_interval().unwrap_or(KEEPALIVE))
        .with_retries(config.get_keepalives_retries().unwrap_or(KEEPALIVE_RETRIES))
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

#[cfg(test)]
pub(super) mod tests;
