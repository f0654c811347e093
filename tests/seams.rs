//! Each seam where user code runs, with code that panics once, that always panics, and that blocks: the cells of the table of
//! seams in docs/RELIABILITY.md that no other test covers.

mod support;

use std::error::Error;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use http::{Request, Response, StatusCode};
use support::eventually;
use support::line::{Pending, assert_ledgers_add_up, line_up, one_permit};
use tokio::runtime::{Builder as RuntimeBuilder, Runtime};
use tokio::time::{sleep, timeout};
use tower::{Layer, Service, service_fn};
use tower_adaptive_pool::{
    AcquireError, AdaptivePool, AdaptivePoolLayer, Backend, Builder, Class, Classify, ConfigError,
    ConnectionState, Controller, Decision, Event, Gate, Limiter, Observer, Permit, Place, Reason, Refusal,
    Respond, Sample, Shed, WeakGate,
};

const SOON: Duration = Duration::from_secs(10);

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seam {
    Dial,
    State,
    Check,
    Settle,
    Refusal,
    Validate,
    Controller,
    Attach,
    Observer,
    Classifier,
    Responder,
    DropOfConnection,
    DropOfError,
    Waker,
}

/// All user code there is, with a fault at one seam.
#[derive(Clone, Debug)]
struct Rig(Arc<Faulty>);

#[derive(Debug)]
struct Faulty {
    seam: Seam,
    /// How often it panics yet, and how often it has.
    panics: AtomicI64,
    panicked: AtomicUsize,
    /// Where it blocks, once.
    block: Mutex<Option<Block>>,
    /// So many of the next dials fail.
    failing: AtomicUsize,
    /// So many of the next checks and settlements fail.
    doubtful: AtomicUsize,
    /// Connections that the server counts.
    open: AtomicUsize,
    /// Events that an observer was told.
    told: AtomicUsize,
}

#[derive(Debug)]
struct Block {
    entered: Sender<()>,
    freed: Receiver<()>,
}

impl Rig {
    fn panics(seam: Seam, times: i64) -> Self {
        Self(Arc::new(Faulty {
            seam,
            panics: AtomicI64::new(times),
            panicked: AtomicUsize::new(0),
            block: Mutex::new(None),
            failing: AtomicUsize::new(0),
            doubtful: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            told: AtomicUsize::new(0),
        }))
    }

    fn fine(seam: Seam) -> Self {
        Self::panics(seam, 0)
    }

    /// From now on, once, it blocks until the sender is dropped. The receiver hears of it.
    fn blocks(&self) -> (Receiver<()>, Sender<()>) {
        let ((entered, blocked), (free, freed)) = (channel(), channel());
        *self.0.block.lock().unwrap() = Some(Block { entered, freed });
        (blocked, free)
    }

    fn be_fine(&self) {
        self.0.panics.store(0, SeqCst);
    }

    fn fail_dials(&self, many: usize) {
        self.0.failing.store(many, SeqCst);
    }

    fn fail_checks(&self, many: usize) {
        self.0.doubtful.store(many, SeqCst);
    }

    /// An error, if one is due.
    fn due(&self, errors: &AtomicUsize) -> Result<(), Refused> {
        match errors.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)) {
            Ok(_) => Err(Refused(self.clone())),
            Err(_) => Ok(()),
        }
    }

    fn panicked(&self) -> usize {
        self.0.panicked.load(SeqCst)
    }

    /// User code runs here.
    fn at(&self, seam: Seam) {
        if seam != self.0.seam {
            return;
        }
        let block = self.0.block.lock().unwrap().take();
        if let Some(Block { entered, freed }) = block {
            entered.send(()).unwrap();
            let _ = freed.recv();
        }
        if self.0.panics.fetch_sub(1, SeqCst) > 0 {
            self.0.panicked.fetch_add(1, SeqCst);
            panic!("{seam:?} panics, as asked");
        }
    }
}

#[derive(Debug)]
struct Conn {
    rig: Rig,
    state: Arc<Mutex<ConnectionState>>,
    _place: Place,
}

impl Conn {
    fn set(&self, state: ConnectionState) {
        *self.state.lock().unwrap() = state;
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        self.rig.0.open.fetch_sub(1, SeqCst);
        self.rig.at(Seam::DropOfConnection);
    }
}

#[derive(Debug)]
struct Refused(Rig);

impl Drop for Refused {
    fn drop(&mut self) {
        self.0.at(Seam::DropOfError);
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("refused, as asked")
    }
}

impl Error for Refused {}

impl Backend for Rig {
    type Connection = Conn;
    type Error = Refused;

    async fn dial(&self, place: Place) -> Result<Conn, Refused> {
        self.at(Seam::Dial);
        sleep(ms(1)).await;
        self.due(&self.0.failing)?;
        self.0.open.fetch_add(1, SeqCst);
        let state = Arc::new(Mutex::new(ConnectionState::Ready));
        Ok(Conn { rig: self.clone(), state, _place: place })
    }

    fn state(&self, connection: &Conn) -> ConnectionState {
        self.at(Seam::State);
        *connection.state.lock().unwrap()
    }

    fn refusal(&self, _: &Refused) -> Refusal {
        self.at(Seam::Refusal);
        Refusal::Away
    }

    async fn check(&self, connection: &mut Conn) -> Result<(), Refused> {
        self.at(Seam::Check);
        connection.set(ConnectionState::Ready);
        self.due(&self.0.doubtful)
    }

    async fn settle(&self, connection: &mut Conn) -> Result<(), Refused> {
        self.at(Seam::Settle);
        connection.set(ConnectionState::Ready);
        self.due(&self.0.doubtful)
    }

    fn validate(&self) -> Result<(), ConfigError> {
        self.at(Seam::Validate);
        Ok(())
    }
}

impl Controller for Rig {
    fn on_sample(&mut self, _: Instant, sample: &Sample) -> Decision {
        self.at(Seam::Controller);
        let limit = if sample.queue_depth > 0 { sample.max_size } else { sample.base_limit };
        Decision { limit, reason: Reason::Custom("somebody waits, or nobody does") }
    }
}

impl Observer for Rig {
    fn attach(&self, _: &WeakGate) {
        self.at(Seam::Attach);
    }

    fn on_event(&self, _: &Gate, _: &Event<'_>) {
        self.0.told.fetch_add(1, SeqCst);
        self.at(Seam::Observer);
    }
}

impl Wake for Faulty {
    fn wake(self: Arc<Self>) {
        Rig(self).at(Seam::Waker);
    }
}

fn builder(rig: &Rig) -> Builder<Rig> {
    let builder = AdaptivePool::builder(rig.clone()).observer(rig.clone());
    builder.controller(rig.clone()).acquire_timeout(ms(1_000)).seed(1)
}

/// What the callers of a load got.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    served: usize,
    panicked: usize,
    /// The codes of the errors.
    denied: Vec<&'static str>,
}

const CALLERS: usize = 8;
const USES: usize = 16;

/// Callers who bring connections into every state; now and then their dials fail twice, and a check or a settlement once.
async fn load(pool: &AdaptivePool<Rig>, rig: &Rig) -> Outcome {
    let outcome = Arc::new(Mutex::new(Outcome::default()));
    let callers = (0..CALLERS).map(|_| {
        let (pool, rig, told) = (pool.clone(), rig.clone(), outcome.clone());
        async move {
            for turn in 0..USES {
                let (pool, rig, outcome) = (pool.clone(), rig.clone(), told.clone());
                let using = tokio::spawn(async move {
                    let held = match pool.acquire().await {
                        Ok(held) => held,
                        Err(error) => return outcome.lock().unwrap().denied.push(error.code()),
                    };
                    sleep(ms(2)).await;
                    match turn % 8 {
                        1 => held.set(ConnectionState::Check),
                        7 => {
                            rig.fail_checks(1);
                            held.set(ConnectionState::Check);
                        }
                        3 => held.set(ConnectionState::Settle),
                        5 => {
                            rig.fail_dials(2);
                            held.set(ConnectionState::Dead);
                        }
                        _ => {}
                    }
                    drop(held);
                    outcome.lock().unwrap().served += 1;
                });
                let panicked = usize::from(using.await.is_err());
                told.lock().unwrap().panicked += panicked;
            }
        }
    });
    for caller in callers.map(tokio::spawn).collect::<Vec<_>>() {
        caller.await.unwrap();
    }
    std::mem::take(&mut *outcome.lock().unwrap())
}

/// No permit is lost, the ledger is exact, and a drain ends.
async fn assert_rests(pool: &AdaptivePool<Rig>, rig: &Rig, story: &str) {
    eventually(SOON, async || {
        let seen = pool.snapshot();
        (seen.in_use, seen.queue_depth, seen.opening, seen.closing) == (0, 0, 0, 0)
    })
    .await;
    let seen = pool.snapshot();
    assert!(seen.driven, "{story}: {seen:?}");
    assert_ledgers_add_up(&seen);
    assert_eq!(seen.size, rig.0.open.load(SeqCst), "{story}: {seen:?}");
    pool.drain(ms(1_000)).await.unwrap_or_else(|error| panic!("{story}: {error}"));
    assert_eq!((pool.snapshot().size, rig.0.open.load(SeqCst)), (0, 0), "{story}");
}

const SEAMS: [Seam; 9] = [
    Seam::Dial,
    Seam::State,
    Seam::Check,
    Seam::Settle,
    Seam::Refusal,
    Seam::Controller,
    Seam::Observer,
    Seam::DropOfConnection,
    Seam::DropOfError,
];

#[tokio::test(start_paused = true)]
async fn user_code_that_panics_loses_no_permit_ends_no_caller_and_leaves_the_ledger_exact() {
    for seam in SEAMS {
        for times in [1, i64::MAX] {
            let story = format!("{seam:?}, {times} times");
            let rig = Rig::panics(seam, times);
            let pool = builder(&rig).min_size(2).max_size(4).build().unwrap();
            let all = Outcome { served: CALLERS * USES, ..Outcome::default() };
            let outcome = load(&pool, &rig).await;
            let seen = pool.snapshot();
            match seam {
                Seam::Controller if times > 1 => {
                    let reason = Reason::ControllerPanicked;
                    assert_eq!(seen.last_decision, Decision { limit: seen.base_limit, reason });
                }
                Seam::Dial if times > 1 => {
                    let said = pool.ready().await.unwrap_err().to_string();
                    assert!(said.ends_with("the dial panicked or was aborted"), "{said}");
                }
                _ => {}
            }
            assert!(rig.panicked() > usize::from(times > 1), "{story}: {}", rig.panicked());
            let error = match seam {
                Seam::Dial if times > 1 => "pool_dial_",
                Seam::State if times > 1 => "pool_wait_timeout",
                _ => "",
            };
            if error.is_empty() {
                assert_eq!(outcome, all, "{story}");
            } else {
                assert_eq!((outcome.served, outcome.panicked), (0, 0), "{story}");
                assert!(outcome.denied.iter().all(|code| code.starts_with(error)), "{story}: {outcome:?}");
            }
            rig.be_fine();
            rig.fail_dials(0);
            pool.ready().await.unwrap_or_else(|error| panic!("{story}: {error}"));
            assert_eq!(load(&pool, &rig).await, all, "{story}: it serves");
            rig.fail_dials(0);
            assert_rests(&pool, &rig, &story).await;
        }
    }
}

async fn pool_of(rig: &Rig, size: usize) -> AdaptivePool<Rig> {
    let pool = builder(rig).fixed_size(size).build().unwrap();
    pool.ready().await.unwrap();
    pool
}

#[tokio::test(start_paused = true)]
async fn a_check_that_panics_costs_its_connection_and_not_its_caller() {
    let rig = Rig::panics(Seam::Check, 1);
    let pool = pool_of(&rig, 1).await;
    pool.acquire().await.unwrap().set(ConnectionState::Check);
    drop(pool.acquire().await.unwrap());
    let seen = pool.snapshot();
    assert_eq!((rig.panicked(), seen.in_use, seen.acquires.granted, seen.acquires.cancelled), (1, 0, 2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_dead_connection_whose_drop_panics_at_the_hand_out_loses_no_permit() {
    let rig = Rig::panics(Seam::DropOfConnection, i64::MAX);
    for size in [1, 2] {
        let pool = pool_of(&rig, size).await;
        let held = pool.acquire().await.unwrap();
        let state = held.state.clone();
        drop(held);
        *state.lock().unwrap() = ConnectionState::Dead;
        let before = rig.panicked();
        drop(pool.acquire().await.unwrap());
        assert_eq!(rig.panicked(), before + 1);
        assert_rests(&pool, &rig, "dead at the hand-out").await;
    }
}

/// A list of values drops the others when one of them panics, and aborts the program at the second.
#[tokio::test(start_paused = true)]
async fn connections_whose_drops_all_panic_do_not_abort_the_program() {
    let rig = Rig::panics(Seam::DropOfConnection, i64::MAX);
    let pool = pool_of(&rig, 4).await;
    pool.gate().set_size(1, 1).unwrap();
    assert_eq!((rig.panicked(), pool.snapshot().size), (3, 1));
    assert_rests(&pool, &rig, "drained").await;

    let pool = pool_of(&rig, 4).await;
    drop(pool);
    eventually(SOON, async || rig.panicked() == 8).await;
}

#[tokio::test(start_paused = true)]
async fn a_caller_and_the_drop_of_its_connection_may_both_panic() {
    let rig = Rig::panics(Seam::DropOfConnection, i64::MAX);
    let pool = pool_of(&rig, 1).await;
    let held = pool.acquire().await.unwrap();
    let caller = tokio::spawn(async move {
        held.set(ConnectionState::Dead);
        panic!("the caller's own fault");
    });
    assert!(caller.await.unwrap_err().is_panic());
    drop(pool.acquire().await.unwrap());
    assert_rests(&pool, &rig, "both").await;
}

#[tokio::test(start_paused = true)]
async fn an_error_whose_drop_panics_hides_no_connection_from_those_who_wait_for_it() {
    let rig = Rig::panics(Seam::DropOfError, i64::MAX);
    rig.fail_dials(2);
    let pool = builder(&rig).fixed_size(1).build().unwrap();
    let began = tokio::time::Instant::now();
    pool.ready().await.unwrap();
    assert!(began.elapsed() < ms(200), "{:?}", began.elapsed());
    assert_eq!(rig.panicked(), 2);
    assert_rests(&pool, &rig, "error").await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_check_or_settlement_whose_error_panics_when_it_is_dropped_loses_no_permit() {
    for state in [ConnectionState::Check, ConnectionState::Settle] {
        let rig = Rig::panics(Seam::DropOfError, i64::MAX);
        let pool = pool_of(&rig, 1).await;
        rig.fail_checks(1);
        pool.acquire().await.unwrap().set(state);
        let caller = tokio::spawn({
            let pool = pool.clone();
            async move { drop(pool.acquire().await.unwrap()) }
        });
        caller.await.unwrap();
        assert_eq!(rig.panicked(), 1);
        assert_rests(&pool, &rig, &format!("{state:?}")).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_whose_payload_panics_when_it_is_dropped_costs_nothing_either() {
    struct Payload(usize);
    impl Drop for Payload {
        fn drop(&mut self) {
            if let Some(next) = self.0.checked_sub(1) {
                panic_any(Payload(next));
            }
        }
    }
    struct Thrower;
    impl Observer for Thrower {
        fn on_event(&self, _: &Gate, _: &Event<'_>) {
            panic_any(Payload(2));
        }
    }
    let rig = Rig::fine(Seam::Observer);
    let builder = AdaptivePool::builder(rig.clone()).observer(Thrower).observer(rig.clone());
    let pool = builder.fixed_size(1).build().unwrap();
    pool.ready().await.unwrap();
    drop(pool.acquire().await.unwrap());
    assert_eq!(rig.0.told.load(SeqCst), 1, "it is told after the other one has panicked");
    assert_rests(&pool, &rig, "payload").await;
}

#[tokio::test(start_paused = true)]
async fn an_observer_that_panics_when_it_is_attached_is_told_events_all_the_same() {
    for times in [1, i64::MAX] {
        let rig = Rig::panics(Seam::Attach, times);
        let pool = pool_of(&rig, 1).await;
        assert_eq!(rig.panicked(), 1, "it is attached once");
        assert_eq!(rig.0.told.load(SeqCst), 1, "the dial");
        assert_rests(&pool, &rig, "attached").await;
    }
}

#[tokio::test(start_paused = true)]
async fn settings_whose_validation_panics_end_the_build_and_leave_nothing_behind() {
    let rig = Rig::panics(Seam::Validate, 2);
    for _ in 0..2 {
        let build = || builder(&rig).fixed_size(1).build();
        assert!(catch_unwind(AssertUnwindSafe(build)).is_err());
    }
    assert_eq!(Arc::strong_count(&rig.0), 1, "nothing was started");
    assert_rests(&pool_of(&rig, 1).await, &rig, "validated").await;
}

#[tokio::test(start_paused = true)]
async fn a_reader_of_watch_that_panics_costs_itself_alone() {
    let limiter = Limiter::builder().fixed_size(1).build().unwrap();
    let mut watch = limiter.gate().watch();
    let mut other = watch.clone();
    let reader = tokio::spawn(async move {
        while watch.changed().await {
            let seen = watch.get();
            assert_eq!(seen.in_use, 0, "as asked");
        }
    });
    let held = limiter.acquire().await.unwrap();
    assert!(reader.await.unwrap_err().is_panic());
    drop(held);
    while other.get().in_use > 0 || other.get().acquires.granted == 0 {
        assert!(other.changed().await);
    }
    assert!(limiter.gate().snapshot().driven);
}

impl Classify<()> for Rig {
    fn classify(&self, _: &Request<()>) -> Option<Class> {
        self.at(Seam::Classifier);
        None
    }
}

impl Respond<String> for Rig {
    fn respond(&self, _: &Shed) -> Response<String> {
        self.at(Seam::Responder);
        Response::builder().status(StatusCode::SERVICE_UNAVAILABLE).body(String::new()).unwrap()
    }

    fn empty(&self) -> String {
        String::new()
    }
}

/// Answers requests to a full limiter at once, as the rig makes it.
fn refusing(limiter: &Limiter, rig: &Rig) -> impl FnMut() -> StatusCode + Clone + Send + 'static + use<> {
    let layer = AdaptivePoolLayer::new(limiter.clone());
    let served = service_fn(async |_: Request<()>| Ok::<_, AcquireError>(Response::new(String::new())));
    let mut service = layer.with_classifier(rig.clone()).with_responder(rig.clone()).layer(served);
    move || service.call(Request::new(())).now_or_never().expect("at once").unwrap().status()
}

#[tokio::test(start_paused = true)]
async fn a_classifier_or_responder_that_panics_once_or_always_costs_an_answer_at_the_most() {
    for (seam, times, broken) in [
        (Seam::Classifier, 1, 0),
        (Seam::Classifier, i64::MAX, 0),
        (Seam::Responder, 1, 1),
        (Seam::Responder, i64::MAX, 4),
    ] {
        let (rig, limiter) = (Rig::panics(seam, times), one_permit(1, 1));
        let _held = limiter.try_acquire().unwrap();
        let _line = line_up(&limiter, 1);
        let mut ask = refusing(&limiter, &rig);
        let answers: Vec<_> = (0..4).map(|_| ask().as_u16()).collect();
        let expected: Vec<_> = (0..4).map(|turn| if turn < broken { 500 } else { 503 }).collect();
        assert_eq!(answers, expected, "{seam:?}, {times} times");
        let seen = limiter.gate().snapshot();
        assert_eq!((seen.admissions.arrivals, seen.admissions.shed), (4, 4), "{seam:?}, {times} times");
        assert_ledgers_add_up(&seen);
    }
}

/// Without a body there is no answer.
#[tokio::test(start_paused = true)]
async fn a_responder_whose_empty_body_panics_too_costs_its_request_and_its_refusal_is_counted() {
    #[derive(Clone)]
    struct Nothing;
    impl Respond<String> for Nothing {
        fn respond(&self, _: &Shed) -> Response<String> {
            panic!("as asked")
        }

        fn empty(&self) -> String {
            panic!("as asked")
        }
    }
    let limiter = one_permit(1, 1);
    let _held = limiter.try_acquire().unwrap();
    let _line = line_up(&limiter, 1);
    let served = service_fn(async |_: Request<()>| Ok::<_, AcquireError>(Response::new(String::new())));
    let mut service = AdaptivePoolLayer::new(limiter.clone()).with_responder(Nothing).layer(served);
    for shed in 1..=2 {
        assert!(catch_unwind(AssertUnwindSafe(|| drop(service.call(Request::new(()))))).is_err());
        let seen = limiter.gate().snapshot();
        assert_eq!((seen.admissions.arrivals, seen.admissions.shed), (shed, shed));
    }
}

type Waiting = Pending<Result<Permit, AcquireError>>;

/// An acquire that waits, to be woken as the rig does it. It is the runtime's where this is called.
fn wait(limiter: &Limiter, rig: &Rig) -> Waiting {
    let limiter = limiter.clone();
    let mut waiting: Waiting = Box::pin(async move { limiter.acquire().await });
    assert!(poll(&mut waiting, &rig.0.clone().into()).is_pending());
    waiting
}

fn poll(waiting: &mut Waiting, waker: &Waker) -> Poll<Result<Permit, AcquireError>> {
    waiting.as_mut().poll(&mut Context::from_waker(waker))
}

#[tokio::test(start_paused = true)]
async fn a_waker_that_panics_costs_neither_who_wakes_it_nor_who_waits_beside_it() {
    for times in [1, i64::MAX] {
        let rig = Rig::panics(Seam::Waker, times);
        let limiter = Limiter::builder().fixed_size(1).acquire_timeout(ms(200)).build().unwrap();
        // At the deadline.
        let held = limiter.acquire().await.unwrap();
        let mut rigged = [wait(&limiter, &rig), wait(&limiter, &rig)];
        let began = tokio::time::Instant::now();
        assert!(matches!(limiter.acquire().await, Err(AcquireError::Timeout(_))));
        assert_eq!(began.elapsed(), ms(200));
        for waiting in &mut rigged {
            assert!(matches!(poll(waiting, Waker::noop()), Poll::Ready(Err(AcquireError::Timeout(_)))));
        }
        // At a grant.
        let mut waiting = wait(&limiter, &rig);
        drop(held);
        let Poll::Ready(Ok(permit)) = poll(&mut waiting, Waker::noop()) else { panic!("it was granted") };
        drop(permit);
        // At a snapshot, and at the end of a drain.
        let waker = rig.0.clone().into();
        let (mut watch, mut cx) = (limiter.gate().watch(), Context::from_waker(&waker));
        let _ = watch.get();
        let mut changed = Box::pin(watch.changed());
        assert!(changed.as_mut().poll(&mut cx).is_pending());
        let held = limiter.acquire().await.unwrap();
        sleep(ms(50)).await;
        let mut drained = Box::pin(limiter.drain(ms(1_000)));
        assert!(drained.as_mut().poll(&mut cx).is_pending());
        drop(held);
        let seen = limiter.gate().snapshot();
        assert_eq!((seen.in_use, seen.queue_depth, seen.size, seen.driven), (0, 0, 0, true));
        assert_ledgers_add_up(&seen);
        assert_eq!(rig.panicked(), if times == 1 { 1 } else { 5 });
    }
}

/// Runs on a thread of its own, so that a hang is a failure.
#[track_caller]
fn ends<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, ended) = channel();
    thread::spawn(move || done.send(work()));
    ended.recv_timeout(3 * SOON).expect("it ends")
}

fn one_worker() -> Runtime {
    RuntimeBuilder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

#[test]
fn the_last_waker_of_a_task_may_look_at_the_limiter_when_it_is_dropped() {
    struct Looks(Gate);
    impl Wake for Looks {
        fn wake(self: Arc<Self>) {}
    }
    impl Drop for Looks {
        fn drop(&mut self) {
            assert_eq!(self.0.snapshot().in_use, 1);
        }
    }
    ends(|| {
        one_worker().block_on(async {
            let limiter = one_permit(9, 9);
            let _held = limiter.acquire().await.unwrap();
            let waker = Waker::from(Arc::new(Looks(limiter.gate().clone())));
            let mut waiting: Waiting = Box::pin(async move { limiter.acquire().await });
            assert!(poll(&mut waiting, &waker).is_pending());
            drop(waker); // the other one is in the queue
            drop(waiting);
        });
    });
}

/// Leads to the seam, in the runtime of the pool.
async fn lead_to(seam: Seam, pool: AdaptivePool<Rig>, rig: Rig) {
    let held = pool.acquire().await.unwrap();
    match seam {
        Seam::State | Seam::Controller => {}
        Seam::Check => held.set(ConnectionState::Check),
        Seam::Settle => held.set(ConnectionState::Settle),
        _ => held.set(ConnectionState::Dead),
    }
    rig.fail_dials(match seam {
        Seam::Refusal => 1,
        Seam::DropOfError => 2,
        _ => 0,
    });
    drop(held);
    if seam == Seam::Check {
        drop(pool.acquire().await.unwrap());
    }
}

/// In another runtime: what is free is had at once, and who waits in vain is answered at the deadline.
async fn assert_is_kept(pool: &AdaptivePool<Rig>, seam: Seam) {
    let mut held = Vec::new();
    let (waited, error) = loop {
        let began = Instant::now();
        match timeout(SOON, pool.acquire()).await.expect("one deadline") {
            Ok(connection) => held.push(connection),
            Err(error) => break (began.elapsed(), error),
        }
        assert!(began.elapsed() < ms(1_000), "{seam:?}: {:?}", began.elapsed());
    };
    assert!(!held.is_empty(), "{seam:?}: {error}");
    assert!(matches!(error, AcquireError::Timeout(_)), "{seam:?}: {error}");
    assert!((ms(200)..ms(1_500)).contains(&waited), "{seam:?}: {waited:?}");
}

/// The pool's runtime has one thread, so that all that runs in it stands still.
fn blocks(seam: Seam) {
    let (home, serving, rig) = (one_worker(), one_worker(), Rig::fine(seam));
    let builder = match seam {
        Seam::Controller => builder(&rig).min_size(2).base_limit(2).max_size(4),
        _ => builder(&rig).fixed_size(2),
    };
    let builder = builder.acquire_timeout(ms(200));
    let pool = home.block_on(async { builder.build().unwrap() });
    home.block_on(pool.ready()).unwrap();
    let (blocked, free) = rig.blocks();
    let leading = home.spawn(lead_to(seam, pool.clone(), rig.clone()));
    blocked.recv_timeout(SOON).unwrap_or_else(|_| panic!("{seam:?} is not reached"));
    serving.block_on(assert_is_kept(&pool, seam));
    assert_eq!(pool.snapshot().limit, 2, "{seam:?}: the controller, too, would have to run");
    drop(free);
    home.block_on(leading).unwrap();
    serving.block_on(async {
        pool.ready().await.unwrap();
        drop((pool.acquire().await.unwrap(), pool.acquire().await.unwrap()));
        assert_rests(&pool, &rig, &format!("{seam:?} blocks")).await;
    });
}

#[test]
fn user_code_that_blocks_delays_nobody_in_another_runtime_and_nothing_is_lost() {
    for blocked in SEAMS.map(|seam| thread::spawn(move || ends(move || blocks(seam)))) {
        blocked.join().unwrap();
    }
}

#[test]
fn a_build_waits_for_a_validation_or_an_attachment_that_blocks() {
    for seam in [Seam::Validate, Seam::Attach] {
        ends(move || {
            let (home, rig) = (one_worker(), Rig::fine(seam));
            let (blocked, free) = rig.blocks();
            let builder = builder(&rig).fixed_size(1);
            let building = home.spawn(async { builder.build().unwrap() });
            blocked.recv_timeout(SOON).unwrap();
            assert!(!building.is_finished());
            drop(free);
            home.block_on(async {
                let pool = building.await.unwrap();
                pool.ready().await.unwrap();
                assert_rests(&pool, &rig, &format!("{seam:?} blocks")).await;
            });
        });
    }
}

#[test]
fn a_classifier_or_responder_that_blocks_holds_up_its_own_request() {
    for seam in [Seam::Classifier, Seam::Responder] {
        ends(move || {
            let home = one_worker();
            let _inside = home.enter();
            let (rig, limiter) = (Rig::fine(seam), one_permit(1, 1));
            let _held = limiter.try_acquire().unwrap();
            let _line = line_up(&limiter, 1);
            let (blocked, free) = rig.blocks();
            let mut ask = refusing(&limiter, &rig);
            let first = thread::spawn({
                let mut ask = ask.clone();
                move || ask()
            });
            blocked.recv_timeout(SOON).unwrap();
            assert_eq!(ask(), StatusCode::SERVICE_UNAVAILABLE, "{seam:?}");
            assert!(!first.is_finished());
            drop(free);
            assert_eq!(first.join().unwrap(), StatusCode::SERVICE_UNAVAILABLE, "{seam:?}");
            let seen = limiter.gate().snapshot();
            assert_eq!((seen.admissions.arrivals, seen.admissions.shed), (2, 2), "{seam:?}");
        });
    }
}

#[test]
fn an_observer_that_blocks_holds_up_whom_the_event_is_about() {
    ends(|| {
        let (home, rig) = (one_worker(), Rig::fine(Seam::Observer));
        let _inside = home.enter();
        let limiter = Limiter::builder().fixed_size(1).observer(rig.clone()).build().unwrap();
        let _held = limiter.try_acquire().unwrap();
        let (blocked, free) = rig.blocks();
        let refused = |limiter: Limiter| matches!(limiter.try_acquire(), Err(AcquireError::Shed(_)));
        let first = thread::spawn({
            let limiter = limiter.clone();
            move || refused(limiter)
        });
        blocked.recv_timeout(SOON).unwrap();
        assert!(refused(limiter.clone()));
        assert!(!first.is_finished());
        drop(free);
        assert!(first.join().unwrap());
        assert_ledgers_add_up(&limiter.gate().snapshot());
    });
}

#[test]
fn a_waker_that_blocks_holds_up_who_wakes_it_and_nobody_in_another_runtime() {
    ends(|| {
        let (home, serving, rig) = (one_worker(), one_worker(), Rig::fine(Seam::Waker));
        let limiter = |permits, patience| {
            let builder = Limiter::builder().fixed_size(permits).acquire_timeout(patience);
            home.block_on(async { builder.build().unwrap() })
        };
        let wait_at_home = |limiter| {
            let _inside = home.enter();
            wait(limiter, &rig)
        };

        let limited = limiter(2, Duration::from_secs(3600));
        let (given, kept) = (limited.try_acquire().unwrap(), limited.try_acquire().unwrap());
        let _waiting = wait_at_home(&limited);
        let (blocked, free) = rig.blocks();
        let giving = thread::spawn(move || drop(given));
        blocked.recv_timeout(SOON).unwrap();
        drop(kept);
        let _next = limited.try_acquire().unwrap();
        assert!(!giving.is_finished(), "the drop of a guard waits for it");
        drop(free);
        giving.join().unwrap();

        let limited = limiter(1, ms(200));
        let _held = limited.try_acquire().unwrap();
        let (blocked, free) = rig.blocks();
        let _waiting = wait_at_home(&limited);
        blocked.recv_timeout(SOON).expect("at the deadline");
        serving.block_on(async {
            let began = Instant::now();
            let outcome = timeout(SOON, limited.acquire()).await.expect("one deadline");
            assert!(matches!(outcome, Err(AcquireError::Timeout(_))), "{outcome:?}");
            assert!((ms(200)..ms(1_500)).contains(&began.elapsed()), "{:?}", began.elapsed());
        });
        drop(free);
    });
}
