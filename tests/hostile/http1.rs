//! A neighbour that speaks HTTP/1 badly: slowly in every place where one can be slow, all at once, and in two tongues.

use std::time::Duration;

use isthmus::tls::ALPN_HTTP11;
use isthmus_tests::wire::Http1;
use isthmus_tests::world::{Setup, service};
use isthmus_tests::{soon, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::others::are_served;
use crate::{connect, ended, world};

fn post(framing: &str) -> String {
    format!("POST /slow-body HTTP/1.1\r\nhost: {}\r\n{framing}\r\n\r\n", service("web"))
}

#[tokio::test]
async fn slowloris() {
    let setup = Setup::new().set("http", "header_timeout", "500ms");
    let (world, _) = world(setup.set("http", "body_window", "1s").set("http", "min_body_rate", "1KiB")).await;
    let host = service("web");
    // What comes at once, and what then comes byte by byte.
    let slow: Vec<(&str, String, String)> = vec![
        ("the request line", String::new(), "GET /".repeat(100)),
        ("a header", format!("GET / HTTP/1.1\r\nhost: {host}\r\nx-slow: "), "x".repeat(500)),
        ("the headers", format!("GET / HTTP/1.1\r\nhost: {host}\r\n"), "x: y\r\n".repeat(100)),
        ("a body", post("content-length: 1000"), "x".repeat(900)),
        ("chunks", post("transfer-encoding: chunked"), "1\r\nx\r\n".repeat(200)),
        ("trailers", post("transfer-encoding: chunked") + "0\r\n", "x: y\r\n".repeat(100)),
    ];
    are_served(&world, "slowloris in six places", 1, || async {
        let mut all = Vec::new();
        for (place, first, then) in &slow {
            let mut stream = connect(&world, &[ALPN_HTTP11]).await;
            all.push(async move {
                stream.write_all(first.as_bytes()).await.unwrap();
                let (mut read, mut write) = tokio::io::split(stream);
                let dribble = async {
                    for byte in then.as_bytes() {
                        if write.write_all(&[*byte]).await.is_err() {
                            break;
                        }
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    std::future::pending::<()>().await;
                };
                let back = tokio::select! {
                    () = dribble => unreachable!(),
                    back = ended(&mut read) => String::from_utf8(back).unwrap(),
                };
                let given_up = back.is_empty() || back.starts_with("HTTP/1.1 408 ");
                assert!(given_up, "{place}: {back}");
            });
        }
        futures_util::future::join_all(all).await;
    })
    .await;
    world.refused("relay.header_timeout").await;
    let line = world.refused("relay.body_timeout").await;
    assert_eq!(line["status"], 408, "{line}");
}

#[tokio::test]
async fn slow_endpoints_and_long_polls_are_no_slow_bodies() {
    let setup = Setup::new().set("http", "body_window", "1s").set("http", "min_body_rate", "1KiB");
    let (world, _) = world(setup.set("http", "stall_timeout", "300ms")).await;
    // The endpoint never answers; the client has said all it had to, and waits.
    for request in [post("content-length: 0"), post("content-length: 5") + "hello"] {
        let mut http = Http1::new(connect(&world, &[ALPN_HTTP11]).await);
        http.send(request.replace("/slow-body", "/hang")).await;
        let waits = tokio::time::timeout(Duration::from_millis(1800), http.stream.read_u8()).await;
        assert!(waits.is_err(), "nobody gave it up");
    }
}

#[tokio::test]
async fn pipelining_floods() {
    let (world, web) = world(Setup::new()).await;
    let one = format!("GET /flood HTTP/1.1\r\nhost: {}\r\n\r\n", service("web"));
    let many = one.repeat(5000);
    are_served(&world, "five thousand requests and no reading", 3, || async {
        let mut stream = connect(&world, &[ALPN_HTTP11]).await;
        let _ = tokio::time::timeout(Duration::from_millis(500), stream.write_all(many.as_bytes())).await;
    })
    .await;
    // One at a time, and none once its client is gone.
    until(|| {
        let now = web.seen().len();
        std::thread::yield_now();
        now == web.seen().len()
    })
    .await;
}

#[tokio::test]
async fn clients_that_do_not_read() {
    let (world, web) = world(Setup::new().set("accept", "user_timeout", "1s")).await;
    are_served(&world, "endless responses that nobody reads", 2, || async {
        let mut stream = connect(&world, &[ALPN_HTTP11]).await;
        let request = format!("GET /endless HTTP/1.1\r\nhost: {}\r\n\r\n", service("web"));
        stream.write_all(request.as_bytes()).await.unwrap();
        // The kernel gives a peer up whose window stays shut, and need not tell it.
        let mine = stream.get_ref().0.local_addr().unwrap().to_string();
        world.logged(|line| line["kind"] == "connection" && line["client_addr"] == mine.as_str()).await;
    })
    .await;
    assert!(web.produced() < 256 << 20, "{} bytes were made for nobody", web.produced());
    world.logged(|line| line["path"] == "/endless" && line["outcome"] == "abandoned").await;
}

#[tokio::test]
async fn smuggling() {
    let (world, web) = world(Setup::new()).await;
    let host = service("web");
    let inner = format!("GET /smuggled HTTP/1.1\r\nhost: {host}\r\n\r\n");
    let post =
        |framing: &str, body: &str| format!("POST /x HTTP/1.1\r\nhost: {host}\r\n{framing}\r\n\r\n{body}{inner}");
    let chunked = "transfer-encoding: chunked";
    let shapes = [
        ("CL.TE", post(&format!("content-length: 4\r\n{chunked}"), "0\r\n\r\n")),
        ("TE.CL", post(&format!("{chunked}\r\ncontent-length: 4"), "5c\r\n")),
        ("TE.TE", post(&format!("{chunked}\r\ntransfer-encoding: identity"), "0\r\n\r\n")),
        ("TE.TE, obfuscated", post("transfer-encoding: xchunked", "0\r\n\r\n")),
        ("TE.TE, a tab", post("transfer-encoding:\tchunked\r\ntransfer-encoding: x", "0\r\n\r\n")),
        ("TE, vertical tab", post("transfer-encoding: \x0bchunked", "0\r\n\r\n")),
        ("TE.0, a trailing comma", post("transfer-encoding: chunked,", "0\r\n\r\n")),
        ("CL.CL", post("content-length: 0\r\ncontent-length: 4", "")),
        ("a list of lengths", post("content-length: 0, 0", "")),
        ("a signed length", post("content-length: +0", "")),
        ("a negative length", post("content-length: -1", "")),
        ("a length in hex", post("content-length: 0x0", "")),
        ("a length with a blank in it", post("content-length: 1 0", "")),
        ("a length past 64 bits", post("content-length: 18446744073709551616", "")),
        ("bare LF", format!("POST /x HTTP/1.1\nhost: {host}\ncontent-length: 0\n\n{inner}")),
        ("bare CR", post("x: a\rcontent-length: 0", "")),
        ("obs-fold", post("transfer-encoding:\r\n chunked", "0\r\n\r\n")),
        ("a space before the colon", post("transfer-encoding : chunked", "0\r\n\r\n")),
        ("a fold in the first line", format!("POST /x HTTP/1.1\r\n host: {host}\r\n\r\n{inner}")),
        ("a chunk with a bare LF", post(chunked, "1\nx\r\n0\r\n\r\n")),
        ("a signed chunk size", post(chunked, "+1\r\nx\r\n0\r\n\r\n")),
        ("a chunk size in 0x", post(chunked, "0x1\r\nx\r\n0\r\n\r\n")),
        ("a chunk size past 64 bits", post(chunked, "10000000000000000\r\nx\r\n0\r\n\r\n")),
        ("a chunk extension with a bare LF", post(chunked, "1;a\nb\r\nx\r\n0\r\n\r\n")),
        ("a chunk that ends in a bare LF", post(chunked, "1\r\nx\n0\r\n\r\n")),
        ("framing among the trailers", post(chunked, "0\r\ntransfer-encoding: chunked\r\n\r\n")),
        (
            "an absolute form of another host",
            format!("GET http://other/x HTTP/1.1\r\nhost: {host}\r\ncontent-length: 1\r\n\r\n"),
        ),
    ];
    are_served(&world, "smuggling in the published shapes", 1, || async {
        for (shape, bytes) in &shapes {
            let mut stream = connect(&world, &[ALPN_HTTP11]).await;
            stream.write_all(bytes.as_bytes()).await.unwrap();
            let back = if shape.contains("absolute") {
                let mut some = vec![0; 4096];
                let len = soon(stream.read(&mut some)).await.unwrap();
                some.truncate(len);
                some
            } else {
                ended(&mut stream).await
            };
            let back = String::from_utf8(back).unwrap();
            assert!(!back.contains("HTTP/1.1 2"), "{shape}: {back}");
            assert!(back.matches("HTTP/1.1 ").count() <= 1, "{shape}: {back}");
        }
        // Where the length is right there are two requests, and what looks like a third is the first one's body (CL.0, 0.CL).
        let mut http = Http1::new(connect(&world, &[ALPN_HTTP11]).await);
        let body = inner.as_str();
        http.send(format!("GET /cl0 HTTP/1.1\r\nhost: {host}\r\ncontent-length: {}\r\n\r\n{body}", body.len())).await;
        assert_eq!(http.response(false).await.status(), 200);
        assert_eq!(http.get("web", "/after").await.status(), 200);
        // Chunk extensions are taken off, not handed on.
        let mut http = Http1::new(connect(&world, &[ALPN_HTTP11]).await);
        http.send(format!("POST /echo HTTP/1.1\r\nhost: {host}\r\n{chunked}\r\n\r\n5;a=\"b\"\r\nhello\r\n0;x\r\n\r\n"))
            .await;
        assert_eq!(http.response(false).await.text(), "hello");
    })
    .await;
    let seen = web.seen();
    // Where only the body is wrong the endpoint may have been asked, and was never told that it is whole.
    assert!(seen.iter().all(|seen| !seen.uri.contains("smuggled")), "one went through");
    let lines = world.lines();
    assert!(!lines.iter().any(|line| line["path"] == "/x" && line["outcome"] == "served"), "one was served");
}
