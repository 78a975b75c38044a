//! `isthmus certs`: makes, merges, shows and checks certificates.
//!
//! What Linkerd's installation guide does with another tool's `certificate create`, and what it leaves to the reader:
//! merging bundles, finding out why two clusters do not trust each other, revoking. **In** flags, files, and the
//! Kubernetes objects in which Linkerd keeps certificates. **Out** files, tables, JSON, an exit code. **Refuses** to
//! overwrite a file without `--force`, and to write a key that others could read.

mod bundle;
mod check;
mod make;
mod read;
mod show;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Subcommand, ValueEnum};

/// Make, merge, show and check certificates.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,

    /// How to print what was done or found.
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Make a trust anchor: a self-signed root that all clusters share.
    Anchor(make::Anchor),
    /// Merge trust bundles: each root once, with comments that say what each is; on standard output or into a file.
    Bundle(bundle::Args),
    /// Make a certificate revocation list.
    Crl(make::Crl),
    /// Make a private key and a signing request for it.
    Csr(make::Csr),
    /// Make an issuer, signed by an anchor or by another issuer.
    Issuer(make::Issuer),
    /// Make a leaf certificate for a workload or a gateway, or sign a request for one.
    Leaf(make::Leaf),
    /// Show what stands in files. Exit code 2 where something has expired or will soon.
    Show(show::Args),
    /// Check a certificate against a bundle as a handshake would. Exit code 1 and the link that fails where it would be
    /// refused.
    Verify(check::Args),
}

/// How to print.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Output {
    /// One JSON value, for programs.
    Json,
    /// Tables and sentences, for people.
    Text,
}

/// Does what the flags say and writes what is to be seen to `out`.
pub fn run(args: Args, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    Ok(ExitCode::from(exit_code(args, out)?))
}

fn exit_code(args: Args, out: &mut impl Write) -> anyhow::Result<u8> {
    let Args { command, output } = args;
    match command {
        Command::Anchor(args) => make::anchor(&args, output, out),
        Command::Bundle(args) => bundle::run(&args, output, out),
        Command::Crl(args) => make::crl(&args, output, out),
        Command::Csr(args) => make::csr(&args, output, out),
        Command::Issuer(args) => make::issuer(&args, output, out),
        Command::Leaf(args) => make::leaf(&args, output, out),
        Command::Show(args) => show::run(&args, output, out),
        Command::Verify(args) => check::run(&args, output, out),
    }
}

/// Reads a length of time: a number and `s`, `m`, `h` or `d`; units may follow each other as in `1h30m`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is no length of time: write 90d, 24h, 30m or 45s");
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let count: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        let seconds = match rest.as_bytes()[digits] {
            b's' => 1,
            b'm' => 60,
            b'h' => 3_600,
            b'd' => DAY.as_secs(),
            _ => return Err(wrong()),
        };
        let part = count.checked_mul(seconds).map(Duration::from_secs);
        total = part.and_then(|part| total.checked_add(part)).ok_or_else(wrong)?;
        rest = &rest[digits + 1..];
    }
    if total.is_zero() || total > MAX_VALIDITY { Err(wrong()) } else { Ok(total) }
}

const DAY: Duration = Duration::from_secs(86_400);

/// A hundred years: longer is a slip of the keyboard.
const MAX_VALIDITY: Duration = Duration::from_secs(36_525 * 86_400);

#[cfg(test)]
mod tests;
