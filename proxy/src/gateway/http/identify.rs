//! Makes the client known to the backend: which fields say who called, and that nobody but us has written them.
//!
//! **In** a request's fields and what the handshake knew of the client. **Out** the same fields without anything that the
//! client said of itself, and with what the gateway says of it. What is the same for all requests of a session, or for all
//! those to one service, is written once and then only cloned, which is a reference count.
//!
//! What is in [`RESERVED`] is removed always, in every spelling that some server would take for the same name. The one
//! exception is a client that the operator named in `identify.trusted_proxies`: what such a proxy says of those before it
//! is carried on. (Linkerd wire document §4.5; RFC 7239; Envoy's `x-forwarded-client-cert`.)

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use http::header::{FORWARDED, HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;
use tokio::time::Instant;

use super::headers::{L5D_CLIENT_ID, L5D_DST_CANONICAL};
use crate::addr::Target;
use crate::gateway::assertion::{Assertions, Claims, Issued};
use crate::identity::Identity;
use crate::record::Peer;
use crate::tls::{Credentials, inspect};
use crate::wire::{client_cert, forwarded, forwarded_for};

/// How clients are made known. Keys below `identify:` in the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Whether `l5d-client-id` is sent.
    pub client_id: bool,
    /// What becomes of `x-forwarded-client-cert`.
    pub client_cert: Forwarding,
    /// What becomes of `x-forwarded-for`.
    pub forwarded_for: Forwarding,
    /// Clients whose word on those before them is carried on.
    pub trusted_proxies: Vec<Identity>,
    /// The field of the signed assertion; removed from requests also where none is made.
    pub assertion_header: HeaderName,
    /// Where load balancers are: an address in here is theirs, not a client's.
    pub balancers: Vec<IpNet>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            client_id: true,
            client_cert: Forwarding::Off,
            forwarded_for: Forwarding::Off,
            trusted_proxies: Vec::new(),
            assertion_header: ASSERTION,
            balancers: Vec::new(),
        }
    }
}

/// The field of the signed assertion where the operator names no other.
pub const ASSERTION: HeaderName = HeaderName::from_static("isthmus-client-assertion");

/// What becomes of a field that names those a request came through.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Forwarding {
    /// Ours after what a trusted proxy wrote; from all others ours alone.
    Append,
    /// None is sent.
    #[default]
    Off,
    /// Ours alone.
    Set,
}

/// What only proxies may say. Servers that turn field names into variables (CGI, WSGI, PHP) take `x_forwarded_for` for
/// `x-forwarded-for`, so a name is judged without regard to what stands between its words.
pub const RESERVED: [&str; 11] = [
    "client-cert",       // RFC 9440
    "client-cert-chain", // RFC 9440
    "l5d-client-id",
    "l5d-dst-canonical",
    "l5d-require-id",
    "x-forwarded-client-cert",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-real-ip",
];

const X_FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// What a trusted proxy says beside `x-forwarded-for`, and is carried on as it is.
const BESIDE_FORWARDED_FOR: [HeaderName; 4] = [
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-port"),
    HeaderName::from_static("x-forwarded-proto"),
    HeaderName::from_static("x-real-ip"),
];

/// Whether a client may not send a field of this name.
fn is_reserved(name: &str, assertion: &str) -> bool {
    // Few names begin like one of ours, so most are let go at their first byte.
    let begins = |reserved: &str| reserved.as_bytes().first() == name.as_bytes().first();
    let same = |reserved: &str| {
        reserved.len() == name.len()
            && reserved.bytes().zip(name.bytes()).all(|(reserved, byte)| {
                byte == reserved || (!byte.is_ascii_alphanumeric() && !reserved.is_ascii_alphanumeric())
            })
    };
    let first = name.as_bytes().first();
    let any_of_ours = matches!(first, Some(b'c' | b'l' | b'x')) && RESERVED.into_iter().any(same);
    any_of_ours || (begins(assertion) && same(assertion))
}

/// Takes off what only proxies may say, except for `kept`.
fn remove_reserved(headers: &mut HeaderMap, assertion: &HeaderName, kept: &[HeaderName]) {
    let reserved = |name: &&HeaderName| is_reserved(name.as_str(), assertion.as_str()) && !kept.contains(name);
    // Empty as a rule, and then it allocates nothing.
    let found: Vec<HeaderName> = headers.keys().filter(reserved).cloned().collect();
    for name in found {
        headers.remove(name);
    }
}

/// Takes the same off trailers: some servers put them among the fields.
pub(super) fn clean_trailers(trailers: &mut HeaderMap, assertion: &HeaderName) {
    remove_reserved(trailers, assertion, &[]);
    trailers.remove(FORWARDED);
}

/// Who calls, as the handshake knows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller<'a> {
    pub(super) identity: &'a Identity,
    pub(super) peer: &'a Peer,
    /// The client's certificate, in DER.
    pub(super) leaf: &'a [u8],
}

/// With what the fields are written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pen<'a> {
    pub(super) settings: &'a Settings,
    pub(super) credentials: &'a Arc<Credentials>,
    pub(super) assertions: Option<&'a Assertions>,
}

/// What is known of the client of one session, as fields. Made with the first request, and anew when the gateway's own
/// credentials have changed, whose name and key are in it.
#[derive(Debug, Default)]
pub(super) struct Known(RefCell<Option<Prepared>>);

#[derive(Debug)]
struct Prepared {
    /// Does not keep the credentials alive, only their address from being used again.
    of: Weak<Credentials>,
    own: Identity,
    trusted: bool,
    client_id: Option<HeaderValue>,
    client_cert: Option<HeaderValue>,
    network: Option<IpAddr>,
    address: Option<HeaderValue>,
    services: HashMap<Target, ForService>,
}

/// What is said to one service.
#[derive(Debug)]
struct ForService {
    canonical: HeaderValue,
    forwarded: HeaderValue,
    assertion: Option<Issued>,
}

/// Services whose fields one session keeps. Few sessions ask for more; those that do have theirs written anew.
const MAX_SERVICES: usize = 64;

impl Known {
    /// Takes off a request what its client may not say, and puts on what the gateway says. Hop-by-hop fields must be gone:
    /// `connection` could else name what is put on here.
    pub(super) fn write(&self, pen: Pen<'_>, caller: Caller<'_>, target: &Target, headers: &mut HeaderMap) {
        let mut slot = self.0.borrow_mut();
        let current = slot.take().filter(|known| known.of.as_ptr() == Arc::as_ptr(pen.credentials));
        let known = slot.insert(current.unwrap_or_else(|| Prepared::new(pen, caller)));
        known.write(pen, caller, target, headers);
    }
}

impl Prepared {
    fn new(pen: Pen<'_>, caller: Caller<'_>) -> Self {
        let Pen { settings, credentials, .. } = pen;
        let own = credentials.identity().clone();
        let network = network(caller.peer.addr, &settings.balancers);
        let client_cert = (settings.client_cert != Forwarding::Off).then(|| {
            let (hash, names) = inspect::certificate(caller.leaf)
                .map_or_else(|_| Default::default(), |leaf| (leaf.fingerprint, leaf.identities));
            let subject = inspect::subject(caller.leaf);
            client_cert::element(&own, &client_cert::Certificate { hash: &hash, subject: &subject, names: &names })
        });
        Self {
            of: Arc::downgrade(credentials),
            trusted: settings.trusted_proxies.contains(caller.identity),
            client_id: HeaderValue::from_str(caller.identity.as_str()).ok().filter(|_| settings.client_id),
            client_cert,
            address: network.filter(|_| settings.forwarded_for != Forwarding::Off).map(forwarded_for::address),
            network,
            services: HashMap::new(),
            own,
        }
    }

    fn write(&mut self, pen: Pen<'_>, caller: Caller<'_>, target: &Target, headers: &mut HeaderMap) {
        let Pen { settings, .. } = pen;
        let appends = |forwarding| self.trusted && forwarding == Forwarding::Append;
        let client_cert = self.client_cert.as_ref().map(|own| match appends(settings.client_cert) {
            true => client_cert::appended(headers.get_all(X_FORWARDED_CLIENT_CERT), own),
            false => own.clone(),
        });
        let carries_on = appends(settings.forwarded_for);
        let address = match (carries_on, &self.address) {
            (true, Some(own)) => Some(forwarded_for::appended(headers.get_all(X_FORWARDED_FOR), own)),
            (_, own) => own.clone(),
        };
        let kept: &[HeaderName] = if carries_on { &BESIDE_FORWARDED_FOR } else { &[] };
        remove_reserved(headers, &settings.assertion_header, kept);
        if !self.trusted && headers.contains_key(FORWARDED) {
            let relays = forwarded::relays(headers.get_all(FORWARDED));
            headers.remove(FORWARDED);
            for relay in relays {
                headers.append(FORWARDED, relay);
            }
        }
        for (name, value) in [
            (L5D_CLIENT_ID, self.client_id.clone()),
            (X_FORWARDED_CLIENT_CERT, client_cert),
            (X_FORWARDED_FOR, address),
        ] {
            if let Some(value) = value {
                headers.insert(name, value);
            }
        }
        let (own, network) = (self.own.clone(), self.network);
        let service = self.service(caller, target);
        headers.insert(L5D_DST_CANONICAL, service.canonical.clone());
        headers.append(FORWARDED, service.forwarded.clone());
        let Some(assertions) = pen.assertions else { return };
        if service.assertion.as_ref().is_none_or(|issued| issued.renew_at <= Instant::now()) {
            let cluster = caller.peer.cluster.as_deref();
            let claims = Claims { issuer: &own, subject: caller.identity, audience: &target.name, cluster, network };
            service.assertion = assertions.issue(&claims, SystemTime::now());
        }
        if let Some(issued) = &service.assertion {
            headers.insert(settings.assertion_header.clone(), issued.value.clone());
        }
    }

    fn service(&mut self, caller: Caller<'_>, target: &Target) -> &mut ForService {
        if self.services.len() >= MAX_SERVICES && !self.services.contains_key(target) {
            self.services.clear();
        }
        // A clone of the key is a reference count; looking twice would cost as much.
        self.services.entry(target.clone()).or_insert_with(|| ForService {
            canonical: HeaderValue::try_from(target.to_string()).expect("a validated name is a valid field value"),
            forwarded: forwarded::element(&self.own, caller.identity, target),
            assertion: None,
        })
    }
}

/// The client's address, where it is one: behind a load balancer that says nothing of its clients it is the balancer's.
fn network(peer: SocketAddr, balancers: &[IpNet]) -> Option<IpAddr> {
    let addr = peer.ip().to_canonical();
    let is_client = !addr.is_unspecified() && !balancers.iter().any(|network| network.contains(&addr));
    is_client.then_some(addr)
}

#[cfg(test)]
pub(crate) mod tests;
