//! The body of a response, and with it the connection or stream it comes by.
//!
//! Read to its end, it gives an HTTP/1.1 connection back to the pool at once, in the same poll that yields the end.
//! Dropped before, the connection is closed or the stream reset: the endpoint need not send what nobody reads.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::oneshot;

use super::error::BodyError;
use super::http1::Lease;
use super::http2::Slot;
use super::received::Received;
use super::tunnel::Tunnel;

/// A response body that holds its connection. `B` is the body of requests, as for the pool.
#[derive(Debug)]
pub struct Streamed<B: 'static> {
    source: Source,
    /// What was looked at before anybody read.
    first: Option<Result<Frame<Bytes>, BodyError>>,
    hold: Option<Hold<B>>,
}

#[derive(Debug)]
pub(super) enum Source {
    Http1(Incoming),
    Http2(Received),
    /// The stream has left HTTP; none once somebody has taken it.
    Tunnel(Option<Box<Tunnel>>),
}

#[derive(Debug)]
pub(super) enum Hold<B> {
    Http1 {
        lease: Lease<B>,
        upgraded: bool,
    },
    /// `_rest` is dropped with the response, for the part of the request's body that is still under way then.
    Http2 {
        _slot: Rc<Slot<B>>,
        _rest: Option<oneshot::Sender<()>>,
        upgraded: bool,
    },
}

impl<B: 'static> Streamed<B> {
    pub(super) fn new(source: Source, hold: Hold<B>) -> Self {
        let mut body = Self { source, first: None, hold: Some(hold) };
        if body.is_end_stream() {
            body.ended();
        }
        body
    }

    /// The stream of an HTTP/2 response that agreed to CONNECT: it carries bytes from here on.
    pub fn take_tunnel(&mut self) -> Option<Box<Tunnel>> {
        match &mut self.source {
            Source::Tunnel(tunnel) => tunnel.take(),
            Source::Http1(_) | Source::Http2(_) => None,
        }
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
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(first));
        }
        let polled = match &mut self.source {
            Source::Http1(body) => Pin::new(body).poll_frame(cx).map_err(BodyError::Http1),
            Source::Http2(body) => Pin::new(body).poll_frame(cx).map_err(BodyError::Http2),
            Source::Tunnel(_) => Poll::Ready(None),
        };
        match &polled {
            Poll::Ready(None) => self.ended(),
            // With a known length the end is known with the last byte, and nobody may ask for more.
            Poll::Ready(Some(Ok(_))) if self.is_end_stream() => self.ended(),
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
        self.first.is_none()
            && match &self.source {
                Source::Http1(body) => body.is_end_stream(),
                Source::Http2(body) => body.is_end_stream(),
                Source::Tunnel(_) => true,
            }
    }

    fn size_hint(&self) -> SizeHint {
        let rest = match &self.source {
            Source::Http1(body) => body.size_hint(),
            Source::Http2(body) => body.size_hint(),
            Source::Tunnel(_) => SizeHint::with_exact(0),
        };
        let Some(data) = self.first.as_ref().and_then(|first| first.as_ref().ok()?.data_ref()) else { return rest };
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + data.len() as u64);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + data.len() as u64);
        }
        hint
    }
}
