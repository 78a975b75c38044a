//! The admin server: what the process shows of itself to its operator and its cluster. Never on the LoadBalancer.
//!
//! **In** a listener and [`Sources`], closures that read the rest of the process. **Out** a page
//! for people at `/`, `/live`, `/ready`, `/metrics`, `/overview`, `/state`, `/sightings`, `/explain`, `/config`, `/log-level`, `/.well-known/jwks.json` and an index. **Refuses** other
//! paths (404), other methods (405), long bodies (413),
//! too many questions at once (503), slow ones (504), and a change of the log level from elsewhere than this machine.
//!
//! It runs on the control runtime, so that an answer never queues behind data. `/live` and `/ready` are answered past all
//! limits on requests: a busy scrape must not get the process killed.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use isthmus_probe::health::Health;
use isthmus_probe::serve::{Limits, serve as serve_connection};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tower::load_shed::error::Overloaded;
use tower::{BoxError, ServiceBuilder, ServiceExt};

use self::answer::{Answer, plain};
use crate::authorise::Call;

mod answer;
pub mod client;
pub mod mask;
mod page;
mod query;

/// Where the answers come from.
#[derive(Clone)]
pub struct Sources {
    /// What `/ready` tells.
    pub ready: Arc<Health>,
    /// The page of `/metrics`, as OpenMetrics or as Prometheus text.
    pub metrics: Arc<dyn Fn(bool) -> String + Send + Sync>,
    /// What `/state` shows.
    pub state: Arc<dyn Fn() -> serde_json::Value + Send + Sync>,
    /// What `/overview` shows, and the page at `/` draws.
    pub overview: Arc<dyn Fn() -> serde_json::Value + Send + Sync>,
    /// What `/config` shows. Values under names that promise secrets are masked once more.
    pub config: serde_json::Value,
    /// What `/log-level` reads and sets.
    pub log: LogLevel,
    /// The keys of `/.well-known/jwks.json`, where something is signed.
    pub keys: Option<Arc<dyn Fn() -> String + Send + Sync>>,
    /// What `/explain` says of a call, or what is wrong with the call.
    pub explain: Arc<Explain>,
    /// What `/sightings` shows: what became of calls, as `isthmus policy suggest` reads it.
    pub sightings: Arc<dyn Fn() -> serde_json::Value + Send + Sync>,
}

/// Explains what the policy says of a call, or what is wrong with the call. Where the question does not say whether the service
/// is exported, the gateway's own knowledge decides.
pub type Explain = dyn Fn(Call, Option<bool>) -> Result<serde_json::Value, String> + Send + Sync;

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").field("ready", &self.ready).finish_non_exhaustive()
    }
}

/// Reads and sets what the process logs.
#[derive(Clone)]
pub struct LogLevel {
    /// The filter now.
    pub read: Arc<dyn Fn() -> String + Send + Sync>,
    /// Sets the filter, or says what is wrong with it.
    pub set: Arc<SetFilter>,
}

/// Takes a filter, or says what is wrong with it.
pub type SetFilter = dyn Fn(&str) -> Result<(), String> + Send + Sync;

impl fmt::Debug for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogLevel").finish_non_exhaustive()
    }
}

/// How the server behaves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Settings {
    /// How long a connection may take and last.
    pub limits: Limits,
    /// How many connections are open at once; further ones wait in the kernel's queue.
    pub max_connections: usize,
    /// How many questions, other than `/live` and `/ready`, are answered at once.
    pub max_requests: usize,
    /// How long one answer may take.
    pub request_timeout: Duration,
    /// Who may change the log level.
    pub log_level_from: From,
}

/// Where a change may come from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum From {
    /// Anywhere.
    Anywhere,
    /// This machine only.
    Loopback,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            // A kubelet, two Prometheis and a few people; a hundred leaves room and bounds memory to some megabytes.
            max_connections: 100,
            max_requests: 16,
            request_timeout: Duration::from_secs(10),
            log_level_from: From::Loopback,
        }
    }
}

/// Serves until the future is dropped, which ends all connections.
pub async fn serve(listener: Arc<TcpListener>, sources: Sources, settings: Settings) {
    let answer = Arc::new(Answer::new(sources, settings.log_level_from));
    let permits = Arc::new(Semaphore::new(settings.max_connections.clamp(1, Semaphore::MAX_PERMITS)));
    let shared = limited(Arc::clone(&answer), &settings);
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let (stream, peer) = accept(&listener).await;
        let answer = Arc::clone(&answer);
        let shared = shared.clone();
        connections.spawn(async move {
            let _permit = permit;
            let end = serve_connection(stream, settings.limits, move |request| {
                let question = Question { request, peer };
                let answer = Arc::clone(&answer);
                let shared = shared.clone();
                async move {
                    match answer.health(&question.request) {
                        Some(response) => response,
                        None => shared.oneshot(question).await.unwrap_or_else(|error| failed(&error)),
                    }
                }
            })
            .await;
            tracing::trace!(%peer, ?end, "admin connection ended");
        });
    }
}

/// One request and where it comes from.
struct Question {
    request: Request<Incoming>,
    peer: SocketAddr,
}

/// The answers that may wait or be refused: the layers are independent of each other and of the question.
fn limited(
    answer: Arc<Answer>,
    settings: &Settings,
) -> impl tower::Service<Question, Response = answer::Page, Error = BoxError, Future: Send> + Clone + Send + Sync + 'static
{
    ServiceBuilder::new()
        .load_shed()
        .concurrency_limit(settings.max_requests.clamp(1, Semaphore::MAX_PERMITS))
        .timeout(settings.request_timeout)
        .service_fn(move |Question { request, peer }| {
            let answer = Arc::clone(&answer);
            async move { Ok::<_, BoxError>(answer.to(request, peer).await) }
        })
}

fn failed(error: &BoxError) -> Response<answer::Body> {
    if error.is::<Overloaded>() {
        plain(StatusCode::SERVICE_UNAVAILABLE, "too many questions at once\n")
    } else {
        plain(StatusCode::GATEWAY_TIMEOUT, "the answer took too long\n")
    }
}

async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => refused_by_kernel(&error).await,
        }
    }
}

/// Mostly no more file descriptors: trying again at once would only burn what is left of the machine.
async fn refused_by_kernel(error: &io::Error) {
    tracing::debug!(%error, "admin server cannot accept");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

#[cfg(test)]
mod tests;
