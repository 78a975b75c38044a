//! What a port speaks, by the words of Kubernetes and Linkerd.
//!
//! **In** `appProtocol` (Kubernetes, "Application protocol") and `config.linkerd.io/opaque-ports`. **Out** [`Speaks`], or
//! nothing where nothing is said: then the endpoint is spoken to as the client speaks.

use std::collections::BTreeMap;

use crate::endpoint::Speaks;

/// What an `appProtocol` means for the gateway.
pub(super) fn speaks(protocol: &str) -> Option<Speaks> {
    match protocol.to_ascii_lowercase().as_str() {
        "kubernetes.io/h2c" | "h2c" | "http2" | "grpc" => Some(Speaks::Http2),
        // WebSocket by upgrade (RFC 6455); endpoints that take RFC 8441 are HTTP/2's and say h2c.
        "kubernetes.io/ws" | "ws" | "http/1.1" | "http1" => Some(Speaks::Http1),
        // The application's own TLS goes through as it is: we have neither its certificate nor its trust.
        "kubernetes.io/wss" | "wss" | "https" | "tls" => Some(Speaks::Opaque),
        "linkerd.io/opaque" | "linkerd.io/tcp" | "tcp" => Some(Speaks::Opaque),
        // `http` is both versions: a client that begins HTTP/2 without asking knows that it may.
        _ => None,
    }
}

/// The ports that Linkerd's annotation takes out of protocol detection.
#[derive(Debug, Default)]
pub(super) struct OpaquePorts<'a>(Vec<Which<'a>>);

#[derive(Debug)]
enum Which<'a> {
    Named(&'a str),
    Range(u16, u16),
}

impl<'a> OpaquePorts<'a> {
    const ANNOTATION: &'static str = "config.linkerd.io/opaque-ports";

    /// Reads a Service's annotations: numbers, ranges and names of ports, joined by commas.
    pub(super) fn of(annotations: Option<&'a BTreeMap<String, String>>) -> Self {
        let Some(text) = annotations.and_then(|all| all.get(Self::ANNOTATION)) else { return Self::default() };
        let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
        Self(words.map(|word| range(word).unwrap_or(Which::Named(word))).collect())
    }

    pub(super) fn holds(&self, number: u16, name: &str) -> bool {
        self.0.iter().any(|which| match which {
            Which::Named(named) => *named == name,
            Which::Range(from, to) => (*from..=*to).contains(&number),
        })
    }
}

fn range(word: &str) -> Option<Which<'_>> {
    let (from, to) = word.split_once('-').unwrap_or((word, word));
    Some(Which::Range(from.trim().parse().ok()?, to.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols() {
        for (protocol, want) in [
            ("kubernetes.io/h2c", Some(Speaks::Http2)),
            ("kubernetes.io/ws", Some(Speaks::Http1)),
            ("kubernetes.io/wss", Some(Speaks::Opaque)),
            ("HTTPS", Some(Speaks::Opaque)),
            ("linkerd.io/opaque", Some(Speaks::Opaque)),
            ("http", None),
            ("mycompany.example/special", None),
        ] {
            assert_eq!(speaks(protocol), want, "{protocol}");
        }
    }
}
