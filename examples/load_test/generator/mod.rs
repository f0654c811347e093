//! The open-loop generator, in a process of its own so that the server cannot slow it down unseen.
//!
//! The parent writes a [`Plan`] as one line of JSON and reads [`Line`]s back; when the parent goes away, so does this.

pub mod child;
pub mod client;
mod pace;
mod retry;
pub mod stats;
pub mod storm;

use std::{
    io::{self, BufRead, Write},
    net::SocketAddr,
    pin::pin,
    process, thread,
    time::{Duration, Instant, SystemTime},
};

use futures_util::{StreamExt, future::Either, stream::FuturesUnordered};
use serde::{Deserialize, Serialize};
use tokio::{sync::mpsc, time};

use self::{
    client::Client,
    retry::Storm,
    stats::{GIVE_UP, GeneratorReport, Outcome, Record},
};
use crate::scenario::Phase;

/// What to send, and where.
#[derive(Debug, Serialize, Deserialize)]
pub struct Plan {
    pub server: SocketAddr,
    pub phases: Vec<Phase>,
    /// How long a client waits for its answer; the server is told.
    pub budget_ms: Option<u32>,
    /// How often a client tries again that was refused or waited in vain.
    pub retries: u32,
}

/// What the generator writes to its stdout: progress ten times a second, the report at the end.
#[derive(Debug, Serialize, Deserialize)]
pub enum Line {
    Progress(Progress),
    Report(Box<GeneratorReport>),
}

/// Counts since the start.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Progress {
    pub t_s: f64,
    pub offered: u64,
    pub served: u64,
    pub shed: u64,
}

/// The whole life of the generator's process.
pub fn main() -> io::Result<()> {
    let mut line = String::new();
    io::stdin().read_line(&mut line)?;
    let plan: Plan = serde_json::from_str(&line)?;
    thread::spawn(|| {
        // The parent never writes a second line: whatever ends this read, the parent is gone.
        let _ = io::stdin().lock().read_line(&mut String::new());
        process::exit(1);
    });
    // One thread is enough for 6,000 requests a second, and leaves the other cores to the server and its database.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(run(plan))?;
    write_line(&Line::Report(Box::new(report)))
}

async fn run(plan: Plan) -> io::Result<GeneratorReport> {
    let mut client = Client::connect(plan.server, plan.budget_ms).await?;
    let retrying = match plan.budget_ms.filter(|_| plan.retries > 0) {
        Some(budget_ms) => {
            let client = Client::connect(plan.server, plan.budget_ms).await?;
            Some((client, Duration::from_millis(budget_ms.into())))
        }
        None => None,
    };
    let (sender, mut due) = mpsc::unbounded_channel();
    let total = plan.phases.iter().map(|phase| Duration::from_secs(phase.seconds.into())).sum::<Duration>();
    let started_unix_s = unix_s(SystemTime::now());
    let start = Instant::now();
    let storm =
        retrying.map(|(client, budget)| Storm::new(client, budget, plan.retries, (start + total).into()));
    let phases = plan.phases.clone();
    thread::spawn(move || pace::pace(start, &phases, &sender));

    let mut in_flight = FuturesUnordered::new();
    let mut records = Vec::new();
    let mut progress = Progress::default();
    let mut tick = time::interval(Duration::from_millis(100));
    let mut give_up = pin!(time::sleep(total + GIVE_UP));
    let mut all_sent = false;
    while !(all_sent && in_flight.is_empty()) {
        tokio::select! {
            intended = due.recv(), if !all_sent => match intended {
                Some(intended) => {
                    let index = records.len();
                    records.push(Record::sent(intended, start.elapsed()));
                    let answer = match &storm {
                        Some(storm) => Either::Left(storm.request(index)),
                        None => Either::Right(client.send()),
                    };
                    in_flight.push(async move { (index, answer.await, start.elapsed()) });
                    progress.offered += 1;
                }
                None => all_sent = true,
            },
            Some((index, outcome, now)) = in_flight.next() => {
                records[index].answered(outcome, now);
                progress.served += u64::from(outcome == Outcome::Served);
                progress.shed += u64::from(matches!(outcome, Outcome::Shed { .. }));
            }
            _ = tick.tick() => {
                progress.t_s = start.elapsed().as_secs_f64();
                write_line(&Line::Progress(progress))?;
            }
            () = &mut give_up => break,
        }
    }
    let report = GeneratorReport::new(started_unix_s, &plan.phases, &records);
    Ok(match storm {
        Some(storm) => {
            let answers = storm.all_answered().await;
            GeneratorReport { storm: Some(storm::figures(&plan.phases, &records, answers)), ..report }
        }
        None => report,
    })
}

fn write_line(line: &Line) -> io::Result<()> {
    let mut text = serde_json::to_string(line)?;
    text.push('\n');
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// A moment as seconds since 1970, as the report and the server's samples state it.
pub fn unix_s(moment: SystemTime) -> f64 {
    moment.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
