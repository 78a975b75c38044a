//! Who somebody is: the name that a certificate carries.
//!
//! **In** the text of a subject alternative name. **Out** an [`Identity`], normalised once so that comparing is
//! comparing bytes. **Refuses** whatever is neither a DNS-like name nor an absolute URI.
//!
//! An identity is made in `tls/verify.rs` from a chain that webpki accepted, read by `authorise`, written into the
//! record. It is never parsed again on the way. (Linkerd wire document §1.5; SPIFFE-ID §2.)

use std::fmt;
use std::sync::Arc;

use crate::addr::Name;

/// A workload's identity as its certificate states it.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Identity {
    /// A DNS-like name, as Linkerd issues them: `web.ns.serviceaccount.identity.linkerd.cluster.local`.
    Dns(Name),
    /// An absolute URI, as SPIFFE issues them: `spiffe://west.example/ns/shop/sa/web`.
    Uri(Arc<str>),
}

impl Identity {
    /// Reads the text of a configured identity: a URI when it has a scheme, else a DNS-like name.
    pub fn parse(text: &str) -> Result<Self, InvalidIdentity> {
        if text.contains("://") { Self::from_uri(text) } else { Self::from_dns(text) }
    }

    /// Reads a `dNSName` entry. A trailing dot is refused, as the name in a certificate is always absolute.
    pub fn from_dns(text: &str) -> Result<Self, InvalidIdentity> {
        if text.ends_with('.') {
            return Err(InvalidIdentity);
        }
        let name: Name = text.parse().map_err(|_| InvalidIdentity)?;
        let last = name.as_str().rsplit('.').next().unwrap_or("");
        // A last label of digits would be an address in disguise.
        if last.bytes().all(|b| b.is_ascii_digit()) { Err(InvalidIdentity) } else { Ok(Self::Dns(name)) }
    }

    /// Reads a `uniformResourceIdentifier` entry. Scheme and authority are lower-cased (RFC 3986 §6.2.2.1); the path
    /// is kept as it is, and control characters, spaces, non-ASCII bytes, user info, query and fragment, and empty, `.`
    /// and `..` path segments (SPIFFE-ID §2.2) are refused: no workload identity needs them, and each is a way to make
    /// two names look alike.
    pub fn from_uri(text: &str) -> Result<Self, InvalidIdentity> {
        let (scheme, rest) = text.split_once("://").ok_or(InvalidIdentity)?;
        let authority_len = rest.find('/').unwrap_or(rest.len());
        let (authority, path) = rest.split_at(authority_len);
        let scheme_ok = scheme.bytes().next().is_some_and(|b| b.is_ascii_alphabetic())
            && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
        let text_ok = text.len() <= MAX_URI_BYTES
            && text.bytes().all(|b| b.is_ascii_graphic() && !b"\"<>\\^`{|}?#@".contains(&b));
        let path_ok = path.split('/').skip(1).all(|segment| !matches!(segment, "" | "." | ".."));
        if !scheme_ok || !text_ok || !path_ok || authority.is_empty() {
            return Err(InvalidIdentity);
        }
        let normal = format!("{}://{}{path}", scheme.to_ascii_lowercase(), authority.to_ascii_lowercase());
        Ok(Self::Uri(normal.into()))
    }

    /// Whose word the identity is: what follows the control plane's namespace in a Linkerd name, or the authority of a
    /// URI. Names of another shape have none.
    pub fn trust_domain(&self) -> Option<&str> {
        match self {
            Self::Uri(uri) => uri.split_once("://").map(|(_, rest)| rest.split('/').next().unwrap_or(rest)),
            Self::Dns(name) => {
                let (_, rest) = name.as_str().split_once(".serviceaccount.identity.")?;
                rest.split_once('.').map(|(_, domain)| domain)
            }
        }
    }

    /// The text that logs, metrics and headers show.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Dns(name) => name.as_str(),
            Self::Uri(uri) => uri,
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The longest URI that is taken for an identity, in bytes: the limit of the SPIFFE-ID standard (§2.3).
const MAX_URI_BYTES: usize = 2048;

/// The text names nobody: neither a DNS-like name nor an absolute URI.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("neither a DNS-like name nor an absolute URI")]
pub struct InvalidIdentity;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_identities_are_lower_cased_and_absolute() {
        let id = Identity::parse("Web.NS.serviceaccount.identity").expect("valid");
        assert_eq!(id.as_str(), "web.ns.serviceaccount.identity");
        for bad in ["", "web.", ".web", "a..b", "10.0.0.1", "web\0.ns", "wéb.ns", "*.ns", "a b"] {
            assert!(Identity::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn trust_domains_by_form() {
        for (text, domain) in [
            ("web.shop.serviceaccount.identity.linkerd.cluster.local", Some("cluster.local")),
            ("web.shop.serviceaccount.identity.linkerd", None),
            ("web.shop.example", None),
            ("spiffe://West.example/ns/shop/sa/web", Some("west.example")),
            ("spiffe://west.example", Some("west.example")),
        ] {
            assert_eq!(Identity::parse(text).expect("valid").trust_domain(), domain, "{text}");
        }
    }

    #[test]
    fn uri_identities_keep_the_case_of_the_path_only() {
        let id = Identity::parse("SPIFFE://West.Example/ns/Shop").expect("valid");
        assert_eq!(id.as_str(), "spiffe://west.example/ns/Shop");
        for bad in
            ["://x", "spiffe://", "spiffe:///ns", "1a://x", "spiffe://x/a b", "spiffe://x/\u{e9}", "spiffe://u@x/a"]
        {
            assert!(Identity::parse(bad).is_err(), "{bad:?}");
        }
        for bad in ["spiffe://x/", "spiffe://x/a//b", "spiffe://x/a/../b", "spiffe://x/./a", "spiffe://x/a/"] {
            assert!(Identity::parse(bad).is_err(), "{bad:?}");
        }
    }
}
