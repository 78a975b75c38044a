//! The drain: nobody loses a request because the gateway ends. (Design §5.)

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use isthmus::tls::ALPN_H2;
use isthmus_tests::h2raw::{DATA, Frames, GOAWAY, HEADERS};
use isthmus_tests::peer::{H2, Peer, empty, h2_request};
use isthmus_tests::world::Setup;
use isthmus_tests::{soon, spawn, until, upstream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

#[tokio::test]
async fn http1_is_told_to_close_and_http2_goes_away_in_two_steps() {
    let web = upstream::http().await;
    let mut world = Setup::new().service("web", 80, "http1", &[web.addr]).start().await;
    let mut http = world.shop().h1().await;
    assert!(!http.get("web", "/").await.has("connection"));
    let mut frames = Frames(world.shop().connect(&[ALPN_H2]).await);
    frames.preface().await;
    frames.get(1, "web.ns.svc.cluster.local", "/slow").await;
    until(|| web.seen().len() == 2).await;
    let kept = http.get("web", "/slow");
    let app = world.take();
    let draining = spawn(async move {
        tokio::time::sleep(Duration::from_millis(50)).await;
        app.drain(Duration::ZERO, Duration::from_secs(5), std::future::pending()).await
    });
    let answer = kept.await;
    assert_eq!((answer.status(), answer.field("connection")), (200, "close"));
    // First a warning with the highest number, then, when the client has surely heard it, the real one.
    let last = |frame: &isthmus_tests::h2raw::Frame| u32::from_be_bytes(frame.payload[..4].try_into().unwrap());
    let first = frames.find(GOAWAY).await;
    assert_eq!((last(&first), &first.payload[4..8]), (0x7fff_ffff, [0; 4].as_slice()));
    // A request that crosses the warning is still served.
    frames.get(3, "web.ns.svc.cluster.local", "/crossing").await;
    let (mut answered, mut goaway) = (Vec::new(), None);
    while let Some(frame) = frames.next().await {
        frames.acknowledge(&frame).await;
        match frame.kind {
            HEADERS => answered.push(frame.stream),
            GOAWAY => goaway = Some(last(&frame)),
            DATA => {}
            _ => {}
        }
        if answered.len() == 2 && goaway.is_some() {
            break;
        }
    }
    answered.sort_unstable();
    assert_eq!((answered, goaway), (vec![1, 3], Some(3)));
    drop(frames);
    let drained = soon(draining).await.unwrap();
    assert_eq!((drained.began_with, drained.cut), (2, 0), "{drained:?}");
}

async fn asks_h1(shop: Peer, stop: Arc<AtomicBool>, served: Arc<AtomicU32>) {
    while !stop.load(Ordering::SeqCst) {
        let mut http = shop.h1().await;
        loop {
            let answer = http.get("web", "/").await;
            assert_eq!(answer.status(), 200);
            served.fetch_add(1, Ordering::SeqCst);
            // An HTTP/1 client that is told to close does.
            if answer.field("connection") == "close" || stop.load(Ordering::SeqCst) {
                break;
            }
        }
    }
}

async fn asks_h2(shop: Peer, stop: Arc<AtomicBool>, served: Arc<AtomicU32>) {
    while !stop.load(Ordering::SeqCst) {
        let h2 = shop.h2().await;
        while !stop.load(Ordering::SeqCst) {
            match h2.send(h2_request("GET", "web", "/slow").body(empty()).unwrap()).await {
                Ok(response) => {
                    assert_eq!(response.status(), 200);
                    soon(http_body_util::BodyExt::collect(response.into_body())).await.unwrap();
                    served.fetch_add(1, Ordering::SeqCst);
                }
                // Gone away before it was sent: every client sends it again on another connection.
                Err(error) => {
                    assert!(h2.is_closed() && (error.is_canceled() || error.is_closed()), "{error:?}");
                    break;
                }
            }
        }
    }
}

async fn echoes(shop: Peer, stop: Arc<AtomicBool>, served: Arc<AtomicU32>) {
    while !stop.load(Ordering::SeqCst) {
        let mut stream = shop.opaque("db", 5432).await;
        for _ in 0..10 {
            stream.write_all(b"x").await.unwrap();
            soon(stream.read_u8()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        served.fetch_add(1, Ordering::SeqCst);
        stream.shutdown().await.unwrap();
        assert_eq!(soon(stream.read(&mut [0])).await.unwrap(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_not_one_request_fails() {
    let (web, db) = (upstream::http().await, upstream::echo_tcp().await);
    let setup = || {
        let setup = Setup::new().service("web", 80, "as_client", &[web.addr]).service("db", 5432, "opaque", &[db]);
        setup.workers(2)
    };
    // The one that drains and the one that takes over: clients go where the load balancer sends new connections.
    let mut old = setup().start().await;
    let new = setup().start().await;
    let turned = Arc::new(AtomicBool::new(false));
    let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let front = balancer(old.addrs.gateway, new.addrs.gateway, Arc::clone(&turned)).await;
    let shop = old.shop().at(front);
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(spawn(asks_h1(shop.clone(), Arc::clone(&stop), Arc::clone(&served))));
        clients.push(spawn(asks_h2(shop.clone(), Arc::clone(&stop), Arc::clone(&served))));
        clients.push(spawn(echoes(shop.clone(), Arc::clone(&stop), Arc::clone(&served))));
    }
    tokio::time::sleep(Duration::from_millis(400)).await;
    let app = old.take();
    let draining = spawn(app.drain(Duration::from_millis(500), Duration::from_secs(8), std::future::pending()));
    // The probe says no at once, and the balancer notices within the announcement.
    tokio::time::sleep(Duration::from_millis(200)).await;
    turned.store(true, Ordering::SeqCst);
    let drained = soon(draining).await.unwrap();
    assert!(drained.began_with > 0 && drained.cut == 0, "{drained:?}");
    tokio::time::sleep(Duration::from_millis(200)).await;
    stop.store(true, Ordering::SeqCst);
    for client in clients {
        soon(client).await.unwrap();
    }
    assert!(served.load(Ordering::SeqCst) > 50);
    assert!(
        old.lines().iter().all(|line| line["outcome"] != "refused"),
        "{:?}",
        old.lines().iter().find(|line| line["outcome"] == "refused")
    );
    assert!(new.count("isthmus_relay_requests_total", &[("status", "200")]).await > 0.0);
}

/// What a cloud's load balancer is: it sends new connections to whom it believes healthy.
async fn balancer(
    old: std::net::SocketAddr,
    new: std::net::SocketAddr,
    turned: Arc<AtomicBool>,
) -> std::net::SocketAddr {
    upstream::tcp(move |mut socket, _| {
        let turned = Arc::clone(&turned);
        async move {
            let to = if turned.load(Ordering::SeqCst) { new } else { old };
            let Ok(mut gateway) = tokio::net::TcpStream::connect(to).await else { return };
            let _ = gateway.set_nodelay(true);
            let _ = tokio::io::copy_bidirectional(&mut socket, &mut gateway).await;
        }
    })
    .await
}

#[tokio::test]
async fn at_the_deadline_what_is_left_is_cut_and_counted() {
    let (web, db) = (upstream::http().await, upstream::echo_tcp().await);
    let setup = Setup::new().service("web", 80, "as_client", &[web.addr]).service("db", 5432, "opaque", &[db]);
    let mut world = setup.start().await;
    let mut bytes = world.shop().opaque("db", 5432).await;
    bytes.write_all(b"x").await.unwrap();
    soon(bytes.read_u8()).await.unwrap();
    let h2 = world.shop().h2().await;
    let hanging =
        spawn(async move { h2.send(h2_request("GET", "web", "/hang").body(empty()).unwrap()).await.is_err() });
    until(|| web.seen().len() == 1).await;
    let app = world.take();
    let from = Instant::now();
    let drained = app.drain(Duration::ZERO, Duration::from_millis(400), std::future::pending()).await;
    assert_eq!((drained.began_with, drained.cut), (2, 2), "{drained:?}");
    assert!(
        (Duration::from_millis(350)..Duration::from_millis(2500)).contains(&from.elapsed()),
        "{:?}",
        from.elapsed()
    );
    assert!(soon(hanging).await.unwrap());
    assert!(world.lines().iter().any(|line| line["code"] == "relay.drain_deadline"), "{:?}", world.lines());
}

#[tokio::test]
async fn a_second_signal_cuts_at_once() {
    let db = upstream::echo_tcp().await;
    let mut world = Setup::new().service("db", 5432, "opaque", &[db]).start().await;
    let mut bytes = world.shop().opaque("db", 5432).await;
    bytes.write_all(b"x").await.unwrap();
    soon(bytes.read_u8()).await.unwrap();
    let app = world.take();
    let from = Instant::now();
    let second = tokio::time::sleep(Duration::from_millis(200));
    let drained = app.drain(Duration::from_secs(5), Duration::from_secs(30), second).await;
    assert_eq!(drained.cut, 1);
    assert!(from.elapsed() < Duration::from_secs(3));
    assert_eq!(soon(bytes.read(&mut [0])).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn after_the_announcement_nobody_new_is_taken() {
    let web = upstream::http().await;
    let mut world = Setup::new().service("web", 80, "as_client", &[web.addr]).start().await;
    let h2 = H2::new(world.shop().connect(&[ALPN_H2]).await).await;
    let held = h2.clone();
    let slow = spawn(async move { held.get("web", "/slow").await.status });
    until(|| web.seen().len() == 1).await;
    let app = world.take();
    let draining = spawn(app.drain(Duration::ZERO, Duration::from_secs(5), std::future::pending()));
    tokio::time::sleep(Duration::from_millis(60)).await;
    let refused = tokio::net::TcpStream::connect(world.addrs.gateway).await;
    assert!(refused.is_err(), "the socket is closed, so that another replica is tried at once");
    assert_eq!(slow.await.unwrap(), 200);
    assert_eq!(soon(draining).await.unwrap().cut, 0);
}
