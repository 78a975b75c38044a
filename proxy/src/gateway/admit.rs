//! The gateway's questions to the policy: for a connection of bytes once and at every change, for HTTP per request.
//!
//! **In** who asks, from where, and for what. **Out** an [`Admitted`] target, without which `route` does nothing, and the
//! rule that decided, for the record. **Refuses** like `authorise`.

use std::sync::Arc;

use http::request::Parts;

use super::Gateway;
use super::http::ask::Ask;
use super::http::session::HttpSession;
use super::refuse::Refused;
use super::standing::{Standing, Upgraded};
use super::trust::Trust;
use crate::addr::Target;
use crate::authorise::{Admitted, Client, RequestFacts};
use crate::identity::Identity;
use crate::record::Peer;

impl Gateway {
    /// Whether the client may open a connection of bytes to the target; and what keeps asking while it lives.
    pub(super) fn admit_connection(
        &self,
        peer: &Arc<Peer>,
        identity: &Identity,
        target: Target,
        trust: Option<&Trust>,
    ) -> Result<(Admitted<Target>, Standing, Option<Arc<str>>), Refused> {
        self.route.allowed(&target)?; // a name that is never served is refused as that, whoever asks
        let client = Client { identity: identity.clone(), network: peer.addr.ip() };
        let exported = self.directory.exported(&target);
        let admission = self.policy.load().connection(&client, target.clone(), exported)?;
        let standing = Standing::new(self, client, target, trust.cloned());
        Ok((admission.target, standing, admission.rule))
    }

    /// Whether the client may make this request.
    pub(super) fn admit_request(
        &self,
        session: &HttpSession,
        ask: &Ask,
        parts: &Parts,
    ) -> Result<(Admitted<Target>, Option<Arc<str>>), Refused> {
        self.route.allowed(&ask.target)?;
        let client = Client { identity: session.client.clone(), network: session.peer.addr.ip() };
        let exported = self.directory.exported(&ask.target);
        let facts = RequestFacts {
            method: &parts.method,
            path: parts.uri.path(),
            headers: &parts.headers,
            host: parts.uri.host(),
            grpc: ask.grpc,
        };
        let admission = self.policy.load().request(&client, ask.target.clone(), exported, &facts)?;
        Ok((admission.target, admission.rule))
    }

    /// What keeps asking about an upgraded request while its connection lives. Whether it may begin was decided with the
    /// request.
    pub(super) fn standing(&self, session: &HttpSession, target: &Target, request: Upgraded) -> Standing {
        let client = Client { identity: session.client.clone(), network: session.peer.addr.ip() };
        Standing::new(self, client, target.clone(), Some(session.trust.clone())).of_request(request)
    }
}
