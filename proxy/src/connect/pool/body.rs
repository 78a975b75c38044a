//! The body of a response, and with it the connection or stream it comes by.
//!
//! Read to its end, it gives an HTTP/1.1 connection back to the pool at once, in the same poll that yields the end.
//! Dropped before, the connection is closed or the stream reset: the endpoint need not send what nobody reads.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::http1::Lease;
use super::http2::Slot;

/// A response body that holds its connection. `B` is the body of requests, as for the pool.
#[derive(Debug)]
pub struct Streamed<B: 'static> {
    incoming: Incoming,
    /// What was looked at before anybody read.
    first: Option<Result<Frame<Bytes>, hyper::Error>>,
    hold: Option<Hold<B>>,
}

#[derive(Debug)]
pub(super) enum Hold<B> {
    Http1 { lease: Lease<B>, upgraded: bool },
    Http2 { _slot: Slot<B>, upgraded: bool },
}

impl<B: 'static> Streamed<B> {
    pub(super) fn new(incoming: Incoming, hold: Hold<B>) -> Self {
        let mut body = Self { incoming, first: None, hold: Some(hold) };
        if body.incoming.is_end_stream() {
            body.ended();
        }
        body
    }

    /// The trailers, where they are here already and nothing came before them: how a gRPC server ends a call that failed at
    /// once. Waits for nothing, and takes nothing away.
    pub fn early_trailers(&mut self) -> Option<&HeaderMap> {
        if self.first.is_none() {
            // Whoever reads next brings a waker of its own.
            let mut cx = Context::from_waker(Waker::noop());
            if let Poll::Ready(Some(frame)) = Pin::new(&mut *self).poll_frame(&mut cx) {
                self.first = Some(frame);
            }
        }
        self.first.as_ref()?.as_ref().ok()?.trailers_ref()
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
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(first));
        }
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
        self.first.is_none() && self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.incoming.size_hint();
        let Some(data) = self.first.as_ref().and_then(|first| first.as_ref().ok()?.data_ref()) else { return rest };
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + data.len() as u64);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + data.len() as u64);
        }
        hint
    }
}
