//! A guard over what an HTTP/1 client sends, fed with each chunk before the HTTP library parses the same bytes.
//!
//! The library is lenient where a gateway must not be: it takes bare line feeds, both Content-Length and
//! Transfer-Encoding, repeated lengths. Each is a way to make the gateway and a server behind it see different requests
//! in the same bytes. **In** chunks, cut anywhere. **Out** nothing, or **Refuses** with the reason and the offset of the
//! first byte that must not be delivered; a request whose head is refused is never whole before that byte. No copy is
//! made, bodies are skipped by count, and the verdict does not depend on where chunks end. (RFC 9112.)

mod bytes;
mod chunked;
mod head;

use self::chunked::Chunked;
use self::head::{Body, Head};

/// How much a head may hold. The same limits count for the trailers of a chunked body.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The request line and all header lines, in bytes.
    pub max_head_bytes: usize,
    /// The header lines, in number.
    pub max_headers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_head_bytes: 16 << 10, max_headers: 100 }
    }
}

/// Something that must not be delivered.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{reason}")]
pub struct Bad {
    /// What is wrong.
    pub reason: Reason,
    /// The offset of the first bad byte in the chunk just fed: what is before it may be delivered, nothing after.
    pub at: usize,
}

/// What is wrong with a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Reason {
    /// A chunk's size, extension or end.
    #[error("the chunked body's framing is malformed")]
    Chunk,
    /// A CONNECT with a body, which has no meaning.
    #[error("a CONNECT request announces a body")]
    ConnectBody,
    /// Content-Length is no number, or repeated.
    #[error("the Content-Length is malformed or repeated")]
    ContentLength,
    /// A header line continued on the next.
    #[error("a header line is folded")]
    Fold,
    /// Framing headers or Host among the trailers.
    #[error("a trailer says what only a header may")]
    ForbiddenTrailer,
    /// Both Content-Length and Transfer-Encoding.
    #[error("the request has both Content-Length and Transfer-Encoding")]
    Framing,
    /// A header's name.
    #[error("a header's name is malformed")]
    HeaderName,
    /// A header's value.
    #[error("a header's value holds a control character")]
    HeaderValue,
    /// More bytes of head or trailers than allowed.
    #[error("the request's headers are too large")]
    HeadTooLarge,
    /// More than one Host.
    #[error("the request has more than one Host")]
    Host,
    /// The HTTP/2 preface on an HTTP/1 session.
    #[error("the HTTP/2 preface on an HTTP/1 session")]
    Http2Preface,
    /// A line that does not end in CRLF.
    #[error("a line does not end in CRLF")]
    LineEnd,
    /// The method.
    #[error("the method is malformed")]
    Method,
    /// The request target.
    #[error("the request target is malformed")]
    Target,
    /// More header lines than allowed.
    #[error("the request has too many headers")]
    TooManyHeaders,
    /// Transfer-Encoding other than `chunked`, repeated, or in HTTP/1.0.
    #[error("the Transfer-Encoding is not supported here")]
    TransferEncoding,
    /// A version other than HTTP/1.0 and HTTP/1.1.
    #[error("the version is neither HTTP/1.0 nor HTTP/1.1")]
    Version,
}

/// Follows the requests of one connection.
#[derive(Debug)]
pub struct Guard {
    limits: Limits,
    phase: Phase,
    requests: u64,
    /// The request under way asks for another protocol.
    upgrade: bool,
}

#[derive(Debug)]
enum Phase {
    Chunked(Chunked),
    Failed(Reason),
    Head(Head),
    /// Bytes of the body to come; never zero.
    Length(u64),
    Trailers(Head),
    /// Bytes that came since the request that asked for another protocol.
    Undecided(u64),
    Upgraded,
}

impl Guard {
    /// A guard for a connection on which nothing was read yet.
    pub fn new(limits: Limits) -> Self {
        Self { limits, phase: Phase::Head(Head::request(limits)), requests: 0, upgrade: false }
    }

    /// Judges the next bytes. After the first error every further byte is bad.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), Bad> {
        let mut at = 0;
        while at < bytes.len() {
            match self.step(&bytes[at..]) {
                Ok(used) => at += used,
                Err(bad) => {
                    self.phase = Phase::Failed(bad.reason);
                    return Err(Bad { at: at + bad.at, ..bad });
                }
            }
        }
        Ok(())
    }

    /// Whether the latest request asks to leave HTTP/1 (CONNECT, or Upgrade to anything but `h2c`), and it was not said
    /// yet whether it may. Bytes behind such a request are let through unexamined: unless [`Self::upgraded`] is called,
    /// the caller ends the connection with the response, or asks [`Self::declined`] whether it may go on.
    pub fn awaits_upgrade(&self) -> bool {
        self.upgrade
    }

    /// The upgrade was granted: what follows is no longer HTTP/1 and is let through.
    pub fn upgraded(&mut self) {
        self.upgrade = false;
        self.phase = Phase::Upgraded;
    }

    /// The upgrade was refused. True when no byte has gone through unexamined, so that the connection may go on and the
    /// next request is guarded; false when it must be closed.
    pub fn declined(&mut self) -> bool {
        match self.phase {
            Phase::Undecided(0) => self.next_request(),
            Phase::Undecided(_) | Phase::Upgraded | Phase::Failed(_) => return false,
            // The body is still coming; the next head is guarded as ever.
            Phase::Chunked(_) | Phase::Head(_) | Phase::Length(_) | Phase::Trailers(_) => self.upgrade = false,
        }
        true
    }

    /// The bytes let through unexamined since a request that asked for an upgrade.
    pub fn unexamined_bytes(&self) -> u64 {
        if let Phase::Undecided(bytes) = self.phase { bytes } else { 0 }
    }

    /// The request heads seen to their end.
    pub fn requests(&self) -> u64 {
        self.requests
    }

    /// Whether a request's head (or its trailers) has begun and not ended.
    pub fn in_head(&self) -> bool {
        match &self.phase {
            Phase::Head(head) => !head.is_untouched(),
            Phase::Trailers(_) => true,
            _ => false,
        }
    }

    /// Whether the bytes so far end exactly where a request does: the end of the stream would cut nothing off.
    pub fn is_between_requests(&self) -> bool {
        match &self.phase {
            Phase::Head(head) => head.is_untouched(),
            Phase::Undecided(_) | Phase::Upgraded => true,
            _ => false,
        }
    }

    /// Takes some bytes of a chunk that is not empty, at least one.
    fn step(&mut self, bytes: &[u8]) -> Result<usize, Bad> {
        match &mut self.phase {
            Phase::Chunked(chunked) => {
                let (used, ended) = chunked.feed(bytes)?;
                if ended {
                    self.phase = Phase::Trailers(Head::trailers(self.limits));
                }
                Ok(used)
            }
            Phase::Failed(reason) => Err(Bad { reason: *reason, at: 0 }),
            Phase::Head(head) => {
                let (used, ended) = head.feed(bytes)?;
                if ended {
                    let (body, upgrade) = head.outcome();
                    self.upgrade = upgrade;
                    self.requests += 1;
                    match body {
                        Body::Chunked => self.phase = Phase::Chunked(Chunked::new()),
                        Body::Length(0) => self.end_request(),
                        Body::Length(len) => self.phase = Phase::Length(len),
                    }
                }
                Ok(used)
            }
            Phase::Length(left) => {
                let used = take(left, bytes.len());
                if *left == 0 {
                    self.end_request();
                }
                Ok(used)
            }
            Phase::Trailers(trailers) => {
                let (used, ended) = trailers.feed(bytes)?;
                if ended {
                    self.end_request();
                }
                Ok(used)
            }
            Phase::Undecided(passed) => {
                *passed = passed.saturating_add(bytes.len() as u64);
                Ok(bytes.len())
            }
            Phase::Upgraded => Ok(bytes.len()),
        }
    }

    fn end_request(&mut self) {
        if self.upgrade { self.phase = Phase::Undecided(0) } else { self.next_request() }
    }

    fn next_request(&mut self) {
        self.upgrade = false;
        self.phase = Phase::Head(Head::request(self.limits));
    }
}

/// Counts down by as many of `len` bytes as are left, and says how many.
fn take(left: &mut u64, len: usize) -> usize {
    match usize::try_from(*left) {
        Ok(fits) if fits <= len => {
            *left = 0;
            fits
        }
        _ => {
            *left -= len as u64;
            len
        }
    }
}

#[cfg(test)]
mod tests;
