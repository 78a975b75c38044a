//! `relay`: bytes, both ways, to the last one.

use std::time::Duration;

use isthmus_tests::peer::listen;
use isthmus_tests::world::{Setup, World};
use isthmus_tests::{soon, spawn, upstream};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// 100 MiB each way.
const BYTES: u64 = 100 << 20;

/// The bytes that go: a counter mixed up, so that a lost, doubled or moved piece shows.
fn fill(piece: &mut [u8], at: u64) {
    for (index, word) in piece.chunks_exact_mut(8).enumerate() {
        let number = at / 8 + index as u64;
        word.copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    }
}

async fn send(mut stream: impl AsyncWrite + Unpin) {
    let mut piece = vec![0; 64 * 1024];
    let mut at = 0;
    while at < BYTES {
        fill(&mut piece, at);
        stream.write_all(&piece).await.unwrap();
        at += piece.len() as u64;
    }
    stream.shutdown().await.unwrap();
}

async fn check(mut stream: impl AsyncRead + Unpin) {
    let mut piece = vec![0; 64 * 1024];
    let mut expected = vec![0; 64 * 1024];
    let mut at = 0;
    loop {
        let mut filled = 0;
        while filled < piece.len() {
            match stream.read(&mut piece[filled..]).await.unwrap() {
                0 => break,
                bytes => filled += bytes,
            }
        }
        if filled == 0 {
            break;
        }
        fill(&mut expected, at);
        assert!(piece[..filled] == expected[..filled], "wrong bytes near {at}");
        at += filled as u64;
    }
    assert_eq!(at, BYTES);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_mebibytes_each_way_at_once() {
    let (done, mut checked) = tokio::sync::mpsc::channel(1);
    let addr = upstream::tcp(move |socket, _| {
        let done = done.clone();
        async move {
            let (read, write) = socket.into_split();
            let sending = spawn(send(write));
            check(read).await;
            sending.await.unwrap();
            done.send(()).await.unwrap();
        }
    })
    .await;
    let world = Setup::new().service("bulk", 9000, "opaque", &[addr]).start().await;
    let stream = world.shop().opaque("bulk", 9000).await;
    let (read, write) = tokio::io::split(stream);
    let all = async {
        let sending = spawn(send(write));
        check(read).await;
        sending.await.unwrap();
        checked.recv().await.unwrap();
    };
    tokio::time::timeout(Duration::from_secs(60), all).await.unwrap();
    let line = world.logged(|line| line["protocol"] == "opaque").await;
    assert_eq!(
        (&line["bytes_received"], &line["bytes_sent"], &line["outcome"]),
        (&BYTES.into(), &BYTES.into(), &"served".into())
    );
    let labels = [("service", "bulk.ns.svc.cluster.local:9000"), ("direction", "received")];
    assert!((world.count("isthmus_relay_bytes_total", &labels).await - BYTES as f64).abs() < 0.5);
}

async fn with(addr: std::net::SocketAddr) -> World {
    Setup::new().service("db", 5432, "opaque", &[addr]).start().await
}

#[tokio::test]
async fn an_end_is_passed_on_and_the_other_way_goes_on() {
    // The server answers only when the client has ended.
    let counts = upstream::tcp(|mut socket, _| async move {
        let mut all = Vec::new();
        socket.read_to_end(&mut all).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        socket.write_all(format!("{} bytes", all.len()).as_bytes()).await.unwrap();
    });
    let world = with(counts.await).await;
    let mut stream = world.shop().opaque("db", 5432).await;
    stream.write_all(&[7; 1000]).await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(listen(&mut stream).await, (b"1000 bytes".to_vec(), None));

    // The server ends at once, and still listens.
    let (heard, mut hears) = tokio::sync::mpsc::channel(1);
    let ends = upstream::tcp(move |mut socket, _| {
        let heard = heard.clone();
        async move {
            socket.write_all(b"bye").await.unwrap();
            socket.shutdown().await.unwrap();
            let mut all = Vec::new();
            socket.read_to_end(&mut all).await.unwrap();
            heard.send(all).await.unwrap();
        }
    });
    let world = with(ends.await).await;
    let mut stream = world.shop().opaque("db", 5432).await;
    assert_eq!(listen(&mut stream).await, (b"bye".to_vec(), None));
    tokio::time::sleep(Duration::from_millis(50)).await;
    stream.write_all(b"and yet").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(soon(hears.recv()).await.unwrap(), b"and yet");
    let line = world.logged(|line| line["protocol"] == "opaque").await;
    assert_eq!(
        (&line["outcome"], &line["bytes_received"], &line["bytes_sent"]),
        (&"served".into(), &7.into(), &3.into())
    );
}

#[tokio::test]
async fn silence_ends_a_connection_and_traffic_keeps_it() {
    let addr = upstream::echo_tcp().await;
    let setup = Setup::new().service("db", 5432, "opaque", &[addr]).set("relay", "idle_timeout", "400ms");
    let world = setup.start().await;
    let mut stream = world.shop().opaque("db", 5432).await;
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        stream.write_all(b"x").await.unwrap();
        soon(stream.read_u8()).await.unwrap();
    }
    listen(&mut stream).await;
    let line = world.refused("relay.idle_timeout").await;
    assert_eq!(line["bytes_sent"], 4);
}

#[tokio::test]
async fn a_total_timeout_ends_whatever_happens() {
    let addr = upstream::echo_tcp().await;
    let setup = Setup::new().service("db", 5432, "opaque", &[addr]).set("relay", "total_timeout", "300ms");
    let world = setup.start().await;
    let mut stream = world.shop().opaque("db", 5432).await;
    while stream.write_all(b"x").await.is_ok() {
        if soon(stream.read_u8()).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    world.refused("relay.total_timeout").await;
}

#[tokio::test]
async fn who_broke_off_is_told_apart() {
    let resets = upstream::tcp(|mut socket, _| async move {
        let _ = socket.read_u8().await;
        socket.set_zero_linger().unwrap();
    });
    let world = with(resets.await).await;
    let mut stream = world.shop().opaque("db", 5432).await;
    stream.write_all(b"x").await.unwrap();
    listen(&mut stream).await;
    world.refused("relay.upstream_reset").await;

    let world = with(upstream::echo_tcp().await).await;
    let mut stream = world.shop().opaque("db", 5432).await;
    stream.write_all(b"x").await.unwrap();
    soon(stream.read_u8()).await.unwrap();
    stream.get_ref().0.set_zero_linger().unwrap();
    drop(stream);
    world.refused("relay.client_reset").await;
}
