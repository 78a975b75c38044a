//! Isthmus, a multicluster gateway: the one door through which services in other clusters reach this one's.
//!
//! The life of a connection is one sentence, and each word is a room:
//! **accept → tls → detect → authorise → route → balance → connect → relay.**

// Floor 0: plain words.
pub mod addr;
pub mod backoff;
pub mod drain;
pub mod endpoint;
pub mod fault;
pub mod identity;
pub mod live;
pub mod record;
pub mod rewind;

// Floor 1: bytes <-> values.
pub mod wire;

// Floor 2: the stages, strangers to one another.
pub mod authorise;
pub mod balance;
pub mod connect;
pub mod detect;
pub mod relay;
pub mod route;
pub mod tls;

// Floor 3: conduct, show, count, keep fresh.
pub mod admin;
pub mod gateway;
pub mod sources;
pub mod telemetry;

// Floors 4 to 6: the operator's words, the assembly, a person's doors.
pub mod app;
pub mod commands;
pub mod config;
