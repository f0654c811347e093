//! What one request does with a connection, the same over either pool.

use tower_adaptive_pool::{Connection, Postgres, QueryError};

use crate::scenario::Work;

/// The row that all want to update.
pub const SHARED_ROW: &str = "
    create table if not exists load_test_counter (id int primary key, n bigint not null) with (fillfactor = 10);
    insert into load_test_counter values (1, 0) on conflict do nothing";

const SLEEP: &str = "select pg_sleep(0.006)";
/// About 5 ms of CPU on the machine this was written on (210/s over one connection there, 420/s over four on two cores).
const BURN: &str = "select sum(sqrt(i)) from generate_series(1, 12000) i";
const UPDATE: &str = "update load_test_counter set n = n + 1 where id = 1";
const SUM: &str = "select sum(sqrt(i)) from generate_series(1, 3000) i";

/// The same words to two clients whose types have nothing else in common.
macro_rules! run {
    ($work:expr, $db:ident) => {{
        match $work {
            Work::Sleep6 | Work::Cpu5 => {
                let statement = $db.prepare_cached($work.only_statement()).await?;
                $db.query(&statement, &[]).await?;
            }
            Work::HotRowLock => {
                let sleep = $db.prepare_cached(SLEEP).await?;
                $db.query(&sleep, &[]).await?;
                let transaction = $db.transaction().await?;
                let update = transaction.prepare_cached(UPDATE).await?;
                transaction.execute(&update, &[]).await?;
                let sum = transaction.prepare_cached(SUM).await?;
                transaction.query(&sum, &[]).await?;
                transaction.commit().await?;
            }
        }
        Ok(())
    }};
}

impl Work {
    /// Statements the ledger counts for each request that was served.
    pub fn queries(self) -> u64 {
        match self {
            Self::Sleep6 | Self::Cpu5 => 1,
            // The sleep; begin, update, sum, commit.
            Self::HotRowLock => 5,
        }
    }

    pub async fn adaptive(self, mut db: Connection<Postgres>) -> Result<(), QueryError> {
        run!(self, db)
    }

    pub async fn plain(self, mut db: deadpool_postgres::Client) -> Result<(), tokio_postgres::Error> {
        run!(self, db)
    }

    fn only_statement(self) -> &'static str {
        if self == Self::Cpu5 { BURN } else { SLEEP }
    }
}
