//! Which service is meant: from an admitted target to a [`Service`] whose endpoints are known, or will be shortly.
//!
//! **In** an [`Admitted`](crate::authorise::Admitted) target. **Out** an `Arc<Service>` from the [`Directory`], and from it the current
//! [`Endpoints`](crate::endpoint::Endpoints). **Refuses** targets outside the allowed suffixes, requests that came
//! through this gateway before, services nobody knows, and waiting too long for whoever should know.
//!
//! The directory is a copy-on-write map: workers read a snapshot without a lock, sources replace it. A target that no
//! source has published is entered as pending and handed to the sources as a [`Demand`]; such entries are bounded in
//! number and forgotten when nobody has asked for them for a while.
//!
//! A source may know more of a service than its endpoints: a [`Profile`] says who takes its traffic, and how.

mod budget;
mod directory;
mod profile;
mod service;

use std::time::Duration;

use crate::addr::{InvalidTarget, Suffix, Target};
use crate::fault::{Fault, Refusal};
use crate::identity::Identity;

pub use self::budget::{Budget, Terms};
pub use self::directory::{Catalogue, Demand, Demands, Directory, Published};
pub use self::profile::{Branch, Condition, Connections, Profile, ResponseCondition, Rule, Taker};
pub use self::service::{Claim, Service, State};

/// What the operator says about routing.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Names outside all of these are refused. Empty refuses every name.
    pub suffixes: Vec<Suffix>,
    /// The port of an authority that names none.
    pub default_port: u16,
    /// How long a request may wait for the first answer about a service nobody has asked for yet. The answer comes
    /// from a DNS server or a control plane in the same cluster, so seconds mean that it is down.
    pub discovery_timeout: Duration,
    /// How many services may be known by demand alone. Bounds what callers can make the gateway remember and watch.
    pub max_demanded: usize,
    /// A demanded service that nobody has used for this long is forgotten.
    pub idle_timeout: Duration,
    /// Whether services that are found by demand count as exported; known before the first answer about one is.
    pub demanded_exported: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            suffixes: Vec::new(),
            default_port: 80,
            discovery_timeout: Duration::from_secs(3),
            max_demanded: 4096,
            idle_timeout: Duration::from_secs(300),
            demanded_exported: false,
        }
    }
}

impl Settings {
    /// Whether the target's name lies below one of the allowed suffixes.
    pub fn allowed(&self, target: &Target) -> Result<(), Error> {
        if self.suffixes.iter().any(|suffix| suffix.holds(&target.name)) { Ok(()) } else { Err(Error::Suffix) }
    }

    /// Reads the target out of a request's authority.
    pub fn target(&self, authority: Option<&str>) -> Result<Target, Error> {
        let authority = authority.filter(|text| !text.is_empty()).ok_or(Error::NoAuthority)?;
        let target = Target::parse(authority, self.default_port).map_err(|error| match error {
            InvalidTarget::Ipv6 => Error::Ipv6Literal,
            error => Error::BadAuthority(error),
        })?;
        // An IPv4 address parses as a name, but names no service either.
        if target.name.looks_like_ipv4() { Err(Error::Ipv4Literal) } else { Ok(target) }
    }
}

/// Refuses what has been here before: the client is this gateway itself, or `Forwarded` says that it came by us.
pub fn loops(own: &Identity, client: Option<&Identity>, forwarded_by_us: bool) -> Result<(), Error> {
    if forwarded_by_us || client == Some(own) { Err(Error::Loop) } else { Ok(()) }
}

/// Why a target leads to no service.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    /// The authority is neither name nor name and port.
    #[error("the authority names no service")]
    BadAuthority(#[source] InvalidTarget),
    /// No room for another service that is known by demand alone.
    #[error("too many services are being looked up")]
    Capacity,
    /// The sources did not answer in time.
    #[error("no answer in time about where the service is")]
    DiscoveryTimeout,
    /// The service is another name, which leads out of the cluster.
    #[error("the service is an ExternalName: only services with endpoints in this cluster are served")]
    ExternalName,
    /// An IPv4 address in the place of a name.
    #[error("an IPv4 address names no service")]
    Ipv4Literal,
    /// An IPv6 address in the place of a name.
    #[error("an IPv6 literal names no service")]
    Ipv6Literal,
    /// Whoever should know where the service is answered with an error.
    #[error("the lookup of the service failed")]
    LookupFailed,
    /// The request has passed this gateway already.
    #[error("the request came through this gateway before")]
    Loop,
    /// The request has no authority.
    #[error("no authority says which service is meant")]
    NoAuthority,
    /// The service is known, the port is none of its.
    #[error("the service has no such TCP port")]
    NoSuchPort,
    /// The name is outside the allowed suffixes.
    #[error("the name lies outside the allowed suffixes")]
    Suffix,
    /// No source knows the service.
    #[error("no such service")]
    UnknownService,
}

impl Refusal for Error {
    fn fault(&self) -> Fault {
        match self {
            Self::BadAuthority(_) | Self::Ipv4Literal | Self::Ipv6Literal | Self::Loop | Self::NoAuthority => {
                Fault::Client
            }
            Self::Capacity => Fault::Ours,
            Self::Suffix => Fault::Policy,
            Self::DiscoveryTimeout
            | Self::ExternalName
            | Self::LookupFailed
            | Self::NoSuchPort
            | Self::UnknownService => Fault::Upstream,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::BadAuthority(_) => "route.bad_authority",
            Self::Capacity => "route.capacity",
            Self::DiscoveryTimeout => "route.discovery_timeout",
            Self::ExternalName => "route.external_name",
            Self::Ipv4Literal => "route.ipv4_literal",
            Self::Ipv6Literal => "route.ipv6_literal",
            Self::LookupFailed => "route.lookup_failed",
            Self::Loop => "route.loop",
            Self::NoAuthority => "route.no_authority",
            Self::NoSuchPort => "route.no_such_port",
            Self::Suffix => "route.suffix",
            Self::UnknownService => "route.unknown_service",
        }
    }

    fn retry_is_safe(&self) -> bool {
        // Nothing was sent in any of these, but only these can end differently a moment later.
        matches!(self, Self::Capacity | Self::DiscoveryTimeout | Self::LookupFailed)
    }
}

#[cfg(test)]
mod tests;
