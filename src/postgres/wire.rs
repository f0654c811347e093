//! Reads along with what the server says, for one byte: the transaction status in ReadyForQuery.
//!
//! Messages are a type byte and a big-endian length that counts itself, then the payload (PostgreSQL manual, «Message
//! Formats»). Nothing is kept but the position inside a message, so reading along costs a few instructions a message.

use std::sync::atomic::{AtomicU8, Ordering};

/// What the server said last: `I` idle, `T` in a transaction, `E` in a failed one; 0 before it said anything.
#[derive(Debug, Default)]
pub(super) struct Status(AtomicU8);

impl Status {
    /// Outside a transaction.
    ///
    /// Acquire pairs with the connection task's Release: who has seen the answer to a query sees its status too. (The
    /// channel that brings the answer orders them as well; this keeps it from hanging on that.)
    pub fn is_idle(&self) -> bool {
        self.0.load(Ordering::Acquire) == b'I'
    }

    /// In a transaction in which a statement has failed.
    pub fn is_failed(&self) -> bool {
        self.0.load(Ordering::Acquire) == b'E'
    }

    fn set(&self, status: u8) {
        self.0.store(status, Ordering::Release);
    }
}

/// The type byte of ReadyForQuery, whose payload is the status.
const READY_FOR_QUERY: u8 = b'Z';

/// Where in a stream of messages the next byte stands.
#[derive(Clone, Copy, Debug)]
pub(super) enum Frames {
    /// Nothing read yet: the answer to an SSLRequest may come first.
    Start,
    /// In the five bytes of a header: the type once known, the length so far, and how many bytes were read.
    Header { kind: u8, length: u32, read: u8 },
    /// In a payload, with so many bytes to come.
    Payload { kind: u8, left: u32 },
    /// TLS took over: what follows is not for us to read.
    Opaque,
}

const HEADER: Frames = Frames::Header { kind: 0, length: 0, read: 0 };

impl Frames {
    /// For a stream that begins with a message, such as the one inside TLS.
    pub fn inside_tls() -> Self {
        HEADER
    }

    pub fn read(&mut self, mut bytes: &[u8], status: &Status) {
        while let Some((&byte, rest)) = bytes.split_first() {
            *self = match *self {
                Self::Opaque => return,
                Self::Start => match byte {
                    // Refused TLS: one byte, and messages follow.
                    b'N' => HEADER,
                    // Authentication, an error, or a protocol version to negotiate: the first message itself.
                    b'R' | b'E' | b'v' => Self::Header { kind: byte, length: 0, read: 1 },
                    _ => Self::Opaque,
                },
                Self::Header { read: 0, .. } => Self::Header { kind: byte, length: 0, read: 1 },
                Self::Header { kind, length, read } => {
                    let length = length << 8 | u32::from(byte);
                    match (read, length.saturating_sub(4)) {
                        (4, 0) => HEADER,
                        (4, left) => Self::Payload { kind, left },
                        _ => Self::Header { kind, length, read: read + 1 },
                    }
                }
                Self::Payload { kind, left } => {
                    if kind == READY_FOR_QUERY {
                        status.set(byte);
                    }
                    // The first byte is this one; skip as much of the payload as is here.
                    let here = rest.len().min(left as usize - 1);
                    bytes = &rest[here..];
                    *self = match left - 1 - here as u32 {
                        0 => HEADER,
                        left => Self::Payload { kind, left },
                    };
                    continue;
                }
            };
            bytes = rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(kind: u8, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32 + 4).to_be_bytes();
        [&[kind], &length[..], payload].concat()
    }

    fn last_status(mut frames: Frames, bytes: &[u8], cut: usize) -> u8 {
        let status = Status::default();
        for piece in bytes.chunks(cut.max(1)) {
            frames.read(piece, &status);
        }
        status.0.into_inner()
    }

    #[test]
    fn a_refused_ssl_request_comes_before_the_messages() {
        let stream = [b"N".to_vec(), message(b'R', &[0; 4]), message(b'Z', b"I")].concat();
        assert_eq!(last_status(Frames::Start, &stream, 1), b'I');
    }

    #[test]
    fn a_stream_that_became_tls_is_left_alone() {
        let stream = [b"S".to_vec(), message(b'Z', b"T")].concat();
        assert_eq!(last_status(Frames::Start, &stream, 64), 0);
    }

    proptest! {
        #[test]
        fn it_finds_the_last_status_however_the_stream_is_cut(
            messages in prop::collection::vec(
                (any::<u8>(), prop::collection::vec(any::<u8>(), 0..40)), 0..20,
            ),
            statuses in prop::collection::vec(prop::sample::select(&b"ITE"[..]), 1..20),
            cut in 1usize..50,
        ) {
            let mut stream = message(b'R', &[0; 4]);
            for (index, status) in statuses.iter().enumerate() {
                if let Some((kind, payload)) = messages.get(index).filter(|(kind, _)| *kind != b'Z') {
                    stream.extend(message(*kind, payload));
                }
                stream.extend(message(b'Z', &[*status]));
            }
            prop_assert_eq!(last_status(Frames::Start, &stream, cut), *statuses.last().unwrap());
        }
    }
}
