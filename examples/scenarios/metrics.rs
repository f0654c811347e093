//! From runs to figures: each against the best fixed size with the same seed.

use std::ops::Range;

use serde::Serialize;

use crate::Error;
use crate::opponents::Choice;
use crate::oracle;
use crate::record::{BIN_S, Bin, Run};
use crate::scenario::Scenario;

/// How long the first moments after a step last.
const FIRST_S: f64 = 5.0;
/// Over so long the goodput is compared to see whether a run has recovered.
const WINDOW_S: f64 = 1.0;
/// From this part of the best size's goodput on.
const RECOVERED: f64 = 0.95;

/// One run in `summary.json`.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub scenario: String,
    pub seed: u64,
    pub controller: String,
    pub goodput: u64,
    pub best_static: u64,
    pub best_static_size: usize,
    pub regret: f64,
    /// Of the requests that the best size served in time in the 5 s after a step, the part not served; the worst step.
    pub lost_first_5s: f64,
    pub reversals: u32,
    /// As reversals, but by ways of 15 % in however many small moves.
    pub turns: u32,
    pub load_cycles: u32,
    pub connection_seconds: f64,
    pub oracle_connection_seconds: f64,
    /// After the worst step; none where a run did not recover before the next step.
    pub time_to_recover_s: Option<f64>,
    pub p99_ms: Option<f64>,
    pub probes: u32,
    /// The part of the time spent in probes.
    pub probing: f64,
}

/// The figures of all runs of one scenario and seed.
pub fn rows(scenario: &Scenario, runs: &[Run]) -> Result<Vec<Row>, Error> {
    let sizes = oracle::sizes(scenario)?;
    let baseline = |run: &&Run| matches!(run.choice, Choice::Static(size) if sizes.contains(&size));
    let best = oracle::best(runs.iter().filter(baseline)).ok_or("no fixed size was run")?;
    let Choice::Static(best_static_size) = best.choice else { return Err("no fixed size was run".into()) };
    let oracle_connection_seconds = round(oracle::connection_seconds(scenario)?);
    let rows = runs.iter().map(|run| Row {
        scenario: scenario.name.clone(),
        seed: run.seed,
        controller: run.choice.to_string(),
        goodput: run.goodput,
        best_static: best.goodput,
        best_static_size,
        regret: round((1.0 - run.goodput as f64 / best.goodput.max(1) as f64).max(0.0)),
        lost_first_5s: round(lost_first(scenario, &run.bins, &best.bins)),
        reversals: run.reversals,
        turns: run.turns,
        load_cycles: scenario.load_cycles,
        connection_seconds: round(run.connection_seconds),
        oracle_connection_seconds,
        time_to_recover_s: time_to_recover(scenario, &run.bins, &best.bins).map(round),
        p99_ms: run.p99_ms.map(round),
        probes: run.probes,
        probing: round(run.probing),
    });
    Ok(rows.collect())
}

/// To four digits after the point: more is noise, and makes the file hard to read.
fn round(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

/// The bins from each step to the next one, or to the end.
fn after_steps(scenario: &Scenario) -> Vec<Range<usize>> {
    let bin = |t_s: f64| (t_s / BIN_S).round() as usize;
    let steps = scenario.steps();
    let ends = steps.iter().skip(1).copied().chain([scenario.seconds()]);
    steps.iter().zip(ends).map(|(&begin_s, end_s)| bin(begin_s)..bin(end_s)).collect()
}

fn in_time(bins: &[Bin]) -> f64 {
    bins.iter().map(|bin| f64::from(bin.in_time)).sum()
}

fn lost_first(scenario: &Scenario, run: &[Bin], best: &[Bin]) -> f64 {
    let first = (FIRST_S / BIN_S) as usize;
    let in_a_second = in_time(best) / scenario.seconds();
    let lost = after_steps(scenario).into_iter().map(|step| {
        let window = step.start..step.end.min(step.start + first);
        let expected = in_time(&best[window.clone()]);
        // A second's worth of nothing says nothing: the best size too serves nobody while the database stands still.
        if expected < in_a_second { 0.0 } else { 1.0 - in_time(&run[window]) / expected }
    });
    lost.fold(0.0, f64::max)
}

fn time_to_recover(scenario: &Scenario, run: &[Bin], best: &[Bin]) -> Option<f64> {
    let window = (WINDOW_S / BIN_S) as usize;
    let mut worst = 0.0_f64;
    for step in after_steps(scenario) {
        let starts = step.start..step.end.saturating_sub(window).max(step.start + 1);
        let recovered = starts.clone().find(|&start| {
            let seen = start..(start + window).min(step.end);
            in_time(&run[seen.clone()]) >= RECOVERED * in_time(&best[seen])
        })?;
        worst = worst.max((recovered - starts.start) as f64 * BIN_S);
    }
    Some(worst)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bins(scenario: &Scenario, in_time: impl Fn(f64) -> u32) -> Vec<Bin> {
        let count = (scenario.seconds() / BIN_S).round() as usize;
        (0..count).map(|bin| Bin { in_time: in_time(bin as f64 * BIN_S), ..Bin::default() }).collect()
    }

    #[test]
    fn what_is_lost_after_a_step_and_when_it_is_made_good() {
        let scenario = Scenario::all().unwrap().into_iter().find(|it| it.name == "step-burst").unwrap();
        assert_eq!(scenario.steps(), [10.0, 30.0]);
        let best = bins(&scenario, |_| 100);
        let run = bins(&scenario, |t_s| if (9.99..11.99).contains(&t_s) { 50 } else { 100 });
        assert!((lost_first(&scenario, &run, &best) - 0.2).abs() < 1e-9, "half of two seconds of five");
        let recovered = time_to_recover(&scenario, &run, &best).unwrap();
        assert!((1.8..=2.0).contains(&recovered), "{recovered}");
        let never = bins(&scenario, |t_s| if t_s < 10.0 { 100 } else { 50 });
        assert_eq!(time_to_recover(&scenario, &never, &best), None);
    }
}
