//! The server's time-outs that nobody asked for: set where nobody else set any, left out where it does not take them.

#![cfg(feature = "postgres")]

#[path = "support/role.rs"]
mod role;
mod support;

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use role::{Db, SOON, finish};
use support::eventually;
use support::postgres::{Options, PostgresServer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_blocking;
use tokio_postgres::{Config, NoTls};
use tower_adaptive_pool::{AdaptivePool, Connection, Event, Gate, Observer, Postgres};

const STATEMENT_TIMEOUT: &str = "statement_timeout";
const CHECK_INTERVAL: &str = "client_connection_check_interval";

async fn shown(connection: &Connection<Postgres>) -> [String; 2] {
    let sql = format!("select current_setting('{STATEMENT_TIMEOUT}'), current_setting('{CHECK_INTERVAL}')");
    let row = connection.query_one(&sql, &[]).await.unwrap();
    [row.get(0), row.get(1)]
}

/// What the first connections of a pool have: the very first asks, the others know.
async fn timeouts(config: Config) -> [String; 2] {
    let backend = Postgres::new(config, NoTls).query_timeout(Duration::from_secs(3));
    let pool = AdaptivePool::builder(backend).fixed_size(3).max_dialing(1).build().unwrap();
    pool.ready().await.unwrap();
    let held = [pool.acquire().await.unwrap(), pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];
    let mut seen = Vec::new();
    for connection in &held {
        seen.push(shown(connection).await);
    }
    assert!(seen.iter().all(|timeouts| *timeouts == seen[0]), "{seen:?}");
    seen.swap_remove(0)
}

async fn start(settings: &[(&str, &str)]) -> PostgresServer {
    let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let options = Options { settings, ..Options::default() };
    spawn_blocking(|| PostgresServer::start(options)).await.unwrap().unwrap()
}

fn app(server: &PostgresServer) -> Config {
    server.app_url().parse().unwrap()
}

#[tokio::test]
async fn what_the_role_the_database_or_the_connection_string_set_stays_and_none_at_all_too() {
    let server = start(&[]).await;
    assert_eq!(timeouts(app(&server)).await, ["6s", "2s"], "nobody set anything");
    for zero in ["0", "0ms"] {
        let options = format!("-c {STATEMENT_TIMEOUT}={zero} -c {CHECK_INTERVAL}=0");
        assert_eq!(timeouts(app(&server).options(options).clone()).await, ["0", "0"]);
    }
    let (admin, connection) = server.superuser_url().parse::<Config>().unwrap().connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    for whose in ["role app", "database app"] {
        for (name, value, expected) in [
            (STATEMENT_TIMEOUT, "0", ["0", "2s"]),
            (STATEMENT_TIMEOUT, "77s", ["77s", "2s"]),
            (CHECK_INTERVAL, "0", ["6s", "0"]),
        ] {
            admin.batch_execute(&format!("alter {whose} set {name} = '{value}'")).await.unwrap();
            assert_eq!(timeouts(app(&server)).await, expected, "alter {whose} set {name} = {value}");
            admin.batch_execute(&format!("alter {whose} reset {name}")).await.unwrap();
        }
    }
}

#[tokio::test]
async fn what_the_servers_own_configuration_sets_stays_and_none_at_all_too() {
    let server = start(&[(STATEMENT_TIMEOUT, "0"), (CHECK_INTERVAL, "0")]).await;
    assert_eq!(timeouts(app(&server)).await, ["0", "0"]);
}

#[tokio::test]
async fn a_time_out_that_somebody_sets_later_is_seen_by_the_next_connection() {
    let db = Db::start().await;
    let pool = db.pool(|backend| backend.query_timeout(Duration::from_secs(3))).await;
    let connection = pool.acquire().await.unwrap();
    let role: String = connection.query_one("select current_user::text", &[]).await.unwrap().get(0);
    db.admin.batch_execute(&format!("alter role {role} set {STATEMENT_TIMEOUT} = '77s'")).await.unwrap();
    let _ = connection.query("select pg_terminate_backend(pg_backend_pid())", &[]).await;
    drop(connection);
    assert_eq!(shown(&pool.acquire().await.unwrap()).await, ["77s", "2s"]);
    finish(pool).await;
}

/// How a server that is not quite PostgreSQL takes a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Takes {
    /// As PostgreSQL on Windows takes the check of connections.
    Refuses,
    /// As a pooler may.
    Ends,
    /// As another may.
    HangsUp,
    /// As PgBouncer while its server is away.
    IsAway,
    /// As PostgreSQL before 14, which has no such row in `pg_settings`.
    KnowsNothing,
}

/// A server that does nothing but this.
struct Odd {
    port: u16,
    /// Settings it was sent.
    sent: Arc<AtomicUsize>,
}

impl Odd {
    async fn start(takes: Takes) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let sent = Arc::<AtomicUsize>::default();
        let counted = sent.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket, takes, counted.clone()));
            }
        });
        Self { port, sent }
    }

    fn config(&self) -> Config {
        let mut config = Config::new();
        config.host("127.0.0.1").port(self.port).user("app").password("x").dbname("app");
        config
    }
}

fn message(kind: u8, payload: &[u8]) -> Vec<u8> {
    [&[kind][..], &(payload.len() as u32 + 4).to_be_bytes(), payload].concat()
}

async fn serve(mut socket: TcpStream, takes: Takes, sent: Arc<AtomicUsize>) -> std::io::Result<()> {
    let ready = message(b'Z', b"I");
    let length = socket.read_u32().await?;
    socket.read_exact(&mut vec![0; length as usize - 4]).await?;
    let key = message(b'K', &[0, 0, 0, 1, 0, 0, 0, 2]);
    socket.write_all(&[message(b'R', &[0; 4]), key, ready.clone()].concat()).await?;
    loop {
        let kind = socket.read_u8().await?;
        let length = socket.read_u32().await?;
        let mut text = vec![0; length as usize - 4];
        socket.read_exact(&mut text).await?;
        let answer = match (kind, takes) {
            (b'Q', Takes::HangsUp) => {
                sent.fetch_add(1, Relaxed);
                return Ok(());
            }
            (b'Q', Takes::IsAway) => {
                message(b'E', b"SFATAL\0VFATAL\0C08P01\0Mserver login has been failing\0\0")
            }
            (b'Q', Takes::Refuses | Takes::Ends) => {
                sent.fetch_add(1, Relaxed);
                let severity = if takes == Takes::Ends { "FATAL" } else { "ERROR" };
                let error =
                    format!("S{severity}\0V{severity}\0C22023\0Mmust be set to 0 on this platform\0\0");
                message(b'E', error.as_bytes())
            }
            (b'Q', Takes::KnowsNothing) => {
                sent.fetch_add(1, Relaxed);
                message(b'C', b"SELECT 0\0")
            }
            (b'S', _) => Vec::new(),
            _ => return Ok(()),
        };
        socket.write_all(&answer).await?;
        if kind == b'Q' && matches!(takes, Takes::Ends | Takes::IsAway) {
            socket.shutdown().await?;
            // What is not read would be answered with a reset, which overtakes the error.
            while socket.read(&mut [0; 64]).await? > 0 {}
            return Ok(());
        }
        socket.write_all(&ready).await?;
    }
}

/// Keeps the settings it is told of.
#[derive(Clone, Default)]
struct Refused(Arc<Mutex<Vec<(String, String)>>>);

impl Observer for Refused {
    fn on_event(&self, _: &Gate, event: &Event<'_>) {
        if let Event::SettingRefused { name, why, .. } = event {
            self.0.lock().unwrap().push(((*name).to_owned(), (*why).to_owned()));
        }
    }
}

#[tokio::test]
async fn a_server_that_does_not_take_a_time_out_is_used_without_it_and_that_is_told_once() {
    for takes in [Takes::Refuses, Takes::KnowsNothing, Takes::Ends, Takes::HangsUp] {
        let server = Odd::start(takes).await;
        let refused = Refused::default();
        let builder = AdaptivePool::builder(Postgres::new(server.config(), NoTls)).fixed_size(5);
        let pool = builder.max_dialing(1).observer(refused.clone()).build().unwrap();
        eventually(SOON, async || pool.snapshot().idle == 5).await;
        let mut told = refused.0.lock().unwrap().clone();
        told.sort();
        let names: Vec<_> = told.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, [CHECK_INTERVAL, STATEMENT_TIMEOUT], "{takes:?}");
        let (expected, sent) = match takes {
            Takes::KnowsNothing => ("does not know it", 2),
            // It might have been the network: three times, for both at once.
            Takes::HangsUp => ("hangs up", 3),
            _ => ("on this platform (22023)", 2),
        };
        assert!(told.iter().all(|(_, why)| why.contains(expected)), "{takes:?}: {told:?}");
        assert_eq!(server.sent.load(Relaxed), sent, "{takes:?}: asked once for each, and then no more");
    }
}

/// A pooler whose server is away lets us in, and answers the first thing we send with that.
#[tokio::test]
async fn an_error_that_is_not_about_the_setting_fails_the_dial_and_is_not_held_against_it() {
    let server = Odd::start(Takes::IsAway).await;
    let refused = Refused::default();
    let builder = AdaptivePool::builder(Postgres::new(server.config(), NoTls)).fixed_size(1);
    let pool = builder.dial_timeout(Duration::from_millis(200)).observer(refused.clone()).build().unwrap();
    let error = pool.ready().await.unwrap_err();
    assert!(error.to_string().contains("08P01"), "{error}");
    eventually(SOON, async || pool.snapshot().dial_failures > 5).await;
    assert!(refused.0.lock().unwrap().is_empty(), "nothing is told of the settings");
}
