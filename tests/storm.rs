//! A retry storm on virtual time: the database is slow for a while, and everybody tries again. What is refused in time
//! costs only the surplus; what waits for nobody costs everything, long after the database is well again.

use std::collections::BinaryHeap;
use std::convert::Infallible;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Request, Response, StatusCode, header::RETRY_AFTER};
use tokio::runtime;
use tokio::sync::oneshot;
use tokio::task::yield_now;
use tokio::time::{Instant, advance, sleep, timeout};
use tower::{Layer, Service, service_fn, util::BoxCloneSyncService};
use tower_adaptive_pool::{AcquireError, AdaptivePoolLayer, Class, Deadline, Limiter, Terms};

/// What a client waits for each attempt, and a server that was told so for the connection.
const BUDGET: Duration = Duration::from_millis(250);
/// Attempts after the first.
const RETRIES: u32 = 3;
/// The database's cores, and the mean time a query has one.
const CORES: f64 = 20.0;
const WORK: f64 = 0.020;
const CAPACITY: f64 = CORES / WORK;
/// The loop's step, as fine as tokio's timers.
const STEP: Duration = Duration::from_millis(1);
/// Goodput is counted by hundredths of a second.
const BIN: Duration = Duration::from_millis(10);
const BINS_A_SECOND: usize = 100;

/// Draws that repeat: SplitMix64 (Steele, Lea and Flood, 2014).
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn exponential(&mut self) -> f64 {
        -(1.0 - self.uniform()).ln()
    }

    /// Erlang's distribution with mean 1 and a coefficient of variation of a half.
    fn work(&mut self) -> f64 {
        (0..4).map(|_| self.exponential()).sum::<f64>() / 4.0
    }
}

/// Processor sharing: all queries that run get the same part of the cores, and none gets more than one. All progress
/// alike, so what each would have attained since the beginning orders their ends.
struct Database {
    speed: f64,
    attained: f64,
    ends: BinaryHeap<End>,
}

struct End(f64, oneshot::Sender<()>);

impl Ord for End {
    /// The soonest is the greatest, as the heap wants it.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.0.total_cmp(&self.0)
    }
}

impl PartialOrd for End {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for End {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for End {}

impl Database {
    fn new() -> Self {
        Self { speed: 1.0, attained: 0.0, ends: BinaryHeap::new() }
    }

    /// Exact whatever the step: each end gives the others its part from then on.
    fn run_for(&mut self, step: Duration) {
        let mut left = step.as_secs_f64();
        while !self.ends.is_empty() {
            let rate = self.speed * (CORES / self.ends.len() as f64).min(1.0);
            let next = self.ends.peek().map_or(f64::INFINITY, |end| (end.0 - self.attained) / rate);
            if next > left {
                self.attained += rate * left;
                return;
            }
            left -= next.max(0.0);
            if let Some(End(attained, done)) = self.ends.pop() {
                self.attained = self.attained.max(attained);
                let _ = done.send(());
            }
        }
    }
}

type Handler = BoxCloneSyncService<Request<()>, Response<()>, Infallible>;

/// Everything the clients of one run share.
struct World {
    limiter: Limiter,
    service: Handler,
    database: Arc<Mutex<Database>>,
    /// The server is told how long its clients wait.
    deadlines: bool,
    began: Instant,
    /// Answers within the budget, by bins.
    good: Mutex<Vec<u64>>,
}

impl World {
    fn new(limiter: Limiter, deadlines: bool, random: Random) -> Arc<Self> {
        let database = Arc::new(Mutex::new(Database::new()));
        let service = AdaptivePoolLayer::new(limiter.clone()).layer(handler(&limiter, &database, random));
        let service = BoxCloneSyncService::new(service);
        Arc::new(Self {
            limiter,
            service,
            database,
            deadlines,
            began: Instant::now(),
            good: Mutex::default(),
        })
    }

    /// One attempt, answered in its own time, whether or not somebody still waits: as behind a proxy, which does not pass
    /// on that its client has left.
    fn send(&self, class: Class) -> impl Future<Output = Response<()>> + use<> {
        let deadline = self.deadlines.then(|| Deadline::within(BUDGET));
        let mut request = Request::new(());
        request.extensions_mut().insert(Terms { class, deadline });
        // The verdict falls here; services of functions are always ready.
        let answer = tokio::spawn(self.service.clone().call(request));
        async move { answer.await.unwrap().unwrap() }
    }

    fn answered_in_time(&self) {
        let bin = (self.began.elapsed().as_nanos() / BIN.as_nanos()) as usize;
        let mut good = self.good.lock().unwrap();
        let length = good.len().max(bin + 1);
        good.resize(length, 0);
        good[bin] += 1;
    }

    /// Lets time pass, while `rate` new clients a second come.
    async fn play(
        self: &Arc<Self>,
        seconds: u32,
        rate: f64,
        random: &mut Random,
        mut client: impl FnMut(&Arc<Self>, u64),
    ) {
        let begin = Instant::now();
        let (mut next, mut number) = (random.exponential() / rate, 0);
        while begin.elapsed() < Duration::from_secs(seconds.into()) {
            advance(STEP).await;
            self.database.lock().unwrap().run_for(STEP);
            while next <= begin.elapsed().as_secs_f64() {
                client(self, number);
                number += 1;
                next += random.exponential() / rate;
            }
            // To this runtime "when all is quiet".
            yield_now().await;
        }
    }
}

/// The service under the layer: a permit, and one query.
fn handler(
    limiter: &Limiter,
    database: &Arc<Mutex<Database>>,
    random: Random,
) -> impl Service<Request<()>, Response = Response<()>, Error = Infallible, Future: Send>
+ Clone
+ Send
+ Sync
+ 'static {
    let (limiter, database, random) = (limiter.clone(), database.clone(), Arc::new(Mutex::new(random)));
    service_fn(move |request: Request<()>| {
        let (limiter, database, random) = (limiter.clone(), database.clone(), random.clone());
        async move {
            let mut response = Response::new(());
            match limiter.acquire_for(request.extensions()).await {
                Ok(_permit) => {
                    let (done, ended) = oneshot::channel();
                    {
                        let mut database = database.lock().unwrap();
                        let work = WORK * random.lock().unwrap().work();
                        let end = End(database.attained + work, done);
                        database.ends.push(end);
                    }
                    ended.await.unwrap();
                }
                Err(AcquireError::Timeout(_)) => *response.status_mut() = StatusCode::GATEWAY_TIMEOUT,
                Err(_) => *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE,
            }
            Ok(response)
        }
    })
}

/// Tries until it has its answer, three times more at the most. One that `honours` Retry-After waits for so long when it
/// was told to; else it is back after up to 50 ms.
async fn client(world: Arc<World>, honours: bool, mut random: Random) {
    for _ in 0..=RETRIES {
        let mut pause = Duration::from_millis(50).mul_f64(random.uniform());
        if let Ok(response) = timeout(BUDGET, world.send(Class::High)).await {
            if response.status() == StatusCode::OK {
                return world.answered_in_time();
            }
            if let Some(seconds) = response.headers().get(RETRY_AFTER).filter(|_| honours) {
                pause = Duration::from_secs(seconds.to_str().unwrap().parse().unwrap());
            }
        }
        sleep(pause).await;
    }
}

/// On a runtime where everything that can run does so before the loop goes on.
fn on_virtual_time<T>(test: impl AsyncFnOnce() -> T) -> T {
    let runtime = runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .event_interval(1 << 20)
        .build()
        .unwrap();
    runtime.block_on(async { test().await })
}

/// A minute at 86 % of what the database can do; for 5 s after the first 15 it has a quarter of its speed.
struct Storm {
    good: Vec<u64>,
}

const LOAD: f64 = 0.86 * CAPACITY;
const RECOVERED: usize = 20 * BINS_A_SECOND;

impl Storm {
    fn blow(limiter: impl FnOnce() -> Limiter, deadlines: bool, seed: u64) -> Self {
        on_virtual_time(async || {
            let mut random = Random(seed);
            let world = World::new(limiter(), deadlines, Random(!seed));
            for (seconds, speed) in [(15, 1.0), (5, 0.25), (40, 1.0)] {
                world.database.lock().unwrap().speed = speed;
                let mut draws = random.clone();
                world
                    .play(seconds, LOAD, &mut random, |world, number| {
                        let own = Random(draws.uniform().to_bits());
                        tokio::spawn(client(world.clone(), number % 2 == 0, own));
                    })
                    .await;
            }
            let good = world.good.lock().unwrap().clone();
            Self { good }
        })
    }

    /// Answers a second over the second that begins with this bin.
    fn second_from(&self, bin: usize) -> f64 {
        self.good.iter().skip(bin).take(BINS_A_SECOND).sum::<u64>() as f64
    }

    /// From the database's recovery to the first second that had 95 % of the load.
    fn back_after(&self) -> Option<Duration> {
        let bins = (RECOVERED..self.good.len()).position(|bin| self.second_from(bin) >= 0.95 * LOAD)?;
        Some(BIN * bins as u32)
    }

    /// Of the load outside the slow seconds, and of the quarter of its capacity in them: what the database can do if no
    /// request comes back later.
    fn of_the_best(&self) -> f64 {
        self.good.iter().sum::<u64>() as f64 / (55.0 * LOAD + 5.0 * 0.25 * CAPACITY)
    }

    fn by_second(&self) -> Vec<f64> {
        (0..60).map(|second| self.second_from(second * BINS_A_SECOND)).collect()
    }
}

#[test]
fn a_retry_storm_is_over_when_the_database_is_well_again() {
    for seed in 1..=2 {
        let limiter = || Limiter::builder().min_size(10).max_size(50).seed(seed).build().unwrap();
        let storm = Storm::blow(limiter, true, seed);
        let (back, best) = (storm.back_after(), storm.of_the_best());
        println!("seed {seed}: {back:?}, {best:.3} of the best possible; {:?}", storm.by_second());
        assert!(back.is_some_and(|back| back <= Duration::from_secs(1)), "seed {seed}: back after {back:?}");
        assert!(best >= 0.96, "seed {seed}: {best:.3} of the best possible");
    }
}

#[test]
fn without_deadlines_a_count_cap_of_1600_holds_the_storm() {
    let limiter = || {
        let patient = Limiter::builder().acquire_timeout(Duration::from_secs(30));
        patient.fixed_size(20).soft_cap(1_600).hard_cap(1_600).build().unwrap()
    };
    let storm = Storm::blow(limiter, false, 1);
    let seconds = storm.by_second();
    assert!(seconds[5..15].iter().all(|&good| good > 0.9 * LOAD), "well before: {seconds:?}");
    assert!(seconds[20..60].iter().all(|&good| good < 0.05 * LOAD), "never well again: {seconds:?}");
}

/// Of those admitted, the part that had to be sent away all the same: by class from the highest, and at last (as that of the
/// exempt, of whom there are none) of all.
fn expired(load: f64, classes: &'static [Class]) -> Vec<(Class, f64)> {
    let ends = Arc::new(Mutex::new(Vec::new()));
    for seed in 1..=4 {
        play_overload(load, classes, seed, &ends);
    }
    let ends = ends.lock().unwrap();
    let mut all = classes.to_vec();
    all.dedup();
    let part = |class| {
        let count = |status| ends.iter().filter(|&&end| end == (class, status)).count() as f64;
        let (late, served) = (count(StatusCode::GATEWAY_TIMEOUT), count(StatusCode::OK));
        println!("load {load}, {class}: {late} expired, {served} served");
        // Of a class that is hardly admitted a rate of thousandths says nothing: those count with all.
        (class, if late + served < 1_000.0 { 0.0 } else { late / (late + served) })
    };
    let mut parts: Vec<_> = all.into_iter().map(part).collect();
    let count = |status| ends.iter().filter(|end| end.1 == status).count() as f64;
    let (late, served) = (count(StatusCode::GATEWAY_TIMEOUT), count(StatusCode::OK));
    parts.push((Class::Exempt, late / (late + served)));
    parts
}

type Ends = Arc<Mutex<Vec<(Class, StatusCode)>>>;

fn play_overload(load: f64, classes: &'static [Class], seed: u64, ends: &Ends) {
    on_virtual_time(async || {
        let limiter = Limiter::builder().min_size(10).max_size(50).seed(seed).build().unwrap();
        let world = World::new(limiter, true, Random(seed));
        world
            .play(12, load * CAPACITY, &mut Random(seed + 1), |world, number| {
                let class = classes[number as usize % classes.len()];
                let (answer, ends) = (world.send(class), ends.clone());
                // Steady: not while the load has just begun.
                let counted = world.began.elapsed() > Duration::from_secs(2);
                tokio::spawn(async move {
                    let status = answer.await.status();
                    if counted {
                        ends.lock().unwrap().push((class, status));
                    }
                });
            })
            .await;
        let seen = world.limiter.gate().snapshot();
        assert!(seen.admissions.shed > 0, "no overload: {seen:?}");
    });
}

#[test]
fn hardly_any_admitted_request_expires_in_steady_overload() {
    for load in [1.2, 1.8, 3.0] {
        let parts = expired(load, &[Class::High]);
        assert!(parts.iter().all(|(_, part)| *part <= 0.001), "load {load}: {parts:?}");
    }
}

#[test]
fn nor_does_any_class_when_they_are_several() {
    for load in [1.2, 1.8, 3.0] {
        let parts =
            expired(load, &[Class::Critical, Class::High, Class::High, Class::Low, Class::Background]);
        assert!(parts[0].1 <= 0.001, "load {load}: {parts:?}");
        // The class for which there is just some room left waits for what the others leave, and that scatters.
        assert!(parts.iter().all(|(_, part)| *part <= 0.005), "load {load}: {parts:?}");
        assert!(parts.last().is_some_and(|(_, of_all)| *of_all <= 0.001), "load {load}: {parts:?}");
    }
}
