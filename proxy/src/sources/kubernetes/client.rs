//! How the API server is reached, and as whom.
//!
//! **In** the service account that every pod can be given, or a kubeconfig. **Out** clients. **Refuses** to start where
//! neither can be read. The token and the authority of a service account are read again while they serve, about once a minute:
//! Kubernetes replaces both.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use kube::client::ClientBuilder;
use kube::config::{Config, InClusterError, Kubeconfig, KubeconfigError};

use super::line::{Line, OnLine};

/// The API server is near: what takes longer than this does not answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the API server cannot be asked at all.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// The client does not take what the configuration says.
    #[error("the client of the Kubernetes API cannot be made")]
    Client(#[source] Box<kube::Error>),
    /// No service account, which is to say: not in a pod, or in one whose token is not mounted.
    #[error(
        "there is no service account to ask the API server with (in a pod, mount its token: automountServiceAccountToken; \
         elsewhere, name a kubeconfig in sources.kubernetes.kubeconfig)"
    )]
    InCluster(#[source] InClusterError),
    /// The kubeconfig cannot be read.
    #[error("{} (sources.kubernetes.kubeconfig) cannot be used", .0.display())]
    Kubeconfig(PathBuf, #[source] Box<KubeconfigError>),
}

/// Reads who we are and where the API server is.
pub(super) fn config(kubeconfig: Option<&Path>) -> Result<Config, Unusable> {
    let mut config = match kubeconfig {
        None => Config::incluster_env().map_err(Unusable::InCluster)?,
        Some(path) => {
            let read = Kubeconfig::read_from(path).and_then(Config::try_from);
            read.map_err(|error| Unusable::Kubeconfig(path.to_owned(), Box::new(error)))?
        }
    };
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    // What failed is tried again by us, where it is counted and seen.
    config.default_retry = false;
    Ok(config)
}

/// A client on a line of its own.
pub(super) fn client(config: &Config, line: &Arc<Line>) -> Result<Client, Unusable> {
    let builder = ClientBuilder::try_from(config.clone()).map_err(|error| Unusable::Client(Box::new(error)))?;
    Ok(builder.with_layer(&OnLine(Arc::clone(line))).build())
}
