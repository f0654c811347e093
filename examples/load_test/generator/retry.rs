//! Clients that come back: each request through tower's retry middleware, with one of two manners.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::time::{self, Instant, Sleep};
use tower::{
    Service, ServiceExt,
    retry::{Policy, Retry},
};

use super::{
    client::Client,
    stats::{GIVE_UP, Outcome},
    storm::Answers,
};

/// The longest a client waits who retries at once: people are not that exact.
const JITTER: Duration = Duration::from_millis(50);

/// Many clients of one server who all try again.
pub struct Storm {
    attempts: Attempts,
    retries: u32,
    end: Instant,
}

impl Storm {
    /// Nobody tries again after `end`.
    pub fn new(client: Client, budget: Duration, retries: u32, end: Instant) -> Self {
        let shared = Shared { client, answers: Answers::default(), on_the_way: 0 };
        Self { attempts: Attempts { shared: Arc::new(Mutex::new(shared)), budget }, retries, end }
    }

    /// One request with all its attempts; every second client honours Retry-After.
    pub fn request(&self, index: usize) -> impl Future<Output = Outcome> + use<> {
        // By the golden ratio: spread evenly, and the same in every run.
        let jitter = JITTER.mul_f64((index as f64 * 0.618_033_988_75).fract());
        let manners = Manners { left: self.retries, honours: index.is_multiple_of(2), jitter, end: self.end };
        let attempts = Retry::new(manners, self.attempts.clone()).oneshot(());
        async move {
            let Ok(outcome) = attempts.await;
            outcome
        }
    }

    /// What the server answered to all attempts, also to those that nobody waited for any more.
    pub async fn all_answered(&self) -> Answers {
        let mut look = time::interval(Duration::from_millis(10));
        let _ = time::timeout(GIVE_UP, async {
            while self.attempts.shared().on_the_way > 0 {
                look.tick().await;
            }
        })
        .await;
        self.attempts.shared().answers
    }
}

/// When a client tries again.
#[derive(Clone, Copy)]
struct Manners {
    left: u32,
    honours: bool,
    jitter: Duration,
    end: Instant,
}

impl Policy<(), Outcome, Infallible> for Manners {
    type Future = Sleep;

    fn retry(&mut self, (): &mut (), result: &mut Result<Outcome, Infallible>) -> Option<Sleep> {
        let Ok(outcome) = *result else { return None };
        if outcome == Outcome::Served || self.left == 0 {
            return None;
        }
        self.left -= 1;
        let pause = match outcome {
            Outcome::Shed { retry_after: Some(seconds) } if self.honours => {
                Duration::from_secs(seconds.into())
            }
            _ => self.jitter,
        };
        (Instant::now() + pause < self.end).then(|| time::sleep(pause))
    }

    fn clone_request(&mut self, (): &()) -> Option<()> {
        Some(())
    }
}

struct Shared {
    client: Client,
    answers: Answers,
    /// Attempts without an answer yet.
    on_the_way: usize,
}

/// One attempt, as a service. Who has waited in vain goes, but the server is not told, as behind a proxy that does not
/// pass it on.
#[derive(Clone)]
struct Attempts {
    shared: Arc<Mutex<Shared>>,
    budget: Duration,
}

impl Attempts {
    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Service<()> for Attempts {
    type Response = Outcome;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Outcome, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, (): ()) -> Self::Future {
        let answer = {
            let mut shared = self.shared();
            shared.on_the_way += 1;
            shared.client.send()
        };
        let this = self.clone();
        let attempt = tokio::spawn(async move {
            let outcome = answer.await;
            let mut shared = this.shared();
            shared.on_the_way -= 1;
            shared.answers.count(outcome);
            outcome
        });
        let in_time = time::timeout(self.budget, attempt);
        Box::pin(async move {
            Ok(match in_time.await {
                Ok(answered) => answered.unwrap_or(Outcome::Error),
                Err(_) => Outcome::Timeout,
            })
        })
    }
}
