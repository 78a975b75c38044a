//! What the operator wrote about clients and services: names with wildcards.
//!
//! **In** the text of a pattern. **Out** a [`ClientPattern`] or [`ServicePattern`]. **Refuses**, with the nearest right form,
//! whatever would match nothing, or more than its author can have meant.
//!
//! `*` stands for one whole label, a leading `**.` for one or more, `*` alone for all. In the name of a client there is one
//! line that wildcards must not cross, the **trust domain**: it says whose word the identity is, and another trust
//! domain can hold any name its owner likes. So, for `<account>.<namespace>.serviceaccount.identity.<system>.<trust domain>`:
//! - a wildcard never stands for a label of the trust domain: `**.example.org` does not hold for a client of the trust domain
//!   `evil.example.org`, and `….identity.linkerd.*.local` is refused;
//! - a `*` at the end stands for the trust domains that the gateway was told of (or its own), not for whatever comes;
//! - who does mean every trust domain writes `**` at the end, which is hard to do by accident;
//! - names without that shape keep two labels literal at their end, and the trust domain of a URI is always literal.

use crate::addr::Name;
use crate::identity::Identity;

/// One label or segment: literal, or any.
pub(super) type Step = Option<Box<str>>;

/// Which clients.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) enum ClientPattern {
    /// Every verified client.
    Any,
    /// This one.
    Exact(Identity),
    /// Labels from the left, and one or more others after them, of any trust domain: `*.shop.serviceaccount.identity.**`.
    Prefix(Box<[Step]>),
    /// Labels from the right; `deep`: one or more others before them.
    Suffix { labels: Box<[Step]>, deep: bool },
    /// A URI: scheme and trust domain, then segments; `below`: one or more others after them.
    Uri { domain: Box<str>, segments: Box<[Step]>, below: bool },
}

/// Which services (and which hosts).
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct ServicePattern {
    pub(super) name: NamePattern,
    /// Absent: every port.
    pub(super) port: Option<u16>,
}

/// Which names.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) enum NamePattern {
    Any,
    Exact(Name),
    /// Labels from the right; `deep`: one or more others before them.
    Suffix {
        labels: Box<[Step]>,
        deep: bool,
    },
}

/// Why a text is no pattern, and what may have been meant.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct BadPattern {
    pub(super) problem: String,
    pub(super) nearest: Option<String>,
}

impl BadPattern {
    fn new(problem: impl Into<String>, nearest: Option<String>) -> Self {
        Self { problem: problem.into(), nearest }
    }
}

/// The labels between which the trust domain begins: `…serviceaccount.identity.<system>.<trust domain>`.
const SHAPE: [&str; 2] = ["serviceaccount", "identity"];

/// Where [`SHAPE`] begins, counted in labels from the left.
fn shape_at(labels: &[&str]) -> Option<usize> {
    labels.windows(2).position(|pair| pair == SHAPE)
}

/// How many labels at the end of a DNS-like identity are its trust domain: 0 for a name of another shape.
pub(super) fn trust_domain_labels(identity: &str) -> usize {
    let mut labels = identity.split('.').peekable();
    while let Some(label) = labels.next() {
        if label == SHAPE[0] && labels.peek() == Some(&SHAPE[1]) {
            // `identity` and the system's namespace come before it.
            return labels.count().saturating_sub(2);
        }
    }
    0
}

/// The trust domain of an identity: what follows the system's namespace, or the authority of a URI.
pub(super) fn trust_domain(identity: &Identity) -> Option<&str> {
    identity.trust_domain()
}

impl ClientPattern {
    /// Reads a pattern. One text may mean several patterns: one for each trust domain that a `*` at its end stands for.
    pub(super) fn parse(text: &str, trust_domains: &[Name]) -> Result<Vec<Self>, BadPattern> {
        if text == "*" {
            return Ok(vec![Self::Any]);
        }
        if text.contains("://") {
            return parse_uri(text).map(|pattern| vec![pattern]);
        }
        if !text.contains('*') {
            let identity = Identity::parse(text)
                .map_err(|why| BadPattern::new(why.to_string(), text.strip_suffix('.').map(str::to_owned)))?;
            return Ok(vec![Self::Exact(identity)]);
        }
        let lower = text.to_ascii_lowercase();
        let labels: Vec<&str> = lower.split('.').collect();
        check_labels(&labels)?;
        match (labels[0], labels[labels.len() - 1]) {
            ("**", "**") => Err(BadPattern::new(
                "`**` stands at the begin or at the end, not at both; any client is `*`",
                Some("*".into()),
            )),
            (_, "**") => Ok(vec![Self::Prefix(steps(labels[..labels.len() - 1].iter()))]),
            (_, "*") => in_known_domains(&labels, trust_domains),
            _ => {
                check_domain_is_literal(&labels)?;
                Ok(vec![suffix(&labels)])
            }
        }
    }

    /// The slow, obvious way to ask; the index is the fast one.
    pub(super) fn holds(&self, identity: &Identity) -> bool {
        match (self, identity) {
            (Self::Any, _) => true,
            (Self::Exact(wanted), _) => wanted == identity,
            (Self::Prefix(wanted), Identity::Dns(name)) => prefix_holds(wanted, name.as_str()),
            (Self::Suffix { labels, deep }, Identity::Dns(name)) => {
                let domain = trust_domain_labels(name.as_str());
                let literal = labels.iter().take(domain).filter(|label| label.is_some()).count();
                literal == domain && suffix_holds(labels, *deep, name.as_str())
            }
            (Self::Uri { domain, segments, below }, Identity::Uri(uri)) => {
                let Some(path) = uri.strip_prefix(&**domain) else { return false };
                let mut sent = path.split('/');
                // What stands before the first slash must be nothing: the domain ended here.
                sent.next() == Some("")
                    && segments.iter().all(|want| sent.next().is_some_and(|is| fits(want, is)))
                    && (sent.next().is_some() == *below)
            }
            _ => false,
        }
    }

    /// How much it says: 0 for any client, then by literal labels, then the exact ones.
    pub(super) fn specificity(&self) -> usize {
        let literal = |steps: &[Step]| 1 + 2 * steps.iter().flatten().count();
        match self {
            Self::Any => 0,
            Self::Prefix(steps) => literal(steps),
            Self::Suffix { labels, deep } => literal(labels) + usize::from(!deep),
            Self::Uri { segments, below, .. } => literal(segments) + 2 + usize::from(!below),
            Self::Exact(_) => 1024,
        }
    }
}

/// Whether labels from the left hold. A second [`SHAPE`] in the rest means that the first was part of an account's name,
/// chosen by whoever may name accounts: nobody wrote the pattern for that one.
fn prefix_holds(wanted: &[Step], name: &str) -> bool {
    let mut labels = name.split('.');
    !has_two_shapes(name)
        && wanted.iter().all(|want| labels.next().is_some_and(|is| fits(want, is)))
        && labels.next().is_some()
}

/// Whether [`SHAPE`] occurs more than once.
pub(super) fn has_two_shapes(name: &str) -> bool {
    name.split('.').zip(name.split('.').skip(1)).filter(|pair| *pair == SHAPE.into()).count() > 1
}

fn suffix_holds(wanted: &[Step], deep: bool, name: &str) -> bool {
    let mut labels = name.rsplit('.');
    // Identities are in lower case already; hosts come as they were sent.
    let fits = |want: &Step, is: &str| want.as_deref().is_none_or(|want| want.eq_ignore_ascii_case(is));
    wanted.iter().all(|want| labels.next().is_some_and(|is| fits(want, is))) && labels.next().is_some() == deep
}

fn fits(want: &Step, is: &str) -> bool {
    want.as_deref().is_none_or(|want| want == is)
}

/// Each label is `*`, `**` at an end, or fit for a name.
fn check_labels(labels: &[&str]) -> Result<(), BadPattern> {
    for (at, label) in labels.iter().enumerate() {
        let end = at == 0 || at + 1 == labels.len();
        match *label {
            "*" => {}
            "**" if end => {}
            "**" => {
                return Err(BadPattern::new(
                    "`**` stands at the begin or at the end only",
                    Some(with(labels, at, "*")),
                ));
            }
            _ if label.contains('*') => {
                return Err(BadPattern::new("`*` stands for a whole label", Some(with(labels, at, "*"))));
            }
            _ => {
                label.parse::<Name>().map_err(|why| BadPattern::new(why.to_string(), None))?;
            }
        }
    }
    if labels.iter().all(|label| label.starts_with('*')) {
        return Err(BadPattern::new("a pattern needs a literal label", Some("*".into())));
    }
    Ok(())
}

/// The labels with one of them replaced.
fn with(labels: &[&str], at: usize, by: &str) -> String {
    let mut labels = labels.to_vec();
    labels[at] = by;
    labels.join(".")
}

fn steps<'a>(labels: impl Iterator<Item = &'a &'a str>) -> Box<[Step]> {
    labels.map(|label| (*label != "*").then(|| (*label).into())).collect()
}

fn suffix(labels: &[&str]) -> ClientPattern {
    let deep = labels[0] == "**";
    ClientPattern::Suffix { labels: steps(labels[usize::from(deep)..].iter().rev()), deep }
}

/// `….identity.*` or `….identity.linkerd.*`: one pattern for each known trust domain.
fn in_known_domains(labels: &[&str], trust_domains: &[Name]) -> Result<Vec<ClientPattern>, BadPattern> {
    let body = &labels[..labels.len() - 1];
    let any = format!("{}.**", body.join("."));
    let Some(at) = shape_at(body) else {
        let problem = "a `*` at the end stands for a trust domain, and this name has none: write the last labels out";
        return Err(BadPattern::new(problem, Some(any)));
    };
    let system = match body.len() - at {
        2 => "*",
        3 => body[at + 2],
        _ => {
            let problem =
                "a wildcard must not stand for a part of the trust domain: write it out, or `*` for all of it";
            return Err(BadPattern::new(problem, Some(format!("{}.*", body[..at + 3].join(".")))));
        }
    };
    check_account(labels, at)?;
    if trust_domains.is_empty() {
        let problem = "a `*` at the end stands for the known trust domains, and none is known: \
                       list them in `trust_domains`, write the trust domain out, or `**` for any";
        return Err(BadPattern::new(problem, Some(format!("{}.{system}.cluster.local", body[..at + 2].join(".")))));
    }
    let expand = |domain: &Name| {
        let mut whole = body[..at + 2].to_vec();
        whole.push(system);
        whole.extend(domain.as_str().split('.'));
        suffix(&whole)
    };
    Ok(trust_domains.iter().map(expand).collect())
}

/// No wildcard where the trust domain stands; two literal labels at the end where no trust domain can be told.
fn check_domain_is_literal(labels: &[&str]) -> Result<(), BadPattern> {
    let Some(at) = shape_at(labels) else {
        let literal = labels.iter().rev().take_while(|label| **label != "*" && **label != "**").count();
        if literal < 2 {
            let problem =
                "at least two labels after the last wildcard must be literal, or it could stand for any domain";
            return Err(BadPattern::new(
                problem,
                Some(format!("{}.example.org", labels[..labels.len() - literal].join("."))),
            ));
        }
        return Ok(());
    };
    if labels.iter().skip(at + 3).any(|label| *label == "*") {
        let problem = "a wildcard must not stand for a part of the trust domain: write it out, or `*` for all of it";
        return Err(BadPattern::new(problem, Some(format!("{}.*", labels[..at + 3].join(".")))));
    }
    if labels.len() <= at + 3 {
        let problem = "the system's namespace and the trust domain are missing after `serviceaccount.identity`";
        return Err(BadPattern::new(problem, Some(format!("{}.*", labels[..at + 2].join(".")))));
    }
    check_account(labels, at)
}

/// Before `serviceaccount` stand account and namespace: with one label alone nobody would match.
fn check_account(labels: &[&str], shape_at: usize) -> Result<(), BadPattern> {
    if shape_at < 2 && labels[0] != "**" {
        let problem = "`*` stands for one label, and account and namespace are two";
        return Err(BadPattern::new(problem, Some(format!("{}{}", "*.".repeat(2 - shape_at), labels.join(".")))));
    }
    Ok(())
}

fn parse_uri(text: &str) -> Result<ClientPattern, BadPattern> {
    if !text.contains('*') {
        let nearest = text.strip_suffix('/').map(|text| format!("{text}/*"));
        let identity = Identity::parse(text).map_err(|why| BadPattern::new(why.to_string(), nearest))?;
        return Ok(ClientPattern::Exact(identity));
    }
    let (scheme, rest) = text.split_once("://").unwrap_or((text, ""));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    if authority.contains('*') || scheme.contains('*') {
        let problem = "the trust domain of a URI is written out: one entry for each";
        return Err(BadPattern::new(problem, Some(format!("spiffe://west.example/{path}"))));
    }
    let mut segments: Vec<&str> = path.split('/').collect();
    if let Some(at) = segments.iter().position(|segment| segment.contains('*') && *segment != "*") {
        let problem = "`*` stands for a whole segment, and at the end for all below";
        segments[at] = "*";
        return Err(BadPattern::new(problem, Some(format!("{scheme}://{authority}/{}", segments.join("/")))));
    }
    // The same rules as for an identity, wildcards standing in as a segment.
    let probe = format!("{scheme}://{authority}/{}", segments.join("/").replace('*', "x"));
    let Ok(Identity::Uri(probe)) = Identity::parse(&probe) else {
        return Err(BadPattern::new("neither a DNS-like name nor an absolute URI", None));
    };
    let domain_len = probe.find("://").map_or(0, |at| at + 3 + authority.len());
    let below = segments.last() == Some(&"*");
    if below {
        segments.pop();
    }
    Ok(ClientPattern::Uri { domain: probe[..domain_len].into(), segments: steps(segments.iter()), below })
}

impl ServicePattern {
    /// Every service.
    pub(super) fn any() -> Self {
        Self { name: NamePattern::Any, port: None }
    }

    /// Reads `name` or `name:port`.
    pub(super) fn parse(text: &str) -> Result<Self, BadPattern> {
        let (name, port) = match text.rsplit_once(':') {
            None => (text, None),
            Some((name, "*")) => (name, None),
            Some((name, port)) => match port.parse::<u16>() {
                Ok(number) if number > 0 && port.bytes().all(|b| b.is_ascii_digit()) => (name, Some(number)),
                _ => return Err(BadPattern::new("a port is a number from 1 to 65535", Some(name.to_owned()))),
            },
        };
        Ok(Self { name: NamePattern::parse(name)?, port })
    }

    /// Whether it holds for a name and port; the slow, obvious way.
    pub(super) fn holds(&self, name: &str, port: u16) -> bool {
        self.port.is_none_or(|want| want == port) && self.name.holds(name)
    }

    /// How much it says.
    pub(super) fn specificity(&self) -> usize {
        let name = match &self.name {
            NamePattern::Any => 0,
            NamePattern::Suffix { labels, deep } => 1 + 2 * labels.iter().flatten().count() + usize::from(!deep),
            NamePattern::Exact(_) => 1024,
        };
        2 * name + usize::from(self.port.is_some())
    }
}

impl NamePattern {
    fn parse(text: &str) -> Result<Self, BadPattern> {
        if text == "*" {
            return Ok(Self::Any);
        }
        if !text.contains('*') {
            return text.parse().map(Self::Exact).map_err(|why| BadPattern::new(format!("{why}"), None));
        }
        let lower = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let labels: Vec<&str> = lower.split('.').collect();
        check_labels(&labels)?;
        if labels[labels.len() - 1].starts_with('*') {
            let problem = "a wildcard at the end of a service's name could stand for any cluster: write the end out";
            let nearest = format!("{}.svc.cluster.local", labels[..labels.len() - 1].join("."));
            return Err(BadPattern::new(problem, Some(nearest)));
        }
        let deep = labels[0] == "**";
        Ok(Self::Suffix { labels: steps(labels[usize::from(deep)..].iter().rev()), deep })
    }

    /// Whether it holds for a name, letter case and a trailing dot aside.
    pub(super) fn holds(&self, name: &str) -> bool {
        let name = name.strip_suffix('.').unwrap_or(name);
        match self {
            Self::Any => true,
            Self::Exact(want) => want.as_str().eq_ignore_ascii_case(name),
            Self::Suffix { labels, deep } => suffix_holds(labels, *deep, name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Vec<ClientPattern>, BadPattern> {
        ClientPattern::parse(text, &["cluster.local".parse().expect("a name"), "west.example".parse().expect("a name")])
    }

    #[test]
    fn clients() {
        const WEB: &str = "web.shop.serviceaccount.identity.linkerd.cluster.local";
        for (pattern, identity, want) in [
            (WEB, WEB, true),
            ("WEB.Shop.serviceaccount.identity.linkerd.cluster.local", WEB, true),
            ("*", WEB, true),
            ("*", "spiffe://west.example/a", true),
            ("*.shop.serviceaccount.identity.linkerd.cluster.local", WEB, true),
            ("web.*.serviceaccount.identity.linkerd.cluster.local", WEB, true),
            ("*.*.serviceaccount.identity.linkerd.cluster.local", WEB, true),
            ("**.serviceaccount.identity.linkerd.cluster.local", WEB, true),
            ("**.cluster.local", WEB, true),
            ("*.cluster.local", WEB, false),
            ("*.shop.serviceaccount.identity.*", WEB, true),
            ("*.shop.serviceaccount.identity.linkerd.*", WEB, true),
            ("*.shop.serviceaccount.identity.other.*", WEB, false),
            ("*.shop.serviceaccount.identity.*.cluster.local", WEB, true),
            ("*.shop.serviceaccount.identity.*", "web.shop.serviceaccount.identity.linkerd.west.example", true),
            ("*.shop.serviceaccount.identity.*", "web.shop.serviceaccount.identity.linkerd.evil.example", false),
            ("*.shop.serviceaccount.identity.*", "web.shop.serviceaccount.identity.linkerd.x.cluster.local", false),
            ("*.shop.serviceaccount.identity.*", "web.shop.serviceaccount.identity.cluster.local", false),
            ("*.shop.serviceaccount.identity.**", "web.shop.serviceaccount.identity.linkerd.evil.example", true),
            ("*.shop.serviceaccount.identity.**", "web.shop.serviceaccount.identity", false),
            // Trust domains below a named one are others.
            ("**.cluster.local", "web.shop.serviceaccount.identity.linkerd.evil.cluster.local", false),
            (
                "**.serviceaccount.identity.linkerd.cluster.local",
                "a.b.serviceaccount.identity.evil.linkerd.cluster.local",
                false,
            ),
            ("*.*.*.*.*.*.cluster.local", "a.b.serviceaccount.identity.linkerd.evil.cluster.local", false),
            // An account named so that it looks like another namespace's.
            (
                "*.shop.serviceaccount.identity.**",
                "a.shop.serviceaccount.identity.evil.serviceaccount.identity.linkerd.cluster.local",
                false,
            ),
            (
                "**.shop.serviceaccount.identity.linkerd.cluster.local",
                "a.b.shop.serviceaccount.identity.linkerd.cluster.local",
                true,
            ),
            (
                "*.shop.serviceaccount.identity.linkerd.cluster.local",
                "a.b.shop.serviceaccount.identity.linkerd.cluster.local",
                false,
            ),
            ("*.west.example", "web.west.example", true),
            ("*.west.example", "west.example", false),
            ("*.west.example", "a.web.west.example", false),
            ("**.west.example", "a.web.west.example", true),
            ("*.west.example", "web.xwest.example", false),
            ("spiffe://west.example/ns/shop/*", "spiffe://west.example/ns/shop/sa/web", true),
            ("spiffe://west.example/ns/shop/*", "spiffe://west.example/ns/shop", false),
            ("spiffe://west.example/ns/shop/*", "spiffe://west.example/ns/shopping/web", false),
            ("spiffe://west.example/ns/*/sa/web", "spiffe://west.example/ns/shop/sa/web", true),
            ("spiffe://west.example/ns/*/sa/web", "spiffe://west.example/ns/a/b/sa/web", false),
            ("spiffe://West.Example/*", "spiffe://west.example/a", true),
            ("spiffe://west.example/*", "spiffe://west.example", false),
            ("spiffe://west.example/*", "spiffe://west.example.evil.org/a", false),
            ("spiffe://west.example/ns/Shop/*", "spiffe://west.example/ns/shop/a", false),
            ("spiffe://west.example/*", "https://west.example/a", false),
            ("**.west.example", "spiffe://x.west.example/a", false),
        ] {
            let patterns = parse(pattern).unwrap_or_else(|bad| panic!("{pattern}: {bad:?}"));
            let identity = Identity::parse(identity).expect("an identity");
            assert_eq!(patterns.iter().any(|p| p.holds(&identity)), want, "{pattern} for {identity}");
        }
    }

    #[test]
    fn what_could_mean_more_than_its_author_thinks_is_refused() {
        for (text, nearest) in [
            ("web.*", Some("web.**")),
            ("web.example.*", Some("web.example.**")),
            ("*.internal", Some("*.example.org")),
            ("*.*.org", Some("*.*.example.org")),
            ("a.b.serviceaccount.identity.linkerd.*.local", Some("a.b.serviceaccount.identity.linkerd.*")),
            ("a.b.serviceaccount.identity.linkerd.cluster.*", Some("a.b.serviceaccount.identity.linkerd.*")),
            (
                "*.serviceaccount.identity.linkerd.cluster.local",
                Some("*.*.serviceaccount.identity.linkerd.cluster.local"),
            ),
            ("*.serviceaccount.identity.*", Some("*.*.serviceaccount.identity.*")),
            ("**.serviceaccount.identity.**", Some("*")),
            ("*.shop.serviceaccount.identity", Some("*.shop.serviceaccount.identity.*")),
            ("a.**.west.example", Some("a.*.west.example")),
            ("web-*.shop.west.example", Some("*.shop.west.example")),
            ("**", Some("*")),
            ("*.*", Some("*")),
            ("web.west.example.", Some("web.west.example")),
            ("spiffe://*/ns/shop/*", Some("spiffe://west.example/ns/shop/*")),
            ("spiffe://*.west.example/a", Some("spiffe://west.example/a")),
            ("spiffe://west.example/ns/sh*/a", Some("spiffe://west.example/ns/*/a")),
            ("spiffe://west.example/ns/**", Some("spiffe://west.example/ns/*")),
            ("spiffe://west.example/ns/", Some("spiffe://west.example/ns/*")),
            ("spiffe://west.example//*", None),
            ("spiffe://west.example/../*", None),
            ("spiffe:///*", None),
            ("", None),
            ("a..*.b.c", None),
        ] {
            let bad = parse(text).expect_err(text);
            assert_eq!(bad.nearest.as_deref(), nearest, "{text}: {}", bad.problem);
        }
        let bad = ClientPattern::parse("*.shop.serviceaccount.identity.*", &[]).expect_err("no trust domain is known");
        assert!(bad.problem.contains("trust_domains"), "{bad:?}");
    }

    #[test]
    fn services() {
        for (pattern, name, port, want) in [
            ("web.ns.svc.cluster.local", "web.ns.svc.cluster.local", 80, true),
            ("web.ns.svc.cluster.local:80", "web.ns.svc.cluster.local", 81, false),
            ("Web.ns.svc.cluster.local.", "web.ns.svc.cluster.local", 80, true),
            ("*", "a", 80, true),
            ("*:443", "a.b", 80, false),
            ("*:*", "a.b", 80, true),
            ("*.ns.svc.cluster.local", "web.ns.svc.cluster.local", 80, true),
            ("*.ns.svc.cluster.local", "a.web.ns.svc.cluster.local", 80, false),
            ("web.*.svc.cluster.local:80", "web.ns.svc.cluster.local", 80, true),
            ("**.cluster.local", "web.ns.svc.cluster.local", 80, true),
            ("**.svc.cluster.local", "svc.cluster.local", 80, false),
            ("**.svc.cluster.local", "a.xsvc.cluster.local", 80, false),
        ] {
            let parsed = ServicePattern::parse(pattern).expect(pattern);
            assert_eq!(parsed.holds(name, port), want, "{pattern} for {name}:{port}");
        }
        for bad in [
            "",
            "web:",
            "web:0",
            "web:+80",
            "web:99999",
            "we*b.ns",
            "web.*",
            "web.**",
            "a.**.b",
            "*.*",
            "10..1",
            "[::1]:80",
        ] {
            assert!(ServicePattern::parse(bad).is_err(), "{bad}");
        }
    }
}
