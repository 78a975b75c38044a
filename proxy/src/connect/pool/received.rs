//! The body of an HTTP/2 response.
//!
//! **In** a stream's DATA and trailers. **Out** frames as they come; the endpoint's window is opened again as they are taken.
//! A stream that is reset before its end is an error: what has come is not all of it. NO_ERROR alone says that the response was
//! complete and only the request is not wanted any more. (RFC 9113 §5.2, §8.1.)

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body::{Body, Frame, SizeHint};

/// A body that is being received.
#[derive(Debug)]
pub(super) struct Received {
    stream: RecvStream,
    /// What is left of the length that was announced.
    left: Option<u64>,
    data_ended: bool,
}

impl Received {
    pub(super) fn new(head: &HeaderMap, stream: RecvStream) -> Self {
        let length = head.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        Self { stream, left: length, data_ended: false }
    }
}

impl Body for Received {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if !self.data_ended {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // An error here would say that nothing was to be given back, as after a reset, which is met next.
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error))
                    if error.reason() == Some(Reason::NO_ERROR) && self.left.is_none_or(|left| left == 0) =>
                {
                    return Poll::Ready(None);
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => self.data_ended = true,
            }
        }
        let trailers = ready!(self.stream.poll_trailers(cx));
        Poll::Ready(trailers.transpose().map(|trailers| trailers.map(Frame::trailers)))
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.left {
            _ if self.is_end_stream() => SizeHint::with_exact(0),
            Some(left) => SizeHint::with_exact(left),
            None => SizeHint::default(),
        }
    }
}
