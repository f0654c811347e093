//! The pool without HTTP: a hundred tasks share it, and it grows for them and shrinks again.
//!
//! `DATABASE_URL=postgres://user:password@localhost/database cargo run --example standalone`

use std::time::Duration;

use tokio::task::JoinSet;
use tokio_postgres::NoTls;
use tower_adaptive_pool::{AdaptivePool, Postgres};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let pool =
        AdaptivePool::builder(Postgres::from_env(NoTls)).min_size(2).max_size(20).from_env().build()?;
    pool.ready().await?;

    let mut sizes = pool.gate().watch();
    let watcher = tokio::spawn(async move {
        let mut last = None;
        while sizes.changed().await {
            let seen = sizes.get();
            if last.replace(seen.limit) != Some(seen.limit) {
                println!(
                    "at most {:>2} in use, {:>2} are, {:>3} waiting: {:?}",
                    seen.limit, seen.in_use, seen.queue_depth, seen.last_decision.reason
                );
            }
        }
    });

    let mut tasks = JoinSet::new();
    for _ in 0..100 {
        let pool = pool.clone();
        tasks.spawn(async move {
            for _ in 0..10 {
                let connection = pool.acquire().await?;
                connection.query("select pg_sleep(0.02)", &[]).await?;
            }
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
        });
    }
    while let Some(task) = tasks.join_next().await {
        task??;
    }

    let served = pool.snapshot();
    println!("{} queries done with {} connections; now nobody comes", served.queries.ok, served.size);
    while pool.snapshot().limit > served.base_limit {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    pool.drain(Duration::from_secs(10)).await?;
    drop(pool);
    watcher.await?;
    Ok(())
}
