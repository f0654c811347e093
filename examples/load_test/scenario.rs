//! What the load looks like: scenarios as data.

use serde::{Deserialize, Serialize};

/// The work one request asks of the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// `select pg_sleep(0.02)`, or four times that while the database is to be slow.
    Slowable,
    /// `select pg_sleep(0.006)`: waits, costs no CPU, so every further connection pays.
    Sleep6,
    /// A query of about 5 ms of CPU: connections past the number of cores do not pay.
    Cpu5,
    /// 6 ms of sleep, then a transaction that updates a row shared by all: connections past the knee cost.
    HotRowLock,
    /// The same without waiting for the row: whoever finds it locked tries again at once. More connections are more tries.
    HotRowNowait,
    /// `select pg_sleep(0.002)`, but one in a hundred `select pg_sleep(0.5)`: the mean use time is nobody's.
    Mixed,
}

/// The part of what the database can do that is asked of it before, during and after the hiccup.
pub const LOAD: f64 = 0.86;
/// Which phase is slow.
pub const SLOWED: usize = 1;

/// How many requests a second come, and when.
#[derive(Debug)]
pub enum Rates {
    /// Calm, too much, calm again.
    Burst { calm_per_s: u32, burst_per_s: u32 },
    /// Steady, over a database that is slow for a while.
    Storm { per_s: f64 },
    /// Parts of what a fixed pool of all connections the scenario bears does when more is asked of it, which is measured
    /// first: how much is too much differs by machine.
    OfCapacity { saturating_per_s: u32, parts: &'static [(&'static str, f64)] },
}

/// The phase that is judged where there is a calm before and after it.
pub const BURST: &str = "burst";

/// A named load.
#[derive(Debug)]
pub struct Scenario {
    pub name: &'static str,
    pub about: &'static str,
    pub work: Work,
    /// Where the adaptive pools start, unless told otherwise.
    pub min_size: usize,
    /// The overload is so deep that 100 ms would say more about the queue than about the pool's size.
    pub counts_all_served: bool,
    /// How long clients wait for an answer, where the server is told.
    pub budget_ms: Option<u32>,
    /// How often those try again who were refused or waited in vain; then the middle phase is slow.
    pub retries: u32,
    /// The most connections the database is to be asked for, where that is the limit.
    pub bears: usize,
    /// The phases in which goodput is compared.
    pub judged: &'static [&'static str],
    pub rates: Rates,
}

/// A stretch of constant arrival rate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    pub name: String,
    pub rate_per_s: u32,
    pub seconds: u32,
}

/// Every scenario there is; the first is the default.
pub const SCENARIOS: [Scenario; 8] = [
    Scenario {
        name: "incident",
        about: "6 ms of waiting each; more than any pool of 20 can carry",
        work: Work::Sleep6,
        min_size: 10,
        counts_all_served: false,
        budget_ms: None,
        retries: 0,
        bears: usize::MAX,
        judged: &[BURST],
        rates: Rates::Burst { calm_per_s: 420, burst_per_s: 6_000 },
    },
    Scenario {
        name: "burst",
        about: "6 ms of waiting each; ten times the calm rate",
        work: Work::Sleep6,
        min_size: 10,
        counts_all_served: false,
        budget_ms: None,
        retries: 0,
        bears: usize::MAX,
        judged: &[BURST],
        rates: Rates::Burst { calm_per_s: 420, burst_per_s: 4_200 },
    },
    Scenario {
        name: "cpu",
        about: "5 ms of the database's CPU each; more connections do not help",
        work: Work::Cpu5,
        min_size: 2,
        counts_all_served: true,
        budget_ms: None,
        retries: 0,
        bears: usize::MAX,
        judged: &[BURST],
        rates: Rates::Burst { calm_per_s: 110, burst_per_s: 1_140 },
    },
    Scenario {
        name: "lock",
        about: "one row that all want to update; more connections than the knee do harm",
        work: Work::HotRowLock,
        min_size: 2,
        counts_all_served: true,
        budget_ms: None,
        retries: 0,
        bears: usize::MAX,
        judged: &[BURST],
        rates: Rates::Burst { calm_per_s: 420, burst_per_s: 2_600 },
    },
    Scenario {
        name: "lock-nowait",
        about: "the same row, locked with NOWAIT and tried again at once: more connections do much harm",
        work: Work::HotRowNowait,
        min_size: 2,
        counts_all_served: true,
        budget_ms: None,
        retries: 0,
        bears: usize::MAX,
        judged: &[BURST],
        rates: Rates::Burst { calm_per_s: 420, burst_per_s: 2_600 },
    },
    Scenario {
        name: "cpu-3x",
        about: "three times what two cores can do of the 5 ms, for clients that wait 100 ms",
        work: Work::Cpu5,
        min_size: 2,
        counts_all_served: false,
        budget_ms: Some(100),
        retries: 0,
        bears: usize::MAX,
        judged: &[BURST],
        rates: Rates::Burst { calm_per_s: 110, burst_per_s: 1_260 },
    },
    Scenario {
        name: "retry-storm",
        about: "86 % of what 20 connections can do; a quarter of the speed for a while, and everybody tries three times more",
        work: Work::Slowable,
        min_size: 10,
        counts_all_served: false,
        budget_ms: Some(250),
        retries: 3,
        bears: 20,
        judged: &[], // by what came of the requests with all their attempts
        // Twenty connections finish 950 queries a second on the machine this was written on.
        rates: Rates::Storm { per_s: 950.0 * LOAD },
    },
    Scenario {
        name: "mixed",
        about: "half a second of waiting among a hundred times 2 ms; less than 20 connections can do, then more",
        work: Work::Mixed,
        min_size: 10,
        counts_all_served: true,
        budget_ms: None,
        retries: 0,
        bears: 20,
        judged: &["0.8 of capacity", "1.5 of capacity"],
        // Twenty connections would do 2,865 if nothing but the sleep took time.
        rates: Rates::OfCapacity {
            saturating_per_s: 4_300,
            parts: &[("0.8 of capacity", 0.8), ("1.5 of capacity", 1.5)],
        },
    },
];

impl Scenario {
    /// The scenario called `name`, or a sentence that lists those there are.
    pub fn named(name: &str) -> Result<&'static Self, String> {
        SCENARIOS.iter().find(|scenario| scenario.name == name).ok_or_else(|| {
            let lines = SCENARIOS.iter().map(|s| format!("\n  {:<12}{}", s.name, s.about));
            format!("there is no such scenario; there are:{}", lines.collect::<String>())
        })
    }

    /// What is good in it.
    pub fn good(&self) -> &'static str {
        if self.counts_all_served { "served" } else { "served within 100 ms" }
    }

    /// Its phases, each `seconds` long; a storm needs three times that before and eight times after. `capacity` is what was
    /// measured, where the rates are parts of it.
    pub fn phases(&self, seconds: u32, capacity: Option<f64>) -> Vec<Phase> {
        let phase = |name: &str, rate_per_s| Phase { name: name.into(), rate_per_s, seconds };
        match self.rates {
            Rates::Burst { calm_per_s, burst_per_s } => {
                vec![phase("baseline", calm_per_s), phase(BURST, burst_per_s), phase("after", calm_per_s)]
            }
            Rates::Storm { per_s } => {
                let steady = |name, times| Phase { seconds: times * seconds, ..phase(name, per_s as u32) };
                vec![steady("before", 3), steady("hiccup", 1), steady("after", 8)]
            }
            Rates::OfCapacity { saturating_per_s, parts } => {
                let capacity = capacity.unwrap_or(saturating_per_s.into());
                let rate = |part: f64| (part * capacity).round().max(1.0) as u32;
                parts.iter().map(|&(name, part)| phase(name, rate(part))).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_judged_is_a_phase() {
        for scenario in &SCENARIOS {
            let phases = scenario.phases(1, None);
            let there = |name: &&str| phases.iter().any(|phase| phase.name == **name);
            assert!(scenario.judged.iter().all(there), "{scenario:?}");
        }
    }

    #[test]
    fn parts_of_the_capacity_are_parts_of_what_was_measured() {
        let phases = Scenario::named("mixed").unwrap().phases(3, Some(2_000.0));
        assert_eq!(phases.iter().map(|phase| phase.rate_per_s).collect::<Vec<_>>(), [1_600, 3_000]);
    }
}
