//! Why this crate has a pool of its own: what deadpool 0.13.1 does when its pool is resized, and what it does
//! with a dial whose caller gives up.
//!
//! These tests describe deadpool, not us. One that fails after an update is good news: deadpool has changed,
//! and the reasons in the README and in `docs/` have to be weighed again.

mod support;

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use deadpool::managed::{self, Metrics, RecycleResult};
use support::eventually;
use tokio::{sync::Semaphore, time::timeout};

const DEADLINE: Duration = Duration::from_secs(10);
const NEWS: &str = "deadpool no longer behaves as described: weigh again why the pool is ours";

type Pool = managed::Pool<Dialer>;

/// Opens objects that know how many of them there are.
struct Dialer {
    open: Arc<AtomicUsize>,
    dials_begun: AtomicUsize,
    /// A dial takes until the test grants it this.
    may_finish: Semaphore,
}

struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

impl managed::Manager for Dialer {
    type Type = Open;
    type Error = Infallible;

    async fn create(&self) -> Result<Open, Infallible> {
        self.dials_begun.fetch_add(1, SeqCst);
        self.may_finish.acquire().await.expect("never closed").forget();
        self.open.fetch_add(1, SeqCst);
        Ok(Open(self.open.clone()))
    }

    async fn recycle(&self, _: &mut Open, _: &Metrics) -> RecycleResult<Infallible> {
        Ok(())
    }
}

fn pool(max_size: usize, dials: usize) -> Pool {
    let dialer =
        Dialer { may_finish: Semaphore::new(dials), open: Arc::default(), dials_begun: AtomicUsize::new(0) };
    Pool::builder(dialer).max_size(max_size).build().expect("no timeouts, so no runtime needed")
}

fn open(pool: &Pool) -> usize {
    pool.manager().open.load(SeqCst)
}

/// Holds `holders` objects at the same time, then gives them back.
async fn hold_at_once(pool: &Pool, holders: usize) {
    let mut held = Vec::new();
    for _ in 0..holders {
        held.push(pool.get().await.unwrap());
    }
}

/// How many objects are open when callers come until one has to wait, and everybody keeps what he got.
async fn open_under_load(pool: &Pool) -> usize {
    let mut held = Vec::new();
    // The clock is paused, so that the time-out comes when nothing else can happen any more, and at once.
    while let Ok(object) = timeout(Duration::from_secs(1), pool.get()).await {
        held.push(object.unwrap());
    }
    assert_eq!(held.len(), open(pool));
    held.len()
}

#[tokio::test(start_paused = true)]
async fn a_pool_of_fifty_that_was_resized_to_twenty_opens_fifty() {
    let pool = pool(50, 1_000);
    hold_at_once(&pool, 10).await;
    pool.resize(20);
    assert_eq!(pool.status().max_size, 20);
    assert_eq!(open_under_load(&pool).await, 50, "{NEWS}");
}

#[tokio::test(start_paused = true)]
async fn every_resize_up_and_down_adds_to_what_a_pool_of_ten_opens() {
    let pool = pool(10, 1_000);
    hold_at_once(&pool, 10).await;
    for _ in 0..5 {
        pool.resize(50);
        pool.resize(10);
    }
    assert_eq!(pool.status().max_size, 10);
    assert_eq!(open_under_load(&pool).await, 10 + 5 * 40, "{NEWS}");
}

#[tokio::test]
async fn a_cancelled_get_throws_its_dial_away() {
    let pool = pool(1, 0);
    let caller = tokio::spawn({
        let pool = pool.clone();
        async move { pool.get().await.map(drop) }
    });
    eventually(DEADLINE, async || pool.manager().dials_begun.load(SeqCst) == 1).await;

    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());
    pool.manager().may_finish.add_permits(2);

    // Had the first dial gone on, its object would be there for the next caller.
    hold_at_once(&pool, 1).await;
    assert_eq!(pool.manager().dials_begun.load(SeqCst), 2, "{NEWS}");
    assert_eq!((open(&pool), pool.status().size), (1, 1), "{NEWS}");
}
