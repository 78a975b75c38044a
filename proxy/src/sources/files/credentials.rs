//! The gateway's credentials out of files: chain, key, bundle, revocation lists.
//!
//! **In** the paths that the operator named. **Out** [`Credentials`], checked as a whole: the key belongs to the leaf, the
//! chain leads to the bundle and is in date, each root is a CA. **Refuses** with the file and the reason.

use std::path::PathBuf;

use super::{Piece, Recipe, Wrong};
use crate::tls::credentials::Settings;
use crate::tls::{Credentials, File, Pem, inspect};

/// The files, and how they are judged.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CredentialFiles {
    /// The leaf and its issuers.
    pub chain: PathBuf,
    /// The leaf's key.
    pub key: PathBuf,
    /// The trust anchors.
    pub bundle: PathBuf,
    /// Certificate revocation lists.
    pub crls: Vec<PathBuf>,
    /// What the operator says about them.
    pub settings: Settings,
}

impl CredentialFiles {
    /// The pieces as `tls` wants them.
    pub fn pem(&self, pieces: &[Piece]) -> Result<Pem, Wrong> {
        let mut files = pieces.iter().map(|piece| File::new(piece.path.display().to_string(), piece.bytes.as_slice()));
        let missing = || Wrong { file: self.chain.display().to_string(), reason: "was not read".to_owned() };
        Ok(Pem {
            chain: files.next().ok_or_else(missing)?,
            key: files.next().ok_or_else(missing)?,
            bundle: files.next().ok_or_else(missing)?,
            crls: files.collect(),
        })
    }
}

impl Recipe for CredentialFiles {
    type Value = Credentials;

    fn name(&self) -> &'static str {
        "credentials"
    }

    fn paths(&self) -> Vec<PathBuf> {
        [&self.chain, &self.key, &self.bundle].into_iter().chain(&self.crls).cloned().collect()
    }

    fn make(&self, pieces: &[Piece]) -> Result<Credentials, Wrong> {
        Credentials::from_pem(&self.pem(pieces)?, &self.settings)
            .map_err(|error| Wrong { file: error.file, reason: error.problem.to_string() })
    }

    fn describe(&self, credentials: &Credentials) -> String {
        format!(
            "{}, valid to {}; trusting {}; {} CRLs",
            credentials.identity(),
            inspect::rfc3339(credentials.expires()),
            super::roots(credentials),
            credentials.crls().len()
        )
    }

    fn warnings(&self, credentials: &Credentials) -> Vec<String> {
        credentials.warnings().to_vec()
    }
}
