//! Where a service can be reached: plain values that sources write, the balancer picks from and `connect` dials.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::addr::{Name, Target};
use crate::identity::Identity;

/// How an endpoint wants to be spoken to.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Speaks {
    /// Whatever the client speaks: HTTP/2 goes on as HTTP/2 with prior knowledge, HTTP/1 as HTTP/1.
    #[default]
    AsClient,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge (`h2c`, or `h2` inside TLS).
    Http2,
    /// Bytes: requests for it as HTTP are refused.
    Opaque,
}

/// Whom to expect at the other end of an upstream TLS connection.
///
/// The two are independent, unlike in the web: *any* subject alternative name of the certificate that equals `identity`
/// will do, be it a DNS name or a URI, and `server_name` is not looked for in it. (Linkerd wire document §1.5.)
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct UpstreamTls {
    /// Some subject alternative name of the server's certificate must equal this.
    pub identity: Identity,
    /// The name sent as SNI.
    pub server_name: Name,
}

/// The endpoint's own proxy is dialled in its stead and told, by a transport header inside TLS, where to go on.
/// (Linkerd wire document §2, §5.3.)
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Tunnel {
    /// The port that the header names: the workload's own, or that of the service `name`.
    pub port: u16,
    /// The service that the header names where the other end is a gateway; none where it is the workload's own proxy.
    pub name: Option<Name>,
    /// Says nothing of the session's protocol, whatever it is: the other end is to take the bytes as bytes.
    pub opaque: bool,
}

/// How to speak HTTP/2 with one endpoint where that differs from the configuration. What is `None` stays as configured.
/// (Linkerd wire document §5.1, `Http2ClientParams`.)
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct Http2Params {
    /// What the endpoint may send on one stream before it is read, in bytes.
    pub stream_window: Option<u32>,
    /// The same for the whole connection.
    pub connection_window: Option<u32>,
    /// Grows both with the measured bandwidth-delay product instead.
    pub adaptive_window: bool,
    /// The interval between questions (PING) whether the endpoint lives.
    pub ping_interval: Option<Duration>,
    /// How long the answer may take before the connection is given up.
    pub ping_timeout: Option<Duration>,
    /// Asks while no stream is open, too.
    pub ping_while_idle: bool,
    /// The largest frame that the endpoint may send, in bytes.
    pub max_frame_size: Option<u32>,
    /// What of a request's body may be buffered per stream while the endpoint's window is closed, in bytes.
    pub max_send_buffer: Option<u32>,
    /// Streams that were reset by us and are still remembered, so that late frames for them do no harm.
    pub max_reset_streams: Option<u32>,
}

/// One address behind a service.
///
/// Made by [`Endpoint::new`] and, for what is not plain about it, by `Endpoint { weight: 7, ..Endpoint::new(addr) }`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Endpoint {
    /// Where to connect.
    pub addr: SocketAddr,
    /// What to speak there.
    pub speaks: Speaks,
    /// Where it speaks as the client does: HTTP/1 requests travel as HTTP/2 with `l5d-orig-proto`, except those that leave
    /// HTTP. (Linkerd's protocol hint `h2`; wire document §3.2.)
    pub orig_proto: bool,
    /// Mutual TLS, or plain where absent.
    pub tls: Option<Arc<UpstreamTls>>,
    /// The transport header to begin with. Only inside TLS, as only ALPN can agree on it.
    pub tunnel: Option<Arc<Tunnel>>,
    /// What requests name as their authority, instead of what the client named. (`authority_override`; wire document §11.3.)
    pub authority: Option<Arc<Target>>,
    /// How to speak HTTP/2 with it, where that differs.
    pub http2: Option<Arc<Http2Params>>,
    /// Its share of the load relative to its siblings; 0 takes no new load.
    pub weight: u32,
    /// The zone it runs in, where known.
    pub zone: Option<Arc<str>>,
    /// Whether the source says that it runs in the gateway's own zone, whatever that is called.
    pub near: bool,
}

impl Endpoint {
    /// A plain endpoint that speaks as the client does and takes a share of one.
    pub const fn new(addr: SocketAddr) -> Self {
        Self {
            addr,
            speaks: Speaks::AsClient,
            orig_proto: false,
            tls: None,
            tunnel: None,
            authority: None,
            http2: None,
            weight: 1,
            zone: None,
            near: false,
        }
    }
}

/// All endpoints of one service at one moment. Replaced whole, never changed.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Endpoints {
    /// In no particular order, each address at most once.
    pub list: Vec<Endpoint>,
}
