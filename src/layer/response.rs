//! What a refusal looks like over HTTP.

use std::fmt::Write;
use std::sync::LazyLock;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, Response, StatusCode};

use crate::error::Shed;

/// Makes the response to a refusal. Implemented by [`StatusOnly`], [`ProblemJson`] and every `Fn(&Shed) -> Response<B>`.
pub trait Respond<B> {
    /// The response.
    fn respond(&self, shed: &Shed) -> Response<B>;

    /// The response to a gRPC call (a request whose content type begins with `application/grpc`): status 200, and the
    /// refusal in its headers, with the body of [`respond`](Self::respond), which should be empty.
    fn respond_grpc(&self, shed: &Shed) -> Response<B> {
        grpc_refusal(shed, self.respond(shed).into_body())
    }
}

/// 503 Service Unavailable with `Retry-After` in whole seconds (RFC 9110 §10.2.3) and `Cache-Control: no-store`, and
/// no body. A gRPC call gets `grpc-status: 14` (UNAVAILABLE) and `grpc-retry-pushback-ms`.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct StatusOnly {}

impl<B: Default> Respond<B> for StatusOnly {
    fn respond(&self, shed: &Shed) -> Response<B> {
        refusal(shed, B::default())
    }
}

/// The same with a body that says why: `application/problem+json` (RFC 9457), with the reason's stable
/// [`code`](crate::ShedReason::code) and `retry_after_ms`.
///
/// ```
/// # use http_body_util::{BodyExt, Full};
/// # use bytes::Bytes;
/// # use tower::{ServiceBuilder, ServiceExt, service_fn};
/// # use tower_adaptive_pool::{AdaptivePoolLayer, Limiter, ProblemJson};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let limiter = Limiter::builder().build()?;
/// let service = ServiceBuilder::new()
///     .layer(AdaptivePoolLayer::new(limiter.clone()).with_responder(ProblemJson::default()))
///     .service(service_fn(async |_: http::Request<()>| {
///         Ok::<_, std::convert::Infallible>(http::Response::new(Full::<Bytes>::from("served")))
///     }));
/// # limiter.drain(std::time::Duration::ZERO).await.ok();
/// let response = service.oneshot(http::Request::new(())).await?; // once the limiter is drained
/// assert_eq!(response.headers()["content-type"], "application/problem+json");
/// let body = response.into_body().collect().await?.to_bytes();
/// assert!(body.starts_with(br#"{"type":"about:blank","title":"Service Unavailable","status":503,"code":"draining""#));
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct ProblemJson {}

impl<B: From<Bytes>> Respond<B> for ProblemJson {
    fn respond(&self, shed: &Shed) -> Response<B> {
        let (code, millis) = (shed.reason.code(), shed.retry_after.as_millis());
        let mut json = String::with_capacity(128);
        json.push_str(r#"{"type":"about:blank","title":"Service Unavailable","status":503"#);
        // Writing to a string cannot fail.
        let _ = write!(json, r#","code":"{code}","retry_after_ms":{millis}}}"#);
        let mut response = refusal(shed, Bytes::from(json).into());
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        response
    }

    fn respond_grpc(&self, shed: &Shed) -> Response<B> {
        grpc_refusal(shed, Bytes::new().into())
    }
}

impl<B, F: Fn(&Shed) -> Response<B>> Respond<B> for F {
    fn respond(&self, shed: &Shed) -> Response<B> {
        self(shed)
    }
}

/// The seconds that a refusal may speak of, as headers: made once, so that a refusal under load makes none.
static SECONDS: LazyLock<Vec<HeaderValue>> = LazyLock::new(|| (0u64..=120).map(HeaderValue::from).collect());

fn seconds(shed: &Shed) -> HeaderValue {
    let seconds = shed.retry_after.as_secs();
    let known = usize::try_from(seconds).ok().and_then(|seconds| SECONDS.get(seconds));
    known.map_or_else(|| HeaderValue::from(seconds), Clone::clone)
}

/// A 503 with the headers that go with it.
pub(crate) fn refusal<B>(shed: &Shed, body: B) -> Response<B> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    let headers = response.headers_mut();
    headers.insert(RETRY_AFTER, seconds(shed));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// gRPC's «Trailers-Only» response: what else would come after the body is in the headers.
fn grpc_refusal<B>(shed: &Shed, body: B) -> Response<B> {
    const STATUS: HeaderName = HeaderName::from_static("grpc-status");
    const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
    const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
    const UNAVAILABLE: HeaderValue = HeaderValue::from_static("14");
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(STATUS, UNAVAILABLE);
    headers.insert(MESSAGE, HeaderValue::from_static(shed.reason.code()));
    headers.insert(PUSHBACK, HeaderValue::from(shed.retry_after.as_millis() as u64));
    response
}
