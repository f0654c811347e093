//! The prior: what a scenario is drawn from. One seed is one scenario, whoever draws it.
//!
//! | Dimension | Draw |
//! |---|---|
//! | curve of one kind of query | 38 % `usl` (knee 2 to 200, exponent 1.5 to 3), 14 % `linear`, 14 % `plateau` (2 to 200), 10 % `cliff` (half past 4 to 100), 6 % `humps`, 10 % `measured`, 8 % `kinds` (two kinds of queries with curves of their own) |
//! | service time | 15 % constant, 30 % exponential, 20 % log-normal (cv 1 to 5), 10 % Pareto 1.5 (cut at 1,000 means), 25 % bimodal (1 to 10 % are 50 to 500 times as long) |
//! | scale | one query alone takes 0.2 ms to 2 s, but the database finishes at most 20,000 a second |
//! | arrivals | 34 % steady Poisson, 16 % on/off (0.5 to 10 s), 12 % ramp, 12 % flash crowd (× 3 to 30), 12 % day (a sine), 14 % closed loop of users |
//! | level | 0.3 to 3 times the capacity at its highest |
//! | event | 45 % none; slower or faster for good, stall, drift, rival queries, knee moves, fast errors told and untold, dials that fail |
//! | bounds | `min_size` 1, 2, 5, 10, or in half of them `max_size`; `max_size` 50 or 20 to 500; `hard_cap` 20 to 1,000; deadline 0.1 to 5 s, at least 10 queries |
//! | dials | 2 to 30 ms, or in 15 % up to 1 s; each is up to 5 ms of work for the server |
//! | instances | 68 % one; 10 % 2 to 8 told their share; 8 % 2 to 4 untold; 14 % beside 1 to 3 pools of 4 to 20 that are fixed |
//!
//! Where a range spans more than a factor of three it is drawn evenly on a logarithmic scale.

use crate::curve::Curve;
use crate::random::Random;

/// Requests that the best fixed limit is offered, and use times that a scenario lasts at least.
const REQUESTS: f64 = 60_000.0;
const USES: f64 = 100.0;
/// Seconds that a scenario lasts: shorter says nothing of a controller that looks 100 times a second, longer costs too much.
const SECONDS: (f64, f64) = (10.0, 600.0);
/// The most queries a second.
const FASTEST: f64 = 20_000.0;

/// A scenario of the sweep.
#[derive(Clone, Debug)]
pub struct Case {
    pub seed: u64,
    /// Curve, service time, scale, arrivals, event and neighbours, with slashes between.
    pub family: String,
    pub kinds: Vec<Kind>,
    pub service: Service,
    pub arrivals: Arrivals,
    /// The highest rate of arrivals over the capacity.
    pub level: f64,
    /// Queries a second at the best number of connections.
    pub capacity_per_s: f64,
    pub event: Option<(f64, Event)>,
    pub min_size: usize,
    pub max_size: usize,
    pub soft_cap: usize,
    pub hard_cap: usize,
    pub deadline_s: f64,
    pub dial_s: f64,
    /// Seconds of work for the server.
    pub dial_work_s: f64,
    /// Instances that run the controller, and what each is told of its share.
    pub instances: usize,
    pub share: f64,
    /// Pools beside them with a limit that is fixed.
    pub neighbours: usize,
    pub neighbour_size: usize,
    pub seconds: f64,
}

/// A kind of query: the part of the arrivals, how long one takes alone, and what the server makes of many.
#[derive(Clone, Debug)]
pub struct Kind {
    pub part: f64,
    pub alone_s: f64,
    /// Queries a second, by how many run.
    pub curve: Curve,
}

#[derive(Clone, Copy, Debug)]
pub enum Service {
    Constant,
    Exponential,
    Lognormal { cv: f64 },
    Pareto,
    Bimodal { part: f64, times: f64 },
}

impl Service {
    /// Work around 1.
    pub fn draw(self, random: &mut Random) -> f64 {
        match self {
            Self::Constant => 1.0,
            Self::Exponential => random.exponential(),
            Self::Lognormal { cv } => random.lognormal(cv),
            // The mean of a Pareto 1.5 is three times its least.
            Self::Pareto => ((1.0 - random.uniform()).powf(-1.0 / 1.5) / 3.0).min(1_000.0),
            Self::Bimodal { part, times } => {
                let mean = 1.0 + part * (times - 1.0);
                (if random.uniform() < part { times } else { 1.0 }) / mean
            }
        }
    }
}

/// When requests come, as parts of the level.
#[derive(Clone, Copy, Debug)]
pub enum Arrivals {
    Steady,
    OnOff { on_s: f64, off_s: f64, off: f64 },
    Ramp { from: f64 },
    Flash { at: f64, lasts: f64, before: f64 },
    Day { periods: f64, low: f64 },
    Users { think_s: f64 },
}

#[derive(Clone, Copy, Debug)]
pub enum Event {
    Speed { times: f64 },
    Stall { seconds: f64 },
    Drift { times: f64 },
    Rival { queries: usize, seconds: f64 },
    Knee { times: f64 },
    Errors { part: f64, seconds: f64, told: bool },
    Dials { seconds: f64 },
}

impl Event {
    fn name(self) -> &'static str {
        match self {
            Self::Speed { times } if times < 1.0 => "slower",
            Self::Speed { .. } => "faster",
            Self::Stall { .. } => "stall",
            Self::Drift { .. } => "drift",
            Self::Rival { .. } => "rival",
            Self::Knee { .. } => "knee-moves",
            Self::Errors { told: true, .. } => "errors-told",
            Self::Errors { .. } => "errors-untold",
            Self::Dials { .. } => "dials-fail",
        }
    }
}

/// Draws by chance and by range.
struct Draw(Random);

impl Draw {
    fn log(&mut self, low: f64, high: f64) -> f64 {
        low * (high / low).powf(self.0.uniform())
    }

    fn even(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.0.uniform()
    }

    fn chance(&mut self, part: f64) -> bool {
        self.0.uniform() < part
    }

    /// One of these, by their weights.
    fn one_of<T: Copy>(&mut self, weighted: &[(f64, T)]) -> T {
        let mut left = self.0.uniform() * weighted.iter().map(|(weight, _)| weight).sum::<f64>();
        for (weight, value) in weighted {
            left -= weight;
            if left < 0.0 {
                return *value;
            }
        }
        weighted[0].1
    }
}

impl Case {
    pub fn draw(seed: u64) -> Self {
        let mut draw = Draw(Random::new(seed, "sweep"));
        let max_size = if draw.chance(0.5) { 50 } else { draw.log(20.0, 500.0).round() as usize };
        let (curve, shapes) = curves(&mut draw);
        let (service, service_name) = service(&mut draw);
        let mut alone_s = draw.log(0.000_2, 2.0);
        let (arrivals, arrivals_name) = arrivals(&mut draw);
        let level = draw.log(0.3, 3.0);
        let neighbourhood = neighbourhood(&mut draw);
        let Neighbourhood { instances, share, neighbours, neighbour_size, .. } = neighbourhood;

        // All pools together may have so many in use.
        let widest = (max_size * instances + neighbour_size * neighbours).min(crate::curve::MOST);
        let mut kinds = Vec::new();
        let mut capacity_per_s = f64::INFINITY;
        for (part, times, shape) in shapes {
            let (alone, peak) = (shape.at(1), shape.peak(widest));
            kinds.push(Kind { part, alone_s: times, curve: shape.times(1.0 / (alone * times)) });
            capacity_per_s = capacity_per_s.min(peak / (alone * times * part));
        }
        alone_s = alone_s.max(capacity_per_s / FASTEST);
        for kind in &mut kinds {
            kind.alone_s *= alone_s;
            kind.curve = std::mem::take(&mut kind.curve).times(1.0 / alone_s);
        }
        capacity_per_s /= alone_s;
        let mean_s: f64 = kinds.iter().map(|kind| kind.part * kind.alone_s).sum();

        let offered = level * capacity_per_s * arrivals.mean();
        let seconds = (REQUESTS / offered).max(USES * mean_s).max(SECONDS.0).min(SECONDS.1);
        let event = (!draw.chance(0.45)).then(|| event(&mut draw, seconds));
        let hard_cap = draw.log(20.0, 1_000.0).round() as usize;
        let scale = match mean_s {
            ..0.002 => "under-2ms",
            ..0.02 => "2-20ms",
            ..0.2 => "20-200ms",
            _ => "over-200ms",
        };
        let event_name = event.map_or("none", |(_, event)| event.name());
        let names = [curve, service_name, scale, arrivals_name, event_name, neighbourhood.name];
        Self {
            seed,
            family: names.join("/"),
            kinds,
            service,
            arrivals,
            level,
            capacity_per_s,
            event,
            min_size: draw.one_of(&[(1.0, 1), (1.0, 2), (1.0, 5), (2.0, 10), (5.0, max_size)]),
            max_size,
            soft_cap: hard_cap / 2,
            hard_cap,
            deadline_s: draw.log(0.1, 5.0).max(10.0 * mean_s),
            dial_s: if draw.chance(0.85) { draw.log(0.002, 0.030) } else { draw.log(0.030, 1.0) },
            dial_work_s: draw.even(0.0, 0.005),
            instances,
            share,
            neighbours,
            neighbour_size,
            seconds,
        }
    }

    /// Arrivals a second of open clients, `t_s` after the beginning.
    pub fn rate_at(&self, t_s: f64) -> f64 {
        let part = match self.arrivals {
            Arrivals::Steady | Arrivals::Users { .. } => 1.0,
            Arrivals::OnOff { on_s, off_s, off } => {
                if t_s % (on_s + off_s) < off_s {
                    off
                } else {
                    1.0
                }
            }
            Arrivals::Ramp { from } => from + (1.0 - from) * t_s / self.seconds,
            Arrivals::Flash { at, lasts, before } => {
                let t = t_s / self.seconds;
                if (at..at + lasts).contains(&t) { 1.0 } else { before }
            }
            Arrivals::Day { periods, low } => {
                let turn = (std::f64::consts::TAU * periods * t_s / self.seconds).cos();
                low + (1.0 - low) * (1.0 - turn) / 2.0
            }
        };
        self.level * self.capacity_per_s * part
    }

    /// The users of a closed loop: so many that all of them would ask for the level if no answer took any time.
    pub fn users(&self) -> Option<(usize, f64)> {
        let Arrivals::Users { think_s } = self.arrivals else { return None };
        Some(((self.level * self.capacity_per_s * think_s).ceil().max(1.0) as usize, think_s))
    }
}

impl Arrivals {
    /// The mean over the level.
    fn mean(self) -> f64 {
        match self {
            Self::Steady | Self::Users { .. } => 1.0,
            Self::OnOff { on_s, off_s, off } => (on_s + off * off_s) / (on_s + off_s),
            Self::Ramp { from } => f64::midpoint(from, 1.0),
            Self::Flash { lasts, before, .. } => lasts + before * (1.0 - lasts),
            Self::Day { low, .. } => f64::midpoint(low, 1.0),
        }
    }
}

/// Its name, and by kind the part of the arrivals, how long one takes alone in usual queries, and the curve.
fn curves(draw: &mut Draw) -> (&'static str, Vec<(f64, f64, Curve)>) {
    let name = draw.one_of(&[
        (38.0, "usl"),
        (14.0, "linear"),
        (14.0, "plateau"),
        (10.0, "cliff"),
        (6.0, "humps"),
        (10.0, "measured"),
        (8.0, "kinds"),
    ]);
    let whole = |curve| vec![(1.0, 1.0, curve)];
    let curves = match name {
        "usl" => whole(Curve::falling(draw.log(2.0, 200.0), draw.even(1.5, 3.0))),
        "linear" => whole(Curve::plateau(1e6)),
        "plateau" => whole(Curve::plateau(draw.log(2.0, 200.0))),
        "cliff" => {
            let knee = draw.log(4.0, 100.0);
            whole(Curve::cliff(knee, knee * draw.even(1.0, 1.6)))
        }
        "humps" => {
            let first = draw.log(3.0, 12.0);
            whole(Curve::humps(first, first * draw.even(3.0, 8.0), draw.even(0.6, 1.4)))
        }
        "measured" => {
            let workload = draw.one_of(&[
                (1.0, "cpu5"),
                (1.0, "hotrow"),
                (1.0, "select"),
                (1.0, "sleep6"),
                (1.0, "lock6"),
                (1.0, "nowait6"),
            ]);
            whole(Curve::measured(workload).unwrap_or_else(|_| Curve::plateau(10.0)))
        }
        _ => {
            let rare = draw.even(0.05, 0.4);
            vec![
                (1.0 - rare, 1.0, Curve::plateau(draw.log(20.0, 200.0))),
                (rare, draw.log(0.3, 5.0), Curve::falling(draw.log(2.0, 20.0), draw.even(1.5, 3.0))),
            ]
        }
    };
    (name, curves)
}

fn service(draw: &mut Draw) -> (Service, &'static str) {
    match draw.one_of(&[(15.0, 0), (30.0, 1), (20.0, 2), (10.0, 3), (25.0, 4)]) {
        0 => (Service::Constant, "constant"),
        1 => (Service::Exponential, "exponential"),
        2 => (Service::Lognormal { cv: draw.even(1.0, 5.0) }, "lognormal"),
        3 => (Service::Pareto, "pareto"),
        _ => (Service::Bimodal { part: draw.log(0.01, 0.1), times: draw.log(50.0, 500.0) }, "bimodal"),
    }
}

fn arrivals(draw: &mut Draw) -> (Arrivals, &'static str) {
    match draw.one_of(&[(34.0, 0), (16.0, 1), (12.0, 2), (12.0, 3), (12.0, 4), (14.0, 5)]) {
        0 => (Arrivals::Steady, "steady"),
        1 => {
            let (on_s, off_s) = (draw.log(0.5, 10.0), draw.log(0.5, 10.0));
            (Arrivals::OnOff { on_s, off_s, off: draw.even(0.0, 0.3) }, "on-off")
        }
        2 => (Arrivals::Ramp { from: draw.even(0.0, 0.5) }, "ramp"),
        3 => {
            let (at, lasts) = (draw.even(0.2, 0.5), draw.even(0.1, 0.4));
            (Arrivals::Flash { at, lasts, before: 1.0 / draw.log(3.0, 30.0) }, "flash")
        }
        4 => (Arrivals::Day { periods: draw.even(1.0, 4.0), low: draw.even(0.0, 0.5) }, "day"),
        _ => (Arrivals::Users { think_s: draw.log(0.05, 5.0) }, "users"),
    }
}

fn event(draw: &mut Draw, seconds: f64) -> (f64, Event) {
    let at = seconds * draw.even(0.3, 0.6);
    let part = seconds * draw.even(0.1, 0.3);
    let event = match draw.one_of(&[
        (2.0, 0),
        (1.0, 1),
        (1.0, 2),
        (1.0, 3),
        (1.0, 4),
        (1.0, 5),
        (0.5, 6),
        (0.5, 7),
        (1.0, 8),
    ]) {
        0 => Event::Speed { times: draw.log(0.2, 0.8) },
        1 => Event::Speed { times: draw.log(1.3, 4.0) },
        2 => Event::Stall { seconds: draw.log(0.2, 2.0) },
        3 => Event::Drift { times: draw.log(0.5, 2.0) },
        4 => Event::Rival { queries: draw.log(2.0, 30.0) as usize, seconds: part },
        5 => Event::Knee { times: draw.log(0.4, 2.5) },
        6 => Event::Errors { part: draw.even(0.1, 0.9), seconds: part, told: true },
        7 => Event::Errors { part: draw.even(0.1, 0.9), seconds: part, told: false },
        _ => Event::Dials { seconds: part },
    };
    (at, event)
}

struct Neighbourhood {
    name: &'static str,
    instances: usize,
    share: f64,
    neighbours: usize,
    neighbour_size: usize,
}

fn neighbourhood(draw: &mut Draw) -> Neighbourhood {
    let alone = Neighbourhood { name: "alone", instances: 1, share: 1.0, neighbours: 0, neighbour_size: 0 };
    match draw.one_of(&[(68.0, 0), (10.0, 1), (8.0, 2), (14.0, 3)]) {
        0 => alone,
        1 => {
            let instances = draw.log(2.0, 8.99) as usize;
            Neighbourhood { name: "siblings-told", instances, share: 1.0 / instances as f64, ..alone }
        }
        2 => Neighbourhood { name: "siblings-untold", instances: draw.log(2.0, 4.99) as usize, ..alone },
        _ => {
            let neighbours = draw.even(1.0, 3.99) as usize;
            let neighbour_size = draw.log(4.0, 20.99) as usize;
            let share = if draw.chance(0.5) { 1.0 / (neighbours + 1) as f64 } else { 1.0 };
            Neighbourhood { name: "beside-fixed", share, neighbours, neighbour_size, ..alone }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_one_in_the_mean_whatever_its_distribution() {
        let mut random = Random::new(1, "test");
        let services = [
            (Service::Constant, 0.0),
            (Service::Exponential, 0.01),
            (Service::Lognormal { cv: 3.0 }, 0.03),
            (Service::Pareto, 0.05),
            (Service::Bimodal { part: 0.02, times: 200.0 }, 0.03),
        ];
        for (service, tolerance) in services {
            let mean = (0..400_000).map(|_| service.draw(&mut random)).sum::<f64>() / 4e5;
            assert!((mean - 1.0).abs() <= tolerance, "{service:?}: {mean}");
        }
    }

    #[test]
    fn a_seed_is_one_scenario_and_all_of_them_are_within_the_prior() {
        for seed in 0..2_000 {
            let case = Case::draw(seed);
            assert_eq!(case.family, Case::draw(seed).family);
            assert!((SECONDS.0..=SECONDS.1).contains(&case.seconds), "{case:?}");
            assert!(case.capacity_per_s <= 1.001 * FASTEST && case.capacity_per_s > 0.0, "{case:?}");
            assert!(case.min_size <= case.max_size && case.soft_cap <= case.hard_cap, "{case:?}");
        }
    }
}
