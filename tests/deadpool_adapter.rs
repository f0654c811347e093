//! Any deadpool manager as a backend: one that counts what is done with it, and Redis.

#![cfg(feature = "deadpool")]

mod support;

use std::error::Error;
use std::fmt;
use std::future::pending;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use deadpool::managed::{Manager, Metrics, RecycleError, RecycleResult};
use support::eventually;
use support::line::begin;
use support::redis::RedisServer;
use tokio::time::sleep;
use tower_adaptive_pool::deadpool::DeadpoolError;
use tower_adaptive_pool::{
    AcquireError, AdaptivePool, Builder, Controller, Deadpool, Decision, Limiter, Reason, Sample,
};

const SOON: Duration = Duration::from_secs(10);

/// A manager whose objects count themselves, and whose recycling does what the test wants.
#[derive(Clone, Default)]
struct Fake(Arc<Seen>);

#[derive(Default)]
struct Seen {
    created: AtomicUsize,
    recycled: AtomicUsize,
    detached: AtomicUsize,
    open: AtomicUsize,
    cannot_create: AtomicBool,
    recycling: Mutex<Recycling>,
    /// What recycling was told: how often before, and whether a time came with it.
    told: Mutex<Vec<(usize, bool)>>,
}

#[derive(Clone, Copy, Default)]
enum Recycling {
    #[default]
    Works,
    Fails,
    Refuses,
    RefusesOnce,
    Hangs,
}

impl Fake {
    fn recycling(&self, recycling: Recycling) {
        *self.0.recycling.lock().unwrap() = recycling;
    }

    fn created(&self) -> usize {
        self.0.created.load(SeqCst)
    }

    fn recycled(&self) -> usize {
        self.0.recycled.load(SeqCst)
    }

    fn detached(&self) -> usize {
        self.0.detached.load(SeqCst)
    }

    fn open(&self) -> usize {
        self.0.open.load(SeqCst)
    }

    fn builder(&self) -> Builder<Deadpool<Fake>> {
        AdaptivePool::builder(Deadpool::new(self.clone())).fixed_size(1).acquire_timeout(SOON)
    }

    async fn pool(&self) -> AdaptivePool<Deadpool<Fake>> {
        let pool = self.builder().build().unwrap();
        pool.ready().await.unwrap();
        pool
    }
}

#[derive(Debug)]
struct Broken;

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("broken, as asked")
    }
}

impl Error for Broken {}

struct Object {
    serial: usize,
    seen: Arc<Seen>,
}

impl Drop for Object {
    fn drop(&mut self) {
        self.seen.open.fetch_sub(1, SeqCst);
    }
}

impl Manager for Fake {
    type Type = Object;
    type Error = Broken;

    async fn create(&self) -> Result<Object, Broken> {
        if self.0.cannot_create.load(SeqCst) {
            return Err(Broken);
        }
        self.0.open.fetch_add(1, SeqCst);
        Ok(Object { serial: self.0.created.fetch_add(1, SeqCst), seen: self.0.clone() })
    }

    async fn recycle(&self, _: &mut Object, metrics: &Metrics) -> RecycleResult<Broken> {
        self.0.recycled.fetch_add(1, SeqCst);
        self.0.told.lock().unwrap().push((metrics.recycle_count, metrics.recycled.is_some()));
        let recycling = *self.0.recycling.lock().unwrap();
        match recycling {
            Recycling::Works => Ok(()),
            Recycling::Fails => Err(Broken.into()),
            Recycling::RefusesOnce => {
                self.recycling(Recycling::Works);
                Err(RecycleError::message("not this one"))
            }
            Recycling::Refuses => Err(RecycleError::message("too old")),
            Recycling::Hangs => pending().await,
        }
    }

    fn detach(&self, object: &mut Object) {
        // Not dropped yet: the manager may still look at it.
        assert!(object.seen.open.load(SeqCst) > 0);
        self.0.detached.fetch_add(1, SeqCst);
    }
}

#[tokio::test(start_paused = true)]
async fn an_object_is_recycled_at_every_hand_out_and_told_its_metrics() {
    let fake = Fake::default();
    let pool = fake.pool().await;
    for _ in 0..3 {
        let object = pool.acquire().await.unwrap();
        assert_eq!(object.serial, 0, "derefs to what the manager made");
    }
    assert_eq!((fake.created(), fake.recycled(), fake.detached()), (1, 3, 0));
    assert_eq!(*fake.0.told.lock().unwrap(), [(0, false), (1, true), (2, true)]);
    assert_eq!(pool.acquire().await.unwrap().metrics().recycle_count, 4);
}

#[tokio::test(start_paused = true)]
async fn an_object_that_cannot_be_recycled_is_detached_and_the_same_acquire_gets_the_next() {
    for recycling in [Recycling::Fails, Recycling::Refuses] {
        let fake = Fake::default();
        let pool = fake.pool().await;
        drop(pool.acquire().await.unwrap());
        fake.recycling(recycling);
        let acquire = begin({
            let pool = pool.clone();
            async move { pool.acquire().await }
        });
        // The pool of one has thrown its object away; what it opens next can be recycled.
        fake.recycling(Recycling::Works);
        assert_eq!(acquire.await.unwrap().serial, 1);
        assert_eq!((fake.created(), fake.detached(), fake.open()), (2, 1, 1));
        let acquires = pool.snapshot().acquires;
        assert_eq!((acquires.started, acquires.granted), (2, 2));
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_recycle_discards_its_object() {
    let fake = Fake::default();
    let pool = fake.pool().await;
    fake.recycling(Recycling::Hangs);
    let acquire = begin({
        let pool = pool.clone();
        async move { pool.acquire().await }
    });
    assert_eq!((fake.recycled(), fake.detached(), pool.snapshot().in_use), (1, 0, 1));
    drop(acquire);
    assert_eq!((fake.detached(), fake.open()), (1, 0));
    assert_eq!(pool.snapshot().acquires.cancelled, 1);

    fake.recycling(Recycling::Works);
    assert_eq!(pool.acquire().await.unwrap().serial, 1);
}

#[tokio::test(start_paused = true)]
async fn a_recycle_that_hangs_ends_at_the_callers_deadline_and_discards_its_object() {
    let fake = Fake::default();
    let pool = fake.builder().acquire_timeout(Duration::from_millis(90)).build().unwrap();
    pool.ready().await.unwrap();
    fake.recycling(Recycling::Hangs);
    let started = tokio::time::Instant::now();
    let error = pool.acquire().await.unwrap_err();
    assert!(matches!(error, AcquireError::Timeout(_)), "{error}");
    assert_eq!(started.elapsed().as_millis() / 10, 9);
    assert_eq!((fake.created(), fake.detached()), (1, 1));
    eventually(SOON, async || pool.snapshot().idle == 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_recycle_that_hangs_costs_a_second_and_the_same_acquire_gets_the_next() {
    let fake = Fake::default();
    let pool = fake.pool().await;
    fake.recycling(Recycling::Hangs);
    let started = tokio::time::Instant::now();
    let acquire = begin({
        let pool = pool.clone();
        async move { pool.acquire().await }
    });
    fake.recycling(Recycling::Works);
    assert_eq!(acquire.await.unwrap().serial, 1);
    assert_eq!(started.elapsed().as_millis() / 10, 100);
    assert_eq!((fake.created(), fake.detached(), fake.open()), (2, 1, 1));
    assert_eq!(pool.snapshot().acquires.granted, 1);
}

#[tokio::test(start_paused = true)]
async fn a_manager_that_refuses_what_it_has_just_made_is_asked_no_more_often_than_a_database_that_is_away() {
    let fake = Fake::default();
    let pool = fake.pool().await;
    fake.recycling(Recycling::Fails);
    let error = pool.acquire().await.unwrap_err();
    // Ten seconds, with pauses of 150 to 300 ms: not once for each turn of a loop that never rests.
    assert!((30..90).contains(&fake.created()), "{} dials in {SOON:?}", fake.created());
    let AcquireError::Dial(why) = error else { panic!("{error}") };
    assert_eq!(why.to_string(), "the manager could not recycle an object: broken, as asked");

    fake.recycling(Recycling::Works);
    drop(pool.acquire().await.unwrap());
    let healed = fake.recycled();
    drop(pool.acquire().await.unwrap());
    assert_eq!(fake.recycled(), healed + 1);
    assert_eq!(fake.open(), 1);
}

#[tokio::test(start_paused = true)]
async fn every_object_is_detached_once_however_it_goes() {
    let fake = Fake::default();
    let pool = fake.builder().max_size(4).build().unwrap();
    pool.ready().await.unwrap();
    pool.gate().set_size(4, 4).unwrap();
    eventually(SOON, async || pool.snapshot().idle == 4).await;
    let held = pool.acquire().await.unwrap();
    // Surplus, then drained while one is out, then returned to a pool that is closed.
    pool.gate().set_size(1, 2).unwrap();
    assert_eq!((fake.detached(), fake.open()), (2, 2));
    assert!(pool.drain(Duration::ZERO).await.is_err());
    drop(held);
    assert_eq!((fake.created(), fake.detached(), fake.open()), (4, 4, 0));
}

#[tokio::test(start_paused = true)]
async fn objects_never_outnumber_max_size() {
    let fake = Fake::default();
    let pool = fake.builder().max_size(3).build().unwrap();
    let peak = Arc::new(AtomicUsize::new(0));
    let mut tasks = Vec::new();
    for k in 0..60_u64 {
        let (pool, fake, peak) = (pool.clone(), fake.clone(), peak.clone());
        tasks.push(tokio::spawn(async move {
            let object = pool.acquire().await.unwrap();
            peak.fetch_max(fake.open(), SeqCst);
            if k % 7 == 3 {
                fake.recycling(Recycling::RefusesOnce);
            }
            sleep(Duration::from_millis(2)).await;
            drop(object);
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert!(peak.load(SeqCst) <= 3);
    assert!(fake.detached() >= 4, "{} were thrown away meanwhile", fake.detached());
    assert_eq!(fake.open(), fake.created() - fake.detached());
}

#[tokio::test(start_paused = true)]
async fn a_dial_that_fails_says_why() {
    let fake = Fake::default();
    fake.0.cannot_create.store(true, SeqCst);
    let pool = fake.builder().fail_fast(true).build().unwrap();
    let AcquireError::Dial(error) = pool.acquire().await.unwrap_err() else { panic!("fails fast") };
    assert_eq!(error.to_string(), "the manager could not create an object: broken, as asked");
    assert!(matches!(error.downcast_ref(), Some(DeadpoolError::<Broken>::Create(Broken))));
    assert!(error.source().is_some());
}

/// A law that only keeps what it is told.
#[derive(Clone, Default)]
struct Ear(Arc<Mutex<Vec<u64>>>);

impl Ear {
    fn failures(&self) -> Vec<u64> {
        self.0.lock().unwrap().iter().copied().filter(|&failures| failures > 0).collect()
    }
}

impl Controller for Ear {
    fn on_sample(&mut self, _: Instant, sample: &Sample) -> Decision {
        self.0.lock().unwrap().push(sample.failures);
        Decision { limit: sample.limit, reason: Reason::Steady }
    }
}

#[tokio::test(start_paused = true)]
async fn the_controller_learns_of_each_connection_that_failed_once() {
    let (fake, ear) = (Fake::default(), Ear::default());
    let pool = fake.builder().max_size(2).controller(ear.clone()).build().unwrap();
    pool.ready().await.unwrap();
    pool.gate().set_size(2, 2).unwrap();
    let (mut one, mut two) = (pool.acquire().await.unwrap(), pool.acquire().await.unwrap());
    one.failed();
    one.failed();
    two.failed();
    drop((one, two));
    sleep(Duration::from_millis(50)).await;
    assert_eq!(ear.failures(), [2], "one sample, two uses");
    // The connection itself is as good as before, and its next use has not failed.
    drop(pool.acquire().await.unwrap());
    sleep(Duration::from_millis(50)).await;
    assert_eq!(ear.failures(), [2]);
    assert_eq!(fake.detached(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_controller_learns_of_each_permit_that_failed_once() {
    let ear = Ear::default();
    let limiter = Limiter::builder().fixed_size(2).controller(ear.clone()).build().unwrap();
    for _ in 0..2 {
        let mut permit = limiter.acquire().await.unwrap();
        permit.failed();
        permit.failed();
        drop(permit);
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(ear.failures(), [1, 1]);
}

#[tokio::test]
async fn redis_is_served_and_a_connection_it_killed_is_replaced_at_the_hand_out() {
    use deadpool_redis::redis::cmd;

    let server = tokio::task::spawn_blocking(RedisServer::start).await.unwrap();
    let manager = deadpool_redis::Manager::new(server.url()).unwrap();
    let pool = AdaptivePool::builder(Deadpool::new(manager)).fixed_size(2).build().unwrap();
    pool.ready().await.unwrap();

    let (mut one, mut two) = (pool.acquire().await.unwrap(), pool.acquire().await.unwrap());
    let () = cmd("SET").arg("key").arg(42).query_async(&mut **one).await.unwrap();
    let value: i32 = cmd("GET").arg("key").query_async(&mut **two).await.unwrap();
    assert_eq!(value, 42);

    let id: i64 = cmd("CLIENT").arg("ID").query_async(&mut **one).await.unwrap();
    drop(one);
    let kill = ["KILL", "ID", &id.to_string()].map(str::to_owned);
    let killed: usize = cmd("CLIENT").arg(&kill).query_async(&mut **two).await.unwrap();
    assert_eq!(killed, 1);

    // Only the killed one is idle: nobody is handed it.
    let mut fresh = pool.acquire().await.unwrap();
    let value: i32 = cmd("GET").arg("key").query_async(&mut **fresh).await.unwrap();
    assert_eq!(value, 42);
    let new_id: i64 = cmd("CLIENT").arg("ID").query_async(&mut **fresh).await.unwrap();
    assert_ne!(new_id, id);

    drop((fresh, two));
    pool.drain(SOON).await.unwrap();
}
