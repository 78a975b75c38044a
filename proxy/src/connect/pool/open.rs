//! From a dialled stream to an HTTP connection: hyper's handshake or h2's, with every limit written down.
//!
//! The libraries' defaults are no promise of theirs; what is not set here is either hard-wired behaviour or of no
//! consequence to a client (informational responses are passed over).

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, SendRequest};
use http_body::Body;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use super::super::{Dial, Error};
use super::PoolSettings;
use super::error::{from_h2, from_hyper};
use super::pulse::{Pulse, Rhythm, Watch};
use crate::endpoint::{Endpoint, Http2Params};
use crate::record::Protocol;

/// A future of this thread.
pub(super) type Local<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// Opens connections. A trait so that nothing else in the pool has to name the dialer or its streams.
pub(super) trait Open<B> {
    fn http1<'a>(&'a self, endpoint: &'a Endpoint) -> Local<'a, Result<Opened1<B>, Error>>;
    fn http2<'a>(&'a self, endpoint: &'a Endpoint) -> Local<'a, Result<Opened2, Error>>;
}

/// A new HTTP/1.1 connection. Nothing moves on it unless `driver` is polled.
pub(super) struct Opened1<B> {
    pub(super) sender: http1::SendRequest<B>,
    pub(super) driver: Local<'static, ()>,
}

/// A new HTTP/2 connection, likewise.
pub(super) struct Opened2 {
    pub(super) sender: SendRequest<Bytes>,
    pub(super) pulse: Rc<Pulse>,
    pub(super) driver: Local<'static, ()>,
}

/// The only implementation of [`Open`].
pub(super) struct Opener<D> {
    dial: D,
    timeout: Duration,
    http1: http1::Builder,
    http2: Tuning,
}

/// How HTTP/2 is spoken.
#[derive(Clone)]
struct Tuning {
    builder: Builder,
    /// Absent: the endpoint is not asked whether it lives.
    interval: Option<Duration>,
    timeout: Duration,
    while_idle: bool,
}

/// Read and write buffer of an HTTP/1.1 connection, at most, in bytes: four full TLS records.
const HTTP1_BUFFER: usize = 64 * 1024;
/// What of a request body may be buffered per stream while the endpoint's window is closed, in bytes.
const HTTP2_SEND_BUFFER: usize = 256 * 1024;
/// Streams assumed to be allowed before the endpoint's SETTINGS are seen: the least that RFC 9113 §6.5.2 recommends.
const HTTP2_FIRST_STREAMS: usize = 100;
/// Streams of ours that an endpoint may make us reset by breaking the protocol before the connection is given up.
const MAX_ERROR_RESETS: usize = 256;

/// The smallest window and the smallest limit of a frame, in bytes. With less than RFC 9113 §6.5.2 gives a frame at the
/// least, responses would come in drops.
const LEAST_BYTES: u32 = 16_384;
/// The largest limit of a frame, in bytes (RFC 9113 §6.5.2); h2 panics above it.
const MAX_FRAME_BYTES: u32 = (1 << 24) - 1;

/// The settings with what one endpoint wants otherwise. Values come from a control plane: what HTTP/2 cannot express is
/// brought to the nearest that it can.
fn tuned(mut http2: Tuning, params: &Http2Params) -> Tuning {
    let window = |bytes: u32| bytes.clamp(LEAST_BYTES, i32::MAX.unsigned_abs());
    let builder = &mut http2.builder;
    if let Some(bytes) = params.stream_window {
        builder.initial_window_size(window(bytes));
    }
    if let Some(bytes) = params.connection_window {
        builder.initial_connection_window_size(window(bytes).max(65_535));
    }
    if params.adaptive_window {
        builder.initial_window_size(ADAPTED_WINDOW).initial_connection_window_size(ADAPTED_WINDOW);
    }
    if let Some(bytes) = params.max_frame_size {
        builder.max_frame_size(bytes.clamp(LEAST_BYTES, MAX_FRAME_BYTES));
    }
    if let Some(bytes) = params.max_send_buffer {
        builder.max_send_buffer_size(usize::try_from(bytes).unwrap_or(usize::MAX).max(1));
    }
    if let Some(streams) = params.max_reset_streams {
        builder.max_concurrent_reset_streams(usize::try_from(streams).unwrap_or(usize::MAX));
    }
    http2.interval = params.ping_interval.or(http2.interval);
    http2.timeout = params.ping_timeout.unwrap_or(http2.timeout);
    http2.while_idle |= params.ping_while_idle;
    http2
}

/// Where windows are to grow with what the path can hold, the size that they would grow to at the most, in bytes. They are
/// promises, not memory: what comes is passed on as fast as the client takes it, so what they cost is what is on its way.
const ADAPTED_WINDOW: u32 = 16 << 20;

impl<D: Dial> Opener<D> {
    pub(super) fn new(dial: D, settings: &PoolSettings) -> Self {
        let head = usize::try_from(settings.max_head_bytes).unwrap_or(usize::MAX);
        let mut http1 = http1::Builder::new();
        // The number of header fields stays at hyper's 100: setting it, even to 100, moves their parsing to the heap.
        http1.max_buf_size(HTTP1_BUFFER.max(head)).max_header_size(head);
        let streams = u32::try_from(settings.http2_streams.max(1)).unwrap_or(u32::MAX);
        // RFC 9113 §6.9.1: a window is at most 2^31 - 1; §6.9.2: the connection's starts at 65 535.
        let window = settings.http2_window.clamp(16_384, i32::MAX.unsigned_abs());
        let connection_window = window.saturating_mul(streams).clamp(65_535, i32::MAX.unsigned_abs());
        let mut builder = Builder::new();
        builder
            .enable_push(false)
            .initial_window_size(window)
            .initial_connection_window_size(connection_window)
            .initial_max_send_streams(HTTP2_FIRST_STREAMS)
            .max_frame_size(LEAST_BYTES)
            .max_header_list_size(settings.max_head_bytes)
            .max_send_buffer_size(HTTP2_SEND_BUFFER)
            .max_local_error_reset_streams(Some(MAX_ERROR_RESETS));
        let (interval, timeout) = (settings.http2_ping_interval, settings.http2_ping_timeout);
        let http2 = Tuning { builder, interval, timeout, while_idle: false };
        Self { dial, timeout: settings.dial_timeout, http1, http2 }
    }

    async fn in_time<T>(&self, opening: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        tokio::time::timeout(self.timeout, opening).await.unwrap_or(Err(Error::Timeout))
    }
}

impl<D, B> Open<B> for Opener<D>
where
    D: Dial,
    B: Body<Data = Bytes> + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn http1<'a>(&'a self, endpoint: &'a Endpoint) -> Local<'a, Result<Opened1<B>, Error>> {
        Box::pin(self.in_time(async move {
            let stream = self.dial.dial(endpoint, Protocol::Http1).await?;
            let (sender, connection) = self.http1.handshake(TokioIo::new(stream)).await.map_err(from_hyper)?;
            let driver = Box::pin(async move {
                if let Err(error) = connection.with_upgrades().await {
                    tracing::debug!(%error, "an upstream HTTP/1.1 connection broke");
                }
            });
            Ok(Opened1 { sender, driver })
        }))
    }

    fn http2<'a>(&'a self, endpoint: &'a Endpoint) -> Local<'a, Result<Opened2, Error>> {
        Box::pin(self.in_time(async move {
            let stream = self.dial.dial(endpoint, Protocol::Http2).await?;
            let tuned = endpoint.http2.as_deref().map(|params| tuned(self.http2.clone(), params));
            let http2 = tuned.as_ref().unwrap_or(&self.http2);
            let (sender, mut connection) = http2.builder.handshake::<_, Bytes>(stream).await.map_err(from_h2)?;
            let (timeout, while_idle) = (http2.timeout, http2.while_idle);
            let mut watch = http2.interval.and_then(|interval| {
                Some(Watch::new(Rhythm { interval, timeout, while_idle }, connection.ping_pong()?))
            });
            let pulse = Rc::new(Pulse::default());
            let felt = Rc::clone(&pulse);
            let driver = Box::pin(poll_fn(move |cx| {
                if let Some(watch) = &mut watch
                    && watch.poll_lost(cx, &felt).is_ready()
                {
                    tracing::debug!("an upstream HTTP/2 connection does not answer");
                    return Poll::Ready(());
                }
                Pin::new(&mut connection).poll(cx).map(|ended| {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "an upstream HTTP/2 connection broke");
                    }
                })
            }));
            Ok(Opened2 { sender, pulse, driver })
        }))
    }
}
