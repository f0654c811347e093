use super::*;
use crate::backend::PlaceOwner;
use crate::postgres::socket::tests::refusing;
use std::net::Ipv4Addr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

struct Nobody;

impl PlaceOwner for Nobody {
    fn place_freed(&self) {}
    fn connection_lost(&self) {}
    fn place_written_off(&self) {}
}

/// Lets one session in, and answers what it sends with ReadyForQuery.
async fn serve(mut socket: TcpStream) -> io::Result<()> {
    const READY: &[u8] = b"Z\0\0\0\x05I";
    let length = socket.read_u32().await?;
    socket.read_exact(&mut vec![0; length as usize - 4]).await?;
    socket.write_all(b"R\0\0\0\x08\0\0\0\0K\0\0\0\x0c\0\0\0\x01\0\0\0\x02").await?;
    socket.write_all(READY).await?;
    loop {
        socket.read_u8().await?;
        let length = socket.read_u32().await?;
        socket.read_exact(&mut vec![0; length as usize - 4]).await?;
        socket.write_all(READY).await?;
    }
}

#[tokio::test]
async fn a_cancel_goes_to_the_sessions_own_server_whatever_else_its_name_leads_to_by_now() {
    for disguises_key in [false, true] {
        let own = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let own_address = own.local_addr().unwrap();
        let (other, other_address) = refusing();
        let mut config = Config::new();
        config.user("app").password("x");
        let mut dialer = Dialer::new(config, NoTls);
        dialer.finder.instead = vec![other_address, own_address];
        let wishes = Wishes { query_timeout: Duration::from_secs(5), disguises_key };
        let place = Place::new(Arc::downgrade(&Arc::new(Nobody)));
        let opened = tokio::join!(dialer.open(place, wishes), async {
            tokio::spawn(serve(own.accept().await.unwrap().0));
        });
        let session = opened.0.unwrap();

        // By now there is a server at the other address too.
        other.listen(1).unwrap();
        other.set_nonblocking(true).unwrap();
        let other = TcpListener::from_std(other.into()).unwrap();
        dialer.finder.instead = vec![other_address];
        let key = [0, 0, 0, 1, 0, 0, 0, 2];
        let received = async {
            let mut request = [0; 16];
            let (mut socket, _) = own.accept().await.unwrap();
            socket.read_exact(&mut request).await.unwrap();
            assert_eq!(request[8..], key, "with the true key");
            let half_closed = timeout(Duration::from_millis(50), socket.read_u8()).await;
            assert!(half_closed.is_err(), "our side stays open until the server has acted");
        };
        let both = async { tokio::join!(dialer.send_cancel(&session.target), received).0 };
        let sent =
            timeout(Duration::from_secs(10), both).await.expect("it arrives at the session's own server");
        sent.unwrap();
        let elsewhere = timeout(Duration::ZERO, other.accept()).await;
        assert!(elsewhere.is_err(), "nobody else was asked");
    }
}
