//! What one request does with a connection, the same over either pool.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use tokio_postgres::error::SqlState;
use tower_adaptive_pool::{Connection, Postgres, QueryError};

use crate::scenario::Work;

/// The row that all want to update, and three thousand others to add up meanwhile.
pub const TABLES: &str = "
    create table if not exists load_test_counter (id int primary key, n bigint not null) with (fillfactor = 10);
    insert into load_test_counter values (1, 0) on conflict do nothing;
    create table if not exists load_test_rows (id int primary key, n bigint not null);
    insert into load_test_rows select i, i from generate_series(1, 3000) i on conflict do nothing;
    vacuum analyze load_test_rows";

const SLEEP: &str = "select pg_sleep(0.006)";
const USUAL: &str = "select pg_sleep(0.02)";
const SLOWED: &str = "select pg_sleep(0.08)";

const SHORT: &str = "select pg_sleep(0.002)";
const LONG: &str = "select pg_sleep(0.5)";

/// How many requests of the mixed work there were in this run.
static DRAWN: AtomicU64 = AtomicU64::new(0);

/// The database has a quarter of its speed, for work that can be slowed.
pub static SLOW: AtomicBool = AtomicBool::new(false);

/// About 5 ms of CPU on the machine this was written on (210/s over one connection there, 420/s over four on two cores).
const BURN: &str = "select sum(sqrt(i)) from generate_series(1, 12000) i";
const UPDATE: &str = "update load_test_counter set n = n + 1 where id = 1";
const SUM: &str = "select sum(n) from load_test_rows";
const LOCK: &str = "select n from load_test_counter where id = 1 for update nowait";
const SHORT_SUM: &str = "select sum(n) from load_test_rows where id <= 1000";

/// The same words to two clients whose types have nothing else in common.
macro_rules! run {
    ($work:expr, $db:ident) => {{
        match $work {
            Work::Sleep6 | Work::Cpu5 | Work::Slowable | Work::Mixed => {
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
            Work::HotRowNowait => {
                let sleep = $db.prepare_cached(SLEEP).await?;
                $db.query(&sleep, &[]).await?;
                loop {
                    let transaction = $db.transaction().await?;
                    let lock = transaction.prepare_cached(LOCK).await?;
                    match transaction.query(&lock, &[]).await {
                        Ok(_) => {}
                        // Somebody else has it: what a client does that was told not to wait.
                        Err(error) if is_locked(&error) => {
                            transaction.rollback().await?;
                            continue;
                        }
                        Err(error) => return Err(error),
                    }
                    let sum = transaction.prepare_cached(SHORT_SUM).await?;
                    transaction.query(&sum, &[]).await?;
                    let update = transaction.prepare_cached(UPDATE).await?;
                    transaction.execute(&update, &[]).await?;
                    transaction.commit().await?;
                    break;
                }
            }
        }
        Ok(())
    }};
}

/// From now on the mixed work comes in the same order as at the beginning of every other run.
pub fn draw_anew() {
    DRAWN.store(0, Relaxed);
}

/// One of each hundred, at a place that differs from hundred to hundred: no pool has more of them than another, and none
/// can be in step with them.
fn is_long(number: u64) -> bool {
    let (hundred, place) = (number / 100, number % 100);
    // SplitMix64.
    let mut hash = (hundred + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (hash ^ (hash >> 31)) % 100 == place
}

/// 55P03, from either client.
fn is_locked(error: &(impl std::error::Error + 'static)) -> bool {
    let error: &(dyn std::error::Error + 'static) = error;
    let of_driver = error.downcast_ref().or_else(|| error.source()?.downcast_ref());
    of_driver.and_then(tokio_postgres::Error::code) == Some(&SqlState::LOCK_NOT_AVAILABLE)
}

impl Work {
    /// Statements the ledger counts for each request that was served; `None` where each tries as often as it must.
    pub fn queries(self) -> Option<u64> {
        match self {
            Self::Sleep6 | Self::Cpu5 | Self::Slowable | Self::Mixed => Some(1),
            // The sleep; begin, update, sum, commit.
            Self::HotRowLock => Some(5),
            Self::HotRowNowait => None,
        }
    }

    pub fn needs_tables(self) -> bool {
        matches!(self, Self::HotRowLock | Self::HotRowNowait)
    }

    pub async fn adaptive(self, mut db: Connection<Postgres>) -> Result<(), QueryError> {
        run!(self, db)
    }

    pub async fn plain(self, mut db: deadpool_postgres::Client) -> Result<(), tokio_postgres::Error> {
        run!(self, db)
    }

    fn only_statement(self) -> &'static str {
        match self {
            Self::Cpu5 => BURN,
            Self::Slowable if SLOW.load(Relaxed) => SLOWED,
            Self::Slowable => USUAL,
            Self::Mixed if is_long(DRAWN.fetch_add(1, Relaxed)) => LONG,
            Self::Mixed => SHORT,
            _ => SLEEP,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_a_hundred_is_long_and_not_in_step() {
        let long: Vec<_> = (0..10_000).filter(|&number| is_long(number)).collect();
        assert_eq!(long.len(), 100);
        let mut places: Vec<_> = long.iter().map(|number| number % 100).collect();
        places.sort_unstable();
        places.dedup();
        assert!(places.len() > 40, "{places:?}");
    }
}
