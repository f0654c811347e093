//! The figures of a storm: what came of the requests with all their attempts, second by second.

use serde::{Deserialize, Serialize};

use super::stats::{Outcome, Record};
use crate::scenario::{LOAD, Phase, SLOWED};

/// What the server answered, attempt by attempt: what its ledgers must say too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Answers {
    pub served: u64,
    pub shed: u64,
    pub shed_without_retry_after: u64,
    pub timeouts: u64,
    pub errors: u64,
}

impl Answers {
    pub fn count(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Served => self.served += 1,
            Outcome::Shed { retry_after } => {
                self.shed += 1;
                self.shed_without_retry_after += u64::from(retry_after.is_none());
            }
            Outcome::Timeout => self.timeouts += 1,
            Outcome::Error => self.errors += 1,
        }
    }
}

/// Good is a request of which an attempt was served within its budget, at the time of that answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StormFigures {
    pub answers: Answers,
    pub good_by_second: Vec<u64>,
    /// From the recovery of the database to the first second that had 95 % of the load.
    pub back_s: Option<f64>,
    /// Goodput over what was offered,
    pub of_offered: f64,
    /// and over what the database can do if nobody comes back later: the load, and a quarter of its capacity while it is
    /// slow.
    pub of_best: f64,
}

/// From the phases, before, slow and after, and the records of all requests.
pub fn figures(phases: &[Phase], records: &[Record], answers: Answers) -> StormFigures {
    let served = records.iter().filter(|record| record.outcome == Outcome::Served);
    let mut answered: Vec<_> = served
        .map(|record| f64::from(record.intended_us) / 1e6 + f64::from(record.latency_us) / 1e6)
        .collect();
    answered.sort_unstable_by(f64::total_cmp);
    let good = |from_s: f64, until_s: f64| {
        let before = |s: f64| answered.partition_point(|&at| at < s);
        (before(until_s) - before(from_s)) as u64
    };
    let (mut end_s, mut recovered_s, mut best) = (0, 0, 0.0);
    for (number, phase) in phases.iter().enumerate() {
        let slow = number == SLOWED;
        let rate = f64::from(phase.rate_per_s);
        best += f64::from(phase.seconds) * if slow { rate.min(rate / LOAD / 4.0) } else { rate };
        end_s += phase.seconds;
        if slow {
            recovered_s = end_s;
        }
    }
    let load = phases.last().map_or(0.0, |phase| f64::from(phase.rate_per_s));
    let tenths = 0..(end_s - recovered_s).saturating_sub(1) * 10;
    let back_s = tenths.map(|tenth| f64::from(tenth) / 10.0).find(|after_s| {
        let from_s = f64::from(recovered_s) + after_s;
        good(from_s, from_s + 1.0) as f64 >= 0.95 * load
    });
    StormFigures {
        answers,
        good_by_second: (0..end_s).map(|s| good(f64::from(s), f64::from(s + 1))).collect(),
        back_s,
        of_offered: answered.len() as f64 / records.len().max(1) as f64,
        of_best: answered.len() as f64 / best,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_is_the_first_second_with_nearly_all_of_the_load() {
        let phase = |seconds| Phase { name: String::new(), rate_per_s: 100, seconds };
        // Nothing from 2 s until 3.5 s: half a second longer than the database was slow.
        let record = |k: u32| Record {
            intended_us: k * 10_000,
            lag_us: 0,
            latency_us: 5_000,
            outcome: if (200..350).contains(&k) { Outcome::Timeout } else { Outcome::Served },
        };
        let records: Vec<_> = (0..600).map(record).collect();
        let figures = figures(&[phase(2), phase(1), phase(3)], &records, Answers::default());
        assert_eq!(figures.good_by_second, [100, 100, 0, 50, 100, 100]);
        assert_eq!(figures.back_s, Some(0.5));
        assert!((figures.of_offered - 0.75).abs() < 1e-9);
        // A quarter of the capacity is 29 of the 100 in the slow second.
        assert!((figures.of_best - 450.0 / (500.0 + 25.0 / LOAD)).abs() < 1e-9);
    }
}
