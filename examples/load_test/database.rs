//! The PostgreSQL under test: a throw-away one, or one that was named.

#[allow(dead_code)] // shared with the tests, which use more of it
#[path = "../../tests/support/postgres.rs"]
mod postgres;

use std::time::{Duration, Instant};

use tokio::{task, time};
use tokio_postgres::{Client, Config, NoTls};

use self::postgres::{Options, PostgresServer};
use crate::{Error, scenario::Work};

/// PostgreSQL's words for 53300 in its log, for a role's limit and for the server's own.
const REFUSALS: [&str; 2] = ["too many connections for role", "sorry, too many clients already"];
/// How long the connections of one run may take to be gone before the next.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Database {
    /// `None` when the server is somebody else's.
    own: Option<PostgresServer>,
    admin: Client,
    config: Config,
    refused_before: u64,
}

impl Database {
    /// Starts a server of our own unless `url` names one.
    pub async fn open(url: Option<&str>, most_connections: usize) -> Result<Self, Error> {
        let (own, admin_url, url) = match url {
            Some(url) => (None, url.to_owned(), url.to_owned()),
            None => {
                eprintln!("starting a throw-away PostgreSQL ...");
                // Room for the largest pool, for us, and for those that are just leaving.
                let options = Options { max_connections: most_connections as u32 + 20, ..Options::default() };
                let own = task::spawn_blocking(|| PostgresServer::start(options)).await??;
                let urls = (own.superuser_url(), own.app_url());
                (Some(own), urls.0, urls.1)
            }
        };
        let config = parse(&url)?;
        let (admin, connection) = parse(&admin_url)?
            .connect_timeout(Duration::from_secs(5))
            .connect(NoTls)
            .await
            .map_err(|error| cannot_connect(&config, &error))?;
        tokio::spawn(connection);
        Ok(Self { own, admin, config, refused_before: 0 })
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Makes ready for one run: the server itself shall refuse the first connection over `ceiling`.
    pub async fn prepare(&mut self, work: Work, ceiling: usize) -> Result<(), Error> {
        if self.own.is_some() {
            self.admin.batch_execute(&format!("alter role app connection limit {ceiling}")).await?;
        }
        if work.needs_tables() {
            let (owner, connection) = self.config.connect(NoTls).await?;
            let task = tokio::spawn(connection);
            for statement in crate::server::work::TABLES.split(';') {
                owner.batch_execute(statement).await?;
            }
            drop(owner);
            let _ = task.await;
        }
        self.nobody_left().await?;
        self.refused_before = self.refused_ever();
        Ok(())
    }

    /// How many connections the server refused in this run because there were too many. Only our own server's log can
    /// be read.
    pub fn refused(&self) -> u64 {
        self.refused_ever() - self.refused_before
    }

    fn refused_ever(&self) -> u64 {
        let Some(own) = &self.own else { return 0 };
        REFUSALS.iter().map(|words| own.count_in_log(words) as u64).sum()
    }

    /// Waits until the application's role has no connection left, as the server counts them.
    async fn nobody_left(&self) -> Result<(), Error> {
        const COUNT: &str = "select count(*) from pg_stat_activity \
                             where usename = $1 and pid <> pg_backend_pid() and backend_type = 'client backend'";
        let deadline = Instant::now() + PATIENCE;
        let role = self.config.get_user().unwrap_or_default();
        loop {
            let left: i64 = self.admin.query_one(COUNT, &[&role]).await?.get(0);
            // Somebody else's server may have other users of that role.
            if left == 0 || self.own.is_none() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("{left} connections of the last run are still open").into());
            }
            time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn parse(url: &str) -> Result<Config, Error> {
    url.parse().map_err(|error| format!("--database-url is no PostgreSQL URL: {error}").into())
}

fn cannot_connect(config: &Config, error: &tokio_postgres::Error) -> Error {
    let hosts = config.get_hosts();
    // tokio-postgres says «db error» or «error connecting to server»; the reason is one level down.
    let reason = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
    format!("cannot connect to the database at {hosts:?}: {reason}").into()
}
