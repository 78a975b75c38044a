//! `connect` and the retries on top of it: endpoints that refuse, vanish, restart, or are somebody else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use isthmus::tls::credentials;
use isthmus::tls::{Credentials, File, Pem, server};
use isthmus_tests::peer::{empty, full, h2_request};
use isthmus_tests::pki::{GATEWAY, Pair, Pki, pair};
use isthmus_tests::world::{Setup, World};
use isthmus_tests::{until, upstream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// One service whose endpoints are tried in turn.
async fn with(protocol: &str, endpoints: &[SocketAddr]) -> World {
    Setup::new().service("web", 80, protocol, endpoints).set("balance", "max_connect_failures", "1000").start().await
}

#[tokio::test]
async fn a_refused_connect_is_tried_elsewhere() {
    let web = upstream::http().await;
    let world = with("as_client", &[upstream::nobody(), web.addr]).await;
    let h2 = world.shop().h2().await;
    let mut http = world.shop().h1().await;
    for _ in 0..10 {
        assert_eq!(http.get("web", "/").await.status(), 200);
        let post =
            h2_request("POST", "web", "/echo").body(full("a body is no hindrance, nothing of it was read")).unwrap();
        assert_eq!(h2.ask(post).await.status, 200);
    }
    assert!(world.count("isthmus_relay_retries_total", &[]).await >= 1.0);
    assert!(world.count("isthmus_connect_attempts_total", &[("result", "connect.refused")]).await >= 1.0);
    world.logged(|line| line["retries"].as_u64().is_some_and(|retries| retries > 0) && line["status"] == 200).await;
    // Bytes too: not one of the session had been sent.
    let echo = upstream::echo_tcp().await;
    let world = with("opaque", &[upstream::nobody(), echo]).await;
    for _ in 0..5 {
        let mut stream = world.shop().opaque("web", 80).await;
        stream.write_all(b"x").await.unwrap();
        assert_eq!(isthmus_tests::soon(stream.read_u8()).await.unwrap(), b'x');
    }
}

/// An HTTP/2 endpoint that refuses the very first request, by its stream or by the whole connection, and serves the rest.
async fn refusing(goaway: bool) -> (SocketAddr, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let addr = upstream::tcp(move |socket, _| {
        let count = Arc::clone(&count);
        async move {
            let mut connection: h2::server::Connection<_, Bytes> = h2::server::handshake(socket).await.unwrap();
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                if count.fetch_add(1, Ordering::SeqCst) == 0 {
                    respond.send_reset(h2::Reason::REFUSED_STREAM);
                    if goaway {
                        connection.graceful_shutdown();
                    }
                    continue;
                }
                let mut body = respond.send_response(http::Response::new(()), false).unwrap();
                body.send_data(Bytes::from_static(b"ok"), true).unwrap();
            }
        }
    });
    (addr.await, asked)
}

#[tokio::test]
async fn a_refused_stream_is_sent_again() {
    for goaway in [false, true] {
        let (addr, asked) = refusing(goaway).await;
        let world = with("http2", &[addr]).await;
        let h2 = world.shop().h2().await;
        let answer = h2.get("web", "/").await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "ok"), "goaway: {goaway}");
        assert_eq!(asked.load(Ordering::SeqCst), 2);
        world.counted("isthmus_relay_retries_total", &[], 1.0).await;
        for _ in 0..5 {
            assert_eq!(h2.get("web", "/").await.status, 200);
        }
        // Without leave to retry the refusal is passed on as what it is, which tells the client that it may retry.
        let (addr, _) = refusing(goaway).await;
        let world = Setup::new().service("web", 80, "http2", &[addr]).set("http", "max_retries", "0").start().await;
        let refused = world.shop().h2().await.send(h2_request("GET", "web", "/").body(empty()).unwrap()).await;
        let refused = refused.expect_err("a reset");
        let reset = std::error::Error::source(&refused).and_then(|error| error.downcast_ref());
        assert_eq!(reset.and_then(h2::Error::reason), Some(h2::Reason::REFUSED_STREAM));
    }
}

#[tokio::test]
async fn a_goaway_loses_no_request() {
    // Each connection serves two requests and says goodbye.
    let addr = upstream::tcp(|socket, _| async move {
        let mut connection: h2::server::Connection<_, Bytes> = h2::server::handshake(socket).await.unwrap();
        let mut served = 0;
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            let mut body = respond.send_response(http::Response::new(()), false).unwrap();
            body.send_data(Bytes::from_static(b"ok"), true).unwrap();
            served += 1;
            if served == 2 {
                connection.graceful_shutdown();
            }
        }
    });
    let world = with("http2", &[addr.await]).await;
    let h2 = world.shop().h2().await;
    for _ in 0..30 {
        assert_eq!(h2.get("web", "/").await.status, 200);
    }
}

#[tokio::test]
async fn a_kept_connection_that_died_is_replaced() {
    // Each connection serves one request and is closed without a word a moment later.
    let addr = upstream::tcp(|mut socket, _| async move {
        upstream::read_head(&mut socket).await;
        socket.write_all(OK.as_bytes()).await.unwrap();
    });
    let world = with("http1", &[addr.await]).await;
    let mut http = world.shop().h1().await;
    for _ in 0..20 {
        assert_eq!(http.get("web", "/").await.status(), 200);
    }
    // A connection that is kept is used again.
    let web = upstream::http().await;
    let world = with("http1", &[web.addr]).await;
    let mut http = world.shop().h1().await;
    for _ in 0..20 {
        assert_eq!(http.get("web", "/").await.status(), 200);
    }
    assert_eq!(web.connections(), 1);
}

#[tokio::test]
async fn a_request_that_may_have_been_processed_is_not_sent_again() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let addr = upstream::tcp(move |mut socket, _| {
        let count = Arc::clone(&count);
        async move {
            upstream::read_head(&mut socket).await;
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    let web = upstream::http().await;
    let world = with("http1", &[addr.await]).await;
    let answer = world.shop().h1().await.get("web", "/").await;
    assert_eq!((answer.status(), asked.load(Ordering::SeqCst)), (502, 1));
    drop(web);
    world.refused("connect.closed").await;
}

#[tokio::test]
async fn an_endpoint_that_does_not_answer_the_connect_is_given_up() {
    // A listener whose backlog is full: connects hang.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let addr = listener.local_addr().unwrap();
    let mut full = Vec::new();
    for _ in 0..4 {
        let connect = tokio::net::TcpStream::connect(addr);
        full.extend(tokio::time::timeout(Duration::from_millis(100), connect).await.ok().and_then(Result::ok));
    }
    let setup = Setup::new().service("web", 80, "http1", &[addr]).set("connect", "timeout", "200ms");
    let world = setup.set("http", "max_retries", "0").start().await;
    let answer = world.shop().h1().await.get("web", "/").await;
    assert_eq!((answer.status(), answer.field("l5d-proxy-error")), (504, "connect timed out"));
    world.refused("connect.timeout").await;
    drop(full);
}

/// An endpoint behind mutual TLS that answers who called.
async fn meshed(own: Pair) -> SocketAddr {
    let pem = Pem {
        chain: File::new("chain", own.chain.as_bytes()),
        key: File::new("key", own.key.as_bytes()),
        bundle: File::new("bundle", (Pki::get().anchor.cert_pem() + &Pki::get().foreign.cert_pem()).as_bytes()),
        crls: Vec::new(),
    };
    let credentials = Arc::new(Credentials::from_pem(&pem, &credentials::Settings::default()).unwrap());
    upstream::tcp(move |socket, _| {
        let credentials = Arc::clone(&credentials);
        async move {
            let settings = isthmus::tls::Settings::default();
            let Ok(mut accepted) = server::accept(socket, &credentials, &settings).await else { return };
            let mut head = [0; 4096];
            let _ = accepted.stream.read(&mut head).await;
            let who = accepted.peer.identity.as_str();
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{who}", who.len());
            let _ = accepted.stream.write_all(answer.as_bytes()).await;
        }
    })
    .await
}

#[tokio::test]
async fn endpoints_behind_mutual_tls_must_be_who_they_should_be() {
    const WEB: &str = "web.ns.serviceaccount.identity.linkerd.cluster.local";
    let pki = Pki::get();
    let (right, wrong, stranger) =
        (pair(&pki.east, &[WEB]), pair(&pki.east, &["x.ns.example"]), pair(&pki.foreign, &[WEB]));
    let tls = format!(", tls: {{ identity: {WEB} }}");
    for (own, status, code) in [(right, 200, ""), (wrong, 502, "connect."), (stranger, 502, "connect.")] {
        let addr = meshed(own).await;
        let setup = Setup::new().service_with("web", 80, "http1", &[addr], &tls).set("http", "max_retries", "0");
        let world = setup.start().await;
        let answer = world.shop().h1().await.get("web", "/").await;
        assert_eq!(answer.status(), status, "{code}");
        if status == 200 {
            assert_eq!(answer.text(), GATEWAY, "the gateway shows its own identity");
        } else {
            let line = world.logged(|line| line["status"] == 502).await;
            assert!(line["code"].as_str().unwrap().starts_with(code), "{line}");
        }
    }
}

#[tokio::test]
async fn http1_connections_are_bounded() {
    let web = upstream::http().await;
    let setup = Setup::new().service("web", 80, "http1", &[web.addr]).set("connect", "max_connections", "2");
    let world = setup.start().await;
    let h2 = world.shop().h2().await;
    let requests: Vec<_> = (0..6)
        .map(|_| {
            let h2 = h2.clone();
            isthmus_tests::spawn(async move {
                h2.ask(h2_request("GET", "web", "/slow").body(empty()).unwrap()).await.status
            })
        })
        .collect();
    for request in requests {
        assert_eq!(request.await.unwrap(), 200, "they wait their turn");
    }
    assert_eq!(web.connections(), 2);
    until(|| web.seen().len() == 6).await;
}
