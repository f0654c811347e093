//! How long until it pays to come back.

use std::time::Duration;

/// A client told to come back sooner than a second would be told 0, which RFC 9110 §10.2.3 reads as "at once".
const SHORTEST: f64 = 1.0;
/// Past two minutes a guess from the present queue says nothing any more.
const LONGEST: f64 = 120.0;

/// The time to drain the queue, D = q ÷ C with C = `capacity` ÷ `use_time` completions per second, rounded up to the
/// whole seconds that `Retry-After` speaks in.
///
/// `draw` (uniform in `[0, 1)`) is added in seconds, so that those refused together do not come back together.
/// Without a measurement, or without any connection, the queue has no known drain time and counts as zero.
pub(crate) fn retry_after(
    queue_depth: usize,
    capacity: usize,
    use_time: Option<Duration>,
    draw: f64,
) -> Duration {
    let drain = match use_time {
        Some(use_time) if capacity > 0 => queue_depth as f64 * use_time.as_secs_f64() / capacity as f64,
        _ => 0.0,
    };
    Duration::from_secs((drain + draw).ceil().clamp(SHORTEST, LONGEST) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_drain_time_is_queue_times_use_time_over_connections() {
        let ms = |ms| Some(Duration::from_millis(ms));
        let table = [
            (200, 10, ms(6), 0.0, 1),    // 0.12 s
            (200, 10, ms(500), 0.0, 10), // 10 s
            (200, 10, ms(510), 0.0, 11), // 10.2 s
            (200, 10, ms(500), 0.5, 11), // the draw moves it into the next second
            (200, 1, ms(60_000), 0.9, 120),
            (200, 0, ms(6), 0.9, 1), // no connection: nothing is known
            (200, 10, None, 0.9, 1),
        ];
        for (depth, capacity, use_time, draw, seconds) in table {
            assert_eq!(
                retry_after(depth, capacity, use_time, draw),
                Duration::from_secs(seconds),
                "{depth} waiting for {capacity} connections of {use_time:?}, draw {draw}"
            );
        }
    }

    proptest! {
        #[test]
        fn it_is_whole_seconds_between_one_and_a_hundred_and_twenty(
            depth in 0usize..1_000_000, capacity in 0usize..1_000, nanos in 0u64..u64::MAX, draw in 0.0f64..1.0,
        ) {
            let told = retry_after(depth, capacity, Some(Duration::from_nanos(nanos)), draw);
            prop_assert_eq!(told.subsec_nanos(), 0);
            prop_assert!((1..=120).contains(&told.as_secs()));
        }
    }
}
