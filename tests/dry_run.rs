//! A dry run: nothing is resized and nobody refused, and it tells what would have been.

mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use support::eventually;
use support::sim::Sim;
use tokio::time::sleep;
use tower_adaptive_pool::{
    AdaptivePool, Builder, Event, Gate, Observer, QueueDepth, Reason, ShedReason, Verdict,
};

const SOON: Duration = Duration::from_secs(5);

/// Keeps what a dry run says it would have done.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<String>>>);

impl Observer for Told {
    fn on_event(&self, _: &Gate, event: &Event<'_>) {
        let said = match event {
            Event::WouldShed { shed, .. } => format!("would shed: {}", shed.reason.code()),
            Event::WouldChangeLimit { from, to, reason, .. } => {
                format!("would resize {from} to {to}: {}", reason.code())
            }
            Event::LimitChanged { .. } | Event::Shed { .. } => format!("did: {event:?}"),
            _ => return,
        };
        self.0.lock().unwrap().push(said);
    }
}

fn builder(sim: &Sim) -> Builder<Sim> {
    AdaptivePool::builder(sim.clone())
        .min_size(4)
        .max_size(20)
        .soft_cap(5)
        .hard_cap(10)
        .seed(1)
        .acquire_timeout(Duration::from_secs(60))
        .dry_run(true)
}

/// So many holders for so long each, one after the other on each connection.
fn crowd(pool: &AdaptivePool<Sim>, users: usize) {
    for _ in 0..users {
        let pool = pool.clone();
        tokio::spawn(async move {
            let connection = pool.acquire().await.unwrap();
            sleep(Duration::from_millis(100)).await;
            drop(connection);
        });
    }
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_resizes_nothing_refuses_nobody_and_tells_what_it_would_have_done() {
    let (sim, told) = (Sim::default(), Told::default());
    let pool = builder(&sim).observer(told.clone()).build().unwrap();
    pool.ready().await.unwrap();
    crowd(&pool, 60);
    eventually(SOON, async || pool.snapshot().queue_depth > 10).await;
    for _ in 0..20 {
        assert_eq!(pool.gate().admit(), Verdict::Admit);
    }
    eventually(SOON, async || pool.snapshot().acquires.granted == 60).await;
    eventually(SOON, async || pool.snapshot().in_use == 0).await;
    crowd(&pool, 1);
    eventually(SOON, async || pool.snapshot().acquires.granted == 61).await;

    let seen = pool.snapshot();
    let would = seen.dry_run.expect("this is a dry run");
    assert_eq!((seen.limit, seen.size, sim.peak()), (4, 4, 4), "nothing was resized");
    assert_eq!((seen.acquires.shed, seen.admissions.shed, seen.admissions.admitted), (0, 0, 20));
    assert_eq!((would.would_admit, would.would_shed), (0, 20));
    assert!(would.would_grow > 0 && would.would_stay > 0, "{would:?}");
    let told = told.0.lock().unwrap();
    assert!(told.iter().any(|said| said == "would shed: hard_cap"), "{told:?}");
    assert!(
        told.iter().any(|said| said.starts_with("would resize 4 to ") && said.ends_with("follow_demand")),
        "{told:?}"
    );
    assert!(!told.iter().any(|said| said.starts_with("did")), "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn in_a_dry_run_evidence_from_resizing_is_missing_and_the_reason_says_so() {
    let sim = Sim::default();
    let pool = builder(&sim).build().unwrap();
    pool.ready().await.unwrap();
    crowd(&pool, 200);
    eventually(SOON, async || pool.snapshot().dry_run.unwrap().would_grow > 0).await;
    let mut watch = pool.gate().watch();
    while pool.snapshot().queue_depth > 0 {
        assert!(watch.changed().await);
        let reason = watch.get().last_decision.reason;
        assert!(!matches!(reason, Reason::GrowthPays { .. } | Reason::TakenBack { .. }), "{reason:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_tells_which_way_any_law_would_go_downwards_too() {
    let sim = Sim::default();
    let law = QueueDepth { shrink_after: Duration::from_millis(50), ..QueueDepth::default() };
    let pool = builder(&sim).controller(law).build().unwrap();
    pool.ready().await.unwrap();
    let held = pool.acquire().await.unwrap();
    eventually(SOON, async || pool.snapshot().dry_run.unwrap().would_shrink > 0).await;
    assert!(matches!(pool.snapshot().last_decision.reason, Reason::Drained { peak_in_use: 1 }));
    assert_eq!((pool.snapshot().limit, sim.open()), (4, 4));
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn caps_changed_in_a_dry_run_refuse_nobody_either() {
    let sim = Sim::default();
    let pool = builder(&sim).build().unwrap();
    pool.ready().await.unwrap();
    pool.gate().set_caps(1, 2).unwrap();
    crowd(&pool, 30);
    eventually(SOON, async || pool.snapshot().acquires.granted == 30).await;
    assert_eq!(pool.snapshot().acquires.shed, 0);
}

#[tokio::test(start_paused = true)]
async fn a_closed_pool_is_closed_in_a_dry_run_too() {
    let sim = Sim::default();
    let pool = builder(&sim).build().unwrap();
    pool.ready().await.unwrap();
    pool.drain(SOON).await.unwrap();
    assert!(matches!(pool.gate().admit(), Verdict::Shed(shed) if shed.reason == ShedReason::Draining));
}
