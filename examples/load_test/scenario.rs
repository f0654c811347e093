//! What the load looks like: scenarios as data.

use serde::{Deserialize, Serialize};

/// The work one request asks of the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// `select pg_sleep(0.006)`: waits, costs no CPU, so every further connection pays.
    Sleep6,
    /// A query of about 5 ms of CPU: connections past the number of cores do not pay.
    Cpu5,
    /// 6 ms of sleep, then a transaction that updates a row shared by all: connections past the knee cost.
    HotRowLock,
    /// The same without waiting for the row: whoever finds it locked tries again at once. More connections are more tries.
    HotRowNowait,
}

/// A named load: calm, too much, calm again.
#[derive(Debug)]
pub struct Scenario {
    pub name: &'static str,
    pub about: &'static str,
    pub work: Work,
    /// Where the adaptive pool starts, unless told otherwise.
    pub min_size: usize,
    /// The overload is so deep that 100 ms would say more about the queue than about the pool's size.
    pub counts_all_served: bool,
    calm_per_s: u32,
    burst_per_s: u32,
}

/// A stretch of constant arrival rate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    pub name: String,
    pub rate_per_s: u32,
    pub seconds: u32,
}

/// Every scenario there is; the first is the default.
pub const SCENARIOS: [Scenario; 5] = [
    Scenario {
        name: "incident",
        about: "6 ms of waiting each; more than any pool of 20 can carry",
        work: Work::Sleep6,
        min_size: 10,
        counts_all_served: false,
        calm_per_s: 420,
        burst_per_s: 6_000,
    },
    Scenario {
        name: "burst",
        about: "6 ms of waiting each; ten times the calm rate",
        work: Work::Sleep6,
        min_size: 10,
        counts_all_served: false,
        calm_per_s: 420,
        burst_per_s: 4_200,
    },
    Scenario {
        name: "cpu",
        about: "5 ms of the database's CPU each; more connections do not help",
        work: Work::Cpu5,
        min_size: 2,
        counts_all_served: true,
        calm_per_s: 110,
        burst_per_s: 1_140,
    },
    Scenario {
        name: "lock",
        about: "one row that all want to update; more connections than the knee do harm",
        work: Work::HotRowLock,
        min_size: 2,
        counts_all_served: true,
        calm_per_s: 420,
        burst_per_s: 2_600,
    },
    Scenario {
        name: "lock-nowait",
        about: "the same row, locked with NOWAIT and tried again at once: more connections do much harm",
        work: Work::HotRowNowait,
        min_size: 2,
        counts_all_served: true,
        calm_per_s: 420,
        burst_per_s: 2_600,
    },
];

impl Scenario {
    /// The scenario called `name`, or a sentence that lists those there are.
    pub fn named(name: &str) -> Result<&'static Self, String> {
        SCENARIOS.iter().find(|scenario| scenario.name == name).ok_or_else(|| {
            let lines = SCENARIOS.iter().map(|s| format!("\n  {:<10}{}", s.name, s.about));
            format!("there is no such scenario; there are:{}", lines.collect::<String>())
        })
    }

    /// Its phases, each `seconds` long.
    pub fn phases(&self, seconds: u32) -> Vec<Phase> {
        let phase = |name: &str, rate_per_s| Phase { name: name.into(), rate_per_s, seconds };
        vec![
            phase("baseline", self.calm_per_s),
            phase("burst", self.burst_per_s),
            phase("after", self.calm_per_s),
        ]
    }
}
