//! What a request's headers say about its deadline, and whether it is a retry.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::config::ConfigError;
use crate::gate::Attempt;

/// The header of gRPC, which has a format of its own.
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// The headers that are looked at.
#[derive(Clone, Debug, Default)]
pub(super) struct Headers {
    pub deadlines: Vec<HeaderName>,
    pub retry: Option<HeaderName>,
}

impl Headers {
    /// The shortest time budget that a header speaks of. What cannot be read is as if it were not there.
    pub fn budget(&self, headers: &HeaderMap) -> Option<Duration> {
        let budgets = self.deadlines.iter().filter_map(|name| {
            let value = headers.get(name)?;
            if *name == GRPC_TIMEOUT { grpc_timeout(value) } else { millis(value) }
        });
        budgets.min()
    }

    /// Whether it is a retry, where a header is there to tell.
    pub fn attempt(&self, headers: &HeaderMap) -> Option<Attempt> {
        let value = headers.get(self.retry.as_ref()?);
        let first = value.is_none_or(|value| value.as_bytes() == b"0");
        Some(if first { Attempt::First } else { Attempt::Retry })
    }
}

/// A header's name, or which setting has to be changed.
pub(super) fn header_name(setting: &'static str, name: &str) -> Result<HeaderName, ConfigError> {
    let expected = "must be the name of a header, such as x-request-timeout-ms";
    name.parse().map_err(|_| ConfigError::new(setting, format!("{name:?}"), expected))
}

/// Milliseconds, as in Envoy's `x-envoy-expected-rq-timeout-ms`; 0, as there, is no limit.
fn millis(value: &HeaderValue) -> Option<Duration> {
    number(value.as_bytes()).filter(|millis| *millis > 0).map(Duration::from_millis)
}

/// `TimeoutValue TimeoutUnit` of gRPC over HTTP/2: at most eight digits, and one of `H M S m u n`.
fn grpc_timeout(value: &HeaderValue) -> Option<Duration> {
    let (unit, digits) = value.as_bytes().split_last()?;
    if digits.len() > 8 {
        return None;
    }
    let number = number(digits)?;
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

/// Digits and nothing else; `None` where they are more than a `u64` holds.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |number, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, value: &'static str) -> Option<Duration> {
        let name = header_name("deadline_header", name).expect("a name");
        let value = HeaderValue::from_static(value);
        if name == GRPC_TIMEOUT { grpc_timeout(&value) } else { millis(&value) }
    }

    #[test]
    fn header_values_that_are_no_time_say_nothing() {
        let table = [
            ("grpc-timeout", "250m", Some(Duration::from_millis(250))),
            ("grpc-timeout", "2S", Some(Duration::from_secs(2))),
            ("grpc-timeout", "99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("grpc-timeout", "7u", Some(Duration::from_micros(7))),
            ("grpc-timeout", "7n", Some(Duration::from_nanos(7))),
            ("Grpc-Timeout", "3M", Some(Duration::from_secs(180))),
            ("grpc-timeout", "0n", Some(Duration::ZERO)),
            ("grpc-timeout", "100000000m", None), // nine digits
            ("grpc-timeout", "250", None),
            ("grpc-timeout", "m", None),
            ("grpc-timeout", "", None),
            ("grpc-timeout", "-1m", None),
            ("grpc-timeout", "1.5S", None),
            ("grpc-timeout", "1s", None),
            ("x-timeout-ms", "250", Some(Duration::from_millis(250))),
            ("x-timeout-ms", "0", None),
            ("x-timeout-ms", "18446744073709551615", Some(Duration::from_millis(u64::MAX))),
            ("x-timeout-ms", "18446744073709551616", None),
            ("x-timeout-ms", "", None),
            ("x-timeout-ms", "-250", None),
            ("x-timeout-ms", "+250", None),
            ("x-timeout-ms", "250ms", None),
            ("x-timeout-ms", "1e9", None),
        ];
        for (name, value, budget) in table {
            assert_eq!(read(name, value), budget, "{name}: {value}");
        }
        let bytes = HeaderValue::from_bytes(b"\xff\xfe").expect("opaque bytes are allowed");
        assert_eq!((millis(&bytes), grpc_timeout(&bytes)), (None, None));
    }

    #[test]
    fn a_name_that_is_none_is_told_with_its_setting() {
        for name in ["", "two words", "ümlaut", "a:b"] {
            let error = header_name("retry_header", name).expect_err("no name");
            assert!(error.to_string().starts_with(&format!("retry_header ({name:?}) must be")), "{error}");
        }
    }

    #[test]
    fn a_retry_says_so() {
        let headers = Headers { retry: Some(HeaderName::from_static("x-retry")), ..Headers::default() };
        let mut request = HeaderMap::new();
        assert_eq!(Headers::default().attempt(&request), None);
        assert_eq!(headers.attempt(&request), Some(Attempt::First));
        for (value, attempt) in [("0", Attempt::First), ("1", Attempt::Retry), ("true", Attempt::Retry)] {
            request.insert("x-retry", HeaderValue::from_static(value));
            assert_eq!(headers.attempt(&request), Some(attempt), "{value}");
        }
    }
}
