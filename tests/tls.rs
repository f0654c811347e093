//! The pool over TLS: certificates that are really verified, and the same promises above the encryption.

#![cfg(feature = "postgres")]

#[path = "support/authority.rs"]
mod authority;
mod support;

use std::error::Error;
use std::iter::successors;
use std::net::Ipv4Addr;
use std::time::Duration;

use authority::Authority;
use support::eventually;
use support::postgres::{Options, PostgresServer};
use support::proxy::Proxy;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_postgres::config::{ChannelBinding, SslMode};
use tokio_postgres::{Client, Config, NoTls};
use tower_adaptive_pool::postgres::DialError;
use tower_adaptive_pool::{AdaptivePool, Connection, Postgres, QueryError};

const SOON: Duration = Duration::from_secs(10);
/// After which `ready` gives up, too.
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);
const QUERY_TIMEOUT: Duration = Duration::from_millis(150);
/// How a client asks for TLS (manual, «SSLRequest»): length 8, code 80877103.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

type Pool = AdaptivePool<Postgres>;

/// Servers that it certifies, and pools of one connection to them.
impl Authority {
    /// A server whose certificate, for this address, is signed by this authority.
    async fn server(&self) -> PostgresServer {
        self.server_named(&Ipv4Addr::LOCALHOST.to_string()).await
    }

    /// A server at this address whose certificate is for that name. It logs whom it lets in.
    async fn server_named(&self, name: &str) -> PostgresServer {
        let (certificate, key) = self.certify(name);
        let setting = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let options = Options {
            settings: vec![
                setting("ssl", "on"),
                setting("log_connections", "on"),
                setting("ssl_cert_file", "../server.crt"),
                setting("ssl_key_file", "../server.key"),
            ],
            files: vec![setting("server.crt", &certificate), setting("server.key", &key)],
            ..Options::default()
        };
        spawn_blocking(|| PostgresServer::start(options)).await.unwrap().unwrap()
    }

    /// One connection to that server.
    fn pool(&self, server: &PostgresServer, port: u16) -> Pool {
        let mut config: Config = server.app_url().parse().unwrap();
        let [own] = config.get_ports() else { panic!("one port") };
        if *own != port {
            config = at(&config, "127.0.0.1", port);
        }
        self.pool_of(config)
    }

    fn pool_of(&self, mut config: Config) -> Pool {
        // Binding: the password's exchange is tied to this very certificate, seen through our ear in the stream.
        config.ssl_mode(SslMode::Require).channel_binding(ChannelBinding::Require);
        let backend = Postgres::new(config, self.connector()).query_timeout(QUERY_TIMEOUT);
        AdaptivePool::builder(backend)
            .fixed_size(1)
            .acquire_timeout(SOON)
            .dial_timeout(DIAL_TIMEOUT)
            .build()
            .unwrap()
    }
}

/// The same login at another host and port; `Config::host` and `Config::port` would add one.
fn at(config: &Config, host: &str, port: u16) -> Config {
    let mut other = Config::new();
    other.host(host).port(port).user(config.get_user().unwrap());
    other.password(config.get_password().unwrap()).dbname(config.get_dbname().unwrap());
    other
}

/// Looks on from the server's own socket, where there is no TLS.
async fn admin(server: &PostgresServer) -> Client {
    let tcp: Config = server.superuser_url().parse().unwrap();
    let mut local = Config::new();
    local.host_path(server.socket_dir()).port(server.port());
    local.user("postgres").dbname("postgres").password(tcp.get_password().unwrap());
    let (client, connection) = local.connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn pid(connection: &Connection<Postgres>) -> i32 {
    connection.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0)
}

async fn state_of(admin: &Client, pid: i32) -> String {
    let sql = "select state from pg_stat_activity where pid = $1";
    admin.query_one(sql, &[&pid]).await.unwrap().get(0)
}

#[tokio::test]
async fn with_sslmode_require_the_servers_side_is_encrypted_too() {
    let authority = Authority::named("ours");
    let server = authority.server().await;
    let pool = authority.pool(&server, server.port());
    pool.ready().await.unwrap();
    let connection = pool.acquire().await.unwrap();
    let sql = "select ssl, version from pg_stat_ssl where pid = pg_backend_pid()";
    let row = connection.query_one(sql, &[]).await.unwrap();
    assert!(row.get::<_, bool>(0));
    assert_eq!(row.get::<_, &str>(1), "TLSv1.3");
    drop(connection);
    pool.drain(SOON).await.unwrap();
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused_and_the_error_says_so() {
    let (authority, stranger) = (Authority::named("ours"), Authority::named("a stranger"));
    let server = authority.server().await;
    let pool = stranger.pool(&server, server.port());
    let refused = timeout(SOON, pool.ready()).await.unwrap().unwrap_err();
    let error = refused.error.unwrap();
    let error: &DialError = error.downcast_ref().unwrap();
    assert!(error.to_string().contains("TLS"), "{error}");
    // The driver's sentence says where it broke; why stands at the end of the chain.
    let chain = successors(error.source(), |&error| error.source());
    let why = chain.last().unwrap().to_string();
    assert_eq!(why, "invalid peer certificate: UnknownIssuer");
    // The pool goes on trying: between two dials the server has let go of every one before.
    eventually(SOON, async || pool.snapshot().size == 0).await;
}

#[tokio::test]
async fn a_certificate_for_another_host_is_refused_and_the_error_says_so() {
    const NAME: &str = "database.test";
    let authority = Authority::named("ours");
    let server = authority.server_named(NAME).await;
    let let_in = || server.count_in_log("connection authorized: user=app");
    let pool = authority.pool(&server, server.port());
    let refused = timeout(SOON, pool.ready()).await.unwrap().unwrap_err();
    assert_eq!(refused.open, 0);
    let error = refused.error.unwrap();
    let error: &DialError = error.downcast_ref().unwrap();
    assert!(error.to_string().contains("TLS"), "{error}");
    let chain = successors(error.source(), |&error| error.source());
    let why = chain.last().unwrap().to_string();
    assert!(why.contains("certificate not valid for name \"127.0.0.1\"") && why.contains(NAME), "{why}");
    pool.drain(SOON).await.unwrap();
    assert_eq!((pool.snapshot().size, let_in()), (0, 0), "nobody got as far as a password");

    // The same server, called by its name, is believed.
    let mut config = at(&server.app_url().parse().unwrap(), NAME, server.port());
    config.hostaddr(Ipv4Addr::LOCALHOST.into());
    let pool = authority.pool_of(config);
    pool.ready().await.unwrap();
    assert_eq!(let_in(), 1);
}

#[tokio::test]
async fn a_query_time_out_over_tls_is_cancelled_over_tls_and_its_connection_reused() {
    let authority = Authority::named("ours");
    let server = authority.server().await;
    let admin = admin(&server).await;
    let proxy = Proxy::before(server.port()).await;
    let pool = authority.pool(&server, proxy.port());
    pool.ready().await.unwrap();
    let connection = pool.acquire().await.unwrap();
    let before = pid(&connection).await;
    let error = connection.query("select pg_sleep(3600)", &[]).await.unwrap_err();
    assert!(matches!(error, QueryError::Timeout(QUERY_TIMEOUT)), "{error}");
    drop(connection);
    let next = timeout(SOON, pool.acquire()).await.unwrap().unwrap();
    assert_eq!(state_of(&admin, before).await, "idle", "cancelled, not left to itself");
    assert_eq!(pid(&next).await, before, "settled, not thrown away");
    // The session and the cancel, each encrypted before a word was said.
    assert_eq!(proxy.openings(), [SSL_REQUEST; 2]);
    assert_eq!(server.count_in_log("canceling statement due to user request"), 1);
}

#[tokio::test]
async fn a_transaction_begun_as_text_is_seen_above_the_encryption_and_rolled_back() {
    let authority = Authority::named("ours");
    let server = authority.server().await;
    let admin = admin(&server).await;
    let pool = authority.pool(&server, server.port());
    pool.ready().await.unwrap();
    for left_open in ["begin; select 1", "begin; select no_such_column"] {
        let connection = pool.acquire().await.unwrap();
        let before = pid(&connection).await;
        let _ = connection.batch_execute(left_open).await;
        drop(connection);
        let next = timeout(SOON, pool.acquire()).await.unwrap().unwrap();
        assert_eq!(state_of(&admin, before).await, "idle", "after {left_open:?}");
        assert_eq!(pid(&next).await, before);
    }
}
