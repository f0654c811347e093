//! How many queries a second a database finishes, by how many run at once.

use std::str::FromStr;

use crate::Error;

/// What was measured on a real PostgreSQL, one line a workload and number of connections.
const MEASURED: &str = include_str!("data/pg_throughput_curves.csv");
/// As far as the curves go: eight instances with 50 connections each, and a rival.
pub const MOST: usize = 512;

/// Queries a second at 0, 1, 2 ... queries running at once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Curve(Vec<f64>);

impl Curve {
    /// Scaled so that the best of 1 to `within` is `peak_per_s`.
    pub fn scaled(mut self, peak_per_s: f64, within: usize) -> Self {
        let best = self.0[..=within.min(MOST)].iter().copied().fold(0.0, f64::max);
        self.0.iter_mut().for_each(|rate| *rate *= peak_per_s / best);
        self
    }

    /// Queries a second with `running` at once.
    pub fn at(&self, running: usize) -> f64 {
        self.0[running.min(MOST)]
    }

    /// The most that it gives for 1 to `within`.
    pub fn peak(&self, within: usize) -> f64 {
        self.0[..=within.min(MOST)].iter().copied().fold(0.0, f64::max)
    }

    /// So many times as high.
    pub fn times(mut self, factor: f64) -> Self {
        self.0.iter_mut().for_each(|rate| *rate *= factor);
        self
    }

    /// The same curve with its sizes stretched: a knee at 20 moves to 10 where `factor` is 0.5.
    pub fn stretched(&self, factor: f64) -> Self {
        Self::sampled(|n| {
            let at = (n / factor).min(MOST as f64);
            let (below, part) = (at.floor() as usize, at.fract());
            self.at(below) * (1.0 - part) + self.at(below + 1) * part
        })
        .times(factor)
    }

    /// Rises in proportion, and falls past the knee the steeper the larger the exponent: X(n) = n ÷ (1 + c nᵖ). With
    /// p = 2 it is the Universal Scalability Law without contention.
    pub fn falling(knee: f64, exponent: f64) -> Self {
        let c = 1.0 / ((exponent - 1.0) * knee.powf(exponent));
        Self::sampled(|n| n / (1.0 + c * n.powf(exponent)))
    }

    /// Rises in proportion, and stays where it is past the knee.
    pub fn plateau(knee: f64) -> Self {
        Self::sampled(|n| n / (1.0 + (n / knee).powi(4)).powf(0.25))
    }

    /// A plateau that falls by half past the edge: memory that is full, a lock that is fought for.
    pub fn cliff(knee: f64, edge: f64) -> Self {
        let plateau = Self::plateau(knee);
        Self::sampled(|n| plateau.at(n as usize) * if n > edge { 0.5 } else { 1.0 })
    }

    /// Two maxima: one at `first`, one at `second` that is so many times as high.
    pub fn humps(first: f64, second: f64, times: f64) -> Self {
        let (low, high) = (Self::falling(first, 3.0), Self::falling(second, 4.0));
        let times = times * low.peak(MOST) / high.peak(MOST);
        Self::sampled(|n| {
            // From one to the other between the two, on a logarithmic scale.
            let along = ((n / first).ln() / (second / first).ln()).clamp(0.0, 1.0);
            let n = n as usize;
            low.at(n).max(times * high.at(n) * along * along)
        })
    }

    fn sampled(at: impl Fn(f64) -> f64) -> Self {
        Self((0..=MOST).map(|n| if n == 0 { 0.0 } else { at(n as f64) }).collect())
    }

    /// The Universal Scalability Law (Gunther, 1993) without contention: X(n) = n ÷ (1 + κn(n − 1)), whose best n is
    /// √(1 ÷ κ).
    fn universal(knee: f64) -> Self {
        Self::sampled(|n| n / (1.0 + n * (n - 1.0) / (knee * knee)))
    }

    /// Straight lines between what was measured, on logarithmic scales.
    pub fn measured(workload: &str) -> Result<Self, Error> {
        let points = MEASURED.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            let mut fields = line.split(',');
            let (name, n, rate) = (fields.next()?, fields.next()?, fields.next()?);
            Some((name, n.parse::<f64>().ok()?.ln(), rate.parse::<f64>().ok()?.ln()))
        });
        let points: Vec<_> =
            points.filter(|&(name, ..)| name == workload).map(|(_, n, rate)| (n, rate)).collect();
        if points.len() < 2 {
            return Err(format!("no workload {workload:?} was measured").into());
        }
        Ok(Self::sampled(|n| {
            let n = n.ln();
            // Beyond both ends the nearest line goes on; below the first point no faster than in proportion.
            let right = points.partition_point(|&(at, _)| at < n).clamp(1, points.len() - 1);
            let ((n0, x0), (n1, x1)) = (points[right - 1], points[right]);
            let slope = if n < n0 { 1.0 } else { (x1 - x0) / (n1 - n0) };
            (x0 + slope * (n - n0)).exp()
        }))
    }
}

impl FromStr for Curve {
    type Err = Error;

    /// `usl:24` (a knee at 24), or `measured:lock6`.
    fn from_str(text: &str) -> Result<Self, Error> {
        match text.split_once(':') {
            Some(("usl", knee)) => Ok(Self::universal(knee.parse()?)),
            Some(("measured", workload)) => Self::measured(workload),
            _ => Err(format!("curve {text:?} is neither usl:KNEE nor measured:WORKLOAD").into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_knee_is_where_it_was_asked_for() {
        for knee in [4, 12, 24] {
            let curve: Curve = format!("usl:{knee}").parse().unwrap();
            let best = (1..=100).max_by(|&a, &b| curve.at(a).total_cmp(&curve.at(b)));
            assert_eq!(best, Some(knee));
        }
        let none: Curve = "usl:200".parse().unwrap();
        assert!((1..100).all(|n| none.at(n + 1) > none.at(n)));
    }

    #[test]
    fn measured_points_are_met_and_scaled() {
        let curve: Curve = "measured:lock6".parse().unwrap();
        assert!((curve.at(18) - 2091.0).abs() < 1e-6);
        assert!((curve.at(50) - 1242.0).abs() < 1e-6);
        assert!(curve.at(30) < curve.at(25) && curve.at(30) > curve.at(32));
        let scaled = curve.scaled(1_000.0, 50);
        assert!((scaled.at(18) - 1_000.0).abs() < 1e-6);
        assert!("measured:nothing".parse::<Curve>().is_err());
    }
}
