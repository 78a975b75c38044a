//! PEM: the text in which certificates, CRLs, requests and keys travel (RFC 7468).
//!
//! **In** text, or DER to be written as text. **Out** [`Block`]s, or text. **Refuses** sections that are cut off or hold
//! no base64. Private keys are recognised and not kept: who needs one reads it for itself.

use std::fmt::Write as _;

use rustls_pki_types::pem::{self, SectionKind};

/// One section of a PEM file.
#[derive(Clone, Eq, PartialEq)]
pub enum Block {
    /// A certificate.
    Certificate(super::Der),
    /// A certificate revocation list.
    Crl(Vec<u8>),
    /// A signing request.
    Request(Vec<u8>),
    /// A private key, of which nothing is kept here.
    Key,
    /// Something that is of no use here.
    Other,
}

impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Certificate(_) => "Certificate",
            Self::Crl(_) => "Crl",
            Self::Request(_) => "Request",
            Self::Key => "Key",
            Self::Other => "Other",
        })
    }
}

/// The bytes are not what they should be.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct Unreadable(String);

impl Unreadable {
    pub(super) fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

/// Reads the recognised sections of a PEM text, in their order. Text between sections is skipped (RFC 7468 §2).
pub fn blocks(text: &[u8]) -> Result<Vec<Block>, Unreadable> {
    let mut rest = text;
    let mut blocks = Vec::new();
    loop {
        match pem::from_buf(&mut rest) {
            Ok(None) => return Ok(blocks),
            Ok(Some((kind, der))) => blocks.push(match kind {
                SectionKind::Certificate => Block::Certificate(der.into()),
                SectionKind::Crl => Block::Crl(der),
                SectionKind::Csr => Block::Request(der),
                SectionKind::EcPrivateKey | SectionKind::PrivateKey | SectionKind::RsaPrivateKey => Block::Key,
                _ => Block::Other,
            }),
            Err(pem::Error::MissingSectionEnd { .. }) => {
                return Err(Unreadable("a PEM section has no END line: the file is cut off".into()));
            }
            Err(pem::Error::Base64Decode(_)) => {
                return Err(Unreadable("a PEM section holds something other than base64".into()));
            }
            Err(error) => return Err(Unreadable(format!("not readable as PEM: {error}"))),
        }
    }
}

/// Writes one PEM section.
pub fn section(label: &str, der: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in der.chunks(48) {
        for three in line.chunks(3) {
            let group = three.iter().fold(0u32, |group, byte| group << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
            for place in 0..4 {
                let digit = DIGITS[(group >> (18 - 6 * place)) as usize & 63];
                text.push(if place > three.len() { '=' } else { char::from(digit) });
            }
        }
        text.push('\n');
    }
    let _ = writeln!(text, "-----END {label}-----");
    text
}

/// The public key in a PEM text, in DER.
pub(super) fn public_key(text: &str) -> Result<Vec<u8>, Unreadable> {
    let mut rest = text.as_bytes();
    match pem::from_buf(&mut rest) {
        Ok(Some((SectionKind::PublicKey, der))) => Ok(der),
        _ => Err(Unreadable::new("not a public key")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_back(der in prop::collection::vec(any::<u8>(), 0..200)) {
            let text = section("X509 CRL", &der);
            prop_assert_eq!(blocks(text.as_bytes()), Ok(vec![Block::Crl(der)]));
        }

        #[test]
        fn strangers_bytes_never_panic(text in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = blocks(&text);
        }
    }

    #[test]
    fn a_cut_off_file_is_told() {
        let text = section("CERTIFICATE", &[1; 100]);
        let error = blocks(&text.as_bytes()[..80]).expect_err("cut off");
        assert!(error.to_string().contains("cut off"), "{error}");
    }
}
