//! Whom the gateway believes, out of files, where its own certificate comes from elsewhere: bundle and revocation lists.
//!
//! **In** the paths that the operator named. **Out** [`Credentials`] that have no certificate yet. **Refuses** with the file
//! and the reason.

use std::path::PathBuf;

use super::{Piece, Recipe, Wrong};
use crate::identity::Identity;
use crate::tls::credentials::Settings;
use crate::tls::{Credentials, File};

/// The files, and how they are judged.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AnchorFiles {
    /// Who the gateway will be.
    pub identity: Identity,
    /// The trust anchors.
    pub bundle: PathBuf,
    /// Certificate revocation lists.
    pub crls: Vec<PathBuf>,
    /// What the operator says about them.
    pub settings: Settings,
}

impl Recipe for AnchorFiles {
    type Value = Credentials;

    fn name(&self) -> &'static str {
        "trust anchors"
    }

    fn paths(&self) -> Vec<PathBuf> {
        std::iter::once(&self.bundle).chain(&self.crls).cloned().collect()
    }

    fn make(&self, pieces: &[Piece]) -> Result<Credentials, Wrong> {
        let mut files = pieces.iter().map(|piece| File::new(piece.path.display().to_string(), piece.bytes.as_slice()));
        let missing = || Wrong { file: self.bundle.display().to_string(), reason: "was not read".to_owned() };
        let bundle = files.next().ok_or_else(missing)?;
        let crls: Vec<File> = files.collect();
        Credentials::awaiting(self.identity.clone(), &bundle, &crls, &self.settings)
            .map_err(|error| Wrong { file: error.file, reason: error.problem.to_string() })
    }

    fn describe(&self, credentials: &Credentials) -> String {
        format!("trusting {}; {} CRLs", super::roots(credentials), credentials.crls().len())
    }
}
