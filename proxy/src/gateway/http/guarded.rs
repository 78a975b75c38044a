//! An HTTP/1 stream whose framing is checked before hyper reads it.
//!
//! hyper takes what most clients mean: bare LF, two lengths that agree, a length beside chunks. Between two proxies each
//! of these is how one request becomes two. The guard sees every byte first; at the first one that breaks RFC 9112 the
//! rest is withheld and a NUL is put in its place, which hyper answers with `400` and the end of the connection.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::wire::http1_guard::{Bad, Guard, Limits};

/// What the guard has seen, shared between the stream and its session. (A lock, since hyper hands upgraded streams out in
/// a type that must be `Send`; nobody else ever holds it.)
#[derive(Clone, Debug)]
pub(super) struct Framing(Arc<Mutex<Seen>>);

#[derive(Debug)]
struct Seen {
    guard: Guard,
    /// When the request head that is being read began.
    head_since: Option<Instant>,
    /// Which request's that was.
    head_of: u64,
    malformed: Option<Bad>,
}

impl Framing {
    pub(super) fn new(limits: Limits) -> Self {
        Self(Arc::new(Mutex::new(Seen { guard: Guard::new(limits), head_since: None, head_of: 0, malformed: None })))
    }

    /// The connection leaves HTTP: nothing more is looked at.
    pub(super) fn upgraded(&self) {
        self.0.lock().guard.upgraded();
    }

    /// The connection stays with HTTP. False: bytes of the other protocol may have come, so it must end.
    pub(super) fn declined(&self) -> bool {
        let mut seen = self.0.lock();
        !seen.guard.awaits_upgrade() || seen.guard.declined()
    }

    pub(super) fn head_since(&self) -> Option<Instant> {
        self.0.lock().head_since
    }

    /// What broke RFC 9112, if anything did.
    pub(super) fn malformed(&self) -> Option<String> {
        self.0.lock().malformed.as_ref().map(|bad| bad.reason.to_string())
    }

    /// Looks at what was read. At fault: how much of it may still be shown.
    fn look(&self, fresh: &[u8]) -> Option<usize> {
        let mut seen = self.0.lock();
        let verdict = seen.guard.feed(fresh);
        if !seen.guard.in_head() {
            seen.head_since = None;
        } else if seen.head_since.is_none() || seen.head_of != seen.guard.requests() {
            // By number: the reads of a client that pipelines may all end within some head.
            seen.head_of = seen.guard.requests();
            seen.head_since = Some(Instant::now());
        }
        let bad = verdict.err()?;
        let shown = bad.at.min(fresh.len());
        seen.malformed = Some(bad);
        Some(shown)
    }
}

#[derive(Debug)]
pub(super) struct Guarded<S> {
    stream: S,
    framing: Framing,
    poisoned: bool,
}

impl<S> Guarded<S> {
    pub(super) fn new(stream: S, framing: Framing) -> Self {
        Self { stream, framing, poisoned: false }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.poisoned {
            return Poll::Ready(Ok(())); // as if the client had closed: nothing after the bad byte is ever seen
        }
        let before = buf.filled().len();
        std::task::ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let fresh = &buf.filled()[before..];
        if !fresh.is_empty()
            && let Some(shown) = self.framing.look(fresh)
        {
            self.poisoned = true;
            buf.set_filled(before + shown);
            if buf.remaining() > 0 {
                buf.put_slice(b"\0");
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
