//! A server whose commits wait for a standby that is not there.

#![allow(dead_code)] // no test file uses all of it

use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio_postgres::{Client, Config, NoTls};
use tower_adaptive_pool::{AdaptivePool, Postgres};

use crate::support::eventually;
use crate::support::postgres::{Options, PostgresServer};
use crate::support::proxy::Proxy;

/// Past this something must be wrong; nothing waits for it to pass.
const SOON: Duration = Duration::from_secs(10);

/// A write whose commit waits.
pub const WRITE: &str = "set local synchronous_commit = on; insert into t values (1)";

/// A server whose commits wait for a standby that is not there, and a pool of one connection to it, through a proxy.
pub struct Waiting {
    server: PostgresServer,
    pub admin: Client,
    pub proxy: Proxy,
}

impl Waiting {
    pub async fn start() -> Self {
        let settings = vec![("synchronous_standby_names".to_owned(), "nobody".to_owned())];
        let options = Options { settings, ..Options::default() };
        let server = spawn_blocking(|| PostgresServer::start(options)).await.unwrap().unwrap();
        let mut superuser: Config = server.superuser_url().parse().unwrap();
        let (admin, connection) = superuser.dbname("app").connect(NoTls).await.unwrap();
        tokio::spawn(connection);
        admin.batch_execute("create table public.t (id int); grant all on t to app").await.unwrap();
        let proxy = Proxy::before(server.port()).await;
        Self { server, admin, proxy }
    }

    pub async fn pool(&self, query_timeout: Duration) -> AdaptivePool<Postgres> {
        let mut config: Config = self.server.app_url().parse().unwrap();
        let password = config.get_password().unwrap().to_vec();
        config = Config::new();
        config.host("127.0.0.1").port(self.proxy.port()).user("app").password(password).dbname("app");
        let backend = Postgres::new(config, NoTls).query_timeout(query_timeout);
        let pool = AdaptivePool::builder(backend).fixed_size(1).acquire_timeout(SOON).build().unwrap();
        pool.ready().await.unwrap();
        pool
    }

    /// The standby is no longer asked for: who waits for it is let go.
    pub async fn let_go(&self) {
        self.admin.batch_execute("alter system set synchronous_standby_names = ''").await.unwrap();
        self.admin.batch_execute("select pg_reload_conf()").await.unwrap();
    }

    pub async fn stored(&self) -> i64 {
        self.admin.query_one("select count(*) from t", &[]).await.unwrap().get(0)
    }

    /// What its backend waits for.
    pub async fn state_of(&self, pid: i32) -> Option<String> {
        let sql = "select wait_event from pg_stat_activity where pid = $1";
        self.admin.query_opt(sql, &[&pid]).await.unwrap().and_then(|row| row.get(0))
    }

    /// Resolves when the backend has committed, and waits for its standby.
    pub async fn commits(&self, backend: i32) {
        eventually(SOON, async || self.state_of(backend).await.as_deref() == Some("SyncRep")).await;
    }

    pub fn assert_none_was_cancelled(&self) {
        let log = self.server.log();
        for word in ["canceling", "terminating"] {
            assert!(!log.contains(word), "{log}");
        }
    }
}
