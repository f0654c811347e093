//! How the limit moves now that a move costs no dial: at which pace, for whom who waits, and back to rest.

use super::*;

#[test]
fn growth_to_where_nothing_was_seen_yet_goes_a_few_connections_a_tick() {
    let mut bench = Bench::new();
    bench.sample = Sample { limit: 10, base_limit: 10, arrivals: 59, ..bench.sample };
    let mut last = 10;
    for decision in bench.run(100, |size| size / 0.006) {
        assert!(decision.limit <= last + PACE, "{last} to {decision:?}");
        last = decision.limit;
    }
    assert!(last >= 45, "{last}");
}

#[test]
fn where_growth_is_known_to_pay_the_limit_goes_at_once() {
    let mut bench = Bench::new();
    bench.sample.arrivals = 120;
    bench.run(200, |size| size * 160.0);
    assert_eq!(bench.sample.limit, 50);
    // Nothing waits for a while, and then the same load comes again.
    let waiting = std::mem::replace(&mut bench.sample.queue_depth, 0);
    for _ in 0..1_000 {
        bench.now += TICK;
        bench.sample = Sample { in_use: 0, peak_in_use: 0, completions: 0, arrivals: 0, ..bench.sample };
        bench.sample.limit = bench.law.on_sample(bench.now, &bench.sample).limit;
    }
    assert_eq!(bench.sample.limit, 2, "base_limit");
    (bench.sample.queue_depth, bench.sample.arrivals) = (waiting, 120);
    let limits: Vec<_> = bench.run(60, |size| size * 160.0).iter().map(|decision| decision.limit).collect();
    let leap = limits.windows(2).any(|pair| pair[1] > pair[0] + PACE);
    assert!(leap && limits.last() >= Some(&45), "{limits:?}");
}

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
        let _ = bench.law.on_sample(bench.now, &bench.sample);
    }
    bench.sample =
        Sample { in_use: 10, peak_in_use: 10, completions: 0, queue_depth: waiting, ..bench.sample };
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
fn what_was_shown_of_shorter_uses_holds_for_half_a_second_and_no_longer() {
    let mut bench = stuck(8);
    bench.sample.impatient = true;
    bench.law.trials.cap(bench.now, 11);
    let mut limits = Vec::new();
    for _ in 0..90 {
        bench.now += TICK;
        let decision = bench.law.on_sample(bench.now, &bench.sample);
        bench.sample.limit = decision.limit;
        (bench.sample.in_use, bench.sample.peak_in_use) = (decision.limit, decision.limit);
        limits.push(decision.limit);
    }
    assert!(limits[35] <= 10, "it may be a database that stands still: {limits:?}");
    assert!(limits[89] >= 18, "nobody times out below the ceiling: {limits:?}");
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
