//! Demand and throughput by themselves.

use super::*;
use crate::law::paid_growth::demand::Demand;
use crate::law::paid_growth::throughput::{Seen, Throughput};

/// So many uses of so many seconds.
fn uses(count: u32, seconds: f64) -> UseTimes {
    let mut uses = UseTimes::default();
    (0..count).for_each(|_| uses.add(seconds));
    uses
}

fn seen(limit: usize, completions: u32, use_s: f64) -> Seen {
    let seconds = f64::from(completions) * use_s / limit as f64;
    Seen { limit, completions: f64::from(completions), seconds, uses: uses(completions, use_s) }
}

#[test]
fn the_need_is_littles_law_with_room_for_scatter() {
    let (mut demand, mut now) = (Demand::default(), Instant::now());
    assert!(demand.need(1_000.0, 0, None).is_infinite(), "nothing is known");
    for _ in 0..1_000 {
        now += TICK;
        let sample = Sample { in_use: 2, completions: 2, use_times: uses(2, 0.010), ..Sample::default() };
        demand.observe(now, &sample);
    }
    let need = demand.need(1_000.0, 0, demand.unloaded());
    assert!((need - (11.0 + 10.0f64.sqrt())).abs() < 0.3, "{need}");
}

#[test]
fn the_need_of_a_mix_counts_its_long_uses_and_not_what_the_load_adds() {
    let (mut demand, mut now) = (Demand::default(), Instant::now());
    // One connection has a query of 10 ms a tick, the other one of 200 ms every twenty; in the end all take twice as long.
    let mut feed = |ticks: u64, slower: u64, queue_depth: usize| {
        for tick in 1..=ticks {
            now += TICK;
            let mut use_times = UseTimes::default();
            let short = u64::from(tick % slower == 0);
            let long = u64::from(tick % (20 * slower) == 0);
            (0..short).for_each(|_| use_times.add(0.010 * slower as f64));
            (0..long).for_each(|_| use_times.add(0.200 * slower as f64));
            let sample =
                Sample { in_use: 2, queue_depth, completions: short + long, use_times, ..Sample::default() };
            demand.observe(now, &sample);
        }
        demand.need(100.0, 0, demand.unloaded())
    };
    let mean: f64 = (20.0 * 0.010 + 0.200) / 21.0;
    let expected = 1.1 * 100.0 * mean + (100.0 * mean).sqrt();
    let unloaded = feed(2_000, 1, 0);
    assert!((unloaded / expected - 1.0).abs() < 0.1, "{unloaded} for {expected}");
    let loaded = feed(4_000, 2, 5);
    assert!((loaded / expected - 1.0).abs() < 0.15, "{loaded} for {expected}");
}

#[test]
fn late_ticks_do_not_make_a_use_seem_shorter() {
    let (mut demand, mut now) = (Demand::default(), Instant::now());
    for look in 1..=400u32 {
        let ticks = if look.is_multiple_of(10) { 15 } else { 1 };
        now += TICK * ticks;
        let completions = u64::from(2 * ticks);
        let sample =
            Sample { in_use: 2, completions, use_times: uses(2 * ticks, 0.010), ..Sample::default() };
        demand.observe(now, &sample);
    }
    let need = demand.need(1_000.0, 0, None);
    assert!((need - (11.0 + 10.0f64.sqrt())).abs() < 0.4, "{need}");
}

#[test]
fn logarithms_tell_a_slower_database_where_counts_cannot() {
    let mut model = Throughput::new();
    // One query in a hundred takes 200 times as long: the count scatters sixty times as much as Poisson's.
    model.set_scatter(60.0, 0.3);
    let (ten, twenty) = (seen(10, 500, 0.010), seen(20, 500, 0.020));
    let ratio = model.ln_ratio(&ten, &twenty);
    assert!(ratio.value.abs() < 0.05 && ratio.error < 0.1, "twice the connections do the same: {ratio:?}");
    let counted = |seen: Seen| Seen { uses: UseTimes::default(), ..seen };
    let ratio = model.ln_ratio(&counted(ten), &counted(twenty));
    assert!(ratio.error > 0.4, "{ratio:?}");
}

#[test]
fn a_database_that_halves_is_noticed_and_the_other_limits_are_scaled_and_doubted() {
    let mut model = Throughput::new();
    model.set_scatter(1.0, 1.0);
    let stay = |model: &mut Throughput, limit: usize, per_tick: u32, use_s: f64, ticks: usize| {
        model.begin(limit);
        (0..ticks).for_each(|_| model.add(f64::from(per_tick), 0.010, uses(per_tick, use_s)));
    };
    stay(&mut model, 10, 10, 0.010, 100);
    stay(&mut model, 20, 20, 0.010, 100);
    assert_eq!(model.changed(), None);
    stay(&mut model, 20, 10, 0.020, 40);
    let faster = model.changed().expect("half as fast");
    assert!((faster + 2.0f64.ln()).abs() < 0.1, "{faster}");
    let ten = model.of(10).unwrap();
    assert!(ten.completions <= 30.0 && (ten.completions / ten.seconds / 500.0 - 1.0).abs() < 0.1, "{ten:?}");
}

#[test]
fn what_was_seen_is_forgotten_after_time_and_completions() {
    let (mut model, now) = (Throughput::new(), Instant::now());
    model.decay(now, 0);
    model.begin(10);
    (0..100).for_each(|_| model.add(10.0, 0.010, uses(10, 0.010)));
    model.decay(now + Duration::from_secs(20), 0);
    assert!(model.of(10).unwrap().completions > 950.0, "few have ended since");
    model.decay(now + Duration::from_secs(40), 4_000);
    let half = model.of(10).unwrap();
    assert!((half.completions / 500.0 - 1.0).abs() < 0.05, "{half:?}");
    model.decay(now + Duration::from_secs(40_000), 0);
    assert_eq!(model.of(10), None, "a night is a long time, whatever was completed");
}

#[test]
fn the_table_holds_what_it_can_and_keeps_what_it_knows_best() {
    let mut model = Throughput::new();
    model.begin(1_000);
    (0..100).for_each(|_| model.add(10.0, 0.010, UseTimes::default()));
    for limit in 1..500 {
        model.begin(limit);
        model.add(1.0, 0.010, UseTimes::default());
    }
    assert!(model.of(1_000).is_some() && model.of(499).is_some());
    assert_eq!(model.known().count(), 64);
}
