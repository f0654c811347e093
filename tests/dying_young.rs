//! A server that lets a connection in and hangs up: an `idle_session_timeout`, a proxy without its database, a firewall. It is not
//! hammered, and served again as soon as it lets connections live. On virtual time.

mod support;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tower_adaptive_pool::{AdaptivePool, Backend, ConnectionState, Event, Gate, Observer, Place};

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Ends each connection so many milliseconds after it was opened, or at once where it does not say so; 0 lets them live.
#[derive(Clone, Default)]
struct HangsUp(Arc<Server>);

#[derive(Default)]
struct Server {
    after: AtomicUsize,
    /// Says so at once, and not only when it is asked.
    says_so: AtomicBool,
    dials: AtomicUsize,
}

struct Line {
    dead: Arc<AtomicBool>,
    _place: Arc<Place>,
}

impl HangsUp {
    fn after(millis: usize, says_so: bool) -> Self {
        let server = Self::default();
        server.0.after.store(millis, SeqCst);
        server.0.says_so.store(says_so, SeqCst);
        server
    }

    fn dials(&self) -> usize {
        self.0.dials.load(SeqCst)
    }

    async fn hang_up(self, dead: Arc<AtomicBool>, place: Weak<Place>) {
        sleep(ms(self.0.after.load(SeqCst) as u64)).await;
        dead.store(true, SeqCst);
        if let Some(place) = place.upgrade() {
            place.lost();
        }
    }
}

impl Backend for HangsUp {
    type Connection = Line;
    type Error = io::Error;

    async fn dial(&self, place: Place) -> Result<Line, io::Error> {
        self.0.dials.fetch_add(1, SeqCst);
        sleep(ms(3)).await;
        let (hangs_up, says_so) = (self.0.after.load(SeqCst) > 0, self.0.says_so.load(SeqCst));
        let (place, dead) = (Arc::new(place), Arc::new(AtomicBool::new(hangs_up && !says_so)));
        if hangs_up && says_so {
            tokio::spawn(self.clone().hang_up(dead.clone(), Arc::downgrade(&place)));
        }
        Ok(Line { dead, _place: place })
    }

    fn state(&self, line: &Line) -> ConnectionState {
        if line.dead.load(SeqCst) { ConnectionState::Dead } else { ConnectionState::Ready }
    }
}

/// How often it was told.
#[derive(Clone, Default)]
struct Told(Arc<AtomicUsize>);

impl Observer for Told {
    fn on_event(&self, _: &Gate, event: &Event<'_>) {
        self.0.fetch_add(usize::from(matches!(event, Event::DyingYoung { .. })), SeqCst);
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_hangs_up_is_not_hammered_at_rest_and_it_is_told_once() {
    for after in [1, 50, 1_000, 5_000] {
        let (server, told) = (HangsUp::after(after, true), Told::default());
        let builder = AdaptivePool::builder(server.clone()).min_size(10).max_size(50).observer(told.clone());
        let pool = builder.seed(1).build().unwrap();
        sleep(Duration::from_secs(60)).await;
        let dials = server.dials();
        assert!((10..=60 * 7).contains(&dials), "{dials} dials in a minute, hung up after {after} ms");
        assert_eq!(told.0.load(SeqCst), 1, "hung up after {after} ms");

        server.0.after.store(0, SeqCst);
        // Those who wait are dialed for as fast as ever.
        let began = Instant::now();
        let mut all = JoinSet::new();
        for _ in 0..40 {
            let pool = pool.clone();
            all.spawn(async move {
                let held = pool.acquire().await.unwrap();
                sleep(ms(400)).await;
                drop(held);
            });
        }
        all.join_all().await;
        assert!(began.elapsed() < ms(1_300), "{:?}", began.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_hangs_up_silently_is_not_hammered_by_those_who_wait() {
    let (server, told) = (HangsUp::after(1, false), Told::default());
    let builder = AdaptivePool::builder(server.clone()).min_size(1).max_size(10).observer(told.clone());
    let pool = builder.acquire_timeout(ms(500)).seed(1).build().unwrap();
    // Each is dead when somebody comes for it.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(20) {
        sleep(ms(20)).await;
        drop(pool.try_acquire());
    }
    assert!(server.dials() <= 20 * 7, "{} dials in 20 s", server.dials());
    assert_eq!(told.0.load(SeqCst), 1);

    server.0.after.store(0, SeqCst);
    let connection = pool.acquire().await.expect("it lets connections live again");
    assert!(began.elapsed() < Duration::from_secs(21));
    drop(connection);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_hangs_up_at_once_is_not_hammered_for_those_who_wait_and_serves_them_as_soon_as_it_can()
{
    let server = HangsUp::after(1, false);
    let builder = AdaptivePool::builder(server.clone()).min_size(1).max_size(10).acquire_timeout(ms(2_000));
    let pool = builder.seed(1).build().unwrap();
    let mut all = JoinSet::new();
    for _ in 0..20 {
        let pool = pool.clone();
        all.spawn(async move {
            for _ in 0..5 {
                drop(pool.acquire().await);
            }
        });
    }
    sleep(ms(9_000)).await;
    assert!(server.dials() <= 9 * 8, "{} dials in 9 s", server.dials());
    server.0.after.store(0, SeqCst);
    sleep(ms(500)).await;
    drop(pool.acquire().await.expect("it lets connections live again"));
    all.join_all().await;
}

#[tokio::test(start_paused = true)]
async fn one_connection_that_is_used_again_and_again_does_not_hide_the_deaths_of_the_others() {
    let (server, told) = (HangsUp::default(), Told::default());
    let builder = AdaptivePool::builder(server.clone()).min_size(10).max_size(50).observer(told.clone());
    let pool = builder.seed(1).build().unwrap();
    support::eventually(Duration::from_secs(1), async || pool.snapshot().idle > 0).await;
    drop(pool.acquire().await.unwrap()); // it lives
    server.0.says_so.store(true, SeqCst);
    server.0.after.store(100, SeqCst);
    pool.gate().set_size(20, 50).unwrap();
    let before = server.dials();
    for _ in 0..600 {
        drop(pool.try_acquire());
        sleep(ms(50)).await;
    }
    let dials = server.dials() - before;
    assert!(dials < 30 * 15, "{dials} dials in 30 s");
}

#[tokio::test(start_paused = true)]
async fn connections_that_are_used_before_they_end_are_replaced_at_once() {
    let (server, told) = (HangsUp::after(40, true), Told::default());
    let builder = AdaptivePool::builder(server.clone()).fixed_size(4).observer(told.clone());
    let pool = builder.acquire_timeout(ms(500)).seed(1).build().unwrap();
    let mut all = JoinSet::new();
    for _ in 0..8 {
        let pool = pool.clone();
        all.spawn(async move {
            for _ in 0..200 {
                let held = pool.acquire().await.expect("there is always another");
                sleep(ms(10)).await;
                drop(held);
            }
        });
    }
    all.join_all().await;
    assert_eq!(told.0.load(SeqCst), 0);
    assert!(server.dials() > 100, "{}", server.dials());
}

#[cfg(feature = "postgres")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgresql_with_a_short_idle_session_timeout_is_not_hammered() {
    use support::postgres::{Options, PostgresServer};
    use tower_adaptive_pool::Postgres;

    /// How often a connection was opened.
    #[derive(Clone, Default)]
    struct Dialed(Arc<AtomicUsize>);

    impl Observer for Dialed {
        fn on_event(&self, _: &Gate, event: &Event<'_>) {
            self.0.fetch_add(usize::from(matches!(event, Event::Dialed { .. })), SeqCst);
        }
    }

    let server = tokio::task::spawn_blocking(|| PostgresServer::start(Options::default()));
    let server = server.await.unwrap().unwrap();
    let mut config: tokio_postgres::Config = server.app_url().parse().unwrap();
    config.options("-c idle_session_timeout=20");
    let (dialed, told) = (Dialed::default(), Told::default());
    let builder =
        AdaptivePool::builder(Postgres::new(config, tokio_postgres::NoTls)).min_size(10).max_size(20);
    let pool = builder.observer(dialed.clone()).observer(told.clone()).build().unwrap();
    support::eventually(Duration::from_secs(10), async || told.0.load(SeqCst) == 1).await;
    let (before, began) = (dialed.0.load(SeqCst), Instant::now());
    sleep(Duration::from_secs(3)).await;
    let dials = dialed.0.load(SeqCst) - before;
    let most = began.elapsed().as_secs_f64() * 10.0;
    assert!((dials as f64) < most, "{dials} dials in {:?}", began.elapsed());
    // It may end between the hand-out and the query.
    support::eventually(Duration::from_secs(10), async || {
        pool.acquire().await.unwrap().query_one("select 7", &[]).await.is_ok()
    })
    .await;
}
