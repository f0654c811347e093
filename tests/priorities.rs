//! Priorities hold in a full queue too: of those who wait, the youngest of the lowest class makes room for a higher one, in the
//! layer's verdict as in `acquire`. On virtual time.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use futures_util::FutureExt;
use support::line::{assert_ledgers_add_up, line_up_as, one_permit};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep};
use tower_adaptive_pool::{AcquireError, Class, Limiter, ShedReason, Verdict};

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[tokio::test(start_paused = true)]
async fn at_the_hard_cap_the_youngest_of_the_lowest_class_makes_room() {
    let limiter = one_permit(5, 5);
    let held = limiter.try_acquire().unwrap();
    let mut low = line_up_as(&limiter, Class::Low, 2);
    let mut exports = line_up_as(&limiter, Class::Background, 3);

    assert_eq!(limiter.gate().admit_with(Class::Critical), Verdict::Admit);
    assert!(matches!(limiter.gate().admit_with(Class::Background), Verdict::Shed(_)));
    let login = line_up_as(&limiter, Class::Critical, 1).pop().unwrap();
    let pushed_out = exports.pop().unwrap().now_or_never().expect("it is told at once").unwrap_err();
    let AcquireError::Shed(shed) = pushed_out else { panic!("{pushed_out}") };
    assert_eq!((shed.reason, shed.class), (ShedReason::HardCap, Class::Background));
    assert!(exports.iter_mut().chain(&mut low).all(|waits| waits.now_or_never().is_none()), "no other");
    assert_eq!(limiter.gate().snapshot().queue_depth, 5, "the bound holds");

    drop(held);
    drop(login.await.unwrap());
    for waits in low.into_iter().chain(exports) {
        drop(waits.await.unwrap());
    }
    assert_ledgers_add_up(&limiter.gate().snapshot());
}

#[tokio::test(start_paused = true)]
async fn nobody_makes_room_for_an_equal_or_a_lower_one() {
    let limiter = one_permit(3, 3);
    let _held = limiter.try_acquire().unwrap();
    let _line = line_up_as(&limiter, Class::Low, 3);
    for class in [Class::Low, Class::Background] {
        let Verdict::Shed(shed) = limiter.gate().admit_with(class) else { panic!("{class} is let in") };
        assert_eq!(shed.reason, ShedReason::HardCap);
        let refused = limiter.acquire_with(class).now_or_never().expect("it is told at once");
        assert!(matches!(refused, Err(AcquireError::Shed(shed)) if shed.reason == ShedReason::HardCap));
    }
    assert_eq!(limiter.gate().snapshot().queue_depth, 3);
}

#[tokio::test(start_paused = true)]
async fn whoever_makes_room_is_the_last_of_its_class_also_when_nobody_polls_it() {
    let limiter = one_permit(2, 2);
    let held = limiter.try_acquire().unwrap();
    let exports = line_up_as(&limiter, Class::Background, 2);
    let logins = line_up_as(&limiter, Class::Critical, 2);
    assert_eq!(limiter.gate().snapshot().queue_depth, 2);
    drop(exports); // their answers are never fetched
    drop(held);
    for login in logins {
        drop(login.await.unwrap());
    }
    let seen = limiter.gate().snapshot();
    assert_ledgers_add_up(&seen);
    assert_eq!((seen.in_use, seen.queue_depth, seen.acquires.cancelled), (0, 0, 2));
}

/// Served and refused, by class.
#[derive(Default)]
struct Counts {
    served: AtomicU64,
    refused: AtomicU64,
}

/// Ten permits of 50 ms, 200 a second: so many exports a second beside twenty logins, for twenty seconds.
async fn flood(exports: u64, layer: bool) -> (Arc<Counts>, Arc<Counts>) {
    let builder = Limiter::builder().fixed_size(10).soft_cap(100).hard_cap(200).seed(3);
    let limiter = builder.build().unwrap();
    let (low, high) = <(Arc<Counts>, Arc<Counts>)>::default();
    let mut all = JoinSet::new();
    let mut ask = |class: Class, counts: &Arc<Counts>| {
        let (limiter, counts) = (limiter.clone(), counts.clone());
        all.spawn(async move {
            let admitted = !layer || limiter.gate().admit_with(class) == Verdict::Admit;
            let permit = if admitted { limiter.acquire_with(class).await.ok() } else { None };
            if permit.is_some() {
                sleep(ms(50)).await;
            }
            let counter = if permit.is_some() { &counts.served } else { &counts.refused };
            counter.fetch_add(1, SeqCst);
        });
    };
    let (mut ticks, began) = (interval(ms(50)), Instant::now());
    while began.elapsed() < Duration::from_secs(20) {
        ticks.tick().await;
        for _ in 0..exports / 20 {
            ask(Class::Background, &low);
        }
        ask(Class::Critical, &high);
    }
    all.join_all().await;
    (low, high)
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_exports_refuses_no_login_with_the_layer_or_without() {
    for (exports, layer) in [(1_000, false), (1_000, true), (5_000, false), (5_000, true)] {
        let (low, high) = flood(exports, layer).await;
        let name = format!("{exports} exports a second, layer: {layer}");
        assert!(high.served.load(SeqCst) >= 400, "{name}");
        assert_eq!(high.refused.load(SeqCst), 0, "{name}");
        let (served, refused) = (low.served.load(SeqCst), low.refused.load(SeqCst));
        assert!(served >= 3_000 && refused > 10_000, "{name}: {served} served, {refused} refused");
    }
}

#[tokio::test(start_paused = true)]
async fn an_acquire_that_begins_in_a_full_queue_of_higher_ones_is_refused() {
    let limiter = one_permit(2, 2);
    let _held = limiter.try_acquire().unwrap();
    let _line = line_up_as(&limiter, Class::Critical, 2);
    for class in [Class::Exempt, Class::Critical, Class::High, Class::Low, Class::Background] {
        assert!(limiter.acquire_with(class).now_or_never().is_some_and(|refused| refused.is_err()));
    }
    assert_eq!(limiter.gate().snapshot().queue_depth, 2);
}
