//! The demand: what arrives, how long it holds a connection, and what it needs by Little's law.

use std::time::{Duration, Instant};

use crate::law::scale::{Sample, UseTimes};

/// Memory of the arrival rate that a step must show in, in seconds: two ticks.
const FAST: f64 = 0.020;
/// Memory of the arrival rate that must not follow every blip, in seconds.
const SLOW: f64 = 0.5;
/// Memory of the queue's depth, in seconds: shorter is a blip.
const QUEUE: f64 = 0.05;
/// Completions that the mean use time remembers, and measured ones that the use time of the moment does.
const MEMORY: f64 = 1_000.0;
const PRESENT: f64 = 64.0;
/// Measured uses while nothing waited that are remembered, and the fewest that say anything.
const UNLOADED: (f64, f64) = (200.0, 5.0);
/// What is in progress is counted over so many seconds, and usual uses; and it is slower when it lasts so many times as long.
const RECENT: (f64, f64) = (0.05, 2.0);
const SLOWER: f64 = 2.0;
/// Between two samples, when the driver is alive. A longer one saw a stall of the program, not of the database.
const LONGEST_TICK: f64 = 0.2;
/// Periods over which the peak use is remembered: four of half a second, or of four uses.
const PERIODS: usize = 4;
const PERIOD: (f64, f64) = (0.5, 4.0);
/// The time in which those who wait should be served, in seconds, beside those who arrive.
const DRAIN: f64 = 0.5;

#[derive(Debug, Default)]
pub(super) struct Demand {
    last: Option<Instant>,
    fast_arrivals_per_s: f64,
    slow_arrivals_per_s: f64,
    queue: f64,
    in_use: usize,
    waited: bool,
    /// Connection-seconds and completions, and the measured uses among them.
    held: (f64, f64),
    recent: (f64, f64),
    uses: UseTimes,
    present: UseTimes,
    unloaded: UseTimes,
    peaks: [usize; PERIODS],
    period: Option<Instant>,
}

impl Demand {
    /// Takes a sample in, and returns the seconds since the one before; 0 when that says nothing.
    pub fn observe(&mut self, now: Instant, sample: &Sample) -> f64 {
        let since =
            self.last.map_or(Duration::ZERO, |last| now.saturating_duration_since(last)).as_secs_f64();
        self.last = Some(now);
        self.note_peak(now, sample);
        if since > 0.0 {
            let arrivals_per_s = sample.arrivals.saturating_add(sample.refused) as f64 / since;
            smooth(&mut self.fast_arrivals_per_s, arrivals_per_s, since / FAST);
            smooth(&mut self.slow_arrivals_per_s, arrivals_per_s, since / SLOW);
            smooth(&mut self.queue, sample.queue_depth as f64, since / QUEUE);
            if sample.failures == 0 {
                self.note_uses(sample, since); // what failed at once is no measure
            }
        }
        (self.in_use, self.waited) = (sample.in_use, sample.queue_depth > 0);
        if since > LONGEST_TICK { 0.0 } else { since }
    }

    pub fn is_before_the_last(&self, now: Instant) -> bool {
        self.last.is_some_and(|last| now < last)
    }

    /// Little's law: connections held = arrivals × use time, with room for the scatter of both and for those who wait
    /// already (square-root staffing, Halfin and Whitt, 1981). `unloaded` is the mean logarithm of an unloaded use. Infinite
    /// while nothing is known.
    pub fn need(&self, arrivals_per_s: f64, queue_depth: usize, unloaded: Option<f64>) -> f64 {
        let (held, completions) = self.held;
        if completions < 1.0 {
            return f64::INFINITY;
        }
        // The mean use, without what the load adds to each.
        let faster =
            unloaded.zip(self.uses.ln_mean()).map_or(0.0, |(unloaded, mean)| (unloaded - mean).min(0.0));
        let held = arrivals_per_s.max(queue_depth as f64 / DRAIN) * held / completions * faster.exp();
        1.1 * held + held.sqrt()
    }

    /// Arrivals a second, refused ones too: as soon as they change, and over the last half second.
    pub fn arrivals_per_s(&self) -> (f64, f64) {
        (self.fast_arrivals_per_s, self.slow_arrivals_per_s)
    }

    /// Waiters, blips apart.
    pub fn queue(&self) -> f64 {
        self.queue
    }

    /// The mean logarithm of a use at present.
    pub fn present(&self) -> Option<f64> {
        self.present.ln_mean()
    }

    /// How long a use takes that is neither short nor long, in seconds.
    pub fn usual_use_s(&self) -> Option<f64> {
        self.present().map(f64::exp)
    }

    /// By Little's law, uses in progress last much longer than those that ended: what ends now does not show it yet.
    pub fn slows_down(&self) -> bool {
        let mean = |(held, completions): (f64, f64)| held / (completions + 0.5);
        mean(self.recent) > SLOWER * mean(self.held)
    }

    /// The mean logarithm of a use that ended while nothing waited, once known.
    pub fn unloaded(&self) -> Option<f64> {
        self.unloaded.ln_mean().filter(|_| self.unloaded.count >= UNLOADED.1)
    }

    /// The database has become so much faster, in ln.
    pub fn shift(&mut self, faster: f64) {
        self.held.0 *= (-faster).exp();
        for memory in [&mut self.uses, &mut self.unloaded] {
            memory.ln_sum -= faster * memory.count;
        }
    }

    /// The variance of the logarithm of a use.
    pub fn ln_variance(&self) -> f64 {
        // What the exponential distribution has, worth ten samples.
        let UseTimes { count, ln_sum, ln_squares } = self.uses;
        let sum = ln_squares - if count > 0.0 { ln_sum * ln_sum / count } else { 0.0 };
        (sum.max(0.0) + 16.4) / (count + 10.0)
    }

    /// The most connections held at once in the last four periods.
    pub fn peak_in_use(&self) -> usize {
        self.peaks.iter().copied().max().unwrap_or(0)
    }

    fn note_peak(&mut self, now: Instant, sample: &Sample) {
        let period = *self.period.get_or_insert(now);
        let lasts = PERIOD.0.max(PERIOD.1 * self.usual_use_s().unwrap_or(0.0));
        if now.saturating_duration_since(period).as_secs_f64() >= lasts {
            self.peaks.rotate_right(1);
            self.peaks[0] = 0;
            self.period = Some(now);
        }
        self.peaks[0] = self.peaks[0].max(sample.peak_in_use).max(sample.in_use);
    }

    fn note_uses(&mut self, sample: &Sample, since: f64) {
        // Of a late tick the same part of the completions counts as of its time. After a pause in which nothing was held, all
        // of them ended in its last tick.
        let seconds = since.min(LONGEST_TICK);
        let part = if self.in_use == 0 { 1.0 } else { seconds / since };
        let completions = part * sample.completions as f64;
        let kept = (-completions / MEMORY).exp();
        let held = f64::midpoint(self.in_use as f64, sample.in_use as f64) * seconds;
        self.held = (kept * self.held.0 + held, kept * self.held.1 + completions);
        let kept_recent = (-seconds / RECENT.0.max(RECENT.1 * self.usual_use_s().unwrap_or(0.0))).exp();
        self.recent = (kept_recent * self.recent.0 + held, kept_recent * self.recent.1 + completions);
        let remember = |memory: &mut UseTimes, length: f64| {
            memory.keep((-sample.use_times.count / length).exp());
            memory.merge(&sample.use_times);
        };
        self.uses.keep(kept);
        self.uses.merge(&sample.use_times);
        remember(&mut self.present, PRESENT);
        if !self.waited && sample.queue_depth == 0 {
            remember(&mut self.unloaded, UNLOADED.0);
        }
    }
}

/// Moves a mean towards a value, all the way when the weight is 1 or more.
fn smooth(mean: &mut f64, value: f64, weight: f64) {
    *mean += weight.min(1.0) * (value - *mean);
}
