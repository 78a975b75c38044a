//! What is kept of a Service and an EndpointSlice: the fields that decide where a request goes, and no more.
//!
//! **In** objects as the API server sends them. **Out** [`Service`] and [`Slice`], some hundred bytes each where the
//! objects are kilobytes (managed fields, annotations, node names, references). **Refuses** nothing: what cannot be used
//! (an address that is none, a port of another protocol) is left out.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use kube::core::{Selector, SelectorExt};

use super::protocol::{OpaquePorts, speaks};
use crate::endpoint::Speaks;

/// What a Service says.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Service {
    /// Whether it carries the label of exported services.
    pub(super) exported: bool,
    /// `type: ExternalName`: it has no endpoints here, only another name.
    pub(super) external: bool,
    /// `clusterIP: None`.
    pub(super) headless: bool,
    /// Its first address family, where it says one.
    pub(super) family: Option<Family>,
    /// Its TCP ports.
    pub(super) ports: Box<[Port]>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Port {
    /// The name that joins it to ports of slices; empty where it has none.
    pub(super) name: Arc<str>,
    pub(super) number: u16,
    /// What `appProtocol` or the opaque-ports annotation says; `None` where neither says anything.
    pub(super) speaks: Option<Speaks>,
}

/// An address family.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// Some of a Service's endpoints; a large service has several, and so has one with two address families.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Slice {
    /// The object's name.
    pub(super) name: Box<str>,
    /// Each endpoint's share of the load.
    pub(super) weight: u32,
    pub(super) ports: Box<[SlicePort]>,
    pub(super) endpoints: Box<[Endpoint]>,
}

/// A port that all endpoints of a slice have.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct SlicePort {
    pub(super) name: Arc<str>,
    /// The pod's port; `None` means that it is the service's own.
    pub(super) number: Option<u16>,
    pub(super) speaks: Option<Speaks>,
}

/// A pod, or what stands in its place.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Endpoint {
    pub(super) ip: IpAddr,
    pub(super) condition: Condition,
    pub(super) zone: Option<Arc<str>>,
    /// The zones that it is meant for, where the control plane says so.
    pub(super) hints: Box<[Arc<str>]>,
    /// The name that it has below its service.
    pub(super) hostname: Option<Box<str>>,
}

/// Whether an endpoint may be sent requests.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Condition {
    /// Neither ready nor serving. Kept for its zone and for what it may become.
    Down,
    /// Leaving, and answering until it is gone: for what it works on already, and for want of anything better.
    Draining,
    Ready,
}

/// Says how much of the load the endpoints of a slice take, each relative to the endpoints of other slices. Slices that
/// Kubernetes writes cannot carry it; those that an operator or a controller of theirs writes can.
pub(super) const WEIGHT: &str = "isthmus.io/weight";

/// An endpoint's weight where nothing is said: others can be more and less.
const USUAL_WEIGHT: u32 = 100;

/// The most that can be said: with more, sums over many endpoints would not be shares of 32 bits any more.
const MAX_WEIGHT: u32 = 10_000;

/// Keeps one copy of each text that many objects repeat: zones and the names of ports.
#[derive(Debug, Default)]
pub(super) struct Texts(HashSet<Arc<str>>);

impl Texts {
    fn keep(&mut self, text: &str) -> Arc<str> {
        if let Some(kept) = self.0.get(text) {
            return Arc::clone(kept);
        }
        let kept: Arc<str> = text.into();
        self.0.insert(Arc::clone(&kept));
        kept
    }
}

impl Service {
    pub(super) fn read(from: &core::Service, selector: &Selector, texts: &mut Texts) -> Self {
        let empty = std::collections::BTreeMap::new();
        let labels = from.metadata.labels.as_ref().unwrap_or(&empty);
        let opaque = OpaquePorts::of(from.metadata.annotations.as_ref());
        let spec = from.spec.as_ref();
        let ports = spec.and_then(|spec| spec.ports.as_deref()).unwrap_or_default().iter();
        let ports = ports.filter(|port| is_tcp(port.protocol.as_deref())).filter_map(|port| {
            let number = number(port.port)?;
            let name = port.name.as_deref().unwrap_or_default();
            let said = port.app_protocol.as_deref().and_then(speaks);
            let speaks = if opaque.holds(number, name) { Some(Speaks::Opaque) } else { said };
            Some(Port { name: texts.keep(name), number, speaks })
        });
        Self {
            exported: selector.matches(labels),
            external: spec.is_some_and(|spec| spec.type_.as_deref() == Some("ExternalName")),
            headless: spec.is_some_and(|spec| spec.cluster_ip.as_deref() == Some("None")),
            family: spec.and_then(|spec| match spec.ip_families.as_deref()?.first()?.as_str() {
                "IPv4" => Some(Family::V4),
                "IPv6" => Some(Family::V6),
                _ => None,
            }),
            ports: ports.collect(),
        }
    }
}

impl Slice {
    pub(super) fn read(from: &discovery::EndpointSlice, allow_local: bool, texts: &mut Texts) -> Self {
        let ports = from.ports.as_deref().unwrap_or_default().iter();
        let ports = ports.filter(|port| is_tcp(port.protocol.as_deref())).map(|port| SlicePort {
            name: texts.keep(port.name.as_deref().unwrap_or_default()),
            number: port.port.and_then(number),
            speaks: port.app_protocol.as_deref().and_then(speaks),
        });
        let ports = ports.collect();
        let endpoints = from.endpoints.iter().filter_map(|endpoint| {
            // The further addresses are the same endpoint again, and what they mean was never settled: only the first
            // counts, as for kube-proxy. Names (`addressType: FQDN`) are none.
            let ip = endpoint.addresses.first()?.parse::<IpAddr>().ok()?.to_canonical();
            if !allow_local && leads_here(ip) {
                return None;
            }
            let hints = endpoint.hints.as_ref().and_then(|hints| hints.for_zones.as_deref()).unwrap_or_default();
            Some(Endpoint {
                ip,
                condition: Condition::of(endpoint.conditions.as_ref()),
                zone: endpoint.zone.as_deref().map(|zone| texts.keep(zone)),
                hints: hints.iter().map(|zone| texts.keep(&zone.name)).collect(),
                hostname: endpoint.hostname.as_deref().map(|name| name.to_ascii_lowercase().into()),
            })
        });
        Self {
            name: from.metadata.name.as_deref().unwrap_or_default().into(),
            weight: weight(from).unwrap_or(USUAL_WEIGHT),
            ports,
            endpoints: endpoints.collect(),
        }
    }
}

impl Condition {
    /// Absent means ready, serving like ready, and not terminating, as the API says.
    fn of(conditions: Option<&discovery::EndpointConditions>) -> Self {
        let said = |read: fn(&discovery::EndpointConditions) -> Option<bool>| conditions.and_then(read);
        let ready = said(|conditions| conditions.ready).unwrap_or(true);
        let serving = said(|conditions| conditions.serving).unwrap_or(ready);
        let terminating = said(|conditions| conditions.terminating).unwrap_or(false);
        // Ready and terminating at once is a service that publishes its addresses whatever state they are in.
        match (ready, serving, terminating) {
            (true, ..) => Self::Ready,
            (false, true, true) => Self::Draining,
            (false, ..) => Self::Down,
        }
    }
}

fn weight(slice: &discovery::EndpointSlice) -> Option<u32> {
    let text = slice.metadata.annotations.as_ref()?.get(WEIGHT)?;
    let weight = text.parse().ok().filter(|weight| *weight <= MAX_WEIGHT);
    if weight.is_none() {
        tracing::warn!(
            slice = slice.metadata.name,
            namespace = slice.metadata.namespace,
            found = text,
            "the annotation {WEIGHT} is a number from 0 to {MAX_WEIGHT}; left out"
        );
    }
    weight
}

/// The API server refuses such addresses in slices. Should one come all the same, it would open the gateway's own inner ports.
fn leads_here(ip: IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || link_local
}

/// Absent means TCP.
fn is_tcp(protocol: Option<&str>) -> bool {
    protocol.is_none_or(|protocol| protocol == "TCP")
}

fn number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port > 0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::selector;
    use super::*;

    fn service(value: serde_json::Value) -> Service {
        let selector = selector::parse("mirror.linkerd.io/exported=true").expect("a selector");
        Service::read(&serde_json::from_value(value).expect("a Service"), &selector, &mut Texts::default())
    }

    fn slice(value: serde_json::Value) -> Slice {
        Slice::read(&serde_json::from_value(value).expect("a slice"), false, &mut Texts::default())
    }

    #[test]
    fn only_tcp_ports_count() {
        let read = service(json!({
            "metadata": { "name": "dns" },
            "spec": { "clusterIP": "None", "ipFamilies": ["IPv6", "IPv4"], "ports": [
                { "name": "udp", "port": 53, "protocol": "UDP" },
                { "name": "tcp", "port": 53, "protocol": "TCP" },
                { "name": "metrics", "port": 9153, "appProtocol": "kubernetes.io/h2c" },
            ]},
        }));
        let ports: Vec<_> = read.ports.iter().map(|port| (&*port.name, port.number, port.speaks)).collect();
        assert_eq!(ports, [("tcp", 53, None), ("metrics", 9153, Some(Speaks::Http2))]);
        assert!(read.headless && !read.exported && !read.external);
        assert_eq!(read.family, Some(Family::V6));
    }

    #[test]
    fn the_annotation_of_opaque_ports_outranks_the_protocol() {
        let read = service(json!({
            "metadata": {
                "labels": { "mirror.linkerd.io/exported": "true" },
                "annotations": { "config.linkerd.io/opaque-ports": "3306, 4000-4002 ,admin" },
            },
            "spec": { "ports": [
                { "name": "mysql", "port": 3306, "appProtocol": "kubernetes.io/h2c" },
                { "name": "admin", "port": 80 },
                { "name": "range", "port": 4001 },
                { "name": "http", "port": 8080, "appProtocol": "kubernetes.io/ws" },
            ]},
        }));
        let speaks: Vec<_> = read.ports.iter().map(|port| port.speaks).collect();
        let opaque = Some(Speaks::Opaque);
        assert_eq!(speaks, [opaque, opaque, opaque, Some(Speaks::Http1)]);
        assert!(read.exported);
    }

    #[test]
    fn absent_conditions_mean_ready() {
        for (conditions, want) in [
            (json!(null), Condition::Ready),
            (json!({}), Condition::Ready),
            (json!({ "ready": false }), Condition::Down),
            (json!({ "ready": false, "serving": true, "terminating": true }), Condition::Draining),
            (json!({ "ready": false, "serving": false, "terminating": true }), Condition::Down),
            (json!({ "ready": false, "serving": true, "terminating": false }), Condition::Down),
            (json!({ "ready": true, "serving": true, "terminating": true }), Condition::Ready),
        ] {
            let read = slice(json!({
                "metadata": { "name": "web-1" }, "addressType": "IPv4", "ports": [{ "name": "http", "port": 80 }],
                "endpoints": [{ "addresses": ["10.0.0.1", "10.0.0.2"], "conditions": conditions }],
            }));
            assert_eq!(read.endpoints.len(), 1);
            assert_eq!(read.endpoints[0].condition, want, "{conditions}");
        }
    }

    #[test]
    fn addresses_that_lead_to_this_host_and_names_are_left_out() {
        for address in
            ["127.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.1", "224.0.0.1", "0.0.0.0", "web.example"]
        {
            let read = slice(json!({
                "metadata": { "name": "web-1" }, "addressType": "IPv4", "endpoints": [{ "addresses": [address] }],
            }));
            assert!(read.endpoints.is_empty(), "{address}");
        }
    }

    #[test]
    fn a_weight_that_is_none_counts_as_the_usual_one() {
        for (text, want) in [("7", 7), ("0", 0), ("10000", 10_000), ("10001", 100), ("-1", 100), ("much", 100)] {
            let read = slice(json!({
                "metadata": { "name": "web-1", "annotations": { WEIGHT: text } }, "addressType": "IPv4", "endpoints": [],
            }));
            assert_eq!(read.weight, want, "{text}");
        }
    }
}
