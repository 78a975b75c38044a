//! Trust that changes while traffic runs: rotation, reload, revocation, expiry. Everything in one process, over real
//! sockets and real files.

mod client;
mod mount;
mod rotation;
mod trust;
mod world;
