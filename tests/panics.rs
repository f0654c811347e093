//! User code that panics costs its own call, and nothing else: neither a dial, nor the driver, nor a permit, nor a lock.

mod support;

use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, Weak, mpsc};
use std::thread;
use std::time::Duration;

use support::sim::Sim;
use tokio::runtime::Builder as RuntimeBuilder;
use tokio::time::sleep;
use tower_adaptive_pool::{
    AdaptivePool, Backend, ConnectionState, Event, Gate, Observer, Place, QueueDepth, Snapshot,
};

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Panics on so many of the events for which `on` is true.
#[derive(Clone)]
struct Bomb {
    on: fn(&Event<'_>) -> bool,
    left: Arc<AtomicI64>,
}

impl Bomb {
    fn new(on: fn(&Event<'_>) -> bool, times: i64) -> Self {
        Self { on, left: Arc::new(AtomicI64::new(times)) }
    }
}

impl Observer for Bomb {
    fn on_event(&self, _: &Gate, event: &Event<'_>) {
        assert!(!(self.on)(event) || self.left.fetch_sub(1, SeqCst) <= 0, "as asked");
    }
}

/// Forty who each hold a connection for 10 ms, a hundred times.
async fn load<B: Backend>(pool: &AdaptivePool<B>) {
    let callers = (0..40).map(|_| {
        let pool = pool.clone();
        tokio::spawn(async move {
            for _ in 0..100 {
                if let Ok(held) = pool.acquire().await {
                    sleep(ms(10)).await;
                    drop(held);
                }
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn an_observer_that_panics_on_a_failed_dial_does_not_end_dialing() {
    for times in [1, i64::MAX] {
        let sim = Sim::default();
        sim.go_down(true);
        let bomb = Bomb::new(|event| matches!(event, Event::DialFailed { .. }), times);
        let builder = AdaptivePool::builder(sim.clone()).min_size(2).max_size(4).observer(bomb);
        let pool = builder.build().unwrap();
        sleep(ms(2_000)).await;
        sim.go_down(false);
        pool.ready().await.unwrap();
        assert_eq!(pool.snapshot().idle, 2);
    }
}

#[tokio::test(start_paused = true)]
async fn an_observer_that_panics_on_each_dial_does_not_end_dialing() {
    let sim = Sim::default();
    let bomb = Bomb::new(|event| matches!(event, Event::Dialed { .. }), i64::MAX);
    let pool = AdaptivePool::builder(sim).fixed_size(4).observer(bomb).build().unwrap();
    for _ in 0..3 {
        pool.ready().await.unwrap();
        let held = [pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];
        for held in &held {
            held.set(ConnectionState::Dead);
        }
    }
    pool.ready().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_observer_that_panics_on_a_change_of_size_does_not_end_the_driver() {
    for times in [1, i64::MAX] {
        let bomb = Bomb::new(|event| matches!(event, Event::LimitChanged { .. }), times);
        let builder = AdaptivePool::builder(Sim::default()).min_size(1).max_size(20).observer(bomb);
        let pool = builder.controller(QueueDepth::default()).build().unwrap();
        pool.ready().await.unwrap();
        load(&pool).await;
        let Snapshot { limit, driven, .. } = pool.snapshot();
        assert!(limit > 3, "it grew more than once: {limit}");
        assert!(driven);
    }
}

/// A backend whose hooks panic when told to. Its connection owns its place, as those of `Deadpool` do.
#[derive(Clone, Default)]
struct Rigged(Arc<Rig>);

#[derive(Default)]
struct Rig {
    state: AtomicI64,
    drop: AtomicI64,
    dials: AtomicUsize,
    places: Mutex<Vec<Weak<Place>>>,
}

struct Wire {
    rig: Arc<Rig>,
    _place: Arc<Place>,
}

impl Drop for Wire {
    fn drop(&mut self) {
        assert!(thread::panicking() || self.rig.drop.fetch_sub(1, SeqCst) <= 0, "as asked");
    }
}

#[derive(Debug)]
struct Never;

impl fmt::Display for Never {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("never")
    }
}

impl std::error::Error for Never {}

impl Backend for Rigged {
    type Connection = Wire;
    type Error = Never;

    async fn dial(&self, place: Place) -> Result<Wire, Never> {
        self.0.dials.fetch_add(1, SeqCst);
        let place = Arc::new(place);
        self.0.places.lock().unwrap().push(Arc::downgrade(&place));
        Ok(Wire { rig: self.0.clone(), _place: place })
    }

    fn state(&self, _: &Wire) -> ConnectionState {
        assert!(self.0.state.fetch_sub(1, SeqCst) <= 0, "as asked");
        ConnectionState::Ready
    }
}

async fn rigged(size: usize) -> (Rigged, AdaptivePool<Rigged>) {
    let rig = Rigged::default();
    let pool = AdaptivePool::builder(rig.clone()).fixed_size(size).build().unwrap();
    pool.ready().await.unwrap();
    (rig, pool)
}

#[tokio::test(start_paused = true)]
async fn a_connection_whose_state_panics_is_replaced_and_its_permit_is_not_lost() {
    let (rig, pool) = rigged(1).await;
    // At the hand-out, and when a guard is dropped.
    rig.0.state.store(1, SeqCst);
    let held = pool.acquire().await.unwrap();
    assert_eq!(rig.0.dials.load(SeqCst), 2);
    rig.0.state.store(1, SeqCst);
    drop(held);
    drop(pool.acquire().await.unwrap());
    assert_eq!(rig.0.dials.load(SeqCst), 3);
    let seen = pool.snapshot();
    assert_eq!((seen.in_use, seen.idle), (0, 1));
}

/// The drop of a connection takes the pool's lock, and so does whoever looks.
#[test]
fn a_state_that_panics_about_an_idle_connection_leaves_no_lock_taken() {
    let (done, outcome) = mpsc::channel();
    thread::spawn(move || {
        let runtime = RuntimeBuilder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let (rig, pool) = rigged(2).await;
            rig.0.state.store(1, SeqCst);
            let place = rig.0.places.lock().unwrap()[1].upgrade().unwrap();
            place.lost();
            drop(place);
            pool.ready().await.unwrap();
            done.send(pool.snapshot().in_use).unwrap();
        });
    });
    let in_use = outcome.recv_timeout(Duration::from_secs(10)).expect("nothing hangs");
    assert_eq!(in_use, 0);
}

#[tokio::test(start_paused = true)]
async fn a_connection_whose_drop_panics_in_the_driver_does_not_end_it() {
    let rig = Rigged::default();
    let builder = AdaptivePool::builder(rig.clone()).min_size(1).max_size(8).idle_timeout(ms(500));
    let pool = builder.controller(QueueDepth::default()).build().unwrap();
    load(&pool).await;
    assert!(pool.snapshot().idle > 1);
    rig.0.drop.store(1, SeqCst);
    sleep(ms(10_000)).await;
    let seen = pool.snapshot();
    assert_eq!((seen.limit, seen.size), (1, 1), "what was idle was closed");
    assert!(rig.0.drop.load(SeqCst) <= 0, "a drop panicked");
    load(&pool).await;
    let Snapshot { limit, driven, .. } = pool.snapshot();
    assert!(limit > 1 && driven, "it grows again: {limit}");
}

#[tokio::test(start_paused = true)]
async fn connections_whose_drops_always_panic_cost_no_permit_and_do_not_end_the_process() {
    let rig = Rigged::default();
    let pool = AdaptivePool::builder(rig.clone()).min_size(1).max_size(8).build().unwrap();
    rig.0.drop.store(i64::MAX, SeqCst);
    load(&pool).await;
    // A dead one is replaced in an acquire, several close at once, and all of them at the end.
    rig.0.state.store(2, SeqCst);
    drop(pool.acquire().await.unwrap());
    pool.gate().set_size(1, 2).unwrap();
    load(&pool).await;
    let seen = pool.snapshot();
    assert_eq!((seen.in_use, seen.queue_depth, seen.acquires.waiting()), (0, 0, 0), "{seen:?}");
    pool.drain(Duration::from_secs(10)).await.unwrap();
    assert_eq!(pool.snapshot().size, 0);
}
