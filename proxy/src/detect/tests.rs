//! Sessions over an in-memory stream, with time paused.

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::{Instant, sleep};

use super::*;
use crate::fault::Refusal;
use crate::wire::preface;
use crate::wire::transport_header::Header;

fn hint(alpn: Negotiated) -> Hint {
    Hint { alpn, sni: Some("gateway.example".parse().expect("a name")), sni_is_own: true }
}

fn foreign(sni: &str) -> Hint {
    Hint { alpn: Negotiated::None, sni: Some(sni.parse().expect("a name")), sni_is_own: false }
}

fn encoded(port: u16, name: Option<&str>, protocol: Option<transport_header::Protocol>) -> Bytes {
    transport_header::encode(&Header { port, name: name.map(|name| name.parse().expect("a name")), protocol })
}

/// Detects on a stream that carries `bytes`, written in pieces of `piece` bytes a millisecond apart, and ends.
async fn detect(
    bytes: &[u8],
    piece: usize,
    hint: Hint,
    settings: &Settings,
) -> Result<(Naming, Protocol, Vec<u8>), Error> {
    let (mut client, server) = duplex(64);
    let write = async {
        for piece in bytes.chunks(piece) {
            if client.write_all(piece).await.is_err() {
                break;
            }
            sleep(Duration::from_millis(1)).await;
        }
        drop(client);
    };
    let read = async {
        let mut session = session(server, hint, settings).await?;
        let mut rest = Vec::new();
        session.stream.read_to_end(&mut rest).await?;
        Ok((session.naming, session.protocol, rest))
    };
    tokio::join!(write, read).1
}

fn code(result: &Result<(Naming, Protocol, Vec<u8>), Error>) -> &'static str {
    result.as_ref().map_or_else(Refusal::code, |_| "passed")
}

#[tokio::test(start_paused = true)]
async fn headers_in_one_write_and_byte_by_byte() {
    use transport_header::Protocol as P;
    let web = Naming::Header(Target::parse("web.ns.svc.cluster.local:8080", 80).expect("a target"));
    for (name, protocol, want, want_protocol) in [
        (Some("web.ns.svc.cluster.local"), Some(P::Http2), web.clone(), Protocol::Http2),
        (Some("web.ns.svc.cluster.local"), Some(P::Http1), web.clone(), Protocol::Http1),
        (Some("web.ns.svc.cluster.local"), None, web, Protocol::Opaque),
        (None, None, Naming::Port(8080), Protocol::Opaque),
        (None, Some(P::Http1), Naming::Port(8080), Protocol::Http1),
    ] {
        // The bytes behind the header look like another protocol, and are not looked at.
        let session_bytes = [&preface::HTTP2[..], &[0xff; 2000]].concat();
        let bytes = [&encoded(8080, name, protocol)[..], &session_bytes].concat();
        for piece in [1, 7, bytes.len()] {
            let got = detect(&bytes, piece, hint(Negotiated::TransportHeader), &Settings::default()).await;
            assert_eq!(got.expect("a session"), (want.clone(), want_protocol, session_bytes.clone()), "{piece}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_header_alone_is_enough() {
    let (mut client, server) = duplex(1024);
    client.write_all(&encoded(80, Some("web"), None)).await.expect("writes");
    let session = session(server, hint(Negotiated::TransportHeader), &Settings::default()).await.expect("a session");
    assert_eq!(session.protocol, Protocol::Opaque);
}

#[tokio::test(start_paused = true)]
async fn malformed_headers() {
    let magic = b"transport.l5d.io/v1\r\n\r\n";
    let framed = |proto: &[u8]| [magic, &[0, 0, 0, u8::try_from(proto.len()).expect("short")][..], proto].concat();
    let settings = Settings { max_buffer_bytes: 100, ..Settings::default() };
    for (bytes, want) in [
        (b"PRI * HTTP/2.0".to_vec(), "detect.header_magic"),
        ([magic, &[0, 1, 0, 1][..]].concat(), "detect.header_length"),
        ([magic, &[0, 0, 0, 74][..]].concat(), "detect.header_length"),
        ([magic, &[0, 0, 0, 73][..]].concat(), "detect.eof"),
        (framed(b"\x08\x50\x12\x03a b"), "detect.header_name"),
        (framed(b"\x12\x03web"), "detect.header_port"),
        (framed(b"\x08"), "detect.header_proto"),
        (magic[..10].to_vec(), "detect.eof"),
        (Vec::new(), "detect.eof"),
    ] {
        for piece in [1, 100] {
            let got = detect(&bytes, piece, hint(Negotiated::TransportHeader), &settings).await;
            assert_eq!(code(&got), want, "{bytes:?}");
            let error = got.expect_err("refused");
            assert_eq!(error.is_quiet(), bytes.is_empty());
            assert_eq!(error.fault(), crate::fault::Fault::Client);
            assert!(!error.retry_is_safe());
        }
    }
}

async fn silent(sent: &[u8], hint: Hint) -> (Result<Session<DuplexStream>, Error>, Duration) {
    let (mut client, server) = duplex(1024);
    client.write_all(sent).await.expect("writes");
    let before = Instant::now();
    let got = session(server, hint, &Settings { sni_routing: true, ..Settings::default() }).await;
    drop(client);
    (got, before.elapsed())
}

#[tokio::test(start_paused = true)]
async fn silence_ends_at_the_timeout() {
    for (sent, hint) in [
        (&b""[..], hint(Negotiated::TransportHeader)),
        (b"transport.l5d", hint(Negotiated::TransportHeader)),
        (b"", hint(Negotiated::None)),
        (b"PRI * HTTP", hint(Negotiated::None)),
        (b"GET / HT", hint(Negotiated::None)),
    ] {
        let (got, waited) = silent(sent, hint).await;
        assert_eq!(got.expect_err("refused").code(), "detect.timeout");
        assert_eq!(waited, Duration::from_secs(10));
    }
}

#[tokio::test(start_paused = true)]
async fn a_trickle_does_not_renew_the_timeout() {
    let bytes = vec![b'x'; 20];
    let settings = Settings { timeout: Duration::from_millis(10), ..Settings::default() };
    assert_eq!(code(&detect(&bytes, 1, hint(Negotiated::None), &settings).await), "detect.timeout");
}

#[tokio::test(start_paused = true)]
async fn what_is_known_is_not_waited_for() {
    for (hint, naming, protocol) in [
        (hint(Negotiated::H2), Naming::Request, Protocol::Http2),
        (hint(Negotiated::Http11), Naming::Request, Protocol::Http1),
        (foreign("web.ns"), Naming::Sni(Target::parse("web.ns:443", 80).expect("a target")), Protocol::Opaque),
        (foreign("_80._tcp.web.ns"), Naming::Sni(Target::parse("web.ns:80", 80).expect("a target")), Protocol::Opaque),
    ] {
        let (got, waited) = silent(b"", hint).await;
        let got = got.expect("a session");
        assert_eq!((got.naming, got.protocol), (naming, protocol));
        assert_eq!(waited, Duration::ZERO);
    }
    assert_eq!(silent(b"", foreign("_x._tcp.web")).await.0.expect_err("refused").code(), "detect.sni");
}

#[tokio::test(start_paused = true)]
async fn prefaces() {
    let long = [b"GET /", &[b'x'; 3000][..], b" HTTP/1.1\r\n\r\n"].concat();
    for (bytes, want) in [
        (&preface::HTTP2[..], Ok(Protocol::Http2)),
        (b"GET / HTTP/1.1\r\n\r\n", Ok(Protocol::Http1)),
        (b"CONNECT web.ns:80 HTTP/1.1\r\n\r\n", Ok(Protocol::Http1)),
        (&long, Ok(Protocol::Http1)),
        (b"\x16\x03\x01\x02\x00", Err("detect.unknown_protocol")),
        (b"EHLO mail.example\r\n", Err("detect.unknown_protocol")),
        (b"GET", Err("detect.eof")),
        (b"", Err("detect.eof")),
    ] {
        for piece in [1, 64] {
            // Without routing by server name, a foreign one changes nothing.
            for hint in [hint(Negotiated::None), foreign("web.ns")] {
                let got = detect(bytes, piece, hint, &Settings::default()).await;
                match want {
                    Ok(protocol) => assert_eq!(got.expect("a session"), (Naming::Request, protocol, bytes.to_vec())),
                    Err(want) => assert_eq!(code(&got), want),
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_buffer_is_bounded() {
    let settings = Settings { max_buffer_bytes: 16, ..Settings::default() };
    let got = detect(b"GET /a-long-path-without-an-end", 1, hint(Negotiated::None), &settings).await;
    assert_eq!(code(&got), "detect.unknown_protocol");
}
