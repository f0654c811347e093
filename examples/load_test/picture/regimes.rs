//! Many rounds as a picture: for each scenario the pools side by side, each round a dot.

use std::path::Path;

use plotters::{prelude::*, style::text_anchor::HPos};

use super::{
    colors,
    panel::{Canvas, FAINT, INK, PLOT_X, Panel, bold, plain, ticks},
};
use crate::{
    Error,
    report::Run,
    rounds::{Pool, goodput, median, pools},
    scenario::Scenario,
};

const WIDTH: u32 = 1_000;
const HEAD: i32 = 84;
const PANEL: i32 = 170;
const GAP: i32 = 66;

/// Draws the rounds into an SVG file; `command` is what made them.
pub fn draw(path: &Path, runs: &[Run], command: &str) -> Result<(), Error> {
    let scenarios = pools(runs);
    let judged = |name| Scenario::named(name).map_or(&[][..], |scenario| scenario.judged);
    let panels: Vec<_> = scenarios
        .iter()
        .flat_map(|(name, pools)| judged(name).iter().map(move |phase| (name, *phase, pools)))
        .collect();
    let height = HEAD + panels.len() as i32 * (PANEL + GAP);
    let canvas = SVGBackend::new(path, (WIDTH, height as u32)).into_drawing_area();
    canvas.fill(&WHITE)?;
    for (at, (scenario, phase, pools)) in panels.into_iter().enumerate() {
        let top = HEAD + at as i32 * (PANEL + GAP);
        draw_phase(&canvas, top..top + PANEL, (scenario, phase), pools)?;
    }
    let head = Panel { canvas: &canvas, seconds: 1.0, y: 0..0, low: 0.0, high: 1.0 };
    let title = "Goodput by pool: each dot a round, the line the median";
    head.text(title, bold(20, INK), (PLOT_X.start, 26), HPos::Left)?;
    // The command is longer than the picture is wide.
    let command: String = command.chars().take(124).collect();
    head.text(&command, ("monospace", 11).into_font().color(&FAINT), (PLOT_X.start, 50), HPos::Left)?;
    Ok(canvas.present()?)
}

fn draw_phase(
    canvas: &Canvas<'_>,
    y: std::ops::Range<i32>,
    (scenario, phase): (&str, &str),
    pools: &[Pool<'_>],
) -> Result<(), Error> {
    let bottom = y.end;
    let per_second = |pool: &Pool<'_>| -> Vec<f64> {
        let seconds = |run: &Run| run.phase(phase).map_or(1.0, |part| f64::from(part.phase.seconds));
        pool.runs.iter().map(|run| goodput(run, phase) / seconds(run)).collect()
    };
    let most = pools.iter().flat_map(per_second).fold(1.0, f64::max);
    let columns = pools.len() as f64;
    let panel = Panel { canvas, seconds: columns, y, low: 0.0, high: most * 1.1 };
    panel.frame(&format!("{scenario}, {phase}: good answers per second"), &ticks(most * 1.1, ""))?;
    let colors = colors(pools.iter().map(|pool| pool.name));
    for (at, (pool, color)) in pools.iter().zip(colors).enumerate() {
        let values = per_second(pool);
        let (left, middle) = (at as f64 + 0.2, at as f64 + 0.5);
        let line = [(left, Some(median(values.clone()))), (at as f64 + 0.8, Some(median(values.clone())))];
        panel.curve(&line, color.stroke_width(3))?;
        for (round, value) in values.iter().enumerate() {
            let x = left + 0.6 * (round as f64 + 0.5) / values.len() as f64;
            let dot = Circle::new((panel.x_at(x), panel.y_at(*value)), 3, color.filled());
            canvas.draw(&dot)?;
        }
        panel.text(pool.name, plain(13, INK), (panel.x_at(middle), bottom + 16), HPos::Center)?;
    }
    Ok(())
}
