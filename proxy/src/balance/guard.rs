//! The way back: what became of a request (or connection) that was given to an endpoint.
//!
//! Counts as pending until dropped. Dropped without a word, it says that the caller lost interest, which is no verdict
//! on the endpoint, except that its answer took at least that long.

use std::cell::Cell;
use std::rc::Rc;

use tokio::time::Instant;

use super::Shared;
use super::node::Node;

/// How an endpoint failed.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Failure {
    /// No connection: refused, unreachable, timed out, or the TLS handshake failed.
    Connect,
    /// The connection or stream broke before the answer was complete.
    Reset,
    /// It answered 5xx (or the gRPC status that says the same).
    Status5xx,
    /// No answer in time.
    Timeout,
}

/// Reports one request's fate to the balancer.
#[derive(Debug)]
pub struct Guard {
    node: Rc<Node>,
    shared: Rc<Shared>,
    started: Instant,
    pick: u64,
    answered: Cell<bool>,
    decided: Cell<bool>,
}

impl Guard {
    pub(super) fn new(node: Rc<Node>, shared: Rc<Shared>, now: Instant) -> Self {
        let pick = shared.picks.get() + 1;
        shared.picks.set(pick);
        node.entry.pending.add(1);
        node.entry.requests.add(1);
        Self { node, shared, started: now, pick, answered: Cell::new(false), decided: Cell::new(false) }
    }

    /// The first byte of the answer has come: its round trip ends here. Only the first call counts.
    pub fn first_byte(&self) {
        if !self.answered.replace(true) {
            let now = Instant::now();
            self.node.observe(&self.shared.clock, now - self.started, now);
        }
    }

    /// A new connection to the endpoint stands (with TLS, where there is some). Not a verdict, but enough to bring back an
    /// endpoint that was ejected for taking no connections, however long its first answer then takes.
    pub fn connected(&self) {
        if self.node.connected(self.pick) {
            self.came_back();
        }
    }

    /// The endpoint did what it should. Only the first verdict counts, here and in [`Guard::failed`].
    pub fn succeeded(&self) {
        if !self.decided.replace(true) && self.node.succeeded(self.pick) {
            self.came_back();
        }
    }

    /// The endpoint failed. Answers whether it was ejected for it.
    pub fn failed(&self, failure: Failure) -> bool {
        if self.decided.replace(true) {
            return false;
        }
        self.node.entry.failures.add(1);
        let now = Instant::now();
        self.answered.set(true);
        let took = now - self.started;
        self.node.observe(&self.shared.clock, took.max(self.shared.clock.failure_rtt), now);
        let newest = self.shared.picks.get();
        let ejected = self.node.failed(failure, self.pick, newest, &self.shared.settings, now);
        if ejected {
            self.shared.stale.set(true);
            // Who waits must learn until when.
            self.shared.bell.notify_waiters();
        }
        ejected
    }

    fn came_back(&self) {
        self.shared.stale.set(true);
        self.shared.failing_fast.set(false);
        self.shared.bell.notify_waiters();
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.node.entry.pending.sub(1);
        if !self.answered.get() {
            let now = Instant::now();
            self.node.observe_at_least(&self.shared.clock, now - self.started, now);
        }
        if !self.decided.get() && self.node.undecided(self.pick) {
            self.shared.stale.set(true);
            self.shared.bell.notify_waiters();
        }
    }
}

#[cfg(test)]
impl Guard {
    pub(super) fn node_phase(&self) -> super::node::Phase {
        self.node.phase.get()
    }
}
