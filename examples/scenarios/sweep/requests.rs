//! What the clients of a case send: drawn beforehand, so that every controller gets the very same requests.

use super::prior::Case;
use crate::random::Random;

/// One request. In a closed loop it comes when its user has thought, and the moment is none.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    pub at_s: f64,
    /// Work of its query, around 1.
    pub work: f32,
    /// Uniform in [0, 1): which pool gets it, whether it meets an error, and the draw of the admission.
    pub place: f32,
    pub error: f32,
    pub ramp: f32,
    /// Seconds that its user thinks before.
    pub think_s: f32,
    pub kind: u8,
}

/// The most requests of a case: a run must end.
const MOST: usize = 400_000;

/// All requests of a case, in order. In a closed loop more than can come.
pub fn requests(case: &Case, noise: u64) -> Vec<Request> {
    let seed = case.seed.wrapping_mul(1_000).wrapping_add(noise);
    let (mut when, mut how) = (Random::new(seed, "arrivals"), Random::new(seed, "work"));
    let users = case.users();
    let highest = case.level * case.capacity_per_s;
    let mut requests = Vec::new();
    let mut at_s = 0.0;
    while requests.len() < MOST {
        match users {
            Some((users, _)) if requests.len() as f64 > 1.2 * highest * case.seconds + users as f64 => break,
            Some(_) => {}
            None => {
                // By thinning (Lewis and Shedler, 1979).
                at_s += when.exponential() / highest;
                if at_s >= case.seconds {
                    break;
                }
                if when.uniform() * highest >= case.rate_at(at_s) {
                    continue;
                }
            }
        }
        let think_s = users.map_or(0.0, |(_, think_s)| think_s * when.exponential()) as f32;
        let mut part = how.uniform();
        let kind = case.kinds.iter().position(|kind| {
            part -= kind.part;
            part < 0.0
        });
        requests.push(Request {
            at_s,
            work: case.service.draw(&mut how) as f32,
            place: how.uniform() as f32,
            error: how.uniform() as f32,
            ramp: how.uniform() as f32,
            think_s,
            kind: kind.unwrap_or(0) as u8,
        });
    }
    requests
}
