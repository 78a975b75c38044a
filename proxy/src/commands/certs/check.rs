//! `isthmus certs verify`: whether a handshake would take a certificate, and where it breaks if not.
//!
//! Asks the very check that the gateway's handshakes make. Says the chain that was found, or the exact link that fails.
//! Exit code 1 where the certificate would be refused.

use std::io::Write;
use std::path::PathBuf;
use std::time::SystemTime;

use clap::ValueEnum;
use serde_json::{Value, json};

use super::read::{self, Role};
use super::{Output, show};
use crate::identity::Identity;
use crate::tls::explain::{Explanation, explain};
use crate::tls::inspect;
use crate::tls::verify::Side;

/// Flags of `verify`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The trust anchors: PEM, a Kubernetes object in YAML or JSON, or - for standard input.
    #[arg(long, value_name = "FILE")]
    bundle: PathBuf,
    /// The certificate, followed by its issuers, as a peer would present it.
    #[arg(long, value_name = "FILE")]
    cert: PathBuf,
    /// Certificate revocation lists.
    #[arg(long, value_name = "FILE")]
    crl: Vec<PathBuf>,
    /// Which side presents it; both if not given.
    #[arg(long = "for", value_enum)]
    side: Option<For>,
    /// Whom it must name.
    #[arg(long, value_parser = |text: &str| Identity::parse(text))]
    identity: Option<Identity>,
}

/// Which side presents a certificate.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(super) enum For {
    /// The one that connects.
    Client,
    /// The one that accepts.
    Server,
}

/// The exit code for a certificate that would be refused.
const REFUSED: u8 = 1;

pub(super) fn run(args: &Args, output: Output, out: &mut impl Write) -> anyhow::Result<u8> {
    let now = SystemTime::now();
    let bundle = read::file(&args.bundle, Role::Roots)?;
    let chain = read::file(&args.cert, Role::Chain)?;
    let mut crls = Vec::new();
    for path in &args.crl {
        crls.push(read::file(path, Role::Unknown)?);
    }
    let sides = match args.side {
        Some(For::Client) => &[("client", Side::Client)][..],
        Some(For::Server) => &[("server", Side::Server)],
        None => &[("client", Side::Client), ("server", Side::Server)],
    };
    let mut explanations = Vec::new();
    for (word, side) in sides {
        explanations.push((*word, explain(&bundle, &chain, &crls, *side, args.identity.as_ref(), now)?));
    }
    match output {
        Output::Json => {
            let sides: Vec<Value> = explanations.iter().map(|(word, explanation)| to_json(word, explanation)).collect();
            writeln!(out, "{:#}", Value::from(sides))?;
        }
        Output::Text => write_text(&explanations, out)?,
    }
    Ok(if explanations.iter().all(|(_, explanation)| explanation.verdict.is_ok()) { 0 } else { REFUSED })
}

fn to_json(word: &str, explanation: &Explanation) -> Value {
    let links: Vec<Value> = explanation
        .links
        .iter()
        .map(|link| {
            json!({
                "subject": link.certificate.subject,
                "names": link.certificate.names,
                "issuer": link.certificate.issuer,
                "notAfter": inspect::rfc3339(link.certificate.not_after),
                "sha256": link.certificate.fingerprint,
                "trusted": link.trusted,
                "problem": link.problem,
            })
        })
        .collect();
    let (code, reason) = match &explanation.verdict {
        Ok(()) => (None, None),
        Err(reason) => (Some(reason.code()), Some(reason.to_string())),
    };
    json!({ "for": word, "accepted": code.is_none(), "code": code, "reason": reason, "chain": links })
}

fn write_text(explanations: &[(&str, Explanation)], out: &mut impl Write) -> anyhow::Result<()> {
    for (word, explanation) in explanations {
        match &explanation.verdict {
            Ok(()) => writeln!(out, "as a {word}: accepted")?,
            Err(reason) => writeln!(out, "as a {word}: refused, {}: {reason}", reason.code())?,
        }
        // The way of the second side is worth a look only where it differs.
        let same = |other: &Explanation| {
            let problems = |explanation: &Explanation| -> Vec<Option<String>> {
                explanation.links.iter().map(|link| link.problem.clone()).collect()
            };
            !std::ptr::eq(other, explanation) && problems(other) == problems(explanation)
        };
        if explanations.first().is_some_and(|(_, first)| same(first)) {
            continue;
        }
        for (depth, link) in explanation.links.iter().enumerate() {
            let certificate = &link.certificate;
            let mark = if link.problem.is_some() { "broken here" } else { "ok" };
            let root = if link.trusted { ", in the bundle" } else { "" };
            writeln!(
                out,
                "{:indent$}{mark}: {}, valid to {}{root}",
                "",
                show::subject(certificate),
                show::minute(certificate.not_after),
                indent = 2 + 2 * depth
            )?;
            if let Some(problem) = &link.problem {
                writeln!(out, "{:indent$}{problem}", "", indent = 4 + 2 * depth)?;
            }
        }
    }
    Ok(())
}
