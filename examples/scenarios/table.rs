//! The figures for people.

use comfy_table::{Attribute, Cell, CellAlignment, Color, Table, presets::UTF8_FULL_CONDENSED};

use crate::metrics::Row;
use crate::opponents::Choice;
use crate::record::{Move, Run};

/// A goal of the project for one column, shown red where it is missed.
struct Figure {
    text: String,
    missed: bool,
}

/// What everybody loses against the best fixed size, and below how our default does otherwise.
pub fn print(rows: &[Row], choices: &[Choice]) {
    let choices: Vec<_> = choices.iter().map(ToString::to_string).collect();
    println!(
        "Regret in %: what is lost against the best fixed size in hindsight; the mean of the seeds, and the worst."
    );
    println!("{}", regrets(rows, &choices));
    for choice in &choices {
        if choice == "adaptive" || choices.len() == 1 {
            println!("{choice}: the worst of the seeds. Red misses its goal.");
            println!("{}", details(rows, choice));
        }
    }
}

/// Every move, for whoever wants to know why.
pub fn print_moves(scenario: &str, runs: &[Run]) {
    for run in runs {
        for Move { at, instance, from, to, queue_depth, reason } in &run.moves {
            let (who, seed, at_s) = (run.choice, run.seed, at.as_secs_f64());
            println!(
                "{scenario} {seed} {who} {at_s:7.2} s #{instance} {from:2} → {to:2} q {queue_depth:3}  {reason:?}"
            );
        }
    }
}

fn regrets(rows: &[Row], choices: &[String]) -> Table {
    let mut table = table(["best size"].into_iter().chain(choices.iter().map(String::as_str)));
    let mut all = vec![Vec::new(); choices.len()];
    for group in rows.chunk_by(|a, b| a.scenario == b.scenario) {
        let mut sizes: Vec<_> = group.iter().map(|row| row.best_static_size).collect();
        sizes.sort_unstable();
        sizes.dedup();
        let sizes = sizes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let mut cells = vec![Cell::new(&group[0].scenario), Cell::new(sizes)];
        for (choice, all) in choices.iter().zip(&mut all) {
            let regrets: Vec<_> = of(group, choice).map(|row| row.regret).collect();
            cells.push(cell(&percent(&regrets)));
            all.extend(regrets);
        }
        table.add_row(cells);
    }
    let cells = all.iter().map(|regrets| cell(&percent(regrets)));
    table.add_row([Cell::new("all"), Cell::new("")].into_iter().chain(cells));
    table
}

fn details(rows: &[Row], choice: &str) -> Table {
    const HEAD: [&str; 9] = [
        "regret",
        "lost in the first 5 s",
        "reversals / cycles",
        "turns",
        "connections ÷ needed",
        "recovered in",
        "p99",
        "probes",
        "time in probes",
    ];
    let mut table = table(HEAD.into_iter());
    for group in rows.chunk_by(|a, b| a.scenario == b.scenario) {
        let worst = |value: fn(&Row) -> f64| of(group, choice).map(value).fold(0.0, f64::max);
        let cycles = group[0].load_cycles;
        let recovered = worst(|row| row.time_to_recover_s.unwrap_or(f64::INFINITY));
        let connections = worst(|row| row.connection_seconds / row.oracle_connection_seconds);
        let share =
            |value: f64, goal: f64| Figure { text: format!("{:.1} %", 100.0 * value), missed: value > goal };
        let reversals = worst(|row| f64::from(row.reversals));
        let figures = [
            share(worst(|row| row.regret), 0.02),
            share(worst(|row| row.lost_first_5s), 0.05),
            Figure { text: format!("{reversals} / {cycles}"), missed: reversals > f64::from(2 * cycles) },
            Figure { text: worst(|row| f64::from(row.turns)).to_string(), missed: false },
            Figure { text: format!("{connections:.2}"), missed: connections > 1.3 },
            Figure {
                text: if recovered.is_finite() { format!("{recovered:.1} s") } else { "never".into() },
                missed: recovered.is_infinite(),
            },
            Figure { text: format!("{:.0} ms", worst(|row| row.p99_ms.unwrap_or(0.0))), missed: false },
            Figure { text: worst(|row| f64::from(row.probes)).to_string(), missed: false },
            share(worst(|row| row.probing), 0.02),
        ];
        table.add_row([Cell::new(&group[0].scenario)].into_iter().chain(figures.iter().map(cell)));
    }
    table
}

fn of<'a>(rows: &'a [Row], choice: &str) -> impl Iterator<Item = &'a Row> {
    rows.iter().filter(move |row| row.controller == choice)
}

/// The mean and the worst.
fn percent(regrets: &[f64]) -> Figure {
    let mean = regrets.iter().sum::<f64>() / regrets.len().max(1) as f64;
    let worst = regrets.iter().copied().fold(0.0, f64::max);
    Figure { text: format!("{:.1}  {:.1}", 100.0 * mean, 100.0 * worst), missed: mean > 0.01 || worst > 0.02 }
}

fn table<'a>(head: impl Iterator<Item = &'a str>) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header([""].into_iter().chain(head).map(|text| Cell::new(text).add_attribute(Attribute::Bold)));
    table
}

fn cell(figure: &Figure) -> Cell {
    let cell = Cell::new(&figure.text).set_alignment(CellAlignment::Right);
    if figure.missed { cell.fg(Color::Red) } else { cell }
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
