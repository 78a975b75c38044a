//! The decision: pure and total, one answer for every question.
//!
//! **In** a [`Client`], a target, whether it is exported, and where there is one the request. **Out** an [`Admission`].
//! **Refuses** with [`Denied`]. No clock, no IO, no counting: limits come after (`limits`).
//!
//! In this order: what is not exported is refused; a deny rule that holds *or may hold* refuses; an allow rule that
//! *surely* holds admits; the default decides about the rest. What a rule looks at but cannot see therefore never helps
//! a client: a deny rule about paths refuses opaque connections to its services, and an allow rule about paths admits none.
//! Among rules that agree, the one named is the first in their fixed order (see `compile`).

use std::cell::RefCell;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::addr::Target;
use crate::identity::Identity;

use super::admitted::Admitted;
use super::compile::{Compiled, compile};
use super::denied::{Denied, Reason};
use super::index::Few;
use super::invalid::InvalidPolicy;
use super::limits::{Grant, Limits};
use super::routes::{OPAQUE, Routes};
use super::rule::{Asked, Rule};
use super::serve::serve;
use super::served::{Origin, RateLimits, Served};
use super::settings::{Action, DefaultAction, Mode, Settings};
use super::verdict::{Doubt, Verdict};

/// Who is asking: the identity from the certificate, and the address it comes from.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Client {
    /// Who the certificate says it is.
    pub identity: Identity,
    /// Where it connects from.
    pub network: IpAddr,
}

/// A client that asks many times: what the rules' client patterns say of it is found once for each policy.
#[derive(Debug)]
pub struct Caller {
    client: Client,
    /// The number of a policy, and which of its client patterns hold.
    known: RefCell<Option<(u64, Few)>>,
}

impl Caller {
    /// A client that has not asked yet.
    pub fn new(client: Client) -> Self {
        Self { client, known: RefCell::default() }
    }

    /// Who it is.
    pub fn client(&self) -> &Client {
        &self.client
    }
}

/// What is known of one request.
#[derive(Clone, Copy, Debug)]
pub struct RequestFacts<'a> {
    /// The method.
    pub method: &'a http::Method,
    /// The path as the client sent it; a query is ignored.
    pub path: &'a str,
    /// The query, without its question mark.
    pub query: Option<&'a str>,
    /// The header fields as the client sent them.
    pub headers: &'a http::HeaderMap,
    /// The authority (`:authority`, or `host`).
    pub host: Option<&'a str>,
    /// Whether the content type says gRPC.
    pub grpc: bool,
}

/// What was let through, and by what.
#[derive(Debug)]
pub struct Admission {
    /// The proof that `route` asks for.
    pub target: Admitted<Target>,
    /// The rule that allowed it; absent where the default (or audit mode) did.
    pub rule: Option<Arc<str>>,
    /// In audit mode: what enforcing would have said.
    pub would_refuse: Option<Denied>,
    pub(super) grant: Option<Arc<Grant>>,
}

/// The compiled policy: immutable, replaced whole.
#[derive(Debug)]
pub struct Policy {
    /// Another one for each policy of this process.
    number: u64,
    pub(super) mode: Mode,
    pub(super) default: DefaultAction,
    pub(super) exported_only: bool,
    pub(super) compiled: Compiled,
    /// Where a control plane serves the policy: which route a request takes. Rules then count for their route only.
    pub(super) routes: Option<Routes>,
    limits: Limits,
}

/// What is known of what is asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum View {
    /// All that the rules look at.
    Whole,
    /// Not yet the request: it will be judged when it is there.
    Early,
}

/// A number that no policy of this process has had.
fn next_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Policy {
    /// Compiles the operator's words. `own` is the gateway's identity, whose trust domain a `*` at the end of a client
    /// pattern stands for where no trust domain is listed. The counts of limits go on from the policy that is `replaced`.
    pub fn compile(
        settings: &Settings,
        own: Option<&Identity>,
        replaced: Option<&Self>,
    ) -> Result<Self, InvalidPolicy> {
        if settings.source == Origin::Linkerd {
            return Ok(Self::serve(settings, &settings.linkerd.before_an_answer(), replaced));
        }
        let cells = |name: &str| {
            let rules = &replaced?.compiled.rules;
            rules.iter().find(|rule| &*rule.name == name).map(|rule| Arc::clone(&rule.grant.cell))
        };
        Ok(Self {
            number: next_number(),
            mode: settings.mode,
            default: settings.default,
            exported_only: settings.exported_only,
            compiled: compile(settings, own, cells)?,
            routes: None,
            limits: Limits::new(settings, &RateLimits::default(), replaced.map(|policy| &policy.limits)),
        })
    }

    /// Compiles what a control plane serves; of `settings` counts what is about all rules together. The counts of limits go
    /// on from the policy that is `replaced`.
    pub fn serve(settings: &Settings, served: &Served, replaced: Option<&Self>) -> Self {
        let (compiled, routes) = serve(served);
        Self {
            number: next_number(),
            mode: if served.audit { Mode::Audit } else { settings.mode },
            default: DefaultAction::Deny,
            exported_only: settings.exported_only,
            compiled,
            routes: Some(routes),
            limits: Limits::new(settings, &served.limits, replaced.map(|policy| &policy.limits)),
        }
    }

    /// Decides about an opaque connection, when it opens and again whenever the policy changes. (A connection that was
    /// upgraded from a request is judged again by that request.)
    pub fn connection(&self, client: &Client, target: Target, exported: bool) -> Result<Admission, Denied> {
        let outcome = self.decide(View::Whole, &Asked::new(client, None), &target, exported);
        self.admit(outcome, target)
    }

    /// Decides about one request.
    pub fn request(
        &self,
        client: &Client,
        target: Target,
        exported: bool,
        facts: &RequestFacts<'_>,
    ) -> Result<Admission, Denied> {
        let outcome = self.decide(View::Whole, &Asked::new(client, Some(facts)), &target, exported);
        self.admit(outcome, target)
    }

    /// The same for a client that asks often.
    pub fn request_of(
        &self,
        caller: &Caller,
        target: Target,
        exported: bool,
        facts: &RequestFacts<'_>,
    ) -> Result<Admission, Denied> {
        let mut known = caller.known.borrow_mut();
        if known.as_ref().is_none_or(|(number, _)| *number != self.number) {
            *known = Some((self.number, self.compiled.clients.find(&caller.client.identity)));
        }
        let (_, clients) = known.as_ref().expect("it was found just now, if not before");
        let outcome =
            self.decide_known(View::Whole, &Asked::new(&caller.client, Some(facts)), clients, &target, exported);
        self.admit(outcome, target)
    }

    /// Whether any request of this client to this service could be admitted: so that a session which names its
    /// service can be refused before its first request. Each request is decided by [`request`](Self::request) all the same.
    pub fn may_reach(&self, client: &Client, target: &Target, exported: bool) -> Result<(), Denied> {
        match self.decide(View::Early, &Asked::new(client, None), target, exported).result {
            Err(denied) if self.mode == Mode::Enforce => Err(denied),
            _ => Ok(()),
        }
    }

    /// The limits that belong to this policy.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// How many rules there are.
    pub fn rules(&self) -> usize {
        self.compiled.rules.len()
    }

    fn admit(&self, outcome: Outcome<'_>, target: Target) -> Result<Admission, Denied> {
        let (rule, would_refuse) = match outcome.result {
            Ok(rule) => (rule, outcome.audited),
            Err(denied) if self.mode == Mode::Audit => (None, Some(denied)),
            Err(denied) => return Err(denied),
        };
        Ok(Admission {
            target: Admitted::new(target),
            rule: rule.map(|rule| Arc::clone(&rule.name)),
            would_refuse,
            grant: rule.map(|rule| Arc::clone(&rule.grant)),
        })
    }

    fn decide(&self, view: View, asked: &Asked<'_>, target: &Target, exported: bool) -> Outcome<'_> {
        self.decide_known(view, asked, &self.compiled.clients.find(&asked.client.identity), target, exported)
    }

    /// Decides where the client patterns that hold are known.
    fn decide_known(
        &self,
        view: View,
        asked: &Asked<'_>,
        clients: &Few,
        target: &Target,
        exported: bool,
    ) -> Outcome<'_> {
        if self.exported_only && !exported {
            return Outcome::refused(Reason::NotExported, None);
        }
        if let Some(routes) = &self.routes {
            return Outcome { result: self.by_route(routes, view, asked, clients, target).map(Some), audited: None };
        }
        let found = self.search(view, asked, clients, target);
        let audited = found.audited.map(|(number, doubt)| self.refusal(number, doubt));
        let result = match (found.decided, found.doubted) {
            (Some((number, doubt)), _) => match &self.compiled.rules[number as usize] {
                rule if rule.action == Action::Allow => Ok(Some(rule)),
                _ => Err(self.refusal(number, doubt)),
            },
            (None, _) if self.default == DefaultAction::Authenticated => Ok(None),
            (None, Some(number)) => Err(self.refusal(number, Some(Doubt::Path))),
            // No reading to be allowed by one rule or another: it is no single rule's word.
            (None, None) if found.unreadable => Err(Denied { reason: Reason::AmbiguousPath, rule: None }),
            (None, None) => Err(Denied { reason: Reason::NoRule, rule: None }),
        };
        Outcome { result, audited }
    }

    /// The routes that a request or connection may take. CONNECT becomes bytes, in which anything can be asked for: what
    /// tells requests apart says nothing of it.
    pub(super) fn taken(&self, routes: &Routes, asked: &Asked<'_>, target: &Target) -> Vec<u32> {
        match asked.facts.filter(|facts| facts.method != http::Method::CONNECT) {
            None if routes.opaque => vec![OPAQUE],
            None => Vec::new(),
            Some(facts) => routes.find(asked, facts, target),
        }
    }

    /// Every route that may be taken must let the client through.
    fn by_route(
        &self,
        routes: &Routes,
        view: View,
        asked: &Asked<'_>,
        clients: &Few,
        target: &Target,
    ) -> Result<&Rule, Denied> {
        let through = |route: u32| {
            let numbers = clients.iter().flat_map(|client| self.compiled.pairs.get(route, client)).copied();
            let mut numbers: Vec<u32> = numbers.collect();
            numbers.sort_unstable();
            let rules = numbers.into_iter().map(|number| &self.compiled.rules[number as usize]);
            rules.into_iter().find(|rule| rule.holds(asked) == Verdict::Yes)
        };
        if view == View::Early {
            let all = 0..u32::try_from(routes.names.len()).unwrap_or(u32::MAX);
            let first = all.into_iter().find_map(through);
            return first.ok_or_else(|| routes.denied(Reason::NoRule, OPAQUE));
        }
        let taken = self.taken(routes, asked, target);
        let mut first = None;
        for route in &taken {
            let Some(rule) = through(*route) else {
                let reason = if taken.len() > 1 { Reason::AmbiguousPath } else { Reason::NoRule };
                return Err(routes.denied(reason, *route));
            };
            first = first.or(Some(rule));
        }
        first.ok_or_else(|| routes.denied(Reason::NoRoute, OPAQUE))
    }

    fn refusal(&self, number: u32, doubt: Option<Doubt>) -> Denied {
        let reason = match doubt {
            Some(Doubt::Path | Doubt::Unreadable) => Reason::AmbiguousPath,
            Some(Doubt::Spelling | Doubt::Unseen) | None => Reason::Denied,
        };
        Denied { reason, rule: Some(Arc::clone(&self.compiled.rules[number as usize].name)) }
    }

    /// Asks the rules that name both the client and the service. Rules are numbered in their fixed order, so the
    /// one that decides is the smallest number, whatever the order in which they are found.
    fn search(&self, view: View, asked: &Asked<'_>, clients: &Few, target: &Target) -> Found {
        let mut found = Found::default();
        let services = self.compiled.services.find(target);
        for service in services.iter() {
            for client in clients.iter() {
                for number in self.compiled.pairs.get(service, client) {
                    if found.decided.is_some_and(|(decided, _)| decided <= *number) {
                        break;
                    }
                    let rule = &self.compiled.rules[*number as usize];
                    found.add(*number, rule, rule.holds(asked), view);
                }
            }
        }
        found
    }
}

/// What the rules said.
#[derive(Debug)]
struct Outcome<'a> {
    /// The rule that admits (absent: the default does), or the refusal.
    result: Result<Option<&'a Rule>, Denied>,
    /// What a rule in audit mode would refuse.
    audited: Option<Denied>,
}

impl Outcome<'_> {
    fn refused(reason: Reason, rule: Option<Arc<str>>) -> Self {
        Self { result: Err(Denied { reason, rule }), audited: None }
    }
}

/// The first rules of each kind, by number.
#[derive(Debug, Default)]
struct Found {
    decided: Option<(u32, Option<Doubt>)>,
    audited: Option<(u32, Option<Doubt>)>,
    /// An allow rule that holds under one reading of the path, and not under another.
    doubted: Option<u32>,
    /// Whether an allow rule might hold if the path could be read.
    unreadable: bool,
}

impl Found {
    fn add(&mut self, number: u32, rule: &Rule, verdict: Verdict, view: View) {
        let doubt = match verdict {
            Verdict::No => return,
            Verdict::Maybe(doubt) => Some(doubt),
            Verdict::Yes => None,
        };
        let first = |slot: &mut Option<(u32, Option<Doubt>)>| {
            if slot.is_none_or(|(so_far, _)| number < so_far) {
                *slot = Some((number, doubt));
            }
        };
        match (rule.action, doubt, view) {
            // Whether the request is one that the rule refuses is not known yet.
            (Action::Deny, Some(_), View::Early) => {}
            (Action::Deny, ..) if rule.mode == Mode::Audit => first(&mut self.audited),
            (Action::Deny, ..) | (Action::Allow, None, _) | (Action::Allow, Some(_), View::Early) => {
                first(&mut self.decided);
            }
            (Action::Allow, Some(Doubt::Path), View::Whole) => {
                self.doubted = Some(self.doubted.map_or(number, |so_far| so_far.min(number)));
            }
            (Action::Allow, Some(Doubt::Unreadable), View::Whole) => self.unreadable = true,
            (Action::Allow, Some(Doubt::Spelling | Doubt::Unseen), View::Whole) => {}
        }
    }
}
