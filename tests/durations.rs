//! Every setting that is a time may be as short or as long as a `Duration` can be: the shortest is refused or works, the
//! longest means never.

mod support;

use std::time::Duration;

use support::sim::Sim;
use tokio::time::sleep;
use tower_adaptive_pool::{AdaptivePool, Builder, Limiter, PaidGrowth, QueueDepth, Snapshot};

type Set = fn(Builder<Sim>, Duration) -> Builder<Sim>;

const SETTINGS: [(&str, Set); 10] = [
    ("acquire_timeout", |builder, time| builder.acquire_timeout(time)),
    ("max_retry_after", |builder, time| builder.max_retry_after(time)),
    ("dial_timeout", |builder, time| builder.dial_timeout(time)),
    ("idle_timeout", |builder, time| builder.idle_timeout(time)),
    ("check_after", |builder, time| builder.check_after(time)),
    ("max_lifetime", |builder, time| builder.max_lifetime(Some(time))),
    ("leak_warning_after", |builder, time| builder.leak_warning_after(Some(time))),
    ("cooldown", |builder, time| builder.controller(QueueDepth { cooldown: time, ..QueueDepth::default() })),
    ("shrink_after", |builder, time| {
        builder.controller(QueueDepth { shrink_after: time, ..QueueDepth::default() })
    }),
    ("shrink_after", |builder, time| {
        builder.controller(PaidGrowth { shrink_after: time, ..PaidGrowth::default() })
    }),
];

/// Twenty who each hold a connection for 5 ms, thirty times, and a rest.
async fn use_it(pool: &AdaptivePool<Sim>) {
    let callers = (0..20).map(|_| {
        let pool = pool.clone();
        tokio::spawn(async move {
            for _ in 0..30 {
                if let Ok(held) = pool.acquire().await {
                    sleep(Duration::from_millis(5)).await;
                    drop(held);
                }
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
    sleep(Duration::from_secs(2)).await;
}

#[tokio::test(start_paused = true)]
async fn each_time_that_can_be_set_may_be_the_shortest_and_the_longest_there_is() {
    for (name, set) in SETTINGS {
        let build = |time| set(AdaptivePool::builder(Sim::default()).min_size(2).max_size(8), time).build();
        match build(Duration::ZERO) {
            Err(error) => assert_eq!(error.to_string(), format!("{name} (0 s) must be longer than zero")),
            Ok(_) => assert_eq!(name, "check_after", "zero is no time"),
        }
        for time in [Duration::from_nanos(1), Duration::from_millis(u64::MAX), Duration::MAX] {
            let pool = build(time).unwrap();
            use_it(&pool).await;
            let Snapshot { driven, in_use, acquires, .. } = pool.snapshot();
            assert!(driven && in_use == 0, "{name} {time:?}");
            let ends =
                acquires.granted + acquires.shed + acquires.timed_out + acquires.cancelled + acquires.failed;
            assert_eq!(acquires.started, ends, "{name} {time:?}");
            if time > Duration::from_secs(1) {
                assert_eq!(acquires.granted, 600, "{name} {time:?}");
            }
        }
    }
}

/// An O(n²) of 64,000 would take seconds; this takes a few hundredths of one.
#[tokio::test]
async fn building_many_permits_takes_no_longer_for_each_the_more_there_are() {
    let took = |permits| {
        let began = std::time::Instant::now();
        drop(Limiter::builder().fixed_size(permits).build().unwrap());
        began.elapsed()
    };
    took(1_000);
    let few: Duration = (0..5).map(|_| took(4_000)).min().unwrap();
    let many: Duration = (0..5).map(|_| took(64_000)).min().unwrap();
    assert!(many < few * 16 * 4, "16 times as many: {few:?}, {many:?}");
}
