//! What it costs to get a connection that is there, to share too few of them, and to stop waiting.
//!
//! The connections of the peers do nothing, like ours: what is measured is the pool. Each peer is set to its fastest
//! (no checks, no time-outs where they can be left out); ours always has its deadline.

mod support;

#[path = "../tests/support/postgres.rs"]
#[allow(dead_code, clippy::pedantic)] // made for the tests, which use all of it and lint it
mod postgres;

use std::convert::Infallible;
use std::future::{Future, ready};
use std::hint::black_box;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode};
use deadpool::managed::{Manager, Metrics, RecycleResult};
use support::OneTask;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, yield_now};
use tokio::time::timeout;
use tokio_postgres::NoTls;
use tower_adaptive_pool::{AdaptivePool, Backend, ConnectionState, Deadline, Limiter, Place, Postgres};

/// Connections of the pools that are never exhausted.
const SIZE: usize = 10;
/// Tasks that share a pool.
const TASKS: u64 = 8;
const WAITERS: usize = 100_000;
/// A deadline that never comes.
const NEVER: Duration = Duration::from_secs(3600);

fn main() {
    let mut criterion = support::criterion();
    acquire_release(&mut criterion);
    contended(&mut criterion);
    waiters(&mut criterion);
    criterion.final_summary();
}

/// What is compared: acquire, hold for as long as `meanwhile` takes, release.
trait Pool: Clone + Send + Sync + 'static {
    fn hold(&self, meanwhile: impl Future<Output = ()> + Send) -> impl Future<Output = ()> + Send;
}

impl<B: Backend<Connection: Sync>> Pool for AdaptivePool<B> {
    async fn hold(&self, meanwhile: impl Future<Output = ()> + Send) {
        let connection = self.acquire().await.expect("a connection");
        meanwhile.await;
        drop(black_box(connection));
    }
}

impl<M: Manager<Type: Sync, Error: Send> + 'static> Pool for deadpool::managed::Pool<M> {
    async fn hold(&self, meanwhile: impl Future<Output = ()> + Send) {
        let Ok(connection) = self.get().await else { panic!("no connection") };
        meanwhile.await;
        drop(black_box(connection));
    }
}

impl Pool for bb8::Pool<Noop> {
    async fn hold(&self, meanwhile: impl Future<Output = ()> + Send) {
        let connection = self.get().await.expect("a connection");
        meanwhile.await;
        drop(black_box(connection));
    }
}

/// The least there can be: a count, no connections.
impl Pool for Arc<Semaphore> {
    async fn hold(&self, meanwhile: impl Future<Output = ()> + Send) {
        let permit = self.acquire().await.expect("a permit");
        meanwhile.await;
        drop(black_box(permit));
    }
}

fn acquire_release(criterion: &mut Criterion) {
    let task = OneTask::new();
    let runtime = task.runtime();
    let mut group = criterion.benchmark_group("acquire_release");
    one_task(&mut group, &task, "adaptive", &adaptive(runtime, Noop, SIZE));
    one_task(&mut group, &task, "deadpool", &deadpool(runtime, Noop, SIZE, None));
    one_task(&mut group, &task, "deadpool_timeout", &deadpool(runtime, Noop, SIZE, Some(NEVER)));
    one_task(&mut group, &task, "bb8", &bb8(runtime, SIZE));
    one_task(&mut group, &task, "tokio_semaphore", &Arc::new(Semaphore::new(SIZE)));

    let server =
        postgres::PostgresServer::start(postgres::Options::default()).expect("a PostgreSQL to measure");
    let config: tokio_postgres::Config = server.app_url().parse().expect("a URL");
    let ours = adaptive(runtime, Postgres::new(config.clone(), NoTls), SIZE);
    one_task(&mut group, &task, "postgres_adaptive", &ours);
    let theirs = deadpool(runtime, deadpool_postgres::Manager::new(config, NoTls), SIZE, None);
    one_task(&mut group, &task, "postgres_deadpool", &theirs);
}

/// One task, a pool that is idle.
fn one_task(group: &mut BenchmarkGroup<'_, WallTime>, task: &OneTask, name: &str, pool: &impl Pool) {
    group.bench_function(name, |bencher| bencher.to_async(task).iter(|| pool.hold(ready(()))));
}

fn contended(criterion: &mut Criterion) {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let mut group = criterion.benchmark_group("contended");
    for size in [10, 4] {
        many_tasks(&mut group, &runtime, &format!("adaptive/{size}"), &adaptive(&runtime, Noop, size));
        many_tasks(&mut group, &runtime, &format!("deadpool/{size}"), &deadpool(&runtime, Noop, size, None));
        let with_timeout = deadpool(&runtime, Noop, size, Some(NEVER));
        many_tasks(&mut group, &runtime, &format!("deadpool_timeout/{size}"), &with_timeout);
        many_tasks(&mut group, &runtime, &format!("bb8/{size}"), &bb8(&runtime, size));
    }
}

/// [`TASKS`] tasks, each of which lets the others run while it holds a connection. Per acquire, all together.
fn many_tasks(group: &mut BenchmarkGroup<'_, WallTime>, runtime: &Runtime, name: &str, pool: &impl Pool) {
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|iterations| {
            let run = async || {
                let mut tasks = JoinSet::new();
                let started = Instant::now();
                for _ in 0..TASKS {
                    let pool = pool.clone();
                    tasks.spawn(async move {
                        for _ in 0..iterations.div_ceil(TASKS) {
                            pool.hold(yield_now()).await;
                        }
                    });
                }
                tasks.join_all().await;
                started.elapsed()
            };
            runtime.block_on(run())
        });
    });
}

/// Waiters that give up, in random order.
fn waiters(criterion: &mut Criterion) {
    let task = OneTask::new();
    let _inside = task.runtime().enter();
    let builder = Limiter::builder().fixed_size(1).hard_cap(2 * WAITERS).acquire_timeout(NEVER);
    let limiter = builder.build().expect("a limiter");
    let _held = limiter.try_acquire().expect("the only permit");

    let mut group = criterion.benchmark_group("waiters");
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    group.warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_millis(500));
    cancel(&mut group, "adaptive", || limiter.acquire());
    assert_eq!(limiter.gate().snapshot().queue_depth, 0);

    expiring(&mut group);

    // The same future, timer included, over the queue that tokio has.
    let semaphore = Semaphore::new(0);
    cancel(&mut group, "tokio_semaphore_timeout", || timeout(NEVER, semaphore.acquire()));
}

fn one_permit() -> Limiter {
    let builder = Limiter::builder().fixed_size(1).hard_cap(2 * WAITERS).acquire_timeout(NEVER);
    builder.build().expect("a limiter")
}

/// One iteration is one of [`WAITERS`] cancels: whole queues are made and emptied, and only the emptying counts.
fn cancel<F: Future>(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, wait: impl Fn() -> F) {
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|iterations| {
            let queues = iterations.div_ceil(WAITERS as u64);
            let spent: Duration = (0..queues).map(|seed| cancel_all(&wait, seed)).sum();
            spent.mul_f64(iterations as f64 / (queues * WAITERS as u64) as f64)
        });
    });
}

/// One iteration is one of [`WAITERS`] whose deadlines come all the time, in another order than they have arrived in: a single
/// permit goes from one to the next of those who still wait.
fn expiring(group: &mut BenchmarkGroup<'_, WallTime>) {
    group.bench_function("adaptive_expiring", |bencher| {
        bencher.iter_custom(|iterations| {
            let queues = iterations.div_ceil(WAITERS as u64);
            let spent: Duration = (0..queues).map(serve_all).sum();
            spent.mul_f64(iterations as f64 / (queues * WAITERS as u64) as f64)
        });
    });
}

fn serve_all(seed: u64) -> Duration {
    let limiter = one_permit();
    let mut context = Context::from_waker(Waker::noop());
    let mut permit = Some(limiter.try_acquire().expect("the only permit"));
    // About half of them are late when their turn comes.
    let from = Instant::now() + Duration::from_secs(1);
    let mut deadlines: Vec<_> = (0..WAITERS as u32).map(|n| from + Duration::from_micros(1) * n).collect();
    shuffle(&mut deadlines, seed);
    let wait = |deadline| Box::pin(limiter.acquire_with(Deadline::at(deadline)));
    let mut waiting: Vec<_> = deadlines.into_iter().map(wait).collect();
    for waiter in &mut waiting {
        assert!(waiter.as_mut().poll(&mut context).is_pending());
    }
    while Instant::now() < from {}
    let (started, mut granted) = (Instant::now(), 0);
    for waiter in &mut waiting {
        drop(permit.take());
        if let Poll::Ready(Ok(grant)) = waiter.as_mut().poll(&mut context) {
            (permit, granted) = (Some(grant), granted + 1);
        }
    }
    let took = started.elapsed();
    assert!(granted > WAITERS / 100, "{granted} were granted");
    took
}

fn cancel_all<F: Future>(wait: impl Fn() -> F, seed: u64) -> Duration {
    let mut context = Context::from_waker(Waker::noop());
    let mut waiting: Vec<_> = (0..WAITERS).map(|_| Box::pin(Some(wait()))).collect();
    for waiter in &mut waiting {
        let future = waiter.as_mut().as_pin_mut().expect("it has just been made");
        assert!(future.poll(&mut context).is_pending());
    }
    shuffle(&mut waiting, seed);
    let started = Instant::now();
    for waiter in &mut waiting {
        waiter.set(None);
    }
    // The boxes are the bench's own, and freed when time is not taken any more.
    started.elapsed()
}

/// Fisher and Yates, with the draws of Knuth's linear congruential generator.
fn shuffle<T>(items: &mut [T], seed: u64) {
    let mut state = seed;
    for last in (1..items.len()).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        items.swap(last, (state >> 33) as usize % (last + 1));
    }
}

fn adaptive<B: Backend>(runtime: &Runtime, backend: B, size: usize) -> AdaptivePool<B> {
    let _inside = runtime.enter();
    let pool = AdaptivePool::builder(backend).fixed_size(size).build().expect("a pool");
    runtime.block_on(pool.ready()).expect("connections");
    pool
}

fn deadpool<M: Manager + 'static>(
    runtime: &Runtime,
    manager: M,
    size: usize,
    wait_timeout: Option<Duration>,
) -> deadpool::managed::Pool<M> {
    let builder = deadpool::managed::Pool::builder(manager).max_size(size).wait_timeout(wait_timeout);
    let pool = builder.runtime(deadpool::Runtime::Tokio1).build().expect("a pool");
    // It dials in its callers' futures only: have it open everything before it is measured.
    runtime.block_on(async {
        let mut open = Vec::new();
        for _ in 0..size {
            open.push(pool.get().await.ok().expect("a connection"));
        }
    });
    pool
}

fn bb8(runtime: &Runtime, size: usize) -> bb8::Pool<Noop> {
    let size = size as u32;
    let builder = bb8::Pool::builder().max_size(size).min_idle(size).test_on_check_out(false);
    runtime.block_on(builder.build(Noop)).expect("a pool")
}

/// Makes connections to nowhere.
struct Noop;

/// A connection to nowhere, with the place under the ceiling that ours must keep.
struct Nowhere {
    _place: Option<Place>,
}

impl Backend for Noop {
    type Connection = Nowhere;
    type Error = Infallible;

    async fn dial(&self, place: Place) -> Result<Nowhere, Infallible> {
        Ok(Nowhere { _place: Some(place) })
    }

    fn state(&self, _: &Nowhere) -> ConnectionState {
        ConnectionState::Ready
    }
}

impl Manager for Noop {
    type Type = Nowhere;
    type Error = Infallible;

    async fn create(&self) -> Result<Nowhere, Infallible> {
        Ok(Nowhere { _place: None })
    }

    async fn recycle(&self, _: &mut Nowhere, _: &Metrics) -> RecycleResult<Infallible> {
        Ok(())
    }
}

impl bb8::ManageConnection for Noop {
    type Connection = Nowhere;
    type Error = Infallible;

    async fn connect(&self) -> Result<Nowhere, Infallible> {
        Ok(Nowhere { _place: None })
    }

    async fn is_valid(&self, _: &mut Nowhere) -> Result<(), Infallible> {
        Ok(())
    }

    fn has_broken(&self, _: &mut Nowhere) -> bool {
        false
    }
}
