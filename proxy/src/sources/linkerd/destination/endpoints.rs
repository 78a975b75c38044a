//! Endpoints as the control plane describes them, in the words of the stages.
//!
//! **In** the messages of `Destination.Get`. **Out** [`Endpoints`], whole. **Refuses** single endpoints that cannot be used
//! safely, and says which and why: those that lead to this host, and those whose TLS cannot be done as described, which
//! are never spoken to in plaintext instead. (Linkerd wire document §5.1, §5.3, §5.4.)

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use linkerd2_proxy_api::destination::{
    Http2ClientParams, ProtocolHint, TlsIdentity, Update, WeightedAddr, protocol_hint, tls_identity, update,
};
use linkerd2_proxy_api::net::TcpAddress;

use crate::addr::Target;
use crate::endpoint::{Endpoint, Endpoints, Http2Params, Tunnel, UpstreamTls};
use crate::identity::Identity;
use crate::route::State;

/// Which endpoints are taken.
#[derive(Clone, Debug, Default)]
pub(super) struct Terms {
    /// This pod's addresses.
    pub(super) own: Vec<IpAddr>,
    /// Takes endpoints at loopback addresses. For trying things out.
    pub(super) allow_local: bool,
    /// The most endpoints of one service.
    pub(super) most: usize,
}

/// Why an endpoint is left out.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum Unusable {
    #[error("it has no address, or a port that is none")]
    Address,
    #[error("the authority that it wants, '{0}', is none")]
    Authority(String),
    #[error("it is an address of this pod, or one that leads nowhere else")]
    Own,
    #[error("its identity, '{0}', is none")]
    Identity(String),
    #[error("its identity, '{0}', is a URI, and no server name is given to ask for it")]
    ServerName(String),
}

/// The endpoints of one service, as the control plane told them piece by piece.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// By the address that the control plane knows them by, which need not be the one to dial.
    known: BTreeMap<SocketAddr, Endpoint>,
    /// The stream is new: what it adds first replaces what is known.
    renewed: bool,
}

impl Table {
    /// A new stream begins. What is known stays until it says something.
    pub(super) fn renew(&mut self) {
        self.renewed = true;
    }

    /// Takes one message and says what is known now; `None` where it said nothing that can be understood.
    pub(super) fn apply(&mut self, update: Update, terms: &Terms) -> Option<State> {
        match update.update? {
            update::Update::Add(set) => {
                if std::mem::take(&mut self.renewed) {
                    self.known.clear();
                }
                for weighted in &set.addrs {
                    self.add(weighted, &set.metric_labels, terms);
                }
            }
            update::Update::Remove(set) => {
                for addr in set.addrs.iter().filter_map(socket_addr) {
                    self.known.remove(&addr);
                }
            }
            update::Update::NoEndpoints(none) => {
                self.renewed = false;
                self.known.clear();
                if !none.exists {
                    return Some(State::Missing);
                }
            }
        }
        Some(State::Known(Arc::new(self.endpoints())))
    }

    fn add(&mut self, weighted: &WeightedAddr, labels: &HashMap<String, String>, terms: &Terms) {
        let Some(addr) = weighted.addr.as_ref().and_then(socket_addr) else {
            tracing::warn!(reason = %Unusable::Address, "an endpoint is left out");
            return;
        };
        match endpoint(weighted, labels, terms) {
            Ok(_) if self.known.len() >= terms.most && !self.known.contains_key(&addr) => {
                tracing::warn!(%addr, most = terms.most, "an endpoint is left out: the service has more than are taken");
            }
            Ok(endpoint) => drop(self.known.insert(addr, endpoint)),
            Err(reason) => {
                // What was known of it is no longer so.
                self.known.remove(&addr);
                tracing::warn!(%addr, %reason, "an endpoint is left out");
            }
        }
    }

    /// Each address that is dialled once, in an order that does not depend on the messages'.
    fn endpoints(&self) -> Endpoints {
        let mut seen = HashSet::with_capacity(self.known.len());
        let mut list: Vec<_> = self.known.values().filter(|endpoint| seen.insert(endpoint.addr)).cloned().collect();
        settle_weights(&mut list);
        Endpoints { list }
    }
}

/// A server that sends no weights means that it has none, not that nobody is to be used.
fn settle_weights(list: &mut [Endpoint]) {
    if list.iter().all(|endpoint| endpoint.weight == 0) {
        list.iter_mut().for_each(|endpoint| endpoint.weight = 1);
    }
}

/// One endpoint alone: a pod by its own name, or one that a policy names.
pub(super) fn single(weighted: &WeightedAddr, terms: &Terms) -> Result<Endpoint, Unusable> {
    let mut list = [endpoint(weighted, &HashMap::new(), terms)?];
    settle_weights(&mut list);
    let [endpoint] = list;
    Ok(endpoint)
}

/// One endpoint. `labels` are those of the set that it came in.
fn endpoint(weighted: &WeightedAddr, labels: &HashMap<String, String>, terms: &Terms) -> Result<Endpoint, Unusable> {
    let addr = weighted.addr.as_ref().and_then(socket_addr).ok_or(Unusable::Address)?;
    if leads_home(addr.ip(), terms) {
        return Err(Unusable::Own);
    }
    let tls = weighted.tls_identity.as_ref().map(upstream_tls).transpose()?.flatten();
    let authority = weighted.authority_override.as_ref().map(|over| authority(&over.authority_override)).transpose()?;
    let hint = weighted.protocol_hint.unwrap_or_default();
    // Only ALPN can agree on a transport header: without TLS there is none.
    let (dialled, tunnel) = match &tls {
        None => (addr, None),
        Some(_) => tunnel(addr, &hint, authority.as_ref()),
    };
    let label = |name: &str| weighted.metric_labels.get(name).or_else(|| labels.get(name)).map(String::as_str);
    Ok(Endpoint {
        orig_proto: matches!(hint.protocol, Some(protocol_hint::Protocol::H2(_))),
        tls: tls.map(Arc::new),
        tunnel: tunnel.map(Arc::new),
        authority: authority.map(Arc::new),
        http2: weighted.http2.as_ref().and_then(http2).map(Arc::new),
        weight: weighted.weight,
        zone: label("zone").filter(|zone| !zone.is_empty()).map(Arc::from),
        near: label("zone_locality") == Some("local"),
        ..Endpoint::new(dialled)
    })
}

/// The port is checked: 65,536 and above must not become another one.
fn socket_addr(addr: &TcpAddress) -> Option<SocketAddr> {
    let port = u16::try_from(addr.port).ok().filter(|port| *port != 0)?;
    let ip: IpAddr = addr.ip?.try_into().ok()?;
    Some(SocketAddr::new(ip.to_canonical(), port))
}

/// A control plane must not be able to make the gateway talk to its own inner ports.
fn leads_home(ip: IpAddr, terms: &Terms) -> bool {
    let local = ip.is_loopback() && !terms.allow_local;
    local || ip.is_unspecified() || ip.is_multicast() || terms.own.iter().any(|own| own.to_canonical() == ip)
}

fn upstream_tls(tls: &TlsIdentity) -> Result<Option<UpstreamTls>, Unusable> {
    let Some(strategy) = &tls.strategy else { return Ok(None) };
    let (identity, text) = match strategy {
        tls_identity::Strategy::DnsLikeIdentity(dns) => (Identity::from_dns(&dns.name), &dns.name),
        tls_identity::Strategy::UriLikeIdentity(uri) => (Identity::from_uri(&uri.uri), &uri.uri),
    };
    let identity = identity.map_err(|_| Unusable::Identity(text.clone()))?;
    let given = tls.server_name.as_ref().filter(|name| !name.name.is_empty());
    let server_name = match (given, &identity) {
        (Some(name), _) => name.name.parse().map_err(|_| Unusable::Identity(name.name.clone()))?,
        (None, Identity::Dns(name)) => name.clone(),
        // The reference falls back to plaintext here. Who is to be met under a name must not be met without one.
        (None, Identity::Uri(_)) => return Err(Unusable::ServerName(text.clone())),
    };
    Ok(Some(UpstreamTls { identity, server_name }))
}

/// An authority without a port means 80, as everywhere in HTTP.
fn authority(text: &str) -> Result<Target, Unusable> {
    Target::parse(text, 80).map_err(|_| Unusable::Authority(text.to_owned()))
}

/// Where to dial, and with which transport header.
fn tunnel(addr: SocketAddr, hint: &ProtocolHint, authority: Option<&Target>) -> (SocketAddr, Option<Tunnel>) {
    let opaque = matches!(hint.protocol, Some(protocol_hint::Protocol::Opaque(_)));
    let inbound = hint.opaque_transport.and_then(|transport| {
        let port = u16::try_from(transport.inbound_port).ok().filter(|port| (1..u16::MAX).contains(port));
        if port.is_none() {
            tracing::warn!(%addr, port = transport.inbound_port, "an inbound port that is none is ignored");
        }
        port
    });
    let dialled = inbound.map_or(addr, |port| SocketAddr::new(addr.ip(), port));
    let tunnel = match authority {
        Some(target) => Some(Tunnel { port: target.port, name: Some(target.name.clone()), opaque }),
        None => inbound.map(|_| Tunnel { port: addr.port(), name: None, opaque }),
    };
    (dialled, tunnel)
}

/// How to speak HTTP/2; nothing where nothing is said. Zeros are what protobuf makes of silence.
fn http2(params: &Http2ClientParams) -> Option<Http2Params> {
    let some = |value: u32| Some(value).filter(|value| *value > 0);
    let flow = params.flow_control.unwrap_or_default();
    let keep = params.keep_alive.unwrap_or_default();
    let internals = params.internals.unwrap_or_default();
    let interval = keep.interval.and_then(duration);
    let params = Http2Params {
        stream_window: some(flow.initial_stream_window_size),
        connection_window: some(flow.initial_connection_window_size),
        adaptive_window: flow.adaptive_flow_control,
        ping_interval: interval,
        ping_timeout: interval.and_then(|_| keep.timeout.and_then(duration)),
        ping_while_idle: interval.is_some() && keep.while_idle,
        max_frame_size: some(internals.max_frame_size),
        max_send_buffer: some(internals.max_send_buf_size),
        max_reset_streams: some(internals.max_concurrent_reset_streams),
    };
    (params != Http2Params::default()).then_some(params)
}

/// A duration that is one: above nothing.
pub(super) fn duration(proto: prost_types::Duration) -> Option<Duration> {
    Duration::try_from(proto).ok().filter(|duration| !duration.is_zero())
}

#[cfg(test)]
mod tests;
