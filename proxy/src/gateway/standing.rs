//! Whether a connection may stay: the policy may change while it lives, and the trust in its peer.
//!
//! **In** what a connection of bytes was admitted by: its client and target, or the request that was upgraded, and the
//! [`Trust`] in its peer. **Out** a future that ends when it would no longer be admitted. The decision is taken again
//! after each change of the policy, and of what a source says of the service. HTTP asks the policy per request and needs
//! the trust only.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::OptionFuture;
use http::{HeaderMap, Method};

use super::Gateway;
use super::refuse::Refused;
use super::trust::Trust;
use crate::addr::Target;
use crate::authorise::{Admission, Client, Denied, Policy, RequestFacts};
use crate::live::{Changes, Live};
use crate::route::Directory;

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
    pub(super) query: Option<Box<str>>,
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
                    query: request.query.as_deref(),
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
            // Both before the first look too: policy and service may have changed between the decision and our listening.
            let service = self.directory.known(&self.target);
            let published = service.as_ref().map(|service| service.changed());
            if let Err(denied) = self.judged() {
                return super::admit::by_rule(denied);
            }
            tokio::select! {
                () = changes.next() => {}
                () = OptionFuture::from(published).map(drop), if service.is_some() => {}
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
        }
    }
}

/// How often the policy is asked without having changed: the directory may have forgotten the service meanwhile and made it
/// anew, not exported any more.
const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_secs(15);
