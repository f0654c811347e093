//! When each request is due, and the thread that keeps to it.
//!
//! A thread of its own, because tokio's timers tick once a millisecond: at 6,000 requests a second that would send
//! them in clumps of six, and the server's queue would show the clumps.

use std::{
    thread,
    time::{Duration, Instant},
};

use tokio::sync::mpsc::UnboundedSender;

use crate::scenario::Phase;

/// The intended send times, counted from the start: evenly spaced within each phase, and all of them fixed in advance.
pub fn arrivals(phases: &[Phase]) -> impl Iterator<Item = Duration> {
    let mut begin = 0;
    phases.iter().flat_map(move |phase| {
        let phase_begin = begin;
        begin += phase.seconds;
        let spacing = 1.0 / f64::from(phase.rate_per_s);
        (0..phase.rate_per_s * phase.seconds)
            .map(move |k| Duration::from_secs_f64(f64::from(phase_begin) + f64::from(k) * spacing))
    })
}

/// Hands over each request's intended send time when it comes, whatever became of the requests before it.
pub fn pace(start: Instant, phases: &[Phase], due: &UnboundedSender<Duration>) {
    let mut arrivals = arrivals(phases).peekable();
    while let Some(&next) = arrivals.peek() {
        thread::sleep((start + next).saturating_duration_since(Instant::now()));
        let now = start.elapsed();
        while let Some(intended) = arrivals.next_if(|&arrival| arrival <= now) {
            if due.send(intended).is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_phase_gets_exactly_its_rate() {
        let phase = |rate_per_s, seconds| Phase { name: String::new(), rate_per_s, seconds };
        let times: Vec<_> = arrivals(&[phase(3, 2), phase(6_000, 1)]).collect();

        assert_eq!(times.len(), 6 + 6_000);
        assert!(times.is_sorted());
        assert_eq!(times[6], Duration::from_secs(2));
        assert!(times[6_005] < Duration::from_secs(3));
    }
}
