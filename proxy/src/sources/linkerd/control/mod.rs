//! Connections to one service of a control plane.
//!
//! **In** where it is and who it must be. **Out** a gRPC service ([`Control`]) that any generated client can stand on, and
//! streams that are followed for ever ([`Watch`](watch::Watch)). **Refuses** servers that are somebody else, and plaintext
//! to anywhere but this host.
//!
//! TLS without ALPN, HTTP/2 with prior knowledge, one connection to each address of the service; each call goes to the less
//! busy of two of them, and those that failed lately are left alone for a while. A call that cannot be sent fails at once
//! with UNAVAILABLE: whoever asks has a backoff. (Linkerd wire document §6.2.)

mod places;
pub mod watch;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;
use tower::{Service, ServiceExt as _};

use self::places::Places;
use crate::addr::{Host, HostPort};
use crate::backoff::Backoff;
use crate::endpoint::UpstreamTls;
use crate::live::Live;
use crate::sources::dns::Names;
use crate::tls::Credentials;

/// Where a service is and who it must be.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// What it is called in logs and metrics: `identity`, `destination`, `policy`.
    pub name: &'static str,
    /// Where it is.
    pub at: HostPort,
    /// Who it must be: some name of its certificate must equal the identity. None is plaintext, and then `at` must be this
    /// host.
    pub server: Option<UpstreamTls>,
    /// How connections are kept.
    pub transport: Transport,
}

/// How connections and streams to control planes are kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Transport {
    /// For DNS, TCP and TLS, each.
    pub connect_timeout: Duration,
    /// How long a connection with open streams may be silent before it is asked whether it lives; `None` never asks.
    pub keepalive_interval: Option<Duration>,
    /// How long the answer to that may take.
    pub keepalive_timeout: Duration,
    /// How long to wait after failures, for a stream and for an address.
    pub backoff: Backoff,
    /// How streams are guarded.
    pub streams: Guards,
}

impl Default for Transport {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(1),
            keepalive_interval: Some(Duration::from_secs(10)),
            keepalive_timeout: Duration::from_secs(5),
            backoff: Backoff { min: Duration::from_millis(100), max: Duration::from_secs(10), jitter: 0.5 },
            streams: Guards::default(),
        }
    }
}

/// How long a stream may live and be silent before it is opened anew. What was learned is kept meanwhile.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Guards {
    /// From the request to the first message. A server that takes longer is taken for hung.
    pub initial_timeout: Duration,
    /// Between messages; `None` is for ever.
    pub idle_timeout: Option<Duration>,
    /// In all; `None` is for ever. Up to a tenth is taken off by chance, so that streams do not end together.
    pub lifetime: Option<Duration>,
}

impl Default for Guards {
    /// What Linkerd's charts give its own proxies.
    fn default() -> Self {
        Self {
            initial_timeout: Duration::from_secs(3),
            idle_timeout: Some(Duration::from_secs(300)),
            lifetime: Some(Duration::from_secs(3600)),
        }
    }
}

/// Why there can be no such connection.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Unfit {
    /// A name needs DNS.
    #[error("{0} is a name, and there is no resolver to ask for it")]
    NoResolver(HostPort),
    /// Plaintext would leave this host.
    #[error(
        "{0} is not this host, and no server identity is given: only loopback addresses are spoken to in plaintext"
    )]
    Plaintext(HostPort),
}

/// One service of a control plane. Clones share connections.
#[derive(Clone)]
pub struct Control {
    inner: Arc<Inner>,
}

struct Inner {
    settings: Settings,
    places: Places,
    tally: Tally,
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control").field("settings", &self.inner.settings).finish_non_exhaustive()
    }
}

/// How it goes with a service of the control plane.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Standing {
    /// Calls made.
    pub calls: u64,
    /// Calls and streams that failed, whoever's fault it was.
    pub failures: u64,
    /// Since something was last heard of it: an answer or a message. None before the first time.
    pub age: Option<Duration>,
}

struct Tally {
    started: Instant,
    calls: AtomicU64,
    failures: AtomicU64,
    /// Milliseconds after `started` of the last word heard, plus one; 0 before the first.
    heard: AtomicU64,
}

impl Control {
    /// A service at `settings.at`, to which `credentials` are shown as they are at each handshake. Connects when first
    /// asked. Must be called, and used, on a runtime.
    pub fn new(
        settings: Settings,
        credentials: Arc<Live<Credentials>>,
        names: Option<Arc<Names>>,
    ) -> Result<Self, Unfit> {
        if settings.server.is_none() && !settings.at.is_loopback() {
            return Err(Unfit::Plaintext(settings.at));
        }
        if matches!(settings.at.host, Host::Name(_)) && names.is_none() {
            return Err(Unfit::NoResolver(settings.at));
        }
        let tally = Tally {
            started: Instant::now(),
            calls: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            heard: AtomicU64::new(0),
        };
        let places = Places::new(settings.clone(), credentials, names);
        Ok(Self { inner: Arc::new(Inner { settings, places, tally }) })
    }

    /// What it was made with.
    pub fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    /// How it goes.
    pub fn standing(&self) -> Standing {
        let tally = &self.inner.tally;
        let age = match tally.heard.load(Ordering::Relaxed) {
            0 => None,
            at => Some(tally.started.elapsed().saturating_sub(Duration::from_millis(at - 1))),
        };
        Standing { calls: tally.calls.load(Ordering::Relaxed), failures: tally.failures.load(Ordering::Relaxed), age }
    }

    /// Something was heard of the service.
    pub(super) fn heard(&self) {
        let tally = &self.inner.tally;
        let now = u64::try_from(tally.started.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        tally.heard.store(now + 1, Ordering::Relaxed);
    }

    /// A call or stream failed.
    pub(super) fn failed(&self) {
        self.inner.tally.failures.fetch_add(1, Ordering::Relaxed);
    }
}

impl Service<http::Request<Body>> for Control {
    type Response = http::Response<Body>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let inner = Arc::clone(&self.inner);
        inner.tally.calls.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            let mut call = inner.places.pick().await?;
            let mut channel = call.channel();
            let sent = async { channel.ready().await?.call(request).await };
            match sent.await {
                Ok(response) => Ok(call.answered(response)),
                Err(error) => {
                    call.failed();
                    Err(Status::unavailable(format!("{} ({}): {}", inner.settings.name, call.addr(), chain(&error))))
                }
            }
        })
    }
}

/// An error with all its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
