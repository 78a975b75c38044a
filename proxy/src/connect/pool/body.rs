//! The body of a response, and with it the connection or stream it comes by.
//!
//! Read to its end, it gives an HTTP/1.1 connection back to the pool at once, in the same poll that yields the end.
//! Dropped before, the connection is closed or the stream reset: the endpoint need not send what nobody reads.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::http1::Lease;
use super::http2::Slot;

/// A response body that holds its connection. `B` is the body of requests, as for the pool.
#[derive(Debug)]
pub struct Streamed<B: 'static> {
    incoming: Incoming,
    hold: Option<Hold<B>>,
}

#[derive(Debug)]
pub(super) enum Hold<B> {
    Http1 { lease: Lease<B>, upgraded: bool },
    Http2 { _slot: Slot<B>, upgraded: bool },
}

impl<B: 'static> Streamed<B> {
    pub(super) fn new(incoming: Incoming, hold: Hold<B>) -> Self {
        let mut body = Self { incoming, hold: Some(hold) };
        if body.incoming.is_end_stream() {
            body.ended();
        }
        body
    }

    /// Lets go of what is held, as the body has come to its end. An upgraded connection is not the pool's any more; its
    /// stream (RFC 9113 §8.5) counts as open until this body is dropped.
    fn ended(&mut self) {
        match self.hold.take() {
            Some(Hold::Http1 { lease, upgraded: false }) => lease.finish(),
            Some(Hold::Http1 { lease, upgraded: true }) => lease.abandon(),
            Some(hold @ Hold::Http2 { upgraded: true, .. }) => self.hold = Some(hold),
            Some(Hold::Http2 { .. }) | None => {}
        }
    }
}

impl<B: 'static> Body for Streamed<B> {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.incoming).poll_frame(cx);
        match &polled {
            Poll::Ready(None) => self.ended(),
            // With a known length the end is known with the last byte, and nobody may ask for more.
            Poll::Ready(Some(Ok(_))) if self.incoming.is_end_stream() => self.ended(),
            Poll::Ready(Some(Err(_))) => {
                if let Some(Hold::Http1 { lease, .. }) = self.hold.take() {
                    lease.abandon();
                }
            }
            _ => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
