//! What an error looks like over HTTP. No body: what a database says is for the logs, not for strangers.

use std::sync::LazyLock;
use std::time::Duration;

use http::header::{CACHE_CONTROL, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

#[cfg(feature = "postgres")]
use super::QueryError;
use super::{AcquireError, Shed};

/// Elsewhere, or after the next dial, somebody may serve: for what is closed here, or has no database.
pub(crate) const SOON: Duration = Duration::from_secs(1);

impl AcquireError {
    /// The status it is answered with: 504 where a time ran out, 503 for all else.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Timeout(_) => StatusCode::GATEWAY_TIMEOUT,
            Self::Shed(_) | Self::Dial(_) | Self::Closed => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// When it pays to come back, where the answer says so.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Shed(shed) => Some(shed.retry_after),
            Self::Dial(_) | Self::Closed => Some(SOON),
            Self::Timeout(_) => None,
        }
    }
}

#[cfg(feature = "postgres")]
impl QueryError {
    /// The status it is answered with: 504 where the time ran out, 500 for all else.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        if self.is_timeout() { StatusCode::GATEWAY_TIMEOUT } else { StatusCode::INTERNAL_SERVER_ERROR }
    }
}

/// 503 with `Retry-After` and no body, as the layer answers it; the [`Shed`] is in its extensions.
impl<B: Default> From<Shed> for Response<B> {
    fn from(shed: Shed) -> Self {
        let mut response = refusal(&shed, B::default());
        response.extensions_mut().insert(shed);
        response
    }
}

/// [`status`](AcquireError::status) and no body; a 503 has `Retry-After`. The error is in its extensions, and so is the [`Shed`] of
/// a refusal.
impl<B: Default> From<AcquireError> for Response<B> {
    fn from(error: AcquireError) -> Self {
        let mut response = discreet(error.status(), error.retry_after(), B::default());
        if let AcquireError::Shed(shed) = error {
            response.extensions_mut().insert(shed);
        }
        response.extensions_mut().insert(error);
        response
    }
}

/// [`status`](QueryError::status) and no body.
#[cfg(feature = "postgres")]
impl<B: Default> From<QueryError> for Response<B> {
    fn from(error: QueryError) -> Self {
        discreet(error.status(), None, B::default())
    }
}

/// A 503 with the headers that go with it.
pub(crate) fn refusal<B>(shed: &Shed, body: B) -> Response<B> {
    discreet(StatusCode::SERVICE_UNAVAILABLE, Some(shed.retry_after), body)
}

/// A response that says nothing but its status and when to come back, and that nobody keeps.
pub(crate) fn discreet<B>(status: StatusCode, retry_after: Option<Duration>, body: B) -> Response<B> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    if let Some(retry_after) = retry_after {
        headers.insert(RETRY_AFTER, seconds(retry_after));
    }
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// gRPC's word for `Retry-After`, which its clients heed before they retry.
pub(crate) fn push_back(headers: &mut HeaderMap, retry_after: Duration) {
    const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
    headers.insert(PUSHBACK, HeaderValue::from(retry_after.as_millis() as u64));
}

/// The seconds that a refusal may speak of, as headers: made once and for good, so that a refusal under load neither makes one
/// nor counts who refers to it.
static SECONDS: LazyLock<Vec<HeaderValue>> = LazyLock::new(|| {
    let seconds = (0u64..=120).map(|seconds| &*String::leak(seconds.to_string()));
    seconds.map(HeaderValue::from_static).collect()
});

fn seconds(retry_after: Duration) -> HeaderValue {
    let seconds = retry_after.as_secs();
    let known = usize::try_from(seconds).ok().and_then(|seconds| SECONDS.get(seconds));
    known.map_or_else(|| HeaderValue::from(seconds), Clone::clone)
}
