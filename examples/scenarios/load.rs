//! What the clients send: drawn beforehand, so that every controller gets the very same requests.

use std::time::Duration;

use crate::random::Random;
use crate::scenario::{Arrivals, Phase, Scenario};

/// One request, as its client first sends it.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub at: Duration,
    /// Work of its query, in usual queries.
    pub work: f64,
    /// Decides which instance gets it.
    pub draw: u64,
}

/// All first attempts of a scenario, in order.
pub fn arrivals(scenario: &Scenario, seed: u64) -> Vec<Arrival> {
    let (mut when, mut how_long) = (Random::new(seed, "arrivals"), Random::new(seed, "work"));
    let mut arrivals = Vec::new();
    let mut begin_s = 0.0;
    for phase in &scenario.load {
        let peak = scenario.peak_per_s;
        match scenario.arrivals {
            Arrivals::Poisson => poisson(phase, peak, &mut when, |t_s| {
                arrivals.push(arrival(scenario, begin_s + t_s, &mut how_long));
            }),
            Arrivals::Constant => constant(phase, peak, |t_s| {
                arrivals.push(arrival(scenario, begin_s + t_s, &mut how_long));
            }),
        }
        begin_s += phase.seconds;
    }
    arrivals
}

/// By thinning (Lewis and Shedler, 1979): drawn at the phase's highest rate, and kept in proportion.
fn poisson(phase: &Phase, peak: f64, random: &mut Random, mut send: impl FnMut(f64)) {
    let highest = phase.load.max(phase.to.unwrap_or(0.0));
    // Without any load the first gap is endless.
    let gap = |random: &mut Random| random.exponential() / (peak * highest);
    let mut t_s = gap(random);
    while t_s < phase.seconds {
        if random.uniform() * highest < phase.load_at(t_s) {
            send(t_s);
        }
        t_s += gap(random);
    }
}

fn constant(phase: &Phase, peak: f64, mut send: impl FnMut(f64)) {
    let mut t_s = 0.0;
    while t_s < phase.seconds {
        send(t_s);
        t_s += 1.0 / (peak * phase.load_at(t_s)).max(1.0);
    }
}

fn arrival(scenario: &Scenario, t_s: f64, random: &mut Random) -> Arrival {
    let work = scenario.service.draw(random) * class_work(scenario, random.uniform());
    Arrival { at: Duration::from_secs_f64(t_s), work, draw: random.next() }
}

/// The mean work of the class that a draw falls into; 1 over all classes.
fn class_work(scenario: &Scenario, draw: f64) -> f64 {
    let Some(last) = scenario.classes.last() else { return 1.0 };
    let shares: f64 = scenario.classes.iter().map(|class| class.share).sum();
    let mean = scenario.classes.iter().map(|class| class.share * class.work).sum::<f64>() / shares;
    let mut left = draw * shares;
    let class = scenario.classes.iter().find(|class| {
        left -= class.share;
        left < 0.0
    });
    class.unwrap_or(last).work / mean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_mean_work_are_as_asked_for() {
        for scenario in Scenario::all().unwrap() {
            let arrivals = arrivals(&scenario, 1);
            let expected: f64 = (0..(scenario.seconds() * 1e3) as u32)
                .map(|ms| scenario.rate_at(f64::from(ms) / 1e3) / 1e3)
                .sum();
            let off = arrivals.len() as f64 / expected - 1.0;
            assert!(off.abs() < 0.03, "{}: {} instead of {expected}", scenario.name, arrivals.len());
            let work = arrivals.iter().map(|arrival| arrival.work).sum::<f64>() / arrivals.len() as f64;
            assert!((work - 1.0).abs() < 0.05, "{}: mean work {work}", scenario.name);
            assert!(arrivals.is_sorted_by_key(|arrival| arrival.at));
        }
    }
}
