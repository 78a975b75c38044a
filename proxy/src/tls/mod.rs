//! `tls`: the handshake, and who came through it.
//!
//! **In** a socket and the [`Credentials`] of the moment. **Out** a TLS stream, the peer's
//! [`Identity`](crate::identity::Identity), the server name it asked for and the protocol that was agreed on.
//! **Refuses** plaintext, foreign names, no certificate, unknown roots, expired or revoked certificates, certificates
//! that name nobody, and slow handshakes.
//!
//! TLS 1.3 only (RFC 8446). No other room names the libraries that are at work here.

pub mod caller;
pub mod client;
pub mod credentials;
pub mod explain;
pub mod files;
pub mod inspect;
pub mod mint;
pub mod pem;
mod provider;
pub mod server;
pub mod sign;
mod verifier;
pub mod verify;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
pub use credentials::{Credentials, Pem};
pub use files::{CredentialsError, File};
pub use provider::install;

use crate::addr::{Name, Suffix};
use crate::rewind::Rewind;

/// What Linkerd's proxies ask for when a transport header will follow (Linkerd wire document §1.3).
pub const ALPN_TRANSPORT_HEADER: &[u8] = crate::wire::transport_header::ALPN;

/// HTTP/2 over TLS (RFC 9113 §3.2).
pub const ALPN_H2: &[u8] = b"h2";

/// HTTP/1.1 over TLS (RFC 7301 §6).
pub const ALPN_HTTP11: &[u8] = b"http/1.1";

/// The credentials that serve now: sources swap them, each handshake takes what is there when it begins.
pub type Live = ArcSwap<Credentials>;

/// One certificate in DER.
pub type Der = rustls_pki_types::CertificateDer<'static>;

/// SHA-256 of a certificate.
pub type Fingerprint = [u8; 32];

/// A peer's chain as it was presented, the leaf first.
pub type Chain = Arc<[Der]>;

/// What [`server::accept`] makes of a socket.
pub type ServerStream<S> = tokio_rustls::server::TlsStream<Rewind<S>>;

/// What [`client::connect`] makes of a socket.
pub type ClientStream<S> = tokio_rustls::client::TlsStream<S>;

/// How a listener shakes hands.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Settings {
    /// The whole handshake, from the first byte waited for to the last one needed.
    pub handshake_timeout: Duration,
    /// The most that a ClientHello may take on the wire, record headers included, in bytes.
    pub max_hello_bytes: usize,
    /// Which server names are answered.
    pub sni: Sni,
    /// Whether application protocols are agreed on. The probe's listener agrees on none, as a meshed pod's would not.
    pub alpn: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            // What Linkerd's proxies allow for detection; they themselves have no bound after it.
            handshake_timeout: Duration::from_secs(10),
            // Ten times a hello with a post-quantum key share.
            max_hello_bytes: 16 * 1024,
            sni: Sni::Own,
            alpn: true,
        }
    }
}

/// Which server names are answered; all others see the connection close without a byte.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Sni {
    /// Whatever is asked for, and no name at all.
    Any,
    /// The gateway's own names.
    #[default]
    Own,
    /// The gateway's own names, and those of services below these suffixes.
    OwnOr(Vec<Suffix>),
}

impl Sni {
    /// Whether a peer that asked for `name` is answered.
    fn allows(&self, name: &Name, own: &[Name]) -> bool {
        match self {
            Self::Any => true,
            Self::Own => own.contains(name),
            Self::OwnOr(suffixes) => own.contains(name) || suffixes.iter().any(|suffix| suffix.holds(name)),
        }
    }
}

/// The application protocol that both sides agreed on (RFC 7301).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Alpn {
    /// `h2`.
    H2,
    /// `http/1.1`.
    Http11,
    /// None was offered, or none is spoken on this listener.
    None,
    /// `transport.l5d.io/v1`: a transport header comes first.
    TransportHeader,
}

impl Alpn {
    /// Reads what the handshake agreed on. Nothing that was not offered by us can come out of it.
    fn agreed(protocol: Option<&[u8]>) -> Self {
        match protocol {
            Some(ALPN_H2) => Self::H2,
            Some(ALPN_HTTP11) => Self::Http11,
            Some(ALPN_TRANSPORT_HEADER) => Self::TransportHeader,
            _ => Self::None,
        }
    }

    /// The label that logs carry.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::H2 => "h2",
            Self::Http11 => "http/1.1",
            Self::None => "none",
            Self::TransportHeader => "transport.l5d.io/v1",
        }
    }
}

/// The name of the TLS alert inside an IO error, where the peer sent one: `UnknownCA`, `CertificateExpired`, …
///
/// In TLS 1.3 a client believes its handshake done before the server has looked at its certificate; the server's no
/// comes as an alert at the first read, long after [`client::connect`] has returned.
pub fn alert_in(error: &std::io::Error) -> Option<String> {
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::AlertReceived(alert) => Some(format!("{alert:?}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
