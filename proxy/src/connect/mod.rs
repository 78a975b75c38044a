//! A way to an endpoint: a TCP stream with the right options, or a pooled HTTP sender.
//!
//! **In** an [`Endpoint`], or one of its addresses. **Out** a stream ([`tcp()`]), or a response ([`Pool::send`]).
//! **Refuses** with an [`Error`] that says what happened and whether the endpoint can have seen the request.
//!
//! What lies between TCP and HTTP (TLS, a transport header) is the [`Dial`]er's business: the pool is given streams that
//! are ready to be spoken on.

mod pool;
mod tcp;

use std::error::Error as StdError;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::endpoint::Endpoint;
use crate::fault::{Fault, Refusal};
use crate::record::Protocol;

pub use self::pool::{BodyError, Pool, PoolSettings, SendError, Stats, Streamed, Tunnel, Version};
pub use self::tcp::tcp;

/// How connections to endpoints are made.
#[derive(Clone, Debug)]
pub struct Settings {
    /// For TCP, and again for everything until the connection can be used. One second: endpoints are in the same cluster,
    /// where a second is a lost SYN already, and the balancer has others to offer.
    pub timeout: Duration,
    /// Idle time before the kernel asks whether the other side is still there; also the interval between questions.
    /// `None` turns it off.
    pub keepalive: Option<Duration>,
    /// How long sent bytes may stay unacknowledged before the kernel gives the connection up (`TCP_USER_TIMEOUT`).
    /// Without it a vanished node is noticed after a quarter of an hour of retransmissions.
    pub user_timeout: Option<Duration>,
    /// Send small segments at once (`TCP_NODELAY`). A proxy has already waited for what there is to send.
    pub nodelay: bool,
    /// Refuse addresses that lead back to this host: loopback, unspecified, and those in `own`. Service discovery must
    /// not be able to make the gateway talk to its own admin port.
    pub deny_loopback: bool,
    /// This host's addresses.
    pub own: Vec<IpAddr>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(1),
            keepalive: Some(Duration::from_secs(10)),
            user_timeout: Some(Duration::from_secs(30)),
            nodelay: true,
            deny_loopback: true,
            own: Vec::new(),
        }
    }
}

/// Makes streams to endpoints: TCP alone, or with TLS and what else must come before the protocol's first byte.
///
/// Called in a task of its own, so that a request that goes away does not take the connection with it for which others
/// wait. The pool bounds its time.
pub trait Dial: 'static {
    /// What is spoken on. (`Send` because hyper hands upgraded streams out in a type that is.)
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Connects to `endpoint` in order to speak `protocol`.
    fn dial(&self, endpoint: &Endpoint, protocol: Protocol) -> impl Future<Output = Result<Self::Stream, Error>>;
}

/// A cause that several requests can share: all that waited for one dial get the same.
pub type Cause = Arc<dyn StdError + Send + Sync>;

/// Why there is no connection, or no answer on it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The connection was closed before the answer was complete.
    #[error("the endpoint closed the connection")]
    Closed(#[source] Option<Cause>),
    /// The address leads back to this host.
    #[error("the endpoint's address leads back to this host")]
    Denied,
    /// The endpoint's certificate names someone else.
    #[error("the endpoint is not who it should be")]
    Identity(#[source] Cause),
    /// Anything else that went wrong with the socket.
    #[error("the connection to the endpoint failed")]
    Io(#[source] Cause),
    /// The answer is no valid HTTP, or more than allowed.
    #[error("the endpoint's answer is not valid")]
    Protocol(#[source] Cause),
    /// No connection became free in time, or too many wait already.
    #[error("all connections to the endpoint are in use")]
    PoolFull,
    /// Nothing listens there.
    #[error("the endpoint refused the connection")]
    Refused,
    /// The body of the request failed while it was sent: the client's side broke.
    #[error("the body of the request failed")]
    RequestBody(#[source] Cause),
    /// The connection or stream was reset.
    #[error("the endpoint reset the stream")]
    Reset(#[source] Cause),
    /// The endpoint says that it has not looked at the request: it is going away, or takes no more streams.
    #[error("the endpoint did not take the request")]
    StreamRefused(#[source] Cause),
    /// No connection, or no sign of life on it, in time.
    #[error("the endpoint did not respond in time")]
    Timeout,
    /// The TLS handshake failed.
    #[error("the TLS handshake with the endpoint failed")]
    Tls(#[source] Cause),
    /// No route there.
    #[error("the endpoint cannot be reached")]
    Unreachable,
}

impl Error {
    /// What an IO error on the way to an endpoint means.
    pub fn from_io(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable | io::ErrorKind::NetworkDown => {
                Self::Unreachable
            }
            io::ErrorKind::TimedOut => Self::Timeout,
            io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => Self::Reset(Arc::new(error)),
            io::ErrorKind::BrokenPipe | io::ErrorKind::NotConnected | io::ErrorKind::UnexpectedEof => {
                Self::Closed(Some(Arc::new(error)))
            }
            _ => Self::Io(Arc::new(error)),
        }
    }
}

impl Error {
    /// The cause, where the endpoint reset this very stream over HTTP/2 and nothing else is wrong: an HTTP/2 client can then
    /// be told the same, in the same words (RFC 9113 §6.4).
    pub fn stream_reset(&self) -> Option<&Cause> {
        match self {
            Self::Reset(cause) | Self::StreamRefused(cause) => Some(cause).filter(|cause| pool::is_stream_reset(cause)),
            _ => None,
        }
    }
}

impl Refusal for Error {
    fn fault(&self) -> Fault {
        match self {
            Self::PoolFull | Self::Denied => Fault::Ours,
            Self::RequestBody(_) => Fault::Client,
            _ => Fault::Upstream,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Closed(_) => "connect.closed",
            Self::Denied => "connect.denied",
            Self::Identity(_) => "connect.identity",
            Self::Io(_) => "connect.io",
            Self::PoolFull => "connect.pool_full",
            Self::Protocol(_) => "connect.protocol",
            Self::Refused => "connect.refused",
            Self::RequestBody(_) => "connect.request_body",
            Self::Reset(_) => "connect.reset",
            Self::StreamRefused(_) => "connect.stream_refused",
            Self::Timeout => "connect.timeout",
            Self::Tls(_) => "connect.tls",
            Self::Unreachable => "connect.unreachable",
        }
    }

    /// True for what can only happen before a request is sent. The others may be safe too: see
    /// [`SendError::retry_is_safe`], which knows whether the request came back.
    fn retry_is_safe(&self) -> bool {
        matches!(
            self,
            Self::Denied
                | Self::Identity(_)
                | Self::PoolFull
                | Self::Refused
                | Self::StreamRefused(_)
                | Self::Tls(_)
                | Self::Unreachable
        )
    }
}
