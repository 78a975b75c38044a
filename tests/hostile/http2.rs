//! A neighbour that speaks HTTP/2 badly: floods, resets, windows that never open, tables that never rest, heads that lie.

use std::time::Duration;

use isthmus::tls::ALPN_H2;
use isthmus_tests::h2raw::{DATA, Frame, Frames, GOAWAY, HEADERS, PING, RST_STREAM, SETTINGS};
use isthmus_tests::peer::{Tls, channel, h2_request};
use isthmus_tests::world::{Setup, service};
use isthmus_tests::{soon, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use crate::others::are_served;
use crate::{connect, ended, frames, peer, world};

const PRIORITY: u8 = 2;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const ALL: u8 = END_STREAM | END_HEADERS;

const REFUSED_STREAM: u32 = 7;
const ENHANCE_YOUR_CALM: u32 = 11;

/// A frame as it goes out.
pub(crate) fn raw(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn length(out: &mut Vec<u8>, prefix: u8, bits: u8, length: usize) {
    let most = (1usize << bits) - 1;
    if length < most {
        out.push(prefix | u8::try_from(length).unwrap());
        return;
    }
    out.push(prefix | u8::try_from(most).unwrap());
    let mut rest = length - most;
    while rest >= 128 {
        out.push(u8::try_from(rest % 128).unwrap() | 0x80);
        rest /= 128;
    }
    out.push(u8::try_from(rest).unwrap());
}

/// A header block of literals, whatever they say. (RFC 7541 §6.2.2.)
pub(crate) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in fields {
        out.push(0);
        length(&mut out, 0, 7, name.len());
        out.extend(name.as_bytes());
        length(&mut out, 0, 7, value.len());
        out.extend(value.as_bytes());
    }
    out
}

fn web() -> String {
    service("web")
}

/// What a request begins with.
pub(crate) fn request<'a>(method: &'a str, path: &'a str, authority: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![(":method", method), (":scheme", "http"), (":path", path), (":authority", authority)]
}

fn get(stream: u32, path: &str) -> Vec<u8> {
    raw(HEADERS, ALL, stream, &block(&request("GET", path, &web())))
}

fn code(frame: &Frame) -> u32 {
    let at = if frame.kind == GOAWAY { 4 } else { 0 };
    u32::from_be_bytes(frame.payload[at..at + 4].try_into().unwrap())
}

fn streams(count: u32) -> impl Iterator<Item = u32> {
    (0..count).map(|n| 2 * n + 1)
}

/// Waits until the gateway has looked at all that was sent.
async fn pinged(frames: &mut Frames<Tls>) {
    frames.send(PING, 0, 0, &[9; 8]).await;
    loop {
        let frame = frames.find(PING).await;
        if frame.flags & 1 == 1 && frame.payload == [9; 8] {
            return;
        }
        frames.acknowledge(&frame).await;
    }
}

/// What becomes of a stream: the code of its reset (or of the connection's end), or none when it was answered, with its head.
async fn fate(frames: &mut Frames<Tls>, stream: u32) -> (Option<u32>, Vec<u8>) {
    loop {
        let frame =
            frames.next().await.unwrap_or_else(|| Frame { kind: GOAWAY, flags: 0, stream: 0, payload: vec![0xff; 8] });
        match frame.kind {
            RST_STREAM if frame.stream == stream => return (Some(code(&frame)), Vec::new()),
            GOAWAY => return (Some(code(&frame)), Vec::new()),
            HEADERS if frame.stream == stream => return (None, frame.payload),
            _ => frames.acknowledge(&frame).await,
        }
    }
}

/// The code that the connection is ended with.
async fn goaway(frames: &mut Frames<Tls>) -> u32 {
    loop {
        let frame = frames.next().await.expect("an end with a reason");
        if frame.kind == GOAWAY {
            return code(&frame);
        }
    }
}

/// Sends as much as goes out in a moment, while what comes back is read and thrown away.
async fn flood(frames: Frames<Tls>, bytes: &[u8]) {
    let (mut read, mut write) = tokio::io::split(frames.0);
    let mut back = vec![0; 16 * 1024];
    let both = async {
        let reading = async { while read.read(&mut back).await.is_ok_and(|len| len > 0) {} };
        tokio::join!(reading, write.write_all(bytes))
    };
    let _ = tokio::time::timeout(Duration::from_millis(600), both).await;
}

#[tokio::test]
async fn rapid_reset() {
    let (world, web) = world(Setup::new()).await;
    let pairs: Vec<u8> =
        streams(2000).flat_map(|id| [get(id, "/hang"), raw(RST_STREAM, 0, id, &[0, 0, 0, 8])].concat()).collect();
    are_served(&world, "rapid reset", 3, || async {
        let mut frames = frames(&world).await;
        let _ = frames.0.write_all(&pairs).await;
        assert_eq!(goaway(&mut frames).await, ENHANCE_YOUR_CALM);
    })
    .await;
    // Nothing of it goes on behind the gateway.
    until(|| web.cancelled() == web.seen().iter().filter(|seen| seen.uri.contains("/hang")).count()).await;
}

#[tokio::test]
async fn resets_of_streams_that_were_begun_are_slowed_down() {
    let (world, _) = world(Setup::new().set("http", "max_resets", "60")).await;
    let mut frames = frames(&world).await;
    let began = Instant::now();
    let ids: Vec<u32> = streams(240).collect();
    for some in ids.chunks(15) {
        let opened: Vec<u8> = some.iter().flat_map(|id| get(*id, "/hang")).collect();
        frames.0.write_all(&opened).await.unwrap();
        pinged(&mut frames).await;
        let reset: Vec<u8> = some.iter().flat_map(|id| raw(RST_STREAM, 0, *id, &[0, 0, 0, 8])).collect();
        frames.0.write_all(&reset).await.unwrap();
        pinged(&mut frames).await;
    }
    // Sixty at once and sixty a second. There is no upper bound to assert on a busy machine.
    assert!(began.elapsed() > Duration::from_millis(2500), "{:?}", began.elapsed());
    frames.get(999, &service("web"), "/").await;
    assert_eq!(fate(&mut frames, 999).await.0, None, "slowed down, and served");
}

#[tokio::test]
async fn made_you_reset() {
    let (world, _) = world(Setup::new().set("http", "max_local_resets", "50")).await;
    // The window of a stream overflows: an error of that stream alone, which the gateway must reset.
    let pairs: Vec<u8> = streams(100)
        .flat_map(|id| [get(id, "/hang"), raw(WINDOW_UPDATE, 0, id, &[0x7f, 0xff, 0xff, 0xff])].concat())
        .collect();
    are_served(&world, "resets that the server is made to send", 3, || async {
        let mut frames = frames(&world).await;
        let _ = frames.0.write_all(&pairs).await;
        assert_eq!(goaway(&mut frames).await, ENHANCE_YOUR_CALM);
    })
    .await;
}

#[tokio::test]
async fn continuation_floods() {
    let (world, _) = world(Setup::new()).await;
    let endless =
        [raw(HEADERS, 0, 1, &block(&[(":method", "GET")])), raw(CONTINUATION, 0, 1, &[]).repeat(5000)].concat();
    let fields = block(&[("x-padding", &"x".repeat(1000))]);
    let large =
        [raw(HEADERS, 0, 1, &block(&[(":method", "GET")])), raw(CONTINUATION, 0, 1, &fields).repeat(500)].concat();
    are_served(&world, "CONTINUATION without end", 3, || async {
        for bytes in [&endless, &large] {
            let mut frames = frames(&world).await;
            let _ = frames.0.write_all(bytes).await;
            let _ = ended(&mut frames.0).await;
        }
    })
    .await;
}

#[tokio::test]
async fn floods_of_control_frames() {
    let (world, _) = world(Setup::new()).await;
    for (name, frame) in [
        ("PING", raw(PING, 0, 0, &[1; 8])),
        ("SETTINGS", raw(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0])),
        ("WINDOW_UPDATE", raw(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ("PRIORITY", raw(PRIORITY, 0, 1, &[0, 0, 0, 3, 7])),
        ("frames that nobody knows", raw(0xfe, 0, 0, &[])),
    ] {
        let bytes = frame.repeat(20_000);
        are_served(&world, name, 2, || async { flood(frames(&world).await, &bytes).await }).await;
    }
    let data =
        [raw(HEADERS, END_HEADERS, 1, &block(&request("POST", "/hang", &web()))), raw(DATA, 0, 1, &[]).repeat(20_000)];
    let data = data.concat();
    are_served(&world, "empty DATA", 2, || async {
        let mut frames = frames(&world).await;
        let _ = frames.0.write_all(&data).await;
        assert_eq!(goaway(&mut frames).await, ENHANCE_YOUR_CALM);
    })
    .await;
}

#[tokio::test]
async fn control_frames_have_a_rate() {
    let (world, _) = world(Setup::new().set("http", "max_control_frames", "200")).await;
    let mut frames = frames(&world).await;
    let began = Instant::now();
    for _ in 0..8 {
        frames.0.write_all(&raw(PRIORITY, 0, 1, &[0, 0, 0, 3, 7]).repeat(100)).await.unwrap();
        pinged(&mut frames).await;
    }
    // Two hundred at once and two hundred a second.
    assert!(began.elapsed() > Duration::from_millis(2000), "{:?}", began.elapsed());
}

#[tokio::test]
async fn windows_that_never_open() {
    let setup = Setup::new().set("http", "stall_timeout", "600ms").set("connect", "max_http2_connections", "2");
    let (world, web) = world(setup).await;
    are_served(&world, "twenty responses and no window", 2, || async {
        let mut frames = Frames(connect(&world, &[ALPN_H2]).await);
        frames.0.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        frames.send(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]).await; // INITIAL_WINDOW_SIZE 0
        let all: Vec<u8> = streams(20).flat_map(|id| get(id, "/endless")).collect();
        frames.0.write_all(&all).await.unwrap();
        let mut reset = std::collections::BTreeSet::new();
        while reset.len() < 20 {
            let frame = frames.find(RST_STREAM).await;
            reset.insert(frame.stream);
        }
        // They alone: the connection goes on, for whoever opens a window.
        frames.get(101, &service("web"), "/").await;
        frames.send(WINDOW_UPDATE, 0, 101, &[0, 1, 0, 0]).await;
        assert_eq!(fate(&mut frames, 101).await.0, None);
    })
    .await;
    let line = world.refused("relay.response_stalled").await;
    assert_eq!((line["kind"].as_str(), line["client_identity"].as_str()), (Some("request"), Some(crate::MALLORY)));
    let now = web.produced();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(web.produced(), now, "nothing is made for nobody");
}

#[tokio::test]
async fn a_slow_endpoint_is_no_stalled_client() {
    let setup = Setup::new().set("http", "stall_timeout", "300ms").set("http", "body_window", "1s");
    let (world, _) = world(setup.set("http", "min_body_rate", "1KiB")).await;
    let h2 = peer(&world).h2().await;
    // gRPC: head, a message, silence of both sides for longer than any of these times, another message, the end.
    let (mut sender, body) = channel();
    let ask = h2_request("POST", "web", "/echo").header("content-type", "application/grpc").body(body).unwrap();
    let answer = soon(h2.send(ask)).await.unwrap();
    let mut answer = answer.into_body();
    for _ in 0..2 {
        sender.send_data("hello"[..].into()).await.unwrap();
        let frame = soon(http_body_util::BodyExt::frame(&mut answer)).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "hello");
        tokio::time::sleep(Duration::from_millis(1300)).await;
    }
    drop(sender);
    assert!(soon(http_body_util::BodyExt::frame(&mut answer)).await.is_none_or(|end| end.is_ok()));
}

#[tokio::test]
async fn header_tables_that_explode_or_never_rest() {
    let (world, web) = world(Setup::new()).await;
    let name = service("web");
    // One field of 3 kB in the table, and a thousand references to it: 3 MB from 4 kB.
    let mut bomb = block(&request("GET", "/bomb", &name));
    bomb.push(0x40);
    length(&mut bomb, 0, 7, 1);
    bomb.push(b'x');
    length(&mut bomb, 0, 7, 3000);
    bomb.extend([b'y'; 3000]);
    bomb.resize(bomb.len() + 1000, 0xbe);
    // A table of no size and of all its size in turn, with a field that is put in and driven out each time.
    let mut thrash = vec![0x20, 0x3f, 0xe1, 0x1f];
    for n in 0..100u8 {
        thrash.push(0x40);
        length(&mut thrash, 0, 7, 1);
        thrash.push(b'a' + n % 26);
        length(&mut thrash, 0, 7, 2);
        thrash.extend([b'0' + n / 26, b'z']);
    }
    are_served(&world, "HPACK bombs and thrashed tables", 2, || async {
        let mut bombed = frames(&world).await;
        bombed.0.write_all(&raw(HEADERS, ALL, 1, &bomb)).await.unwrap();
        let (reset, head) = fate(&mut bombed, 1).await;
        // 431, as a literal or an index is never below 3 bytes; or the end of the connection.
        assert!(reset == Some(ENHANCE_YOUR_CALM) || head.windows(3).any(|three| three == b"431"), "{reset:?} {head:?}");
        let mut thrashed = frames(&world).await;
        let mut bytes = Vec::new();
        for id in streams(50) {
            let fields = [&thrash[..4], &block(&request("GET", "/thrash", &name))[..], &thrash[4..]].concat();
            bytes.extend(raw(SETTINGS, 0, 0, &[0, 1, 0, 0, if id % 4 == 1 { 0 } else { 16 }, 0]));
            bytes.extend(raw(HEADERS, ALL, id, &fields));
        }
        pinged(&mut thrashed).await;
        flood(thrashed, &bytes).await;
    })
    .await;
    assert!(web.seen().iter().all(|seen| !seen.uri.contains("bomb")), "a bomb went through");
}

#[tokio::test]
async fn streams_and_fields_have_their_limits() {
    let (world, web) = world(Setup::new().set("http", "max_streams", "10")).await;
    let mut frames = frames(&world).await;
    frames.find(SETTINGS).await;
    let all: Vec<u8> = streams(15).flat_map(|id| get(id, "/hang")).collect();
    frames.0.write_all(&all).await.unwrap();
    for _ in 0..5 {
        let frame = frames.find(RST_STREAM).await;
        assert!(frame.stream > 20 && code(&frame) == REFUSED_STREAM, "{frame:?}");
    }
    until(|| web.seen().len() == 10).await;
    let reset: Vec<u8> = streams(10).flat_map(|id| raw(RST_STREAM, 0, id, &[0, 0, 0, 8])).collect();
    frames.0.write_all(&reset).await.unwrap();
    pinged(&mut frames).await;
    let name = service("web");
    let mut fields = request("GET", "/many", &name);
    fields.resize(fields.len() + 100, ("x-many", "1"));
    frames.send(HEADERS, ALL, 101, &block(&fields)).await;
    assert_eq!(fate(&mut frames, 101).await.0, None);
    assert!(web.seen().iter().any(|seen| seen.uri.contains("/many")), "a hundred may be");
    fields.push(("x-many", "1"));
    frames.send(HEADERS, ALL, 103, &block(&fields)).await;
    assert_eq!(fate(&mut frames, 103).await.0, None, "answered");
    let line = world.refused("relay.too_many_headers").await;
    assert_eq!(line["status"], 431, "{line}");
}

#[tokio::test]
async fn heads_that_never_end() {
    let (world, _) = world(Setup::new().set("http", "header_timeout", "500ms")).await;
    are_served(&world, "half a header block, half a frame's head", 3, || async {
        let half = raw(HEADERS, 0, 1, &block(&request("GET", "/", &web())));
        for bytes in [&half[..], &half[..5], &half[..30]] {
            let mut frames = frames(&world).await;
            pinged(&mut frames).await;
            frames.0.write_all(bytes).await.unwrap();
            let _ = ended(&mut frames.0).await;
        }
    })
    .await;
    world.refused("relay.header_timeout").await;
    // Whoever ends each head in time is not meant, though all reads end within one.
    let mut frames = frames(&world).await;
    let all: Vec<u8> = streams(40).flat_map(|id| get(id, "/")).collect();
    let mut answered = 0;
    for piece in all.chunks(60) {
        frames.0.write_all(piece).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    while answered < 40 {
        frames.find(HEADERS).await;
        answered += 1;
    }
}

#[tokio::test]
async fn requests_that_are_none() {
    let (world, web) = world(Setup::new()).await;
    let name = service("web");
    let with = |more: &[(&'static str, &'static str)]| {
        let mut fields = request("POST", "/odd", &name);
        fields.extend(more);
        block(&fields)
    };
    let pseudo = |fields: &[(&str, &str)]| block(fields);
    let odd: Vec<(&str, Vec<u8>)> = vec![
        ("an upper-case name", with(&[("X-Odd", "1")])),
        ("a space in a name", with(&[("x odd", "1")])),
        ("a colon in a name", with(&[("x:odd", "1")])),
        ("a line end in a value", with(&[("x-odd", "1\r\nx-more: 1")])),
        ("NUL in a value", with(&[("x-odd", "1\0")])),
        ("connection", with(&[("connection", "close")])),
        ("keep-alive", with(&[("keep-alive", "1")])),
        ("proxy-connection", with(&[("proxy-connection", "close")])),
        ("transfer-encoding", with(&[("transfer-encoding", "chunked")])),
        ("upgrade", with(&[("upgrade", "h2c")])),
        ("te other than trailers", with(&[("te", "gzip")])),
        ("a length that is none", with(&[("content-length", "-1")])),
        ("two lengths", with(&[("content-length", "0"), ("content-length", "5")])),
        ("a pseudo-header behind a field", with(&[("x-odd", "1"), (":path", "/other")])),
        ("a pseudo-header twice", with(&[(":path", "/other")])),
        ("an unknown pseudo-header", with(&[(":odd", "1")])),
        ("a response's pseudo-header", with(&[(":status", "200")])),
        ("no method", pseudo(&[(":scheme", "http"), (":path", "/odd"), (":authority", &name)])),
        ("no scheme", pseudo(&[(":method", "GET"), (":path", "/odd"), (":authority", &name)])),
        ("no path", pseudo(&[(":method", "GET"), (":scheme", "http"), (":authority", &name)])),
        ("an empty path", pseudo(&request("GET", "", &name))),
        ("a path that is none", pseudo(&request("GET", "odd", &name))),
        ("a method that is none", pseudo(&request("G ET", "/odd", &name))),
        ("an authority that is none", pseudo(&request("GET", "/odd", "web\r\nhost: x"))),
        ("user information", pseudo(&request("GET", "/odd", "admin@web.ns.svc.cluster.local@x"))),
        ("another host", with(&[("host", "other.ns.svc.cluster.local")])),
        ("CONNECT with a path", pseudo(&request("CONNECT", "/odd", &name))),
        ("CONNECT without authority", pseudo(&[(":method", "CONNECT")])),
        (
            "a protocol without CONNECT",
            pseudo(&[&request("GET", "/odd", &name)[..], &[(":protocol", "websocket")]].concat()),
        ),
        ("an unknown protocol", pseudo(&[&request("CONNECT", "/odd", &name)[..], &[(":protocol", "odd")]].concat())),
    ];
    are_served(&world, "requests that are none", 1, || async {
        for (shape, block) in &odd {
            let mut frames = frames(&world).await;
            frames.send(HEADERS, ALL, 1, block).await;
            let (reset, head) = fate(&mut frames, 1).await;
            // Reset, or a refusal: the static table has 400 at 12, and other statuses stand there in digits or Huffman code.
            let served = reset.is_none() && head.first() == Some(&0x88);
            assert!(!served, "{shape}: served");
        }
    })
    .await;
    let seen = web.seen();
    assert!(seen.iter().all(|seen| !seen.uri.contains("odd") && !seen.uri.contains("other")), "one went through");
}

#[tokio::test]
async fn bodies_that_break_their_word() {
    let (world, web) = world(Setup::new()).await;
    let name = service("web");
    are_served(&world, "more and less DATA than was announced", 1, || async {
        for (announced, sent, last) in [("3", 10, false), ("3", 10, true), ("10", 3, true), ("0", 1, true)] {
            let mut frames = frames(&world).await;
            let mut fields = request("POST", "/lie", &name);
            fields.push(("content-length", announced));
            frames.send(HEADERS, END_HEADERS, 1, &block(&fields)).await;
            frames.send(DATA, u8::from(last), 1, &vec![b'x'; sent]).await;
            let (reset, _) = fate(&mut frames, 1).await;
            assert!(reset.is_some(), "{announced} announced, {sent} sent");
        }
        // DATA behind the end, and for a stream that never was.
        for (headers, stream) in [(true, 1), (false, 5)] {
            let mut frames = frames(&world).await;
            if headers {
                frames.0.write_all(&get(1, "/hang")).await.unwrap();
            }
            frames.send(DATA, 0, stream, b"more").await;
            let (reset, _) = fate(&mut frames, stream).await;
            assert!(reset.is_some());
        }
    })
    .await;
    // The endpoint may have been asked, but was never told that such a body had come to its end: it answers that it did.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let lines = world.lines();
    let served = lines.iter().filter(|line| line["path"] == "/lie" && line["outcome"] == "served").count();
    assert_eq!(served, 0, "{} requests came", web.seen().len());
}
