//! How long until it pays to come back.

use std::time::Duration;

use super::estimate::Rate;

/// A client told to come back sooner than a second would be told 0, which RFC 9110 §10.2.3 reads as "at once".
const SHORTEST: f64 = 1.0;
/// Past two minutes a guess from the present queue says nothing any more.
const LONGEST: f64 = 120.0;

/// The least part of the capacity that is taken to be spare: under a load that fills it all, nobody knows when there will
/// be more.
const LEAST_SPARE: f64 = 0.05;

/// Refusals within a tenth of a second came together: long enough for a herd to arrive, and shorter than most pauses of those
/// who do not wait for as long as they were told.
const TOGETHER: f64 = 0.1;
/// Memory of the refusals that go on and on, in seconds: as long as the shortest wait anybody is told, so that whoever honours
/// that is refused once in it.
const LASTING: f64 = SHORTEST;

/// The setting in seconds, as they can be told.
pub(crate) fn longest(setting: Duration) -> f64 {
    (setting.as_secs() as f64).clamp(SHORTEST, LONGEST)
}

/// The time over which those refused are told to come back.
///
/// With n refusals in the last 0.1 s, r a second over the second before, C the capacity and λ the load in requests a second,
///
/// W ← max(W − time passed, (n − 0.1 r) ÷ (C − λ)), 1 s to `longest`.
///
/// n − 0.1 r are those who came together: a herd, who can be told apart and served one after the other in W. The rest is
/// refused at the same rate all the time: those who try again at once, whatever they are told, each of them counted over and
/// over, and a load over the capacity, for which no time is better than another. For them W is no help, and for whoever does
/// wait it would be a lie. Refusals that begin and go on look like a herd at first: with the two memories (0.1 and 1 s) they
/// make W 0.07 r ÷ (C − λ) at the most, after a quarter of a second, and a tenth of that three seconds later.
#[derive(Debug)]
pub(crate) struct Window {
    together: Rate,
    lasting: Rate,
    seconds: f64,
}

impl Default for Window {
    fn default() -> Self {
        Self { together: Rate::over(TOGETHER), lasting: Rate::over(LASTING), seconds: SHORTEST }
    }
}

impl Window {
    /// Takes the refusals of the last `elapsed` in, and returns the window in seconds.
    pub fn add(&mut self, refused: u64, elapsed: Duration, capacity: f64, load: f64, longest: f64) -> f64 {
        self.lasting.add(0, elapsed);
        let usual = TOGETHER * self.lasting.per_second();
        self.lasting.add(refused, Duration::ZERO);
        self.together.add(refused, elapsed);
        let herd = self.together.recent() - usual;
        let spare = (capacity - load).max(LEAST_SPARE * capacity);
        // Without a known capacity a herd may take for ever, and nobody no time.
        let needed = if herd < 1.0 { 0.0 } else { herd / spare };
        self.seconds = (self.seconds - elapsed.as_secs_f64()).max(needed).clamp(SHORTEST, longest);
        self.seconds
    }

    /// Nobody is told to stay away for longer than anybody is told at the least.
    pub fn is_shortest(&self) -> bool {
        self.seconds <= SHORTEST
    }
}

/// The time to drain the queue, D = q ÷ C with C = `capacity` ÷ `use_time` completions per second, plus a draw of the
/// `window`, so that those refused together do not come back together; rounded up to the whole seconds that `Retry-After`
/// speaks in, 1 to `longest`.
///
/// `draw` is uniform in `[0, 1)`. Without a measurement, or without any connection, the queue has no known drain time and
/// counts as zero.
pub(crate) fn retry_after(
    queue_depth: usize,
    capacity: usize,
    use_time: Option<Duration>,
    (window, longest): (f64, f64),
    draw: f64,
) -> Duration {
    let drain = match use_time {
        Some(use_time) if capacity > 0 => queue_depth as f64 * use_time.as_secs_f64() / capacity as f64,
        _ => 0.0,
    };
    // Not past the longest: all who drew that would come back together.
    let window = window.max(SHORTEST).min((longest - drain).max(0.0));
    let told = drain + draw * window;
    Duration::from_secs(told.ceil().clamp(SHORTEST, longest) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TICK: Duration = Duration::from_millis(10);

    #[test]
    fn the_drain_time_is_queue_times_use_time_over_connections() {
        let ms = |ms| Some(Duration::from_millis(ms));
        let table = [
            (200, 10, ms(6), 1.0, 0.0, 1),    // 0.12 s
            (200, 10, ms(500), 1.0, 0.0, 10), // 10 s
            (200, 10, ms(510), 1.0, 0.0, 11), // 10.2 s
            (200, 10, ms(500), 1.0, 0.5, 11), // the draw moves it into the next second
            (200, 10, ms(500), 30.0, 0.5, 25),
            (200, 10, ms(500), 120.0, 0.5, 65), // half of the 110 s that are left
            (200, 1, ms(60_000), 1.0, 0.9, 120),
            (200, 0, ms(6), 1.0, 0.9, 1), // no connection: nothing is known
            (200, 10, None, 1.0, 0.9, 1),
            (200, 10, None, 0.0, 0.9, 1),
        ];
        for (depth, capacity, use_time, window, draw, seconds) in table {
            assert_eq!(
                retry_after(depth, capacity, use_time, (window, LONGEST), draw),
                Duration::from_secs(seconds),
                "{depth} waiting for {capacity} connections of {use_time:?}, window {window} s, draw {draw}"
            );
        }
    }

    #[test]
    fn the_longest_is_in_whole_seconds_from_one_to_a_hundred_and_twenty() {
        let ms = Duration::from_millis;
        let settings = [(ms(1), 1.0), (ms(1_999), 1.0), (ms(15_000), 15.0), (Duration::MAX, 120.0)];
        for (setting, seconds) in settings {
            assert!((longest(setting) - seconds).abs() < f64::EPSILON, "{setting:?}");
        }
    }

    #[test]
    fn the_window_of_a_herd_is_its_number_over_what_is_spare() {
        let table = [
            (0, 1_000.0, 500.0, 1.0),
            (2_000, 1_000.0, 500.0, 4.0),
            (1_000, 1_000.0, 2_000.0, 20.0), // overloaded: 5 % of the capacity counts as spare
            (1_000_000_000, 1_000.0, 0.0, 60.0),
            (0, 0.0, 0.0, 1.0), // nothing known
            (9, 0.0, 0.0, 60.0),
        ];
        for (refused, capacity, load, seconds) in table {
            let window = Window::default().add(refused, TICK, capacity, load, 60.0);
            assert!((window - seconds).abs() < 1e-9, "{refused} refused: {window}");
        }
    }

    #[test]
    fn the_window_of_a_herd_passes_with_the_time() {
        let mut window = Window::default();
        window.add(4_000, TICK, 1_000.0, 500.0, 15.0);
        let after = |window: &mut Window, time| window.add(0, time, 1_000.0, 500.0, 15.0);
        assert!((after(&mut window, Duration::from_secs(2)) - 6.0).abs() < 0.01);
        assert!(!window.is_shortest());
        after(&mut window, Duration::from_secs(60));
        assert!(window.is_shortest());
    }

    /// What is told under refusals that go on: by clients who try again every so many ticks, together or not.
    #[test]
    fn refusals_that_go_on_do_not_lengthen_the_window() {
        for (at_once, every) in [(500, 1), (500, 5), (100, 20), (2_500, 5)] {
            let mut window = Window::default();
            for tick in 0..6_000 {
                let refused = if tick % every == 0 { at_once } else { 0 };
                let seconds = window.add(refused, TICK, 1_667.0, 0.0, 15.0);
                // Each of them counts once at the most, but in the first second.
                let clients = at_once as f64 / 1_667.0;
                let bound = if tick < 100 { 2.5 * clients } else { clients };
                assert!(
                    tick < 100 || seconds <= bound.max(1.0) + 1.2,
                    "{at_once} every {every}, {tick}: {seconds}"
                );
                assert!(
                    tick < 300 || seconds <= bound.max(1.0),
                    "{at_once} every {every}, {tick}: {seconds}"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn it_is_whole_seconds_between_one_and_the_longest(
            depth in 0usize..1_000_000, capacity in 0usize..1_000, nanos in 0u64..u64::MAX, draw in 0.0f64..1.0,
            refused in 0u64..1 << 40, rate in 0.0f64..1e9, load in 0.0f64..1e9, setting in 0u64..300, millis in 0u64..100_000,
        ) {
            let longest = longest(Duration::from_secs(setting));
            let window = Window::default().add(refused, Duration::from_millis(millis), rate, load, longest);
            prop_assert!((SHORTEST..=longest).contains(&window));
            let told = retry_after(depth, capacity, Some(Duration::from_nanos(nanos)), (window, longest), draw);
            prop_assert_eq!(told.subsec_nanos(), 0);
            prop_assert!((1..=longest as u64).contains(&told.as_secs()));
        }
    }
}
