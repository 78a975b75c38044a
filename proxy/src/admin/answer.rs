//! The pages of the admin server.
//!
//! **In** a request and where it comes from. **Out** a response, always whole and never to be cached. **Refuses** as the
//! server's own description says.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use http::header::{
    ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, ORIGIN, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use serde_json::Value;

use super::{From, Sources, mask, page, query};

pub(super) type Body = Full<Bytes>;
pub(super) type Page = Response<Body>;

/// What knows all answers.
#[derive(Debug)]
pub(super) struct Answer {
    sources: Sources,
    config: Value,
    log_level_from: From,
}

impl Answer {
    pub(super) fn new(mut sources: Sources, log_level_from: From) -> Self {
        let config = mask::secrets(sources.config.take());
        Self { sources, config, log_level_from }
    }

    /// The answers that nothing may hold up; none for other questions.
    pub(super) fn health<B>(&self, request: &Request<B>) -> Option<Page> {
        let page = match request.uri().path() {
            "/live" => plain(StatusCode::OK, "live\n"),
            "/ready" => match self.sources.ready.ready() {
                Ok(()) => plain(StatusCode::OK, "ready\n"),
                Err(reasons) => plain(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reasons}\n")),
            },
            _ => return None,
        };
        Some(read_only(request.method(), page))
    }

    /// All other answers.
    pub(super) async fn to(&self, request: Request<Incoming>, peer: SocketAddr) -> Page {
        let page = match request.uri().path() {
            "/" if accepts(request.headers(), "text/html") => page::html(),
            "/" => plain(StatusCode::OK, INDEX),
            "/overview" => compact(&(self.sources.overview)()),
            "/metrics" => self.metrics(request.headers()),
            "/state" => json(&(self.sources.state)()),
            "/sightings" => json(&(self.sources.sightings)()),
            "/explain" => self.explain(request.uri().query()),
            "/config" => self.config(&request),
            KEYS if let Some(keys) = &self.sources.keys => whole(StatusCode::OK, "application/jwk-set+json", keys()),
            "/log-level" if request.method() == Method::PUT => return self.set_log_level(request, peer).await,
            "/log-level" => {
                let page = plain(StatusCode::OK, (self.sources.log.read)() + "\n");
                return answering(request.method(), page, "GET, HEAD, PUT");
            }
            _ => return answering(&Method::GET, plain(StatusCode::NOT_FOUND, "not found\n"), READ_ONLY),
        };
        read_only(request.method(), page)
    }

    fn metrics(&self, headers: &HeaderMap) -> Page {
        let openmetrics = accepts(headers, "application/openmetrics-text");
        let kind = if openmetrics {
            "application/openmetrics-text; version=1.0.0; charset=utf-8"
        } else {
            "text/plain; version=0.0.4; charset=utf-8"
        };
        whole(StatusCode::OK, kind, (self.sources.metrics)(openmetrics))
    }

    fn explain(&self, query: Option<&str>) -> Page {
        let said = query::call(query.unwrap_or_default());
        match said.and_then(|(call, exported)| (self.sources.explain)(call, exported)) {
            Ok(explanation) => json(&explanation),
            Err(problem) => plain(StatusCode::BAD_REQUEST, problem + "\n"),
        }
    }

    fn config<B>(&self, request: &Request<B>) -> Page {
        let yaml = request.uri().query() == Some("format=yaml") || accepts(request.headers(), "application/yaml");
        if !yaml {
            return json(&self.config);
        }
        match serde_saphyr::to_string(&self.config) {
            Ok(text) => whole(StatusCode::OK, "application/yaml", text),
            Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }

    async fn set_log_level(&self, request: Request<Incoming>, peer: SocketAddr) -> Page {
        let local = match peer.ip() {
            IpAddr::V4(ip) => ip.is_loopback(),
            IpAddr::V6(ip) => ip.to_canonical().is_loopback(),
        };
        if self.log_level_from == From::Loopback && !local {
            return plain(StatusCode::FORBIDDEN, "only from this machine\n");
        }
        // A browser on this machine must not be made to do it by a page from elsewhere.
        if request.headers().contains_key(ORIGIN) || request.headers().contains_key(&SEC_FETCH_SITE) {
            return plain(StatusCode::FORBIDDEN, "not from a browser\n");
        }
        let Ok(body) = Limited::new(request.into_body(), MAX_BODY_BYTES).collect().await else {
            return plain(StatusCode::PAYLOAD_TOO_LARGE, "the body is too long or broke off\n");
        };
        let body = body.to_bytes();
        let Ok(filter) = std::str::from_utf8(&body) else {
            return plain(StatusCode::BAD_REQUEST, "the body is no text\n");
        };
        let filter = filter.trim();
        if filter.is_empty() {
            return plain(StatusCode::BAD_REQUEST, "the body is empty: it is the filter, such as isthmus=debug,info\n");
        }
        match (self.sources.log.set)(filter) {
            Ok(()) => {
                tracing::info!(filter, %peer, "log filter changed");
                plain(StatusCode::OK, (self.sources.log.read)() + "\n")
            }
            Err(error) => plain(StatusCode::BAD_REQUEST, error + "\n"),
        }
    }
}

const INDEX: &str = "\
Isthmus

/           this list, or for browsers a page that draws /overview
/live       the process runs
/ready      it should be sent traffic, or why not
/metrics    Prometheus text, or OpenMetrics by Accept
/overview   what happens, in short, as JSON
/state      what it serves, as JSON
/sightings  what became of calls, by client, service and path, as JSON
/explain    why a call is let through or not: ?client=&service=&method=&path=&header=name:value&host=&network=&grpc=true
/config     what it was told, as JSON, or as YAML with ?format=yaml
/.well-known/jwks.json  the keys of client assertions, where they are on
/log-level  what it logs; PUT a filter such as isthmus=debug,info to change it
";

/// Where those who check signatures look for keys (RFC 8615).
const KEYS: &str = "/.well-known/jwks.json";

/// The longest body, in bytes: a log filter is the only one.
const MAX_BODY_BYTES: usize = 4 * 1024;

const READ_ONLY: &str = "GET, HEAD";

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

pub(super) fn plain(status: StatusCode, text: impl Into<Bytes>) -> Page {
    whole(status, "text/plain; charset=utf-8", text)
}

fn json(value: &Value) -> Page {
    whole(StatusCode::OK, "application/json", format!("{value:#}\n"))
}

/// For programs that ask often: nobody reads it, so nothing is indented.
fn compact(value: &Value) -> Page {
    whole(StatusCode::OK, "application/json", format!("{value}\n"))
}

pub(super) fn whole(status: StatusCode, kind: &'static str, text: impl Into<Bytes>) -> Page {
    let text = text.into();
    let length = text.len();
    let mut response = Response::new(Full::new(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn read_only(method: &Method, page: Page) -> Page {
    answering(method, page, READ_ONLY)
}

/// The page for GET, its head for HEAD, else that the method is not among the allowed.
fn answering(method: &Method, page: Page, allowed: &'static str) -> Page {
    match *method {
        Method::GET => page,
        Method::HEAD => page.map(|_| Body::default()),
        _ => {
            let mut page = plain(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n");
            page.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
            page
        }
    }
}

/// Whether a media type is named in `accept`, and not with a weight of zero.
fn accepts(headers: &HeaderMap, kind: &str) -> bool {
    headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')).any(
        |element| {
            let mut parts = element.split(';').map(str::trim);
            let named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case(kind));
            let zero = |part: &str| {
                part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")).and_then(|q| q.parse().ok()) == Some(0.0)
            };
            named && !parts.any(zero)
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openmetrics_by_accept() {
        let table = [
            ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.2", true),
            ("text/plain, Application/OpenMetrics-Text", true),
            ("application/openmetrics-text;q=0.0", false),
            ("application/openmetrics-text;q=0", false),
            ("*/*", false),
            ("", false),
        ];
        for (value, expected) in table {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, HeaderValue::from_static(value));
            assert_eq!(accepts(&headers, "application/openmetrics-text"), expected, "{value}");
        }
    }
}
