//! How long those refused are told to stay away, on virtual time: clients who wait for as long as they are told, and clients who
//! try again at once.

mod support;

use std::time::Duration;

use support::line::{assert_ledgers_add_up, line_up, one_permit};
use tokio::time::{Instant, sleep};
use tower_adaptive_pool::{AcquireError, Limiter, Verdict};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn ten_permits(seed: u64) -> Limiter {
    Limiter::builder().fixed_size(10).seed(seed).build().unwrap()
}

/// One request: served after `use_time` on a permit, or refused and told when to come back.
async fn ask(limiter: &Limiter, use_time: Duration) -> Result<(), Duration> {
    if let Verdict::Shed(shed) = limiter.gate().admit() {
        return Err(shed.retry_after);
    }
    match limiter.acquire().await {
        Ok(_permit) => {
            sleep(use_time).await;
            Ok(())
        }
        Err(AcquireError::Shed(shed)) => Err(shed.retry_after),
        Err(other) => panic!("neither served nor refused: {other}"),
    }
}

/// What one client who does as he is told has seen.
#[derive(Debug)]
struct Visit {
    told: Vec<Duration>,
    served: Instant,
}

/// Comes back when told to, until he is served.
async fn come_politely(limiter: Limiter, use_time: Duration) -> Visit {
    let mut told = Vec::new();
    while let Err(pause) = ask(&limiter, use_time).await {
        told.push(pause);
        sleep(pause).await;
    }
    Visit { told, served: Instant::now() }
}

/// Tries again after `pause`, whatever it is told, and when it was served too.
async fn hammer(limiter: Limiter, use_time: Duration, pause: Duration, until: Instant) {
    while Instant::now() < until {
        if ask(&limiter, use_time).await.is_err() {
            sleep(pause).await;
        }
    }
}

/// A polite client every 20 ms, while 400 others hammer for so long on ten permits of 6 ms.
async fn politely_among_the_impolite(seed: u64, pause: Duration, lasts: Duration) -> Vec<Visit> {
    const USE: Duration = Duration::from_millis(6);
    let limiter = ten_permits(seed);
    let until = Instant::now() + lasts;
    for _ in 0..400 {
        tokio::spawn(hammer(limiter.clone(), USE, pause, until));
    }
    let mut visits = Vec::new();
    while Instant::now() < until {
        sleep(ms(20)).await;
        visits.push(tokio::spawn(come_politely(limiter.clone(), USE)));
    }
    let mut seen = Vec::new();
    for visit in visits {
        seen.push(visit.await.unwrap());
    }
    assert_ledgers_add_up(&limiter.gate().snapshot());
    seen
}

#[tokio::test(start_paused = true)]
async fn clients_who_try_again_at_once_do_not_lengthen_the_time_of_those_who_wait() {
    // The queue drains in 0.12 s: 1 or 2 s are its time and a draw, in whole seconds. 200,000 refusals a second look like a herd
    // for a while.
    for (seed, pause, lasts, bound) in [(1, 2, 2, 6), (2, 5, 2, 3), (3, 5, 20, 3), (4, 50, 20, 2)] {
        let (pause, lasts, bound) = (ms(pause), ms(lasts * 1_000), ms(bound * 1_000));
        let began = Instant::now();
        let visits = politely_among_the_impolite(seed, pause, lasts).await;
        let told: Vec<_> = visits.iter().flat_map(|visit| &visit.told).collect();
        let (longest, last) = (told.iter().max().unwrap(), visits.iter().map(|visit| visit.served).max());
        println!("every {pause:?} for {lasts:?}: {} told, {longest:?} at the most", told.len());
        assert!(told.len() > visits.len() / 2, "every {pause:?}: hardly anybody was refused");
        assert!(**longest <= bound, "every {pause:?} for {lasts:?}: {longest:?}");
        let after = last.unwrap().saturating_duration_since(began + lasts);
        assert!(after <= bound + ms(300), "every {pause:?} for {lasts:?}: the last {after:?} afterwards");
    }
}

/// A herd of clients who all do as they are told: 5,000 within so long, on ten permits of 20 ms.
async fn herd(seed: u64, within: Duration, max_retry_after: Duration) -> Vec<Visit> {
    // Each wave comes on the second: a queue of a second of work keeps the permits busy until the next.
    let builder = Limiter::builder().fixed_size(10).soft_cap(500).hard_cap(500).seed(seed);
    let limiter = builder.max_retry_after(max_retry_after).build().unwrap();
    // So that the gate knows how long a use takes.
    ask(&limiter, ms(20)).await.unwrap();
    let herd: Vec<_> = (0..5_000)
        .map(|number| {
            let (limiter, comes) = (limiter.clone(), within.mul_f64(f64::from(number) / 5_000.0));
            tokio::spawn(async move {
                sleep(comes).await;
                come_politely(limiter, ms(20)).await
            })
        })
        .collect();
    let mut visits = Vec::new();
    for visit in herd {
        visits.push(visit.await.unwrap());
    }
    assert_ledgers_add_up(&limiter.gate().snapshot());
    visits
}

#[tokio::test(start_paused = true)]
async fn a_herd_of_polite_clients_is_spread_over_the_time_that_serving_it_takes() {
    for (seed, within) in [(1, 0), (2, 50), (3, 100), (4, 200), (5, 1000)] {
        let began = Instant::now();
        let visits = herd(seed, ms(within), ms(15_000)).await;
        let last = visits.iter().map(|visit| visit.served).max().unwrap() - began;
        let asked: usize = visits.iter().map(|visit| 1 + visit.told.len()).sum();
        let times = asked as f64 / visits.len() as f64;
        println!("within {within} ms: the last after {last:?}, each asked {times:.2} times");
        assert!(last <= ms(15_000), "5,000 at 500 a second: {last:?}");
        assert!(times < 3.5, "within {within} ms each asked {times:.2} times");
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_is_told_to_stay_away_for_longer_than_max_retry_after() {
    for (setting, longest) in [(3_000, 3), (3_900, 3), (1, 1), (900_000, 120)] {
        let visits = herd(1, ms(100), ms(setting)).await;
        let told: Vec<_> = visits.iter().flat_map(|visit| &visit.told).map(Duration::as_secs).collect();
        assert!(
            told.iter().all(|told| (1..=longest).contains(told)),
            "{setting} ms: {:?}",
            told.iter().max()
        );
        // The bound makes no herd of those whose draw was cut off.
        let at_bound = told.iter().filter(|&&told| told == longest).count();
        let part = at_bound as f64 / told.len() as f64;
        assert!(longest == 1 || part < 1.5 / longest as f64, "{setting} ms: {part:.2} of all at the bound");
    }
    // A queue of ten minutes.
    let limiter = one_permit(10, 10);
    for held in 0..2 {
        let permit = limiter.try_acquire().unwrap();
        sleep(ms(60_000 * (1 - held))).await;
        if held == 0 {
            continue;
        }
        let _line = line_up(&limiter, 10);
        let Verdict::Shed(shed) = limiter.gate().admit() else { panic!("the queue is full") };
        assert_eq!(shed.retry_after, ms(15_000), "the default");
        drop(permit);
    }
}

/// What those of 20,000 who come at once are told that are refused.
async fn crowd(limiter: &Limiter) -> Vec<Duration> {
    let asks: Vec<_> = (0..20_000)
        .map(|_| {
            let limiter = limiter.clone();
            tokio::spawn(async move { ask(&limiter, ms(20)).await })
        })
        .collect();
    let mut told = Vec::new();
    for ask in asks {
        told.extend(ask.await.unwrap().err());
    }
    told
}

#[tokio::test(start_paused = true)]
async fn what_was_refused_long_ago_lengthens_nobodys_time() {
    let limiter = ten_permits(1);
    ask(&limiter, ms(20)).await.unwrap();
    assert!(crowd(&limiter).await.len() > 19_000);
    let again = crowd(&limiter).await;
    assert!(again.iter().any(|&told| told > ms(10_000)), "they are expected back: {:?}", again.iter().max());
    sleep(ms(30_000)).await;
    let later = crowd(&limiter).await;
    assert!(later.iter().all(|&told| told <= ms(2_000)), "{:?}", later.iter().max());
}
