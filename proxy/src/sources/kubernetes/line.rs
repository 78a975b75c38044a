//! The line to the API server: when it was last heard, when it may be asked again, and how long silence is borne.
//!
//! **In** the requests that kube's watchers make. **Out** the same, and the moment of each byte that comes back: an idle
//! watch is told from a dead one by its bookmarks, which the watchers keep to themselves. **Refuses** an answer that does not begin
//! or go on within the settings' time, which a server that took the connection and fell silent would otherwise never end.
//!
//! A server that says 429 or 503 with `retry-after` (RFC 9110 §10.2.3) is left alone for that long; and a watch is begun at most
//! once in [`Settings::watch_interval`](super::Settings), or a server that ends every watch at once would be asked
//! without a pause.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use kube::client::Body as Sent;
use parking_lot::Mutex;
use pin_project_lite::pin_project;
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};
use tower::{BoxError, Layer, Service};

/// The longest that a server's `retry-after` is obeyed: what it asks for beyond this is a mistake, or will be said again.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(120);

/// How it goes with one list and watch.
#[derive(Debug)]
pub(super) struct Line {
    /// What is watched, for the log and `/state`: `services`, `endpointslices in prod`.
    pub(super) what: String,
    answer_timeout: Duration,
    watch_interval: Duration,
    epoch: Instant,
    /// Milliseconds after the epoch, plus one; 0 before the first time.
    heard: AtomicU64,
    failures: AtomicU64,
    lists: AtomicU64,
    state: Mutex<LineState>,
    /// Rung when a watch stands after something was wrong.
    stands: Notify,
}

#[derive(Debug, Default)]
struct LineState {
    not_before: Option<Instant>,
    last_watch: Option<Instant>,
    problem: Option<Problem>,
}

/// Why nothing new is learned.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Problem {
    pub(super) reason: String,
    pub(super) since: SystemTime,
}

impl Line {
    pub(super) fn new(what: String, answer_timeout: Duration, watch_interval: Duration) -> Arc<Self> {
        Arc::new(Self {
            what,
            answer_timeout,
            watch_interval,
            epoch: Instant::now(),
            heard: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            lists: AtomicU64::new(0),
            state: Mutex::default(),
            stands: Notify::new(),
        })
    }

    fn hears(&self) {
        let now = u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        self.heard.store(now + 1, Ordering::Relaxed);
    }

    /// Since anything came that was no refusal.
    pub(super) fn age(&self) -> Option<Duration> {
        let at = self.heard.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.epoch.elapsed().saturating_sub(Duration::from_millis(at)))
    }

    /// Something went wrong. Answers whether it is news.
    pub(super) fn failed(&self, reason: String) -> bool {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let mut state = self.state.lock();
        let since = state.problem.as_ref().map(|problem| problem.since);
        let news = state.problem.as_ref().is_none_or(|problem| problem.reason != reason);
        state.problem = Some(Problem { reason, since: since.unwrap_or_else(SystemTime::now) });
        news
    }

    /// Ends when a watch stands again after something was wrong: nothing else may come of it for a long time.
    pub(super) async fn stands(&self) {
        self.stands.notified().await;
    }

    /// A watch stands, a whole list has come, or a change. Answers whether something was wrong before.
    pub(super) fn works(&self, listed: bool) -> bool {
        if listed {
            self.lists.fetch_add(1, Ordering::Relaxed);
        }
        self.state.lock().problem.take().is_some()
    }

    pub(super) fn problem(&self) -> Option<Problem> {
        self.state.lock().problem.clone()
    }

    pub(super) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Whole lists taken.
    pub(super) fn lists(&self) -> u64 {
        self.lists.load(Ordering::Relaxed)
    }

    /// When the next request may go out.
    fn turn(&self, watch: bool) -> Instant {
        let mut state = self.state.lock();
        let now = Instant::now();
        let mut at = state.not_before.map_or(now, |not_before| not_before.max(now));
        if watch {
            at = state.last_watch.map_or(at, |last| at.max(last + self.watch_interval));
            state.last_watch = Some(at);
        }
        at
    }

    fn answered<B>(&self, response: &Response<B>, watch: bool) {
        let throttles = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE];
        if response.status().is_success() {
            self.hears();
            if watch && self.state.lock().problem.is_some() {
                self.stands.notify_one();
            }
        } else if throttles.contains(&response.status())
            && let Some(wait) = retry_after(response)
        {
            self.state.lock().not_before = Some(Instant::now() + wait.min(MAX_RETRY_AFTER));
        }
    }
}

/// In seconds; API servers write no dates.
fn retry_after<B>(response: &Response<B>) -> Option<Duration> {
    let text = response.headers().get(header::RETRY_AFTER)?.to_str().ok()?;
    text.trim().parse().ok().map(Duration::from_secs)
}

/// The answer, or its next part, did not come in time.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the API server has been silent for {}s (sources.kubernetes.answer_timeout)", .0.as_secs())]
struct Silent(Duration);

/// Puts a [`Line`] around a client.
#[derive(Clone, Debug)]
pub(super) struct OnLine(pub(super) Arc<Line>);

impl<S> Layer<S> for OnLine {
    type Service = Asking<S>;

    fn layer(&self, inner: S) -> Asking<S> {
        Asking { inner, line: Arc::clone(&self.0) }
    }
}

/// Asks over a [`Line`].
#[derive(Debug)]
pub(super) struct Asking<S> {
    inner: S,
    line: Arc<Line>,
}

impl<S, B> Service<Request<Sent>> for Asking<S>
where
    S: Service<Request<Sent>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: Send + 'static,
{
    type Response = Response<Heard<B>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Sent>) -> Self::Future {
        let query = request.uri().query().unwrap_or_default();
        let watch = query.split('&').any(|pair| pair == "watch=true" || pair == "watch=1");
        let line = Arc::clone(&self.line);
        let answer = self.inner.call(request); // begins when it is first polled, below
        Box::pin(async move {
            tokio::time::sleep_until(line.turn(watch)).await;
            let patience = line.answer_timeout;
            let answer = tokio::time::timeout(patience, answer).await;
            let response = answer.map_err(|_| Silent(patience))?.map_err(Into::into)?;
            line.answered(&response, watch);
            let heard = response.status().is_success().then_some(line);
            // A watch may be silent until its next bookmark; kube's watcher ends one that is silent beyond its end.
            let silence = (!watch).then(|| tokio::time::sleep(patience));
            Ok(response.map(|body| Heard { body, line: heard, silence, patience }))
        })
    }
}

pin_project! {
    /// A body whose bytes are noticed, and whose silence is.
    pub(super) struct Heard<B> {
        #[pin]
        body: B,
        line: Option<Arc<Line>>,
        #[pin]
        silence: Option<Sleep>,
        patience: Duration,
    }
}

impl<B> Body for Heard<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut this = self.project();
        if let Poll::Ready(frame) = this.body.poll_frame(cx) {
            if let Some(Ok(_)) = &frame {
                if let Some(line) = this.line {
                    line.hears();
                }
                if let Some(silence) = this.silence.as_mut().as_pin_mut() {
                    silence.reset(Instant::now() + *this.patience);
                }
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        match this.silence.as_mut().as_pin_mut().map(|silence| silence.poll(cx)) {
            Some(Poll::Ready(())) => Poll::Ready(Some(Err(Silent(*this.patience).into()))),
            _ => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
