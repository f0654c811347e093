//! Whether a request may enter: nothing is refused under the soft cap, everything at the hard cap, a ramp between.

use crate::error::ShedReason;

/// The bounds of the queue, in waiters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Caps {
    pub soft: usize,
    pub hard: usize,
}

/// What the slots publish, as one request sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Occupancy {
    /// Waiters.
    pub queue_depth: usize,
    /// Connections free to be handed out.
    pub idle: usize,
    /// Connections that serve: held and free.
    pub capacity: usize,
}

/// Admits (`None`) or says why not. `draw` is uniform in `[0, 1)`.
///
/// Between the caps a request is refused with probability (q − soft) ÷ (hard − soft), as in random early detection
/// (Floyd and Jacobson, 1993). A free connection, or fewer waiters than connections, always admits under the hard cap:
/// a server that could work is never starved.
pub(crate) fn admit(seen: Occupancy, caps: Caps, draw: f64) -> Option<ShedReason> {
    let depth = seen.queue_depth;
    if depth >= caps.hard {
        return Some(ShedReason::HardCap);
    }
    if depth <= caps.soft || seen.idle > 0 || depth < seen.capacity {
        return None;
    }
    let refuse = (depth - caps.soft) as f64 / (caps.hard - caps.soft) as f64;
    (draw < refuse).then_some(ShedReason::SoftCap)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CAPS: Caps = Caps { soft: 100, hard: 200 };

    fn waiting(queue_depth: usize) -> Occupancy {
        Occupancy { queue_depth, idle: 0, capacity: 10 }
    }

    #[test]
    fn the_ramp_refuses_in_proportion() {
        let table = [
            (0, 0.0, None),
            (100, 0.0, None),
            (101, 0.0, Some(ShedReason::SoftCap)),
            (150, 0.49, Some(ShedReason::SoftCap)),
            (150, 0.50, None),
            (199, 0.98, Some(ShedReason::SoftCap)),
            (200, 0.99, Some(ShedReason::HardCap)),
            (900, 0.99, Some(ShedReason::HardCap)),
        ];
        for (depth, draw, verdict) in table {
            assert_eq!(admit(waiting(depth), CAPS, draw), verdict, "depth {depth}, draw {draw}");
        }
    }

    #[test]
    fn equal_caps_make_a_cliff_without_dividing_by_zero() {
        let cliff = Caps { soft: 5, hard: 5 };
        assert_eq!(admit(waiting(4), cliff, 0.0), None);
        assert_eq!(admit(waiting(5), cliff, 0.999), Some(ShedReason::HardCap));
    }

    proptest! {
        #[test]
        fn a_free_server_is_never_starved_under_the_hard_cap(
            depth in 0usize..300, idle in 0usize..50, capacity in 0usize..300, draw in 0.0f64..1.0,
        ) {
            let seen = Occupancy { queue_depth: depth, idle, capacity };
            let verdict = admit(seen, CAPS, draw);
            if depth >= CAPS.hard {
                prop_assert_eq!(verdict, Some(ShedReason::HardCap));
            } else if idle > 0 || depth < capacity || depth <= CAPS.soft {
                prop_assert_eq!(verdict, None);
            }
        }

        #[test]
        fn refusal_is_monotone_in_depth(
            depth in 0usize..300, more in 0usize..100, soft in 0usize..150, over in 0usize..150, draw in 0.0f64..1.0,
        ) {
            let caps = Caps { soft, hard: (soft + over).max(1) };
            if admit(waiting(depth), caps, draw).is_some() {
                prop_assert!(admit(waiting(depth + more), caps, draw).is_some());
            }
        }
    }
}
