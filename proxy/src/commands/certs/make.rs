//! `isthmus certs anchor|issuer|leaf|csr|crl`: makes them and writes them down.
//!
//! Keys are ECDSA P-256 in PKCS#8, in files that only their owner can read. Nothing is overwritten without `--force`;
//! with it, a file is replaced whole, so that who watches it never reads a half.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use serde_json::json;

use super::read::{self, Role};
use super::{DAY, Output, show};
use crate::identity::Identity;
use crate::tls::inspect;
use crate::tls::mint::{self, Authority, Usage, Validity};
use crate::tls::pem::{self, Block};

/// Flags of `anchor`.
#[derive(Clone, Debug, clap::Args)]
pub struct Anchor {
    /// The anchor's name, such as root.linkerd.cluster.local.
    name: String,
    /// Where the certificate goes.
    cert: PathBuf,
    /// Where the private key goes. Keep it off the clusters: it is needed to sign issuers only.
    key: PathBuf,
    /// How long it is valid.
    #[arg(long, default_value = "3650d", value_parser = super::duration)]
    valid_for: Duration,
    /// Replace files that exist.
    #[arg(long)]
    force: bool,
}

/// The CA that signs.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Signer {
    /// The certificate of the CA that signs.
    #[arg(long, value_name = "FILE")]
    ca: PathBuf,
    /// Its private key.
    #[arg(long, value_name = "FILE")]
    ca_key: PathBuf,
}

/// Flags of `issuer`.
#[derive(Clone, Debug, clap::Args)]
pub struct Issuer {
    /// The issuer's name, such as identity.linkerd.cluster.local.
    name: String,
    /// Where the certificate goes.
    cert: PathBuf,
    /// Where the private key goes.
    key: PathBuf,
    #[command(flatten)]
    signer: Signer,
    /// How many levels of CAs may stand below it.
    #[arg(long, default_value_t = 0)]
    path_len: u8,
    /// How long it is valid; never longer than the CA that signs it.
    #[arg(long, default_value = "365d", value_parser = super::duration)]
    valid_for: Duration,
    /// Replace files that exist.
    #[arg(long)]
    force: bool,
}

/// Flags of `leaf`.
#[derive(Clone, Debug, clap::Args)]
pub struct Leaf {
    /// Where the certificate goes, followed by those of the CAs up to the anchor.
    cert: PathBuf,
    /// Where the private key goes.
    #[arg(required_unless_present = "csr", conflicts_with = "csr")]
    key: Option<PathBuf>,
    /// Whom it names: a DNS name or a URI such as spiffe://…; the first one is the identity.
    #[arg(long, value_parser = identity, required_unless_present = "csr", conflicts_with = "csr")]
    identity: Vec<Identity>,
    /// Sign this request, with the key and the names in it.
    #[arg(long, value_name = "FILE")]
    csr: Option<PathBuf>,
    #[command(flatten)]
    signer: Signer,
    /// What it may be used for.
    #[arg(long = "for", value_enum, default_value_t = For::Both)]
    usage: For,
    /// How long it is valid; never longer than the CA that signs it.
    #[arg(long, default_value = "24h", value_parser = super::duration)]
    valid_for: Duration,
    /// Replace files that exist.
    #[arg(long)]
    force: bool,
}

/// What a leaf may be used for.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(super) enum For {
    /// Connecting and accepting, as workloads need.
    Both,
    /// Connecting only.
    Client,
    /// Accepting only.
    Server,
}

/// Flags of `csr`.
#[derive(Clone, Debug, clap::Args)]
pub struct Csr {
    /// Where the request goes.
    csr: PathBuf,
    /// Where the private key goes.
    key: PathBuf,
    /// Whom it names: a DNS name or a URI such as spiffe://…; the first one is the identity.
    #[arg(long, required = true, value_parser = identity)]
    identity: Vec<Identity>,
    /// Replace files that exist.
    #[arg(long)]
    force: bool,
}

/// Flags of `crl`.
#[derive(Clone, Debug, clap::Args)]
pub struct Crl {
    /// Where the list goes.
    crl: PathBuf,
    #[command(flatten)]
    signer: Signer,
    /// What to revoke: a file with the certificate, or its serial number in hexadecimal digits.
    #[arg(long, value_name = "FILE|SERIAL")]
    revoke: Vec<String>,
    /// A list of the same CA, the entries of which stay revoked.
    #[arg(long, value_name = "FILE")]
    previous: Option<PathBuf>,
    /// When the next list is due: gateways refuse those that an overdue list tells about.
    #[arg(long, default_value = "30d", value_parser = super::duration)]
    valid_for: Duration,
    /// Replace files that exist.
    #[arg(long)]
    force: bool,
}

pub(super) fn anchor(args: &Anchor, output: Output, out: &mut impl Write) -> anyhow::Result<u8> {
    let anchor = mint::anchor(&args.name, Validity::from_now(SystemTime::now(), args.valid_for))?;
    let files = [(&*args.cert, anchor.cert_pem(), Secrecy::Public), (&*args.key, anchor.key_pem(), Secrecy::Secret)];
    write_files(&files, args.force)?;
    report(&files, output, out)
}

pub(super) fn issuer(args: &Issuer, output: Output, out: &mut impl Write) -> anyhow::Result<u8> {
    let (signer, above) = args.signer.load()?;
    let issuer = mint::issuer(&signer, &args.name, validity(&signer, args.valid_for)?, args.path_len)?;
    let chain = issuer.cert_pem() + &above;
    let files = [(&*args.cert, chain, Secrecy::Public), (&*args.key, issuer.key_pem(), Secrecy::Secret)];
    write_files(&files, args.force)?;
    report(&files, output, out)
}

pub(super) fn leaf(args: &Leaf, output: Output, out: &mut impl Write) -> anyhow::Result<u8> {
    let (signer, above) = args.signer.load()?;
    let validity = validity(&signer, args.valid_for)?;
    let usage = match args.usage {
        For::Both => Usage::Both,
        For::Client => Usage::Client,
        For::Server => Usage::Server,
    };
    let leaf = match &args.csr {
        None => mint::leaf(&signer, &args.identity, validity, usage)?,
        Some(path) => mint::sign_request(&signer, &request(path)?, validity, usage)
            .with_context(|| format!("{} cannot be signed", path.display()))?,
    };
    let mut files = vec![(&*args.cert, leaf.cert_pem() + &above, Secrecy::Public)];
    files.extend(args.key.iter().map(|path| (&**path, leaf.key_pem.clone(), Secrecy::Secret)));
    write_files(&files, args.force)?;
    report(&files, output, out)
}

pub(super) fn csr(args: &Csr, output: Output, out: &mut impl Write) -> anyhow::Result<u8> {
    let request = mint::request(&args.identity)?;
    let files = [(&*args.csr, request.pem(), Secrecy::Public), (&*args.key, request.key_pem, Secrecy::Secret)];
    write_files(&files, args.force)?;
    report(&files, output, out)
}

pub(super) fn crl(args: &Crl, output: Output, out: &mut impl Write) -> anyhow::Result<u8> {
    let (signer, _) = args.signer.load()?;
    let now = SystemTime::now();
    let mut revoked = match &args.previous {
        Some(path) => previous(path)?,
        None => Vec::new(),
    };
    for what in &args.revoke {
        let serial = serial(what, &signer)?;
        if revoked.iter().all(|(known, _)| *known != serial) {
            revoked.push((serial, now));
        }
    }
    let list = mint::crl(&signer, &revoked, now, now + args.valid_for)?;
    let files = [(&*args.crl, pem::section("X509 CRL", &list), Secrecy::Public)];
    write_files(&files, args.force)?;
    report(&files, output, out)
}

impl Signer {
    /// The CA, and the PEM of those certificates that its leaves must bring along: itself and what stands between it
    /// and an anchor, but no anchor, which peers have.
    fn load(&self) -> anyhow::Result<(Authority, String)> {
        let certificate = read::file(&self.ca, Role::Chain)?;
        let key = read::file(&self.ca_key, Role::Key)?;
        let text = String::from_utf8(certificate.contents).context("the CA's certificate is no text")?;
        let key = String::from_utf8(key.contents).context("the CA's key is no text")?;
        let signer = Authority::from_pem(&text, &key)
            .with_context(|| format!("{} with {} cannot sign", self.ca.display(), self.ca_key.display()))?;
        let mut above = String::new();
        for block in pem::blocks(text.as_bytes())? {
            if let Block::Certificate(der) = block
                && !inspect::certificate(&der)?.self_issued
            {
                above += &pem::section("CERTIFICATE", &der);
            }
        }
        Ok((signer, above))
    }
}

/// From now for as long as asked, but not beyond the CA's own end.
fn validity(signer: &Authority, length: Duration) -> anyhow::Result<Validity> {
    let mut validity = Validity::from_now(SystemTime::now(), length);
    let about = signer.about();
    if about.not_after <= validity.not_before {
        bail!("the CA '{}' has expired at {}", about.subject, inspect::rfc3339(about.not_after));
    }
    validity.not_after = validity.not_after.min(about.not_after);
    validity.not_before = validity.not_before.max(about.not_before);
    Ok(validity)
}

fn request(path: &Path) -> anyhow::Result<Vec<u8>> {
    let blocks = pem::blocks(&read::bytes(path)?)?;
    let request = blocks.into_iter().find_map(|block| match block {
        Block::Request(der) => Some(der),
        _ => None,
    });
    request
        .with_context(|| format!("{} holds no signing request (-----BEGIN CERTIFICATE REQUEST-----)", path.display()))
}

/// What an earlier list revokes.
fn previous(path: &Path) -> anyhow::Result<Vec<(Vec<u8>, SystemTime)>> {
    let mut revoked = Vec::new();
    for block in pem::blocks(&read::file(path, Role::Unknown)?.contents)? {
        if let Block::Crl(der) = block {
            revoked.extend(inspect::revoked(&der)?);
        }
    }
    Ok(revoked)
}

/// The serial number of a certificate in a file, or one written out.
fn serial(what: &str, signer: &Authority) -> anyhow::Result<Vec<u8>> {
    if !Path::new(what).exists() {
        /// The longest serial number (RFC 5280 §4.1.2.2), in bytes.
        const MAX_SERIAL_BYTES: usize = 20;
        let serial = inspect::unhex(what).filter(|serial| serial.len() <= MAX_SERIAL_BYTES);
        return serial.with_context(|| format!("'{what}' is neither a file nor a serial number in hexadecimal digits"));
    }
    let blocks = pem::blocks(&read::file(Path::new(what), Role::Chain)?.contents)?;
    let der = blocks.into_iter().find_map(|block| match block {
        Block::Certificate(der) => Some(der),
        _ => None,
    });
    let about = inspect::certificate(&der.with_context(|| format!("{what} holds no certificate"))?)?;
    if about.issuer != signer.about().subject {
        bail!("{what} was issued by '{}': only that CA can revoke it, not '{}'", about.issuer, signer.about().subject);
    }
    inspect::unhex(&about.serial).with_context(|| format!("{what} has no serial number"))
}

fn identity(text: &str) -> Result<Identity, String> {
    Identity::parse(text).map_err(|error| error.to_string())
}

/// Who may read a file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Secrecy {
    Public,
    Secret,
}

/// Writes all files, or, where one is in the way, none.
pub(super) fn write_files(files: &[(&Path, String, Secrecy)], force: bool) -> anyhow::Result<()> {
    for (place, (path, _, _)) in files.iter().enumerate() {
        if files[..place].iter().any(|(other, _, _)| other == path) {
            bail!("{} is named twice", path.display());
        }
        if !force && fs::symlink_metadata(path).is_ok() {
            bail!("{} exists: give --force to replace it", path.display());
        }
    }
    for (path, contents, secrecy) in files {
        write_file(path, contents, *secrecy, force).with_context(|| format!("{} cannot be written", path.display()))?;
    }
    Ok(())
}

/// Writes beside the place and moves it there, so that nobody ever sees half of it or an old file's permissions.
fn write_file(path: &Path, contents: &str, secrecy: Secrecy, force: bool) -> std::io::Result<()> {
    let mode = if secrecy == Secrecy::Secret { 0o600 } else { 0o644 };
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{:016x}", rand::random::<u64>()));
    let beside = path.with_file_name(name);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
    let moved = file.write_all(contents.as_bytes()).and_then(|()| file.sync_all()).and_then(|()| {
        if force {
            return fs::rename(&beside, path);
        }
        // A link does not replace, should somebody have come first; where there are no links, a look has to do.
        match fs::hard_link(&beside, path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists && !path.exists() => fs::rename(&beside, path),
            linked => linked,
        }
    });
    let _ = fs::remove_file(&beside); // gone already where it was moved
    moved
}

/// Says what was written.
fn report(files: &[(&Path, String, Secrecy)], output: Output, out: &mut impl Write) -> anyhow::Result<u8> {
    match output {
        Output::Json => {
            let mut found = Vec::new();
            for (path, contents, _) in files {
                found.extend(show::items(&path.display().to_string(), contents.as_bytes())?);
            }
            let written: Vec<String> = files.iter().map(|(path, _, _)| path.display().to_string()).collect();
            let found: Vec<_> = found.iter().map(|item| item.to_json(SystemTime::now())).collect();
            writeln!(out, "{:#}", json!({ "written": written, "items": found }))?;
        }
        Output::Text => {
            for (path, contents, secrecy) in files {
                let what = match show::items(&path.display().to_string(), contents.as_bytes())?.first() {
                    _ if *secrecy == Secrecy::Secret => "the private key".to_owned(),
                    Some(item) => item.summary(),
                    None => "nothing".to_owned(),
                };
                writeln!(out, "{}: {what}", path.display())?;
            }
        }
    }
    Ok(0)
}

/// Whole days in a length of time.
pub(super) fn days(length: Duration) -> u64 {
    length.as_secs() / DAY.as_secs()
}
