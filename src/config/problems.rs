//! What is wrong with settings: all of it, each by its name.

use std::error::Error;
use std::fmt;
use std::time::Duration;

/// Everything that is wrong with the settings, at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    pub(super) problems: Vec<Problem>,
}

/// One setting that cannot be: its name, its value, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    setting: &'static str,
    value: String,
    expected: String,
}

impl ConfigError {
    /// An error of a backend's own, about one setting. Reads as «`setting` (`value`) `expected`».
    pub fn new(setting: &'static str, value: impl fmt::Display, expected: impl Into<String>) -> Self {
        Self { problems: vec![Problem::new(setting, value, expected)] }
    }

    /// What is wrong, each with its setting.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    pub(crate) fn from_problems(problems: Vec<Problem>) -> Result<(), Self> {
        if problems.is_empty() { Ok(()) } else { Err(Self { problems }) }
    }
}

impl Problem {
    pub(crate) fn new(setting: &'static str, value: impl fmt::Display, expected: impl Into<String>) -> Self {
        Self { setting, value: value.to_string(), expected: expected.into() }
    }

    pub(crate) fn unless_positive(problems: &mut Vec<Self>, setting: &'static str, value: Duration) {
        if value.is_zero() {
            problems.push(Self::new(setting, "0 s", "must be longer than zero"));
        }
    }

    /// The setting to change.
    #[must_use]
    pub fn setting(&self) -> &'static str {
        self.setting
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}) {}", self.setting, self.value, self.expected)
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

impl Error for ConfigError {}
