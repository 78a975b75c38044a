//! Which cluster a client calls from, by the CA that vouches for it or by the trust domain of its name.
//!
//! **In** a verified peer. **Out** the cluster's name as the operator wrote it, so that what logs and metrics show has an
//! end. The CA goes first and of several the one nearest to the leaf: clusters that share a trust anchor, and with it often
//! the trust domain, still have issuers of their own.

use std::collections::HashMap;
use std::sync::Arc;

use crate::identity::Identity;
use crate::tls::Fingerprint;

/// What the operator knows of other clusters.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Clusters {
    /// Cluster names by trust domain.
    pub trust_domains: HashMap<Box<str>, Arc<str>>,
    /// Cluster names by the SHA-256 of a trust anchor or an issuer.
    pub authorities: HashMap<Fingerprint, Arc<str>>,
}

impl Clusters {
    /// The cluster of a client of this identity, verified by way of these CAs, from its issuer to the root.
    pub fn of(&self, identity: &Identity, authorities: &[Fingerprint]) -> Option<Arc<str>> {
        let by_authority = authorities.iter().find_map(|ca| self.authorities.get(ca));
        let by_domain = || self.trust_domains.get(identity.trust_domain()?);
        by_authority.or_else(by_domain).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_authority_goes_before_the_trust_domain() {
        let clusters = Clusters {
            trust_domains: [("west.example".into(), "by-domain".into())].into(),
            authorities: [([1; 32], "issuer".into()), ([2; 32], "root".into())].into(),
        };
        let of = |identity: &str, authorities: &[Fingerprint]| {
            clusters.of(&Identity::parse(identity).unwrap(), authorities).map(|cluster| cluster.to_string())
        };
        assert_eq!(of("spiffe://west.example/x", &[[1; 32], [2; 32]]).as_deref(), Some("issuer"));
        assert_eq!(of("spiffe://west.example/x", &[[3; 32], [2; 32]]).as_deref(), Some("root"));
        assert_eq!(of("spiffe://west.example/x", &[[3; 32]]).as_deref(), Some("by-domain"));
        assert_eq!(of("spiffe://north.example/x", &[]), None);
        assert_eq!(of("web.example", &[]), None);
    }
}
