//! Puts the signing of client assertions together: where its keys are, their renewal, and who shows them.
//!
//! **In** the configuration and the gateway's credentials. **Out** [`Assertions`], where they are on. **Refuses** to start
//! with keys that cannot sign; a file of keys that stops being readable later leaves the old ones in use.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use crate::config::Config;
use crate::gateway::assertion::Assertions;
use crate::live::Live;
use crate::telemetry::metrics::{Kind, Metrics, Reading};
use crate::tls::sign::Signer;
use crate::tls::{Credentials, File};

/// Where the keys are shown, on the admin and on the probe port.
pub(super) const PATH: &str = "/.well-known/jwks.json";

/// The media type of a JWK set (RFC 7517 §8.5).
pub(super) const MEDIA_TYPE: &str = "application/jwk-set+json";

/// What signs, if anything does.
pub(super) fn start(config: &Config, credentials: &Arc<Live<Credentials>>) -> anyhow::Result<Option<Arc<Assertions>>> {
    let Some(lifetime) = config.assertion_lifetime() else { return Ok(None) };
    let Some(path) = config.assertion_key_file() else {
        let assertions = Assertions::of_certificate(lifetime, Arc::clone(credentials));
        anyhow::ensure!(
            assertions.can_sign() || !credentials.load().has_certificate(),
            "identify.assertion: the key of the gateway's certificate is not on P-256; name another in identify.assertion.key_file"
        );
        return Ok(Some(Arc::new(assertions)));
    };
    let contents = std::fs::read(&path).with_context(|| unreadable(&path))?;
    let keys = keys(&path, &contents)?;
    let assertions = Arc::new(Assertions::of_keys(lifetime, keys));
    let interval = config.file.tls.reload_interval.0;
    drop(tokio::runtime::Handle::current().spawn(watch(path, contents, interval, Arc::clone(&assertions))));
    Ok(Some(assertions))
}

fn unreadable(path: &Path) -> String {
    format!("identify.assertion.key_file: {} cannot be read", path.display())
}

fn keys(path: &Path, contents: &[u8]) -> anyhow::Result<Vec<Signer>> {
    Signer::from_pem(&File::new(path.display().to_string(), contents)).context("identify.assertion.key_file")
}

/// Takes new keys when the file has others.
async fn watch(path: PathBuf, mut known: Vec<u8>, interval: Duration, assertions: Arc<Assertions>) {
    let mut complained = false;
    loop {
        tokio::time::sleep(interval.max(SHORTEST_INTERVAL)).await;
        let read = match tokio::fs::read(&path).await.with_context(|| unreadable(&path)) {
            Ok(contents) if contents == known => continue,
            Ok(contents) => keys(&path, &contents).map(|keys| (contents, keys)),
            Err(error) => Err(error),
        };
        match read {
            Ok((contents, keys)) => {
                tracing::info!(keys = keys.len(), "client assertions are signed with other keys");
                assertions.replace(keys);
                known = contents;
                complained = false;
            }
            Err(error) if !complained => {
                tracing::warn!(error = format!("{error:#}"), "keeping the assertion's keys");
                complained = true;
            }
            Err(_) => {}
        }
    }
}

/// A file is not read more often than this, whatever the configuration says.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);

/// Counts what is signed: far below the number of requests, or something asks for a new token each time.
pub(super) fn show(metrics: &Metrics, assertions: &Arc<Assertions>) {
    let assertions = Arc::clone(assertions);
    metrics.read(
        "isthmus_identify_assertions_signed",
        "Client assertions signed; each serves a connection and service for half of its life.",
        Kind::Counter,
        move || {
            #[expect(clippy::cast_precision_loss, reason = "a count is shown, not calculated with")]
            let value = assertions.signed() as f64;
            vec![Reading { labels: Vec::new(), value }]
        },
    );
}
