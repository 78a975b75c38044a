//! Bodies on their way through: bytes are counted and passed on, nothing is held.
//!
//! [`RequestBody`] can be handed out again while nothing of it has been read, which is what makes a retry possible
//! without buffering. [`Body`] is what a client receives; it carries the exchange and closes its record at its end.
//! Backpressure is the absence of polling: neither side is read before the other has taken what came.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http::{HeaderMap, HeaderName};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;

use super::exchange::Exchange;
use super::intake::{Failure as Failed, Intake, Least, Patience};
use super::{headers, identify, stalled};
use crate::balance::{Failure, Guard};
use crate::connect::{BodyError, Streamed};
use crate::gateway::paced::Pacer;
use crate::gateway::refuse;

/// What is sent to a client: nothing, a few bytes of our own, or what an endpoint answers.
#[derive(Debug)]
pub(crate) struct Body {
    source: Source,
    /// The endpoint counts as busy until its answer has ended.
    guard: Option<Guard>,
    exchange: Option<Box<Exchange>>,
    pacer: Pacer,
}

#[derive(Debug)]
enum Source {
    Ours(Full<Bytes>),
    Upstream(Streamed<RequestBody>),
}

impl Body {
    pub(crate) fn empty() -> Self {
        Self::ours(Full::default())
    }

    pub(crate) fn ours(body: Full<Bytes>) -> Self {
        Self { source: Source::Ours(body), guard: None, exchange: None, pacer: Pacer::default() }
    }

    pub(crate) fn upstream(body: Streamed<RequestBody>, guard: Option<Guard>) -> Self {
        Self { source: Source::Upstream(body), guard, exchange: None, pacer: Pacer::default() }
    }

    /// Hands the record over: it is closed when this body has ended or is dropped.
    pub(crate) fn recording(mut self, mut exchange: Box<Exchange>) -> Self {
        if self.is_end_stream() {
            exchange.served();
        } else {
            self.pacer = exchange.pacer();
            self.exchange = Some(exchange);
        }
        self
    }

    fn ended(&mut self) {
        self.guard = None;
        if let Some(mut exchange) = self.exchange.take() {
            exchange.served();
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        stalled::waits();
        ready!(self.pacer.poll_ready(cx));
        let polled = match &mut self.source {
            Source::Ours(body) => match Pin::new(body).poll_frame(cx) {
                Poll::Ready(frame) => Poll::Ready(frame.map(|frame| Ok(frame.unwrap_or_else(|never| match never {})))),
                Poll::Pending => Poll::Pending,
            },
            Source::Upstream(body) => Pin::new(body).poll_frame(cx),
        };
        let Poll::Ready(mut frame) = polled else { return Poll::Pending };
        if let Some(Ok(frame)) = &mut frame
            && let Some(trailers) = frame.trailers_mut()
        {
            headers::clean_trailers(trailers);
        }
        match &frame {
            Some(Ok(frame)) => {
                stalled::sent();
                self.pacer.moved(frame.data_ref().map_or(0, Bytes::len));
                if let Some(exchange) = &mut self.exchange {
                    if let Some(data) = frame.data_ref() {
                        exchange.sent(data.len() as u64);
                    } else if let Some(trailers) = frame.trailers_ref() {
                        exchange.note_grpc_status(trailers.get(headers::GRPC_STATUS));
                    }
                }
                // A body of known length is not polled again once its last byte is taken.
                if self.is_end_stream() {
                    self.ended();
                }
            }
            Some(Err(_)) => {
                let guard = self.guard.take();
                if let Some(mut exchange) = self.exchange.take() {
                    // Where the client's own body failed, the endpoint was only told so.
                    if let (None, Some(guard)) = (exchange.intake.failure.get(), guard) {
                        exchange.gateway().failed(&guard, Failure::Reset);
                    }
                    exchange.broken();
                    if exchange.grpc {
                        // A client of gRPC reads why in trailers; a stream that is merely reset says less.
                        let trailers = refuse::broken_trailers();
                        exchange.note_grpc_status(trailers.get(headers::GRPC_STATUS));
                        self.source = Source::Ours(Full::default());
                        frame = Some(Ok(Frame::trailers(trailers)));
                    }
                }
            }
            None => self.ended(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Ours(body) => body.is_end_stream(),
            Source::Upstream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Ours(body) => body.size_hint(),
            Source::Upstream(body) => body.size_hint(),
        }
    }
}

/// Holds a request's body back until the backend said `100 Continue` or answered, so that a client which asked first
/// is not told to go on before the backend agreed (RFC 9110 §10.1.1).
#[derive(Debug, Default)]
pub(crate) struct Gate {
    open: AtomicBool,
    waker: AtomicWaker,
}

impl Gate {
    pub(crate) fn open(&self) {
        self.open.store(true, Ordering::Release);
        self.waker.wake();
    }

    fn poll_open(&self, cx: &Context<'_>) -> Poll<()> {
        if self.open.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        self.waker.register(cx.waker());
        if self.open.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// What a client's body is held to.
#[derive(Debug)]
pub(super) struct Wary {
    /// What rests after its bytes, where a limit says so.
    pub(super) pacer: Pacer,
    /// The field of the client's assertion, which trailers may not hold.
    pub(super) assertion: HeaderName,
    /// How fast it must come.
    pub(super) least: Option<Least>,
}

/// Why a client's body ended before its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestBroken {
    /// The client broke off.
    #[error(transparent)]
    Broken(#[from] hyper::Error),
    /// It sent less than `http.min_body_rate`.
    #[error("the client's body came too slowly")]
    Slow,
}

/// A client's body on its way to an endpoint.
#[derive(Clone, Debug)]
pub(crate) struct RequestBody {
    /// None where there is nothing to send.
    shared: Option<Rc<Shared>>,
    /// Present where all of it has been read before and is sent again. Each attempt has its own: one before it may live on,
    /// and must not take what this one is to send.
    replay: Option<Replay>,
}

/// A body that was kept, on its way again.
#[derive(Clone, Debug)]
struct Replay {
    frames: std::vec::IntoIter<Bytes>,
    trailers: Option<HeaderMap>,
}

impl Replay {
    fn next(&mut self) -> Option<Frame<Bytes>> {
        self.frames.next().map(Frame::data).or_else(|| self.trailers.take().map(Frame::trailers))
    }
}

/// What has been read of a body, kept so that it can be sent again.
#[derive(Debug, Default)]
struct Kept {
    frames: Vec<Bytes>,
    trailers: Option<HeaderMap>,
    bytes: usize,
    /// The most bytes that are kept; 0 keeps nothing.
    limit: usize,
    /// There was more than that.
    lost: bool,
    /// The body has been read to its end.
    ended: bool,
}

impl Kept {
    fn data(&mut self, data: &Bytes) {
        if self.limit == 0 {
            return;
        }
        self.bytes = self.bytes.saturating_add(data.len().max(LEAST_KEPT_BYTES));
        self.lost |= self.bytes > self.limit;
        if self.lost {
            self.frames.clear();
        } else {
            // A small piece may be a part of a large buffer, which it would keep whole.
            let own = data.len() < OWN_BYTES;
            self.frames.push(if own { Bytes::copy_from_slice(data) } else { data.clone() });
        }
    }
}

/// What a kept piece counts as at least, in bytes: an empty one is held too.
const LEAST_KEPT_BYTES: usize = 64;
/// Smaller pieces are copied to be kept.
const OWN_BYTES: usize = 4096;

#[derive(Debug)]
struct Shared {
    incoming: RefCell<Incoming>,
    touched: Cell<bool>,
    intake: Rc<Intake>,
    /// Present where a least rate is asked for.
    patience: Option<RefCell<Patience>>,
    gate: Option<Arc<Gate>>,
    pacer: RefCell<Pacer>,
    /// The field of the client's assertion, which trailers may not hold either.
    assertion: HeaderName,
    kept: RefCell<Kept>,
}

impl RequestBody {
    pub(super) fn new(
        incoming: Incoming,
        intake: Rc<Intake>,
        gate: Option<Arc<Gate>>,
        Wary { pacer, assertion, least }: Wary,
    ) -> Self {
        if incoming.is_end_stream() {
            return Self::empty();
        }
        let shared = Rc::new(Shared {
            incoming: RefCell::new(incoming),
            touched: Cell::new(false),
            intake,
            patience: least.map(|least| RefCell::new(Patience::new(least))),
            gate,
            pacer: RefCell::new(pacer),
            assertion,
            kept: RefCell::default(),
        });
        Self { shared: Some(shared), replay: None }
    }

    /// Keeps up to `limit` bytes of what is read, so that the body can be sent [again](Self::again).
    pub(super) fn keep(&self, limit: usize) {
        if let Some(shared) = &self.shared {
            shared.kept.borrow_mut().limit = limit;
        }
    }

    /// The same body once more from its beginning, where none of it was read or all of it was kept. The former attempt
    /// must be over: both read from the same client.
    pub(super) fn again(&self) -> Option<Self> {
        let Some(shared) = &self.shared else { return Some(Self::empty()) };
        let kept = shared.kept.borrow();
        if shared.touched.get() {
            // An answer before the request's end, or a body too large to keep: it cannot be sent twice.
            if shared.intake.failure.get().is_some() || kept.lost || kept.limit == 0 || !kept.ended {
                return None;
            }
            let replay = Replay { frames: kept.frames.clone().into_iter(), trailers: kept.trailers.clone() };
            drop(kept);
            return Some(Self { shared: Some(Rc::clone(shared)), replay: Some(replay) });
        }
        drop(kept);
        Some(Self { shared: Some(Rc::clone(shared)), replay: None })
    }

    pub(crate) const fn empty() -> Self {
        Self { shared: None, replay: None }
    }

    /// Nothing will be sent again: what was kept is let go of, however long the rest takes.
    pub(super) fn forget(&self) {
        if let Some(shared) = &self.shared {
            let mut kept = shared.kept.borrow_mut();
            kept.lost = true;
            kept.frames = Vec::new();
        }
    }

    /// Whether all of the body is still to be read, so that another attempt can send it.
    pub(crate) fn untouched(&self) -> bool {
        self.shared.as_ref().is_none_or(|shared| !shared.touched.get())
    }

    /// How reading the body from the client failed, if it did: then a failed request is the client's doing.
    pub(super) fn failure(&self) -> Option<Failed> {
        self.shared.as_ref().and_then(|shared| shared.intake.failure.get())
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = RequestBroken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, RequestBroken>>> {
        let Self { shared, replay } = self.get_mut();
        let Some(shared) = shared else { return Poll::Ready(None) };
        if let Some(gate) = &shared.gate
            && gate.poll_open(cx).is_pending()
        {
            return Poll::Pending;
        }
        if let Some(replay) = replay {
            return Poll::Ready(replay.next().map(Ok));
        }
        {
            let kept = shared.kept.borrow();
            if kept.ended && kept.limit > 0 {
                return Poll::Ready(None);
            }
        }
        ready!(shared.pacer.borrow_mut().poll_ready(cx));
        let mut polled = Pin::new(&mut *shared.incoming.borrow_mut()).poll_frame(cx);
        match &mut polled {
            Poll::Pending => {
                if let Some(patience) = &shared.patience {
                    ready!(patience.borrow_mut().poll_over(cx));
                    shared.touched.set(true);
                    shared.intake.failure.set(Some(Failed::Slow));
                    return Poll::Ready(Some(Err(RequestBroken::Slow)));
                }
            }
            Poll::Ready(None) => {
                shared.touched.set(true);
                shared.kept.borrow_mut().ended = true;
            }
            Poll::Ready(Some(Ok(frame))) => {
                shared.touched.set(true);
                if let Some(data) = frame.data_ref() {
                    shared.intake.bytes.set(shared.intake.bytes.get() + data.len() as u64);
                    if let Some(patience) = &shared.patience {
                        patience.borrow_mut().came(data.len());
                    }
                    shared.pacer.borrow_mut().moved(data.len());
                    shared.kept.borrow_mut().data(data);
                } else if let Some(trailers) = frame.trailers_mut() {
                    headers::clean_trailers(trailers);
                    identify::clean_trailers(trailers, &shared.assertion);
                    let mut kept = shared.kept.borrow_mut();
                    kept.trailers = (kept.limit > 0).then(|| trailers.clone());
                }
                // A body of known length is not polled again once its last byte is taken, nor any after its trailers.
                let mut kept = shared.kept.borrow_mut();
                kept.ended = kept.trailers.is_some() || shared.incoming.borrow().is_end_stream();
            }
            Poll::Ready(Some(Err(_))) => {
                shared.touched.set(true);
                shared.intake.failure.set(Some(Failed::Broken));
            }
        }
        polled.map(|frame| frame.map(|frame| frame.map_err(RequestBroken::from)))
    }

    fn is_end_stream(&self) -> bool {
        if let Some(replay) = &self.replay {
            return replay.frames.as_slice().is_empty() && replay.trailers.is_none();
        }
        self.shared.as_ref().is_none_or(|shared| match shared.kept.try_borrow() {
            Ok(kept) if kept.ended && kept.limit > 0 => true,
            _ => shared.incoming.borrow().is_end_stream(),
        })
    }

    fn size_hint(&self) -> SizeHint {
        let Some(shared) = &self.shared else { return SizeHint::with_exact(0) };
        if let Some(replay) = &self.replay {
            return SizeHint::with_exact(replay.frames.as_slice().iter().map(|data| data.len() as u64).sum());
        }
        let kept = shared.kept.borrow();
        if kept.ended && kept.limit > 0 {
            return SizeHint::with_exact(0);
        }
        shared.incoming.borrow().size_hint()
    }
}
