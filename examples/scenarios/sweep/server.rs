//! The simulated server: as `database`, but without connections and wakers, so that a sweep can afford it.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use crate::curve::Curve;

/// What runs: processor sharing along a throughput curve.
#[derive(Debug)]
pub struct Server<T> {
    pub curve: Curve,
    /// 1 is usual, 0.5 half as fast, 0 a stall.
    pub speed: f64,
    /// Queries of somebody else that run all the time.
    pub rival: usize,
    /// The work that each query would have got that ran from the beginning.
    attained: f64,
    rate: f64,
    running: BinaryHeap<Running<T>>,
}

#[derive(Debug)]
struct Running<T> {
    until: f64,
    what: T,
}

impl<T> Server<T> {
    pub fn new(curve: Curve) -> Self {
        Self { curve, speed: 1.0, rival: 0, attained: 0.0, rate: 0.0, running: BinaryHeap::new() }
    }

    /// Seconds until the next query ends, if nothing changes before.
    pub fn next_end(&self) -> f64 {
        match self.running.peek() {
            Some(next) if self.rate > 0.0 => ((next.until - self.attained) / self.rate).max(0.0),
            _ => f64::INFINITY,
        }
    }

    pub fn advance(&mut self, seconds: f64) {
        self.attained += self.rate * seconds;
    }

    pub fn begin(&mut self, work: f64, what: T) {
        self.running.push(Running { until: self.attained + work, what });
        self.changed();
    }

    /// Ends the one that ends next.
    pub fn end_next(&mut self) -> Option<T> {
        let Running { until, what } = self.running.pop()?;
        self.attained = self.attained.max(until);
        self.changed();
        Some(what)
    }

    /// After a change of curve, speed or rival too.
    pub fn changed(&mut self) {
        let running = self.running.len() + self.rival;
        self.rate = if running == 0 { 0.0 } else { self.speed * self.curve.at(running) / running as f64 };
    }
}

impl<T> Ord for Running<T> {
    /// The soonest is the greatest, as the heap wants it.
    fn cmp(&self, other: &Self) -> Ordering {
        other.until.total_cmp(&self.until)
    }
}

impl<T> PartialOrd for Running<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> PartialEq for Running<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<T> Eq for Running<T> {}
