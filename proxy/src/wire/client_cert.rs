//! `x-forwarded-client-cert` in Envoy's form: which certificate a request came with, hop by hop.
//!
//! **In** the gateway's own identity and what a client's certificate says; elements that earlier proxies wrote. **Out** one
//! element `By=…;Hash=…;Subject="…";URI=…;DNS=…`, or the earlier ones and ours on one line. **Refuses** to carry on what
//! is too long, or has quotes that would swallow the element after it.
//! (Envoy's documentation of HTTP connection manager headers, "x-forwarded-client-cert".)

use std::fmt::Write;

use http::HeaderValue;

use crate::identity::Identity;

/// What one element tells of a client's certificate.
#[derive(Clone, Copy, Debug)]
pub struct Certificate<'a> {
    /// SHA-256 of its DER, in hexadecimal digits.
    pub hash: &'a str,
    /// Its subject as RFC 4514 writes it; empty for most workloads.
    pub subject: &'a str,
    /// Its subject alternative names that are identities, in their order.
    pub names: &'a [Identity],
}

/// The element that the gateway called `by` adds for a client with this certificate.
///
/// By Envoy's rule a value that holds `,`, `;` or `=` stands in quotes, with quotes inside it as `\"`. The subject always
/// stands in quotes. Names that would make the element longer than [`MAX_ELEMENT_BYTES`] are left out, never the first.
pub fn element(by: &Identity, certificate: &Certificate<'_>) -> HeaderValue {
    let mut text = String::with_capacity(320);
    let _ = write!(text, "By={}", Value(by.as_str()));
    let _ = write!(text, ";Hash={}", Value(certificate.hash));
    let _ = write!(text, ";Subject={}", Quoted(certificate.subject));
    // Envoy's order: all URIs, then all DNS names. The first name is who the client is, so it may not be left out.
    let first = certificate.names.first();
    for (kind, uris) in [("URI", true), ("DNS", false)] {
        let of_kind = certificate.names.iter().filter(|name| matches!(name, Identity::Uri(_)) == uris);
        for name in of_kind {
            let room = MAX_ELEMENT_BYTES.saturating_sub(text.len()) > name.as_str().len() + 8;
            if room || Some(name) == first {
                let _ = write!(text, ";{kind}={}", Value(name.as_str()));
            }
        }
    }
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("Subject=\"\""))
}

/// Names beyond the first are left out of an element longer than this, in bytes: a certificate may hold hundreds.
pub const MAX_ELEMENT_BYTES: usize = 4096;

/// The longest line that is carried on, in bytes: half of what servers commonly take for all fields together.
pub const MAX_LINE_BYTES: usize = 8192;

/// What earlier proxies wrote, and `own` after it, on one line. Where the earlier part is too long, or is not whole, `own`
/// stands alone: part of a list would say that something else than the first hop was the first.
pub fn appended<'a>(earlier: impl IntoIterator<Item = &'a HeaderValue>, own: &HeaderValue) -> HeaderValue {
    let mut line = Vec::new();
    for value in earlier {
        let value = value.as_bytes().trim_ascii();
        if line.len() + value.len() + own.len() + 2 > MAX_LINE_BYTES || !is_whole(value) {
            return own.clone();
        }
        if !value.is_empty() {
            line.extend_from_slice(value);
            line.push(b',');
        }
    }
    line.extend_from_slice(own.as_bytes());
    HeaderValue::from_bytes(&line).unwrap_or_else(|_| own.clone())
}

/// Whether every quote that opens is closed, in visible ASCII, whichever way a reader takes a backslash before a quote: as
/// a mark for the next character, or as part of `\"` wherever the two meet.
fn is_whole(value: &[u8]) -> bool {
    let (mut marked, mut pairwise) = ((false, false), (false, false));
    for byte in value {
        if !matches!(byte, b' '..=b'~') {
            return false;
        }
        // (inside quotes, the next quote does not count)
        marked = match (*byte, marked) {
            (b'"', (inside, false)) => (!inside, false),
            (b'\\', (true, false)) => (true, true),
            (_, (inside, _)) => (inside, false),
        };
        pairwise = match (*byte, pairwise) {
            (b'"', (inside, false)) => (!inside, false),
            (b'\\', (true, _)) => (true, true),
            (_, (inside, _)) => (inside, false),
        };
    }
    !marked.0 && !pairwise.0
}

/// A value, in quotes where it needs them.
struct Value<'a>(&'a str);

impl std::fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.contains([',', ';', '=', '"', '\\', ' ']) { Quoted(self.0).fmt(f) } else { f.write_str(self.0) }
    }
}

/// A value in quotes.
struct Quoted<'a>(&'a str);

impl std::fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_char('"')?;
        for c in self.0.chars() {
            match c {
                '"' => f.write_str("\\\"")?,
                // A subject has no backslash but before two digits; one before the closing quote would open it again.
                ' '..='~' => f.write_char(c)?,
                _ => f.write_char('?')?,
            }
        }
        f.write_char('"')
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HASH: &str = "468ed33be74eee6556d90c0149c1309e9ba61d6425303443c0748a02dd8de688";

    fn id(text: &str) -> Identity {
        Identity::parse(text).expect("an identity")
    }

    fn written(by: &str, subject: &str, names: &[&str]) -> String {
        let names: Vec<Identity> = names.iter().map(|name| id(name)).collect();
        let certificate = Certificate { hash: HASH, subject, names: &names };
        element(&id(by), &certificate).to_str().expect("ASCII").to_owned()
    }

    #[test]
    fn writes_what_envoy_writes() {
        let gateway = "gw.mc.serviceaccount.identity.linkerd.cluster.local";
        for (by, subject, names, want) in [
            (
                "spiffe://east.example/gw",
                "CN=Test Client,OU=Lyft",
                &["spiffe://west.example/ns/shop/sa/web"][..],
                "By=spiffe://east.example/gw;Hash=#;Subject=\"CN=Test Client,OU=Lyft\";URI=spiffe://west.example/ns/shop/sa/web",
            ),
            (
                gateway,
                "",
                &["web.shop.serviceaccount.identity.linkerd.cluster.local"],
                "By=gw.mc.serviceaccount.identity.linkerd.cluster.local;Hash=#;Subject=\"\";\
                 DNS=web.shop.serviceaccount.identity.linkerd.cluster.local",
            ),
            (
                "spiffe://a/gw",
                "",
                &["b.example", "spiffe://a/x", "c.example"],
                "By=spiffe://a/gw;Hash=#;Subject=\"\";URI=spiffe://a/x;DNS=b.example;DNS=c.example",
            ),
            // What separates is quoted.
            (
                "spiffe://a/gw;x",
                "",
                &["spiffe://a/x,By=evil;URI=y"],
                "By=\"spiffe://a/gw;x\";Hash=#;Subject=\"\";URI=\"spiffe://a/x,By=evil;URI=y\"",
            ),
            ("spiffe://a/gw", "CN=a\"b", &[], "By=spiffe://a/gw;Hash=#;Subject=\"CN=a\\\"b\""),
            ("spiffe://a/gw", "CN=\u{e9}\n", &[], "By=spiffe://a/gw;Hash=#;Subject=\"CN=??\""),
        ] {
            assert_eq!(written(by, subject, names), want.replace('#', HASH));
        }
    }

    #[test]
    fn a_certificate_of_a_thousand_names_makes_one_bounded_element() {
        let names: Vec<String> = (0..1000).map(|n| format!("n{n}.example")).collect();
        let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
        names.insert(0, "first.example");
        let text = written("spiffe://a/gw", "", &names);
        assert!(text.len() <= MAX_ELEMENT_BYTES, "{}", text.len());
        assert!(text.contains(";DNS=first.example;"));
        let long = format!("spiffe://a/{}", "x".repeat(2000));
        names.insert(0, &long);
        assert!(written(&format!("spiffe://b/{}", "y".repeat(2000)), &"s".repeat(1024), &names).contains(&long));
    }

    #[test]
    fn earlier_elements_are_carried_on_while_they_are_whole_and_short() {
        let own = HeaderValue::from_static("By=us;Hash=1");
        let line = |earlier: &[&str]| {
            let values: Vec<HeaderValue> =
                earlier.iter().map(|v| HeaderValue::try_from(*v).expect("a value")).collect();
            appended(&values, &own).to_str().expect("ASCII").to_owned()
        };
        for (earlier, want) in [
            (&[][..], "By=us;Hash=1"),
            (&[""], "By=us;Hash=1"),
            (&["By=a;Hash=0"], "By=a;Hash=0,By=us;Hash=1"),
            (&["By=a", " By=b , By=c"], "By=a,By=b , By=c,By=us;Hash=1"),
            (&["By=a;Subject=\"x\\\"y\""], "By=a;Subject=\"x\\\"y\",By=us;Hash=1"),
            // Quotes that would swallow ours, by one reading or the other.
            (&["By=a;Subject=\"x"], "By=us;Hash=1"),
            (&["By=a;Subject=\"x\\\""], "By=us;Hash=1"),
            (&["By=a;Subject=\"x\\\\\""], "By=us;Hash=1"),
            (&["By=a", "Subject=\""], "By=us;Hash=1"),
        ] {
            assert_eq!(line(earlier), want, "{earlier:?}");
        }
        let odd = HeaderValue::from_bytes(b"By=\xe9").expect("a value");
        assert_eq!(appended([&odd], &own), own);
        assert_eq!(line(&[&"x".repeat(MAX_LINE_BYTES)]), "By=us;Hash=1");
        assert_eq!(line(&["x".repeat(3000).as_str(); 4]), "By=us;Hash=1", "bounded in sum");
    }

    proptest! {
        #[test]
        fn never_longer_than_the_bound_and_ours_is_last(
            earlier in prop::collection::vec("[ -~]{0,3000}", 0..6),
        ) {
            let own = HeaderValue::from_static("By=us;Hash=1");
            let values: Vec<HeaderValue> =
                earlier.iter().map(|v| HeaderValue::try_from(v).expect("a value")).collect();
            let line = appended(&values, &own);
            prop_assert!(line.len() <= MAX_LINE_BYTES);
            prop_assert!(line == own || line.as_bytes().ends_with(b",By=us;Hash=1"));
            prop_assert!(is_whole(line.as_bytes()));
        }
    }
}
