//! A Linkerd control plane put to work, where the configuration names one and the binary can speak to it.
//!
//! **In** the configuration and the gateway's own credentials, which are shown to the control plane. **Out** a source of
//! services. **Refuses** what cannot be reached by construction: a name without a resolver.

use std::sync::Arc;

use crate::config::Config;
use crate::live::Live;
use crate::route::Claim;
use crate::sources::Source;
use crate::tls::Credentials;

/// The source of services, where it is on. Nothing is connected before somebody asks for a service.
#[cfg(feature = "linkerd")]
pub(super) fn start(
    config: &Config,
    credentials: &Arc<Live<Credentials>>,
    claim: Claim,
) -> anyhow::Result<Option<Arc<dyn Source>>> {
    use anyhow::Context as _;
    use tokio::runtime::Handle;

    use crate::sources::dns::Names;
    use crate::sources::linkerd::control::Control;
    use crate::sources::linkerd::destination::Destinations;

    let Some(plane) = config.linkerd() else { return Ok(None) };
    // Addresses need no resolver; a name without one is refused below, by its key.
    let names = Names::new(&config.dns().unwrap_or_default()).ok().map(Arc::new);
    let control = |settings| Control::new(settings, Arc::clone(credentials), names.clone());
    let destination = control(plane.destination).context("the destination service (sources.linkerd.destination)")?;
    let policy = plane.policy.map(control).transpose().context("the policy service (sources.linkerd.policy)")?;
    let source = Destinations::new(claim, plane.settings, destination, policy, Handle::current());
    Ok(Some(Arc::new(source)))
}

/// Nothing: the binary was built without it, and the configuration was checked not to ask for it.
#[cfg(not(feature = "linkerd"))]
pub(super) fn start(_: &Config, _: &Arc<Live<Credentials>>, _: Claim) -> anyhow::Result<Option<Arc<dyn Source>>> {
    Ok(None)
}
