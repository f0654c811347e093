//! What a server said last of its session: read by everybody, written by the ear in its stream.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// What the server said last.
///
/// Acquire pairs with the connection task's Release: who has seen the answer to a query sees its status too. (The channel
/// that brings the answer orders them as well; this keeps it from hanging on that.)
#[derive(Debug, Default)]
pub(super) struct Status {
    /// In ReadyForQuery: `I` idle, `T` in a transaction, `E` in a failed one; 0 before it said anything.
    transaction: AtomicU8,
    /// In CommandComplete: see [`Ending`].
    ending: AtomicU8,
    /// It waits for the data of a COPY … FROM STDIN.
    copying_in: AtomicBool,
    /// It sends those of a COPY … TO STDOUT.
    copying_out: AtomicBool,
}

/// How a transaction ended, in the server's words. It answers COMMIT with ROLLBACK, and without an error, when a statement
/// had failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Ending {
    Committed = b'C',
    RolledBack = b'R',
}

impl Ending {
    /// The whole payload of its CommandComplete.
    pub fn tag(self) -> &'static [u8] {
        match self {
            Self::Committed => b"COMMIT\0",
            Self::RolledBack => b"ROLLBACK\0",
        }
    }

    pub fn with_tag(length: u32) -> Option<Self> {
        [Self::Committed, Self::RolledBack].into_iter().find(|ending| ending.tag().len() == length as usize)
    }
}

impl Status {
    /// Outside a transaction.
    pub fn is_idle(&self) -> bool {
        self.transaction.load(Ordering::Acquire) == b'I'
    }

    /// In a transaction in which no statement has failed.
    pub fn is_open(&self) -> bool {
        self.transaction.load(Ordering::Acquire) == b'T'
    }

    /// In a transaction in which a statement has failed.
    pub fn is_failed(&self) -> bool {
        self.transaction.load(Ordering::Acquire) == b'E'
    }

    /// The server waits for data, or sends them: no answer to a query has come to its end.
    pub fn is_copying(&self) -> bool {
        self.is_copying_in() || self.copying_out.load(Ordering::Acquire)
    }

    /// The server waits for data.
    pub fn is_copying_in(&self) -> bool {
        self.copying_in.load(Ordering::Acquire)
    }

    /// How the last transaction ended, outside of one; in one, and where it ended by an error, nothing.
    pub fn ending(&self) -> Option<Ending> {
        let said = self.ending.load(Ordering::Acquire);
        [Ending::Committed, Ending::RolledBack].into_iter().find(|ending| *ending as u8 == said)
    }

    /// A COPY has begun: data come in, or go out.
    pub fn copies(&self, comes_in: bool) {
        let copying = if comes_in { &self.copying_in } else { &self.copying_out };
        copying.store(true, Ordering::Release);
    }

    /// A command was answered with this tag. Outside a transaction that says nothing: there was none to end.
    pub fn ended(&self, ending: Ending) {
        if !self.is_idle() {
            self.ending.store(ending as u8, Ordering::Release);
        }
    }

    /// ReadyForQuery, with this status.
    pub fn ready(&self, transaction: u8) {
        self.copying_in.store(false, Ordering::Release);
        self.copying_out.store(false, Ordering::Release);
        if transaction != b'I' {
            // What ended before was another transaction, or a part of this one.
            self.ending.store(0, Ordering::Release);
        }
        self.transaction.store(transaction, Ordering::Release);
    }
}
