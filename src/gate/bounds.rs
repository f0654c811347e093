//! What may be changed at run time: the bounds of size, limit and queue, and the share of the load.

use std::sync::atomic::Ordering::Relaxed;

use super::Gate;
use super::counts::Bounds;
use crate::config::{ConfigError, cap_problems, limit_problems, share_problem, size_problems};
use crate::law::{Decision, Reason};

impl Gate {
    /// Changes how many connections are open at least and at most, at run time.
    ///
    /// What is free over the new `max_size` closes at once, what is in use as it comes back; nobody who waits is sent away.
    /// `min_limit` and `base_limit` are lowered to the new `max_size`, and stay there: [`set_limits`](Self::set_limits)
    /// raises them again. A `base_limit` that was left at its default follows `min_size`, and a fixed pool stays one when it is
    /// given a fixed size.
    ///
    /// # Errors
    /// `min_size` 0, or over `max_size`; then nothing has changed.
    pub fn set_size(&self, min_size: usize, max_size: usize) -> Result<(), ConfigError> {
        ConfigError::from_problems(size_problems(min_size, max_size))?;
        self.change(|bounds| Ok(bounds.with_size(min_size, max_size, self.is_dry_run())))
    }

    /// Changes how many connections may be in use at once, at least (`min_limit`) and while there is no load
    /// (`base_limit`), at run time. At most it is `max_size`; with `min_limit` there too the limit is fixed.
    ///
    /// # Errors
    /// `min_limit` 0, or over `base_limit`; `base_limit` over `max_size`. Then nothing has changed.
    pub fn set_limits(&self, min_limit: usize, base_limit: usize) -> Result<(), ConfigError> {
        self.change(|bounds| {
            let problems = limit_problems(min_limit, base_limit, bounds.max_size);
            ConfigError::from_problems(problems)?;
            Ok(Bounds { min_limit, base_limit, ..bounds })
        })
    }

    /// Changes the bounds of the queue at run time, in waiters.
    ///
    /// # Errors
    /// `hard_cap` 0, or `soft_cap` over `hard_cap`; then nothing has changed.
    pub fn set_caps(&self, soft_cap: usize, hard_cap: usize) -> Result<(), ConfigError> {
        ConfigError::from_problems(cap_problems(soft_cap, hard_cap))?;
        self.change(|bounds| {
            self.inner.soft_cap.store(soft_cap, Relaxed);
            self.inner.hard_cap.store(hard_cap, Relaxed);
            // In a dry run nobody is refused.
            let hard_cap = if self.inner.dry_run.is_some() { usize::MAX } else { hard_cap };
            Ok(Bounds { hard_cap, ..bounds })
        })
    }

    /// Changes this instance's share of the load on the database at run time, as when the number of instances changed.
    ///
    /// # Errors
    /// Not over 0, or over 1; then nothing has changed.
    pub fn set_share(&self, share: f64) -> Result<(), ConfigError> {
        ConfigError::from_problems(share_problem(share).into_iter().collect())?;
        self.inner.share.store(share.to_bits(), Relaxed);
        Ok(())
    }

    /// This instance's share of the load on the database.
    pub fn share(&self) -> f64 {
        f64::from_bits(self.inner.share.load(Relaxed))
    }

    /// One change at a time, and no lock while connections close and observers are called: where another change came first,
    /// this one is made from what that left.
    fn change(&self, change: impl Fn(Bounds) -> Result<Bounds, ConfigError>) -> Result<(), ConfigError> {
        let Some(plant) = self.plant() else { return Ok(()) };
        let (from, to) = loop {
            let known = plant.bounds();
            if let Some(moved) = plant.set_bounds(known, change(known)?) {
                break moved;
            }
        };
        if to != from {
            self.limit_changed(from, Decision { limit: to, reason: Reason::BoundsChanged });
        }
        self.publish_snapshot();
        Ok(())
    }
}
