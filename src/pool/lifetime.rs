//! How long a connection lives: by age, with a jitter, and by uses.

use std::time::Duration;

use tokio::time::Instant;

use crate::backend::Lost;
use crate::config::Settings;
use crate::gate::Guarded;
use crate::gate::holds::{At, Held, Holder, SlowClock, millis};

/// Sweeps look often enough that a lifetime is kept to within a twentieth, and at rest as seldom as this.
const RARELY: Duration = Duration::from_secs(30);
const OFTEN: Duration = Duration::from_millis(100);
/// The share of a lifetime that the draw decides: a fleet that started together does not reconnect together.
const JITTER: f64 = 0.1;

/// A connection with what its end depends on.
#[derive(Debug)]
pub(crate) struct Pooled<C> {
    pub connection: Guarded<C>,
    pub holder: Holder,
    pub lost: Lost,
    uses: u64,
    opened: Instant,
    /// Milliseconds of the gate's life.
    expires: u64,
}

impl<C> Pooled<C> {
    pub fn is_over(&self, clock: &SlowClock) -> bool {
        self.expires <= clock.read()
    }

    /// How old it is, if nobody has used it yet.
    pub fn unused_for(&self) -> Option<Duration> {
        (self.uses == 0).then(|| self.opened.elapsed())
    }
}

impl<C> Held for Box<Pooled<C>> {
    fn begin_hold(&mut self, at: At) {
        self.holder.begin_hold(at);
    }

    fn end_hold(&self) {
        self.holder.end_hold();
    }
}

/// The bounds of a connection's life.
#[derive(Debug)]
pub(super) struct Lifetime {
    longest: Option<Duration>,
    max_uses: u64,
}

impl Lifetime {
    pub fn new(settings: &Settings) -> Self {
        Self { longest: settings.max_lifetime, max_uses: settings.max_uses.unwrap_or(u64::MAX) }
    }

    /// A new connection's life begins. `draw` is uniform in `[0, 1)`.
    pub fn begin<C>(
        &self,
        connection: C,
        lost: Lost,
        holder: Holder,
        clock: &SlowClock,
        draw: f64,
    ) -> Pooled<C> {
        let opened = clock.look();
        let expires = match self.longest {
            Some(lifetime) => clock.read() + millis(lifetime.mul_f64(1.0 - JITTER * draw)),
            None => u64::MAX,
        };
        let connection = Guarded::new(connection);
        Pooled { connection, holder, lost, uses: 0, opened, expires }
    }

    /// Counts one use. True when it was the last.
    pub fn used_up<C>(&self, pooled: &mut Pooled<C>, clock: &SlowClock) -> bool {
        pooled.uses += 1;
        pooled.uses >= self.max_uses || pooled.is_over(clock)
    }

    /// How often to look, if ever.
    pub fn look_every(&self) -> Option<Duration> {
        Some((self.longest? / 20).clamp(OFTEN, RARELY))
    }
}
