//! No acquire times out below the ceiling: who waits behind long uses gets another connection, unless growth was shown not to
//! pay, and then the error says so. On virtual time, with either law; and once through axum over a real server.

mod support;

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use support::sim::Sim;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep};
use tower_adaptive_pool::{AdaptivePool, ControllerChoice, Decision, PaidGrowth, QueueDepth, Reason, Sample};

const MAX_SIZE: usize = 50;

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// What became of those who came.
#[derive(Clone, Default)]
struct Tally {
    served: Arc<AtomicUsize>,
    failed: Arc<Mutex<Vec<String>>>,
    waits: Arc<Mutex<Vec<Duration>>>,
}

impl Tally {
    /// Takes a connection, uses it for so long, and gives it back.
    async fn use_for(self, pool: AdaptivePool<Sim>, time: Duration) {
        let came = Instant::now();
        match pool.acquire().await {
            Ok(connection) => {
                self.waits.lock().unwrap().push(came.elapsed());
                sleep(time).await;
                drop(connection);
                self.served.fetch_add(1, SeqCst);
            }
            Err(error) => self.failed.lock().unwrap().push(error.to_string()),
        }
    }

    fn p99(&self) -> Duration {
        let mut waits = self.waits.lock().unwrap().clone();
        waits.sort();
        waits[(waits.len() * 99).div_ceil(100) - 1]
    }

    #[track_caller]
    fn assert_served(&self, how_many: usize, what: &str) {
        let failed = self.failed.lock().unwrap();
        assert!(failed.is_empty(), "{what}: {} failed, such as {}", failed.len(), failed[0]);
        assert_eq!(self.served.load(SeqCst), how_many, "{what}");
    }
}

/// Either law over ten connections that were in use before, of four milliseconds each, all open or to be dialed.
async fn pools() -> Vec<(String, AdaptivePool<Sim>)> {
    let mut pools = Vec::new();
    for min_size in [10, MAX_SIZE] {
        let laws: [(&str, ControllerChoice); 2] =
            [("paid growth", PaidGrowth::default().into()), ("queue depth", QueueDepth::default().into())];
        for (name, law) in laws {
            let builder = AdaptivePool::builder(Sim::default()).min_size(min_size).max_size(MAX_SIZE).seed(1);
            let pool = builder.controller(law).build().unwrap();
            pool.ready().await.unwrap();
            let warm = Tally::default();
            for _ in 0..200 {
                warm.clone().use_for(pool.clone(), ms(4)).await;
            }
            assert_eq!(pool.snapshot().limit, 10);
            pools.push((format!("{name}, {min_size} open"), pool));
        }
    }
    pools
}

/// So many come at once, each for so long.
fn crowd(all: &mut JoinSet<()>, tally: &Tally, pool: &AdaptivePool<Sim>, users: usize, time: Duration) {
    for _ in 0..users {
        all.spawn(tally.clone().use_for(pool.clone(), time));
    }
}

/// One comes each `pause`, for so long.
async fn stream(tally: &Tally, pool: &AdaptivePool<Sim>, pause: Duration, comers: usize, time: Duration) {
    let (mut ticks, mut all) = (interval(pause), JoinSet::new());
    for _ in 0..comers {
        ticks.tick().await;
        all.spawn(tally.clone().use_for(pool.clone(), time));
    }
    all.join_all().await;
}

#[tokio::test(start_paused = true)]
async fn no_acquire_times_out_below_the_ceiling_behind_ten_long_holders() {
    for (comers, pause) in [(160, ms(50)), (1_600, ms(5))] {
        for (name, pool) in pools().await {
            let (holders, fast, mut all) = (Tally::default(), Tally::default(), JoinSet::new());
            crowd(&mut all, &holders, &pool, 10, ms(8_000));
            sleep(ms(20)).await;
            stream(&fast, &pool, pause, comers, ms(4)).await;
            fast.assert_served(comers, &name);
            assert!(fast.p99() <= ms(200), "{name}: {:?}", fast.p99());
            all.join_all().await;
            holders.assert_served(10, &name);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn no_acquire_times_out_below_the_ceiling_when_a_few_more_come_at_once_than_may_be_used() {
    for users in [11, 13, 30, 50] {
        for (name, pool) in pools().await {
            let (tally, mut all) = (Tally::default(), JoinSet::new());
            crowd(&mut all, &tally, &pool, users, ms(3_000));
            all.join_all().await;
            tally.assert_served(users, &format!("{name}, {users} users"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn no_acquire_times_out_below_the_ceiling_with_three_waiters_for_ever() {
    for (name, pool) in pools().await {
        let (tally, mut all) = (Tally::default(), JoinSet::new());
        for _ in 0..13 {
            let (tally, pool) = (tally.clone(), pool.clone());
            all.spawn(async move {
                for _ in 0..20 {
                    tally.clone().use_for(pool.clone(), ms(3_000)).await;
                }
            });
        }
        all.join_all().await;
        tally.assert_served(260, &name);
        assert!(tally.p99() <= ms(500), "{name}: {:?}", tally.p99());
    }
}

#[tokio::test(start_paused = true)]
async fn no_acquire_times_out_below_the_ceiling_when_one_a_second_stays_for_long() {
    for (name, pool) in pools().await {
        let tally = Tally::default();
        stream(&tally, &pool, ms(1_000), 60, ms(30_000)).await;
        tally.assert_served(60, &name);
    }
}

#[tokio::test(start_paused = true)]
async fn no_acquire_times_out_below_the_ceiling_when_long_holders_leave_too_little_to_fast_traffic() {
    for (name, pool) in pools().await {
        let (holders, fast, mut all) = (Tally::default(), Tally::default(), JoinSet::new());
        // An overload of fast ones first: what ten connections can do is known.
        let mut ticks = interval(ms(10));
        for _ in 0..100 {
            ticks.tick().await;
            crowd(&mut all, &fast, &pool, 20, ms(4));
        }
        for _ in 0..9 {
            let (holders, pool) = (holders.clone(), pool.clone());
            all.spawn(async move {
                for _ in 0..5 {
                    holders.clone().use_for(pool.clone(), ms(2_900)).await;
                }
            });
        }
        sleep(ms(20)).await;
        // Twice what a single connection can do.
        stream(&fast, &pool, ms(2), 5_000, ms(4)).await;
        all.join_all().await;
        fast.assert_served(7_000, &name);
        holders.assert_served(45, &name);
    }
}

#[tokio::test(start_paused = true)]
async fn ten_holders_of_2_9_s_cost_eight_clients_of_2_ms_queries_next_to_nothing() {
    for (name, pool) in pools().await {
        let (holders, fast, mut all) = (Tally::default(), Tally::default(), JoinSet::new());
        for _ in 0..10 {
            let (holders, pool) = (holders.clone(), pool.clone());
            all.spawn(async move {
                for _ in 0..4 {
                    holders.clone().use_for(pool.clone(), ms(2_900)).await;
                }
            });
        }
        for _ in 0..8 {
            let (fast, pool) = (fast.clone(), pool.clone());
            all.spawn(async move {
                let began = Instant::now();
                while began.elapsed() < ms(11_000) {
                    fast.clone().use_for(pool.clone(), ms(2)).await;
                }
            });
        }
        all.join_all().await;
        holders.assert_served(40, &name);
        fast.assert_served(fast.served.load(SeqCst), &name);
        assert!(fast.p99() <= ms(50), "{name}: {:?}", fast.p99());
    }
}

#[tokio::test(start_paused = true)]
async fn who_times_out_below_the_ceiling_is_told_why_nothing_grew() {
    let frozen = |_: std::time::Instant, sample: &Sample| Decision {
        limit: sample.limit,
        reason: Reason::NotPaying { queue_depth: sample.queue_depth, elasticity: 0.02, error: 0.03 },
    };
    let builder = AdaptivePool::builder(Sim::default()).controller(Law(frozen)).acquire_timeout(ms(500));
    let pool = builder.build().unwrap();
    pool.ready().await.unwrap();
    let (tally, mut all) = (Tally::default(), JoinSet::new());
    crowd(&mut all, &tally, &pool, 11, ms(1_000));
    all.join_all().await;
    let failed = tally.failed.lock().unwrap();
    let [said] = &failed[..] else { panic!("one waited in vain: {failed:?}") };
    let expected =
        "10 of at most 50 in use; not growing: more connections brought no more (elasticity 0.02 ± 0.03); ";
    assert!(said.contains(expected), "{said}");
}

struct Law<F>(F);

impl<F> tower_adaptive_pool::Controller for Law<F>
where
    F: FnMut(std::time::Instant, &Sample) -> Decision + Send + 'static,
{
    fn on_sample(&mut self, now: std::time::Instant, sample: &Sample) -> Decision {
        self.0(now, sample)
    }
}

/// Ten slow reports and eight fast clients over ten connections of at most fifty: of a static ten, eight would run into their
/// deadline.
#[cfg(all(feature = "axum", feature = "postgres"))]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_a_504_below_the_ceiling_while_ten_reports_are_written() {
    use axum::{Router, body::Body, extract::Path, routing::get};
    use http::{Request, StatusCode};
    use support::postgres::{Options, PostgresServer};
    use tokio_postgres::NoTls;
    use tower::ServiceExt;
    use tower_adaptive_pool::axum::{Db, Error};
    use tower_adaptive_pool::{AdaptivePoolLayer, Postgres};

    async fn sleeps(db: Db, Path(seconds): Path<f64>) -> Result<(), Error> {
        db.acquire().await?.query("select pg_sleep($1)", &[&seconds]).await?;
        Ok(())
    }
    let server = tokio::task::spawn_blocking(|| PostgresServer::start(Options::default()));
    let server = server.await.unwrap().unwrap();
    let backend = Postgres::new(server.app_url().parse().unwrap(), NoTls);
    let pool = AdaptivePool::builder(backend).min_size(10).max_size(MAX_SIZE).build().unwrap();
    pool.ready().await.unwrap();
    let app = Router::new()
        .route("/{seconds}", get(sleeps))
        .layer(AdaptivePoolLayer::new(pool.clone()))
        .with_state(pool.clone());
    let ask = async |path: &'static str| {
        let request = Request::get(path).body(Body::empty()).unwrap();
        app.clone().oneshot(request).await.unwrap().status()
    };
    for _ in 0..100 {
        assert_eq!(ask("/0.002").await, StatusCode::OK);
    }
    let reports: JoinSet<_> =
        (0..10).map(|_| app.clone().oneshot(Request::get("/2.9").body(Body::empty()).unwrap())).collect();
    let began = Instant::now();
    let clients = futures_util::future::join_all((0..8).map(|_| async {
        let mut slowest = Duration::ZERO;
        while began.elapsed() < ms(2_500) {
            let asked = Instant::now();
            assert_eq!(ask("/0.002").await, StatusCode::OK);
            slowest = slowest.max(asked.elapsed());
        }
        slowest
    }));
    let slowest = clients.await.into_iter().max().unwrap();
    assert!(slowest < ms(1_000), "the first of them wait until the limit has grown: {slowest:?}");
    for report in reports.join_all().await {
        assert_eq!(report.unwrap().status(), StatusCode::OK);
    }
    assert_eq!(pool.snapshot().acquires.timed_out, 0);
}
