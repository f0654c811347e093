//! What is kept of a run.

use std::time::Duration;

use http::StatusCode;
use tower_adaptive_pool::{Reason, Snapshot};

use crate::opponents::Choice;
use crate::run::LOOK;
use crate::scenario::Scenario;

/// The width of a bin.
pub const BIN_S: f64 = 0.1;
/// A smaller move of the limit is no move.
const LARGE: f64 = 0.15;

/// A tenth of a second. Requests are counted where they were first sent, so that two runs compare the same ones; sizes
/// are means over the bin and sums over the instances.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bin {
    pub offered: u32,
    pub in_time: u32,
    pub shed: u32,
    pub timed_out: u32,
    pub limit: f64,
    pub in_use: f64,
    pub queue_depth: f64,
    pub size: f64,
}

/// What came of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    pub choice: Choice,
    pub seed: u64,
    pub bins: Vec<Bin>,
    /// Requests served in time, first tries and retries.
    pub goodput: u64,
    pub p99_ms: Option<f64>,
    pub connection_seconds: f64,
    /// Reversals of the limit by 15 % or more, probes apart; of the instance with the most.
    pub reversals: u32,
    pub turns: u32,
    pub probes: u32,
    /// The part of the time that the instances spent in probes.
    pub probing: f64,
    pub moves: Vec<Move>,
}

/// The limit of one instance changed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Move {
    pub at: Duration,
    pub instance: usize,
    pub from: usize,
    pub to: usize,
    pub queue_depth: usize,
    pub reason: Reason,
}

/// A run in the making.
pub struct Record {
    bins: Vec<Bin>,
    looks: Vec<u32>,
    latencies: Vec<f32>,
    connection_seconds: f64,
    instances: Vec<Trail>,
    moves: Vec<Move>,
    settled_s: f64,
    instance_looks: u64,
    probing_looks: u64,
}

impl Record {
    pub fn new(scenario: &Scenario) -> Self {
        let bins = (scenario.seconds() / BIN_S).round() as usize;
        Self {
            bins: vec![Bin::default(); bins],
            looks: vec![0; bins],
            latencies: Vec::new(),
            connection_seconds: 0.0,
            instances: Vec::new(),
            moves: Vec::new(),
            settled_s: scenario.settled_s,
            instance_looks: 0,
            probing_looks: 0,
        }
    }

    fn bin(&mut self, at: Duration) -> &mut Bin {
        let index = (at.as_secs_f64() / BIN_S) as usize;
        let last = self.bins.len() - 1;
        &mut self.bins[index.min(last)]
    }

    pub fn offered(&mut self, at: Duration) {
        self.bin(at).offered += 1;
    }

    /// An attempt of the request first sent at `at` was answered.
    pub fn answered(&mut self, at: Duration, took: Duration, status: StatusCode, in_time: bool) {
        let bin = self.bin(at);
        bin.in_time += u32::from(in_time);
        bin.shed += u32::from(status == StatusCode::SERVICE_UNAVAILABLE);
        bin.timed_out += u32::from(status == StatusCode::GATEWAY_TIMEOUT);
        if status == StatusCode::OK {
            self.latencies.push(took.as_secs_f32() * 1e3);
        }
    }

    /// How the instances stand.
    pub fn look(&mut self, now: Duration, snapshots: impl Iterator<Item = Snapshot>) {
        let index = (now.as_secs_f64() / BIN_S + 1e-6) as usize;
        if index >= self.bins.len() {
            return;
        }
        self.looks[index] += 1;
        for (number, snapshot) in snapshots.enumerate() {
            if number == self.instances.len() {
                self.instances.push(Trail::new(snapshot.limit));
            }
            let trail = &mut self.instances[number];
            let reason = snapshot.last_decision.reason;
            if snapshot.limit != trail.limit {
                let queue_depth = snapshot.queue_depth;
                let (from, to) = (trail.limit, snapshot.limit);
                self.moves.push(Move { at: now, instance: number, from, to, queue_depth, reason });
                trail.see(snapshot.limit, reason.code());
                if now.as_secs_f64() < self.settled_s {
                    (trail.reversals, trail.turns) = (0, 0);
                }
            }
            // A probe lasts until the law says something else: when it is kept, the limit does not move.
            trail.probing &= reason.code() == "probe";
            self.instance_looks += 1;
            self.probing_looks += u64::from(trail.probing);
            let bin = &mut self.bins[index];
            bin.limit += snapshot.limit as f64;
            bin.in_use += snapshot.in_use as f64;
            bin.queue_depth += snapshot.queue_depth as f64;
            bin.size += snapshot.size as f64;
            self.connection_seconds += snapshot.size as f64 * LOOK.as_secs_f64();
        }
    }

    pub fn finish(mut self, choice: Choice, seed: u64) -> Run {
        for (bin, looks) in self.bins.iter_mut().zip(&self.looks) {
            let looks = f64::from((*looks).max(1));
            for mean in [&mut bin.limit, &mut bin.in_use, &mut bin.queue_depth, &mut bin.size] {
                *mean /= looks;
            }
        }
        self.latencies.sort_unstable_by(f32::total_cmp);
        let p99 = self.latencies.get(self.latencies.len() * 99 / 100);
        Run {
            choice,
            seed,
            goodput: self.bins.iter().map(|bin| u64::from(bin.in_time)).sum(),
            p99_ms: p99.map(|&ms| f64::from(ms)),
            connection_seconds: self.connection_seconds,
            reversals: self.instances.iter().map(|trail| trail.reversals).max().unwrap_or(0),
            turns: self.instances.iter().map(|trail| trail.turns).max().unwrap_or(0),
            probes: self.instances.iter().map(|trail| trail.probes).sum(),
            probing: self.probing_looks as f64 / self.instance_looks.max(1) as f64,
            bins: self.bins,
            moves: self.moves,
        }
    }
}

/// How one instance's limit went to and fro.
struct Trail {
    limit: usize,
    probing: bool,
    probes: u32,
    /// Moves of 15 % or more against the one before, probes apart.
    reversals: u32,
    moved_up: Option<bool>,
    /// Ways of 15 % or more against the one before, in however many moves.
    turns: u32,
    rising: Option<bool>,
    lowest: f64,
    highest: f64,
}

impl Trail {
    fn new(limit: usize) -> Self {
        let (lowest, highest) = (limit as f64, limit as f64);
        let (probing, probes, reversals, turns) = (false, 0, 0, 0);
        Self { limit, probing, probes, reversals, moved_up: None, turns, rising: None, lowest, highest }
    }

    fn see(&mut self, limit: usize, code: &str) {
        let from = std::mem::replace(&mut self.limit, limit);
        let ends_a_probe = std::mem::replace(&mut self.probing, code == "probe");
        if self.probing {
            self.probes += 1;
            return;
        }
        if !ends_a_probe {
            self.moved(limit as f64 / from.max(1) as f64);
        }
        self.went(limit as f64);
    }

    fn moved(&mut self, ratio: f64) {
        let up = ratio >= 1.0 + LARGE;
        if up || ratio <= 1.0 - LARGE {
            self.reversals += u32::from(self.moved_up == Some(!up));
            self.moved_up = Some(up);
        }
    }

    /// Many small moves are as good as a large one here: what counts is the way from the last turning point.
    fn went(&mut self, to: f64) {
        (self.lowest, self.highest) = (self.lowest.min(to), self.highest.max(to));
        let rises = to >= self.lowest * (1.0 + LARGE) && self.rising != Some(true);
        let falls = to <= self.highest * (1.0 - LARGE) && self.rising != Some(false);
        if rises || falls {
            self.turns += u32::from(self.rising.is_some());
            self.rising = Some(rises);
            (self.lowest, self.highest) = (to, to);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reversals, and turns.
    fn to_and_fro(limits: &[usize]) -> (u32, u32) {
        let mut trail = Trail::new(limits[0]);
        for &limit in limits {
            trail.see(limit, "test");
        }
        (trail.reversals, trail.turns)
    }

    #[test]
    fn a_reversal_is_two_large_moves_in_opposite_directions() {
        assert_eq!(to_and_fro(&[10, 15, 23, 35, 50]), (0, 0), "growth");
        assert_eq!(to_and_fro(&[10, 15, 23, 20, 23]), (0, 0), "13 % back is no move");
        assert_eq!(to_and_fro(&[10, 15, 23, 15]), (1, 1));
        assert_eq!(to_and_fro(&[10, 20, 10, 20, 10]), (3, 3));
        assert_eq!(to_and_fro(&[40, 20, 21, 22, 23]), (0, 1));
    }

    #[test]
    fn a_turn_may_take_many_small_moves() {
        assert_eq!(to_and_fro(&[10, 20, 19, 18, 17, 16, 15, 10]), (1, 1));
        assert_eq!(to_and_fro(&[10, 20, 19, 18, 17, 16, 15]), (0, 1));
    }

    #[test]
    fn probes_are_counted_apart() {
        let mut trail = Trail::new(10);
        for (limit, code) in [(20, "grow"), (15, "probe"), (20, "trial_ended"), (15, "probe"), (20, "grow")] {
            trail.see(limit, code);
        }
        assert_eq!((trail.reversals, trail.turns, trail.probes), (0, 0, 2));
    }
}
