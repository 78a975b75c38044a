//! What a failed request means: what happened, and whether it can have been seen.

use std::error::Error as StdError;
use std::io;
use std::sync::Arc;

use http::Request;

use super::super::{Cause, Error};
use crate::fault::{Fault, Refusal};

/// A request that got no response.
#[derive(thiserror::Error)]
#[error("{error}")]
pub struct SendError<B> {
    /// Why.
    #[source]
    pub error: Error,
    /// The request, where it is certain that nothing of it was sent: it can be sent again as it is.
    pub request: Option<Box<Request<B>>>,
}

impl<B> SendError<B> {
    pub(super) fn unsent(error: Error, request: Request<B>) -> Self {
        Self { error, request: Some(Box::new(request)) }
    }

    pub(super) fn from_hyper(mut error: hyper::client::conn::TrySendError<Request<B>>) -> Self {
        let request = error.take_message().map(Box::new);
        Self { error: from_hyper(error.into_error()), request }
    }

    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        self.error.fault()
    }

    /// The stable code.
    pub fn code(&self) -> &'static str {
        self.error.code()
    }

    /// Whether the endpoint certainly has not processed the request. Where the request did not come back, its body has
    /// been (partly) consumed: sending it again takes a copy.
    pub fn retry_is_safe(&self) -> bool {
        self.request.is_some() || self.error.retry_is_safe()
    }
}

impl<B> std::fmt::Debug for SendError<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SendError").field("error", &self.error).field("unsent", &self.request.is_some()).finish()
    }
}

/// The body of a response that broke off.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// On an HTTP/1.1 connection.
    #[error("the endpoint's HTTP/1.1 response broke off")]
    Http1(#[source] hyper::Error),
    /// On an HTTP/2 stream.
    #[error("the endpoint's HTTP/2 stream broke off")]
    Http2(#[source] h2::Error),
}

/// What h2's error means for us.
pub(super) fn from_h2(error: h2::Error) -> Error {
    let meaning = http2_meaning(&error);
    meaning(Arc::new(Http2(error)))
}

/// h2's error, one step below what says so: a shared cause is passed over by who looks for h2's own type in the sources, as
/// hyper does for the reason to reset a client's stream with.
#[derive(Debug, thiserror::Error)]
#[error("the HTTP/2 connection or stream failed")]
struct Http2(#[source] h2::Error);

/// What hyper's error means for us.
pub(super) fn from_hyper(error: hyper::Error) -> Error {
    let meaning = meaning(&error);
    meaning(Arc::new(error))
}

/// The kind of error, to be given its cause.
fn meaning(error: &hyper::Error) -> fn(Cause) -> Error {
    if error.is_user() {
        // First, because its cause may be any error, such as a reset of the client's own HTTP/2 stream: taken for the
        // endpoint's, it could make an unsafe retry look safe.
        return Error::RequestBody;
    }
    if let Some(http2) = find::<h2::Error>(error) {
        return http2_meaning(http2);
    }
    if let Some(io) = find::<io::Error>(error) {
        return io_meaning(io);
    }
    if error.is_timeout() {
        |_| Error::Timeout
    } else if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
        |cause| Error::Closed(Some(cause))
    } else {
        Error::Protocol
    }
}

fn http2_meaning(error: &h2::Error) -> fn(Cause) -> Error {
    if error.is_remote() && error.is_go_away() {
        // h2 gives this to streams above the GOAWAY's last id only, and to those not yet begun. RFC 9113 §6.8: they were
        // not and will not be processed.
        return Error::StreamRefused;
    }
    if error.is_remote() && error.is_reset() {
        let refused = error.reason() == Some(h2::Reason::REFUSED_STREAM); // RFC 9113 §8.7
        return if refused { Error::StreamRefused } else { Error::Reset };
    }
    if error.is_reset() && !error.is_library() {
        // By us, because the request's body failed.
        return Error::RequestBody;
    }
    error.get_io().map_or(Error::Protocol, io_meaning)
}

/// Whether the other side reset one stream, and not the connection.
pub(in crate::connect) fn is_stream_reset(cause: &Cause) -> bool {
    find::<h2::Error>(cause.as_ref()).is_some_and(|error| error.is_remote() && error.is_reset())
}

fn io_meaning(error: &io::Error) -> fn(Cause) -> Error {
    match Error::from_io(error.kind().into()) {
        Error::Closed(_) => |cause| Error::Closed(Some(cause)),
        Error::Refused => |_| Error::Refused,
        Error::Reset(_) => Error::Reset,
        Error::Timeout => |_| Error::Timeout,
        Error::Unreachable => |_| Error::Unreachable,
        _ => Error::Io,
    }
}

pub(super) fn find<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}
