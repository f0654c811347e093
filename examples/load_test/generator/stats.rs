//! From what became of every request to the figures: exact, because every request is kept (16 bytes each).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::storm::StormFigures;
use crate::scenario::Phase;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Served,
    /// With its `Retry-After` in seconds, where it had one.
    Shed {
        retry_after: Option<u8>,
    },
    Timeout,
    Error,
}

/// One request. Both delays count from the intended send time, whatever kept the generator from keeping to it:
/// otherwise a slow server would slow its own examiner and look better for it (coordinated omission).
#[derive(Clone, Copy, Debug)]
pub struct Record {
    pub intended_us: u32,
    pub lag_us: u32,
    pub latency_us: u32,
    pub outcome: Outcome,
}

/// What is not answered this long after it was to be sent is an error.
pub const GIVE_UP: Duration = Duration::from_secs(40);

impl Record {
    /// A request that has just been sent; until its answer comes it counts as one that never came.
    pub fn sent(intended: Duration, now: Duration) -> Self {
        Self {
            intended_us: micros(intended),
            lag_us: micros(now.saturating_sub(intended)),
            latency_us: micros(GIVE_UP),
            outcome: Outcome::Error,
        }
    }

    pub fn answered(&mut self, outcome: Outcome, now: Duration) {
        let latency_us = micros(now) - self.intended_us;
        if latency_us <= micros(GIVE_UP) {
            (self.latency_us, self.outcome) = (latency_us, outcome);
        }
    }
}

/// Saturates after 71 minutes, which no run reaches.
fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

/// What was answered in time to count as throughput: before the load, or the phase it was sent in, was over. A queue that is
/// served afterwards says how long it was, not how much the server can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct InPhase {
    pub served: u64,
    pub within_100ms: u64,
}

/// The figures of a run or of a phase. A quantile of nothing is `None`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    pub offered: u64,
    pub served: u64,
    pub within_100ms: u64,
    pub in_phase: InPhase,
    pub p50_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    pub p999_ms: Option<f64>,
    pub shed: u64,
    pub shed_p99_ms: Option<f64>,
    pub shed_without_retry_after: u64,
    pub timeouts: u64,
    pub errors: u64,
    pub lag_p99_ms: Option<f64>,
    /// Only of the whole run and of its last phase.
    pub recovery_s: Option<f64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PhaseFigures {
    pub phase: Phase,
    pub figures: Figures,
}

/// A tenth of a second, by intended send time: `served` were sent in it, not answered in it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Moment {
    pub t_s: f64,
    pub offered: u64,
    pub served: u64,
    pub within_100ms: u64,
    pub shed: u64,
    pub p99_ms: Option<f64>,
}

/// All that the generator knows about a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GeneratorReport {
    /// When it began by the wall clock, to lay the server's own samples beside it.
    pub started_unix_s: f64,
    pub total: Figures,
    pub phases: Vec<PhaseFigures>,
    pub timeline: Vec<Moment>,
    /// Where clients try again.
    pub storm: Option<StormFigures>,
}

const MOMENT: Duration = Duration::from_millis(100);
/// What people take for an answer at once.
const IN_TIME_US: u32 = 100_000;

impl GeneratorReport {
    /// From the records, in the order they were to be sent in.
    pub fn new(started_unix_s: f64, phases: &[Phase], records: &[Record]) -> Self {
        let mut total = figures(records, phases.iter().map(|phase| phase.seconds).sum());
        let mut by_phase = Vec::new();
        let mut begin_s = 0;
        for phase in phases {
            let end_s = begin_s + phase.seconds;
            let figures = figures(between(records, begin_s, end_s), end_s);
            by_phase.push((begin_s, PhaseFigures { phase: phase.clone(), figures }));
            begin_s = end_s;
        }
        // Only where the last phase is a calm one after another's trouble.
        if let [(_, baseline), _, .., (after_s, after)] = &mut by_phase[..] {
            let recovery_s = baseline.figures.p99_ms.and_then(|p99_ms| recovery_s(records, *after_s, p99_ms));
            after.figures.recovery_s = recovery_s;
            total.recovery_s = recovery_s;
        }
        let timeline = timeline(records, begin_s);
        Self {
            started_unix_s,
            total,
            phases: by_phase.into_iter().map(|(_, phase)| phase).collect(),
            timeline,
            storm: None,
        }
    }
}

/// Those of the sorted `records` that were meant to be sent from one second until another.
fn between(records: &[Record], from_s: u32, until_s: u32) -> &[Record] {
    let at = |second: u32| records.partition_point(|record| record.intended_us < second * 1_000_000);
    &records[at(from_s)..at(until_s)]
}

/// The figures of these records, which belong to a stretch of load that ends at `end_s`.
fn figures(records: &[Record], end_s: u32) -> Figures {
    let latencies = |class: fn(Outcome) -> bool| {
        sorted(records.iter().filter(|r| class(r.outcome)).map(|r| r.latency_us))
    };
    let served = latencies(|outcome| outcome == Outcome::Served);
    let shed = latencies(|outcome| matches!(outcome, Outcome::Shed { .. }));
    let count = |outcome| records.iter().filter(|record| record.outcome == outcome).count() as u64;
    Figures {
        offered: records.len() as u64,
        served: served.len() as u64,
        within_100ms: served.partition_point(|&us| us <= IN_TIME_US) as u64,
        in_phase: in_phase(records, end_s),
        p50_ms: quantile_ms(&served, 0.5),
        p99_ms: quantile_ms(&served, 0.99),
        p999_ms: quantile_ms(&served, 0.999),
        shed: shed.len() as u64,
        shed_p99_ms: quantile_ms(&shed, 0.99),
        shed_without_retry_after: count(Outcome::Shed { retry_after: None }),
        timeouts: count(Outcome::Timeout),
        errors: count(Outcome::Error),
        lag_p99_ms: quantile_ms(&sorted(records.iter().map(|record| record.lag_us)), 0.99),
        recovery_s: None,
    }
}

fn in_phase(records: &[Record], end_s: u32) -> InPhase {
    let served = records.iter().filter(|record| record.outcome == Outcome::Served);
    let answered_us = |record: &Record| u64::from(record.intended_us) + u64::from(record.latency_us);
    let before_end = served.filter(|record| answered_us(record) <= u64::from(end_s) * 1_000_000);
    before_end.fold(InPhase::default(), |sum, record| InPhase {
        served: sum.served + 1,
        within_100ms: sum.within_100ms + u64::from(record.latency_us <= IN_TIME_US),
    })
}

fn timeline(records: &[Record], seconds: u32) -> Vec<Moment> {
    let moment_us = MOMENT.as_micros() as u32;
    let mut rest = records;
    let moments = 0..seconds * 1_000_000 / moment_us;
    moments
        .map(|i| {
            let (here, later) =
                rest.split_at(rest.partition_point(|record| record.intended_us < (i + 1) * moment_us));
            rest = later;
            let Figures { offered, served, within_100ms, shed, p99_ms, .. } = figures(here, seconds);
            Moment { t_s: f64::from(i * moment_us) / 1e6, offered, served, within_100ms, shed, p99_ms }
        })
        .collect()
}

/// From the burst's end to the intended send time of the first of 100 requests in a row that were all served within
/// twice the baseline's p99: the server is well again when it stays well.
fn recovery_s(records: &[Record], burst_end_s: u32, baseline_p99_ms: f64) -> Option<f64> {
    let after = between(records, burst_end_s, u32::MAX / 1_000_000);
    let well = |record: &Record| {
        record.outcome == Outcome::Served && f64::from(record.latency_us) <= 2e3 * baseline_p99_ms
    };
    let first = after.windows(100).find(|hundred| hundred.iter().all(well))?[0];
    Some(f64::from(first.intended_us - burst_end_s * 1_000_000) / 1e6)
}

fn sorted(values: impl Iterator<Item = u32>) -> Vec<u32> {
    let mut values: Vec<_> = values.collect();
    values.sort_unstable();
    values
}

fn quantile_ms(sorted_us: &[u32], q: f64) -> Option<f64> {
    quantile(sorted_us, q).map(|us| f64::from(us) / 1e3)
}

/// The smallest of the sorted values that at least the share `q` of them does not exceed.
pub fn quantile<T: Copy>(sorted: &[T], q: f64) -> Option<T> {
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

#[cfg(test)]
mod tests;
