//! `isthmus certs bundle`: merges trust bundles.
//!
//! Each root once by name and key, of two editions of one root the one that lasts longer. Every root gets comments that
//! say what it is; comments that stood before it are kept. A leaf among the roots is refused: it would be of no use as
//! an anchor, and usually means that the wrong file was taken.

use std::fmt::Write as _;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, bail};
use serde_json::json;

use super::Output;
use super::make::{self, Secrecy};
use super::read::{self, Role};
use super::show::{Item, What};
use crate::tls::Der;
use crate::tls::inspect::{self, Certificate};
use crate::tls::pem::{self, Block};

/// Flags of `bundle`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// PEM files, Kubernetes objects in YAML or JSON (linkerd-config, linkerd-identity-trust-roots), or - for standard
    /// input.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Where the bundle goes, instead of standard output.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Replace the file if it exists.
    #[arg(long)]
    force: bool,
}

/// What our own comments begin with; they are written anew each time.
const OUR_COMMENTS: [&str; 4] = ["# root:", "# valid:", "# sha256:", "# from:"];

/// A root, and what is said about it.
struct Root {
    der: Der,
    about: Certificate,
    comments: Vec<String>,
    origin: String,
}

pub(super) fn run(args: &Args, output: Output, out: &mut impl Write) -> anyhow::Result<u8> {
    let mut roots: Vec<Root> = Vec::new();
    let mut dropped = 0usize;
    for path in &args.files {
        for root in read_roots(path)? {
            let same = |other: &&mut Root| {
                (&other.about.subject, &other.about.key_fingerprint)
                    == (&root.about.subject, &root.about.key_fingerprint)
            };
            match roots.iter_mut().find(same) {
                None => roots.push(root),
                Some(known) => {
                    dropped += 1;
                    merge(known, root);
                }
            }
        }
    }
    let text = write_roots(&roots);
    match &args.out {
        Some(path) => {
            make::write_files(&[(path, text, Secrecy::Public)], args.force)?;
            report(path, &roots, dropped, output, out)?;
        }
        None if output == Output::Json => report(Path::new("-"), &roots, dropped, output, out)?,
        None => out.write_all(text.as_bytes())?,
    }
    Ok(0)
}

/// Of two editions of one root the one that lasts longer stays, with the comments of both.
fn merge(known: &mut Root, other: Root) {
    let new: Vec<String> = other.comments.into_iter().filter(|line| !known.comments.contains(line)).collect();
    known.comments.extend(new);
    if other.about.not_after > known.about.not_after {
        known.about = other.about;
        known.der = other.der;
        known.origin = other.origin;
    }
}

fn read_roots(path: &Path) -> anyhow::Result<Vec<Root>> {
    let pieces = read::pieces(path)?;
    // In an object that says which entry holds the anchors, the others are none of ours.
    let wanted = if pieces.iter().any(|piece| piece.role == Role::Roots) { Role::Roots } else { Role::Unknown };
    let mut roots = Vec::new();
    for piece in pieces.into_iter().filter(|piece| piece.role == wanted) {
        for (comments, section) in sections(&piece.text) {
            let blocks = pem::blocks(section.as_bytes()).with_context(|| piece.origin.clone())?;
            for block in blocks {
                let Block::Certificate(der) = block else {
                    bail!(
                        "{}: holds something that is no certificate; a bundle is certificates of roots only",
                        piece.origin
                    );
                };
                let about = inspect::certificate(&der).with_context(|| piece.origin.clone())?;
                if !about.is_ca {
                    bail!(
                        "{}: '{}' is no CA's certificate (basicConstraints does not say CA): it cannot be an anchor",
                        piece.origin,
                        super::show::subject(&about)
                    );
                }
                roots.push(Root { der, about, comments: comments.clone(), origin: piece.origin.clone() });
            }
        }
    }
    if roots.is_empty() {
        bail!("{} holds no certificate", path.display());
    }
    Ok(roots)
}

/// The sections of a PEM text, each with the comments that stand before it.
fn sections(text: &str) -> Vec<(Vec<String>, String)> {
    let mut sections = Vec::new();
    let mut comments = Vec::new();
    let mut section = String::new();
    for line in text.lines() {
        let line = line.trim_end();
        if !section.is_empty() || line.starts_with("-----BEGIN ") {
            section += line;
            section.push('\n');
            if line.starts_with("-----END ") {
                sections.push((std::mem::take(&mut comments), std::mem::take(&mut section)));
            }
        } else if line.starts_with('#') && !OUR_COMMENTS.iter().any(|ours| line.starts_with(ours)) {
            comments.push(line.to_owned());
        }
    }
    if !section.is_empty() {
        sections.push((comments, section)); // cut off: the reader of it will say so
    }
    sections
}

fn write_roots(roots: &[Root]) -> String {
    let mut text = String::new();
    for root in roots {
        if !text.is_empty() {
            text.push('\n');
        }
        for comment in &root.comments {
            let _ = writeln!(text, "{comment}");
        }
        let about = &root.about;
        let _ = writeln!(text, "# root: {}", about.subject);
        let _ =
            writeln!(text, "# valid: {} to {}", inspect::rfc3339(about.not_before), inspect::rfc3339(about.not_after));
        let _ = writeln!(text, "# sha256: {}", about.fingerprint);
        let _ = writeln!(text, "# from: {}", root.origin.escape_default());
        text += &pem::section("CERTIFICATE", &root.der);
    }
    text
}

fn report(path: &Path, roots: &[Root], dropped: usize, output: Output, out: &mut impl Write) -> anyhow::Result<()> {
    let names: Vec<&str> = roots.iter().map(|root| root.about.subject.as_str()).collect();
    let namesakes = names.iter().enumerate().any(|(place, name)| names[..place].contains(name));
    if output == Output::Json {
        let items: Vec<_> = roots
            .iter()
            .map(|root| {
                let what = What::Certificate(Box::new(root.about.clone()));
                Item { origin: root.origin.clone(), what }.to_json(SystemTime::now())
            })
            .collect();
        let written = if path == Path::new("-") { Vec::new() } else { vec![path.display().to_string()] };
        writeln!(out, "{:#}", json!({ "written": written, "items": items, "duplicatesDropped": dropped }))?;
        return Ok(());
    }
    let plural = if roots.len() == 1 { "root" } else { "roots" };
    writeln!(out, "{}: {} {plural}, {dropped} duplicates dropped", path.display(), roots.len())?;
    for root in roots {
        writeln!(out, "  {} to {}, {}", root.about.subject, super::show::minute(root.about.not_after), root.origin)?;
    }
    if namesakes {
        writeln!(out, "Some of them share a name and have different keys. That works; tell them apart by sha256.")?;
    }
    Ok(())
}
