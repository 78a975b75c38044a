//! The client's side of a handshake: mutual TLS toward an upstream.
//!
//! **In** a socket, the [`Credentials`] of the moment, whom to expect. **Out** a [`Connected`] stream. **Refuses**
//! servers that no root vouches for, and those that are somebody else: some SAN must equal the expected identity, which
//! is another thing than the server name that is sent. The deadline is the caller's, who has one for the socket and the
//! handshake together. (RFC 8446; Linkerd wire document §1.5.)

use std::cell::Cell;
use std::io;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls_pki_types::{DnsName, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use super::verifier::{REFUSED, Refused};
use super::verify::Reason;
use super::{Alpn, Chain, ClientStream, Credentials};
use crate::addr::Name;
use crate::endpoint::UpstreamTls;
use crate::fault::{Fault, Refusal};

/// A handshake that is done.
#[derive(Debug)]
pub struct Connected<S> {
    /// The stream inside.
    pub stream: ClientStream<S>,
    /// The protocol agreed on.
    pub alpn: Alpn,
    /// What the server presented, kept for [`recheck_upstream`](super::verify::recheck_upstream).
    pub chain: Chain,
}

/// Shakes hands with an upstream, showing our own chain and offering the protocols of `alpn` in their order.
///
/// A server that refuses us may say so only after this has returned: see [`alert_in`](super::alert_in).
pub async fn connect<S>(
    stream: S,
    credentials: &Arc<Credentials>,
    upstream: &UpstreamTls,
    alpn: &[&[u8]],
) -> Result<Connected<S>, Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let config = credentials.client_config(&upstream.identity);
    shake(stream, config, &upstream.server_name, alpn).await
}

/// The handshake itself: asks for `server_name`, offers `alpn`, and keeps the reason where the server is refused.
pub(super) async fn shake<S>(
    stream: S,
    mut config: ClientConfig,
    server_name: &Name,
    alpn: &[&[u8]],
) -> Result<Connected<S>, Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let name = DnsName::try_from(server_name.as_str().to_owned())
        .map_err(|_| Error::ServerName { name: server_name.clone() })?;
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    let connector = TlsConnector::from(Arc::new(config));
    let (result, refused) = REFUSED
        .scope(Cell::new(None), async {
            let result = connector.connect(ServerName::DnsName(name), stream).await;
            (result, REFUSED.with(Cell::take))
        })
        .await;
    let stream = result.map_err(|error| Error::from_handshake(error, refused))?;
    let (_, session) = stream.get_ref();
    let alpn = Alpn::agreed(session.alpn_protocol());
    let chain = session.peer_certificates().unwrap_or_default().into();
    Ok(Connected { stream, alpn, chain })
}

/// Why there is no stream to the upstream.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server sent an alert: it does not like what it saw of us.
    #[error("the server ended the handshake with the alert {0}")]
    Alert(String),
    /// The server's certificate is refused.
    #[error("the server's certificate is refused: {reason} ({presented})")]
    Certificate {
        /// Why.
        reason: Reason,
        /// What the certificate says of itself.
        presented: String,
        /// All that was presented, for those who want to know more.
        chain: Chain,
    },
    /// The socket failed, or was closed.
    #[error("the socket failed during the handshake")]
    Io(#[source] io::Error),
    /// The server breaks the protocol, or shares none with us.
    #[error("the server does not speak TLS as it should: {0}")]
    Protocol(String),
    /// The name to send is none that TLS can send.
    #[error("'{name}' cannot be sent as a server name")]
    ServerName {
        /// The name.
        name: Name,
    },
}

impl Error {
    /// What the refused certificate says of itself, where one was shown.
    pub fn presented(&self) -> Option<&str> {
        match self {
            Self::Certificate { presented, .. } => Some(presented),
            _ => None,
        }
    }

    /// Sorts what the library says.
    fn from_handshake(error: io::Error, refused: Option<Refused>) -> Self {
        if let Some(Refused { reason, presented, chain }) = refused {
            return Self::Certificate { reason, presented, chain };
        }
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            None => Self::Io(error),
            Some(rustls::Error::AlertReceived(alert)) => Self::Alert(format!("{alert:?}")),
            Some(other) => Self::Protocol(other.to_string()),
        }
    }
}

impl Refusal for Error {
    fn fault(&self) -> Fault {
        Fault::Upstream
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Alert(_) => "tls.upstream_alert",
            Self::Certificate { reason, .. } => reason.upstream_code(),
            Self::Io(_) => "tls.upstream_io",
            Self::Protocol(_) => "tls.upstream_protocol",
            Self::ServerName { .. } => "tls.upstream_server_name",
        }
    }

    /// Nothing of a request is sent before the handshake is done.
    fn retry_is_safe(&self) -> bool {
        true
    }
}
