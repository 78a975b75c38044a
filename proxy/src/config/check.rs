//! What a file that reads may still have wrong: values that contradict each other, and where in the text they stand.
//!
//! **In** a configuration whose every key has been read. **Out** nothing. **Refuses** with the key at fault, what is wrong with
//! it, and what would be right.

use std::collections::HashSet;

use super::Config;
use crate::authorise::Policy;
use crate::identity::Identity;

impl Config {
    /// What no single key can be blamed for, or only with another one beside it.
    pub(super) fn check(&self) -> Result<(), (String, String)> {
        let file = &self.file;
        let wrong = |key: &str, message: &str| Err((key.to_owned(), message.to_owned()));
        for (key, path) in [
            ("tls.chain_file", &file.tls.chain_file),
            ("tls.key_file", &file.tls.key_file),
            ("tls.bundle_file", &file.tls.bundle_file),
        ] {
            if path.as_os_str().is_empty() {
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
        self.check_identify()?;
        self.check_policy()?;
        self.check_services()
    }

    /// The rules, as far as they can be judged without knowing who the gateway is.
    fn check_policy(&self) -> Result<(), (String, String)> {
        let Err(invalid) = Policy::compile(&self.file.authorise, None, None) else { return Ok(()) };
        let Some(first) = invalid.0.into_iter().next() else { return Ok(()) };
        let key = match &first.rule {
            Some((index, _)) => format!("authorise.rules[{index}].{}", first.field),
            None => format!("authorise.{}", first.field),
        };
        let nearest = first.nearest.map(|nearest| format!("; did you mean `{nearest}`?")).unwrap_or_default();
        Err((key, format!("`{}`: {}{nearest}", first.found, first.wrong)))
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

/// A parser's message in the operator's words: what was found, and what would be right. The place it repeats and the
/// source it quotes are left out.
pub(super) fn explained(message: &str, text: &str, place: Option<(u64, u64)>) -> String {
    let line = message.lines().next().unwrap_or(message);
    let line = line.strip_prefix("error: ").unwrap_or(line);
    let repeated = place.map(|(line, column)| format!("line {line} column {column}: ")).unwrap_or_default();
    let line = line.strip_prefix(&repeated).unwrap_or(line);
    let right = match line.strip_prefix("invalid ").unwrap_or_default() {
        "u16" => "a whole number from 0 to 65535",
        "u32" => "a whole number from 0 to 4294967295",
        "u64" | "usize" => "a whole number from 0",
        "f32" | "f64" => "a number",
        "bool" | "boolean" => "true or false",
        "socket address syntax" => "an address and a port, such as 127.0.0.1:4143 or '[::]:4143'",
        "IP address syntax" => "a network, such as 10.0.0.0/8",
        _ => return line.to_owned(),
    };
    match place.and_then(|place| scalar_at(text, place)) {
        Some(found) => format!("`{found}` is not {right}"),
        None => format!("this is not {right}"),
    }
}

/// The plain scalar that begins at line and column.
fn scalar_at(text: &str, (line, column): (u64, u64)) -> Option<&str> {
    let line = text.lines().nth(usize::try_from(line).ok()?.checked_sub(1)?)?;
    let (at, _) = line.char_indices().nth(usize::try_from(column).ok()?.checked_sub(1)?)?;
    let scalar = line[at..].split([',', ']', '}', '#']).next()?.trim();
    (!scalar.is_empty()).then_some(scalar)
}
