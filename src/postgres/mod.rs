//! PostgreSQL: connections that are tracked, so that nobody ever gets one with somebody else's work in it.

mod ask;
mod cancel;
mod copy;
mod dial;
mod doubt;
mod preflight;
mod query;
mod rows;
mod secrecy;
mod server_timeouts;
mod session;
mod socket;
mod statement;
mod status;
mod tap;
mod track;
mod transaction;
mod wire;

use std::env;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{LoadBalanceHosts, TargetSessionAttrs};
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};

use crate::backend::{Backend, ConnectionState, Place, Refusal};
use crate::config::{ConfigError, Problem, env_ms};
use crate::observe::ServerInfo;

pub use cancel::{CancelError, CancelToken};
pub use copy::{CopyIn, CopyOut};
pub use dial::DialError;
use dial::{Dial, Dialer, Wishes};
pub use preflight::{Finding, Pools, Preflight, PreflightError};
pub use rows::Rows;
pub use session::{AfterRaw, Session};
pub use statement::{Sql, Statement};
pub use tap::Tap;
pub use transaction::Transaction;

/// The longest a query may take; as patient as people are with a page that does come.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);

/// PostgreSQL as a [`Backend`].
///
/// Closing is orderly: a connection keeps its place under the ceiling until the server has closed its side of the
/// socket, which PostgreSQL does when the backend process has exited.
///
/// One host, by TCP or Unix socket; where its name has several addresses, they are tried one after the other, beginning with
/// the one that answered last, and `connect_timeout` (1 s where it is not set) is the limit of each. TCP keep-alives start
/// after 10 s of silence where the configuration says two hours, which is tokio-postgres's default, and a server that is
/// silent for a minute counts as gone.
///
/// What the pool makes of the server's refusals:
///
/// | SQLSTATE | From a dial | From a query |
/// |---|---|---|
/// | 57P01, 57P02 (shutting down, crashed) | tried again, at most 300 ms apart | the connection is closed, not handed on |
/// | 57P03 (starting up) | tried again, at most 300 ms apart | |
/// | 25006 (read-only) | | if the server is a standby or was made read-only, the connection is closed, not handed on |
/// | 0A000, 26000, XX000, 42883, 42804, 42704 of a prepared statement | | [prepared again](crate::Connection::prepare_cached), and tried once more |
/// | 53300 (too many connections) | the pool stays with what it has, and asks again within a second | |
/// | class 28, 3D000 (who, or which database) | asked again every one to two seconds; [`ready`] fails at once | |
/// | 57014 (cancelled, or `statement_timeout`) | | counts as a time-out; the connection is settled and stays |
/// | any other | tried again, at most 300 ms apart | the connection is fenced and stays |
///
/// [`ready`]: crate::AdaptivePool::ready
///
/// Beside its connections a `Postgres` and its clones open up to four more sockets at a time, for cancel requests, each for
/// some milliseconds. PostgreSQL does not count them among `max_connections`; PgBouncer does among `max_client_conn`.
///
/// Handshakes run on the runtime's blocking threads, at most `max_dialing` at once, because their hashing would hold up
/// the requests: a program that occupies all of those threads while it waits for connections waits in vain.
#[derive(Clone)]
pub struct Postgres {
    dialer: Arc<dyn Dial>,
    config: Config,
    query_timeout: Duration,
    slow_query_after: Option<Duration>,
    after_raw: AfterRaw,
    server: ServerInfo,
    /// What the environment had wrong.
    problems: Vec<Problem>,
}

impl Postgres {
    /// A backend for this server, with this TLS connector (or [`NoTls`](tokio_postgres::NoTls)).
    ///
    /// A host with an `@` in its name, or a database if there is a password, is refused at `build()`, and not shown: most likely
    /// it is a part of a password that was not percent-encoded in its URL.
    pub fn new<T>(config: Config, tls: T) -> Self
    where
        T: MakeTlsConnect<Tap> + Clone + Send + Sync + 'static,
        T::TlsConnect: Send,
        T::Stream: Send + 'static,
        <T::TlsConnect as TlsConnect<Tap>>::Future: Send + 'static,
    {
        let server = secrecy::server(&config);
        let dialer = Arc::new(Dialer::new(config.clone(), tls));
        Self {
            dialer,
            config,
            query_timeout: QUERY_TIMEOUT,
            slow_query_after: None,
            after_raw: AfterRaw::default(),
            server,
            problems: Vec::new(),
        }
    }

    /// The server that `DATABASE_URL` names, with `POOL_QUERY_TIMEOUT_MS` if it is set.
    ///
    /// What is missing or cannot be read is reported by `build()`, with everything else. A password in the URL is not
    /// repeated.
    pub fn from_env<T>(tls: T) -> Self
    where
        T: MakeTlsConnect<Tap> + Clone + Send + Sync + 'static,
        T::TlsConnect: Send,
        T::Stream: Send + 'static,
        <T::TlsConnect as TlsConnect<Tap>>::Future: Send + 'static,
    {
        const FORM: &str = "must be set to a URL such as postgres://user:password@host/database";
        let parsed = match env::var_os("DATABASE_URL") {
            // tokio-postgres says no more of it than that it is invalid.
            Some(url) => {
                url.to_string_lossy().parse().map_err(|error: tokio_postgres::Error| error.to_string())
            }
            None => Err("not set".to_owned()),
        };
        let (config, problem) = match parsed {
            Ok(config) => (config, None),
            // Never dialed: build() refuses it.
            Err(why) => (Config::new(), Some(Problem::new("DATABASE_URL", why, FORM))),
        };
        let mut backend = Self::new(config, tls);
        backend.problems.extend(problem);
        env_ms("POOL_QUERY_TIMEOUT_MS", &mut backend.query_timeout, &mut backend.problems);
        backend
    }

    /// The longest a query may take before it fails with [`QueryError::Timeout`](crate::QueryError::Timeout), which
    /// over HTTP is a 504. For rows and COPYs that are streamed, the longest wait for the server between two rows or pieces.
    /// Default 5 s.
    ///
    /// A `COMMIT` is waited for as long, and never cancelled: see [`Transaction::commit`].
    ///
    /// The server's own `statement_timeout` is set to twice that, and `client_connection_check_interval` to 2 s, unless
    /// anybody else set them: the server, the role, the database or `options`, and be it to 0, which is no limit. A server
    /// that does not take them is used without, which is told once ([`Event::SettingRefused`](crate::Event)).
    /// `statement_timeout` is over the whole statement, the caller's own slowness included: for a long stream, raise it
    /// for the role, or with `SET LOCAL statement_timeout = 0` in its transaction.
    #[must_use]
    pub fn query_timeout(mut self, timeout: Duration) -> Self {
        self.query_timeout = timeout;
        self
    }

    /// Tells the observers of each query that took at least so long, with its text. Default: none.
    #[must_use]
    pub fn slow_query_after(mut self, bound: Duration) -> Self {
        self.slow_query_after = Some(bound);
        self
    }

    /// What becomes of a connection when its [`raw`](crate::Connection::raw) client was used. Default:
    /// [`AfterRaw::Discard`].
    ///
    /// Session state set through `query` or `batch_execute` (`SET`, `LISTEN`, a temporary table, a session advisory
    /// lock) stays whatever this says, and the next user finds it: the pool does not read SQL. `SET LOCAL`, `CREATE
    /// TEMPORARY TABLE … ON COMMIT DROP` and `pg_advisory_xact_lock` in a transaction end with it.
    #[must_use]
    pub fn after_raw(mut self, after: AfterRaw) -> Self {
        self.after_raw = after;
        self
    }
}

impl Backend for Postgres {
    type Connection = Session;
    type Error = DialError;

    async fn dial(&self, place: Place) -> Result<Session, DialError> {
        let disguises_key = self.after_raw == AfterRaw::Keep;
        self.dialer.dial(place, Wishes { query_timeout: self.query_timeout, disguises_key }).await
    }

    fn state(&self, session: &Session) -> ConnectionState {
        session.state()
    }

    fn refusal(&self, error: &DialError) -> Refusal {
        error.refusal()
    }

    async fn check(&self, session: &mut Session) -> Result<(), DialError> {
        session.check().await.map_err(DialError::Postgres)
    }

    async fn settle(&self, session: &mut Session) -> Result<(), DialError> {
        session.settle(&*self.dialer).await
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let mut problems = self.problems.clone();
        problems.extend(secrecy::problems(&self.config));
        let hosts = self.config.get_hosts().len().max(self.config.get_hostaddrs().len());
        match hosts {
            1 => {}
            // Without a URL there is no host to speak of.
            0 if !problems.is_empty() => {}
            0 => problems.push(Problem::new(
                "host",
                "none",
                "must be set: one host name, address or socket directory",
            )),
            _ => problems.push(Problem::new(
                "host",
                format!("{hosts} hosts"),
                "must be one: several hosts are not supported yet",
            )),
        }
        if self.config.get_target_session_attrs() != TargetSessionAttrs::Any {
            let value = format!("{:?}", self.config.get_target_session_attrs());
            problems.push(Problem::new(
                "target_session_attrs",
                value,
                "must be any: others are not supported yet",
            ));
        }
        if self.config.get_load_balance_hosts() != LoadBalanceHosts::Disable {
            problems.push(Problem::new("load_balance_hosts", "random", "must be disable: there is one host"));
        }
        Problem::unless_positive(&mut problems, "query_timeout", self.query_timeout);
        ConfigError::from_problems(problems)
    }
}

impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Postgres").field("server", &self.server).finish_non_exhaustive()
    }
}
