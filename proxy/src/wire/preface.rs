//! What is spoken, judged by its first bytes; asked only where neither ALPN nor a transport header says.
//!
//! **In** the first bytes of a session. **Out** [`Sniff`]. HTTP/2 is its whole connection preface (RFC 9113 §3.4);
//! HTTP/1 is the shape of a request line up to its version (RFC 9112 §3), after one empty line at most (§2.2).

/// The HTTP/2 connection preface.
pub const HTTP2: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// As much of a request line as is looked at, in bytes. What has the shape of one for so long is one; whether it is too
/// long is for the HTTP server to say.
const MAX_LINE_BYTES: usize = 1024;

/// No method in use is longer, in bytes.
const MAX_METHOD_BYTES: usize = 32;

/// What the bytes are the beginning of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Sniff {
    /// An HTTP/1 request.
    Http1,
    /// The HTTP/2 preface.
    Http2,
    /// It may still become HTTP.
    More,
    /// Neither.
    Other,
}

/// Judges the beginning of a session.
pub fn sniff(bytes: &[u8]) -> Sniff {
    if bytes.starts_with(HTTP2) {
        return Sniff::Http2;
    }
    if HTTP2.starts_with(bytes) {
        return Sniff::More;
    }
    match request_line(bytes) {
        None => Sniff::More,
        Some(true) => Sniff::Http1,
        Some(false) => Sniff::Other,
    }
}

/// Whether the bytes begin as `method SP target SP HTTP/1.`; `None` where they end too early to say.
fn request_line(bytes: &[u8]) -> Option<bool> {
    let line = match bytes {
        [] | [b'\r'] => return None,
        [b'\r', b'\n', line @ ..] => line,
        line => line,
    };
    let line = &line[..line.len().min(MAX_LINE_BYTES)];
    let whole = line.len() == MAX_LINE_BYTES;
    let method = line.iter().take_while(|b| is_token(**b)).count();
    match line.get(method) {
        None if method <= MAX_METHOD_BYTES => return None,
        Some(b' ') if (1..=MAX_METHOD_BYTES).contains(&method) => {}
        _ => return Some(false),
    }
    let rest = &line[method + 1..];
    let target = rest.iter().take_while(|b| b.is_ascii_graphic()).count();
    match rest.get(target) {
        None => return whole.then_some(true),
        Some(b' ') if target > 0 => {}
        Some(_) => return Some(false),
    }
    let version = &rest[target + 1..];
    let known = version.len().min(VERSION.len());
    if version[..known] != VERSION[..known] {
        return Some(false);
    }
    (known == VERSION.len() || whole).then_some(true)
}

const VERSION: &[u8] = b"HTTP/1.";

/// A byte of a token (RFC 9110 §5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn table() {
        let long = format!("GET /{} HTTP/1.1\r\n", "x".repeat(2000));
        for (bytes, want) in [
            (&HTTP2[..], Sniff::Http2),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04", Sniff::Http2),
            (b"PRI * HTTP/2.0\r\n\r\nSX", Sniff::Other),
            (b"GET / HTTP/1.1\r\n", Sniff::Http1),
            (b"\r\nGET / HTTP/1.1\r\n", Sniff::Http1),
            (b"OPTIONS * HTTP/1.0\r\n", Sniff::Http1),
            (b"CONNECT web:80 HTTP/1.1\r\n", Sniff::Http1),
            (b"POST http://web/x HTTP/1.", Sniff::Http1),
            (b"PRI * HTTP/1.1\r\n", Sniff::Http1),
            (long.as_bytes(), Sniff::Http1),
            (b"GET / HTTP/2.0\r\n", Sniff::Other),
            (b"GET /\r\n", Sniff::Other),
            (b"GET  / HTTP/1.1", Sniff::Other),
            (b" GET / HTTP/1.1", Sniff::Other),
            (b"\r\n\r\nGET /", Sniff::Other),
            (b"EHLO mail.example\r\n", Sniff::Other),
            (b"PING\r\n", Sniff::Other),
            (b"SSH-2.0-OpenSSH\r\n", Sniff::Other),
            (b"\x16\x03\x01\x02\x00", Sniff::Other),
            (&[b'A'; 33], Sniff::Other),
            (&[b'A'; 32], Sniff::More),
            (b"", Sniff::More),
            (b"PRI", Sniff::More),
        ] {
            assert_eq!(sniff(bytes), want, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn every_strict_prefix_needs_more() {
        for whole in [&HTTP2[..], b"GET /index.html HTTP/1.", b"\r\nCONNECT a:1 HTTP/1."] {
            assert_ne!(sniff(whole), Sniff::More);
            for len in 0..whole.len() {
                assert_eq!(sniff(&whole[..len]), Sniff::More, "{len}");
            }
        }
    }

    proptest! {
        /// More bytes never overturn a verdict, and More comes to an end.
        #[test]
        fn verdicts_stand(bytes in prop::collection::vec(prop::sample::select(b"GET /*PRI HTTP/1.\r\nx\0\xff".to_vec()), 0..1200)) {
            let mut verdict = Sniff::More;
            for len in 0..=bytes.len() {
                let next = sniff(&bytes[..len]);
                if verdict == Sniff::More { verdict = next } else { prop_assert_eq!(next, verdict) }
            }
            if bytes.len() > MAX_LINE_BYTES + 2 {
                prop_assert_ne!(verdict, Sniff::More);
            }
        }
    }
}
