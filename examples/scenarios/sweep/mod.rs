//! Scenarios drawn at random, so that no law can be tuned to them: each seed is one, played with three noise seeds.
//!
//! Read on in this order: `prior` (what is drawn), `requests`, `server` and `world` (how one is played), `report`.

mod explain;
mod prior;
mod report;
mod requests;
mod server;
mod world;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::Instant;

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::opponents::Choice;
use prior::Case;
use requests::Request;
use world::{Mover, Outcome, World};

/// Noise seeds of each scenario.
pub const NOISES: u64 = 3;
/// Fixed limits that are tried at first, each the same factor over the one before.
const COARSE: usize = 14;
/// Rounds in which the gaps on both sides of the best one are halved.
const ROUNDS: usize = 2;
/// So many of the best play the other noise seeds too.
const FINALISTS: usize = 3;

/// Plays scenarios drawn at random and reports how regret and harm are distributed.
#[derive(Debug, Args)]
pub struct Sweep {
    /// How many scenarios.
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    scenarios: u64,

    /// The seed of the first one; the others follow.
    #[arg(long, value_name = "SEED", default_value_t = 2_000_000)]
    seed: u64,

    /// Draw one scenario: what happened in it, and every move of the limit.
    #[arg(long)]
    explain: bool,

    /// Who plays, besides the fixed limits: adaptive, queue_depth, aimd, vegas, gradient2, without:MECHANISM.
    #[arg(long, value_name = "NAME,..", value_delimiter = ',', default_values_t = Choice::RIVALS)]
    controllers: Vec<Choice>,

    /// Keep there what all but the default law came to, and use it again: the law may have changed, the rest must not.
    #[arg(long, value_name = "FILE")]
    baselines: Option<PathBuf>,

    /// Fail when the default law's mean regret is over so many percent; and its harm, in 95 of 100, over so many.
    #[arg(long, value_name = "PERCENT", num_args = 2, value_names = ["REGRET", "HARM"])]
    at_most: Option<Vec<f64>>,

    /// Runs at once.
    #[arg(long, value_name = "N", default_value_t = 2)]
    threads: usize,

    /// Where summary.json and the pictures go.
    #[arg(long, value_name = "DIRECTORY", default_value = "target/sweep")]
    out: PathBuf,
}

/// One scenario and one controller in `summary.json`.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub seed: u64,
    pub family: String,
    /// Offered ÷ capacity of the best number of connections.
    pub load: f64,
    /// Requests that the best fixed limit refused, or let wait until their deadline.
    pub best_refused: u64,
    pub controller: String,
    /// What is lost against the best fixed limit; of the whole database.
    pub regret: f64,
    /// The same for the clients of the pools that run the controller alone.
    pub own_regret: f64,
    /// What is lost against `queue_depth`, as a part of the best fixed limit.
    pub harm: f64,
    pub final_limit: usize,
    pub best_limit: usize,
    pub p99_ms: f64,
    pub best_p99_ms: f64,
    /// Standard error of `regret` over the noise seeds.
    pub noise: f64,
}

/// What one mover came to over the noise seeds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Score {
    goodput: Vec<f64>,
    own_goodput: Vec<f64>,
    offered: f64,
    refused: f64,
    p99_ms: f64,
    final_limit: usize,
}

/// What all but the law came to in one scenario.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Baseline {
    best_limit: usize,
    best: Score,
    others: HashMap<String, Score>,
}

pub fn sweep(args: &Sweep) -> Result<(), Error> {
    let begun = Instant::now();
    std::fs::create_dir_all(&args.out)?;
    if args.explain {
        return explain::explain(&Case::draw(args.seed), &args.controllers, &args.out);
    }
    let known = read_baselines(args)?;
    let seeds: Vec<u64> = (args.seed..args.seed + args.scenarios).collect();
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<(u64, Baseline, Vec<Row>)>> = Mutex::default();
    thread::scope(|scope| {
        for _ in 0..args.threads.max(1) {
            scope.spawn(|| {
                while let Some(&seed) = seeds.get(next.fetch_add(1, Relaxed)) {
                    let (baseline, rows) = judge(&Case::draw(seed), &args.controllers, known.get(&seed));
                    results.lock().unwrap_or_else(PoisonError::into_inner).push((seed, baseline, rows));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_unstable_by_key(|result| result.0);
    if let Some(file) = &args.baselines {
        let all: HashMap<u64, &Baseline> = known
            .iter()
            .map(|(seed, baseline)| (*seed, baseline))
            .chain(results.iter().map(|(seed, baseline, _)| (*seed, baseline)))
            .collect();
        std::fs::write(file, serde_json::to_string(&all)?)?;
    }
    let rows: Vec<Row> = results.into_iter().flat_map(|(_, _, rows)| rows).collect();
    let lines: Result<Vec<_>, _> = rows.iter().map(serde_json::to_string).collect();
    std::fs::write(args.out.join("summary.json"), format!("[\n{}\n]\n", lines?.join(",\n")))?;
    report::print(&rows, &args.controllers);
    println!(
        "{} scenarios, {NOISES} noise seeds each, in {:.0} s; all rows are in {}.",
        args.scenarios,
        begun.elapsed().as_secs_f64(),
        args.out.join("summary.json").display()
    );
    match args.at_most.as_deref() {
        Some(&[regret, harm]) => report::within(&rows, regret, harm),
        _ => Ok(()),
    }
}

fn read_baselines(args: &Sweep) -> Result<HashMap<u64, Baseline>, Error> {
    match &args.baselines {
        Some(file) if file.exists() => Ok(serde_json::from_str(&std::fs::read_to_string(file)?)?),
        _ => Ok(HashMap::new()),
    }
}

/// All of one scenario: the best fixed limit, and the controllers against it.
fn judge(case: &Case, choices: &[Choice], known: Option<&Baseline>) -> (Baseline, Vec<Row>) {
    let noises: Vec<Vec<Request>> = (0..NOISES).map(|noise| requests::requests(case, noise)).collect();
    let mut baseline = known.cloned().unwrap_or_else(|| best_fixed(case, &noises));
    let mut scores = Vec::new();
    for &choice in choices.iter().chain([&Choice::QueueDepth]) {
        let name = choice.to_string();
        let play = || score(case, &noises, || mover(choice, case));
        // Ours changes while it is tuned; the others do not.
        let played =
            if choice.is_ours() { play() } else { baseline.others.entry(name).or_insert_with(play).clone() };
        scores.push((choice, played));
    }
    let rows = rows(case, &baseline, &scores[..choices.len()]);
    (baseline, rows)
}

fn mover(choice: Choice, case: &Case) -> Mover {
    match choice {
        Choice::Static(size) => Mover::Fixed(size),
        _ => Mover::Law(choice.controller(case.min_size.min(10))),
    }
}

fn score(case: &Case, noises: &[Vec<Request>], mover: impl Fn() -> Mover) -> Score {
    let mut score = Score::default();
    for requests in noises {
        let mut outcome = World::new(case, requests, &mover, false).play();
        let count = noises.len() as f64;
        score.p99_ms += outcome.p99_ms() / count;
        let Outcome { offered, goodput, own_goodput, refused, final_limit, .. } = outcome;
        score.offered += offered as f64 / count;
        score.refused += refused as f64 / count;
        score.goodput.push(goodput as f64);
        score.own_goodput.push(own_goodput as f64);
        score.final_limit = final_limit;
    }
    score
}

/// The fixed limit with the most goodput over all noise seeds; of equals the smallest.
fn best_fixed(case: &Case, noises: &[Vec<Request>]) -> Baseline {
    let most = case.max_size as f64;
    let mut sizes: Vec<usize> =
        (0..COARSE).map(|i| most.powf(i as f64 / (COARSE - 1) as f64).round() as usize).collect();
    sizes.dedup();
    let play = |size, noises: &[Vec<Request>]| score(case, noises, || Mover::Fixed(size));
    let mut played: Vec<(usize, Score)> =
        sizes.iter().map(|&size| (size, play(size, &noises[..1]))).collect();
    for _ in 0..ROUNDS {
        let best =
            (0..played.len()).rev().max_by(|a, b| total(&played[*a].1).total_cmp(&total(&played[*b].1)));
        let best = best.unwrap_or(0);
        let size = |at: usize| played[at].0 as f64;
        let below = best.checked_sub(1).map(|below| (size(below) * size(best)).sqrt().round() as usize);
        let above = (best + 1 < played.len()).then(|| (size(best) * size(best + 1)).sqrt().round() as usize);
        for size in [below, above].into_iter().flatten() {
            if let Err(at) = played.binary_search_by_key(&size, |played| played.0) {
                played.insert(at, (size, play(size, &noises[..1])));
            }
        }
    }
    // A stable sort: of equals the smallest comes first.
    played.sort_by(|a, b| total(&b.1).total_cmp(&total(&a.1)));
    played.truncate(FINALISTS);
    let finals = played.into_iter().map(|(size, _)| (size, play(size, noises)));
    let best = finals.reduce(|best, next| if total(&next.1) > total(&best.1) { next } else { best });
    let (best_limit, best) = best.unwrap_or_default();
    Baseline { best_limit, best, others: HashMap::new() }
}

fn total(score: &Score) -> f64 {
    score.goodput.iter().sum()
}

fn rows(case: &Case, baseline: &Baseline, scores: &[(Choice, Score)]) -> Vec<Row> {
    let Baseline { best_limit, best, others } = baseline;
    let lost = |ours: &[f64], than: &[f64]| -> Vec<f64> {
        let of = |(noise, (ours, than)): (usize, (&f64, &f64))| (than - ours) / best.goodput[noise].max(1.0);
        ours.iter().zip(than).enumerate().map(of).collect()
    };
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
    let plain = others.get(&Choice::QueueDepth.to_string()).cloned().unwrap_or_default();
    let row = |(choice, score): &(Choice, Score)| {
        let regrets = lost(&score.goodput, &best.goodput);
        let own = |score: &Score| score.own_goodput.iter().sum::<f64>();
        let regret = mean(&regrets);
        let variance = regrets.iter().map(|one| (one - regret).powi(2)).sum::<f64>() / (NOISES - 1) as f64;
        Row {
            seed: case.seed,
            family: case.family.clone(),
            load: round(best.offered / case.seconds / case.capacity_per_s),
            best_refused: best.refused.round() as u64,
            controller: choice.to_string(),
            regret: round(regret),
            own_regret: round(1.0 - own(score) / own(best).max(1.0)),
            harm: round(mean(&lost(&score.goodput, &plain.goodput))),
            final_limit: score.final_limit,
            best_limit: *best_limit,
            p99_ms: round(score.p99_ms),
            best_p99_ms: round(best.p99_ms),
            noise: round((variance / NOISES as f64).sqrt()),
        }
    };
    scores.iter().map(row).collect()
}

/// To five digits after the point.
fn round(value: f64) -> f64 {
    (value * 1e5).round() / 1e5
}
