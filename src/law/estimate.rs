//! Running estimates from samples.

use std::time::Duration;

use super::scale::UseTimes;

/// Weight of a new sample: 1 ÷ 16 forgets half of the past in eleven samples, as TCP's smoothed round-trip time does
/// with 1 ÷ 8 (RFC 6298); twice as calm, because service times scatter more than round trips.
const WEIGHT: f64 = 1.0 / 16.0;

/// A sample counts for at most so many times the mean: a connection that was forgotten for ten minutes says little about the
/// next. Queries 500 times as long as the others are not that rare, and a mean without them is wrong.
const FARTHEST: f64 = 250.0;

/// Samples that the scatter is a mean of: long queries may be one in a hundred.
const REMEMBERED: f64 = 500.0;
/// The scatter before anything was seen, and the samples that this is worth.
const SCATTER: (f64, f64) = (2.0, 20.0);

/// The smoothed mean of a duration (an exponentially weighted moving average over samples), and how far they scatter.
#[derive(Clone, Copy, Debug, Default)]
pub struct MeanTime {
    seconds: Option<f64>,
    samples: f64,
    /// Means of the samples and of their squares, over more of them.
    first: f64,
    second: f64,
    /// Those since they were taken last.
    recent: UseTimes,
}

impl MeanTime {
    /// Takes one sample in; the first one is the mean. A time of zero is none: shorter than the clock can tell, and as the first
    /// mean it would cap all that follow at zero.
    pub fn add(&mut self, value: Duration) {
        if value.is_zero() {
            return;
        }
        let mean = self.seconds.unwrap_or(value.as_secs_f64());
        self.recent.add(value.as_secs_f64());
        let value = value.as_secs_f64().min(FARTHEST * mean);
        self.seconds = Some(mean + WEIGHT * (value - mean));
        self.samples = (self.samples + 1.0).min(REMEMBERED);
        self.first += (value - self.first) / self.samples;
        self.second += (value * value - self.second) / self.samples;
    }

    /// The mean, or `None` before the first sample.
    pub fn get(&self) -> Option<Duration> {
        self.seconds.map(Duration::from_secs_f64)
    }

    /// What was added since the last call.
    pub fn take_recent(&mut self) -> UseTimes {
        std::mem::take(&mut self.recent)
    }

    /// The variance of a sample in squares of the mean: 1 for exponential times, 0 where all are alike.
    pub fn scatter(&self) -> f64 {
        let seen = if self.first > 0.0 { self.second / (self.first * self.first) - 1.0 } else { 0.0 };
        let (before, worth) = SCATTER;
        (seen.max(0.0) * self.samples + before * worth) / (self.samples + worth)
    }
}

/// What comes per second, forgotten exponentially: an event counts for 1 ÷ e of itself after `memory`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    memory: f64,
    recent: f64,
}

impl Rate {
    /// With a memory of so many seconds.
    pub const fn over(memory: f64) -> Self {
        Self { memory, recent: 0.0 }
    }

    /// So many came in the last `elapsed`.
    pub fn add(&mut self, events: u64, elapsed: Duration) {
        let kept = (-elapsed.as_secs_f64() / self.memory).exp();
        self.recent = self.recent * kept + events as f64;
    }

    /// Events of the last `memory` seconds, the older ones in part.
    pub fn recent(&self) -> f64 {
        self.recent
    }

    /// Events per second.
    pub fn per_second(&self) -> f64 {
        self.recent / self.memory
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_sample_is_the_mean_and_later_ones_pull_it() {
        let mut mean = MeanTime::default();
        assert_eq!(mean.get(), None);
        mean.add(Duration::from_millis(16));
        assert_eq!(mean.get(), Some(Duration::from_millis(16)));
        mean.add(Duration::from_millis(32));
        assert_eq!(mean.get(), Some(Duration::from_millis(17)));
    }

    #[test]
    fn a_first_time_of_zero_does_not_hide_those_that_follow() {
        let mut mean = MeanTime::default();
        mean.add(Duration::ZERO);
        assert_eq!(mean.get(), None);
        for _ in 0..50 {
            mean.add(Duration::from_millis(6));
            mean.add(Duration::ZERO);
        }
        assert_eq!(mean.get(), Some(Duration::from_millis(6)));
    }

    #[test]
    fn the_mean_of_a_mix_is_that_of_all_uses_and_its_scatter_is_known() {
        let mut mean = MeanTime::default();
        let (mut sum, mut count) = (0.0, 0.0);
        // One in a hundred takes 200 times as long: 3 ms in the mean, and 44 times the square of that as variance.
        for turn in 0..20_000 {
            mean.add(Duration::from_millis(if turn % 100 == 0 { 200 } else { 1 }));
            sum += mean.get().unwrap().as_secs_f64();
            count += 1.0;
        }
        let mean_ms = sum / count * 1e3;
        assert!((mean_ms / 2.99 - 1.0).abs() < 0.1, "{mean_ms} ms");
        assert!((35.0..55.0).contains(&mean.scatter()), "{}", mean.scatter());
    }

    #[test]
    fn what_was_added_is_taken_once() {
        let mut mean = MeanTime::default();
        mean.add(Duration::from_secs(1));
        mean.add(Duration::from_secs(2));
        let recent = mean.take_recent();
        assert!(
            (recent.count - 2.0).abs() < 1e-9 && (recent.ln_sum - 2.0f64.ln()).abs() < 1e-9,
            "{recent:?}"
        );
        assert_eq!(mean.take_recent(), UseTimes::default());
    }

    #[test]
    fn a_changed_database_is_learnt_in_a_few_dozen_samples() {
        let mut mean = MeanTime::default();
        mean.add(Duration::from_millis(6));
        for _ in 0..50 {
            mean.add(Duration::from_millis(24));
        }
        assert!(mean.get().unwrap() > Duration::from_millis(23));
    }

    #[test]
    fn a_steady_rate_is_learnt_and_forgotten() {
        let mut rate = Rate::over(1.0);
        for _ in 0..1_000 {
            rate.add(5, Duration::from_millis(10));
        }
        assert!((495.0..510.0).contains(&rate.per_second()), "{rate:?}");
        rate.add(0, Duration::from_secs(3));
        assert!(rate.per_second() < 30.0, "{rate:?}");
        rate.add(0, Duration::MAX);
        assert!(rate.recent().abs() < f64::EPSILON);
    }
}
