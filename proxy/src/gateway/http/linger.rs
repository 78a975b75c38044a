//! The end of a connection that we end, so that our last words are heard.
//!
//! A socket that is closed while bytes are unread is reset by the kernel, and a reset destroys what the client has not read
//! yet: the refusal of an upload that is still being sent, or the GOAWAY that says which requests to send again. So the
//! stream is lent to the HTTP library and, when that is done with it, what still comes is read and thrown away until the client
//! has closed too, for a moment at the most. (RFC 9112 §9.6, RFC 9113 §6.8.)

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::oneshot;

/// How long a client may take to hear us and to close. A second is a few round trips round the world.
const MOMENT: Duration = Duration::from_secs(1);

/// A stream that comes back when it is dropped.
#[derive(Debug)]
pub(super) struct Lent<S> {
    stream: Option<S>,
    back: Option<oneshot::Sender<S>>,
}

/// Lends a stream, and says where it comes back.
pub(super) fn lend<S>(stream: S) -> (Lent<S>, oneshot::Receiver<S>) {
    let (back, returned) = oneshot::channel();
    (Lent { stream: Some(stream), back: Some(back) }, returned)
}

/// Waits, for a moment, until the client has closed too. A stream that has not come back left HTTP, and is not ours to end.
pub(super) async fn linger<S: AsyncRead + AsyncWrite + Unpin>(mut returned: oneshot::Receiver<S>) {
    let Ok(mut stream) = returned.try_recv() else { return };
    let closed = async {
        if stream.shutdown().await.is_ok() {
            let mut bytes = vec![0; 4096];
            while let Ok(1..) = stream.read(&mut bytes).await {}
        }
    };
    // Who has not closed by then has had time to read.
    let _ = tokio::time::timeout(MOMENT, closed).await;
}

impl<S> Lent<S> {
    fn stream(self: Pin<&mut Self>) -> Pin<&mut S>
    where
        S: Unpin,
    {
        Pin::new(self.get_mut().stream.as_mut().expect("a stream is lent until it is dropped"))
    }
}

impl<S> Drop for Lent<S> {
    fn drop(&mut self) {
        if let (Some(stream), Some(back)) = (self.stream.take(), self.back.take()) {
            // Where nobody waits for it, it is closed.
            let _ = back.send(stream);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Lent<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Lent<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.stream().poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream().poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }
}
