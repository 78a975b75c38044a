//! `accept`: who is taken in, from where, and how many.

use std::net::SocketAddr;
use std::time::Duration;

use isthmus::tls::ALPN_HTTP11;
use isthmus::wire::proxy_header::{ProxyHeader, encode_v1, encode_v2};
use isthmus_tests::peer::listen;
use isthmus_tests::pki::{GATEWAY, Pki, pair};
use isthmus_tests::wire::Http1;
use isthmus_tests::world::{Setup, World};
use isthmus_tests::{soon, upstream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn header() -> ProxyHeader {
    ProxyHeader::Proxied {
        source: "203.0.113.7:40000".parse().unwrap(),
        destination: "198.51.100.1:4143".parse().unwrap(),
    }
}

async fn world(networks: &str) -> World {
    let web = upstream::http().await;
    let setup = Setup::new().service("web", 80, "as_client", &[web.addr]).set("accept", "proxy_networks", networks);
    setup.set("accept", "proxy_timeout", "300ms").start().await
}

async fn socket(addr: SocketAddr, first: &[u8]) -> TcpStream {
    let mut socket = TcpStream::connect(addr).await.unwrap();
    socket.set_nodelay(true).unwrap();
    socket.write_all(first).await.unwrap();
    socket
}

#[tokio::test]
async fn a_proxy_header_from_a_configured_network_names_the_client() {
    let world = world("['127.0.0.0/8', '::1/128']").await;
    for (path, bytes) in [("/v1", encode_v1(&header())), ("/v2", encode_v2(&header()))] {
        let stream =
            world.shop().shake(socket(world.addrs.gateway, &bytes).await, GATEWAY, &[ALPN_HTTP11]).await.unwrap();
        assert_eq!(Http1::new(stream).get("web", path).await.status(), 200);
        let line = world.logged(|line| line["path"] == path).await;
        assert_eq!(line["client_addr"], "203.0.113.7:40000");
    }
    // A health check of the load balancer itself speaks for itself.
    let local = encode_v2(&ProxyHeader::Local);
    let stream = world.shop().shake(socket(world.addrs.gateway, &local).await, GATEWAY, &[ALPN_HTTP11]).await.unwrap();
    assert_eq!(Http1::new(stream).get("web", "/local").await.status(), 200);
    let line = world.logged(|line| line["path"] == "/local").await;
    assert!(line["client_addr"].as_str().unwrap().starts_with("127.0.0.1:"));
    // Byte by byte.
    let mut dribble = TcpStream::connect(world.addrs.gateway).await.unwrap();
    dribble.set_nodelay(true).unwrap();
    for byte in encode_v1(&header()) {
        dribble.write_all(&[byte]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let stream = world.shop().shake(dribble, GATEWAY, &[ALPN_HTTP11]).await.unwrap();
    assert_eq!(Http1::new(stream).get("web", "/").await.status(), 200);
}

#[tokio::test]
async fn where_one_is_due_nothing_else_is_taken() {
    let world = world("['127.0.0.0/8']").await;
    for (code, bytes) in [
        ("accept.proxy_header", b"PROXY TCP9 1.2.3.4 5.6.7.8 1 2\r\n".as_slice()),
        ("accept.proxy_header", &[22, 3, 1, 2, 0]),
        ("accept.proxy_timeout", b"PROXY TCP4 "),
    ] {
        let mut socket = socket(world.addrs.gateway, bytes).await;
        let mut back = Vec::new();
        let _ = soon(socket.read_to_end(&mut back)).await;
        assert_eq!(back, b"");
        world.refused(code).await;
    }
    let mut socket = socket(world.addrs.gateway, b"PROXY").await;
    socket.shutdown().await.unwrap();
    let _ = soon(socket.read_to_end(&mut Vec::new())).await;
    world.refused("accept.eof").await;
}

#[tokio::test]
async fn elsewhere_a_proxy_header_is_no_tls() {
    let world = world("['10.0.0.0/8']").await;
    for bytes in [encode_v1(&header()), encode_v2(&header())] {
        let mut socket = socket(world.addrs.gateway, &bytes).await;
        let mut back = Vec::new();
        let _ = soon(socket.read_to_end(&mut back)).await;
        assert_eq!(back, b"");
    }
    world.refused("tls.plaintext").await;
}

#[tokio::test]
async fn at_the_limit_connections_wait_in_the_backlog() {
    let web = upstream::http().await;
    let setup = Setup::new().service("web", 80, "as_client", &[web.addr]).set("accept", "max_connections", "2");
    let world = setup.start().await;
    let mut one = world.shop().h1().await;
    let two = world.shop().h1().await;
    assert_eq!(one.get("web", "/").await.status(), 200);
    let shop = world.shop();
    let third = isthmus_tests::spawn(async move { shop.h1().await.get("web", "/third").await.status() });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!third.is_finished(), "it waits");
    assert_eq!(one.get("web", "/").await.status(), 200, "those inside are served");
    assert!((world.count("isthmus_accept_open_connections", &[]).await - 2.0).abs() < 0.5);
    drop(two);
    assert_eq!(soon(third).await.unwrap(), 200, "a place is free");
}

#[tokio::test]
async fn one_identity_has_its_own_limit() {
    let web = upstream::http().await;
    let setup = Setup::new().service("web", 80, "as_client", &[web.addr]);
    let world = setup.set("accept", "max_connections_per_identity", "2").start().await;
    let mut one = world.shop().h1().await;
    let mut two = world.shop().h1().await;
    assert_eq!((one.get("web", "/").await.status(), two.get("web", "/").await.status()), (200, 200));
    let mut third = world.shop().connect(&[ALPN_HTTP11]).await;
    assert_eq!(listen(&mut third).await.0, b"");
    world.refused("authorise.connections").await;
    let cart = pair(&Pki::get().west, &["cart.west.serviceaccount.identity.linkerd.cluster.local"]);
    assert_eq!(world.peer(Some(&cart)).h1().await.get("web", "/").await.status(), 200, "others are not concerned");
    drop(two);
    let state = async {
        while world.state().await["connections"].as_array().unwrap().len() > 1 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon(state).await;
    assert_eq!(world.shop().h1().await.get("web", "/").await.status(), 200);
}

#[tokio::test]
async fn an_upgraded_connection_keeps_its_place() {
    let web = upstream::http().await;
    let setup = Setup::new().service("web", 80, "http1", &[web.addr]);
    let world = setup.set("accept", "max_connections_per_identity", "1").start().await;
    let mut socket = world.shop().h1().await;
    socket
        .send("GET /ws HTTP/1.1\r\nhost: web.ns.svc.cluster.local\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
        .await;
    assert_eq!(socket.head().await.status(), 101);
    socket.send("ahoy").await;
    assert_eq!(socket.exactly(4).await, b"ahoy");
    let mut second = world.shop().connect(&[ALPN_HTTP11]).await;
    assert_eq!(listen(&mut second).await.0, b"", "the tunnel still counts");
    world.refused("authorise.connections").await;
    assert_eq!(world.state().await["connections"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn both_families_are_taken_on_one_socket() {
    let web = upstream::http().await;
    let setup = Setup::new().service("web", 80, "as_client", &[web.addr]).set("accept", "listen", "'[::]:0'");
    let world = setup.start().await;
    let port = world.addrs.gateway.port();
    for (addr, shown) in [("127.0.0.1", "127.0.0.1:"), ("::1", "[::1]:")] {
        let addr = SocketAddr::new(addr.parse().unwrap(), port);
        if std::net::TcpListener::bind((addr.ip(), 0)).is_err() {
            assert!(addr.is_ipv6(), "no IPv6 here is no fault of ours");
            continue;
        }
        let path = format!("/{}", addr.is_ipv6());
        assert_eq!(world.shop().at(addr).h1().await.get("web", &path).await.status(), 200);
        let line = world.logged(|line| line["path"] == path.as_str()).await;
        assert!(line["client_addr"].as_str().unwrap().starts_with(shown), "an IPv4 client shows as one: {line}");
    }
}

#[tokio::test]
async fn a_client_that_only_connects_costs_one_line_and_nothing_else() {
    let world = Setup::new().start().await;
    drop(TcpStream::connect(world.addrs.gateway).await.unwrap());
    world.counted("isthmus_accept_connections_total", &[], 1.0).await;
    world.counted("isthmus_accept_open_connections", &[], 0.0).await;
    world.logged(|line| line["code"] == "tls.eof").await;
}
