//! Faults, each under load, with what the clients saw counted: broken backends, panics of our own, a host that gives out.
//! (`docs/reliability.md` has the table.)

mod backends;
mod last_words;
mod panics;
