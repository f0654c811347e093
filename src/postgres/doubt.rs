//! What is not known of a session until it has been settled, and what is under way on it.

use std::sync::atomic::{AtomicU16, AtomicU32, Ordering::Relaxed};

/// Something that the next user of a session must be spared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Doubt {
    /// The server has gone away: of no more use.
    Lost = 1,
    /// A statement was left before its end, and may be running: to be cancelled.
    Running = 2,
    /// A statement failed: the driver says so before the end of the server's answer, which alone tells whether a
    /// transaction is open. To be fenced.
    Unread = 4,
    /// A COPY in was left before its end, or failed so that the driver got out of step: no query gets an answer it could
    /// be sure of. To be proven to be in step.
    OutOfStep = 8,
    /// `raw()` was used, in a way that nobody knows. To be fenced, perhaps cancelled, and proven to be in step.
    Raw = 16,
    /// Nobody else is to have it: what may be running on it is cancelled, then it is closed.
    Unwanted = 32,
    /// The server said that it is read-only (25006): it may have become a standby.
    ReadOnly = 64,
    /// A COMMIT was sent and not answered. It is waited for, and nothing is cancelled.
    Committing = 128,
    /// A statement was given up whose outcome nobody knows. The transaction it belongs to is not committed.
    Abandoned = 256,
    /// There is a cancel token for this use.
    Token = 512,
}

/// All doubts of one session, and how much is under way on it. Only its user changes them, so no order between them and
/// other memory is needed; who settles it got it through the pool's lock.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    set: AtomicU16,
    /// How many statements were begun in all, and which of them is the COMMIT in doubt.
    begun: AtomicU32,
    commit: AtomicU32,
    /// Statements begun and neither ended nor given up: those of futures that were forgotten too.
    under_way: AtomicU32,
    /// Streams: as long as one is held, the answer to any other statement may have to wait for it.
    streams: AtomicU32,
}

impl Doubts {
    pub fn add(&self, doubt: Doubt) {
        self.set.fetch_or(doubt as u16, Relaxed);
    }

    pub fn remove(&self, doubt: Doubt) {
        self.set.fetch_and(!(doubt as u16), Relaxed);
    }

    pub fn has(&self, doubt: Doubt) -> bool {
        self.set.load(Relaxed) & doubt as u16 != 0
    }

    pub fn is_any(&self) -> bool {
        self.set.load(Relaxed) != 0 || self.is_under_way() || self.has_stream()
    }

    /// An answer was seen while nothing else was under way, and with it the end of everything that was sent before.
    pub fn all_has_ended(&self) {
        for doubt in [Doubt::Running, Doubt::Abandoned, Doubt::Unread, Doubt::Committing] {
            self.remove(doubt);
        }
    }

    /// Whether a statement may still be running.
    pub fn is_running(&self) -> bool {
        self.has(Doubt::Running) || self.is_under_way()
    }

    /// Whether a statement has neither ended nor been given up: when its user has gone, it was forgotten.
    pub fn is_under_way(&self) -> bool {
        self.under_way.load(Relaxed) != 0
    }

    /// Whether the end of some answer has not been seen.
    pub fn is_unread(&self) -> bool {
        self.has(Doubt::Unread) || self.is_running()
    }

    /// A statement begins: returns its number.
    pub fn begin(&self) -> u32 {
        self.under_way.fetch_add(1, Relaxed);
        self.begun.fetch_add(1, Relaxed)
    }

    pub fn end(&self) {
        self.under_way.fetch_sub(1, Relaxed);
    }

    /// The statement of this number is a COMMIT, about to be sent.
    pub fn commit(&self, number: u32) {
        self.commit.store(number, Relaxed);
        self.add(Doubt::Committing);
    }

    /// The statement of this number was answered: if it was sent after the COMMIT, so was that.
    pub fn answered(&self, number: u32) {
        if self.has(Doubt::Committing) && number.wrapping_sub(self.commit.load(Relaxed)).cast_signed() >= 0 {
            self.remove(Doubt::Committing);
        }
    }

    /// A stream is about to be opened, and held until the answer is dropped.
    pub fn hold_stream(&self) -> Held<'_> {
        self.streams.fetch_add(1, Relaxed);
        Held(self)
    }

    pub fn has_stream(&self) -> bool {
        self.streams.load(Relaxed) != 0
    }
}

/// A stream that somebody holds.
#[derive(Debug)]
pub(super) struct Held<'a>(&'a Doubts);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Relaxed);
    }
}
