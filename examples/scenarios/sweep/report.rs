//! The distribution of regret and harm, for people.

use std::collections::BTreeMap;

use comfy_table::{Table, presets::ASCII_MARKDOWN};

use super::Row;
use crate::Error;
use crate::opponents::Choice;

/// What a family's slashes separate.
const DIMENSIONS: [&str; 6] = ["curve", "service time", "scale", "arrivals", "event", "neighbours"];
/// How many of the worst are named.
const WORST: usize = 10;

pub fn print(rows: &[Row], choices: &[Choice]) {
    println!("Percent of the goodput of the best fixed limit; harm is against queue_depth.");
    let mut table = new_table([
        "controller",
        "regret: mean",
        "p50",
        "p95",
        "p99",
        "worst",
        "noise",
        "harm: mean",
        "p95",
        "p99",
        "worst",
        "no refusals: mean",
        "p99",
    ]);
    for choice in choices {
        let rows = of(rows, *choice);
        let regrets = sorted(rows.iter().map(|row| row.regret));
        let harms = sorted(rows.iter().map(|row| row.harm));
        let calm = sorted(rows.iter().filter(|row| row.best_refused == 0).map(|row| row.regret));
        let noise = sorted(rows.iter().map(|row| row.noise));
        let mut cells = vec![choice.to_string(), percent(mean(&regrets))];
        cells.extend([0.5, 0.95, 0.99, 1.0].map(|part| percent(quantile(&regrets, part))));
        cells.extend([percent(quantile(&noise, 0.5)), percent(mean(&harms))]);
        cells.extend([0.95, 0.99, 1.0].map(|part| percent(quantile(&harms, part))));
        cells.extend([percent(mean(&calm)), percent(quantile(&calm, 0.99))]);
        table.add_row(cells);
    }
    println!("{table}");
    for choice in choices.iter().filter(|choice| choice.is_ours()).take(1) {
        let mut rows = of(rows, *choice);
        println!(
            "{choice}, by family: scenarios, regret (mean, p95, worst), harm (p99), queue_depth's regret."
        );
        println!("{}", families(&rows));
        rows.sort_by(|a, b| b.regret.total_cmp(&a.regret));
        println!("The {WORST} with the most regret:");
        println!("{}", worst(&rows));
        rows.sort_by(|a, b| b.harm.total_cmp(&a.harm));
        println!("The {WORST} with the most harm:");
        println!("{}", worst(&rows));
    }
}

/// Our default's regret and harm may not grow unnoticed.
pub fn within(rows: &[Row], regret: f64, harm: f64) -> Result<(), Error> {
    let rows = of(rows, Choice::Adaptive);
    let mean = 100.0 * mean(&sorted(rows.iter().map(|row| row.regret)));
    let harms = 100.0 * quantile(&sorted(rows.iter().map(|row| row.harm)), 0.95);
    if mean <= regret && harms <= harm {
        return Ok(());
    }
    Err(format!(
        "mean regret {mean:.2} % (at most {regret}), harm in 95 of 100 {harms:.2} % (at most {harm})"
    )
    .into())
}

fn families(rows: &[&Row]) -> Table {
    let mut table =
        new_table(["dimension", "family", "n", "mean", "p95", "worst", "harm p99", "queue_depth"]);
    for (at, dimension) in DIMENSIONS.into_iter().enumerate() {
        let mut groups: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
        for row in rows {
            groups.entry(row.family.split('/').nth(at).unwrap_or("")).or_default().push(row);
        }
        for (family, rows) in groups {
            let regrets = sorted(rows.iter().map(|row| row.regret));
            let harms = sorted(rows.iter().map(|row| row.harm));
            let plain = mean(&regrets) - rows.iter().map(|row| row.harm).sum::<f64>() / rows.len() as f64;
            table.add_row([
                dimension.to_owned(),
                family.to_owned(),
                rows.len().to_string(),
                percent(mean(&regrets)),
                percent(quantile(&regrets, 0.95)),
                percent(quantile(&regrets, 1.0)),
                percent(quantile(&harms, 0.99)),
                percent(plain),
            ]);
        }
    }
    table
}

fn worst(rows: &[&Row]) -> Table {
    let mut table = new_table(["seed", "family", "load", "regret", "own", "harm", "limit", "best", "noise"]);
    for row in rows.iter().take(WORST) {
        table.add_row([
            row.seed.to_string(),
            row.family.clone(),
            format!("{:.2}", row.load),
            percent(row.regret),
            percent(row.own_regret),
            percent(row.harm),
            row.final_limit.to_string(),
            row.best_limit.to_string(),
            percent(row.noise),
        ]);
    }
    table
}

fn of(rows: &[Row], choice: Choice) -> Vec<&Row> {
    let name = choice.to_string();
    rows.iter().filter(|row| row.controller == name).collect()
}

fn new_table<T: Into<String>>(head: impl IntoIterator<Item = T>) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_header(head.into_iter().map(Into::<String>::into));
    table
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<_> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

fn quantile(sorted: &[f64], part: f64) -> f64 {
    let at = (part * sorted.len() as f64).ceil() as usize;
    sorted.get(at.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(0.0)
}

fn percent(value: f64) -> String {
    format!("{:.2}", 100.0 * value)
}
