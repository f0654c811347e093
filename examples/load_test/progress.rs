//! How far a run is: a bar on a terminal, a line per phase elsewhere.

use std::io::{self, IsTerminal};

use indicatif::{ProgressBar, ProgressStyle};

use crate::{generator::Progress, scenario::Phase, table::count};

pub struct Display {
    title: String,
    phases: Vec<Phase>,
    /// None when nobody watches.
    bar: Option<ProgressBar>,
    /// The phase of the line written last.
    shown: Option<usize>,
}

impl Display {
    pub fn new(title: String, phases: &[Phase]) -> Self {
        let seconds: u32 = phases.iter().map(|phase| phase.seconds).sum();
        let bar = io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{prefix:24} {bar:24.cyan/dim} {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(u64::from(seconds) * 1_000).with_style(style).with_prefix(title.clone())
        });
        if bar.is_none() {
            eprintln!("{title}: {seconds} s of load");
        }
        Self { title, phases: phases.to_vec(), bar, shown: None }
    }

    pub fn update(&mut self, progress: &Progress) {
        let phase = self.phase_at(progress.t_s);
        let now = match self.phases.get(phase) {
            Some(phase) => format!("{} at {}/s", phase.name, count(phase.rate_per_s.into())),
            None => "waiting for the last answers".into(),
        };
        let counts = format!("served {}, 503s {}", count(progress.served), count(progress.shed));
        match &self.bar {
            Some(bar) => {
                bar.set_position((progress.t_s * 1e3) as u64);
                bar.set_message(format!("{now}: {counts}"));
            }
            None if self.shown != Some(phase) => {
                eprintln!("{}: {:>4.1} s, {now}; so far {counts}", self.title, progress.t_s);
            }
            None => {}
        }
        self.shown = Some(phase);
    }

    /// Which phase it is; past the last, their number.
    pub fn phase_at(&self, t_s: f64) -> usize {
        let mut ends = self.phases.iter().scan(0, |end, phase| {
            *end += phase.seconds;
            Some(f64::from(*end))
        });
        ends.position(|end| t_s < end).unwrap_or(self.phases.len())
    }
}

impl Drop for Display {
    /// A finished run leaves its figures, not its bar.
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
