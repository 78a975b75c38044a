//! The gateway's questions to the policy: for a connection of bytes once and at every change, for HTTP per request.
//!
//! **In** who asks, from where, and for what. **Out** an [`Admission`] that holds the target, without which `route` does
//! nothing, and a [`Permit`] that counts against the limits for as long as it is held. **Refuses** like `authorise`.
//! What was refused, or would have been, is noted for the operator.

use std::rc::Rc;

use http::header::{HOST, HeaderName, HeaderValue};
use http::request::Parts;
use tokio::time::Instant;

use super::Gateway;
use super::http::ask::Ask;
use super::http::session::HttpSession;
use super::refuse::{self, Refused};
use super::standing::{Standing, Upgraded};
use super::trust::Trust;
use crate::addr::Target;
use crate::authorise::{self, Admission, Client, Permit, RequestFacts};
use crate::fault::Refusal;
use crate::identity::Identity;
use crate::record::{Audit, Peer, Record};

/// What was let through, and what counts it.
pub(super) struct Admitted {
    pub(super) admission: Admission,
    pub(super) permit: Rc<Permit>,
}

impl Admitted {
    fn new(admission: Admission, permit: Permit) -> Self {
        Self { admission, permit: Rc::new(permit) }
    }

    /// Writes down which rule let it through, and what enforcing would have said.
    pub(super) fn write(&self, record: &mut Record) {
        record.rule.clone_from(&self.admission.rule);
        let denied = self.admission.would_refuse.as_ref().map(|denied| (denied.code(), denied.rule.clone()));
        let limited = self.permit.would_refuse.as_ref().map(|limited| (limited.code(), limited.rule.clone()));
        record.audit = denied.or(limited).map(|(code, rule)| Box::new(Audit { code, rule }));
    }
}

impl Gateway {
    /// Counts a connection that has just been let in, of whatever protocol.
    pub(super) fn admit_session(&self, identity: &Identity) -> Result<Permit, Refused> {
        Ok(self.policy.load().limits().admit_session(identity, Instant::now())?)
    }

    /// Whether the client may open a connection of bytes to the target; and what keeps asking while it lives.
    pub(super) fn admit_connection(
        &self,
        peer: &Peer,
        identity: &Identity,
        target: Target,
        trust: &Trust,
    ) -> Result<(Admitted, Standing), Refused> {
        self.route.allowed(&target)?; // a name that is never served is refused as that, whoever asks
        let client = Client { identity: identity.clone(), network: peer.addr.ip() };
        let exported = self.directory.exported(&target);
        let policy = self.policy.load();
        let decision = policy.connection(&client, target.clone(), exported);
        self.book.note(identity, &target, None, decision.as_ref());
        let admission = decision.map_err(by_rule)?;
        let permit = policy.limits().admit_connection(&client, &admission, Instant::now()).map_err(limited)?;
        let standing = Standing::new(self, client, target, trust.clone());
        Ok((Admitted::new(admission, permit), standing))
    }

    /// Whether the client may make this request.
    pub(super) fn admit_request(&self, session: &HttpSession, ask: &Ask, parts: &Parts) -> Result<Admitted, Refused> {
        self.route.allowed(&ask.target)?;
        let client = session.asks.client();
        let exported = self.directory.exported(&ask.target);
        let facts = RequestFacts {
            method: ask.method(parts),
            path: parts.uri.path(),
            query: parts.uri.query(),
            headers: &parts.headers,
            host: authority(parts),
            grpc: ask.grpc,
        };
        let policy = self.policy.load();
        let decision = policy.request_of(&session.asks, ask.target.clone(), exported, &facts);
        self.book.note(&client.identity, &ask.target, Some(&facts), decision.as_ref());
        let admission = decision.map_err(by_rule)?;
        let permit = policy.limits().admit_request(client, &admission, Instant::now()).map_err(limited)?;
        Ok(Admitted::new(admission, permit))
    }

    /// What keeps asking about an upgraded request while its connection lives, and counts it as a connection.
    pub(super) fn admit_upgrade(
        &self,
        session: &HttpSession,
        ask: &Ask,
        parts: &Parts,
        admitted: &Admission,
    ) -> Result<(Rc<Permit>, Standing), Refused> {
        let client = session.asks.client().clone();
        let permit =
            self.policy.load().limits().admit_connection(&client, admitted, Instant::now()).map_err(limited)?;
        let request = Upgraded {
            method: ask.method(parts).clone(),
            path: parts.uri.path().into(),
            query: parts.uri.query().map(Into::into),
            host: authority(parts).map(Into::into),
            headers: parts.headers.clone(),
            grpc: ask.grpc,
        };
        let standing = Standing::new(self, client, ask.target.clone(), session.trust.clone()).of_request(request);
        Ok((Rc::new(permit), standing))
    }
}

pub(super) fn by_rule(denied: authorise::Denied) -> Refused {
    let rule = denied.rule.clone();
    Refused::from(denied).by_rule(rule)
}

/// A limit's refusal, with the rule whose limit it is.
fn limited(limited: authorise::Limited) -> Refused {
    let rule = limited.rule.clone();
    let rate = (limited.limit == authorise::Limit::Rate).then(|| (limited.most, limited.scope.as_str()));
    Refused { rate, ..Refused::from(limited) }.by_rule(rule)
}

/// The authority that a request names: `:authority` or the absolute form's, else `host`.
fn authority(parts: &Parts) -> Option<&str> {
    let host = || parts.headers.get(HOST).and_then(|host| host.to_str().ok());
    parts.uri.authority().map(http::uri::Authority::as_str).or_else(host)
}

/// The fields for a request that was let through: what is left of the tightest rate.
pub(super) fn rate_fields(standing: &authorise::Standing) -> Option<[(HeaderName, HeaderValue); 2]> {
    let seconds = standing.full_after.as_secs() + u64::from(standing.full_after.subsec_nanos() > 0);
    refuse::rate_fields(standing.scope.as_str(), standing.per_second, standing.remaining, seconds)
}
