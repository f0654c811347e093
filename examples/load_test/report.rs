//! A run as both sides saw it: the generator's figures beside the server's own.

use serde::Serialize;

use crate::{
    args::PoolSpec,
    generator::{
        stats::{Figures, GeneratorReport, Moment, quantile},
        storm::{Answers, StormFigures},
    },
    scenario::{Phase, Scenario},
};

/// What the server saw of a run.
#[derive(Debug, Default)]
pub struct ServerReport {
    /// Every wait that ended with a connection.
    pub acquires: Vec<Acquire>,
    /// When each connection was opened, those from before the load too.
    pub dials: Vec<f64>,
    /// `None` where nobody looked.
    pub limits: Option<Limits>,
    pub peak_connections: u64,
    /// How many connections PostgreSQL itself refused (53300).
    pub too_many_connections: u64,
    pub connection_seconds: f64,
    pub samples: Vec<ServerSample>,
    /// `None` where nobody keeps one: a plain static pool.
    pub ledger: Option<LedgerCounts>,
}

/// Between what the limit moved.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    pub least: u64,
    pub peak: u64,
}

impl Limits {
    /// As before, with a look more.
    pub fn with(before: Option<Self>, limit: u64) -> Self {
        let Self { least, peak } = before.unwrap_or(Self { least: limit, peak: limit });
        Self { least: least.min(limit), peak: peak.max(limit) }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Acquire {
    pub unix_s: f64,
    pub wait_ms: f64,
}

/// The server's state, every 100 ms.
#[derive(Clone, Copy, Debug, Default)]
pub struct ServerSample {
    pub unix_s: f64,
    pub limit: u64,
    pub in_use: u64,
    pub idle: u64,
    pub reserve: u64,
    pub queue_depth: u64,
    /// Since the start.
    pub too_many_connections: u64,
}

/// What the library's own ledgers say at the end of a run.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct LedgerCounts {
    pub layer_shed: u64,
    pub gate_shed: u64,
    pub acquire_timeouts: u64,
    pub query_timeouts: u64,
    pub queries_ok: u64,
    /// `None` where each request tries as often as it must.
    pub queries_per_request: Option<u64>,
}

/// The file that `--json` writes.
#[derive(Debug, Serialize)]
pub struct Report<'a> {
    pub runs: &'a [Run],
}

#[derive(Debug, Serialize)]
pub struct Run {
    pub scenario: &'static str,
    pub pool: String,
    /// The limit that a pool of fixed size must keep, and those it was seen with.
    #[serde(skip)]
    fixed: Option<(u64, Limits)>,
    pub started_unix_s: f64,
    #[serde(flatten)]
    pub load: Figures,
    #[serde(flatten)]
    pub server: ServerFigures,
    pub ledger: Option<LedgerCounts>,
    pub phases: Vec<RunPhase>,
    pub timeline: Vec<TimelineRow>,
    /// Where clients try again.
    pub storm: Option<StormFigures>,
}

#[derive(Debug, Serialize)]
pub struct RunPhase {
    #[serde(flatten)]
    pub phase: Phase,
    #[serde(flatten)]
    pub load: Figures,
    #[serde(flatten)]
    pub server: ServerFigures,
}

/// The server's part of the figures, of a run or of a phase.
#[derive(Debug, Serialize)]
pub struct ServerFigures {
    pub acquire_p99_ms: Option<f64>,
    /// Connections opened during the load.
    pub dials: u64,
    pub peak_limit: u64,
    pub peak_connections: u64,
    pub too_many_connections: u64,
    pub connection_seconds: f64,
}

/// A tenth of a second; without the server's part where it took no sample.
#[derive(Debug, Serialize)]
pub struct TimelineRow {
    #[serde(flatten)]
    pub load: Moment,
    pub limit: Option<u64>,
    pub in_use: Option<u64>,
    pub idle: Option<u64>,
    pub reserve: Option<u64>,
    pub queue_depth: Option<u64>,
}

impl Run {
    pub fn new(scenario: &Scenario, pool: PoolSpec, load: GeneratorReport, mut server: ServerReport) -> Self {
        server.samples.sort_by(|a, b| a.unix_s.total_cmp(&b.unix_s));
        let mut begin_s = load.started_unix_s;
        let fixed = match pool {
            PoolSpec::Fixed(size) => server.limits.map(|limits| (size.get() as u64, limits)),
            _ => None,
        };
        let phases: Vec<_> = load
            .phases
            .into_iter()
            .map(|part| {
                let end_s = begin_s + f64::from(part.phase.seconds);
                let figures = server.between(begin_s, end_s);
                begin_s = end_s;
                RunPhase { phase: part.phase, load: part.figures, server: figures }
            })
            .collect();
        Self {
            scenario: scenario.name,
            pool: pool.to_string(),
            started_unix_s: load.started_unix_s,
            load: load.total,
            phases,
            fixed,
            timeline: load
                .timeline
                .into_iter()
                .map(|moment| server.beside(moment, load.started_unix_s))
                .collect(),
            storm: load.storm,
            ledger: server.ledger,
            server: ServerFigures {
                acquire_p99_ms: p99_ms(server.acquires.iter()),
                dials: server.dials_within(load.started_unix_s, begin_s),
                peak_limit: server.limits.map_or(0, |limits| limits.peak),
                peak_connections: server.peak_connections,
                too_many_connections: server.too_many_connections,
                connection_seconds: server.connection_seconds,
            },
        }
    }

    pub fn phase(&self, name: &str) -> Option<&RunPhase> {
        self.phases.iter().find(|part| part.phase.name == name)
    }

    /// Whether the run can be trusted; otherwise why not.
    pub fn check(&self) -> Result<(), String> {
        let wrong: Vec<_> =
            [self.check_ledger(), self.check_limit()].into_iter().filter_map(Result::err).collect();
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
    }

    /// Whether a pool of fixed size was one, all the time.
    fn check_limit(&self) -> Result<(), String> {
        match self.fixed {
            Some((size, Limits { least, peak })) if (least, peak) != (size, size) => Err(format!(
                "{} × {}: the limit was to stay at {size}, but was between {least} and {peak}",
                self.scenario, self.pool
            )),
            _ => Ok(()),
        }
    }

    /// Whether what the clients received is what the ledgers say was sent: if not, one of the two cannot be trusted.
    fn check_ledger(&self) -> Result<(), String> {
        let Some(ledger) = self.ledger else {
            return Ok(());
        };
        let load = &self.load;
        let once = Answers {
            served: load.served,
            shed: load.shed,
            shed_without_retry_after: load.shed_without_retry_after,
            timeouts: load.timeouts,
            errors: load.errors,
        };
        let answers = self.storm.as_ref().map_or(once, |storm| storm.answers);
        let pairs = [
            ("503s", answers.shed, "requests and acquires shed", ledger.layer_shed + ledger.gate_shed),
            (
                "504s",
                answers.timeouts,
                "acquires and queries timed out",
                ledger.acquire_timeouts + ledger.query_timeouts,
            ),
            (
                "queries behind the 200s",
                answers.served * ledger.queries_per_request.unwrap_or(0),
                "queries ok",
                ledger.queries_per_request.map_or(0, |_| ledger.queries_ok),
            ),
            ("503s without Retry-After", answers.shed_without_retry_after, "allowed", 0),
        ];
        let wrong = pairs.iter().filter(|(_, received, _, counted)| received != counted);
        let sentences: Vec<_> = wrong
            .map(|(what, received, name, counted)| format!("{received} {what}, but {counted} {name}"))
            .collect();
        if sentences.is_empty() {
            return Ok(());
        }
        Err(format!(
            "{} × {}: clients and ledgers disagree: {}",
            self.scenario,
            self.pool,
            sentences.join("; ")
        ))
    }
}

impl ServerReport {
    /// The figures of a phase, as far as acquires and samples tell.
    fn between(&self, begin_s: f64, end_s: f64) -> ServerFigures {
        let within = |unix_s: f64| (begin_s..end_s).contains(&unix_s);
        let before = |unix_s: f64| self.samples.iter().take_while(|sample| sample.unix_s < unix_s).last();
        let refused = |unix_s: f64| before(unix_s).map_or(0, |sample| sample.too_many_connections);
        let open = |sample: &ServerSample| sample.in_use + sample.idle + sample.reserve;
        let peak = |of: fn(&ServerSample) -> u64| {
            self.samples.iter().filter(|sample| within(sample.unix_s)).map(of).max().unwrap_or(0)
        };
        let stretches = self.samples.windows(2).filter(|pair| within(pair[0].unix_s));
        ServerFigures {
            acquire_p99_ms: p99_ms(self.acquires.iter().filter(|acquire| within(acquire.unix_s))),
            dials: self.dials_within(begin_s, end_s),
            peak_limit: peak(|sample| sample.limit),
            peak_connections: peak(open),
            too_many_connections: refused(end_s) - refused(begin_s),
            connection_seconds: stretches
                .map(|pair| open(&pair[0]) as f64 * (pair[1].unix_s - pair[0].unix_s))
                .sum(),
        }
    }

    fn dials_within(&self, begin_s: f64, end_s: f64) -> u64 {
        self.dials.iter().filter(|&&unix_s| (begin_s..end_s).contains(&unix_s)).count() as u64
    }

    /// A tenth of a second of load with the first sample that was taken in it.
    fn beside(&self, load: Moment, started_unix_s: f64) -> TimelineRow {
        let begin_s = started_unix_s + load.t_s;
        let next = self.samples.partition_point(|sample| sample.unix_s < begin_s);
        // The sampler's tick drifts a little against ours: a sample from just after still tells.
        let sample = self.samples.get(next).filter(|sample| sample.unix_s < begin_s + 0.2);
        TimelineRow {
            load,
            limit: sample.map(|sample| sample.limit),
            in_use: sample.map(|sample| sample.in_use),
            idle: sample.map(|sample| sample.idle),
            reserve: sample.map(|sample| sample.reserve),
            queue_depth: sample.map(|sample| sample.queue_depth),
        }
    }
}

fn p99_ms<'a>(acquires: impl Iterator<Item = &'a Acquire>) -> Option<f64> {
    let mut waits: Vec<f64> = acquires.map(|acquire| acquire.wait_ms).collect();
    waits.sort_unstable_by(f64::total_cmp);
    quantile(&waits, 0.99)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generator::stats::Record;

    /// A run of three phases of a second that began at 1,000 s; connection number k was opened in the k-th phase.
    fn run(ledger: Option<LedgerCounts>) -> Run {
        let scenario = Scenario::named("burst").unwrap();
        let load = GeneratorReport::new(1_000.0, &scenario.phases(1, None), &[] as &[Record]);
        let sample = |k: u32| ServerSample {
            unix_s: 1_000.05 + f64::from(k) / 10.0,
            in_use: u64::from(k / 10) + 1,
            too_many_connections: u64::from(k / 10),
            ..Default::default()
        };
        let acquires = [1_000.5, 1_001.5].map(|unix_s| Acquire { unix_s, wait_ms: unix_s - 1_000.0 });
        let server = ServerReport {
            acquires: acquires.into(),
            samples: (0..30).map(sample).collect(),
            ledger,
            ..Default::default()
        };
        Run::new(scenario, PoolSpec::Adaptive, load, server)
    }

    #[test]
    fn the_servers_samples_fall_into_the_generators_phases() {
        let run = run(None);
        let peaks: Vec<_> = run.phases.iter().map(|part| part.server.peak_connections).collect();
        let refused: Vec<_> = run.phases.iter().map(|part| part.server.too_many_connections).collect();
        let waits: Vec<_> = run.phases.iter().map(|part| part.server.acquire_p99_ms).collect();

        assert_eq!((peaks, refused), (vec![1, 2, 3], vec![0, 1, 1]));
        assert_eq!(waits, [Some(0.5), Some(1.5), None]);
        assert_eq!((run.timeline[9].in_use, run.timeline[10].in_use), (Some(1), Some(2)));
    }

    #[test]
    fn a_ledger_that_disagrees_is_named() {
        let mut ledger = LedgerCounts {
            layer_shed: 0,
            gate_shed: 0,
            acquire_timeouts: 0,
            query_timeouts: 0,
            queries_ok: 0,
            queries_per_request: Some(2),
        };
        assert_eq!(run(Some(ledger)).check_ledger(), Ok(()));
        ledger.gate_shed = 3;
        let sentence = run(Some(ledger)).check_ledger().unwrap_err();
        assert!(sentence.contains("0 503s, but 3 requests and acquires shed"), "{sentence}");
    }

    #[test]
    fn a_fixed_pool_whose_limit_moved_is_named() {
        let scenario = Scenario::named("burst").unwrap();
        let of = |pool: &str, looks: &[u64]| {
            let load = GeneratorReport::new(1_000.0, &scenario.phases(1, None), &[] as &[Record]);
            let limits = looks.iter().fold(None, |limits, &limit| Some(Limits::with(limits, limit)));
            Run::new(scenario, pool.parse().unwrap(), load, ServerReport { limits, ..Default::default() })
                .check()
        };
        assert_eq!(of("fixed:5", &[5, 5]), Ok(()));
        assert_eq!(of("adaptive", &[5, 7, 3]), Ok(()), "its limit is to move");
        let sentence = of("fixed:5", &[5, 7, 3]).unwrap_err();
        assert_eq!(sentence, "burst × fixed:5: the limit was to stay at 5, but was between 3 and 7");
    }

    #[test]
    fn dials_before_the_load_do_not_count() {
        let scenario = Scenario::named("burst").unwrap();
        let load = GeneratorReport::new(1_000.0, &scenario.phases(1, None), &[] as &[Record]);
        let dials = vec![999.9, 1_000.0, 1_001.5, 1_001.6, 1_003.1];
        let run = Run::new(scenario, PoolSpec::Adaptive, load, ServerReport { dials, ..Default::default() });
        let phases: Vec<_> = run.phases.iter().map(|part| part.server.dials).collect();
        assert_eq!((run.server.dials, phases), (3, vec![1, 2, 0]), "nor those after it");
    }
}
