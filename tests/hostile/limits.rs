//! Each limit that the attacks of the other files do not reach, gone past by one.

use std::time::Duration;

use isthmus::tls::{ALPN_H2, ALPN_HTTP11, ALPN_TRANSPORT_HEADER};
use isthmus::wire::proxy_header::{self, ProxyHeader};
use isthmus_tests::peer::{header, listen};
use isthmus_tests::pki::GATEWAY;
use isthmus_tests::wire::Http1;
use isthmus_tests::world::Setup;
use isthmus_tests::{soon, spawn, until};
use tokio::io::AsyncWriteExt;

use crate::{MALLORY, connect, ended, peer, socket, world};

#[tokio::test]
async fn connections_of_one_network() {
    let (world, _) = world(Setup::new().set("accept", "max_connections_per_network", "3")).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        let socket = socket(&world, 7).await;
        let mut http = Http1::new(peer(&world).shake(socket, GATEWAY, &[ALPN_HTTP11]).await.unwrap());
        assert_eq!(http.get("web", "/").await.status(), 200);
        held.push(http);
    }
    assert_eq!(ended(&mut socket(&world, 7).await).await, b"");
    let line = world.refused("accept.network_connections").await;
    assert_eq!((line["fault"].as_str(), line["client_identity"].as_str()), (Some("policy"), None), "{line}");
    assert_eq!(world.shop().h1().await.get("web", "/").await.status(), 200, "others are not concerned");
    held.pop();
    world.counted("isthmus_accept_open_connections", &[], 2.0).await;
    let mut http = Http1::new(peer(&world).shake(socket(&world, 7).await, GATEWAY, &[ALPN_HTTP11]).await.unwrap());
    assert_eq!(http.get("web", "/").await.status(), 200, "a place is free");
}

#[tokio::test]
async fn behind_a_balancer_networks_are_the_clients() {
    let setup = Setup::new().set("accept", "proxy_networks", "[127.0.0.0/8]");
    let (world, _) = world(setup.set("accept", "max_connections_per_network", "1")).await;
    let mut held = Vec::new();
    for (client, fits) in [("192.0.2.1", true), ("192.0.2.9", false), ("198.51.100.1", true)] {
        let source = (client.parse::<std::net::IpAddr>().unwrap(), 1234).into();
        let header = ProxyHeader::Proxied { source, destination: world.addrs.gateway };
        let mut socket = socket(&world, 8).await;
        socket.write_all(&proxy_header::encode_v2(&header)).await.unwrap();
        let shaken = peer(&world).shake(socket, GATEWAY, &[ALPN_HTTP11]).await;
        assert_eq!(shaken.is_ok(), fits, "{client}");
        held.push(shaken);
    }
    world.refused("accept.network_connections").await;
}

#[tokio::test]
async fn one_identity_that_says_nothing_counts_too() {
    let (world, _) = world(Setup::new().set("accept", "max_connections_per_identity", "2")).await;
    let mut silent = Vec::new();
    for _ in 0..2 {
        silent.push(connect(&world, &[ALPN_TRANSPORT_HEADER]).await);
    }
    let entered = async {
        while world.state().await["connections"].as_array().unwrap().len() < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon(entered).await;
    assert_eq!(world.state().await["connections"][0]["protocol"], serde_json::Value::Null, "nobody knows yet");
    let mut third = connect(&world, &[ALPN_TRANSPORT_HEADER]).await;
    assert_eq!(listen(&mut third).await.0, b"");
    let line = world.refused("authorise.connections").await;
    assert_eq!(line["client_identity"], MALLORY, "{line}");
    assert_eq!(world.shop().h1().await.get("web", "/").await.status(), 200);
}

#[tokio::test]
async fn requests_of_one_worker() {
    let (world, web) = world(Setup::new().set("http", "max_requests", "4")).await;
    let h2 = peer(&world).h2().await;
    let hanging: Vec<_> = (0..4)
        .map(|_| {
            let h2 = h2.clone();
            spawn(async move { h2.get("web", "/hang").await.status })
        })
        .collect();
    until(|| web.seen().len() == 4).await;
    let answer = h2.get("web", "/").await;
    assert_eq!((answer.status, answer.field("l5d-proxy-error")), (503, "the gateway is overloaded"));
    let line = world.refused("relay.overloaded").await;
    assert_eq!(line["fault"], "ours", "{line}");
    for one in hanging {
        one.abort();
    }
    let again = async {
        while h2.get("web", "/").await.status != 200 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    // The requests that were given up are still waited for by nobody; their streams are reset with their futures.
    soon(again).await;
}

#[tokio::test]
async fn idle_and_old_connections_end() {
    let setup = Setup::new().set("http", "idle_timeout", "300ms").set("detect", "timeout", "300ms");
    let (world, _) = world(setup).await;
    for alpn in [ALPN_HTTP11, ALPN_H2] {
        let mut stream = connect(&world, &[alpn]).await;
        if alpn == ALPN_H2 {
            stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        }
        ended(&mut stream).await;
    }
    // Who has not even begun is detect's: an HTTP/2 preface that never comes, a transport header that never ends.
    let mut stream = connect(&world, &[ALPN_TRANSPORT_HEADER]).await;
    stream.write_all(&header("web", 80, None)[..5]).await.unwrap();
    assert_eq!(ended(&mut stream).await, b"");
    world.refused("detect.timeout").await;
}
