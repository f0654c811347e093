//! Does what the pool may open fit into what the server allows? Asked once, before the day on which it matters.

use std::error::Error;
use std::fmt;

use tokio_postgres::Row;

use super::Postgres;
use crate::error::{AcquireError, QueryError};
use crate::pool::AdaptivePool;
use crate::sizing::{connections_for, share_of};

/// `reserved_connections` came with PostgreSQL 16, and so did the role that may use them. What a plain role may not see
/// of others' sessions is NULL; whose they are it may always see.
const QUESTION: &str = "\
    select session_user::text as role, current_database()::text as database, \
        current_setting('max_connections')::int as max_connections, \
        current_setting('superuser_reserved_connections')::int as superuser_reserved_connections, \
        coalesce(current_setting('reserved_connections', true)::int, 0) as reserved_connections, \
        exists (select from pg_roles reserve where reserve.rolname = 'pg_use_reserved_connections' \
            and pg_has_role(session_user, reserve.oid, 'usage')) as may_use_reserved, \
        me.rolsuper as superuser, me.rolconnlimit as role_limit, here.datconnlimit as database_limit, \
        (select count(*) from pg_stat_activity other \
            where other.usesysid is not null and other.datid is not null \
            and coalesce(other.backend_type, 'client backend') = 'client backend' \
            and (other.usesysid, other.datid) <> (me.oid, here.oid)) as others \
    from pg_roles me, pg_database here \
    where me.rolname = session_user and here.datname = current_database()";

impl AdaptivePool<Postgres> {
    /// Compares what the pool may open, `max_size` × `instances` of the program, with what the server, the role and the
    /// database allow, and says what to change. `instances` is how many of the program run at once, overlapping
    /// deployments included; 0 counts as 1.
    ///
    /// It changes nothing and asks one query, on a connection acquired as any other.
    ///
    /// ```no_run
    /// # async fn example(
    /// #     pool: tower_adaptive_pool::AdaptivePool<tower_adaptive_pool::Postgres>,
    /// # ) -> Result<(), Box<dyn std::error::Error>> {
    /// for finding in pool.preflight(4).await?.findings {
    ///     eprintln!("{finding}");
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// No connection was to be had, or the query failed.
    pub async fn preflight(&self, instances: usize) -> Result<Preflight, PreflightError> {
        let connection = self.acquire().await?;
        let row = connection.query_one(QUESTION, &[]).await?;
        let max_size = self.snapshot().max_size;
        let mut preflight =
            Preflight::read(&row, max_size, instances.max(1)).map_err(QueryError::Postgres)?;
        preflight.findings = preflight.judge();
        Ok(preflight)
    }
}

/// What the pool may open, what it may have, and what does not fit. Displayed, it is its findings, a line each.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Preflight {
    /// Upper bound of the pool's size.
    pub max_size: usize,
    /// How many such pools there are.
    pub instances: usize,
    /// The role that the pool's connections log in as.
    pub role: String,
    /// The database they use.
    pub database: String,
    /// The server's setting `max_connections`.
    pub max_connections: usize,
    /// The server's setting `superuser_reserved_connections`.
    pub superuser_reserved_connections: usize,
    /// The server's setting `reserved_connections`; 0 before PostgreSQL 16.
    pub reserved_connections: usize,
    /// Of those, how many this role may not use: all, unless it is a superuser or has `pg_use_reserved_connections`.
    pub reserved: usize,
    /// The role's `CONNECTION LIMIT`, if it has one and is bound by it.
    pub role_limit: Option<usize>,
    /// The database's `CONNECTION LIMIT`, if it has one and the role is bound by it.
    pub database_limit: Option<usize>,
    /// Whether the role is a superuser.
    pub superuser: bool,
    /// Connections in use now by anybody else: by other roles, or by this role in other databases. Those of this role in
    /// this database are taken for the instances' own.
    pub others: usize,
    /// What to change; empty when all is well.
    pub findings: Vec<Finding>,
}

impl Preflight {
    fn read(row: &Row, max_size: usize, instances: usize) -> Result<Self, tokio_postgres::Error> {
        let number = |name| row.try_get::<_, i32>(name);
        let setting = |name| number(name).map(|value| usize::try_from(value).unwrap_or(0));
        let superuser: bool = row.try_get("superuser")?;
        // -1 is none, and superusers are bound by none.
        let limit = |name| {
            let bound = usize::try_from(number(name)?).ok();
            Ok::<_, tokio_postgres::Error>(bound.filter(|_| !superuser))
        };
        let superuser_reserved_connections = setting("superuser_reserved_connections")?;
        let reserved_connections = setting("reserved_connections")?;
        let reserved = match (superuser, row.try_get("may_use_reserved")?) {
            (true, _) => 0,
            (false, true) => superuser_reserved_connections,
            (false, false) => superuser_reserved_connections + reserved_connections,
        };
        Ok(Self {
            max_size,
            instances,
            role: row.try_get("role")?,
            database: row.try_get("database")?,
            max_connections: setting("max_connections")?,
            superuser_reserved_connections,
            reserved_connections,
            reserved,
            role_limit: limit("role_limit")?,
            database_limit: limit("database_limit")?,
            superuser,
            others: usize::try_from(row.try_get::<_, i64>("others")?).unwrap_or(0),
            findings: Vec::new(),
        })
    }

    /// The most that all instances together may open.
    pub fn wanted(&self) -> usize {
        self.max_size.saturating_mul(self.instances)
    }

    /// Whether there is nothing to change.
    pub fn is_well(&self) -> bool {
        self.findings.is_empty()
    }

    fn judge(&self) -> Vec<Finding> {
        let &Self { max_size, instances, max_connections, reserved, others, .. } = self;
        let wanted = self.wanted();
        let pools = Pools { max_size, instances };
        let usable = max_connections.saturating_sub(reserved);
        let mut findings = Vec::new();
        if wanted > usable {
            findings.push(Finding::OverMaxConnections { pools, max_connections, reserved });
        } else if wanted > usable.saturating_sub(others) {
            findings.push(Finding::OverWhatOthersLeave { pools, max_connections, reserved, others });
        }
        if let Some(limit) = self.role_limit.filter(|&limit| wanted > limit) {
            findings.push(Finding::OverRoleLimit { pools, role: self.role.clone(), limit });
        }
        if let Some(limit) = self.database_limit.filter(|&limit| wanted > limit) {
            findings.push(Finding::OverDatabaseLimit { pools, database: self.database.clone(), limit });
        }
        if self.superuser {
            findings.push(Finding::Superuser { role: self.role.clone() });
        }
        findings
    }
}

impl fmt::Display for Preflight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_well() {
            let pools = Pools { max_size: self.max_size, instances: self.instances };
            return write!(f, "{pools} fits into max_connections ({})", self.max_connections);
        }
        for (k, finding) in self.findings.iter().enumerate() {
            let end = if k == 0 { "" } else { "\n" };
            write!(f, "{end}{finding}")?;
        }
        Ok(())
    }
}

/// The pools that share a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pools {
    /// Upper bound of the size of each.
    pub max_size: usize,
    /// How many there are.
    pub instances: usize,
}

impl fmt::Display for Pools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { max_size, instances } = self;
        match instances {
            1 => write!(f, "max_size ({max_size})"),
            _ => write!(f, "max_size ({max_size}) × {instances} instances"),
        }
    }
}

/// Something that does not fit. Its text says what to change.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finding {
    /// The server will refuse connections (`53300`), whoever else there is.
    OverMaxConnections {
        /// The pools.
        pools: Pools,
        /// The server's setting.
        max_connections: usize,
        /// Connections that the role may not use.
        reserved: usize,
    },
    /// The server would refuse connections (`53300`) while others use as many as they do now.
    OverWhatOthersLeave {
        /// The pools.
        pools: Pools,
        /// The server's setting.
        max_connections: usize,
        /// Connections that the role may not use.
        reserved: usize,
        /// Connections in use by others.
        others: usize,
    },
    /// The server will refuse connections to this role (`53300`).
    OverRoleLimit {
        /// The pools.
        pools: Pools,
        /// The role.
        role: String,
        /// Its `CONNECTION LIMIT`.
        limit: usize,
    },
    /// The server will refuse connections to this database (`53300`).
    OverDatabaseLimit {
        /// The pools.
        pools: Pools,
        /// The database.
        database: String,
        /// Its `CONNECTION LIMIT`.
        limit: usize,
    },
    /// The role is a superuser: no limit binds it, and it takes the connections reserved for those who come to help.
    Superuser {
        /// The role.
        role: String,
    },
}

impl Finding {
    /// A stable code for telemetry, in snake case.
    pub fn code(&self) -> &'static str {
        match self {
            Self::OverMaxConnections { .. } => "over_max_connections",
            Self::OverWhatOthersLeave { .. } => "over_what_others_leave",
            Self::OverRoleLimit { .. } => "over_role_limit",
            Self::OverDatabaseLimit { .. } => "over_database_limit",
            Self::Superuser { .. } => "superuser",
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OverMaxConnections { pools, max_connections, reserved } => {
                write!(f, "{pools} is over max_connections ({max_connections}) − {reserved} reserved: ")?;
                server(f, *pools, *max_connections, *reserved)
            }
            Self::OverWhatOthersLeave { pools, max_connections, reserved, others } => {
                write!(f, "{pools} is over max_connections ({max_connections}) − {reserved} reserved − ")?;
                write!(f, "{others} in use by others now: ")?;
                server(f, *pools, *max_connections, reserved + others)
            }
            Self::OverRoleLimit { pools, role, limit } => {
                write!(f, "{pools} is over the connection limit of role {role} ({limit}): ")?;
                bound(f, *pools, *limit, "ROLE", role)
            }
            Self::OverDatabaseLimit { pools, database, limit } => {
                write!(f, "{pools} is over the connection limit of database {database} ({limit}): ")?;
                bound(f, *pools, *limit, "DATABASE", database)
            }
            Self::Superuser { role } => write!(
                f,
                "role {role} is a superuser, so no limit binds it and it can take the connections reserved for \
                 administration: use a plain role"
            ),
        }
    }
}

/// What to change about pools and server; a fifth is to stay free.
fn server(f: &mut fmt::Formatter<'_>, pools: Pools, max_connections: usize, taken: usize) -> fmt::Result {
    lower(f, share_of(max_connections, taken, pools.instances))?;
    let enough = connections_for(pools.max_size, taken, pools.instances);
    write!(f, "raise max_connections to {enough}")
}

/// What to change about pools and a limit, which is theirs alone.
fn bound(f: &mut fmt::Formatter<'_>, pools: Pools, limit: usize, kind: &str, name: &str) -> fmt::Result {
    lower(f, limit / pools.instances.max(1))?;
    let (name, enough) = (name.replace('"', "\"\""), pools.max_size.saturating_mul(pools.instances));
    write!(f, "ALTER {kind} \"{name}\" CONNECTION LIMIT {enough}")
}

fn lower(f: &mut fmt::Formatter<'_>, fits: usize) -> fmt::Result {
    match fits {
        0 => f.write_str("run fewer instances or "),
        _ => write!(f, "lower max_size to {fits} or "),
    }
}

/// Why there is no [`Preflight`].
#[derive(Debug)]
#[non_exhaustive]
pub enum PreflightError {
    /// No connection was to be had.
    Acquire(AcquireError),
    /// The query failed.
    Query(QueryError),
}

impl From<AcquireError> for PreflightError {
    fn from(error: AcquireError) -> Self {
        Self::Acquire(error)
    }
}

impl From<QueryError> for PreflightError {
    fn from(error: QueryError) -> Self {
        Self::Query(error)
    }
}

impl fmt::Display for PreflightError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Acquire(error) => write!(f, "preflight: {error}"),
            Self::Query(error) => write!(f, "preflight: {error}"),
        }
    }
}

impl Error for PreflightError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Acquire(error) => Some(error),
            Self::Query(error) => Some(error),
        }
    }
}
