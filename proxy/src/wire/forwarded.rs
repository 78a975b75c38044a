//! The `Forwarded` header: who relayed a request, and thereby whether it has come round in a circle.
//!
//! **In** header values, identities, a target. **Out** the value that this gateway appends, and whether earlier ones name
//! it. The writer keeps to Linkerd's literal form, which other gateways compare byte by byte; the reader is as tolerant
//! as can be, as a loop that goes unseen ends both gateways. (RFC 7239 §4; Linkerd wire document §4.5, §4.6.)

use std::borrow::Cow;
use std::fmt::Write;

use http::HeaderValue;

use crate::addr::Target;
use crate::identity::Identity;

/// The element for one hop: `by=<own identity>;for=<client>;host=<name[:port]>;proto=https`, the port left out when 80.
/// It is to be appended as a header line of its own.
///
/// The colon in `host` would ask for quotes by the RFC; Linkerd writes none, so neither is written here. Only an identity
/// that holds one of this header's own separators is quoted: unquoted, a client could write parameters with its name.
pub fn element(by: &Identity, client: &Identity, host: &Target) -> HeaderValue {
    let mut text = String::with_capacity(160);
    for (key, identity) in [("by=", by), (";for=", client)] {
        let id = identity.as_str();
        let quote = if id.contains([';', ',', '=']) { "\"" } else { "" };
        for part in [key, quote, id, quote] {
            text.push_str(part);
        }
    }
    match host.port {
        80 => write!(text, ";host={};proto=https", host.name),
        port => write!(text, ";host={}:{port};proto=https", host.name),
    }
    .expect("writing to a string does not fail");
    HeaderValue::try_from(text).expect("identities and names are visible ASCII")
}

/// Whether one of these header values says that `own` has relayed the request before.
pub fn names_us<'a>(values: impl IntoIterator<Item = &'a HeaderValue>, own: &Identity) -> bool {
    let own = own.as_str().as_bytes();
    values.into_iter().any(|value| {
        // Read once with quotes honoured, and once as if they were nothing: a stray quote before our element must not
        // hide it, nor may one around an identity that holds a separator.
        [true, false].into_iter().any(|quotes| {
            Pairs { rest: value.as_bytes(), quotes }
                .any(|(key, value)| key.eq_ignore_ascii_case(b"by") && value.eq_ignore_ascii_case(own))
        })
    })
}

/// What may be carried on of values that a client wrote: who relayed the request, one line for each, and nothing else.
/// Who it was for, under which host and by which protocol is for proxies to say; but without the relays' names a circle
/// through another gateway would go unseen. The last [`MAX_HOPS`] are kept: those before them were there first, and a
/// circle comes round to the last ones.
pub fn relays<'a>(values: impl IntoIterator<Item = &'a HeaderValue>) -> Vec<HeaderValue> {
    let mut found: Vec<HeaderValue> = Vec::new();
    for value in values {
        // Both readings, as in `names_us`: what the next gateway would see, it must still see.
        for quotes in [true, false] {
            for (key, by) in (Pairs { rest: value.as_bytes(), quotes }) {
                let plain = |byte: &u8| byte.is_ascii_graphic() && !b"\"\\".contains(byte);
                if key.eq_ignore_ascii_case(b"by") && !by.is_empty() && by.len() <= 2048 && by.iter().all(plain) {
                    let quote: &[u8] = if by.iter().any(|byte| b";,=".contains(byte)) { b"\"" } else { b"" };
                    let line = [b"by=", quote, &*by, quote].concat();
                    found.extend(HeaderValue::from_bytes(&line).ok().filter(|line| !found.contains(line)));
                    if found.len() > MAX_HOPS {
                        found.remove(0);
                    }
                }
            }
        }
    }
    found
}

/// How many relays are remembered. A request that went through more gateways than this goes round in no small circle.
pub const MAX_HOPS: usize = 16;

/// The parameters of all elements of a header value, in order, unquoted.
pub fn pairs(value: &[u8]) -> Pairs<'_> {
    Pairs { rest: value, quotes: true }
}

/// Iterates over the parameters of a `Forwarded` value. Parts without an equals sign are skipped.
#[derive(Clone, Debug)]
pub struct Pairs<'a> {
    rest: &'a [u8],
    quotes: bool,
}

impl<'a> Iterator for Pairs<'a> {
    type Item = (&'a [u8], Cow<'a, [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        while !self.rest.is_empty() {
            let end = self.end_of_part();
            let part = &self.rest[..end];
            self.rest = self.rest.get(end + 1..).unwrap_or_default();
            if let Some(equals) = part.iter().position(|b| *b == b'=') {
                return Some((part[..equals].trim_ascii(), unquote(part[equals + 1..].trim_ascii())));
            }
        }
        None
    }
}

impl Pairs<'_> {
    /// Where the next separator is that no quotes enclose.
    fn end_of_part(&self) -> usize {
        let (mut quoted, mut escaped) = (false, false);
        let end = self.rest.iter().position(|byte| {
            let separates = matches!(byte, b';' | b',') && !quoted;
            if self.quotes && !escaped && *byte == b'"' {
                quoted = !quoted;
            }
            escaped = quoted && !escaped && *byte == b'\\';
            separates
        });
        end.unwrap_or(self.rest.len())
    }
}

/// Takes quotes off, and the backslashes within them.
fn unquote(value: &[u8]) -> Cow<'_, [u8]> {
    let open = value.strip_prefix(b"\"").unwrap_or(value);
    let inner = open.strip_suffix(b"\"").unwrap_or(open);
    if !inner.contains(&b'\\') {
        return Cow::Borrowed(inner);
    }
    let mut plain = Vec::with_capacity(inner.len());
    let mut bytes = inner.iter();
    while let Some(&byte) = bytes.next() {
        let kept = if byte == b'\\' { bytes.next().copied() } else { Some(byte) };
        plain.extend(kept);
    }
    Cow::Owned(plain)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GATEWAY: &str = "linkerd-gateway.linkerd-multicluster.serviceaccount.identity.linkerd.cluster.local";

    fn id(text: &str) -> Identity {
        Identity::parse(text).expect("an identity")
    }

    fn target(text: &str) -> Target {
        Target::parse(text, 80).expect("a target")
    }

    #[test]
    fn writes_what_linkerd_writes() {
        let client = id("client.ns.serviceaccount.identity.linkerd.cluster.local");
        for (host, want) in [
            ("web.ns.svc.cluster.local:8080", "host=web.ns.svc.cluster.local:8080"),
            ("web.ns.svc.cluster.local:80", "host=web.ns.svc.cluster.local"),
        ] {
            let want = format!("by={GATEWAY};for={client};{want};proto=https");
            assert_eq!(element(&id(GATEWAY), &client, &target(host)), want);
        }
        let spiffe = element(&id("spiffe://a/gw"), &id("spiffe://a/x;host=evil,by=y"), &target("web"));
        assert_eq!(spiffe, "by=spiffe://a/gw;for=\"spiffe://a/x;host=evil,by=y\";host=web;proto=https");
    }

    #[test]
    fn finds_us_in_any_spelling() {
        let own = id(GATEWAY);
        for (value, want) in [
            (format!("by={GATEWAY};for=x;host=y;proto=https"), true),
            (format!("for=x; by={GATEWAY}"), true),
            (format!("for=x , by = {GATEWAY} "), true),
            (format!("BY=\"{GATEWAY}\""), true),
            (format!("by={}", GATEWAY.to_uppercase()), true),
            (format!("by=\"{}\"", GATEWAY.replace('.', "\\.")), true),
            (format!("for=a;by=b, for=c;by={GATEWAY}, for=d;by=e"), true),
            // A stray quote hides nothing.
            (format!("for=\", by={GATEWAY};for=x"), true),
            (format!("for=\"\\\", by={GATEWAY}"), true),
            (format!("by={GATEWAY}\""), true),
            (format!("for={GATEWAY};by=x"), false),
            (format!("by=x{GATEWAY}"), false),
            (format!("by={GATEWAY}.evil"), false),
            (format!("xby={GATEWAY}"), false),
            ("by=".into(), false),
            (String::new(), false),
        ] {
            let value = HeaderValue::try_from(value).expect("a value");
            assert_eq!(names_us([&value], &own), want, "{value:?}");
        }
        let odd = HeaderValue::from_bytes(format!("for=\u{e9};by={GATEWAY}").as_bytes()).expect("a value");
        assert!(names_us([&HeaderValue::from_static("x"), &odd], &own));
        assert!(!names_us([], &own));
    }

    #[test]
    fn of_what_a_client_wrote_only_the_relays_are_carried_on() {
        let kept = |values: &[&str]| -> Vec<String> {
            let values: Vec<HeaderValue> = values.iter().map(|v| HeaderValue::try_from(*v).expect("a value")).collect();
            relays(&values).iter().map(|v| v.to_str().expect("ASCII").to_owned()).collect()
        };
        assert!(kept(&["for=admin;host=x;proto=http", "nonsense", "by=", "by=\"a b\""]).is_empty());
        assert_eq!(kept(&["by=\"a;b\""]), ["by=\"a;b\"", "by=a"]);
        assert_eq!(kept(&["for=x;by=a.b, for=y;BY=\"c.d\";host=z", "by=a.b"]), ["by=a.b", "by=c.d"]);
        // A stray quote hides nothing from the next gateway either.
        assert_eq!(kept(&[&format!("for=\", by={GATEWAY};for=x")]), [format!("by={GATEWAY}")]);
        let many: Vec<String> = (0..100).map(|n| format!("by=g{n}")).collect();
        let many = kept(&[&many.join(",")]);
        assert_eq!((many.len(), many.last().map(String::as_str)), (MAX_HOPS, Some("by=g99")));
    }

    #[test]
    fn reads_the_examples_of_the_rfc() {
        let read = |value: &'static str| -> Vec<(String, String)> {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            pairs(value.as_bytes()).map(|(key, value)| (text(key), text(&value))).collect()
        };
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(read("For=\"[2001:db8:cafe::17]:4711\""), [pair("For", "[2001:db8:cafe::17]:4711")]);
        assert_eq!(
            read("for=192.0.2.60;proto=http;by=203.0.113.43"),
            [pair("for", "192.0.2.60"), pair("proto", "http"), pair("by", "203.0.113.43")]
        );
        assert_eq!(
            read("for=192.0.2.43, for=198.51.100.17"),
            [pair("for", "192.0.2.43"), pair("for", "198.51.100.17")]
        );
        assert_eq!(read("for=\"a;b,c\\\"d\";junk;;,by=x"), [pair("for", "a;b,c\"d"), pair("by", "x")]);
    }

    proptest! {
        #[test]
        fn finds_what_it_wrote(
            by in "[a-z0-9]{1,9}\\.id|spiffe://[a-z]{1,9}(/[a-z;,=][a-z;,=.]{0,9}){0,2}",
            client in "[a-z0-9]{1,9}\\.id|spiffe://[a-z]{1,9}(/[a-z;,=][a-z;,=.]{0,9}){0,2}",
            before in "[ -~]{0,30}",
        ) {
            let (Ok(by), Ok(client)) = (Identity::parse(&by), Identity::parse(&client)) else { return Ok(()) };
            let element = element(&by, &client, &target("web:81"));
            prop_assert!(names_us([&element], &by));
            let keys: Vec<_> = pairs(element.as_bytes()).map(|(key, _)| key).collect();
            prop_assert_eq!(keys, [&b"by"[..], b"for", b"host", b"proto"]);
            // What stands in front on the same line hides an element only if our name itself needs quotes.
            if !by.as_str().contains([';', ',', '=']) {
                let text = format!("{before},{}", element.to_str().expect("ASCII"));
                let joined = HeaderValue::try_from(text).expect("a value");
                prop_assert!(names_us([&joined], &by));
            }
        }

        #[test]
        fn what_is_carried_on_still_names_us_and_nobody_it_was_for(
            before in prop::collection::vec("(by|for|host|\"|;|,|=|\\\\| |[a-z.])", 0..80),
        ) {
            let own = id(GATEWAY);
            let ours = element(&own, &own, &target("web"));
            let text = format!("{}, {}", before.concat(), ours.to_str().expect("ASCII"));
            let carried = relays([&HeaderValue::try_from(text).expect("a value")]);
            prop_assert!(carried.len() <= MAX_HOPS);
            prop_assert!(names_us(&carried, &own));
            prop_assert!(carried.iter().all(|line| pairs(line.as_bytes()).all(|(key, _)| key == b"by")));
        }

        #[test]
        fn survives_anything(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let longest = pairs(&bytes).map(|(key, value)| key.len() + value.len()).sum::<usize>();
            prop_assert!(longest <= bytes.len());
        }
    }
}
