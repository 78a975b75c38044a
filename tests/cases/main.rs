//! The end-to-end cases, by stage. Each starts a gateway of its own, knocks at its front door, and looks at the bytes, the
//! metric and the access-log line of the same event.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod accept;
mod admin;
mod authorise;
mod balance;
mod config;
mod connect;
mod demo;
mod detect;
mod drain;
mod faults;
mod http;
mod kubernetes;
#[path = "../linkerd/control.rs"]
mod linkerd_control;
#[path = "../linkerd/destination.rs"]
mod linkerd_destination;
#[path = "../linkerd/identity.rs"]
mod linkerd_identity;
#[path = "../linkerd/policy.rs"]
mod linkerd_policy;
#[path = "../linkerd/spiffe.rs"]
mod linkerd_spiffe;
mod mesh;
mod probe;
mod relay;
mod route;
mod source;
mod telemetry;
mod tls;
