//! A throw-away Redis.

use super::daemon::{Daemon, Program};

const REDIS: Program<'static> = Program {
    name: "redis",
    command: "exec redis-server --bind 127.0.0.1 --port \"$PORT\" --save '' --appendonly no --dir \"$DIRECTORY\" --daemonize no",
    ready: "Ready to accept connections",
    files: &|_| Vec::new(),
};

/// A running server.
pub struct RedisServer(pub Daemon);

impl RedisServer {
    /// Returns when it accepts connections.
    pub fn start() -> Self {
        Self(Daemon::start(&REDIS))
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.0.port())
    }
}
