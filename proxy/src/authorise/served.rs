//! A policy that a control plane serves, in plain words: one server, its routes, and who may use each.
//!
//! **In** what some source has read. **Out** [`Served`], which [`Policy::serve`](super::Policy::serve) compiles. Unlike the
//! operator's own rules, of which every one that holds counts, a request takes exactly one route here, the most specific
//! one, and only that route's authorizations let it through. (Gateway API, HTTPRoute matching; Linkerd wire document §7.)

use std::str::FromStr;
use std::sync::Arc;

use http::header::HeaderName;
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::identity::Identity;

/// Where the policy comes from.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Linkerd's policy controller: `linkerd` below.
    Linkerd,
    /// This section and its files.
    #[default]
    Rules,
}

/// The word of Linkerd's policy controller, where `source` is `linkerd`. Where the controller is stands in
/// `sources.linkerd.policy`, whether or not services are found there.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct LinkerdSettings {
    /// Whose policy to ask for, word for word as the controller wants it: `{"ns":"NAMESPACE","pod":"POD"}`. Absent: that of
    /// `sources.linkerd.namespace` and `sources.linkerd.pod`.
    pub workload: Option<String>,
    /// The port whose policy it is: the one that Servers select, whatever the gateway listens on.
    pub port: u16,
    /// What counts until the controller has answered for the first time. `deny`, since a gateway that lets everybody in
    /// while its policy is away can be opened by keeping the policy away; it is not ready before the answer then. An answer
    /// stays in force while the controller is away.
    pub default: DefaultPolicy,
    /// The networks that `default: cluster-authenticated` speaks of.
    pub cluster_networks: Vec<String>,
}

impl Default for LinkerdSettings {
    fn default() -> Self {
        Self { workload: None, port: 4143, default: DefaultPolicy::Deny, cluster_networks: Vec::new() }
    }
}

/// What counts before the controller has answered, in Linkerd's words. Clients without a certificate never get as far as the
/// policy, so those words of Linkerd's that speak of them are not here.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DefaultPolicy {
    /// Every client with a certificate.
    AllAuthenticated,
    /// Everything is let through, and what the policy would refuse is recorded: everything.
    Audit,
    /// Every client with a certificate that connects from `cluster_networks`.
    ClusterAuthenticated,
    /// Nobody.
    #[default]
    Deny,
}

impl DefaultPolicy {
    /// Whether it speaks of the cluster's networks.
    pub fn needs_cluster_networks(self) -> bool {
        self == Self::ClusterAuthenticated
    }
}

impl LinkerdSettings {
    /// The policy that counts before the controller has answered.
    pub fn before_an_answer(&self) -> Served {
        let networks: Vec<&str> = match self.default {
            DefaultPolicy::ClusterAuthenticated => self.cluster_networks.iter().map(String::as_str).collect(),
            DefaultPolicy::AllAuthenticated => vec!["0.0.0.0/0", "::/0"],
            DefaultPolicy::Audit | DefaultPolicy::Deny => Vec::new(),
        };
        let networks = networks.into_iter().filter_map(|net| IpNet::from_str(net).ok());
        let networks: Vec<Net> = networks.map(|net| Net { net, except: Vec::new() }).collect();
        let name = match self.default {
            DefaultPolicy::AllAuthenticated => "all-authenticated",
            DefaultPolicy::Audit => "audit",
            DefaultPolicy::ClusterAuthenticated => "cluster-authenticated",
            DefaultPolicy::Deny => "deny",
        };
        let anyone = Authorization { name: name.to_owned(), clients: vec![Who::Anyone], networks };
        let authorizations = if anyone.networks.is_empty() { Vec::new() } else { vec![anyone] };
        Served {
            server: "default".to_owned(),
            opaque: Some(authorizations.clone()),
            routes: vec![Route {
                name: "default".to_owned(),
                hosts: Vec::new(),
                matches: vec![Match::default()],
                authorizations,
            }],
            audit: self.default == DefaultPolicy::Audit,
            limits: RateLimits::default(),
        }
    }
}

/// The policy of one port.
#[derive(Clone, Debug, Default)]
pub struct Served {
    /// The server's name, with which the names of its rules begin.
    pub server: String,
    /// Who may open connections of bytes; absent where the server takes requests only.
    pub opaque: Option<Vec<Authorization>>,
    /// The routes that requests can take. What takes none is refused.
    pub routes: Vec<Route>,
    /// Lets everything through and records what would be refused.
    pub audit: bool,
    /// How many requests.
    pub limits: RateLimits,
}

/// Who may use a route, or a server.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Authorization {
    /// Its name.
    pub name: String,
    /// One of these must hold.
    pub clients: Vec<Who>,
    /// And the client must connect from one of these.
    pub networks: Vec<Net>,
}

/// A network without what is taken out of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Net {
    /// The network.
    pub net: IpNet,
    /// What does not count.
    pub except: Vec<IpNet>,
}

/// Which clients.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Who {
    /// Every verified client, whatever the form of its identity.
    Anyone,
    /// This one.
    Exact(Identity),
    /// Those whose name ends with these labels, of which there is at least one.
    Suffix(Vec<String>),
}

/// One route.
#[derive(Clone, Debug)]
pub struct Route {
    /// Its name.
    pub name: String,
    /// The hosts it is for; all where empty.
    pub hosts: Vec<Host>,
    /// The requests it is for: one of these must hold.
    pub matches: Vec<Match>,
    /// Who may use it.
    pub authorizations: Vec<Authorization>,
}

/// A host that a route is for, in lower case.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Host {
    /// This name.
    Exact(String),
    /// Names below this one.
    Below(String),
}

/// Requests that a route is for. All conditions must hold.
#[derive(Clone, Debug, Default)]
pub struct Match {
    /// The path.
    pub path: Path,
    /// Header fields.
    pub headers: Vec<(HeaderName, Value)>,
    /// Parameters of the query.
    pub query: Vec<(String, Value)>,
    /// The method.
    pub method: Option<http::Method>,
    /// Something that could not be read. The match then may or may not hold, which helps nobody.
    pub unreadable: bool,
}

/// The path of a [`Match`].
#[derive(Clone, Debug, Default)]
pub enum Path {
    /// Every path.
    #[default]
    Any,
    /// This one.
    Exact(String),
    /// This one and everything below.
    Prefix(String),
    /// All of it must match.
    Regex(Pattern),
}

/// A value of a header field or parameter.
#[derive(Clone, Debug)]
pub enum Value {
    /// This one.
    Exact(Arc<[u8]>),
    /// All of it must match.
    Regex(Pattern),
}

/// A regular expression that must match the whole of a text.
#[derive(Clone, Debug)]
pub struct Pattern(regex::bytes::Regex);

/// The most that a compiled expression may take, in bytes.
const MAX_REGEX_BYTES: usize = 1 << 20;

impl FromStr for Pattern {
    type Err = regex::Error;

    fn from_str(text: &str) -> Result<Self, regex::Error> {
        // Checked alone first: `a)|(b` must not become whole by what is put around it.
        regex::bytes::RegexBuilder::new(text).size_limit(MAX_REGEX_BYTES).build()?;
        let whole = format!(r"\A(?:{text})\z");
        regex::bytes::RegexBuilder::new(&whole).size_limit(MAX_REGEX_BYTES).build().map(Self)
    }
}

impl Pattern {
    /// Whether the whole of `text` matches.
    pub fn holds(&self, text: &[u8]) -> bool {
        self.0.is_match(text)
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        let text = self.0.as_str();
        text.strip_prefix(r"\A(?:").and_then(|text| text.strip_suffix(r")\z")).unwrap_or(text)
    }
}

/// How many requests per second, each with a burst of one second's worth. What is absent is not limited.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RateLimits {
    /// All clients together.
    pub total: Option<u32>,
    /// Each client that no override speaks of.
    pub identity: Option<u32>,
    /// The clients of each entry together, instead of `identity`.
    pub overrides: Vec<(u32, Vec<Identity>)>,
}
