//! How the limit moves behind uses that do not end, and back to rest.

use super::*;

/// Ten uses that do not end, with these many others waiting behind them.
fn stuck(waiting: usize) -> Bench {
    let mut bench = Bench::new();
    bench.sample.limit = 10;
    bench.sample.queue_depth = 0;
    bench.sample.arrivals = 1;
    for _ in 0..100 {
        bench.now += TICK;
        bench.sample = Sample { in_use: 1, peak_in_use: 1, completions: 1, ..bench.sample };
        bench.sample.use_time = Some(Duration::from_millis(4));
        bench.sample.use_times = UseTimes::default();
        bench.sample.use_times.add(0.004);
        let _ = bench.law.on_sample(bench.now, &bench.sample);
    }
    bench.sample =
        Sample { in_use: 10, peak_in_use: 10, completions: 0, queue_depth: waiting, ..bench.sample };
    bench.sample.use_times = UseTimes::default();
    bench
}

#[test]
fn whoever_waits_for_long_behind_uses_that_do_not_end_gets_a_connection() {
    for waiting in [1, 3, 8] {
        let mut bench = stuck(waiting);
        bench.sample.impatient = true;
        for _ in 0..60 {
            bench.now += TICK;
            let decision = bench.law.on_sample(bench.now, &bench.sample);
            bench.sample.limit = decision.limit;
            (bench.sample.in_use, bench.sample.peak_in_use) = (decision.limit, decision.limit);
        }
        assert!(bench.sample.limit >= 10 + waiting, "{} for {waiting} more", bench.sample.limit);
    }
}

#[test]
fn nobody_waits_for_long_and_few_wait_so_nothing_grows() {
    let mut bench = stuck(3);
    for _ in 0..5 {
        bench.now += TICK;
        assert_eq!(bench.law.on_sample(bench.now, &bench.sample).limit, 10);
    }
}

#[test]
fn growth_that_was_shown_not_to_pay_is_refused_to_whoever_waits_for_long_too() {
    let mut bench = Bench::new();
    bench.sample.impatient = true;
    let flat = |size: f64| size.min(8.0) * 100.0;
    bench.run(1_000, flat);
    let most = bench.run(1_000, flat).iter().map(|decision| decision.limit).max();
    assert!(most <= Some(16), "{most:?}");
}

#[test]
fn a_limit_below_base_limit_returns_there_when_nobody_has_waited_for_a_while() {
    let mut bench = Bench::new();
    bench.sample = Sample { limit: 3, base_limit: 10, queue_depth: 0, in_use: 3, ..bench.sample };
    let mut reasons = Vec::new();
    for _ in 0..60 {
        bench.now += TICK;
        let decision = bench.law.on_sample(bench.now, &bench.sample);
        bench.sample.limit = decision.limit;
        reasons.push(decision.reason);
    }
    assert_eq!(bench.sample.limit, 10);
    assert_eq!((reasons[40], reasons.contains(&Reason::Rested)), (Reason::Steady, true), "not at once");
}
