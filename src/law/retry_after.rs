//! How long until it pays to come back.

use std::time::Duration;

/// A client told to come back sooner than a second would be told 0, which RFC 9110 §10.2.3 reads as "at once".
const SHORTEST: f64 = 1.0;
/// Past two minutes a guess from the present queue says nothing any more.
const LONGEST: f64 = 120.0;

/// The least and the longest time over which those refused are told to come back, in seconds.
const WINDOW: (f64, f64) = (1.0, 60.0);
/// The least part of the capacity that is taken to be spare: under a load that fills it all, nobody knows when there will
/// be more.
const LEAST_SPARE: f64 = 0.05;

/// The time over which those refused lately can be served besides the load there is: W = refused ÷ (C − λ), with `refused`
/// requests that may all come back, C = `capacity` and λ = `load` in requests per second. 1 to 60 s.
pub(crate) fn window(refused: f64, capacity: f64, load: f64) -> Duration {
    let spare = (capacity - load).max(LEAST_SPARE * capacity);
    let (least, longest) = WINDOW;
    // Nothing refused, or no capacity known: 0 ÷ 0 is not a number, and `max` takes the other one.
    Duration::from_secs_f64((refused / spare).max(least).min(longest))
}

/// The time to drain the queue, D = q ÷ C with C = `capacity` ÷ `use_time` completions per second, plus a draw of the
/// `window`, so that those refused together do not come back together; rounded up to the whole seconds that `Retry-After`
/// speaks in.
///
/// `draw` is uniform in `[0, 1)`. Without a measurement, or without any connection, the queue has no known drain time and
/// counts as zero.
pub(crate) fn retry_after(
    queue_depth: usize,
    capacity: usize,
    use_time: Option<Duration>,
    window: Duration,
    draw: f64,
) -> Duration {
    let drain = match use_time {
        Some(use_time) if capacity > 0 => queue_depth as f64 * use_time.as_secs_f64() / capacity as f64,
        _ => 0.0,
    };
    let told = drain + draw * window.as_secs_f64();
    Duration::from_secs(told.ceil().clamp(SHORTEST, LONGEST) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_drain_time_is_queue_times_use_time_over_connections() {
        let ms = |ms| Some(Duration::from_millis(ms));
        let table = [
            (200, 10, ms(6), 1, 0.0, 1),    // 0.12 s
            (200, 10, ms(500), 1, 0.0, 10), // 10 s
            (200, 10, ms(510), 1, 0.0, 11), // 10.2 s
            (200, 10, ms(500), 1, 0.5, 11), // the draw moves it into the next second
            (200, 10, ms(500), 30, 0.5, 25),
            (200, 1, ms(60_000), 1, 0.9, 120),
            (200, 0, ms(6), 1, 0.9, 1), // no connection: nothing is known
            (200, 10, None, 1, 0.9, 1),
        ];
        for (depth, capacity, use_time, window, draw, seconds) in table {
            assert_eq!(
                retry_after(depth, capacity, use_time, Duration::from_secs(window), draw),
                Duration::from_secs(seconds),
                "{depth} waiting for {capacity} connections of {use_time:?}, window {window} s, draw {draw}"
            );
        }
    }

    #[test]
    fn the_window_is_what_was_refused_over_what_is_spare() {
        let table = [
            (0.0, 1_000.0, 500.0, 1.0),
            (2_000.0, 1_000.0, 500.0, 4.0),
            (2_000.0, 1_000.0, 2_000.0, 40.0), // overloaded: 5 % of the capacity counts as spare
            (1e9, 1_000.0, 0.0, 60.0),
            (0.0, 0.0, 0.0, 1.0), // nothing known
            (9.0, 0.0, 0.0, 60.0),
        ];
        for (refused, capacity, load, seconds) in table {
            assert_eq!(
                window(refused, capacity, load),
                Duration::from_secs_f64(seconds),
                "{refused} refused"
            );
        }
    }

    proptest! {
        #[test]
        fn it_is_whole_seconds_between_one_and_a_hundred_and_twenty(
            depth in 0usize..1_000_000, capacity in 0usize..1_000, nanos in 0u64..u64::MAX, draw in 0.0f64..1.0,
            refused in 0.0f64..1e12, rate in 0.0f64..1e9, load in 0.0f64..1e9,
        ) {
            let window = window(refused, rate, load);
            prop_assert!((1..=60).contains(&window.as_secs()));
            let told = retry_after(depth, capacity, Some(Duration::from_nanos(nanos)), window, draw);
            prop_assert_eq!(told.subsec_nanos(), 0);
            prop_assert!((1..=120).contains(&told.as_secs()));
        }
    }
}
