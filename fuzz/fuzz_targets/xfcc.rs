//! `x-forwarded-client-cert` and `x-forwarded-for`: whatever a client's certificate says and whatever earlier proxies wrote, a
//! reader finds the gateway's own element, whole and last.
#![no_main]

use http::HeaderValue;
use isthmus::identity::Identity;
use isthmus::wire::client_cert::{Certificate, MAX_LINE_BYTES, appended, element};
use isthmus::wire::forwarded_for;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, Vec<&str>, Vec<&[u8]>)| {
    let (subject, names, earlier) = input;
    // Subjects come as RFC 4514 writes them here: a backslash stands before two digits and nowhere else.
    if subject.split('\\').skip(1).any(|after| after.bytes().take(2).filter(u8::is_ascii_hexdigit).count() < 2) {
        return;
    }
    let own = Identity::parse("gateway.isthmus.example").expect("an identity");
    let names: Vec<Identity> = names.iter().filter_map(|name| Identity::parse(name).ok()).collect();
    let ours = element(&own, &Certificate { hash: "00ff", subject, names: &names });
    let elements = split(ours.as_bytes(), b',');
    assert_eq!(elements.len(), 1, "{ours:?}");
    let pairs = split(ours.as_bytes(), b';');
    assert_eq!(pairs[0], b"By=gateway.isthmus.example");
    assert_eq!(pairs[1], b"Hash=00ff");
    assert!(pairs[2].starts_with(b"Subject=\""));
    assert!(pairs[3..].iter().all(|pair| pair.starts_with(b"URI=") || pair.starts_with(b"DNS=")), "{ours:?}");
    assert!(pairs.len() - 3 <= names.len());
    let earlier: Vec<HeaderValue> = earlier.iter().filter_map(|value| HeaderValue::from_bytes(value).ok()).collect();
    let line = appended(&earlier, &ours);
    assert!(line.len() <= MAX_LINE_BYTES.max(ours.len()));
    assert_eq!(split(line.as_bytes(), b',').last().map(|last| last.trim_ascii()), Some(ours.as_bytes()), "{line:?}");
    let address = forwarded_for::address([192, 0, 2, 1].into());
    let line = forwarded_for::appended(&earlier, &address);
    assert!(line.len() <= forwarded_for::MAX_LINE_BYTES);
    assert_eq!(
        line.as_bytes().rsplit(|byte| *byte == b',').next().map(|last| last.trim_ascii()),
        Some(&b"192.0.2.1"[..])
    );
});

/// Splits where no quotes enclose; a backslash before a quote, inside quotes, makes it a plain one.
fn split(line: &[u8], at: u8) -> Vec<&[u8]> {
    let (mut quoted, mut begin, mut parts) = (false, 0, Vec::new());
    for (place, byte) in line.iter().enumerate() {
        if *byte == b'"' && !(quoted && line[place - 1] == b'\\') {
            quoted = !quoted;
        }
        if *byte == at && !quoted {
            parts.push(&line[begin..place]);
            begin = place + 1;
        }
    }
    assert!(!quoted, "quotes that never close: {:?}", String::from_utf8_lossy(line));
    parts.push(&line[begin..]);
    parts
}
