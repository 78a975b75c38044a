//! A decision in words: what was decided, which rules were considered, and which of their conditions failed.
//!
//! **In** the question that [`Policy::request`] takes. **Out** an [`Explanation`], the decision taken from the very same
//! search, each rule asked condition by condition. For a person, not for the way of a request: it costs what all rules cost.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::addr::Target;
use crate::fault::Refusal;

use super::policy::{Client, Policy, RequestFacts};
use super::routes::OPAQUE;
use super::rule::{Asked, Rule};
use super::settings::{Action, Mode, RuleSettings};
use super::verdict::{Doubt, Verdict};

/// A decision and its reasons.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Explanation {
    /// Who asks.
    pub client: String,
    /// From where.
    pub network: String,
    /// For what.
    pub service: String,
    /// Whether it is let through.
    pub admitted: bool,
    /// The code of the refusal; in audit mode, of what would be refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// The rule that decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The decision in a sentence.
    pub because: String,
    /// The path as rules see it, or why it cannot be read in one way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Every rule: the ones that hold first, then by how many of their conditions do.
    pub rules: Vec<Considered>,
}

/// One rule, and how it stands to the question.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Considered {
    /// Its name.
    pub rule: String,
    /// What it does with what it holds for.
    pub action: Action,
    /// Whether it only records.
    pub mode: Mode,
    /// Whether it holds.
    pub holds: Holds,
    /// The conditions it sets.
    pub conditions: Vec<Condition>,
}

/// One condition of a rule.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Condition {
    /// The field of the rule.
    pub field: String,
    /// Whether it holds.
    pub holds: Holds,
    /// What it asks for, and what it got.
    pub words: String,
}

/// Whether something holds.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Holds {
    /// It does.
    Yes,
    /// It may, under another reading: enough for a deny rule, not for an allow rule.
    Maybe,
    /// It does not.
    No,
}

impl From<Verdict> for Holds {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Yes => Self::Yes,
            Verdict::Maybe(_) => Self::Maybe,
            Verdict::No => Self::No,
        }
    }
}

impl fmt::Display for Holds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Yes => "holds",
            Self::Maybe => "may hold",
            Self::No => "does not hold",
        })
    }
}

impl Policy {
    /// Decides, and says why. Without `facts`, about an opaque connection.
    pub fn explain(
        &self,
        client: &Client,
        target: &Target,
        exported: bool,
        facts: Option<&RequestFacts<'_>>,
    ) -> Explanation {
        let decision = match facts {
            Some(facts) => self.request(client, target.clone(), exported, facts),
            None => self.connection(client, target.clone(), exported),
        };
        let asked = Asked::new(client, facts);
        let mut rules: Vec<Considered> = self
            .compiled
            .rules
            .iter()
            .map(|rule| consider(rule, &asked, target, facts, self.route(rule, &asked, target)))
            .collect();
        let failed = |considered: &Considered| considered.conditions.iter().filter(|c| c.holds == Holds::No).count();
        rules.sort_by_key(|considered| (considered.holds, failed(considered)));
        let (admitted, refusal, rule) = match &decision {
            Ok(admission) => (true, admission.would_refuse.as_ref(), admission.rule.as_deref()),
            Err(denied) => (false, Some(denied), None),
        };
        let rule = rule.or_else(|| refusal.and_then(|denied| denied.rule.as_deref())).map(str::to_owned);
        let because = match (admitted, refusal, &rule) {
            (true, None, Some(rule)) => format!("admitted by rule {rule}"),
            (true, None, None) => {
                "admitted: no rule speaks about it, and the default admits verified clients".to_owned()
            }
            (true, Some(denied), _) => {
                format!("admitted, as this is audited only; enforced it would be refused: {denied}")
            }
            (false, Some(denied), _) => format!("refused: {denied}"),
            (false, None, _) => "refused".to_owned(),
        };
        Explanation {
            client: client.identity.to_string(),
            network: client.network.to_string(),
            service: target.to_string(),
            admitted,
            code: refusal.map(|denied| denied.code().to_owned()),
            rule,
            because,
            path: facts.map(|facts| match asked.path(facts) {
                Err(why) => format!("{} cannot be read in one way: {why}", facts.path),
                Ok(reading) if reading.resolved.is_some() => {
                    format!("{} is read as {} and as {}", facts.path, reading.plain, reading.normal())
                }
                Ok(reading) => reading.plain.clone().into_owned(),
            }),
            rules,
        }
    }
}

impl Policy {
    /// Where there are routes: whether the rule counts for one that may be taken, for which it counts, and which may be taken.
    fn route(&self, rule: &Rule, asked: &Asked<'_>, target: &Target) -> Option<(Verdict, String, String)> {
        let (routes, route) = (self.routes.as_ref()?, rule.route?);
        let taken = self.taken(routes, asked, target);
        let name = |route: &u32| match *route {
            OPAQUE => "connections of bytes".to_owned(),
            route => routes.names[route as usize].clone(),
        };
        let is: Vec<String> = taken.iter().map(name).collect();
        let is = if is.is_empty() { "no route".to_owned() } else { is.join(" or ") };
        Some((taken.contains(&route).into(), name(&route), is))
    }
}

/// Asks each condition that the rule sets.
fn consider<'a>(
    rule: &Rule,
    asked: &Asked<'a>,
    target: &Target,
    facts: Option<&'a RequestFacts<'a>>,
    route: Option<(Verdict, String, String)>,
) -> Considered {
    let words = &rule.words;
    let identity = &asked.client.identity;
    let mut conditions = Vec::new();
    let mut add = |field: &str, set: bool, verdict: Verdict, wants: String, is: String| {
        if set {
            conditions.push((
                verdict,
                Condition { field: field.to_owned(), holds: verdict.into(), words: in_words(verdict, &wants, &is) },
            ));
        }
    };
    if let Some((verdict, wants, is)) = route {
        add("route", true, verdict, wants, is);
    }
    let service = rule.services.iter().any(|pattern| pattern.holds(target.name.as_str(), target.port));
    add("services", words.services.is_some(), service.into(), list(words.services.as_deref()), target.to_string());
    let client = rule.clients.iter().any(|pattern| pattern.holds(identity));
    add("clients", words.clients.is_some(), client.into(), list(words.clients.as_deref()), identity.to_string());
    let network = rule.network_holds(asked.client.network);
    add("networks", words.networks.is_some(), network, networks(words), asked.client.network.to_string());
    match facts {
        None if rule.looks_at_requests() => {
            let verdict = Verdict::Maybe(Doubt::Unseen);
            add(
                "http",
                true,
                verdict,
                "a request".to_owned(),
                "an opaque connection, in which none can be seen".to_owned(),
            );
        }
        None => {}
        Some(facts) => {
            let http = words.http.clone().unwrap_or_default();
            let path = facts.path.to_owned();
            add(
                "http.methods",
                http.methods.is_some(),
                rule.method_holds(facts),
                list(http.methods.as_deref()),
                facts.method.to_string(),
            );
            add(
                "http.paths",
                http.paths.is_some(),
                rule.path_holds(asked, facts),
                list(http.paths.as_deref()),
                path.clone(),
            );
            let host = facts.host.unwrap_or("no host").to_owned();
            add("http.hosts", http.hosts.is_some(), rule.host_holds(facts), list(http.hosts.as_deref()), host);
            let (wants, is) = headers(&http, facts);
            add("http.headers", http.headers.is_some(), rule.headers_hold(facts), wants, is);
            let kind = if facts.grpc { "a gRPC call" } else { "not marked as gRPC" };
            let is = format!("{} {path} ({kind})", facts.method);
            add("grpc", words.grpc.is_some(), rule.grpc_holds(asked, facts), calls(words), is);
        }
    }
    let holds = conditions.iter().fold(Verdict::Yes, |so_far, (verdict, _)| so_far.and(|| *verdict));
    Considered {
        rule: rule.name.to_string(),
        action: rule.action,
        mode: rule.mode,
        holds: holds.into(),
        conditions: conditions.into_iter().map(|(_, condition)| condition).collect(),
    }
}

fn in_words(verdict: Verdict, wants: &str, is: &str) -> String {
    match verdict {
        Verdict::Yes => format!("{is} is what it asks for ({wants})"),
        Verdict::No => format!("{is} is not what it asks for ({wants})"),
        Verdict::Maybe(Doubt::Path) => format!("{is} can be read as what it asks for ({wants}), and otherwise"),
        Verdict::Maybe(Doubt::Unreadable) => {
            format!("{is} cannot be read in one way, so it may be what it asks for ({wants})")
        }
        Verdict::Maybe(Doubt::Spelling) => format!("{is} is what it asks for ({wants}) to some servers only"),
        Verdict::Maybe(Doubt::Unseen) => format!("{is}: whether it is what it asks for ({wants}) cannot be seen"),
    }
}

fn list(words: Option<&[String]>) -> String {
    words.unwrap_or_default().join(", ")
}

fn networks(words: &RuleSettings) -> String {
    let one = |network: &super::settings::NetworkSettings| match network.except.is_empty() {
        true => network.cidr.clone(),
        false => format!("{} except {}", network.cidr, network.except.join(" and ")),
    };
    words.networks.iter().flatten().map(one).collect::<Vec<_>>().join(", ")
}

fn headers(http: &super::settings::HttpSettings, facts: &RequestFacts<'_>) -> (String, String) {
    let wanted = http.headers.iter().flatten();
    let wants: Vec<String> = wanted.clone().map(|(name, values)| format!("{name}: {}", values.join(" or "))).collect();
    let is: Vec<String> = wanted
        .flat_map(|(name, _)| facts.headers.get_all(name.as_str()).iter().map(move |value| (name, value)))
        .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
        .collect();
    (wants.join(", "), if is.is_empty() { "no such field".to_owned() } else { is.join(", ") })
}

fn calls(words: &RuleSettings) -> String {
    words.grpc.as_ref().map_or_else(String::new, |grpc| match &grpc.methods {
        None => format!("any method of {}", grpc.service),
        Some(methods) => format!("{}/{}", grpc.service, methods.join(" or ")),
    })
}
