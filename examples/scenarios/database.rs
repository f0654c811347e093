//! A database that exists only in memory: every query that runs has the same share of what the throughput curve gives for
//! so many at once (processor sharing), over all the pools that are connected to it.
//!
//! All queries progress alike, so one number, the work that each of them would have got since the beginning, orders
//! their ends: a heap over that, and one next end. Exact to the nanosecond, and driven from outside
//! ([`Database::advance`]): tokio's own timers would round each query up to the next millisecond.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use slab::Slab;
use tower_adaptive_pool::{Backend, ConnectionState, Place};

use crate::curve::Curve;

/// What one dial costs.
#[derive(Clone, Copy, Debug)]
pub struct DialCost {
    pub takes: Duration,
    /// Work on the server, in usual queries: a new backend takes CPU from those that run.
    pub work: f64,
}

/// A handle on the simulated server; every clone is the same server.
#[derive(Clone, Debug)]
pub struct Database {
    server: Arc<Mutex<Server>>,
    dial_cost: DialCost,
}

#[derive(Debug)]
struct Server {
    curve: Curve,
    /// 1 is usual, 0.5 half as fast, 0 a stall.
    speed: f64,
    /// Queries of somebody else that run all the time.
    rival: usize,
    /// Dials cost work from the beginning on; what is opened before is free.
    begun: bool,
    now: Duration,
    /// The work each query would have got that ran from the beginning, in usual queries.
    attained: f64,
    ends: BinaryHeap<End>,
    queries: Slab<State>,
}

/// When a query ends: once so much has been attained.
#[derive(Debug)]
struct End {
    attained: f64,
    key: usize,
}

/// A query from its begin until somebody has seen its end.
#[derive(Debug)]
enum State {
    Running(Waker),
    Ended,
    /// Nobody waits for it any more; it runs on, as in PostgreSQL.
    Abandoned,
}

impl Database {
    pub fn new(curve: Curve, dial_cost: DialCost) -> Self {
        let server = Server {
            curve,
            speed: 1.0,
            rival: 0,
            begun: false,
            now: Duration::ZERO,
            attained: 0.0,
            ends: BinaryHeap::new(),
            queries: Slab::new(),
        };
        Self { server: Arc::new(Mutex::new(server)), dial_cost }
    }

    /// The run begins.
    pub fn begin(&self) {
        self.lock().begun = true;
    }

    pub fn set_speed(&self, speed: f64) {
        self.lock().speed = speed;
    }

    pub fn set_rival(&self, queries: usize) {
        self.lock().rival = queries;
    }

    /// When the next query ends, if nothing changes before.
    pub fn next_end(&self) -> Option<Duration> {
        let server = self.lock();
        let left = server.ends.peek()?.attained - server.attained;
        let rate = server.rate();
        // A nanosecond later rather than earlier: the loop must get on.
        (rate > 0.0)
            .then(|| server.now + Duration::from_secs_f64((left / rate).max(0.0)) + Duration::from_nanos(1))
    }

    /// Lets the queries run until `now`, which must not be later than the [next end](Self::next_end), and wakes those
    /// that ended.
    pub fn advance(&self, now: Duration) {
        let mut ended = Vec::new();
        {
            let mut server = self.lock();
            server.attained += server.rate() * now.saturating_sub(server.now).as_secs_f64();
            server.now = now;
            while server.ends.peek().is_some_and(|end| end.attained <= server.attained) {
                ended.extend(server.end_next());
            }
        }
        ended.into_iter().for_each(Waker::wake);
    }

    /// One query of so much work.
    fn query(&self, work: f64) -> Query {
        Query { database: self.clone(), work, key: None }
    }

    fn lock(&self) -> MutexGuard<'_, Server> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Server {
    /// What one query gets a second.
    fn rate(&self) -> f64 {
        let running = self.ends.len() + self.rival;
        if running == 0 { 0.0 } else { self.speed * self.curve.at(running) / running as f64 }
    }

    fn begin(&mut self, work: f64, waker: Waker) -> usize {
        let key = self.queries.insert(State::Running(waker));
        self.ends.push(End { attained: self.attained + work, key });
        key
    }

    fn end_next(&mut self) -> Option<Waker> {
        let End { key, .. } = self.ends.pop()?;
        match std::mem::replace(&mut self.queries[key], State::Ended) {
            State::Running(waker) => Some(waker),
            State::Ended | State::Abandoned => {
                self.queries.remove(key);
                None
            }
        }
    }
}

impl Ord for End {
    /// The soonest is the greatest, as the heap wants it; of two at once the older one.
    fn cmp(&self, other: &Self) -> Ordering {
        other.attained.total_cmp(&self.attained).then(other.key.cmp(&self.key))
    }
}

impl PartialOrd for End {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for End {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for End {}

/// A query: begins when it is first polled.
#[derive(Debug)]
struct Query {
    database: Database,
    work: f64,
    key: Option<usize>,
}

impl Future for Query {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let mut server = this.database.lock();
        let Some(key) = this.key else {
            this.key = Some(server.begin(this.work, cx.waker().clone()));
            return Poll::Pending;
        };
        match &mut server.queries[key] {
            State::Running(waker) => {
                waker.clone_from(cx.waker());
                Poll::Pending
            }
            State::Ended | State::Abandoned => {
                server.queries.remove(key);
                this.key = None;
                Poll::Ready(())
            }
        }
    }
}

impl Drop for Query {
    fn drop(&mut self) {
        let Some(key) = self.key else { return };
        let mut server = self.database.lock();
        if matches!(server.queries[key], State::Ended) {
            server.queries.remove(key);
        } else {
            server.queries[key] = State::Abandoned;
        }
    }
}

/// A connection; its place is free as soon as it is dropped.
#[derive(Debug)]
pub struct Session {
    database: Database,
    _place: Place,
}

impl Session {
    /// Runs one query of so much work.
    pub async fn run(&self, work: f64) {
        self.database.query(work).await;
    }
}

impl Backend for Database {
    type Connection = Session;
    type Error = Infallible;

    async fn dial(&self, place: Place) -> Result<Session, Infallible> {
        tokio::time::sleep(self.dial_cost.takes).await;
        let begun = self.lock().begun;
        if begun && self.dial_cost.work > 0.0 {
            self.query(self.dial_cost.work).await;
        }
        Ok(Session { database: self.clone(), _place: place })
    }

    fn state(&self, _: &Session) -> ConnectionState {
        ConnectionState::Ready
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;
    use crate::scenario::Service;

    /// Queries a second over 20,000 of them, with `n` connections that are never without a query.
    fn saturated(curve: &Curve, n: usize, service: Service) -> f64 {
        let database = Database::new(curve.clone(), DialCost { takes: Duration::ZERO, work: 0.0 });
        let mut random = Random::new(1, "test");
        let mut draw = move || service.draw(&mut random);
        let waker = Waker::noop();
        let mut context = Context::from_waker(waker);
        let mut queries: Vec<_> = (0..n).map(|_| Box::pin(database.query(draw()))).collect();
        let mut ended = 0;
        let mut now = Duration::ZERO;
        while ended < 20_000 {
            for query in &mut queries {
                while query.as_mut().poll(&mut context).is_ready() {
                    ended += 1;
                    *query = Box::pin(database.query(draw()));
                }
            }
            now = database.next_end().unwrap();
            database.advance(now);
        }
        f64::from(ended) / now.as_secs_f64()
    }

    #[test]
    fn saturated_connections_finish_what_the_curve_says() {
        for name in ["usl:4", "measured:lock6", "measured:select"] {
            let curve = name.parse::<Curve>().unwrap().scaled(2_000.0, 50);
            for n in [1, 7, 18, 50] {
                for service in [Service::Exponential, Service::Lognormal { cv: 0.5 }] {
                    let (seen, expected) = (saturated(&curve, n, service), curve.at(n));
                    let off = (seen / expected - 1.0).abs();
                    assert!(off < 0.02, "{name}, {n} connections: {seen} instead of {expected}");
                }
            }
        }
    }

    #[test]
    fn speed_and_a_rival_take_their_part() {
        let curve = "usl:200".parse::<Curve>().unwrap().scaled(1_000.0, 50);
        let database = Database::new(curve.clone(), DialCost { takes: Duration::ZERO, work: 0.0 });
        let mut query = Box::pin(database.query(1.0));
        let mut context = Context::from_waker(Waker::noop());
        assert!(query.as_mut().poll(&mut context).is_pending());
        database.set_rival(9);
        let shared = 10.0 / curve.at(10);
        assert!((database.next_end().unwrap().as_secs_f64() - shared).abs() < 1e-6);
        database.advance(Duration::from_secs_f64(shared / 2.0));
        database.set_speed(0.5);
        assert!((database.next_end().unwrap().as_secs_f64() - 1.5 * shared).abs() < 1e-6);
        database.set_speed(0.0);
        assert_eq!(database.next_end(), None);
    }
}
