//! The HTTP/1 guard: chunks may end anywhere, a head that passes is the head that the HTTP library sees, and a head that
//! does not pass is never whole to the library before the byte at which it is stopped. The first byte is where to cut.
#![no_main]

use isthmus::wire::http1_guard::{Bad, Guard, Limits};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((cut, bytes)) = input.split_first() else { return };
    let limits = Limits { max_head_bytes: 512, max_headers: 16 };
    let whole = in_pieces(bytes, bytes.len().max(1), limits);
    assert_eq!(in_pieces(bytes, usize::from(*cut).max(1), limits), whole);
    assert_eq!(byte_by_byte(bytes, limits), whole);
});

/// Heads seen, or the offset of the first bad byte and why.
type Verdict = Result<u64, (usize, isthmus::wire::http1_guard::Reason)>;

fn in_pieces(bytes: &[u8], len: usize, limits: Limits) -> Verdict {
    let mut guard = Guard::new(limits);
    for (index, piece) in bytes.chunks(len).enumerate() {
        guard.feed(piece).map_err(|Bad { reason, at }| (index * len + at, reason))?;
    }
    Ok(guard.requests())
}

/// As above, and holds each head against the HTTP library's parser.
fn byte_by_byte(bytes: &[u8], limits: Limits) -> Verdict {
    let mut guard = Guard::new(limits);
    let mut head = Some(0);
    for at in 0..bytes.len() {
        let requests = guard.requests();
        if let Err(bad) = guard.feed(&bytes[at..=at]) {
            assert_eq!(bad.at, 0);
            if let Some(start) = head {
                assert!(!is_whole(&bytes[start..at]), "a head that is refused was delivered");
            }
            return Err((at, bad.reason));
        }
        if guard.requests() > requests {
            let start = head.take().expect("a head ends only where one began");
            same_head(&bytes[start..=at]);
        }
        if guard.awaits_upgrade() && guard.is_between_requests() {
            let rest = &bytes[at + 1..];
            guard.feed(rest).expect("what is behind an upgrade passes");
            assert_eq!(guard.unexamined_bytes(), rest.len() as u64);
            break;
        }
        if guard.is_between_requests() {
            head = Some(at + 1);
        }
    }
    Ok(guard.requests())
}

fn is_whole(bytes: &[u8]) -> bool {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    httparse::Request::new(&mut headers).parse(bytes).is_ok_and(|status| status.is_complete())
}

fn same_head(bytes: &[u8]) {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut request = httparse::Request::new(&mut headers);
    assert_eq!(request.parse(bytes), Ok(httparse::Status::Complete(bytes.len())));
    let count = |name: &str| request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name)).count();
    assert!(count("host") <= 1);
    assert!(count("content-length") + count("transfer-encoding") <= 1);
    assert_eq!(bytes.iter().filter(|byte| **byte == b'\n').count(), request.headers.len() + 2);
}
