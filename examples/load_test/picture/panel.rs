//! A panel: a plot with its axes, drawn straight in pixels.

use std::ops::Range;

use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use crate::Error;

pub const INK: RGBColor = RGBColor(31, 41, 55);
pub const FAINT: RGBColor = RGBColor(107, 114, 128);
const GRID: RGBColor = RGBColor(229, 231, 235);

/// Where the plots begin and end from left to right; to the right of them stand the labels.
pub const PLOT_X: Range<i32> = 64..872;
const LABEL_HEIGHT: i32 = 17;

pub type Canvas<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Maps time and value to pixels. Values grow upwards from `low`; on a log scale they are given as logarithms.
pub struct Panel<'a, 'svg> {
    pub canvas: &'a Canvas<'svg>,
    pub seconds: f64,
    pub y: Range<i32>,
    pub low: f64,
    pub high: f64,
}

impl Panel<'_, '_> {
    pub fn x_at(&self, t_s: f64) -> i32 {
        PLOT_X.start + (t_s / self.seconds * f64::from(PLOT_X.end - PLOT_X.start)).round() as i32
    }

    pub fn y_at(&self, value: f64) -> i32 {
        let up = (value - self.low) / (self.high - self.low);
        self.y.end - (up.clamp(0.0, 1.0) * f64::from(self.y.end - self.y.start)).round() as i32
    }

    pub fn shade(&self, from_s: f64, until_s: f64, color: RGBColor) -> Result<(), Error> {
        let corners = [(self.x_at(from_s), self.y.start), (self.x_at(until_s), self.y.end)];
        Ok(self.canvas.draw(&Rectangle::new(corners, color.filled()))?)
    }

    /// What the panel shows, above it, and its horizontal grid lines with what they stand for.
    pub fn frame(&self, caption: &str, ticks: &[(f64, String)]) -> Result<(), Error> {
        self.text(caption, bold(14, INK), (PLOT_X.start, self.y.start - 14), HPos::Left)?;
        for (value, name) in ticks {
            let y = self.y_at(*value);
            self.canvas.draw(&PathElement::new([(PLOT_X.start, y), (PLOT_X.end, y)], GRID))?;
            self.text(name, plain(12, FAINT), (PLOT_X.start - 8, y), HPos::Right)?;
        }
        Ok(())
    }

    pub fn time_axis(&self) -> Result<(), Error> {
        for (t_s, name) in ticks(self.seconds, " s") {
            self.text(&name, plain(12, FAINT), (self.x_at(t_s), self.y.end + 14), HPos::Center)?;
        }
        Ok(())
    }

    /// The area under a curve.
    pub fn area(&self, points: &[(f64, f64)], color: RGBColor) -> Result<(), Error> {
        let (Some(first), Some(last)) = (points.first(), points.last()) else {
            return Ok(());
        };
        let curve = points.iter().map(|&(t_s, value)| (self.x_at(t_s), self.y_at(value)));
        let corners = [(self.x_at(first.0), self.y.end)]
            .into_iter()
            .chain(curve)
            .chain([(self.x_at(last.0), self.y.end)]);
        Ok(self.canvas.draw(&Polygon::new(corners.collect::<Vec<_>>(), color.filled()))?)
    }

    /// A curve, interrupted where there is no value.
    pub fn curve(&self, points: &[(f64, Option<f64>)], style: ShapeStyle) -> Result<(), Error> {
        for piece in points.split(|(_, value)| value.is_none()) {
            let pixels = piece.iter().filter_map(|&(t_s, value)| Some((self.x_at(t_s), self.y_at(value?))));
            self.canvas.draw(&PathElement::new(pixels.collect::<Vec<_>>(), style))?;
        }
        Ok(())
    }

    /// The same, dashed.
    pub fn dashed(&self, points: &[(f64, Option<f64>)], style: ShapeStyle) -> Result<(), Error> {
        let pixels = points.iter().filter_map(|&(t_s, value)| Some((self.x_at(t_s), self.y_at(value?))));
        Ok(self.canvas.draw(&plotters::element::DashedPathElement::new(
            pixels.collect::<Vec<_>>(),
            6,
            4,
            style,
        ))?)
    }

    /// Names the curves where they are: each label as near as can be to its height, none over another.
    pub fn labels(&self, x: i32, mut labels: Vec<(i32, &str, RGBColor)>) -> Result<(), Error> {
        labels.sort_by_key(|&(y, ..)| y);
        let mut free = self.y.start + LABEL_HEIGHT / 2;
        for label in &mut labels {
            label.0 = label.0.max(free);
            free = label.0 + LABEL_HEIGHT;
        }
        let mut free = self.y.end - LABEL_HEIGHT / 2;
        for label in labels.iter_mut().rev() {
            label.0 = label.0.min(free);
            free = label.0 - LABEL_HEIGHT;
        }
        labels.iter().try_for_each(|&(y, name, color)| self.text(name, bold(13, color), (x, y), HPos::Left))
    }

    pub fn text(&self, text: &str, font: TextStyle<'_>, at: (i32, i32), align: HPos) -> Result<(), Error> {
        Ok(self.canvas.draw_text(text, &font.pos(Pos::new(align, VPos::Center)), at)?)
    }
}

pub fn plain(size: u32, color: RGBColor) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&color)
}

pub fn bold(size: u32, color: RGBColor) -> TextStyle<'static> {
    ("sans-serif", size).into_font().style(FontStyle::Bold).color(&color)
}

/// Round values from 0 to `high`, about five of them.
pub fn ticks(high: f64, unit: &str) -> Vec<(f64, String)> {
    let decade = 10_f64.powf((high / 5.0).log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].map(|k| (k * decade).max(1.0)).into_iter().find(|step| high / step < 6.0);
    let step = step.unwrap_or(high.max(1.0));
    let values = (0..=(high / step) as u64).map(|k| k as f64 * step);
    values.map(|value| (value, crate::table::count(value as u64) + unit)).collect()
}
