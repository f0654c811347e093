//! Cancel requests: over a socket of their own, to the session's own server, and never beyond the use they are meant for.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;

use tokio::spawn;
use tokio::sync::Mutex;
use tokio_postgres::CancelToken as Key;

use super::DialError;
use super::dial::Dial;
use super::socket::Peer;

/// Cancels what runs on one connection, for as long as the use lasts in which it was
/// [made](crate::Connection::cancel_token). Cheap to clone.
#[derive(Clone)]
pub struct CancelToken {
    dialer: Arc<dyn Dial>,
    target: Target,
    life: Shared,
}

/// Whom a cancel is meant for: the session of this key on this server, whatever else its name leads to by now.
#[derive(Clone)]
pub(super) struct Target {
    pub key: Key,
    pub peer: Peer,
    pub has_disguised_key: bool,
}

/// Locked while a cancel request is under way, so that the use does not end before the server has acted on it.
type Shared = Arc<Mutex<Life>>;

/// Of a use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Lasts,
    /// It lasts, and a cancel request was sent of which nobody knows whether the server has acted on it.
    Unsure,
    Over,
}

impl CancelToken {
    /// Asks the server to cancel what runs on the connection now, and resolves when it has acted: the statement fails with
    /// 57014, unless it ended before. Dropping this future does not take the request back.
    ///
    /// # Errors
    /// [`CancelError::UseEnded`] when the connection has been given back, and nothing was sent;
    /// [`CancelError::Dial`] when the server could not be reached within 5 s, or did not end the request: the connection is
    /// closed then when it comes back, because the request may still arrive.
    pub async fn cancel(&self) -> Result<(), CancelError> {
        let mut life = self.life.clone().lock_owned().await;
        if *life == Life::Over {
            return Err(CancelError::UseEnded);
        }
        let Self { dialer, target, .. } = self.clone();
        // On a task of its own: once sent, the request may act, and the use must not end before.
        let sent = spawn(async move {
            let before = std::mem::replace(&mut *life, Life::Unsure);
            dialer.cancel(&target).await?;
            *life = before;
            Ok(())
        });
        sent.await.unwrap_or_else(|_| Err(not_seen())).map_err(CancelError::Dial)
    }
}

/// Whether the server has acted, and whether it will, is not known.
pub(super) fn not_seen() -> DialError {
    DialError::Connect(io::Error::other("the cancel request was not seen to end"))
}

impl fmt::Debug for CancelToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancelToken").finish_non_exhaustive()
    }
}

/// Why a query was not cancelled.
#[derive(Debug)]
#[non_exhaustive]
pub enum CancelError {
    /// The connection has been given back: what runs on it now is somebody else's.
    UseEnded,
    /// The server could not be reached.
    Dial(DialError),
}

impl fmt::Display for CancelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UseEnded => {
                f.write_str("the connection has been given back: its cancel token has ended with its use")
            }
            Self::Dial(error) => write!(f, "the cancel request was not delivered: {error}"),
        }
    }
}

impl Error for CancelError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::UseEnded => None,
            Self::Dial(error) => Some(error),
        }
    }
}

/// The present use of a session.
#[derive(Debug, Default)]
pub(super) struct Use(parking_lot::Mutex<Option<Shared>>);

impl Use {
    pub fn token(&self, dialer: Arc<dyn Dial>, target: Target) -> CancelToken {
        let life = self.0.lock().get_or_insert_with(|| Arc::new(Mutex::new(Life::Lasts))).clone();
        CancelToken { dialer, target, life }
    }

    /// Resolves when no token of this use sends anything any more. False when a request that was sent may still act.
    pub async fn end(&mut self) -> bool {
        match self.0.get_mut().take() {
            Some(life) => std::mem::replace(&mut *life.lock().await, Life::Over) == Life::Lasts,
            None => true,
        }
    }
}
