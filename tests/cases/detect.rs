//! `detect`: every way a session can say what it is and whom it means. (Linkerd wire document §2.)

use bytes::BytesMut;
use http::Version;
use isthmus::tls::{ALPN_H2, ALPN_HTTP11, ALPN_TRANSPORT_HEADER};
use isthmus::wire::transport_header::Protocol;
use isthmus_tests::h2raw::{Frames, HEADERS, PING, SETTINGS};
use isthmus_tests::peer::{H2, Tls, empty, h2_request, header, listen, whole};
use isthmus_tests::pki::GATEWAY;
use isthmus_tests::soon;
use isthmus_tests::upstream::{self, Upstream};
use isthmus_tests::wire::Http1;
use isthmus_tests::world::{Setup, World};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// An HTTP service `web:8080` and a TCP echo `db:5432`.
async fn world() -> (World, Upstream) {
    let (web, db) = (upstream::http().await, upstream::echo_tcp().await);
    let setup = Setup::new().service("web", 8080, "as_client", &[web.addr]).service("db", 5432, "opaque", &[db]);
    (setup.set("detect", "timeout", "400ms").set("detect", "sni_routing", "true").start().await, web)
}

/// A session that begins with these bytes, all in one record.
async fn begin(world: &World, bytes: &[u8]) -> Tls {
    let mut stream = world.shop().connect(&[ALPN_TRANSPORT_HEADER]).await;
    stream.write_all(bytes).await.unwrap();
    stream
}

#[tokio::test]
async fn session_bytes_may_share_a_record_with_the_header() {
    let (world, _) = world().await;
    let mut first = BytesMut::from(&header("db", 5432, None)[..]);
    first.extend_from_slice(b"ahoy");
    let mut stream = begin(&world, &first).await;
    let mut back = [0; 4];
    soon(stream.read_exact(&mut back)).await.unwrap();
    assert_eq!(&back, b"ahoy");

    let mut first = BytesMut::from(&header("web", 8080, Some(Protocol::Http1))[..]);
    first.extend_from_slice(b"GET / HTTP/1.1\r\n\r\n");
    let mut stream = Http1::new(begin(&world, &first).await);
    assert_eq!(stream.response(false).await.status(), 200, "and no host at all is normal here");
}

#[tokio::test]
async fn a_header_may_come_byte_by_byte() {
    let (world, _) = world().await;
    let mut stream = world.shop().connect(&[ALPN_TRANSPORT_HEADER]).await;
    for byte in header("db", 5432, None).iter().chain(b"ahoy") {
        stream.write_all(&[*byte]).await.unwrap();
    }
    let mut back = [0; 4];
    soon(stream.read_exact(&mut back)).await.unwrap();
    assert_eq!(&back, b"ahoy");
}

#[tokio::test]
async fn names_and_protocols_of_the_header() {
    let (world, web) = world().await;
    let shop = world.shop();
    // A name and no protocol: bytes, although they look like HTTP.
    let mut stream = shop.opaque("db", 5432).await;
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(listen(&mut stream).await.0, b"GET / HTTP/1.1\r\n\r\n");
    let line = world.logged(|line| line["protocol"] == "opaque" && line["outcome"] == "served").await;
    assert_eq!((&line["target"], &line["bytes_received"]), (&"db.ns.svc.cluster.local:5432".into(), &18.into()));

    // A name and HTTP/1, a name and HTTP/2: what the request says of its host does not decide.
    let answer =
        shop.header_h1("web", 8080).await.ask("GET /one HTTP/1.1\r\nhost: other.ns.svc.cluster.local\r\n\r\n").await;
    assert_eq!(answer.status(), 200);
    assert_eq!(web.last().field("host"), "web.ns.svc.cluster.local:8080");
    let answer = shop.header_h2("web", 8080).await.get("other:1", "/two").await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        (web.last().version, web.last().field("l5d-dst-canonical")),
        (Version::HTTP_2, "web.ns.svc.cluster.local:8080".to_owned())
    );
    let line = world.logged(|line| line["path"] == "/two").await;
    assert_eq!((&line["protocol"], &line["target"]), (&"http/2".into(), &"web.ns.svc.cluster.local:8080".into()));
}

#[tokio::test]
async fn a_port_alone_is_the_probe_or_nothing() {
    let (world, _) = world().await;
    let shop = world.shop();
    let port = world.addrs.probe.port();
    for protocol in [None, Some(Protocol::Http1)] {
        let mut http = Http1::new(shop.header("", port, protocol).await);
        assert_eq!(http.ask("GET /ready HTTP/1.0\r\n\r\n").await.status(), 200);
    }
    let h2 = H2::new(shop.header("", port, Some(Protocol::Http2)).await).await;
    assert_eq!(h2.get("x:1", "/health").await.status, 200);
    let others = [world.addrs.gateway.port(), world.addrs.admin.port(), 22, 65535];
    for port in others {
        for protocol in [None, Some(Protocol::Http1), Some(Protocol::Http2)] {
            let mut stream = shop.header("", port, protocol).await;
            assert_eq!(listen(&mut stream).await.0, b"", "port {port}");
        }
    }
    world.refused("detect.header_port").await;
    world.counted("isthmus_refusals_total", &[("code", "detect.header_port")], 12.0).await;
}

#[tokio::test]
async fn malformed_headers_are_closed_without_a_byte() {
    let (world, _) = world().await;
    let with = |length: u32, proto: &[u8]| {
        let mut bytes = b"transport.l5d.io/v1\r\n\r\n".to_vec();
        bytes.extend(length.to_be_bytes());
        bytes.extend(proto);
        bytes
    };
    let table: [(&str, Vec<u8>); 7] = [
        ("detect.header_magic", b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec()),
        ("detect.header_length", with(65_537, b"")),
        ("detect.header_port", with(2, &[8, 0])),
        ("detect.header_port", with(0, b"")),
        ("detect.header_name", with(6, &[8, 80, 0x12, 2, b'!', b'!'])),
        ("detect.header_proto", with(3, &[0xff, 0xff, 0xff])),
        ("detect.timeout", b"transport.l5d.io/v1\r\n".to_vec()),
    ];
    for (code, bytes) in table {
        let mut stream = begin(&world, &bytes).await;
        assert_eq!(listen(&mut stream).await.0, b"", "{code}");
        world.refused(code).await;
    }
    let mut stream = begin(&world, b"transport").await;
    stream.shutdown().await.unwrap();
    assert_eq!(listen(&mut stream).await.0, b"");
    world.refused("detect.eof").await;
}

#[tokio::test]
async fn without_alpn_the_first_bytes_tell() {
    let (world, web) = world().await;
    let shop = world.shop();
    let mut http = Http1::new(shop.connect(&[]).await);
    assert_eq!(http.ask("GET /a HTTP/1.1\r\nhost: web.ns.svc.cluster.local:8080\r\n\r\n").await.status(), 200);
    let h2 = H2::new(shop.connect(&[]).await).await;
    assert_eq!(h2.get("web:8080", "/b").await.status, 200);
    let versions: Vec<_> = web.seen().iter().map(|seen| seen.version).collect();
    assert_eq!(versions, [Version::HTTP_11, Version::HTTP_2]);
    let mut stream = shop.connect(&[]).await;
    stream.write_all(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]).await.unwrap();
    assert_eq!(listen(&mut stream).await.0, b"");
    world.refused("detect.unknown_protocol").await;
    let mut stream = shop.connect(&[]).await;
    assert_eq!(listen(&mut stream).await.0, b"", "silence");
    world.refused("detect.timeout").await;
}

#[tokio::test]
async fn settings_come_before_any_request_and_pings_are_answered() {
    let (world, _) = world().await;
    let shop = world.shop();
    for stream in [shop.connect(&[ALPN_H2]).await, shop.header("web", 8080, Some(Protocol::Http2)).await] {
        let mut frames = Frames(stream);
        let first = frames.next().await.unwrap();
        assert_eq!((first.kind, first.stream), (SETTINGS, 0), "before the client's preface");
        frames.preface().await;
        frames.send(PING, 0, 0, b"12345678").await;
        loop {
            let ping = frames.find(PING).await;
            if ping.flags & 1 == 1 {
                assert_eq!(ping.payload, b"12345678");
                break;
            }
            frames.acknowledge(&ping).await;
        }
        frames.get(1, "web.ns.svc.cluster.local:8080", "/").await;
        assert_eq!(frames.find(HEADERS).await.stream, 1);
    }
}

#[tokio::test]
async fn an_http1_request_on_an_http2_session_ends_it() {
    let (world, _) = world().await;
    let mut stream = Http1::new(world.shop().header("web", 8080, Some(Protocol::Http2)).await);
    stream.send("GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let back = stream.rest().await;
    assert!(back.len() >= 9 && back[3] == SETTINGS && !back.starts_with(b"HTTP"), "SETTINGS, then the end");
    // And the other way round: the HTTP/2 preface on an HTTP/1 session.
    let mut stream = Http1::new(world.shop().header("web", 8080, Some(Protocol::Http1)).await);
    stream.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    let back = stream.rest().await;
    assert!(back.is_empty() || back.starts_with(b"HTTP/1.1 400"), "{}", String::from_utf8_lossy(&back));
}

#[tokio::test]
async fn connect_names_a_tcp_target() {
    let (world, _) = world().await;
    let mut http = Http1::new(world.shop().connect(&[ALPN_HTTP11]).await);
    http.send("CONNECT db.ns.svc.cluster.local:5432 HTTP/1.1\r\nhost: db.ns.svc.cluster.local:5432\r\n\r\nearly").await;
    let head = http.head().await;
    assert_eq!(head.status(), 200, "{head:?}");
    assert!(!head.has("content-length") && !head.has("transfer-encoding"), "{head:?}");
    http.send(" bird").await;
    assert_eq!(http.exactly(10).await, b"early bird");
    soon(http.stream.shutdown()).await.unwrap();
    assert_eq!(http.rest().await, b"");

    let h2 = world.shop().h2().await;
    let request =
        http::Request::builder().method("CONNECT").version(Version::HTTP_2).uri("db.ns.svc.cluster.local:5432");
    let response = h2.send(request.body(empty()).unwrap()).await.unwrap();
    assert_eq!(response.status(), 200);
    let upgraded = soon(hyper::upgrade::on(response)).await.unwrap();
    let mut stream = hyper_util::rt::TokioIo::new(upgraded);
    stream.write_all(b"ahoy").await.unwrap();
    let mut back = [0; 4];
    soon(stream.read_exact(&mut back)).await.unwrap();
    assert_eq!(&back, b"ahoy");
    stream.shutdown().await.unwrap();
    drop(stream);
    world.logged(|line| line["method"] == "CONNECT" && line["status"] == 200).await;
    let line = world
        .logged(|line| line["protocol"] == "opaque" && line["kind"] == "connection" && line["bytes_received"] == 10)
        .await;
    assert_eq!((&line["target"], &line["outcome"]), (&"db.ns.svc.cluster.local:5432".into(), &"served".into()));
}

#[tokio::test]
async fn sni_names_a_service_where_that_is_on() {
    let (world, _) = world().await;
    let mut stream = world.shop().try_connect("_5432._tcp.db.ns.svc.cluster.local", &[]).await.unwrap();
    stream.write_all(b"ahoy").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(listen(&mut stream).await.0, b"ahoy");
    let line = world.logged(|line| line["sni"] == "_5432._tcp.db.ns.svc.cluster.local").await;
    assert_eq!((&line["target"], &line["bytes_sent"]), (&"db.ns.svc.cluster.local:5432".into(), &4.into()));
    // Off: the name is a foreign one.
    let off = Setup::new().start().await;
    assert!(off.shop().try_connect("db.ns.svc.cluster.local", &[]).await.is_err());
    off.refused("tls.foreign_sni").await;
}

#[tokio::test]
async fn a_server_speaks_first_behind_any_opaque_session() {
    let greets = upstream::tcp(|mut socket, _| async move {
        let _ = socket.write_all(b"220 ready\r\n").await;
        let mut rest = Vec::new();
        let _ = socket.read_to_end(&mut rest).await;
    });
    let greets = greets.await;
    let world =
        Setup::new().service("mail", 25, "opaque", &[greets]).set("detect", "sni_routing", "true").start().await;
    let shop = world.shop();
    let by_sni = shop.try_connect("_25._tcp.mail.ns.svc.cluster.local", &[]).await.unwrap();
    for mut stream in [shop.opaque("mail", 25).await, by_sni] {
        let mut greeting = [0; 11];
        soon(stream.read_exact(&mut greeting)).await.unwrap();
        assert_eq!(&greeting, b"220 ready\r\n");
    }
}

#[tokio::test]
async fn requests_on_one_connection_may_name_different_services() {
    let (one, two) = (upstream::http().await, upstream::http().await);
    let world =
        Setup::new().service("one", 80, "http1", &[one.addr]).service("two", 80, "http2", &[two.addr]).start().await;
    let h2 = world.shop().try_connect(GATEWAY, &[ALPN_H2]).await.unwrap();
    let h2 = H2::new(h2).await;
    for name in ["one", "two", "one"] {
        let response = h2.send(h2_request("GET", name, "/").body(empty()).unwrap()).await.unwrap();
        assert_eq!(whole(response).await.status, 200);
    }
    assert_eq!((one.seen().len(), two.seen().len()), (2, 1));
}
