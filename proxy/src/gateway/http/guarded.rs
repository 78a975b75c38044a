//! An HTTP/1 stream whose framing is checked before hyper reads it.
//!
//! hyper takes what most clients mean: bare LF, two lengths that agree, a length beside chunks. Between two proxies each
//! of these is how one request becomes two. The guard sees every byte first; at the first one that breaks RFC 9112 the
//! rest is withheld and a NUL is put in its place, which hyper answers with `400` and the end of the connection.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::session::HttpSession;
use crate::wire::http1_guard::Guard;

/// The guard, shared between the stream and the requests that may switch it off by an upgrade.
pub(super) type SharedGuard = Rc<RefCell<Guard>>;

#[derive(Debug)]
pub(super) struct Guarded<S> {
    stream: S,
    guard: SharedGuard,
    session: Rc<HttpSession>,
    poisoned: bool,
}

impl<S> Guarded<S> {
    pub(super) fn new(stream: S, guard: SharedGuard, session: Rc<HttpSession>) -> Self {
        Self { stream, guard, session, poisoned: false }
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
        if fresh.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let verdict = {
            let mut guard = self.guard.borrow_mut();
            let verdict = guard.feed(fresh);
            self.session.note_head(guard.in_head());
            verdict
        };
        if let Err(bad) = verdict {
            tracing::debug!(stage = "relay", code = "relay.request_malformed", reason = %bad.reason, "malformed HTTP/1 request");
            self.session.note_malformed();
            self.poisoned = true;
            buf.set_filled(before + bad.at.min(fresh.len()));
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

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
