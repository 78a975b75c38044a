//! What the gateway says last is heard, also by a client that is still sending: a reset would destroy it on the way.

use std::time::Duration;

use isthmus::tls::{ALPN_H2, ALPN_HTTP11};
use isthmus_tests::h2raw::{DATA, Frames, GOAWAY, HEADERS, PING};
use isthmus_tests::world::Setup;
use isthmus_tests::{soon, spawn, upstream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_in_the_middle_of_an_upload() {
    let web = upstream::http().await;
    let world = Setup::new().service("web", 80, "http1", &[web.addr]).start().await;
    let (mut read, mut write) = tokio::io::split(world.shop().connect(&[ALPN_HTTP11]).await);
    let upload = spawn(async move {
        let head =
            "POST /echo HTTP/1.1\r\nhost: web.ns.svc.cluster.local\r\ntransfer-encoding: chunked\r\n\r\nno chunk\r\n";
        let _ = write.write_all(head.as_bytes()).await;
        for _ in 0..40 {
            let _ = write.write_all(&[b'x'; 10_000]).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        write
    });
    // The client reads when it has written.
    let _write = soon(upload).await.unwrap();
    let mut answer = vec![0; 12];
    soon(read.read_exact(&mut answer)).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 400");
}

/// A request that crosses the last GOAWAY is the client's to send again, if it hears of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_goaway_while_a_request_crosses_it() {
    let web = upstream::http().await;
    let mut world = Setup::new().service("web", 80, "http1", &[web.addr]).start().await;
    let mut frames = Frames(world.shop().connect(&[ALPN_H2]).await);
    frames.preface().await;
    frames.get(1, "web.ns.svc.cluster.local", "/").await;
    loop {
        let frame = frames.next().await.unwrap();
        frames.acknowledge(&frame).await;
        if frame.kind == DATA && frame.flags & 1 == 1 {
            break;
        }
    }
    let app = world.take();
    let draining = spawn(app.drain(Duration::ZERO, Duration::from_secs(8), std::future::pending()));
    assert_eq!(frames.find(GOAWAY).await.payload[..4], [0x7f, 0xff, 0xff, 0xff]);
    let ping = frames.find(PING).await;
    frames.acknowledge(&ping).await;
    // By now the gateway has said its last word and closed its side; an upload is under way to it.
    tokio::time::sleep(Duration::from_millis(100)).await;
    for _ in 0..8 {
        frames.send(DATA, 0, 3, &[b'x'; 16_000]).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let last = frames.find(GOAWAY).await;
    assert_eq!((&last.payload[..4], &last.payload[4..8]), (&[0, 0, 0, 1][..], &[0; 4][..]));
    assert!(frames.next().await.is_none_or(|frame| frame.kind != HEADERS));
    drop(frames);
    assert_eq!(soon(draining).await.unwrap().cut, 0);
}
