//! What 100,000 refusals a second do to the requests that are served meanwhile: their latency with and without, in turns.
//!
//! In one process, without a network: two workers serve requests that compute for a tenth of a millisecond over a limiter,
//! and a thread of its own has others refused, with their whole response.

use std::convert::Infallible;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use http::{Request, Response};
use tower::{Layer, Service, service_fn};
use tower_adaptive_pool::{AdaptivePoolLayer, Deadline, Limiter};

const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_secs(2);
/// A request each: 1,000 a second.
const BETWEEN: Duration = Duration::from_millis(1);
const COMPUTES: Duration = Duration::from_micros(100);
/// In each millisecond.
const REFUSALS: u32 = 100;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let limiter = runtime.block_on(async { Limiter::builder().build().expect("a limiter") });
    let mut without = Vec::new();
    let mut with = Vec::new();
    let mut refused = 0;
    for _ in 0..ROUNDS {
        without.push(p99(&runtime, &limiter));
        let storm = Storm::begin(&limiter);
        with.push(p99(&runtime, &limiter));
        refused += storm.end();
    }
    let per_second = refused as f64 / (ROUND * ROUNDS as u32).as_secs_f64();
    let ratio = median(&with).as_secs_f64() / median(&without).as_secs_f64();
    println!(
        "p99 of served requests, median of {ROUNDS} rounds (least .. most), {per_second:.0} refusals/s:"
    );
    for (name, rounds) in [("without refusals", &without), ("with refusals", &with)] {
        let (least, most) = (rounds.iter().min(), rounds.iter().max());
        println!("  {name:17}{:?} ({:?} .. {:?})", median(rounds), least.unwrap(), most.unwrap());
    }
    println!("  ratio            {ratio:.2}");
}

fn median(rounds: &[Duration]) -> Duration {
    let mut sorted = rounds.to_vec();
    sorted.sort_unstable();
    sorted[sorted.len() / 2]
}

/// The 99th percentile over a round.
fn p99(runtime: &tokio::runtime::Runtime, limiter: &Limiter) -> Duration {
    let handler = {
        let limiter = limiter.clone();
        service_fn(move |_: Request<()>| {
            let limiter = limiter.clone();
            async move {
                let _permit = limiter.acquire().await.expect("there are permits");
                let until = Instant::now() + COMPUTES;
                while Instant::now() < until {
                    std::hint::spin_loop();
                }
                Ok::<_, Infallible>(Response::new(()))
            }
        })
    };
    let service = AdaptivePoolLayer::new(limiter.clone()).layer(handler);
    // From here and not by the runtime's timers, which are only good to a millisecond.
    let (mut due, mut answers) = (Instant::now(), Vec::new());
    for _ in 0..ROUND.as_nanos() / BETWEEN.as_nanos() {
        due += BETWEEN;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let mut service = service.clone();
        answers.push(runtime.spawn(async move {
            let _ = black_box(service.call(Request::new(())).await);
            due.elapsed() // the wait for a core, and for a worker, included
        }));
    }
    let mut latencies = runtime.block_on(async {
        let mut latencies = Vec::with_capacity(answers.len());
        for answer in answers {
            latencies.push(answer.await.expect("an answer"));
        }
        latencies
    });
    latencies.sort_unstable();
    latencies[latencies.len() * 99 / 100]
}

/// Requests whose deadline has passed, one after the other, until the storm ends.
struct Storm {
    over: Arc<AtomicBool>,
    refused: Arc<AtomicU64>,
    thread: thread::JoinHandle<()>,
}

impl Storm {
    fn begin(limiter: &Limiter) -> Self {
        let (over, refused) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let layer = AdaptivePoolLayer::new(limiter.clone());
        let thread = thread::spawn({
            let (over, refused) = (over.clone(), refused.clone());
            move || {
                let handler = service_fn(async |_: Request<()>| Ok::<_, Infallible>(Response::new(())));
                let mut service = layer.layer(handler);
                let passed = Deadline::at(Instant::now());
                let mut next = Instant::now();
                while !over.load(Relaxed) {
                    for _ in 0..REFUSALS {
                        let mut request = Request::new(());
                        request.extensions_mut().insert(passed);
                        drop(black_box(service.call(request)));
                    }
                    refused.fetch_add(REFUSALS.into(), Relaxed);
                    next += Duration::from_millis(1);
                    thread::sleep(next.saturating_duration_since(Instant::now()));
                }
            }
        });
        Self { over, refused, thread }
    }

    fn end(self) -> u64 {
        self.over.store(true, Relaxed);
        self.thread.join().expect("it does not panic");
        self.refused.load(Relaxed)
    }
}
