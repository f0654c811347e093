//! The runtime that a pool was built in may be busy, not driven at all, or gone: an acquire ends at its deadline all the same, and
//! the pool heals in the runtime of whoever comes.

mod support;

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use support::sim::Sim;
use tokio::runtime::{Builder as RuntimeBuilder, Runtime};
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};
use tower_adaptive_pool::{
    AcquireError, AdaptivePool, Builder, ConnectionState, Event, Gate, LimitOnly, Limiter, Observer,
};

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Runs on a thread of its own, so that a hang is a failure.
#[track_caller]
fn ends<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, ended) = mpsc::channel();
    thread::spawn(move || done.send(work()));
    ended.recv_timeout(Duration::from_secs(30)).expect("it ends")
}

fn one_thread() -> Runtime {
    RuntimeBuilder::new_current_thread().enable_all().build().unwrap()
}

fn threads(workers: usize) -> Runtime {
    RuntimeBuilder::new_multi_thread().worker_threads(workers).enable_all().build().unwrap()
}

fn one_permit() -> Builder<LimitOnly> {
    Limiter::builder().fixed_size(1).acquire_timeout(ms(200))
}

/// An acquire that has to wait until its deadline, 200 ms from now, ends soon after it.
async fn times_out(limiter: &Limiter) {
    let _held = limiter.acquire().await.unwrap();
    let began = Instant::now();
    let outcome = timeout(Duration::from_secs(10), limiter.acquire()).await.expect("one deadline");
    assert!(matches!(outcome, Err(AcquireError::Timeout(_))));
    assert!((ms(200)..ms(1_500)).contains(&began.elapsed()), "{:?}", began.elapsed());
}

#[test]
fn a_deadline_is_kept_though_nobody_drives_the_runtime_of_the_pool() {
    ends(|| {
        let (setup, serving) = (one_thread(), threads(1));
        let limiter = setup.block_on(async { one_permit().build().unwrap() });
        serving.block_on(times_out(&limiter));
    });
}

#[test]
fn a_deadline_is_kept_though_the_runtime_of_the_pool_is_busy() {
    ends(|| {
        let (pools, serving) = (threads(1), threads(1));
        let limiter = pools.block_on(async { one_permit().build().unwrap() });
        let (free, blocked) = mpsc::channel::<()>();
        pools.spawn(async move { blocked.recv() });
        serving.block_on(times_out(&limiter));
        drop(free);
    });
}

/// Its one handler of changes is busy until it is let go.
struct Slow(std::sync::Mutex<mpsc::Receiver<()>>);

impl Observer for Slow {
    fn on_event(&self, _: &Gate, event: &Event<'_>) {
        if matches!(event, Event::HeldForLong { .. }) {
            let _ = self.0.lock().unwrap().recv();
        }
    }
}

#[test]
fn a_deadline_is_kept_though_an_observer_blocks_the_driver() {
    ends(|| {
        let (free, blocked) = mpsc::channel();
        threads(2).block_on(async move {
            let observer = Slow(std::sync::Mutex::new(blocked));
            let limiter = one_permit().leak_warning_after(ms(50)).observer(observer).build().unwrap();
            let serving = limiter.clone();
            // Tokio looks at its timers as long as one of its threads is not asleep.
            let awake = tokio::spawn(async {
                loop {
                    yield_now().await;
                }
            });
            tokio::spawn(async move {
                let _held = serving.acquire().await.unwrap();
                sleep(ms(400)).await; // the observer is told of it, and blocks
                let began = Instant::now();
                assert!(matches!(serving.acquire().await, Err(AcquireError::Timeout(_))));
                assert!((ms(200)..ms(1_500)).contains(&began.elapsed()), "{:?}", began.elapsed());
            })
            .await
            .unwrap();
            awake.abort();
            drop(free);
        });
    });
}

fn pool(sim: &Sim) -> Builder<Sim> {
    AdaptivePool::builder(sim.clone()).min_size(2).max_size(4).acquire_timeout(ms(2_000)).seed(1)
}

/// A pool that was used in a runtime that is gone.
fn orphaned(sim: &Sim) -> AdaptivePool<Sim> {
    one_thread().block_on(async {
        let pool = pool(sim).build().unwrap();
        pool.ready().await.unwrap();
        drop(pool.acquire().await.unwrap());
        pool
    })
}

#[test]
fn a_pool_whose_runtime_is_gone_heals_in_the_runtime_of_whoever_comes() {
    ends(|| {
        let sim = Sim::default();
        let pool = orphaned(&sim);
        assert!(!pool.snapshot().driven);
        for _ in 0..3 {
            let next = one_thread();
            next.block_on(async {
                // The sockets of the last runtime are dead.
                for _ in 0..2 {
                    if let Ok(held) = pool.try_acquire() {
                        held.set(ConnectionState::Dead);
                    }
                }
                let began = Instant::now();
                drop(pool.acquire().await.unwrap());
                assert!(began.elapsed() < ms(2_000), "{:?}", began.elapsed());
                pool.ready().await.unwrap();
                assert!(pool.snapshot().driven);
                let mut held = vec![pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];
                held.push(pool.acquire().await.expect("the controller is there too, and grows"));
            });
        }
    });
}

#[test]
fn a_pool_whose_runtime_is_gone_is_ready_again_without_an_acquire() {
    ends(|| {
        let sim = Sim::default();
        let first = one_thread();
        let pool = first.block_on(async { pool(&sim).build().unwrap() });
        drop(first);
        one_thread().block_on(async { pool.ready().await.unwrap() });
        assert_eq!(sim.dials(), 2);
    });
}

#[test]
fn what_was_open_when_the_runtime_went_is_checked_before_it_is_used() {
    ends(|| {
        let sim = Sim::default();
        let pool = orphaned(&sim);
        one_thread().block_on(async {
            drop(pool.acquire().await.unwrap());
            assert_eq!(sim.checks(), 1);
        });
    });
}

#[test]
fn without_any_runtime_an_acquire_that_would_wait_says_so_at_once() {
    ends(|| {
        let first = one_thread();
        let limiter = first.block_on(async { one_permit().build().unwrap() });
        let held = limiter.try_acquire().unwrap();
        drop(first);
        let error = futures_util::FutureExt::now_or_never(limiter.acquire()).expect("at once").unwrap_err();
        assert!(error.to_string().contains("runtime"), "{error}");
        drop(held);
        let granted = futures_util::FutureExt::now_or_never(limiter.acquire()).expect("at once");
        drop(granted.expect("what is free needs no runtime"));
    });
}

#[test]
fn a_waiter_takes_the_pool_over_when_its_runtime_goes() {
    ends(|| {
        let sim = Sim::default();
        let (pools, serving) = (one_thread(), threads(1));
        let pool = pools.block_on(async {
            let pool =
                AdaptivePool::builder(sim.clone()).fixed_size(1).acquire_timeout(ms(20_000)).build().unwrap();
            pool.ready().await.unwrap();
            pool
        });
        let held = pool.try_acquire().unwrap();
        held.set(ConnectionState::Dead);
        let waiting = serving.spawn({
            let pool = pool.clone();
            async move { pool.acquire().await.map(drop) }
        });
        serving.block_on(support::eventually(ms(5_000), async || pool.snapshot().queue_depth == 1));
        drop(held); // to be replaced, where nothing runs
        drop(pools);
        let began = Instant::now();
        serving.block_on(waiting).unwrap().expect("its own runtime dials");
        assert!(began.elapsed() < ms(10_000), "{:?}", began.elapsed());
        assert!(pool.snapshot().driven);
    });
}

#[test]
fn without_any_runtime_a_pool_says_so_instead_of_checking_or_waiting() {
    ends(|| {
        let pool = orphaned(&Sim::default());
        for _ in 0..2 {
            let outcome = futures_util::FutureExt::now_or_never(pool.acquire()).expect("at once");
            drop(outcome); // what was open may be used where its check needs no runtime
        }
        let _held: Vec<_> = std::iter::from_fn(|| pool.try_acquire().ok()).collect();
        let error = futures_util::FutureExt::now_or_never(pool.acquire()).expect("at once").unwrap_err();
        assert!(error.to_string().contains("runtime"), "{error}");
        let error = futures_util::FutureExt::now_or_never(pool.ready()).map(Result::err);
        assert!(error.is_some(), "ready() says at once how it is");
        assert!(futures_util::FutureExt::now_or_never(pool.drain(ms(500))).is_some());
    });
}

#[test]
fn who_waits_when_the_runtime_of_a_limiter_goes_is_answered_at_the_deadline() {
    ends(|| {
        let (pools, serving) = (threads(1), threads(1));
        let limiter = pools.block_on(async { one_permit().build().unwrap() });
        let held = limiter.try_acquire().unwrap();
        let waiting = serving.spawn({
            let limiter = limiter.clone();
            async move { limiter.acquire().await.map(drop) }
        });
        serving.block_on(support::eventually(ms(5_000), async || limiter.gate().snapshot().queue_depth == 1));
        drop(pools);
        let outcome = serving.block_on(waiting).unwrap();
        assert!(matches!(outcome, Err(AcquireError::Timeout(_))), "{outcome:?}");
        drop(held);
    });
}

#[tokio::test]
async fn a_loop_of_acquires_lets_other_tasks_run() {
    for dials in [false, true] {
        let limiter = one_permit().build().unwrap();
        let pool = pool(&Sim::default()).build().unwrap();
        pool.ready().await.unwrap();
        let ran = Arc::new(AtomicBool::new(false));
        tokio::spawn({
            let ran = ran.clone();
            async move { ran.store(true, SeqCst) }
        });
        let mut turns = 0;
        while !ran.load(SeqCst) && turns < 10_000 {
            turns += 1;
            if dials {
                drop(pool.acquire().await.unwrap());
            } else {
                drop(limiter.acquire().await.unwrap());
            }
        }
        assert!(ran.load(SeqCst), "the other task has not run in {turns} turns");
    }
}

#[cfg(feature = "postgres")]
#[test]
fn a_pool_over_a_real_server_serves_one_runtime_after_the_other() {
    use support::postgres::{Options, PostgresServer};
    use tower_adaptive_pool::Postgres;

    let server = PostgresServer::start(Options::default()).unwrap();
    let backend = Postgres::new(server.app_url().parse().unwrap(), tokio_postgres::NoTls);
    let first = one_thread();
    let pool = first.block_on(async {
        let pool = AdaptivePool::builder(backend).min_size(2).max_size(4).build().unwrap();
        pool.ready().await.unwrap();
        pool
    });
    drop(first);
    for _ in 0..3 {
        one_thread().block_on(async {
            let connection = pool.acquire().await.unwrap();
            let row = connection.query_one("select 7", &[]).await.unwrap();
            assert_eq!(row.get::<_, i32>(0), 7);
            drop(connection);
            pool.ready().await.unwrap();
        });
    }
    let seen = pool.snapshot();
    assert!(seen.size <= 4, "{seen:?}");
}

#[test]
fn a_waiter_on_a_thread_of_the_runtime_that_goes_is_told_so_and_holds_nobody_up() {
    ends(|| {
        let pools = threads(1);
        let limiter = pools.block_on(async { one_permit().acquire_timeout(ms(20_000)).build().unwrap() });
        let _held = limiter.try_acquire().unwrap();
        let (handle, waits) = (pools.handle().clone(), limiter.clone());
        let waiting = thread::spawn(move || handle.block_on(waits.acquire()).map(drop));
        while limiter.gate().snapshot().queue_depth == 0 {
            thread::yield_now();
        }
        let began = Instant::now();
        drop(pools);
        let outcome = waiting.join().unwrap();
        assert!(matches!(outcome, Err(AcquireError::Dial(_))), "{outcome:?}");
        assert!(began.elapsed() < ms(10_000), "{:?}", began.elapsed());
    });
}

#[test]
fn ready_takes_the_pool_over_when_its_runtime_goes_meanwhile() {
    ends(|| {
        let sim = Sim::default();
        sim.go_down(true);
        let (pools, serving) = (one_thread(), threads(1));
        let pool = pools.block_on(async { pool(&sim).build().unwrap() });
        let ready = serving.spawn({
            let pool = pool.clone();
            async move { pool.ready().await.map_err(|error| error.to_string()) }
        });
        pools.block_on(async { sleep(ms(50)).await }); // a dial fails meanwhile
        drop(pools);
        sim.go_down(false);
        serving.block_on(ready).unwrap().unwrap();
    });
}
