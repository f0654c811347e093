//! Whether a request may enter: it is refused when the hard cap is full of its class and higher ones, and when it could not be
//! served in time; between the caps a ramp, the lowest class first; nothing while a connection is free for its class.

use std::time::Duration;

use crate::error::ShedReason;

/// The part of its time budget that a request may be expected to wait. The rest is room for what the estimate does not
/// know: those of a higher class who come later, and service times that scatter.
const PATIENCE: f64 = 0.8;

/// Higher classes come as they like (Poisson): over a wait in which n of them are expected, so many times √n more may
/// come. Three would be once in a thousand times, if n were known and not estimated.
const SCATTER: f64 = 4.0;

/// The part of the capacity up to which higher classes leave the lower ones their turn,
const HALF: f64 = 0.5;
/// and how many per second of them there must be to tell: the rate is one over a second, and fewer are chance.
const FEWEST: f64 = 30.0;

/// The bounds of the queue, in waiters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// From here on a part of the arrivals is refused.
    pub soft: usize,
    /// Here all of them.
    pub hard: usize,
}

/// What the slots publish, as one request sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Occupancy {
    /// Waiters.
    pub queue_depth: usize,
    /// Connections free to be handed out.
    pub idle: usize,
    /// Connections that serve: held and free.
    pub capacity: usize,
}

impl Occupancy {
    /// A connection is free, or fewer wait than there are connections: refusing now would starve a free server.
    pub fn is_free(self) -> bool {
        self.idle > 0 || self.queue_depth < self.capacity
    }
}

/// What a request is measured by when nothing is free.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Claim {
    /// Waiters who are served before it.
    pub ahead: usize,
    /// Time until its deadline.
    pub budget: Duration,
    /// How long a connection is usually held; `None` without a fresh measurement.
    pub use_time: Option<Duration>,
    /// Connections per second that higher classes take; 0 for the highest there is.
    pub taken: f64,
    /// The part of the arrivals that is of lower classes,
    pub lower: f64,
    /// and the part that is of its own; both together at most 1.
    pub same: f64,
    /// Uniform in `[0, 1)`.
    pub draw: f64,
}

/// Admits (`None`) or says why not.
///
/// With C = connections ÷ use time (completions per second) and B = budget − use time, C × B can be served in time, less
/// what higher classes may take of it; those ahead and itself may be 0.8 of that. The caps bind in time as well as in
/// counts: for those ahead, hard = min(`hard_cap`, what can be served), soft = min(`soft_cap`, hard ÷ 2). Waiters of lower
/// classes do not count: they are overtaken, and of a full queue they make room. Between soft and
/// hard the part r = (q − soft) ÷ (hard − soft) of the arrivals is refused (random early detection, Floyd and Jacobson,
/// 1993), the lowest class first. Without a measurement only the counts bind: a stalled pool must be able to notice that it
/// is well again.
///
/// Fewer waiters than connections are never too many, but for a class that has less than half of the capacity left by the
/// higher ones: let in on that ground, it would be overtaken until its time has come.
pub fn admit(seen: Occupancy, caps: Caps, claim: &Claim) -> Option<ShedReason> {
    if claim.ahead >= caps.hard {
        return Some(ShedReason::HardCap);
    }
    let rate = claim.rate(seen.capacity);
    if seen.idle > 0 || (seen.is_free() && rate.is_none_or(|rate| claim.taken < (HALF * rate).max(FEWEST))) {
        return None;
    }
    let mut refuse = ramp(claim.ahead as f64, caps.soft as f64, caps.hard as f64);
    if let Some(rate) = rate {
        let served = claim.served_in_time(rate);
        if (claim.ahead + 1) as f64 > PATIENCE * served {
            return Some(ShedReason::EstimatedWait);
        }
        let hard = served.max(seen.capacity as f64).min(caps.hard as f64);
        let soft = (hard / 2.0).min(caps.soft as f64);
        refuse = refuse.max(ramp(claim.ahead as f64, soft, hard));
    }
    // Of its own class the part that the lower classes do not make up already.
    let refuse = (refuse - claim.lower) / claim.same;
    (claim.draw < refuse).then_some(ShedReason::SoftCap)
}

fn ramp(depth: f64, soft: f64, hard: f64) -> f64 {
    if depth <= soft { 0.0 } else { (depth - soft) / (hard - soft) }
}

impl Claim {
    /// Completions per second of so many connections.
    fn rate(&self, connections: usize) -> Option<f64> {
        let use_time = self.use_time?.as_secs_f64();
        (connections > 0 && use_time > 0.0).then(|| connections as f64 / use_time)
    }

    /// How many waiters of its own class and above will have been served when it must be.
    fn served_in_time(&self, rate: f64) -> f64 {
        let left = self.budget.saturating_sub(self.use_time.unwrap_or_default()).as_secs_f64();
        let taken = self.taken * left;
        (rate * left - taken - SCATTER * taken.sqrt()).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CAPS: Caps = Caps { soft: 100, hard: 200 };

    fn waiting(queue_depth: usize) -> Occupancy {
        Occupancy { queue_depth, idle: 0, capacity: 10 }
    }

    /// Of the only class there is, with nothing measured yet.
    fn claim(ahead: usize, draw: f64) -> Claim {
        let budget = Duration::from_secs(2);
        Claim { ahead, budget, use_time: None, taken: 0.0, lower: 0.0, same: 1.0, draw }
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
            assert_eq!(
                admit(waiting(depth), CAPS, &claim(depth, draw)),
                verdict,
                "depth {depth}, draw {draw}"
            );
        }
    }

    #[test]
    fn caps_bind_in_time_where_that_is_less() {
        // 10 connections held for 100 ms are 100 completions a second.
        let ms = |use_time, budget| {
            move |depth, draw| {
                let (use_time, budget) = (Duration::from_millis(use_time), Duration::from_millis(budget));
                let claim = Claim { use_time: Some(use_time), budget, ..claim(depth, draw) };
                admit(waiting(depth), CAPS, &claim)
            }
        };
        let slow = ms(100, 600); // 500 ms are left: hard at 50, soft at 25, and 40 fit into 0.8 of it
        let table = [
            (25, 0.0, None),
            (30, 0.19, Some(ShedReason::SoftCap)),
            (30, 0.21, None),
            (39, 0.55, Some(ShedReason::SoftCap)),
            (39, 0.57, None),
            (40, 0.99, Some(ShedReason::EstimatedWait)),
        ];
        for (depth, draw, verdict) in table {
            assert_eq!(slow(depth, draw), verdict, "depth {depth}, draw {draw}");
        }
        let late = ms(100, 50); // less than it takes to serve: only where fewer wait than there are connections
        assert_eq!((late(9, 0.0), late(10, 0.99)), (None, Some(ShedReason::EstimatedWait)));
        let quick = ms(6, 2_000); // 3,300 would fit: the counts bind
        assert_eq!((quick(100, 0.0), quick(150, 0.51)), (None, None));
        assert_eq!(quick(150, 0.49), Some(ShedReason::SoftCap));
    }

    #[test]
    fn the_lowest_class_is_refused_first() {
        // Half of the arrivals are of the lower class, half of the higher.
        let low = |draw| Claim { lower: 0.0, same: 0.5, ..claim(150, draw) };
        let high = |ahead, draw| Claim { lower: 0.5, same: 0.5, ..claim(ahead, draw) };
        assert_eq!(admit(waiting(150), CAPS, &low(0.999)), Some(ShedReason::SoftCap));
        assert_eq!(admit(waiting(150), CAPS, &high(150, 0.0)), None);
        // With 175 ahead three quarters are to be refused: all of the one, half of the other.
        assert_eq!(admit(waiting(175), CAPS, &high(175, 0.49)), Some(ShedReason::SoftCap));
        assert_eq!(admit(waiting(175), CAPS, &high(175, 0.51)), None);
    }

    #[test]
    fn waiters_of_lower_classes_refuse_nobody_above_them_at_the_hard_cap_neither() {
        for (depth, ahead) in [(150, 0), (199, 99), (200, 0), (200, 99), (900, 99)] {
            assert_eq!(admit(waiting(depth), CAPS, &claim(ahead, 0.0)), None, "{ahead} ahead of {depth}");
        }
        assert_eq!(admit(waiting(900), CAPS, &claim(200, 0.999)), Some(ShedReason::HardCap));
    }

    #[test]
    fn what_higher_classes_take_is_not_there_for_the_lower() {
        let use_time = Some(Duration::from_millis(100)); // 100 completions a second
        let claim = |taken| Claim { use_time, taken, ..claim(20, 0.999) };
        // 190 in the 1.9 s that are left; of them 114 ± 32 are taken, and 44 remain: 35 with some room.
        assert_eq!(admit(waiting(20), CAPS, &claim(60.0)), None);
        // 133 ± 35 are taken: 22, or 18.
        assert_eq!(admit(waiting(20), CAPS, &claim(70.0)), Some(ShedReason::EstimatedWait));
        assert_eq!(admit(waiting(20), CAPS, &claim(1e9)), Some(ShedReason::EstimatedWait));
        // Few wait, and it would be overtaken all the same; a connection that is free it may have.
        assert_eq!(
            admit(waiting(1), CAPS, &Claim { ahead: 1, ..claim(95.0) }),
            Some(ShedReason::EstimatedWait)
        );
        assert_eq!(admit(Occupancy { idle: 1, ..waiting(0) }, CAPS, &Claim { ahead: 0, ..claim(1e9) }), None);
    }

    #[test]
    fn equal_caps_make_a_cliff_without_dividing_by_zero() {
        let cliff = Caps { soft: 15, hard: 15 };
        assert_eq!(admit(waiting(14), cliff, &claim(14, 0.0)), None);
        assert_eq!(admit(waiting(15), cliff, &claim(15, 0.999)), Some(ShedReason::HardCap));
    }

    prop_compose! {
        fn any_claim()(
            ahead in 0usize..300,
            budget in 0u64..5_000_000_000,
            use_time in prop::option::of(0u64..10_000_000_000),
            taken in prop_oneof![Just(0.0), 0.0f64..60.0, 0.0f64..1e6],
            lower in 0.0f64..0.9,
            same in 0.01f64..0.1,
            draw in 0.0f64..1.0,
        ) -> Claim {
            let (budget, use_time) = (Duration::from_nanos(budget), use_time.map(Duration::from_nanos));
            Claim { ahead, budget, use_time, taken, lower, same, draw }
        }
    }

    proptest! {
        #[test]
        fn a_free_server_is_never_starved_under_the_hard_cap(
            depth in 0usize..300, idle in 0usize..50, capacity in 0usize..300, claim in any_claim(),
        ) {
            let seen = Occupancy { queue_depth: depth, idle, capacity };
            let verdict = admit(seen, CAPS, &claim);
            if claim.ahead >= CAPS.hard {
                prop_assert_eq!(verdict, Some(ShedReason::HardCap));
            } else if idle > 0 || (depth < capacity && claim.taken < FEWEST) {
                prop_assert_eq!(verdict, None);
            }
        }

        #[test]
        fn nothing_is_shed_under_soft_and_everything_at_hard(
            depth in 0usize..300, soft in 0usize..150, over in 0usize..150, draw in 0.0f64..1.0,
        ) {
            let caps = Caps { soft, hard: (soft + over).max(1) };
            let verdict = admit(waiting(depth), caps, &claim(depth, draw));
            if depth >= caps.hard {
                prop_assert_eq!(verdict, Some(ShedReason::HardCap));
            } else if depth <= caps.soft {
                prop_assert_eq!(verdict, None);
            }
        }

        #[test]
        fn refusal_is_monotone_in_depth(
            depth in 0usize..300, more in 0usize..100, soft in 0usize..150, over in 0usize..150, one in any_claim(),
        ) {
            let caps = Caps { soft, hard: (soft + over).max(1) };
            let deeper = Claim { ahead: one.ahead + more, ..one };
            if admit(waiting(depth), caps, &one).is_some() {
                prop_assert!(admit(waiting(depth + more), caps, &deeper).is_some());
            }
        }

        #[test]
        fn a_lower_class_is_never_better_off_than_a_higher_one(
            depth in 0usize..300, high in any_claim(), behind in 0usize..100, taken in 0.0f64..1e3, same in 0.01f64..1.0,
        ) {
            let lower = high.lower * (1.0 - same);
            // The same request in the class below: more are ahead of it, more is taken from it, fewer are below it.
            let low = Claim {
                ahead: high.ahead + behind,
                taken: high.taken + taken,
                lower: (high.lower - same).clamp(0.0, lower),
                same: same.min(high.lower).max(0.01),
                ..high
            };
            prop_assume!(low.lower + low.same <= high.lower);
            if admit(waiting(depth), CAPS, &high).is_some() {
                prop_assert!(admit(waiting(depth), CAPS, &low).is_some());
            }
        }

        #[test]
        fn a_shorter_budget_is_never_better_off(
            depth in 0usize..300, claim in any_claim(), less in 0u64..5_000_000_000,
        ) {
            let shorter = Claim { budget: claim.budget.saturating_sub(Duration::from_nanos(less)), ..claim };
            if admit(waiting(depth), CAPS, &claim).is_some() {
                prop_assert!(admit(waiting(depth), CAPS, &shorter).is_some());
            }
        }
    }
}
