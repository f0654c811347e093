//! How much a request matters, as its user says.

use http::Request;

use crate::terms::Class;

/// Says to which [`Class`] a request belongs. Implemented by [`Unclassed`] and by every `Fn(&Request<B>) -> Class`.
///
/// A classifier that panics says nothing, as if it returned `None`.
pub trait Classify<B> {
    /// The class; `None` leaves the one in the request's extensions, or the default.
    fn classify(&self, request: &Request<B>) -> Option<Class>;
}

/// No classes, unless somebody further out put [`Terms`](crate::Terms) or a [`Class`] into the request's extensions.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Unclassed {}

impl<B> Classify<B> for Unclassed {
    fn classify(&self, _: &Request<B>) -> Option<Class> {
        None
    }
}

impl<B, F: Fn(&Request<B>) -> Class> Classify<B> for F {
    fn classify(&self, request: &Request<B>) -> Option<Class> {
        Some(self(request))
    }
}
