//! The judge: plays scenarios on virtual time through the real layer, gate, pool and driver, over a simulated database, and
//! compares every controller with the best fixed size in hindsight.
//!
//! `cargo run --release --example scenarios -- --help` says what it takes. Read on in this order: `scenario` (what is played),
//! `load`, `curve` and `database` (against what), `run` (how), `opponents` (who), `oracle` (against whom), `record`, `metrics`,
//! `table` and `picture` (what came of it).

mod curve;
mod database;
mod load;
mod metrics;
mod opponents;
mod oracle;
mod picture;
mod random;
mod record;
mod run;
mod scenario;
mod sweep;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::Instant;

use clap::{Parser, Subcommand, ValueEnum};

use crate::metrics::Row;
use crate::opponents::Choice;
use crate::record::Run;
use crate::scenario::Scenario;

/// One sentence for the person who typed the command.
type Error = Box<dyn std::error::Error + Send + Sync>;

/// Plays scenarios on virtual time and compares controllers with the best fixed size in hindsight.
#[derive(Debug, Parser)]
#[command(name = "scenarios")]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,

    /// Play only the scenarios whose names begin so; may be given several times.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,

    /// Which seeds: those for tuning, those for reporting, which nothing was tuned on, or a dozen others.
    #[arg(long, value_enum, default_value_t = Seeds::Report)]
    seeds: Seeds,

    /// Who plays, besides the fixed sizes: adaptive, queue_depth, aimd, vegas, gradient2, static:N.
    #[arg(long, value_name = "NAME,..", value_delimiter = ',', default_values_t = Choice::RIVALS)]
    controllers: Vec<Choice>,

    /// Print every move of the limits with its reason, but for the fixed sizes.
    #[arg(long)]
    moves: bool,

    /// Runs at once.
    #[arg(long, value_name = "N", default_value_t = 2)]
    threads: usize,

    /// Where summary.json and the pictures go.
    #[arg(long, value_name = "DIRECTORY", default_value = "target/scenarios")]
    out: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
    Sweep(sweep::Sweep),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Seeds {
    Train,
    Report,
    /// A dozen others, to tell a better law from a luckier one.
    Dozen,
}

impl Seeds {
    fn numbers(self) -> std::ops::RangeInclusive<u64> {
        match self {
            Self::Train => 1..=3,
            Self::Report => 101..=103,
            Self::Dozen => 201..=212,
        }
    }
}

/// One run to be made.
struct Job<'a> {
    scenario: &'a Scenario,
    seed: u64,
    choice: Choice,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match &args.command {
        Some(Command::Sweep(sweep)) => sweep::sweep(sweep),
        None => judge(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scenarios: {error}");
            ExitCode::FAILURE
        }
    }
}

fn judge(args: &Args) -> Result<(), Error> {
    let begun = Instant::now();
    let mut scenarios = Scenario::all()?;
    if !args.only.is_empty() {
        let names: Vec<_> = scenarios.iter().map(|scenario| scenario.name.clone()).collect();
        scenarios.retain(|scenario| args.only.iter().any(|only| scenario.name.starts_with(only.as_str())));
        if scenarios.is_empty() {
            return Err(format!("no scenario has that name; there are {}", names.join(", ")).into());
        }
    }
    let jobs = jobs(&scenarios, args)?;
    let runs = play(&jobs, args.threads)?;
    let rows = report(&jobs, runs, args)?;
    table::print(&rows, &args.controllers);
    println!(
        "{} runs in {:.0} s; figures and pictures are in {}.",
        jobs.len(),
        begun.elapsed().as_secs_f64(),
        args.out.display()
    );
    within_bands(&scenarios, &rows, args.seeds)
}

/// Our default's regret may not grow unnoticed.
fn within_bands(scenarios: &[Scenario], rows: &[Row], seeds: Seeds) -> Result<(), Error> {
    let band = |name: &str| scenarios.iter().find(|scenario| scenario.name == name)?.bands.first().copied();
    let over =
        rows.iter().filter(|row| seeds == Seeds::Report && row.controller == "adaptive").filter_map(|row| {
            let (percent, band) = (row.regret * 100.0, band(&row.scenario)?);
            (percent > band)
                .then(|| format!("{}, seed {}: {percent:.1} % (band {band} %)", row.scenario, row.seed))
        });
    let over: Vec<_> = over.collect();
    if over.is_empty() { Ok(()) } else { Err(format!("regret over its band: {}", over.join("; ")).into()) }
}

/// For each scenario and seed the fixed sizes and whoever else was asked for.
fn jobs<'a>(scenarios: &'a [Scenario], args: &Args) -> Result<Vec<Job<'a>>, Error> {
    let mut jobs = Vec::new();
    for scenario in scenarios {
        let mut choices: Vec<_> = oracle::sizes(scenario)?.into_iter().map(Choice::Static).collect();
        choices.extend(
            args.controllers.iter().filter(|choice| !choices.contains(choice)).copied().collect::<Vec<_>>(),
        );
        for seed in args.seeds.numbers() {
            jobs.extend(choices.iter().map(|&choice| Job { scenario, seed, choice }));
        }
    }
    Ok(jobs)
}

/// Makes all runs, several at once; they know nothing of each other.
fn play(jobs: &[Job<'_>], threads: usize) -> Result<Vec<Run>, Error> {
    let next = AtomicUsize::new(0);
    let results: Vec<_> = jobs.iter().map(|_| Mutex::new(None)).collect();
    thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while let Some((job, result)) = {
                    let i = next.fetch_add(1, Relaxed);
                    jobs.get(i).zip(results.get(i))
                } {
                    let run = run::run(job.scenario, job.seed, job.choice);
                    *result.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(run);
                }
            });
        }
    });
    let take =
        |result: Mutex<Option<_>>| result.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    results
        .into_iter()
        .map(|result| take(result).unwrap_or_else(|| Err("a run did not end".into())))
        .collect()
}

/// Writes the summary, draws the first seed of each scenario, and says what the runs came to.
fn report(jobs: &[Job<'_>], runs: Vec<Run>, args: &Args) -> Result<Vec<Row>, Error> {
    std::fs::create_dir_all(&args.out)?;
    let mut rows: Vec<Row> = Vec::new();
    let mut runs = runs.into_iter();
    for group in jobs.chunk_by(|a, b| a.scenario.name == b.scenario.name && a.seed == b.seed) {
        let runs: Vec<_> = runs.by_ref().take(group.len()).collect();
        let scenario = group[0].scenario;
        if rows.last().is_none_or(|row| row.scenario != scenario.name) {
            picture::draw(&args.out.join(format!("{}.svg", scenario.name)), scenario, &runs)?;
        }
        if args.moves {
            table::print_moves(&scenario.name, &runs);
        }
        rows.extend(metrics::rows(scenario, &runs)?);
    }
    let lines: Result<Vec<_>, _> = rows.iter().map(serde_json::to_string).collect();
    std::fs::write(args.out.join("summary.json"), format!("[\n{}\n]\n", lines?.join(",\n")))?;
    Ok(rows)
}
