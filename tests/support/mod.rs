//! What several test files need.

#![allow(dead_code)] // no test file uses all of it

pub mod daemon;
pub mod line;
pub mod postgres;
pub mod proxy;
pub mod redis;
pub mod sim;

use std::{future::Future, panic::Location, time::Duration};

use tokio::time::{Instant, sleep};

/// Waits until `condition` holds. If it still does not after `deadline`, panics with the caller's line.
#[track_caller]
pub fn eventually(deadline: Duration, mut condition: impl AsyncFnMut() -> bool) -> impl Future<Output = ()> {
    // Taken here, because a future is polled from somewhere else than where it was asked for.
    let caller = Location::caller();
    async move {
        let started = Instant::now();
        while !condition().await {
            assert!(started.elapsed() < deadline, "{caller}: still not so after {deadline:?}");
            sleep(Duration::from_millis(2)).await;
        }
    }
}
