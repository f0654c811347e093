//! For tonic: what a handler fails with, as a status.
//!
//! The message is a stable code: what a database says is for the logs, not for strangers. The error itself is the status's source,
//! which does not leave the server.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

#[cfg(feature = "postgres")]
use crate::error::QueryError;
use crate::error::response::push_back;
use crate::error::{AcquireError, Shed};

/// UNAVAILABLE with `grpc-retry-pushback-ms`, and the reason's code as the message: what the layer answers.
impl From<Shed> for Status {
    fn from(shed: Shed) -> Self {
        status(StatusCode::SERVICE_UNAVAILABLE, shed.reason.code(), Some(shed.retry_after), shed)
    }
}

/// UNAVAILABLE with `grpc-retry-pushback-ms` where no connection is to be had, DEADLINE_EXCEEDED where a time ran out.
impl From<AcquireError> for Status {
    fn from(error: AcquireError) -> Self {
        let message = match &error {
            AcquireError::Shed(shed) => shed.reason.code(),
            other => other.code(),
        };
        status(error.status(), message, error.retry_after(), error)
    }
}

/// DEADLINE_EXCEEDED where the time ran out, INTERNAL for all else. What deserves another code, such as ALREADY_EXISTS for a key
/// that is there, only the handler knows.
#[cfg(feature = "postgres")]
impl From<QueryError> for Status {
    fn from(error: QueryError) -> Self {
        let message = if error.is_timeout() { "query_timeout" } else { "query_failed" };
        status(error.status(), message, None, error)
    }
}

/// As the same error is answered over HTTP.
fn status(
    http: StatusCode,
    message: &'static str,
    retry_after: Option<Duration>,
    source: impl Error + Send + Sync + 'static,
) -> Status {
    let code = match http {
        StatusCode::SERVICE_UNAVAILABLE => Code::Unavailable,
        StatusCode::GATEWAY_TIMEOUT => Code::DeadlineExceeded,
        _ => Code::Internal,
    };
    let mut headers = HeaderMap::new();
    if let Some(retry_after) = retry_after {
        push_back(&mut headers, retry_after);
    }
    let mut status = Status::with_metadata(code, message, MetadataMap::from_headers(headers));
    status.set_source(Arc::new(source));
    status
}
