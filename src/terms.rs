//! What a request brings along: how much it matters, and by when it must have its answer.

use std::fmt;
use std::time::Duration;

use http::Extensions;
use tokio::time::Instant;

/// How much a request matters, most first. Of those that wait the higher class is served first; of those that arrive the
/// lowest is refused first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Health checks and CORS pre-flights: the layer lets them pass without a verdict. Should one acquire a connection
    /// all the same, it waits in line with the critical ones, and `hard_cap` holds for it too.
    Exempt,
    /// What must work while anything does: a login, a payment.
    Critical,
    /// What a person waits for. The default.
    #[default]
    High,
    /// What a person would not miss at once: suggestions, a badge's number.
    Low,
    /// What nobody waits for: exports, prefetching, crawlers.
    Background,
}

/// Classes that queue apart from each other.
pub(crate) const CLASSES: usize = 4;

impl Class {
    /// One class lower, as a retry is; the lowest stays, and so does what is exempt.
    #[must_use]
    pub fn lowered(self) -> Self {
        match self {
            Self::Exempt => Self::Exempt,
            Self::Critical => Self::High,
            Self::High => Self::Low,
            Self::Low | Self::Background => Self::Background,
        }
    }

    /// A stable code for telemetry, in snake case.
    pub fn code(self) -> &'static str {
        match self {
            Self::Exempt => "exempt",
            Self::Critical => "critical",
            Self::High => "high",
            Self::Low => "low",
            Self::Background => "background",
        }
    }

    /// Its line in the queue, the most urgent 0.
    pub(crate) fn line(self) -> usize {
        match self {
            Self::Exempt | Self::Critical => 0,
            Self::High => 1,
            Self::Low => 2,
            Self::Background => 3,
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// By when a request must have its answer: a point in time, on Tokio's clock.
///
/// Put into a request's extensions, the layer and [`acquire_for`](crate::AdaptivePool::acquire_for) find it. It can only
/// shorten a wait: `acquire_timeout` and `query_timeout` hold as well. A wait for a connection ends so much before it as a
/// connection is usually held, but not before half of the time is over: granted later, a query would be cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

impl Deadline {
    /// So much from now. What no clock can count to is thirty years.
    #[must_use]
    pub fn within(budget: Duration) -> Self {
        Self(after(Instant::now(), budget))
    }

    /// At this time.
    #[must_use]
    pub fn at(when: std::time::Instant) -> Self {
        Self(Instant::from_std(when))
    }

    /// What is left until then; zero when it has passed.
    #[must_use]
    pub fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    pub(crate) fn after(now: Instant, budget: Duration) -> Self {
        Self(after(now, budget))
    }

    pub(crate) fn instant(self) -> Instant {
        self.0
    }
}

/// So much later. `Duration::MAX`, which no clock can count to, is thirty years, as in tokio's own timers.
pub(crate) fn after(now: Instant, timeout: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(30 * 365 * 86_400);
    now.checked_add(timeout).unwrap_or(now + FAR)
}

/// A request's class and deadline together.
///
/// The layer puts them into the request's extensions where it was told how to find them; a handler's
/// [`acquire_for`](crate::AdaptivePool::acquire_for) reads them from there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// How much it matters.
    pub class: Class,
    /// By when it must have its answer; `None` leaves it at `acquire_timeout` and `query_timeout`.
    pub deadline: Option<Deadline>,
}

impl Terms {
    /// Those in a request's extensions: a [`Class`], else that of the [`Terms`] which the layer put there; and the earlier
    /// deadline of the [`Terms`] and a [`Deadline`]. The default where there are none.
    #[must_use]
    pub fn of(extensions: &Extensions) -> Self {
        if extensions.is_empty() {
            return Self::default();
        }
        let terms = extensions.get::<Self>().copied().unwrap_or_default();
        let class = extensions.get().copied().unwrap_or(terms.class);
        Self { class, ..terms }.until(extensions.get().copied())
    }

    /// With this deadline, unless there is an earlier one.
    #[must_use]
    pub(crate) fn until(self, deadline: Option<Deadline>) -> Self {
        let deadline = match (self.deadline, deadline) {
            (Some(own), Some(other)) => Some(own.min(other)),
            (own, other) => own.or(other),
        };
        Self { deadline, ..self }
    }
}

impl From<Class> for Terms {
    fn from(class: Class) -> Self {
        Self { class, deadline: None }
    }
}

impl From<Deadline> for Terms {
    fn from(deadline: Deadline) -> Self {
        Self { class: Class::default(), deadline: Some(deadline) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retry_is_one_class_lower_and_never_becomes_exempt() {
        let table = [
            (Class::Critical, Class::High),
            (Class::High, Class::Low),
            (Class::Low, Class::Background),
            (Class::Background, Class::Background),
            (Class::Exempt, Class::Exempt),
        ];
        for (class, lower) in table {
            assert_eq!(class.lowered(), lower);
            assert!(class.lowered().line() >= class.line());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_earlier_deadline_counts() {
        let (near, far) =
            (Deadline::within(Duration::from_secs(1)), Deadline::within(Duration::from_secs(9)));
        let mut extensions = Extensions::new();
        assert_eq!(Terms::of(&extensions), Terms::default());
        extensions.insert(near);
        assert_eq!(Terms::of(&extensions), Terms::from(near));
        extensions.insert(Terms { class: Class::Low, deadline: Some(far) });
        assert_eq!(Terms::of(&extensions), Terms { class: Class::Low, deadline: Some(near) });
        extensions.insert(Class::Critical);
        assert_eq!(Terms::of(&extensions), Terms { class: Class::Critical, deadline: Some(near) });
        let _ = extensions.remove::<Terms>();
        assert_eq!(Terms::of(&extensions), Terms { class: Class::Critical, deadline: Some(near) });
    }

    #[test]
    fn a_deadline_no_clock_can_count_to_is_far_away() {
        assert!(Deadline::within(Duration::MAX).remaining() > Duration::from_secs(86_400 * 365));
    }
}
