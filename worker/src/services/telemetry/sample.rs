//! What collectors hand over: results about services, and figures. Rows,
//! `/metrics` and alert rules all read the same.

use std::fmt;

use serde::Serialize;

/// How a service answered, or what is held to be true of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// All is well.
    Up,
    /// It works, and something is wrong with it.
    Degraded,
    /// It does not work.
    Down,
}

impl Status {
    /// The word in `monitoring_service_status`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Degraded => "degraded",
            Self::Down => "down",
        }
    }

    /// The status of a word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Up, Self::Degraded, Self::Down].into_iter().find(|status| status.as_str() == word)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One result about a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// How it answered.
    pub status: Status,
    /// How long it took, ms, rounded up; absent when it did not answer.
    pub latency_ms: Option<i32>,
    /// Why it is not up.
    pub why: Option<String>,
}

impl Reading {
    /// All is well.
    #[must_use]
    pub fn up(latency_ms: Option<i32>) -> Self {
        Self { status: Status::Up, latency_ms, why: None }
    }

    /// It works, but.
    #[must_use]
    pub fn degraded(latency_ms: Option<i32>, why: impl Into<String>) -> Self {
        Self { status: Status::Degraded, latency_ms, why: Some(why.into()) }
    }

    /// It does not work.
    #[must_use]
    pub fn down(why: impl Into<String>) -> Self {
        Self { status: Status::Down, latency_ms: None, why: Some(why.into()) }
    }
}

/// The results of one tick about one service, oldest first; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Its name in `monitoring_service_status`.
    pub service: String,
    /// What was found; more than one where it was asked again.
    pub readings: Vec<Reading>,
    /// Whether it has no row as long as it has always been up.
    pub quiet: bool,
}

impl Check {
    /// A check of one result.
    #[must_use]
    pub fn of(service: impl Into<String>, reading: Reading) -> Self {
        Self { service: service.into(), readings: vec![reading], quiet: false }
    }
}

/// One figure.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// What it is, with its unit: `probe_seconds`, `queue_waiting`, …
    pub metric: &'static str,
    /// Of what: a service, a queue, a database; empty where there is but one.
    pub subject: String,
    /// The figure; always finite.
    pub value: f64,
}

/// Gathers figures; what is no number is left out.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Samples(pub Vec<Sample>);

impl Samples {
    /// Adds a figure.
    pub fn add(&mut self, metric: &'static str, subject: &str, value: f64) {
        if value.is_finite() {
            self.0.push(Sample { metric, subject: subject.to_owned(), value });
        }
    }

    /// Adds a figure that may be unknown.
    pub fn add_some(&mut self, metric: &'static str, subject: &str, value: Option<f64>) {
        if let Some(value) = value {
            self.add(metric, subject, value);
        }
    }
}
