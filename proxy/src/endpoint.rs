//! Where a service can be reached: plain values that sources write, the balancer picks from and `connect` dials.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::addr::Name;
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
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct UpstreamTls {
    /// Some subject alternative name of the server's certificate must equal this.
    pub identity: Identity,
    /// The name sent as SNI.
    pub server_name: Name,
}

/// One address behind a service.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Endpoint {
    /// Where to connect.
    pub addr: SocketAddr,
    /// What to speak there.
    pub speaks: Speaks,
    /// Mutual TLS, or plain where absent.
    pub tls: Option<Arc<UpstreamTls>>,
    /// Its share of the load relative to its siblings; 0 takes no new load.
    pub weight: u32,
    /// The zone it runs in, where known.
    pub zone: Option<Arc<str>>,
}

/// All endpoints of one service at one moment. Replaced whole, never changed.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Endpoints {
    /// In no particular order, each address at most once.
    pub list: Vec<Endpoint>,
}
