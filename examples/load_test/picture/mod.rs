//! One scenario's runs as a picture: three panels over one time axis.

mod panel;
pub mod regimes;

use std::path::Path;

use plotters::{prelude::*, style::text_anchor::HPos};

use self::panel::{Canvas, FAINT, INK, PLOT_X, Panel, bold, plain, ticks};
use crate::{
    Error,
    args::is_adaptive,
    report::{Run, TimelineRow},
    scenario::BURST,
    table::count,
};

const SIZE: (u32, u32) = (1_000, 880);
const RATES: std::ops::Range<i32> = 116..316;
const LATENCIES: std::ops::Range<i32> = 370..590;
const CONNECTIONS: std::ops::Range<i32> = 644..844;

const SENT: RGBColor = RGBColor(217, 220, 226);
const SHADE: RGBColor = RGBColor(255, 246, 224);
/// The adaptive pools' colours, then the others': apart for colour-blind eyes too.
const ADAPTIVE: [RGBColor; 2] = [RGBColor(0, 99, 177), RGBColor(64, 168, 228)];
const STATIC: [RGBColor; 4] =
    [RGBColor(213, 94, 0), RGBColor(0, 135, 100), RGBColor(165, 70, 150), RGBColor(110, 100, 90)];

/// A pool's run with the colour it has in all panels.
struct Line<'a> {
    run: &'a Run,
    style: ShapeStyle,
}

/// Draws runs of the same scenario into an SVG file; `command` is what made them.
pub fn draw(path: &Path, runs: &[&Run], command: &str) -> Result<(), Error> {
    let canvas = SVGBackend::new(path, SIZE).into_drawing_area();
    // Its own background: GitHub shows it on white pages and on black ones.
    canvas.fill(&WHITE)?;
    let lines = lines(runs);
    let seconds = runs[0].phases.iter().map(|part| part.phase.seconds).sum::<u32>().into();
    let panel = |y, low, high| Panel { canvas: &canvas, seconds, y, low, high };
    let sent = runs.iter().flat_map(|run| &run.timeline).map(|row| row.load.offered).max().unwrap_or(0)
        as f64
        * 10.0;
    draw_rates(&panel(RATES, 0.0, sent * 1.16), &lines)?;
    let (low, high) = decades(&lines);
    draw_latencies(&panel(LATENCIES, low, high), &lines)?;
    let most = runs
        .iter()
        .flat_map(|run| &run.timeline)
        .flat_map(|row| [open(row), row.limit.map(|limit| limit as f64)])
        .flatten()
        .fold(1.0, f64::max);
    draw_connections(&panel(CONNECTIONS, 0.0, most * 1.1), &lines)?;
    draw_head(&canvas, runs, command)?;
    Ok(canvas.present()?)
}

/// The adaptive pools' last, so that they lie over the others; the first of them on top.
fn lines<'a>(runs: &[&'a Run]) -> Vec<Line<'a>> {
    let colors = colors(runs.iter().map(|run| run.pool.as_str()));
    let (adaptive, fixed): (Vec<_>, Vec<_>) =
        runs.iter().zip(colors).partition(|(run, _)| is_adaptive(&run.pool));
    let line =
        |width| move |(run, color): (&&'a Run, RGBColor)| Line { run, style: color.stroke_width(width) };
    fixed.into_iter().map(line(2)).chain(adaptive.into_iter().rev().map(line(3))).collect()
}

/// A colour for each of these pools: the adaptive ones have their own, the others take turns.
fn colors<'a>(pools: impl Iterator<Item = &'a str>) -> Vec<RGBColor> {
    let (mut adaptive, mut fixed) = (ADAPTIVE.iter().cycle(), STATIC.iter().cycle());
    let next = pools.filter_map(|pool| if is_adaptive(pool) { adaptive.next() } else { fixed.next() });
    next.copied().collect()
}

fn draw_head(canvas: &Canvas<'_>, runs: &[&Run], command: &str) -> Result<(), Error> {
    let panel = Panel { canvas, seconds: 1.0, y: 0..0, low: 0.0, high: 1.0 };
    let rates: Vec<_> = runs[0].phases.iter().map(|part| count(part.phase.rate_per_s.into())).collect();
    let pools: Vec<_> = runs.iter().map(|run| run.pool.as_str()).collect();
    let title = format!("{}: {} requests/s over {}", runs[0].scenario, rates.join(" → "), pools.join(", "));
    panel.text(&title, bold(20, INK), (PLOT_X.start, 30), HPos::Left)?;
    panel.text(command, ("monospace", 13).into_font().color(&FAINT), (PLOT_X.start, 58), HPos::Left)
}

fn draw_rates(panel: &Panel<'_, '_>, lines: &[Line<'_>]) -> Result<(), Error> {
    let burst_end = shade_burst(panel, lines[0].run)?;
    panel.area(&points(lines[0].run, |row| row.load.offered as f64 * 10.0), SENT)?;
    panel
        .frame("requests per second: sent (grey), and served within 100 ms", &ticks(panel.high / 1.16, ""))?;
    let mut labels = Vec::new();
    for line in lines {
        panel.curve(&maybe(line.run, |row| Some(row.load.within_100ms as f64 * 10.0)), line.style)?;
        let kept_up = line
            .run
            .phase(BURST)
            .map_or(0.0, |part| part.load.within_100ms as f64 / f64::from(part.phase.seconds));
        // Above the calm that follows the burst.
        labels.push((panel.y_at(kept_up.max(panel.high / 6.0)), line.run.pool.as_str(), color(line)));
    }
    panel.labels(panel.x_at(burst_end) + 10, labels)?;
    let mut begin_s = 0.0;
    for part in &lines[0].run.phases {
        let name = format!("{}: {}/s", part.phase.name, count(part.phase.rate_per_s.into()));
        panel.text(&name, plain(13, FAINT), (panel.x_at(begin_s) + 8, panel.y.start + 12), HPos::Left)?;
        begin_s += f64::from(part.phase.seconds);
    }
    Ok(())
}

fn draw_latencies(panel: &Panel<'_, '_>, lines: &[Line<'_>]) -> Result<(), Error> {
    shade_burst(panel, lines[0].run)?;
    let decades = (panel.low as i32..=panel.high as i32).map(|power| {
        let name = if power < 3 {
            format!("{} ms", 10_f64.powi(power))
        } else {
            format!("{} s", 10_i32.pow(power as u32 - 3))
        };
        (f64::from(power), name)
    });
    panel.frame(
        "p99 of the requests sent at that moment and served (logarithmic)",
        &decades.collect::<Vec<_>>(),
    )?;
    draw_lines(panel, lines, |row| row.load.p99_ms.map(f64::log10))
}

fn draw_connections(panel: &Panel<'_, '_>, lines: &[Line<'_>]) -> Result<(), Error> {
    shade_burst(panel, lines[0].run)?;
    panel.frame("open connections, and the adaptive pools' limits (dashed)", &ticks(panel.high, ""))?;
    for line in lines.iter().filter(|line| is_adaptive(&line.run.pool)) {
        let limit = maybe(line.run, |row| row.limit.map(|limit| limit as f64));
        panel.dashed(&limit, color(line).mix(0.7).stroke_width(2))?;
    }
    panel.time_axis()?;
    draw_lines(panel, lines, open)
}

/// What the server holds: connections in use, idle ones and those in reserve.
fn open(row: &TimelineRow) -> Option<f64> {
    Some((row.in_use? + row.idle? + row.reserve?) as f64)
}

/// The curves, each named at its end.
fn draw_lines(
    panel: &Panel<'_, '_>,
    lines: &[Line<'_>],
    value: fn(&TimelineRow) -> Option<f64>,
) -> Result<(), Error> {
    let mut labels = Vec::new();
    for line in lines {
        let curve = maybe(line.run, value);
        panel.curve(&curve, line.style)?;
        if let Some(end) = curve.iter().rev().find_map(|(_, value)| *value) {
            labels.push((panel.y_at(end), line.run.pool.as_str(), color(line)));
        }
    }
    panel.labels(PLOT_X.end + 10, labels)
}

/// Marks the burst and says when it ended.
fn shade_burst(panel: &Panel<'_, '_>, run: &Run) -> Result<f64, Error> {
    let mut begin_s = 0.0;
    for part in &run.phases {
        let end_s = begin_s + f64::from(part.phase.seconds);
        if part.phase.name == BURST {
            panel.shade(begin_s, end_s, SHADE)?;
            return Ok(end_s);
        }
        begin_s = end_s;
    }
    Ok(panel.seconds)
}

/// The powers of ten that all latencies lie between.
fn decades(lines: &[Line<'_>]) -> (f64, f64) {
    let latencies = || lines.iter().flat_map(|line| &line.run.timeline).filter_map(|row| row.load.p99_ms);
    let low = latencies().fold(10.0, f64::min).max(0.1).log10().floor();
    (low, latencies().fold(0.0, f64::max).log10().ceil().max(low + 1.0))
}

fn color(line: &Line<'_>) -> RGBColor {
    let (r, g, b) = line.style.color.rgb();
    RGBColor(r, g, b)
}

/// A curve over the run, each value in the middle of its tenth of a second.
fn maybe(run: &Run, value: fn(&TimelineRow) -> Option<f64>) -> Vec<(f64, Option<f64>)> {
    run.timeline.iter().map(|row| (row.load.t_s + 0.05, value(row))).collect()
}

fn points(run: &Run, value: fn(&TimelineRow) -> f64) -> Vec<(f64, f64)> {
    run.timeline.iter().map(|row| (row.load.t_s + 0.05, value(row))).collect()
}
