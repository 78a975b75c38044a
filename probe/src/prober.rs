//! What a service mirror does: ask a gateway again and again whether it should be sent traffic.
//!
//! **In** a [`Target`], [`Settings`] and a dialer ([`Dial`]) that knows names, sockets and TLS. **Out** a [`Reader`] that can be
//! read at any time: alive or not, latencies, and the last failure with the step that failed. **Refuses** targets that
//! make no request.
//!
//! The rules are those of Linkerd's mirror: a gateway is alive until proven dead; only the status 200 is a success; one
//! success forgives all failures; `failure_threshold` failures in a row make it dead, and only from there on do failures
//! count in the metrics. Between probes lies the period and up to a tenth of it, so that many mirrors do not ask in step.
//! Unlike that mirror's, no connection outlives a failed probe.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{HOST, HeaderValue, USER_AGENT};
use http::uri::Authority;
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::endpoint::ORIG_PROTO;
use crate::status::{Failure, Reader, Step};

/// Opens streams to gateways.
pub trait Dial: Send + Sync {
    /// A stream that is ready for HTTP: after the handshake, where there is one.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Opens one. `progress` is told of each step as it begins, so that a timeout can say what it interrupted; the stream may
    /// keep it, for what it has to say later.
    fn dial(&self, addr: &str, progress: &Progress) -> impl Future<Output = Result<Self::Stream, DialError>> + Send;
}

/// Why there is no stream.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{step}: {message}")]
pub struct DialError {
    /// The step that failed.
    pub step: Step,
    /// What happened.
    pub message: String,
}

/// Which step a probe is at. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<At>);

#[derive(Debug, Default)]
struct At {
    step: AtomicU8,
    late: Mutex<Option<DialError>>,
}

impl Progress {
    /// The step begins.
    pub fn enter(&self, step: Step) {
        self.0.step.store(step as u8, Ordering::Relaxed);
    }

    /// What the stream has to say of a failure, rather than whoever met it: in TLS 1.3 a server's no to a certificate comes
    /// after the handshake, and to HTTP it is only a broken connection.
    pub fn fail(&self, error: DialError) {
        *self.0.late.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    fn step(&self) -> Step {
        let reached = self.0.step.load(Ordering::Relaxed);
        let all = [Step::Name, Step::Connect, Step::Tls, Step::Http, Step::Status];
        all.into_iter().find(|step| *step as u8 == reached).unwrap_or(Step::Status)
    }

    fn failure(&self, met: Failure) -> Failure {
        match self.0.late.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(DialError { step, message }) => Failure::new(step, message),
            None => met,
        }
    }
}

/// What is asked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Target {
    /// The name of the cluster, for reports.
    pub cluster: String,
    /// Where to connect, for the dialer: `host:port`.
    pub addr: String,
    /// The authority of the request, such as `probe-gateway-east:4181`.
    pub authority: String,
    /// The path, such as `/ready`.
    pub path: String,
}

/// How a request travels.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Mode {
    /// As HTTP/1.1.
    Http1,
    /// As HTTP/1.1 inside HTTP/2, as between Linkerd proxies.
    #[default]
    Http2,
}

/// How often, how long, how patient.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Settings {
    /// How the request travels.
    pub mode: Mode,
    /// From one probe to the next, less the time the probe takes; up to a tenth is added by chance.
    pub period: Duration,
    /// For one probe, all steps together.
    pub timeout: Duration,
    /// How many failures in a row make the gateway dead.
    pub failure_threshold: u32,
    /// Whether the first probe is sent at once rather than after a period.
    pub first_at_once: bool,
}

impl Default for Settings {
    /// What Linkerd's multicluster extension sets.
    fn default() -> Self {
        Self {
            mode: Mode::Http2,
            period: Duration::from_secs(3),
            timeout: Duration::from_secs(30),
            failure_threshold: 3,
            first_at_once: false,
        }
    }
}

/// Probes one gateway.
#[derive(Debug)]
pub struct Prober<D> {
    dialer: D,
    target: Target,
    settings: Settings,
    status: Reader,
    /// Kept between probes, as a mirror's proxy does.
    connection: Option<Connection>,
}

impl<D: Dial> Prober<D> {
    /// A prober, and the reader of what it finds.
    pub fn new(dialer: D, target: Target, settings: Settings) -> Result<(Self, Reader), http::Error> {
        request(&target, settings.mode)?;
        let reader = Reader::new(&target.cluster);
        let status = reader.clone();
        Ok((Self { dialer, target, settings, status, connection: None }, reader))
    }

    /// Probes until the future is dropped, which closes the connection.
    pub async fn run(mut self) {
        if !self.settings.first_at_once {
            self.pause().await;
        }
        loop {
            let result = self.probe().await;
            self.status.note(result, self.settings.failure_threshold);
            self.pause().await;
        }
    }

    /// Probes so often, with the pauses in between that [`run`](Self::run) makes.
    pub async fn times(mut self, count: u32) {
        for round in 0..count {
            if round > 0 || !self.settings.first_at_once {
                self.pause().await;
            }
            let result = self.probe().await;
            self.status.note(result, self.settings.failure_threshold);
        }
    }

    /// Probes once: how long it took, or why it failed. What is known of the gateway stays as it was.
    pub async fn probe(&mut self) -> Result<Duration, Failure> {
        let progress = Progress::default();
        let started = Instant::now();
        // Whatever goes wrong, the connection goes with this variable.
        let kept = self.connection.take();
        let attempt = attempt(&self.dialer, &self.target, self.settings.mode, kept, &progress);
        match timeout(self.settings.timeout, attempt).await {
            Ok(Ok(connection)) => {
                self.connection = Some(connection);
                Ok(started.elapsed())
            }
            Ok(Err(failure)) => Err(progress.failure(failure)),
            Err(_) => Err(Failure::new(progress.step(), format!("timed out after {:?}", self.settings.timeout))),
        }
    }

    async fn pause(&self) {
        sleep(self.settings.period.mul_f64(1.0 + 0.1 * rand::random::<f64>())).await;
    }
}

/// One probe on the connection kept, if it still lives, or on a new one; gives the connection back after a success.
async fn attempt<D: Dial>(
    dialer: &D,
    target: &Target,
    mode: Mode,
    kept: Option<Connection>,
    progress: &Progress,
) -> Result<Connection, Failure> {
    let kept = match kept {
        None => None,
        Some(mut kept) => kept.is_usable().await.then_some(kept),
    };
    let mut connection = match kept {
        Some(kept) => kept,
        None => {
            let stream = dialer.dial(&target.addr, progress).await;
            let stream = stream.map_err(|DialError { step, message }| Failure::new(step, message))?;
            progress.enter(Step::Http);
            Connection::open(stream, mode).await.map_err(|error| http_failure(&error))?
        }
    };
    progress.enter(Step::Http);
    let request = request(target, mode).map_err(|error| Failure::new(Step::Http, error.to_string()))?;
    let response = match connection.send(request).await {
        Ok(response) => response,
        Err(error) => return Err(connection.failure(error).await),
    };
    let status = response.status();
    if status != StatusCode::OK {
        // That the answer is no is known already: a body that does not end must not turn it into a timeout.
        let body = timeout(REASON_TIMEOUT, Limited::new(response.into_body(), MAX_REASON_BYTES).collect()).await;
        let reason = body.ok().and_then(Result::ok).map(|body| body.to_bytes()).unwrap_or_default();
        let reason = String::from_utf8_lossy(&reason).trim().to_owned();
        let separator = if reason.is_empty() { "" } else { ": " };
        return Err(Failure::new(Step::Status, format!("{}{separator}{reason}", status.as_u16())));
    }
    let body = Limited::new(response.into_body(), MAX_BODY_BYTES).collect().await;
    body.map_err(|error| Failure::new(Step::Http, error.to_string()))?;
    Ok(connection)
}

/// The longest reason that is taken from the body of a failed probe, in bytes.
const MAX_REASON_BYTES: usize = 1024;

/// How long the reason may take to come.
const REASON_TIMEOUT: Duration = Duration::from_secs(1);

/// The longest body that a probe reads, in bytes. Any body is fine; an endless one is not.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// hyper keeps the cause apart from what it says itself: `connection error` alone would tell nobody anything.
fn http_failure(error: &hyper::Error) -> Failure {
    let mut message = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        message = format!("{message}: {error}");
        cause = error.source();
    }
    Failure::new(Step::Http, message)
}

fn request(target: &Target, mode: Mode) -> Result<Request<Empty<Bytes>>, http::Error> {
    let request = Request::builder().method(Method::GET).header(USER_AGENT, AGENT);
    let uri = Uri::builder().path_and_query(target.path.as_str());
    let authority = Authority::try_from(target.authority.as_str())?;
    let request = match mode {
        Mode::Http1 => request.uri(uri.build()?).header(HOST, authority.as_str()),
        Mode::Http2 => request
            .uri(uri.scheme("http").authority(authority).build()?)
            .header(ORIG_PROTO, HeaderValue::from_static("HTTP/1.1")),
    };
    request.body(Empty::new())
}

const AGENT: &str = concat!("isthmus-probe/", env!("CARGO_PKG_VERSION"));

/// A connection and the task that moves it; dropping it ends both.
#[derive(Debug)]
struct Connection {
    sender: Sender,
    driver: JoinSet<Result<(), hyper::Error>>,
}

#[derive(Debug)]
enum Sender {
    Http1(http1::SendRequest<Empty<Bytes>>),
    Http2(http2::SendRequest<Empty<Bytes>>),
}

impl Connection {
    async fn open<S>(stream: S, mode: Mode) -> Result<Self, hyper::Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let io = TokioIo::new(stream);
        let mut driver = JoinSet::new();
        let sender = match mode {
            Mode::Http1 => {
                let (sender, connection) = http1::handshake(io).await?;
                driver.spawn(connection);
                Sender::Http1(sender)
            }
            Mode::Http2 => {
                let mut builder = http2::Builder::new(TokioExecutor::new());
                builder.timer(TokioTimer::new());
                let (sender, connection) = builder.handshake(io).await?;
                driver.spawn(connection);
                Sender::Http2(sender)
            }
        };
        Ok(Self { sender, driver })
    }

    async fn is_usable(&mut self) -> bool {
        match &mut self.sender {
            Sender::Http1(sender) => sender.ready().await.is_ok(),
            Sender::Http2(sender) => sender.ready().await.is_ok(),
        }
    }

    /// What a failed request tells; or, where it only tells that the connection is gone, what the connection ended of.
    async fn failure(&mut self, error: hyper::Error) -> Failure {
        if error.is_canceled() || error.is_closed() {
            let ended = timeout(REASON_TIMEOUT, self.driver.join_next()).await;
            if let Ok(Some(Ok(Err(cause)))) = ended {
                return http_failure(&cause);
            }
        }
        http_failure(&error)
    }

    async fn send(
        &mut self,
        request: Request<Empty<Bytes>>,
    ) -> Result<http::Response<hyper::body::Incoming>, hyper::Error> {
        match &mut self.sender {
            Sender::Http1(sender) => sender.send_request(request).await,
            Sender::Http2(sender) => sender.send_request(request).await,
        }
    }
}

#[cfg(test)]
mod tests;
