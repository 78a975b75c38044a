//! The trust in a live connection's peer, whichever side it is on.
//!
//! **In** the chain that the peer presented, and the news of changed credentials. **Out** a future that ends when the chain
//! would no longer be accepted. It is judged again after each change of the credentials, and whenever one of its
//! certificates or a revocation list ends. A certificate's end counts after the grace that is configured.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::Gateway;
use super::rechecks::{Question, Rechecks};
use super::refuse::Refused;
use crate::fault::Fault;
use crate::identity::Identity;
use crate::live::{Changes, Live};
use crate::record::{Event, Observer, Stage};
use crate::tls::verify::Reason;
use crate::tls::{Chain, Credentials, verify};

/// How long a wait for a wall-clock moment may trust the wall clock.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// What the judging of peers needs, whoever they are.
#[derive(Clone, Debug)]
pub(crate) struct Judge {
    pub(super) credentials: Arc<Live<Credentials>>,
    pub(super) rechecks: Arc<Rechecks>,
    /// How long a peer may stay past its certificate's end; None: for ever.
    pub(super) expiry_grace: Option<Duration>,
    pub(super) observer: Rc<dyn Observer>,
}

/// A peer's chain, judged again while its connection lives. Clones are the same trust.
#[derive(Clone, Debug)]
pub(crate) struct Trust(Rc<Ward>);

#[derive(Debug)]
struct Ward {
    judge: Judge,
    question: Question,
    identity: Identity,
    addr: SocketAddr,
    changes: Changes,
    /// A loss is counted and logged once, however many lines of the connection notice it.
    told: Cell<bool>,
}

impl Trust {
    /// In a client. `changes` must be from before the credentials were loaded that its handshake was held with: a change
    /// between the two would otherwise be nobody's.
    pub(super) fn in_client(
        gateway: &Gateway,
        peer: crate::tls::server::Peer,
        addr: SocketAddr,
        changes: Changes,
    ) -> Self {
        let question = Question { chain: peer.chain, upstream: None };
        Self::new(gateway.dialer.judge().clone(), question, peer.identity, addr, changes)
    }

    /// In an upstream that must be `identity`; `changes` as for clients.
    pub(super) fn in_upstream(
        judge: Judge,
        chain: Chain,
        identity: &Identity,
        addr: SocketAddr,
        changes: Changes,
    ) -> Self {
        let question = Question { chain, upstream: Some(identity.clone()) };
        Self::new(judge, question, identity.clone(), addr, changes)
    }

    fn new(judge: Judge, question: Question, identity: Identity, addr: SocketAddr, changes: Changes) -> Self {
        Self(Rc::new(Ward { judge, question, identity, addr, changes, told: Cell::new(false) }))
    }

    /// The peer's own certificate, in DER.
    pub(super) fn leaf(&self) -> &[u8] {
        self.0.question.chain.first().map_or(&[], |leaf| leaf)
    }

    pub(super) fn identity(&self) -> &Identity {
        &self.0.identity
    }

    /// Ends when the peer's chain would no longer be accepted. Cancel safe.
    pub(crate) async fn lost(&self) -> Refused {
        let ward = &*self.0;
        let mut changes = ward.changes.clone();
        let ends = verify::ends(&ward.question.chain);
        let mut looked = SystemTime::now();
        // Set when the judgement is that something has expired and the grace is not over.
        let mut expiry = None;
        loop {
            let next = ward.next_moment(&ends, looked, expiry);
            let since = tokio::select! {
                () = changes.next() => SystemTime::now() - LOOK_AGAIN,
                () = until(next) => next.unwrap_or(looked),
            };
            looked = SystemTime::now();
            match ward.judged(&ends, looked, since).await {
                Ok(()) => expiry = None,
                Err(Reason::Expired { not_after }) => match ward.judge.expiry_grace {
                    None => expiry = None,
                    Some(grace) if not_after + grace > looked => expiry = Some(not_after + grace),
                    Some(_) => {
                        let detail = Reason::Expired { not_after }.to_string();
                        return ward.tell(ward.expired_code(), &format!("the certificate {detail}, while connected"));
                    }
                },
                Err(reason) => return ward.tell(ward.code(&reason), &reason.to_string()),
            }
        }
    }
}

impl Ward {
    /// The next moment at which the clock alone may change the judgement.
    fn next_moment(&self, ends: &[SystemTime], looked: SystemTime, expiry: Option<SystemTime>) -> Option<SystemTime> {
        let credentials = self.judge.credentials.load();
        let lists = credentials.crls().iter().filter_map(|info| info.crl.next_update);
        // A certificate is good to the last second that it names.
        let moments = ends.iter().copied().chain(lists).map(|end| end + Duration::from_secs(1));
        moments.chain(expiry).filter(|moment| *moment > looked).min()
    }

    /// The verdict of now; or, in the grace after the leaf's end, of the leaf's last moment, so that a revocation or a lost
    /// root is not hidden behind the expiry.
    async fn judged(&self, ends: &[SystemTime], now: SystemTime, since: SystemTime) -> Result<(), Reason> {
        let (rechecks, credentials) = (&self.judge.rechecks, &self.judge.credentials);
        let verdict = rechecks.ask(&self.question, credentials, now, Some(since)).await;
        match (&verdict, ends.first()) {
            (Err(Reason::Expired { .. }), Some(end)) if *end < now => {
                match rechecks.ask(&self.question, credentials, *end, None).await {
                    Err(reason) if !reason.is_expiry() => Err(reason),
                    _ => verdict,
                }
            }
            _ => verdict,
        }
    }

    fn code(&self, reason: &Reason) -> &'static str {
        if self.question.upstream.is_some() { reason.upstream_code() } else { reason.code() }
    }

    fn expired_code(&self) -> &'static str {
        if self.question.upstream.is_some() { "tls.upstream_expired" } else { "tls.expired_while_connected" }
    }

    fn tell(&self, code: &'static str, detail: &str) -> Refused {
        if !self.told.replace(true) {
            let reason = code.strip_prefix("tls.").unwrap_or(code);
            let (identity, addr) = (&self.identity, self.addr);
            self.judge.observer.event(Event::Distrusted { reason, identity, addr, detail });
        }
        let fault = if self.question.upstream.is_some() { Fault::Upstream } else { Fault::Client };
        Refused::new(Stage::Tls, fault, code, detail)
    }
}

/// Ends at a moment of the wall clock; never without one.
async fn until(moment: Option<SystemTime>) {
    let Some(moment) = moment else { return std::future::pending().await };
    // The wall clock may jump, so it is asked again now and then rather than slept through.
    while let Ok(left) = moment.duration_since(SystemTime::now()) {
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(LOOK_AGAIN)).await;
    }
}
