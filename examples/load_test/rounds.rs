//! The same comparison many times over: which fixed size was best in hindsight, and what share of its goodput the adaptive
//! pool had, with a confidence interval.

use std::fmt::Write as _;

use crate::{
    args::is_adaptive,
    report::Run,
    scenario::{BURST, Scenario},
    table::count,
};

/// Student's t for a 95 % interval with 1, 2, 3 ... degrees of freedom; from 15 on the normal one is near enough.
const T_95: [f64; 14] = [12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14];

/// What was good in a phase of a run.
pub fn goodput(run: &Run, phase: &str) -> f64 {
    let slow = Scenario::named(run.scenario).is_ok_and(|scenario| scenario.counts_all_served);
    let in_phase = run.phase(phase).map(|part| part.load.in_phase).unwrap_or_default();
    (if slow { in_phase.served } else { in_phase.within_100ms }) as f64
}

/// One pool's runs of one scenario, in the order of the rounds.
pub struct Pool<'a> {
    pub name: &'a str,
    pub runs: Vec<&'a Run>,
}

impl Pool<'_> {
    fn goodputs(&self, phase: &str) -> Vec<f64> {
        self.runs.iter().map(|run| goodput(run, phase)).collect()
    }

    fn median(&self, of: fn(&Run) -> f64) -> f64 {
        median(self.runs.iter().map(|run| of(run)).collect())
    }
}

/// The table of all scenarios, in Markdown, and their sentences.
pub fn summary(runs: &[Run]) -> String {
    let mut text = String::new();
    for (scenario, pools) in pools(runs) {
        describe(&mut text, scenario, &pools);
    }
    text
}

/// The runs by scenario, and by pool.
pub fn pools(runs: &[Run]) -> Vec<(&'static str, Vec<Pool<'_>>)> {
    let scenarios = names(runs.iter().map(|run| run.scenario)).into_iter();
    let pools = scenarios.map(|scenario| {
        let of_scenario = || runs.iter().filter(|run| run.scenario == scenario);
        let pools = names(of_scenario().map(|run| run.pool.as_str()))
            .into_iter()
            .map(|name| Pool { name, runs: of_scenario().filter(|run| run.pool == name).collect() });
        (scenario, pools.collect())
    });
    pools.collect()
}

fn names<'a>(all: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut names = Vec::new();
    for name in all {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn describe(text: &mut String, name: &str, pools: &[Pool<'_>]) {
    let Ok(scenario) = Scenario::named(name) else { return };
    let _ = writeln!(text, "\n### `{name}`: {}\n", scenario.about);
    table(text, scenario, pools);
    for phase in scenario.judged {
        compare(text, phase, pools);
    }
    for adaptive in pools.iter().filter(|pool| is_adaptive(pool.name)) {
        let reached: Vec<_> = adaptive.runs.iter().filter_map(|run| target_reached_s(run)).collect();
        if !reached.is_empty() {
            let _ = writeln!(
                text,
                "- {}: within 10 % of the limit it ended the burst with, {:.1} s after the step (median; sampled every 0.1 s).",
                adaptive.name,
                median(reached)
            );
        }
    }
}

fn table(text: &mut String, scenario: &Scenario, pools: &[Pool<'_>]) {
    let column = |phase| format!("{} before the end of the {phase}, median (least .. most)", scenario.good());
    let heads = ["pool".into()].into_iter().chain(scenario.judged.iter().map(column));
    let heads =
        heads.chain(["dials", "peak limit", "peak connections", "connection-seconds"].map(String::from));
    let heads: Vec<_> = heads.collect();
    let _ = writeln!(text, "| {} |\n|{}", heads.join(" | "), "---|".repeat(heads.len()));
    for pool in pools {
        let goodputs = scenario.judged.iter().map(|phase| spread(pool.goodputs(phase)));
        let of_server: [fn(&Run) -> f64; 4] = [
            |run| run.server.dials as f64,
            |run| run.server.peak_limit as f64,
            |run| run.server.peak_connections as f64,
            |run| run.server.connection_seconds,
        ];
        let medians = of_server.map(|of| format!("{:.0}", pool.median(of)));
        let cells: Vec<_> = [pool.name.to_owned()].into_iter().chain(goodputs).chain(medians).collect();
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
}

/// Each adaptive pool against the one that was best in hindsight.
fn compare(text: &mut String, phase: &str, pools: &[Pool<'_>]) {
    let Some(best) = best(phase, pools) else { return };
    let _ = writeln!(text, "\nBest in hindsight, {phase}: {}.\n", best.name);
    for ours in pools.iter().filter(|pool| is_adaptive(pool.name)) {
        let (mean, half) = interval(&ratios(phase, ours, best));
        let _ = writeln!(
            text,
            "- {} ÷ {}, {phase}, over {} rounds: {mean:.3}, 95 % interval {:.3} to {:.3}.",
            ours.name,
            best.name,
            ours.runs.len(),
            mean - half,
            mean + half
        );
    }
}

/// Of the intervals that the summary of these runs has, the widest's half; 0 where there is nothing to compare.
pub fn half_width(runs: &[Run]) -> f64 {
    let mut widest = 0.0_f64;
    for (name, pools) in pools(runs) {
        let judged = Scenario::named(name).map_or(&[][..], |scenario| scenario.judged);
        for (phase, best) in judged.iter().filter_map(|phase| Some((phase, best(phase, &pools)?))) {
            for ours in pools.iter().filter(|pool| is_adaptive(pool.name)) {
                let (_, half) = interval(&ratios(phase, ours, best));
                // Not a number where nobody served anything: that tells less than any interval.
                widest = widest.max(if half.is_nan() { f64::INFINITY } else { half });
            }
        }
    }
    widest
}

/// The rival with the most goodput over all rounds.
fn best<'p, 'r>(phase: &str, pools: &'p [Pool<'r>]) -> Option<&'p Pool<'r>> {
    let total = |pool: &Pool<'_>| pool.goodputs(phase).iter().sum::<f64>();
    let rivals = pools.iter().filter(|pool| !is_adaptive(pool.name));
    rivals.max_by(|a, b| total(a).total_cmp(&total(b)))
}

/// By rounds: what was good or bad luck for one was it for the other too.
fn ratios(phase: &str, ours: &Pool<'_>, best: &Pool<'_>) -> Vec<f64> {
    ours.goodputs(phase).iter().zip(best.goodputs(phase)).map(|(ours, theirs)| ours / theirs).collect()
}

/// How long after the step the limit came near to what it was at the end of the burst.
fn target_reached_s(run: &Run) -> Option<f64> {
    let begin_s: f64 = run
        .phases
        .iter()
        .take_while(|part| part.phase.name != BURST)
        .map(|part| f64::from(part.phase.seconds))
        .sum();
    let end_s = begin_s + f64::from(run.phase(BURST)?.phase.seconds);
    let limits = || {
        let burst = run.timeline.iter().filter(|row| (begin_s..end_s).contains(&row.load.t_s));
        burst.filter_map(|row| Some((row.load.t_s - begin_s, row.limit? as f64)))
    };
    let (_, last) = limits().next_back()?;
    limits().find(|(_, limit)| (limit - last).abs() <= 0.1 * last).map(|(t_s, _)| t_s)
}

/// The mean and half the width of its 95 % interval, by Student.
fn interval(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let freedom = values.len().saturating_sub(1);
    if freedom == 0 {
        return (mean, f64::INFINITY);
    }
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / freedom as f64;
    let t = T_95.get(freedom - 1).copied().unwrap_or(1.96 * 1.07);
    (mean, t * (variance / n).sqrt())
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

fn spread(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    let [least, middle, most] =
        [0, values.len() / 2, values.len().saturating_sub(1)].map(|at| count(values[at].round() as u64));
    format!("{middle} ({least} .. {most})")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        generator::stats::{GeneratorReport, Outcome, Record},
        report::ServerReport,
    };

    /// A run in whose burst so many were served.
    fn run(pool: &str, served: u32) -> Run {
        let scenario = Scenario::named("burst").unwrap();
        let record = |k: u32| Record {
            intended_us: 1_000_000 + k,
            lag_us: 0,
            latency_us: 1_000,
            outcome: Outcome::Served,
        };
        let records: Vec<_> = (0..served).map(record).collect();
        let load = GeneratorReport::new(0.0, &scenario.phases(1, None), &records);
        Run::new(scenario, pool.parse().unwrap(), load, ServerReport::default())
    }

    #[test]
    fn the_widest_interval_against_the_best_rival_decides() {
        let mut runs = Vec::new();
        for (adaptive, warm) in [(90, 100), (100, 100), (110, 100)] {
            let pools = [("fixed:5", 50), ("fixed:10", 100), ("adaptive", adaptive), ("adaptive:warm", warm)];
            runs.extend(pools.map(|(pool, served)| run(pool, served)));
        }
        assert!((half_width(&runs) - 0.248).abs() < 1e-3, "adaptive's own: {}", half_width(&runs));
        runs.retain(|run| run.pool != "adaptive");
        assert!(half_width(&runs) < 1e-9, "always the same");
        assert_eq!(half_width(&runs[..3]), f64::INFINITY, "a single round tells nothing");
        runs.retain(|run| is_adaptive(&run.pool));
        assert!(half_width(&runs) < 1e-9, "nothing to compare with");
    }

    #[test]
    fn each_adaptive_pool_is_told_of() {
        let runs = ["fixed:10", "fixed:20", "adaptive", "adaptive:warm"].map(|pool| run(pool, 100));
        let told = summary(&runs);
        for sentence in ["| dials |", "- adaptive ÷ fixed:", "- adaptive:warm ÷ fixed:"] {
            assert!(told.contains(sentence), "{sentence} in {told}");
        }
    }

    #[test]
    fn the_interval_is_students() {
        let (mean, half) = interval(&[0.9, 1.0, 1.1]);
        assert!((mean - 1.0).abs() < 1e-12);
        // 4.30 × 0.1 ÷ √3
        assert!((half - 0.248).abs() < 1e-3, "{half}");
        assert_eq!(interval(&[1.0]), (1.0, f64::INFINITY));
    }
}
