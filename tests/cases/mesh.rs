//! Endpoints behind Linkerd's proxies: the transport header on the way out, HTTP/1 carried over HTTP/2, and another gateway
//! behind this one. (Linkerd wire document §2, §3.2, §5.3, §5.4, §11.2.)

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Version;
use isthmus::endpoint::{Endpoint, Endpoints, Tunnel, UpstreamTls};
use isthmus::identity::Identity;
use isthmus::route::{Claim, Published};
use isthmus_tests::h2raw::{Frames, PING, SETTINGS};
use isthmus_tests::mesh::{Meshed, meshed, proxy};
use isthmus_tests::peer::{Peer, Tls, empty, full, h2_request, listen, target};
use isthmus_tests::pki::{GATEWAY, Pki, SHOP, pair};
use isthmus_tests::upstream::{self, accept_key};
use isthmus_tests::wire::Http1;
use isthmus_tests::world::{Setup, World};
use isthmus_tests::{soon, spawn};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const WEB: &str = "web.ns.serviceaccount.identity.linkerd.cluster.local";
const HOST: &str = "web.ns.svc.cluster.local:8080";
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

async fn pod() -> Meshed {
    meshed(&pair(&Pki::get().east, &[WEB])).await
}

/// The service `web:8080` with one meshed endpoint, and more of its keys.
async fn world(pod: &Meshed, more: &str) -> World {
    let more = format!(", tls: {{ identity: {WEB} }}{more}");
    Setup::new().service_with("web", 8080, "as_client", &[pod.addr], &more).start().await
}

/// A request as a source without the hint sends it: no `host`.
async fn h1(world: &World) -> Http1<Tls> {
    world.shop().header_h1("web", 8080).await
}

#[tokio::test]
async fn the_header_says_the_pods_port_and_what_is_spoken() {
    let pod = pod().await;
    let world = world(&pod, ", transport_header: { port: 9011 }").await;
    assert_eq!(h1(&world).await.ask("GET /one HTTP/1.1\r\n\r\n").await.status(), 200);
    assert_eq!(world.shop().header_h2("web", 8080).await.get("web:8080", "/two").await.status, 200);
    // As real proxies were seen to write them: port alone, and the protocol of the session.
    assert_eq!(pod.headers(), [b"\x08\xb3\x46\x1a\x02\x0a\x00".to_vec(), b"\x08\xb3\x46\x1a\x02\x12\x00".to_vec()]);
    for arrival in pod.arrivals() {
        assert_eq!(arrival.sni.as_deref(), Some(WEB));
        assert_eq!(arrival.alpn.as_deref(), Some(&b"transport.l5d.io/v1"[..]));
    }
    let versions: Vec<_> = pod.workload.seen().iter().map(|seen| seen.version).collect();
    assert_eq!(versions, [Version::HTTP_11, Version::HTTP_2]);
    assert_eq!(pod.workload.last().field("l5d-client-id"), SHOP);
    let line = world.logged(|line| line["path"] == "/two").await;
    assert_eq!(line["endpoint"], pod.addr.to_string(), "the log names where the connection went");
}

#[tokio::test]
async fn bytes_have_a_header_without_a_protocol() {
    let pod = pod().await;
    let world = world(&pod, ", transport_header: { port: 9 }").await;
    let mut stream = world.shop().opaque("web", 8080).await;
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(listen(&mut stream).await.0, b"GET / HTTP/1.1\r\n\r\n");
    assert_eq!(pod.headers(), [b"\x08\x09".to_vec()]);
}

#[tokio::test]
async fn an_opaque_hint_says_nothing_of_the_protocol() {
    let pod = pod().await;
    let world = world(&pod, ", transport_header: { port: 9011, opaque: true }").await;
    assert_eq!(h1(&world).await.ask("GET /one HTTP/1.1\r\n\r\n").await.status(), 200);
    assert_eq!(world.shop().header_h2("web", 8080).await.get("web:8080", "/two").await.status, 200);
    assert_eq!(pod.headers(), [b"\x08\xb3\x46".to_vec(), b"\x08\xb3\x46".to_vec()]);
}

#[tokio::test]
async fn another_gateway_is_told_the_name_and_its_own_authority() {
    let pod = pod().await;
    let remote = "web.far.svc.cluster.local";
    let more = format!(", transport_header: {{ port: 8080, name: {remote} }}, authority: '{remote}:8080'");
    let world = world(&pod, &more).await;
    assert_eq!(world.shop().header_h2("web", 8080).await.get("web:8080", "/two").await.status, 200);
    let seen = pod.workload.last();
    assert_eq!(seen.uri, format!("http://{remote}:8080/two"));
    assert!(!seen.headers.contains_key("host") && !seen.headers.contains_key("l5d-dst-canonical"), "{seen:?}");
    assert_eq!(h1(&world).await.ask("GET /one HTTP/1.1\r\n\r\n").await.status(), 200);
    let seen = pod.workload.last();
    assert_eq!((seen.uri.as_str(), seen.field("host").as_str()), ("/one", "web.far.svc.cluster.local:8080"));
    let named = [b"\x08\x90\x3f\x12\x19", remote.as_bytes()].concat();
    assert_eq!(pod.headers(), [[&named[..], b"\x1a\x02\x12\x00"].concat(), [&named[..], b"\x1a\x02\x0a\x00"].concat()]);
    // The mark of the way it came is there for the next gateway to see the circle.
    assert!(seen.field("forwarded").starts_with("by="), "{seen:?}");
}

const WEST: &str = "gw.west.serviceaccount.identity.linkerd.cluster.local";

/// Gives a running gateway the service `web:8080` behind another one.
fn publish(world: &World, behind: &World, identity: &str) {
    let endpoint = Endpoint {
        orig_proto: true,
        tls: Some(Arc::new(UpstreamTls {
            identity: Identity::parse(identity).unwrap(),
            server_name: identity.parse().unwrap(),
        })),
        tunnel: Some(Arc::new(Tunnel {
            port: 8080,
            name: Some("web.ns.svc.cluster.local".parse().unwrap()),
            opaque: false,
        })),
        authority: Some(Arc::new(target("web", 8080))),
        ..Endpoint::new(behind.addrs.gateway)
    };
    let endpoints = Arc::new(Endpoints { list: vec![endpoint] });
    world.app().directory.replace(Claim(0), vec![Published { target: target("web", 8080), exported: true, endpoints }]);
}

#[tokio::test]
async fn one_gateway_behind_another_and_the_circle_that_two_can_make() {
    let web = upstream::http().await;
    let east = Setup::new().service("web", 8080, "as_client", &[web.addr]).start().await;
    let west = Setup::new().gateway(pair(&Pki::get().west, &[WEST])).start().await;
    publish(&west, &east, GATEWAY);
    let pki = Pki::get();
    let shop = Peer::new(&pki.anchor.cert_pem(), Some(&pki.shop), WEST, west.addrs.gateway);
    assert_eq!(shop.header_h2("web", 8080).await.get("web:8080", "/two").await.status, 200);
    assert_eq!((web.last().version, web.last().uri), (Version::HTTP_2, format!("http://{HOST}/two")));
    assert_eq!(shop.header_h1("web", 8080).await.ask("GET /one HTTP/1.1\r\n\r\n").await.status(), 200);
    let seen = web.last();
    assert_eq!((seen.version, seen.field("host").as_str()), (Version::HTTP_11, HOST));
    assert_eq!(seen.all("l5d-client-id"), [WEST], "the client is who knocked at this door");
    let came_by = [format!("by={WEST}"), format!("by={GATEWAY};for={WEST};host={HOST};proto=https")];
    assert_eq!(seen.all("forwarded"), came_by);
    let mut opaque = shop.opaque("web", 8080).await;
    opaque.write_all(b"GET /bytes HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    assert!(listen(&mut opaque).await.0.starts_with(b"HTTP/1.1 200"));
    // And back again: the first one sees that the request has been there.
    publish(&east, &west, WEST);
    for _ in 0..2 {
        let answer = shop.header_h2("web", 8080).await.get("web:8080", "/round").await;
        assert_eq!((answer.status, answer.field("l5d-proxy-error")), (508, ""), "an endpoint's note does not pass");
        assert_eq!(shop.header_h1("web", 8080).await.ask("GET /round HTTP/1.1\r\n\r\n").await.status(), 508);
    }
    west.refused("route.loop").await;
}

#[tokio::test]
async fn who_selects_no_header_gets_the_session_as_it_is() {
    let pod = proxy(&pair(&Pki::get().east, &[WEB]), &[]).await;
    let world = world(&pod, ", transport_header: { port: 9011 }").await;
    assert_eq!(h1(&world).await.ask("GET /one HTTP/1.1\r\n\r\n").await.status(), 200);
    assert_eq!((pod.headers().len(), pod.arrivals().len()), (0, 1));
}

#[tokio::test]
async fn any_name_of_the_certificate_may_be_the_identity_and_the_server_name_is_another_thing() {
    const SPIFFE: &str = "spiffe://east.example/ns/prod/sa/web";
    // The identity is the third name; the server name is none of them.
    let own = pair(&Pki::get().east, &["other.ns.example", "x.example", SPIFFE]);
    let pod = meshed(&own).await;
    let tls = ", tls: { identity: 'spiffe://east.example/ns/prod/sa/web', server_name: web.pods.example }";
    let more = format!("{tls}, transport_header: {{ port: 9011 }}");
    let world = Setup::new().service_with("web", 8080, "as_client", &[pod.addr], &more).start().await;
    assert_eq!(h1(&world).await.ask("GET / HTTP/1.1\r\n\r\n").await.status(), 200);
    assert_eq!(pod.arrivals()[0].sni.as_deref(), Some("web.pods.example"));
    // A certificate that has the server name and not the identity is somebody else's.
    let wrong = meshed(&pair(&Pki::get().east, &["web.pods.example"])).await;
    let world = Setup::new().service_with("web", 8080, "as_client", &[wrong.addr], &more).start().await;
    assert_eq!(h1(&world).await.ask("GET / HTTP/1.1\r\n\r\n").await.status(), 502);
    assert!(wrong.headers().is_empty(), "not a byte of the session is for it");
}

#[tokio::test]
async fn ports_behind_one_proxy_share_no_connection() {
    let pod = pod().await;
    let with = |port: u16| format!(", tls: {{ identity: {WEB} }}, transport_header: {{ port: {port} }}");
    let setup = Setup::new().service_with("one", 80, "as_client", &[pod.addr], &with(9011));
    let world = setup.service_with("two", 80, "as_client", &[pod.addr], &with(9012)).start().await;
    let (one, two) = (world.shop().header_h2("one", 80).await, world.shop().header_h2("two", 80).await);
    for _ in 0..3 {
        assert_eq!(one.get("one", "/").await.status, 200);
        assert_eq!(two.get("two", "/").await.status, 200);
    }
    assert_eq!(pod.headers(), [b"\x08\xb3\x46\x1a\x02\x12\x00".to_vec(), b"\x08\xb4\x46\x1a\x02\x12\x00".to_vec()]);
}

#[tokio::test]
async fn http1_is_carried_over_one_http2_connection() {
    let pod = pod().await;
    let world = world(&pod, ", transport_header: { port: 9011 }, orig_proto: true").await;
    let mut http = h1(&world).await;
    let post =
        "POST /p?q=1 HTTP/1.1\r\nx-kept: 1\r\nte: trailers\r\ntransfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n";
    let answer = http.ask(post).await;
    assert_eq!((answer.status(), answer.text().as_str()), (200, "hello, 4 bytes\n"));
    assert!(!answer.has("l5d-orig-proto"), "the mark is of the hop behind: {answer:?}");
    let seen = pod.workload.last();
    assert_eq!((seen.version, seen.field("l5d-orig-proto").as_str()), (Version::HTTP_2, "HTTP/1.1"));
    assert_eq!((seen.uri.as_str(), seen.field("host").as_str()), ("http://web.ns.svc.cluster.local:8080/p?q=1", HOST));
    assert_eq!((seen.field("x-kept").as_str(), seen.field("te").as_str()), ("1", "trailers"));
    assert!(!seen.headers.contains_key("transfer-encoding"), "{seen:?}");

    // HTTP/1.0, and the absolute form, which the application behind gets back.
    let mut old = h1(&world).await;
    assert_eq!(old.ask("GET /x HTTP/1.0\r\n\r\n").await.status(), 200);
    assert_eq!(pod.workload.last().field("l5d-orig-proto"), "HTTP/1.0");
    let absolute = format!("GET http://{HOST}/abs HTTP/1.1\r\nhost: {HOST}\r\n\r\n");
    assert_eq!(http.ask(&absolute).await.status(), 200);
    let seen = pod.workload.last();
    assert_eq!(seen.field("l5d-orig-proto"), "HTTP/1.1; absolute-form");
    assert_eq!(seen.uri, format!("http://{HOST}/abs"));

    // HTTP/2 is none of this, and all of it went over one connection.
    let answer = world.shop().header_h2("web", 8080).await.get("web:8080", "/native").await;
    assert_eq!(answer.status, 200);
    assert!(!pod.workload.last().headers.contains_key("l5d-orig-proto"));
    assert_eq!(pod.headers(), [b"\x08\xb3\x46\x1a\x02\x12\x00".to_vec()]);
}

#[tokio::test]
async fn a_request_that_came_carried_goes_on_carried_and_its_answer_is_marked_as_the_endpoint_marked_it() {
    let pod = pod().await;
    let world = world(&pod, ", transport_header: { port: 9011 }, orig_proto: true").await;
    let h2 = world.shop().header_h2("web", 8080).await;
    for (path, mark, version) in [
        ("/x", "HTTP/1.1", "HTTP/1.1"),
        ("/x", "HTTP/1.0", "HTTP/1.1"),
        ("/old", "HTTP/1.1", "HTTP/1.0"),
        ("/x", "HTTP/1.1; absolute-form", "HTTP/1.1"),
    ] {
        let answer = h2.ask(h2_request("GET", "web:8080", path).header("l5d-orig-proto", mark).body(empty()).unwrap());
        let answer = answer.await;
        assert_eq!((answer.status, answer.field("l5d-orig-proto")), (200, version), "{path} {mark}");
        let seen = pod.workload.last();
        assert_eq!((seen.field("l5d-orig-proto").as_str(), seen.field("host").as_str()), (mark, HOST));
        assert_eq!(seen.uri, format!("http://{HOST}{path}"));
    }
    // An application's own mark on real HTTP/1 is not believed.
    let forged = "GET /x HTTP/1.1\r\nl5d-orig-proto: HTTP/1.0; absolute-form\r\n\r\n";
    assert_eq!(h1(&world).await.ask(forged).await.status(), 200);
    assert_eq!(pod.workload.last().field("l5d-orig-proto"), "HTTP/1.1");
}

#[tokio::test]
async fn what_leaves_http_has_an_http1_session_of_its_own() {
    let pod = pod().await;
    let world = world(&pod, ", transport_header: { port: 9011 }, orig_proto: true").await;
    let mut http = h1(&world).await;
    // As a source sends it: no host, and `Upgrade` with a capital.
    http.send(format!(
        "GET /ws HTTP/1.1\r\nupgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-version: 13\r\nsec-websocket-key: {KEY}\r\n\r\n"
    ))
    .await;
    let head = http.head().await;
    assert_eq!(
        (head.status(), head.field("sec-websocket-accept")),
        (101, accept_key(KEY.as_bytes()).to_str().unwrap())
    );
    http.send("ahoy").await;
    assert_eq!(http.exactly(4).await, b"ahoy");
    let seen = pod.workload.last();
    assert_eq!((seen.version, seen.field("host").as_str()), (Version::HTTP_11, HOST));
    assert_eq!(pod.headers(), [b"\x08\xb3\x46\x1a\x02\x0a\x00".to_vec()]);
    // `h2c` is no upgrade: the request is carried like any other, without what `connection` lists.
    let h2c =
        "GET /x HTTP/1.1\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\nconnection: Upgrade, HTTP2-Settings\r\n\r\n";
    assert_eq!(h1(&world).await.ask(h2c).await.status(), 200);
    let seen = pod.workload.last();
    assert_eq!(seen.field("l5d-orig-proto"), "HTTP/1.1");
    assert!(!seen.headers.contains_key("http2-settings") && !seen.headers.contains_key("upgrade"), "{seen:?}");
}

#[tokio::test]
async fn http2_is_spoken_as_the_endpoint_wants_it() {
    let (told, mut tells) = tokio::sync::mpsc::unbounded_channel();
    let addr = upstream::tcp(move |mut socket, _| {
        let told = told.clone();
        async move {
            let mut preface = [0; 24];
            socket.read_exact(&mut preface).await.unwrap();
            let mut frames = Frames(socket);
            frames.send(SETTINGS, 0, 0, &[]).await;
            while let Some(frame) = frames.next().await {
                frames.acknowledge(&frame).await;
                if frame.kind == 1 {
                    frames.send(1, 0x5, frame.stream, &[0x88]).await; // 200, END_STREAM
                }
                if told.send(frame).is_err() {
                    return;
                }
            }
        }
    })
    .await;
    let http2 = ", http2: { stream_window: 64KiB, connection_window: 512KiB, max_frame: 32KiB, keepalive_interval: 50ms, \
                 keepalive_timeout: 5s, keepalive_while_idle: true }";
    let world = Setup::new().service_with("web", 80, "http2", &[addr], http2).start().await;
    assert_eq!(world.shop().h2().await.get("web", "/").await.status, 200);
    let mut settings = Vec::new();
    let mut window = 0;
    // A PING with nothing under way: the last request has long been answered.
    let mut answered = false;
    loop {
        let frame = soon(tells.recv()).await.unwrap();
        match frame.kind {
            SETTINGS if frame.flags & 1 == 0 => settings = frame.payload,
            8 if frame.stream == 0 => window = u32::from_be_bytes(frame.payload.try_into().unwrap()),
            1 => answered = true,
            PING if answered => break,
            _ => {}
        }
    }
    let has = |id: u16, value: u32| {
        let entry = [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
        settings.chunks(6).any(|found| found == entry)
    };
    assert!(has(4, 64 * 1024), "SETTINGS_INITIAL_WINDOW_SIZE: {settings:?}");
    assert!(has(5, 32 * 1024), "SETTINGS_MAX_FRAME_SIZE: {settings:?}");
    assert_eq!(window, 512 * 1024 - 65_535);
}

#[tokio::test]
async fn an_identity_that_the_client_requires_is_the_endpoints_or_nobodys() {
    let pod = pod().await;
    let world = world(&pod, ", transport_header: { port: 9011 }").await;
    let h2 = world.shop().header_h2("web", 8080).await;
    let with = |id: &str| h2_request("GET", "web:8080", "/").header("l5d-require-id", id).body(empty()).unwrap();
    assert_eq!(h2.ask(with(WEB)).await.status, 200);
    assert!(!pod.workload.last().headers.contains_key("l5d-require-id"));
    let answer = h2.ask(with("other.ns.serviceaccount.identity.linkerd.cluster.local")).await;
    assert_eq!((answer.status, answer.field("l5d-proxy-error")), (500, "unexpected error"));
    world.refused("connect.require_id").await;
    assert_eq!(pod.workload.seen().len(), 1);
}

/// An HTTP/2 endpoint that resets every stream: at once, or after the first bytes of its answer.
async fn resetting(reason: h2::Reason, late: bool) -> std::net::SocketAddr {
    upstream::tcp(move |socket, _| async move {
        let mut connection: h2::server::Connection<_, Bytes> = h2::server::handshake(socket).await.unwrap();
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            if !late {
                respond.send_reset(reason);
                continue;
            }
            let head = http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
            let mut body = respond.send_response(head, false).unwrap();
            body.send_data(Bytes::from_static(b"part"), false).unwrap();
            drop(spawn(async move {
                tokio::time::sleep(Duration::from_millis(50)).await;
                body.send_reset(reason);
            }));
        }
    })
    .await
}

fn reason(error: &hyper::Error) -> Option<h2::Reason> {
    let mut next = std::error::Error::source(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<h2::Error>() {
            return found.reason();
        }
        next = error.source();
    }
    None
}

#[tokio::test]
async fn a_stream_is_reset_as_the_endpoint_reset_it() {
    for code in [h2::Reason::CANCEL, h2::Reason::ENHANCE_YOUR_CALM, h2::Reason::REFUSED_STREAM] {
        let addr = resetting(code, false).await;
        let more = ", orig_proto: true";
        let world = Setup::new().service_with("web", 80, "as_client", &[addr], more).start().await;
        let h2 = world.shop().header_h2("web", 80).await;
        let error = h2.send(h2_request("GET", "web", "/").body(empty()).unwrap()).await.expect_err("a reset");
        assert_eq!(reason(&error), Some(code));
        // A request that was only carried over HTTP/2 has no stream of its own to be reset.
        let carried = h2_request("GET", "web", "/").header("l5d-orig-proto", "HTTP/1.1").body(empty()).unwrap();
        assert_eq!(h2.ask(carried).await.status, 502);
        assert_eq!(world.shop().header_h1("web", 80).await.ask("GET / HTTP/1.1\r\n\r\n").await.status(), 502);
        assert!(!h2.is_closed(), "the session lives on");
    }
}

#[tokio::test]
async fn a_grpc_answer_that_breaks_off_ends_in_trailers() {
    let addr = resetting(h2::Reason::INTERNAL_ERROR, true).await;
    let world = Setup::new().service("web", 80, "http2", &[addr]).start().await;
    let h2 = world.shop().header_h2("web", 80).await;
    let call = h2_request("POST", "web", "/svc/Call").header("content-type", "application/grpc");
    let answer = h2.ask(call.body(full("x")).unwrap()).await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "part"));
    assert_eq!(answer.trailers["grpc-status"], "13");
    assert_eq!(answer.trailers["grpc-message"], "the service closed the connection");
    // Plain HTTP has no such words: its stream is reset.
    let response = h2.send(h2_request("GET", "web", "/").body(empty()).unwrap()).await.unwrap();
    assert!(soon(http_body_util::BodyExt::collect(response.into_body())).await.is_err());
    let line = world.logged(|line| line["path"] == "/svc/Call").await;
    assert_eq!((&line["code"], &line["grpc_status"]), (&"relay.upstream_reset".into(), &13.into()), "{line}");
}

#[tokio::test]
async fn a_proxy_that_never_finishes_its_handshake_is_given_up_in_time() {
    let addr = upstream::tcp(|mut socket, _| async move {
        let mut hello = [0; 4096];
        while socket.read(&mut hello).await.is_ok_and(|read| read > 0) {}
    })
    .await;
    let more = format!(", tls: {{ identity: {WEB} }}, transport_header: {{ port: 9011 }}");
    let setup = Setup::new().service_with("web", 8080, "as_client", &[addr], &more).set("connect", "timeout", "200ms");
    let world = setup.set("http", "max_retries", "0").start().await;
    let answer = h1(&world).await.ask("GET / HTTP/1.1\r\n\r\n").await;
    assert_eq!((answer.status(), answer.field("l5d-proxy-error")), (504, "connect timed out"));
    let mut stream = world.shop().opaque("web", 8080).await;
    assert_eq!(listen(&mut stream).await.0, b"");
}
