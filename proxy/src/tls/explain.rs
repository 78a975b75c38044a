//! Why a chain is trusted, or at which link it breaks: for a person at a terminal.
//!
//! **In** a chain, a bundle, CRLs. **Out** an [`Explanation`]: the verdict of the very check that handshakes make, and
//! the way from the leaf upward, link by link, with what is right or wrong at each. **Refuses** files that cannot be
//! read. The walk explains and never decides.

use std::time::SystemTime;

use super::credentials::Settings;
use super::files::{self, CredentialsError, File};
use super::inspect::{self, Certificate, Signed};
use super::verify::{Reason, Side, Trust};
use super::{Chain, Der};
use crate::identity::Identity;

/// How far a walk goes: chains are short, and names may lead in a circle.
const MAX_LINKS: usize = 10;

/// The verdict and the way.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// What a handshake would say.
    pub verdict: Result<(), Reason>,
    /// From the leaf upward.
    pub links: Vec<Link>,
}

/// One certificate on the way.
#[derive(Clone, Debug)]
pub struct Link {
    /// What stands in it.
    pub certificate: Certificate,
    /// Whether it came from the bundle.
    pub trusted: bool,
    /// What is wrong here, where something is.
    pub problem: Option<String>,
}

/// Checks `chain` as a handshake would that has `bundle` and `crls`, for the side that would present it, at `now`. An
/// `expected` identity must be among the leaf's names.
pub fn explain(
    bundle: &File,
    chain: &File,
    crls: &[File],
    side: Side,
    expected: Option<&Identity>,
    now: SystemTime,
) -> Result<Explanation, CredentialsError> {
    let presented: Chain = files::certificates(chain)?.into();
    let (roots, _) = files::roots(bundle)?;
    let (lists, _) = files::crls(crls)?;
    let settings = Settings::default();
    let anchors: Vec<Der> = roots.iter().map(|root| root.der.clone()).collect();
    let revoking: Vec<Vec<u8>> = lists.iter().map(|list| list.der.clone()).collect();
    let trust = Trust::new(roots, lists, settings.refuse_expired_crls, settings.refuse_unknown_revocation);
    let found = trust.path(&presented, side, now).and_then(|way| {
        let names = inspect::identities(&presented[0]);
        match expected {
            Some(expected) if !names.contains(expected) => {
                Err(Reason::Identity { expected: expected.clone(), found: names.into() })
            }
            _ if names.is_empty() => Err(Reason::NoIdentity),
            _ => Ok(way),
        }
    });
    match found {
        Ok(way) => {
            let last = way.len().saturating_sub(1);
            let links = way.iter().enumerate().filter_map(|(place, der)| {
                Some(Link { certificate: inspect::certificate(der).ok()?, trusted: place == last, problem: None })
            });
            Ok(Explanation { verdict: Ok(()), links: links.collect() })
        }
        Err(reason) => {
            let links = Walk { presented: &presented, anchors: &anchors, crls: &revoking, now }.links(&reason);
            Ok(Explanation { verdict: Err(reason), links })
        }
    }
}

/// Follows names and keys upward until something is wrong.
struct Walk<'a> {
    presented: &'a [Der],
    anchors: &'a [Der],
    crls: &'a [Vec<u8>],
    now: SystemTime,
}

impl Walk<'_> {
    fn links(&self, reason: &Reason) -> Vec<Link> {
        let mut links = Vec::new();
        let mut here = &self.presented[0];
        while links.len() < MAX_LINKS {
            let Ok(certificate) = inspect::certificate(here) else { break };
            let trusted = self.anchors.contains(here);
            let next = if trusted { Ok(None) } else { self.above(here, &certificate).map(Some) };
            let (problem, next) = match (self.wrong_by_itself(here, &certificate, links.len()), next) {
                (Some(problem), _) | (None, Err(problem)) => (Some(problem), None),
                (None, Ok(next)) => (None, next),
            };
            links.push(Link { certificate, trusted, problem });
            match next {
                Some(above) => here = above,
                None => break,
            }
        }
        // Something is wrong; if no link showed it, the verdict has to say it, where the walk began.
        if links.iter().all(|link| link.problem.is_none())
            && let Some(leaf) = links.first_mut()
        {
            leaf.problem = Some(reason.to_string());
        }
        links
    }

    /// What is wrong with a certificate whoever signed it.
    fn wrong_by_itself(&self, der: &Der, certificate: &Certificate, place: usize) -> Option<String> {
        if self.anchors.contains(der) {
            return None; // a root's dates and usages are not looked at
        }
        if certificate.not_after < self.now {
            return Some(format!("expired at {}", inspect::rfc3339(certificate.not_after)));
        }
        if certificate.not_before > self.now {
            return Some(format!("not valid before {}", inspect::rfc3339(certificate.not_before)));
        }
        if place > 0 && !certificate.is_ca {
            return Some("signs a certificate, but is no CA (basicConstraints does not say CA)".into());
        }
        // Between this one and the leaf; the leaf itself does not count (RFC 5280 §4.2.1.9).
        let cas_below = u32::try_from(place.saturating_sub(1)).unwrap_or(u32::MAX);
        if let Some(max) = certificate.path_len
            && cas_below > max
        {
            return Some(format!("allows {max} CAs between itself and a leaf, and there are {cas_below}"));
        }
        self.revoked(der, certificate)
    }

    /// Since when a certificate is revoked, by a CRL that its issuer signed.
    fn revoked(&self, der: &Der, certificate: &Certificate) -> Option<String> {
        let issuer = self.above(der, certificate).ok()?;
        let list = self.crls.iter().find(|crl| inspect::crl_signed(crl, issuer) == Signed::ByKey)?;
        let serial = inspect::unhex(&certificate.serial)?;
        let (_, since) = inspect::revoked(list).ok()?.into_iter().find(|(revoked, _)| *revoked == serial)?;
        Some(format!("revoked at {} by the CRL of '{}'", inspect::rfc3339(since), certificate.issuer))
    }

    /// The CA that signed a certificate, from the bundle or the chain, or why there is none.
    fn above(&self, der: &Der, certificate: &Certificate) -> Result<&Der, String> {
        let mut namesakes = 0;
        for ca in self.anchors.iter().chain(self.presented) {
            match inspect::certificate_signed(der, ca) {
                Signed::ByKey if ca != der => return Ok(ca),
                Signed::ByNamesake => namesakes += 1,
                _ => {}
            }
        }
        let issuer = &certificate.issuer;
        let key = certificate.authority_key_id.as_deref().unwrap_or("unknown");
        if certificate.self_issued {
            return Err("is a root itself, and is not in the bundle".into());
        }
        if namesakes > 0 {
            return Err(format!(
                "its issuer '{issuer}' is at hand in name only: {namesakes} of that name, none with the key that signed \
                 this (key id {key})"
            ));
        }
        Err(format!("its issuer '{issuer}' (key id {key}) is neither in the chain nor in the bundle"))
    }
}
