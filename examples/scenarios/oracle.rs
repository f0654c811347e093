//! What one would have chosen, had one known: the best fixed size, and the connections really needed.

use crate::Error;
use crate::record::{BIN_S, Run};
use crate::scenario::Scenario;

/// Fixed sizes that are tried.
const SIZES: usize = 12;

/// A dozen sizes from `min_size` to `max_size`, each about the same factor over the one before, and the nearest to the knee
/// moved there.
pub fn sizes(scenario: &Scenario) -> Result<Vec<usize>, Error> {
    let (least, most) = (scenario.min_size as f64, scenario.max_size as f64);
    let size = |i: usize| least * (most / least).powf(i as f64 / (SIZES - 1) as f64);
    let mut sizes: Vec<_> = (0..SIZES).map(|i| size(i).round() as usize).collect();
    let curve = scenario.curve()?;
    let knee = (1..=scenario.max_size).max_by(|a, b| curve.at(*a).total_cmp(&curve.at(*b))).unwrap_or(1);
    let instances = scenario.events.iter().filter_map(|event| event.instances).max().unwrap_or(1);
    let knee = (knee / instances).clamp(scenario.min_size, scenario.max_size);
    if let Some(nearest) = sizes.iter_mut().min_by_key(|size| size.abs_diff(knee)) {
        *nearest = knee;
    }
    sizes.sort_unstable();
    sizes.dedup();
    Ok(sizes)
}

/// The fixed size with the most goodput; of equals the smallest.
pub fn best<'a>(fixed: impl Iterator<Item = &'a Run>) -> Option<&'a Run> {
    fixed.reduce(|best, run| if run.goodput > best.goodput { run } else { best })
}

/// The connection-seconds of somebody who knows load and curve, and has at each moment the fewest connections that carry
/// the load: for a load of `a` connections in use 1.1a + √a of them (square-root staffing, Halfin and Whitt, 1981), or, where
/// no number is enough, the fewest with 99 % of the most the database can do.
pub fn connection_seconds(scenario: &Scenario) -> Result<f64, Error> {
    let curve = scenario.curve()?;
    let (mut speed, mut rival, mut instances) = (1.0, 0, 1);
    let mut events = scenario.events.iter().peekable();
    let mut sum = 0.0;
    for bin in 0..(scenario.seconds() / BIN_S).round() as usize {
        let t_s = bin as f64 * BIN_S;
        while let Some(event) = events.next_if(|event| event.at_s <= t_s + 1e-9) {
            speed = event.speed.unwrap_or(speed);
            rival = event.rival.unwrap_or(rival);
            instances = event.instances.unwrap_or(instances);
        }
        // Nobody resizes for a database that stands still.
        let speed = if speed > 0.0 { speed } else { 1.0 };
        let carries = |n: usize| speed * curve.at(n + rival) * n as f64 / (n + rival) as f64;
        let rate = scenario.rate_at(t_s + BIN_S / 2.0);
        let sizes = || 1..=scenario.max_size;
        let most = sizes().map(carries).fold(0.0, f64::max);
        let enough = |&n: &usize| {
            let used = n as f64 * rate / carries(n);
            1.1 * used + used.sqrt() <= n as f64
        };
        let knee = || sizes().find(|&n| carries(n) >= 0.99 * most);
        let need = sizes().find(enough).into_iter().chain(knee()).min().unwrap_or(scenario.max_size);
        let each = need.div_ceil(instances).clamp(scenario.min_size, scenario.max_size);
        sum += (each * instances) as f64 * BIN_S;
    }
    Ok(sum)
}
