//! The probe: what remote mirrors, the kubelet and load balancers ask, and hear. (Multicluster contract §1.8, §8.)

use std::time::Duration;

use http::Version;
use isthmus_tests::peer::{H2, empty, h2_request, listen};
use isthmus_tests::pki::{GATEWAY, Pki, SHOP, expired, pair};
use isthmus_tests::upstream;
use isthmus_tests::wire::{Http1, tls12_hello};
use isthmus_tests::world::{Setup, World};
use isthmus_tests::{soon, spawn};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

async fn world(plaintext: bool) -> World {
    let setup = Setup::new().set("probe", "path", "/custom").set("probe", "plaintext", &plaintext.to_string());
    setup.set("probe", "authority", "probe.gateway.example").start().await
}

/// Requests and their statuses.
fn table() -> Vec<(String, u16)> {
    let mut table = Vec::new();
    for path in ["/health", "//health", "/ready", "//ready", "/custom", "//custom"] {
        for method in ["GET", "HEAD"] {
            table.push((format!("{method} {path} HTTP/1.1\r\nhost: probe-gateway-east:4181\r\n\r\n"), 200));
        }
        table.push((format!("GET {path} HTTP/1.0\r\n\r\n"), 200));
        table.push((format!("GET http://probe-gateway-east:4181{path} HTTP/1.1\r\nhost: x\r\n\r\n"), 200));
        table.push((format!("GET {path}?from=west HTTP/1.1\r\nhost: x\r\nl5d-orig-proto: HTTP/1.1\r\n\r\n"), 200));
    }
    for path in ["/", "/healthz", "/health/", "/metrics", "/state", "/READY", "///health"] {
        table.push((format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n"), 404));
    }
    table
}

#[tokio::test]
async fn the_table_over_mutual_tls() {
    let world = world(false).await;
    let shop = world.shop().at(world.addrs.probe);
    for (request, status) in table() {
        let mut http = Http1::new(shop.connect(&[]).await);
        let answer = http.ask(&request).await;
        assert_eq!(answer.status(), status, "{request}");
        assert!(answer.body.len() < 512 && answer.has("content-length"), "{answer:?}");
        if request.contains("HTTP/1.0") {
            assert_eq!(http.rest().await, b"");
        }
    }
    let h2 = H2::new(shop.connect(&[]).await).await;
    for (path, status) in [("/health", 200), ("//ready", 200), ("/custom", 200), ("/nothing", 404)] {
        let request = h2_request("GET", "probe-gateway-east.linkerd-multicluster:4181", path)
            .header("l5d-orig-proto", "HTTP/1.1");
        let answer = h2.ask(request.body(empty()).unwrap()).await;
        assert_eq!((answer.status, answer.field("l5d-orig-proto")), (status, "HTTP/1.1"), "{path}");
        assert_eq!(h2.ask(h2_request("HEAD", "x", path).body(empty()).unwrap()).await.status, status);
    }
    // No line and no count of a connection or request for any of it.
    assert!(world.lines().is_empty(), "{:?}", world.lines());
    assert!(world.count("isthmus_relay_requests_total", &[]).await < 0.5);
    assert!(world.state().await["probes"]["healthy"].as_u64().unwrap() > 30);
}

#[tokio::test]
async fn plaintext_is_answered_where_that_is_on() {
    let world = world(true).await;
    for (request, status) in table() {
        let mut http = Http1::new(TcpStream::connect(world.addrs.probe).await.unwrap());
        assert_eq!(http.ask(&request).await.status(), status, "{request}");
    }
    let h2 = H2::new(TcpStream::connect(world.addrs.probe).await.unwrap()).await;
    assert_eq!(h2.get("x:1", "/ready").await.status, 200);
    let mut tls = Http1::new(world.shop().at(world.addrs.probe).connect(&[]).await);
    assert_eq!(tls.get("x", "/ready").await.status(), 200, "and TLS beside it");
    // Off: not a byte.
    let off = self::world(false).await;
    let mut socket = TcpStream::connect(off.addrs.probe).await.unwrap();
    socket.write_all(b"GET /ready HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut back = Vec::new();
    let _ = soon(socket.read_to_end(&mut back)).await;
    assert_eq!(back, b"");
}

#[tokio::test]
async fn strangers_are_refused_and_not_logged() {
    let world = world(false).await;
    let stranger = pair(&Pki::get().foreign, &[SHOP]);
    let old = expired(&Pki::get().west, &[SHOP]);
    for (pair, heard) in [(None, None), (Some(&stranger), Some("UnknownCA")), (Some(&old), Some("CertificateExpired"))]
    {
        let mut stream = world.peer(pair).at(world.addrs.probe).connect(&[]).await;
        assert_eq!(listen(&mut stream).await, (Vec::new(), heard.map(str::to_owned)));
    }
    assert!(world.shop().at(world.addrs.probe).try_connect("other.example", &[]).await.is_err());
    let mut socket = TcpStream::connect(world.addrs.probe).await.unwrap();
    socket.write_all(&tls12_hello(GATEWAY)).await.unwrap();
    let mut back = Vec::new();
    let _ = soon(socket.read_to_end(&mut back)).await;
    assert_eq!(back, [21, 3, 3, 0, 2, 2, 70]);
    assert!(world.lines().is_empty());
    let anyone = Setup::new().set("probe", "require_client_certificate", "false").start().await;
    let mut http = Http1::new(anyone.peer(None).at(anyone.addrs.probe).connect(&[]).await);
    assert_eq!(http.get("x", "/ready").await.status(), 200, "where the operator says so");
}

#[tokio::test]
async fn one_port_can_do_for_both() {
    let world = world(false).await;
    let mut http = world.shop().h1().await;
    for (request, status) in [
        ("GET /ready HTTP/1.1\r\nhost: probe.gateway.example\r\n\r\n", 200),
        ("GET /ready HTTP/1.1\r\nhost: Probe.Gateway.example:4143\r\n\r\n", 200),
        ("GET /nothing HTTP/1.1\r\nhost: probe.gateway.example\r\n\r\n", 404),
    ] {
        assert_eq!(http.ask(request).await.status(), status, "{request}");
    }
    let h2 = world.shop().h2().await;
    let request =
        http::Request::get("http://probe.gateway.example/health").version(Version::HTTP_2).body(empty()).unwrap();
    assert_eq!(h2.ask(request).await.status, 200);
}

#[tokio::test]
async fn no_from_the_first_moment_of_a_drain() {
    let mut world = world(true).await;
    let probe = world.addrs.probe;
    let app = world.take();
    assert!(app.is_ready());
    let kept = world.shop().h2().await;
    let draining = spawn(app.drain(Duration::from_millis(600), Duration::from_secs(3), std::future::pending()));
    tokio::time::sleep(Duration::from_millis(50)).await;
    let shop = world.shop();
    for path in ["/health", "/ready", "//health", "/custom"] {
        let answer = Http1::new(shop.at(probe).connect(&[]).await).get("x", path).await;
        assert_eq!(answer.status(), 503, "{path}");
        assert_eq!(answer.field("connection"), "close");
        assert_eq!(isthmus_tests::world::get(probe, path).await.0, 503);
    }
    assert_eq!(world.admin("/ready").await.0, 503);
    assert_eq!(world.admin("/live").await.0, 200);
    // New connections are still served: remote mirrors need their three probes to notice.
    assert_eq!(shop.h1().await.ask("GET / HTTP/1.1\r\nhost: absent.ns.svc.cluster.local\r\n\r\n").await.status(), 404);
    drop(kept);
    assert_eq!(soon(draining).await.unwrap().cut, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_come_while_the_data_path_is_saturated() {
    let addr = upstream::echo_tcp().await;
    let world = Setup::new().service("bulk", 9000, "opaque", &[addr]).set("probe", "plaintext", "true").start().await;
    let mut busy = Vec::new();
    for _ in 0..4 {
        let stream = world.shop().opaque("bulk", 9000).await;
        let (mut read, mut write) = tokio::io::split(stream);
        busy.push(spawn(async move {
            let piece = [7; 64 * 1024];
            while write.write_all(&piece).await.is_ok() {}
        }));
        busy.push(spawn(async move {
            let mut piece = vec![0; 64 * 1024];
            while read.read(&mut piece).await.is_ok_and(|bytes| bytes > 0) {}
        }));
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut took = Vec::new();
    for _ in 0..20 {
        let from = Instant::now();
        assert_eq!(isthmus_tests::world::get(world.addrs.probe, "/ready").await.0, 200);
        took.push(from.elapsed());
    }
    took.sort();
    // Well under a second is what a mirror needs; a loaded test machine is allowed a part of it.
    assert!(took[10] < Duration::from_millis(250), "{took:?}");
    busy.iter().for_each(tokio::task::JoinHandle::abort);
}
