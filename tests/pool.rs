//! The pool against a simulated server, on virtual time.

mod support;

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use support::eventually;
use support::sim::{Conn, Sim, open, take};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout};
use tower_adaptive_pool::{
    AcquireError, Acquires, AdaptivePool, Backend, Builder, Class, ConnectionState, Controller, Decision,
    Event, Gate, Hold, Limiter, Observer, Place, QueueDepth, Reason, Sample, Shed, ShedReason, Snapshot,
    SnapshotWatch,
};

const SOON: Duration = Duration::from_secs(1);

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn builder(sim: &Sim, min_size: usize, max_size: usize) -> Builder<Sim> {
    let builder = AdaptivePool::builder(sim.clone()).min_size(min_size).max_size(max_size).seed(1);
    // Of one size it is a static pool.
    if min_size == max_size { builder.min_limit(max_size) } else { builder }
}

/// Polls once, as a task would when it first runs.
fn poll_once<F: Future + ?Sized>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

fn assert_adds_up(acquires: &Acquires) {
    let Acquires { started, granted, shed, timed_out, cancelled, failed, .. } = *acquires;
    assert_eq!(started, granted + shed + timed_out + cancelled + failed, "{acquires:?}");
}

#[tokio::test(start_paused = true)]
async fn min_size_is_opened_in_the_background() {
    let sim = Sim::default();
    let pool = open(builder(&sim, 10, 50)).await;
    let seen = pool.snapshot();
    assert_eq!((seen.size, seen.idle, seen.in_use, seen.limit), (10, 10, 0, 10));
    assert_eq!(sim.open(), 10);
    assert_eq!(sim.peak_dialing(), 4, "max_dialing");
}

#[tokio::test(start_paused = true)]
async fn ready_says_why_and_the_pool_heals_by_itself() {
    let sim = Sim::default();
    sim.go_down(true);
    let pool = builder(&sim, 3, 5).build().unwrap();
    let began = Instant::now();
    let error = pool.ready().await.unwrap_err();
    assert_eq!(began.elapsed(), Duration::from_secs(5), "dial_timeout");
    let said = "0 of 3 connections (min_size) could be opened: the simulated server is down";
    assert_eq!(error.to_string(), said);
    let tries = sim.dials();
    assert!((15..60).contains(&tries), "one dial at a time, at most 300 ms apart: {tries} in 5 s");

    sim.go_down(false);
    timeout(ms(310), pool.ready()).await.expect("within one pause").unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_dial_that_panics_leaks_nothing() {
    let sim = Sim::default();
    sim.panic_on_dial(true);
    let pool = builder(&sim, 2, 2).build().unwrap();
    pool.ready().await.unwrap_err();
    sim.panic_on_dial(false);
    pool.ready().await.unwrap();
    let seen = pool.snapshot();
    assert_eq!((seen.size, seen.idle, seen.opening, seen.closing), (2, 2, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_dial_that_hangs_ends_at_dial_timeout_and_keeps_its_place_until_the_server_lets_go() {
    let sim = Sim::default();
    sim.dial_takes(Duration::from_secs(3600));
    sim.lingers(Duration::from_secs(30));
    let pool = builder(&sim, 1, 1).dial_timeout(Duration::from_secs(1)).build().unwrap();
    sleep(ms(1_500)).await;
    let seen = pool.snapshot();
    assert_eq!((seen.opening, seen.closing, sim.open()), (0, 1, 1));
    assert_eq!(sim.dials(), 1, "the ceiling forbids another");
    sim.dial_takes(ms(1));
    let error = pool.acquire().await.unwrap_err();
    let said = error.to_string();
    assert!(
        said.ends_with("the last dial failed: the database did not answer within 1s (dial_timeout)"),
        "{said}"
    );
    assert_eq!(error.code(), "pool_dial_timeout");
    sleep(Duration::from_secs(30)).await;
    let _ = pool.acquire().await.unwrap();
    assert_eq!(sim.peak(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_takes_whichever_comes_first_a_returned_connection_or_a_fresh_one() {
    let sim = Sim::default();
    let law = QueueDepth { threshold: 1, ..QueueDepth::default() };
    let pool = open(builder(&sim, 1, 2).controller(law)).await;

    // A fresh one: the holder keeps the first connection.
    let held = pool.acquire().await.unwrap();
    let fresh = timeout(ms(50), pool.acquire()).await.unwrap().unwrap();
    assert_ne!(fresh.serial, held.serial);
    drop((held, fresh));

    // A returned one: new ones take for ever.
    sim.dial_takes(Duration::from_secs(3600));
    let both = take(&pool, 2).await;
    let mut waiting = pin!(pool.acquire());
    assert!(poll_once(waiting.as_mut()).is_pending());
    drop(both);
    assert!(poll_once(waiting.as_mut()).is_ready());
}

#[tokio::test(start_paused = true)]
async fn hand_out_is_last_in_first_out_and_waiters_are_served_in_their_order() {
    let sim = Sim::default();
    let pool = open(builder(&sim, 3, 3)).await;
    let mut all = take(&pool, 3).await;
    let last = all.pop().unwrap();
    let serial = last.serial;
    drop(all);
    drop(last);
    assert_eq!(pool.acquire().await.unwrap().serial, serial);

    let mut held = take(&pool, 3).await;
    let mut waits: Vec<_> = (0..3).map(|_| Box::pin(pool.acquire())).collect();
    for wait in &mut waits {
        assert!(poll_once(wait.as_mut()).is_pending());
    }
    for next in 0..3 {
        held.pop();
        let ready: Vec<_> = waits.iter_mut().map(|wait| poll_once(wait.as_mut())).collect();
        let index = ready.iter().position(Poll::is_ready);
        assert_eq!(index, Some(0), "turn {next}: the first in line and nobody else");
        held.extend(ready.into_iter().filter_map(|ready| match ready {
            Poll::Ready(connection) => Some(connection.unwrap()),
            Poll::Pending => None,
        }));
        drop(waits.remove(0));
        // It stays held by `held`, at its front, so that the next pop gives back another one.
        held.rotate_right(1);
    }
}

#[tokio::test(start_paused = true)]
async fn one_deadline_bounds_the_acquire_and_says_how_things_stood() {
    let sim = Sim::default();
    let pool = open(builder(&sim, 1, 1).acquire_timeout(ms(200))).await;
    let _held = pool.acquire().await.unwrap();
    let began = Instant::now();
    let error = pool.acquire().await.unwrap_err();
    assert!((ms(200)..ms(203)).contains(&began.elapsed()));
    assert_eq!(error.code(), "pool_wait_timeout");
    let said = error.to_string();
    assert!(said.contains("(acquire_timeout): 1 of at most 1 in use; 0 others waiting"), "{said}");
    assert_eq!(pool.snapshot().acquires.timed_out, 1);
    assert_eq!(pool.snapshot().queue_depth, 0);
}

#[tokio::test(start_paused = true)]
async fn cancelled_wait_frees_its_queue_place() {
    let sim = Sim::default();
    let pool = open(builder(&sim, 1, 1).hard_cap(1)).await;
    let held = pool.acquire().await.unwrap();
    let mut wait = Box::pin(pool.acquire());
    assert!(poll_once(wait.as_mut()).is_pending());
    assert_eq!(pool.snapshot().queue_depth, 1);
    drop(wait);
    assert_eq!(pool.snapshot().queue_depth, 0);
    let mut next = Box::pin(pool.acquire());
    assert!(poll_once(next.as_mut()).is_pending(), "there is room again");
    drop(held);
    assert!(poll_once(next.as_mut()).is_ready());
    let acquires = pool.snapshot().acquires;
    assert_eq!((acquires.granted, acquires.cancelled), (2, 1));
    assert_adds_up(&acquires);
}

#[tokio::test(start_paused = true)]
async fn a_grant_cancelled_before_its_poll_is_cancelled_only_and_serves_the_next() {
    let sim = Sim::default();
    let pool = open(builder(&sim, 1, 1)).await;
    let held = pool.acquire().await.unwrap();
    let mut first = Box::pin(pool.acquire());
    let mut second = Box::pin(pool.acquire());
    assert!(poll_once(first.as_mut()).is_pending());
    assert!(poll_once(second.as_mut()).is_pending());
    drop(held);
    drop(first);
    assert!(poll_once(second.as_mut()).is_ready());
    let acquires = pool.snapshot().acquires;
    assert_eq!((acquires.granted, acquires.cancelled), (2, 1));
    assert_adds_up(&acquires);
}

#[tokio::test(start_paused = true)]
async fn queue_bound_no_more_than_hard_cap_wait() {
    let sim = Sim::default();
    let pool = open(builder(&sim, 1, 1).hard_cap(3)).await;
    let _held = pool.acquire().await.unwrap();
    let mut waits: Vec<_> = (0..5).map(|_| Box::pin(pool.acquire())).collect();
    let polled: Vec<_> = waits.iter_mut().map(|wait| poll_once(wait.as_mut())).collect();
    assert_eq!(pool.snapshot().queue_depth, 3);
    for refused in &polled[3..] {
        let Poll::Ready(Err(AcquireError::Shed(shed))) = refused else { panic!("{refused:?}") };
        assert_eq!((shed.reason, shed.queue_depth), (ShedReason::HardCap, 3));
        assert!(shed.retry_after >= Duration::from_secs(1));
    }
    assert_eq!(pool.snapshot().acquires.shed, 2);
}

#[tokio::test(start_paused = true)]
async fn try_acquire_never_waits_and_never_overtakes() {
    let sim = Sim::default();
    let pool = open(builder(&sim, 1, 1)).await;
    let held = pool.try_acquire().unwrap();
    let Err(AcquireError::Shed(shed)) = pool.try_acquire() else { panic!("there was one only") };
    assert_eq!(shed.reason, ShedReason::NoneIdle);
    let mut wait = Box::pin(pool.acquire());
    assert!(poll_once(wait.as_mut()).is_pending());
    drop(held);
    pool.try_acquire().expect_err("it is set aside for the waiter");
    assert!(poll_once(wait.as_mut()).is_ready());
    assert_adds_up(&pool.snapshot().acquires);
}

#[tokio::test(start_paused = true)]
async fn it_grows_while_people_queue_and_shrinks_when_nobody_does() {
    let sim = Sim::default();
    let pool = open(builder(&sim, 10, 50).controller(QueueDepth::default())).await;
    let users: Vec<_> = (0..60)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move {
                for _ in 0..40 {
                    let connection = pool.acquire().await.unwrap();
                    sleep(ms(20)).await;
                    drop(connection);
                }
            })
        })
        .collect();
    eventually(SOON, async || pool.snapshot().size == 50).await;
    assert!(matches!(
        pool.snapshot().last_decision.reason,
        Reason::QueueOverThreshold { .. } | Reason::AtMaxSize { .. } | Reason::Cooldown { .. }
    ));
    for user in users {
        user.await.unwrap();
    }
    eventually(Duration::from_secs(10), async || pool.snapshot().limit == 10).await;
    assert!(matches!(pool.snapshot().last_decision.reason, Reason::Drained { .. }));
    assert_eq!((sim.peak(), sim.dials(), pool.snapshot().reserve), (50, 50, 40), "kept for the next burst");
    eventually(Duration::from_secs(40), async || sim.open() == 10).await;
    assert_adds_up(&pool.snapshot().acquires);
}

#[tokio::test(start_paused = true)]
async fn ceiling_counts_what_the_server_has_not_let_go() {
    let sim = Sim::default();
    sim.lingers(ms(500));
    let pool = open(builder(&sim, 4, 4)).await;
    for _ in 0..20 {
        let all = take(&pool, 4).await;
        for connection in &all {
            connection.set(ConnectionState::Dead);
        }
        drop(all);
        let seen = pool.snapshot();
        assert_eq!((seen.closing, seen.size), (4, 4), "thrown away is not yet gone");
    }
    assert_eq!(sim.peak(), 4);
}

#[tokio::test(start_paused = true)]
async fn permits_are_connections_one_that_died_while_idle_costs_its_caller_only_the_next() {
    let sim = Sim::default();
    let pool = open(builder(&sim, 3, 3)).await;
    let all = take(&pool, 3).await;
    let remotes: Vec<_> = all.iter().map(|connection| connection.remote()).collect();
    drop(all);
    // The one that is handed out first.
    *remotes[2].lock().unwrap() = ConnectionState::Dead;
    let got = pool.acquire().await.unwrap();
    let acquires = pool.snapshot().acquires;
    assert_eq!((acquires.started, acquires.granted), (4, 4));
    drop(got);
    eventually(SOON, async || pool.snapshot().idle == 3).await;
}

#[tokio::test(start_paused = true)]
async fn who_finds_only_dead_connections_goes_to_the_head_of_the_queue() {
    let sim = Sim::default();
    sim.dial_takes(ms(100));
    let pool = open(builder(&sim, 1, 1)).await;
    let only = pool.acquire().await.unwrap();
    let remote = only.remote();
    drop(only);
    *remote.lock().unwrap() = ConnectionState::Check;
    sim.go_down(true);
    // Granted the one that needs a check, and checking.
    let mut first = Box::pin(pool.acquire());
    assert!(poll_once(first.as_mut()).is_pending());
    let mut second = Box::pin(pool.acquire());
    assert!(poll_once(second.as_mut()).is_pending());
    sleep(ms(2)).await;
    assert!(poll_once(first.as_mut()).is_pending(), "the check failed: back in line");
    assert_eq!(pool.snapshot().queue_depth, 2);
    sim.go_down(false);
    let got = timeout(SOON, first).await.unwrap().unwrap();
    assert!(poll_once(second.as_mut()).is_pending(), "it keeps its turn");
    drop(got);
    assert!(poll_once(second.as_mut()).is_ready());
    let acquires = pool.snapshot().acquires;
    assert_eq!((acquires.started, acquires.granted), (3, 3));
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_check_discards_the_connection_and_counts_as_cancelled_only() {
    let sim = Sim::default();
    let pool = open(builder(&sim, 1, 1)).await;
    pool.acquire().await.unwrap().set(ConnectionState::Check);
    let mut wait = Box::pin(pool.acquire());
    assert!(poll_once(wait.as_mut()).is_pending());
    drop(wait);
    let acquires = pool.snapshot().acquires;
    assert_eq!((acquires.started, acquires.granted, acquires.cancelled), (2, 1, 1));
    assert_eq!(pool.snapshot().in_use, 0);
    let _ = pool.acquire().await.unwrap();
    assert_eq!(sim.dials(), 2);
}

#[tokio::test(start_paused = true)]
async fn clean_hand_over_a_connection_in_doubt_is_settled_before_anybody_gets_it() {
    let sim = Sim::default();
    let pool = open(builder(&sim, 1, 1)).await;
    pool.acquire().await.unwrap().set(ConnectionState::Settle);
    assert_eq!((pool.snapshot().in_use, pool.snapshot().idle), (1, 0), "it keeps its permit");
    let settled = pool.acquire().await.unwrap();
    assert_eq!((settled.serial, sim.dials()), (0, 1), "the same connection");

    settled.set(ConnectionState::Settle);
    sim.go_down(true);
    drop(settled);
    eventually(SOON, async || sim.open() == 0).await;
    sim.go_down(false);
    assert_eq!(pool.acquire().await.unwrap().remote().lock().unwrap().to_owned(), ConnectionState::Ready);
}

#[tokio::test(start_paused = true)]
async fn one_failed_dial_answers_all_waiters_when_failing_fast() {
    let sim = Sim::default();
    sim.go_down(true);
    let pool = builder(&sim, 1, 1).fail_fast(true).build().unwrap();
    let waits: Vec<_> = (0..3)
        .map(|_| {
            tokio::spawn({
                let pool = pool.clone();
                async move { pool.acquire().await }
            })
        })
        .collect();
    let mut errors = Vec::new();
    for wait in waits {
        let error = wait.await.unwrap().unwrap_err();
        let AcquireError::Dial(source) = error else { panic!("{error}") };
        errors.push(source);
    }
    assert!(Arc::ptr_eq(&errors[0], &errors[1]) && Arc::ptr_eq(&errors[1], &errors[2]), "shared");
    assert_adds_up(&pool.snapshot().acquires);
}

#[tokio::test(start_paused = true)]
async fn lowering_max_size_closes_as_connections_come_back_and_sends_nobody_away() {
    let sim = Sim::default();
    let pool = open(builder(&sim, 8, 8)).await;
    let held = take(&pool, 8).await;
    let mut wait = Box::pin(pool.acquire());
    assert!(poll_once(wait.as_mut()).is_pending());
    pool.gate().set_size(2, 3).unwrap();
    assert_eq!(pool.snapshot().in_use, 8, "nothing is taken from anybody");
    sim.forget_peak();
    drop(held);
    assert!(poll_once(wait.as_mut()).is_ready(), "the waiter was served");
    eventually(SOON, async || sim.open() <= 3).await;
    assert_eq!(sim.peak(), 8, "never rising");
    pool.gate().set_size(5, 9).unwrap();
    eventually(SOON, async || sim.open() == 5).await;
}

#[tokio::test(start_paused = true)]
async fn drain_serves_those_who_wait_and_resolves_when_the_server_has_let_go() {
    let sim = Sim::default();
    sim.lingers(ms(50));
    let pool = open(builder(&sim, 2, 2)).await;
    let held = take(&pool, 2).await;
    let mut wait = Box::pin(pool.acquire());
    assert!(poll_once(wait.as_mut()).is_pending());
    let draining = tokio::spawn({
        let pool = pool.clone();
        async move { pool.drain(SOON).await }
    });
    eventually(SOON, async || matches!(pool.try_acquire(), Err(AcquireError::Closed))).await;
    drop(held);
    let Poll::Ready(served) = poll_once(wait.as_mut()) else { panic!("a waiter is still served") };
    drop(served.unwrap());
    draining.await.unwrap().unwrap();
    assert_eq!(sim.open(), 0);
    assert_adds_up(&pool.snapshot().acquires);
}

#[tokio::test(start_paused = true)]
async fn drain_goes_on_when_its_future_is_dropped() {
    let sim = Sim::default();
    let pool = open(builder(&sim, 1, 1).acquire_timeout(SOON * 10)).await;
    let held = pool.acquire().await.unwrap();
    let mut waiting = Box::pin(pool.acquire());
    assert!(poll_once(waiting.as_mut()).is_pending());
    assert!(timeout(ms(10), pool.drain(ms(100))).await.is_err(), "dropped half-way");

    assert!(matches!(pool.acquire().await, Err(AcquireError::Closed)));
    sleep(ms(200)).await;
    assert!(poll_once(waiting.as_mut()).is_pending(), "its deadline went with it");
    drop(held);
    let served = waiting.await.expect("who waited is served");
    assert!(timeout(ms(10), pool.drain(SOON)).await.is_err(), "it is still out");
    drop(served);
    pool.drain(SOON).await.expect("a second call waits on");
    assert_eq!(sim.open(), 0);
    assert_adds_up(&pool.snapshot().acquires);
}

#[tokio::test(start_paused = true)]
async fn a_limiters_drain_goes_on_when_its_future_is_dropped() {
    let limiter = Limiter::builder().fixed_size(1).build().unwrap();
    let held = limiter.acquire().await.unwrap();
    assert!(timeout(ms(10), limiter.drain(SOON)).await.is_err(), "dropped half-way");
    assert!(matches!(limiter.acquire().await, Err(AcquireError::Closed)));
    drop(held);
    limiter.drain(SOON).await.expect("a second call waits on");
    assert_eq!(limiter.gate().snapshot().size, 0);
}

#[tokio::test(start_paused = true)]
async fn drain_ends_at_its_deadline_and_answers_those_who_still_wait() {
    let sim = Sim::default();
    let pool = open(builder(&sim, 1, 1)).await;
    let held = pool.acquire().await.unwrap();
    let waiting = tokio::spawn({
        let pool = pool.clone();
        async move { pool.acquire().await }
    });
    eventually(SOON, async || pool.snapshot().queue_depth == 1).await;
    let error = pool.drain(ms(100)).await.unwrap_err();
    assert_eq!((error.in_use, error.opening, error.closing), (1, 0, 0));
    assert!(matches!(waiting.await.unwrap(), Err(AcquireError::Closed)));
    drop(held);
    eventually(SOON, async || sim.open() == 0).await;
}

#[tokio::test(start_paused = true)]
async fn dropping_the_pool_closes_it_and_a_connection_may_outlive_it() {
    let sim = Sim::default();
    let pool = open(builder(&sim, 3, 3)).await;
    let gate = pool.gate().clone();
    let held = pool.acquire().await.unwrap();
    drop(pool);
    assert_eq!(sim.open(), 3, "a connection keeps its pool");
    drop(held);
    eventually(SOON, async || sim.open() == 0).await;
    assert_eq!(gate.snapshot().acquires.granted, 1, "the ledger outlives the pool");
}

/// Grows at once, and rests as soon as nobody waits.
struct Wide;

impl Controller for Wide {
    fn on_sample(&mut self, _: std::time::Instant, sample: &Sample) -> Decision {
        let limit = if sample.queue_depth > 0 { sample.max_size } else { sample.base_limit };
        let reason = if limit == sample.limit { Reason::Steady } else { Reason::Custom("wide") };
        Decision { limit, reason }
    }
}

#[tokio::test(start_paused = true)]
async fn idle_connections_over_min_size_close_after_idle_timeout_though_the_driver_rests() {
    let (sim, told) = (Sim::default(), IdleClosed::default());
    let builder = builder(&sim, 2, 8).controller(Wide).idle_timeout(ms(5_000)).observer(told.clone());
    let pool = open(builder).await;
    let mut held = take(&pool, 8).await;
    let early = held.split_off(3);
    drop(early);
    sleep(ms(1_000)).await;
    drop(held);
    sleep(ms(3_900)).await;
    let seen = pool.snapshot();
    assert_eq!(
        (sim.open(), seen.limit, seen.idle, seen.reserve),
        (8, 2, 2, 6),
        "the limit fell and nothing closed"
    );
    eventually(ms(300), async || sim.open() == 3).await;
    eventually(ms(1_200), async || sim.open() == 2).await;
    sleep(ms(60_000)).await;
    assert_eq!(sim.open(), 2, "min_size");
    assert_eq!(*told.0.lock().unwrap(), [5, 1], "the longest free went first, each when its time came");
    assert_eq!(pool.snapshot().last_decision.reason, Reason::Custom("wide"), "it moves no limit");
}

/// How many connections were closed for idleness, each time.
#[derive(Clone, Default)]
struct IdleClosed(Arc<Mutex<Vec<usize>>>);

impl Observer for IdleClosed {
    fn on_event(&self, _: &Gate, event: &Event<'_>) {
        if let Event::IdleClosed { closed, .. } = event {
            self.0.lock().unwrap().push(*closed);
        }
    }
}

/// Counts how often it is asked.
struct Counting(Arc<AtomicUsize>);

impl Controller for Counting {
    fn on_sample(&mut self, _: std::time::Instant, sample: &Sample) -> Decision {
        self.0.fetch_add(1, SeqCst);
        Decision { limit: sample.limit, reason: Reason::Steady }
    }
}

#[tokio::test(start_paused = true)]
async fn a_pool_at_rest_costs_nothing_the_driver_is_parked() {
    let sim = Sim::default();
    let ticks = Arc::new(AtomicUsize::new(0));
    let pool = open(builder(&sim, 2, 8).controller(Counting(ticks.clone()))).await;
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(ticks.load(SeqCst), 0);

    let held = pool.acquire().await.unwrap();
    sleep(ms(100)).await;
    drop(held);
    sleep(ms(100)).await;
    let busy = ticks.load(SeqCst);
    assert!((9..=13).contains(&busy), "ticks every 10 ms while something is held: {busy}");
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(ticks.load(SeqCst), busy);
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_nobody_fetches_is_a_hold_with_its_place_and_ends_when_it_is_dropped() {
    struct Told(Arc<Mutex<Vec<Hold>>>);
    impl Observer for Told {
        fn on_event(&self, _: &Gate, event: &Event<'_>) {
            if let Event::HeldForLong { hold, .. } = event {
                self.0.lock().unwrap().push(*hold);
            }
        }
    }
    let told = Arc::new(Mutex::new(Vec::new()));
    let builder = Limiter::builder().fixed_size(1).acquire_timeout(ms(900)).leak_warning_after(ms(500));
    let limiter = builder.observer(Told(told.clone())).build().unwrap();
    let held = limiter.acquire().await.unwrap();
    let (mut unfetched, line) = (Box::pin(limiter.acquire()), line!());
    assert!(poll_once(unfetched.as_mut()).is_pending());
    drop(held);
    sleep(ms(700)).await;
    let Err(AcquireError::Timeout(error)) = limiter.acquire().await.map(drop) else { panic!("it is held") };
    let oldest = error.oldest_hold.expect("1 of 1 in use");
    assert_eq!(oldest.acquired_at.line(), line);
    let told = told.lock().unwrap().clone();
    assert!(matches!(told[..], [hold] if hold.acquired_at.line() == line), "{told:?}");
    drop(unfetched);
    let free = limiter.acquire().await.expect("it goes on to the next");
    drop(free);
    let (waiting, held) = (limiter.acquire(), limiter.try_acquire().unwrap());
    drop((waiting, held));
    sleep(ms(2_000)).await;
    assert_eq!(limiter.gate().snapshot().in_use, 0);
}

#[tokio::test(start_paused = true)]
async fn watch_shows_the_pool_at_the_drivers_pace() {
    let sim = Sim::default();
    let pool = open(builder(&sim, 1, 4)).await;
    let mut seen = pool.gate().watch();
    let _ = seen.get();
    let held = pool.acquire().await.unwrap();
    assert!(timeout(ms(20), seen.changed()).await.unwrap());
    assert_eq!(seen.get().in_use, 1);
    drop(held);
    assert!(timeout(ms(20), seen.changed()).await.unwrap());
    assert_eq!(seen.get().in_use, 0);
}

#[tokio::test(start_paused = true)]
async fn a_limiter_is_the_same_without_connections() {
    let law = QueueDepth { threshold: 1, ..QueueDepth::default() };
    let limiter = Limiter::builder()
        .min_size(2)
        .max_size(3)
        .hard_cap(2)
        .acquire_timeout(ms(500))
        .controller(law)
        .build()
        .unwrap();
    let first = limiter.try_acquire().unwrap();
    let second = limiter.acquire().await.unwrap();
    assert!(limiter.try_acquire().is_err());
    // One waits: the law grows it by one, and there it ends.
    let third = timeout(ms(30), limiter.acquire()).await.unwrap().unwrap();
    assert_eq!(limiter.acquire().await.unwrap_err().code(), "pool_wait_timeout");
    let seen = limiter.gate().snapshot();
    assert_eq!((seen.size, seen.in_use, seen.closing), (3, 3, 0));
    drop((first, second, third));
    eventually(Duration::from_secs(5), async || limiter.gate().snapshot().size == 2).await;
    assert_adds_up(&limiter.gate().snapshot().acquires);
    limiter.drain(SOON).await.unwrap();
    assert!(matches!(limiter.acquire().await, Err(AcquireError::Closed)));
}

#[tokio::test(start_paused = true)]
async fn a_connection_guard_gives_what_it_guards() {
    let sim = Sim::default();
    let pool = open(builder(&sim, 1, 1)).await;
    let mut guard = pool.acquire().await.unwrap();
    let connection: &mut Conn = &mut guard;
    assert_eq!(connection.serial, 0);
}

#[tokio::test(start_paused = true)]
async fn dials_belong_to_the_pool_a_cancelled_caller_wastes_no_handshake() {
    let sim = Sim::default();
    sim.dial_takes(ms(100));
    let pool = builder(&sim, 1, 1).build().unwrap();
    let mut wait = Box::pin(pool.acquire());
    assert!(poll_once(wait.as_mut()).is_pending());
    sleep(ms(50)).await;
    drop(wait);
    sleep(ms(60)).await;
    assert_eq!((pool.snapshot().idle, sim.dials()), (1, 1));
    let _ = pool.try_acquire().unwrap();
}

#[test]
fn laws_are_pure_nothing_in_them_names_a_clock_a_lock_or_a_die() {
    let mut paths = vec![PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src/law"))];
    while let Some(path) = paths.pop() {
        if path.is_dir() {
            paths.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        if path.components().any(|part| part.as_os_str() == "tests") || path.ends_with("tests.rs") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let law = text.split("#[cfg(test)]").next().unwrap();
        for impure in [
            "Instant::now",
            "SystemTime",
            "Mutex",
            "Atomic",
            "tokio",
            "async ",
            "rand::",
            "RandomState",
            "std::io",
        ] {
            assert!(!law.contains(impure), "{impure} in {}", path.display());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn drain_ends_when_the_last_who_waited_has_left() {
    let sim = Sim::default();
    sim.go_down(true);
    let pool = builder(&sim, 1, 1).acquire_timeout(SOON).build().unwrap();
    let waiting = tokio::spawn({
        let pool = pool.clone();
        async move { pool.acquire().await }
    });
    eventually(SOON, async || pool.snapshot().queue_depth == 1).await;
    let began = Instant::now();
    pool.drain(Duration::from_secs(60)).await.unwrap();
    assert!(began.elapsed() < SOON * 2, "{:?}", began.elapsed());
    assert_eq!(waiting.await.unwrap().unwrap_err().code(), "pool_dial_failed", "told before the last pause");
    pool.ready().await.expect_err("it will not be any more, and says so at once");
    assert!(began.elapsed() < SOON * 2);
}

#[tokio::test(start_paused = true)]
async fn drain_tells_what_is_out_when_its_deadline_comes() {
    let sim = Sim::default();
    sim.lingers(Duration::from_secs(10));
    let pool = open(builder(&sim, 1, 1)).await;
    let held = pool.acquire().await.unwrap();
    let giving_back = tokio::spawn(async move {
        sleep(ms(500)).await;
        drop(held);
    });
    let error = pool.drain(SOON).await.unwrap_err();
    assert_eq!((error.in_use, error.opening, error.closing), (0, 0, 1));
    giving_back.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn nobody_gets_a_new_connection_from_a_pool_that_is_closed() {
    let sim = Sim::default();
    let pool = open(builder(&sim, 1, 1)).await;
    let held = pool.acquire().await.unwrap();
    let remote = held.remote();
    let mut granted = Box::pin(pool.acquire());
    assert!(poll_once(granted.as_mut()).is_pending());
    drop(held);
    pool.drain(ms(10)).await.unwrap_err();
    // It was set aside for this one, who has not looked yet; meanwhile it died.
    *remote.lock().unwrap() = ConnectionState::Dead;
    let Poll::Ready(Err(AcquireError::Closed)) = poll_once(granted.as_mut()) else { panic!("it was closed") };
    eventually(SOON, async || sim.open() == 0).await;
    assert_eq!(sim.dials(), 1);
    assert_adds_up(&pool.snapshot().acquires);
}

#[tokio::test(start_paused = true)]
async fn a_controller_that_panics_is_told_and_asked_again() {
    struct Nervous(usize);
    impl Controller for Nervous {
        fn on_sample(&mut self, _: std::time::Instant, sample: &Sample) -> Decision {
            self.0 += 1;
            assert!(self.0 != 2, "the controller panics, as asked");
            Decision { limit: sample.limit, reason: Reason::Steady }
        }
    }
    let sim = Sim::default();
    let pool = open(builder(&sim, 1, 5).controller(Nervous(0))).await;
    let _held = pool.acquire().await.unwrap();
    eventually(SOON, async || pool.snapshot().last_decision.reason == Reason::ControllerPanicked).await;
    assert_eq!(pool.snapshot().limit, 1);
    let mut seen = pool.watch();
    let _ = seen.get();
    assert!(timeout(ms(30), seen.changed()).await.expect("the driver goes on"));
}

async fn shows(watch: &mut SnapshotWatch, what: impl Fn(&Snapshot) -> bool) {
    while !what(&watch.get()) {
        assert!(watch.changed().await, "the gate is there");
    }
}

#[tokio::test(start_paused = true)]
async fn watch_shows_what_happens_while_the_driver_rests() {
    let sim = Sim::default();
    let pool = builder(&sim, 3, 5).build().unwrap();
    let mut seen = pool.watch();
    timeout(SOON, shows(&mut seen, |seen| seen.idle == 3)).await.unwrap();
    pool.gate().set_size(4, 5).unwrap();
    timeout(SOON, shows(&mut seen, |seen| seen.idle == 4)).await.unwrap();
    sim.go_down(true);
    pool.gate().set_size(5, 5).unwrap();
    timeout(SOON, shows(&mut seen, |seen| seen.dial_failures > 0)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_pool_at_rest_shrinks_when_its_min_size_is_lowered() {
    let sim = Sim::default();
    let pool =
        AdaptivePool::builder(sim.clone()).min_size(6).max_size(6).idle_timeout(ms(5_000)).build().unwrap();
    pool.ready().await.unwrap();
    sleep(SOON).await;
    pool.gate().set_size(2, 6).unwrap();
    eventually(Duration::from_secs(10), async || sim.open() == 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_adds_up_whenever_it_is_taken() {
    /// Gives its place up before it says that it failed, as one does whose host cannot be reached.
    struct Unreachable;
    impl Backend for Unreachable {
        type Connection = ();
        type Error = std::io::Error;
        async fn dial(&self, place: Place) -> Result<(), std::io::Error> {
            drop(place);
            Err(std::io::Error::other("unreachable"))
        }
        fn state(&self, (): &()) -> ConnectionState {
            ConnectionState::Ready
        }
    }
    for _ in 0..200 {
        let pool = AdaptivePool::builder(Unreachable).fixed_size(8).max_dialing(8).build().unwrap();
        while pool.snapshot().dial_failures == 0 {
            let seen = pool.snapshot();
            assert_eq!(seen.size, seen.in_use + seen.idle + seen.reserve + seen.opening + seen.closing);
            assert!(seen.size <= 8);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn clean_hand_over_what_was_idle_for_long_is_checked_first_and_what_was_not_is_not() {
    let sim = Sim::default();
    let pool = open(builder(&sim, 2, 2)).await;
    for pause in [ms(0), ms(5), ms(300)] {
        sleep(pause).await;
        drop(pool.acquire().await.unwrap());
        assert_eq!(sim.checks(), 0, "after {pause:?}");
    }
    sleep(ms(600)).await;
    drop(pool.acquire().await.unwrap());
    assert_eq!(sim.checks(), 1, "half a second is too long");
    drop(pool.acquire().await.unwrap());
    assert_eq!(sim.checks(), 1, "proven again");

    sleep(ms(600)).await;
    let _ = pool.try_acquire().unwrap();
    assert_eq!(sim.checks(), 1, "try_acquire never checks");
}

#[tokio::test(start_paused = true)]
async fn a_black_holed_pool_keeps_nobody_past_the_deadline() {
    let sim = Sim::default();
    let pool = open(builder(&sim, 1, 1).acquire_timeout(ms(400))).await;
    sleep(SOON).await;
    sim.go_silent();
    sim.dial_takes(ms(10_000));
    let began = Instant::now();
    assert_eq!(pool.acquire().await.unwrap_err().code(), "pool_wait_timeout");
    assert!((ms(400)..ms(403)).contains(&began.elapsed()), "{:?}", began.elapsed());
    assert_adds_up(&pool.snapshot().acquires);
}

#[tokio::test(start_paused = true)]
async fn a_silent_connection_is_given_up_while_there_is_time_to_open_another() {
    for (timeout, given_up) in [(300, 100), (2_000, 667), (10_000, 1_000)] {
        let sim = Sim::default();
        let pool = open(builder(&sim, 1, 1).acquire_timeout(ms(timeout))).await;
        sleep(SOON).await;
        sim.go_silent();
        let began = Instant::now();
        drop(pool.acquire().await.unwrap());
        assert!((ms(given_up)..ms(given_up + 20)).contains(&began.elapsed()), "{:?}", began.elapsed());
        assert_adds_up(&pool.snapshot().acquires);
    }
}

/// Connections that a middlebox has forgotten: they do not answer, and the server is not told that they were closed.
async fn forgotten(sim: &Sim, builder: Builder<Sim>, after: Duration) -> AdaptivePool<Sim> {
    let pool = open(builder).await;
    sleep(SOON).await;
    sim.go_silent();
    sim.lingers(after);
    pool
}

#[tokio::test(start_paused = true)]
async fn ten_forgotten_connections_cost_a_lone_caller_one_check_and_no_time_out() {
    let sim = Sim::default();
    let builder = builder(&sim, 10, 20).acquire_timeout(ms(2_000));
    let pool = forgotten(&sim, builder, ms(60_000)).await;
    let began = Instant::now();
    let held = pool.acquire().await.unwrap();
    assert!((ms(667)..ms(690)).contains(&began.elapsed()), "{:?}", began.elapsed());
    assert_eq!(sim.checks(), 1, "one silence tells of all");
    assert!(held.serial >= 10, "a fresh one");
    eventually(SOON, async || pool.snapshot().idle == 9).await;
    let seen = pool.snapshot();
    assert_eq!((seen.closing, seen.size, sim.open()), (10, 20, 20), "until the server has let go");
    assert_eq!((seen.acquires.granted, seen.acquires.timed_out), (1, 0));
    assert_adds_up(&seen.acquires);
}

#[tokio::test(start_paused = true)]
async fn ceiling_a_pool_of_forgotten_connections_opens_no_others_before_their_places_are_free() {
    let sim = Sim::default();
    let builder = builder(&sim, 10, 10).acquire_timeout(ms(2_000));
    let pool = forgotten(&sim, builder, ms(3_000)).await;
    assert_eq!(pool.acquire().await.unwrap_err().code(), "pool_wait_timeout");
    assert_eq!((pool.snapshot().closing, sim.peak()), (10, 10));
    assert!(pool.acquire().await.unwrap().serial >= 10);
    assert_eq!((sim.checks(), sim.peak()), (1, 10));
}

#[tokio::test(start_paused = true)]
async fn what_was_used_during_a_check_in_vain_is_good_for_the_one_who_checked() {
    let sim = Sim::default();
    let pool = open(builder(&sim, 2, 4).acquire_timeout(ms(2_000))).await;
    let held = pool.acquire().await.unwrap();
    sleep(SOON).await;
    sim.go_silent();
    let (proven, acquire) = (
        held.serial,
        tokio::spawn({
            let pool = pool.clone();
            async move { pool.acquire().await.unwrap().serial }
        }),
    );
    sleep(ms(300)).await;
    drop(held);
    assert_eq!(acquire.await.unwrap(), proven);
    eventually(SOON, async || pool.snapshot().idle == 2).await;
    assert_eq!((sim.checks(), sim.dials()), (1, 3), "one was silent, one was replaced");
}

#[tokio::test(start_paused = true)]
async fn who_has_less_time_than_a_check_finds_out_for_the_others() {
    let sim = Sim::default();
    let builder = builder(&sim, 10, 20).acquire_timeout(ms(60));
    let pool = forgotten(&sim, builder, ms(60_000)).await;
    let began = Instant::now();
    assert_eq!(pool.acquire().await.unwrap_err().code(), "pool_wait_timeout");
    assert!((ms(60)..ms(63)).contains(&began.elapsed()), "{:?}", began.elapsed());
    drop(pool.acquire().await.unwrap());
    assert_eq!(sim.checks(), 1);
    assert_adds_up(&pool.snapshot().acquires);
}

#[tokio::test(start_paused = true)]
async fn who_comes_back_to_a_full_queue_never_pushes_out_a_higher_class() {
    for (comes_back, waits, shed) in [
        (Class::Background, Class::Critical, Class::Background),
        (Class::Critical, Class::Background, Class::Background),
        (Class::High, Class::High, Class::High),
    ] {
        let sim = Sim::default();
        let pool = open(builder(&sim, 1, 1).hard_cap(1)).await;
        sleep(SOON).await;
        let acquire = |class| {
            let pool = pool.clone();
            tokio::spawn(async move { pool.acquire_with(class).await.map(|_| class) })
        };
        // Idle for long, it is checked, and turns out to be dead; meanwhile the queue fills up.
        sim.go_down(true);
        let checking = acquire(comes_back);
        yield_now().await;
        let waiting = acquire(waits);
        yield_now().await;
        assert_eq!((sim.checks(), pool.snapshot().queue_depth), (1, 1), "one is checking, the other waits");
        sleep(ms(2)).await;
        sim.go_down(false);
        let (checking, waiting) = (checking.await.unwrap(), waiting.await.unwrap());
        let refused: Vec<_> =
            [&checking, &waiting].into_iter().filter_map(|outcome| outcome.as_ref().err()).collect();
        assert!(
            matches!(refused[..], [AcquireError::Shed(Shed { class, .. })] if *class == shed),
            "{comes_back} came back, {waits} waited: {refused:?}"
        );
        assert_adds_up(&pool.snapshot().acquires);
    }
}

#[tokio::test(start_paused = true)]
async fn no_connection_grows_older_than_max_lifetime_and_they_do_not_all_go_at_once() {
    let sim = Sim::default();
    let lifetime = Duration::from_secs(100);
    let _pool = open(builder(&sim, 20, 20).max_lifetime(lifetime)).await;
    // At rest: nobody comes, and they are replaced all the same.
    sleep(lifetime.mul_f64(0.89)).await;
    assert_eq!(sim.dials(), 20, "none goes before nine tenths of it");
    sleep(lifetime.mul_f64(0.065)).await;
    let replaced = sim.dials() - 20;
    assert!((2..18).contains(&replaced), "in the middle of the jitter some have gone: {replaced}");
    sleep(lifetime.mul_f64(0.105)).await;
    assert_eq!((sim.dials(), sim.open()), (40, 20), "all have gone once, and it is kept warm");

    // In use: it goes when it comes back.
    let pool = open(builder(&Sim::default(), 1, 1).max_lifetime(ms(1_000))).await;
    let held = pool.acquire().await.unwrap();
    sleep(ms(2_000)).await;
    let old = held.serial;
    drop(held);
    assert_ne!(pool.acquire().await.unwrap().serial, old);
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_replaced_after_max_uses() {
    let sim = Sim::default();
    let pool = open(builder(&sim, 1, 1).max_uses(3)).await;
    let mut serials = Vec::new();
    for _ in 0..7 {
        serials.push(pool.acquire().await.unwrap().serial);
    }
    assert_eq!(serials, [0, 0, 0, 1, 1, 1, 2]);
    assert_eq!(sim.peak(), 1);
}

/// What an observer was told of long holds.
#[derive(Clone, Default)]
struct LongHolds(Arc<Mutex<Vec<Hold>>>);

impl Observer for LongHolds {
    fn on_event(&self, _: &Gate, event: &Event<'_>) {
        if let Event::HeldForLong { hold, .. } = event {
            self.0.lock().unwrap().push(*hold);
        }
    }
}

impl LongHolds {
    fn take(&self) -> Vec<Hold> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

#[tokio::test(start_paused = true)]
async fn a_hold_over_the_bound_is_told_once_with_the_place_where_it_was_acquired() {
    let told = LongHolds::default();
    let pool = open(builder(&Sim::default(), 2, 2).leak_warning_after(ms(500)).observer(told.clone())).await;
    // After a rest, when the driver's own time is old.
    sleep(SOON * 10).await;
    let (leaked, line) = (pool.acquire().await.unwrap(), line!());
    let brief = pool.try_acquire().unwrap();
    sleep(ms(450)).await;
    drop(brief);
    assert_eq!(told.take(), [], "not yet, and never for who gave it back in time");
    sleep(ms(200)).await;
    let [hold] = told.take()[..] else { panic!("told once") };
    assert_eq!((hold.acquired_at.file(), hold.acquired_at.line()), (file!(), line));
    assert!((ms(490)..ms(660)).contains(&hold.held), "{hold:?}");
    sleep(SOON * 10).await;
    assert_eq!(told.take(), [], "once");
    drop(leaked);
    let (_again, line) = (pool.acquire().await.unwrap(), line!());
    sleep(SOON).await;
    let [hold] = told.take()[..] else { panic!("told once for each hold") };
    assert_eq!(hold.acquired_at.line(), line);
}

#[tokio::test(start_paused = true)]
async fn a_limiters_permits_are_watched_as_well() {
    let told = LongHolds::default();
    let limiter = Limiter::builder().fixed_size(1).leak_warning_after(ms(500));
    let limiter = limiter.observer(told.clone()).acquire_timeout(ms(100)).build().unwrap();
    let (_permit, line) = (limiter.acquire().await.unwrap(), line!());
    sleep(SOON).await;
    assert_eq!(told.take().first().map(|hold| hold.acquired_at.line()), Some(line));
    let Err(AcquireError::Timeout(timeout)) = limiter.acquire().await else { panic!("there is only one") };
    assert_eq!(timeout.oldest_hold.map(|hold| hold.acquired_at.line()), Some(line));
}

#[tokio::test(start_paused = true)]
async fn a_pool_of_one_that_waits_for_itself_fails_at_its_deadline_and_says_who_holds_it() {
    let pool = open(builder(&Sim::default(), 1, 1).acquire_timeout(ms(700))).await;
    let (_held, line) = (pool.acquire().await.unwrap(), line!());
    sleep(ms(300)).await;
    let started = Instant::now();
    let error = pool.acquire().await.unwrap_err();
    assert!((ms(700)..ms(710)).contains(&started.elapsed()), "{:?}", started.elapsed());
    let said = error.to_string();
    let place = format!("acquired at {}:{line}:", file!());
    assert!(said.contains("1 of at most 1 in use") && said.contains(&place), "{said}");
    let AcquireError::Timeout(timeout) = error else { panic!("{said}") };
    let held = timeout.oldest_hold.unwrap().held;
    assert!((ms(990)..=ms(1_010)).contains(&held), "{held:?}");
}

#[tokio::test(start_paused = true)]
async fn one_deadline_is_kept_whatever_the_drivers_pace_and_the_order_of_the_queue() {
    for timeout in [1, 7, 19, 20, 21, 33, 250] {
        let pool = open(builder(&Sim::default(), 1, 1).acquire_timeout(ms(timeout))).await;
        let _held = pool.acquire().await.unwrap();
        let waits = (0..20).map(|index| {
            let pool = pool.clone();
            tokio::spawn(async move {
                sleep(ms(index * 3)).await;
                let started = Instant::now();
                let error = pool.acquire().await.unwrap_err();
                (error.code(), started.elapsed())
            })
        });
        for wait in waits.collect::<Vec<_>>() {
            let (code, waited) = wait.await.unwrap();
            assert_eq!(code, "pool_wait_timeout");
            assert!((ms(timeout)..=ms(timeout + 1)).contains(&waited), "{waited:?} of {timeout} ms");
        }
        assert_adds_up(&pool.snapshot().acquires);
    }
}

/// Not on virtual time: two runtimes have two clocks.
#[test]
fn one_deadline_is_kept_though_the_runtime_of_the_pool_is_gone() {
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (pools, callers) = (runtime(), runtime());
    let limiter = {
        let _inside = pools.enter();
        Limiter::builder().fixed_size(1).acquire_timeout(ms(200)).build().unwrap()
    };
    let _held = limiter.try_acquire().unwrap();
    let waiting = callers.spawn({
        let limiter = limiter.clone();
        async move { limiter.acquire().await.unwrap_err().code() }
    });
    callers.block_on(eventually(SOON, async || limiter.gate().snapshot().queue_depth == 1));
    pools.shutdown_timeout(SOON);
    callers.block_on(async {
        assert_eq!(timeout(SOON, waiting).await.unwrap().unwrap(), "pool_wait_timeout");
        let late = timeout(SOON, limiter.acquire()).await.unwrap();
        assert_eq!(late.unwrap_err().code(), "pool_wait_timeout");
    });
    assert_adds_up(&limiter.gate().snapshot().acquires);
}

#[tokio::test(start_paused = true)]
async fn an_acquire_polled_after_its_end_says_so_and_harms_nothing() {
    let pool = open(builder(&Sim::default(), 1, 1)).await;
    let mut acquire = Box::pin(pool.acquire());
    drop(acquire.as_mut().await.unwrap());
    let again = catch_unwind(AssertUnwindSafe(|| poll_once(acquire.as_mut()).is_ready()));
    let said = again.unwrap_err();
    assert!(said.downcast_ref::<&str>().unwrap().contains("after completion"));
    assert!(pool.acquire().await.is_ok());
    assert_adds_up(&pool.snapshot().acquires);
}

#[tokio::test(start_paused = true)]
async fn waiters_learn_at_once_that_no_dial_begins_within_their_time() {
    let sim = Sim::default();
    // A dial takes 3 ms, and pauses double up to between 150 and 300 ms.
    let pool = open(builder(&sim, 1, 1).acquire_timeout(ms(100))).await;
    sim.go_down(true);
    sim.dial_takes(ms(1));
    let held = pool.acquire().await.unwrap();
    held.set(ConnectionState::Dead);
    drop(held);
    eventually(SOON * 10, async || pool.snapshot().dial_failures > 6).await;

    let (mut in_vain, mut longest) = (0, Duration::ZERO);
    for _ in 0..50 {
        let started = Instant::now();
        let error = pool.acquire().await.unwrap_err();
        longest = longest.max(started.elapsed());
        let AcquireError::Dial(why) = &error else { panic!("{error}") };
        assert_eq!(why.to_string(), "the simulated server is down");
        in_vain += u64::from(started.elapsed() == Duration::ZERO);
        sleep(ms(7)).await;
    }
    assert!(in_vain > 15, "{in_vain} of 50 were told at once");
    assert!(longest <= ms(101), "{longest:?}");

    sim.go_down(false);
    eventually(SOON, async || pool.acquire().await.is_ok()).await;
    assert_adds_up(&pool.snapshot().acquires);
}

#[tokio::test(start_paused = true)]
async fn a_use_is_measured_though_its_connection_ends_with_it() {
    let ends = [
        ("used up", ConnectionState::Ready, ms(20)),
        ("dead", ConnectionState::Dead, ms(20)),
        // The round trip that would have settled it is a part of the hold.
        ("unsettled", ConnectionState::Settle, ms(21)),
    ];
    for (how, end, use_time) in ends {
        let sim = Sim::default();
        let uses = if end == ConnectionState::Ready { 1 } else { 1_000 };
        let pool = open(builder(&sim, 2, 2).max_uses(uses)).await;
        for _ in 0..40 {
            let held = pool.acquire().await.unwrap();
            sleep(ms(20)).await;
            held.set(end);
            sim.go_down(end == ConnectionState::Settle);
            drop(held);
            // Time for the settling, and then for another connection.
            sleep(ms(5)).await;
            sim.go_down(false);
        }
        let seen = pool.snapshot();
        assert_eq!(seen.use_time, Some(use_time), "{how}: after {} grants", seen.acquires.granted);
        assert!(sim.dials() > 40, "{how}: {} dials", sim.dials());
    }
}
