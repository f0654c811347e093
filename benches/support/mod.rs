//! What both benches need: a task that is never told to yield, and criterion's settings.

use std::future::Future;
use std::time::Duration;

use criterion::Criterion;
use criterion::async_executor::AsyncExecutor;
use tokio::runtime::{Builder, Runtime};
use tokio::task::unconstrained;

/// One task on one thread. Unconstrained, because a loop that never waits would otherwise be sent to the scheduler
/// every 128 operations by the semaphores of some and not by others: a request is never that long.
pub(crate) struct OneTask(Runtime);

impl OneTask {
    pub(crate) fn new() -> Self {
        Self(Builder::new_current_thread().enable_all().build().expect("a runtime"))
    }

    pub(crate) fn runtime(&self) -> &Runtime {
        &self.0
    }
}

impl AsyncExecutor for &OneTask {
    fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.0.block_on(unconstrained(future))
    }
}

/// Short enough that one run of both benches stays under three minutes.
pub(crate) fn criterion() -> Criterion {
    Criterion::default()
        .sample_size(40)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .nresamples(10_000)
        .without_plots()
        .configure_from_args()
}
