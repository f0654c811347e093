//! A database that exists only in memory: it counts its sockets as a server would, takes its time to open and to let go
//! of them, and fails on request. On a paused clock all of it is exact.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::sleep;
use tower_adaptive_pool::{AdaptivePool, Backend, Builder, Connection, ConnectionState, Place};

#[derive(Clone, Debug, Default)]
pub struct Sim(Arc<Server>);

#[derive(Debug)]
pub struct Server {
    /// Sockets the server counts now, and the most it ever counted.
    open: AtomicUsize,
    peak: AtomicUsize,
    dials: AtomicUsize,
    dialing: AtomicUsize,
    peak_dialing: AtomicUsize,
    down: AtomicBool,
    panics: AtomicBool,
    /// Idle connections no longer answer.
    silent: AtomicBool,
    checks: AtomicUsize,
    dial_time: Mutex<Duration>,
    /// Between the client's goodbye and the moment the server has let go.
    linger: Mutex<Duration>,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            open: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            dials: AtomicUsize::new(0),
            dialing: AtomicUsize::new(0),
            peak_dialing: AtomicUsize::new(0),
            down: AtomicBool::new(false),
            panics: AtomicBool::new(false),
            silent: AtomicBool::new(false),
            checks: AtomicUsize::new(0),
            dial_time: Mutex::new(Duration::from_millis(3)),
            linger: Mutex::new(Duration::from_millis(1)),
        }
    }
}

impl Sim {
    pub fn open(&self) -> usize {
        self.0.open.load(SeqCst)
    }

    pub fn peak(&self) -> usize {
        self.0.peak.load(SeqCst)
    }

    /// Counts the peak anew from here.
    pub fn forget_peak(&self) {
        self.0.peak.store(self.open(), SeqCst);
    }

    pub fn dials(&self) -> usize {
        self.0.dials.load(SeqCst)
    }

    pub fn peak_dialing(&self) -> usize {
        self.0.peak_dialing.load(SeqCst)
    }

    pub fn go_down(&self, down: bool) {
        self.0.down.store(down, SeqCst);
    }

    pub fn is_down(&self) -> bool {
        self.0.down.load(SeqCst)
    }

    /// From now on no connection answers a check.
    pub fn go_silent(&self) {
        self.0.silent.store(true, SeqCst);
    }

    pub fn checks(&self) -> usize {
        self.0.checks.load(SeqCst)
    }

    pub fn panic_on_dial(&self, panics: bool) {
        self.0.panics.store(panics, SeqCst);
    }

    pub fn dial_takes(&self, time: Duration) {
        *self.0.dial_time.lock().unwrap() = time;
    }

    pub fn lingers(&self, time: Duration) {
        *self.0.linger.lock().unwrap() = time;
    }
}

/// A socket as the server sees it; dropped by the client, the server lets go of it after its time.
#[derive(Debug)]
struct Socket {
    server: Arc<Server>,
    place: Option<Place>,
}

impl Socket {
    fn new(server: Arc<Server>, place: Place) -> Self {
        let open = server.open.fetch_add(1, SeqCst) + 1;
        server.peak.fetch_max(open, SeqCst);
        Self { server, place: Some(place) }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let (server, place) = (self.server.clone(), self.place.take());
        let linger = *server.linger.lock().unwrap();
        let gone = move || {
            server.open.fetch_sub(1, SeqCst);
            drop(place);
        };
        match Handle::try_current() {
            Ok(runtime) if !linger.is_zero() => drop(runtime.spawn(async move {
                sleep(linger).await;
                gone();
            })),
            _ => gone(),
        }
    }
}

/// A connection whose state the test decides.
#[derive(Debug)]
pub struct Conn {
    socket: Socket,
    state: Arc<Mutex<ConnectionState>>,
    pub serial: usize,
}

impl Conn {
    /// A handle on its state, to be changed while somebody else has it or nobody.
    pub fn remote(&self) -> Arc<Mutex<ConnectionState>> {
        self.state.clone()
    }

    pub fn set(&self, state: ConnectionState) {
        *self.state.lock().unwrap() = state;
    }
}

#[derive(Debug)]
pub struct Refused;

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the simulated server is down")
    }
}

impl std::error::Error for Refused {}

/// One more dial under way, until it is dropped.
struct Dialing<'a>(&'a Server);

impl Drop for Dialing<'_> {
    fn drop(&mut self) {
        self.0.dialing.fetch_sub(1, SeqCst);
    }
}

impl Backend for Sim {
    type Connection = Conn;
    type Error = Refused;

    async fn dial(&self, place: Place) -> Result<Conn, Refused> {
        let server = &self.0;
        let serial = server.dials.fetch_add(1, SeqCst);
        let dialing = server.dialing.fetch_add(1, SeqCst) + 1;
        server.peak_dialing.fetch_max(dialing, SeqCst);
        let _dialing = Dialing(server);
        assert!(!server.panics.load(SeqCst), "the backend panics, as asked");
        let socket = Socket::new(server.clone(), place);
        let time = *server.dial_time.lock().unwrap();
        sleep(time).await;
        if server.down.load(SeqCst) {
            return Err(Refused);
        }
        Ok(Conn { socket, state: Arc::new(Mutex::new(ConnectionState::Ready)), serial })
    }

    fn state(&self, connection: &Conn) -> ConnectionState {
        debug_assert!(connection.socket.place.is_some());
        *connection.state.lock().unwrap()
    }

    /// Takes a millisecond, fails when the server is down, and takes for ever when it is silent.
    async fn check(&self, connection: &mut Conn) -> Result<(), Refused> {
        self.0.checks.fetch_add(1, SeqCst);
        if self.0.silent.load(SeqCst) {
            std::future::pending::<()>().await;
        }
        sleep(Duration::from_millis(1)).await;
        if self.0.down.load(SeqCst) {
            return Err(Refused);
        }
        connection.set(ConnectionState::Ready);
        Ok(())
    }

    async fn settle(&self, connection: &mut Conn) -> Result<(), Refused> {
        self.check(connection).await
    }
}

/// A pool of which `min_size` connections are open.
pub async fn open(builder: Builder<Sim>) -> AdaptivePool<Sim> {
    let pool = builder.build().unwrap();
    pool.ready().await.unwrap();
    pool
}

/// So many connections in use.
pub async fn take(pool: &AdaptivePool<Sim>, connections: usize) -> Vec<Connection<Sim>> {
    let mut taken = Vec::new();
    for _ in 0..connections {
        taken.push(pool.acquire().await.unwrap());
    }
    taken
}
