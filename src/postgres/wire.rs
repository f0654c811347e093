//! Reads along with what the server says, for four things: whether a transaction is open, how the last one ended, whether
//! a COPY is under way, and the key that cancels its queries.
//!
//! Messages are a type byte and a big-endian length that counts itself, then the payload (PostgreSQL manual, "Message
//! Formats"). Nothing is kept but the position inside a message, so reading along costs a few instructions a message.

use std::sync::Arc;

use super::status::{Ending, Status};

/// The type byte of ReadyForQuery, whose payload is the status.
const READY_FOR_QUERY: u8 = b'Z';
/// Of CommandComplete, whose payload is the tag and a zero.
const COMMAND_COMPLETE: u8 = b'C';
/// Of BackendKeyData: four bytes of process id, four of key.
const BACKEND_KEY_DATA: u8 = b'K';
const COPY_IN_RESPONSE: u8 = b'G';
const COPY_OUT_RESPONSE: u8 = b'H';

/// Listens to one stream of the server's.
#[derive(Debug)]
pub(super) struct Ear {
    frames: Frames,
    status: Arc<Status>,
    disguises_key: bool,
}

/// Where in a stream of messages the next byte stands.
#[derive(Clone, Copy, Debug)]
enum Frames {
    /// Nothing read yet: the answer to an SSLRequest may come first.
    Start,
    /// In the five bytes of a header: the type once known, the length so far, and how many bytes were read.
    Header { kind: u8, length: u32, read: u8 },
    /// In a payload, with so many bytes to come.
    Payload { kind: u8, left: u32 },
    /// In a tag that is this one so far.
    Tag { ending: Ending, read: u8 },
    /// TLS took over: what follows is not for us to read.
    Opaque,
}

const HEADER: Frames = Frames::Header { kind: 0, length: 0, read: 0 };

/// The type byte, and the length.
const HEADER_LENGTH: u8 = 5;

impl Frames {
    /// So many bytes of a payload are to come.
    fn rest(kind: u8, left: u32) -> Self {
        if left == 0 { HEADER } else { Self::Payload { kind, left } }
    }
}

impl Ear {
    /// For a stream from its first byte. With `disguises_key` the driver, and so every cancel token it makes, gets a key
    /// that is not the true one: [`disguise`] makes the one out of the other.
    pub fn new(status: Arc<Status>, disguises_key: bool) -> Self {
        Self { frames: Frames::Start, status, disguises_key }
    }

    /// For a stream that begins with a message, such as the one inside TLS.
    pub fn inside_tls(status: Arc<Status>, disguises_key: bool) -> Self {
        Self { frames: HEADER, status, disguises_key }
    }

    pub fn hear(&mut self, mut bytes: &mut [u8]) {
        while let Some((byte, rest)) = bytes.split_first_mut() {
            let mut skip = 0;
            self.frames = match self.frames {
                Frames::Opaque => return,
                Frames::Start => match *byte {
                    // Refused TLS: one byte, and messages follow.
                    b'N' => HEADER,
                    // Authentication, an error, or a protocol version to negotiate: the first message itself.
                    b'R' | b'E' | b'v' => Frames::Header { kind: *byte, length: 0, read: 1 },
                    _ => Frames::Opaque,
                },
                Frames::Header { read: 0, .. } => Frames::Header { kind: *byte, length: 0, read: 1 },
                Frames::Header { kind, length, read } => {
                    self.header(kind, length << 8 | u32::from(*byte), read + 1)
                }
                Frames::Tag { ending, read } => self.tag(ending, read, *byte),
                Frames::Payload { kind, left } => {
                    self.payload(kind, left, byte);
                    // Of the others no byte is of interest: skip as many as are here.
                    if kind != BACKEND_KEY_DATA {
                        skip = rest.len().min(left as usize - 1);
                    }
                    Frames::rest(kind, left - 1 - skip as u32)
                }
            };
            bytes = &mut rest[skip..];
        }
    }

    fn header(&self, kind: u8, length: u32, read: u8) -> Frames {
        if read < HEADER_LENGTH {
            return Frames::Header { kind, length, read };
        }
        if matches!(kind, COPY_IN_RESPONSE | COPY_OUT_RESPONSE) {
            self.status.copies(kind == COPY_IN_RESPONSE);
        }
        let left = length.saturating_sub(4);
        match (kind, Ending::with_tag(left)) {
            (COMMAND_COMPLETE, Some(ending)) => Frames::Tag { ending, read: 0 },
            _ => Frames::rest(kind, left),
        }
    }

    fn tag(&self, ending: Ending, read: u8, byte: u8) -> Frames {
        let (tag, here) = (ending.tag(), usize::from(read));
        let left = tag.len() - here - 1;
        match (byte == tag[here], left) {
            (true, 0) => {
                self.status.ended(ending);
                HEADER
            }
            (true, _) => Frames::Tag { ending, read: read + 1 },
            (false, left) => Frames::rest(COMMAND_COMPLETE, left as u32),
        }
    }

    /// One byte of a payload, with so many to come, itself included.
    fn payload(&self, kind: u8, left: u32, byte: &mut u8) {
        match kind {
            READY_FOR_QUERY => self.status.ready(*byte),
            BACKEND_KEY_DATA if self.disguises_key && left <= KEY => *byte = disguised(*byte),
            _ => {}
        }
    }
}

/// The key is the end of BackendKeyData, and of a cancel request.
const KEY: u32 = 4;

/// Makes a true key out of a disguised one, and the other way round.
fn disguised(byte: u8) -> u8 {
    !byte
}

/// A cancel request: its length, this code, the process id and the key, four bytes each.
const CANCEL_REQUEST: &[u8] = &[0, 0, 0, 16, 4, 210, 22, 46];
pub(super) const CANCEL_REQUEST_LENGTH: usize = 16;

/// The cancel request with its true key; `None` when the bytes are none.
pub(super) fn with_true_key(bytes: &[u8]) -> Option<[u8; CANCEL_REQUEST_LENGTH]> {
    let mut request: [u8; CANCEL_REQUEST_LENGTH] = bytes.try_into().ok()?;
    request.starts_with(CANCEL_REQUEST).then(|| {
        for byte in &mut request[CANCEL_REQUEST_LENGTH - KEY as usize..] {
            *byte = disguised(*byte);
        }
        request
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(kind: u8, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32 + 4).to_be_bytes();
        [&[kind], &length[..], payload].concat()
    }

    fn hear(mut ear: Ear, bytes: &[u8], cut: usize) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        bytes.chunks_mut(cut.max(1)).for_each(|piece| ear.hear(piece));
        bytes
    }

    fn after(bytes: &[u8], cut: usize) -> Arc<Status> {
        let status = Arc::<Status>::default();
        hear(Ear::new(status.clone(), false), bytes, cut);
        status
    }

    fn last_status(bytes: &[u8], cut: usize) -> u8 {
        let status = after(bytes, cut);
        match (status.is_idle(), status.is_open(), status.is_failed()) {
            (true, false, false) => b'I',
            (false, true, false) => b'T',
            (false, false, true) => b'E',
            _ => 0,
        }
    }

    #[test]
    fn a_refused_ssl_request_comes_before_the_messages() {
        let stream = [b"N".to_vec(), message(b'R', &[0; 4]), message(b'Z', b"I")].concat();
        assert_eq!(last_status(&stream, 1), b'I');
    }

    #[test]
    fn a_stream_that_became_tls_is_left_alone() {
        let stream = [b"S".to_vec(), message(b'Z', b"T")].concat();
        assert_eq!(last_status(&stream, 64), 0);
    }

    #[test]
    fn a_copy_is_under_way_until_the_server_is_ready_again() {
        for (kind, copies_in) in [(b'G', true), (b'H', false)] {
            let begun = [message(b'R', &[0; 4]), message(kind, &[0, 0, 0])].concat();
            let status = after(&begun, 3);
            assert_eq!((status.is_copying(), status.is_copying_in()), (true, copies_in));
            assert!(!after(&[begun, message(b'Z', b"I")].concat(), 3).is_copying());
        }
    }

    #[test]
    fn a_disguised_key_is_undone_in_the_cancel_request_and_nothing_else_is_touched() {
        let (process, key) = ([0, 0, 1, 2], [3, 4, 5, 6]);
        let said =
            [message(b'R', &[0; 4]), message(b'K', &[process, key].concat()), message(b'Z', b"I")].concat();
        for cut in 1..said.len() {
            assert_eq!(hear(Ear::new(Arc::default(), false), &said, cut), said);
            let heard = hear(Ear::new(Arc::default(), true), &said, cut);
            let at = said.len() - 6 - 4;
            assert_eq!((&heard[..at], &heard[at + 4..]), (&said[..at], &said[at + 4..]));
            let request = [CANCEL_REQUEST, &process, &heard[at..at + 4]].concat();
            assert_eq!(with_true_key(&request).unwrap()[8..], [process, key].concat());
        }
        assert_eq!(with_true_key(&[0, 0, 0, 8, 4, 210, 22, 47]), None);
    }

    fn tags() -> impl Strategy<Value = &'static [u8]> {
        let near = [
            b"COMMIT\0".as_slice(),
            b"ROLLBACK\0",
            b"COPY 5\0",
            b"ROLLBACX\0",
            b"COMMIT PREPARED\0",
            b"INSERT 0 1\0",
        ];
        prop::sample::select(near.to_vec())
    }

    proptest! {
        #[test]
        fn it_finds_how_the_last_transaction_ended_however_the_stream_is_cut(
            said in prop::collection::vec((tags(), any::<bool>()), 0..12),
            cut in 1usize..20,
        ) {
            let mut stream = [message(b'R', &[0; 4]), message(b'Z', b"T")].concat();
            for &(tag, notice) in &said {
                // The same words in a notice are no answer.
                stream.extend(message(if notice { b'N' } else { b'C' }, tag));
            }
            let ended = said.iter().rev().filter(|(_, notice)| !notice).find_map(|(tag, _)| match *tag {
                b"COMMIT\0" => Some(Ending::Committed),
                b"ROLLBACK\0" => Some(Ending::RolledBack),
                _ => None,
            });
            prop_assert_eq!(after(&stream, cut).ending(), ended);
            // Outside a transaction it is remembered, in one it is that of another.
            for (status, expected) in [(b"I", ended), (b"T", None), (b"E", None)] {
                let stream = [stream.clone(), message(b'Z', status)].concat();
                prop_assert_eq!(after(&stream, cut).ending(), expected);
            }
            // Afterwards there is nothing left to end.
            let stream = [stream, message(b'Z', b"I"), message(b'C', b"COMMIT\0"), message(b'C', b"ROLLBACK\0")];
            prop_assert_eq!(after(&stream.concat(), cut).ending(), ended);
        }

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
            prop_assert_eq!(last_status(&stream, cut), *statuses.last().unwrap());
        }
    }
}
