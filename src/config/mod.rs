//! Settings: collected by a builder, from code and environment, and checked once, all together, at `build()`.

mod env;
mod problems;

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::panic::catch_unwind;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::sleep;

use crate::backend::Backend;
use crate::gate::counts::Bounds;
use crate::gate::limiter::Limiter;
use crate::law::{Controller, PaidGrowth, PaidGrowthController, QueueDepth, QueueDepthController};
use crate::observe::Observer;
use crate::pool::AdaptivePool;

#[cfg(feature = "postgres")]
pub(crate) use env::env_ms;
pub use problems::{ConfigError, Problem};

/// Settings of a pool (`K` a [`Backend`]) or of a limiter (`K` = [`LimitOnly`]).
///
/// Every setter can also be reached from the environment, see [`from_env`](Self::from_env).
#[must_use = "a builder does nothing until build()"]
pub struct Builder<K> {
    kind: K,
    settings: Settings,
    problems: Vec<Problem>,
}

/// The kind of builder that makes a [`Limiter`].
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct LimitOnly {}

pub(crate) struct Settings {
    pub name: String,
    pub min_limit: usize,
    pub base_limit: Option<usize>,
    pub min_size: usize,
    pub max_size: usize,
    pub soft_cap: Option<usize>,
    pub hard_cap: usize,
    pub acquire_timeout: Duration,
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

/// `base_limit` by default: of what is open, as many as a database bears without being asked.
pub(crate) fn usual_base_limit(min_size: usize) -> usize {
    min_size.min(10)
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

    /// A database that bears more is asked for it within a few ticks. In a dry run the limit stays: there it is the size of
    /// the static pool that is looked at.
    pub fn base_limit(&self) -> usize {
        let usual = if self.dry_run { self.min_size } else { usual_base_limit(self.min_size) };
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

    fn problems(&self) -> Vec<Problem> {
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
    if max_size == 0 {
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

/// The law that moves the limit: made from a [`PaidGrowth`], a [`QueueDepth`], or a [`Controller`] of one's own.
pub struct ControllerChoice(Choice);

enum Choice {
    PaidGrowth(PaidGrowth),
    QueueDepth(QueueDepth),
    Custom(Box<dyn Controller>),
}

impl ControllerChoice {
    pub(crate) fn into_controller(self) -> Box<dyn Controller> {
        match self.0 {
            Choice::PaidGrowth(law) => Box::new(PaidGrowthController::new(law)),
            Choice::QueueDepth(law) => Box::new(QueueDepthController::new(law)),
            Choice::Custom(controller) => controller,
        }
    }
}

impl From<PaidGrowth> for ControllerChoice {
    fn from(law: PaidGrowth) -> Self {
        Self(Choice::PaidGrowth(law))
    }
}

impl From<QueueDepth> for ControllerChoice {
    fn from(law: QueueDepth) -> Self {
        Self(Choice::QueueDepth(law))
    }
}

impl<C: Controller> From<C> for ControllerChoice {
    fn from(controller: C) -> Self {
        Self(Choice::Custom(Box::new(controller)))
    }
}

impl fmt::Debug for ControllerChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Choice::PaidGrowth(law) => law.fmt(f),
            Choice::QueueDepth(law) => law.fmt(f),
            Choice::Custom(_) => f.write_str("Custom"),
        }
    }
}

impl<K> Builder<K> {
    pub(crate) fn new(kind: K) -> Self {
        Self { kind, settings: Settings::default(), problems: Vec::new() }
    }

    /// The pool's name in telemetry (`db.client.connection.pool.name`). Default `default`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.settings.name = name.into();
        self
    }

    /// The least the limit may fall to, in connections in use at once: only evidence that fewer do as much takes it there.
    /// Default 1.
    ///
    /// With `min_limit` at `max_size` the limit is fixed, and this is a static pool with our queue in front:
    /// [`fixed_size`](Self::fixed_size).
    pub fn min_limit(mut self, connections: usize) -> Self {
        self.settings.min_limit = connections;
        self
    }

    /// The limit while there is no load, in connections in use at once; from there it rises as soon as requests wait and more
    /// connections pay, and lack of load takes it back there. Default `min_size`, but at most 10.
    pub fn base_limit(mut self, connections: usize) -> Self {
        self.settings.base_limit = Some(connections);
        self
    }

    /// A static pool: so many connections, all of them open and all of them in use when there is work for them. Short for
    /// `min_size`, `max_size` and `min_limit` of this number.
    pub fn fixed_size(self, connections: usize) -> Self {
        self.min_size(connections).max_size(connections).min_limit(connections)
    }

    /// Connections kept open whatever the load. Default 10.
    ///
    /// With `min_size` at `max_size` all connections are warm: how many are in use at once is still the controller's choice,
    /// and no move of it costs a dial.
    pub fn min_size(mut self, connections: usize) -> Self {
        self.settings.min_size = connections;
        self
    }

    /// The ceiling: the most connections the server ever sees from this pool. Default 50.
    pub fn max_size(mut self, connections: usize) -> Self {
        self.settings.max_size = connections;
        self
    }

    /// Waiters up to which the layer refuses nothing. Default half of `hard_cap`.
    pub fn soft_cap(mut self, waiters: usize) -> Self {
        self.settings.soft_cap = Some(waiters);
        self
    }

    /// Waiters at which everything more is refused, by the layer and by `acquire`. Default 200.
    pub fn hard_cap(mut self, waiters: usize) -> Self {
        self.settings.hard_cap = waiters;
        self
    }

    /// The longest an acquire waits, for queue, check and dial together. Default 2 s.
    pub fn acquire_timeout(mut self, timeout: Duration) -> Self {
        self.settings.acquire_timeout = timeout;
        self
    }

    /// Tells the observers, once, of whoever has held a connection for so long, and where it was acquired. `None` never.
    /// Default 60 s.
    pub fn leak_warning_after(mut self, bound: impl Into<Option<Duration>>) -> Self {
        self.settings.leak_warning_after = bound.into();
        self
    }

    /// The law that moves the limit. Default [`PaidGrowth`].
    pub fn controller(mut self, controller: impl Into<ControllerChoice>) -> Self {
        self.settings.controller = controller.into();
        self
    }

    /// This instance's share of the load on the database, over 0 and up to 1: 0.25 for one of four alike. The controller
    /// corrects for it, because one instance that grows takes throughput from its siblings and would believe that
    /// growth pays. [`Gate::set_share`](crate::Gate::set_share) changes it at run time. Default 1.
    pub fn share(mut self, share: f64) -> Self {
        self.settings.share = share;
        self
    }

    /// Looks and touches nothing: the limit stays at `base_limit` (by default `min_size` here, however large), nobody is
    /// refused, and the [`Snapshot`](crate::Snapshot) tells what would have been done. Default false.
    ///
    /// Give it the size of your static pool as `min_size`. The controller is asked each tick, with a lower bound of 1:
    /// [`Snapshot::last_decision`](crate::Snapshot::last_decision) is the way it would go and why, though evidence from
    /// resizing is missing, and its reason says so. The verdict each request would have got is counted in
    /// [`Snapshot::dry_run`](crate::Snapshot::dry_run). Neither layer nor `acquire` refuses, so `hard_cap` does not bound
    /// the queue; `acquire_timeout` still bounds each wait.
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.settings.dry_run = dry_run;
        self
    }

    /// Seeds the draws (shedding's ramp, jitters), for tests that must repeat. Default: random.
    pub fn seed(mut self, seed: u64) -> Self {
        self.settings.seed = Some(seed);
        self
    }

    /// Tells an observer, such as [`Otel`](crate::Otel), what happens. May be called several times.
    pub fn observer(mut self, observer: impl Observer) -> Self {
        self.settings.observers.push(Arc::new(observer));
        self
    }

    /// The settings, what they are for and where to run, or everything that is wrong.
    pub(crate) fn checked(mut self) -> Result<(Settings, K, Handle), ConfigError> {
        self.problems.extend(self.settings.problems());
        match Handle::try_current() {
            Ok(_) if !has_timers() => {
                let expected = "must be there: enable_time() or enable_all() at the runtime's builder";
                self.problems.push(Problem::new("Tokio timers", "none", expected));
            }
            Ok(runtime) if self.problems.is_empty() => return Ok((self.settings, self.kind, runtime)),
            Ok(_) => {}
            Err(_) => {
                let expected = "must be there: call build() inside one, such as under #[tokio::main]";
                self.problems.push(Problem::new("Tokio runtime", "none", expected));
            }
        }
        Err(ConfigError { problems: self.problems })
    }
}

/// Whether the present runtime has timers. It has no other way to say so than a panic.
fn has_timers() -> bool {
    catch_unwind(|| drop(sleep(Duration::ZERO))).is_ok()
}

impl<B: Backend> Builder<B> {
    /// The longest one dial may take, TLS and authentication included. Default 5 s.
    pub fn dial_timeout(mut self, timeout: Duration) -> Self {
        self.settings.dial_timeout = timeout;
        self
    }

    /// The most dials under way at once. Default 4.
    pub fn max_dialing(mut self, dials: usize) -> Self {
        self.settings.max_dialing = dials;
        self
    }

    /// How long a connection may be free before it is closed, while more than `min_size` are open and the limit does not ask
    /// for it; the longest free go first. Default 30 s. [`Duration::MAX`] is never.
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.settings.idle_timeout = timeout;
        self
    }

    /// How long a connection may be idle before it is checked at its hand-out, inside the caller's deadline; a dead one
    /// costs the caller nothing but the next one. Default 500 ms.
    pub fn check_after(mut self, idle: Duration) -> Self {
        self.settings.check_after = idle;
        self
    }

    /// How old a connection may grow before it is replaced; up to a tenth less for each, by a draw, so that a fleet does
    /// not reconnect at once. Nobody who holds one is disturbed. `None` for ever. Default 30 min.
    pub fn max_lifetime(mut self, lifetime: impl Into<Option<Duration>>) -> Self {
        self.settings.max_lifetime = lifetime.into();
        self
    }

    /// How many times a connection may be handed out before it is replaced. `None` without end. Default `None`.
    pub fn max_uses(mut self, uses: impl Into<Option<u64>>) -> Self {
        self.settings.max_uses = uses.into();
        self
    }

    /// Whether acquires are answered with the error of a failed dial as soon as no connection is left, instead of waiting
    /// for a later dial that may begin before their deadline. Default false.
    pub fn fail_fast(mut self, fail_fast: bool) -> Self {
        self.settings.fail_fast = fail_fast;
        self
    }

    /// Checks everything and starts the pool, which begins to open `min_size` connections.
    ///
    /// # Errors
    /// Everything that is wrong with the settings; or that there is no Tokio runtime here.
    pub fn build(mut self) -> Result<AdaptivePool<B>, ConfigError> {
        if let Err(error) = self.kind.validate() {
            self.problems.extend(error.problems);
        }
        AdaptivePool::start(self)
    }
}

impl Builder<LimitOnly> {
    /// Checks everything and starts the limiter.
    ///
    /// # Errors
    /// Everything that is wrong with the settings; or that there is no Tokio runtime here.
    pub fn build(self) -> Result<Limiter, ConfigError> {
        Limiter::start(self)
    }
}

impl<K> fmt::Debug for Builder<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("name", &self.settings.name).finish_non_exhaustive()
    }
}
