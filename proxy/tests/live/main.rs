//! Trust that changes while traffic runs: rotation, reload, revocation, expiry. Everything in one process, over real
//! sockets and real files.

#![expect(clippy::unwrap_used, reason = "a test, though not every function of it is marked as one")]

mod client;
mod mount;
mod rotation;
mod tools;
mod trust;
mod world;
