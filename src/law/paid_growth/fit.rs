//! A parabola through points that are known more or less well: how [`PaidGrowth`](super::PaidGrowth) pools its evidence.

use super::evidence::Estimate;

/// Sums over weighted points, and what is believed of the parabola at 0 before any of them.
#[derive(Debug)]
pub(super) struct Fit {
    slope: Estimate,
    bend: Estimate,
    weight: f64,
    x: f64,
    y: f64,
    /// Of products: `q` is x squared.
    xx: f64,
    xq: f64,
    qq: f64,
    xy: f64,
    qy: f64,
}

impl Fit {
    pub fn new(slope: Estimate, bend: Estimate) -> Self {
        let (weight, x, y) = (0.0, 0.0, 0.0);
        let (xx, xq, qq, xy, qy) = (0.0, 0.0, 0.0, 0.0, 0.0);
        Self { slope, bend, weight, x, y, xx, xq, qq, xy, qy }
    }

    /// One point; its weight is one over its variance.
    pub fn add(&mut self, x: f64, y: f64, weight: f64) {
        let q = x * x;
        self.weight += weight;
        self.x += weight * x;
        self.y += weight * y;
        self.xx += weight * q;
        self.xq += weight * q * x;
        self.qq += weight * q * q;
        self.xy += weight * x * y;
        self.qy += weight * q * y;
    }

    /// The slope at 0, by weighted least squares: the height there drops out, slope and bend are two equations.
    pub fn slope(&self) -> Estimate {
        let weight = self.weight.max(f64::MIN_POSITIVE);
        let (x, q, y) = (self.x / weight, self.xx / weight, self.y / weight);
        let (sure, sure_bend) = (self.slope.error.powi(-2), self.bend.error.powi(-2));
        let xx = self.xx - weight * x * x + sure;
        let xq = self.xq - weight * x * q;
        let qq = self.qq - weight * q * q + sure_bend;
        let xy = self.xy - weight * x * y + sure * self.slope.value;
        let qy = self.qy - weight * q * y + sure_bend * self.bend.value;
        let det = xx * qq - xq * xq;
        Estimate { value: (xy * qq - qy * xq) / det, error: (qq / det).sqrt() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOPE: Estimate = Estimate { value: 0.8, error: 0.3 };
    const BEND: Estimate = Estimate { value: -0.3, error: 0.5 };

    #[test]
    fn without_points_it_is_what_was_believed() {
        let slope = Fit::new(SLOPE, BEND).slope();
        assert!((slope.value - 0.8).abs() < 1e-9 && (slope.error - 0.3).abs() < 1e-9, "{slope:?}");
    }

    #[test]
    fn many_points_outweigh_what_was_believed_and_their_number_is_the_error() {
        let fitted = |weight: f64| {
            let mut fit = Fit::new(SLOPE, BEND);
            for i in -10..=2 {
                let x = f64::from(i) / 5.0;
                fit.add(x, 7.0 - 0.5 * x - 0.4 * x * x, weight);
            }
            fit.slope()
        };
        let (few, many) = (fitted(10.0), fitted(100_000.0));
        assert!((many.value + 0.5).abs() < 0.001 && many.error < 0.01, "{many:?}");
        assert!(few.value > many.value && few.error > 10.0 * many.error, "{few:?}");
    }

    #[test]
    fn beyond_the_knee_the_slope_is_negative_where_the_mean_from_below_is_not() {
        let mut fit = Fit::new(SLOPE, BEND);
        let height = |size: f64| (size / (1.0 + size * size / 576.0)).ln();
        for size in [8.0, 11.0, 14.0, 18.0, 22.0, 26.0, 32.0, 38.0] {
            fit.add((size / 38.0f64).ln(), height(size), 500.0);
        }
        assert!(height(38.0) > height(11.0), "so far growth paid in the mean");
        assert!(fit.slope().value < 0.0, "{:?}", fit.slope());
    }
}
