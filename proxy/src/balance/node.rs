//! One endpoint as the balancer knows it: its load, its recent failures, and whether it may be chosen.
//!
//! Live until it fails too often in a row; then ejected for a while; then half open: the next request is its trial, and
//! until that is decided nobody else is sent there. A trial that succeeds makes it live, one that fails ejects it for
//! longer. Kept by address when the service's endpoints are replaced, or an ejected one would be live again with every
//! unrelated change.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::load::{Clock, Estimate};
use super::registry::Entry;
use super::{Failure, Settings};
use crate::endpoint::Endpoint;

/// Whether an endpoint may be chosen.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Phase {
    /// Yes.
    Live,
    /// Not before this moment, and why.
    Ejected(Instant, Cause),
    /// Yes, by one.
    HalfOpen(Cause),
    /// Not until that one is decided.
    OnTrial(Cause),
}

/// What an endpoint was ejected for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Cause {
    /// It took no connections.
    Connect,
    /// Its responses failed.
    Responses,
}

#[derive(Debug)]
pub(super) struct Node {
    endpoint: RefCell<Rc<Endpoint>>,
    addr: SocketAddr,
    pub(super) phase: Cell<Phase>,
    estimate: Cell<Estimate>,
    connect_failures: Cell<u32>,
    response_failures: Cell<u32>,
    /// Ejections in a row without a successful trial between them.
    ejections: Cell<u32>,
    /// The newest pick there was when a failure of the connection was last counted.
    counted: Cell<u64>,
    /// The newest pick there was at the last ejection: what was picked before it has no say in the trial.
    ejected_at: Cell<u64>,
    pub(super) entry: Arc<Entry>,
}

impl Node {
    pub(super) fn new(endpoint: &Endpoint, clock: &Clock, entry: Arc<Entry>) -> Self {
        let node = Self {
            endpoint: RefCell::new(Rc::new(endpoint.clone())),
            addr: endpoint.addr,
            phase: Cell::new(Phase::Live),
            estimate: Cell::new(clock.first(Instant::now())),
            connect_failures: Cell::new(0),
            response_failures: Cell::new(0),
            ejections: Cell::new(0),
            counted: Cell::new(0),
            ejected_at: Cell::new(0),
            entry,
        };
        node.show_estimate(clock, Instant::now());
        node
    }

    pub(super) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(super) fn endpoint(&self) -> Rc<Endpoint> {
        Rc::clone(&self.endpoint.borrow())
    }

    pub(super) fn weight(&self) -> u32 {
        self.endpoint.borrow().weight
    }

    pub(super) fn is_in(&self, zone: &str) -> bool {
        self.endpoint.borrow().zone.as_deref() == Some(zone)
    }

    pub(super) fn is_near(&self) -> bool {
        self.endpoint.borrow().near
    }

    /// The same address with another weight, zone or identity.
    pub(super) fn replace(&self, endpoint: &Endpoint) {
        if **self.endpoint.borrow() != *endpoint {
            self.entry.describe(endpoint);
            *self.endpoint.borrow_mut() = Rc::new(endpoint.clone());
        }
    }

    /// What another request here would cost, in seconds. Pending requests count against the node's share (1.0 for an
    /// average weight), so that twice the weight may bear twice the load; the round trip itself does not depend on weight.
    pub(super) fn cost(&self, clock: &Clock, share: f64, now: Instant) -> f64 {
        clock.read(self.estimate.get(), now) * (f64::from(self.entry.pending.get()) / share + 1.0)
    }

    pub(super) fn observe(&self, clock: &Clock, rtt: Duration, now: Instant) {
        self.estimate.set(clock.observe(self.estimate.get(), rtt, now));
        self.show_estimate(clock, now);
    }

    /// An abandoned request tells nothing but that the answer took longer than this.
    pub(super) fn observe_at_least(&self, clock: &Clock, rtt: Duration, now: Instant) {
        if rtt.as_secs_f64() > clock.read(self.estimate.get(), now) {
            self.observe(clock, rtt, now);
        }
    }

    /// A connection stands. Answers whether the node came back by it.
    pub(super) fn connected(&self, pick: u64) -> bool {
        self.connect_failures.set(0);
        matches!(self.phase.get(), Phase::OnTrial(Cause::Connect)) && self.come_back(pick)
    }

    /// Something went well. Answers whether the node came back by it.
    pub(super) fn succeeded(&self, pick: u64) -> bool {
        self.connect_failures.set(0);
        self.response_failures.set(0);
        self.come_back(pick)
    }

    fn come_back(&self, pick: u64) -> bool {
        if pick <= self.ejected_at.get() {
            return false;
        }
        self.ejections.set(0);
        let back = self.phase.replace(Phase::Live) != Phase::Live;
        if back {
            self.entry.ejected_until.set(0);
        }
        back
    }

    /// Counts a failure of pick number `pick`, of `newest` picks so far. Answers whether it ejected the node.
    pub(super) fn failed(&self, failure: Failure, pick: u64, newest: u64, settings: &Settings, now: Instant) -> bool {
        let (cause, count, limit) = match failure {
            Failure::Connect => (Cause::Connect, &self.connect_failures, settings.max_connect_failures),
            Failure::Reset | Failure::Status5xx | Failure::Timeout => {
                (Cause::Responses, &self.response_failures, settings.max_response_failures)
            }
        };
        if failure == Failure::Status5xx {
            self.connect_failures.set(0); // an answer of any kind proves that it takes connections
        } else if pick <= self.counted.get() {
            // One broken connection, or one failed dial, fails everything that waited for it: that is one failure, and
            // what was picked before it was counted belongs to it.
            return false;
        } else {
            self.counted.set(newest);
        }
        let phase = self.phase.get();
        if phase != Phase::Live && pick <= self.ejected_at.get() {
            return false;
        }
        count.set(count.get().saturating_add(1));
        let on_trial = matches!(phase, Phase::OnTrial(_) | Phase::HalfOpen(_));
        let out = matches!(phase, Phase::Ejected(..));
        if out || !(on_trial || count.get() >= limit.max(1)) {
            return false;
        }
        count.set(0);
        self.ejections.set(self.ejections.get().saturating_add(1));
        self.ejected_at.set(newest);
        let until = now + settings.ejection.after(self.ejections.get());
        self.phase.set(Phase::Ejected(until, cause));
        self.entry.show_ejected(until);
        true
    }

    /// Whether this pick is the node's trial (or may be).
    pub(super) fn on_trial(&self) -> bool {
        matches!(self.phase.get(), Phase::OnTrial(_))
    }

    /// A request ended without a verdict. If it was the trial, the next one may try. Answers whether it was.
    pub(super) fn undecided(&self, pick: u64) -> bool {
        let Phase::OnTrial(cause) = self.phase.get() else { return false };
        let trial = pick > self.ejected_at.get();
        if trial {
            self.phase.set(Phase::HalfOpen(cause));
        }
        trial
    }

    fn show_estimate(&self, clock: &Clock, now: Instant) {
        self.entry.show_rtt(clock.read(self.estimate.get(), now), now);
    }
}
