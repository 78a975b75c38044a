//! A TLS client that is no gateway: the demo's callers, the prober, the checks. It may show any chain, also one that a
//! gateway would not take, or none at all.
//!
//! **In** a trust bundle, a chain and key or neither, whom to expect. **Out** connected streams. **Refuses** servers as the
//! gateway's own client side does.

use std::sync::Arc;

use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::client::{Connected, Error, shake};
use super::files::{CredentialsError, File};
use super::provider::provider;
use super::verifier::ServerVerifier;
use super::verify::Trust;
use super::{Der, files};
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
    /// The bundle does not read.
    #[error(transparent)]
    Bundle(#[from] CredentialsError),
    /// The chain or the key does not read, or they do not fit.
    #[error("the client's chain and key cannot be used: {0}")]
    Pair(String),
}

impl Caller {
    /// A caller that trusts the roots of `bundle` (PEM), shows `pair` (chain and key, PEM) where there is one, and
    /// expects a server of this identity.
    pub fn new(bundle: &[u8], pair: Option<(&[u8], &[u8])>, expected: &Identity) -> Result<Self, CallerError> {
        let bundle = File::new("the trust bundle", bundle);
        let (roots, _) = files::roots(&bundle)?;
        let trust = Arc::new(Trust::new(roots, Vec::new(), false, false));
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
        shake(stream, ClientConfig::clone(&self.config), server_name, alpn).await
    }
}
