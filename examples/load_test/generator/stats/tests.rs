use super::*;

/// 100 requests a second in three phases of 2 s, all answered in 5 ms.
fn calm() -> (Vec<Phase>, Vec<Record>) {
    let phase = |name: &str| Phase { name: name.into(), rate_per_s: 100, seconds: 2 };
    let record =
        |k: u32| Record { intended_us: k * 10_000, lag_us: 50, latency_us: 5_000, outcome: Outcome::Served };
    (vec![phase("baseline"), phase("burst"), phase("after")], (0..600).map(record).collect())
}

fn recovery_of(spoil: impl Fn(&mut [Record])) -> Option<f64> {
    let (phases, mut records) = calm();
    spoil(&mut records[400..]);
    GeneratorReport::new(0.0, &phases, &records).total.recovery_s
}

#[test]
fn recovered_at_once_when_all_after_the_burst_are_served_in_time() {
    assert_eq!(recovery_of(|_| ()), Some(0.0));
    assert_eq!(
        recovery_of(|after| after[0].latency_us = 10_000),
        Some(0.0),
        "twice the baseline's p99 is still well"
    );
}

#[test]
fn recovery_counts_to_the_first_of_the_hundred_not_to_the_last() {
    let recovery = recovery_of(|after| {
        after[10].latency_us = 10_001;
        after[50].outcome = Outcome::Shed { retry_after: Some(1) };
    });
    assert_eq!(recovery, Some(0.51));
}

#[test]
fn never_recovered_without_a_hundred_in_a_row() {
    assert_eq!(recovery_of(|after| after[100].outcome = Outcome::Error), Some(0.0));
    let recovery = recovery_of(|after| {
        after[99].outcome = Outcome::Error;
        after[150].outcome = Outcome::Timeout;
    });
    assert_eq!(recovery, None);
}

#[test]
fn an_answer_that_never_came_or_came_too_late_is_an_error() {
    let second = Duration::from_secs(1);
    let mut record = Record::sent(second, second + Duration::from_micros(70));
    assert_eq!((record.lag_us, record.outcome), (70, Outcome::Error));
    record.answered(Outcome::Served, second + GIVE_UP + Duration::from_micros(1));
    assert_eq!(record.outcome, Outcome::Error);
    record.answered(Outcome::Served, 3 * second);
    assert_eq!((record.latency_us, record.outcome), (2_000_000, Outcome::Served));
}

#[test]
fn requests_are_binned_by_their_intended_send_time() {
    let (phases, mut records) = calm();
    records[10].latency_us = 3_000_000; // sent at 0.1 s, answered long after
    records[29].outcome = Outcome::Shed { retry_after: Some(1) };
    let timeline = GeneratorReport::new(0.0, &phases, &records).timeline;

    assert_eq!(timeline.len(), 60);
    assert!(timeline.iter().all(|moment| moment.offered == 10));
    assert_eq!((timeline[0].t_s, timeline[0].p99_ms), (0.0, Some(5.0)));
    assert_eq!((timeline[1].t_s, timeline[1].p99_ms), (0.1, Some(3_000.0)));
    assert_eq!((timeline[2].served, timeline[2].shed), (9, 1));
}

#[test]
fn outcomes_are_counted_in_the_phase_they_were_sent_in() {
    let (phases, mut records) = calm();
    records[199].outcome = Outcome::Shed { retry_after: None };
    records[200].latency_us = 100_001;
    let report = GeneratorReport::new(0.0, &phases, &records);
    let [baseline, burst, _] = &report.phases[..] else { panic!("three phases") };

    assert_eq!(
        (baseline.figures.offered, baseline.figures.shed, baseline.figures.shed_without_retry_after),
        (200, 1, 1)
    );
    assert_eq!((burst.figures.served, burst.figures.within_100ms), (200, 199));
    assert_eq!((report.total.offered, report.total.served, report.total.within_100ms), (600, 599, 598));
}

#[test]
fn an_answer_after_the_end_of_its_phase_is_no_throughput() {
    let (phases, mut records) = calm();
    records[100].latency_us = 1_000_000; // sent at 1 s: the phase ends with its answer
    records[101].latency_us = 1_000_000; // answered just after
    records[199].latency_us = 50_000;
    records[599].latency_us = 50_000; // after the load, too
    records[300].outcome = Outcome::Timeout;
    let report = GeneratorReport::new(0.0, &phases, &records);
    let phases: Vec<_> = report.phases.iter().map(|phase| phase.figures.in_phase).collect();

    assert_eq!(phases[0], InPhase { served: 198, within_100ms: 197 });
    assert_eq!(phases[1], InPhase { served: 199, within_100ms: 199 });
    assert_eq!(phases[2], InPhase { served: 199, within_100ms: 199 });
    // Only the last phase's end is the end of the load.
    assert_eq!(report.total.in_phase, InPhase { served: 598, within_100ms: 596 });
    assert_eq!((report.phases[0].figures.served, report.total.served), (200, 599));
}

#[test]
fn without_a_calm_phase_after_another_nothing_recovers() {
    let (phases, records) = calm();
    let report = GeneratorReport::new(0.0, &phases[..2], &records[..400]);
    assert_eq!(report.total.recovery_s, None);
}

#[test]
fn quantiles_are_values_that_occurred() {
    let values: Vec<u32> = (1..=1_000).map(|ms| ms * 1_000).collect();
    assert_eq!(quantile_ms(&values, 0.5), Some(500.0));
    assert_eq!(quantile_ms(&values, 0.999), Some(999.0));
    assert_eq!(quantile_ms(&values[..1], 0.999), Some(1.0));
    assert_eq!(quantile_ms(&[], 0.5), None);
}
