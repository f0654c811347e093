//! For axum: an extractor that hands out connections, and errors that are responses.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::panic::Location;

use axum_core::extract::{FromRef, FromRequestParts};
use axum_core::response::{IntoResponse, Response};
use http::StatusCode;
use http::request::Parts;

use crate::backend::Backend;
use crate::error::AcquireError;
#[cfg(feature = "postgres")]
use crate::error::QueryError;
use crate::pool::{AdaptivePool, Connection};
use crate::terms::Terms;

/// Extracts the pool from the router's state: an `AdaptivePool<B>`, or any state it can be had from through
/// [`FromRef`]; with the class and the deadline of its request, as the layer found them.
#[derive(Clone, Debug)]
pub struct Pooled<B: Backend> {
    pool: AdaptivePool<B>,
    terms: Terms,
}

/// Extracts the PostgreSQL pool.
#[cfg(feature = "postgres")]
pub type Db = Pooled<crate::Postgres>;

impl<B: Backend> Pooled<B> {
    /// A connection, as [`AdaptivePool::acquire_for`] for this request.
    ///
    /// # Errors
    /// As there; as an [`Error`] each is a response by itself.
    #[track_caller]
    pub fn acquire(&self) -> impl Future<Output = Result<Connection<B>, AcquireError>> + Send + use<'_, B> {
        self.pool.acquire_with(self.terms)
    }

    /// A connection now or none, as [`AdaptivePool::try_acquire`]; its queries are bounded by the request's deadline.
    ///
    /// # Errors
    /// As there.
    #[track_caller]
    pub fn try_acquire(&self) -> Result<Connection<B>, AcquireError> {
        self.pool.try_acquire_at(self.terms, Location::caller())
    }

    /// The pool itself.
    pub fn pool(&self) -> &AdaptivePool<B> {
        &self.pool
    }
}

impl<S, B> FromRequestParts<S> for Pooled<B>
where
    S: Send + Sync,
    B: Backend,
    AdaptivePool<B>: FromRef<S>,
{
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        Ok(Self { pool: AdaptivePool::from_ref(state), terms: Terms::of(&parts.extensions) })
    }
}

/// What a handler fails with, as a response: 504 when a time ran out, 503 with `Retry-After` when there is no connection
/// for another reason (refused, closed, no database under `fail_fast`), 500 for a query that failed.
///
/// The reason is also in the response's extensions: a [`Shed`](crate::Shed) for a refusal, the [`AcquireError`] for every
/// connection that was not had. Without axum each of the two errors becomes an `http::Response` of any body by `From`.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// No connection.
    Acquire(AcquireError),
    /// No result.
    #[cfg(feature = "postgres")]
    Query(QueryError),
}

impl Error {
    /// The status it is answered with.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Acquire(error) => error.status(),
            #[cfg(feature = "postgres")]
            Self::Query(error) => error.status(),
        }
    }
}

impl IntoResponse for Error {
    /// No body: what a database says is for the logs, not for strangers.
    fn into_response(self) -> Response {
        match self {
            Self::Acquire(error) => error.into(),
            #[cfg(feature = "postgres")]
            Self::Query(error) => error.into(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Acquire(error) => error.fmt(f),
            #[cfg(feature = "postgres")]
            Self::Query(error) => error.fmt(f),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Acquire(error) => error.source(),
            #[cfg(feature = "postgres")]
            Self::Query(error) => error.source(),
        }
    }
}

impl From<AcquireError> for Error {
    fn from(error: AcquireError) -> Self {
        Self::Acquire(error)
    }
}

#[cfg(feature = "postgres")]
impl From<QueryError> for Error {
    fn from(error: QueryError) -> Self {
        Self::Query(error)
    }
}
