//! How many connections may be in use, apart from how many are open: what is over the limit is kept in reserve, costs nobody
//! anything, and goes to those who wait as soon as the limit has room. On virtual time.

mod support;

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use support::eventually;
use support::sim::{Conn, Refused, Sim, open, take};
use tokio::task::{JoinHandle, JoinSet, yield_now};
use tokio::time::{sleep, timeout};
use tower_adaptive_pool::{
    AcquireError, AdaptivePool, Backend, Builder, ConnectionState, Controller, ControllerChoice, Decision,
    DrainTimeout, Event, Gate, Limiter, Observer, PaidGrowth, Place, QueueDepth, Reason, Refusal, Sample,
};

const SOON: Duration = Duration::from_secs(1);

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A law that does what the test says: the limit it wants, 0 for none.
#[derive(Clone, Default)]
struct Told(Arc<AtomicUsize>);

impl Told {
    /// The limit is this one from the next tick on. The driver must be awake.
    async fn set(&self, pool: &AdaptivePool<Sim>, limit: usize) {
        self.0.store(limit, SeqCst);
        eventually(SOON, async || pool.snapshot().limit == limit).await;
    }
}

impl Controller for Told {
    fn on_sample(&mut self, _: std::time::Instant, sample: &Sample) -> Decision {
        match self.0.load(SeqCst) {
            0 => Decision { limit: sample.limit, reason: Reason::Steady },
            limit => Decision { limit, reason: Reason::Custom("told") },
        }
    }
}

fn warm(sim: &Sim, size: usize) -> Builder<Sim> {
    AdaptivePool::builder(sim.clone()).min_size(size).max_size(size).seed(1)
}

/// So many who each use a connection for so long, again and again, for a second.
async fn load(pool: &AdaptivePool<Sim>, users: usize, time: Duration) {
    let mut all = JoinSet::new();
    for _ in 0..users {
        let pool = pool.clone();
        all.spawn(async move {
            for _ in 0..SOON.as_millis() / time.as_millis() {
                if let Ok(connection) = pool.acquire().await {
                    sleep(time).await;
                    drop(connection);
                }
            }
        });
    }
    all.join_all().await;
}

/// Somebody waits in the queue for one use.
async fn one_waits(pool: &AdaptivePool<Sim>) -> JoinHandle<Result<(), AcquireError>> {
    let waits = pool.clone();
    let waiting = tokio::spawn(async move { waits.acquire().await.map(drop) });
    eventually(SOON, async || pool.snapshot().queue_depth == 1).await;
    waiting
}

fn drains(pool: &AdaptivePool<Sim>) -> JoinHandle<Result<(), DrainTimeout>> {
    let pool = pool.clone();
    tokio::spawn(async move { pool.drain(SOON).await })
}

#[tokio::test(start_paused = true)]
async fn a_warm_pool_has_all_open_and_uses_ten_until_more_pay() {
    for law in [ControllerChoice::from(PaidGrowth::default()), QueueDepth::default().into()] {
        let sim = Sim::default();
        let pool = open(warm(&sim, 50).controller(law)).await;
        let seen = pool.snapshot();
        assert_eq!((seen.size, seen.idle, seen.reserve, seen.limit), (50, 10, 40, 10));
        let mut peak = pool.watch();
        load(&pool, 60, ms(6)).await;
        assert_eq!(peak.get().limit, 50, "every connection pays here");
        eventually(Duration::from_secs(10), async || pool.snapshot().limit == 10).await;
        let seen = pool.snapshot();
        assert_eq!((seen.idle, seen.reserve, sim.dials()), (10, 40, 50), "it came and went without a dial");
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_burst_within_idle_timeout_dials_nothing() {
    let sim = Sim::default();
    let pool = open(AdaptivePool::builder(sim.clone()).min_size(10).max_size(50).seed(1)).await;
    load(&pool, 60, ms(6)).await;
    let dials = sim.dials();
    assert!(dials > 40, "the first one does: {dials}");
    sleep(Duration::from_secs(25)).await;
    assert_eq!((pool.snapshot().limit, sim.open()), (10, dials));
    load(&pool, 60, ms(6)).await;
    assert_eq!(sim.dials(), dials);
}

#[tokio::test(start_paused = true)]
async fn the_limit_of_a_fixed_pool_never_moves() {
    #[derive(Clone, Default)]
    struct Moves(Arc<AtomicUsize>);
    impl Observer for Moves {
        fn on_event(&self, _: &Gate, event: &Event<'_>) {
            self.0.fetch_add(usize::from(matches!(event, Event::LimitChanged { .. })), SeqCst);
        }
    }
    for law in [ControllerChoice::from(PaidGrowth::default()), QueueDepth::default().into()] {
        let (sim, moves) = (Sim::default(), Moves::default());
        let builder = AdaptivePool::builder(sim.clone()).fixed_size(20).controller(law);
        let pool = open(builder.observer(moves.clone())).await;
        assert_eq!((pool.snapshot().limit, pool.snapshot().idle), (20, 20));
        load(&pool, 60, ms(6)).await;
        sleep(Duration::from_secs(60)).await;
        assert_eq!((pool.snapshot().limit, moves.0.load(SeqCst), sim.dials()), (20, 0, 20));
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_in_use_when_the_limit_falls_comes_back_into_reserve_though_somebody_waits() {
    let (sim, told) = (Sim::default(), Told::default());
    let pool = open(warm(&sim, 6).base_limit(6).controller(told.clone())).await;
    let mut held = take(&pool, 6).await;
    told.set(&pool, 3).await;
    let waiting = tokio::spawn({
        let pool = pool.clone();
        async move { pool.acquire().await.map(|connection| connection.serial) }
    });
    eventually(SOON, async || pool.snapshot().queue_depth == 1).await;
    for in_use in [5, 4, 3] {
        drop(held.pop());
        let seen = pool.snapshot();
        assert_eq!((seen.in_use, seen.idle, seen.reserve, seen.queue_depth), (in_use, 0, 6 - in_use, 1));
    }
    drop(held.pop());
    waiting.await.unwrap().unwrap();
    assert_eq!((pool.snapshot().in_use, pool.snapshot().reserve, sim.dials()), (2, 3, 6));
}

#[tokio::test(start_paused = true)]
async fn the_reserve_goes_to_those_who_wait_when_the_limit_rises_or_one_in_use_dies() {
    let (sim, told) = (Sim::default(), Told::default());
    let pool = open(warm(&sim, 6).base_limit(2).controller(told.clone())).await;
    let held = take(&pool, 2).await;
    let mut all = JoinSet::new();
    for _ in 0..4 {
        let pool = pool.clone();
        all.spawn(async move { pool.acquire().await.unwrap() });
    }
    eventually(SOON, async || pool.snapshot().queue_depth == 4).await;
    held[0].set(ConnectionState::Dead);
    drop(held);
    eventually(SOON, async || pool.snapshot().queue_depth == 2).await;
    assert_eq!(pool.snapshot().in_use, 2);
    told.set(&pool, 4).await;
    assert_eq!((pool.snapshot().in_use, pool.snapshot().queue_depth), (4, 0));
    assert_eq!(all.join_all().await.len(), 4);
}

#[tokio::test(start_paused = true)]
async fn clean_hand_over_what_a_waiter_gets_from_a_long_reserve_is_checked_first() {
    let (sim, told) = (Sim::default(), Told::default());
    let pool = open(warm(&sim, 2).base_limit(1).controller(told.clone())).await;
    let held = take(&pool, 1).await;
    sleep(Duration::from_secs(2)).await;
    let checks = sim.checks();
    let waiting = one_waits(&pool).await;
    told.set(&pool, 2).await;
    waiting.await.unwrap().unwrap();
    assert_eq!(sim.checks(), checks + 1);
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn a_grant_from_a_long_reserve_that_is_cancelled_is_still_unproven() {
    let (sim, told) = (Sim::default(), Told::default());
    let pool = open(warm(&sim, 2).base_limit(1).controller(told.clone())).await;
    let held = take(&pool, 1).await;
    sleep(Duration::from_secs(2)).await;
    let mut wait = Box::pin(pool.acquire());
    assert!(timeout(ms(5), wait.as_mut()).await.is_err());
    // Granted, and never polled again.
    told.set(&pool, 2).await;
    assert_eq!(pool.snapshot().in_use, 2);
    drop(wait);
    let checks = sim.checks();
    drop(pool.acquire().await.unwrap());
    assert_eq!(sim.checks(), checks + 1);
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn a_lower_max_size_gives_the_reserve_up_at_once() {
    let sim = Sim::default();
    sim.lingers(Duration::ZERO);
    let pool = open(warm(&sim, 20)).await;
    let held = take(&pool, 4).await;
    pool.gate().set_size(5, 8).unwrap();
    let seen = pool.snapshot();
    assert_eq!((sim.open(), seen.in_use, seen.idle, seen.reserve, seen.limit), (8, 4, 1, 3, 5));
    pool.gate().set_size(1, 2).unwrap();
    assert_eq!((sim.open(), pool.snapshot().limit), (4, 1), "nothing is taken from anybody");
    drop(held);
    assert_eq!((sim.open(), pool.snapshot().idle, pool.snapshot().reserve), (2, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn limits_changed_below_what_is_in_use_take_nothing_from_anybody_also_in_a_drain() {
    let sim = Sim::default();
    let pool = open(warm(&sim, 8).base_limit(8)).await;
    let held = take(&pool, 8).await;
    pool.gate().set_limits(1, 2).unwrap();
    let seen = pool.snapshot();
    assert_eq!((seen.min_limit, seen.base_limit, seen.limit, seen.in_use), (1, 2, 2, 8));
    let waiting = one_waits(&pool).await;
    let drain = drains(&pool);
    yield_now().await;
    pool.gate().set_limits(1, 1).unwrap();
    drop(held);
    waiting.await.unwrap().unwrap();
    drain.await.unwrap().unwrap();
    assert_eq!(
        (sim.open(), sim.dials()),
        (0, 8),
        "what came back over the limit closed, and nothing was dialed"
    );
}

#[tokio::test(start_paused = true)]
async fn a_drain_at_a_low_limit_dials_for_those_who_wait_and_for_nobody_else() {
    let (sim, told) = (Sim::default(), Told::default());
    let pool = open(warm(&sim, 4).base_limit(1).controller(told)).await;
    let held = take(&pool, 1).await;
    let waiting = one_waits(&pool).await;
    let drain = drains(&pool);
    eventually(SOON, async || sim.open() == 1).await;
    held[0].set(ConnectionState::Dead);
    drop(held);
    waiting.await.unwrap().unwrap();
    drain.await.unwrap().unwrap();
    assert_eq!((sim.open(), sim.dials()), (0, 5));
}

#[tokio::test(start_paused = true)]
async fn a_limiter_has_no_reserve() {
    let law = QueueDepth { threshold: 1, shrink_after: ms(100), ..QueueDepth::default() };
    let limiter = Limiter::builder().min_size(2).max_size(8).controller(law).build().unwrap();
    let mut held = Vec::new();
    for _ in 0..8 {
        held.push(limiter.acquire().await.unwrap());
    }
    let seen = limiter.gate().snapshot();
    assert_eq!((seen.size, seen.in_use, seen.limit), (8, 8, 8));
    held.truncate(3);
    eventually(SOON, async || limiter.gate().snapshot().limit < 6).await;
    let seen = limiter.gate().snapshot();
    assert_eq!((seen.reserve, seen.size), (0, seen.limit));
    drop(held);
    eventually(SOON, async || limiter.gate().snapshot().size == 2).await;
}

#[tokio::test(start_paused = true)]
async fn evidence_may_take_the_limit_below_base_limit_and_rest_brings_it_back() {
    let laws: [Box<dyn Controller>; 2] = [
        Box::new(PaidGrowth::default().into_controller()),
        Box::new(QueueDepth::default().into_controller()),
    ];
    for law in laws {
        /// Lowers the limit once, as evidence would; then asks the law.
        struct Once(bool, Box<dyn Controller>);
        impl Controller for Once {
            fn on_sample(&mut self, now: std::time::Instant, sample: &Sample) -> Decision {
                if std::mem::take(&mut self.0) {
                    return Decision { limit: 2, reason: Reason::Custom("evidence") };
                }
                self.1.on_sample(now, sample)
            }
        }
        let sim = Sim::default();
        let pool = open(warm(&sim, 12).controller(Once(true, law))).await;
        drop(pool.acquire().await.unwrap());
        eventually(SOON, async || pool.snapshot().limit == 2).await;
        eventually(3 * SOON, async || pool.snapshot().limit == 10).await;
        assert_eq!(pool.snapshot().last_decision.reason, Reason::Rested);
        // At rest nothing happens any more.
        sleep(ms(50)).await;
        let mut watch = pool.watch();
        let _ = watch.get();
        assert!(timeout(Duration::from_secs(20), watch.changed()).await.is_err());
    }
}

/// A server that has room for so many connections, and says so.
#[derive(Clone)]
struct Small(Sim, usize);

impl Backend for Small {
    type Connection = Conn;
    type Error = Refused;

    async fn dial(&self, place: Place) -> Result<Conn, Refused> {
        if self.0.open() < self.1 { self.0.dial(place).await } else { Err(Refused) }
    }

    fn state(&self, connection: &Conn) -> ConnectionState {
        self.0.state(connection)
    }

    fn refusal(&self, _: &Refused) -> Refusal {
        Refusal::Full
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_full_lowers_the_limit_to_what_is_open_but_not_in_a_dry_run() {
    for (dry_run, expected) in [(false, 4), (true, 8)] {
        let small = Small(Sim::default(), 4);
        let builder = AdaptivePool::builder(small.clone()).min_size(4).max_size(8).base_limit(8);
        let pool = builder.dry_run(dry_run).build().unwrap();
        pool.ready().await.unwrap();
        eventually(SOON, async || pool.snapshot().dial_failures > 0).await;
        let seen = pool.snapshot();
        assert_eq!(
            (seen.limit, seen.size, seen.last_decision.reason == Reason::ServerFull),
            (expected, 4, !dry_run)
        );
        let dials = small.0.dials();
        sleep(Duration::from_secs(5)).await;
        assert!(small.0.dials() == dials && pool.snapshot().dial_failures <= 12, "a second apart");
    }
}

#[tokio::test(start_paused = true)]
async fn in_a_dry_run_the_limit_is_the_static_pools_size_and_stays() {
    let sim = Sim::default();
    let pool = open(AdaptivePool::builder(sim.clone()).min_size(20).max_size(50).dry_run(true)).await;
    assert_eq!((pool.snapshot().limit, pool.snapshot().idle), (20, 20));
    load(&pool, 60, ms(6)).await;
    assert_eq!((pool.snapshot().limit, sim.dials()), (20, 20));
}

#[tokio::test(start_paused = true)]
async fn a_waiter_over_the_limit_is_told_how_many_there_could_be() {
    let told = Told::default();
    let pool = open(warm(&Sim::default(), 5).base_limit(2).controller(told).acquire_timeout(ms(300))).await;
    let _held = take(&pool, 2).await;
    let error = pool.acquire().await.unwrap_err();
    let said = error.to_string();
    assert!(said.contains("2 of at most 5 in use; not growing: nothing was decided yet; 0 others"), "{said}");
    let AcquireError::Timeout(timeout) = error else { panic!("{said}") };
    assert_eq!((timeout.limit, timeout.max_size, timeout.not_growing), (2, 5, Some(Reason::Started)));
}

#[tokio::test(start_paused = true)]
async fn every_move_of_the_limit_is_told_once_with_its_reason() {
    type Move = (usize, usize, &'static str);
    #[derive(Clone, Default)]
    struct Moves(Arc<Mutex<Vec<Move>>>);
    impl Observer for Moves {
        fn on_event(&self, _: &Gate, event: &Event<'_>) {
            if let Event::LimitChanged { from, to, reason, .. } = event {
                self.0.lock().unwrap().push((*from, *to, reason.code()));
            }
        }
    }
    let (told, moves) = (Told::default(), Moves::default());
    let pool = open(warm(&Sim::default(), 20).controller(told.clone()).observer(moves.clone())).await;
    let _held = take(&pool, 1).await;
    told.set(&pool, 15).await;
    told.0.store(0, SeqCst);
    pool.gate().set_size(5, 12).unwrap();
    let expected = [(10, 15, "told"), (15, 12, "bounds_changed")];
    assert_eq!(*moves.0.lock().unwrap(), expected);
}
