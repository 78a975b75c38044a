//! HTTP through the gateway: every version to every version, what is passed on and what is not, and what is refused.
//! (RFC 9110, RFC 9112, RFC 9113, RFC 8441; Linkerd wire document §3 and §4.)

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Version};
use hyper_util::rt::TokioIo;
use isthmus_tests::peer::{H2, channel, empty, full, h2_request, whole};
use isthmus_tests::pki::SHOP;
use isthmus_tests::upstream::{self, Upstream, accept_key};
use isthmus_tests::wire::Http1;
use isthmus_tests::world::{Setup, World};
use isthmus_tests::{soon, spawn, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// `web` speaks what the client speaks, `one` HTTP/1, `two` HTTP/2; all three are the same service.
async fn world() -> (World, Upstream) {
    let web = upstream::http().await;
    let setup = Setup::new().service("web", 80, "as_client", &[web.addr]);
    let setup = setup.service("one", 80, "http1", &[web.addr]).service("two", 80, "http2", &[web.addr]);
    (setup.service("raw", 80, "opaque", &[web.addr]).start().await, web)
}

/// A gateway in front of one HTTP/1 service of fixed words.
async fn in_front_of(script: &'static str) -> (World, std::sync::Arc<parking_lot::Mutex<Vec<String>>>) {
    let (addr, heads) = upstream::scripted(script).await;
    (Setup::new().service("web", 80, "http1", &[addr]).start().await, heads)
}

#[tokio::test]
async fn every_version_reaches_every_version() {
    let (world, web) = world().await;
    let mut http = world.shop().h1().await;
    let h2 = world.shop().h2().await;
    for (service, from_h1, from_h2) in [
        ("web", Version::HTTP_11, Version::HTTP_2),
        ("one", Version::HTTP_11, Version::HTTP_11),
        ("two", Version::HTTP_2, Version::HTTP_2),
    ] {
        let host = format!("{service}.ns.svc.cluster.local");
        let answer = http.ask(&format!("POST /p?q=1 HTTP/1.1\r\nhost: {host}\r\ncontent-length: 4\r\n\r\nbody")).await;
        assert_eq!((answer.status(), answer.text().as_str()), (200, "hello, 4 bytes\n"), "{service}");
        assert!(answer.has("date") && answer.line.starts_with("HTTP/1.1"), "{answer:?}");
        let seen = web.last();
        assert_eq!(
            (seen.version, seen.method.clone(), seen.field("l5d-client-id")),
            (from_h1, Method::POST, SHOP.to_owned())
        );
        let answer = h2.ask(h2_request("POST", service, "/p?q=2").body(full("body")).unwrap()).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "hello, 4 bytes\n"), "{service}");
        let seen = web.last();
        assert_eq!(seen.version, from_h2, "{service}");
        assert!(seen.uri.ends_with("/p?q=2"), "{}", seen.uri);
        if from_h2 == Version::HTTP_2 {
            assert!(seen.uri.starts_with(&format!("http://{host}/")), "{}", seen.uri);
        } else {
            assert_eq!(seen.field("host"), host);
        }
        let labels = [("service", format!("{host}:80"))];
        let labels: Vec<_> = labels.iter().map(|(name, value)| (*name, value.as_str())).collect();
        world.counted("isthmus_relay_requests_total", &labels, 2.0).await;
    }
    let line = world.logged(|line| line["method"] == "POST" && line["protocol"] == "http/2").await;
    assert_eq!(
        (&line["path"], &line["status"], &line["bytes_received"], &line["bytes_sent"]),
        (&"/p".into(), &200.into(), &4.into(), &15.into()),
        "{line}"
    );
    assert_eq!((&line["outcome"], &line["client_identity"]), (&"served".into(), &SHOP.into()));
}

#[tokio::test]
async fn http10_gets_its_answer_and_the_end() {
    let (world, web) = world().await;
    for service in ["web", "two"] {
        let mut http = world.shop().h1().await;
        http.send(format!("GET /old HTTP/1.0\r\nhost: {service}.ns.svc.cluster.local\r\n\r\n")).await;
        let answer = http.response(false).await;
        assert_eq!((answer.status(), answer.text().as_str()), (200, "hello, 0 bytes\n"));
        assert_eq!(http.rest().await, b"");
    }
    let mut http = world.shop().h1().await;
    http.send("GET /trailers HTTP/1.0\r\nhost: web.ns.svc.cluster.local\r\n\r\n").await;
    let answer = http.response(false).await;
    assert_eq!(answer.text(), "part");
    assert!(!answer.has("transfer-encoding"), "HTTP/1.0 knows no chunks: {answer:?}");
    assert_eq!(web.seen().len(), 3);
}

#[tokio::test]
async fn answers_without_a_body() {
    let (world, _) = world().await;
    let mut http = world.shop().h1().await;
    let h2 = world.shop().h2().await;
    for service in ["web", "one", "two"] {
        let host = format!("{service}.ns.svc.cluster.local");
        let answer = http.ask(&format!("HEAD / HTTP/1.1\r\nhost: {host}\r\n\r\n")).await;
        assert_eq!((answer.status(), answer.field("content-length")), (200, "15"), "{service}");
        let answer = h2.ask(h2_request("HEAD", service, "/").body(empty()).unwrap()).await;
        assert_eq!((answer.status, answer.field("content-length"), answer.body.len()), (200, "15", 0), "{service}");
        for status in [204, 304] {
            let answer = http.ask(&format!("GET /status/{status} HTTP/1.1\r\nhost: {host}\r\n\r\n")).await;
            assert_eq!(answer.status(), status);
            assert!(!answer.has("transfer-encoding"), "{service} {answer:?}");
            assert_eq!(h2.get(service, &format!("/status/{status}")).await.status, status);
        }
        // The connection is still in step.
        assert_eq!(http.get(service, "/").await.text(), "hello, 0 bytes\n");
    }
}

#[tokio::test]
async fn trailers_pass_both_ways_between_all_versions() {
    let (world, _) = world().await;
    let mut http = world.shop().h1().await;
    let h2 = world.shop().h2().await;
    for service in ["web", "one", "two"] {
        let host = format!("{service}.ns.svc.cluster.local");
        let answer = http.ask(&format!("GET /trailers HTTP/1.1\r\nhost: {host}\r\nte: trailers\r\n\r\n")).await;
        assert_eq!(answer.text(), "part");
        assert_eq!(answer.trailers, [("x-sum".to_owned(), "42".to_owned())], "h1 to {service}");
        let answer =
            h2.ask(h2_request("GET", service, "/trailers").header("te", "trailers").body(empty()).unwrap()).await;
        assert_eq!(
            (answer.text().as_str(), answer.trailers.get("x-sum").unwrap().as_bytes()),
            ("part", b"42".as_slice()),
            "h2 to {service}"
        );
        let chunks = "4\r\nabcd\r\n2;ext=1\r\nef\r\n0\r\nx-end: yes\r\n\r\n";
        let request = format!(
            "POST /echo HTTP/1.1\r\nhost: {host}\r\nte: trailers\r\ntrailer: x-end\r\ntransfer-encoding: chunked\r\n\r\n{chunks}"
        );
        let answer = http.ask(&request).await;
        assert_eq!(answer.text(), "abcdef", "h1 to {service}");
    }
}

#[tokio::test]
async fn grpc_calls_have_status_in_trailers_and_stream_both_ways() {
    let (world, _) = world().await;
    let h2 = world.shop().header_h2("web", 80).await;
    let (mut sender, body) = channel();
    let request =
        h2_request("POST", "web", "/echo").header("content-type", "application/grpc").header("te", "trailers");
    let response = h2.send(request.body(body).unwrap()).await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/grpc");
    let mut back = response.into_body();
    // Each message comes back before the next is sent: nothing is held.
    for n in 0..5_u8 {
        sender.send_data(Bytes::from(vec![0, 0, 0, 0, 1, n])).await.unwrap();
        let frame = soon(http_body_util::BodyExt::frame(&mut back)).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap()[..], [0, 0, 0, 0, 1, n]);
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    sender.send_trailers(trailers).await.unwrap();
    drop(sender);
    let end = soon(http_body_util::BodyExt::frame(&mut back)).await.unwrap().unwrap();
    assert_eq!(end.into_trailers().unwrap()["grpc-status"], "0");
    let line = world.logged(|line| line["path"] == "/echo").await;
    assert_eq!(
        (&line["grpc_status"], &line["bytes_received"], &line["bytes_sent"]),
        (&0.into(), &30.into(), &30.into())
    );
    world.counted("isthmus_relay_requests_total", &[("grpc_status", "0")], 1.0).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_the_endpoint_back() {
    let (world, web) = world().await;
    for service in ["one", "two"] {
        let before = web.produced();
        let h2 = world.shop().h2().await;
        let response = h2.send(h2_request("GET", service, "/endless").body(empty()).unwrap()).await.unwrap();
        let mut last = usize::MAX;
        // Until it stands still.
        loop {
            tokio::time::sleep(Duration::from_millis(150)).await;
            let produced = web.produced() - before;
            if produced == last {
                break;
            }
            last = produced;
        }
        assert!((1..24 << 20).contains(&last), "{service}: {last} bytes were taken from the endpoint unread");
        drop(response);
        drop(h2);
    }
    let mut http = world.shop().h1().await;
    let before = web.produced();
    http.send("GET /endless HTTP/1.1\r\nhost: one.ns.svc.cluster.local\r\n\r\n").await;
    assert_eq!(http.head().await.status(), 200);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let produced = web.produced() - before;
    assert!(produced < 24 << 20, "{produced}");
}

#[tokio::test]
async fn an_endpoint_that_does_not_read_holds_the_client_back() {
    // It reads the head and then nothing.
    let deaf = upstream::tcp(|mut socket, _| async move {
        upstream::read_head(&mut socket).await;
        tokio::time::sleep(Duration::from_secs(30)).await;
    });
    let world = Setup::new().service("web", 80, "http1", &[deaf.await]).start().await;
    let h2 = world.shop().h2().await;
    let (mut sender, body) = channel();
    let request = h2_request("POST", "web", "/").header("content-type", "application/grpc").body(body).unwrap();
    drop(spawn(async move { h2.send(request).await }));
    let (mut sent, piece) = (0, Bytes::from(vec![7; 64 * 1024]));
    while tokio::time::timeout(Duration::from_millis(400), sender.send_data(piece.clone()))
        .await
        .is_ok_and(|sent| sent.is_ok())
    {
        sent += piece.len();
        assert!(sent < 24 << 20, "{sent} bytes were taken from the client unread");
    }
    assert!(sent > 0);
}

#[tokio::test]
async fn expect_100_continue_is_the_backends_to_answer() {
    let body = [b'x'; 64];
    let request =
        "POST / HTTP/1.1\r\nhost: web.ns.svc.cluster.local\r\nexpect: 100-continue\r\ncontent-length: 64\r\n\r\n";
    // The backend says no before the body: not a byte of it is sent.
    let (world, heads) = in_front_of("HTTP/1.1 417 Expectation Failed\r\ncontent-length: 2\r\n\r\nno").await;
    let mut http = world.shop().h1().await;
    let answer = http.ask(request).await;
    assert_eq!((answer.status(), answer.text().as_str()), (417, "no"), "{answer:?}");
    assert!(heads.lock()[0].contains("expect: 100-continue"), "{:?}", heads.lock());
    // The backend says go on.
    let addr = upstream::tcp(|mut socket, _| async move {
        upstream::read_head(&mut socket).await;
        socket.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
        let mut body = [0; 64];
        socket.read_exact(&mut body).await.unwrap();
        socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
    });
    let world = Setup::new().service("web", 80, "http1", &[addr.await]).start().await;
    let mut http = world.shop().h1().await;
    http.send(request).await;
    assert_eq!(http.head().await.status(), 100);
    http.send(body).await;
    assert_eq!(http.response(false).await.text(), "ok");
}

#[tokio::test]
async fn upgrades_pass_from_http1_to_http1() {
    let (world, web) = world().await;
    let mut http = world.shop().h1().await;
    let request = format!(
        "GET /ws HTTP/1.1\r\nhost: web.ns.svc.cluster.local\r\nconnection: Upgrade, x-mine\r\nx-mine: 1\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: {KEY}\r\n\r\nearly "
    );
    http.send(&request).await;
    let head = http.head().await;
    assert_eq!(head.status(), 101, "{head:?}");
    assert_eq!((head.field("upgrade"), head.field("connection")), ("websocket", "upgrade"));
    assert_eq!(head.field("sec-websocket-accept"), accept_key(KEY.as_bytes()));
    assert!(web.last().field("x-mine").is_empty());
    http.send("bird").await;
    assert_eq!(http.exactly(10).await, b"early bird");
    soon(http.stream.shutdown()).await.unwrap();
    assert_eq!(http.rest().await, b"");
    let line = world.logged(|line| line["protocol"] == "opaque" && line["kind"] == "connection").await;
    assert_eq!(
        (&line["bytes_received"], &line["bytes_sent"], &line["target"]),
        (&10.into(), &10.into(), &"web.ns.svc.cluster.local:80".into())
    );
    world.logged(|line| line["kind"] == "request" && line["status"] == 101).await;
    // A refusal of the backend's is passed on and the connection goes on.
    let mut http = world.shop().h1().await;
    let without_key =
        "GET /ws HTTP/1.1\r\nhost: web.ns.svc.cluster.local\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    assert_eq!(http.ask(without_key).await.status(), 426);
    assert_eq!(http.get("web", "/").await.status(), 200);
    // h2c is no upgrade between us: it is dropped and the request goes on.
    let h2c = "GET / HTTP/1.1\r\nhost: web.ns.svc.cluster.local\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n";
    assert_eq!(http.ask(h2c).await.status(), 200);
    let seen = web.last();
    assert!(
        seen.field("upgrade").is_empty()
            && seen.field("http2-settings").is_empty()
            && seen.field("connection").is_empty()
    );
}

async fn extended_connect(h2: &H2, service: &str) -> TokioIo<hyper::upgrade::Upgraded> {
    let mut request =
        h2_request("CONNECT", service, "/ws").header("sec-websocket-version", "13").body(empty()).unwrap();
    request.extensions_mut().insert(hyper::ext::Protocol::from_static("websocket"));
    let response = h2.send(request).await.unwrap();
    assert_eq!(response.status(), 200, "{service}");
    assert!(!response.headers().contains_key("sec-websocket-accept") && !response.headers().contains_key("upgrade"));
    TokioIo::new(soon(hyper::upgrade::on(response)).await.unwrap())
}

#[tokio::test]
async fn websockets_cross_between_the_versions() {
    let (world, web) = world().await;
    let h2 = world.shop().h2().await;
    soon(h2.get("web", "/")).await; // SETTINGS have come: extended CONNECT is known to be allowed
    for service in ["one", "two"] {
        let mut stream = extended_connect(&h2, service).await;
        stream.write_all(b"over h2").await.unwrap();
        let mut back = [0; 7];
        soon(stream.read_exact(&mut back)).await.unwrap();
        assert_eq!(&back, b"over h2", "{service}");
        stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        soon(stream.read_to_end(&mut rest)).await.unwrap();
        assert!(rest.is_empty());
    }
    let seen: Vec<_> = web.seen().into_iter().filter(|seen| seen.uri.ends_with("/ws")).collect();
    assert_eq!(
        (seen[0].version, seen[0].method.clone(), seen[0].field("upgrade")),
        (Version::HTTP_11, Method::GET, "websocket".to_owned())
    );
    assert!(!seen[0].field("sec-websocket-key").is_empty());
    assert_eq!((seen[1].version, seen[1].method.clone()), (Version::HTTP_2, Method::CONNECT));
    // And from HTTP/1 to HTTP/2: the answer to the client's key is made by the gateway.
    let mut http = world.shop().h1().await;
    http.send(format!("GET /ws HTTP/1.1\r\nhost: two.ns.svc.cluster.local\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: {KEY}\r\n\r\n")).await;
    let head = http.head().await;
    assert_eq!(
        (head.status(), head.field("sec-websocket-accept")),
        (101, accept_key(KEY.as_bytes()).to_str().unwrap()),
        "{head:?}"
    );
    http.send("ahoy").await;
    assert_eq!(http.exactly(4).await, b"ahoy");
}

#[tokio::test]
async fn what_is_for_one_hop_stays_there() {
    let (world, web) = world().await;
    let mut http = world.shop().h1().await;
    let request = "GET /notes HTTP/1.1\r\nhost: web.ns.svc.cluster.local\r\nconnection: keep-alive, x-secret\r\nkeep-alive: timeout=5\r\nproxy-connection: keep-alive\r\nx-secret: 1\r\nte: trailers, gzip\r\nx-kept: yes\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\ntracestate: a=b\r\nx-forwarded-for: 1.2.3.4\r\n\r\n";
    let answer = http.ask(request).await;
    assert_eq!(answer.status(), 200);
    let seen = web.last();
    for name in ["connection", "keep-alive", "proxy-connection", "x-secret"] {
        assert_eq!(seen.field(name), "", "{name}");
    }
    assert_eq!(
        (seen.field("te").as_str(), seen.field("x-kept").as_str(), seen.field("x-forwarded-for").as_str()),
        ("trailers", "yes", "")
    );
    assert_eq!((seen.field("traceparent").is_empty(), seen.field("tracestate").as_str()), (false, "a=b"));
    for name in ["l5d-proxy-error", "l5d-proxy-connection", "keep-alive"] {
        assert!(!answer.has(name), "{answer:?}");
    }
    assert_eq!(answer.field("x-kept"), "yes");
    let line = world.logged(|line| line["path"] == "/notes").await;
    assert!(line["traceparent"].as_str().unwrap().starts_with("00-0af7651916cd43dd8448eb211c80319c-"), "{line}");
}

#[tokio::test]
async fn http1_messages_carried_over_http2_become_http1_again() {
    let (world, web) = world().await;
    let h2 = world.shop().header_h2("web", 80).await;
    for (mark, back) in [("HTTP/1.1", "HTTP/1.1"), ("HTTP/1.0", "HTTP/1.0"), ("HTTP/1.1; absolute-form", "HTTP/1.1")] {
        let request = h2_request("GET", "web:80", "/carried").header("l5d-orig-proto", mark).body(empty()).unwrap();
        let answer = h2.ask(request).await;
        assert_eq!((answer.status, answer.field("l5d-orig-proto")), (200, back), "{mark}");
        let seen = web.last();
        assert_eq!(
            (seen.version, seen.field("host").as_str(), seen.field("l5d-orig-proto").as_str()),
            (Version::HTTP_11, "web.ns.svc.cluster.local", "")
        );
    }
    let strange = h2_request("GET", "web:80", "/").header("l5d-orig-proto", "HTTP/9").body(empty()).unwrap();
    let answer = h2.ask(strange).await;
    assert_eq!((answer.status, answer.field("l5d-orig-proto"), web.last().version), (200, "", Version::HTTP_2));
    assert_eq!(web.last().field("l5d-orig-proto"), "");
}

#[tokio::test]
async fn smuggling_shapes_are_refused_and_the_connection_closed() {
    let (world, web) = world().await;
    let head = "POST /x HTTP/1.1\r\nhost: one.ns.svc.cluster.local\r\n";
    let inner = "GET /smuggled HTTP/1.1\r\nhost: one.ns.svc.cluster.local\r\n\r\n";
    for (shape, request) in [
        ("length and chunks", format!("{head}content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{inner}")),
        ("chunks and length", format!("{head}transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n{inner}")),
        ("two lengths", format!("{head}content-length: 0\r\ncontent-length: 44\r\n\r\n{inner}")),
        ("two equal lengths", format!("{head}content-length: 0\r\ncontent-length: 0\r\n\r\n{inner}")),
        ("a list of lengths", format!("{head}content-length: 0, 0\r\n\r\n{inner}")),
        ("a signed length", format!("{head}content-length: +0\r\n\r\n{inner}")),
        ("an empty length", format!("{head}content-length: \r\n\r\n{inner}")),
        (
            "two encodings",
            format!("{head}transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{inner}"),
        ),
        ("an unknown encoding", format!("{head}transfer-encoding: xchunked\r\n\r\n0\r\n\r\n{inner}")),
        ("gzip, chunked", format!("{head}transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n{inner}")),
        (
            "chunks in HTTP/1.0",
            format!(
                "POST /x HTTP/1.0\r\nhost: one.ns.svc.cluster.local\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{inner}"
            ),
        ),
        ("a bare line feed", format!("POST /x HTTP/1.1\nhost: one.ns.svc.cluster.local\r\n\r\n{inner}")),
        ("a bare line feed in the fields", format!("{head}x: y\ncontent-length: 0\r\n\r\n{inner}")),
        ("a bare carriage return", format!("{head}x: y\rz\r\n\r\n{inner}")),
        ("a folded line", format!("{head}x: y\r\n z\r\n\r\n{inner}")),
        ("a space before the colon", format!("{head}content-length : 0\r\n\r\n{inner}")),
        ("a control character", format!("{head}x: y\0z\r\n\r\n{inner}")),
        ("two hosts", format!("{head}host: two.ns.svc.cluster.local\r\n\r\n{inner}")),
        ("a chunk size that is none", format!("{head}transfer-encoding: chunked\r\n\r\nzz\r\n\r\n{inner}")),
        ("a huge chunk size", format!("{head}transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n\r\n{inner}")),
        ("a chunk that ends wrongly", format!("{head}transfer-encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n{inner}")),
        (
            "a chunk line with a bare line feed",
            format!("{head}transfer-encoding: chunked\r\n\r\n1\na\r\n0\r\n\r\n{inner}"),
        ),
        (
            "a length among the trailers",
            format!("{head}transfer-encoding: chunked\r\n\r\n0\r\ncontent-length: 5\r\n\r\n{inner}"),
        ),
        ("no version", "GET /x\r\n\r\n".to_owned()),
        ("a version that is none", format!("GET /x HTTP/1.9\r\nhost: one.ns.svc.cluster.local\r\n\r\n{inner}")),
    ] {
        let mut http = world.shop().h1().await;
        http.send(&request).await;
        let back = http.rest().await;
        let back = String::from_utf8_lossy(&back);
        // Where only the body is wrong the endpoint may have been asked already, and its side then fails. In no case is
        // there a second answer.
        let in_body = shape.contains("chunk ") || shape.contains("trailers");
        let refused = back.starts_with("HTTP/1.1 400 ");
        assert!(refused || in_body && (back.is_empty() || back.starts_with("HTTP/1.1 502 ")), "{shape}: {back}");
        assert_eq!(back.matches("HTTP/1.1 ").count(), usize::from(!back.is_empty()), "{shape}: {back}");
    }
    assert!(web.seen().iter().all(|seen| !seen.uri.contains("smuggled")), "{:?}", web.seen());
    world.refused("relay.request_malformed").await;
    assert_eq!(world.shop().h1().await.get("one", "/after").await.status(), 200);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order_and_at_once() {
    let (world, _) = world().await;
    let mut http = world.shop().h1().await;
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: one.ns.svc.cluster.local\r\n\r\n");
    http.send(get("/status/204") + &get("/slow") + &get("/status/404")).await;
    for status in [204, 200, 404] {
        assert_eq!(http.response(false).await.status(), status);
    }
    // Half of the next request does not hold the answer back.
    http.send(get("/status/204") + "GET /").await;
    assert_eq!(http.response(false).await.status(), 204);
    http.send("status/404 HTTP/1.1\r\nhost: one.ns.svc.cluster.local\r\n\r\n").await;
    assert_eq!(http.response(false).await.status(), 404);
}

#[tokio::test]
async fn heads_have_a_limit() {
    let (world, web) = world().await;
    let large = "x".repeat(17 * 1024);
    let mut http = world.shop().h1().await;
    http.send(format!("GET / HTTP/1.1\r\nhost: web.ns.svc.cluster.local\r\nx-large: {large}\r\n\r\n")).await;
    let back = http.rest().await;
    assert!(back.is_empty() || back.starts_with(b"HTTP/1.1 4"), "{}", String::from_utf8_lossy(&back));
    let h2 = world.shop().h2().await;
    let response = h2.send(h2_request("GET", "web", "/").header("x-large", &large).body(empty()).unwrap()).await;
    if let Ok(response) = response {
        assert_eq!(response.status(), 431);
    }
    assert_eq!(h2.get("web", "/").await.status, 200, "the stream is lost, the connection is not");
    let fits = "x".repeat(12 * 1024);
    let answer = world
        .shop()
        .h1()
        .await
        .ask(&format!("GET / HTTP/1.1\r\nhost: web.ns.svc.cluster.local\r\nx-large: {fits}\r\n\r\n"))
        .await;
    assert_eq!(answer.status(), 200);
    assert_eq!(web.seen().len(), 2);
    let mut http = world.shop().h1().await;
    let many: String = (0..120).map(|n| format!("x-{n}: 1\r\n")).collect();
    http.send(format!("GET / HTTP/1.1\r\nhost: web.ns.svc.cluster.local\r\n{many}\r\n")).await;
    let back = http.rest().await;
    assert!(back.is_empty() || back.starts_with(b"HTTP/1.1 4"), "{}", String::from_utf8_lossy(&back));
}

#[tokio::test]
async fn a_slow_head_is_closed() {
    let web = upstream::http().await;
    let world =
        Setup::new().service("web", 80, "http1", &[web.addr]).set("http", "header_timeout", "300ms").start().await;
    let mut http = world.shop().h1().await;
    assert_eq!(http.get("web", "/").await.status(), 200);
    http.send("GET / HTTP/1.1\r\nhost: web.ns").await;
    http.rest().await;
    world.refused("relay.header_timeout").await;
}

#[tokio::test]
async fn what_the_refused_see() {
    let nobody = upstream::nobody();
    let (world, _) = world().await;
    drop(world);
    let web = upstream::http().await;
    let setup = Setup::new().service("dead", 80, "http1", &[nobody]).service("empty", 80, "http1", &[]);
    let setup = setup.service("raw", 80, "opaque", &[web.addr]).set("http", "max_retries", "0");
    let closes = upstream::tcp(|mut socket, _| async move {
        upstream::read_head(&mut socket).await;
    });
    let garbage = upstream::scripted("SSH-2.0-OpenSSH\r\n\r\n").await.0;
    let setup = setup.service("closes", 80, "http1", &[closes.await]).service("garbage", 80, "http1", &[garbage]);
    let setup = setup.service("late", 80, "http1", &[web.addr]).set("http", "request_timeout", "300ms");
    let world = setup.set("balance", "max_connect_failures", "100").start().await;
    let h2 = world.shop().h2().await;
    for (service, path, status, grpc, error, close, code) in [
        ("dead", "/", 502, "14", "connection to the service failed", true, "connect.refused"),
        // The one that waited is told so, the next one is refused at once.
        ("empty", "/", 504, "14", "logical service in fail-fast", true, "balance."),
        ("closes", "/", 502, "14", "", true, "connect."),
        ("garbage", "/", 502, "14", "", true, "connect.protocol"),
        ("raw", "/", 501, "12", "the service does not speak HTTP", false, "relay.opaque_service"),
        ("late", "/hang", 504, "4", "request timed out", true, "relay.request_timeout"),
        ("absent", "/", 404, "5", "bad gateway domain", false, "route.unknown_service"),
    ] {
        let mut http = world.shop().h1().await;
        let answer = http.get(service, path).await;
        assert_eq!(answer.status(), status, "{service}: {answer:?}");
        assert!(answer.field("l5d-proxy-error").contains(error), "{service}: {answer:?}");
        assert_eq!(
            (answer.field("l5d-proxy-connection"), answer.field("content-length")),
            (if close { "close" } else { "" }, "0")
        );
        assert!(!format!("{answer:?}").contains("127.0.0.1"), "no internal address is shown: {answer:?}");
        let request =
            h2_request("POST", service, path).header("content-type", "application/grpc").body(empty()).unwrap();
        let answer = h2.ask(request).await;
        assert_eq!(
            (answer.status, answer.field("grpc-status"), answer.field("content-type")),
            (200, grpc, "application/grpc"),
            "{service}"
        );
        assert_eq!(answer.field("grpc-message"), answer.field("l5d-proxy-error"));
        assert!(!answer.headers.contains_key("connection"));
        let name = format!("{service}.ns.svc.cluster.local:80");
        let line = world.logged(|line| line["target"] == name.as_str() && line["status"] == status).await;
        assert!(line["code"].as_str().unwrap().starts_with(code), "{line}");
        let found = line["code"].as_str().unwrap().to_owned();
        world.refused(&found).await;
    }
    // All of that on one HTTP/2 connection, which lives: a failing backend is no reason to take other requests along.
    assert!(!h2.is_closed());
}

#[tokio::test]
async fn a_client_that_gives_up_cancels_the_endpoints_work() {
    let (world, web) = world().await;
    for (cancelled, service) in [(1, "two"), (2, "one")] {
        let h2 = world.shop().h2().await;
        let asking = h2.clone();
        let task = spawn(async move { asking.send(h2_request("GET", service, "/hang").body(empty()).unwrap()).await });
        let seen = web.clone();
        until(|| seen.seen().len() == cancelled).await;
        task.abort();
        until(|| web.cancelled() == cancelled).await;
        assert!(!h2.is_closed());
    }
    let mut http = world.shop().h1().await;
    http.send("GET /hang HTTP/1.1\r\nhost: one.ns.svc.cluster.local\r\n\r\n").await;
    until(|| web.seen().len() == 3).await;
    drop(http);
    until(|| web.cancelled() == 3).await;
    world.logged(|line| line["path"] == "/hang" && line["outcome"] == "abandoned").await;
    world.counted("isthmus_relay_open_requests", &[], 0.0).await;
}

#[tokio::test]
async fn an_endpoint_that_breaks_off_breaks_the_answer_and_nothing_else() {
    let (world, _) = in_front_of("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this").await;
    let h2 = world.shop().h2().await;
    let response = h2.send(h2_request("GET", "web", "/").body(empty()).unwrap()).await.unwrap();
    assert!(soon(http_body_util::BodyExt::collect(response.into_body())).await.is_err(), "a short answer is no answer");
    assert!(!h2.is_closed());
    let mut http = world.shop().h1().await;
    http.send("GET / HTTP/1.1\r\nhost: web.ns.svc.cluster.local\r\n\r\n").await;
    assert_eq!(http.head().await.field("content-length"), "100");
    assert_eq!(http.rest().await, b"only this", "and then the end");
    world.refused("relay.upstream_reset").await;
}

#[tokio::test]
async fn a_transport_header_session_needs_no_host() {
    let (world, web) = world().await;
    let mut http = world.shop().header_h1("one", 80).await;
    let answer = http.ask("GET /one HTTP/1.1\r\nuser-agent: curl/7.88.1\r\naccept: */*\r\n\r\n").await;
    assert_eq!((answer.status(), web.last().field("host").as_str()), (200, "one.ns.svc.cluster.local"));
    let answer = http.ask("GET /two HTTP/1.0\r\nconnection: keep-alive\r\n\r\n").await;
    assert_eq!(answer.status(), 200);
    let mut http = world.shop().h1().await;
    let answer = http.ask("GET /one HTTP/1.1\r\n\r\n").await;
    assert_eq!(answer.status(), 400, "elsewhere the request must name its service");
    world.refused("route.no_authority").await;
}

#[tokio::test]
async fn a_large_body_goes_both_ways() {
    let (world, _) = world().await;
    let body = Bytes::from((0..8 << 20).map(|n: u32| n.to_le_bytes()[1] ^ n.to_le_bytes()[0]).collect::<Vec<_>>());
    let h2 = world.shop().h2().await;
    for service in ["one", "two"] {
        let request = h2_request("POST", service, "/echo").body(full(body.clone())).unwrap();
        let answer = whole(h2.send(request).await.unwrap()).await;
        assert!(answer.body == body, "{service}: {} bytes", answer.body.len());
        let mut http = world.shop().h1().await;
        let mut request = format!(
            "POST /echo HTTP/1.1\r\nhost: {service}.ns.svc.cluster.local\r\ncontent-length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        request.extend(&body);
        let Http1 { stream, .. } = http;
        let (mut read, mut write) = tokio::io::split(stream);
        let sending = spawn(async move {
            write.write_all(&request).await.unwrap();
            write
        });
        let mut back = vec![0; 256];
        let mut got = Vec::<u8>::new();
        while got.len() < body.len() {
            let bytes = soon(read.read(&mut back)).await.unwrap();
            assert!(bytes > 0);
            got.extend(&back[..bytes]);
            back.resize(64 * 1024, 0);
        }
        let write = sending.await.unwrap();
        http = Http1::new(read.unsplit(write));
        drop(http);
    }
}

#[tokio::test]
async fn odd_methods_and_paths_go_on_as_they_are() {
    let (world, web) = world().await;
    let mut http = world.shop().h1().await;
    for (method, path) in [("PROPFIND", "/a%20b/%C3%A9?x=%2F&y"), ("OPTIONS", "*"), ("DELETE", "/;p=1//x/./y")] {
        let answer = http.ask(&format!("{method} {path} HTTP/1.1\r\nhost: one.ns.svc.cluster.local\r\n\r\n")).await;
        assert_eq!(answer.status(), 200, "{method} {path}");
        assert_eq!((web.last().method.as_str(), web.last().uri.as_str()), (method, path));
    }
    let request = Request::builder().method("OPTIONS").version(Version::HTTP_2).uri("http://one.ns.svc.cluster.local");
    assert_eq!(world.shop().h2().await.ask(request.body(empty()).unwrap()).await.status, 200);
}
