//! Gateway health: what `mc-probe` answers, and what asks it.
//!
//! - [`health`] the state machine: which parts of the process are ready, and whether it drains.
//! - [`endpoint`] the server that remote service mirrors and load balancers ask.
//! - [`prober`] what a service mirror does: ask, count failures, decide whether the gateway is alive.
//! - [`status`] what is known of a gateway, and how one more result changes it.
//! - [`latencies`] how long probes took.
//! - [`report`] what a prober found, as a table, as JSON and as the metrics a service mirror shows.
//! - [`serve`] HTTP over one stream, bounded in time and memory; the admin server uses it too.
//!
//! The crate knows no TLS: streams are handed in, dialers too.

pub mod endpoint;
pub mod health;
pub mod latencies;
pub mod prober;
pub mod report;
pub mod serve;
pub mod status;
