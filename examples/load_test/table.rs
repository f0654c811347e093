//! The comparison, for people: one table per scenario and a sentence that sums it up.

use std::fmt::Write as _;

use comfy_table::{Attribute, Cell, CellAlignment, Table, presets::UTF8_FULL_CONDENSED};

use crate::{
    args::{Args, is_adaptive},
    generator::storm::StormFigures,
    report::Run,
    rounds::goodput,
    scenario::{BURST, Rates, Scenario},
};

/// A line of the table: what it says, and how it reads in one run.
type Line = (&'static str, fn(&Run) -> String);

const LINES: [Line; 19] = [
    ("offered", |run| count(run.load.offered)),
    ("served", |run| share(run.load.served, run.load.offered)),
    ("served within 100 ms", |run| share(run.load.within_100ms, run.load.offered)),
    ("p50 of served", |run| time(run.load.p50_ms)),
    ("p99", |run| time(run.load.p99_ms)),
    ("p99.9", |run| time(run.load.p999_ms)),
    ("p99 over the burst", |run| time(burst_p99_ms(run))),
    ("503s", |run| share(run.load.shed, run.load.offered)),
    ("p99 of the 503s", |run| time(run.load.shed_p99_ms)),
    ("504s", |run| share(run.load.timeouts, run.load.offered)),
    ("other errors", |run| count(run.load.errors)),
    ("acquire p99", |run| time(run.server.acquire_p99_ms)),
    ("peak limit", |run| count(run.server.peak_limit)),
    ("dials during the load", |run| count(run.server.dials)),
    ("peak connections", |run| count(run.server.peak_connections)),
    ("connection-seconds", |run| count(run.server.connection_seconds.round() as u64)),
    ("refused by PostgreSQL (53300)", |run| count(run.server.too_many_connections)),
    ("recovered after the burst in", |run| match run.load.recovery_s {
        Some(seconds) => format!("{seconds:.2} s"),
        None if run.phases.len() < 3 => "–".into(), // there is no calm to recover in
        None => "never".into(),
    }),
    ("generator's own lag p99", |run| time(run.load.lag_p99_ms)),
];

/// The scenarios in the order they ran, each with its table and its sentence.
pub fn comparison(runs: &[Run], args: &Args) -> String {
    let mut text = String::new();
    for group in runs.chunk_by(|a, b| a.scenario == b.scenario) {
        let _ = writeln!(text, "{}", table(group));
        for (run, storm) in group.iter().filter_map(|run| Some((run, run.storm.as_ref()?))) {
            let _ = writeln!(text, "{}", storm_sentence(&run.pool, storm));
        }
        if group[0].storm.is_some() {
            continue;
        }
        let Ok(scenario) = Scenario::named(group[0].scenario) else { continue };
        for sentence in summary(group, scenario, args) {
            let _ = writeln!(text, "{sentence}");
        }
    }
    text
}

fn table(runs: &[Run]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    let head = |text: &str| Cell::new(text).add_attribute(Attribute::Bold);
    let pools = runs.iter().map(|run| head(&run.pool).set_alignment(CellAlignment::Right));
    table.set_header([head(runs[0].scenario)].into_iter().chain(pools));
    for (name, value) in LINES {
        let values = runs.iter().map(|run| Cell::new(value(run)).set_alignment(CellAlignment::Right));
        table.add_row([Cell::new(name)].into_iter().chain(values));
    }
    for phase in Scenario::named(runs[0].scenario).map_or(&[][..], |scenario| scenario.judged) {
        let good = |run| Cell::new(count(goodput(run, phase) as u64)).set_alignment(CellAlignment::Right);
        let name = Cell::new(format!("{phase}: good before its end"));
        table.add_row([name].into_iter().chain(runs.iter().map(good)));
    }
    table
}

fn storm_sentence(pool: &str, storm: &StormFigures) -> String {
    let back = storm.back_s.map_or("never back".into(), |s| format!("back after {s:.1} s"));
    let seconds: Vec<_> = storm.good_by_second.iter().map(u64::to_string).collect();
    format!(
        "{pool}: {back}; {:.3} of the best possible, {:.3} of all requests; good by second: {}",
        storm.of_best,
        storm.of_offered,
        seconds.join(" ")
    )
}

/// What a stranger should take away, of each adaptive pool; only where there is something to compare.
fn summary(runs: &[Run], scenario: &Scenario, args: &Args) -> Vec<String> {
    let start = args.min_size(scenario);
    let (candidates, rivals): (Vec<&Run>, Vec<&Run>) = runs.iter().partition(|run| is_adaptive(&run.pool));
    let sentence = |adaptive: &Run| {
        let compared = match scenario.rates {
            Rates::OfCapacity { .. } => by_phase(adaptive, &rivals, scenario.judged)?,
            _ => whole(adaptive, &rivals)?,
        };
        Some(format!(
            "{}: {} served {compared}, from {start} connections in use",
            scenario.name, adaptive.pool
        ))
    };
    let told = candidates.into_iter().filter_map(|run| Some(sentence(run)? + &of_burst(run, &rivals) + "."));
    told.collect()
}

/// Over the whole run, where most of it is calm: what people would have called good.
fn whole(adaptive: &Run, rivals: &[&Run]) -> Option<String> {
    let good = |run: &Run| run.load.in_phase.within_100ms as f64;
    Some(format!("{} within 100 ms", part_of_best(adaptive, rivals, good)?))
}

/// Where each phase is a load of its own.
fn by_phase(adaptive: &Run, rivals: &[&Run], phases: &[&str]) -> Option<String> {
    let parts = phases.iter().map(|phase| {
        let part = part_of_best(adaptive, rivals, |run| goodput(run, phase))?;
        Some(format!("{part} at {phase}"))
    });
    Some(parts.collect::<Option<Vec<_>>>()?.join(" and "))
}

fn part_of_best(adaptive: &Run, rivals: &[&Run], good: impl Fn(&Run) -> f64) -> Option<String> {
    let best = rivals.iter().max_by(|a, b| good(a).total_cmp(&good(b))).filter(|run| good(run) > 0.0)?;
    Some(format!("{:.0} % of what {} did", 100.0 * good(adaptive) / good(best), best.pool))
}

fn of_burst(adaptive: &Run, rivals: &[&Run]) -> String {
    let burst = |run: &Run| burst_p99_ms(run).unwrap_or(0.0);
    let slowest = rivals.iter().max_by(|a, b| burst(a).total_cmp(&burst(b)));
    let p99s = slowest.and_then(|slowest| Some((burst_p99_ms(adaptive)?, slowest, burst_p99_ms(slowest)?)));
    p99s.map_or_else(String::new, |(ours, slowest, theirs)| {
        let (ours, theirs) = (time(Some(ours)), time(Some(theirs)));
        format!("; its p99 over the burst was {ours}, that of {} {theirs}", slowest.pool)
    })
}

fn burst_p99_ms(run: &Run) -> Option<f64> {
    run.phase(BURST)?.load.p99_ms
}

/// A number with its thousands apart.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number and what part of the whole it is.
fn share(part: u64, whole: u64) -> String {
    if part == 0 || whole == 0 {
        return count(part);
    }
    format!("{} ({:.1} %)", count(part), 100.0 * part as f64 / whole as f64)
}

/// A duration to three digits, in the unit one would say it in.
pub fn time(ms: Option<f64>) -> String {
    match ms {
        None => "–".into(),
        Some(ms) if ms < 10.0 => format!("{ms:.2} ms"),
        Some(ms) if ms < 100.0 => format!("{ms:.1} ms"),
        Some(ms) if ms < 1_000.0 => format!("{ms:.0} ms"),
        Some(ms) => format!("{:.2} s", ms / 1e3),
    }
}
