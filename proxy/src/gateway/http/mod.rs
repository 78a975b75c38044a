//! The request branch: one HTTP session under hyper, and for each request the same words as for a connection.
//!
//! **In** a session whose protocol is HTTP/1 or HTTP/2 and the client's identity. **Out** nothing: responses have gone
//! to the client and records to the observer. **Refuses** per request, in the request's own protocol (`refuse.rs`).
//!
//! `ask.rs` reads what is asked for; `request.rs` is the sentence once more, from authorise to relay; `upgrade.rs` is
//! where a request leaves HTTP; `headers.rs` what changes between hops. (RFC 9110, RFC 9112, RFC 9113.)

pub(super) mod ask;
pub(crate) mod body;
pub(crate) mod exchange;
mod guarded;
mod headers;
pub mod identify;
mod intake;
mod linger;
mod metered;
mod orig_proto;
mod plan;
mod request;
mod retire;
pub(super) mod session;
mod stalled;
mod towards;
mod upgrade;
mod websocket;

use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep_until};

use self::guarded::{Framing, Guarded};
use self::linger::{lend, linger};
use self::metered::{HeadClock, Metered};
use self::retire::Retirement;
use self::session::{HttpSession, Tick};
use self::stalled::OnWorker;
use super::Gateway;
use super::connection::Places;
use super::refuse::{Refused, Reset};
use super::trust::Trust;
use crate::detect::Naming;
use crate::drain::Phase;
use crate::identity::Identity;
use crate::record::Peer;
use crate::wire::http1_guard::Limits;

/// How HTTP is served. Keys below `http:` in the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long a request's head may take from its first byte.
    pub header_timeout: Duration,
    /// How long a session without a request in flight is kept.
    pub idle_timeout: Duration,
    /// When a session is asked to end so that its client connects anew, perhaps to another replica.
    pub max_age: Option<Duration>,
    /// How long an endpoint may take from request to response head. None: as long as it likes.
    pub request_timeout: Option<Duration>,
    /// The most requests under way on one worker.
    pub max_requests: usize,
    /// Bytes a second that a request's body must bring while it is waited for; 0: none.
    pub min_body_rate: u64,
    /// The time over which that is measured.
    pub body_window: Duration,
    /// HTTP/2: how long bytes of a response may wait for their client. None: for ever.
    pub stall_timeout: Option<Duration>,
    /// HTTP/2: streams that a client may reset in a second; 0: no limit.
    pub max_resets: u32,
    /// HTTP/2: control frames that a client may send in a second; 0: no limit.
    pub max_control_frames: u32,
    /// The largest request head, in bytes.
    pub max_header_bytes: u32,
    /// The most header fields in a request.
    pub max_headers: usize,
    /// HTTP/2: concurrent streams of one connection.
    pub max_streams: u32,
    /// HTTP/2: what one stream may send before it is read, in bytes.
    pub stream_window_bytes: u32,
    /// HTTP/2: the same for one connection.
    pub connection_window_bytes: u32,
    /// HTTP/2: response bytes buffered per stream.
    pub max_send_buffer_bytes: usize,
    /// HTTP/2: how many reset streams may wait to be noticed (rapid reset, CVE-2023-44487).
    pub max_pending_resets: usize,
    /// HTTP/2: how many streams may be reset for the client's own errors (CVE-2025-8671).
    pub max_local_resets: usize,
    /// HTTP/2: how often the client is asked whether it lives.
    pub keepalive_interval: Option<Duration>,
    /// HTTP/2: how long the answer may take.
    pub keepalive_timeout: Duration,
    /// How often a request may be sent again when it is certain that it was not processed.
    pub max_retries: u32,
    /// Retries as a share of requests, so that a failing service is not hit harder for failing.
    pub retry_budget: f64,
    /// What is kept of a request's body, in bytes, where the service's profile lets it be sent again for its response.
    pub max_retry_body_bytes: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(600),
            max_age: None,
            request_timeout: None,
            max_requests: 16 * 1024,
            min_body_rate: 100,
            body_window: Duration::from_secs(30),
            stall_timeout: Some(Duration::from_secs(300)),
            max_resets: 1000,
            max_control_frames: 1000,
            max_header_bytes: 16 * 1024,
            max_headers: 100,
            max_streams: 1024,
            stream_window_bytes: 256 * 1024,
            connection_window_bytes: 1024 * 1024,
            max_send_buffer_bytes: 64 * 1024,
            max_pending_resets: 20,
            max_local_resets: 1024,
            keepalive_interval: Some(Duration::from_secs(10)),
            keepalive_timeout: Duration::from_secs(3),
            max_retries: 2,
            retry_budget: 0.2,
            max_retry_body_bytes: 64 * 1024,
        }
    }
}

/// What a session is served with.
#[derive(Debug)]
pub(crate) struct Start {
    pub(crate) gateway: Rc<Gateway>,
    pub(crate) peer: Arc<Peer>,
    pub(crate) client: Identity,
    pub(crate) naming: Naming,
    pub(crate) trust: Trust,
    pub(crate) places: Places,
}

impl Start {
    fn session(self, head: Head) -> Rc<HttpSession> {
        Rc::new(HttpSession::new(self, head))
    }
}

/// What knows when the request head that is being read began.
#[derive(Debug)]
enum Head {
    Http1(Framing),
    Http2(HeadClock),
}

/// Serves an HTTP/1 session to its end.
pub(crate) async fn serve_http1<S>(start: Start, stream: S) -> Ended
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let settings = &start.gateway.http;
    let limits = Limits { max_head_bytes: settings.max_header_bytes as usize, max_headers: settings.max_headers };
    let framing = Framing::new(limits);
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(None) // the session's own clock tells a slow head from an idle connection
        .max_headers(settings.max_headers)
        // Not `pipeline_flush`: a response would wait in hyper's buffer for as long as bytes of what follows the request
        // are there, be it half a request or the first bytes behind a CONNECT.
        .max_buf_size((settings.max_header_bytes as usize).max(MIN_HTTP1_BUFFER) + 4096);
    let session = start.session(Head::Http1(framing.clone()));
    let (stream, returned) = lend(stream);
    let io = TokioIo::new(Guarded::new(stream, framing.clone()));
    let served = Rc::clone(&session);
    let service = service_fn(move |request| answer(Rc::clone(&served), request));
    let retirement = Retirement::new(IDLE_LINGER);
    let how = {
        let mut connection = pin!(builder.serve_connection(io, service).with_upgrades());
        watch(&session, connection.as_mut(), retirement, |connection| connection.graceful_shutdown()).await
    };
    let malformed = framing.malformed();
    if malformed.is_some() || matches!(how, How::Closed) {
        linger(returned).await;
    }
    Ended { malformed, how }
}

/// Serves an HTTP/2 session to its end. SETTINGS go out at once, before anything is discovered.
pub(crate) async fn serve_http2<S>(start: Start, stream: S) -> Ended
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let settings = &start.gateway.http;
    let stream = Metered::new(stream, settings, Arc::clone(&start.peer));
    let executor = OnWorker { stall_timeout: settings.stall_timeout, observer: Rc::clone(&start.gateway.observer) };
    let mut builder = http2::Builder::new(executor);
    builder
        .timer(TokioTimer::new())
        .enable_connect_protocol()
        .initial_stream_window_size(settings.stream_window_bytes)
        .initial_connection_window_size(settings.connection_window_bytes)
        .max_concurrent_streams(settings.max_streams)
        .max_header_list_size(settings.max_header_bytes)
        .max_send_buf_size(settings.max_send_buffer_bytes)
        .max_pending_accept_reset_streams(settings.max_pending_resets)
        .max_local_error_reset_streams(settings.max_local_resets)
        .keep_alive_interval(settings.keepalive_interval)
        .keep_alive_timeout(settings.keepalive_timeout);
    let session = start.session(Head::Http2(stream.head()));
    let served = Rc::clone(&session);
    // Boxed: hyper and the runtime move a stream's future several times before its first poll, and each move is a copy.
    let service = service_fn(move |request| Box::pin(answer(Rc::clone(&served), request)));
    let (stream, returned) = lend(stream);
    // GOAWAY in two steps loses nothing, whenever it is said.
    let retirement = Retirement::new(Duration::ZERO);
    let how = {
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        watch(&session, connection.as_mut(), retirement, |connection| connection.graceful_shutdown()).await
    };
    if matches!(how, How::Closed) {
        linger(returned).await;
    }
    Ended { malformed: None, how }
}

/// How long an idle HTTP/1 connection is given to ask once more before it is closed: what a busy client leaves between two
/// requests. Without it the close would cross a request on its way, which HTTP/1.1 has no way to give back.
const IDLE_LINGER: Duration = Duration::from_secs(1);

/// How an HTTP session ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// What broke RFC 9112, if anything did.
    pub(crate) malformed: Option<String>,
    pub(crate) how: How,
}

/// Who ended an HTTP session.
#[derive(Debug)]
pub(crate) enum How {
    /// The client, or both in agreement.
    Closed,
    /// The drain's deadline.
    Cut,
    /// The peer lost its trust, for this reason.
    Distrusted(Refused),
    /// The transport or the peer's protocol failed.
    Failed,
    /// The session's clock: idle.
    Idle,
    /// The session's clock: a head that did not arrive.
    SlowHead,
}

/// hyper wants at least this for its read buffer, in bytes.
const MIN_HTTP1_BUFFER: usize = 8192;

/// Drives a connection while looking at the drain and at the session's clock.
async fn watch<C>(
    session: &HttpSession,
    mut connection: std::pin::Pin<&mut C>,
    mut retirement: Retirement,
    retire: fn(std::pin::Pin<&mut C>),
) -> How
where
    C: Future<Output = hyper::Result<()>>,
{
    let mut phases = session.gateway.drain.clone();
    let mut until = Phase::Draining;
    let mut deadline: Option<Instant> = None;
    let mut reason: Option<Refused> = None;
    let mut distrusted = pin!(session.trust.lost());
    let mut clock = pin!(sleep_until(session.next_look(Instant::now())));
    loop {
        tokio::select! {
            biased;
            ended = retirement.drive(session, connection.as_mut()) => {
                let Some(ended) = ended else {
                    retire(connection.as_mut());
                    continue;
                };
                return match ended {
                    Ok(()) => reason.map_or(How::Closed, How::Distrusted),
                    Err(error) => {
                        tracing::debug!(stage = "relay", error = %error, "HTTP session ended");
                        How::Failed
                    }
                };
            }
            () = phases.reached(until) => {
                if until == Phase::Cut {
                    return How::Cut;
                }
                until = Phase::Cut;
                retirement.ask(Instant::now());
                let next = retirement.sooner(clock.deadline());
                clock.as_mut().reset(next);
            }
            refused = distrusted.as_mut(), if deadline.is_none() => {
                let at = Instant::now() + session.gateway.distrust_deadline;
                deadline = Some(at);
                reason = Some(refused);
                clock.as_mut().reset(at);
                // Whom we no longer trust is not waited for.
                retirement.told();
                retire(connection.as_mut());
            }
            () = clock.as_mut() => {
                let now = Instant::now();
                if deadline.is_some_and(|deadline| now >= deadline) {
                    return reason.map_or(How::Cut, How::Distrusted);
                }
                match session.tick(now) {
                    Tick::Fine => {}
                    Tick::SlowHead => return How::SlowHead,
                    Tick::Idle => return How::Idle,
                    Tick::Retire => retirement.ask(now),
                }
                let next = retirement.sooner(session.next_look(now));
                clock.as_mut().reset(deadline.map_or(next, |deadline| deadline.min(next)));
            }
        }
    }
}

/// hyper's service: a request in, a response out, and no error but the endpoint's reset of the same HTTP/2 stream.
async fn answer(
    session: Rc<HttpSession>,
    request: http::Request<hyper::body::Incoming>,
) -> Result<http::Response<body::Body>, Reset> {
    request::handle(session, request).await
}
