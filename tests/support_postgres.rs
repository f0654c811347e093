//! The throw-away PostgreSQL that the other tests stand on.

#![cfg(feature = "postgres")]

mod support;

use std::{
    env,
    io::{BufRead, BufReader},
    net::TcpListener,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use support::{
    eventually,
    postgres::{Options, PostgresServer, StopMode},
};
use tokio_postgres::{Client, NoTls, error::SqlState};

const DEADLINE: Duration = Duration::from_secs(20);

async fn connect(url: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn ask(client: &Client, sql: &str) -> String {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

fn signal(name: &str, target: &str) -> bool {
    let mut kill = Command::new("kill");
    kill.args(["-s", name, "--", target]).stderr(Stdio::null());
    kill.status().unwrap().success()
}

fn is_alive(pid: u32) -> bool {
    signal("0", &pid.to_string())
}

#[tokio::test]
async fn the_application_role_gets_an_answer_over_tcp_and_is_no_superuser() {
    let server = PostgresServer::start(Options::default()).unwrap();

    let client = connect(&server.app_url()).await.unwrap();
    assert_eq!(ask(&client, "select current_user || '@' || current_database()").await, "app@app");
    assert_eq!(ask(&client, "select host(inet_server_addr())").await, server.host());
    assert_eq!(ask(&client, "show is_superuser").await, "off");
    client.batch_execute("create table things (id int)").await.unwrap();

    let superuser = connect(&server.superuser_url()).await.unwrap();
    assert_eq!(ask(&superuser, "show is_superuser").await, "on");
    assert_eq!(ask(&superuser, "show max_connections").await, "120");
}

#[tokio::test]
async fn nobody_gets_in_with_a_wrong_password_neither_over_tcp_nor_over_the_socket() {
    let server = PostgresServer::start(Options::default()).unwrap();
    let socket = server.socket_dir().to_str().unwrap();
    for host in [server.host(), socket] {
        let mut login = tokio_postgres::Config::new();
        login.host(host).port(server.port()).user("app").dbname("app").password("wrong");
        let refusal = login.connect(NoTls).await.err().expect("a wrong password lets us in");
        assert_eq!(refusal.code(), Some(&SqlState::INVALID_PASSWORD), "over {host}");
    }
    assert_eq!(server.count_in_log("password authentication failed for user \"app\""), 2);
}

#[tokio::test]
async fn one_connection_more_than_the_role_may_have_is_refused_with_53300() {
    let options = Options { role_connection_limit: Some(2), ..Options::default() };
    let server = PostgresServer::start(options).unwrap();
    let _first = connect(&server.app_url()).await.unwrap();
    let _second = connect(&server.app_url()).await.unwrap();

    let refusal = connect(&server.app_url()).await.expect_err("a third connection was let in");
    assert_eq!(refusal.code(), Some(&SqlState::TOO_MANY_CONNECTIONS));
    assert_eq!(server.count_in_log("too many connections for role \"app\""), 1);
}

#[tokio::test]
async fn settings_of_the_caller_win_over_our_own() {
    let settings =
        vec![("max_connections".into(), "17".into()), ("application_name".into(), "it's ours".into())];
    let server = PostgresServer::start(Options { settings, ..Options::default() }).unwrap();
    let client = connect(&server.app_url()).await.unwrap();
    assert_eq!(ask(&client, "show max_connections").await, "17");
    assert_eq!(ask(&client, "show application_name").await, "it's ours");
}

#[test]
fn a_setting_that_postgres_does_not_know_is_an_error_that_shows_its_log() {
    let settings = vec![("no_such_setting".into(), "1".into())];
    let error = PostgresServer::start(Options { settings, ..Options::default() }).err();
    assert!(error.expect("it started").to_string().contains("no_such_setting"));
}

#[tokio::test]
async fn a_stopped_server_starts_again_on_the_same_port_with_the_same_data() {
    let server = PostgresServer::start(Options::default()).unwrap();
    let (url, first_pid) = (server.app_url(), server.postmaster_pid());
    let client = connect(&url).await.unwrap();
    client.batch_execute("create table kept (id int)").await.unwrap();

    for mode in [StopMode::Fast, StopMode::Immediate] {
        server.stop(mode).unwrap();
        assert!(connect(&url).await.is_err(), "answers after {mode:?}");
        server.start_again().unwrap();
        let client = connect(&url).await.unwrap();
        assert_eq!(ask(&client, "select count(*)::text from kept").await, "0");
    }
    assert!(!is_alive(first_pid));

    server.stop(StopMode::Fast).unwrap();
    let thief = TcpListener::bind((server.host(), server.port())).unwrap();
    let error = server.start_again().expect_err("two listen on one port");
    assert!(error.to_string().contains("Address already in use"));
    drop(thief);
    server.start_again().unwrap();
    server.restart().unwrap();
    assert!(server.start_again().is_err(), "started twice");
    assert!(connect(&url).await.is_ok());
}

#[tokio::test]
async fn a_smart_stop_waits_until_the_clients_have_left() {
    let server = PostgresServer::start(Options::default()).unwrap();
    let client = connect(&server.app_url()).await.unwrap();
    let url = server.app_url();

    let stop = tokio::task::spawn_blocking(move || (server.stop(StopMode::Smart), server));
    eventually(DEADLINE, async || connect(&url).await.is_err()).await;
    assert_eq!(ask(&client, "select 'still served'").await, "still served");
    drop(client);
    let (stopped, server) = stop.await.unwrap();
    stopped.unwrap();
    assert!(!is_alive(server.postmaster_pid()));
}

#[tokio::test]
async fn a_killed_server_starts_again() {
    let server = PostgresServer::start(Options::default()).unwrap();
    let pid = server.postmaster_pid();
    assert!(signal("KILL", &pid.to_string()));
    eventually(DEADLINE, async || !is_alive(pid)).await;
    // Its children need a moment to notice, and PostgreSQL does not start beside them.
    eventually(DEADLINE, async || server.start_again().is_ok()).await;
    assert!(connect(&server.app_url()).await.is_ok());
}

#[test]
fn nothing_is_left_after_drop_even_of_a_server_that_was_frozen() {
    for freeze in [false, true] {
        let server = PostgresServer::start(Options::default()).unwrap();
        let (pid, directory) = (server.postmaster_pid(), server.socket_dir().to_owned());
        assert!(is_alive(pid) && directory.exists());
        assert!(!freeze || signal("STOP", &pid.to_string()));
        drop(server);
        assert!(!is_alive(pid), "the server lives");
        assert!(!directory.exists(), "{} is still there", directory.display());
    }
}

#[test]
fn nothing_is_left_after_a_panic() {
    let mut left = None;
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let server = PostgresServer::start(Options::default()).unwrap();
        left = Some((server.postmaster_pid(), server.socket_dir().to_owned()));
        panic!("on purpose");
    }));
    assert!(panic.is_err());
    let (pid, directory) = left.unwrap();
    assert!(!is_alive(pid) && !directory.exists());
}

/// A process of its own that starts a server, says so, and then sleeps until it is killed.
struct Victim {
    child: Child,
    postmaster_pid: u32,
    directory: String,
}

const VICTIM: &str = "SUPPORT_POSTGRES_VICTIM";

impl Victim {
    /// Runs the named test once more, as a process that knows by its environment that it is the victim.
    fn start(test: &str, stopped: bool) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(VICTIM, if stopped { "stopped" } else { "running" })
            .process_group(0) // as a shell gives one to what is started in a terminal
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = lines.map_while(Result::ok).find(|line| line.starts_with("victim "));
        let line = line.expect("the victim did not start its server");
        let mut words = line.split(' ').skip(1);
        let postmaster_pid = words.next().unwrap().parse().unwrap();
        Self { child, postmaster_pid, directory: words.next().unwrap().to_owned() }
    }

    fn be_if_told_so() {
        let Ok(how) = env::var(VICTIM) else { return };
        let server = PostgresServer::start(Options::default()).unwrap();
        if how == "stopped" {
            server.stop(StopMode::Fast).unwrap();
        }
        let directory = server.socket_dir().display();
        println!("\nvictim {} {directory}", server.postmaster_pid());
        loop {
            std::thread::park();
        }
    }

    async fn leaves_nothing(mut self) {
        assert!(!self.child.wait().unwrap().success());
        eventually(DEADLINE, async || !is_alive(self.postmaster_pid)).await;
        eventually(DEADLINE, async || !Path::new(&self.directory).exists()).await;
    }
}

#[tokio::test]
async fn nothing_is_left_after_sigkill() {
    Victim::be_if_told_so();
    for stopped in [false, true] {
        let mut victim = Victim::start("nothing_is_left_after_sigkill", stopped);
        assert_eq!(is_alive(victim.postmaster_pid), !stopped);
        victim.child.kill().unwrap();
        victim.leaves_nothing().await;
    }
}

#[tokio::test]
async fn nothing_is_left_after_ctrl_c() {
    Victim::be_if_told_so();
    let victim = Victim::start("nothing_is_left_after_ctrl_c", false);
    assert!(is_alive(victim.postmaster_pid));
    // A terminal signals the whole foreground group.
    assert!(signal("INT", &format!("-{}", victim.child.id())));
    victim.leaves_nothing().await;
}
