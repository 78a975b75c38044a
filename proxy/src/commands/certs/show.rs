//! `isthmus certs show`: what stands in files, and what of it ends soon.
//!
//! One row per certificate, CRL or signing request; where it came from when there are several places. Exit code 2 when
//! something is past its end or within `--warn-days` of it, so that a cron job can be one line.

use std::io::{IsTerminal as _, Write};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::ValueEnum;
use comfy_table::{Table, presets};
use serde_json::{Value, json};

use super::read::{self, Role};
use super::{DAY, Output, make};
use crate::tls::inspect::{self, Certificate, Crl, Request};
use crate::tls::pem::{self, Block};

/// Flags of `show`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// PEM files, Kubernetes objects in YAML or JSON, or - for standard input.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// How many days before its end something is worth a warning.
    #[arg(long, default_value_t = 30)]
    warn_days: u32,
    /// Whether to colour what ends soon.
    #[arg(long, alias = "color", value_enum, default_value_t = Colour::Auto)]
    colour: Colour,
}

/// Whether to write in colour.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(super) enum Colour {
    /// Always.
    Always,
    /// On a terminal, unless `NO_COLOR` is set.
    Auto,
    /// Never.
    Never,
}

/// The exit code when something ends soon.
const ENDS_SOON: u8 = 2;

/// Something that was found.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) origin: String,
    pub(super) what: What,
}

/// What was found.
#[derive(Clone, Debug)]
pub(super) enum What {
    Certificate(Box<Certificate>),
    Crl(Crl),
    Request(Request),
}

/// How long until an end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Left {
    Expired(Duration),
    Fine(Duration),
    Soon(Duration),
    Unbounded,
}

pub(super) fn run(args: &Args, output: Output, out: &mut impl Write) -> anyhow::Result<u8> {
    let now = SystemTime::now();
    let mut found = Vec::new();
    for path in &args.files {
        for piece in read::pieces(path)? {
            if piece.role != Role::Key {
                found.extend(items(&piece.origin, piece.text.as_bytes())?);
            }
        }
    }
    if found.is_empty() {
        anyhow::bail!("no certificate, CRL or signing request in there");
    }
    match output {
        Output::Json => {
            let found: Vec<Value> = found.iter().map(|item| item.to_json(now)).collect();
            writeln!(out, "{:#}", Value::from(found))?;
        }
        Output::Text => write_tables(&found, args, now, out)?,
    }
    let warn = |item: &Item| matches!(item.left(now, args.warn_days), Left::Expired(_) | Left::Soon(_));
    Ok(if found.iter().any(warn) { ENDS_SOON } else { 0 })
}

/// Everything in a PEM text that can be shown.
pub(super) fn items(origin: &str, text: &[u8]) -> anyhow::Result<Vec<Item>> {
    use anyhow::Context as _;
    let mut items = Vec::new();
    for block in pem::blocks(text).with_context(|| origin.to_owned())? {
        let what = match &block {
            Block::Certificate(der) => inspect::certificate(der).map(|found| What::Certificate(Box::new(found))),
            Block::Crl(der) => inspect::crl(der).map(What::Crl),
            Block::Request(der) => inspect::request(der).map(What::Request),
            Block::Key | Block::Other => continue,
        };
        items.push(Item { origin: origin.to_owned(), what: what.with_context(|| origin.to_owned())? });
    }
    Ok(items)
}

impl Item {
    fn ends(&self) -> Option<SystemTime> {
        match &self.what {
            What::Certificate(certificate) => Some(certificate.not_after),
            What::Crl(crl) => crl.next_update,
            What::Request(_) => None,
        }
    }

    fn left(&self, now: SystemTime, warn_days: u32) -> Left {
        match self.ends().map(|end| end.duration_since(now)) {
            None => Left::Unbounded,
            Some(Err(past)) => Left::Expired(past.duration()),
            Some(Ok(left)) if left < DAY * warn_days => Left::Soon(left),
            Some(Ok(left)) => Left::Fine(left),
        }
    }

    /// In a few words.
    pub(super) fn summary(&self) -> String {
        match &self.what {
            What::Certificate(certificate) => format!(
                "{} '{}', issued by '{}', valid to {}",
                if certificate.is_ca { "the certificate of the CA" } else { "the certificate of" },
                subject(certificate),
                certificate.issuer,
                minute(certificate.not_after)
            ),
            What::Crl(crl) => format!(
                "the CRL of '{}', revokes {}, next one due at {}",
                crl.issuer,
                crl.revoked,
                crl.next_update.map_or_else(|| "no time".into(), minute)
            ),
            What::Request(request) => format!("a signing request for {}", request.names.join(", ")),
        }
    }

    pub(super) fn to_json(&self, now: SystemTime) -> Value {
        let days = |end: SystemTime| match end.duration_since(now) {
            Ok(left) => json!(make::days(left)),
            Err(past) => json!(-i64::try_from(make::days(past.duration())).unwrap_or(i64::MAX) - 1),
        };
        match &self.what {
            What::Certificate(certificate) => json!({
                "kind": "certificate",
                "origin": self.origin,
                "subject": certificate.subject,
                "identity": certificate.identities.first().map(ToString::to_string),
                "names": certificate.names,
                "issuer": certificate.issuer,
                "serial": certificate.serial,
                "notBefore": inspect::rfc3339(certificate.not_before),
                "notAfter": inspect::rfc3339(certificate.not_after),
                "daysLeft": days(certificate.not_after),
                "ca": certificate.is_ca,
                "pathLength": certificate.path_len,
                "key": certificate.key,
                "purposes": certificate.purposes,
                "sha256": certificate.fingerprint,
                "keyId": certificate.key_id,
                "authorityKeyId": certificate.authority_key_id,
            }),
            What::Crl(crl) => json!({
                "kind": "crl",
                "origin": self.origin,
                "issuer": crl.issuer,
                "number": crl.number,
                "thisUpdate": inspect::rfc3339(crl.this_update),
                "nextUpdate": crl.next_update.map(inspect::rfc3339),
                "daysLeft": crl.next_update.map(days),
                "revoked": crl.revoked,
            }),
            What::Request(request) => json!({
                "kind": "request",
                "origin": self.origin,
                "subject": request.subject,
                "names": request.names,
                "key": request.key,
            }),
        }
    }
}

fn write_tables(found: &[Item], args: &Args, now: SystemTime, out: &mut impl Write) -> anyhow::Result<()> {
    let colour = match args.colour {
        Colour::Always => true,
        Colour::Auto => std::env::var_os("NO_COLOR").is_none() && std::io::stdout().is_terminal(),
        Colour::Never => false,
    };
    let several = found.iter().any(|item| item.origin != found[0].origin);
    let mut first = true;
    for header in HEADERS {
        let rows: Vec<(Vec<String>, Left)> = found
            .iter()
            .filter_map(|item| {
                let left = item.left(now, args.warn_days);
                let mut row = row(item, header, left)?;
                if several {
                    row.push(item.origin.clone());
                }
                Some((row, left))
            })
            .collect();
        if rows.is_empty() {
            continue;
        }
        if !std::mem::take(&mut first) {
            writeln!(out)?;
        }
        let mut titles: Vec<&str> = header.to_vec();
        if several {
            titles.push("FROM");
        }
        write_table(&titles, rows, colour, out)?;
    }
    Ok(())
}

/// The columns of certificates, CRLs and requests.
const HEADERS: [&[&str]; 3] = [
    &["SUBJECT", "IDENTITY", "ISSUER", "NOT BEFORE", "NOT AFTER", "DAYS LEFT", "KEY", "SHA-256"],
    &["CRL OF", "THIS UPDATE", "NEXT UPDATE", "DAYS LEFT", "REVOKED", "NUMBER"],
    &["REQUEST FOR", "KEY"],
];

/// The row of an item in the table with this header, where it belongs there.
fn row(item: &Item, header: &[&str], left: Left) -> Option<Vec<String>> {
    let left = match left {
        Left::Expired(ago) if ago < DAY => "expired".to_owned(),
        Left::Expired(ago) => format!("expired {} ago", make::days(ago)),
        Left::Fine(left) | Left::Soon(left) if left < DAY => format!("{} h", left.as_secs() / 3_600),
        Left::Fine(left) | Left::Soon(left) => make::days(left).to_string(),
        Left::Unbounded => "-".to_owned(),
    };
    match &item.what {
        What::Certificate(certificate) if header == HEADERS[0] => Some(vec![
            dash(&certificate.subject),
            match certificate.identities.first() {
                Some(identity) => identity.to_string(),
                None if certificate.is_ca => "CA".to_owned(),
                None => "-".to_owned(),
            },
            if certificate.self_issued { "itself".to_owned() } else { certificate.issuer.clone() },
            minute(certificate.not_before),
            minute(certificate.not_after),
            left,
            certificate.key.clone(),
            certificate.fingerprint.clone(),
        ]),
        What::Crl(crl) if header == HEADERS[1] => Some(vec![
            crl.issuer.clone(),
            minute(crl.this_update),
            crl.next_update.map_or_else(|| "-".to_owned(), minute),
            left,
            crl.revoked.to_string(),
            crl.number.clone().unwrap_or_else(|| "-".to_owned()),
        ]),
        What::Request(request) if header == HEADERS[2] => Some(vec![request.names.join(", "), request.key.clone()]),
        _ => None,
    }
}

fn write_table(
    titles: &[&str],
    rows: Vec<(Vec<String>, Left)>,
    colour: bool,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    const RED: &str = "\x1b[31m";
    const YELLOW: &str = "\x1b[33m";
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(titles.to_vec());
    let mut colours = vec![None];
    for (row, left) in rows {
        table.add_row(row);
        colours.push(match left {
            Left::Expired(_) => Some(RED),
            Left::Soon(_) => Some(YELLOW),
            Left::Fine(_) | Left::Unbounded => None,
        });
    }
    // No cell holds a line break, so lines and rows go together.
    for (line, wanted) in table.trim_fmt().lines().zip(colours) {
        let line = line.strip_prefix(' ').unwrap_or(line);
        match wanted.filter(|_| colour) {
            Some(colour) => writeln!(out, "{colour}{line}\x1b[0m")?,
            None => writeln!(out, "{line}")?,
        }
    }
    Ok(())
}

/// A time without seconds.
pub(super) fn minute(time: SystemTime) -> String {
    let text = inspect::rfc3339(time);
    match text.get(..16) {
        Some(minute) => minute.replace('T', " "),
        None => text,
    }
}

/// Whose certificate it is: the identity of a leaf, the name of a CA.
pub(super) fn subject(certificate: &Certificate) -> String {
    match certificate.identities.first() {
        Some(identity) if !certificate.is_ca => identity.to_string(),
        _ if certificate.subject.is_empty() => certificate.names.join(", "),
        _ => certificate.subject.clone(),
    }
}

fn dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}
