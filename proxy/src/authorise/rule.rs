//! One rule, compiled, and the question whether it holds.
//!
//! **In** who asks, and what is known of the request. **Out** a [`Verdict`]: that client and service fit is the index's
//! finding; the rest (networks, HTTP, gRPC) is asked here. Conditions that look at a request are in doubt where there is none to
//! look at, as on an opaque connection.

use std::cell::OnceCell;
use std::net::IpAddr;
use std::sync::Arc;

use http::header::{HeaderMap, HeaderName};
use ipnet::IpNet;

use super::limits::Grant;
use super::path::{Ambiguity, PathPattern, Reading, any_holds};
use super::pattern::{ClientPattern, ServicePattern};
use super::policy::{Client, RequestFacts};
use super::settings::{Action, Mode, RuleSettings};
use super::verdict::{Doubt, Verdict};

/// A compiled rule.
#[derive(Debug)]
pub(super) struct Rule {
    /// As the operator wrote it, to be quoted.
    pub(super) words: RuleSettings,
    pub(super) name: Arc<str>,
    /// The number of the only route that it counts for, where the policy has routes.
    pub(super) route: Option<u32>,
    pub(super) action: Action,
    pub(super) mode: Mode,
    /// Empty: every client.
    pub(super) clients: Vec<ClientPattern>,
    /// Empty: every service.
    pub(super) services: Vec<ServicePattern>,
    /// Empty: every network.
    pub(super) networks: Vec<Network>,
    pub(super) http: Http,
    pub(super) grpc: Option<Grpc>,
    /// What an allow rule gives to those it lets through.
    pub(super) grant: Arc<Grant>,
}

/// A network without what is taken out of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Network {
    pub(super) net: IpNet,
    pub(super) except: Vec<IpNet>,
}

/// Conditions on an HTTP request; each list empty where it sets none.
#[derive(Debug, Default)]
pub(super) struct Http {
    pub(super) methods: Vec<http::Method>,
    pub(super) paths: Vec<PathPattern>,
    /// Each field with the values looked for; `None` is any.
    pub(super) headers: Vec<(HeaderName, Vec<Option<Box<str>>>)>,
    pub(super) hosts: Vec<ServicePattern>,
}

impl Http {
    fn is_empty(&self) -> bool {
        self.methods.is_empty() && self.paths.is_empty() && self.headers.is_empty() && self.hosts.is_empty()
    }
}

/// Conditions on a gRPC call.
#[derive(Debug)]
pub(super) struct Grpc {
    pub(super) paths: Vec<PathPattern>,
}

/// One question to the policy: the facts, and what is worked out from them once.
#[derive(Debug)]
pub(super) struct Asked<'a> {
    pub(super) client: &'a Client,
    pub(super) facts: Option<&'a RequestFacts<'a>>,
    path: OnceCell<Result<Reading<'a>, Ambiguity>>,
}

impl<'a> Asked<'a> {
    pub(super) fn new(client: &'a Client, facts: Option<&'a RequestFacts<'a>>) -> Self {
        Self { client, facts, path: OnceCell::new() }
    }

    /// The path, read when a rule first looks at it.
    pub(super) fn path(&self, facts: &'a RequestFacts<'a>) -> &Result<Reading<'a>, Ambiguity> {
        self.path.get_or_init(|| Reading::new(facts.path))
    }
}

impl Rule {
    /// Whether the rule looks at requests at all.
    pub(super) fn looks_at_requests(&self) -> bool {
        self.grpc.is_some() || !self.http.is_empty()
    }

    /// Whether all conditions besides client and service hold.
    pub(super) fn holds(&self, asked: &Asked<'_>) -> Verdict {
        let network = self.network_holds(asked.client.network);
        if !self.looks_at_requests() {
            return network;
        }
        let Some(facts) = asked.facts else { return network.and(|| Verdict::Maybe(Doubt::Unseen)) };
        network
            .and(|| self.method_holds(facts))
            .and(|| self.path_holds(asked, facts))
            .and(|| self.grpc_holds(asked, facts))
            .and(|| self.host_holds(facts))
            .and(|| self.headers_hold(facts))
    }

    pub(super) fn network_holds(&self, address: IpAddr) -> Verdict {
        // `::ffff:10.0.0.1` is `10.0.0.1`, however the socket was opened.
        let address = address.to_canonical();
        let inside = |network: &Network| {
            network.net.contains(&address) && !network.except.iter().any(|except| except.contains(&address))
        };
        (self.networks.is_empty() || self.networks.iter().any(inside)).into()
    }

    /// What goes through CONNECT is as unseen as an opaque connection; a rule that names the method is about the tunnel itself.
    fn is_tunnel(&self, facts: &RequestFacts<'_>) -> bool {
        facts.method == http::Method::CONNECT && !self.http.methods.contains(&http::Method::CONNECT)
    }

    pub(super) fn method_holds(&self, facts: &RequestFacts<'_>) -> Verdict {
        if self.http.methods.is_empty() || self.http.methods.contains(facts.method) {
            return Verdict::Yes;
        }
        if self.is_tunnel(facts) {
            return Verdict::Maybe(Doubt::Unseen);
        }
        // Methods are case-sensitive (RFC 9110 §9.1), but not to every server.
        let alike = |method: &http::Method| method.as_str().eq_ignore_ascii_case(facts.method.as_str());
        if self.http.methods.iter().any(alike) { Verdict::Maybe(Doubt::Spelling) } else { Verdict::No }
    }

    pub(super) fn path_holds<'a>(&self, asked: &Asked<'a>, facts: &'a RequestFacts<'a>) -> Verdict {
        if self.http.paths.is_empty() { Verdict::Yes } else { any_holds(&self.http.paths, asked.path(facts)) }
    }

    /// A call is named by its path; what is not marked as gRPC may be one still (gRPC-Web, Connect), or may not.
    pub(super) fn grpc_holds<'a>(&self, asked: &Asked<'a>, facts: &'a RequestFacts<'a>) -> Verdict {
        let Some(grpc) = &self.grpc else { return Verdict::Yes };
        any_holds(&grpc.paths, asked.path(facts)).and(|| {
            if facts.grpc && facts.method == http::Method::POST {
                Verdict::Yes
            } else {
                Verdict::Maybe(Doubt::Spelling)
            }
        })
    }

    pub(super) fn host_holds(&self, facts: &RequestFacts<'_>) -> Verdict {
        if self.http.hosts.is_empty() {
            return Verdict::Yes;
        }
        if self.is_tunnel(facts) {
            return Verdict::Maybe(Doubt::Unseen);
        }
        let Some((name, port)) = facts.host.and_then(split_host) else { return Verdict::Maybe(Doubt::Unseen) };
        let one = |pattern: &ServicePattern| match (pattern.name.holds(name), pattern.port, port) {
            (false, ..) => Verdict::No,
            (true, None, _) => Verdict::Yes,
            (true, Some(want), Some(is)) => (want == is).into(),
            (true, Some(_), None) => Verdict::Maybe(Doubt::Unseen),
        };
        self.http.hosts.iter().fold(Verdict::No, |so_far, pattern| so_far.or(|| one(pattern)))
    }

    pub(super) fn headers_hold(&self, facts: &RequestFacts<'_>) -> Verdict {
        if self.is_tunnel(facts) && !self.http.headers.is_empty() {
            return Verdict::Maybe(Doubt::Unseen);
        }
        self.http
            .headers
            .iter()
            .fold(Verdict::Yes, |so_far, (name, wanted)| so_far.and(|| header_holds(facts.headers, name, wanted)))
    }
}

/// A field surely has a wanted value when every line of it is one; it may have when some line, or some member of a line
/// read as a list (RFC 9110 §5.3), is one, or is one but for letter case.
fn header_holds(headers: &HeaderMap, name: &HeaderName, wanted: &[Option<Box<str>>]) -> Verdict {
    let mut lines = headers.get_all(name).iter().peekable();
    if lines.peek().is_none() {
        return Verdict::No;
    }
    let (mut all, mut some) = (true, false);
    for line in lines {
        let exact = wanted.iter().any(|want| want.as_deref().is_none_or(|want| want.as_bytes() == line.as_bytes()));
        all &= exact;
        some |= exact || {
            let members = line.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii);
            let alike = |is: &[u8]| wanted.iter().flatten().any(|want| want.as_bytes().eq_ignore_ascii_case(is));
            alike(line.as_bytes().trim_ascii()) || members.into_iter().any(alike)
        };
    }
    match (all, some) {
        (true, _) => Verdict::Yes,
        (false, true) => Verdict::Maybe(Doubt::Spelling),
        (false, false) => Verdict::No,
    }
}

/// Host and port of an authority; `None` for what is no name, such as an IPv6 literal or one with user info.
pub(super) fn split_host(authority: &str) -> Option<(&str, Option<u16>)> {
    let (name, port) = match authority.split_once(':') {
        None => (authority, None),
        Some((name, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => {
            (name, Some(port.parse().ok()?))
        }
        Some(_) => return None,
    };
    let fit = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    (!name.is_empty() && name.bytes().all(fit)).then_some((name, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_have_three_answers() {
        let maybe = Verdict::Maybe(Doubt::Spelling);
        for (lines, wanted, want) in [
            (&["prod"][..], &[Some("prod")][..], Verdict::Yes),
            (&["prod", "prod"], &[Some("prod")], Verdict::Yes),
            (&["dev"], &[Some("prod")], Verdict::No),
            (&[], &[Some("prod")], Verdict::No),
            (&[], &[None], Verdict::No),
            (&["dev"], &[None], Verdict::Yes),
            (&["dev", "prod"], &[Some("prod")], maybe),
            (&["dev, prod"], &[Some("prod")], maybe),
            (&["PROD"], &[Some("prod")], maybe),
            (&["prod", "dev"], &[Some("prod"), Some("dev")], Verdict::Yes),
            (&["a, b"], &[Some("a, b")], Verdict::Yes),
        ] {
            let name = HeaderName::from_static("x-env");
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(&name, line.parse().expect("a value"));
            }
            let wanted: Vec<_> = wanted.iter().map(|want| want.map(Into::into)).collect();
            assert_eq!(header_holds(&headers, &name, &wanted), want, "{lines:?}");
        }
    }

    #[test]
    fn hosts_are_names() {
        for (authority, want) in [
            ("web.ns", Some(("web.ns", None))),
            ("web.ns:80", Some(("web.ns", Some(80)))),
            ("web.ns:", None),
            ("web.ns:99999", None),
            ("[::1]:80", None),
            ("user@web.ns", None),
            ("", None),
        ] {
            assert_eq!(split_host(authority), want, "{authority}");
        }
    }
}
