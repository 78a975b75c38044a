//! Who is connected: every authenticated connection, counted by identity and shown to the operator.
//!
//! **In** a connection whose peer is known. **Out** an `Entry` that counts while it is held. **Refuses** one identity's
//! connections beyond its limit. Entered and left once per connection, so one lock for all workers costs nothing.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use parking_lot::Mutex;

use crate::fault::{Fault, Refusal};
use crate::identity::Identity;
use crate::record::{Peer, Protocol};

/// All connections of the process.
#[derive(Debug, Default)]
pub struct Census {
    /// 0: no limit.
    max_per_identity: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    connections: HashMap<u64, Arc<Line>>,
    by_identity: HashMap<Identity, usize>,
}

/// One connection, as it is shown.
#[derive(Debug)]
pub struct Line {
    /// Whose it is.
    pub peer: Arc<Peer>,
    protocol: OnceLock<Protocol>,
    /// When it was entered.
    pub since: SystemTime,
    requests: AtomicU64,
}

impl Line {
    /// What is spoken on it, once that is known.
    pub fn protocol(&self) -> Option<Protocol> {
        self.protocol.get().copied()
    }

    /// How many requests it has carried.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

/// A connection that counts while this is held.
#[derive(Debug)]
pub(crate) struct Entry {
    census: Arc<Census>,
    key: u64,
    line: Arc<Line>,
}

impl Census {
    /// With a limit of connections for each identity; 0 is none.
    pub fn new(max_per_identity: usize) -> Arc<Self> {
        Arc::new(Self { max_per_identity, state: Mutex::default() })
    }

    /// Enters a connection whose peer is known, before anything is read of it: one that says nothing counts too.
    pub(crate) fn enter(self: &Arc<Self>, peer: &Arc<Peer>) -> Result<Entry, TooMany> {
        let mut state = self.state.lock();
        if let Some(identity) = &peer.identity {
            let count = state.by_identity.entry(identity.clone()).or_default();
            if self.max_per_identity > 0 && *count >= self.max_per_identity {
                return Err(TooMany { limit: self.max_per_identity });
            }
            *count += 1;
        }
        let key = state.next;
        state.next += 1;
        let line = Arc::new(Line {
            peer: Arc::clone(peer),
            protocol: OnceLock::new(),
            since: SystemTime::now(),
            requests: AtomicU64::new(0),
        });
        state.connections.insert(key, Arc::clone(&line));
        Ok(Entry { census: Arc::clone(self), key, line })
    }

    /// Every connection now, at most `limit` of them, the oldest first.
    pub fn connections(&self, limit: usize) -> Vec<Arc<Line>> {
        let state = self.state.lock();
        let mut lines: Vec<_> = state.connections.values().cloned().collect();
        drop(state);
        lines.sort_by_key(|line| line.since);
        lines.truncate(limit);
        lines
    }

    /// Connections and requests on them, by identity.
    pub fn by_identity(&self) -> Vec<(Identity, usize, u64)> {
        let state = self.state.lock();
        let mut sums: HashMap<&Identity, (usize, u64)> = HashMap::new();
        for line in state.connections.values() {
            if let Some(identity) = &line.peer.identity {
                let sum = sums.entry(identity).or_default();
                sum.0 += 1;
                sum.1 += line.requests();
            }
        }
        let mut sums: Vec<_> =
            sums.into_iter().map(|(identity, (n, requests))| (identity.clone(), n, requests)).collect();
        sums.sort();
        sums
    }
}

impl Entry {
    /// What is spoken has been found out.
    pub(crate) fn speaks(&self, protocol: Protocol) {
        let _ = self.line.protocol.set(protocol); // found out once
    }

    /// One more request on this connection.
    pub(crate) fn request(&self) {
        self.line.requests.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut state = self.census.state.lock();
        state.connections.remove(&self.key);
        if let Some(identity) = &self.line.peer.identity
            && let Some(count) = state.by_identity.get_mut(identity)
        {
            *count -= 1;
            if *count == 0 {
                state.by_identity.remove(identity);
            }
        }
    }
}

/// One identity has as many connections as it may.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the client has {limit} connections already, its limit (accept.max_connections_per_identity)")]
pub(crate) struct TooMany {
    limit: usize,
}

impl Refusal for TooMany {
    fn fault(&self) -> Fault {
        Fault::Policy
    }

    fn code(&self) -> &'static str {
        "authorise.connections"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str) -> Arc<Peer> {
        let identity = Some(Identity::parse(name).unwrap());
        Arc::new(Peer { addr: ([192, 0, 2, 1], 1).into(), identity, cluster: None, sni: None })
    }

    #[test]
    fn an_identity_has_its_limit_and_gets_places_back() {
        let census = Census::new(2);
        let first = census.enter(&peer("a.b")).unwrap();
        let _second = census.enter(&peer("a.b")).unwrap();
        assert!(census.enter(&peer("a.b")).is_err());
        assert!(census.enter(&peer("c.d")).is_ok());
        first.speaks(Protocol::Http2);
        first.request();
        assert_eq!(census.by_identity(), [(Identity::parse("a.b").unwrap(), 2, 1)]);
        drop(first);
        assert!(census.enter(&peer("a.b")).is_ok());
    }
}
