//! A password with an `@` that is not percent-encoded ends early, and what comes after it is taken for a host or a database:
//! none of that is shown, and nothing is dialed.

use tokio_postgres::Config;
use tokio_postgres::config::Host;

use super::socket::port;
use crate::config::Problem;
use crate::observe::ServerInfo;

/// What stands where a value is not shown.
const HIDDEN: &str = "not shown: it may be part of a password";
const ENCODE: &str = "must have no @; in a URL, the @ of a password is written %40 and its / is written %2F";

/// Where queries run, unless the names may be parts of a password.
pub(super) fn server(config: &Config) -> ServerInfo {
    if !problems(config).is_empty() {
        return ServerInfo { port: port(config), ..ServerInfo::default() };
    }
    let database = config.get_dbname().or(config.get_user()).unwrap_or_default().to_owned();
    ServerInfo { address: address(config), port: port(config), database }
}

fn address(config: &Config) -> String {
    match (config.get_hosts().first(), config.get_hostaddrs().first()) {
        (Some(Host::Tcp(host)), _) => host.clone(),
        #[cfg(unix)]
        (Some(Host::Unix(directory)), _) => directory.display().to_string(),
        (None, Some(address)) => address.to_string(),
        (None, None) => String::new(),
    }
}

pub(super) fn problems(config: &Config) -> Vec<Problem> {
    let in_host = config.get_hosts().iter().any(|host| match host {
        Host::Tcp(name) => name.contains('@'),
        #[cfg(unix)]
        Host::Unix(_) => false,
    });
    let in_database =
        config.get_password().is_some() && config.get_dbname().is_some_and(|name| name.contains('@'));
    let problem = |setting| Problem::new(setting, HIDDEN, ENCODE);
    [in_host.then(|| problem("host")), in_database.then(|| problem("dbname"))].into_iter().flatten().collect()
}
