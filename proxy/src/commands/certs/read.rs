//! Gets PEM out of whatever holds it: files, standard input, and the Kubernetes objects in which certificates live.
//!
//! **In** a path, or `-`. **Out** [`Piece`]s of PEM, each with where it was found and what it is for. ConfigMaps, Secrets
//! and lists of them are read as `kubectl get -o yaml` or `-o json` writes them, among them Linkerd's `linkerd-config` of
//! all eras (`global` with `identityContext.trustAnchorsPem` in 2.8, `values` with `global.identityTrustAnchorsPEM` in
//! 2.9 and with `identityTrustAnchorsPEM` since) and `linkerd-identity-trust-roots`. **Refuses** what cannot be read.

use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::tls::File;

/// The most that is read of one file, in bytes: a Kubernetes object cannot be larger than 1 MiB, a list of some can.
const MAX_BYTES: u64 = 64 << 20;

/// Some PEM text.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Piece {
    /// Where it was found: a path, and the way within the object.
    pub(super) origin: String,
    /// What it is for.
    pub(super) role: Role,
    /// The text.
    pub(super) text: String,
}

/// What a piece is for, as far as its place tells.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Role {
    /// A certificate to be shown to peers.
    Chain,
    /// A private key.
    Key,
    /// Trust anchors.
    Roots,
    /// Its place does not tell.
    Unknown,
}

/// Reads everything that `path` holds.
pub(super) fn pieces(path: &Path) -> anyhow::Result<Vec<Piece>> {
    let bytes = bytes(path)?;
    let origin = path.display().to_string();
    let text = match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => der_as_pem(error.as_bytes()).with_context(|| format!("{origin} is neither text nor DER"))?,
    };
    let pieces = if looks_like_object(&text) {
        objects(&origin, &text)?
    } else {
        vec![Piece { origin: origin.clone(), role: Role::Unknown, text }]
    };
    if pieces.is_empty() {
        bail!("{origin} holds nothing in PEM");
    }
    Ok(pieces)
}

/// All of `path` that is for `role`, in one file: where some pieces say so those, else those that do not tell.
pub(super) fn file(path: &Path, role: Role) -> anyhow::Result<File> {
    let pieces = pieces(path)?;
    let wanted = if pieces.iter().any(|piece| piece.role == role) { role } else { Role::Unknown };
    let mut found: Vec<Piece> = pieces.into_iter().filter(|piece| piece.role == wanted).collect();
    let name = match found.as_slice() {
        [] => bail!("{} holds nothing that is for this", path.display()),
        [one] => one.origin.clone(),
        _ => path.display().to_string(),
    };
    let contents: String = found.iter_mut().map(|piece| std::mem::take(&mut piece.text) + "\n").collect();
    Ok(File::new(name, contents))
}

/// The bytes of a file or of standard input.
pub(super) fn bytes(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().take(MAX_BYTES).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes))
    };
    read.with_context(|| format!("{} cannot be read", path.display()))?;
    Ok(bytes)
}

/// A certificate or CRL in DER, as PEM.
fn der_as_pem(der: &[u8]) -> Option<String> {
    use crate::tls::{inspect, pem};
    let label = if inspect::certificate(der).is_ok() {
        "CERTIFICATE"
    } else if inspect::crl(der).is_ok() {
        "X509 CRL"
    } else {
        return None;
    };
    Some(pem::section(label, der))
}

/// Whether a text is a Kubernetes object rather than PEM, which knows no such lines.
fn looks_like_object(text: &str) -> bool {
    text.trim_start().starts_with('{')
        || text.lines().any(|line| line.starts_with("kind:") || line.starts_with("apiVersion:"))
}

fn objects(origin: &str, text: &str) -> anyhow::Result<Vec<Piece>> {
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(text).map_err(|error| anyhow::anyhow!("{origin} is no YAML: {error}"))?;
    let mut pieces = Vec::new();
    for document in &documents {
        object(origin, document, &mut pieces)?;
    }
    Ok(pieces)
}

fn object(origin: &str, object: &Value, pieces: &mut Vec<Piece>) -> anyhow::Result<()> {
    let word = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or("?");
    let kind = word("/kind");
    for item in object.pointer("/items").and_then(Value::as_array).into_iter().flatten() {
        self::object(origin, item, pieces)?;
    }
    let place = format!("{origin}: {kind} {}/{}", word("/metadata/namespace"), word("/metadata/name"));
    let secret = kind == "Secret";
    for (field, encoded) in [("/data", secret), ("/stringData", false), ("/binaryData", true)] {
        for (key, value) in object.pointer(field).and_then(Value::as_object).into_iter().flatten() {
            let Some(value) = value.as_str() else { continue };
            let origin = format!("{place} {key}");
            let text = if encoded {
                let bytes = unbase64(value).with_context(|| format!("{origin} is no base64"))?;
                String::from_utf8(bytes).unwrap_or_default()
            } else {
                value.to_owned()
            };
            entry(origin, key, text, pieces);
        }
    }
    Ok(())
}

/// One entry of a ConfigMap or Secret.
fn entry(origin: String, key: &str, text: String, pieces: &mut Vec<Piece>) {
    if !text.contains("-----BEGIN ") {
        return;
    }
    // Linkerd's own configuration: a document within the document, full of certificates for other purposes.
    let anchors = ["/identityContext/trustAnchorsPem", "/global/identityTrustAnchorsPEM", "/identityTrustAnchorsPEM"];
    if matches!(key, "global" | "values")
        && let Ok(document) = serde_saphyr::from_str::<Value>(&text)
    {
        for path in anchors {
            if let Some(text) = document.pointer(path).and_then(Value::as_str) {
                let origin = format!("{origin}{}", path.replace('/', "."));
                pieces.push(Piece { origin, role: Role::Roots, text: text.to_owned() });
            }
        }
        return;
    }
    let role = match key {
        "ca-bundle.crt" | "ca-bundle.pem" | "ca.crt" | "root-cert.pem" => Role::Roots,
        "crt.pem" | "tls.crt" => Role::Chain,
        "key.pem" | "tls.key" => Role::Key,
        _ => Role::Unknown,
    };
    pieces.push(Piece { origin, role, text });
}

/// Base64 with line breaks, as Secrets have it (RFC 4648 §4).
fn unbase64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut group, mut bits) = (0u32, 0u32);
    let mut digits = text.bytes().filter(|b| !b.is_ascii_whitespace());
    for digit in digits.by_ref().take_while(|b| *b != b'=') {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        group = (group << 6 | u32::from(value)) & 0xffff;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push(u8::try_from(group >> bits & 0xff).ok()?);
        }
    }
    digits.all(|b| b == b'=').then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64() {
        for (text, want) in [
            ("", Some(&b""[..])),
            ("Zg==", Some(b"f")),
            ("Zm8=", Some(b"fo")),
            ("Zm9v\nYmFy", Some(b"foobar")),
            ("+/+/", Some(b"\xfb\xff\xbf")),
            ("Zm9v*", None),
            ("Zg==Zg", None),
        ] {
            assert_eq!(unbase64(text).as_deref(), want, "{text}");
        }
    }

    #[test]
    fn linkerds_configuration_of_every_era() {
        let pem = "-----BEGIN CERTIFICATE-----\\nAA==\\n-----END CERTIFICATE-----\\n";
        let block = "-----BEGIN CERTIFICATE-----\n        AA==\n        -----END CERTIFICATE-----\n";
        let head = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: linkerd-config, namespace: linkerd}\ndata:\n";
        let other = "    proxyInjector:\n      caBundle: |\n        -----BEGIN CERTIFICATE-----\n";
        for (data, way) in [
            (
                format!("  global: |\n    {{\"identityContext\":{{\"trustAnchorsPem\":\"{pem}\"}}}}\n"),
                "global.identityContext.trustAnchorsPem",
            ),
            (
                format!("  values: |\n    global:\n      identityTrustAnchorsPEM: |\n        {block}{other}"),
                "values.global.identityTrustAnchorsPEM",
            ),
            (
                format!("  values: |\n    identityTrustAnchorsPEM: |\n        {block}{other}"),
                "values.identityTrustAnchorsPEM",
            ),
            (format!("  ca-bundle.crt: |\n        {block}"), "ca-bundle.crt"),
        ] {
            let pieces = objects("-", &format!("{head}{data}")).expect("reads");
            let [piece] = pieces.as_slice() else { panic!("{pieces:?}") };
            assert_eq!(piece.origin, format!("-: ConfigMap linkerd/linkerd-config {way}"));
            assert_eq!((piece.role, piece.text.lines().nth(1)), (Role::Roots, Some("AA==")));
        }
    }

    #[test]
    fn secrets_and_lists() {
        let text = "apiVersion: v1\nkind: List\nitems:\n- kind: Secret\n  metadata: {name: id, namespace: mc}\n  data:\n    \
                    tls.crt: LS0tLS1CRUdJTiBY\n    tls.key: LS0tLS1CRUdJTiBY\n    note: aGk=\n---\nkind: Pod\n";
        let pieces = objects("-", text).expect("reads");
        let roles: Vec<Role> = pieces.iter().map(|piece| piece.role).collect();
        assert_eq!(roles, [Role::Chain, Role::Key]);
        assert!(objects("-", "kind: Secret\ndata: {tls.crt: '***'}\n").is_err());
    }
}
