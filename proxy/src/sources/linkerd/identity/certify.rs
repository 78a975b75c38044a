//! Certificates from Linkerd's identity controller.
//!
//! **In** a service-account token, the roots of the moment. **Out** credentials, renewed when most of their life is over.
//! **Refuses** answers that are not for our key or our name, or that our roots do not vouch for; the controller is then asked
//! again, less and less often.
//!
//! The key is made here and lives in memory only; it stays the same for the life of the process, so that what it signs
//! besides keeps its name. The controller is always spoken to as nobody: who shows a certificate that has run out, or that
//! a new bundle no longer vouches for, would never get another. (Linkerd wire document §6.1.)

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use linkerd2_proxy_api::identity::identity_client::IdentityClient;
use linkerd2_proxy_api::identity::{CertifyRequest, CertifyResponse};
use tokio::io::AsyncReadExt;
use tokio::time::timeout;
use tonic::Status;

use super::super::control::Control;
use super::{Holder, Ledger, Unfit};
use crate::backoff::Backoff;
use crate::identity::Identity;
use crate::live::Live;
use crate::tls::mint::{self, MintError, Request};
use crate::tls::{Credentials, File, pem};

/// How certificates are asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Who the gateway is to be: a DNS-like name.
    pub name: Identity,
    /// Where its service-account token is. Read anew for each call, as kubelet replaces it.
    pub token_file: PathBuf,
    /// How long one call may take.
    pub timeout: Duration,
    /// Certificates are not renewed sooner than this after the last one.
    pub min_refresh: Duration,
    /// Certificates are not kept for longer than this.
    pub max_refresh: Duration,
    /// How long to wait after failures.
    pub backoff: Backoff,
}

/// The largest token that is read, in bytes: service-account tokens have some 1 to 2 KiB.
const MAX_TOKEN_BYTES: u64 = 64 * 1024;

/// The share of its life after which a certificate is renewed; up to [`JITTER`] less, by chance.
const REFRESH_AT: f64 = 0.7;
/// Taken off by chance, so that gateways that started together do not ask together.
const JITTER: f64 = 0.05;

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("the identity controller says no ({:?}): {}", .0.code(), .0.message())]
    Refused(Status),
    #[error("the identity controller did not answer within {0:?}")]
    Silent(Duration),
    #[error("the token {} cannot be used: {problem}", file.display())]
    Token { file: PathBuf, problem: String },
    #[error("the identity controller's answer is not taken: {0}")]
    Unfit(#[from] Unfit),
}

/// Asks for certificates for as long as the gateway lives.
#[derive(Clone, Debug)]
pub struct Certifier {
    settings: Settings,
    control: Control,
    request: Request,
    holder: Holder,
}

impl Certifier {
    /// Asks `control`, which must not show `live`'s certificate: it was made with `believing`, the roots of the moment.
    pub fn new(
        settings: Settings,
        control: Control,
        believing: Arc<Live<Credentials>>,
        live: Arc<Live<Credentials>>,
        ledger: Ledger,
    ) -> Result<Self, MintError> {
        let request = mint::request(std::slice::from_ref(&settings.name))?;
        let holder = Holder::new(Some(settings.name.clone()), believing, live, ledger);
        Ok(Self { settings, control, request, holder })
    }

    /// Never ends; dropping the future stops it.
    pub async fn run(mut self) {
        let mut changes = self.holder.believing.changes();
        let mut failures = 0;
        loop {
            let mut wait = match self.certify().await {
                Ok(expires) => {
                    failures = 0;
                    self.refresh_in(expires)
                }
                Err(failure) => {
                    failures += 1;
                    self.control.failed();
                    let problem = failure.to_string();
                    if self.holder.ledger.failed(problem.clone()) {
                        tracing::warn!(problem, "the gateway has no new certificate: asking again");
                    }
                    self.settings.backoff.after(failures)
                }
            };
            loop {
                let before = tokio::time::Instant::now();
                tokio::select! {
                    () = tokio::time::sleep(wait) => break,
                    () = changes.next() => {
                        if !self.holder.rebase() {
                            break;
                        }
                        wait = wait.saturating_sub(before.elapsed());
                    }
                }
            }
        }
    }

    async fn certify(&mut self) -> Result<SystemTime, Failure> {
        let token = self.token().await?;
        let request = CertifyRequest {
            identity: self.settings.name.as_str().to_owned(),
            token,
            certificate_signing_request: self.request.der.clone(),
        };
        let mut client = IdentityClient::new(self.control.clone());
        let answer = timeout(self.settings.timeout, client.certify(request)).await;
        let answer = answer.map_err(|_| Failure::Silent(self.settings.timeout))?.map_err(Failure::Refused)?;
        self.control.heard();
        let CertifyResponse { leaf_certificate, intermediate_certificates, valid_until } = answer.into_inner();
        let ders = std::iter::once(&leaf_certificate).chain(&intermediate_certificates);
        let chain: String = ders.map(|der| pem::section("CERTIFICATE", der)).collect();
        let key = File::new("the gateway's key", self.request.key_pem.as_bytes());
        let expires = self.holder.take(File::new("the identity controller's answer", chain), key)?;
        let valid_until = valid_until.and_then(|time| SystemTime::try_from(time).ok());
        Ok(valid_until.map_or(expires, |until| until.min(expires)))
    }

    async fn token(&self) -> Result<Vec<u8>, Failure> {
        let unusable = |problem: String| Failure::Token { file: self.settings.token_file.clone(), problem };
        let file =
            tokio::fs::File::open(&self.settings.token_file).await.map_err(|error| unusable(error.to_string()))?;
        let mut token = Vec::new();
        file.take(MAX_TOKEN_BYTES + 1).read_to_end(&mut token).await.map_err(|error| unusable(error.to_string()))?;
        match u64::try_from(token.len()) {
            Ok(1..=MAX_TOKEN_BYTES) => Ok(token),
            Ok(0) => Err(unusable("it is empty".to_owned())),
            _ => Err(unusable(format!("it has more than {MAX_TOKEN_BYTES} bytes"))),
        }
    }

    /// When to renew what ends at `expires`.
    fn refresh_in(&self, expires: SystemTime) -> Duration {
        let left = expires.duration_since(SystemTime::now()).unwrap_or_default();
        let at = left.mul_f64(REFRESH_AT - JITTER * rand::random::<f64>());
        at.min(self.settings.max_refresh).max(self.settings.min_refresh)
    }
}
