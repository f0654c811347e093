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
}

/// The part of what the database can do that is asked of it before, during and after the hiccup.
pub const LOAD: f64 = 0.86;
/// Which phase is slow.
pub const SLOWED: usize = 1;

/// A named load: calm, too much, calm again; or steady, over a database that is slow for a while.
#[derive(Debug)]
pub struct Scenario {
    pub name: &'static str,
    pub about: &'static str,
    pub work: Work,
    /// Where the adaptive pool starts, unless told otherwise.
    pub min_size: usize,
    /// The overload is so deep that 100 ms would say more about the queue than about the pool's size.
    pub counts_all_served: bool,
    /// How long clients wait for an answer, where the server is told.
    pub budget_ms: Option<u32>,
    /// How often those try again who were refused or waited in vain; then the middle phase is slow.
    pub retries: u32,
    /// The most connections the database is to be asked for, where that is the limit.
    pub bears: usize,
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
pub const SCENARIOS: [Scenario; 7] = [
    Scenario {
        name: "incident",
        about: "6 ms of waiting each; more than any pool of 20 can carry",
        work: Work::Sleep6,
        min_size: 10,
        counts_all_served: false,
        budget_ms: None,
        retries: 0,
        bears: usize::MAX,
        calm_per_s: 420,
        burst_per_s: 6_000,
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
        calm_per_s: 420,
        burst_per_s: 4_200,
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
        calm_per_s: 110,
        burst_per_s: 1_140,
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
        calm_per_s: 420,
        burst_per_s: 2_600,
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
        calm_per_s: 420,
        burst_per_s: 2_600,
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
        calm_per_s: 110,
        burst_per_s: 1_260,
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
        calm_per_s: STORM_PER_S,
        burst_per_s: STORM_PER_S,
    },
];

/// Twenty connections finish 950 queries a second on the machine this was written on.
const STORM_PER_S: u32 = (950.0 * LOAD) as u32;

impl Scenario {
    /// The scenario called `name`, or a sentence that lists those there are.
    pub fn named(name: &str) -> Result<&'static Self, String> {
        SCENARIOS.iter().find(|scenario| scenario.name == name).ok_or_else(|| {
            let lines = SCENARIOS.iter().map(|s| format!("\n  {:<12}{}", s.name, s.about));
            format!("there is no such scenario; there are:{}", lines.collect::<String>())
        })
    }

    /// Its phases, each `seconds` long; a storm needs three times that before and eight times after.
    pub fn phases(&self, seconds: u32) -> Vec<Phase> {
        let phase = |name: &str, rate_per_s| Phase { name: name.into(), rate_per_s, seconds };
        if self.retries > 0 {
            let steady = |name, times| Phase { seconds: times * seconds, ..phase(name, self.calm_per_s) };
            return vec![steady("before", 3), steady("hiccup", 1), steady("after", 8)];
        }
        vec![
            phase("baseline", self.calm_per_s),
            phase("burst", self.burst_per_s),
            phase("after", self.calm_per_s),
        ]
    }
}
