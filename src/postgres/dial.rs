//! Opening a connection: socket, TLS, handshake, and the task that drives it.

use std::any::TypeId;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::ClientWrapper;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tokio::select;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{CancelToken, Config, NoTls};

use super::session::Session;
use super::tap::{Overheard, Socket, Tap, Witness};
use super::wire::Status;
use crate::backend::{Place, Refusal};

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// PostgreSQL's well-known port.
pub(super) const DEFAULT_PORT: u16 = 5432;
/// tokio-postgres's own default, which no middlebox waits for.
const DRIVERS_KEEPALIVE: Duration = Duration::from_secs(2 * 60 * 60);
const KEEPALIVE: Duration = Duration::from_secs(10);
/// A peer that is silent for a minute (10 s, then five times 10 s) is gone; the kernels' own would be eleven minutes.
const KEEPALIVE_RETRIES: u32 = 5;
/// The same for bytes the peer does not acknowledge, for which the kernel alone would try a quarter of an hour.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED: Duration = Duration::from_secs(60);

/// How long a connection that was thrown away waits for the answer to its last query before it stops listening.
const LAST_ANSWER: Duration = Duration::from_secs(5);

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
    fn dial(&self, place: Place, query_timeout: Duration) -> BoxFuture<'_, Result<Session, DialError>>;

    /// Asks the server to cancel what runs on a connection, and resolves when it has acted. Safe only while nobody else
    /// can use that connection.
    fn cancel(&self, token: CancelToken) -> BoxFuture<'_, Result<(), DialError>>;
}

pub(super) struct Dialer<T> {
    config: Config,
    tls: T,
}

/// The server's own limits, as the second line of defence: a statement ends there at twice our time-out, should our
/// cancel be lost; and one whose client is gone ends within seconds (PostgreSQL 14 and later).
///
/// Only where nothing else is set: what a role, a database or `options` says stays. Without `pg_settings`, which costs a
/// millisecond to read.
fn server_limits(query_timeout: Duration) -> Option<String> {
    let millis = i32::try_from(query_timeout.saturating_mul(2).as_millis()).ok()?;
    Some(format!(
        "select set_config(name, value, false) from (values ('statement_timeout', '{millis}'), \
         ('client_connection_check_interval', '2s')) as limits (name, value) \
         where current_setting(name, true) = '0'"
    ))
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
        Self { config, tls }
    }

    async fn open(&self, place: Place, query_timeout: Duration) -> Result<Session, DialError> {
        let socket = connect(&self.config).await?;
        let status = Arc::new(Status::default());
        let place = Arc::new(place);
        let tap = Tap::new(socket, Witness::Place(place.clone()), status.clone());
        let tls = Eavesdrop { tls: self.connector()?, status: status.clone() };
        let config = self.config.clone();
        let handshake = async move { config.connect_raw(tap, tls).await };
        let handshake = beside_the_workers(handshake);
        let (client, connection) = handshake.await?.map_err(DialError::Postgres)?;
        let session_place = place.clone();
        let (in_use, dropped) = oneshot::channel();
        tokio::spawn(async move {
            {
                let mut connection = pin!(connection);
                select! {
                    _ = &mut connection => {}
                    // Ends by itself: the client's drop makes it send Terminate once the last answer is in. An answer
                    // that never comes must not keep the socket from the reaper, which alone can write its place off.
                    _ = dropped => drop(timeout(LAST_ANSWER, connection).await),
                }
            }
            // Only now that it is dropped is the client known to be closed.
            place.lost();
        });
        if let Some(limits) = server_limits(query_timeout) {
            client.simple_query(&limits).await.map_err(DialError::Postgres)?;
        }
        // deadpool-postgres aborts the task of this handle when the client goes; ours must live on to say goodbye.
        let nobody = tokio::spawn(async {});
        Ok(Session::new(ClientWrapper::new(client, nobody), status, session_place, in_use))
    }

    /// PostgreSQL closes a cancel request's connection after it has signalled the backend, so that EOF is the news.
    async fn send_cancel(&self, token: CancelToken) -> Result<(), DialError> {
        let socket = connect(&self.config).await?;
        let (done, acted) = oneshot::channel();
        let tap = Tap::new(socket, Witness::Cancel(done), Arc::default());
        token.cancel_query_raw(tap, self.connector()?).await.map_err(DialError::Postgres)?;
        acted
            .await
            .map_err(|_| DialError::Connect(io::Error::other("the cancel request was not seen to end")))
    }

    fn connector(&self) -> Result<T::TlsConnect, DialError> {
        let made = self.tls.clone().make_tls_connect(host_name(&self.config));
        made.map_err(|error| DialError::Tls(error.into()))
    }
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
    fn dial(&self, place: Place, query_timeout: Duration) -> BoxFuture<'_, Result<Session, DialError>> {
        Box::pin(self.open(place, query_timeout))
    }

    fn cancel(&self, token: CancelToken) -> BoxFuture<'_, Result<(), DialError>> {
        Box::pin(self.send_cancel(token))
    }
}

/// What the certificate is checked against.
fn host_name(config: &Config) -> &str {
    match config.get_hosts().first() {
        Some(Host::Tcp(host)) => host,
        _ => "",
    }
}

pub(super) fn port(config: &Config) -> u16 {
    config.get_ports().first().copied().unwrap_or(DEFAULT_PORT)
}

async fn connect(config: &Config) -> Result<Socket, DialError> {
    let connecting = connect_socket(config);
    let connected = match config.get_connect_timeout() {
        Some(&limit) => timeout(limit, connecting).await.unwrap_or_else(|_| {
            let why = format!("no connection within {limit:?} (connect_timeout)");
            Err(io::Error::new(io::ErrorKind::TimedOut, why))
        }),
        None => connecting.await,
    };
    connected.map_err(DialError::Connect)
}

async fn connect_socket(config: &Config) -> io::Result<Socket> {
    let port = port(config);
    let stream = match (config.get_hostaddrs().first(), config.get_hosts().first()) {
        (Some(address), _) => TcpStream::connect((*address, port)).await?,
        (None, Some(Host::Tcp(host))) => TcpStream::connect((host.as_str(), port)).await?,
        #[cfg(unix)]
        (None, Some(Host::Unix(directory))) => {
            let path = directory.join(format!(".s.PGSQL.{port}"));
            return Ok(Socket::Unix(UnixStream::connect(path).await?));
        }
        (None, None) => return Err(io::Error::other("no host is configured")),
    };
    stream.set_nodelay(true)?;
    let socket = SockRef::from(&stream);
    if config.get_keepalives() {
        socket.set_tcp_keepalive(&keepalive(config))?;
    }
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(config.get_tcp_user_timeout().copied().unwrap_or(UNACKNOWLEDGED)))?;
    Ok(Socket::Tcp(stream))
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

/// A TLS connector whose streams are listened to.
struct Eavesdrop<C> {
    tls: C,
    status: Arc<Status>,
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
        Box::pin(async move { Ok(Overheard::new(connecting.await?, self.status)) })
    }
}
