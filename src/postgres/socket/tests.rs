use super::*;
use std::net::{Ipv4Addr, TcpListener};

const LIMIT: Duration = Duration::from_millis(400);

fn listening() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
}

/// An address that refuses: somebody had the port, and keeps it from others.
pub fn refusing() -> (socket2::Socket, SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

/// An address that answers nothing: its listener takes nobody, and its queue is full.
fn silent() -> (Vec<socket2::Socket>, SocketAddr) {
    let (listener, address) = refusing();
    listener.listen(0).unwrap();
    let mut held = vec![listener];
    loop {
        let client = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let full = client.connect_timeout(&address.into(), LIMIT).is_err();
        held.push(client);
        if full {
            return (held, address);
        }
    }
}

fn finder(instead: &[SocketAddr], limit: Option<Duration>) -> Finder {
    let mut config = Config::new();
    if let Some(limit) = limit {
        config.connect_timeout(limit);
    }
    Finder { instead: instead.to_vec(), ..Finder::new(config) }
}

async fn reached(finder: &Finder) -> SocketAddr {
    match finder.connect().await.unwrap().1 {
        Peer::Tcp(address) => address,
        #[cfg(unix)]
        Peer::Unix(_) => unreachable!("there is none"),
    }
}

#[tokio::test]
async fn each_address_of_a_name_has_its_own_limit_and_one_that_answers_is_remembered() {
    let ((_held, dead), (_kept, gone), live) = (silent(), refusing(), listening());
    let live = live.local_addr().unwrap();
    let finder = finder(&[dead, gone, dead, live], Some(LIMIT));
    let began = Instant::now();
    assert_eq!(reached(&finder).await, live);
    assert!(began.elapsed() >= 2 * LIMIT, "two were waited for, one after the other");
    let began = Instant::now();
    assert_eq!(reached(&finder).await, live);
    assert!(began.elapsed() < LIMIT, "not again");
}

#[tokio::test]
async fn without_connect_timeout_one_of_several_addresses_does_not_take_all_the_time() {
    let ((_held, dead), live) = (silent(), listening());
    let live = live.local_addr().unwrap();
    assert_eq!(reached(&finder(&[dead, live], None)).await, live);
}

#[tokio::test]
async fn dials_at_once_do_not_send_each_other_to_an_address_that_is_dead() {
    let ((_held, dead), live) = (silent(), listening());
    let live = live.local_addr().unwrap();
    let finder = finder(&[dead, live], Some(LIMIT));
    assert_eq!(reached(&finder).await, live);
    let began = Instant::now();
    let four = tokio::join!(reached(&finder), reached(&finder), reached(&finder), reached(&finder));
    assert_eq!(four, (live, live, live, live));
    assert!(began.elapsed() < LIMIT, "none began with the dead one");
}

#[tokio::test]
async fn an_address_that_is_not_wanted_comes_last() {
    let (first, second) = (listening(), listening());
    let [first, second] = [first.local_addr().unwrap(), second.local_addr().unwrap()];
    let finder = finder(&[first, second], Some(LIMIT));
    assert_eq!(reached(&finder).await, first);
    finder.avoid(&Peer::Tcp(first));
    assert_eq!([reached(&finder).await, reached(&finder).await], [second, second]);
}

/// `dial_timeout` may be shorter than the limit of one address.
#[tokio::test]
async fn a_dial_that_was_given_up_is_followed_by_one_that_begins_at_the_next_address() {
    let ((_held, dead), live) = (silent(), listening());
    let live = live.local_addr().unwrap();
    let finder = finder(&[dead, live], Some(Duration::from_secs(60)));
    timeout(LIMIT, finder.connect()).await.expect_err("it hangs");
    assert_eq!(timeout(LIMIT, reached(&finder)).await.unwrap(), live);
}

#[tokio::test]
async fn where_no_address_answers_the_error_names_the_setting() {
    let (_held, dead) = silent();
    let finder = finder(&[dead], Some(LIMIT));
    let error = finder.connect().await.map(|(_, peer, _)| peer).unwrap_err();
    assert_eq!(error.to_string(), format!("no connection to {dead} within {LIMIT:?} (connect_timeout)"));
}
