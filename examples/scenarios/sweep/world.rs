//! One run of a case: pools, their queues and the admission law over the simulated server, without a runtime. Ten times as
//! fast as `run`, which plays the real layer, gate and pool; a test holds the two together.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

use tower_adaptive_pool::simulation::{Caps, Claim, MeanTime, Occupancy, admit};
use tower_adaptive_pool::{Controller, Reason, Sample};

use super::prior::{Case, Event};
use super::requests::Request;
use super::server::Server;

/// Between two looks of a controller.
const TICK_S: f64 = 0.010;
/// Dials at once of one pool.
const DIALS: usize = 4;
/// Before a dial is tried again that failed.
const DIAL_AGAIN_S: f64 = 0.25;
/// Work of a query that fails at once, in usual ones.
const ERROR_WORK: f64 = 0.02;
/// Steps of a drift.
const DRIFT_STEPS: f64 = 20.0;

/// Who moves the limit of one pool.
pub enum Mover {
    Fixed(usize),
    Law(Box<dyn Controller>),
}

/// What came of a run.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub offered: u64,
    /// Served in time, by all pools and by those that run the controller.
    pub goodput: u64,
    pub own_goodput: u64,
    pub refused: u64,
    pub latencies_ms: Vec<f32>,
    pub final_limit: usize,
    pub bins: Vec<Bin>,
    pub moves: Vec<Move>,
}

impl Outcome {
    pub fn p99_ms(&mut self) -> f64 {
        if self.latencies_ms.is_empty() {
            return 0.0;
        }
        let at = self.latencies_ms.len() * 99 / 100;
        f64::from(*self.latencies_ms.select_nth_unstable_by(at, f32::total_cmp).1)
    }
}

/// A hundredth of the run, of the first pool; requests of all.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bin {
    pub offered: u32,
    pub good: u32,
    pub limit: f64,
    pub in_use: f64,
    pub queue_depth: f64,
    pub ticks: u32,
}

/// The first pool's limit moved.
#[derive(Clone, Copy, Debug)]
pub struct Move {
    pub at_s: f64,
    pub from: usize,
    pub to: usize,
    pub queue_depth: usize,
    pub in_use: usize,
    pub reason: Reason,
}

/// What runs on a server.
#[derive(Clone, Copy, Debug)]
enum Job {
    Query { request: u32, pool: u8, fails: bool, began_s: f64, came_s: f64 },
    Dial { pool: u8 },
}

struct Waiter {
    request: u32,
    came_s: f64,
}

struct Pool {
    mover: Mover,
    own: bool,
    limit: usize,
    max_size: usize,
    open: usize,
    dials: Vec<f64>,
    dial_jobs: usize,
    in_use: usize,
    queue: VecDeque<Waiter>,
    use_time: MeanTime,
    sample: Sample,
}

impl Pool {
    fn idle(&self) -> usize {
        (self.open - self.in_use).min(self.limit.saturating_sub(self.in_use))
    }

    fn opening(&self) -> usize {
        self.dials.len() + self.dial_jobs
    }
}

pub struct World<'a> {
    case: &'a Case,
    requests: &'a [Request],
    next_request: usize,
    /// Users of a closed loop, by when they come.
    thinking: BinaryHeap<Reverse<u64>>,
    now_s: f64,
    epoch: Instant,
    servers: Vec<Server<Job>>,
    pools: Vec<Pool>,
    events: VecDeque<(f64, Change)>,
    errors: Option<(f64, bool)>,
    dials_fail: bool,
    outcome: Outcome,
    explain: bool,
}

#[derive(Clone, Copy, Debug)]
enum Change {
    Speed(f64),
    Rival(usize),
    Knee(f64),
    Errors(Option<(f64, bool)>),
    Dials(bool),
}

impl<'a> World<'a> {
    pub fn new(case: &'a Case, requests: &'a [Request], mover: impl Fn() -> Mover, explain: bool) -> Self {
        let pool = |mover: Mover, own| {
            let base = case.min_size.min(10);
            let (limit, open, max_size) = match mover {
                // As many are open at the beginning as where a controller decides; those of a neighbour are all open.
                Mover::Fixed(size) => (size, if own { case.min_size.min(size) } else { size }, size),
                Mover::Law(_) => (base, case.min_size, case.max_size),
            };
            let (dials, queue) = (Vec::new(), VecDeque::new());
            let (use_time, sample) = (MeanTime::default(), Sample::default());
            Pool {
                mover,
                own,
                limit,
                max_size,
                open,
                dials,
                dial_jobs: 0,
                in_use: 0,
                queue,
                use_time,
                sample,
            }
        };
        let own = (0..case.instances).map(|_| pool(mover(), true));
        let neighbours = (0..case.neighbours).map(|_| pool(Mover::Fixed(case.neighbour_size), false));
        let mut world = Self {
            case,
            requests,
            next_request: 0,
            thinking: BinaryHeap::new(),
            now_s: 0.0,
            epoch: Instant::now(),
            servers: case.kinds.iter().map(|kind| Server::new(kind.curve.clone())).collect(),
            pools: own.chain(neighbours).collect(),
            events: changes(case),
            errors: None,
            dials_fail: false,
            outcome: Outcome { bins: vec![Bin::default(); 200], ..Outcome::default() },
            explain,
        };
        if let Some((users, _)) = case.users() {
            for user in 0..users.min(requests.len()) {
                world.think(user);
            }
        }
        world
    }

    pub fn play(mut self) -> Outcome {
        let mut next_tick_s = TICK_S;
        while self.now_s < self.case.seconds {
            let arrival_s = self.next_arrival_s();
            let end_s = self.servers.iter().map(Server::next_end).fold(f64::INFINITY, f64::min) + self.now_s;
            let dial_s =
                self.pools.iter().flat_map(|pool| pool.dials.iter().copied()).fold(f64::INFINITY, f64::min);
            let event_s = self.events.front().map_or(f64::INFINITY, |event| event.0);
            let next_s = arrival_s.min(end_s).min(dial_s).min(event_s).min(next_tick_s);
            let seconds = (next_s - self.now_s).max(0.0);
            self.servers.iter_mut().for_each(|server| server.advance(seconds));
            self.now_s = next_s;
            if next_s >= end_s {
                self.end();
            } else if next_s >= arrival_s {
                self.arrive();
            } else if next_s >= dial_s {
                self.dialed(dial_s);
            } else if next_s >= event_s {
                self.change();
            } else {
                (0..self.pools.len()).for_each(|pool| self.tick(pool));
                next_tick_s += TICK_S;
            }
        }
        self.outcome.final_limit = self.pools[0].limit;
        self.outcome
    }

    fn next_arrival_s(&self) -> f64 {
        if self.case.users().is_some() {
            return self.thinking.peek().map_or(f64::INFINITY, |Reverse(at)| f64::from_bits(*at));
        }
        self.requests.get(self.next_request).map_or(f64::INFINITY, |request| request.at_s)
    }

    /// A user thinks, and comes with a request after that.
    fn think(&mut self, request: usize) {
        if let Some(Request { think_s, .. }) = self.requests.get(request) {
            let at_s = self.now_s + f64::from(*think_s);
            self.thinking.push(Reverse(at_s.to_bits()));
        }
    }

    /// A request was answered: in a closed loop its user thinks again.
    fn answered(&mut self, request: u32) {
        if self.case.users().is_some() {
            self.think((request as usize * 7 + 13) % self.requests.len());
        }
    }

    fn bin(&mut self) -> &mut Bin {
        let bins = self.outcome.bins.len();
        let at = (self.now_s / self.case.seconds * bins as f64) as usize;
        &mut self.outcome.bins[at.min(bins - 1)]
    }

    fn arrive(&mut self) {
        if self.case.users().is_some() {
            self.thinking.pop();
        }
        let index = self.next_request;
        let Some(&Request { place, ramp, .. }) = self.requests.get(index) else { return };
        self.next_request += 1;
        self.outcome.offered += 1;
        self.bin().offered += 1;
        let at = ((place * self.pools.len() as f32) as usize).min(self.pools.len() - 1);
        let pool = &mut self.pools[at];
        let depth = pool.queue.len();
        let seen = Occupancy { queue_depth: depth, idle: pool.idle(), capacity: pool.open.min(pool.limit) };
        let caps = Caps { soft: self.case.soft_cap, hard: self.case.hard_cap };
        let budget = Duration::from_secs_f64(self.case.deadline_s);
        let (use_time, draw) = (pool.use_time.get(), f64::from(ramp));
        let claim = Claim { ahead: depth, budget, use_time, taken: 0.0, lower: 0.0, same: 1.0, draw };
        if admit(seen, caps, &claim).is_some() {
            pool.sample.refused += 1;
            self.outcome.refused += 1;
            self.answered(index as u32);
            return;
        }
        pool.sample.arrivals += 1;
        let waiter = Waiter { request: index as u32, came_s: self.now_s };
        if pool.idle() > 0 {
            self.start(at, waiter);
        } else {
            pool.queue.push_back(waiter);
        }
    }

    fn start(&mut self, at: usize, waiter: Waiter) {
        let Waiter { request, came_s } = waiter;
        let Request { kind, work, error, .. } = self.requests[request as usize];
        let pool = &mut self.pools[at];
        pool.in_use += 1;
        pool.sample.peak_in_use = pool.sample.peak_in_use.max(pool.in_use);
        let fails = self.errors.is_some_and(|(part, _)| f64::from(error) < part);
        let work = if fails { ERROR_WORK } else { f64::from(work) };
        let job = Job::Query { request, pool: at as u8, fails, began_s: self.now_s, came_s };
        self.servers[kind as usize].begin(work, job);
    }

    /// The next query, or dial, of the server whose end is due.
    fn end(&mut self) {
        let due = |a: &usize, b: &usize| self.servers[*a].next_end().total_cmp(&self.servers[*b].next_end());
        let server = (0..self.servers.len()).min_by(due).unwrap_or(0);
        match self.servers[server].end_next() {
            Some(Job::Dial { pool }) => {
                self.pools[pool as usize].dial_jobs -= 1;
                self.opened(pool as usize);
            }
            Some(Job::Query { request, pool: at, fails, began_s, came_s }) => {
                let (took_s, now_s) = (self.now_s - came_s, self.now_s);
                let pool = &mut self.pools[at as usize];
                pool.in_use -= 1;
                pool.sample.completions += 1;
                pool.sample.failures += u64::from(fails && self.errors.is_some_and(|(_, told)| told));
                // As the pool does: of short ones that nobody waits for, one in sixteen.
                let is_long = pool.use_time.get().is_none_or(|mean| mean >= Duration::from_millis(1));
                if is_long || !pool.queue.is_empty() || request % 16 == 0 {
                    pool.use_time.add(Duration::from_secs_f64(now_s - began_s));
                }
                if took_s <= self.case.deadline_s && !fails {
                    self.outcome.goodput += 1;
                    self.outcome.own_goodput += u64::from(pool.own);
                    self.bin().good += 1;
                }
                self.outcome.latencies_ms.push((took_s * 1e3) as f32);
                self.answered(request);
                self.hand_out(at as usize);
            }
            None => {}
        }
    }

    fn hand_out(&mut self, at: usize) {
        while self.pools[at].idle() > 0 {
            let Some(waiter) = self.pools[at].queue.pop_front() else { return };
            if self.now_s - waiter.came_s >= self.case.deadline_s {
                self.expired(at, &waiter);
            } else {
                self.start(at, waiter);
            }
        }
    }

    fn expired(&mut self, at: usize, waiter: &Waiter) {
        self.pools[at].sample.timeouts += 1;
        self.answered(waiter.request);
    }

    fn opened(&mut self, at: usize) {
        self.pools[at].open += 1;
        self.hand_out(at);
        self.dial(at);
    }

    /// Opens what the limit asks for.
    fn dial(&mut self, at: usize) {
        let due_s = self.now_s + self.case.dial_s;
        let pool = &mut self.pools[at];
        while pool.opening() < DIALS && pool.open + pool.opening() < pool.limit.min(pool.max_size) {
            pool.dials.push(due_s);
        }
    }

    fn dialed(&mut self, due_s: f64) {
        for at in 0..self.pools.len() {
            let pool = &mut self.pools[at];
            let Some(dial) = pool.dials.iter().position(|dial| *dial <= due_s) else { continue };
            if self.dials_fail {
                pool.dials[dial] = self.now_s + DIAL_AGAIN_S;
                pool.sample.dial_failures += 1;
            } else if self.case.dial_work_s > 0.0 {
                pool.dials.swap_remove(dial);
                pool.dial_jobs += 1;
                let work = self.case.dial_work_s / self.case.kinds[0].alone_s;
                self.servers[0].begin(work.min(5.0), Job::Dial { pool: at as u8 });
            } else {
                pool.dials.swap_remove(dial);
                self.opened(at);
            }
            return;
        }
    }

    fn change(&mut self) {
        let Some((_, change)) = self.events.pop_front() else { return };
        for (server, kind) in self.servers.iter_mut().zip(&self.case.kinds) {
            match change {
                Change::Speed(speed) => server.speed = speed,
                Change::Rival(queries) => server.rival = queries,
                Change::Knee(times) => server.curve = kind.curve.stretched(times),
                Change::Errors(_) | Change::Dials(_) => {}
            }
            server.changed();
        }
        match change {
            Change::Errors(errors) => self.errors = errors,
            Change::Dials(fail) => self.dials_fail = fail,
            _ => {}
        }
    }

    fn tick(&mut self, at: usize) {
        while let Some(first) = self.pools[at].queue.front()
            && self.now_s - first.came_s >= self.case.deadline_s
        {
            if let Some(waiter) = self.pools[at].queue.pop_front() {
                self.expired(at, &waiter);
            }
        }
        self.dial(at);
        if at == 0 {
            self.look();
        }
        let now = self.epoch + Duration::from_secs_f64(self.now_s);
        let (case, now_s) = (self.case, self.now_s);
        let pool = &mut self.pools[at];
        let Mover::Law(_) = pool.mover else {
            pool.sample = Sample::default();
            return;
        };
        let sample = take_sample(pool, case, now_s);
        let Mover::Law(law) = &mut pool.mover else { return };
        let decision = law.on_sample(now, &sample);
        let to = decision.limit.clamp(1, pool.max_size);
        if at == 0 && self.explain && to != pool.limit {
            let (from, queue_depth, in_use) = (pool.limit, pool.queue.len(), pool.in_use);
            self.outcome.moves.push(Move {
                at_s: now_s,
                from,
                to,
                queue_depth,
                in_use,
                reason: decision.reason,
            });
        }
        if to != pool.limit {
            pool.limit = to;
            self.hand_out(at);
            self.dial(at);
        }
    }

    fn look(&mut self) {
        let Pool { limit, in_use, .. } = self.pools[0];
        let depth = self.pools[0].queue.len();
        let bin = self.bin();
        bin.limit += limit as f64;
        bin.in_use += in_use as f64;
        bin.queue_depth += depth as f64;
        bin.ticks += 1;
    }
}

/// What the driver would tell the controller.
fn take_sample(pool: &mut Pool, case: &Case, now_s: f64) -> Sample {
    let mut sample = std::mem::take(&mut pool.sample);
    let patience_s = (case.deadline_s / 20.0).clamp(0.020, 1.0);
    let waited_s = pool.queue.front().map_or(0.0, |first| now_s - first.came_s);
    (sample.queue_depth, sample.impatient) = (pool.queue.len(), waited_s >= patience_s);
    sample.in_use = pool.in_use;
    sample.peak_in_use = sample.peak_in_use.max(pool.in_use);
    sample.idle = pool.idle();
    sample.reserve = pool.open - pool.in_use - sample.idle;
    (sample.opening, sample.limit) = (pool.opening(), pool.limit);
    (sample.min_limit, sample.base_limit) = (1, case.min_size.min(10));
    (sample.max_size, sample.hard_cap) = (case.max_size, case.hard_cap);
    (sample.use_time, sample.use_time_scatter) = (pool.use_time.get(), pool.use_time.scatter());
    sample.use_times = pool.use_time.take_recent();
    sample.share = case.share;
    // The most in use since the last sample; what is held now is the least of it.
    pool.sample.peak_in_use = pool.in_use;
    sample
}

fn changes(case: &Case) -> VecDeque<(f64, Change)> {
    let Some((at_s, event)) = case.event else { return VecDeque::new() };
    let changes = match event {
        Event::Speed { times } => vec![(at_s, Change::Speed(times))],
        Event::Stall { seconds } => vec![(at_s, Change::Speed(0.0)), (at_s + seconds, Change::Speed(1.0))],
        Event::Drift { times } => (1..=DRIFT_STEPS as u32)
            .map(|step| {
                let part = f64::from(step) / DRIFT_STEPS;
                (at_s + 0.3 * part * case.seconds, Change::Speed(times.powf(part)))
            })
            .collect(),
        Event::Rival { queries, seconds } => {
            vec![(at_s, Change::Rival(queries)), (at_s + seconds, Change::Rival(0))]
        }
        Event::Knee { times } => vec![(at_s, Change::Knee(times))],
        Event::Errors { part, seconds, told } => {
            vec![(at_s, Change::Errors(Some((part, told)))), (at_s + seconds, Change::Errors(None))]
        }
        Event::Dials { seconds } => vec![(at_s, Change::Dials(true)), (at_s + seconds, Change::Dials(false))],
    };
    changes.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::opponents::Choice;
    use crate::scenario::Scenario;
    use crate::sweep::prior::{Arrivals, Kind, Service};
    use crate::sweep::requests::requests;

    /// `knees-24` as a case: 1.5 times the capacity after a fifth of it, and a fifth again.
    fn knee(scenario: &Scenario, level: f64) -> Case {
        let curve = scenario.curve().unwrap();
        let kind = Kind { part: 1.0, alone_s: 1.0 / curve.at(1), curve };
        Case {
            kinds: vec![kind],
            service: Service::Exponential,
            arrivals: Arrivals::Steady,
            level,
            capacity_per_s: scenario.peak_per_s,
            event: None,
            min_size: scenario.min_size,
            max_size: scenario.max_size,
            soft_cap: scenario.soft_cap,
            hard_cap: scenario.hard_cap,
            deadline_s: scenario.deadline().as_secs_f64(),
            dial_s: scenario.dial_ms as f64 / 1e3,
            dial_work_s: 0.0,
            instances: 1,
            share: 1.0,
            neighbours: 0,
            seconds: 20.0,
            ..Case::draw(1)
        }
    }

    #[test]
    fn it_agrees_with_the_real_layer_gate_and_pool() {
        let mut scenario = Scenario::all().unwrap().into_iter().find(|it| it.name == "knees-24").unwrap();
        for level in [0.7, 1.5] {
            scenario.load =
                vec![crate::scenario::Phase { seconds: 20.0, load: level, to: None, swing_s: None }];
            let case = knee(&scenario, level);
            let requests = requests(&case, 0);
            for choice in [
                Choice::Static(12),
                Choice::Static(24),
                Choice::Static(50),
                Choice::QueueDepth,
                Choice::Adaptive,
            ] {
                let mover = || crate::sweep::mover(choice, &case);
                let simulated = World::new(&case, &requests, mover, false).play().goodput as f64;
                let real = crate::run::run(&scenario, 1, choice).unwrap().goodput as f64;
                let off = simulated / real - 1.0;
                assert!(off.abs() < 0.04, "{choice} at {level}: {simulated} and {real}");
            }
        }
    }
}
