//! The throw-away Redis that the adapter's test stands on: nothing is left of it, however its owner ends.

mod support;

use std::{
    env,
    io::{BufRead, BufReader},
    net::{Ipv4Addr, TcpStream},
    panic::catch_unwind,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use support::{eventually, redis::RedisServer};

const DEADLINE: Duration = Duration::from_secs(20);
/// Says that this process is to be killed.
const VICTIM: &str = "THROW_AWAY_REDIS_VICTIM";

fn listens(port: u16) -> bool {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
}

#[test]
fn nothing_is_left_after_a_panic() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let panicked = catch_unwind(move || {
        let server = RedisServer::start();
        assert!(listens(server.0.port()) && server.0.directory().exists());
        sender.send((server.0.port(), server.0.directory().to_owned())).unwrap();
        panic!("as planned");
    });
    assert!(panicked.is_err());
    let (port, directory) = receiver.recv().unwrap();
    assert!(!listens(port) && !directory.exists());
}

#[tokio::test]
async fn nothing_is_left_after_sigkill() {
    if env::var_os(VICTIM).is_some() {
        let server = RedisServer::start();
        println!("\nvictim {} {}", server.0.port(), server.0.directory().display());
        loop {
            std::thread::park();
        }
    }
    let mut victim = Command::new(env::current_exe().unwrap())
        .args(["--exact", "nothing_is_left_after_sigkill", "--nocapture"])
        .env(VICTIM, "yes")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(victim.stdout.take().unwrap()).lines();
    let line = lines.map_while(Result::ok).find(|line| line.starts_with("victim "));
    let line = line.expect("the victim did not start its server");
    let mut words = line.split(' ').skip(1);
    let port = words.next().unwrap().parse().unwrap();
    let directory = Path::new(words.next().unwrap());
    assert!(listens(port) && directory.exists());

    victim.kill().unwrap();
    victim.wait().unwrap();
    eventually(DEADLINE, async || !listens(port) && !directory.exists()).await;
}
