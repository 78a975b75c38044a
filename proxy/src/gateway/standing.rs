//! Whether a connection may stay: trust and policy change while it lives.
//!
//! **In** what a connection was admitted by: its peer's chain, and for bytes its target. **Out** a future that ends when
//! it no longer would be. A chain is verified again after each change of the credentials and when its leaf expires; a
//! policy decision is taken again after each change of the policy. HTTP asks the policy per request and needs only the
//! former.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, Method};

use super::Gateway;
use super::refuse::Refused;
use crate::addr::Target;
use crate::authorise::{Admission, Client, Denied, Policy, RequestFacts};
use crate::fault::Fault;
use crate::identity::Identity;
use crate::live::{Changes, Live};
use crate::record::Stage;
use crate::route::Directory;
use crate::tls::{self, Credentials};

/// A peer's chain, judged again while its connection lives.
#[derive(Clone, Debug)]
pub(crate) struct Trust {
    peer: Rc<tls::server::Peer>,
    credentials: Arc<Live<Credentials>>,
    changes: Changes,
    expiry_grace: Option<Duration>,
}

impl Trust {
    pub(super) fn new(gateway: &Gateway, peer: tls::server::Peer) -> Self {
        Self {
            peer: Rc::new(peer),
            changes: gateway.credentials.changes(),
            credentials: Arc::clone(&gateway.credentials),
            expiry_grace: gateway.expiry_grace,
        }
    }

    pub(super) fn identity(&self) -> &Identity {
        &self.peer.identity
    }

    /// Ends when the peer's chain would no longer be accepted. Cancel safe.
    pub(crate) async fn lost(&self) -> Refused {
        let mut changes = self.changes.clone();
        loop {
            let wait = self.until_expiry();
            tokio::select! {
                () = changes.next() => {}
                () = wait => return Refused::new(Stage::Tls, Fault::Client, "tls.expired_while_connected", "the peer's certificate expired while it was connected"),
            }
            if let Some(refused) = self.recheck().await {
                return refused;
            }
        }
    }

    /// Verifies the chain under the newest roots and CRLs, on a thread that serves nobody.
    async fn recheck(&self) -> Option<Refused> {
        let credentials = self.credentials.load_full();
        let chain = self.peer.chain.clone();
        let checked =
            tokio::task::spawn_blocking(move || tls::verify::recheck(&credentials, &chain, SystemTime::now()));
        match checked.await {
            Ok(Ok(())) => None,
            // Expiry has its own clock and its own grace.
            Ok(Err(reason)) if reason.is_expiry() => None,
            Ok(Err(reason)) => Some(Refused::new(Stage::Tls, Fault::Client, reason.code(), &reason.to_string())),
            Err(_) => None, // the process is ending
        }
    }

    async fn until_expiry(&self) {
        let Some(grace) = self.expiry_grace else { return std::future::pending().await };
        let end = self.peer.not_after + grace;
        // The wall clock may jump, so it is asked again now and then rather than slept through.
        while let Ok(left) = end.duration_since(SystemTime::now()) {
            tokio::time::sleep(left.min(LOOK_AGAIN)).await;
        }
    }
}

/// How long a wait for a wall-clock moment may trust the wall clock.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// A decision about a connection of bytes, taken again while it lives.
#[derive(Debug)]
pub(crate) struct Standing {
    policy: Arc<Live<Policy>>,
    changes: Changes,
    directory: Arc<Directory>,
    client: Client,
    target: Target,
    /// The request that was upgraded, where there was one: the policy judged it and judges it again.
    request: Option<Box<Upgraded>>,
    trust: Trust,
}

/// What the policy looks at in a request that left HTTP.
#[derive(Clone, Debug)]
pub(super) struct Upgraded {
    pub(super) method: Method,
    pub(super) path: Box<str>,
    pub(super) host: Option<Box<str>>,
    pub(super) headers: HeaderMap,
    pub(super) grpc: bool,
}

impl Standing {
    pub(super) fn new(gateway: &Gateway, client: Client, target: Target, trust: Trust) -> Self {
        Self {
            request: None,
            policy: Arc::clone(&gateway.policy),
            changes: gateway.policy.changes(),
            directory: Arc::clone(&gateway.directory),
            client,
            target,
            trust,
        }
    }

    /// Asks about the request that led here rather than about a connection of bytes.
    pub(super) fn of_request(self, request: Upgraded) -> Self {
        Self { request: Some(Box::new(request)), ..self }
    }

    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    fn judged(&self) -> Result<Admission, Denied> {
        let exported = self.directory.exported(&self.target);
        let policy = self.policy.load();
        match self.request.as_deref() {
            None => policy.connection(&self.client, self.target.clone(), exported),
            Some(request) => {
                let facts = RequestFacts {
                    method: &request.method,
                    path: &request.path,
                    headers: &request.headers,
                    host: request.host.as_deref(),
                    grpc: request.grpc,
                };
                policy.request(&self.client, self.target.clone(), exported, &facts)
            }
        }
    }

    /// Ends when the connection would no longer be admitted. Cancel safe.
    pub(super) async fn lost(&self) -> Refused {
        tokio::select! {
            refused = self.forbidden() => refused,
            refused = self.trust.lost() => refused,
        }
    }

    async fn forbidden(&self) -> Refused {
        let mut changes = self.changes.clone();
        loop {
            changes.next().await;
            if let Err(denied) = self.judged() {
                return Refused::from(denied);
            }
        }
    }
}
