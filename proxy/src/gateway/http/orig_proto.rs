//! `l5d-orig-proto`: an HTTP/1 message that travels over HTTP/2 between two proxies, and is one again behind them.
//!
//! **In** a request or response that came over HTTP/2, or is about to go over it. **Out** what it was before it was carried, or
//! the mark that says so. The mark is of this hop: it is taken off where it is read. (Linkerd wire document §3.2.)

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::Scheme;
use http::{Uri, Version};

/// The mark.
pub(super) const L5D_ORIG_PROTO: HeaderName = HeaderName::from_static("l5d-orig-proto");

const HTTP_11: HeaderValue = HeaderValue::from_static("HTTP/1.1");
const HTTP_10: HeaderValue = HeaderValue::from_static("HTTP/1.0");

/// A request as its application wrote it, whatever carried it here.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Original {
    /// HTTP/2, or HTTP/1.
    pub(super) version: Version,
    /// Whether an HTTP/1 request came over HTTP/2.
    pub(super) carried: bool,
    /// Whether an HTTP/1 request named its target in absolute form.
    pub(super) absolute: bool,
}

/// Takes the mark off an HTTP/2 request. On a real HTTP/1 session it is a field like any other.
pub(super) fn received(parts: &mut Parts) -> Original {
    if parts.version != Version::HTTP_2 {
        let absolute = parts.uri.scheme().is_some();
        return Original { version: parts.version, carried: false, absolute };
    }
    let native = Original { version: Version::HTTP_2, carried: false, absolute: false };
    let Some(mark) = parts.headers.remove(L5D_ORIG_PROTO) else { return native };
    let mark = mark.as_bytes();
    let version = match mark {
        _ if mark.starts_with(b"HTTP/1.1") => Version::HTTP_11,
        _ if mark.starts_with(b"HTTP/1.0") => Version::HTTP_10,
        _ => {
            tracing::debug!(stage = "detect", "a request bears a mark of l5d-orig-proto that means nothing");
            return native;
        }
    };
    Original { version, carried: true, absolute: mark.get(10..23) == Some(b"absolute-form") }
}

/// Marks an HTTP/1 request that is to be carried.
pub(super) fn mark_request(headers: &mut HeaderMap, version: Version, absolute: bool) {
    let mark = match (version == Version::HTTP_10, absolute) {
        (false, false) => HTTP_11,
        (false, true) => HeaderValue::from_static("HTTP/1.1; absolute-form"),
        (true, false) => HTTP_10,
        (true, true) => HeaderValue::from_static("HTTP/1.0; absolute-form"),
    };
    headers.insert(L5D_ORIG_PROTO, mark);
}

/// Takes the mark off the response to a request that was carried, and says what its version was. A response without one,
/// such as another proxy's refusal, has the version of its request.
pub(super) fn answered(headers: &mut HeaderMap, request: Version) -> Version {
    match headers.remove(L5D_ORIG_PROTO) {
        Some(mark) if mark == HTTP_11 => Version::HTTP_11,
        Some(mark) if mark == HTTP_10 => Version::HTTP_10,
        _ => request,
    }
}

/// Marks the response to a request that came carried.
pub(super) fn mark_response(headers: &mut HeaderMap, response: Version, request: Version) {
    // An HTTP/2 endpoint has no version of HTTP/1 to speak of: the request's is what its application expects.
    let version = if matches!(response, Version::HTTP_10 | Version::HTTP_11) { response } else { request };
    headers.insert(L5D_ORIG_PROTO, if version == Version::HTTP_10 { HTTP_10 } else { HTTP_11 });
}

/// The scheme of a request that is carried: that of its absolute form, or what Linkerd's proxies write.
pub(super) fn scheme(uri: &Uri) -> Scheme {
    uri.scheme().cloned().unwrap_or(Scheme::HTTP)
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn parts(version: Version, uri: &str, mark: Option<&str>) -> Parts {
        let mut request = Request::get(uri).version(version);
        if let Some(mark) = mark {
            request = request.header("l5d-orig-proto", mark);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn the_mark_is_read_as_linkerd_reads_it() {
        let http2 = Original { version: Version::HTTP_2, carried: false, absolute: false };
        let carried = |version, absolute| Original { version, carried: true, absolute };
        for (mark, want) in [
            (None, http2),
            (Some("HTTP/1.1"), carried(Version::HTTP_11, false)),
            (Some("HTTP/1.0"), carried(Version::HTTP_10, false)),
            (Some("HTTP/1.1; absolute-form"), carried(Version::HTTP_11, true)),
            (Some("HTTP/1.0; absolute-form"), carried(Version::HTTP_10, true)),
            // Bytes 10 to 22 decide, whatever stands around them.
            (Some("HTTP/1.1; absolute-form, or so"), carried(Version::HTTP_11, true)),
            (Some("HTTP/1.1;absolute-form"), carried(Version::HTTP_11, false)),
            (Some("HTTP/1.1 and more"), carried(Version::HTTP_11, false)),
            (Some("HTTP/2.0"), http2),
            (Some("http/1.1"), http2),
            (Some(""), http2),
        ] {
            let mut request = parts(Version::HTTP_2, "http://web.ns/", mark);
            assert_eq!(received(&mut request), want, "{mark:?}");
            assert!(!request.headers.contains_key("l5d-orig-proto"), "{mark:?}");
        }
    }

    #[test]
    fn on_http1_it_is_a_field_like_any_other() {
        let mut request = parts(Version::HTTP_11, "http://web.ns/", Some("HTTP/1.0"));
        let want = Original { version: Version::HTTP_11, carried: false, absolute: true };
        assert_eq!(received(&mut request), want);
        assert_eq!(request.headers["l5d-orig-proto"], "HTTP/1.0");
    }

    #[test]
    fn what_is_marked_is_read_again() {
        for version in [Version::HTTP_10, Version::HTTP_11] {
            for absolute in [true, false] {
                let mut request = parts(Version::HTTP_2, "http://web.ns/", None);
                mark_request(&mut request.headers, version, absolute);
                assert_eq!(received(&mut request), Original { version, carried: true, absolute });
            }
        }
    }

    #[test]
    fn a_response_says_its_version_or_has_its_requests() {
        let of = |mark: Option<&str>| {
            let mut headers = HeaderMap::new();
            if let Some(mark) = mark {
                headers.insert(L5D_ORIG_PROTO, mark.parse().unwrap());
            }
            let version = answered(&mut headers, Version::HTTP_11);
            assert!(headers.is_empty());
            version
        };
        assert_eq!(of(Some("HTTP/1.0")), Version::HTTP_10);
        assert_eq!(of(Some("HTTP/1.1")), Version::HTTP_11);
        assert_eq!(of(Some("HTTP/1.0; absolute-form")), Version::HTTP_11, "exactly, or not at all");
        assert_eq!(of(None), Version::HTTP_11);
    }
}
