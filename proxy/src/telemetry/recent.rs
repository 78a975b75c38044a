//! The refusals of late, for somebody who asks why a peer does not get in and has no access to the log.
//!
//! **In** closed records of connections that were refused. **Out** the last few, with code and reason in words. What any
//! open port sees all day (scans, health checks) is left out, as it would push out what matters.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;

use super::logs::is_noise;
use crate::addr::Target;
use crate::identity::Identity;
use crate::record::{Event, Observer, Outcome, Record};

/// How many are kept.
const KEPT: usize = 32;

/// One refused connection.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// When it ended.
    pub at: SystemTime,
    /// Why, as a stable dotted word.
    pub code: &'static str,
    /// Why, in words.
    pub reason: Box<str>,
    /// The peer.
    pub addr: SocketAddr,
    /// Who the peer is, where that was known.
    pub identity: Option<Identity>,
    /// The service that was asked for, where that was known.
    pub service: Option<Target>,
}

/// The refused connections of late. Clones are the same; a refusal takes a lock, which is nothing beside the connection.
#[derive(Clone, Debug, Default)]
pub struct Recent(Arc<Mutex<VecDeque<Refusal>>>);

impl Recent {
    /// The newest first.
    pub fn latest(&self) -> Vec<Refusal> {
        self.0.lock().iter().rev().cloned().collect()
    }
}

impl Observer for Recent {
    fn event(&self, _: Event<'_>) {}

    fn closed(&self, record: &Record) {
        let Outcome::Refused { code, fault, .. } = record.outcome else { return };
        if record.request.is_some() || is_noise(code, fault) {
            return;
        }
        let refusal = Refusal {
            at: record.started + record.duration,
            code,
            reason: record.detail.clone().unwrap_or_default(),
            addr: record.peer.addr,
            identity: record.peer.identity.clone(),
            service: record.target.clone(),
        };
        let mut kept = self.0.lock();
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(refusal);
    }
}
