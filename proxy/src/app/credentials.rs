//! Where the gateway's credentials come from, and what keeps them fresh.
//!
//! **In** the configuration. **Out** the credentials to start with, and a [`Keeper`] for the rest of the process's life.
//! **Refuses** files that are no good: at the start there is nothing yet to go on serving with. A certificate that somebody
//! else is to give is no condition for the start; the gateway is not ready until it has one.

use crate::config::Config;
use crate::sources::files::{self, credentials::CredentialFiles};
use crate::tls::Credentials;

use super::App;

/// What keeps credentials fresh.
#[derive(Debug)]
pub struct Keeper(Kept);

#[derive(Debug)]
enum Kept {
    #[cfg(feature = "linkerd")]
    Certify(super::control::Certify),
    Files(CredentialFiles, Option<[u8; 32]>),
    #[cfg(feature = "linkerd")]
    Spiffe(super::control::Spiffe),
}

/// The credentials to start with.
pub fn prepare(config: &Config) -> Result<(Credentials, Keeper), files::Wrong> {
    #[cfg(feature = "linkerd")]
    if let Some((credentials, certify)) = super::control::Certify::prepare(config)? {
        return Ok((credentials, Keeper(Kept::Certify(certify))));
    }
    #[cfg(feature = "linkerd")]
    if let Some((credentials, spiffe)) = super::control::Spiffe::prepare(config)? {
        return Ok((credentials, Keeper(Kept::Spiffe(spiffe))));
    }
    let files = config.credential_files();
    let (credentials, read) = files::load(&files)?;
    Ok((credentials, Keeper(Kept::Files(files, Some(read.digest)))))
}

impl App {
    /// Keeps the credentials as fresh as where they come from.
    pub fn keep_credentials(&mut self, keeper: Keeper, config: &Config) -> anyhow::Result<()> {
        match keeper.0 {
            Kept::Files(files, digest) => self.watch_credentials(files, digest, config.files()),
            #[cfg(feature = "linkerd")]
            Kept::Certify(certify) => certify.start(self, config)?,
            #[cfg(feature = "linkerd")]
            Kept::Spiffe(spiffe) => spiffe.start(self, config)?,
        }
        Ok(())
    }
}
