//! `identify:` made into settings of the gateway.
//!
//! **In** the section as it was written. **Out** what becomes of each header, which cluster is which, and where the keys of
//! the assertion are. **Refuses** lifetimes that no token could keep.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::Config;
use super::file::Forwarding;
use crate::gateway::clusters::Clusters;
use crate::gateway::http::identify;

impl From<Forwarding> for identify::Forwarding {
    fn from(forwarding: Forwarding) -> Self {
        match forwarding {
            Forwarding::Append => Self::Append,
            Forwarding::Off | Forwarding::Sanitise => Self::Off,
            Forwarding::Set => Self::Set,
        }
    }
}

impl Config {
    pub(super) fn check_identify(&self) -> Result<(), (String, String)> {
        let lifetime = self.file.identify.assertion.lifetime.0;
        let wrong = |message: &str| Err(("identify.assertion.lifetime".to_owned(), message.to_owned()));
        if lifetime < Duration::from_secs(10) {
            return wrong("below 10s clocks that differ a little would refuse every token; the default is 60s");
        }
        if lifetime > Duration::from_secs(3600) {
            return wrong("above 1h a token that leaked would be good for too long; the default is 60s");
        }
        Ok(())
    }

    /// `identify`, the headers.
    pub fn identify(&self) -> identify::Settings {
        let identify = &self.file.identify;
        identify::Settings {
            client_id: identify.client_id,
            client_cert: identify.forwarded_client_cert.into(),
            forwarded_for: identify.forwarded_for.into(),
            trusted_proxies: identify.trusted_proxies.iter().map(|proxy| proxy.0.clone()).collect(),
            assertion_header: identify.assertion.header.0.clone(),
            balancers: self.file.accept.proxy_networks.clone(),
        }
    }

    /// `identify`, the clusters.
    pub fn clusters(&self) -> Clusters {
        let identify = &self.file.identify;
        let domains = identify.trust_domains.iter();
        let authorities = identify.authorities.iter();
        Clusters {
            trust_domains: domains.map(|(domain, name)| (domain.0.as_str().into(), Arc::clone(&name.0))).collect(),
            authorities: authorities.map(|(authority, name)| (authority.0, Arc::clone(&name.0))).collect(),
        }
    }

    /// How long an assertion is valid, where one is sent.
    pub fn assertion_lifetime(&self) -> Option<Duration> {
        let assertion = &self.file.identify.assertion;
        assertion.enabled.then_some(assertion.lifetime.0)
    }

    /// The file with the assertion's keys, where there is one of their own.
    pub fn assertion_key_file(&self) -> Option<PathBuf> {
        self.file.identify.assertion.key_file.as_ref().map(|path| self.path(path))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::ConfigError;

    const TLS: &str = "tls: { chain_file: a, key_file: b, bundle_file: c }\n";

    fn parse(section: &str) -> Result<Config, ConfigError> {
        Config::parse(Path::new("/etc/isthmus/isthmus.yaml"), &format!("{TLS}identify:\n{section}"))
    }

    #[test]
    fn every_word_has_its_meaning() {
        let config = parse(
            "  client_id: false\n  forwarded_client_cert: append\n  forwarded_for: set\n  \
             trusted_proxies: [spiffe://west.example/ns/edge/sa/gateway]\n  \
             trust_domains: { West.Example: west }\n  \
             authorities:\n    aa:bbccddeeff00112233445566778899aabbccddeeff00112233445566778899: north\n  \
             assertion: { enabled: true, header: X-Client-Jwt, lifetime: 30s, key_file: keys.pem }\n",
        )
        .unwrap();
        let identify = config.identify();
        assert!(!identify.client_id);
        assert_eq!(identify.client_cert, identify::Forwarding::Append);
        assert_eq!(identify.forwarded_for, identify::Forwarding::Set);
        assert_eq!(identify.trusted_proxies.len(), 1);
        assert_eq!(identify.assertion_header, "x-client-jwt");
        assert_eq!(config.assertion_lifetime(), Some(Duration::from_secs(30)));
        assert_eq!(config.assertion_key_file().unwrap(), Path::new("/etc/isthmus/keys.pem"));
        let clusters = config.clusters();
        assert_eq!(clusters.trust_domains.get("west.example").map(|name| &**name), Some("west"));
        assert_eq!(clusters.authorities.values().next().map(|name| &**name), Some("north"));
    }

    #[test]
    fn nothing_is_sent_by_default_but_what_linkerd_sends() {
        let config = parse("  {}\n").unwrap();
        let identify = config.identify();
        assert!(identify.client_id);
        assert_eq!(identify.client_cert, identify::Forwarding::Off);
        assert_eq!(identify.forwarded_for, identify::Forwarding::Off);
        assert_eq!((config.assertion_lifetime(), config.clusters()), (None, Clusters::default()));
        for word in ["off", "sanitise"] {
            let config = parse(&format!("  forwarded_client_cert: {word}\n")).unwrap();
            assert_eq!(config.identify().client_cert, identify::Forwarding::Off, "{word}");
        }
    }

    #[test]
    fn wrong_words_are_named_with_their_place() {
        for (section, place, what) in [
            ("  forwarded_client_cert: forward\n", 3, "forward"),
            ("  assertion:\n    lifetime: 1s\n", 4, "identify.assertion.lifetime"),
            ("  assertion:\n    lifetime: 2h\n", 4, "identify.assertion.lifetime"),
            ("  assertion:\n    header: host\n", 4, "host"),
            ("  authorities:\n    abcd: west\n", 4, "fingerprint"),
            ("  trust_domains:\n    west.example: a b\n", 4, "cluster"),
            ("  trusted_proxies: ['*']\n", 3, "*"),
        ] {
            let error = parse(section).unwrap_err();
            assert_eq!(error.place.map(|(line, _)| line), Some(place), "{error}");
            assert!(error.message.contains(what), "{error}");
        }
    }
}
