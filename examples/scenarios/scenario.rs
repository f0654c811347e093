//! What is played: data files, one or several scenarios each, read at compile time.

use std::time::Duration;

use serde::Deserialize;

use crate::Error;
use crate::curve::Curve;
use crate::random::Random;

/// The data files, in the order of the table.
const FILES: [(&str, &str); 18] = [
    ("step-burst", include_str!("data/step-burst.json")),
    ("ramp", include_str!("data/ramp.json")),
    ("oscillation", include_str!("data/oscillation.json")),
    ("overload-1.8", include_str!("data/overload-1.8.json")),
    ("overload-1.24", include_str!("data/overload-1.24.json")),
    ("cold-start", include_str!("data/cold-start.json")),
    ("half-speed", include_str!("data/half-speed.json")),
    ("stall", include_str!("data/stall.json")),
    ("rival", include_str!("data/rival.json")),
    ("mixed-classes", include_str!("data/mixed-classes.json")),
    ("off-peak", include_str!("data/off-peak.json")),
    ("measured", include_str!("data/measured.json")),
    ("knees", include_str!("data/knees.json")),
    ("eight-instances", include_str!("data/eight-instances.json")),
    ("scale-out", include_str!("data/scale-out.json")),
    ("scale-out-late", include_str!("data/scale-out-late.json")),
    ("retry-storm", include_str!("data/retry-storm.json")),
    ("steady", include_str!("data/steady.json")),
];

/// One scenario.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// The file's name, and the curve's where the file has several.
    #[serde(skip)]
    pub name: String,
    /// What happens, in a sentence.
    pub about: String,
    /// `usl:KNEE` or `measured:WORKLOAD`; each makes a scenario of its own.
    pub curves: Vec<String>,
    /// The most queries a second the database can finish with up to `max_size` running.
    pub peak_per_s: f64,
    #[serde(default = "two")]
    pub min_size: usize,
    #[serde(default = "fifty")]
    pub max_size: usize,
    /// What is served later than this is of no more use, and nobody waits longer.
    pub deadline_ms: u64,
    pub soft_cap: usize,
    pub hard_cap: usize,
    #[serde(default)]
    pub service: Service,
    /// Kinds of queries; none is one kind.
    #[serde(default)]
    pub classes: Vec<Class>,
    #[serde(default = "five")]
    pub dial_ms: u64,
    /// Work of one dial on the server, in usual queries.
    #[serde(default)]
    pub dial_work: f64,
    #[serde(default)]
    pub arrivals: Arrivals,
    /// One after the other.
    pub load: Vec<Phase>,
    #[serde(default)]
    pub events: Vec<Event>,
    pub retries: Option<Retries>,
    /// The most regret of our default that is put up with, in percent of the best, by seed: what it has now with a little
    /// room, so that a change for the worse is seen. By curve, where there are several.
    #[serde(default)]
    pub bands: Vec<f64>,
    /// How often the load rises and falls again, or the database does.
    #[serde(default = "one")]
    pub load_cycles: u32,
    /// Reversals are counted from here on: what comes before is the first search.
    #[serde(default)]
    pub settled_s: f64,
}

fn one() -> u32 {
    1
}

fn two() -> usize {
    2
}

fn five() -> u64 {
    5
}

fn fifty() -> usize {
    50
}

/// How the work of a query scatters around its mean.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Service {
    #[default]
    Exponential,
    Lognormal {
        cv: f64,
    },
}

impl Service {
    /// Around 1.
    pub fn draw(self, random: &mut Random) -> f64 {
        match self {
            Self::Exponential => random.exponential(),
            Self::Lognormal { cv } => random.lognormal(cv),
        }
    }
}

/// A kind of queries: so many of them, with so much work each (relative to each other).
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Class {
    pub share: f64,
    pub work: f64,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Arrivals {
    #[default]
    Poisson,
    Constant,
}

/// A stretch of load, as a part of the database's peak.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    pub seconds: f64,
    pub load: f64,
    /// Where a ramp ends, or the other end of a swing.
    pub to: Option<f64>,
    /// Seconds of one full swing (a sine) between `load` and `to`.
    pub swing_s: Option<f64>,
}

impl Phase {
    pub fn load_at(&self, t_s: f64) -> f64 {
        match (self.to, self.swing_s) {
            (None, _) => self.load,
            (Some(to), None) => self.load + (to - self.load) * t_s / self.seconds,
            (Some(to), Some(swing_s)) => {
                let turn = (std::f64::consts::TAU * t_s / swing_s).cos();
                self.load + (to - self.load) * (1.0 - turn) / 2.0
            }
        }
    }
}

/// Something changes; what is not named stays.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    pub at_s: f64,
    /// The database's speed: 1 is usual, 0 a stall.
    pub speed: Option<f64>,
    /// Queries of somebody else that run all the time.
    pub rival: Option<usize>,
    /// Instances of the service, each with a pool of its own.
    pub instances: Option<usize>,
}

/// What a client does that was refused or got its answer too late.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retries {
    pub most: u32,
    /// Before each retry; half of it up to one and a half of it, by a draw.
    pub pause_ms: u64,
}

impl Scenario {
    /// All scenarios.
    ///
    /// # Errors
    /// Which file is wrong, and why.
    pub fn all() -> Result<Vec<Self>, Error> {
        let mut all = Vec::new();
        for (file, text) in FILES {
            let scenario: Self =
                serde_json::from_str(text).map_err(|error| format!("{file}.json: {error}"))?;
            if !scenario.bands.is_empty() && scenario.bands.len() != scenario.curves.len() {
                return Err(format!("{file}.json: as many bands as curves").into());
            }
            for (at, curve) in scenario.curves.iter().enumerate() {
                curve.parse::<Curve>().map_err(|error| format!("{file}.json: {error}"))?;
                let kind = curve.split_once(':').map_or(curve.as_str(), |(_, kind)| kind);
                let name = if scenario.curves.len() > 1 { format!("{file}-{kind}") } else { file.into() };
                let bands = scenario.bands.get(at).copied().into_iter().collect();
                all.push(Self { name, curves: vec![curve.clone()], bands, ..scenario.clone() });
            }
        }
        Ok(all)
    }

    pub fn curve(&self) -> Result<Curve, Error> {
        Ok(self.curves[0].parse::<Curve>()?.scaled(self.peak_per_s, self.max_size))
    }

    pub fn deadline(&self) -> Duration {
        Duration::from_millis(self.deadline_ms)
    }

    pub fn seconds(&self) -> f64 {
        self.load.iter().map(|phase| phase.seconds).sum()
    }

    /// Requests a second that are sent `t_s` after the beginning.
    pub fn rate_at(&self, t_s: f64) -> f64 {
        let mut begin_s = 0.0;
        for phase in &self.load {
            if t_s < begin_s + phase.seconds {
                return self.peak_per_s * phase.load_at(t_s - begin_s);
            }
            begin_s += phase.seconds;
        }
        0.0
    }

    /// The moments, in seconds, at which load, database or instances change at once.
    pub fn steps(&self) -> Vec<f64> {
        let mut steps: Vec<f64> = self.events.iter().map(|event| event.at_s).collect();
        let mut begin_s = 0.0;
        for pair in self.load.windows(2) {
            begin_s += pair[0].seconds;
            let (before, after) = (pair[0].load_at(pair[0].seconds), pair[1].load_at(0.0));
            if (after / before - 1.0).abs() > 0.2 {
                steps.push(begin_s);
            }
        }
        // A beginning under full load is a step too.
        if self.load[0].load_at(0.0) > 0.5 {
            steps.push(0.0);
        }
        steps.retain(|&at_s| at_s < self.seconds());
        steps.sort_by(f64::total_cmp);
        steps.dedup();
        steps
    }
}
