//! The body of a request on its way into an HTTP/2 stream.
//!
//! **In** a body and the stream. **Out** its bytes, as fast as the endpoint's window allows: the client is asked for more only
//! when what it sent last has gone, so one chunk waits at the most. **Refuses** to go on when the endpoint resets the stream;
//! where the body itself fails, the stream is reset, so that nobody takes half of it for all. (RFC 9113 §5.2, §8.1.)

use std::error::Error as StdError;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Body;

use super::error::find;

/// A body that is being sent.
#[derive(Debug)]
pub(super) struct Upload<B> {
    body: B,
    stream: SendStream<Bytes>,
    /// Taken from the body and not sent yet, and whether it is the last.
    waiting: Option<(Bytes, bool)>,
}

/// Why a body was not sent to its end.
#[derive(Debug)]
pub(super) enum Stopped {
    /// It failed.
    Body(Box<dyn StdError + Send + Sync>),
    /// The stream has ended. Why, its response will say.
    Stream,
}

impl<B> Upload<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    pub(super) fn new(body: B, stream: SendStream<Bytes>) -> Self {
        Self { body, stream, waiting: None }
    }

    fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Stopped>> {
        loop {
            if self.waiting.is_some() {
                ready!(self.poll_window(cx))?;
                if let Some((data, last)) = self.waiting.take() {
                    self.stream.send_data(data, last).map_err(|_| Stopped::Stream)?;
                    if last {
                        return Poll::Ready(Ok(()));
                    }
                }
            }
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => return Poll::Ready(Err(self.failed(error.into()))),
                None => return Poll::Ready(self.stream.send_data(Bytes::new(), true).map_err(|_| Stopped::Stream)),
            };
            match frame.into_data() {
                Ok(data) => {
                    let last = self.body.is_end_stream();
                    if !data.is_empty() {
                        // One byte is enough to stand in line; h2 asks for the rest once it has the chunk.
                        self.stream.reserve_capacity(1);
                        self.waiting = Some((data, last));
                    } else if last {
                        return Poll::Ready(self.stream.send_data(data, true).map_err(|_| Stopped::Stream));
                    }
                }
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        self.stream.reserve_capacity(0);
                        return Poll::Ready(self.stream.send_trailers(trailers).map_err(|_| Stopped::Stream));
                    }
                }
            }
        }
    }

    fn poll_window(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Stopped>> {
        while self.stream.capacity() == 0 {
            match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Poll::Ready(Err(Stopped::Stream)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Resets the stream: for the client's own reason, where its stream was reset too.
    fn failed(&mut self, error: Box<dyn StdError + Send + Sync>) -> Stopped {
        let reason = find::<h2::Error>(&*error).and_then(h2::Error::reason).unwrap_or(Reason::INTERNAL_ERROR);
        self.stream.send_reset(reason);
        Stopped::Body(error)
    }
}

impl<B> Future for Upload<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    type Output = Result<(), Stopped>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let sent = self.poll_sent(cx);
        // Only who waits has to be woken by a reset; who does not meets it at the next write.
        if sent.is_pending() && self.stream.poll_reset(cx).is_ready() {
            return Poll::Ready(Err(Stopped::Stream));
        }
        sent
    }
}
