//! What this machine has to offer to a PostgreSQL: binaries, a user, a port, randomness.

use std::{
    env, fs,
    io::{self, Read},
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::{MetadataExt, chown},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::TempDir;

use super::StartError;

/// As whom the server runs: as we do, except that PostgreSQL refuses to be root.
pub enum ServerUser {
    Ourselves,
    Other { uid: u32, gid: u32, command: Vec<String> },
}

impl ServerUser {
    /// Also makes the directory theirs, whoever they are.
    pub fn of(directory: &TempDir) -> Result<Self, StartError> {
        if fs::metadata(directory)?.uid() != 0 {
            return Ok(Self::Ourselves);
        }
        let id = |flag, name| output("id", &[flag, name])?.parse::<u32>().ok();
        let find = |name| Some((name, id("-u", name)?, id("-g", name)?));
        let (name, uid, gid) = find("postgres").or_else(|| find("nobody")).ok_or_else(|| {
            StartError("PostgreSQL does not run as root, and there is no user `postgres` or `nobody`".into())
        })?;
        chown(directory, Some(uid), Some(gid))?;

        let (reuid, regid) = (format!("--reuid={uid}"), format!("--regid={gid}"));
        let ways: [&[&str]; 3] = [
            &["setpriv", &reuid, &regid, "--init-groups", "sh", "-c"],
            &["runuser", "-u", name, "--", "sh", "-c"],
            &["su", name, "-s", "/bin/sh", "-c"],
        ];
        // Not every `setpriv` can do this, and a directory can be out of the other user's reach: try it.
        ways.into_iter()
            .map(|way| way.iter().map(ToString::to_string).collect())
            .map(|command| Self::Other { uid, gid, command })
            .find(|user| {
                let mut trial = user.shell("cd \"$DIRECTORY\" && test -w .");
                trial.env("DIRECTORY", directory.path()).current_dir("/").stdin(Stdio::null());
                trial.output().is_ok_and(|output| output.status.success())
            })
            .ok_or_else(|| {
                StartError(format!(
                    "PostgreSQL does not run as root, and neither setpriv, runuser nor su \
                     lets `{name}` work in {}",
                    directory.path().display(),
                ))
            })
    }

    pub fn shell(&self, script: &str) -> Command {
        let (program, arguments): (&str, &[String]) = match self {
            Self::Ourselves => ("sh", &["-c".to_owned()]),
            Self::Other { command, .. } => (&command[0], &command[1..]),
        };
        let mut shell = Command::new(program);
        shell.args(arguments).arg(script);
        shell
    }

    pub fn own(&self, path: &Path) -> io::Result<()> {
        match *self {
            Self::Ourselves => Ok(()),
            Self::Other { uid, gid, .. } => chown(path, Some(uid), Some(gid)),
        }
    }
}

/// The directory with both `initdb` and `postgres`: a client-only installation has `pg_config` but not these.
pub fn find_binaries() -> Result<PathBuf, StartError> {
    let configured = output("pg_config", &["--bindir"]).map(PathBuf::from).into_iter();
    let path = env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/lib/postgresql", "/usr", "/opt/homebrew/opt", "/usr/local/opt", "/usr/local"]
        .into_iter()
        .flat_map(|parent| versions_in(Path::new(parent)));
    configured
        .chain(env::split_paths(&path).collect::<Vec<_>>())
        .chain(usual)
        .find(|bin| bin.join("initdb").is_file() && bin.join("postgres").is_file())
        .ok_or_else(|| {
            StartError(
                "no PostgreSQL server found: install it with `apt-get install postgresql` \
                 (Debian, Ubuntu) or `brew install postgresql` (macOS)"
                    .into(),
            )
        })
}

/// `parent/15/bin`, `parent/pgsql-15/bin`, `parent/postgresql@15/bin` and the like, highest version first.
fn versions_in(parent: &Path) -> Vec<PathBuf> {
    let mut versions: Vec<_> = fs::read_dir(parent)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            let version = name.trim_start_matches(|c: char| !c.is_ascii_digit());
            let known = ["", "pgsql", "pgsql-", "postgresql", "postgresql@"];
            known.contains(&name.strip_suffix(version)?).then(|| {
                let major = version.split('.').next().and_then(|major| major.parse().ok());
                (major.unwrap_or(0_u32), parent.join(&name).join("bin"))
            })
        })
        .collect();
    versions.sort();
    versions.into_iter().rev().map(|(_, bin)| bin).collect()
}

/// Below the ports that systems give to outgoing connections (from 32768 on Linux): one of those could take
/// the port of a server that is down for a moment, or even, dialling that server, connect to itself.
pub fn free_port() -> Result<u16, StartError> {
    for _ in 0..100 {
        let number = u16::from_str_radix(&random_hex()?[..4], 16).unwrap_or(0);
        let port = 20_000 + number % 12_000;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    Err(StartError("no free port between 20000 and 32000 on 127.0.0.1".into()))
}

pub fn random_hex() -> io::Result<String> {
    let mut bytes = [0_u8; 16];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}

fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
