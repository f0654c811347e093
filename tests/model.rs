//! Random sequences of everything that can happen to a pool, on a paused clock, against a server that counts sockets.
//! After every step the invariants hold; at rest both sides agree.

mod support;

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use proptest::prelude::*;
use support::sim::Sim;
use tokio::time::{Instant, advance, timeout};
use tower_adaptive_pool::{
    AcquireError, Acquires, AdaptivePool, Class, Connection, ConnectionState, Deadline, QueueDepth, Snapshot,
    Terms, Verdict,
};

/// The widest bounds a sequence may set.
const MOST: usize = 8;
const HARD_CAP: usize = 5;
const ACQUIRE_TIMEOUT: Duration = Duration::from_millis(400);

#[derive(Clone, Debug)]
enum Op {
    Acquire(Class, Option<u64>),
    TryAcquire,
    /// Polls every wait, as an executor would those that were woken.
    PollAll,
    CancelWait(usize),
    Release(usize),
    /// A connection in use, or the most recently used idle one, changes its state.
    Set(usize, ConnectionState),
    /// So many milliseconds pass; the executor polls what was woken, or is busy with something else.
    Advance(u64, bool),
    Resize(usize, usize),
    /// `min_limit` and `base_limit`, of what `max_size` allows.
    SetLimits(usize, usize),
    /// Soft and hard cap of the queue.
    SetCaps(usize, usize),
    /// A request at the layer.
    Admit(Class, Option<u64>),
    /// The use of a connection fails.
    Fail(usize),
    /// Once begun it cannot be taken back.
    Drain(u64),
    ServerDown(bool),
    Linger(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let state = prop_oneof![
        Just(ConnectionState::Ready),
        Just(ConnectionState::Check),
        Just(ConnectionState::Settle),
        Just(ConnectionState::Dead)
    ];
    let class = || {
        use Class::{Background, Critical, Exempt, High, Low};
        prop::sample::select(vec![Exempt, Critical, High, High, Low, Background])
    };
    // Of a request of its own: passed already, shorter than the pool's, or longer.
    let deadline = || prop::option::weighted(0.3, prop_oneof![Just(0u64), 1..400u64, Just(10_000)]);
    prop_oneof![
        6 => (class(), deadline()).prop_map(|(class, deadline)| Op::Acquire(class, deadline)),
        2 => Just(Op::TryAcquire),
        4 => Just(Op::PollAll),
        2 => (0..MOST).prop_map(Op::CancelWait),
        5 => (0..MOST).prop_map(Op::Release),
        3 => (0..MOST, state).prop_map(|(at, state)| Op::Set(at, state)),
        5 => (prop_oneof![1u64..20, 50u64..700], any::<bool>()).prop_map(|(ms, polls)| Op::Advance(ms, polls)),
        1 => (1..=MOST, 0..MOST).prop_map(|(min, more)| Op::Resize(min, (min + more).min(MOST))),
        1 => (1..=MOST, 0..MOST).prop_map(|(min, more)| Op::SetLimits(min, min + more)),
        1 => (0..=MOST, 1..=MOST).prop_map(|(soft, hard)| Op::SetCaps(soft.min(hard), hard)),
        2 => (class(), deadline()).prop_map(|(class, deadline)| Op::Admit(class, deadline)),
        1 => (0..MOST).prop_map(Op::Fail),
        1 => any::<bool>().prop_map(Op::ServerDown),
        1 => (0u64..300).prop_map(Op::Linger),
    ]
}

/// Now and then a sequence ends in a drain, and goes on for a while.
fn ops() -> impl Strategy<Value = Vec<Op>> {
    let drain = prop::option::weighted(0.2, (0u64..500, prop::collection::vec(op(), 0..15)));
    (prop::collection::vec(op(), 1..60), drain).prop_map(|(mut ops, drain)| {
        if let Some((deadline, rest)) = drain {
            ops.push(Op::Drain(deadline));
            ops.extend(rest);
        }
        ops
    })
}

fn terms(class: Class, deadline: Option<u64>) -> Terms {
    Terms { class, deadline: deadline.map(Duration::from_millis).map(Deadline::within) }
}

/// An acquire, and when it must have ended.
struct Wait {
    acquire: Pin<Box<dyn Future<Output = Result<Connection<Sim>, AcquireError>>>>,
    class: Class,
    until: Instant,
    polled: Instant,
    /// When it was first polled after that, and went on: from a check to its place in the queue, say.
    late: Option<Instant>,
}

struct Model {
    sim: Sim,
    pool: AdaptivePool<Sim>,
    waits: Vec<Wait>,
    held: Vec<Connection<Sim>>,
    /// Every connection's state that was ever seen.
    remotes: Vec<Arc<Mutex<ConnectionState>>>,
    /// The ceiling: `max_size`, or what was open when it was lowered, never rising.
    ceiling: usize,
    /// Connections in use before the last step.
    in_use: usize,
    /// Since when nothing has kept the limit from growing but the law.
    calm_since: Instant,
    /// `hard_cap`, or how many waited when it was lowered, never rising.
    cap: usize,
    /// What the callers were told, each counted once.
    told: Told,
    draining: bool,
    drain: Option<Pin<Box<dyn Future<Output = ()>>>>,
}

/// The ledgers as the callers would keep them.
#[derive(Debug, Default, PartialEq, Eq)]
struct Told {
    started: u64,
    granted: u64,
    shed: u64,
    timed_out: u64,
    cancelled: u64,
    failed: u64,
    admitted: u64,
    refused: u64,
}

impl Told {
    fn outcome(&mut self, error: &AcquireError) {
        match error {
            AcquireError::Shed(_) => self.shed += 1,
            AcquireError::Timeout(_) => self.timed_out += 1,
            _ => self.failed += 1,
        }
    }

    fn of(seen: &Snapshot) -> Self {
        let (Acquires { started, granted, shed, timed_out, cancelled, failed, .. }, admissions) =
            (seen.acquires, seen.admissions);
        assert_eq!(admissions.arrivals, admissions.admitted + admissions.shed);
        let (admitted, refused) = (admissions.admitted, admissions.shed);
        Self { started, granted, shed, timed_out, cancelled, failed, admitted, refused }
    }
}

impl Model {
    fn new() -> Self {
        let sim = Sim::default();
        let law =
            QueueDepth { threshold: 1, shrink_after: Duration::from_millis(100), ..QueueDepth::default() };
        let pool = AdaptivePool::builder(sim.clone())
            .min_size(2)
            .max_size(4)
            .hard_cap(HARD_CAP)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .idle_timeout(Duration::from_millis(500))
            .controller(law)
            .seed(1)
            .build()
            .unwrap();
        Self {
            sim,
            pool,
            waits: Vec::new(),
            held: Vec::new(),
            remotes: Vec::new(),
            ceiling: 4,
            in_use: 0,
            calm_since: Instant::now(),
            cap: HARD_CAP,
            told: Told::default(),
            draining: false,
            drain: None,
        }
    }

    async fn apply(&mut self, op: &Op) {
        match *op {
            Op::Acquire(class, deadline) => {
                let (pool, terms) = (self.pool.clone(), terms(class, deadline));
                self.told.started += 1;
                let longest = ACQUIRE_TIMEOUT.min(Duration::from_millis(deadline.unwrap_or(u64::MAX)));
                let acquire = Box::pin(async move { pool.acquire_with(terms).await });
                let (polled, until) = (Instant::now(), Instant::now() + longest);
                self.waits.push(Wait { acquire, class, until, polled, late: None });
                self.poll(self.waits.len() - 1);
            }
            Op::TryAcquire => {
                let waiting = self.pool.snapshot().queue_depth;
                self.told.started += 1;
                match self.pool.try_acquire() {
                    Ok(connection) => {
                        assert_eq!(waiting, 0, "overtook a waiter");
                        let state = *connection.remote().lock().unwrap();
                        assert!(
                            matches!(state, ConnectionState::Ready | ConnectionState::Check),
                            "handed out {state:?}"
                        );
                        self.hold(connection);
                    }
                    Err(error) => self.told.outcome(&error),
                }
            }
            Op::PollAll => {
                (0..self.waits.len()).rev().for_each(|at| self.poll(at));
                let mut context = Context::from_waker(Waker::noop());
                self.drain.take_if(|drain| drain.as_mut().poll(&mut context).is_ready());
            }
            Op::CancelWait(at) if at < self.waits.len() => {
                self.told.cancelled += 1;
                drop(self.waits.remove(at));
            }
            Op::Release(at) if at < self.held.len() => drop(self.held.remove(at)),
            Op::Set(at, state) => {
                if let Some(remote) = self.remotes.get(at) {
                    *remote.lock().unwrap() = state;
                }
            }
            Op::Advance(millis, polls) => self.advance(millis, polls).await,
            Op::Resize(min_size, max_size) => {
                self.pool.gate().set_size(min_size, max_size).unwrap();
                self.ceiling = max_size.max(self.sim.open());
                self.calm_since = Instant::now();
            }
            Op::SetLimits(min_limit, base_limit) => {
                let before = self.pool.snapshot();
                let max_size = before.max_size;
                let set = self.pool.gate().set_limits(min_limit, base_limit);
                assert_eq!(set.is_ok(), base_limit <= max_size, "{set:?}");
                if set.is_err() {
                    assert_eq!(self.pool.snapshot(), before, "nothing has changed");
                }
                self.calm_since = Instant::now();
            }
            Op::SetCaps(soft, hard) => {
                self.pool.gate().set_caps(soft, hard).unwrap();
                self.cap = hard.max(self.pool.snapshot().queue_depth);
            }
            Op::Admit(class, deadline) => self.admit(class, terms(class, deadline)),
            Op::Fail(at) if at < self.held.len() => self.held[at].failed(),
            Op::Drain(deadline) => {
                self.draining = true;
                let pool = self.pool.clone();
                let mut drain: Pin<Box<dyn Future<Output = ()>>> = Box::pin(async move {
                    let _ = pool.drain(Duration::from_millis(deadline)).await;
                });
                if drain.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
                    self.drain = Some(drain);
                }
            }
            Op::ServerDown(down) => {
                self.sim.go_down(down);
                self.calm_since = Instant::now();
            }
            Op::Linger(millis) => self.sim.lingers(Duration::from_millis(millis)),
            Op::CancelWait(_) | Op::Release(_) | Op::Fail(_) => {}
        }
    }

    /// At the driver's pace: in one leap all time-outs would come before it could do anything about them.
    async fn advance(&mut self, millis: u64, polls: bool) {
        let mut left = Duration::from_millis(millis);
        while !left.is_zero() {
            let step = left.min(Duration::from_millis(10));
            advance(step).await;
            left -= step;
            // Every task that is due runs before the next step.
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
            if polls {
                (0..self.waits.len()).rev().for_each(|at| self.poll(at));
            }
        }
    }

    fn poll(&mut self, at: usize) {
        let checks = self.sim.checks();
        let Wait { acquire, until, polled, late, .. } = &mut self.waits[at];
        let outcome = acquire.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        let now = Instant::now();
        // Fetched late, a grant that came in time may have none left for its check, which has begun just now.
        let is_late = now - std::mem::replace(polled, now) > Duration::from_millis(10);
        let fetched_late = is_late && self.sim.checks() > checks;
        if outcome.is_pending() && now > *until {
            let since = *late.get_or_insert(now);
            // A turn of the driver, and the timers' resolution.
            assert!(now <= since + Duration::from_millis(12), "it waits past its deadline");
        }
        if let Poll::Ready(outcome) = outcome {
            drop(self.waits.remove(at));
            match outcome {
                Ok(connection) => {
                    let state = *connection.remote().lock().unwrap();
                    assert_eq!(state, ConnectionState::Ready, "handed out in a state fit for nobody");
                    self.hold(connection);
                }
                Err(error) => {
                    if !fetched_late {
                        self.check_timeout(&error);
                    }
                    self.told.outcome(&error);
                }
            }
        }
    }

    /// No time-out below the ceiling: while dials succeed this law always has time to grow in an acquire's time.
    fn check_timeout(&self, error: &AcquireError) {
        let AcquireError::Timeout(timeout) = error else { return };
        let below = timeout.limit < timeout.max_size && timeout.in_use >= timeout.limit;
        assert_eq!(timeout.not_growing.is_some(), below, "{error}");
        let calm = !self.sim.is_down() && self.calm_since.elapsed() > 2 * ACQUIRE_TIMEOUT;
        assert!(!below || !calm || timeout.by_request || self.draining, "{error}");
    }

    fn admit(&mut self, class: Class, terms: Terms) {
        let seen = self.pool.snapshot();
        let expired = terms.deadline.is_some_and(|deadline| deadline.remaining().is_zero());
        match self.pool.gate().admit_with(terms) {
            Verdict::Admit => {
                // A full queue is open to a higher class than the lowest that waits.
                let room =
                    seen.queue_depth < seen.hard_cap || self.waits.iter().any(|wait| wait.class > class);
                let open = room && !self.draining && !expired;
                assert!(open || class == Class::Exempt);
                self.told.admitted += 1;
            }
            Verdict::Shed(shed) => {
                self.told.refused += 1;
                let at_cap = seen.queue_depth >= seen.hard_cap;
                let usable = seen.limit.min(seen.in_use + seen.idle + seen.reserve);
                let busy = seen.idle == 0 && seen.queue_depth >= usable;
                assert!(self.draining || at_cap || busy || expired, "starved: {shed:?} {seen:?}");
                assert_ne!(class, Class::Exempt);
                assert!((1..=120).contains(&shed.retry_after.as_secs()));
            }
        }
    }

    fn hold(&mut self, connection: Connection<Sim>) {
        assert!(self.held.iter().all(|held| held.serial != connection.serial), "one connection for two");
        self.told.granted += 1;
        self.remotes.push(connection.remote());
        self.held.push(connection);
    }

    fn check(&mut self, op: &Op) {
        // The limit may have risen, and fallen again.
        let time_has_passed = matches!(op, Op::Advance(..));
        if time_has_passed {
            self.in_use = usize::MAX;
        }
        let seen = self.pool.snapshot();
        let Snapshot { size, in_use, idle, reserve, opening, closing, queue_depth, max_size, limit, .. } =
            seen;
        // Ceiling, as we count and as the server counts.
        assert_eq!(size, in_use + idle + reserve + opening + closing);
        assert!(size <= self.ceiling, "{seen:?} over {}", self.ceiling);
        assert!(self.sim.open() <= self.ceiling, "{} sockets over {}", self.sim.open(), self.ceiling);
        self.ceiling = max_size.max(size.min(self.ceiling));
        // Queue bound.
        assert!(queue_depth <= self.cap, "{queue_depth} wait, over {}", self.cap);
        self.cap = self.cap.min(queue_depth.max(seen.hard_cap));
        // Limit: in_use is over it only by what was in use before, and what is free beyond it is nobody's.
        assert!(in_use <= limit.max(self.in_use), "{seen:?}, after {} in use", self.in_use);
        self.in_use = in_use;
        assert!(idle == 0 || in_use + idle <= limit, "{seen:?}");
        assert!(reserve == 0 || in_use + idle >= limit, "{seen:?}");
        // Nobody waits beside a free connection.
        assert!(idle == 0 || queue_depth == 0, "{seen:?}");
        // Permits are connections: held ones, granted ones not yet fetched, and those being checked or settled.
        assert!(self.held.len() <= in_use);
        assert!(limit >= seen.min_limit && limit <= max_size);
        assert!(seen.min_limit <= seen.base_limit && seen.base_limit <= max_size);
        // Ledger. A grant whose connection is still being checked counts as granted, and is taken back if that fails.
        let delivered_or_under_way = self.remotes.len() + self.waits.len();
        assert_eq!(
            (seen.acquires.granted + seen.acquires.waiting()) as usize,
            delivered_or_under_way,
            "{seen:?}"
        );
    }

    /// Everything is given up; then all counts are what they should be.
    async fn rest(mut self) {
        self.sim.go_down(false);
        self.sim.lingers(Duration::ZERO);
        self.told.cancelled += self.waits.len() as u64;
        self.waits.clear();
        self.held.clear();
        let drained = timeout(Duration::from_secs(60), self.pool.drain(Duration::from_secs(30))).await;
        drained.expect("drain ends").expect("all connections were given back");
        let seen = self.pool.snapshot();
        assert_eq!(
            (seen.size, seen.in_use, seen.idle, seen.opening, seen.queue_depth),
            (0, 0, 0, 0, 0),
            "{seen:?}"
        );
        assert_eq!(self.sim.open(), 0);
        assert_eq!(Told::of(&seen), self.told, "both ledgers, at rest");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn every_invariant_holds_after_every_step(ops in ops()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut model = Model::new();
            for op in &ops {
                model.apply(op).await;
                model.check(op);
            }
            model.rest().await;
        });
    }
}
