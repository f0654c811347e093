//! The command line, refused early and in sentences.

use std::{fmt, num::NonZeroUsize, path::PathBuf, str::FromStr};

use clap::{CommandFactory, Parser, error::ErrorKind};

use crate::scenario::{Rates, SCENARIOS, Scenario};

/// Sends a burst at an axum server over PostgreSQL, once per scenario and pool, and compares what came back.
#[derive(Debug, Parser)]
#[command(name = "load_test")]
pub struct Args {
    /// What load to send: incident, burst, cpu, lock, lock-nowait, cpu-3x, retry-storm or mixed; may be given several times.
    #[arg(long = "scenario", value_name = "NAME", value_parser = Scenario::named, default_value = SCENARIOS[0].name)]
    pub scenarios: Vec<&'static Scenario>,

    /// What pool to put behind the server; may be given several times.
    #[arg(long = "pool", value_name = "static:N|fixed:N|naive:N|load-shed:N|little:N|adaptive|adaptive:warm", default_values = ["static:20", "static:50", "adaptive", "adaptive:warm"])]
    pub pools: Vec<PoolSpec>,

    /// Use this PostgreSQL instead of starting a throw-away one.
    #[arg(long, value_name = "URL", env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: Option<String>,

    /// Write all figures and the timelines to this file.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Draw the first scenario's runs into this file; with several rounds, the goodput of all.
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,

    /// How long each phase lasts; a retry-storm lasts twelve times that.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=600))]
    pub phase_seconds: u32,

    /// Connections the adaptive pools start with in use, and all that `adaptive` always keeps open: 10 unless the scenario
    /// is better told from 2.
    #[arg(long, value_name = "N")]
    pub min_size: Option<NonZeroUsize>,

    /// How many times to run each pool of a scenario, in turns; more than one prints medians and intervals instead.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,

    /// Add rounds to a scenario until the 95 % interval of each adaptive pool's goodput, as a ratio to that of the best of
    /// the others, reaches no more than this to either side.
    #[arg(long, value_name = "W", value_parser = half_width)]
    pub until_half_width: Option<f64>,

    /// The most rounds it may come to by that.
    #[arg(long, value_name = "N", default_value_t = 15, requires = "until_half_width", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub max_rounds: u32,

    /// Connections the adaptive pools never exceed.
    #[arg(long, value_name = "N", default_value = "50")]
    pub max_size: NonZeroUsize,

    /// Connections the adaptive pools open at once. The library's default is 4; here server, database and generator
    /// share one machine, and each new backend of the database takes CPU from the other two.
    #[arg(long, value_name = "N", default_value = "1")]
    pub max_dialing: NonZeroUsize,

    /// Only measure the generator itself, against a handler that does nothing.
    #[arg(long)]
    pub check_generator: bool,

    /// Be the generator's process: the plan is read from stdin.
    #[arg(long, hide = true)]
    pub generate: bool,
}

impl Args {
    /// What was typed; otherwise explains itself on stderr and exits with 2.
    pub fn from_command_line() -> Self {
        let args = Self::parse();
        let sizes = args.scenarios.iter().map(|scenario| (args.min_size(scenario), args.max_size(scenario)));
        if let Some((smallest, largest)) = sizes.into_iter().find(|(smallest, largest)| smallest > largest) {
            let sentence = format!("--min-size {smallest} is larger than --max-size {largest}");
            Self::command().error(ErrorKind::ValueValidation, sentence).exit();
        }
        args
    }

    /// Whether medians and intervals are to be told, not single runs.
    pub fn in_rounds(&self) -> bool {
        self.rounds > 1 || self.until_half_width.is_some()
    }

    /// Whether a scenario that has had `rounds` needs another, its intervals being as wide as `half_width` says.
    pub fn needs_round(&self, rounds: u32, half_width: impl FnOnce() -> f64) -> bool {
        if rounds < self.rounds {
            return true;
        }
        rounds < self.max_rounds && self.until_half_width.is_some_and(|wanted| half_width() > wanted)
    }

    /// Where the adaptive pools start in a scenario.
    pub fn min_size(&self, scenario: &Scenario) -> usize {
        self.min_size.map_or(scenario.min_size, NonZeroUsize::get)
    }

    /// The pools as a scenario gets them: a size that is more than it bears is cut, and none comes twice by that.
    pub fn pools(&self, scenario: &Scenario) -> Vec<PoolSpec> {
        let mut pools = Vec::new();
        for pool in self.pools.iter().map(|pool| pool.cut_to(scenario.bears)) {
            if !pools.contains(&pool) {
                pools.push(pool);
            }
        }
        pools
    }

    /// The most connections a scenario may ever have, also where its capacity is measured.
    pub fn most(&self, scenario: &Scenario) -> usize {
        let measured = if matches!(scenario.rates, Rates::OfCapacity { .. }) { scenario.bears } else { 0 };
        let asked = self.pools(scenario).into_iter().map(|pool| pool.most(self, scenario));
        asked.fold(measured, usize::max)
    }

    /// How many connections they never exceed in a scenario.
    pub fn max_size(&self, scenario: &Scenario) -> usize {
        self.max_size.get().min(scenario.bears)
    }
}

fn half_width(text: &str) -> Result<f64, &'static str> {
    let width = text.parse().ok().filter(|width: &f64| *width > 0.0 && width.is_finite());
    width.ok_or("it is a number over 0, as in `0.02`")
}

/// A pool as named on the command line, and in every table after that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolSpec {
    /// Plain deadpool-postgres of this fixed size.
    Static(NonZeroUsize),
    /// The same behind a plain cap of 1,600 waiters.
    Naive(NonZeroUsize),
    /// The same behind tower's LoadShed and ConcurrencyLimit of this size.
    LoadShed(NonZeroUsize),
    /// The same behind little-loadshedder.
    Little(NonZeroUsize),
    /// The pool of this crate behind its layer, with a limit that cannot move.
    Fixed(NonZeroUsize),
    /// The pool of this crate behind its layer, which dials when its limit rises.
    Adaptive,
    /// The same with all its connections open from the beginning: no move of its limit costs a dial.
    Warm,
}

const ADAPTIVE: &str = "adaptive";
const WARM: &str = "adaptive:warm";

/// Whether a pool of this name moves its limit by itself: the candidates. All others are their rivals.
pub fn is_adaptive(pool: &str) -> bool {
    [ADAPTIVE, WARM].contains(&pool)
}

impl PoolSpec {
    /// The same, with at most so many connections where it has a size of its own.
    fn cut_to(self, most: usize) -> Self {
        let cut = |size: NonZeroUsize| NonZeroUsize::new(most).map_or(size, |most| size.min(most));
        match self {
            Self::Static(size) => Self::Static(cut(size)),
            Self::Naive(size) => Self::Naive(cut(size)),
            Self::LoadShed(size) => Self::LoadShed(cut(size)),
            Self::Little(size) => Self::Little(cut(size)),
            Self::Fixed(size) => Self::Fixed(cut(size)),
            Self::Adaptive | Self::Warm => self,
        }
    }

    /// The most connections it may ever have.
    pub fn most(self, args: &Args, scenario: &Scenario) -> usize {
        match self {
            Self::Static(size)
            | Self::Naive(size)
            | Self::LoadShed(size)
            | Self::Little(size)
            | Self::Fixed(size) => size.get(),
            Self::Adaptive | Self::Warm => args.max_size(scenario),
        }
    }
}

impl FromStr for PoolSpec {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            ADAPTIVE => return Ok(Self::Adaptive),
            WARM => return Ok(Self::Warm),
            _ => {}
        }
        let sized = |(kind, size): (&str, &str)| {
            let size = size.parse().ok()?;
            match kind {
                "static" => Some(Self::Static(size)),
                "naive" => Some(Self::Naive(size)),
                "load-shed" => Some(Self::LoadShed(size)),
                "little" => Some(Self::Little(size)),
                "fixed" => Some(Self::Fixed(size)),
                _ => None,
            }
        };
        text.split_once(':').and_then(sized).ok_or(
            "a pool is `adaptive`, or `adaptive:warm` (all its connections open), or `static:N` (deadpool), `naive:N`, \
             `load-shed:N` or `little:N` (deadpool behind others' caps) or `fixed:N` (ours) with a size N of at least 1, \
             as in `static:20`",
        )
    }
}

impl fmt::Display for PoolSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Static(size) => write!(f, "static:{size}"),
            Self::Naive(size) => write!(f, "naive:{size}"),
            Self::LoadShed(size) => write!(f, "load-shed:{size}"),
            Self::Little(size) => write!(f, "little:{size}"),
            Self::Fixed(size) => write!(f, "fixed:{size}"),
            Self::Adaptive => f.write_str(ADAPTIVE),
            Self::Warm => f.write_str(WARM),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(arguments: &str) -> Args {
        Args::parse_from(["load_test"].into_iter().chain(arguments.split_whitespace()))
    }

    #[test]
    fn rounds_are_added_until_the_interval_is_narrow() {
        let fixed = args("--rounds 3");
        assert!(fixed.needs_round(2, || 0.0) && !fixed.needs_round(3, || 1.0));

        let adaptive = args("--rounds 3 --until-half-width 0.02 --max-rounds 7");
        assert!(adaptive.needs_round(2, || 0.0), "the least");
        assert!(adaptive.needs_round(3, || 0.03) && !adaptive.needs_round(3, || 0.02));
        assert!(!adaptive.needs_round(7, || f64::INFINITY), "the most");
    }

    #[test]
    fn no_pool_is_larger_than_what_the_scenario_bears() {
        let args =
            args("--pool fixed:5 --pool fixed:20 --pool fixed:50 --pool adaptive:warm --pool static:30");
        let names = |scenario: &str| -> Vec<String> {
            args.pools(Scenario::named(scenario).unwrap()).iter().map(ToString::to_string).collect()
        };
        assert_eq!(names("mixed"), ["fixed:5", "fixed:20", "adaptive:warm", "static:20"]);
        assert_eq!(names("burst"), ["fixed:5", "fixed:20", "fixed:50", "adaptive:warm", "static:30"]);
        assert_eq!(args.most(Scenario::named("mixed").unwrap()), 20);
    }
}
