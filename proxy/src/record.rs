//! What happened: one [`Record`] per connection and per request, filled on the way, closed once.
//!
//! Stages return values; the gateway writes them down here; an [`Observer`] (metrics, access log) reads the record when
//! it is closed. No stage knows that anybody counts.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::addr::{Name, Target};
use crate::fault::Fault;
use crate::identity::Identity;

/// The eight words of the sentence, in order.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Stage {
    /// A socket is taken.
    Accept,
    /// The handshake.
    Tls,
    /// What is spoken, and to whom.
    Detect,
    /// Whether it may.
    Authorise,
    /// Which service is meant.
    Route,
    /// Which endpoint serves.
    Balance,
    /// A stream or sender to it.
    Connect,
    /// Bytes and requests moved.
    Relay,
}

impl Stage {
    /// All stages in order.
    pub const ALL: [Self; 8] = [
        Self::Accept,
        Self::Tls,
        Self::Detect,
        Self::Authorise,
        Self::Route,
        Self::Balance,
        Self::Connect,
        Self::Relay,
    ];

    /// The word: log field, metric name part, config key.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Tls => "tls",
            Self::Detect => "detect",
            Self::Authorise => "authorise",
            Self::Route => "route",
            Self::Balance => "balance",
            Self::Connect => "connect",
            Self::Relay => "relay",
        }
    }
}

/// What is spoken on a session.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Protocol {
    /// HTTP/1.0 or HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// Bytes of no concern to us.
    Opaque,
}

impl Protocol {
    /// The label that logs and metrics carry.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http1 => "http/1",
            Self::Http2 => "http/2",
            Self::Opaque => "opaque",
        }
    }
}

/// What is known of the peer of a connection; shared by the records of its requests.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The peer's address (from the PROXY header where one was accepted).
    pub addr: SocketAddr,
    /// Who the peer is, once the handshake said so.
    pub identity: Option<Identity>,
    /// The cluster that the peer calls from, by the operator's own name for it.
    pub cluster: Option<Arc<str>>,
    /// The server name the peer asked for.
    pub sni: Option<Name>,
}

/// How a connection or request ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// Served to its end.
    Served,
    /// Stopped by the gateway, with the stage and the stable code of the reason.
    Refused {
        /// Where.
        stage: Stage,
        /// Whose fault.
        fault: Fault,
        /// Why, as a stable dotted word such as `tls.untrusted`.
        code: &'static str,
    },
    /// The peer went away before the end.
    Abandoned,
}

/// The gateway's own span of a request (W3C Trace Context), where requests are traced.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Span {
    /// The trace it belongs to.
    pub trace: [u8; 16],
    /// The span itself.
    pub span: [u8; 8],
    /// The client's span, where it sent one.
    pub parent: Option<[u8; 8]>,
    /// Whether it is recorded.
    pub sampled: bool,
}

/// Facts of one HTTP request.
#[derive(Clone, Debug)]
pub struct Request {
    /// The method.
    pub method: http::Method,
    /// Path and query as the client sent them.
    pub path: Box<str>,
    /// The status that the client saw.
    pub status: Option<u16>,
    /// The gRPC status that the client saw, where the exchange was gRPC.
    pub grpc_status: Option<u16>,
    /// `user-agent`, as sent.
    pub user_agent: Option<http::HeaderValue>,
    /// The W3C `traceparent` that went upstream (Trace Context §3.2).
    pub traceparent: Option<http::HeaderValue>,
    /// The gateway's span, where requests are traced.
    pub span: Option<Span>,
    /// How many times it was sent again.
    pub retries: u32,
    /// The rule of the service's profile that it fell under.
    pub route: Option<Arc<str>>,
}

/// What a policy that is only audited would have refused, and by which rule.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Audit {
    /// The code of the refusal.
    pub code: &'static str,
    /// The rule, where one decided.
    pub rule: Option<Arc<str>>,
}

/// One connection (without `request`) or one request (with it), from start to end.
#[derive(Clone, Debug)]
pub struct Record {
    /// Wall clock at the start.
    pub started: SystemTime,
    /// From start to close.
    pub duration: Duration,
    /// The client's side.
    pub peer: Arc<Peer>,
    /// What was spoken; absent when the connection ended before that was known.
    pub protocol: Option<Protocol>,
    /// The service that was asked for.
    pub target: Option<Target>,
    /// The endpoint that served.
    pub endpoint: Option<SocketAddr>,
    /// The policy rule that decided.
    pub rule: Option<Arc<str>>,
    /// Bytes from the client: body bytes of a request, payload bytes of an opaque connection.
    pub bytes_received: u64,
    /// Bytes to the client, counted likewise.
    pub bytes_sent: u64,
    /// Time spent in each stage, by `Stage as usize`. For requests: detect, tls and accept are zero.
    pub stages: [Duration; 8],
    /// Present for requests.
    pub request: Option<Box<Request>>,
    /// How it ended.
    pub outcome: Outcome,
    /// What enforcing the policy would have said, where it is only audited.
    pub audit: Option<Box<Audit>>,
    /// What the log says of a refusal beyond its code. Never shown to the peer.
    pub detail: Option<Box<str>>,
}

impl Record {
    /// The record of a connection that has just begun.
    pub fn connection(peer: Arc<Peer>, started: SystemTime) -> Self {
        Self {
            started,
            duration: Duration::ZERO,
            peer,
            protocol: None,
            target: None,
            endpoint: None,
            rule: None,
            bytes_received: 0,
            bytes_sent: 0,
            stages: [Duration::ZERO; 8],
            request: None,
            outcome: Outcome::Abandoned,
            audit: None,
            detail: None,
        }
    }
}

/// What happens besides the closing of records.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Event<'a> {
    /// A socket was accepted.
    ConnectionOpened,
    /// A connection's task ended, whatever the reason.
    ConnectionClosed,
    /// `accept(2)` failed; the text is the errno's name.
    AcceptFailed(&'a str),
    /// A handshake ended: `ok` or the code of the refusal.
    Handshake {
        /// `ok`, or the refusal's code.
        result: &'a str,
        /// From the first byte waited for to the end.
        took: Duration,
    },
    /// An HTTP request's head has been read.
    RequestStarted,
    /// An HTTP request has ended.
    RequestEnded,
    /// A connection to an endpoint was opened: `ok` or the code of the failure.
    Connected {
        /// `ok`, or the failure's code.
        result: &'a str,
        /// Connect and upstream handshake together.
        took: Duration,
    },
    /// A request was sent again.
    Retried,
    /// A request could have been sent again for its response, and was not, for this reason.
    RetrySkipped {
        /// `no_budget`, `body` (it was too large to keep, or still under way), `limit` (`http.max_retries`).
        reason: &'a str,
    },
    /// A live connection's peer is trusted no longer: it is drained or cut.
    Distrusted {
        /// The code of the reason, without its stage: `revoked`, `upstream_untrusted`.
        reason: &'a str,
        /// Who the peer is.
        identity: &'a Identity,
        /// Where the peer is.
        addr: SocketAddr,
        /// The reason in words.
        detail: &'a str,
    },
    /// An endpoint was ejected by the balancer.
    Ejected,
    /// A task panicked and was ended alone.
    Panicked,
}

/// Told of events and closed records, on the worker where they happen: must not block and should not allocate.
pub trait Observer: std::fmt::Debug {
    /// Something happened.
    fn event(&self, event: Event<'_>);
    /// A record was closed.
    fn closed(&self, record: &Record);
}
