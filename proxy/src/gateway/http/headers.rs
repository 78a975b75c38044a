//! Field lines between hops: what is taken off, what is put on.
//!
//! **In** a request or response head. **Out** the same, fit for the next hop: hop-by-hop fields gone (RFC 9110 §7.6.1,
//! RFC 9113 §8.2.2), `host` and `:authority` by the rules of §7.2. What says who called is `identify.rs`'s.
//! (Linkerd wire document §4.7.)

use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, FORWARDED, HOST, HeaderMap, HeaderName, HeaderValue, TE, TRANSFER_ENCODING,
    UPGRADE,
};

use crate::addr::Target;

pub(super) const L5D_CLIENT_ID: HeaderName = HeaderName::from_static("l5d-client-id");
pub(super) const L5D_DST_CANONICAL: HeaderName = HeaderName::from_static("l5d-dst-canonical");
pub(super) const L5D_REQUIRE_ID: HeaderName = HeaderName::from_static("l5d-require-id");
pub(super) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const L5D_PROXY_CONNECTION: HeaderName = HeaderName::from_static("l5d-proxy-connection");
const L5D_PROXY_ERROR: HeaderName = HeaderName::from_static("l5d-proxy-error");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Removes the fields that `connection` names, before the policy looks: what the endpoint will not see must not decide. The
/// fields that are known as hop-by-hop stay until [`strip_hop_by_hop`], as rules may be about them.
pub(super) fn strip_named(headers: &mut HeaderMap) {
    if !headers.contains_key(CONNECTION) {
        return;
    }
    let kept =
        [HOST, CONTENT_LENGTH, TE, FORWARDED, KEEP_ALIVE, PROXY_CONNECTION, UPGRADE, TRANSFER_ENCODING, HTTP2_SETTINGS];
    for name in named_by_connection(headers) {
        if !kept.contains(&name) && name != CONNECTION {
            headers.remove(name);
        }
    }
}

fn named_by_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    let values = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).filter_map(|name| name.trim().parse().ok()).collect()
}

/// Removes what is meant for one connection only. `te: trailers` survives, as gRPC depends on it.
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    // One look at each name that is there costs less than asking for each that might be.
    if !headers.keys().any(|name| is_hop_by_hop(name.as_str())) {
        return;
    }
    if headers.contains_key(CONNECTION) {
        // Framing, routing and the way a request came must not be taken away by naming them here; `te` is judged below.
        for name in named_by_connection(headers) {
            if ![HOST, CONTENT_LENGTH, TE, FORWARDED].contains(&name) {
                headers.remove(name);
            }
        }
        headers.remove(CONNECTION);
    }
    for name in [KEEP_ALIVE, PROXY_CONNECTION, UPGRADE, TRANSFER_ENCODING, HTTP2_SETTINGS] {
        headers.remove(name);
    }
    if let Some(te) = headers.get(TE) {
        let trailers = te.to_str().is_ok_and(|te| te.split(',').any(|t| t.trim().eq_ignore_ascii_case("trailers")));
        if trailers {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        } else {
            headers.remove(TE);
        }
    }
}

/// Whether [`strip_hop_by_hop`] has anything to do with a field.
fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection" | "http2-settings" | "keep-alive" | "proxy-connection" | "te" | "transfer-encoding" | "upgrade"
    )
}

/// Removes from trailers what only a head may say. What says who called is `identify.rs`'s.
pub(super) fn clean_trailers(trailers: &mut HeaderMap) {
    strip_hop_by_hop(trailers);
    for name in [CONTENT_LENGTH, HOST, TE] {
        trailers.remove(name);
    }
}

/// `name`, or `name:port` unless the port is 80, as Linkerd writes `host` towards HTTP/1 backends.
pub(super) fn host_of(target: &Target) -> HeaderValue {
    let text = if target.port == 80 { target.name.to_string() } else { target.to_string() };
    HeaderValue::try_from(text).expect("a validated name is a valid field value")
}

/// HTTP/2 lets equal lengths stand side by side; HTTP/1 gets one, as two are how requests are smuggled.
pub(super) fn one_length(headers: &mut HeaderMap) {
    if headers.get_all(CONTENT_LENGTH).iter().nth(1).is_some()
        && let Some(length) = headers.get(CONTENT_LENGTH).cloned()
    {
        headers.insert(CONTENT_LENGTH, length);
    }
}

/// HTTP/2 may carry cookies in several field lines; HTTP/1 knows one (RFC 9113 §8.2.3).
pub(super) fn join_cookies(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(COOKIE).iter();
    if crumbs.next().is_none() || crumbs.next().is_none() {
        return;
    }
    let crumbs: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(cookie) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        headers.insert(COOKIE, cookie);
    }
}

/// Makes a response head fit for the client: hop-by-hop fields and other proxies' notes to us are taken off.
pub(super) fn clean_response(headers: &mut HeaderMap) {
    strip_hop_by_hop(headers);
    if !headers.keys().any(|name| name.as_str().starts_with("l5d-proxy-")) {
        return;
    }
    headers.remove(L5D_PROXY_CONNECTION);
    if let Some(error) = headers.remove(L5D_PROXY_ERROR) {
        tracing::debug!(stage = "relay", error = ?error, "the endpoint's own proxy reported an error");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        fields.iter().map(|(n, v)| (n.parse::<HeaderName>().unwrap(), v.parse::<HeaderValue>().unwrap())).collect()
    }

    #[test]
    fn hop_by_hop_fields_go_and_the_rest_stays() {
        let mut headers = map(&[
            ("connection", "close, X-Once , host, content-length"),
            ("x-once", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMAAABk"),
            ("transfer-encoding", "chunked"),
            ("te", "gzip, trailers"),
            ("host", "web"),
            ("content-length", "3"),
            ("trailer", "x-sum"),
        ]);
        strip_hop_by_hop(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["content-length", "host", "te", "trailer"]);
        assert_eq!(headers["te"], "trailers");
    }

    #[test]
    fn cookies_become_one_field_line() {
        let mut headers = map(&[("cookie", "a=1"), ("cookie", "b=2; c=3")]);
        join_cookies(&mut headers);
        assert_eq!(headers.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2; c=3"]);
    }
}
