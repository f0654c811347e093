//! Where driver and dials run: in the runtime of the build, and once that is gone, in the runtime of a caller.

use std::error::Error;
use std::fmt;
use std::future::{Future, poll_fn};
use std::mem;
use std::panic::catch_unwind;
use std::pin::{Pin, pin};
use std::sync::{Mutex, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::runtime::{Handle, Id};
use tokio::task::JoinHandle;
use tokio::task::coop::unconstrained;
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

/// Polls a timer. One whose runtime has gone, which would panic, is ready.
pub(super) fn poll_timer(timer: Pin<&mut Sleep>, cx: &mut Context<'_>) -> Poll<()> {
    // Also where what it bounds has used up the task's budget.
    guarded(|| Pin::new(&mut unconstrained(timer)).poll(cx)).unwrap_or(Poll::Ready(()))
}

/// Neither the runtime of the build nor one of the caller's is there to dial in, or to wait in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NoRuntime;

impl fmt::Display for NoRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the Tokio runtime of build() is gone, and the caller is in none with timers that could take over")
    }
}

impl Error for NoRuntime {}

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
        let Some(driver) = driver else { return true };
        let old = mem::replace(&mut *home.runtime.write().unwrap_or_else(PoisonError::into_inner), runtime);
        drop(old);
        driver::run(self, &plant, driver);
        self.inner.published.driven() // not where the caller's own runtime is going down
    }

    /// The runtime of the driver.
    pub(crate) fn home(&self) -> Id {
        self.inner.home.runtime.read().unwrap_or_else(PoisonError::into_inner).id()
    }

    /// Whether the caller runs where the driver does.
    pub(super) fn is_home(&self) -> bool {
        Handle::try_current().is_ok_and(|runtime| runtime.id() == self.home())
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

    /// Awaits something until a deadline, also outside of any runtime. `None` when the deadline came first, or nobody can tell
    /// when it comes.
    pub(crate) async fn until<F: Future>(&self, deadline: Instant, future: F) -> Option<F::Output> {
        let mut timer = pin!(self.timer(deadline)?);
        let mut future = pin!(future);
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => poll_timer(timer.as_mut(), cx).map(|()| None),
        })
        .await
    }
}
