//! From a served policy to rules that can be asked.
//!
//! **In** [`Served`]. **Out** [`Compiled`] rules, each counting for one route, and the [`Routes`]. **Refuses** nothing: what reads
//! it has left out what it could not read, so that it lets nobody in.
//!
//! Suffixes are those of names: labels at the end of a DNS-like identity. An identity in the form of a URI is met by what
//! they say, too: `*.shop.serviceaccount.identity.linkerd.east.example` is the accounts of the namespace `shop` in the
//! trust domain `east.example`, and so is `spiffe://east.example/ns/shop/sa/…`, as SPIRE and others name them; `*.east.example`
//! is everybody of that trust domain. As everywhere here, no wildcard stands for a part of a trust domain.

use std::sync::Arc;

use super::compile::Compiled;
use super::limits::{Bounds, Grant};
use super::pattern::ClientPattern;
use super::routes::{OPAQUE, Routes};
use super::rule::{Http, Network, Rule};
use super::served::{Authorization, Served, Who};
use super::settings::{Action, LimitSettings, Mode, NetworkSettings, RuleSettings};
use crate::identity::Identity;

/// Compiles what was served.
pub(super) fn serve(served: &Served) -> (Compiled, Routes) {
    let routes = Routes::new(&served.server, served.opaque.is_some(), &served.routes);
    let opaque = (OPAQUE, served.opaque.as_deref().unwrap_or_default());
    let each = (1..).zip(served.routes.iter().map(|route| route.authorizations.as_slice()));
    let mut compiled = Compiled::default();
    for (route, authorizations) in std::iter::once(opaque).chain(each) {
        let prefix = &routes.names[route as usize];
        for authorization in authorizations.iter().filter(|authorization| !authorization.networks.is_empty()) {
            add(&mut compiled, rule(prefix, route, authorization), route);
        }
    }
    (compiled, routes)
}

fn add(compiled: &mut Compiled, rule: Rule, route: u32) {
    let number = u32::try_from(compiled.rules.len()).expect("a message holds far fewer");
    for pattern in &rule.clients {
        let client = compiled.clients.number(pattern);
        compiled.pairs.add(route, client, number);
    }
    compiled.rules.push(rule);
}

fn rule(prefix: &str, route: u32, authorization: &Authorization) -> Rule {
    let name: Arc<str> = format!("{prefix}/{}", authorization.name).into();
    let clients: Vec<ClientPattern> = authorization.clients.iter().flat_map(patterns).collect();
    let networks = authorization.networks.iter();
    let words = RuleSettings {
        name: name.to_string(),
        clients: Some(authorization.clients.iter().map(in_words).collect()),
        networks: Some(
            networks
                .clone()
                .map(|net| NetworkSettings {
                    cidr: net.net.to_string(),
                    except: net.except.iter().map(ToString::to_string).collect(),
                })
                .collect(),
        ),
        services: None,
        http: None,
        grpc: None,
        action: Action::Allow,
        limits: LimitSettings::default(),
        limits_per_client: LimitSettings::default(),
        mode: Mode::Enforce,
    };
    let grant = Arc::new(Grant {
        rule: Arc::clone(&name),
        mode: Mode::Enforce,
        bounds: Bounds::default(),
        per_client: Bounds::default(),
        cell: Arc::default(),
    });
    Rule {
        words,
        name,
        route: Some(route),
        action: Action::Allow,
        mode: Mode::Enforce,
        clients,
        services: Vec::new(),
        networks: networks.map(|net| Network { net: net.net, except: net.except.clone() }).collect(),
        http: Http::default(),
        grpc: None,
        grant,
    }
}

fn in_words(who: &Who) -> String {
    match who {
        Who::Anyone => "*".to_owned(),
        Who::Exact(identity) => identity.to_string(),
        Who::Suffix(labels) => format!("*.{}", labels.join(".")),
    }
}

fn patterns(who: &Who) -> Vec<ClientPattern> {
    match who {
        Who::Anyone => vec![ClientPattern::Any],
        Who::Exact(identity) => vec![ClientPattern::Exact(identity.clone())],
        Who::Suffix(labels) => {
            let lower: Vec<String> = labels.iter().map(|label| label.to_ascii_lowercase()).collect();
            let steps = lower.iter().rev().map(|label| Some(label.as_str().into())).collect();
            let names = ClientPattern::Suffix { labels: steps, deep: true };
            std::iter::once(names).chain(uris(&lower)).collect()
        }
    }
}

/// What a suffix of names says of identities that are URIs.
fn uris(labels: &[String]) -> Option<ClientPattern> {
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    let shape = labels.windows(2).position(|pair| pair == ["serviceaccount", "identity"]);
    // After the shape stands the namespace of the control plane, then the trust domain.
    let (namespace, domain) = match shape {
        None => (None, labels.as_slice()),
        Some(0) => (Some(None), labels.get(3..)?),
        Some(1) => (Some(Some(labels[0].into())), labels.get(4..)?),
        Some(_) => return None,
    };
    // Only what can be a trust domain: no more than a name.
    Identity::from_uri(&format!("spiffe://{}", domain.join("."))).ok().filter(|_| !domain.is_empty())?;
    let domain = format!("spiffe://{}", domain.join(".")).into();
    Some(match namespace {
        None => ClientPattern::Uri { domain, segments: Box::new([]), below: true },
        Some(namespace) => {
            let segments = Box::new([Some("ns".into()), namespace, Some("sa".into()), None]);
            ClientPattern::Uri { domain, segments, below: false }
        }
    })
}
