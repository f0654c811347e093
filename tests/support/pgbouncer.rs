//! A throw-away PgBouncer in front of a throw-away PostgreSQL. It lets everybody in as the role `app`.

use tokio_postgres::Config;

use crate::support::daemon::{Daemon, Program};
use crate::support::postgres::PostgresServer;

/// What it should be like.
#[derive(Clone, Debug)]
pub struct Options {
    /// `session` or `transaction`.
    pub pool_mode: &'static str,
    /// Connections to the server.
    pub pool_size: usize,
    /// A certificate and its key, to ask its clients for TLS.
    pub tls: Option<(String, String)>,
}

pub struct PgBouncer(pub Daemon);

impl PgBouncer {
    /// Returns when it accepts connections.
    pub fn before(server: &PostgresServer, options: &Options) -> Self {
        let app: Config = server.app_url().parse().unwrap();
        let password = String::from_utf8(app.get_password().unwrap().to_vec()).unwrap();
        let files = |port: u16| {
            let Options { pool_mode, pool_size, tls } = options;
            let mut lines = vec![
                "[databases]".to_owned(),
                format!(
                    "app = host=127.0.0.1 port={} dbname=app user=app password={password}",
                    server.port()
                ),
                "[pgbouncer]".to_owned(),
                "listen_addr = 127.0.0.1".to_owned(),
                format!("listen_port = {port}"),
                "unix_socket_dir =".to_owned(),
                "auth_type = any".to_owned(),
                format!("pool_mode = {pool_mode}"),
                format!("default_pool_size = {pool_size}"),
            ];
            let mut files = Vec::new();
            if let Some((certificate, key)) = tls {
                let tls = ["sslmode = require", "cert_file = server.crt", "key_file = server.key"];
                lines.extend(tls.map(|line| format!("client_tls_{line}")));
                files.extend([("server.crt", certificate.clone()), ("server.key", key.clone())]);
            }
            files.push(("pgbouncer.ini", lines.join("\n")));
            files
        };
        let program = Program {
            name: "pgbouncer",
            command: "exec pgbouncer pgbouncer.ini",
            ready: "process up",
            files: &files,
        };
        Self(Daemon::start(&program))
    }

    /// How its clients reach it.
    pub fn config(&self) -> Config {
        let mut config = Config::new();
        config.host("127.0.0.1").port(self.0.port()).user("app").password("any").dbname("app");
        config
    }

    pub fn count_in_log(&self, text: &str) -> usize {
        self.0.log().matches(text).count()
    }
}
