//! One scenario as a picture: what was sent and served, the limit and what is used, and the queue, over one time axis.

#[path = "../load_test/picture/panel.rs"]
mod panel;

use std::path::Path;

use plotters::{prelude::*, style::text_anchor::HPos};

use self::panel::{Canvas, FAINT, INK, PLOT_X, Panel, bold, plain, ticks};
use crate::Error;
use crate::opponents::Choice;
use crate::oracle;
use crate::record::{BIN_S, Bin, Run};
use crate::scenario::Scenario;

const SIZE: (u32, u32) = (1_000, 880);
const GOODPUT: std::ops::Range<i32> = 116..326;
const CONNECTIONS: std::ops::Range<i32> = 380..610;
const QUEUE: std::ops::Range<i32> = 664..844;

const SENT: RGBColor = RGBColor(217, 220, 226);
const SHADE: RGBColor = RGBColor(255, 246, 224);
const ADAPTIVE: RGBColor = RGBColor(0, 99, 177);
const USE: RGBColor = RGBColor(173, 205, 232);
const BEST: RGBColor = RGBColor(0, 135, 100);
const PLAIN: RGBColor = RGBColor(213, 94, 0);

/// A run with its name and colour.
struct Line<'a> {
    name: String,
    run: &'a Run,
    color: RGBColor,
}

/// Draws the runs of one scenario and seed: our default, the plain law, and the best fixed size.
pub fn draw(path: &Path, scenario: &Scenario, runs: &[Run]) -> Result<(), Error> {
    let canvas = SVGBackend::new(path, SIZE).into_drawing_area();
    canvas.fill(&WHITE)?;
    let sizes = oracle::sizes(scenario)?;
    let fixed = runs.iter().filter(|run| matches!(run.choice, Choice::Static(size) if sizes.contains(&size)));
    let best = oracle::best(fixed).ok_or("no fixed size was run")?;
    let named = |choice| runs.iter().find(|run| run.choice == choice);
    // The first one asked for where our default does not play.
    let other = |run: &&Run| !matches!(run.choice, Choice::Static(_) | Choice::QueueDepth);
    let ours = named(Choice::Adaptive).or_else(|| runs.iter().find(other));
    let line = |run: &'static str, color| move |of| Line { name: run.into(), run: of, color };
    let mut lines = vec![Line { name: format!("{} (best)", best.choice), run: best, color: BEST }];
    lines.extend(named(Choice::QueueDepth).map(line("queue_depth", PLAIN)));
    lines.extend(ours.map(|run| Line { name: run.choice.to_string(), run, color: ADAPTIVE }));
    let panel = |y, high| Panel { canvas: &canvas, seconds: scenario.seconds(), y, low: 0.0, high };
    draw_head(&canvas, scenario, best)?;
    draw_goodput(&panel(GOODPUT, most(&lines, |bin| f64::from(bin.offered) / BIN_S)), scenario, &lines)?;
    draw_connections(&panel(CONNECTIONS, most(&lines, |bin| bin.limit.max(bin.size))), scenario, &lines)?;
    let queue = panel(QUEUE, most(&lines, |bin| bin.queue_depth).max(4.0));
    shade_steps(&queue, scenario)?;
    queue.frame("requests that wait for a connection", &ticks(queue.high, ""))?;
    draw_lines(&queue, &lines, |bin| bin.queue_depth)?;
    queue.time_axis()?;
    Ok(canvas.present()?)
}

fn most(lines: &[Line<'_>], value: fn(&Bin) -> f64) -> f64 {
    1.1 * lines.iter().flat_map(|line| smooth(line.run, value)).map(|(_, value)| value).fold(1.0, f64::max)
}

fn draw_head(canvas: &Canvas<'_>, scenario: &Scenario, best: &Run) -> Result<(), Error> {
    let panel = Panel { canvas, seconds: 1.0, y: 0..0, low: 0.0, high: 1.0 };
    let title = format!("{}: {}", scenario.name, scenario.about);
    panel.text(&title, bold(18, INK), (PLOT_X.start, 30), HPos::Left)?;
    let facts = format!(
        "curve {}, at most {} queries/s, {} to {} connections, seed {}",
        scenario.curves[0], scenario.peak_per_s, scenario.min_size, scenario.max_size, best.seed
    );
    panel.text(&facts, ("monospace", 13).into_font().color(&FAINT), (PLOT_X.start, 58), HPos::Left)
}

fn draw_goodput(panel: &Panel<'_, '_>, scenario: &Scenario, lines: &[Line<'_>]) -> Result<(), Error> {
    shade_steps(panel, scenario)?;
    let sent = smooth(lines[0].run, |bin| f64::from(bin.offered) / BIN_S);
    panel.area(&sent, SENT)?;
    let caption = format!("requests per second: sent (grey), and served within {} ms", scenario.deadline_ms);
    panel.frame(&caption, &ticks(panel.high, ""))?;
    draw_lines(panel, lines, |bin| f64::from(bin.in_time) / BIN_S)
}

fn draw_connections(panel: &Panel<'_, '_>, scenario: &Scenario, lines: &[Line<'_>]) -> Result<(), Error> {
    shade_steps(panel, scenario)?;
    if let Some(line) = lines.last() {
        panel.area(&points(line.run, |bin| bin.in_use), USE)?;
    }
    panel.frame(
        "limit: connections wanted, the best fixed size (dashed), and connections in use (light blue)",
        &ticks(panel.high, ""),
    )?;
    let mut labels = Vec::new();
    for line in lines {
        let limit = some(points(line.run, |bin| bin.limit));
        if line.color == BEST {
            panel.dashed(&limit, style(line))?;
        } else {
            panel.curve(&limit, style(line))?;
        }
        labels
            .extend(line.run.bins.last().map(|bin| (panel.y_at(bin.limit), line.name.as_str(), line.color)));
    }
    panel.labels(PLOT_X.end + 10, labels)
}

/// The curves, each named at its end.
fn draw_lines(panel: &Panel<'_, '_>, lines: &[Line<'_>], value: fn(&Bin) -> f64) -> Result<(), Error> {
    let mut labels = Vec::new();
    for line in lines {
        let curve = smooth(line.run, value);
        labels.extend(curve.last().map(|&(_, end)| (panel.y_at(end), line.name.as_str(), line.color)));
        panel.curve(&some(curve), style(line))?;
    }
    panel.labels(PLOT_X.end + 10, labels)
}

/// Every other stretch between two steps, and how loaded it is.
fn shade_steps(panel: &Panel<'_, '_>, scenario: &Scenario) -> Result<(), Error> {
    let mut steps = scenario.steps();
    steps.retain(|&at_s| at_s > 0.0);
    for pair in steps.chunks(2) {
        panel.shade(pair[0], pair.get(1).copied().unwrap_or(scenario.seconds()), SHADE)?;
    }
    for at_s in steps {
        let name = super::table::count(at_s as u64) + " s";
        panel.text(&name, plain(11, FAINT), (panel.x_at(at_s) + 4, panel.y.start + 8), HPos::Left)?;
    }
    Ok(())
}

fn style(line: &Line<'_>) -> ShapeStyle {
    line.color.stroke_width(if line.color == ADAPTIVE { 3 } else { 2 })
}

fn some(points: Vec<(f64, f64)>) -> Vec<(f64, Option<f64>)> {
    points.into_iter().map(|(t_s, value)| (t_s, Some(value))).collect()
}

fn points(run: &Run, value: fn(&Bin) -> f64) -> Vec<(f64, f64)> {
    run.bins.iter().enumerate().map(|(bin, at)| ((bin as f64 + 0.5) * BIN_S, value(at))).collect()
}

/// Means over half a second or a two-hundredth of the run: single bins are noise.
fn smooth(run: &Run, value: fn(&Bin) -> f64) -> Vec<(f64, f64)> {
    let width = (run.bins.len() / 200).max(5);
    let mean = |bins: &[Bin]| bins.iter().map(value).sum::<f64>() / bins.len() as f64;
    let chunks = run.bins.chunks(width).enumerate();
    chunks
        .map(|(i, bins)| ((i * width) as f64 * BIN_S + bins.len() as f64 * BIN_S / 2.0, mean(bins)))
        .collect()
}
