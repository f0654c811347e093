//! How long a connection lives: by age, with a jitter, and by uses.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

use crate::config::Settings;

/// Sweeps look often enough that a lifetime is kept to within a twentieth, and at rest as seldom as this.
const RARELY: Duration = Duration::from_secs(30);
const OFTEN: Duration = Duration::from_millis(100);
/// The share of a lifetime that the draw decides: a fleet that started together does not reconnect together.
const JITTER: f64 = 0.1;

/// A connection with what its end depends on.
#[derive(Debug)]
pub(crate) struct Pooled<C> {
    pub connection: C,
    uses: u64,
    /// Milliseconds of the pool's life.
    expires: u64,
}

/// The bounds of a connection's life, and the pool's own slow clock.
#[derive(Debug)]
pub(super) struct Lifetime {
    longest: Option<Duration>,
    max_uses: u64,
    began: Instant,
    /// Milliseconds of the pool's life at the driver's last look: a release need not read the clock.
    age: AtomicU64,
}

impl Lifetime {
    pub fn new(settings: &Settings) -> Self {
        Self {
            longest: settings.max_lifetime,
            max_uses: settings.max_uses.unwrap_or(u64::MAX),
            began: Instant::now(),
            age: AtomicU64::new(0),
        }
    }

    /// A new connection's life begins. `draw` is uniform in `[0, 1)`.
    pub fn begin<C>(&self, connection: C, draw: f64) -> Pooled<C> {
        let expires = match self.longest {
            Some(lifetime) => self.now() + millis(lifetime.mul_f64(1.0 - JITTER * draw)),
            None => u64::MAX,
        };
        Pooled { connection, uses: 0, expires }
    }

    /// Counts one use. True when it was the last.
    pub fn used_up<C>(&self, pooled: &mut Pooled<C>) -> bool {
        pooled.uses += 1;
        pooled.uses >= self.max_uses || pooled.expires <= self.age.load(Relaxed)
    }

    /// Looks at the clock, for [`used_up`](Self::used_up) and [`is_over`](Self::is_over).
    pub fn look(&self) {
        self.age.store(self.now(), Relaxed);
    }

    pub fn is_over<C>(&self, pooled: &Pooled<C>) -> bool {
        pooled.expires <= self.age.load(Relaxed)
    }

    /// How often to look, if ever.
    pub fn look_every(&self) -> Option<Duration> {
        Some((self.longest? / 20).clamp(OFTEN, RARELY))
    }

    fn now(&self) -> u64 {
        millis(self.began.elapsed())
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX / 2)
}
