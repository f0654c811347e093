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
    let pools = ["--phase-seconds", "1", "--pool", "static:5", "--pool", "adaptive", "--scenario", "burst"];
    let output = load_test(&[&files[..], &pools[..]].concat()).output().unwrap();
    // It fails by itself when the generator's counts and the ledgers differ.
    assert!(output.status.success(), "{}", said(&output));

    let report: Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    let runs = report["runs"].as_array().unwrap();
    let pools: Vec<_> = runs.iter().map(|run| run["pool"].as_str().unwrap()).collect();
    assert_eq!(pools, ["static:5", "adaptive"], "in the order given");
    for run in runs {
        let count = |key: &str| run[key].as_u64().unwrap_or_else(|| panic!("{key} in {run}"));
        assert_eq!(count("offered"), 420 + 4_200 + 420);
        assert_eq!(count("offered"), count("served") + count("shed") + count("timeouts") + count("errors"));
        assert_eq!(count("too_many_connections"), 0, "the server refused nobody");
        assert_eq!(count("errors"), 0);
        let keys = "scenario within_100ms p50_ms p99_ms p999_ms shed_p99_ms acquire_p99_ms peak_connections \
                    connection_seconds recovery_s";
        for key in keys.split_whitespace() {
            assert!(run.get(key).is_some(), "{key} in {run}");
        }
        assert_eq!(run["phases"].as_array().unwrap().len(), 3);
        let moment = &run["timeline"][5];
        for key in ["t_s", "offered", "served", "shed", "p99_ms", "limit", "in_use", "idle", "queue_depth"] {
            assert!(moment.get(key).is_some(), "{key} in {moment}");
        }
    }
    let adaptive = &runs[1];
    assert!(adaptive["peak_connections"].as_u64().unwrap() > 10, "it grew");
    assert!(adaptive["shed"].as_u64().unwrap() > 0, "ten times the rate at once: the surplus was refused");
    assert!(std::fs::read_to_string(svg).unwrap().starts_with("<svg"));
    assert!(String::from_utf8(output.stdout).unwrap().contains("adaptive served"));
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
        (&["--pool", "static:0"][..], "a pool is `adaptive`, or `static:N`"),
        (&["--pool", "big"], "a pool is `adaptive`, or `static:N`"),
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
