//! The demo's certificates: one trust anchor that both clusters share, an issuer for each, leaves for the gateway and its
//! callers; and what a gateway must refuse: a stranger's leaf under another anchor, and one that has expired.

use std::time::{Duration, SystemTime};

use anyhow::Context;

use crate::identity::Identity;
use crate::tls::mint::{self, Authority, Leaf, Usage, Validity};

const DAY: Duration = Duration::from_secs(86_400);

/// A chain and its key, PEM.
#[derive(Clone, Debug)]
pub struct Pair {
    /// Leaf first, then the issuer.
    pub chain: String,
    /// PKCS#8.
    pub key: String,
}

/// Everybody's certificates.
#[derive(Debug)]
pub struct Pki {
    /// The shared trust anchor, PEM.
    pub bundle: String,
    /// The gateway's own, of cluster east.
    pub gateway: Pair,
    /// The gateway's identity.
    pub gateway_identity: Identity,
    /// A client of cluster west.
    pub client: Pair,
    /// That client's identity.
    pub client_identity: Identity,
    /// The client's leaf, yesterday's.
    pub expired: Pair,
    /// A client of the same name under an anchor that nobody shares.
    pub stranger: Pair,
}

const GATEWAY: &str = "isthmus.isthmus-system.serviceaccount.identity.linkerd.cluster.local";
const CLIENT: &str = "shop.west.serviceaccount.identity.linkerd.cluster.local";

impl Pki {
    /// Makes all of it in memory.
    pub fn new() -> anyhow::Result<Self> {
        let now = SystemTime::now();
        let years = Validity::from_now(now, DAY * 3650);
        let anchor = mint::anchor("root.linkerd.cluster.local", years).context("the trust anchor")?;
        let west = mint::issuer(&anchor, "identity.west.cluster.local", years, 0).context("west's issuer")?;
        let east = mint::issuer(&anchor, "identity.east.cluster.local", years, 0).context("east's issuer")?;
        let foreign = mint::anchor("root.elsewhere.example", years).context("a stranger's anchor")?;
        let gateway_identity = Identity::parse(GATEWAY)?;
        let client_identity = Identity::parse(CLIENT)?;
        let today = Validity::from_now(now, DAY);
        let past = Validity { not_before: now - DAY * 2, not_after: now - DAY };
        Ok(Self {
            bundle: anchor.cert_pem(),
            gateway: pair(&east, &gateway_identity, today, true)?,
            client: pair(&west, &client_identity, today, true)?,
            expired: pair(&west, &client_identity, past, true)?,
            stranger: pair(&foreign, &client_identity, today, false)?,
            gateway_identity,
            client_identity,
        })
    }
}

fn pair(issuer: &Authority, identity: &Identity, validity: Validity, with_issuer: bool) -> anyhow::Result<Pair> {
    let leaf: Leaf = mint::leaf(issuer, std::slice::from_ref(identity), validity, Usage::Both).context("a leaf")?;
    let mut chain = leaf.cert_pem();
    if with_issuer {
        chain.push_str(&issuer.cert_pem());
    }
    Ok(Pair { chain, key: leaf.key_pem })
}
