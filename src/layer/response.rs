//! What a refusal looks like over HTTP.

use http::header::{CACHE_CONTROL, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};

use crate::error::Shed;

/// Makes the response to a refusal. Implemented by [`StatusOnly`] and by every `Fn(&Shed) -> Response<B>`.
pub trait Respond<B> {
    /// The response.
    fn respond(&self, shed: &Shed) -> Response<B>;
}

/// 503 Service Unavailable with `Retry-After` in whole seconds (RFC 9110 §10.2.3) and `Cache-Control: no-store`, and
/// no body.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct StatusOnly {}

impl<B: Default> Respond<B> for StatusOnly {
    fn respond(&self, shed: &Shed) -> Response<B> {
        refusal(shed, B::default())
    }
}

impl<B, F: Fn(&Shed) -> Response<B>> Respond<B> for F {
    fn respond(&self, shed: &Shed) -> Response<B> {
        self(shed)
    }
}

/// A 503 with the headers that go with it.
pub(crate) fn refusal<B>(shed: &Shed, body: B) -> Response<B> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    let headers = response.headers_mut();
    headers.insert(RETRY_AFTER, HeaderValue::from(shed.retry_after.as_secs()));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
