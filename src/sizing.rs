//! How large a pool to begin with: rules of thumb, as pure functions.
//!
//! They give bounds to start from. The pool finds how many to use at once up to `max_size` by itself, and
//! `AdaptivePool::preflight` asks a PostgreSQL server what it allows.

use std::time::Duration;

/// Of a server's connections, this share is given to pools; the rest stays free for people, jobs and deployments that
/// overlap.
const SHARED_PERCENT: usize = 80;

/// Connections for so many acquires a second that hold one for so long each: ⌈1.1 a + √a⌉ with a = rate × time, and at
/// least one.
///
/// `a` is how many are in use on average: Little's law, L = λ W (J. D. C. Little, *A Proof for the Queuing Formula*,
/// Operations Research 9, 1961). √a on top of it is square-root staffing, which keeps most arrivals from waiting
/// (S. Halfin and W. Whitt, *Heavy-Traffic Limits for Queues with Many Exponential Servers*, Operations Research 29,
/// 1981). The tenth is for a rate that was not measured at its peak.
///
/// ```
/// # use std::time::Duration;
/// # use tower_adaptive_pool::sizing::littles_law;
/// // 2,000 requests a second, 8 ms of database each: 16 in use, 22 to have.
/// assert_eq!(littles_law(2_000.0, Duration::from_millis(8)), 22);
/// ```
#[must_use]
pub fn littles_law(arrivals_per_s: f64, held: Duration) -> usize {
    let in_use = (arrivals_per_s * held.as_secs_f64()).max(0.0);
    let wanted = 1.1 * in_use + in_use.sqrt();
    // 1.1 has no exact binary form: 1.1 × 100 + 10 must not be rounded up to 121.
    let exact = wanted * (1.0 - 1e-12);
    (exact.ceil() as usize).max(1)
}

/// Connections that a database server can keep busy at once: cores × 2 + spindles, and at least one. Spindles are the
/// discs that seek; 0 if everything is cached, 1 for an SSD as a rule of thumb.
///
/// The server's, not the client's, and for all of its clients together. Source: PostgreSQL wiki, *Number Of Database
/// Connections* ("How to Find the Optimal Database Connection Pool Size").
#[must_use]
pub fn cores_and_spindles(cores: usize, spindles: usize) -> usize {
    cores.saturating_mul(2).saturating_add(spindles).max(1)
}

/// `max_size` for each of so many instances of a program, so that together they leave 20 % of a server's connections
/// free. `reserved` are those that the program may not use. 0 when there is not one for each.
///
/// ```
/// # use tower_adaptive_pool::sizing::share_of;
/// // PostgreSQL as it comes, four instances.
/// assert_eq!(share_of(100, 3, 4), 19);
/// ```
#[must_use]
pub fn share_of(max_connections: usize, reserved: usize, instances: usize) -> usize {
    let usable = max_connections.saturating_sub(reserved);
    // Divided first for what cannot be multiplied: nobody counts those connections one by one.
    let shared =
        usable.checked_mul(SHARED_PERCENT).map_or(usable / 100 * SHARED_PERCENT, |percent| percent / 100);
    shared / instances.max(1)
}

/// The least `max_connections` of which [`share_of`] gives `size` to each of so many instances.
#[cfg(feature = "postgres")]
pub(crate) fn connections_for(size: usize, reserved: usize, instances: usize) -> usize {
    let all = size.saturating_mul(instances.max(1));
    all.saturating_mul(100).div_ceil(SHARED_PERCENT).saturating_add(reserved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn littles_law_adds_a_tenth_and_the_root_and_rounds_up() {
        let one_second = Duration::from_secs(1);
        for (in_use, wanted) in [(0.5, 2), (1.0, 3), (4.0, 7), (16.0, 22), (25.0, 33), (100.0, 120)] {
            assert_eq!(littles_law(in_use, one_second), wanted, "{in_use} in use");
        }
    }

    #[test]
    fn littles_law_never_asks_for_no_pool_and_survives_nonsense() {
        for rate in [0.0, -5.0, f64::NAN, f64::NEG_INFINITY] {
            assert_eq!(littles_law(rate, Duration::from_secs(1)), 1, "{rate}");
        }
        assert_eq!(littles_law(f64::INFINITY, Duration::from_secs(1)), usize::MAX);
        assert_eq!(littles_law(f64::INFINITY, Duration::ZERO), 1);
    }

    #[test]
    fn a_server_keeps_two_connections_a_core_and_one_a_spindle_busy() {
        assert_eq!(cores_and_spindles(4, 1), 9);
        assert_eq!(cores_and_spindles(16, 0), 32);
        assert_eq!(cores_and_spindles(0, 0), 1);
        assert_eq!(cores_and_spindles(usize::MAX, 1), usize::MAX);
    }

    #[test]
    fn a_share_leaves_a_fifth_of_what_is_not_reserved() {
        assert_eq!(share_of(100, 0, 1), 80);
        assert_eq!(share_of(100, 3, 1), 77);
        assert_eq!(share_of(100, 3, 4), 19);
        assert_eq!(share_of(100, 3, 0), 77, "no instance counts as one");
        assert_eq!(share_of(100, 3, 78), 0);
        assert_eq!(share_of(3, 10, 1), 0);
        assert_eq!(share_of(usize::MAX, 0, 1), usize::MAX / 100 * 80);
    }

    #[test]
    #[cfg(feature = "postgres")]
    fn connections_for_is_the_least_that_is_enough() {
        for size in 1..60 {
            for instances in 1..7 {
                let enough = connections_for(size, 3, instances);
                assert!(share_of(enough, 3, instances) >= size, "{size} × {instances} of {enough}");
                assert!(share_of(enough - 1, 3, instances) < size, "{size} × {instances} of {enough} - 1");
            }
        }
    }
}
