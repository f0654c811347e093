//! The demo as a person runs it: its figures add up, and whatever goes wrong ends in one sentence and nothing left.

#![cfg(all(feature = "axum", feature = "postgres"))]

mod support;

use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::postgres::{Options, PostgresServer};

/// The example, built now if `cargo test --test load_test` has not.
static LOAD_TEST: LazyLock<PathBuf> = LazyLock::new(|| {
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--all-features", "--example", "load_test"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status();
    assert!(built.unwrap().success());
    // Beside `deps`, where this test lies.
    let here = std::env::current_exe().unwrap();
    here.parent().unwrap().with_file_name("examples").join("load_test")
});

fn load_test(arguments: &[&str]) -> Command {
    let mut command = Command::new(&*LOAD_TEST);
    command.args(arguments).env_remove("DATABASE_URL").stdin(Stdio::null());
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_short_run_adds_up_and_writes_what_was_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let (json, svg) = (directory.path().join("run.json"), directory.path().join("run.svg"));
    let files = ["--json", json.to_str().unwrap(), "--svg", svg.to_str().unwrap()];
    let pools = ["static:5", "adaptive", "adaptive:warm", "fixed:5"];
    let options = ["--phase-seconds", "1", "--scenario", "burst"].into_iter();
    let pool_options = pools.iter().flat_map(|pool| ["--pool", pool]);
    let output = load_test(&files).args(options.chain(pool_options)).output().unwrap();
    // It fails by itself when the generator's counts and the ledgers differ.
    assert!(output.status.success(), "{}", said(&output));

    let report: Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    let runs = report["runs"].as_array().unwrap();
    let ran: Vec<_> = runs.iter().map(|run| run["pool"].as_str().unwrap()).collect();
    assert_eq!(ran, pools, "in the order given");
    runs.iter().for_each(assert_complete);
    assert_kinds_differ(runs);
    assert!(std::fs::read_to_string(svg).unwrap().starts_with("<svg"));
    let told = String::from_utf8(output.stdout).unwrap();
    for words in ["adaptive served", "adaptive:warm served", "dials during the load", "peak limit"] {
        assert!(told.contains(words), "{words} in {told}");
    }
}

/// All requests are accounted for, and every figure is there.
fn assert_complete(run: &Value) {
    let count = |key: &str| run[key].as_u64().unwrap_or_else(|| panic!("{key} in {run}"));
    assert_eq!(count("offered"), 420 + 4_200 + 420);
    assert_adds_up(run);
    let keys = "scenario within_100ms in_phase p50_ms p99_ms p999_ms shed_p99_ms acquire_p99_ms dials peak_limit \
                peak_connections connection_seconds recovery_s";
    for key in keys.split_whitespace() {
        assert!(run.get(key).is_some(), "{key} in {run}");
    }
    let phases = run["phases"].as_array().unwrap();
    assert_eq!(phases.len(), 3);
    let of_phases: u64 = phases.iter().map(|phase| phase["dials"].as_u64().unwrap()).sum();
    assert_eq!(of_phases, count("dials"));
    for answered in phases.iter().chain([run]) {
        assert!(answered["in_phase"]["served"].as_u64() <= answered["served"].as_u64(), "{answered}");
    }
    let moment = &run["timeline"][5];
    for key in "t_s offered served shed p99_ms limit in_use idle reserve queue_depth".split_whitespace() {
        assert!(moment.get(key).is_some(), "{key} in {moment}");
    }
}

fn assert_adds_up(run: &Value) {
    let count = |key: &str| run[key].as_u64().unwrap_or_else(|| panic!("{key} in {run}"));
    assert_eq!(count("offered"), count("served") + count("shed") + count("timeouts") + count("errors"));
    assert_eq!(count("too_many_connections"), 0, "the server refused nobody");
    assert_eq!(count("errors"), 0);
}

/// What each kind of pool has to show for itself in a burst.
fn assert_kinds_differ(runs: &[Value]) {
    let [queued, adaptive, warm, fixed] = runs else { panic!("four runs") };
    let burst = |run: &Value, path: &str| run["phases"][1].pointer(path).unwrap().as_u64().unwrap();
    assert!(
        burst(queued, "/in_phase/served") < burst(queued, "/served"),
        "what was queued in the burst and answered after it is no throughput of it"
    );
    assert_eq!((&queued["dials"], &queued["peak_limit"]), (&0.into(), &5.into()));
    assert!(adaptive["dials"].as_u64().unwrap() > 0, "what it grew by was dialed");
    assert_eq!((&warm["dials"], &warm["peak_connections"]), (&0.into(), &50.into()), "all open before");
    assert!(warm["peak_limit"].as_u64().unwrap() > 10, "more were used");
    let reserve = |row: &Value| row["reserve"].as_u64().unwrap() > 0;
    assert!(warm["timeline"].as_array().unwrap().iter().any(reserve), "but not all, all the time");
    assert_eq!((&fixed["dials"], &fixed["peak_limit"]), (&0.into(), &5.into()));
    assert!(adaptive["peak_connections"].as_u64().unwrap() > 10, "it grew");
    assert!(adaptive["shed"].as_u64().unwrap() > 0, "ten times the rate at once: the surplus was refused");
}

#[test]
fn short_and_long_requests_come_in_parts_of_what_was_measured() {
    let directory = tempfile::tempdir().unwrap();
    let (json, svg) = (directory.path().join("mixed.json"), directory.path().join("mixed.svg"));
    let pools = ["static:50", "fixed:20", "fixed:50", "adaptive:warm"].into_iter();
    let output = load_test(&["--scenario", "mixed", "--phase-seconds", "1"])
        .args(pools.flat_map(|pool| ["--pool", pool]))
        // One round more than was asked for: after the first there is no interval.
        .args(["--until-half-width", "100", "--max-rounds", "2"])
        .args(["--json", json.to_str().unwrap(), "--svg", svg.to_str().unwrap()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));

    let told = String::from_utf8(output.stdout).unwrap();
    let capacity = capacity(&told);
    assert!(capacity > 100.0, "if all were long, 20 connections would do 40/s: {capacity}");
    let report: Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    let runs = report["runs"].as_array().unwrap();
    let pools: Vec<_> = runs.iter().map(|run| run["pool"].as_str().unwrap()).collect();
    let rounds = ["static:20", "fixed:20", "adaptive:warm", "fixed:20", "adaptive:warm", "static:20"];
    assert_eq!(pools, rounds, "none over 20, and each once a round");
    for run in runs {
        assert_adds_up(run);
        let phases = run["phases"].as_array().unwrap();
        let rates: Vec<_> = phases.iter().map(|phase| phase["rate_per_s"].as_u64().unwrap()).collect();
        for (rate, part) in rates.iter().zip([0.8, 1.5]) {
            assert!((*rate as f64 - part * capacity).abs() <= 2.0, "{rates:?} of {capacity}");
        }
        assert_eq!((rates.len(), run["offered"].as_u64()), (2, Some(rates.iter().sum())));
        assert!(run["peak_connections"].as_u64().unwrap() <= 20);
        assert!(run["p999_ms"].as_f64().unwrap() >= 500.0, "some are long: {run}");
    }
    for phase in ["0.8 of capacity", "1.5 of capacity"] {
        for words in [
            format!("served before the end of the {phase}"),
            format!("adaptive:warm ÷ {}", best(&told, phase)),
        ] {
            assert!(told.contains(&words), "{words} in {told}");
        }
    }
    assert!(std::fs::read_to_string(svg).unwrap().starts_with("<svg"));
}

/// What was measured before the first run.
fn capacity(told: &str) -> f64 {
    let (_, rest) = told.split_once("mixed: fixed:20 does ").unwrap();
    rest.split_once("/s saturated").unwrap().0.replace(',', "").parse().unwrap()
}

/// The rival that the sentence about a phase names.
fn best(told: &str, phase: &str) -> String {
    let (_, rest) = told.split_once(&format!("Best in hindsight, {phase}: ")).unwrap();
    format!("{}, {phase}, over 2 rounds", rest.split_once(".\n").unwrap().0)
}

#[test]
fn a_retry_storm_adds_up_with_all_its_attempts() {
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("storm.json");
    let arguments = ["--scenario", "retry-storm", "--phase-seconds", "1", "--json", json.to_str().unwrap()];
    let output = load_test(&arguments).args(["--pool", "adaptive", "--pool", "naive:20"]).output().unwrap();
    // It fails by itself when the ledgers differ from what all attempts were answered.
    assert!(output.status.success(), "{}", said(&output));

    let report: Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    for run in report["runs"].as_array().unwrap() {
        let (storm, count) = (&run["storm"], |value: &Value| value.as_u64().unwrap());
        assert_eq!(storm["good_by_second"].as_array().unwrap().len(), 12);
        let attempts: u64 =
            ["served", "shed", "timeouts", "errors"].map(|key| count(&storm["answers"][key])).iter().sum();
        assert!(attempts > count(&run["offered"]), "some tried again: {storm}");
    }
}

#[test]
fn bad_arguments_end_in_a_sentence() {
    for (arguments, sentence) in [
        (
            &["--pool", "static:0"][..],
            "a pool is `adaptive`, or `adaptive:warm` (all its connections open), or `static:N`",
        ),
        (
            &["--pool", "big"],
            "a pool is `adaptive`, or `adaptive:warm` (all its connections open), or `static:N`",
        ),
        (&["--pool", "adaptive:cold"], "a pool is `adaptive`, or `adaptive:warm`"),
        (&["--until-half-width", "0"], "it is a number over 0, as in `0.02`"),
        (&["--scenario", "nothing"], "there is no such scenario; there are:"),
        (&["--phase-seconds", "0"], "0 is not in 1..=600"),
        (&["--min-size", "20", "--max-size", "10"], "--min-size 20 is larger than --max-size 10"),
    ] {
        let output = load_test(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(said(&output).contains(sentence), "{arguments:?}: {}", said(&output));
    }
}

#[test]
fn a_database_that_cannot_be_used_ends_in_a_sentence() {
    let server = PostgresServer::start(Options::default()).unwrap();
    let wrong_password = format!("postgres://app:wrong@127.0.0.1:{}/app", server.port());
    for (url, sentence) in [
        ("postgres://app@127.0.0.1:1/app", "Connection refused"),
        (&wrong_password, "password authentication failed for user \"app\""),
        ("no url", "--database-url is no PostgreSQL URL"),
    ] {
        let output = load_test(&["--database-url", url]).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{url}: {}", said(&output));
        let said = said(&output);
        assert!(said.contains(sentence), "{url}: {said}");
        assert_eq!(said.trim().lines().count(), 1, "one sentence: {said}");
    }
}

#[test]
fn ctrl_c_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let mut running = load_test(&["--pool", "adaptive"])
        .env("TMPDIR", open_to_all(directory.path()))
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    // Its first plain line of a run says that the server and the generator are up.
    let mut stderr = running.stderr.take().unwrap();
    let mut said = String::new();
    while !said.contains("15 s of load") {
        let mut piece = [0; 256];
        let read = stderr.read(&mut piece).unwrap();
        assert!(read > 0, "it ended by itself: {said}");
        said.push_str(&String::from_utf8_lossy(&piece[..read]));
    }
    let interrupt = Command::new("kill").args(["-INT", &running.id().to_string()]).status();
    assert!(interrupt.unwrap().success());
    assert_eq!(running.wait().unwrap().code(), Some(130));
    // The supervisor stops the server and removes its directory, just after.
    let deadline = Instant::now() + Duration::from_secs(10);
    while std::fs::read_dir(directory.path()).unwrap().next().is_some() {
        assert!(Instant::now() < deadline, "a server's directory is still there");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The server may run as another user, who must get in.
fn open_to_all(directory: &std::path::Path) -> &std::path::Path {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o777)).unwrap();
    directory
}
