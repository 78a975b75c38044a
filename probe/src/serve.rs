//! HTTP over one stream for servers that answer small questions: bounded in time and in memory.
//!
//! **In** a stream, [`Limits`] and a function from request to response. **Out** why the connection [`End`]ed.
//! **Refuses** nothing by itself: what is no HTTP ends in [`End::Failed`]. HTTP/1.0, HTTP/1.1 and HTTP/2 with prior
//! knowledge are told apart by the first bytes.
//!
//! Only answers count as life. A peer that trickles header bytes, sends pings or opens nothing at all is ended when
//! the time is up, whatever it sends meanwhile; hyper's own header timeout would not cover the sniffing, nor HTTP/2.
//! Dropping the future closes the stream.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep_until, timeout};

/// How long a connection may take and last.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// From the hand-over of the stream to the first answer.
    pub first_answer_timeout: Duration,
    /// From one answer to the next.
    pub idle_timeout: Duration,
    /// From the hand-over to the end; then the peer is asked to come again.
    pub lifetime: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // Slow peers far away still manage; a silent one is gone soon.
            first_answer_timeout: Duration::from_secs(10),
            // Longer than the usual minute between two scrapes, so that a connection can be kept.
            idle_timeout: Duration::from_secs(75),
            // A peer that keeps asking is moved on now and then, so that no connection outlives a credential by long.
            lifetime: Duration::from_secs(600),
        }
    }
}

/// Why a connection ended.
#[derive(Debug)]
pub enum End {
    /// In order: by the peer, or by us after its lifetime or an idle time.
    Closed,
    /// What came was no HTTP, or the stream broke.
    Failed(Box<dyn StdError + Send + Sync>),
    /// No request was answered in time.
    TimedOut,
}

/// Serves one stream to its end.
pub async fn serve<S, F, A, B>(stream: S, limits: Limits, answer: F) -> End
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
    F: Fn(Request<Incoming>) -> A,
    A: Future<Output = Response<B>> + Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let life = Arc::new(Life { started: Instant::now(), answers: AtomicU64::new(0), open: AtomicU32::new(0) });
    let service = service_fn(|request| {
        let open = Open::new(Arc::clone(&life));
        let answered = answer(request);
        async move {
            let response = answered.await;
            drop(open);
            Ok::<_, Infallible>(response)
        }
    });
    let builder = builder();
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut alarm = pin!(sleep_until(life.due(limits)));
    loop {
        tokio::select! {
            end = connection.as_mut() => return end.map_or_else(End::Failed, |()| End::Closed),
            () = alarm.as_mut() => {
                let due = life.due(limits);
                if due <= Instant::now() {
                    break;
                }
                alarm.as_mut().reset(due);
            }
        }
    }
    connection.as_mut().graceful_shutdown();
    // Whether the farewell is taken or not, the stream goes with the connection.
    let _ = timeout(FAREWELL, connection).await;
    if life.answers.load(Ordering::Relaxed) == 0 { End::TimedOut } else { End::Closed }
}

/// How long a peer has to take leave once it was asked to.
const FAREWELL: Duration = Duration::from_secs(1);

/// When a connection last did something useful.
#[derive(Debug)]
struct Life {
    started: Instant,
    /// Milliseconds after the start of the last answer, plus one; zero before the first.
    answers: AtomicU64,
    open: AtomicU32,
}

impl Life {
    /// When there is reason to look again, or to end it.
    fn due(&self, limits: Limits) -> Instant {
        let last = self.answers.load(Ordering::Relaxed);
        let due = if self.open.load(Ordering::Relaxed) > 0 {
            // An answer in the making is somebody else's to bound.
            Instant::now() + limits.idle_timeout
        } else if last == 0 {
            self.started + limits.first_answer_timeout
        } else {
            self.started + Duration::from_millis(last) + limits.idle_timeout
        };
        due.min(self.started + limits.lifetime)
    }
}

/// A request being answered.
#[derive(Debug)]
struct Open(Arc<Life>);

impl Open {
    fn new(life: Arc<Life>) -> Self {
        life.open.fetch_add(1, Ordering::Relaxed);
        Self(life)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let elapsed = u64::try_from(self.0.started.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        self.0.answers.store(elapsed.max(1), Ordering::Relaxed);
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The smallest buffers the protocols allow, for questions and answers of a few hundred bytes.
fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(None) // `Life` bounds the whole
        .half_close(true) // a peer that has asked and says no more still wants its answer
        .max_buf_size(8 * 1024) // hyper's minimum
        .max_headers(64);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(16)
        .max_header_list_size(8 * 1024)
        .max_pending_accept_reset_streams(16)
        .max_local_error_reset_streams(16)
        .initial_stream_window_size(8 * 1024)
        .initial_connection_window_size(64 * 1024)
        .max_send_buf_size(16 * 1024);
    builder
}
