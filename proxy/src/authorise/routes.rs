//! Which route a request takes: the most specific one that holds.
//!
//! **In** [`Route`]s, and what is known of a request. **Out** the route it takes, or all that it may take where that cannot be
//! told for sure: a path that has two readings, a letter case or a slash at the end that some servers ignore, a field that
//! is there twice. Whoever may take several routes must be let through by each of them.
//!
//! Specific is, in this order: an exact host, a longer suffix of one; an exact path, a regular expression, a longer prefix; a
//! method; more header fields; more parameters; and what stands first. (Gateway API, HTTPRouteRule, "matches".)

use std::cmp::Reverse;

use http::HeaderMap;
use http::header::HeaderName;

use super::denied::{Denied, Reason};
use super::path::{Ambiguity, Reading};
use super::policy::RequestFacts;
use super::rule::{Asked, split_host};
use super::served::{Host, Match, Path, Route, Value};
use super::verdict::{Doubt, Verdict};
use crate::addr::Target;

/// All routes of a server, most specific matches first.
#[derive(Debug, Default)]
pub(super) struct Routes {
    entries: Vec<Entry>,
    /// By number, from 1; 0 is for connections of bytes.
    pub(super) names: Vec<String>,
    /// Whether connections of bytes are taken at all.
    pub(super) opaque: bool,
}

/// One match of one route at one host.
#[derive(Debug)]
struct Entry {
    /// The number of its route.
    route: u32,
    host: Option<Host>,
    wanted: Match,
}

/// The number under which connections of bytes stand.
pub(super) const OPAQUE: u32 = 0;

impl Routes {
    pub(super) fn new(server: &str, opaque: bool, routes: &[Route]) -> Self {
        let mut names = vec![server.to_owned()];
        let mut entries = Vec::new();
        for (number, route) in (1..).zip(routes) {
            names.push(format!("{server}/{}", route.name));
            let any = [None];
            let hosts: Vec<Option<Host>> = route.hosts.iter().cloned().map(Some).collect();
            for host in if hosts.is_empty() { &any[..] } else { &hosts } {
                let entry = |wanted: &Match| Entry { route: number, host: host.clone(), wanted: wanted.clone() };
                entries.extend(route.matches.iter().map(entry));
            }
        }
        entries.sort_by_key(|entry| Reverse(entry.specificity())); // stable: what stands first stays first
        Self { entries, names, opaque }
    }

    pub(super) fn denied(&self, reason: Reason, route: u32) -> Denied {
        Denied { reason, rule: self.names.get(route as usize).map(|name| name.as_str().into()) }
    }

    /// The routes that a request may take: the first that surely holds, and before it those that may.
    pub(super) fn find<'a>(&self, asked: &Asked<'a>, facts: &'a RequestFacts<'a>, target: &Target) -> Vec<u32> {
        let mut found = Vec::new();
        for entry in &self.entries {
            let verdict = entry.holds(asked, facts, target);
            if verdict != Verdict::No && !found.contains(&entry.route) {
                found.push(entry.route);
            }
            if verdict == Verdict::Yes {
                return found;
            }
        }
        // None for sure: there may be no route at all.
        Vec::new()
    }
}

impl Entry {
    /// What could not be read may be the most specific of all, so it stands before all that could.
    fn specificity(&self) -> [usize; 8] {
        let (exact_host, host) = match &self.host {
            None => (0, 0),
            Some(Host::Below(name)) => (0, name.len()),
            Some(Host::Exact(name)) => (1, name.len()),
        };
        let (kind, path) = match &self.wanted.path {
            Path::Any => (0, 0),
            Path::Prefix(prefix) => (1, prefix.trim_end_matches('/').len()),
            Path::Regex(pattern) => (2, pattern.as_str().len()),
            Path::Exact(path) => (3, path.len()),
        };
        let Match { method, headers, query, unreadable, .. } = &self.wanted;
        [
            usize::from(*unreadable),
            exact_host,
            host,
            kind,
            path,
            usize::from(method.is_some()),
            headers.len(),
            query.len(),
        ]
    }

    fn holds<'a>(&self, asked: &Asked<'a>, facts: &'a RequestFacts<'a>, target: &Target) -> Verdict {
        let Match { path, headers, query, method, unreadable } = &self.wanted;
        let known = if *unreadable { Verdict::Maybe(Doubt::Unreadable) } else { Verdict::Yes };
        known
            .and(|| self.host_holds(facts, target))
            .and(|| method.as_ref().map_or(Verdict::Yes, |method| method_holds(method, facts.method)))
            .and(|| path_holds(path, asked.path(facts)))
            .and(|| {
                headers
                    .iter()
                    .fold(Verdict::Yes, |all, (name, want)| all.and(|| header_holds(facts.headers, name, want)))
            })
            .and(|| {
                query.iter().fold(Verdict::Yes, |all, (name, want)| all.and(|| query_holds(facts.query, name, want)))
            })
    }

    /// A request that names no host is for the service that its session names.
    fn host_holds(&self, facts: &RequestFacts<'_>, target: &Target) -> Verdict {
        let Some(host) = &self.host else { return Verdict::Yes };
        let name = match facts.host {
            None => target.name.as_str(),
            Some(authority) => match split_host(authority) {
                Some((name, _)) => name,
                None => return Verdict::Maybe(Doubt::Unseen),
            },
        };
        let name = name.strip_suffix('.').unwrap_or(name);
        match host {
            Host::Exact(wanted) => wanted.eq_ignore_ascii_case(name).into(),
            Host::Below(wanted) => {
                let tail = name.len().checked_sub(wanted.len()).and_then(|at| Some((name.get(..at)?, name.get(at..)?)));
                tail.is_some_and(|(head, tail)| {
                    head.len() > 1 && head.ends_with('.') && tail.eq_ignore_ascii_case(wanted)
                })
                .into()
            }
        }
    }
}

fn method_holds(wanted: &http::Method, is: &http::Method) -> Verdict {
    match wanted {
        wanted if wanted == is => Verdict::Yes,
        // Methods are case-sensitive (RFC 9110 §9.1), but not to every server.
        wanted if wanted.as_str().eq_ignore_ascii_case(is.as_str()) => Verdict::Maybe(Doubt::Spelling),
        _ => Verdict::No,
    }
}

fn path_holds(wanted: &Path, reading: &Result<Reading<'_>, Ambiguity>) -> Verdict {
    let Ok(reading) = reading else {
        // Every path is every path, however it is read.
        return match wanted {
            Path::Any => Verdict::Yes,
            Path::Prefix(prefix) if prefix.trim_end_matches('/').is_empty() => Verdict::Yes,
            _ => Verdict::Maybe(Doubt::Unreadable),
        };
    };
    let both = |one: &dyn Fn(&str) -> Verdict| match (one(&reading.plain), one(reading.normal())) {
        (plain, normal) if plain == normal => plain,
        _ => Verdict::Maybe(Doubt::Path),
    };
    match wanted {
        Path::Any => Verdict::Yes,
        Path::Exact(path) => both(&|is| alike(path, is)),
        Path::Prefix(prefix) => both(&|is| below(prefix.trim_end_matches('/'), is)),
        Path::Regex(pattern) => both(&|is| pattern.holds(is.as_bytes()).into()),
    }
}

/// The same path; in doubt where letter case or a slash at the end are the difference.
fn alike(wanted: &str, is: &str) -> Verdict {
    let bare = |path: &str| path.trim_end_matches('/').to_ascii_lowercase();
    match wanted {
        wanted if wanted == is => Verdict::Yes,
        wanted if bare(wanted) == bare(is) => Verdict::Maybe(Doubt::Path),
        _ => Verdict::No,
    }
}

/// The path itself, or one that goes on after a slash.
fn below(prefix: &str, is: &str) -> Verdict {
    let (Some(head), Some(tail)) = (is.get(..prefix.len()), is.get(prefix.len()..)) else { return Verdict::No };
    match tail.is_empty() || tail.starts_with('/') {
        false => Verdict::No,
        true if head == prefix => Verdict::Yes,
        true if head.eq_ignore_ascii_case(prefix) => Verdict::Maybe(Doubt::Path),
        true => Verdict::No,
    }
}

fn value_holds(wanted: &Value, is: &[u8]) -> bool {
    match wanted {
        Value::Exact(value) => **value == *is,
        Value::Regex(pattern) => pattern.holds(is),
    }
}

/// All values must be the one, or it depends on which the server takes.
fn all_or_some(values: impl Iterator<Item = bool>) -> Verdict {
    let (mut all, mut some) = (true, false);
    for holds in values {
        all &= holds;
        some |= holds;
    }
    match (all, some) {
        (true, true) => Verdict::Yes,
        (_, true) => Verdict::Maybe(Doubt::Spelling),
        (_, false) => Verdict::No,
    }
}

fn header_holds(headers: &HeaderMap, name: &HeaderName, wanted: &Value) -> Verdict {
    all_or_some(headers.get_all(name).iter().map(|line| value_holds(wanted, line.as_bytes())))
}

fn query_holds(query: Option<&str>, name: &str, wanted: &Value) -> Verdict {
    let pairs = query.unwrap_or_default().split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let values = pairs.filter(|(is, _)| decoded(is) == name.as_bytes()).map(|(_, value)| decoded(value));
    all_or_some(values.map(|value| value_holds(wanted, &value)))
}

/// A name or value of a query as forms write it (WHATWG URL §5.1).
fn decoded(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        let digit = |at: usize| after.get(at).and_then(|byte| char::from(*byte).to_digit(16));
        match (byte, digit(0), digit(1)) {
            (b'+', ..) => out.push(b' '),
            (b'%', Some(high), Some(low)) => {
                out.push(u8::try_from(high << 4 | low).expect("two hexadecimal digits are a byte"));
                rest = &after[2..];
            }
            _ => out.push(byte),
        }
    }
    out
}
