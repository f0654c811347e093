//! What a tick of the default controller costs, at its dearest: saturated, with a full table of sizes.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use tower_adaptive_pool::{Controller, PaidGrowth, Sample};

const TICK: Duration = Duration::from_millis(10);

/// A saturated pool at this size, over a database whose knee is at 24.
fn saturated(size: usize) -> Sample {
    let wide = size as f64 / 24.0;
    let rate = 4_000.0 * wide / (1.0 + wide * wide);
    let mut sample = Sample::default();
    (sample.queue_depth, sample.hard_cap) = (150, 200);
    (sample.limit, sample.in_use, sample.peak_in_use) = (size, size, size);
    (sample.min_limit, sample.base_limit, sample.max_size) = (2, 2, 100);
    (sample.arrivals, sample.completions) = (30, (rate / 100.0) as u64);
    sample.use_time = Some(Duration::from_secs_f64(size as f64 / rate));
    (0..sample.completions).for_each(|_| sample.use_times.add(size as f64 / rate));
    sample
}

fn controller_tick(criterion: &mut Criterion) {
    let mut law = PaidGrowth::default().into_controller();
    let mut now = Instant::now();
    let mut tick = |size| {
        now += TICK;
        law.on_sample(now, black_box(&saturated(size))).limit
    };
    for size in 2..100 {
        for _ in 0..20 {
            tick(size);
        }
    }
    let mut size = 24;
    criterion.bench_function("controller_tick", |bencher| bencher.iter(|| size = tick(size)));
}

criterion_group!(benches, controller_tick);
criterion_main!(benches);
