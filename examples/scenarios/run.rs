//! One run: the real layer, gate, pool and driver over the simulated database, on a paused clock.
//!
//! The loop below owns time. It moves the clock straight to the next thing that happens, but never past a whole
//! millisecond, where the pool's own timers fire, and lets everything that was woken run before it goes on.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{Request, Response, StatusCode};
use tokio::runtime::Builder;
use tokio::task::yield_now;
use tokio::time::advance;
use tower::util::BoxService;
use tower_adaptive_pool::{AcquireError, AdaptivePool, AdaptivePoolLayer};
use tower_layer::Layer;
use tower_service::Service;

use crate::Error;
use crate::database::{Database, DialCost};
use crate::load::{Arrival, arrivals};
use crate::opponents::Choice;
use crate::random::Random;
use crate::record::{Record, Run};
use crate::scenario::Scenario;

/// The pool's timers have this resolution.
const MILLISECOND: u64 = 1_000_000;
/// Between two looks at the pools: the driver's own pace.
pub const LOOK: Duration = Duration::from_millis(10);

/// Plays a scenario once.
///
/// # Errors
/// The scenario does not make a pool.
pub fn run(scenario: &Scenario, seed: u64, choice: Choice) -> Result<Run, Error> {
    // All tasks that can run do so between two polls of the loop: `yield_now` means "when all is quiet".
    let runtime =
        Builder::new_current_thread().enable_time().start_paused(true).event_interval(1 << 20).build()?;
    runtime.block_on(async { Ok(World::new(scenario, seed, choice)?.play().await?.finish(choice, seed)) })
}

/// A request under way: which, and how often it was tried before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Attempt {
    index: usize,
    tries: u32,
}

/// What came of an attempt.
struct Outcome {
    attempt: Attempt,
    sent: Duration,
    status: StatusCode,
}

type Outcomes = Arc<Mutex<Vec<Outcome>>>;
type Handler = BoxService<Request<f64>, Response<()>, Infallible>;

/// One instance of the service, with a pool of its own.
struct Instance {
    pool: AdaptivePool<Database>,
    service: Handler,
}

struct World<'a> {
    scenario: &'a Scenario,
    seed: u64,
    choice: Choice,
    now: Duration,
    database: Database,
    instances: Vec<Instance>,
    arrivals: Vec<Arrival>,
    next_arrival: usize,
    next_event: usize,
    retries: BinaryHeap<Reverse<(Duration, Attempt)>>,
    pauses: Random,
    outcomes: Outcomes,
    record: Record,
}

impl<'a> World<'a> {
    fn new(scenario: &'a Scenario, seed: u64, choice: Choice) -> Result<Self, Error> {
        let dial_cost = DialCost { takes: Duration::from_millis(scenario.dial_ms), work: scenario.dial_work };
        Ok(Self {
            scenario,
            seed,
            choice,
            now: Duration::ZERO,
            database: Database::new(scenario.curve()?, dial_cost),
            instances: Vec::new(),
            arrivals: arrivals(scenario, seed),
            next_arrival: 0,
            next_event: 0,
            retries: BinaryHeap::new(),
            pauses: Random::new(seed, "pauses"),
            outcomes: Outcomes::default(),
            record: Record::new(scenario),
        })
    }

    async fn play(mut self) -> Result<Record, Error> {
        self.set_instances(1)?;
        self.happen()?;
        for instance in &self.instances {
            // Time moves by itself as long as the loop has not begun.
            instance.pool.ready().await?;
        }
        self.database.begin();
        let end = Duration::from_secs_f64(self.scenario.seconds()) + self.scenario.deadline();
        let mut next_look = Duration::ZERO;
        while self.now < end {
            let next = self.next_moment().min(next_look).min(end);
            if next > self.now {
                advance(next.saturating_sub(self.now)).await;
                self.now = next;
            }
            self.database.advance(self.now);
            self.happen()?;
            self.send();
            if self.now >= next_look {
                self.look();
                next_look += LOOK;
            }
            yield_now().await;
            self.collect();
        }
        Ok(self.record)
    }

    /// When something happens next, at the latest when the pools' timers may fire.
    fn next_moment(&self) -> Duration {
        let whole = (self.now.as_nanos() as u64 / MILLISECOND + 1) * MILLISECOND;
        let arrival = self.arrivals.get(self.next_arrival).map(|arrival| arrival.at);
        let retry = self.retries.peek().map(|Reverse((at, _))| *at);
        let end = self.database.next_end();
        [arrival, retry, end].into_iter().flatten().fold(Duration::from_nanos(whole), Duration::min)
    }

    /// The scenario's own events.
    fn happen(&mut self) -> Result<(), Error> {
        while let Some(event) = self.scenario.events.get(self.next_event)
            && event.at_s <= self.now.as_secs_f64()
        {
            self.next_event += 1;
            if let Some(speed) = event.speed {
                self.database.set_speed(speed);
            }
            if let Some(rival) = event.rival {
                self.database.set_rival(rival);
            }
            if let Some(instances) = event.instances {
                self.set_instances(instances)?;
            }
        }
        Ok(())
    }

    fn set_instances(&mut self, count: usize) -> Result<(), Error> {
        self.instances.truncate(count);
        while self.instances.len() < count {
            let number = self.instances.len() as u64;
            let scenario = self.scenario;
            let builder = AdaptivePool::builder(self.database.clone())
                .min_size(scenario.min_size)
                .max_size(scenario.max_size)
                .soft_cap(scenario.soft_cap)
                .hard_cap(scenario.hard_cap)
                .acquire_timeout(scenario.deadline())
                .max_lifetime(None)
                .leak_warning_after(None)
                .seed(self.seed ^ (number << 32));
            let pool = self.choice.over(builder, scenario).build()?;
            let service = serve(&pool);
            self.instances.push(Instance { pool, service });
        }
        // All that an instance knows of the others.
        for instance in &self.instances {
            instance.pool.gate().set_share(1.0 / count as f64)?;
        }
        Ok(())
    }

    /// Sends what is due.
    fn send(&mut self) {
        while let Some(arrival) = self.arrivals.get(self.next_arrival)
            && arrival.at <= self.now
        {
            self.record.offered(arrival.at);
            self.attempt(Attempt { index: self.next_arrival, tries: 0 });
            self.next_arrival += 1;
        }
        while let Some(Reverse((at, attempt))) = self.retries.peek().copied()
            && at <= self.now
        {
            self.retries.pop();
            self.attempt(attempt);
        }
    }

    fn attempt(&mut self, attempt: Attempt) {
        let Arrival { work, draw, .. } = self.arrivals[attempt.index];
        // A retry may reach another instance.
        let place = (draw >> (8 * attempt.tries.min(7))) % self.instances.len() as u64;
        let instance = &mut self.instances[place as usize];
        // The verdict falls here, before anything else is sent; tower's services of functions are always ready.
        let response = instance.service.call(Request::new(work));
        let (outcomes, sent) = (self.outcomes.clone(), self.now);
        tokio::spawn(async move {
            let Ok(response) = response.await;
            let outcome = Outcome { attempt, sent, status: response.status() };
            outcomes.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
        });
    }

    /// Takes note of what was answered, all of it just now.
    fn collect(&mut self) {
        let outcomes = std::mem::take(&mut *self.outcomes.lock().unwrap_or_else(PoisonError::into_inner));
        for Outcome { attempt, sent, status } in outcomes {
            let took = self.now.saturating_sub(sent);
            let in_time = status == StatusCode::OK && took <= self.scenario.deadline();
            self.record.answered(self.arrivals[attempt.index].at, took, status, in_time);
            if let Some(retries) = self.scenario.retries
                && !in_time
                && attempt.tries < retries.most
            {
                let pause = Duration::from_millis(retries.pause_ms).mul_f64(0.5 + self.pauses.uniform());
                let again = Attempt { tries: attempt.tries + 1, ..attempt };
                self.retries.push(Reverse((self.now + pause, again)));
            }
        }
    }

    fn look(&mut self) {
        let snapshots = self.instances.iter().map(|instance| instance.pool.snapshot());
        if let Choice::Static(size) = self.choice {
            let moved = snapshots.clone().find(|seen| seen.limit != size);
            assert!(moved.is_none(), "a fixed size of {size} moved: {moved:?}");
        }
        self.record.look(self.now, snapshots);
    }
}

/// The service as an application would write it: the layer, and a handler that runs one query.
fn serve(pool: &AdaptivePool<Database>) -> Handler {
    let handler = {
        let pool = pool.clone();
        tower::service_fn(move |request: Request<f64>| {
            let pool = pool.clone();
            async move { Ok::<_, Infallible>(handle(&pool, request.into_body()).await) }
        })
    };
    BoxService::new(AdaptivePoolLayer::new(pool.clone()).layer(handler))
}

async fn handle(pool: &AdaptivePool<Database>, work: f64) -> Response<()> {
    let status = match pool.acquire().await {
        Ok(connection) => {
            connection.run(work).await;
            StatusCode::OK
        }
        Err(AcquireError::Timeout(_)) => StatusCode::GATEWAY_TIMEOUT,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    let mut response = Response::new(());
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::{Phase, Service as Kind};

    #[test]
    fn a_saturated_pool_gets_what_the_curve_says() {
        let mut scenario = Scenario::all().unwrap().into_iter().find(|it| it.name == "knees-24").unwrap();
        scenario.load = vec![Phase { seconds: 10.0, load: 1.5, to: None, swing_s: None }];
        scenario.service = Kind::Lognormal { cv: 0.2 };
        scenario.deadline_ms = 5_000;
        for size in [2, 9, 24, 50] {
            // What waits at the end is served too, after the end.
            let expected = scenario.curve().unwrap().at(size) * 10.0 + scenario.hard_cap as f64;
            let served = run(&scenario, 1, Choice::Static(size)).unwrap().goodput as f64;
            assert!((served / expected - 1.0).abs() < 0.02, "{size}: {served} instead of {expected}");
        }
    }

    #[test]
    fn a_run_repeats_to_the_last_request() {
        let mut scenario = Scenario::all().unwrap().into_iter().find(|it| it.name == "retry-storm").unwrap();
        scenario.load.iter_mut().for_each(|phase| phase.seconds = phase.seconds.min(2.0));
        for choice in [Choice::Adaptive, Choice::QueueDepth, Choice::Static(8)] {
            let once = run(&scenario, 7, choice).unwrap();
            assert!(once.goodput > 500, "{choice} served {} in time", once.goodput);
            assert_eq!(once, run(&scenario, 7, choice).unwrap(), "{choice}");
            assert_ne!(once, run(&scenario, 8, choice).unwrap(), "{choice}: the seed means nothing");
        }
    }
}
