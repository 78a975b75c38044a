//! Rules from what was seen: the few that allow it, and nothing else but what grouping adds.
//!
//! **In** [`Observation`]s, and how many of a kind justify a wildcard. **Out** a [`Suggestion`]: rules ready for review,
//! with the number of calls behind each, and what no rule can be written for. Only what was let through (by a rule, by the
//! default or by audit mode) is taken for wanted. Pure, and the same for the same observations in any order.
//!
//! Each client and service pair wants some requests. Pairs that want the same become one rule: first all clients of a service, then all
//! services with the same clients. Wildcards come in where many neighbours want the same: accounts of a namespace,
//! services of a namespace, paths below a path.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::identity::Identity;

use super::compile::method;
use super::observe::{Asking, Became, Observation};
use super::settings::{Action, GrpcSettings, HttpSettings, LimitSettings, Mode, RuleSettings};

/// How many neighbours justify a wildcard; 0 for never.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Grouping {
    /// Accounts of one namespace that want the same.
    pub accounts: usize,
    /// Paths below one path that are asked for with the same methods.
    pub paths: usize,
    /// Services of one namespace that are wanted by the same clients in the same way.
    pub services: usize,
}

impl Default for Grouping {
    /// Three make a family; a path has many children before all of them are meant.
    fn default() -> Self {
        Self { accounts: 3, paths: 8, services: 3 }
    }
}

/// Rules for review.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Suggestion {
    /// The rules.
    pub rules: Vec<Suggested>,
    /// What no rule can be written for.
    pub left_out: Vec<LeftOut>,
}

/// A rule, and what speaks for it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Suggested {
    /// The rule.
    pub rule: RuleSettings,
    /// How many calls it was seen to allow.
    pub calls: u64,
    /// The last of them, in seconds since the epoch.
    pub last_seen: u64,
}

/// Calls that were seen and that no suggested rule allows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LeftOut {
    /// The calls.
    pub observation: Observation,
    /// Why.
    pub because: &'static str,
}

impl Suggestion {
    /// The rules alone.
    pub fn into_rules(self) -> Vec<RuleSettings> {
        self.rules.into_iter().map(|suggested| suggested.rule).collect()
    }
}

/// What one rule can say about requests.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Part {
    Anything,
    Grpc { service: String, methods: BTreeSet<String> },
    Http { methods: BTreeSet<String>, paths: BTreeSet<String> },
}

impl Part {
    /// Whether a call is among those that it is made of.
    fn allows(&self, asking: &Asking) -> bool {
        match (self, asking) {
            (Self::Anything, _) => true,
            (Self::Grpc { service, methods }, Asking::Grpc { service: called, method }) => {
                service == called && methods.contains(method)
            }
            (Self::Http { methods, paths }, Asking::Http { method, path: Some(path) }) => {
                let below = |pattern: &String| pattern.strip_suffix("/*").is_some_and(|parent| is_below(path, parent));
                methods.contains(method) && (paths.contains(path) || paths.iter().any(below))
            }
            _ => false,
        }
    }
}

/// All that one client wants of one service.
#[derive(Debug, Default)]
struct Wanted {
    opaque: bool,
    grpc: BTreeMap<String, BTreeSet<String>>,
    http: BTreeMap<String, BTreeSet<String>>,
    seen: Vec<(Asking, Weight)>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Weight {
    calls: u64,
    last_seen: u64,
}

impl Weight {
    fn add(&mut self, calls: u64, last_seen: u64) {
        self.calls = self.calls.saturating_add(calls);
        self.last_seen = self.last_seen.max(last_seen);
    }
}

/// Writes the rules that allow what was seen.
pub fn suggest(observations: &[Observation], grouping: Grouping) -> Suggestion {
    let mut left_out = Vec::new();
    let mut wanted: BTreeMap<(String, String), Wanted> = BTreeMap::new();
    for observation in observations {
        if let Err(because) = take(&mut wanted, observation) {
            left_out.push(LeftOut { observation: observation.clone(), because });
        }
    }
    // (what, service) -> clients, then (what, clients) -> services.
    let mut clients: BTreeMap<(Part, String), (BTreeSet<String>, Weight)> = BTreeMap::new();
    for ((client, service), wanted) in wanted {
        for part in parts(&wanted, grouping.paths) {
            let (all, weight) = clients.entry((part.clone(), service.clone())).or_default();
            all.insert(client.clone());
            for (_, seen) in wanted.seen.iter().filter(|(asking, _)| part.allows(asking)) {
                weight.add(seen.calls, seen.last_seen);
            }
        }
    }
    let mut services: BTreeMap<(Part, BTreeSet<String>), (BTreeSet<String>, Weight)> = BTreeMap::new();
    for ((part, service), (clients, weight)) in clients {
        let clients = group(&clients, grouping.accounts, account_family);
        let (all, sum) = services.entry((part, clients)).or_default();
        all.insert(service);
        sum.add(weight.calls, weight.last_seen);
    }
    let mut names = BTreeSet::new();
    let rules = services
        .into_iter()
        .map(|((part, clients), (services, weight))| {
            let services = group(&services, grouping.services, service_family);
            let name = name(&clients, &services, &mut names);
            Suggested { rule: rule(name, part, clients, services), calls: weight.calls, last_seen: weight.last_seen }
        })
        .collect();
    Suggestion { rules, left_out }
}

fn take(wanted: &mut BTreeMap<(String, String), Wanted>, seen: &Observation) -> Result<(), &'static str> {
    if seen.became == Became::Refused {
        return Err("it was refused, so nobody is known to want it allowed");
    }
    if seen.code.as_deref() == Some("authorise.not_exported") {
        return Err("the service is not exported, which no rule can change");
    }
    if seen.code.as_deref() == Some("authorise.denied") {
        return Err("a deny rule on trial would refuse it, and deny rules win");
    }
    let key = (seen.client.clone(), seen.service.clone());
    match &seen.asking {
        Asking::Http { path: None, .. } => return Err("its path cannot be read in one way"),
        Asking::Http { method: name, .. } if method(name).is_err() => {
            return Err("its method is none that rules can name");
        }
        Asking::Http { method, path: Some(path) } => {
            wanted.entry(key.clone()).or_default().http.entry(path.clone()).or_default().insert(method.clone());
        }
        Asking::Grpc { service, method } => {
            wanted.entry(key.clone()).or_default().grpc.entry(service.clone()).or_default().insert(method.clone());
        }
        Asking::Opaque => wanted.entry(key.clone()).or_default().opaque = true,
    }
    let weight = Weight { calls: seen.count, last_seen: seen.last_seen };
    wanted.entry(key).or_default().seen.push((seen.asking.clone(), weight));
    Ok(())
}

/// What is wanted, cut into parts that a rule can say.
fn parts(wanted: &Wanted, many: usize) -> Vec<Part> {
    if wanted.opaque {
        // A rule for opaque connections sets no condition on requests, so it allows those, too.
        return vec![Part::Anything];
    }
    let mut by_methods: BTreeMap<BTreeSet<String>, BTreeSet<String>> = BTreeMap::new();
    for (path, methods) in group_paths(wanted.http.clone(), many) {
        by_methods.entry(methods).or_default().insert(path);
    }
    let grpc = wanted.grpc.iter().map(|(service, methods)| (service.clone(), methods.clone()));
    let grpc = grpc.map(|(service, methods)| Part::Grpc { service, methods });
    grpc.chain(by_methods.into_iter().map(|(methods, paths)| Part::Http { methods, paths })).collect()
}

/// Replaces the children of a path by `/path/*` where there are many with the same methods, from the leaves up.
fn group_paths(mut paths: BTreeMap<String, BTreeSet<String>>, many: usize) -> BTreeMap<String, BTreeSet<String>> {
    loop {
        let mut families: BTreeMap<(String, BTreeSet<String>), usize> = BTreeMap::new();
        for (path, methods) in &paths {
            if let Some(parent) = parent(path) {
                *families.entry((parent, methods.clone())).or_default() += 1;
            }
        }
        // The longest first: what is grouped below may make a family above.
        let family = families
            .into_iter()
            .filter(|(_, count)| many > 0 && *count >= many)
            .max_by_key(|((path, _), _)| path.len());
        let Some(((parent, methods), _)) = family else { break };
        paths.retain(|path, asked| !(is_below(path, &parent) && asked.is_subset(&methods)));
        paths.entry(format!("{parent}/*")).or_default().extend(methods);
    }
    // What another pattern covers is not said twice.
    let all = paths.clone();
    let covered = |path: &str, methods: &BTreeSet<String>| {
        all.iter().any(|(other, allowed)| {
            let below = other.strip_suffix("/*").filter(|_| !other.starts_with('='));
            other != path && methods.is_subset(allowed) && below.is_some_and(|parent| is_below(path, parent))
        })
    };
    paths.retain(|path, methods| !covered(path, methods));
    paths
}

/// The pattern without its last segment, its `=` and its `/*`; none for what lies at the root or is grouped already.
fn parent(path: &str) -> Option<String> {
    let plain = path.strip_prefix('=').unwrap_or(path);
    let plain = if path.starts_with('=') { plain } else { plain.strip_suffix("/*")? };
    plain.rsplit_once('/').map(|(parent, _)| parent.to_owned())
}

fn is_below(path: &str, parent: &str) -> bool {
    let plain = path.strip_prefix('=').unwrap_or(path);
    plain.strip_prefix(parent).is_some_and(|rest| rest.starts_with('/'))
}

/// Replaces members of a family by its wildcard where there are many.
fn group(names: &BTreeSet<String>, many: usize, family: impl Fn(&str) -> Option<String>) -> BTreeSet<String> {
    let mut sizes: BTreeMap<String, usize> = BTreeMap::new();
    for name in names.iter().filter_map(|name| family(name)) {
        *sizes.entry(name).or_default() += 1;
    }
    let justified = |pattern: &String| many > 0 && sizes.get(pattern).is_some_and(|size| *size >= many);
    names.iter().map(|name| family(name).filter(justified).unwrap_or_else(|| name.clone())).collect()
}

/// `web.shop.serviceaccount.identity.…` belongs to `*.shop.serviceaccount.identity.…`, `spiffe://…/ns/shop/sa/web` to
/// `spiffe://…/ns/shop/sa/*`. Names of other shapes have no family.
fn account_family(client: &str) -> Option<String> {
    match Identity::parse(client).ok()? {
        Identity::Dns(name) => {
            let (_, rest) = name.as_str().split_once('.')?;
            let mut labels = rest.split('.');
            let shape = [labels.next()?, labels.next()?, labels.next()?];
            (shape[1] == "serviceaccount" && shape[2] == "identity" && labels.count() > 1).then(|| format!("*.{rest}"))
        }
        Identity::Uri(uri) => {
            let (parent, _) = uri.rsplit_once('/')?;
            // Below the trust domain itself are all of its clients: no family, but a people.
            (parent.matches('/').count() > 3).then(|| format!("{parent}/*"))
        }
    }
}

/// `cart.shop.svc.cluster.local:80` belongs to `*.shop.svc.cluster.local:80`.
fn service_family(service: &str) -> Option<String> {
    let (_, rest) = service.split_once('.')?;
    (rest.matches('.').count() >= 2).then(|| format!("*.{rest}"))
}

fn rule(name: String, part: Part, clients: BTreeSet<String>, services: BTreeSet<String>) -> RuleSettings {
    let list = |set: BTreeSet<String>| Some(set.into_iter().collect::<Vec<_>>());
    let (http, grpc) = match part {
        Part::Anything => (None, None),
        Part::Grpc { service, methods } => (None, Some(GrpcSettings { service, methods: list(methods) })),
        Part::Http { methods, paths } => {
            let (methods, paths) = (list(methods), list(paths));
            (Some(HttpSettings { methods, paths, headers: None, hosts: None }), None)
        }
    };
    RuleSettings {
        name,
        clients: list(clients),
        networks: None,
        services: list(services),
        http,
        grpc,
        action: Action::Allow,
        limits: LimitSettings::default(),
        limits_per_client: LimitSettings::default(),
        mode: Mode::Enforce,
    }
}

/// `cart-to-payments`, and a number where that is taken.
fn name(clients: &BTreeSet<String>, services: &BTreeSet<String>, taken: &mut BTreeSet<String>) -> String {
    let word = |name: &str| {
        let last = name.split_once("://").and_then(|(_, path)| path.trim_end_matches("/*").rsplit('/').next());
        let last = last.unwrap_or(name).trim_start_matches("*.");
        let word = last.split(['.', ':']).next().unwrap_or("");
        word.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(40).collect::<String>()
    };
    let words = |names: &BTreeSet<String>| match names.len() {
        1..=2 => names.iter().map(|name| word(name)).collect::<Vec<_>>().join("-"),
        many => {
            format!("{}-and-{}-more", names.first().map_or_else(String::new, |name| word(name)), many.saturating_sub(1))
        }
    };
    let base = format!("{}-to-{}", words(clients), words(services));
    let numbered = (2..).map(|number| format!("{base}-{number}"));
    let name = std::iter::once(base.clone()).chain(numbered).find(|name| !taken.contains(name)).unwrap_or(base);
    taken.insert(name.clone());
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authorise::{Call, Policy, RequestFacts, Settings, Sightings, judge};
    use proptest::prelude::*;

    fn seen(client: &str, service: &str, asking: Asking) -> Observation {
        let client = if client.contains(['/', '.']) {
            client.to_owned()
        } else {
            format!("{client}.shop.serviceaccount.identity.linkerd.cluster.local")
        };
        Observation {
            client,
            service: service.to_owned(),
            asking,
            became: Became::WouldRefuse,
            code: Some("authorise.no_rule".to_owned()),
            rule: None,
            count: 2,
            first_seen: 1,
            last_seen: 3,
        }
    }

    fn get(path: &str) -> Asking {
        Asking::Http { method: "GET".into(), path: Some(path.into()) }
    }

    fn yaml(suggestion: Suggestion) -> String {
        serde_saphyr::to_string(&suggestion.into_rules()).expect("rules can be written")
    }

    #[test]
    fn those_who_want_the_same_share_a_rule() {
        let mut all = Vec::new();
        for client in ["web", "cart"] {
            for service in ["pay.prod.svc.cluster.local:80", "bank.prod.svc.cluster.local:80"] {
                all.push(seen(client, service, get("=/v1/a")));
                all.push(seen(client, service, get("=/v1/b")));
            }
        }
        all.push(seen("web", "db.prod.svc.cluster.local:5432", Asking::Opaque));
        all.push(seen(
            "web",
            "rpc.prod.svc.cluster.local:80",
            Asking::Grpc { service: "a.B".into(), method: "C".into() },
        ));
        let suggestion = suggest(&all, Grouping::default());
        assert_eq!(suggestion.rules.iter().map(|rule| rule.calls).collect::<Vec<_>>(), [2, 2, 16]);
        let names: Vec<&str> = suggestion.rules.iter().map(|suggested| suggested.rule.name.as_str()).collect();
        assert_eq!(names, ["web-to-db", "web-to-rpc", "cart-web-to-bank-pay"]);
        let text = yaml(suggestion);
        let read: Vec<RuleSettings> = serde_saphyr::from_str(&text).expect("what is written is read");
        assert_eq!(read.len(), 3, "{text}");
    }

    #[test]
    fn many_neighbours_become_a_wildcard() {
        let mut all = Vec::new();
        for client in ["a", "b", "c"] {
            for service in ["x", "y", "z"] {
                let service = format!("{service}.prod.svc.cluster.local:80");
                for path in 0..8 {
                    all.push(seen(client, &service, get(&format!("=/v1/p{path}"))));
                }
                all.push(seen(client, &service, get("=/v2/q")));
            }
        }
        all.push(seen("spiffe://west.example/ns/shop/sa/d", "x.prod.svc.cluster.local:80", Asking::Opaque));
        let rules = suggest(&all, Grouping::default()).into_rules();
        assert_eq!(rules.len(), 2, "{rules:#?}");
        assert_eq!(rules[1].clients, Some(vec!["*.shop.serviceaccount.identity.linkerd.cluster.local".to_owned()]));
        assert_eq!(rules[1].services, Some(vec!["*.prod.svc.cluster.local:80".to_owned()]));
        let paths = rules[1].http.as_ref().and_then(|http| http.paths.clone());
        assert_eq!(paths, Some(vec!["/v1/*".to_owned(), "=/v2/q".to_owned()]));
        let never = Grouping { accounts: 0, paths: 0, services: 0 };
        assert!(!yaml(suggest(&all, never)).contains('*'));
    }

    #[test]
    fn what_no_rule_can_say_is_left_out() {
        let mut refused = seen("web", "api:80", get("=/"));
        refused.became = Became::Refused;
        let unreadable = seen("web", "api:80", Asking::Http { method: "GET".into(), path: None });
        let odd = seen("web", "api:80", Asking::Http { method: "get".into(), path: Some("=/".into()) });
        let suggestion = suggest(&[refused, unreadable, odd], Grouping::default());
        assert_eq!((suggestion.rules.len(), suggestion.left_out.len()), (0, 3));
    }

    fn call() -> impl Strategy<Value = Call> {
        let client = prop_oneof![
            3 => "[a-e]".prop_map(|a| format!("{a}.shop.serviceaccount.identity.linkerd.cluster.local")),
            1 => "[a-e]".prop_map(|a| format!("{a}.x.shop.serviceaccount.identity.linkerd.cluster.local")),
            2 => "[a-e]".prop_map(|a| format!("spiffe://west.example/ns/shop/sa/{a}")),
            1 => "[a-e]".prop_map(|a| format!("{a}.west.example")),
        ];
        let service = "[a-d]".prop_map(|s| format!("{s}.prod.svc.cluster.local:80"));
        let path = "(/|v1|[a-p]|[0-9]{1,4}|%20|\\.\\.|;x|\\*|//|%2f){0,5}".prop_map(|path| format!("/{path}"));
        let method = prop_oneof![3 => Just(Some("GET")), 2 => Just(Some("POST")), 1 => Just(None)];
        (client, service, path, method, any::<bool>(), 0..20_u8).prop_map(
            |(client, service, path, method, grpc, opaque)| {
                let opaque = opaque == 0;
                Call {
                    client,
                    network: [10, 0, 0, 1].into(),
                    service,
                    exported: true,
                    method: method.map(str::to_owned).filter(|_| !opaque),
                    path: Some(path).filter(|_| !opaque),
                    host: None,
                    headers: BTreeMap::new(),
                    grpc,
                }
            },
        )
    }

    proptest! {
        /// Audit, suggest, enforce: what was seen goes on.
        #[test]
        fn what_was_seen_is_admitted_by_what_is_suggested(
            calls in proptest::collection::vec(call(), 1..60), accounts in 0..4_usize, paths in 0..4_usize, services in 0..4_usize,
        ) {
            let audit = Policy::compile(&Settings { mode: Mode::Audit, ..Settings::default() }, None, None).expect("valid");
            let mut sightings = Sightings::new(1000);
            let headers = http::HeaderMap::new();
            for call in &calls {
                let client = crate::authorise::Client { identity: Identity::parse(&call.client).expect("valid"), network: call.network };
                let target = crate::addr::Target::parse(&call.service, 80).expect("valid");
                let method = call.method.as_deref().unwrap_or("GET").parse().expect("valid");
                let facts = call.path.as_deref().map(|path| RequestFacts { method: &method, path, query: None, headers: &headers, host: None, grpc: call.grpc });
                let admission = match &facts {
                    Some(facts) => audit.request(&client, target.clone(), true, facts),
                    None => audit.connection(&client, target.clone(), true),
                };
                let decision = admission.as_ref();
                sightings.note(&client.identity, &target, facts.as_ref(), decision, 1);
            }
            let suggestion = suggest(&sightings.observations(), Grouping { accounts, paths, services });
            for left in &suggestion.left_out {
                let unreadable = matches!(left.observation.asking, Asking::Http { path: None, .. });
                prop_assert!(unreadable, "{left:?}");
            }
            let rules = suggestion.into_rules();
            let enforce = Policy::compile(&Settings { rules: rules.clone(), ..Settings::default() }, None, None);
            let enforce = enforce.unwrap_or_else(|why| panic!("{why}"));
            for call in calls.iter().filter(|call| call.path.as_deref().is_none_or(|path| crate::authorise::Reading::new(path).is_ok())) {
                let answer = judge(&enforce, call).expect("valid");
                prop_assert!(answer.admitted, "{call:?} {answer:?} {rules:#?}");
            }
        }
    }
}
