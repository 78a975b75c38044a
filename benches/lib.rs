//! What the benches stand on: a gateway in this process with everything on, and a process of their own for both its sides.
//!
//! The gateway's worker is measured alone: the clients and the services live in a child process ([`sides`]), so that neither
//! their instructions nor their allocations are counted ([`world`]).

#![allow(clippy::unwrap_used, reason = "a bench that cannot be set up says where, and ends")]

pub mod sides;
pub mod world;
