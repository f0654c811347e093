//! What a refusal looks like over HTTP.

use std::fmt::Write;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

use crate::error::Shed;
use crate::error::response::{discreet, push_back, refusal};

/// Makes the response to a refusal. Implemented by [`StatusOnly`], [`ProblemJson`] and every `Fn(&Shed) -> Response<B>` whose body
/// has a `Default`.
pub trait Respond<B> {
    /// The response to a request that is no gRPC call. Should this panic, the answer is 500.
    fn respond(&self, shed: &Shed) -> Response<B>;

    /// A body with nothing in it: of the answer to a gRPC call, which is in its headers, and of a 500. It must not panic: nothing
    /// is left to answer with then.
    fn empty(&self) -> B;
}

/// 503 Service Unavailable with `Retry-After` in whole seconds (RFC 9110 §10.2.3) and `Cache-Control: no-store`, and
/// no body.
///
/// Whatever the responder, a gRPC call gets the status 200 with `grpc-status: 14` (UNAVAILABLE), the reason's code as
/// `grpc-message`, `grpc-retry-pushback-ms`, and no body ("Trailers-Only"). It is told by its content type, which the answer has
/// too: `application/grpc` or gRPC-Web's `application/grpc-web` and `application/grpc-web-text`, alone, with a subtype
/// (`+proto`, `+json`, `+` and any other), with parameters (`; charset=utf-8`). Whatever else begins like them is no gRPC.
/// A browser's client reads those headers where CORS exposes them.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct StatusOnly {}

impl<B: Default> Respond<B> for StatusOnly {
    fn respond(&self, shed: &Shed) -> Response<B> {
        refusal(shed, B::default())
    }

    fn empty(&self) -> B {
        B::default()
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

    fn empty(&self) -> B {
        Bytes::new().into()
    }
}

impl<B: Default, F: Fn(&Shed) -> Response<B>> Respond<B> for F {
    fn respond(&self, shed: &Shed) -> Response<B> {
        self(shed)
    }

    fn empty(&self) -> B {
        B::default()
    }
}

/// The answer where a responder panicked.
pub(super) fn broken<B>(body: B) -> Response<B> {
    discreet(StatusCode::INTERNAL_SERVER_ERROR, None, body)
}

/// The content type of a request that is a gRPC call, or one of gRPC-Web.
pub(super) fn grpc_kind(headers: &HeaderMap) -> Option<&HeaderValue> {
    headers.get(CONTENT_TYPE).filter(|kind| is_grpc(kind.as_bytes()))
}

/// `application/grpc`, `-web` or `-web-text`, and then a subtype, parameters, or nothing.
fn is_grpc(kind: &[u8]) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    let Some((begins, rest)) = kind.split_at_checked(GRPC.len()) else { return false };
    let end = rest.iter().position(|byte| matches!(byte, b'+' | b';' | b' ' | b'\t')).unwrap_or(rest.len());
    let variants: [&[u8]; 3] = [b"", b"-web", b"-web-text"];
    begins.eq_ignore_ascii_case(GRPC)
        && variants.iter().any(|variant| rest[..end].eq_ignore_ascii_case(variant))
}

/// gRPC's "Trailers-Only" response: what else would come after the body is in the headers.
pub(super) fn grpc_refusal<B>(shed: &Shed, kind: &HeaderValue, body: B) -> Response<B> {
    const STATUS: HeaderName = HeaderName::from_static("grpc-status");
    const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
    const UNAVAILABLE: HeaderValue = HeaderValue::from_static("14");
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, kind.clone());
    headers.insert(STATUS, UNAVAILABLE);
    headers.insert(MESSAGE, HeaderValue::from_static(shed.reason.code()));
    push_back(headers, shed.retry_after);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_grpcs_own_content_types_are_grpc() {
        let grpc = [
            "application/grpc",
            "application/grpc+proto",
            "application/grpc+json",
            "application/grpc+thrift",
            "application/grpc;charset=utf-8",
            "application/grpc ; charset=utf-8",
            "application/grpc+proto; charset=utf-8",
            "Application/gRPC+Proto",
            "application/grpc-web",
            "application/grpc-web+proto",
            "application/grpc-web-text",
            "application/grpc-web-text+proto",
        ];
        let others = [
            "",
            "application/json",
            "application/grp",
            "application/grpcx",
            "application/grpc.v2",
            "application/grpc-",
            "application/grpc-webx",
            "application/grpc-web-",
            "application/grpc-web-textx",
            "application/grpc-other+proto",
            "text/plain; application/grpc",
        ];
        assert!(grpc.iter().all(|kind| is_grpc(kind.as_bytes())));
        let taken: Vec<_> = others.iter().filter(|kind| is_grpc(kind.as_bytes())).collect();
        assert!(taken.is_empty(), "{taken:?}");
    }
}
