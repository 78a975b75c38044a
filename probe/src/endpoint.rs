//! The `mc-probe` endpoint: what remote service mirrors and load balancers ask before they send traffic.
//!
//! **In** a stream that somebody else accepted (and, as a rule, did the handshake of). **Out** `200` with a short body
//! for a known path while the process is ready, `503` with the reason while it is not; and the [`Page`]s that were handed
//! in, ready or not. **Refuses** other paths with `404`, other methods with `405`, and connections over the limit by closing
//! them.
//!
//! Mirrors of every age are served: the oldest ask for `//health`, later ones for `/health`, today's for `/ready`;
//! over HTTP/1 or HTTP/2, with any Host or none, and with `l5d-orig-proto` where HTTP/1 travels inside HTTP/2. Answers
//! are always short and whole, as some mirrors leave the body of a failed probe unread. No probe is ever logged.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Response, StatusCode, Version};
use http_body_util::Full;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;

use crate::health::Health;
use crate::serve::{self, End, Limits};

/// How the endpoint behaves.
#[derive(Clone, Debug)]
pub struct Settings {
    /// A path to answer besides the well-known ones. It must begin with a slash.
    pub path: Option<String>,
    /// How long a connection may take and last.
    pub limits: Limits,
    /// How many connections are served at once; further ones are closed.
    pub max_connections: usize,
}

impl Default for Settings {
    fn default() -> Self {
        // One or two connections per remote cluster and a load balancer's few; 512 bounds memory to some 10 MB.
        Self { path: None, limits: Limits::default(), max_connections: 512 }
    }
}

/// The endpoint: shared by all connections to it.
#[derive(Debug)]
pub struct Endpoint {
    health: Arc<Health>,
    settings: Settings,
    pages: Vec<Page>,
    permits: Semaphore,
    tally: Tally,
}

/// A page that has nothing to do with health, for those who may reach no other port.
pub struct Page {
    /// Its path, which no probe asks for.
    pub path: &'static str,
    /// Its media type.
    pub media_type: &'static str,
    /// Gives its text now.
    pub read: Box<dyn Fn() -> String + Send + Sync>,
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Page").field(&self.path).finish()
    }
}

impl Endpoint {
    /// An endpoint that tells of `health`.
    pub fn new(health: Arc<Health>, settings: Settings) -> Self {
        let permits = Semaphore::new(settings.max_connections.min(Semaphore::MAX_PERMITS));
        Self { health, settings, pages: Vec::new(), permits, tally: Tally::default() }
    }

    /// Answers one more path. A path that probes ask for stays theirs.
    #[must_use]
    pub fn with_page(mut self, page: Page) -> Self {
        self.pages.push(page);
        self
    }

    /// Serves one connection to its end. Dropping the future closes the stream.
    pub async fn serve_connection<S>(self: &Arc<Self>, stream: S, peer: SocketAddr)
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let Ok(_permit) = self.permits.try_acquire() else {
            self.tally.over_limit.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let endpoint = Arc::clone(self);
        let end = serve::serve(stream, self.settings.limits, move |request| {
            // The body, if any, is not read: hyper drops it together with the request.
            let response = endpoint.answer(&request.into_parts().0);
            std::future::ready(response)
        })
        .await;
        match end {
            End::Closed => {}
            End::Failed(error) => {
                self.tally.failed.fetch_add(1, Ordering::Relaxed);
                tracing::trace!(%peer, %error, "probe connection failed");
            }
            End::TimedOut => {
                self.tally.timed_out.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Whether `path` is one that probes ask for.
    pub fn is_probe_path(&self, path: &str) -> bool {
        self.body_of(path).is_some()
    }

    /// The answer to one request, for whoever serves HTTP already.
    pub fn answer(&self, request: &Parts) -> Response<Full<Bytes>> {
        let path = request.uri.path();
        let body = self.body_of(path);
        if body.is_none()
            && let Some(page) = self.pages.iter().find(|page| page.path == path)
        {
            return page.answer(request);
        }
        let (status, body) = match body {
            None => (StatusCode::NOT_FOUND, Bytes::from_static(b"not found\n")),
            Some(_) if !matches!(request.method, Method::GET | Method::HEAD) => {
                (StatusCode::METHOD_NOT_ALLOWED, Bytes::from_static(b"method not allowed\n"))
            }
            Some(body) => match self.health.ready() {
                Ok(()) => (StatusCode::OK, Bytes::from_static(body)),
                Err(reasons) => (StatusCode::SERVICE_UNAVAILABLE, short(format!("not ready: {reasons}"))),
            },
        };
        self.tally.of(status).fetch_add(1, Ordering::Relaxed);
        response(request, status, body)
    }

    /// What has been answered so far.
    pub fn counts(&self) -> Counts {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Counts {
            healthy: read(&self.tally.healthy),
            not_ready: read(&self.tally.not_ready),
            not_found: read(&self.tally.not_found),
            method_not_allowed: read(&self.tally.method_not_allowed),
            failed: read(&self.tally.failed),
            over_limit: read(&self.tally.over_limit),
            timed_out: read(&self.tally.timed_out),
        }
    }

    /// The body that says yes, for the paths that are probed.
    fn body_of(&self, path: &str) -> Option<&'static [u8]> {
        match path {
            "/health" | "//health" => Some(b"healthy\n"),
            "/ready" | "//ready" => Some(b"ready\n"),
            _ => {
                let own = self.settings.path.as_deref()?;
                // Mirrors of the first generation put a slash before the slash.
                (path == own || path.strip_prefix('/') == Some(own)).then_some(b"healthy\n".as_slice())
            }
        }
    }
}

impl Page {
    /// Not tallied: it says nothing about health.
    fn answer(&self, request: &Parts) -> Response<Full<Bytes>> {
        if !matches!(request.method, Method::GET | Method::HEAD) {
            let body = Bytes::from_static(b"method not allowed\n");
            return response(request, StatusCode::METHOD_NOT_ALLOWED, body);
        }
        let mut response = response(request, StatusCode::OK, (self.read)().into());
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(self.media_type));
        response
    }
}

fn response(request: &Parts, status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let length = body.len();
    // HTTP/2 would send the body of an answer to HEAD, which RFC 9110 §9.3.2 forbids.
    let body = if request.method == Method::HEAD { Bytes::new() } else { body };
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    if request.version == Version::HTTP_2 {
        if request.headers.contains_key(&ORIG_PROTO) {
            headers.insert(ORIG_PROTO, HeaderValue::from_static("HTTP/1.1"));
        }
    } else if status != StatusCode::OK {
        // Mirrors that do not read the body of a failed probe would otherwise keep the connection for nothing.
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// A line of at most 512 bytes: reasons may quote others' errors at length.
fn short(mut text: String) -> Bytes {
    const MAX_BYTES: usize = 511;
    if text.len() > MAX_BYTES {
        text.truncate(text.floor_char_boundary(MAX_BYTES));
    }
    text.push('\n');
    text.into()
}

/// Carries HTTP/1 messages inside HTTP/2 between Linkerd proxies; its value is the version of the message inside.
pub const ORIG_PROTO: HeaderName = HeaderName::from_static("l5d-orig-proto");

#[derive(Debug, Default)]
struct Tally {
    healthy: AtomicU64,
    not_ready: AtomicU64,
    not_found: AtomicU64,
    method_not_allowed: AtomicU64,
    failed: AtomicU64,
    over_limit: AtomicU64,
    timed_out: AtomicU64,
}

impl Tally {
    fn of(&self, status: StatusCode) -> &AtomicU64 {
        match status {
            StatusCode::OK => &self.healthy,
            StatusCode::METHOD_NOT_ALLOWED => &self.method_not_allowed,
            StatusCode::NOT_FOUND => &self.not_found,
            _ => &self.not_ready,
        }
    }
}

/// How probes were answered, and how their connections failed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Answered 200.
    pub healthy: u64,
    /// Answered 503.
    pub not_ready: u64,
    /// Answered 404.
    pub not_found: u64,
    /// Answered 405.
    pub method_not_allowed: u64,
    /// Connections that broke or spoke no HTTP.
    pub failed: u64,
    /// Connections closed because too many were open.
    pub over_limit: u64,
    /// Connections on which nothing was asked in time.
    pub timed_out: u64,
}

impl Counts {
    /// Each count with the value of the label `result` under which it is shown.
    pub const fn by_result(self) -> [(&'static str, u64); 7] {
        [
            ("failed", self.failed),
            ("healthy", self.healthy),
            ("method_not_allowed", self.method_not_allowed),
            ("not_found", self.not_found),
            ("not_ready", self.not_ready),
            ("over_limit", self.over_limit),
            ("timed_out", self.timed_out),
        ]
    }
}

#[cfg(test)]
mod tests;
