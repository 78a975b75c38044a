//! Trust that changes while traffic runs: rotation, reload, revocation, expiry. Everything in one process, over real
//! sockets and real files.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on may say so by panicking")]

mod client;
mod mount;
mod rotation;
mod tools;
mod trust;
mod world;
