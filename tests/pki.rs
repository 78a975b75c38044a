//! The certificates of two clusters that share an anchor, and of strangers.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use isthmus::identity::Identity;
use isthmus::tls::mint::{self, Authority, Usage, Validity};

/// The gateway's identity.
pub const GATEWAY: &str = "gw.isthmus.serviceaccount.identity.linkerd.cluster.local";

/// A client's identity, of the other cluster.
pub const SHOP: &str = "shop.west.serviceaccount.identity.linkerd.cluster.local";

const DAY: Duration = Duration::from_secs(86_400);

/// A chain and its key in PEM.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The leaf, then what stands between it and the anchor.
    pub chain: String,
    /// PKCS#8.
    pub key: String,
}

/// All authorities.
#[derive(Debug)]
pub struct Pki {
    /// The anchor that both clusters share.
    pub anchor: Authority,
    /// An anchor that is on its way in.
    pub next: Authority,
    /// An anchor that nobody here trusts.
    pub foreign: Authority,
    /// Signs the gateway's leaf.
    pub east: Authority,
    /// Signs the clients' leaves.
    pub west: Authority,
    /// Signs clients' leaves below the next anchor.
    pub west_next: Authority,
    /// The gateway's own.
    pub gateway: Pair,
    /// The usual client's.
    pub shop: Pair,
}

impl Pki {
    /// The one that all cases share: nothing in it changes.
    pub fn get() -> &'static Self {
        static PKI: OnceLock<Pki> = OnceLock::new();
        PKI.get_or_init(Self::new)
    }

    fn new() -> Self {
        isthmus::tls::install();
        let years = Validity::from_now(SystemTime::now(), DAY * 3650);
        let anchor = mint::anchor("root.linkerd.cluster.local", years).unwrap();
        let next = mint::anchor("root2.linkerd.cluster.local", years).unwrap();
        let foreign = mint::anchor("root.elsewhere.example", years).unwrap();
        let east = mint::issuer(&anchor, "identity.east.cluster.local", years, 0).unwrap();
        let west = mint::issuer(&anchor, "identity.west.cluster.local", years, 0).unwrap();
        let west_next = mint::issuer(&next, "identity.west.cluster.local", years, 0).unwrap();
        let gateway = pair(&east, &[GATEWAY]);
        let shop = pair(&west, &[SHOP]);
        Self { anchor, next, foreign, east, west, west_next, gateway, shop }
    }
}

/// A leaf that is valid today, with its issuer where that is no anchor.
pub fn pair(issuer: &Authority, names: &[&str]) -> Pair {
    pair_of(issuer, names, Validity::from_now(SystemTime::now(), DAY))
}

/// A leaf that was valid yesterday.
pub fn expired(issuer: &Authority, names: &[&str]) -> Pair {
    let now = SystemTime::now();
    pair_of(issuer, names, Validity { not_before: now - DAY * 2, not_after: now - DAY })
}

/// A leaf with a validity of its own.
pub fn pair_of(issuer: &Authority, names: &[&str], validity: Validity) -> Pair {
    let names: Vec<_> = names.iter().map(|name| Identity::parse(name).unwrap()).collect();
    let leaf = mint::leaf(issuer, &names, validity, Usage::Both).unwrap();
    let mut chain = leaf.cert_pem();
    if !issuer.about().self_issued {
        chain.push_str(&issuer.cert_pem());
    }
    Pair { chain, key: leaf.key_pem }
}
