//! Checks of the credentials: files, dates, clocks, names, and whether other clusters share an anchor with this one.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::Own;
use super::report::{Category, Check};
use crate::app::credentials::prepare;
use crate::config::Config;
use crate::config::file::IdentitySource;
use crate::identity::Identity;
use crate::sources::files::credentials::CredentialFiles;
use crate::sources::files::{Recipe, snapshot};
use crate::tls::inspect::{self, Certificate, rfc3339};
use crate::tls::pem::{self, Block};
use crate::tls::{Credentials, File};

const DAY: Duration = Duration::from_secs(86_400);

/// Anchors are replaced by people, in all clusters: a month is what that takes.
const ANCHOR_WARNING: Duration = Duration::from_secs(30 * 86_400);

/// A clock that is this much off makes certificates of a day look unborn or dead; less is the network's delay.
const SKEW: Duration = Duration::from_secs(5);

/// Checks them all; gives them where they can be used.
pub(super) fn check(
    config: &Config,
    gateway_identity: Option<&Identity>,
    peer_bundles: &[PathBuf],
) -> (Category, Option<Own>) {
    let mut category = Category::new("credentials");
    if config.file.identity.source != IdentitySource::Files {
        // The certificate is the running gateway's alone: it can be asked whether it is ready, and why not.
        category.add(match prepare(config) {
            Ok((credentials, _)) => Check::passed(format!(
                "the trust anchors can be read ({}); the certificate is the running gateway's alone",
                credentials.roots().len()
            )),
            Err(wrong) => {
                Check::failed("the trust anchors can be read", wrong, "check tls.bundle_file and tls.crl_files")
            }
        });
        return (category, None);
    }
    let recipe = config.credential_files();
    let own = readable(&recipe, &mut category).then(|| consistent(&recipe, &mut category)).flatten();
    let now = SystemTime::now();
    clock(&recipe, now, &mut category);
    if let Some(own) = &own {
        dates(own, now, &mut category);
        name(&own.credentials, gateway_identity, &mut category);
        for warning in own.credentials.warnings() {
            category.add(Check::warned(
                "nothing else is worth knowing",
                warning,
                "put it right with the next certificates",
            ));
        }
        for peer in peer_bundles {
            category.add(shared(&own.bundle.1, peer));
        }
    }
    (category, own)
}

fn readable(recipe: &CredentialFiles, category: &mut Category) -> bool {
    let paths = recipe.paths();
    let wrong: Vec<String> = paths
        .iter()
        .filter_map(|path| snapshot(std::slice::from_ref(path)).err())
        .map(|wrong| wrong.to_string())
        .collect();
    if wrong.is_empty() {
        category.add(Check::passed(format!("all {} files can be read", paths.len())));
        return true;
    }
    let hint = "check the paths below tls: and that the files are mounted and readable for this user";
    category.add(Check::failed("all files can be read", wrong.join("\n"), hint));
    false
}

fn consistent(recipe: &CredentialFiles, category: &mut Category) -> Option<Own> {
    let what = "key, certificate, bundle and revocation lists fit each other, and peers would accept them";
    let made = snapshot(&recipe.paths()).and_then(|read| Ok((recipe.make(&read.pieces)?, recipe.pem(&read.pieces)?)));
    match made {
        Ok((credentials, pem)) => {
            category.add(Check::passed(what));
            let bundle = (pem.bundle.name, pem.bundle.contents);
            Some(Own { credentials, chain: pem.chain.contents, key: pem.key.contents, bundle })
        }
        Err(wrong) => {
            let hint = "isthmus certs show lists what stands in a file; isthmus certs verify shows the link that fails";
            category.add(Check::failed(what, wrong, hint));
            None
        }
    }
}

/// Clocks: ours against the one that signed the certificate, and against the one that wrote the files.
fn clock(recipe: &CredentialFiles, now: SystemTime, category: &mut Category) {
    let what = "this host's clock agrees with the certificate's beginning and the files' times";
    let hint = "set the clock (NTP): certificates that live for a day do not forgive";
    let ahead = |time: SystemTime| time.duration_since(now).ok().filter(|ahead| *ahead > SKEW);
    let leaf = leaf(&recipe.chain);
    if let Some((leaf, ahead)) = leaf.as_ref().and_then(|leaf| Some((leaf, ahead(leaf.not_before)?))) {
        let found =
            format!("the certificate begins at {}, which is {} from now", rfc3339(leaf.not_before), span(ahead));
        return category.add(Check::failed(what, found, hint));
    }
    for path in recipe.paths() {
        let written = std::fs::metadata(&path).and_then(|about| about.modified()).ok();
        if let Some(ahead) = written.and_then(ahead) {
            let found = format!("{} was written {} from now", path.display(), span(ahead));
            return category.add(Check::warned(what, found, hint));
        }
    }
    // Nobody stores a certificate before it is made: the clock that wrote the file, which may be ours, runs behind.
    let written = std::fs::metadata(&recipe.chain).and_then(|about| about.modified()).ok();
    if let (Some(leaf), Some(written)) = (&leaf, written)
        && let Ok(early) = leaf.not_before.duration_since(written)
        && early > SKEW
    {
        let found = format!("{} was written {} before its certificate begins", recipe.chain.display(), span(early));
        return category.add(Check::warned(what, found, hint));
    }
    if leaf.is_some() {
        category.add(Check::passed(what));
    }
}

fn leaf(path: &Path) -> Option<Certificate> {
    let blocks = pem::blocks(&std::fs::read(path).ok()?).ok()?;
    blocks.iter().find_map(|block| match block {
        Block::Certificate(der) => inspect::certificate(der).ok(),
        _ => None,
    })
}

fn dates(own: &Own, now: SystemTime, category: &mut Category) {
    let credentials = &own.credentials;
    let (begins, ends) = (credentials.not_before(), credentials.expires());
    let (left, whole) = (ends.duration_since(now).unwrap_or_default(), ends.duration_since(begins).unwrap_or_default());
    let what = format!("the certificate is valid to {}: {} left", rfc3339(ends), span(left));
    // Renewal is due after two thirds of a certificate's life, as cert-manager has it; a fifth left is late.
    if left < whole / 5 {
        let found = format!("less than a fifth of its life ({}) is left", span(whole));
        let hint =
            "whatever renews it (cert-manager, a CronJob) is late: look there; the gateway takes a new one by itself";
        category.add(Check::warned(what, found, hint));
    } else {
        category.add(Check::passed(what));
    }
    for root in credentials.roots() {
        let left = root.not_after.duration_since(now).unwrap_or_default();
        let what =
            format!("the trust anchor '{}' is valid to {}: {} left", root.subject, rfc3339(root.not_after), span(left));
        if left < ANCHOR_WARNING {
            let hint = "begin its rotation: add the new anchor to every cluster's bundle first (isthmus certs bundle)";
            category.add(Check::warned(what, "a rotation over all clusters takes its time", hint));
        } else {
            category.add(Check::passed(what));
        }
    }
    for list in credentials.crls() {
        let Some(next) = list.crl.next_update else { continue };
        let left = next.duration_since(now).unwrap_or_default();
        let what = format!("the revocation list of '{}' is current: {} left", list.crl.issuer, span(left));
        if left.is_zero() {
            let hint = "issue a new one (isthmus certs crl); tls.expired_crl says what happens until then";
            category.add(Check::warned(what, format!("{}: was due at {}", list.file, rfc3339(next)), hint));
        } else {
            category.add(Check::passed(what));
        }
    }
}

fn name(credentials: &Credentials, expected: Option<&Identity>, category: &mut Category) {
    let own = credentials.identity();
    let Some(expected) = expected else {
        return category.add(Check::passed(format!(
            "the gateway is '{own}': what mirror.linkerd.io/gateway-identity must say (--gateway-identity compares)"
        )));
    };
    let what = format!("the gateway is who mirrors expect: '{expected}'");
    let chain = credentials.chain();
    let names = inspect::certificate(&chain[0]).map(|leaf| leaf.identities).unwrap_or_default();
    if names.contains(expected) {
        return category.add(Check::passed(what));
    }
    let names: Vec<_> = names.iter().map(|name| format!("'{name}'")).collect();
    category.add(Check::failed(
        what,
        format!("the certificate names {}", names.join(", ")),
        "put the certificate's name into the annotation mirror.linkerd.io/gateway-identity, or have another one issued",
    ));
}

/// Whether another cluster's bundle shares an anchor with ours: the same name with the same key.
fn shared(ours: &[u8], peer: &Path) -> Check {
    let what = format!("{} shares a trust anchor with the gateway's bundle", peer.display());
    let theirs = match snapshot(&[peer.to_owned()]) {
        Ok(read) => File::new(
            peer.display().to_string(),
            read.pieces.into_iter().next().map(|piece| piece.bytes).unwrap_or_default(),
        ),
        Err(wrong) => return Check::failed(what, wrong, "check the path after --peer-bundle"),
    };
    let (ours, theirs) = (anchors(ours), anchors(&theirs.contents));
    if theirs.is_empty() {
        return Check::failed(
            what,
            "holds no certificate",
            "get it from the other cluster: isthmus certs show reads its ConfigMap",
        );
    }
    let same = |a: &Certificate, b: &Certificate| a.subject == b.subject && a.key_fingerprint == b.key_fingerprint;
    let common: Vec<_> = theirs.iter().filter(|a| ours.iter().any(|b| same(a, b))).collect();
    if let Some(anchor) = common.first() {
        return Check::passed(format!("{what}: '{}'", anchor.subject));
    }
    let namesake = theirs.iter().find(|a| ours.iter().any(|b| a.subject == b.subject));
    let found = match namesake {
        Some(anchor) => format!("both have an anchor called '{}', but the keys differ", anchor.subject),
        None => {
            let names = |anchors: &[Certificate]| {
                anchors.iter().map(|anchor| format!("'{}'", anchor.subject)).collect::<Vec<_>>().join(", ")
            };
            format!("ours: {}; theirs: {}", names(&ours), names(&theirs))
        }
    };
    let hint = "merge the bundles (isthmus certs bundle OURS THEIRS) and give the result to both clusters";
    Check::failed(what, found, hint)
}

fn anchors(pem: &[u8]) -> Vec<Certificate> {
    let blocks = pem::blocks(pem).unwrap_or_default();
    let certificates = blocks.iter().filter_map(|block| match block {
        Block::Certificate(der) => inspect::certificate(der).ok(),
        _ => None,
    });
    certificates.filter(|certificate| certificate.is_ca).collect()
}

/// A length of time in its two largest units.
fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        _ if time >= 3 * DAY => format!("{} days", seconds / DAY.as_secs()),
        _ if seconds >= 3600 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ if seconds >= 60 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{seconds} s"),
    }
}
