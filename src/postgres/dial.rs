//! Opening a connection: socket, TLS, handshake, and the task that drives it.

use std::any::TypeId;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Handle;
use tokio::select;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{Config, Connection, NoTls};

use super::cancel::{Target, not_seen};
use super::server_timeouts::ServerTimeouts;
use super::session::{Leave, Session};
use super::socket::Finder;
use super::status::Status;
use super::tap::{Overheard, Purpose, Tap, Witness};
use super::wire::Ear;
use crate::backend::{Place, Refusal};

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// How long a connection that was thrown away waits for the answer to its last query before it stops listening.
const LAST_ANSWER: Duration = Duration::from_secs(5);

/// How long a cancel request may take until the server has acted on it.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);
/// Cancel requests under way at once. Each has the server start a process, and a proxy count a client, beside the
/// connections of the pool.
const CANCELS_AT_ONCE: usize = 4;

/// Why a connection could not be opened.
#[derive(Debug)]
#[non_exhaustive]
pub enum DialError {
    /// The host could not be reached.
    Connect(io::Error),
    /// The TLS connector refused.
    Tls(Box<dyn Error + Send + Sync>),
    /// The server refused, or the handshake broke.
    Postgres(tokio_postgres::Error),
}

impl DialError {
    /// 53300: too many clients, for the server or for the role. Class 28: the role or its password; 3D000: no such
    /// database. Everything else (57P03 «starting up», 57P01 «shutting down», no answer at all) passes.
    pub(super) fn refusal(&self) -> Refusal {
        let Self::Postgres(error) = self else { return Refusal::Away };
        match error.code() {
            Some(&SqlState::TOO_MANY_CONNECTIONS) => Refusal::Full,
            Some(&SqlState::INVALID_CATALOG_NAME) => Refusal::Rejected,
            Some(state) if state.code().starts_with("28") => Refusal::Rejected,
            _ => Refusal::Away,
        }
    }
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => write!(f, "the database cannot be reached: {error}"),
            Self::Tls(error) => write!(f, "TLS: {error}"),
            Self::Postgres(error) => match error.as_db_error() {
                Some(said) => write!(f, "{} ({})", said.message(), said.code().code()),
                None => write!(f, "{error}"),
            },
        }
    }
}

impl Error for DialError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Connect(error) => Some(error),
            Self::Tls(error) => Some(&**error),
            Self::Postgres(error) => Some(error),
        }
    }
}

/// Dials with one kind of TLS connector; behind a `dyn`, so that [`Postgres`](super::Postgres) needs no parameter.
pub(super) trait Dial: Send + Sync {
    fn dial(&self, place: Place, wishes: Wishes) -> BoxFuture<'_, Result<Session, DialError>>;

    /// Asks the session's own server to cancel what runs on it, and resolves when it has acted. Safe only while nobody
    /// else can use that session.
    fn cancel<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<(), DialError>>;

    /// The next dial begins with another address than that session's, if there is one.
    fn avoid(&self, target: &Target);
}

/// What its backend asks of a new session.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wishes {
    pub query_timeout: Duration,
    /// No cancel token that the driver makes is to work: it could be kept beyond its use.
    pub disguises_key: bool,
}

pub(super) struct Dialer<T> {
    config: Config,
    tls: T,
    finder: Finder,
    timeouts: ServerTimeouts,
    cancels: Semaphore,
}

impl<T> Dialer<T>
where
    T: MakeTlsConnect<Tap> + Clone + Send + Sync + 'static,
    T::TlsConnect: Send,
    T::Stream: Send + 'static,
    <T::TlsConnect as TlsConnect<Tap>>::Future: Send + 'static,
{
    pub fn new(mut config: Config, tls: T) -> Self {
        // NoTls says privately that it cannot connect; the ear around it cannot pass that on, so say it here.
        let no_tls = TypeId::of::<T>() == TypeId::of::<NoTls>();
        if no_tls && config.get_ssl_mode() == SslMode::Prefer {
            config.ssl_mode(SslMode::Disable);
        }
        let finder = Finder::new(config.clone());
        let cancels = Semaphore::new(CANCELS_AT_ONCE);
        Self { config, tls, finder, timeouts: ServerTimeouts::default(), cancels }
    }

    async fn open(&self, place: Place, wishes: Wishes) -> Result<Session, DialError> {
        let (socket, peer, round_trip) = self.finder.connect().await.map_err(DialError::Connect)?;
        let status = Arc::new(Status::default());
        let place = Arc::new(place);
        let disguises = wishes.disguises_key;
        let purpose = Purpose::Session(Ear::new(status.clone(), disguises));
        let tap = Tap::new(socket, Witness::Place(place.clone()), purpose);
        let above = Purpose::Session(Ear::inside_tls(status.clone(), disguises));
        let tls = Eavesdrop { tls: self.connector()?, purpose: above };
        let config = self.config.clone();
        let handshake = async move { config.connect_raw(tap, tls).await };
        let handshake = beside_the_workers(handshake);
        let (client, connection) = handshake.await?.map_err(DialError::Postgres)?;
        let (leave, left) = oneshot::channel();
        tokio::spawn(drive(connection, left, status.clone(), place.clone()));
        self.timeouts.set(&client, &place, wishes.query_timeout).await.map_err(DialError::Postgres)?;
        let target = Target { key: client.cancel_token(), peer, has_disguised_key: disguises };
        Ok(Session::new(client, status, target, round_trip, place, leave))
    }

    /// PostgreSQL closes a cancel request's connection after it has signalled the backend, so that EOF is the news.
    async fn send_cancel(&self, target: &Target) -> Result<(), DialError> {
        let _one_of_few = self.cancels.acquire().await.map_err(|_| not_seen())?;
        let socket = self.finder.connect_to(&target.peer).await.map_err(DialError::Connect)?;
        let (acted, seen) = oneshot::channel();
        let purpose = || Purpose::Cancel { has_disguised_key: target.has_disguised_key };
        let tap = Tap::new(socket, Witness::Cancel(acted), purpose());
        let tls = Eavesdrop { tls: self.connector()?, purpose: purpose() };
        target.key.cancel_query_raw(tap, tls).await.map_err(DialError::Postgres)?;
        seen.await.map_err(|_| not_seen())
    }

    fn connector(&self) -> Result<T::TlsConnect, DialError> {
        let made = self.tls.clone().make_tls_connect(host_name(&self.config));
        made.map_err(|error| DialError::Tls(error.into()))
    }
}

/// Drives a connection until it has ended, by itself or with its session.
async fn drive<S, T>(
    connection: Connection<S, T>,
    left: oneshot::Receiver<Leave>,
    status: Arc<Status>,
    place: Arc<Place>,
) where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    {
        let mut connection = pin!(connection);
        select! {
            _ = &mut connection => {}
            // Ends by itself: the client's drop makes it send Terminate once the last answer is in. An answer that
            // never comes must not keep the socket from the reaper, which alone can write its place off.
            leave = left => match leave.unwrap_or(Leave::WithLastAnswer) {
                Leave::Now => {}
                Leave::WithLastAnswer => drop(timeout(LAST_ANSWER, connection).await),
                Leave::WithCommit => {
                    // What was sent after it is not waited for.
                    while timeout(LAST_ANSWER, &mut connection).await.is_err() && !status.is_idle() {}
                }
            },
        }
    }
    // Only now that it is dropped is the client known to be closed.
    place.lost();
}

/// Runs a handshake on a thread of the blocking pool: SCRAM hashes for milliseconds, TLS computes too, and on a worker
/// the requests of others would wait for it. The socket stays with the runtime it was opened in.
///
/// Dropping this drops the handshake.
async fn beside_the_workers<F>(handshake: F) -> Result<F::Output, DialError>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let (mut done, outcome) = oneshot::channel();
    let runtime = Handle::current();
    spawn_blocking(move || {
        runtime.block_on(async {
            let ended = select! {
                ended = handshake => ended,
                () = done.closed() => return,
            };
            // Nobody may be waiting any more; then the connection is dropped, and closes.
            let _ = done.send(ended);
        });
    });
    outcome.await.map_err(|_| DialError::Connect(io::Error::other("the handshake was aborted")))
}

impl<T> Dial for Dialer<T>
where
    T: MakeTlsConnect<Tap> + Clone + Send + Sync + 'static,
    T::TlsConnect: Send,
    T::Stream: Send + 'static,
    <T::TlsConnect as TlsConnect<Tap>>::Future: Send + 'static,
{
    fn dial(&self, place: Place, wishes: Wishes) -> BoxFuture<'_, Result<Session, DialError>> {
        Box::pin(self.open(place, wishes))
    }

    fn cancel<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<(), DialError>> {
        Box::pin(async {
            timeout(CANCEL_TIMEOUT, self.send_cancel(target)).await.unwrap_or_else(|_| Err(not_seen()))
        })
    }

    fn avoid(&self, target: &Target) {
        self.finder.avoid(&target.peer);
    }
}

/// What the certificate is checked against.
fn host_name(config: &Config) -> &str {
    match config.get_hosts().first() {
        Some(Host::Tcp(host)) => host,
        _ => "",
    }
}

/// A TLS connector whose streams have a purpose above the encryption.
struct Eavesdrop<C> {
    tls: C,
    purpose: Purpose,
}

impl<C> TlsConnect<Tap> for Eavesdrop<C>
where
    C: TlsConnect<Tap>,
    C::Future: Send + 'static,
{
    type Stream = Overheard<C::Stream>;
    type Error = C::Error;
    type Future = BoxFuture<'static, Result<Self::Stream, C::Error>>;

    fn connect(self, tap: Tap) -> Self::Future {
        let connecting = self.tls.connect(tap);
        Box::pin(async move { Ok(Overheard::new(connecting.await?, self.purpose)) })
    }
}

#[cfg(test)]
mod tests;
