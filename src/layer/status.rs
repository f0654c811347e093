//! `X-Pool-Status`: the snapshot in a header, for those who may see it.

use std::fmt::Write;

use http::{HeaderName, HeaderValue};

use crate::gate::Snapshot;

pub(super) const POOL_STATUS: HeaderName = HeaderName::from_static("x-pool-status");

/// The snapshot as JSON in one line of ASCII.
pub(super) fn pool_status(snapshot: &Snapshot) -> Option<HeaderValue> {
    let Snapshot { size, in_use, idle, reserve, opening, closing, queue_depth, limit, .. } = snapshot;
    let Snapshot { min_limit, base_limit, min_size, max_size, soft_cap, hard_cap, .. } = snapshot;
    let mut json = String::with_capacity(256);
    json.push_str("{\"name\":");
    push_quoted(&mut json, &snapshot.name);
    // Writing to a string cannot fail.
    let _ = write!(
        json,
        ",\"size\":{size},\"in_use\":{in_use},\"idle\":{idle},\"reserve\":{reserve},\"opening\":{opening},\
         \"closing\":{closing},\"queue_depth\":{queue_depth},\"limit\":{limit},\"min_limit\":{min_limit},\
         \"base_limit\":{base_limit},\"min_size\":{min_size},\"max_size\":{max_size},\"soft_cap\":{soft_cap},\"hard_cap\":{hard_cap},\"last_decision\":",
    );
    push_quoted(&mut json, snapshot.last_decision.reason.code());
    json.push('}');
    HeaderValue::from_maybe_shared(json.into_bytes()).ok()
}

/// A JSON string of visible ASCII: everything else is escaped, as a header wants it.
fn push_quoted(json: &mut String, text: &str) {
    json.push('"');
    for unit in text.encode_utf16() {
        match u8::try_from(unit) {
            Ok(byte @ (b'"' | b'\\')) => json.extend(['\\', char::from(byte)]),
            Ok(byte @ b' '..=b'~') => json.push(char::from(byte)),
            _ => {
                let _ = write!(json, "\\u{unit:04x}");
            }
        }
    }
    json.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_any_letters_is_json_in_a_header() {
        for name in ["orders", "a\"b\\c", "größe\n", "数据库", "🐘"] {
            let snapshot = Snapshot { name: name.into(), size: 7, ..Snapshot::default() };
            let header = pool_status(&snapshot).expect("a header");
            let json: serde_json::Value = serde_json::from_slice(header.as_bytes()).expect("JSON");
            assert_eq!((json["name"].as_str(), json["size"].as_u64()), (Some(name), Some(7)));
            assert_eq!(json["last_decision"], "started");
        }
    }
}
