//! The load test: the same burst at the same server, over pools of fixed size and over the adaptive one.
//!
//! `cargo run --release --example load_test -- --help` says what it takes. Read on in this order: `scenario` (what is
//! sent), `generator` (how), `server` (at what), `report`, `table` and `picture` (what came of it).

mod args;
mod capacity;
mod database;
mod generator;
mod http;
mod picture;
mod progress;
mod report;
mod rounds;
mod scenario;
mod server;
mod table;
#[path = "../support/telemetry.rs"]
mod telemetry;

use std::{fs, io, path::Path, process::ExitCode, time::Duration};

use axum::{Router, routing::get};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    args::{Args, PoolSpec},
    database::Database,
    generator::{Plan, child::generate},
    http::HttpServer,
    progress::Display,
    report::{Report, Run},
    scenario::{Phase, Scenario},
};

/// One sentence for the person who typed the command.
type Error = Box<dyn std::error::Error + Send + Sync>;

/// As a shell reports an end by Ctrl-C.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let args = Args::from_command_line();
    let result = if args.generate {
        generator::main().map_err(Error::from).map(|()| ExitCode::SUCCESS)
    } else {
        orchestrate(&args)
    };
    result.unwrap_or_else(|error| {
        eprintln!("load_test: {error}");
        ExitCode::FAILURE
    })
}

fn orchestrate(args: &Args) -> Result<ExitCode, Error> {
    let runtime = tokio::runtime::Runtime::new()?;
    let result = runtime.block_on(async {
        tokio::select! {
            biased;
            // The other branch is dropped then, and everything it started with it.
            stopped = stopped() => stopped.map(|()| ExitCode::from(INTERRUPTED)).map_err(Error::from),
            done = run(args) => done.map(|()| ExitCode::SUCCESS),
        }
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn stopped() -> io::Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    }
}

async fn run(args: &Args) -> Result<(), Error> {
    if args.check_generator {
        return check_generator().await;
    }
    for path in [&args.json, &args.svg].into_iter().flatten() {
        // Found out now, not after all the runs.
        fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .map_err(|error| cannot_write(path, &error))?;
    }
    let largest = args.scenarios.iter().map(|scenario| args.most(scenario)).max().unwrap_or_default();
    let database = Database::open(args.database_url.as_deref(), largest).await?;
    let mut session = Session { database, args };
    let mut runs = Vec::new();
    for scenario in &args.scenarios {
        runs.extend(session.rounds(scenario).await?);
    }
    let told = if args.in_rounds() { rounds::summary(&runs) } else { table::comparison(&runs, args) };
    print!("{told}");
    if let Some(path) = &args.json {
        let json = serde_json::to_string(&Report { runs: &runs })? + "\n";
        fs::write(path, json).map_err(|error| cannot_write(path, &error))?;
    }
    if let Some(path) = &args.svg {
        let drawn = if args.in_rounds() {
            picture::regimes::draw(path, &runs, &command_line())
        } else {
            let first: Vec<_> = runs.iter().filter(|run| run.scenario == runs[0].scenario).collect();
            picture::draw(path, &first, &command_line())
        };
        drawn.map_err(|error| cannot_write(path, &*error))?;
    }
    let wrong: Vec<_> = runs.iter().filter_map(|run| run.check().err()).collect();
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n").into()) }
}

/// What all runs have in common.
struct Session<'a> {
    database: Database,
    args: &'a Args,
}

impl Session<'_> {
    /// All the runs of a scenario.
    async fn rounds(&mut self, scenario: &'static Scenario) -> Result<Vec<Run>, Error> {
        let capacity = capacity::measure(self, scenario).await?;
        let phases = scenario.phases(self.args.phase_seconds, capacity);
        let mut pools = self.args.pools(scenario);
        let mut runs = Vec::new();
        let mut round = 0;
        while self.args.needs_round(round, || rounds::half_width(&runs)) {
            for &pool in &pools {
                runs.push(self.run(scenario, pool, phases.clone()).await?);
            }
            pools.rotate_left(1); // none is always the first after another's
            round += 1;
        }
        Ok(runs)
    }

    async fn run(
        &mut self,
        scenario: &'static Scenario,
        pool: PoolSpec,
        phases: Vec<Phase>,
    ) -> Result<Run, Error> {
        let Self { database, args } = self;
        database.prepare(scenario.work, pool.most(args, scenario)).await?;
        let server = server::serve(database, args, pool, scenario).await?;
        let Scenario { budget_ms, retries, .. } = *scenario;
        let plan = Plan { server: server.addr(), phases, budget_ms, retries };
        let mut display = Display::new(format!("{} × {pool}", scenario.name), &plan.phases);
        let load = generate(&plan, |progress| {
            display.update(progress);
            server::RunningServer::enter_phase(scenario, display.phase_at(progress.t_s));
        })
        .await?;
        Ok(Run::new(scenario, pool, load, server.finish(database).await?))
    }
}

/// What the generator itself costs: the floor under every figure of this program.
async fn check_generator() -> Result<(), Error> {
    let server = HttpServer::start(Router::new().route("/", get(|| async {}))).await?;
    let phase = Phase { name: "check".into(), rate_per_s: 6_000, seconds: 3 };
    let plan = Plan { server: server.addr, phases: vec![phase], budget_ms: None, retries: 0 };
    let total = generate(&plan, |_| ()).await?.total;
    println!(
        "{} requests at 6,000/s to a handler that does nothing, {} served: lag p99 {}, latency p50 {}, p99 {}, p99.9 {}",
        table::count(total.offered),
        table::count(total.served),
        table::time(total.lag_p99_ms),
        table::time(total.p50_ms),
        table::time(total.p99_ms),
        table::time(total.p999_ms),
    );
    Ok(())
}

/// How to see the same again, for the picture; without the database's address, which may hold a password.
fn command_line() -> String {
    let mut command = String::from("cargo run --release --example load_test --");
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        if arg == "--database-url" {
            args.next();
        } else if !arg.starts_with("--database-url=") {
            command.push(' ');
            command.push_str(&arg);
        }
    }
    command
}

fn cannot_write(path: &Path, error: &(impl std::fmt::Display + ?Sized)) -> Error {
    format!("cannot write {}: {error}", path.display()).into()
}
