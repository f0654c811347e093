//! Faults on a real server, one test for each, with a load running over it. What is asserted: what callers got, that the
//! pool heals by itself, that the server never counted a backend too many, and that nothing is left behind.
//!
//! `docs/RELIABILITY.md` shows the figures: `cargo test --all-features --test faults -- --nocapture` prints them.

#![cfg(feature = "postgres")]

mod support;

#[path = "support/faults.rs"]
mod harness; // not in `support`: not every test has the feature `postgres`

use std::time::Duration;

use harness::{ACQUIRE_TIMEOUT, DIAL_TIMEOUT, Db, MAX_SIZE, SOON, Stopped, Trial};
use support::eventually;
use support::postgres::{Options, StopMode};
use support::proxy::Proxy;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};

/// The most callers that can be hit when every connection is lost once.
const ONCE: u64 = MAX_SIZE as u64;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backends_that_are_killed_cost_one_query_each_and_no_acquire() {
    let trial = Trial::direct("every backend killed with `pg_terminate_backend`", Db::shared().await).await;
    trial.db.kill(&trial.db.pids().await).await;
    trial.over();
    let healthy = trial.healthy().await;
    let got = trial.finish(healthy, &["57P01", "connection"]).await;
    let lost: u64 = got.iter().filter(|(code, _)| *code != "ok").map(|(_, count)| count).sum();
    assert!(lost <= ONCE, "{lost}");
}

async fn a_stop_of_the_server(name: &'static str, mode: StopMode) {
    let mut trial = Trial::direct(name, Db::alone(Options::default()).await).await;
    let server = trial.db.server.clone();
    spawn_blocking(move || server.stop(mode)).await.unwrap().unwrap();
    trial.sees(1, "pool_dial_failed").await;
    let server = trial.db.server.clone();
    spawn_blocking(move || server.start_again()).await.unwrap().unwrap();
    trial.over();
    let healthy = trial.healthy().await;
    trial.db.reconnect().await;
    let lost = ["57P01", "connection"];
    let refused = [
        "pool_wait_timeout",
        "pool_dial_timeout",
        "pool_dial_timeout 57P03",
        "pool_dial_failed",
        "pool_dial_failed 57P03",
    ];
    let got = trial.finish(healthy, &[&lost[..], &refused[..]].concat()).await;
    let lost: u64 = lost.iter().filter_map(|code| got.get(*code)).sum();
    assert!(lost <= ONCE, "{lost}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_stopped_fast_and_started_again_is_found_again() {
    a_stop_of_the_server("server stopped (fast), started again", StopMode::Fast).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_stopped_immediately_and_started_again_is_found_again() {
    a_stop_of_the_server("server stopped (immediate), started again", StopMode::Immediate).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_of_one_backend_costs_every_connection_once() {
    let mut trial = Trial::direct(
        "one backend crashes (SIGKILL), the server drops all and recovers",
        Db::alone(Options::default()).await,
    )
    .await;
    let victim = trial.db.pids().await[0];
    let kill = std::process::Command::new("kill").args(["-9", &victim.to_string()]).status();
    assert!(kill.unwrap().success());
    // Back when it says so a second time.
    let server = trial.db.server.clone();
    eventually(SOON, async || server.count_in_log("ready to accept connections") > 1).await;
    trial.over();
    let healthy = trial.healthy().await;
    trial.db.reconnect().await;
    let allowed = [
        "57P02",
        "connection",
        "pool_wait_timeout",
        "pool_dial_timeout",
        "pool_dial_timeout 57P03",
        "pool_dial_failed",
        "pool_dial_failed 57P03",
    ];
    let got = trial.finish(healthy, &allowed).await;
    let lost: u64 = allowed[..2].iter().filter_map(|code| got.get(*code)).sum();
    assert!((1..=ONCE).contains(&lost), "{got:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_postmaster_keeps_new_connections_out_and_the_open_ones_serve() {
    let trial =
        Trial::direct("postmaster frozen (SIGSTOP), one backend killed", Db::alone(Options::default()).await)
            .await;
    let frozen = Stopped::stop(vec![trial.db.server.postmaster_pid() as i32]);
    trial.db.kill(&trial.db.pids().await[..1]).await;
    let failures = trial.pool.snapshot().dial_failures;
    eventually(SOON, async || trial.pool.snapshot().dial_failures > failures).await;
    trial.sees(50, "ok").await;
    drop(frozen);
    trial.over();
    let healthy = trial.healthy().await;
    eventually(SOON, async || trial.db.pids().await.len() == MAX_SIZE).await;
    let got = trial.finish(healthy, &["57P01", "connection"]).await;
    assert!(got.values().sum::<u64>() - got["ok"] <= 1, "{got:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frozen_backends_cost_a_time_out_each_and_are_used_again_when_they_thaw() {
    let trial = Trial::direct("two of four backends frozen (SIGSTOP), then thawed", Db::shared().await).await;
    let mut before = trial.db.pids().await;
    let frozen = Stopped::stop(before[..2].to_vec());
    trial.sees(2, "timeout").await;
    trial.sees(50, "ok").await;
    drop(frozen);
    trial.over();
    let healthy = trial.healthy().await;
    eventually(SOON, async || trial.pool.snapshot().in_use + trial.pool.snapshot().idle == MAX_SIZE).await;
    let mut after = trial.db.pids().await;
    let got = trial.finish(healthy, &["timeout"]).await;
    assert_eq!(got["timeout"], 2, "a connection that is being settled is nobody else's");
    before.sort_unstable();
    after.sort_unstable();
    assert_eq!(before, after, "settled, not thrown away");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_black_hole_costs_time_outs_and_no_connection() {
    let db = Db::shared().await;
    let proxy = Proxy::before(db.server.port()).await;
    let builder = db.builder(proxy.port());
    let trial = Trial::start("port black-holed, both ways", db, builder).await;
    let mut before = trial.db.pids().await;
    proxy.black_hole().await;
    trial.sees(1, "timeout").await;
    trial.sees(2 * ONCE, "pool_wait_timeout").await;
    proxy.pass().await;
    trial.over();
    let healthy = trial.healthy().await;
    eventually(SOON, async || trial.pool.snapshot().in_use + trial.pool.snapshot().idle == MAX_SIZE).await;
    let mut after = trial.db.pids().await;
    let got = trial.finish(healthy, &["timeout", "pool_wait_timeout"]).await;
    assert!(got["timeout"] <= ONCE, "{got:?}");
    before.sort_unstable();
    after.sort_unstable();
    assert_eq!(before, after, "settled, not thrown away");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_reset_are_replaced_when_the_network_is_back() {
    let db = Db::shared().await;
    let proxy = Proxy::before(db.server.port()).await;
    let builder = db.builder(proxy.port());
    let trial = Trial::start("every connection reset, new ones too", db, builder).await;
    proxy.reset().await;
    trial.sees(1, "pool_dial_failed").await;
    // RST says nothing about the backend behind the proxy: over is over when the server has noticed too.
    trial.db.no_backend_is_left().await;
    proxy.pass().await;
    trial.over();
    let healthy = trial.healthy().await;
    let got = trial
        .finish(healthy, &["connection", "pool_wait_timeout", "pool_dial_timeout", "pool_dial_failed"])
        .await;
    assert!(got.get("connection").is_none_or(|&lost| lost <= ONCE), "{got:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_refuses_leaves_the_open_connections_alone() {
    let db = Db::shared().await;
    let proxy = Proxy::before(db.server.port()).await;
    let builder = db.builder(proxy.port());
    let trial = Trial::start("port refuses new connections, one backend killed", db, builder).await;
    proxy.refuse().await;
    trial.db.kill(&trial.db.pids().await[..1]).await;
    eventually(SOON, async || trial.pool.snapshot().dial_failures > 0).await;
    trial.sees(50, "ok").await;
    assert_eq!(trial.db.pids().await.len(), MAX_SIZE - 1);
    proxy.pass().await;
    trial.over();
    let healthy = trial.healthy().await;
    eventually(SOON, async || trial.db.pids().await.len() == MAX_SIZE).await;
    let got = trial.finish(healthy, &["57P01", "connection"]).await;
    assert!(got.values().sum::<u64>() - got["ok"] <= 1, "{got:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_used_up_by_somebody_else_are_taken_again_when_they_are_free() {
    let options = Options { max_connections: 14, ..Options::default() };
    let trial =
        Trial::direct("`max_connections` used up by another role, then freed", Db::alone(options).await)
            .await;
    let taken = timeout(SOON, take_all(&trial)).await.unwrap();
    drop(taken);
    trial.over();
    let healthy = trial.healthy().await;
    let allowed = [
        "57P01",
        "connection",
        "pool_wait_timeout",
        "pool_dial_timeout",
        "pool_dial_timeout 53300",
        "pool_dial_failed 53300",
        // The backend that was ended may be that of a dial under way.
        "pool_dial_timeout 57P01",
        "pool_dial_failed 57P01",
    ];
    trial.finish(healthy, &allowed).await;
}

/// Every connection that is not reserved for superusers, the pool's own too: whoever asks most often gets them. Done when
/// a caller has felt it.
async fn take_all(trial: &Trial) -> Vec<Client> {
    let db = &trial.db;
    db.admin.batch_execute("create role greedy login password 'secret'").await.unwrap();
    let mut greedy = db.config(db.server.port());
    greedy.user("greedy");
    let mut taken = Vec::new();
    loop {
        match greedy.connect(NoTls).await {
            Ok((client, connection)) => {
                tokio::spawn(connection);
                taken.push(client);
            }
            Err(full) => {
                assert_eq!(full.code(), Some(&SqlState::TOO_MANY_CONNECTIONS), "{full}");
                db.kill(&db.pids().await).await;
                if trial.count("pool_dial_failed 53300") > 0 {
                    return taken;
                }
                // A server with two cores has others to serve as well.
                sleep(Duration::from_millis(5)).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_password_shuts_new_connections_out_until_it_is_right() {
    let trial =
        Trial::direct("password changed, backends killed, password corrected", Db::shared().await).await;
    let role = trial.db.role.clone();
    let password = async |password: &str| {
        trial.db.admin.batch_execute(&format!("alter role {role} password '{password}'")).await.unwrap();
    };
    password("another").await;
    let open = trial.db.pids().await;
    trial.sees(50, "ok").await;
    assert_eq!(trial.db.pids().await, open, "who is in stays in");
    assert_eq!(trial.pool.snapshot().dial_failures, 0);
    trial.db.kill(&open).await;
    trial.sees(1, "pool_dial_failed 28P01").await;
    password("secret").await;
    trial.over();
    let healthy = trial.healthy().await;
    let allowed =
        ["57P01", "connection", "pool_wait_timeout", "pool_dial_timeout 28P01", "pool_dial_failed 28P01"];
    trial.finish(healthy, &allowed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_authentication_is_waited_for_within_the_deadline_and_not_beyond_it() {
    let db = Db::shared().await;
    let proxy = Proxy::before(db.server.port()).await;
    let builder = db.builder(proxy.port());
    let trial =
        Trial::start("authentication takes 0.1 s, then longer than `dial_timeout`", db, builder).await;
    proxy.delay(Duration::from_millis(100));
    trial.db.kill(&trial.db.pids().await).await;
    trial.over();
    trial.healthy().await;
    for code in ["pool_wait_timeout", "pool_dial_timeout", "pool_dial_failed"] {
        assert_eq!(trial.count(code), 0, "within the deadline");
    }
    eventually(SOON, async || trial.db.pids().await.len() == MAX_SIZE).await;
    proxy.delay(DIAL_TIMEOUT * 2);
    trial.db.kill(&trial.db.pids().await).await;
    trial.sees(1, "pool_dial_timeout").await;
    proxy.delay(Duration::ZERO);
    trial.over();
    let healthy = trial.healthy().await;
    let got = trial
        .finish(
            healthy,
            &["57P01", "connection", "pool_wait_timeout", "pool_dial_timeout", "pool_dial_failed"],
        )
        .await;
    let lost: u64 = ["57P01", "connection"].iter().filter_map(|code| got.get(*code)).sum();
    assert!(lost <= 2 * ONCE, "{lost}");
}

/// The RDS case: a middlebox drops the state of what was idle, and says nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_forgotten_by_a_middlebox_is_never_handed_out_as_good() {
    const FORGOTTEN: usize = MAX_SIZE - 1;
    const CHECK_AFTER: Duration = Duration::from_millis(50);
    const PATIENCE: Duration = Duration::from_secs(2);
    let db = Db::shared().await;
    let proxy = Proxy::before(db.server.port()).await;
    let builder = db.builder(proxy.port()).min_size(FORGOTTEN).min_limit(FORGOTTEN).check_after(CHECK_AFTER);
    let pool = builder.acquire_timeout(PATIENCE).build().unwrap();
    pool.ready().await.unwrap();
    eventually(SOON, async || pool.snapshot().idle == FORGOTTEN).await;
    let forgotten = db.pids().await;
    proxy.forget();
    // Not for anything to settle: idleness is what this is about.
    sleep(2 * CHECK_AFTER).await;

    let started = Instant::now();
    let connection = pool.acquire().await.unwrap();
    let found = started.elapsed();
    let pid: i32 = connection.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);
    assert!(!forgotten.contains(&pid));
    assert!(found < PATIENCE, "one silence is waited out, not {FORGOTTEN}: {found:?}");
    drop(connection);
    for _ in 0..20 {
        let connection = pool.acquire().await.unwrap();
        connection.query_one("select 1", &[]).await.unwrap();
    }
    let peak = db.pids().await.len();
    assert_eq!(peak, MAX_SIZE, "the server still counts those that are forgotten");
    assert_eq!(pool.snapshot().closing, FORGOTTEN, "and so does the pool, until it hears that they are gone");

    proxy.reset_forgotten();
    pool.drain(SOON).await.unwrap();
    db.no_backend_is_left().await;
    let refusal = format!("too many connections for role \"{}\"", db.role);
    assert_eq!(db.server.count_in_log(&refusal), 0);
    let seen = pool.snapshot();
    support::line::assert_ledgers_add_up(&seen);
    assert_eq!((seen.size, seen.written_off, seen.queries.failed, seen.queries.timed_out), (0, 0, 0, 0));
    let name = "idle connections dropped by a middlebox, new ones pass";
    println!("| {name} | {} ok | {} ms | {peak} of {MAX_SIZE} | 0 |", seen.queries.ok, found.as_millis());
}

/// The same when the caller has less time than a check.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_that_was_forgotten_keeps_nobody_past_the_deadline() {
    const SHORT: Duration = Duration::from_millis(60);
    let db = Db::shared().await;
    let proxy = Proxy::before(db.server.port()).await;
    let builder = db.builder(proxy.port()).min_size(2).min_limit(2).check_after(Duration::from_millis(50));
    let builder = builder.acquire_timeout(SHORT);
    let pool = builder.build().unwrap();
    pool.ready().await.unwrap();
    eventually(SOON, async || pool.snapshot().idle == 2).await;
    proxy.forget();
    sleep(Duration::from_millis(100)).await;
    let started = Instant::now();
    let error = pool.acquire().await.unwrap_err();
    assert_eq!(error.code(), "pool_wait_timeout");
    assert!(started.elapsed() < ACQUIRE_TIMEOUT, "{:?}", started.elapsed());
    eventually(SOON, async || match pool.acquire().await {
        Ok(connection) => connection.query_one("select 1", &[]).await.is_ok(),
        Err(_) => false,
    })
    .await;
    proxy.reset_forgotten();
    pool.drain(SOON).await.unwrap();
    db.no_backend_is_left().await;
}
