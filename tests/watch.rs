//! What `watch` shows may be kept for as long as its reader likes: nobody waits for it.

mod support;

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use support::sim::{Sim, open};
use tokio::runtime::Builder as RuntimeBuilder;
use tokio::time::Instant;
use tower_adaptive_pool::{AcquireError, AdaptivePool, ConnectionState, Limiter};

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Work that a lock taken twice would hang for ever, on a thread of its own.
#[track_caller]
fn ends(work: impl FnOnce() + Send + 'static) {
    let (done, ended) = mpsc::channel();
    thread::spawn(move || {
        work();
        done.send(()).unwrap();
    });
    ended.recv_timeout(Duration::from_secs(20)).expect("it ends");
}

#[test]
fn a_controller_of_ones_own_may_change_the_bounds_by_what_it_was_shown() {
    ends(|| {
        RuntimeBuilder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(async {
            let limiter = Limiter::builder().min_size(1).max_size(4).build().unwrap();
            let mut watch = limiter.gate().watch();
            let seen = watch.get();
            limiter.gate().set_size(1, seen.max_size * 2).unwrap();
            assert!(watch.changed().await);
            assert_eq!((seen.max_size, watch.get().max_size), (4, 8));
        });
    });
}

#[test]
fn a_dead_connection_may_be_dropped_while_a_snapshot_is_kept() {
    ends(|| {
        RuntimeBuilder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(async {
            let sim = Sim::default();
            sim.lingers(Duration::ZERO);
            let pool = open(AdaptivePool::builder(sim).min_size(1).max_size(4)).await;
            let mut watch = pool.watch();
            let held = pool.acquire().await.unwrap();
            held.set(ConnectionState::Dead);
            let seen = watch.get();
            drop(held);
            assert_eq!(seen.size, 1);
        });
    });
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_keeps_its_snapshot_delays_no_deadline() {
    let limiter = Limiter::builder().fixed_size(1).acquire_timeout(ms(200)).build().unwrap();
    let mut watch = limiter.gate().watch();
    let _held = limiter.acquire().await.unwrap();
    let seen = watch.get();
    let began = Instant::now();
    let error = limiter.acquire().await.expect_err("the only permit is held");
    assert!(matches!(error, AcquireError::Timeout(_)), "{error}");
    assert_eq!(began.elapsed(), ms(200));
    assert_eq!(seen.acquires.timed_out, 0, "what it keeps does not change");
    while watch.get().acquires.timed_out == 0 {
        assert!(watch.changed().await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_ends_with_its_gate() {
    let limiter = Limiter::builder().fixed_size(1).build().unwrap();
    let mut watch = limiter.gate().watch();
    let other = watch.clone();
    drop(limiter);
    while watch.changed().await {}
    assert_eq!(watch.get().max_size, 1, "the newest stays");
    assert!(format!("{other:?}").starts_with("SnapshotWatch(Snapshot {"));
}
