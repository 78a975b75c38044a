//! From the operator's words to rules that can be asked.
//!
//! **In** [`Settings`]. **Out** the rules in their fixed order, and the index over them. **Refuses** with every
//! [`Invalid`] entry at once: the rule, the field, what was found there and, where it can be told, the nearest right form. A policy
//! with one wrong entry is refused whole: half a policy is another policy.
//!
//! The order is that in which rules are named as the one that decided: deny before allow, the more specific (by service, then
//! client, then request) before the less, then by name. Where rules stand in a file plays no part.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use http::header::HeaderName;
use ipnet::IpNet;

use crate::addr::Name;
use crate::identity::Identity;

use super::index::{Clients, Pairs, Services};
use super::invalid::{Invalid, InvalidPolicy, Wrong};
use super::limits::{Bounds, Cell, Grant};
use super::path::PathPattern;
use super::pattern::{BadPattern, ClientPattern, ServicePattern, trust_domain};
use super::rule::{Grpc, Http, Network, Rule};
use super::settings::{
    Action, GrpcSettings, HttpSettings, LimitSettings, Mode, NetworkSettings, RuleSettings, Settings,
};
use super::words::nearest;

/// What is compiled: rules in order, and the index over them.
#[derive(Debug, Default)]
pub(super) struct Compiled {
    pub(super) rules: Vec<Rule>,
    pub(super) services: Services,
    pub(super) clients: Clients,
    pub(super) pairs: Pairs,
}

/// Pairs of service and client patterns in all: at some 20 bytes each this bounds the memory of a policy.
const MAX_PAIRS: usize = 1 << 20;

/// Compiles the rules. `cells` are the counts of the policy that is replaced, by rule.
pub(super) fn compile(
    settings: &Settings,
    own: Option<&Identity>,
    cells: impl Fn(&str) -> Option<Arc<Cell>>,
) -> Result<Compiled, InvalidPolicy> {
    let mut reader = Reader { rule: None, invalid: Vec::new(), trust_domains: Vec::new() };
    reader.trust_domains(settings, own);
    reader.limits("limits", &settings.limits);
    reader.limits("limits_per_client", &settings.limits_per_client);
    reader.limits("limits_per_service", &settings.limits_per_service);
    let mut names = HashMap::new();
    let mut pairs = 0_usize;
    let mut rules = Vec::with_capacity(settings.rules.len());
    for (index, words) in settings.rules.iter().enumerate() {
        reader.rule = Some((index, words.name.clone()));
        if names.insert(words.name.as_str(), index).is_some() {
            reader.wrong("name", &words.name, Wrong::DuplicateName, None);
        }
        let rule = reader.rule(words, &cells);
        pairs = pairs.saturating_add(rule.clients.len().max(1) * rule.services.len().max(1));
        if pairs > MAX_PAIRS {
            reader.wrong("services", &format!("{} entries", rule.services.len()), Wrong::TooManyPairs, None);
            break;
        }
        rules.push(rule);
    }
    if !reader.invalid.is_empty() {
        return Err(InvalidPolicy(reader.invalid));
    }
    rules.sort_by_cached_key(|rule| (rule.action == Action::Allow, Reverse(specificity(rule)), Arc::clone(&rule.name)));
    Ok(index(rules))
}

fn index(rules: Vec<Rule>) -> Compiled {
    let mut compiled = Compiled::default();
    for (number, rule) in rules.iter().enumerate() {
        let number = u32::try_from(number).expect("pairs are bounded, so rules are");
        let any_client = [ClientPattern::Any];
        let any_service = [ServicePattern::any()];
        let clients = if rule.clients.is_empty() { &any_client[..] } else { &rule.clients };
        let clients: Vec<u32> = clients.iter().map(|pattern| compiled.clients.number(pattern)).collect();
        for service in if rule.services.is_empty() { &any_service[..] } else { &rule.services } {
            let service = compiled.services.number(service);
            for client in &clients {
                compiled.pairs.add(service, *client, number);
            }
        }
    }
    compiled.rules = rules;
    compiled
}

/// How much a rule says: its widest service, then its widest client, then what it asks of a request and of the network.
fn specificity(rule: &Rule) -> [usize; 7] {
    let least = |patterns: &mut dyn Iterator<Item = usize>| patterns.min().unwrap_or(0);
    let paths = rule.grpc.as_ref().map_or(&rule.http.paths, |grpc| &grpc.paths);
    [
        least(&mut rule.services.iter().map(ServicePattern::specificity)),
        least(&mut rule.clients.iter().map(ClientPattern::specificity)),
        least(&mut paths.iter().map(|path| 1 + path.specificity())),
        usize::from(!rule.http.methods.is_empty()),
        rule.http.headers.len(),
        usize::from(!rule.http.hosts.is_empty()),
        usize::from(!rule.networks.is_empty()),
    ]
}

/// Reads a method as rules may name it, or says which is nearest.
pub(super) fn method(text: &str) -> Result<http::Method, Option<String>> {
    const KNOWN: [&str; 16] = [
        "CONNECT", "COPY", "DELETE", "GET", "HEAD", "LOCK", "MKCOL", "MOVE", "OPTIONS", "PATCH", "POST", "PROPFIND",
        "PUT", "REPORT", "TRACE", "UNLOCK",
    ];
    let near = if KNOWN.contains(&text) { None } else { nearest(text, KNOWN) };
    let capitals = !text.is_empty() && !text.bytes().any(|b| b.is_ascii_lowercase());
    match http::Method::from_bytes(text.as_bytes()) {
        Ok(method) if capitals && near.is_none() => Ok(method),
        _ => {
            let nearest = near.map_or_else(|| text.to_ascii_uppercase(), str::to_owned);
            Err(Some(nearest).filter(|nearest| nearest != text))
        }
    }
}

/// Reads words, and collects what is wrong with them.
struct Reader {
    rule: Option<(usize, String)>,
    invalid: Vec<Invalid>,
    trust_domains: Vec<Name>,
}

impl Reader {
    fn wrong(&mut self, field: &str, found: &str, wrong: Wrong, nearest: Option<String>) {
        let (rule, field, found) = (self.rule.clone(), field.to_owned(), found.to_owned());
        self.invalid.push(Invalid { rule, field, found, wrong, nearest });
    }

    /// Reads each entry of a list; an absent list is no condition, an empty one is wrong.
    fn list<T, U>(
        &mut self,
        field: &str,
        list: Option<&Vec<T>>,
        mut read: impl FnMut(&mut Self, &str, &T) -> Vec<U>,
    ) -> Vec<U> {
        let Some(list) = list else { return Vec::new() };
        if list.is_empty() {
            self.wrong(field, "[]", Wrong::Empty, None);
        }
        list.iter().enumerate().flat_map(|(at, entry)| read(self, &format!("{field}[{at}]"), entry)).collect()
    }

    fn pattern<T>(&mut self, field: &str, found: &str, read: Result<T, BadPattern>) -> Option<T> {
        read.map_err(|BadPattern { problem, nearest }| self.wrong(field, found, Wrong::Pattern(problem), nearest)).ok()
    }

    fn trust_domains(&mut self, settings: &Settings, own: Option<&Identity>) {
        for (at, text) in settings.trust_domains.iter().enumerate() {
            match text.parse() {
                Ok(name) => self.trust_domains.push(name),
                Err(_) => {
                    let nearest =
                        text.split_once("://").map(|(_, rest)| rest.split('/').next().unwrap_or(rest).to_owned());
                    self.wrong(&format!("trust_domains[{at}]"), text, Wrong::TrustDomain, nearest);
                }
            }
        }
        if let (true, Some(own @ Identity::Dns(_))) = (settings.trust_domains.is_empty(), own) {
            self.trust_domains.extend(trust_domain(own).and_then(|domain| domain.parse().ok()));
        }
    }

    fn rule(&mut self, words: &RuleSettings, cells: &impl Fn(&str) -> Option<Arc<Cell>>) -> Rule {
        self.name(&words.name);
        let trust_domains = self.trust_domains.clone();
        let clients = self.list("clients", words.clients.as_ref(), |reader, field, text| {
            reader.pattern(field, text, ClientPattern::parse(text, &trust_domains)).unwrap_or_default()
        });
        let services = self.services("services", words.services.as_ref());
        let networks = self.list("networks", words.networks.as_ref(), Self::network);
        let http = words.http.as_ref().map(|http| self.http(http)).unwrap_or_default();
        let grpc = words.grpc.as_ref().map(|grpc| self.grpc(grpc));
        self.limits("limits", &words.limits);
        self.limits("limits_per_client", &words.limits_per_client);
        let unlimited = words.limits.is_empty() && words.limits_per_client.is_empty();
        match (words.action, words.mode) {
            (Action::Deny, _) if !unlimited => self.wrong("limits", "deny", Wrong::DenyWithLimits, None),
            (Action::Allow, Mode::Audit) if unlimited => self.wrong("mode", "audit", Wrong::NothingToAudit, None),
            _ => {}
        }
        let name: Arc<str> = words.name.as_str().into();
        let grant = Arc::new(Grant {
            rule: Arc::clone(&name),
            mode: words.mode,
            bounds: Bounds::new(&words.limits),
            per_client: Bounds::new(&words.limits_per_client),
            cell: cells(&name).unwrap_or_default(),
        });
        let (words, action, mode) = (words.clone(), words.action, words.mode);
        Rule { words, name, route: None, action, mode, clients, services, networks, http, grpc, grant }
    }

    fn name(&mut self, name: &str) {
        let fit = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
        if name.is_empty() || name.len() > 128 || !name.chars().all(fit) {
            let fitting: String = name.trim().chars().take(128).map(|c| if fit(c) { c } else { '-' }).collect();
            self.wrong("name", name, Wrong::Name, Some(fitting).filter(|fitting| !fitting.is_empty()));
        }
    }

    fn services(&mut self, field: &str, list: Option<&Vec<String>>) -> Vec<ServicePattern> {
        self.list(field, list, |reader, field, text| {
            reader.pattern(field, text, ServicePattern::parse(text)).into_iter().collect()
        })
    }

    fn network(&mut self, field: &str, words: &NetworkSettings) -> Vec<Network> {
        let Some(net) = self.cidr(field, &words.cidr) else { return Vec::new() };
        let mut except = Vec::new();
        for (at, text) in words.except.iter().enumerate() {
            let field = format!("{field}.except[{at}]");
            let Some(inner) = self.cidr(&field, text) else { continue };
            if !net.contains(&inner) {
                self.wrong(&field, text, Wrong::Network("it does not lie inside the network it is taken out of"), None);
            }
            except.push(inner);
        }
        vec![Network { net, except }]
    }

    fn cidr(&mut self, field: &str, text: &str) -> Option<IpNet> {
        let net: IpNet =
            match text.parse::<IpNet>().or_else(|why| text.parse::<IpAddr>().map(IpNet::from).map_err(|_| why)) {
                Ok(net) => net,
                Err(_) => {
                    self.wrong(field, text, Wrong::Network("written as 10.0.0.0/8, fd00::/8 or one address"), None);
                    return None;
                }
            };
        if let IpAddr::V6(address) = net.network()
            && let Some(mapped) = address.to_ipv4_mapped()
            && net.prefix_len() >= 96
        {
            let nearest = format!("{mapped}/{}", net.prefix_len() - 96);
            self.wrong(field, text, Wrong::Network("IPv4 addresses are written as such"), Some(nearest));
            return None;
        }
        if net.trunc() != net {
            let problem = "bits are set beyond the prefix";
            self.wrong(field, text, Wrong::Network(problem), Some(net.trunc().to_string()));
            return None;
        }
        Some(net)
    }

    fn http(&mut self, words: &HttpSettings) -> Http {
        if *words == HttpSettings::default() {
            self.wrong("http", "{}", Wrong::Empty, None);
        }
        let methods =
            self.list("http.methods", words.methods.as_ref(), |reader, field, text| reader.method(field, text));
        let paths = self.list("http.paths", words.paths.as_ref(), |reader, field, text| {
            let read =
                PathPattern::parse(text).map_err(|bad| BadPattern { problem: bad.problem, nearest: bad.nearest });
            reader.pattern(field, text, read).into_iter().collect()
        });
        let hosts = self.services("http.hosts", words.hosts.as_ref());
        let mut headers = Vec::new();
        if words.headers.as_ref().is_some_and(|headers| headers.is_empty()) {
            self.wrong("http.headers", "{}", Wrong::Empty, None);
        }
        for (name, values) in words.headers.iter().flatten() {
            let field = format!("http.headers.{name}");
            let values = self.list(&field, Some(values), |_, _, value| {
                vec![if value == "*" { None } else { Some(value.trim().into()) }]
            });
            match HeaderName::from_bytes(name.as_bytes()) {
                Ok(header) if header != http::header::HOST => headers.push((header, values)),
                Ok(_) => self.wrong(&field, name, Wrong::Header, Some("hosts".to_owned())),
                Err(_) => {
                    self.wrong(&field, name, Wrong::Header, Some(name.trim_start_matches(':').replace([' ', '_'], "-")))
                }
            }
        }
        Http { methods, paths, headers, hosts }
    }

    fn method(&mut self, field: &str, text: &str) -> Vec<http::Method> {
        match method(text) {
            Ok(method) => vec![method],
            Err(nearest) => {
                self.wrong(field, text, Wrong::Method, nearest);
                Vec::new()
            }
        }
    }

    fn grpc(&mut self, words: &GrpcSettings) -> Grpc {
        let word = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !words.service.split('.').all(word) {
            let nearest = words.service.trim_start_matches('/').split('/').next().unwrap_or("").to_owned();
            let nearest = Some(nearest).filter(|nearest| nearest.split('.').all(word));
            self.wrong("grpc.service", &words.service, Wrong::Grpc, nearest);
        }
        let methods = self.list("grpc.methods", words.methods.as_ref(), |reader, field, text| {
            if !word(text) {
                let last = text.rsplit(['/', '.']).next().unwrap_or("");
                reader.wrong(field, text, Wrong::Grpc, word(last).then(|| last.to_owned()));
            }
            vec![Some(Box::<str>::from(text.as_str()))]
        });
        let methods = if words.methods.is_none() { vec![None] } else { methods };
        let path = |method| PathPattern::exact([Some(Box::<str>::from(words.service.as_str())), method]);
        Grpc { paths: methods.into_iter().map(path).collect() }
    }

    fn limits(&mut self, field: &str, words: &LimitSettings) {
        for (name, value) in [
            ("requests_per_second", words.requests_per_second.map(u64::from)),
            ("burst", words.burst.map(u64::from)),
            ("concurrent_requests", words.concurrent_requests.map(u64::from)),
            ("connections", words.connections.map(u64::from)),
            ("bytes_per_second", words.bytes_per_second.map(|size| size.0)),
        ] {
            if value == Some(0) {
                self.wrong(&format!("{field}.{name}"), "0", Wrong::ZeroLimit, None);
            }
        }
        if let (Some(burst), None) = (words.burst, words.requests_per_second) {
            self.wrong(&format!("{field}.burst"), &burst.to_string(), Wrong::BurstWithoutRate, None);
        }
    }
}
