//! Calls on paper: judged by a policy, compared between two, held against expectations.
//!
//! **In** a [`Call`] as a log or a file has it. **Out** the [`Answer`] of a policy; the [`Change`]s between two policies
//! (`isthmus policy diff`); the [`Surprise`]s among an operator's own cases (`isthmus policy test`). **Refuses** with
//! [`InvalidCall`] what names no client, service or request. Nothing is counted: limits have no part in it.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::addr::Target;
use crate::fault::Refusal;
use crate::identity::Identity;

use super::denied::Reason;
use super::explain::Explanation;
use super::observe::{Asking, Observation};
use super::policy::{Client, Policy, RequestFacts};

/// One call: a request, or an opaque connection where neither method nor path is given.
#[derive(Clone, Debug, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// The client's identity.
    pub client: String,
    /// The address it comes from.
    #[serde(default = "nowhere")]
    pub network: IpAddr,
    /// The service, as `name:port`.
    pub service: String,
    /// Whether the service is exported.
    #[serde(default = "yes")]
    pub exported: bool,
    /// The method; `GET` where only a path is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// The path as sent; `/` where only a method is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The host; the service where none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Header fields.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Whether the content type says gRPC.
    #[serde(default)]
    pub grpc: bool,
}

fn nowhere() -> IpAddr {
    Ipv4Addr::UNSPECIFIED.into()
}

fn yes() -> bool {
    true
}

/// What a policy says to a call.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Answer {
    /// Whether it is let through.
    pub admitted: bool,
    /// The code of the refusal; in audit mode, of what would be refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// The rule that decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
}

/// A call that no client could make.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidCall {
    /// The client.
    #[error("client {0:?} is no identity: neither a DNS-like name nor an absolute URI")]
    Client(String),
    /// A header field.
    #[error("{0:?} is no header field")]
    Header(String),
    /// The method.
    #[error("{0:?} is no method")]
    Method(String),
    /// The service.
    #[error("service {0:?} is no name:port")]
    Service(String),
}

impl Call {
    /// An opaque connection, from nowhere in particular.
    pub fn of(client: &str, service: &str) -> Self {
        Self {
            client: client.to_owned(),
            network: nowhere(),
            service: service.to_owned(),
            exported: true,
            method: None,
            path: None,
            host: None,
            headers: BTreeMap::new(),
            grpc: false,
        }
    }

    /// The service that is called.
    pub fn target(&self) -> Result<Target, InvalidCall> {
        // Port 0 stands for none: no target has it.
        let target = Target::parse(&self.service, 0).ok().filter(|target| target.port != 0);
        target.ok_or_else(|| InvalidCall::Service(self.service.clone()))
    }

    /// Whether a client could make this call.
    pub fn check(&self) -> Result<(), InvalidCall> {
        self.ask(|_, _, _| ())
    }

    /// Puts the call as policies are asked.
    fn ask<T>(&self, ask: impl FnOnce(&Client, Target, Option<&RequestFacts<'_>>) -> T) -> Result<T, InvalidCall> {
        let identity = Identity::parse(&self.client).map_err(|_| InvalidCall::Client(self.client.clone()))?;
        let client = Client { identity, network: self.network };
        let target = self.target()?;
        if self.method.is_none() && self.path.is_none() {
            return Ok(ask(&client, target, None));
        }
        let method = self.method.as_deref().unwrap_or("GET");
        let method = Method::from_bytes(method.as_bytes()).map_err(|_| InvalidCall::Method(method.to_owned()))?;
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            let bad = || InvalidCall::Header(format!("{name}: {value}"));
            let field = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad())?;
            headers.append(field, HeaderValue::from_str(value).map_err(|_| bad())?);
        }
        let facts = RequestFacts {
            method: &method,
            path: self.path.as_deref().unwrap_or("/"),
            query: self.path.as_deref().and_then(|path| path.split_once('?')).map(|(_, query)| query),
            headers: &headers,
            host: Some(self.host.as_deref().unwrap_or(&self.service)),
            grpc: self.grpc,
        };
        Ok(ask(&client, target, Some(&facts)))
    }
}

/// Asks a policy about a call.
pub fn judge(policy: &Policy, call: &Call) -> Result<Answer, InvalidCall> {
    let decision = call.ask(|client, target, facts| match facts {
        Some(facts) => policy.request(client, target, call.exported, facts),
        None => policy.connection(client, target, call.exported),
    })?;
    Ok(match decision {
        Ok(admission) => Answer {
            admitted: true,
            code: admission.would_refuse.as_ref().map(|denied| denied.code().to_owned()),
            rule: admission
                .rule
                .or_else(|| admission.would_refuse.as_ref().and_then(|denied| denied.rule.clone()))
                .map(|rule| rule.to_string()),
        },
        Err(denied) => Answer {
            admitted: false,
            code: Some(denied.code().to_owned()),
            rule: denied.rule.map(|rule| rule.to_string()),
        },
    })
}

/// Asks a policy about a call, and why it says so.
pub fn explain(policy: &Policy, call: &Call) -> Result<Explanation, InvalidCall> {
    call.ask(|client, target, facts| policy.explain(client, &target, call.exported, facts))
}

/// A call whose answer changes.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Change {
    /// The call.
    pub call: Call,
    /// How often it was seen.
    pub count: u64,
    /// The answer of the old policy.
    pub before: Answer,
    /// The answer of the new one.
    pub after: Answer,
}

/// Which calls change their answer from one policy to another: equal calls are told once, the most frequent first.
pub fn diff(
    old: &Policy,
    new: &Policy,
    calls: impl IntoIterator<Item = (Call, u64)>,
) -> Result<Vec<Change>, InvalidCall> {
    let mut counts: HashMap<Call, u64> = HashMap::new();
    let mut order = Vec::new();
    for (call, count) in calls {
        match counts.entry(call) {
            Entry::Occupied(mut seen) => *seen.get_mut() = seen.get().saturating_add(count),
            Entry::Vacant(place) => {
                order.push(place.key().clone());
                place.insert(count);
            }
        }
    }
    let mut changes: Vec<Change> = Vec::new();
    for call in order {
        let (before, after) = (judge(old, &call)?, judge(new, &call)?);
        if (before.admitted, &before.code) != (after.admitted, &after.code) {
            let count = counts.get(&call).copied().unwrap_or(0);
            changes.push(Change { call, count, before, after });
        }
    }
    changes.sort_by_key(|change| std::cmp::Reverse(change.count));
    Ok(changes)
}

/// What an operator expects of a call.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// The call.
    pub call: Call,
    /// `allow` or `deny`. In audit mode, what enforcing would say.
    pub expect: Expected,
    /// The rule that is to decide.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The code of the refusal that is expected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Why: shown when the case fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub because: Option<String>,
}

/// What is expected.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Expected {
    /// It is let through.
    Allow,
    /// It is refused.
    Deny,
}

/// A case that did not come out as expected.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Surprise {
    /// Its place in the list, from 0.
    pub index: usize,
    /// What came out instead.
    pub answer: Result<Answer, InvalidCall>,
}

/// Holds cases against a policy, and returns those that surprise.
pub fn check(policy: &Policy, cases: &[Case]) -> Vec<Surprise> {
    let fits = |case: &Case, answer: &Answer| {
        let allowed = answer.admitted && answer.code.is_none();
        allowed == (case.expect == Expected::Allow)
            && (case.rule.is_none() || case.rule == answer.rule)
            && (case.code.is_none() || case.code == answer.code)
    };
    let one = |(index, case): (usize, &Case)| {
        let answer = judge(policy, &case.call);
        let expected = answer.as_ref().is_ok_and(|answer| fits(case, answer));
        (!expected).then_some(Surprise { index, answer })
    };
    cases.iter().enumerate().filter_map(one).collect()
}

impl Observation {
    /// A call of this kind: each `*` of the path template stands for itself, as a segment like any other.
    pub fn as_call(&self) -> Call {
        let (method, path, grpc) = match &self.asking {
            Asking::Opaque => (None, None, false),
            Asking::Grpc { service, method } => (Some("POST".to_owned()), Some(format!("/{service}/{method}")), true),
            // What could not be read is shown as something that cannot.
            Asking::Http { method, path: None } => (Some(method.clone()), Some("/%00".to_owned()), false),
            Asking::Http { method, path: Some(path) } => {
                (Some(method.clone()), Some(path.strip_prefix('=').unwrap_or(path).to_owned()), false)
            }
        };
        let exported = self.code.as_deref() != Some(Reason::NotExported.code());
        Call { exported, method, path, grpc, ..Call::of(&self.client, &self.service) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(yaml: &str) -> Policy {
        Policy::compile(&serde_saphyr::from_str(yaml).expect("well formed"), None, None).expect("valid")
    }

    const OLD: &str = "rules: [{ name: a, services: [api], http: { paths: [/v1/*] }, action: allow }]";
    const NEW: &str = "rules: [{ name: a, services: [api], http: { paths: [/v1/*], methods: [GET] }, action: allow }]";

    #[test]
    fn cases_surprise_or_not() {
        let cases: Vec<Case> = serde_saphyr::from_str(
            "
- { call: { client: web.west.example, service: api:80, path: /v1/a }, expect: allow, rule: a }
- { call: { client: web.west.example, service: api:80, path: /v2/a }, expect: deny, code: authorise.no_rule }
- { call: { client: web.west.example, service: api:80, path: /v1/a, headers: { x-a: b } }, expect: allow, rule: b }
- { call: { client: web.west.example, service: api:80 }, expect: allow }
- { call: { client: 'no body', service: api:80 }, expect: deny }
- { call: { client: web.west.example, service: api }, expect: deny }
- { call: { client: web.west.example, service: api:80, exported: false }, expect: deny, code: authorise.not_exported }
",
        )
        .expect("well formed");
        let surprises = check(&policy(OLD), &cases);
        assert_eq!(surprises.iter().map(|surprise| surprise.index).collect::<Vec<_>>(), [2, 3, 4, 5]);
        assert_eq!(surprises[2].answer, Err(InvalidCall::Client("no body".into())));
        assert_eq!(surprises[3].answer, Err(InvalidCall::Service("api".into())));
    }

    #[test]
    fn a_diff_shows_what_changes() {
        let call = |method: &str, path: &str| -> Call {
            let yaml = format!("{{ client: web.west.example, service: api:80, method: {method}, path: {path} }}");
            serde_saphyr::from_str(&yaml).expect("a call")
        };
        let calls = [
            (call("GET", "/v1/a"), 1),
            (call("POST", "/v1/a"), 2),
            (call("PUT", "/v1/a"), 9),
            (call("POST", "/v1/a"), 3),
        ];
        let changes = diff(&policy(OLD), &policy(NEW), calls).expect("valid calls");
        let short: Vec<_> =
            changes.iter().map(|c| (c.call.method.as_deref(), c.count, c.before.admitted, c.after.admitted)).collect();
        assert_eq!(short, [(Some("PUT"), 9, true, false), (Some("POST"), 5, true, false)]);
    }
}
