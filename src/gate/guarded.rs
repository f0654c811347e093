//! What runs code of the user's own, whose panic costs one call and nothing else. The panic hook has told of it.

use std::future::{Future, poll_fn};
use std::mem::forget;
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Poll;

/// Calls code of the user's own; `None` when it panicked.
pub(crate) fn guarded<T>(user_code: impl FnOnce() -> T) -> Option<T> {
    let panic = match catch_unwind(AssertUnwindSafe(user_code)) {
        Ok(value) => return Some(value),
        Err(panic) => panic,
    };
    // What was thrown is the user's too, and its drop may throw again: that is kept for ever.
    if let Err(another) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
        forget(another);
    }
    None
}

/// Runs a future that is made of the user's own code; `None` when that panicked.
pub(crate) async fn guarded_future<F: Future>(future: F) -> Option<F::Output> {
    let mut future = Guarded::new(Box::pin(future));
    poll_fn(|cx| guarded(|| future.as_mut().poll(cx).map(Some)).unwrap_or(Poll::Ready(None))).await
}

/// A value of the user's own, whose drop may panic: during another panic that would abort the program, and in a list of
/// several the second time.
#[derive(Debug)]
pub(crate) struct Guarded<T>(Option<T>);

impl<T> Guarded<T> {
    pub fn new(value: T) -> Self {
        Self(Some(value))
    }
}

const THERE: &str = "it is there until it is dropped";

impl<T> Deref for Guarded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect(THERE)
    }
}

impl<T> DerefMut for Guarded<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect(THERE)
    }
}

impl<T> Drop for Guarded<T> {
    fn drop(&mut self) {
        let value = self.0.take();
        guarded(|| drop(value));
    }
}
