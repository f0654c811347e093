//! The law as a table, and under input that no pool should give it.

use proptest::prelude::*;

use super::*;
use crate::law::Phase;

mod limit;
mod models;

const TICK: Duration = Duration::from_millis(10);

/// A pool over a database that completes what `rate` says for a size, in the mean and without scatter, while more
/// arrive than it can do.
struct Bench {
    law: PaidGrowthController,
    now: Instant,
    sample: Sample,
    owed: f64,
}

impl Bench {
    fn new() -> Self {
        let sample = Sample {
            queue_depth: 150,
            limit: 2,
            min_limit: 2,
            base_limit: 2,
            max_size: 50,
            hard_cap: 200,
            arrivals: 40,
            ..Sample::default()
        };
        Self { law: PaidGrowthController::new(PaidGrowth::default()), now: Instant::now(), sample, owed: 0.0 }
    }

    fn tick(&mut self, rate: impl Fn(f64) -> f64) -> Decision {
        let size = self.sample.limit;
        self.now += TICK;
        let rate = rate(size as f64);
        self.owed += rate * TICK.as_secs_f64();
        self.sample.completions = self.owed as u64;
        self.owed -= self.sample.completions as f64;
        (self.sample.in_use, self.sample.peak_in_use) = (size, size);
        let use_s = size as f64 / rate;
        self.sample.use_time = Some(Duration::from_secs_f64(use_s));
        self.sample.use_times = UseTimes::default();
        (0..self.sample.completions).for_each(|_| self.sample.use_times.add(use_s));
        let decision = self.law.on_sample(self.now, &self.sample);
        self.sample.limit = decision.limit;
        decision
    }

    fn run(&mut self, ticks: usize, rate: impl Fn(f64) -> f64) -> Vec<Decision> {
        (0..ticks).map(|_| self.tick(&rate)).collect()
    }
}

/// A database whose throughput is highest at 12 connections.
fn knee_at_12(size: f64) -> f64 {
    let wide = size / 12.0;
    2_000.0 * 2.0 * wide / (1.0 + wide * wide)
}

#[test]
fn it_grows_to_the_end_where_every_connection_pays() {
    let mut bench = Bench::new();
    bench.sample.arrivals = 120;
    bench.run(100, |size| size * 160.0);
    assert_eq!(bench.sample.limit, 50);
}

#[test]
fn it_finds_the_knee_and_holds_it() {
    let mut bench = Bench::new();
    bench.run(1_000, knee_at_12);
    let held: Vec<_> = bench.run(2_000, knee_at_12).iter().map(|decision| decision.limit).collect();
    let mean = held.iter().sum::<usize>() as f64 / held.len() as f64;
    assert!((9.0..=15.0).contains(&mean), "held {mean}");
}

#[test]
fn growth_that_did_not_pay_is_taken_back_and_says_why() {
    let mut bench = Bench::new();
    let decisions = bench.run(500, |size| if size <= 8.0 { size * 100.0 } else { 6_400.0 / size });
    let back = decisions.iter().find(|decision| matches!(decision.reason, Reason::TakenBack { .. }));
    let Some(Decision { reason: Reason::TakenBack { from, to, elasticity, error }, limit }) = back else {
        panic!("never taken back: {:?}", decisions.last());
    };
    assert!(*elasticity < 0.1 && error.is_finite() && from > to && limit == to);
    assert!(bench.sample.limit <= 10, "{}", bench.sample.limit);
}

#[test]
fn the_first_growth_has_no_evidence_and_says_so() {
    let decisions = Bench::new().run(20, knee_at_12);
    let first = decisions.iter().find(|decision| decision.limit > 2).map(|decision| decision.reason);
    assert!(matches!(first, Some(Reason::FollowDemand { queue_depth: 150, needed: 3.., .. })), "{first:?}");
}

#[test]
fn a_step_of_arrivals_is_met_in_a_few_tenths_of_a_second() {
    let mut bench = Bench::new();
    bench.sample = Sample { limit: 10, min_limit: 10, base_limit: 10, queue_depth: 0, ..bench.sample };
    bench.run(50, |size| size / 0.006);
    (bench.sample.queue_depth, bench.sample.arrivals) = (150, 59);
    let limits: Vec<_> = bench.run(30, |size| size / 0.006).iter().map(|decision| decision.limit).collect();
    assert!(limits.iter().max() >= Some(&45), "{limits:?}");
}

#[test]
fn a_probe_and_what_came_of_it_carry_their_figures() {
    let mut bench = Bench::new();
    let reasons: Vec<_> = bench.run(3_000, knee_at_12).iter().map(|decision| decision.reason).collect();
    assert!(reasons.iter().any(|reason| matches!(reason, Reason::Probe { from, to } if from != to)));
    let ended = |reason: &Reason| match *reason {
        Reason::ProbeEnded { elasticity, error, .. } | Reason::ProbeKept { elasticity, error, .. } => {
            elasticity < 1.1 && error.is_finite()
        }
        _ => false,
    };
    assert!(reasons.iter().any(ended));
    let phases: Vec<_> = reasons.iter().filter_map(Reason::phase).collect();
    assert!([Phase::FollowDemand, Phase::Hold, Phase::Probe].iter().all(|phase| phases.contains(phase)));
}

#[test]
fn a_share_is_corrected_for() {
    let (mut whole, mut eighth) = (Bench::new(), Bench::new());
    eighth.sample.share = 0.125;
    // An instance of eight that grows at the knee takes from the others: its own throughput goes up all the same.
    let own = |size: f64| 2_000.0 * size / (size + 21.0);
    whole.run(1_000, own);
    eighth.run(1_000, own);
    assert!(whole.sample.limit > 2 * eighth.sample.limit, "{} {}", whole.sample.limit, eighth.sample.limit);
}

#[test]
fn what_does_not_pay_is_taken_back_while_acquires_time_out() {
    let mut bench = Bench::new();
    bench.run(30, |size| size * 100.0);
    let before = bench.sample.limit;
    bench.sample.timeouts = 50;
    let decisions = bench.run(500, |_| 300.0);
    let most = decisions.iter().map(|decision| decision.limit).max();
    assert!(decisions.iter().any(|decision| matches!(decision.reason, Reason::TakenBack { .. })));
    assert!(bench.sample.limit <= before && most > Some(before), "{} after {before}", bench.sample.limit);
}

#[test]
fn without_completions_nothing_grows_past_the_need() {
    let mut bench = Bench::new();
    bench.run(300, knee_at_12);
    let before = bench.sample.limit;
    bench.sample.completions = 0;
    for _ in 0..500 {
        bench.now += TICK;
        let decision = bench.law.on_sample(bench.now, &bench.sample);
        bench.sample.limit = decision.limit;
    }
    assert!(bench.sample.limit <= before.max(14), "{} after {before}", bench.sample.limit);
}

#[test]
fn failures_that_come_at_once_do_not_look_like_throughput() {
    let mut bench = Bench::new();
    for _ in 0..1_000 {
        bench.sample.failures = 20;
        let decision = bench.tick(|size| size * 1_000.0);
        assert!(matches!(decision.reason, Reason::Vetoed { .. }), "{decision:?}");
    }
    assert_eq!(bench.sample.limit, 2);
}

#[test]
fn failed_dials_veto_growth_and_timeouts_do_not() {
    for (dial_failures, timeouts, grown) in [(1, 0, false), (0, 10, true)] {
        let mut bench = Bench::new();
        (bench.sample.dial_failures, bench.sample.timeouts) = (dial_failures, timeouts);
        bench.run(200, |size| size * 100.0);
        assert_eq!(bench.sample.limit > 2, grown, "{}", bench.sample.limit);
    }
}

#[test]
fn a_database_that_halves_is_noticed_and_the_pool_finds_its_size_again() {
    let mut bench = Bench::new();
    bench.run(2_000, knee_at_12);
    bench.run(3_000, |size| {
        let wide = size / 6.0;
        1_000.0 * 2.0 * wide / (1.0 + wide * wide)
    });
    assert!((4..=9).contains(&bench.sample.limit), "{}", bench.sample.limit);
}

#[test]
fn an_idle_pool_shrinks_to_what_was_used_at_most_15_percent_at_a_time() {
    let mut bench = Bench::new();
    bench.sample.limit = 50;
    (bench.sample.queue_depth, bench.sample.arrivals) = (0, 0);
    let mut last = 50;
    for _ in 0..1_000 {
        bench.now += TICK;
        bench.sample.in_use = 4;
        bench.sample.limit = bench.law.on_sample(bench.now, &bench.sample).limit;
        assert!(bench.sample.limit as f64 >= (last as f64 * 0.85).floor());
        last = bench.sample.limit;
    }
    assert_eq!(last, 5);
}

#[test]
fn a_clock_that_stands_still_or_jumps_leaves_the_target_in_bounds() {
    let mut bench = Bench::new();
    bench.run(200, knee_at_12);
    let now = bench.now;
    for at in [now, now, now + Duration::from_secs(86_400), now, now + TICK] {
        for queue_depth in [0, 1, usize::MAX] {
            bench.sample.queue_depth = queue_depth;
            assert!((2..=50).contains(&bench.law.on_sample(at, &bench.sample).limit));
        }
    }
}

#[test]
fn after_a_clock_was_set_back_it_finds_the_knee_again() {
    let mut bench = Bench::new();
    bench.now += Duration::from_secs(86_400);
    bench.run(1_000, knee_at_12);
    bench.now -= Duration::from_secs(86_400);
    bench.sample.limit = 2;
    bench.run(1_000, knee_at_12);
    assert!((8..=16).contains(&bench.sample.limit), "{}", bench.sample.limit);
}

#[test]
fn a_max_size_lowered_under_the_present_use_is_obeyed_at_once() {
    let mut bench = Bench::new();
    bench.sample.arrivals = 120;
    bench.run(200, |size| size * 160.0);
    bench.sample.max_size = 5;
    assert!(bench.tick(|size| size * 160.0).limit <= 5);
    bench.run(500, |size| size * 160.0).iter().for_each(|decision| assert!(decision.limit <= 5));
}

#[test]
fn a_law_that_is_not_followed_claims_no_evidence_and_still_works_afterwards() {
    let mut bench = Bench::new();
    bench.sample.limit = 8;
    for _ in 0..2_000 {
        let decision = bench.tick(knee_at_12);
        assert!(
            !matches!(decision.reason, Reason::TakenBack { .. } | Reason::ProbeKept { .. }),
            "{decision:?}"
        );
        bench.sample.limit = 8; // as in a dry run
    }
    bench.run(2_000, knee_at_12);
    assert!((9..=15).contains(&bench.sample.limit), "{}", bench.sample.limit);
}

fn count() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), 0u64..100, Just(u64::MAX), any::<u64>()]
}

fn size() -> impl Strategy<Value = usize> {
    prop_oneof![Just(0), 0usize..100, Just(usize::MAX)]
}

fn number() -> impl Strategy<Value = f64> {
    prop_oneof![Just(1.0), Just(0.0), Just(f64::NAN), Just(f64::INFINITY), -10.0f64..10.0]
}

prop_compose! {
    fn any_sample()(
        (queue_depth, in_use, peak_in_use, idle, opening) in (size(), size(), size(), size(), 0usize..3),
        (limit, min_limit, base, above, hard_cap) in (size(), 1usize..60, 0usize..60, 0usize..60, size()),
        (arrivals, completions, failures) in (count(), count(), count()),
        (timeouts, dial_failures, refused) in (count(), 0u64..2, count()),
        use_time in prop::option::of(prop_oneof![Just(Duration::ZERO), Just(Duration::MAX),
            (0u64..1_000_000_000).prop_map(Duration::from_nanos)]),
        share in prop_oneof![Just(1.0), Just(0.0), Just(f64::NAN), 0.0f64..1.0],
        (saturated, impatient) in (any::<bool>(), any::<bool>()),
        (use_time_scatter, count, ln_sum, ln_squares) in (number(), number(), number(), number()),
    ) -> Sample {
        let in_use = if saturated { limit } else { in_use };
        Sample {
            queue_depth, impatient, in_use, peak_in_use, idle, reserve: 0, opening, limit, min_limit,
            base_limit: min_limit + base.min(above), max_size: min_limit + above, hard_cap,
            arrivals, refused, completions, failures, timeouts, dial_failures, use_time, share,
            use_time_scatter, use_times: UseTimes { count, ln_sum, ln_squares },
        }
    }
}

proptest! {
    /// Whatever it is told, with counters that wrapped and clocks that jump: no panic, and a limit in bounds.
    #[test]
    fn nothing_it_is_told_makes_it_leave_its_bounds(
        told in prop::collection::vec((any_sample(), 1usize..30, 0u64..400), 1..40),
    ) {
        let mut law = PaidGrowthController::new(PaidGrowth::default());
        let mut now = Instant::now();
        for (mut sample, times, millis) in told {
            for _ in 0..times {
                now += Duration::from_millis(millis);
                let limit = law.on_sample(now, &sample).limit;
                prop_assert!((sample.min_limit..=sample.max_size).contains(&limit));
                sample.limit = limit;
            }
        }
    }
}

#[test]
fn nonsense_is_forgotten_and_moves_nothing() {
    let nonsense: [fn(&mut Sample); 6] = [
        |sample| sample.use_times.ln_sum = f64::NAN,
        |sample| sample.use_times.count = -1.0,
        |sample| sample.use_times.count = sample.completions as f64 + 1.0,
        |sample| sample.use_time_scatter = f64::INFINITY,
        |sample| sample.completions = u64::MAX,
        |sample| sample.in_use = usize::MAX,
    ];
    for spoil in nonsense {
        let mut bench = Bench::new();
        bench.run(1_000, knee_at_12);
        assert!(bench.law.model.known().count() > 0);
        let mut sample = bench.sample;
        spoil(&mut sample);
        bench.now += TICK;
        assert_eq!(bench.law.on_sample(bench.now, &sample).limit, sample.limit, "{sample:?}");
        assert_eq!(bench.law.model.known().count(), 0, "{sample:?}");
    }
}

#[test]
fn a_tick_that_comes_ten_seconds_late_is_no_evidence() {
    let mut bench = Bench::new();
    bench.run(1_000, knee_at_12);
    let before: f64 = bench.law.model.known().map(|seen| seen.seconds).sum();
    bench.now += Duration::from_secs(10);
    let limit = bench.tick(knee_at_12).limit;
    let after: f64 = bench.law.model.known().map(|seen| seen.seconds).sum();
    assert!(after <= before && (2..=50).contains(&limit), "{before} {after}");
}
