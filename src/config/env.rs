//! Settings from the environment, over those of the code.

use std::env;
use std::str::FromStr;
use std::time::Duration;

use super::{Builder, Choice, Problem};
use crate::law::QueueDepth;

impl<K> Builder<K> {
    /// Takes what the environment says over what was set so far. What it does not mention stays.
    ///
    /// | Variable | Setting |
    /// |---|---|
    /// | `POOL_NAME` | `name` |
    /// | `POOL_BASE_MAX` | `min_size` |
    /// | `POOL_HARD_MAX` | `max_size` |
    /// | `POOL_MIN_LIMIT` | `min_limit` |
    /// | `POOL_BASE_LIMIT` | `base_limit` |
    /// | `POOL_SOFT_CAP` | `soft_cap` |
    /// | `POOL_QUEUE_THRESHOLD` | `hard_cap`: waiters past which 503s begin |
    /// | `POOL_ACQUIRE_TIMEOUT_MS` | `acquire_timeout` |
    /// | `POOL_MAX_RETRY_AFTER_MS` | `max_retry_after` |
    /// | `POOL_SCALE_MULTIPLIER` | [`QueueDepth::grow_factor`] |
    /// | `POOL_SCALE_THRESHOLD` | [`QueueDepth::threshold`] |
    /// | `POOL_SCALE_COOLDOWN_MS` | [`QueueDepth::cooldown`] |
    /// | `POOL_SHRINK_AFTER_MS` | `shrink_after` of the law |
    /// | `POOL_DIAL_TIMEOUT_MS` | `dial_timeout` |
    /// | `POOL_MAX_DIALING` | `max_dialing` |
    /// | `POOL_IDLE_TIMEOUT_MS` | `idle_timeout` |
    /// | `POOL_CHECK_AFTER_MS` | `check_after` |
    /// | `POOL_MAX_LIFETIME_MS` | `max_lifetime` |
    /// | `POOL_LEAK_WARNING_AFTER_MS` | `leak_warning_after` |
    /// | `POOL_FAIL_FAST` | `fail_fast`: `true` or `false` |
    /// | `POOL_SHARE` | `share` |
    /// | `POOL_DRY_RUN` | `dry_run`: `true` or `false` |
    ///
    /// A value that cannot be read is reported by `build()`, with the others. `POOL_SCALE_MULTIPLIER`,
    /// `POOL_SCALE_THRESHOLD` and `POOL_SCALE_COOLDOWN_MS` are settings of [`QueueDepth`]: any of them puts it in the
    /// place of [`PaidGrowth`](crate::PaidGrowth). `POOL_SHRINK_AFTER_MS` is for either. A controller of one's own has
    /// none of these settings, and they are not looked at.
    pub fn from_env(self) -> Self {
        self.overlay(from_process)
    }

    fn overlay(mut self, var: impl Fn(&str) -> Option<String>) -> Self {
        let mut vars = Vars { var, problems: &mut self.problems };
        let settings = &mut self.settings;
        vars.read("POOL_NAME", "a name", &mut settings.name);
        vars.read("POOL_BASE_MAX", "a number of connections", &mut settings.min_size);
        vars.read("POOL_HARD_MAX", "a number of connections", &mut settings.max_size);
        vars.read("POOL_MIN_LIMIT", "a number of connections", &mut settings.min_limit);
        let mut base_limit = 0;
        if vars.read("POOL_BASE_LIMIT", "a number of connections", &mut base_limit) {
            settings.base_limit = Some(base_limit);
        }
        vars.read("POOL_QUEUE_THRESHOLD", "a number of waiters", &mut settings.hard_cap);
        let mut soft_cap = settings.soft_cap();
        if vars.read("POOL_SOFT_CAP", "a number of waiters", &mut soft_cap) {
            settings.soft_cap = Some(soft_cap);
        }
        vars.read_ms("POOL_ACQUIRE_TIMEOUT_MS", &mut settings.acquire_timeout);
        vars.read_ms("POOL_MAX_RETRY_AFTER_MS", &mut settings.max_retry_after);
        vars.read_ms("POOL_DIAL_TIMEOUT_MS", &mut settings.dial_timeout);
        vars.read("POOL_MAX_DIALING", "a number of dials", &mut settings.max_dialing);
        vars.read_ms("POOL_IDLE_TIMEOUT_MS", &mut settings.idle_timeout);
        vars.read_ms("POOL_CHECK_AFTER_MS", &mut settings.check_after);
        let mut bound = Duration::ZERO;
        if vars.read_ms("POOL_MAX_LIFETIME_MS", &mut bound) {
            settings.max_lifetime = Some(bound);
        }
        if vars.read_ms("POOL_LEAK_WARNING_AFTER_MS", &mut bound) {
            settings.leak_warning_after = Some(bound);
        }
        vars.read("POOL_FAIL_FAST", "true or false", &mut settings.fail_fast);
        vars.read("POOL_SHARE", "a share of the load, such as 0.25", &mut settings.share);
        vars.read("POOL_DRY_RUN", "true or false", &mut settings.dry_run);
        let choice = &mut settings.controller.0;
        let scale = ["POOL_SCALE_MULTIPLIER", "POOL_SCALE_THRESHOLD", "POOL_SCALE_COOLDOWN_MS"];
        let asked = scale.iter().any(|name| (vars.var)(name).is_some());
        if asked && matches!(choice, Choice::PaidGrowth(_)) {
            *choice = Choice::QueueDepth(QueueDepth::default());
        }
        match choice {
            Choice::PaidGrowth(law) => {
                vars.read_ms("POOL_SHRINK_AFTER_MS", &mut law.shrink_after);
            }
            Choice::QueueDepth(law) => {
                vars.read("POOL_SCALE_MULTIPLIER", "a number over 1, such as 1.5", &mut law.grow_factor);
                vars.read("POOL_SCALE_THRESHOLD", "a number of waiters", &mut law.threshold);
                vars.read_ms("POOL_SCALE_COOLDOWN_MS", &mut law.cooldown);
                vars.read_ms("POOL_SHRINK_AFTER_MS", &mut law.shrink_after);
            }
            // A law of the user's own has none of these: then they are another law's, and none of our business.
            Choice::Custom(_) => {}
        }
        self
    }
}

/// A variable of this process; what is no Unicode in it cannot be right, and will be refused by name.
fn from_process(name: &str) -> Option<String> {
    env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

/// Environment variables being read, with what is wrong with them.
struct Vars<'a, F> {
    var: F,
    problems: &'a mut Vec<Problem>,
}

impl<F: Fn(&str) -> Option<String>> Vars<'_, F> {
    /// Overwrites `setting` when the variable is there and can be read; true then.
    fn read<T: FromStr>(&mut self, name: &'static str, form: &str, setting: &mut T) -> bool {
        let Some(value) = (self.var)(name) else { return false };
        match value.trim().parse() {
            Ok(parsed) => {
                *setting = parsed;
                true
            }
            Err(_) => {
                let expected = format!("cannot be read: it must be {form}");
                self.problems.push(Problem::new(name, format!("{value:?}"), expected));
                false
            }
        }
    }

    fn read_ms(&mut self, name: &'static str, setting: &mut Duration) -> bool {
        let mut millis = 0;
        let read = self.read(name, "a whole number of milliseconds", &mut millis);
        if read {
            *setting = Duration::from_millis(millis);
        }
        read
    }
}

/// Reads one duration from the environment, for a backend's own settings.
#[cfg(feature = "postgres")]
pub(crate) fn env_ms(name: &'static str, setting: &mut Duration, problems: &mut Vec<Problem>) {
    Vars { var: from_process, problems }.read_ms(name, setting);
}
