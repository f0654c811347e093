//! A TCP proxy on loopback that can fail in the ways networks do: in front of a server that is well, it shows what a
//! client makes of a network that is not.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    select,
    sync::watch::{self, Receiver, Sender},
    task::AbortHandle,
    time::sleep,
};

use super::postgres::host::free_port;

/// Type and length of PostgreSQL's message that ends an answer; one byte more tells the state of the transaction.
const READY_FOR_QUERY: &[u8] = b"Z\0\0\0\x05";

/// What becomes of the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Pass,
    /// Nothing is forwarded either way, and no socket is closed: what a lost route looks like. A client still gets through
    /// the kernel's handshake (a process cannot drop SYNs), then hears nothing.
    BlackHole,
    /// Every connection ends with RST, new ones too.
    Reset,
    /// Nobody listens: RST instead of a handshake. Open connections go on.
    Refuse,
}

#[derive(Debug)]
struct State {
    mode: Mode,
    listening: bool,
    /// Connections so far; each has its number, counted from zero.
    accepted: u64,
    /// Older connections than this one are black-holed, whatever the mode.
    forgotten_before: u64,
    /// Older connections than this one are reset, whatever the mode.
    reset_before: u64,
    /// How long the server's first bytes on a new connection are held back.
    delay: Duration,
    /// How long the end of each answer of the server is held back, on connections that are new.
    late_ends: Duration,
    /// The first eight bytes of each connection: which request a client opened it for.
    openings: Vec<[u8; 8]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Forward,
    Hold,
    Reset,
}

impl State {
    fn fate(&self, number: u64) -> Fate {
        if self.mode == Mode::Reset || number < self.reset_before {
            Fate::Reset
        } else if self.mode == Mode::BlackHole || number < self.forgotten_before {
            Fate::Hold
        } else {
            Fate::Forward
        }
    }
}

/// The proxy. Dropped, it closes everything.
pub struct Proxy {
    port: u16,
    state: Sender<State>,
    acceptor: AbortHandle,
}

impl Proxy {
    /// In front of `port` on this machine.
    pub async fn before(port: u16) -> Self {
        let listener = loop {
            // Not a port for outgoing connections, which could be taken while nobody listens here.
            if let Ok(listener) = listen(free_port().unwrap()).await {
                break listener;
            }
        };
        let own = listener.local_addr().unwrap().port();
        let (state, _) = watch::channel(State {
            mode: Mode::Pass,
            listening: true,
            accepted: 0,
            forgotten_before: 0,
            reset_before: 0,
            delay: Duration::ZERO,
            late_ends: Duration::ZERO,
            openings: Vec::new(),
        });
        let server = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let acceptor = tokio::spawn(accept(listener, server, state.clone())).abort_handle();
        Self { port: own, state, acceptor }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Everything goes through again; what was held back arrives late, as after a retransmission.
    pub async fn pass(&self) {
        self.set(Mode::Pass).await;
    }

    /// Stops forwarding, both ways, without a word.
    pub async fn black_hole(&self) {
        self.set(Mode::BlackHole).await;
    }

    /// Resets every connection, on both sides, and every new one.
    pub async fn reset(&self) {
        self.set(Mode::Reset).await;
    }

    /// Refuses new connections; open ones go on.
    pub async fn refuse(&self) {
        self.set(Mode::Refuse).await;
    }

    /// Drops the state of every connection there is, as a middlebox does with those that were idle: neither side hears of
    /// the other again. New connections pass.
    pub fn forget(&self) {
        self.state.send_modify(|state| state.forgotten_before = state.accepted);
    }

    /// Both sides of every connection there is get RST, as a middlebox answers in the end for what it has forgotten.
    /// New connections pass.
    pub fn reset_forgotten(&self) {
        self.state.send_modify(|state| state.reset_before = state.forgotten_before);
    }

    /// Holds the server's first bytes on each new connection back.
    pub fn delay(&self, delay: Duration) {
        self.state.send_modify(|state| state.delay = delay);
    }

    /// Holds the end of each answer of PostgreSQL back, on new connections: a client that has its result, or an error, does
    /// not know yet whether a transaction is open.
    pub fn late_ends(&self, late: Duration) {
        self.state.send_modify(|state| state.late_ends = late);
    }

    /// How many connections there were so far, those into a black hole included.
    pub fn accepted(&self) -> usize {
        self.state.borrow().accepted as usize
    }

    /// The first eight bytes that each client sent: PostgreSQL tells requests by them.
    pub fn openings(&self) -> Vec<[u8; 8]> {
        self.state.borrow().openings.clone()
    }

    async fn set(&self, mode: Mode) {
        self.state.send_modify(|state| state.mode = mode);
        let mut watch = self.state.subscribe();
        let obeyed = watch.wait_for(|state| state.listening == (mode != Mode::Refuse));
        obeyed.await.expect("the proxy has its own sender");
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.acceptor.abort();
        // Connections outlive the acceptor; they end by this.
        self.state.send_modify(|state| state.mode = Mode::Reset);
    }
}

async fn listen(port: u16) -> std::io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await
}

async fn accept(mut listener: TcpListener, server: SocketAddr, state: Sender<State>) {
    let port = listener.local_addr().unwrap().port();
    let mut watch = state.subscribe();
    loop {
        select! {
            accepted = listener.accept() => {
                let Ok((client, _)) = accepted else { continue };
                let number = state.borrow().accepted;
                state.send_modify(|state| state.accepted += 1);
                tokio::spawn(connection(client, server, number, state.clone()));
                continue;
            }
            refusing = refusing(&mut watch, true) => if !refusing { return },
        }
        drop(listener);
        state.send_modify(|state| state.listening = false);
        if !refusing(&mut watch, false).await {
            return;
        }
        listener = listen(port).await.expect("nobody else has our port");
        state.send_modify(|state| state.listening = true);
    }
}

/// Waits until new connections are refused, or are not; `false` when the proxy is gone.
async fn refusing(watch: &mut Receiver<State>, refusing: bool) -> bool {
    watch.wait_for(|state| (state.mode == Mode::Refuse) == refusing).await.is_ok()
}

async fn connection(mut client: TcpStream, server: SocketAddr, number: u64, state: Sender<State>) {
    let mut valve = Valve { number, watch: state.subscribe() };
    let mut doom = Valve { number, watch: state.subscribe() };
    let mut upstream = None;
    let forwarding = async {
        // Nobody at the far end hears of a connection that was opened into a black hole.
        valve.open().await;
        let Ok(socket) = TcpStream::connect(server).await else { return };
        let upstream = upstream.insert(socket);
        let _ = (client.set_nodelay(true), upstream.set_nodelay(true));
        let (delay, late) = (state.borrow().delay, state.borrow().late_ends);
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = upstream.split();
        let up = pump(from_client, to_server, valve.clone(), [Duration::ZERO; 2], Some(&state));
        let down = pump(from_server, to_client, valve, [delay, late], None);
        tokio::join!(up, down);
    };
    select! {
        () = forwarding => {}
        () = doom.reset() => {
            // Closed with data or without, the peer gets RST.
            let _ = client.set_zero_linger();
            if let Some(upstream) = upstream {
                let _ = upstream.set_zero_linger();
            }
        }
    }
}

/// One direction, until its source ends: then its sink is told so, and the other direction may go on.
async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut valve: Valve,
    [delay, late]: [Duration; 2],
    state: Option<&Sender<State>>,
) {
    let mut bytes = vec![0; 16 * 1024];
    let mut first = true;
    while let Ok(read @ 1..) = from.read(&mut bytes).await {
        if first {
            first = false;
            if let (Some(state), Some(opening)) = (state, bytes[..read].first_chunk()) {
                state.send_modify(|state| state.openings.push(*opening));
            }
            sleep(delay).await;
        }
        valve.open().await;
        let start = read.saturating_sub(READY_FOR_QUERY.len() + 1);
        let at =
            if !late.is_zero() && bytes[start..read].starts_with(READY_FOR_QUERY) { start } else { read };
        let (start, end) = bytes[..read].split_at(at);
        if to.write_all(start).await.is_err() {
            break;
        }
        if !end.is_empty() {
            sleep(late).await;
            if to.write_all(end).await.is_err() {
                break;
            }
        }
    }
    valve.open().await;
    let _ = to.shutdown().await;
}

/// What a connection may do now.
#[derive(Clone)]
struct Valve {
    number: u64,
    watch: Receiver<State>,
}

impl Valve {
    async fn open(&mut self) {
        self.is(Fate::Forward).await;
    }

    async fn reset(&mut self) {
        self.is(Fate::Reset).await;
    }

    async fn is(&mut self, fate: Fate) {
        // Without its proxy a connection has no fate: it ends by RST before that.
        let _ = self.watch.wait_for(|state| state.fate(self.number) == fate).await;
    }
}
