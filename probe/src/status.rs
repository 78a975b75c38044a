//! What is known of a gateway that is probed, and how one more result changes it.
//!
//! **In** results of probes: a latency, or a [`Failure`] with the step that failed. **Out** a [`Status`]. One success forgives
//! all failures; so many failures in a row as the threshold says make the gateway dead, and only from there on do
//! failures count. Linkerd's mirror reckons the same way.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::latencies::Latencies;

/// The steps of a probe, in order.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// The name becomes an address.
    Name,
    /// A connection is made.
    Connect,
    /// The handshake.
    Tls,
    /// A request gets a response.
    Http,
    /// The response says yes.
    Status,
}

impl Step {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Http => "http",
            Self::Status => "status",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a probe failed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Failure {
    /// The step that failed.
    pub step: Step,
    /// What happened.
    pub message: String,
    /// When.
    pub at: Instant,
}

impl Failure {
    pub(crate) fn new(step: Step, message: impl Into<String>) -> Self {
        Self { step, message: message.into(), at: Instant::now() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step, self.message)
    }
}

/// What is known of a gateway.
#[derive(Clone, Debug)]
pub struct Status {
    /// The name of its cluster.
    pub cluster: String,
    /// Whether it should be sent traffic.
    pub alive: bool,
    /// Failures since the last success.
    pub failures_in_row: u32,
    /// Probes that succeeded.
    pub successful: u64,
    /// Failures from the threshold on.
    pub unsuccessful: u64,
    /// How long successful probes took.
    pub latencies: Latencies,
    /// The last failure, however long ago.
    pub last_error: Option<Failure>,
}

impl Status {
    /// What is thought of a gateway that was never asked: the best.
    pub fn new(cluster: impl Into<String>) -> Self {
        Self {
            cluster: cluster.into(),
            alive: true,
            failures_in_row: 0,
            successful: 0,
            unsuccessful: 0,
            latencies: Latencies::default(),
            last_error: None,
        }
    }

    /// Takes one result in.
    pub fn note(&mut self, result: Result<Duration, Failure>, failure_threshold: u32) {
        let was_alive = self.alive;
        match result {
            Ok(latency) => {
                self.alive = true;
                self.failures_in_row = 0;
                self.successful += 1;
                self.latencies.observe(latency);
            }
            Err(failure) => {
                self.failures_in_row = self.failures_in_row.saturating_add(1);
                if self.failures_in_row >= failure_threshold {
                    self.alive = false;
                    self.unsuccessful += 1;
                }
                self.last_error = Some(failure);
            }
        }
        if self.alive != was_alive {
            let error = self.last_error.as_ref().filter(|_| !self.alive).map(tracing::field::display);
            tracing::info!(cluster = self.cluster, alive = self.alive, error, "gateway changed");
        }
    }
}

/// Reads what a prober knows, while it works. Clones read the same.
#[derive(Clone, Debug)]
pub struct Reader(Arc<Mutex<Status>>);

impl Reader {
    pub(crate) fn new(cluster: &str) -> Self {
        Self(Arc::new(Mutex::new(Status::new(cluster))))
    }

    pub(crate) fn note(&self, result: Result<Duration, Failure>, failure_threshold: u32) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).note(result, failure_threshold);
    }

    /// What is known now.
    pub fn status(&self) -> Status {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
