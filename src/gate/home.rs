//! Where driver and dials run: in the runtime of the build, and once that is gone, in the runtime of a caller.

use std::future::Future;
use std::panic::catch_unwind;
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::driver::Driver;
use super::{Gate, driver, guarded};

pub(super) struct Home {
    runtime: RwLock<Handle>,
    /// The driver, while no runtime runs it.
    driver: Mutex<Option<Driver>>,
}

impl Home {
    pub fn new(runtime: Handle) -> Self {
        Self { runtime: RwLock::new(runtime), driver: Mutex::new(None) }
    }

    fn runtime(&self) -> Handle {
        self.runtime.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Keeps a driver until a runtime is there for it.
    pub fn keep(&self, driver: Driver) {
        *self.driver.lock().unwrap_or_else(PoisonError::into_inner) = Some(driver);
    }
}

/// Whether the present runtime has timers. It has no other way to say so than a panic.
pub(crate) fn has_timers() -> bool {
    catch_unwind(|| drop(sleep(Duration::ZERO))).is_ok()
}

impl Gate {
    /// Runs a task where the driver runs. In a runtime that is gone the task is dropped at once.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        self.inner.home.runtime().spawn(task)
    }

    /// Makes sure that the driver runs: where its runtime is gone, the caller's takes over, and dials begin again. False where
    /// the caller is in no runtime that could.
    pub(crate) fn revive(&self) -> bool {
        if self.inner.published.driven() {
            return true;
        }
        let home = &self.inner.home;
        let Some(runtime) = Handle::try_current().ok().filter(|_| has_timers()) else { return false };
        let Some(plant) = self.plant() else { return false };
        // Nothing is there while another caller revives it, or the runtime is going down: then it is not gone yet.
        let driver = home.driver.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(driver) = driver {
            *home.runtime.write().unwrap_or_else(PoisonError::into_inner) = runtime;
            driver::run(self, &plant, driver);
        }
        true
    }

    /// Whether the caller runs where the driver does.
    pub(super) fn is_home(&self) -> bool {
        let home = self.inner.home.runtime.read().unwrap_or_else(PoisonError::into_inner);
        Handle::try_current().is_ok_and(|runtime| runtime.id() == home.id())
    }

    /// A timer of the caller's runtime, or, where that has none, of the driver's.
    pub(super) fn timer(&self, deadline: Instant) -> Option<Sleep> {
        let timer = || guarded(|| sleep_until(deadline));
        let own = if Handle::try_current().is_ok() { timer() } else { None };
        own.or_else(|| {
            let _inside = self.inner.home.runtime().enter();
            timer()
        })
    }
}
