//! A certificate that somebody else gives the gateway, and what is known of how that goes.
//!
//! **In** chains and keys from a source of identity ([`certify`], [`spiffe`](super::spiffe)), and the roots of the moment.
//! **Out** the gateway's credentials, replaced whole. **Refuses** a chain that is not for the key, not for the name, or that
//! the roots do not vouch for; what serves goes on serving.

pub mod certify;

use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;

use crate::identity::Identity;
use crate::live::Live;
use crate::tls::{Credentials, CredentialsError, File, inspect};

/// How it goes with the certificate.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Progress {
    /// How often a certificate was taken.
    pub taken: u64,
    /// How often there was none to be had, or none that could be taken.
    pub failed: u64,
    /// When one was last taken.
    pub taken_at: Option<SystemTime>,
    /// Why there was none at the last try.
    pub problem: Option<String>,
}

/// A [`Progress`] that one writes and others read. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Ledger(Arc<Mutex<Progress>>);

impl Ledger {
    /// How it goes now.
    pub fn read(&self) -> Progress {
        self.0.lock().clone()
    }

    fn taken(&self) {
        let mut progress = self.0.lock();
        progress.taken += 1;
        progress.taken_at = Some(SystemTime::now());
        progress.problem = None;
    }

    /// Notes a failure; true where it is another one than before, so that a log is not filled with the same line.
    pub(super) fn failed(&self, problem: String) -> bool {
        let mut progress = self.0.lock();
        progress.failed += 1;
        let news = progress.problem.as_ref() != Some(&problem);
        progress.problem = Some(problem);
        news
    }
}

/// Why a certificate is not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unfit {
    #[error("it is for '{found}', not for '{expected}'")]
    OtherName { expected: Identity, found: Identity },
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
}

/// Puts certificates and roots together.
#[derive(Clone, Debug)]
pub(super) struct Holder {
    /// Who the gateway is to be; anybody where that is for the source to say.
    pub(super) name: Option<Identity>,
    /// The newest roots and CRLs, without a certificate.
    pub(super) believing: Arc<Live<Credentials>>,
    /// What the gateway serves with.
    pub(super) live: Arc<Live<Credentials>>,
    pub(super) ledger: Ledger,
    /// The newest certificate that was taken, and its key.
    own: Option<(File, File)>,
}

impl Holder {
    pub(super) fn new(
        name: Option<Identity>,
        believing: Arc<Live<Credentials>>,
        live: Arc<Live<Credentials>>,
        ledger: Ledger,
    ) -> Self {
        Self { name, believing, live, ledger, own: None }
    }

    /// Takes a certificate, judged by the newest roots, and gives its end.
    pub(super) fn take(&mut self, chain: File, key: File) -> Result<SystemTime, Unfit> {
        let credentials = self.fit(&chain, &key)?;
        let expires = credentials.expires();
        for warning in credentials.warnings() {
            tracing::warn!(warning, "the gateway's certificate");
        }
        tracing::info!(identity = %credentials.identity(), until = inspect::rfc3339(expires), "the gateway has a certificate");
        self.live.replace(credentials);
        self.own = Some((chain, key));
        self.ledger.taken();
        Ok(expires)
    }

    fn fit(&self, chain: &File, key: &File) -> Result<Credentials, Unfit> {
        let credentials = self.believing.load().with_certificate(chain, key)?;
        match &self.name {
            Some(expected) if expected != credentials.identity() => {
                Err(Unfit::OtherName { expected: expected.clone(), found: credentials.identity().clone() })
            }
            _ => Ok(credentials),
        }
    }

    /// The roots have changed: they count from now on, unless they do not vouch for the gateway itself. Then the old ones
    /// stay until there is a certificate that the new ones vouch for, and false is the answer: ask for one.
    pub(super) fn rebase(&self) -> bool {
        let Some((chain, key)) = &self.own else {
            if self.live.load().has_certificate() {
                return false;
            }
            self.live.replace(Credentials::clone(&self.believing.load()));
            return true;
        };
        match self.fit(chain, key) {
            Ok(credentials) => {
                self.live.replace(credentials);
                true
            }
            Err(error) => {
                tracing::warn!(%error, "the new roots do not vouch for the gateway's own certificate: asking for another");
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::tls::credentials::Settings;
    use crate::tls::mint::{self, Usage, Validity};

    #[test]
    fn a_certificate_is_taken_for_the_name_alone_that_the_gateway_is_to_have() {
        let validity = Validity::from_now(SystemTime::now(), Duration::from_secs(60));
        let anchor = mint::anchor("root", validity).expect("an anchor");
        let identity = |text: &str| Identity::parse(text).expect("an identity");
        let (ours, other) = (identity("gw.example"), identity("other.example"));
        let bundle = File::new("bundle", anchor.cert_pem());
        let awaiting = Credentials::awaiting(ours.clone(), &bundle, &[], &Settings::default()).expect("roots");
        let (believing, live) = (Arc::new(Live::new(awaiting.clone())), Arc::new(Live::new(awaiting)));
        let mut holder = Holder::new(Some(ours.clone()), believing, Arc::clone(&live), Ledger::default());
        let mut take = |names: &[Identity]| {
            let leaf = mint::leaf(&anchor, names, validity, Usage::Both).expect("a leaf");
            holder.take(File::new("chain", leaf.cert_pem()), File::new("key", leaf.key_pem.as_str()))
        };
        for names in [vec![other.clone()], vec![other.clone(), ours.clone()]] {
            let error = take(&names).expect_err("not ours").to_string();
            assert_eq!(error, "it is for 'other.example', not for 'gw.example'");
            assert!(!live.load().has_certificate());
        }
        assert!(take(&[ours]).is_ok() && live.load().has_certificate());
    }
}
