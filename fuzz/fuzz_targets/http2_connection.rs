//! A whole HTTP/2 connection through the gateway: frames in any order, requests good and bad among them, and an HTTP/1
//! backend that looks at what it is sent. The input is read as operations, a byte each with what they need after it.
#![no_main]

use arbitrary::Unstructured;
use isthmus::tls::Alpn;
use isthmus_fuzz::{SERVICE, connection};
use libfuzzer_sys::fuzz_target;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Fields as clients send them, good ones and such as no client should.
const FIELDS: [(&str, &str); 44] = [
    (":method", "GET"),
    (":method", "POST"),
    (":method", "CONNECT"),
    (":method", "DELETE"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":authority", SERVICE),
    (":authority", "WEB.ns.svc.cluster.local.:80"),
    (":authority", "other.ns.svc.cluster.local"),
    (":authority", "web.ns.svc.cluster.local@other.ns"),
    (":path", "/public/"),
    (":path", "/public/a?b=c"),
    (":path", "/public/../secret"),
    (":path", "/public/secret/x"),
    (":path", "/public/%73ecret/x"),
    (":path", "/public//secret/x"),
    (":path", "*"),
    (":path", ""),
    (":protocol", "websocket"),
    (":status", "200"),
    ("host", SERVICE),
    ("host", "other.ns.svc.cluster.local"),
    ("content-length", "0"),
    ("content-length", "5"),
    ("content-length", "+5"),
    ("content-length", "5, 5"),
    ("transfer-encoding", "chunked"),
    ("connection", "close, x-y"),
    ("te", "trailers"),
    ("te", "gzip"),
    ("expect", "100-continue"),
    ("upgrade", "websocket"),
    ("content-type", "application/grpc"),
    ("l5d-client-id", "admin.ns.serviceaccount.identity.linkerd.cluster.local"),
    ("l5d-orig-proto", "HTTP/1.1"),
    ("x-forwarded-client-cert", "By=x"),
    ("forwarded", "by=gateway.isthmus.serviceaccount.identity.linkerd.cluster.local"),
    ("cookie", "a=b"),
    ("trailer", "x-sum"),
    ("X-Upper", "case"),
    ("x-crlf", "a\r\nhost: evil"),
    ("x-nul", "a\0b"),
    ("x-long", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"),
    ("x y", "z"),
];

fuzz_target!(|input: &[u8]| {
    let mut input = Unstructured::new(input);
    let mut pieces = vec![b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(SETTINGS, 0, 0, &[])];
    let mut answers = Vec::new();
    let mut next = 1;
    while let Ok(operation) = input.arbitrary::<u8>() {
        if pieces.len() > 200 || operations(operation, &mut input, &mut next, &mut pieces, &mut answers).is_err() {
            break;
        }
    }
    connection(Alpn::H2, pieces, answers);
});

fn operations(
    operation: u8,
    input: &mut Unstructured<'_>,
    next: &mut u32,
    pieces: &mut Vec<Vec<u8>>,
    answers: &mut Vec<Vec<u8>>,
) -> arbitrary::Result<()> {
    // Mostly streams that there are.
    let stream = |input: &mut Unstructured<'_>, next: u32| -> arbitrary::Result<u32> {
        let back: u8 = input.arbitrary()?;
        Ok(next.wrapping_sub(u32::from(back % 8)) & 0x7fff_ffff)
    };
    let some = |input: &mut Unstructured<'_>| -> arbitrary::Result<Vec<u8>> {
        let len: u8 = input.arbitrary()?;
        Ok(input.bytes(usize::from(len % 64).min(input.len()))?.to_vec())
    };
    let made = match operation % 14 {
        // A good request, which further fields may make a bad one.
        0..=2 => {
            let id = *next;
            *next += 2;
            let mut block = fields(&[0, 4, 6, 10].map(|at| FIELDS[at]));
            let more: u8 = input.arbitrary()?;
            for _ in 0..more % 4 {
                let at: u8 = input.arbitrary()?;
                block.extend(fields(&[FIELDS[usize::from(at) % FIELDS.len()]]));
            }
            frame(HEADERS, END_HEADERS | (operation & END_STREAM), id, &block)
        }
        3 => {
            let id = *next;
            *next += 2;
            let count: u8 = input.arbitrary()?;
            let mut block = Vec::new();
            for _ in 0..count % 12 {
                let at: u8 = input.arbitrary()?;
                block.extend(fields(&[FIELDS[usize::from(at) % FIELDS.len()]]));
            }
            frame(HEADERS, input.arbitrary()?, id, &block)
        }
        4 => frame(HEADERS, input.arbitrary()?, stream(input, *next)?, &some(input)?),
        5 => frame(DATA, input.arbitrary::<u8>()? & 9, stream(input, *next)?, &some(input)?),
        6 => frame(CONTINUATION, input.arbitrary()?, stream(input, *next)?, &some(input)?),
        7 => frame(RST_STREAM, 0, stream(input, *next)?, &input.arbitrary::<u32>()?.to_be_bytes()),
        8 => frame(SETTINGS, input.arbitrary::<u8>()? & 1, 0, &some(input)?),
        9 => match input.arbitrary::<u8>()? % 3 {
            0 => frame(PING, input.arbitrary::<u8>()? & 1, 0, &[7; 8]),
            1 => frame(PRIORITY, 0, stream(input, *next)?, &some(input)?),
            _ => frame(GOAWAY, 0, 0, &some(input)?),
        },
        10 => frame(WINDOW_UPDATE, 0, stream(input, *next)?, &input.arbitrary::<u32>()?.to_be_bytes()),
        11 => frame(input.arbitrary()?, input.arbitrary()?, stream(input, *next)?, &some(input)?),
        12 => some(input)?,
        _ => {
            answers.push(match input.arbitrary::<u8>()? % 6 {
                0 => Vec::new(),
                1 => b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
                2 => b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n".to_vec(),
                3 => b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort".to_vec(),
                4 => [&b"HTTP/1.1 200 OK\r\n"[..], &some(input)?].concat(),
                _ => some(input)?,
            });
            return Ok(());
        }
    };
    pieces.push(made);
    Ok(())
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&len[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Literal fields without indexing (RFC 7541 §6.2.2).
fn fields(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).expect("shorter than 127"));
            block.extend(text.as_bytes());
        }
    }
    block
}
