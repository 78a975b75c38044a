//! A TLS client that is no gateway: the demo's callers, the prober, the checks. It may show any chain, also one that a
//! gateway would not take, or none at all.
//!
//! **In** a trust bundle, a chain and key or neither, whom to expect. **Out** connected streams. **Refuses** servers as the
//! gateway's own client side does.

use std::cell::Cell;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, DnsName, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use super::client::{Connected, Error};
use super::provider::provider;
use super::verify::{REFUSED, ServerVerifier, Trust};
use super::{Alpn, Der};
use crate::addr::Name;
use crate::identity::Identity;

/// A client with a chain of its own choosing.
#[derive(Clone, Debug)]
pub struct Caller {
    config: Arc<ClientConfig>,
}

/// Why a caller cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum CallerError {
    /// The bundle holds no usable certificate.
    #[error("the trust bundle holds no usable root")]
    Bundle,
    /// The chain or the key does not read, or they do not fit.
    #[error("the client's chain and key cannot be used: {0}")]
    Pair(String),
}

impl Caller {
    /// A caller that trusts the roots of `bundle` (PEM), shows `pair` (chain and key, PEM) where there is one, and
    /// expects a server of this identity.
    pub fn new(bundle: &[u8], pair: Option<(&[u8], &[u8])>, expected: &Identity) -> Result<Self, CallerError> {
        let roots: Vec<Der> = CertificateDer::pem_slice_iter(bundle).filter_map(Result::ok).collect();
        let anchors = roots.iter().filter_map(|der| webpki::anchor_from_trusted_cert(der).ok());
        let anchors: Vec<_> = anchors.map(|anchor| anchor.to_owned()).collect();
        if anchors.is_empty() {
            return Err(CallerError::Bundle);
        }
        let trust = Arc::new(Trust::new(anchors, Vec::new(), false, false));
        let builder = ClientConfig::builder_with_provider(Arc::clone(provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| CallerError::Pair(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(ServerVerifier { trust, expected: expected.clone() }));
        let mut config = match pair {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let chain: Vec<Der> = CertificateDer::pem_slice_iter(chain).filter_map(Result::ok).collect();
                let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| CallerError::Pair(error.to_string()))?;
                builder.with_client_auth_cert(chain, key).map_err(|error| CallerError::Pair(error.to_string()))?
            }
        };
        config.resumption = Resumption::disabled();
        Ok(Self { config: Arc::new(config) })
    }

    /// Shakes hands, asking for `server_name` and offering `alpn`.
    pub async fn connect<S>(&self, stream: S, server_name: &Name, alpn: &[&[u8]]) -> Result<Connected<S>, Error>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = DnsName::try_from(server_name.as_str().to_owned())
            .map_err(|_| Error::ServerName { name: server_name.clone() })?;
        let mut config = ClientConfig::clone(&self.config);
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
}
