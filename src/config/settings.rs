//! The settings themselves: their defaults, each with its reason, and what cannot be.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use super::{Choice, ControllerChoice, Problem};
use crate::gate::counts::Bounds;
use crate::law::PaidGrowth;
use crate::observe::Observer;

pub(crate) struct Settings {
    pub name: String,
    pub min_limit: usize,
    pub base_limit: Option<usize>,
    pub min_size: usize,
    pub max_size: usize,
    pub soft_cap: Option<usize>,
    pub hard_cap: usize,
    pub acquire_timeout: Duration,
    pub max_retry_after: Duration,
    pub dial_timeout: Duration,
    pub max_dialing: usize,
    pub idle_timeout: Duration,
    pub check_after: Duration,
    pub max_lifetime: Option<Duration>,
    pub max_uses: Option<u64>,
    pub fail_fast: bool,
    pub leak_warning_after: Option<Duration>,
    pub seed: Option<u64>,
    pub controller: ControllerChoice,
    pub share: f64,
    pub dry_run: bool,
    pub observers: Vec<Arc<dyn Observer>>,
}

/// `base_limit` by default: of what is open, as many as a database bears without being asked. In a dry run the limit stays:
/// there it is the size of the static pool that is looked at.
pub(crate) fn usual_base_limit(min_size: usize, dry_run: bool) -> usize {
    if dry_run { min_size } else { min_size.min(10) }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            name: "default".into(),
            // What evidence says, and at least one: fewer serve nobody.
            min_limit: 1,
            base_limit: None,
            // Enough that an ordinary load finds connections open, few enough that ten instances fit in one server.
            min_size: 10,
            // Half of PostgreSQL's default max_connections (100): two instances, or one and its neighbours.
            max_size: 50,
            // Half of the hard cap: room for a ramp on which the queue can settle instead of a cliff.
            soft_cap: None,
            // With ten connections of 6 ms a wait of 0.12 s: more is not patience but a pile.
            hard_cap: 200,
            // Past two seconds people have reloaded the page, and the work would be done for nobody.
            acquire_timeout: Duration::from_secs(2),
            // Past a quarter of a minute people have come back by themselves, or not at all; and few overloads are as long.
            max_retry_after: Duration::from_secs(15),
            // A SCRAM handshake takes milliseconds; five seconds is a network that has lost packets.
            dial_timeout: Duration::from_secs(5),
            // More handshakes at once hardly open faster, and cost the running queries CPU.
            max_dialing: 4,
            // Longer than the pause between two bursts, shorter than what middleboxes allow (350 s on AWS).
            idle_timeout: Duration::from_secs(30),
            // As HikariCP: a connection used half a second ago is as good as proven, and a check costs a round trip.
            check_after: Duration::from_millis(500),
            // As HikariCP: old backends have grown caches, and load balancers have forgotten them.
            max_lifetime: Some(Duration::from_secs(30 * 60)),
            max_uses: None,
            // A restart of the database takes seconds: waiting through it serves more than failing.
            fail_fast: false,
            // A request that uses one connection for a minute has forgotten it, or should know that it has not.
            leak_warning_after: Some(Duration::from_secs(60)),
            seed: None,
            controller: PaidGrowth::default().into(),
            // Nobody else on the database, as far as we know.
            share: 1.0,
            dry_run: false,
            observers: Vec::new(),
        }
    }
}

impl Settings {
    pub fn soft_cap(&self) -> usize {
        self.soft_cap.unwrap_or(self.hard_cap / 2)
    }

    /// A database that bears more is asked for it within a few ticks.
    pub fn base_limit(&self) -> usize {
        let usual = usual_base_limit(self.min_size, self.dry_run);
        self.base_limit.unwrap_or(usual.min(self.max_size).max(self.min_limit))
    }

    pub fn bounds(&self) -> Bounds {
        let Self { min_limit, min_size, max_size, check_after, .. } = *self;
        let base_limit = self.base_limit();
        // In a dry run nobody is refused; the gate still knows the cap, and tells what it would have done.
        let hard_cap = if self.dry_run { usize::MAX } else { self.hard_cap };
        Bounds { min_limit, base_limit, min_size, max_size, hard_cap, check_after }
    }

    pub fn seed(&self) -> u64 {
        self.seed.unwrap_or_else(|| RandomState::new().hash_one(&self.name))
    }

    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = size_problems(self.min_size, self.max_size);
        problems.extend(limit_problems(self.min_limit, self.base_limit(), self.max_size));
        problems.extend(cap_problems(self.soft_cap(), self.hard_cap));
        if self.name.is_empty() {
            problems.push(Problem::new("name", "\"\"", "must not be empty: it names the pool in telemetry"));
        }
        if self.max_dialing == 0 {
            problems.push(Problem::new("max_dialing", 0, "must be at least 1 dial at once"));
        }
        Problem::unless_positive(&mut problems, "acquire_timeout", self.acquire_timeout);
        Problem::unless_positive(&mut problems, "max_retry_after", self.max_retry_after);
        Problem::unless_positive(&mut problems, "dial_timeout", self.dial_timeout);
        Problem::unless_positive(&mut problems, "idle_timeout", self.idle_timeout);
        if let Some(lifetime) = self.max_lifetime {
            Problem::unless_positive(&mut problems, "max_lifetime", lifetime);
        }
        if let Some(bound) = self.leak_warning_after {
            Problem::unless_positive(&mut problems, "leak_warning_after", bound);
        }
        if self.max_uses == Some(0) {
            problems.push(Problem::new("max_uses", 0, "must be at least 1 use"));
        }
        problems.extend(share_problem(self.share));
        match &self.controller.0 {
            Choice::PaidGrowth(law) => law.check(&mut problems),
            Choice::QueueDepth(law) => law.check(&mut problems),
            Choice::Custom(_) => {}
        }
        problems
    }
}

pub(crate) fn size_problems(min_size: usize, max_size: usize) -> Vec<Problem> {
    let mut problems = Vec::new();
    if min_size == 0 {
        problems.push(Problem::new("min_size", 0, "must be at least 1 connection"));
    }
    if max_size < min_size {
        problems.push(Problem::new("max_size", max_size, format!("is below min_size ({min_size})")));
    }
    problems
}

pub(crate) fn limit_problems(min_limit: usize, base_limit: usize, max_size: usize) -> Vec<Problem> {
    let mut problems = Vec::new();
    if min_limit == 0 {
        problems.push(Problem::new("min_limit", 0, "must be at least 1 connection in use"));
    }
    if base_limit == 0 && min_limit > 0 {
        problems.push(Problem::new("base_limit", 0, "must be at least 1 connection in use"));
    } else if max_size == 0 {
        // Said already, of max_size.
    } else if min_limit > max_size {
        problems.push(Problem::new("min_limit", min_limit, format!("is over max_size ({max_size})")));
    } else if min_limit > base_limit {
        problems.push(Problem::new("min_limit", min_limit, format!("is over base_limit ({base_limit})")));
    } else if base_limit > max_size {
        problems.push(Problem::new("base_limit", base_limit, format!("is over max_size ({max_size})")));
    }
    problems
}

pub(crate) fn cap_problems(soft_cap: usize, hard_cap: usize) -> Vec<Problem> {
    let mut problems = Vec::new();
    if hard_cap == 0 {
        problems.push(Problem::new("hard_cap", 0, "must be at least 1 waiter"));
    }
    if soft_cap > hard_cap {
        problems.push(Problem::new("soft_cap", soft_cap, format!("is over hard_cap ({hard_cap})")));
    }
    problems
}

pub(crate) fn share_problem(share: f64) -> Option<Problem> {
    let possible = share > 0.0 && share <= 1.0;
    (!possible)
        .then(|| Problem::new("share", share, "must be over 0 and at most 1: 0.25 for one instance of four"))
}
