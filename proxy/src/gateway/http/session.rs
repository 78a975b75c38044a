//! One HTTP session: what its requests share, and the clock that watches it.
//!
//! A session ends by itself when it is idle or its head dawdles, and politely when the process drains or its age is
//! reached: HTTP/2 by GOAWAY in two steps (RFC 9113 §6.8), HTTP/1 by `connection: close` after the current exchange.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;

use super::ask::LastName;
use super::guarded::Framing;
use super::identify::{Caller, Known, Pen};
use super::{Head, Start};
use crate::addr::Target;
use crate::authorise::{self, Client};
use crate::detect::Naming;
use crate::gateway::Gateway;
use crate::gateway::connection::Places;
use crate::gateway::trust::Trust;
use crate::identity::Identity;
use crate::record::Peer;

/// What the requests of one session share.
#[derive(Debug)]
pub(crate) struct HttpSession {
    pub(crate) gateway: Rc<Gateway>,
    pub(crate) peer: Arc<Peer>,
    pub(crate) client: Identity,
    /// The client as the policy knows it.
    pub(crate) asks: authorise::Caller,
    /// The name that was read last.
    pub(super) last_name: LastName,
    pub(crate) naming: Naming,
    pub(crate) trust: Trust,
    head: Head,
    known: Known,
    places: Places,
    active: Cell<u32>,
    opened: Instant,
    idle_since: Cell<Instant>,
}

/// Looks are at least this far apart, whatever the limits.
const SOONEST_LOOK: Duration = Duration::from_millis(10);

/// What the session's clock says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Tick {
    /// Nothing is due.
    Fine,
    /// It has lived long enough: no new requests, the current ones finish.
    Retire,
    /// A request's head takes too long.
    SlowHead,
    /// Nothing has happened for too long.
    Idle,
}

impl HttpSession {
    pub(super) fn new(start: Start, head: Head) -> Self {
        let now = Instant::now();
        let Start { gateway, peer, client, naming, trust, places } = start;
        let asks = authorise::Caller::new(Client { identity: client.clone(), network: peer.addr.ip() });
        Self {
            gateway,
            peer,
            client,
            asks,
            last_name: LastName::default(),
            naming,
            trust,
            head,
            known: Known::default(),
            places,
            active: Cell::new(0),
            opened: now,
            idle_since: Cell::new(now),
        }
    }

    /// The guard over what is read; present on HTTP/1.
    pub(super) fn framing(&self) -> Option<&Framing> {
        match &self.head {
            Head::Http1(framing) => Some(framing),
            Head::Http2(_) => None,
        }
    }

    fn head_since(&self) -> Option<Instant> {
        match &self.head {
            Head::Http1(framing) => framing.head_since(),
            Head::Http2(clock) => clock.since(),
        }
    }

    /// Puts on a request what tells the backend who called, and takes off what its client may not say of itself.
    pub(super) fn identify(&self, target: &Target, headers: &mut HeaderMap) {
        let gateway = &self.gateway;
        let credentials = gateway.credentials.load();
        let assertions = gateway.assertions.as_deref();
        let pen = Pen { settings: &gateway.identify, credentials: &credentials, assertions };
        let caller = Caller { identity: &self.client, peer: &self.peer, leaf: self.trust.leaf() };
        self.known.write(pen, caller, target, headers);
    }

    pub(super) fn request_started(&self) {
        self.places.census.request();
        self.active.set(self.active.get() + 1);
        self.gateway.requests.set(self.gateway.requests.get() + 1);
    }

    /// Whether a request is under way.
    pub(super) fn is_active(&self) -> bool {
        self.active.get() > 0
    }

    pub(super) fn request_ended(&self) {
        self.active.set(self.active.get().saturating_sub(1));
        self.gateway.requests.set(self.gateway.requests.get().saturating_sub(1));
        self.idle_since.set(Instant::now());
    }

    /// When the clock must be looked at next. One timer serves a session however many requests it carries: what begins
    /// after this look ends, by its own limit, no earlier than the next one, which then knows the exact moment.
    pub(super) fn next_look(&self, now: Instant) -> Instant {
        let settings = &self.gateway.http;
        let idle = if self.active.get() == 0 { self.idle_since.get() } else { now } + settings.idle_timeout;
        let head = self.head_since().unwrap_or(now) + settings.header_timeout;
        let age = settings.max_age.map(|age| self.opened + age).filter(|at| *at > now);
        let next = age.unwrap_or(idle).min(idle).min(head);
        next.max(now + SOONEST_LOOK)
    }

    pub(super) fn tick(&self, now: Instant) -> Tick {
        let settings = &self.gateway.http;
        let over = |since: Instant, limit: Duration| now.duration_since(since) >= limit;
        if self.head_since().is_some_and(|since| over(since, settings.header_timeout)) {
            return Tick::SlowHead;
        }
        if self.active.get() == 0 && over(self.idle_since.get(), settings.idle_timeout) {
            return Tick::Idle;
        }
        if settings.max_age.is_some_and(|age| over(self.opened, age)) {
            return Tick::Retire;
        }
        Tick::Fine
    }
}
