//! A table of messages and what is made of them.

use linkerd2_proxy_api::destination::http2_client_params::{FlowControl, Internals, KeepAlive};
use linkerd2_proxy_api::destination::protocol_hint::{H2, Opaque, OpaqueTransport, Protocol};
use linkerd2_proxy_api::destination::tls_identity::{DnsLikeIdentity, Strategy, UriLikeIdentity};
use linkerd2_proxy_api::destination::{AddrSet, AuthorityOverride, NoEndpoints, WeightedAddrSet};

use super::*;

fn sock(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn at(text: &str) -> WeightedAddr {
    WeightedAddr { addr: Some(sock(text).into()), weight: 10_000, ..WeightedAddr::default() }
}

fn dns(name: &str) -> Option<TlsIdentity> {
    let strategy = Some(Strategy::DnsLikeIdentity(DnsLikeIdentity { name: name.to_owned() }));
    Some(TlsIdentity { strategy, server_name: None })
}

fn uri(uri: &str, server_name: Option<&str>) -> Option<TlsIdentity> {
    let strategy = Some(Strategy::UriLikeIdentity(UriLikeIdentity { uri: uri.to_owned() }));
    Some(TlsIdentity { strategy, server_name: server_name.map(|name| DnsLikeIdentity { name: name.to_owned() }) })
}

fn hint(protocol: Option<Protocol>, inbound_port: Option<u32>) -> Option<ProtocolHint> {
    let opaque_transport = inbound_port.map(|inbound_port| OpaqueTransport { inbound_port });
    Some(ProtocolHint { protocol, opaque_transport })
}

fn terms() -> Terms {
    Terms { own: vec![[10, 9, 9, 9].into()], allow_local: false, most: 3 }
}

fn one(weighted: &WeightedAddr) -> Result<Endpoint, Unusable> {
    endpoint(weighted, &HashMap::new(), &terms())
}

fn tls(identity: &str, server_name: &str) -> Option<Arc<UpstreamTls>> {
    let identity = Identity::parse(identity).expect("an identity");
    Some(Arc::new(UpstreamTls { identity, server_name: server_name.parse().expect("a name") }))
}

const POD: &str = "web.ns.serviceaccount.identity.linkerd.cluster.local";

#[test]
fn endpoints_by_what_is_said_of_them() {
    let weighted = |endpoint: Endpoint| Endpoint { weight: 10_000, ..endpoint };
    let plain = |addr: &str| weighted(Endpoint::new(sock(addr)));
    let tunnel = |port, name: Option<&str>, opaque| {
        Some(Arc::new(Tunnel { port, name: name.map(|name| name.parse().expect("a name")), opaque }))
    };
    let meshed = |addr: &str| Endpoint { tls: tls(POD, POD), ..plain(addr) };
    let over = |text: &str| Some(AuthorityOverride { authority_override: text.to_owned() });
    let target = |text: &str| Some(Arc::new(Target::parse(text, 1).expect("a target")));
    for (what, given, want) in [
        ("not meshed", at("10.0.0.1:8080"), plain("10.0.0.1:8080")),
        ("IPv6", at("[2001:db8::1]:8080"), plain("[2001:db8::1]:8080")),
        ("meshed, older", WeightedAddr { tls_identity: dns(POD), ..at("10.0.0.1:8080") }, meshed("10.0.0.1:8080")),
        (
            "meshed, as the chart has it",
            WeightedAddr {
                tls_identity: dns(POD),
                protocol_hint: hint(Some(Protocol::H2(H2 {})), Some(4143)),
                ..at("10.0.0.1:8080")
            },
            Endpoint { orig_proto: true, tunnel: tunnel(8080, None, false), ..meshed("10.0.0.1:4143") },
        ),
        (
            "meshed, bytes",
            WeightedAddr {
                tls_identity: dns(POD),
                protocol_hint: hint(Some(Protocol::Opaque(Opaque {})), Some(4143)),
                ..at("10.0.0.1:5432")
            },
            Endpoint { tunnel: tunnel(5432, None, true), ..meshed("10.0.0.1:4143") },
        ),
        (
            "a hint without TLS makes no header",
            WeightedAddr { protocol_hint: hint(Some(Protocol::H2(H2 {})), Some(4143)), ..at("10.0.0.1:8080") },
            Endpoint { orig_proto: true, ..plain("10.0.0.1:8080") },
        ),
        (
            "an inbound port that is none",
            WeightedAddr { tls_identity: dns(POD), protocol_hint: hint(None, Some(65_535)), ..at("10.0.0.1:80") },
            meshed("10.0.0.1:80"),
        ),
        (
            "an inbound port that would wrap",
            WeightedAddr { tls_identity: dns(POD), protocol_hint: hint(None, Some(65_536 + 22)), ..at("10.0.0.1:80") },
            meshed("10.0.0.1:80"),
        ),
        (
            "another cluster's gateway",
            WeightedAddr {
                tls_identity: dns(POD),
                authority_override: over("web.ns.svc.cluster.local.:8080"),
                protocol_hint: hint(Some(Protocol::H2(H2 {})), None),
                ..at("192.0.2.1:4143")
            },
            Endpoint {
                orig_proto: true,
                tunnel: tunnel(8080, Some("web.ns.svc.cluster.local"), false),
                authority: target("web.ns.svc.cluster.local:8080"),
                ..meshed("192.0.2.1:4143")
            },
        ),
        (
            "an authority without a port, and without TLS",
            WeightedAddr { authority_override: over("web.example"), ..at("192.0.2.1:80") },
            Endpoint { authority: target("web.example:80"), ..plain("192.0.2.1:80") },
        ),
        (
            "a SPIFFE id, asked for by a name of its own",
            WeightedAddr {
                tls_identity: uri("spiffe://west.example/vm", Some("vm.west.example")),
                ..at("10.0.0.1:80")
            },
            Endpoint { tls: tls("spiffe://west.example/vm", "vm.west.example"), ..plain("10.0.0.1:80") },
        ),
        (
            "an identity asked for by another name",
            WeightedAddr {
                tls_identity: dns(POD).map(|tls| TlsIdentity {
                    server_name: Some(DnsLikeIdentity { name: "sni.example".to_owned() }),
                    ..tls
                }),
                ..at("10.0.0.1:80")
            },
            Endpoint { tls: tls(POD, "sni.example"), ..plain("10.0.0.1:80") },
        ),
    ] {
        assert_eq!(one(&given), Ok(want), "{what}");
    }
}

#[test]
fn what_cannot_be_used_safely_is_left_out() {
    let spiffe = "spiffe://west.example/vm";
    let port = |port| WeightedAddr {
        addr: Some(TcpAddress { ip: Some(IpAddr::from([10, 0, 0, 1]).into()), port }),
        ..WeightedAddr::default()
    };
    for (given, want) in [
        (WeightedAddr::default(), Unusable::Address),
        (port(0), Unusable::Address),
        (port(65_536 + 80), Unusable::Address),
        (at("127.0.0.1:80"), Unusable::Own),
        (at("127.9.9.9:80"), Unusable::Own),
        (at("[::1]:80"), Unusable::Own),
        (at("[::ffff:127.0.0.1]:80"), Unusable::Own),
        (at("0.0.0.0:80"), Unusable::Own),
        (at("224.0.0.1:80"), Unusable::Own),
        (at("10.9.9.9:80"), Unusable::Own),
        (at("[::ffff:10.9.9.9]:80"), Unusable::Own),
        // The reference speaks plaintext to this one.
        (
            WeightedAddr { tls_identity: uri(spiffe, None), ..at("10.0.0.1:80") },
            Unusable::ServerName(spiffe.to_owned()),
        ),
        (WeightedAddr { tls_identity: dns("a..b"), ..at("10.0.0.1:80") }, Unusable::Identity("a..b".to_owned())),
        (
            WeightedAddr { tls_identity: uri(spiffe, Some("a b")), ..at("10.0.0.1:80") },
            Unusable::Identity("a b".to_owned()),
        ),
        (
            WeightedAddr {
                authority_override: Some(AuthorityOverride { authority_override: "a b".to_owned() }),
                ..at("10.0.0.1:80")
            },
            Unusable::Authority("a b".to_owned()),
        ),
    ] {
        assert_eq!(one(&given), Err(want));
    }
    let local = Terms { allow_local: true, ..terms() };
    assert!(endpoint(&at("127.0.0.1:80"), &HashMap::new(), &local).is_ok());
    assert!(endpoint(&at("10.9.9.9:80"), &HashMap::new(), &local).is_err(), "our own stays our own");
}

#[test]
fn zones_and_http2_parameters() {
    let labels = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let here = WeightedAddr { metric_labels: labels(&[("zone_locality", "local")]), ..at("10.0.0.1:80") };
    let made = endpoint(&here, &labels(&[("zone", "a"), ("zone_locality", "remote")]), &terms()).expect("fine");
    assert_eq!((made.zone.as_deref(), made.near), (Some("a"), true), "its own labels go before the set's");
    let there = endpoint(&at("10.0.0.1:80"), &labels(&[("zone_locality", "remote")]), &terms()).expect("fine");
    assert_eq!((there.zone, there.near), (None, false));

    let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let chart = Http2ClientParams {
        keep_alive: Some(KeepAlive { interval: seconds(10), timeout: seconds(3), while_idle: true }),
        ..Http2ClientParams::default()
    };
    let want = Http2Params {
        ping_interval: Some(Duration::from_secs(10)),
        ping_timeout: Some(Duration::from_secs(3)),
        ping_while_idle: true,
        ..Http2Params::default()
    };
    assert_eq!(http2(&chart), Some(want));
    let all = Http2ClientParams {
        flow_control: Some(FlowControl {
            initial_connection_window_size: 1 << 20,
            initial_stream_window_size: 65_535,
            adaptive_flow_control: true,
        }),
        keep_alive: Some(KeepAlive { interval: None, timeout: seconds(3), while_idle: true }),
        internals: Some(Internals { max_concurrent_reset_streams: 7, max_frame_size: 16_384, max_send_buf_size: 1000 }),
    };
    let want = Http2Params {
        stream_window: Some(65_535),
        connection_window: Some(1 << 20),
        adaptive_window: true,
        max_frame_size: Some(16_384),
        max_send_buffer: Some(1000),
        max_reset_streams: Some(7),
        ..Http2Params::default()
    };
    assert_eq!(http2(&all), Some(want), "no interval, no questions");
    assert_eq!(http2(&Http2ClientParams::default()), None);
    let odd = Some(KeepAlive { interval: seconds(-1), timeout: seconds(3), while_idle: false });
    assert_eq!(http2(&Http2ClientParams { keep_alive: odd, ..Http2ClientParams::default() }), None);
}

fn add(addrs: &[&str]) -> Update {
    let addrs = addrs.iter().map(|addr| at(addr)).collect();
    Update { update: Some(update::Update::Add(WeightedAddrSet { addrs, ..WeightedAddrSet::default() })) }
}

fn remove(addrs: &[&str]) -> Update {
    let addrs = addrs.iter().map(|addr| sock(addr).into()).collect();
    Update { update: Some(update::Update::Remove(AddrSet { addrs })) }
}

fn none(exists: bool) -> Update {
    Update { update: Some(update::Update::NoEndpoints(NoEndpoints { exists })) }
}

/// The addresses that are known, or `missing`, or nothing.
fn said(table: &mut Table, update: Update) -> String {
    match table.apply(update, &terms()) {
        None => "nothing".to_owned(),
        Some(State::Known(endpoints)) => {
            endpoints.list.iter().map(|endpoint| endpoint.addr.to_string()).collect::<Vec<_>>().join(" ")
        }
        Some(state) => format!("{state:?}"),
    }
}

#[test]
fn messages_are_differences_and_the_first_addition_of_a_stream_is_not() {
    let mut table = Table::default();
    table.renew();
    assert_eq!(said(&mut table, add(&["10.0.0.2:80", "10.0.0.1:80"])), "10.0.0.1:80 10.0.0.2:80");
    assert_eq!(said(&mut table, add(&["10.0.0.3:80"])), "10.0.0.1:80 10.0.0.2:80 10.0.0.3:80");
    assert_eq!(said(&mut table, remove(&["10.0.0.1:80", "10.7.7.7:80"])), "10.0.0.2:80 10.0.0.3:80");
    assert_eq!(said(&mut table, Update::default()), "nothing");
    table.renew();
    assert_eq!(said(&mut table, remove(&["10.0.0.3:80"])), "10.0.0.2:80", "a removal alone replaces nothing");
    assert_eq!(said(&mut table, add(&["10.0.0.4:80"])), "10.0.0.4:80");
    assert_eq!(said(&mut table, add(&["10.0.0.5:80"])), "10.0.0.4:80 10.0.0.5:80");
    assert_eq!(said(&mut table, none(true)), "");
    assert_eq!(said(&mut table, add(&["10.0.0.6:80"])), "10.0.0.6:80");
    table.renew();
    assert_eq!(said(&mut table, none(false)), "Missing");
    assert_eq!(said(&mut table, add(&["10.0.0.7:80"])), "10.0.0.7:80");
}

#[test]
fn an_endpoint_that_becomes_unusable_goes_and_those_beyond_the_limit_do_not_come() {
    let mut table = Table::default();
    assert_eq!(said(&mut table, add(&["10.0.0.1:80", "127.0.0.1:80"])), "10.0.0.1:80");
    let broken = WeightedAddr { tls_identity: uri("spiffe://a/b", None), ..at("10.0.0.1:80") };
    let set = WeightedAddrSet { addrs: vec![broken], ..WeightedAddrSet::default() };
    assert_eq!(said(&mut table, Update { update: Some(update::Update::Add(set)) }), "");
    let many = add(&["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80", "10.0.0.4:80"]);
    assert_eq!(said(&mut table, many), "10.0.0.1:80 10.0.0.2:80 10.0.0.3:80");
    assert_eq!(said(&mut table, add(&["10.0.0.2:80"])), "10.0.0.1:80 10.0.0.2:80 10.0.0.3:80", "known, not new");
}

#[test]
fn weights_of_nothing_are_no_weights() {
    let weights = |given: &[u32]| {
        let addrs = given
            .iter()
            .enumerate()
            .map(|(n, weight)| WeightedAddr { weight: *weight, ..at(&format!("10.0.0.{}:80", n + 1)) });
        let set = WeightedAddrSet { addrs: addrs.collect(), ..WeightedAddrSet::default() };
        let update = Update { update: Some(update::Update::Add(set)) };
        match Table::default().apply(update, &terms()) {
            Some(State::Known(endpoints)) => endpoints.list.iter().map(|endpoint| endpoint.weight).collect::<Vec<_>>(),
            state => panic!("{state:?}"),
        }
    };
    assert_eq!(weights(&[0, 0]), [1, 1]);
    assert_eq!(weights(&[0, 5]), [0, 5]);
    assert_eq!(weights(&[10_000, 1]), [10_000, 1]);
}

#[test]
fn two_ways_to_one_address_are_one_endpoint() {
    let meshed = |port| WeightedAddr {
        tls_identity: dns(POD),
        protocol_hint: hint(None, Some(4143)),
        ..at(&format!("10.0.0.1:{port}"))
    };
    let set = WeightedAddrSet { addrs: vec![meshed(80), meshed(81)], ..WeightedAddrSet::default() };
    let mut table = Table::default();
    assert_eq!(said(&mut table, Update { update: Some(update::Update::Add(set)) }), "10.0.0.1:4143");
    assert_eq!(said(&mut table, remove(&["10.0.0.1:80"])), "10.0.0.1:4143", "the other is still there");
}
