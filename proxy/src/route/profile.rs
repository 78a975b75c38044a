//! What a source knows of a service beyond its endpoints: to whom its traffic really goes, how long requests may take,
//! and which of them may be sent again.
//!
//! **In** a [`Profile`], published whole by a source beside the endpoints. **Out** the [`Branch`] that takes a request
//! or a connection, and the [`Rule`] that a request falls under. **Refuses** connections that the profile forbids.
//! (Linkerd wire document §4.9, §5.1, §5.2, §5.7.)

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use regex::Regex;

use super::{Budget, Service};

/// How the traffic of one service is carried. Replaced whole, never changed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Profile {
    /// Who takes requests, and connections unless `connections` says otherwise. Empty: the service itself.
    pub split: Vec<Branch>,
    /// Kinds of requests; the first whose condition holds counts.
    pub rules: Vec<Rule>,
    /// What retries are paid from. None: nothing is sent again for its response.
    pub budget: Option<Arc<Budget>>,
    /// Who takes connections of bytes.
    pub connections: Connections,
}

/// One of those that share a service's traffic.
#[derive(Clone, Debug)]
pub struct Branch {
    /// Its share relative to the others; 0 takes nothing.
    pub weight: u32,
    /// Where its endpoints are kept; none is the service itself.
    pub service: Option<Arc<Service>>,
}

impl PartialEq for Branch {
    /// The same service kept twice is not the same: each has endpoints of its own.
    fn eq(&self, other: &Self) -> bool {
        self.weight == other.weight
            && match (&self.service, &other.service) {
                (Some(one), Some(other)) => Arc::ptr_eq(one, other),
                (None, None) => true,
                _ => false,
            }
    }
}

/// Who takes connections of bytes.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Connections {
    /// Whoever takes requests.
    #[default]
    AsRequests,
    /// The first of these that has an endpoint, else the first.
    First(Vec<Branch>),
    /// These by weight.
    Shared(Vec<Branch>),
    /// Nobody: the control plane forbids it.
    Forbidden,
    /// Nobody: what the control plane says makes no sense. In words for the log.
    Invalid(Arc<str>),
    /// Not known yet.
    Pending,
}

/// Who takes a request or a connection.
#[derive(Clone, Debug)]
pub enum Taker {
    /// The service itself.
    Itself,
    /// One of its branches.
    Branch(Arc<Service>),
}

/// A kind of request and how it is treated.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Its name in metrics and logs.
    pub name: Option<Arc<str>>,
    /// Which requests it is about.
    pub condition: Condition,
    /// From when the request was routed to the head of the response, retries included.
    pub timeout: Option<Duration>,
    /// Whether a request may be sent again after a response that is a failure.
    pub retryable: bool,
    /// Which responses are failures; the first that holds counts. Where none holds, see [`Rule::is_failure`].
    pub classes: Vec<(ResponseCondition, bool)>,
}

/// Which requests a rule is about.
#[derive(Clone, Debug)]
pub enum Condition {
    /// All of these hold; true of none.
    All(Vec<Self>),
    /// One of these holds; false of none.
    Any(Vec<Self>),
    /// The method is this.
    Method(Method),
    /// This does not hold.
    Not(Box<Self>),
    /// The path, without its query, matches this as a whole.
    Path(Regex),
}

impl PartialEq for Condition {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::All(one), Self::All(other)) | (Self::Any(one), Self::Any(other)) => one == other,
            (Self::Method(one), Self::Method(other)) => one == other,
            (Self::Not(one), Self::Not(other)) => one == other,
            (Self::Path(one), Self::Path(other)) => one.as_str() == other.as_str(),
            _ => false,
        }
    }
}

impl Condition {
    /// Whether a request fulfils it.
    pub fn holds(&self, method: &Method, path: &str) -> bool {
        match self {
            Self::All(list) => list.iter().all(|one| one.holds(method, path)),
            Self::Any(list) => list.iter().any(|one| one.holds(method, path)),
            Self::Method(wanted) => wanted == method,
            Self::Not(one) => !one.holds(method, path),
            Self::Path(pattern) => pattern.is_match(path),
        }
    }
}

/// Which responses a class is about.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ResponseCondition {
    /// All of these hold; true of none.
    All(Vec<Self>),
    /// One of these holds; false of none.
    Any(Vec<Self>),
    /// This does not hold.
    Not(Box<Self>),
    /// The status lies between these, both included.
    Status(u16, u16),
}

impl ResponseCondition {
    /// Whether a status fulfils it.
    pub fn holds(&self, status: u16) -> bool {
        match self {
            Self::All(list) => list.iter().all(|one| one.holds(status)),
            Self::Any(list) => list.iter().any(|one| one.holds(status)),
            Self::Not(one) => !one.holds(status),
            Self::Status(min, max) => (*min..=*max).contains(&status),
        }
    }
}

/// gRPC statuses that say the server failed, not the request: UNKNOWN, DEADLINE_EXCEEDED, PERMISSION_DENIED, INTERNAL,
/// UNAVAILABLE, DATA_LOSS: those that Linkerd retries on.
const GRPC_FAILURES: [u16; 6] = [2, 4, 7, 13, 14, 15];

impl Rule {
    /// Whether a response says that its request failed: by the rule's classes, else by gRPC's status, else 5xx.
    pub fn is_failure(&self, status: u16, grpc_status: Option<u16>) -> bool {
        if let Some((_, failure)) = self.classes.iter().find(|(condition, _)| condition.holds(status)) {
            return *failure;
        }
        grpc_status.map_or_else(|| (500..600).contains(&status), |status| GRPC_FAILURES.contains(&status))
    }
}

impl Profile {
    /// The number of the rule that a request falls under.
    pub fn rule(&self, method: &Method, path: &str) -> Option<usize> {
        self.rules.iter().position(|rule| rule.condition.holds(method, path))
    }

    /// Who takes a request. `chance` gives a number below its argument, which is not 0.
    pub fn request(&self, chance: impl FnOnce(u64) -> u64) -> Taker {
        by_weight(&self.split, chance)
    }

    /// Whether it must be waited for before a connection of bytes is given away.
    pub fn is_pending(&self) -> bool {
        self.connections == Connections::Pending && self.split.is_empty()
    }

    /// Who takes a connection of bytes; none where nobody may.
    pub fn connection(&self, chance: impl FnOnce(u64) -> u64) -> Option<Taker> {
        match &self.connections {
            // A split of the profile goes before what the policy for bytes says.
            _ if !self.split.is_empty() => Some(by_weight(&self.split, chance)),
            Connections::AsRequests => Some(Taker::Itself),
            Connections::First(list) => {
                let able = list.iter().find(|branch| match &branch.service {
                    None => true,
                    Some(service) => service.known().is_some_and(|endpoints| !endpoints.list.is_empty()),
                });
                able.or_else(|| list.first()).map(Taker::of)
            }
            Connections::Shared(list) => (!list.is_empty()).then(|| by_weight(list, chance)),
            Connections::Forbidden | Connections::Invalid(_) | Connections::Pending => None,
        }
    }
}

impl Taker {
    fn of(branch: &Branch) -> Self {
        branch.service.as_ref().map_or(Self::Itself, |service| Self::Branch(Arc::clone(service)))
    }
}

/// One of the branches by its weight; the service itself where there is none, or none that takes anything.
fn by_weight(list: &[Branch], chance: impl FnOnce(u64) -> u64) -> Taker {
    let total: u64 = list.iter().map(|branch| u64::from(branch.weight)).sum();
    if total == 0 {
        return list.first().map_or(Taker::Itself, Taker::of);
    }
    let mut at = chance(total);
    for branch in list {
        match at.checked_sub(u64::from(branch.weight)) {
            Some(rest) => at = rest,
            None => return Taker::of(branch),
        }
    }
    Taker::Itself
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Target;

    fn branch(name: &str, weight: u32) -> Branch {
        let target = Target::parse(name, 80).expect("a target");
        Branch { weight, service: Some(Arc::new(Service::apart(target))) }
    }

    fn name(taker: &Taker) -> String {
        match taker {
            Taker::Itself => "itself".to_owned(),
            Taker::Branch(service) => service.target().name.to_string(),
        }
    }

    #[test]
    fn requests_are_shared_out_by_weight() {
        let itself = Branch { weight: 5, service: None };
        let profile = Profile { split: vec![branch("a.ns", 3), branch("off.ns", 0), itself], ..Profile::default() };
        let taken: Vec<_> = (0..8).map(|at| name(&profile.request(|_| at))).collect();
        assert_eq!(taken, ["a.ns", "a.ns", "a.ns", "itself", "itself", "itself", "itself", "itself"]);
        assert_eq!(name(&Profile::default().request(|_| unreachable!("nothing to choose from"))), "itself");
        let idle = Profile { split: vec![branch("a.ns", 0)], ..Profile::default() };
        assert_eq!(name(&idle.request(|_| 0)), "a.ns", "weights of nothing are no reason to leave the split");
    }

    #[test]
    fn connections_have_a_policy_of_their_own_unless_there_is_a_split() {
        let connection = |connections| Profile { connections, ..Profile::default() }.connection(|_| 0);
        assert_eq!(connection(Connections::AsRequests).as_ref().map(name).as_deref(), Some("itself"));
        assert!(connection(Connections::Forbidden).is_none());
        assert!(connection(Connections::Invalid("bad".into())).is_none());
        assert!(connection(Connections::Shared(vec![])).is_none());
        let first = Connections::First(vec![branch("empty.ns", 1), branch("b.ns", 1)]);
        assert_eq!(connection(first).as_ref().map(name).as_deref(), Some("empty.ns"), "nobody has any");
        let able = Connections::First(vec![branch("empty.ns", 1), Branch { weight: 1, service: None }]);
        assert_eq!(connection(able).as_ref().map(name).as_deref(), Some("itself"));
        let split =
            Profile { split: vec![branch("a.ns", 1)], connections: Connections::Forbidden, ..Profile::default() };
        assert_eq!(split.connection(|_| 0).as_ref().map(name).as_deref(), Some("a.ns"));
    }

    #[test]
    fn conditions() {
        let path = |text: &str| Condition::Path(Regex::new(text).expect("a pattern"));
        let get = Condition::Method(Method::GET);
        let books = Condition::All(vec![get.clone(), path("^/books/[0-9]+$")]);
        assert!(books.holds(&Method::GET, "/books/7"));
        assert!(!books.holds(&Method::GET, "/books/7/pages"));
        assert!(!books.holds(&Method::PUT, "/books/7"));
        assert!(Condition::Any(vec![path("^/x$"), get.clone()]).holds(&Method::GET, "/"));
        assert!(!Condition::Any(vec![]).holds(&Method::GET, "/"));
        assert!(Condition::All(vec![]).holds(&Method::GET, "/"));
        assert!(Condition::Not(Box::new(get)).holds(&Method::PUT, "/"));
    }

    #[test]
    fn failures_by_class_then_by_grpc_then_by_status() {
        let rule =
            |classes| Rule { name: None, condition: Condition::All(vec![]), timeout: None, retryable: true, classes };
        let plain = rule(vec![]);
        for (status, grpc, want) in [
            (200, None, false),
            (404, None, false),
            (500, None, true),
            (599, None, true),
            (200, Some(0), false),
            (200, Some(14), true),
            (200, Some(5), false),
            (503, Some(0), false),
        ] {
            assert_eq!(plain.is_failure(status, grpc), want, "{status} {grpc:?}");
        }
        let fine = (ResponseCondition::Status(503, 503), false);
        let teapot = (ResponseCondition::Any(vec![ResponseCondition::Status(418, 418)]), true);
        let rest = (ResponseCondition::Not(Box::new(ResponseCondition::Status(0, 499))), true);
        let classed = rule(vec![fine, teapot, rest]);
        assert!(!classed.is_failure(503, Some(14)), "the class says so");
        assert!(classed.is_failure(418, None));
        assert!(classed.is_failure(502, None));
        assert!(!classed.is_failure(404, None));
    }
}
