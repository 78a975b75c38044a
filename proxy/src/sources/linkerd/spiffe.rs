//! The gateway's certificate from a SPIFFE Workload API: SPIRE's agent, or whatever speaks it.
//!
//! **In** X.509-SVIDs and bundles, streamed over a unix socket; roots and CRLs from files besides. **Out** credentials,
//! replaced at each rotation. **Refuses** SVIDs of another id than the gateway's, and those that their own bundle does not
//! vouch for; what serves goes on serving.
//!
//! Trusted are the bundle of the gateway's own trust domain and the files. Bundles of federated trust domains are not taken:
//! a root is believed for every name here, and a federated one may speak for its own domain only.
//! (SPIFFE Workload API §4 and §5; Linkerd wire document §6.3.)

use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use spiffe::{WorkloadApiClient, X509Context};
use tokio::time::timeout;

use super::identity::{Holder, Ledger, Unfit};
use crate::backoff::Backoff;
use crate::identity::Identity;
use crate::live::{Changes, Live};
use crate::sources::files::{Piece, Recipe, Wrong};
use crate::tls::{Credentials, CredentialsError, File, credentials, pem};

/// How the Workload API is asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Its socket: `unix:///run/spire/agent.sock`.
    pub socket: String,
    /// Who the gateway is: the SPIFFE id of the SVID to take among those offered.
    pub name: Identity,
    /// How long connecting and the first answer may take.
    pub timeout: Duration,
    /// How long to wait after failures.
    pub backoff: Backoff,
    /// How credentials are judged.
    pub credentials: credentials::Settings,
}

/// Roots and CRLs from files, beside those of the Workload API.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Beside {
    /// Further trust anchors.
    pub bundle: Option<File>,
    /// Certificate revocation lists.
    pub crls: Vec<File>,
}

/// Which files.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct BesideFiles {
    /// Further trust anchors.
    pub bundle: Option<PathBuf>,
    /// Certificate revocation lists.
    pub crls: Vec<PathBuf>,
}

impl Recipe for BesideFiles {
    type Value = Beside;

    fn name(&self) -> &'static str {
        "trust anchors"
    }

    fn paths(&self) -> Vec<PathBuf> {
        self.bundle.iter().chain(&self.crls).cloned().collect()
    }

    fn make(&self, pieces: &[Piece]) -> Result<Beside, Wrong> {
        let mut files = pieces.iter().map(|piece| File::new(piece.path.display().to_string(), piece.bytes.as_slice()));
        let bundle = self.bundle.as_ref().and_then(|_| files.next());
        Ok(Beside { bundle, crls: files.collect() })
    }

    fn describe(&self, beside: &Beside) -> String {
        format!(
            "{} bundles and {} CRLs beside the Workload API's",
            usize::from(beside.bundle.is_some()),
            beside.crls.len()
        )
    }
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("the Workload API at {socket} cannot be used: {problem}")]
    Api { socket: String, problem: String },
    #[error("the Workload API offers no SVID of '{expected}', but {offered}")]
    NotOffered { expected: Identity, offered: String },
    #[error("the Workload API gave no bundle of the trust domain of '{0}'")]
    NoBundle(Identity),
    #[error("what the Workload API gave is not taken: {0}")]
    Unfit(#[from] Unfit),
    #[error("what the Workload API gave is not taken: {0}")]
    Bundle(#[from] CredentialsError),
}

/// Follows the Workload API for as long as the gateway lives.
#[derive(Clone, Debug)]
pub struct Follower {
    settings: Settings,
    beside: Arc<Live<Beside>>,
    holder: Holder,
    /// What the API said last.
    last: Option<X509Context>,
}

impl Follower {
    /// Keeps `live`, which holds no certificate yet.
    pub fn new(settings: Settings, beside: Arc<Live<Beside>>, live: Arc<Live<Credentials>>, ledger: Ledger) -> Self {
        let believing = Arc::new(Live::new(Credentials::clone(&live.load())));
        let holder = Holder::new(Some(settings.name.clone()), believing, live, ledger);
        Self { settings, beside, holder, last: None }
    }

    /// Never ends; dropping the future stops it.
    pub async fn run(mut self) {
        let mut failures = 0;
        let mut changes = self.beside.changes();
        loop {
            let taken_before = self.holder.ledger.read().taken;
            let Err(failure) = self.follow(&mut changes).await;
            if self.holder.ledger.read().taken > taken_before {
                failures = 0;
            }
            failures += 1;
            self.failed(&failure);
            let wait = tokio::time::sleep(self.settings.backoff.after(failures));
            tokio::pin!(wait);
            // New anchors and revocation lists count while the API is away, too.
            loop {
                tokio::select! {
                    () = &mut wait => break,
                    () = changes.next() => if let Err(failure) = self.take() {
                        self.failed(&failure);
                    },
                }
            }
        }
    }

    async fn follow(&mut self, changes: &mut Changes) -> Result<std::convert::Infallible, Failure> {
        let socket = self.settings.socket.clone();
        let broken = |problem: String| Failure::Api { socket: socket.clone(), problem };
        let open = async { WorkloadApiClient::connect_to(&socket).await?.stream_x509_contexts().await };
        let silent = || broken(format!("no answer within {:?}", self.settings.timeout));
        let opened = timeout(self.settings.timeout, open).await.map_err(|_| silent())?;
        let mut stream = pin!(opened.map_err(|error| broken(error.to_string()))?);
        loop {
            tokio::select! {
                context = stream.next() => match context {
                    Some(Ok(context)) => {
                        self.last = Some(context);
                        self.take()?;
                    }
                    Some(Err(error)) => return Err(broken(error.to_string())),
                    None => return Err(broken("the stream ended".to_owned())),
                },
                () = changes.next() => if self.last.is_some() && let Err(failure) = self.take() {
                    self.failed(&failure);
                },
            }
        }
    }

    fn failed(&self, failure: &Failure) {
        let problem = failure.to_string();
        if self.holder.ledger.failed(problem.clone()) {
            tracing::warn!(problem, "the gateway has no new certificate: asking again");
        }
    }

    /// Puts together what the API said last and what the files say; both count, or neither.
    fn take(&mut self) -> Result<(), Failure> {
        let Some(context) = &self.last else { return Ok(()) };
        let Settings { name, .. } = &self.settings;
        let wanted = |id: &str| Identity::from_uri(id).is_ok_and(|id| id == *name);
        let svid = context.svids().iter().find(|svid| wanted(svid.spiffe_id().to_string().as_str()));
        let Some(svid) = svid else {
            let offered: Vec<String> = context.svids().iter().map(|svid| format!("'{}'", svid.spiffe_id())).collect();
            return Err(Failure::NotOffered { expected: name.clone(), offered: offered.join(", ") });
        };
        let bundle = context.bundle_set().get(svid.spiffe_id().trust_domain());
        let bundle = bundle.ok_or_else(|| Failure::NoBundle(name.clone()))?;
        let others = context.bundle_set().len().saturating_sub(1);
        if others > 0 {
            tracing::debug!(others, "bundles of federated trust domains are not taken");
        }
        let ders = bundle.authorities().iter().map(|authority| pem::section("CERTIFICATE", authority.as_bytes()));
        let mut roots = ders.collect::<String>().into_bytes();
        let beside = self.beside.load_full();
        if let Some(more) = &beside.bundle {
            roots.extend_from_slice(&more.contents);
        }
        let roots = File::new("the Workload API's bundle", roots);
        let believing = Credentials::awaiting(name.clone(), &roots, &beside.crls, &self.settings.credentials)?;
        let chain: String =
            svid.cert_chain().iter().map(|certificate| pem::section("CERTIFICATE", certificate.as_bytes())).collect();
        let key = pem::section("PRIVATE KEY", svid.private_key().as_bytes());
        let before = self.holder.believing.load_full();
        self.holder.believing.replace(believing);
        let taken = self.holder.take(File::new("the Workload API's SVID", chain), File::new("the SVID's key", key));
        if let Err(unfit) = taken {
            self.holder.believing.replace(Credentials::clone(&before));
            return Err(unfit.into());
        }
        Ok(())
    }
}
