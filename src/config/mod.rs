//! Settings: collected by a builder, from code and environment, and checked once, all together, at `build()`.

mod env;
mod problems;
mod settings;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use crate::backend::Backend;
use crate::gate::home::has_timers;
use crate::gate::limiter::Limiter;
use crate::law::{Controller, PaidGrowth, PaidGrowthController, QueueDepth, QueueDepthController};
use crate::observe::Observer;
use crate::pool::AdaptivePool;

#[cfg(feature = "postgres")]
pub(crate) use env::env_ms;
pub use problems::{ConfigError, Problem};
pub(crate) use settings::{
    Settings, cap_problems, limit_problems, share_problem, size_problems, usual_base_limit,
};

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

    /// The longest that anybody refused is told to stay away (`Retry-After`), in whole seconds: what is less than one is one, and
    /// past two minutes a guess from the present queue says nothing any more. Default 15 s.
    pub fn max_retry_after(mut self, longest: Duration) -> Self {
        self.settings.max_retry_after = longest;
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
    /// other limits is missing, and its reason says so. The verdict each request would have got is counted in
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
