//! A stream whose bytes are let through at the rate that its permit allows.
//!
//! **In** a stream and a permit with a bandwidth limit. **Out** the same stream; after each read it rests for as long as the
//! limit says, which the sender feels as back-pressure. Without a limit it costs one comparison a read.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use crate::authorise::Permit;

/// Rests after bytes were moved.
#[derive(Debug, Default)]
pub(crate) struct Pacer {
    /// Present where the permit paces.
    permit: Option<Rc<Permit>>,
    rest: Option<Pin<Box<Sleep>>>,
}

impl Pacer {
    pub(crate) fn new(permit: &Rc<Permit>) -> Self {
        Self { permit: permit.paces().then(|| Rc::clone(permit)), rest: None }
    }

    /// Whether the next bytes may move.
    pub(crate) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(rest) = &mut self.rest {
            ready!(rest.as_mut().poll(cx));
            self.rest = None;
        }
        Poll::Ready(())
    }

    /// So many bytes have moved.
    pub(crate) fn moved(&mut self, bytes: usize) {
        let Some(permit) = &self.permit else { return };
        let pause = permit.pause(bytes as u64, Instant::now());
        if !pause.is_zero() {
            self.rest = Some(Box::pin(sleep(pause)));
        }
    }
}

/// A paced stream.
#[derive(Debug)]
pub(crate) struct Paced<S> {
    stream: S,
    pacer: Pacer,
}

impl<S> Paced<S> {
    pub(crate) fn new(stream: S, permit: &Rc<Permit>) -> Self {
        Self { stream, pacer: Pacer::new(permit) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.pacer.poll_ready(cx));
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let bytes = buf.filled().len() - before;
        self.pacer.moved(bytes);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
