//! What happened in one scenario, for people: the case, a strip chart of the first pool, and every move of its limit.

use std::fmt::Write;
use std::path::Path;

use super::prior::Case;
use super::world::{Bin, Outcome, World};
use super::{best_fixed, mover, requests};
use crate::Error;
use crate::opponents::Choice;

/// Lines of the strip chart.
const LINES: usize = 50;
/// Width of its bars.
const WIDTH: f64 = 40.0;
/// The most moves that are printed.
const MOVES: usize = 400;

pub fn explain(case: &Case, choices: &[Choice], out: &Path) -> Result<(), Error> {
    let noises: Vec<_> = (0..super::NOISES).map(|noise| requests::requests(case, noise)).collect();
    let best = best_fixed(case, &noises);
    let mut text = describe(case, &noises, best.best_limit)?;
    let fixed = Choice::Static(best.best_limit);
    for &choice in [fixed].iter().chain(choices) {
        let outcome = World::new(case, &noises[0], || mover(choice, case), true).play();
        writeln!(
            text,
            "\n{choice}: {} of {} in time, {} refused",
            outcome.goodput, outcome.offered, outcome.refused
        )?;
        if choice != fixed {
            draw(&mut text, case, &outcome)?;
        }
    }
    print!("{text}");
    Ok(std::fs::write(out.join(format!("{}.txt", case.seed)), text)?)
}

fn describe(case: &Case, noises: &[Vec<requests::Request>], best: usize) -> Result<String, Error> {
    let mut text = String::new();
    writeln!(text, "seed {}: {}", case.seed, case.family)?;
    for kind in &case.kinds {
        let at = |n: usize| kind.curve.at(n);
        let sizes: Vec<_> = [1, 2, 4, 8, 12, 16, 24, 32, 50, 75, 100, 200, 400]
            .into_iter()
            .filter(|&n| n <= 2 * case.max_size)
            .map(|n| format!("{n}: {:.0}", at(n)))
            .collect();
        writeln!(
            text,
            "  {:.0} % take {:.2} ms alone; per second by number: {}",
            100.0 * kind.part,
            1e3 * kind.alone_s,
            sizes.join(", ")
        )?;
    }
    let Case { service, arrivals, level, capacity_per_s, event, seconds, .. } = case;
    writeln!(
        text,
        "  {service:?}, {arrivals:?}, level {level:.2} of {capacity_per_s:.0}/s, {event:?}, {seconds:.0} s"
    )?;
    let Case {
        min_size,
        max_size,
        hard_cap,
        deadline_s,
        dial_s,
        dial_work_s,
        instances,
        share,
        neighbours,
        neighbour_size,
        ..
    } = case;
    writeln!(
        text,
        "  size {min_size} to {max_size}, hard_cap {hard_cap}, deadline {deadline_s:.2} s, dials {dial_s:.3} s + {dial_work_s:.4} s of work"
    )?;
    writeln!(
        text,
        "  {instances} instances told {share:.2}, beside {neighbours} fixed at {neighbour_size}; {} requests; best fixed limit {best}",
        noises[0].len()
    )?;
    Ok(text)
}

fn draw(text: &mut String, case: &Case, outcome: &Outcome) -> Result<(), Error> {
    let sums: Vec<Bin> = outcome
        .bins
        .chunks(outcome.bins.len() / LINES)
        .map(|bins| {
            bins.iter().fold(Bin::default(), |sum, bin| Bin {
                offered: sum.offered + bin.offered,
                good: sum.good + bin.good,
                limit: sum.limit + bin.limit,
                in_use: sum.in_use + bin.in_use,
                queue_depth: sum.queue_depth + bin.queue_depth,
                ticks: sum.ticks + bin.ticks,
            })
        })
        .collect();
    let seconds = case.seconds / sums.len() as f64;
    let limit = |bin: &Bin| bin.limit / f64::from(bin.ticks.max(1));
    let widest = sums.iter().map(limit).fold(1.0, f64::max);
    writeln!(
        text,
        "{:>8} {:>9} {:>9} {:>7} {:>7} {:>7}",
        "s", "offered/s", "good/s", "limit", "in use", "queue"
    )?;
    for (at, bin) in sums.iter().enumerate() {
        let ticks = f64::from(bin.ticks.max(1));
        let bar = "#".repeat((limit(bin) / widest * WIDTH) as usize);
        let (t, offered, good) =
            (at as f64 * seconds, f64::from(bin.offered) / seconds, f64::from(bin.good) / seconds);
        let (limit, in_use, queue) = (limit(bin), bin.in_use / ticks, bin.queue_depth / ticks);
        writeln!(text, "{t:8.2} {offered:9.1} {good:9.1} {limit:7.1} {in_use:7.1} {queue:7.1} {bar}")?;
    }
    for moved in outcome.moves.iter().take(MOVES) {
        let super::world::Move { at_s, from, to, queue_depth, in_use, reason } = moved;
        writeln!(text, "{at_s:9.3} s  {from:3} → {to:3}  q {queue_depth:3}  in use {in_use:3}  {reason:?}")?;
    }
    if outcome.moves.len() > MOVES {
        writeln!(text, "and {} more moves", outcome.moves.len() - MOVES)?;
    }
    Ok(())
}
