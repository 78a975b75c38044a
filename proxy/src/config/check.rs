//! What a file that reads may still have wrong: values that contradict each other, and where in the text they stand.
//!
//! **In** a configuration whose every key has been read. **Out** nothing. **Refuses** with the key at fault, what is wrong with
//! it, and what would be right.

use std::collections::HashSet;

use super::Config;
use super::file::IdentitySource;
use crate::identity::Identity;
use crate::sources::policy::place::Node;

impl Config {
    /// What no single key can be blamed for, or only with another one beside it.
    pub(super) fn check(&self) -> Result<(), (String, String)> {
        let file = &self.file;
        let wrong = |key: &str, message: &str| Err((key.to_owned(), message.to_owned()));
        let source = file.identity.source;
        for (key, path, needed) in [
            ("tls.chain_file", &file.tls.chain_file, source == IdentitySource::Files),
            ("tls.key_file", &file.tls.key_file, source == IdentitySource::Files),
            ("tls.bundle_file", &file.tls.bundle_file, source != IdentitySource::Spiffe),
        ] {
            if !needed && key != "tls.bundle_file" && !path.as_os_str().is_empty() {
                return wrong(key, "the certificate comes from elsewhere (identity.source); leave it out");
            }
            if needed && path.as_os_str().is_empty() {
                return wrong(key, "missing; name a PEM file (`isthmus certs` makes them, `isthmus demo` needs none)");
            }
        }
        if file.accept.max_connections == 0 {
            return wrong("accept.max_connections", "0 would accept nobody; the default is 20000");
        }
        if !(0.0..=1.0).contains(&file.telemetry.access_log_sample) {
            return wrong("telemetry.access_log_sample", "a share is a number from 0.0 to 1.0");
        }
        if !(0.0..=1.0).contains(&file.balance.max_ejected) {
            return wrong("balance.max_ejected", "a share is a number from 0.0 to 1.0");
        }
        if !(0.0..=1.0).contains(&file.http.retry_budget) {
            return wrong("http.retry_budget", "a share is a number from 0.0 to 1.0");
        }
        if file.http.max_streams == 0 {
            return wrong("http.max_streams", "0 would refuse every HTTP/2 request; the default is 1024");
        }
        if file.http.max_header_bytes.0 < 1024 {
            return wrong("http.max_header_bytes", "below 1KiB no real request fits; the default is 16KiB");
        }
        if file.drain.deadline < file.drain.announce {
            return wrong(
                "drain.deadline",
                "shorter than drain.announce; it is counted from the signal and includes it",
            );
        }
        if let Some(path) = &file.probe.path
            && !path.starts_with('/')
        {
            return wrong("probe.path", "a path begins with a slash");
        }
        let mut listen = HashSet::new();
        for (key, addr) in [
            ("accept.listen", file.accept.listen),
            ("probe.listen", file.probe.listen),
            ("admin.listen", file.admin.listen),
        ] {
            if addr.port() != 0 && !listen.insert(addr.port()) {
                return wrong(key, &format!("port {} is taken by another listener of this file", addr.port()));
            }
        }
        self.check_control()?;
        self.check_identify()?;
        self.check_services()
    }

    fn check_services(&self) -> Result<(), (String, String)> {
        let suffixes = &self.file.route.suffixes;
        let mut seen = HashSet::new();
        for (index, service) in self.file.sources.services.iter().enumerate() {
            let key = |field: &str| format!("sources.services[{index}].{field}");
            if service.port == 0 {
                return Err((key("port"), "a port is a number from 1 to 65535".to_owned()));
            }
            if !seen.insert((service.name.0.clone(), service.port)) {
                return Err((key("name"), format!("{}:{} stands in the table twice", service.name, service.port)));
            }
            if !suffixes.iter().any(|suffix| suffix.0.holds(&service.name.0)) {
                return Err((
                    key("name"),
                    format!("{} lies outside route.suffixes and could never be reached", service.name),
                ));
            }
            if let Some(tls) = &service.tls
                && tls.server_name.is_none()
                && matches!(tls.identity.0, Identity::Uri(_))
            {
                return Err((
                    key("tls"),
                    "an identity that is a URI needs a server_name, as SNI holds names only".to_owned(),
                ));
            }
        }
        Ok(())
    }
}

/// Where a dotted key stands in the text: the innermost of its words that is there.
pub(super) fn place_of(text: &str, key: &str) -> Option<(u64, u64)> {
    let place = Node::read(text)?.place_of(key);
    Some((place.line, place.column))
}
