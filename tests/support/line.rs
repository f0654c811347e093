//! Limiters that are full, and the acquires that wait in front of them.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use tower_adaptive_pool::{AcquireError, Acquires, Class, Limiter, Permit, Snapshot};

/// A future that has been polled once and was not ready.
pub type Pending<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A limiter of one permit.
pub fn one_permit(soft_cap: usize, hard_cap: usize) -> Limiter {
    let builder = Limiter::builder().fixed_size(1).soft_cap(soft_cap).hard_cap(hard_cap);
    builder.seed(7).build().unwrap()
}

/// Polls once. What is ready is the output, what is not can be awaited later.
pub fn poll_once<F: Future + Send + 'static>(future: F) -> Result<F::Output, Pending<F::Output>> {
    let mut future: Pending<F::Output> = Box::pin(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Ok(output),
        Poll::Pending => Err(future),
    }
}

/// Polls once a future that must not be ready yet.
#[track_caller]
pub fn begin<F: Future + Send + 'static>(future: F) -> Pending<F::Output> {
    poll_once(future).err().expect("the future is not ready at once")
}

/// So many acquires that wait.
#[track_caller]
pub fn line_up(limiter: &Limiter, many: usize) -> Vec<Pending<Result<Permit, AcquireError>>> {
    line_up_as(limiter, Class::default(), many)
}

/// So many acquires of this class that wait.
#[track_caller]
pub fn line_up_as(
    limiter: &Limiter,
    class: Class,
    many: usize,
) -> Vec<Pending<Result<Permit, AcquireError>>> {
    let waiting = |_| {
        let limiter = limiter.clone();
        begin(async move { limiter.acquire_with(class).await })
    };
    (0..many).map(waiting).collect()
}

/// The ledgers add up: whatever was begun has ended in one way, or still waits.
#[track_caller]
pub fn assert_ledgers_add_up(seen: &Snapshot) {
    let Acquires { started, granted, shed, timed_out, cancelled, failed, .. } = seen.acquires;
    let waiting = seen.queue_depth as u64;
    assert_eq!(started, granted + shed + timed_out + cancelled + failed + waiting, "{:?}", seen.acquires);
    let layer = seen.admissions;
    assert_eq!(layer.arrivals, layer.admitted + layer.shed, "{layer:?}");
}
