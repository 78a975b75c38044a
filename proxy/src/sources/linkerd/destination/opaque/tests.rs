//! A table of policies and what is made of them.

use linkerd2_proxy_api::destination::WeightedAddr;
use linkerd2_proxy_api::opaque_route::{Forbidden, Invalid};
use linkerd2_proxy_api::outbound::ProxyProtocol;
use linkerd2_proxy_api::outbound::backend::endpoint_discovery::{DestinationGet, Kind as Discovery};
use linkerd2_proxy_api::outbound::backend::{BalanceP2c, EndpointDiscovery};
use linkerd2_proxy_api::outbound::opaque_route::distribution::{Empty, FirstAvailable, Kind, RandomAvailable};
use linkerd2_proxy_api::outbound::opaque_route::{Rule, WeightedRouteBackend};
use linkerd2_proxy_api::outbound::proxy_protocol::{self as protocol, Kind as Protocol};

use super::*;

fn target() -> Target {
    Target::parse("db.ns.svc.cluster.local", 5432).expect("a target")
}

fn read(protocol: Option<Protocol>) -> Opaque {
    let protocol = protocol.map(|kind| ProxyProtocol { kind: Some(kind) });
    let terms = Terms { own: Vec::new(), allow_local: false, most: 10 };
    opaque(OutboundPolicy { protocol, metadata: None }, &target(), &terms)
}

fn rule(rule: Rule) -> Opaque {
    let routes = vec![OpaqueRoute { metadata: None, rules: vec![rule] }];
    read(Some(Protocol::Opaque(protocol::Opaque { routes })))
}

fn to(kind: Kind) -> Opaque {
    rule(Rule { backends: Some(Distribution { kind: Some(kind) }), filters: Vec::new() })
}

fn filter(kind: Option<filter::Kind>) -> Filter {
    Filter { kind }
}

fn backend(kind: Option<backend::Kind>) -> RouteBackend {
    RouteBackend { backend: Some(Backend { metadata: None, kind, queue: None }), filters: Vec::new() }
}

fn service(path: &str) -> RouteBackend {
    let dst = DestinationGet { path: path.to_owned() };
    let discovery = Some(EndpointDiscovery { kind: Some(Discovery::Dst(dst)) });
    backend(Some(backend::Kind::Balancer(BalanceP2c { discovery, load: None })))
}

fn forward(addr: [u8; 4]) -> RouteBackend {
    let addr = std::net::SocketAddr::from((addr, 5432));
    backend(Some(backend::Kind::Forward(WeightedAddr { addr: Some(addr.into()), ..WeightedAddr::default() })))
}

fn named(text: &str) -> To {
    To::Service(Target::parse(text, 1).expect("a target"))
}

#[test]
fn where_connections_go() {
    let share = |backend, weight| WeightedRouteBackend { backend, weight };
    let backends = vec![
        share(Some(service("db.ns.svc.cluster.local:5432")), 9),
        share(Some(forward([10, 0, 0, 1])), 1),
        share(Some(forward([127, 0, 0, 1])), 2),
        share(Some(backend(None)), 3),
        share(None, 4),
        share(Some(RouteBackend { filters: vec![filter(None)], ..service("a.ns:1") }), 5),
        share(Some(service("a b")), 6),
    ];
    let endpoint = Endpoint::new(([10, 0, 0, 1], 5432).into());
    let want = Opaque::Shared(vec![
        (named("db.ns.svc.cluster.local:5432"), 9),
        (To::Endpoint(endpoint), 1),
        (To::Nowhere, 2),
        (To::Nowhere, 3),
        (To::Nowhere, 4),
        (To::Nowhere, 5),
        (To::Nowhere, 6),
    ]);
    assert_eq!(to(Kind::RandomAvailable(RandomAvailable { backends })), want);
    let backends = vec![service("a.ns"), service("b.ns:2")];
    let want = Opaque::First(vec![named("a.ns:5432"), named("b.ns:2")]);
    assert_eq!(to(Kind::FirstAvailable(FirstAvailable { backends })), want);
}

#[test]
fn what_is_refused() {
    let filtered = |kind| {
        let backends = FirstAvailable { backends: vec![service("a.ns")] };
        let backends = Some(Distribution { kind: Some(Kind::FirstAvailable(backends)) });
        rule(Rule { backends, filters: vec![filter(kind)] })
    };
    assert_eq!(filtered(Some(filter::Kind::Forbidden(Forbidden {}))), Opaque::Forbidden);
    let invalid = filter::Kind::Invalid(Invalid { message: "no such backend".to_owned() });
    assert_eq!(filtered(Some(invalid)), Opaque::Invalid("no such backend".to_owned()));
    for refused in [
        filtered(None),
        to(Kind::Empty(Empty {})),
        to(Kind::FirstAvailable(FirstAvailable::default())),
        to(Kind::RandomAvailable(RandomAvailable::default())),
        rule(Rule::default()),
        read(Some(Protocol::Opaque(protocol::Opaque { routes: vec![OpaqueRoute::default()] }))),
        read(Some(Protocol::Opaque(protocol::Opaque::default()))),
        read(None),
    ] {
        assert!(matches!(refused, Opaque::Invalid(_)), "{refused:?}");
    }
}

#[test]
fn what_says_nothing_of_bytes_sends_them_where_requests_go() {
    for silent in [
        Protocol::Detect(protocol::Detect::default()),
        Protocol::Http1(protocol::Http1::default()),
        Protocol::Http2(protocol::Http2::default()),
        Protocol::Grpc(protocol::Grpc::default()),
        Protocol::Tls(protocol::Tls::default()),
    ] {
        assert_eq!(read(Some(silent)), Opaque::AsRequests);
    }
    let detect = protocol::Detect { opaque: Some(protocol::Opaque::default()), ..protocol::Detect::default() };
    assert!(
        matches!(read(Some(Protocol::Detect(detect))), Opaque::Invalid(_)),
        "it says something, and nothing useful"
    );
}
