//! What arrives and what is used, smoothed: what [`PaidGrowth`](super::PaidGrowth) knows of the load.

use std::time::{Duration, Instant};

use crate::law::scale::Sample;

/// Memory of the arrival rate that a step must show in, in seconds: two ticks.
const FAST: f64 = 0.020;
/// Memory of the arrival rate that must not follow every blip, in seconds.
const SLOW: f64 = 0.5;
/// Memory of the queue's depth, in seconds: shorter is a blip.
const QUEUE: f64 = 0.05;
/// Memory of what is used while it is not known how long it will last, in seconds.
const USED: f64 = 0.1;
/// Completions over which the use time of a database that nothing waits for is a mean: of long and short queries mixed,
/// fewer say little.
const LOW_MEMORY: f64 = 300.0;
/// Fewest of them that say anything: of those that began together the short ones end first.
const LOW_FEWEST: f64 = 30.0;
/// And with siblings on the database: what one would go by instead, uses while it is saturated, grows as the siblings do,
/// and all of them would grow in turn.
const LOW_FEWEST_SHARED: f64 = 1.0;
/// Between two samples, when the driver is alive. A longer one saw a stall of the program, not of the database.
const LONGEST_TICK: Duration = Duration::from_millis(200);
/// Periods over which the peak use is remembered: four of half a second.
const PERIODS: usize = 4;
const PERIOD: Duration = Duration::from_millis(500);
/// Without a completion for so long, and for four times a use, the database stands still.
const SHORTEST_STALL: Duration = Duration::from_millis(20);

#[derive(Debug, Default)]
pub(super) struct Load {
    last: Option<Instant>,
    last_completion: Option<Instant>,
    fast_arrivals_per_s: f64,
    slow_arrivals_per_s: f64,
    queue: f64,
    /// Connection-seconds and completions over the last tenth of a second, those before it in part.
    used: (f64, f64),
    share: f64,
    /// Connection-seconds and completions while nothing waits.
    low: (f64, f64),
    /// Connections held at the last sample, when nobody waited.
    low_in_use: Option<usize>,
    peaks: [usize; PERIODS],
    period: Option<Instant>,
}

impl Load {
    /// Takes a sample in, and returns the seconds since the one before; 0 when that says nothing.
    pub fn observe(&mut self, now: Instant, sample: &Sample) -> f64 {
        let since = self.last.map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        self.last = Some(now);
        self.note_peak(now, sample);
        if sample.completions > 0 {
            self.last_completion = Some(now);
        }
        let seconds = since.as_secs_f64();
        if seconds > 0.0 {
            // Alone, what is refused shows in the evidence; one of many has little of that, and goes by the need.
            let refused = if sample.share < 1.0 { sample.refused } else { 0 };
            let arrivals_per_s = sample.arrivals.saturating_add(refused) as f64 / seconds;
            smooth(&mut self.fast_arrivals_per_s, arrivals_per_s, seconds / FAST);
            smooth(&mut self.slow_arrivals_per_s, arrivals_per_s, seconds / SLOW);
            smooth(&mut self.queue, sample.queue_depth as f64, seconds / QUEUE);
            let kept = (-seconds / USED).exp();
            self.used.0 = self.used.0 * kept + sample.in_use as f64 * seconds.min(USED);
            self.used.1 = self.used.1 * kept + self.ended(sample, seconds, USED);
        }
        self.share = sample.share;
        self.note_low_use(sample, seconds);
        if since > LONGEST_TICK { 0.0 } else { seconds }
    }

    pub fn is_before_the_last(&self, now: Instant) -> bool {
        self.last.is_some_and(|last| now < last)
    }

    /// Connections the load needs by Little's law at a database that is not loaded, with room for its scatter: infinite
    /// while nothing is known.
    pub fn need(&self, arrivals_per_s: f64, shortest_use: Option<f64>, use_time: Option<Duration>) -> f64 {
        let Some(use_time) = self.unloaded_use(shortest_use).or(use_time.map(|time| time.as_secs_f64()))
        else {
            return f64::INFINITY;
        };
        let held = arrivals_per_s * use_time;
        1.1 * held + held.sqrt()
    }

    /// Whether it was ever seen with nobody waiting: all else may be the load of others.
    pub fn knows_low_use(&self) -> bool {
        self.low.1 >= LOW_FEWEST
    }

    /// What a connection is held for where the database has nothing else to do, in seconds.
    pub fn unloaded_use(&self, shortest_use: Option<f64>) -> Option<f64> {
        match (shortest_use, self.low_use()) {
            (Some(seen), Some(low)) => Some(seen.min(low)),
            (seen, low) => seen.or(low),
        }
    }

    /// Arrivals a second, as soon as they change.
    pub fn arrivals_per_s(&self) -> f64 {
        self.fast_arrivals_per_s
    }

    /// Arrivals a second over the last half second.
    pub fn steady_arrivals_per_s(&self) -> f64 {
        self.slow_arrivals_per_s
    }

    /// How long a connection is held, in seconds, by Little's law: those in use now are samples too, cut off at this moment.
    /// Infinite while nothing ends.
    pub fn use_in_progress(&self) -> f64 {
        self.used.0 / self.used.1
    }

    /// Waiters, blips apart.
    pub fn queue(&self) -> f64 {
        self.queue
    }

    /// Nothing has been completed for so long that the database stands still.
    pub fn stalled(&self, now: Instant, use_time: Duration) -> bool {
        let patience = SHORTEST_STALL.max(use_time.saturating_mul(4));
        self.last_completion.is_none_or(|at| now.saturating_duration_since(at) > patience)
    }

    /// The most connections held at once in the last two seconds.
    pub fn peak_in_use(&self) -> usize {
        self.peaks.iter().copied().max().unwrap_or(0)
    }

    /// Completions of a tick of which no more than `longest` counts as held: of a late one the same part, or it would seem to
    /// have got more done in less time. After a pause in which nothing was held, all of them ended in its last tick.
    fn ended(&self, sample: &Sample, seconds: f64, longest: f64) -> f64 {
        let part = if self.low_in_use == Some(0) { 1.0 } else { (longest / seconds).min(1.0) };
        part * sample.completions as f64
    }

    fn note_peak(&mut self, now: Instant, sample: &Sample) {
        let period = *self.period.get_or_insert(now);
        if now.saturating_duration_since(period) >= PERIOD {
            self.peaks.rotate_right(1);
            self.peaks[0] = 0;
            self.period = Some(now);
        }
        self.peaks[0] = self.peaks[0].max(sample.peak_in_use).max(sample.in_use);
    }

    /// What a connection is held for while nothing waits for the database, by Little's law: the measure of what the load
    /// needs. A mean of those that ended would be too short, as the short ones end first.
    fn low_use(&self) -> Option<f64> {
        let (held, completions) = self.low;
        let fewest = if self.share < 1.0 { LOW_FEWEST_SHARED } else { LOW_FEWEST };
        // Those that began and ended between two samples seem to have taken no time at all.
        (completions >= fewest && held > 0.0).then(|| held / completions)
    }

    /// Only where nobody waited before and after: to look at the end alone would find few held and many just given back. A
    /// use that failed at once is no measure.
    fn note_low_use(&mut self, sample: &Sample, seconds: f64) {
        let completions = self.ended(sample, seconds, FAST);
        let before = self.low_in_use.take();
        if sample.queue_depth > 0 {
            return;
        }
        self.low_in_use = Some(sample.in_use);
        let Some(before) = before.filter(|_| sample.failures == 0) else { return };
        // After a longer pause, in which nothing was held, the driver waits for one tick.
        let seconds = seconds.min(FAST);
        let held = f64::midpoint(before as f64, sample.in_use as f64) * seconds;
        let kept = 1.0 - (completions / LOW_MEMORY).min(1.0);
        self.low = (kept * self.low.0 + held, kept * self.low.1 + completions);
    }
}

/// Moves a mean towards a value, all the way when the weight is 1 or more.
fn smooth(mean: &mut f64, value: f64, weight: f64) {
    *mean += weight.min(1.0) * (value - *mean);
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(10);

    #[test]
    fn the_need_is_littles_law_with_room_for_scatter() {
        let load = Load::default();
        let need = load.need(1_000.0, Some(0.010), None);
        assert!((need - (11.0 + 10.0f64.sqrt())).abs() < 1e-9);
        assert!(load.need(1_000.0, None, None).is_infinite());
    }

    #[test]
    fn a_step_of_arrivals_is_seen_within_three_ticks_and_a_blip_is_not_steady() {
        let (mut load, mut now) = (Load::default(), Instant::now());
        let sample = |arrivals| Sample { arrivals, ..Sample::default() };
        for _ in 0..100 {
            now += TICK;
            load.observe(now, &sample(10));
        }
        for _ in 0..3 {
            now += TICK;
            load.observe(now, &sample(100));
        }
        assert!(load.arrivals_per_s() > 8_000.0 && load.steady_arrivals_per_s() < 2_000.0, "{load:?}");
    }

    #[test]
    fn the_peak_is_forgotten_after_two_seconds() {
        let (mut load, mut now) = (Load::default(), Instant::now());
        load.observe(now, &Sample { peak_in_use: 40, ..Sample::default() });
        for _ in 0..149 {
            now += TICK;
            load.observe(now, &Sample { in_use: 3, ..Sample::default() });
        }
        assert_eq!(load.peak_in_use(), 40);
        for _ in 0..60 {
            now += TICK;
            load.observe(now, &Sample { in_use: 3, ..Sample::default() });
        }
        assert_eq!(load.peak_in_use(), 3);
    }

    #[test]
    fn the_use_of_long_and_short_queries_mixed_is_their_mean() {
        let (mut load, mut now) = (Load::default(), Instant::now());
        // One connection has a query a tick, the other one every twenty.
        for tick in 1..=400u64 {
            now += TICK;
            let completions = 1 + u64::from(tick % 20 == 0);
            load.observe(now, &Sample { in_use: 2, completions, ..Sample::default() });
        }
        let mean = (20.0 * 0.010 + 0.200) / 21.0;
        assert!((load.low_use().unwrap() / mean - 1.0).abs() < 0.02, "{:?} for {mean}", load.low_use());
    }

    #[test]
    fn late_ticks_do_not_make_a_use_seem_shorter() {
        let (mut load, mut now) = (Load::default(), Instant::now());
        // Two connections of 10 ms each; every tenth look at them comes late, after 150 ms.
        for look in 1..=400u32 {
            let ticks = if look.is_multiple_of(10) { 15 } else { 1 };
            now += TICK * ticks;
            let completions = 2 * u64::from(ticks);
            load.observe(now, &Sample { in_use: 2, completions, ..Sample::default() });
            if look > 20 {
                let (low, used) = (load.low_use().unwrap(), load.use_in_progress());
                assert!((low / 0.010 - 1.0).abs() < 0.02, "look {look}: {low}");
                assert!((used / 0.010 - 1.0).abs() < 0.02, "look {look}: {used}");
            }
        }
    }

    #[test]
    fn ticks_after_which_somebody_waits_say_nothing_of_a_use_at_ease() {
        let (mut load, mut now) = (Load::default(), Instant::now());
        // Two are held, one completes a tick; whenever nobody waits at the end, two have just been given back.
        for tick in 0..400 {
            now += TICK;
            let (queue_depth, in_use, completions) = if tick % 2 == 0 { (1, 2, 1) } else { (0, 1, 3) };
            load.observe(now, &Sample { queue_depth, in_use, completions, ..Sample::default() });
        }
        assert_eq!(load.low_use(), None);
    }

    #[test]
    fn uses_that_failed_at_once_do_not_make_the_need_small() {
        let (mut load, now) = (Load::default(), Instant::now());
        let failed = Sample {
            limit: 10,
            completions: 50,
            failures: 50,
            use_time: Some(Duration::from_micros(10)),
            ..Sample::default()
        };
        load.observe(now, &failed);
        assert!((load.need(1_000.0, Some(0.010), None) - 14.16).abs() < 0.01);
    }
}
