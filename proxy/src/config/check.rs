//! What a file that reads may still have wrong: values that contradict each other, and where in the text they stand.
//!
//! **In** a configuration whose every key has been read. **Out** nothing. **Refuses** with the key at fault, what is wrong with
//! it, and what would be right.

use std::collections::HashSet;

use super::Config;
use super::file::IdentitySource;
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
        self.check_limits()?;
        if !(0.0..=1.0).contains(&file.telemetry.access_log_sample) {
            return wrong("telemetry.access_log_sample", "a share is a number from 0.0 to 1.0");
        }
        let traces = &file.telemetry.traces;
        if !(0.0..=1.0).contains(&traces.sample) {
            return wrong("telemetry.traces.sample", "a share is a number from 0.0 to 1.0");
        }
        if let Some(endpoint) = &traces.endpoint {
            if !cfg!(feature = "otlp") {
                return wrong(
                    "telemetry.traces.endpoint",
                    "this build sends no spans; build it with `--features otlp`",
                );
            }
            let uri = endpoint.parse::<http::Uri>().ok();
            if !uri
                .is_some_and(|uri| uri.scheme_str() == Some("http") && uri.host().is_some_and(|host| !host.is_empty()))
            {
                let message =
                    format!("`{endpoint}` is no collector; write `http://host:4317`, OTLP over gRPC in plaintext");
                return wrong("telemetry.traces.endpoint", &message);
            }
        }
        if !(0.0..=1.0).contains(&file.balance.max_ejected) {
            return wrong("balance.max_ejected", "a share is a number from 0.0 to 1.0");
        }
        if !(0.0..=1.0).contains(&file.http.retry_budget) {
            return wrong("http.retry_budget", "a share is a number from 0.0 to 1.0");
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
        self.check_linkerd()?;
        self.check_kubernetes()?;
        self.check_services()
    }
}

/// Where a dotted key stands in the text: the innermost of its words that is there.
pub(super) fn place_of(text: &str, key: &str) -> Option<(u64, u64)> {
    let place = Node::read(text)?.place_of(key);
    Some((place.line, place.column))
}
