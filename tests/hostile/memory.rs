//! The bound that `isthmus config bound` computes, held against a gateway as a process of its own, driven to its limits.

use std::process::Stdio;
use std::time::Duration;

use isthmus::tls::{ALPN_H2, ALPN_HTTP11, ALPN_TRANSPORT_HEADER};
use isthmus_tests::h2raw::{DATA, Frames, HEADERS, SETTINGS};
use isthmus_tests::peer::{Peer, header};
use isthmus_tests::pki::{GATEWAY, Pki};
use isthmus_tests::world::{Setup, service};
use isthmus_tests::{soon, upstream};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::http2::{block, raw, request};
use crate::mallory;

/// A line of `/proc/PID/status`, in bytes.
fn status(pid: u32, key: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find(|line| line.starts_with(key)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// Writes until nothing more is taken, or it was enough.
async fn stuff(stream: &mut (impl tokio::io::AsyncWrite + Unpin), bytes: &[u8]) {
    let _ = tokio::time::timeout(Duration::from_millis(300), stream.write_all(bytes)).await;
}

#[tokio::test]
async fn at_all_limits_memory_stays_below_the_bound() {
    let web = upstream::http().await;
    // Takes no byte, and gives none.
    let stuck = upstream::tcp(|socket, _| async move {
        std::future::pending::<()>().await;
        drop(socket);
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let pki = Pki::get();
    for (name, text) in [("a.pem", &pki.gateway.chain), ("b.pem", &pki.gateway.key), ("c.pem", &pki.anchor.cert_pem())]
    {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let setup = Setup::new()
        .set("tls", "chain_file", "a.pem")
        .set("tls", "key_file", "b.pem")
        .set("tls", "bundle_file", "c.pem")
        .set("tls", "max_handshakes", "16")
        .set("accept", "max_connections", "100")
        .set("accept", "max_unidentified_per_network", "0")
        .set("http", "max_streams", "64")
        .set("http", "max_requests", "128")
        .set("http", "stream_window", "64KiB")
        .set("http", "connection_window", "256KiB")
        .set("http", "stall_timeout", "0")
        .set("connect", "stream_window", "64KiB")
        .set("route", "max_services", "16")
        .set("probe", "max_connections", "8")
        .set("telemetry", "access_log", "'off'")
        .service("web", 80, "as_client", &[web.addr])
        .service("stuck", 80, "as_client", &[stuck])
        .service("db", 5432, "opaque", &[stuck]);
    let path = folder.path().join("isthmus.yaml");
    std::fs::write(&path, setup.yaml()).unwrap();

    let binary = assert_cmd::cargo::cargo_bin("isthmus");
    let printed = std::process::Command::new(&binary)
        .args(["config", "bound", "--output", "json", "--config"])
        .arg(&path)
        .output()
        .unwrap();
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    let bound: Value = serde_json::from_slice(&printed.stdout).unwrap();
    let bound = bound["bytes"].as_u64().unwrap();
    let fits = |size: u64| {
        let mut command = std::process::Command::new(&binary);
        command
            .args(["config", "bound", "--fits", &size.to_string(), "--config"])
            .arg(&path)
            .output()
            .unwrap()
            .status
            .code()
    };
    assert_eq!((fits(bound), fits(bound - 1)), (Some(0), Some(3)));

    let mut child = tokio::process::Command::new(&binary)
        .args(["run", "--config"])
        .arg(&path)
        .env("NO_COLOR", "1")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let pid = child.id().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    let line = loop {
        let line = soon(said.next_line()).await.unwrap().expect("it serves");
        if line.contains("serving") {
            break line;
        }
    };
    let addr = line.split_whitespace().find_map(|word| word.strip_prefix("gateway=")).unwrap().parse().unwrap();
    drop(isthmus_tests::spawn(async move { while let Ok(Some(_)) = said.next_line().await {} }));
    let idle = status(pid, "VmRSS");
    let mallory = Peer::new(&pki.anchor.cert_pem(), Some(mallory()), GATEWAY, addr);
    let (host, stuck) = (service("web"), service("stuck"));

    // Responses that nobody takes, on more streams than requests may be under way.
    let mut held: Vec<Box<dyn std::any::Any>> = Vec::new();
    for _ in 0..10 {
        let mut frames = Frames(mallory.connect(&[ALPN_H2]).await);
        frames.0.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        frames.send(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]).await;
        let endless = block(&request("GET", "/endless", &host));
        let all: Vec<u8> = (0..30).flat_map(|n| raw(HEADERS, 5, 2 * n + 1, &endless)).collect();
        stuff(&mut frames.0, &all).await;
        held.push(Box::new(frames));
    }
    // Bodies that nobody reads, behind heads as large as may be.
    for _ in 0..10 {
        let mut frames = Frames(mallory.connect(&[ALPN_H2]).await);
        frames.preface().await;
        let fat = "x".repeat(150);
        let mut fields = request("POST", "/", &stuck);
        fields.resize(fields.len() + 75, ("x-fat", &fat));
        let head = block(&fields);
        let mut all = Vec::new();
        for n in 0..4 {
            all.extend(raw(HEADERS, 4, 2 * n + 1, &head));
            all.extend(raw(DATA, 0, 2 * n + 1, &[0; 15_000]).repeat(4));
        }
        stuff(&mut frames.0, &all).await;
        held.push(Box::new(frames));
    }
    // The same over HTTP/1; heads that never end; bytes that nobody takes.
    let megabyte = vec![b'x'; 1 << 20];
    for _ in 0..10 {
        let mut reader = mallory.connect(&[ALPN_HTTP11]).await;
        stuff(&mut reader, format!("GET /endless HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes()).await;
        let mut writer = mallory.connect(&[ALPN_HTTP11]).await;
        let head = format!("POST / HTTP/1.1\r\nhost: {stuck}\r\ncontent-length: 9999999\r\n\r\n");
        stuff(&mut writer, &[head.as_bytes(), &megabyte].concat()).await;
        let mut endless = mallory.connect(&[ALPN_HTTP11]).await;
        stuff(&mut endless, &[b"GET / HTTP/1.1\r\nx-large: ", &megabyte[..15_000]].concat()).await;
        let mut opaque = mallory.connect(&[ALPN_TRANSPORT_HEADER]).await;
        stuff(&mut opaque, &[&header("db", 5432, None)[..], &megabyte].concat()).await;
        held.push(Box::new((reader, writer, endless, opaque)));
    }
    // Half a large hello on every place that is left.
    for _ in 0..60 {
        let mut socket = soon(TcpStream::connect(addr)).await.unwrap();
        stuff(&mut socket, &[&[22, 3, 1, 0x3f, 0xff, 1, 0, 0x3f, 0xfb][..], &megabyte[..16_000]].concat()).await;
        held.push(Box::new(socket));
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (now, most) = (status(pid, "VmRSS"), status(pid, "VmHWM"));
    let mib = |bytes: u64| bytes >> 20;
    println!(
        "idle {} MiB, at the limits {} MiB, most {} MiB, bound {} MiB",
        mib(idle),
        mib(now),
        mib(most),
        mib(bound)
    );
    assert!(most < bound, "{} MiB of {} MiB", mib(most), mib(bound));
    assert!(now > idle + (10 << 20), "nothing was driven anywhere: {} MiB, then {} MiB", mib(idle), mib(now));
    drop(held);
}
