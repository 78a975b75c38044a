//! What was seen: calls by client, service, method and path template, with what became of them, first and last seen.
//!
//! **In** one call and its outcome at a time. **Out** [`Observation`]s, for `/state`, for the metrics and for `suggest`.
//! Bounded: paths are chosen by clients, so what looks like an identifier becomes `*`; when the room for whole templates is used
//! up, new calls are gathered under `/*`; when that is used up too, they are only counted. Pure: the wall clock is the caller's, and
//! so is the sharing (a worker keeps its own [`Sightings`], whoever shows them merges).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::addr::Target;
use crate::identity::Identity;

use super::denied::Denied;
use super::path::Reading;
use super::policy::{Admission, RequestFacts};

/// What was asked for, as rules would name it.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Asking {
    /// A gRPC call.
    Grpc {
        /// The full name of the service.
        service: String,
        /// The method.
        method: String,
    },
    /// An HTTP request.
    Http {
        /// The method.
        method: String,
        /// A path pattern, as a rule has it; absent where the path cannot be read in one way.
        #[serde(skip_serializing_if = "Option::is_none")]
        path: Option<String>,
    },
    /// A connection whose bytes are of no concern.
    Opaque,
}

/// What became of it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Became {
    /// Let through.
    Admitted,
    /// Refused.
    Refused,
    /// Let through by audit mode alone.
    WouldRefuse,
}

/// Calls of one kind, and how often they were seen.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Observation {
    /// The identity that called.
    pub client: String,
    /// The service that was called, with its port.
    pub service: String,
    /// How.
    pub asking: Asking,
    /// What became of it.
    pub became: Became,
    /// The code of the refusal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// The rule that decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// How often.
    pub count: u64,
    /// The first of them, in seconds since the epoch.
    pub first_seen: u64,
    /// The last of them, likewise.
    pub last_seen: u64,
}

/// What tells one kind of call from another.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct Key {
    client: Identity,
    service: Target,
    asking: Asking,
    became: Became,
    code: Option<&'static str>,
    rule: Option<Arc<str>>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    count: u64,
    first: u64,
    last: u64,
}

/// A bounded collection of what was seen.
#[derive(Debug)]
pub struct Sightings {
    room: usize,
    seen: HashMap<Key, Seen>,
    beyond: u64,
}

/// Once the room for whole templates is used up, a quarter as much again is kept for calls gathered under `/*`.
const GATHERED_SHARE: usize = 4;

impl Sightings {
    /// With room for so many kinds of call.
    pub fn new(room: usize) -> Self {
        Self { room, seen: HashMap::new(), beyond: 0 }
    }

    /// Notes one decision. `facts` are absent for an opaque connection; `now` is in seconds since the epoch.
    pub fn note(
        &mut self,
        client: &Identity,
        service: &Target,
        facts: Option<&RequestFacts<'_>>,
        decision: Result<&Admission, &Denied>,
        now: u64,
    ) {
        let (became, refusal, rule) = match decision {
            Ok(Admission { would_refuse: Some(denied), .. }) => (Became::WouldRefuse, Some(denied), &denied.rule),
            Ok(admission) => (Became::Admitted, None, &admission.rule),
            Err(denied) => (Became::Refused, Some(denied), &denied.rule),
        };
        let key = Key {
            client: client.clone(),
            service: service.clone(),
            asking: facts.map_or(Asking::Opaque, Asking::new),
            became,
            code: refusal.map(|denied| denied.reason.code()),
            rule: rule.clone(),
        };
        self.add(key, Seen { count: 1, first: now, last: now });
    }

    /// Takes in what another has seen.
    pub fn merge(&mut self, other: &Self) {
        other.seen.iter().for_each(|(key, seen)| self.add(key.clone(), *seen));
        self.beyond = self.beyond.saturating_add(other.beyond);
    }

    /// How many calls found no room, and are counted here only.
    pub fn beyond(&self) -> u64 {
        self.beyond
    }

    /// What was seen, in a fixed order: by client, service and call.
    pub fn observations(&self) -> Vec<Observation> {
        let one = |(key, seen): (&Key, &Seen)| Observation {
            client: key.client.to_string(),
            service: key.service.to_string(),
            asking: key.asking.clone(),
            became: key.became,
            code: key.code.map(str::to_owned),
            rule: key.rule.as_deref().map(str::to_owned),
            count: seen.count,
            first_seen: seen.first,
            last_seen: seen.last,
        };
        let mut all: Vec<Observation> = self.seen.iter().map(one).collect();
        all.sort_by(|a, b| {
            let by = |o: &'_ Observation| (o.became, o.code.clone(), o.rule.clone());
            (&a.client, &a.service, &a.asking).cmp(&(&b.client, &b.service, &b.asking)).then_with(|| by(a).cmp(&by(b)))
        });
        all
    }

    fn add(&mut self, mut key: Key, new: Seen) {
        if self.seen.len() >= self.room && !self.seen.contains_key(&key) {
            key.asking = key.asking.gathered();
        }
        let full = self.seen.len() >= self.room + self.room / GATHERED_SHARE;
        match self.seen.entry(key) {
            Entry::Occupied(mut old) => {
                let old = old.get_mut();
                old.count = old.count.saturating_add(new.count);
                (old.first, old.last) = (old.first.min(new.first), old.last.max(new.last));
            }
            Entry::Vacant(_) if full => self.beyond = self.beyond.saturating_add(new.count),
            Entry::Vacant(place) => drop(place.insert(new)),
        }
    }
}

impl Asking {
    /// What a request asks for, identifiers taken out.
    pub fn new(facts: &RequestFacts<'_>) -> Self {
        let reading = Reading::new(facts.path).ok();
        if facts.grpc
            && facts.method == http::Method::POST
            && let Some((service, method)) = reading.as_ref().and_then(grpc_call)
        {
            return Self::Grpc { service: service.to_owned(), method: method.to_owned() };
        }
        let path = reading.as_ref().filter(|reading| reading.plain.starts_with('/')).map(template);
        Self::Http { method: facts.method.as_str().to_owned(), path }
    }

    /// The same with less detail.
    fn gathered(self) -> Self {
        match self {
            Self::Grpc { .. } => Self::Http { method: "POST".to_owned(), path: Some("/*".to_owned()) },
            Self::Http { method, path } => Self::Http { method, path: path.map(|_| "/*".to_owned()) },
            Self::Opaque => Self::Opaque,
        }
    }
}

/// Service and method of a gRPC path, where both are words that a rule can name.
fn grpc_call<'a>(reading: &'a Reading<'_>) -> Option<(&'a str, &'a str)> {
    let word = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    let (service, method) = reading.plain.strip_prefix('/')?.split_once('/')?;
    (word(method) && service.split('.').all(word)).then_some((service, method))
}

/// Longer templates are cut to what lies below their first segments.
const MAX_SEGMENTS: usize = 12;

/// Bytes of a template, likewise.
const MAX_BYTES: usize = 256;

/// A pattern that surely holds for the path, identifiers taken out.
fn template(reading: &Reading<'_>) -> String {
    let segments: Vec<&str> = reading.plain.split('/').skip(1).collect();
    // A path with two readings is covered by what both have in common.
    let common = match &reading.resolved {
        None => segments.len(),
        Some(normal) => {
            let normal: Vec<&str> = normal.split('/').skip(1).collect();
            let same = segments.iter().zip(&normal).take_while(|(a, b)| a == b && !a.is_empty()).count();
            same.min(segments.len() - 1).min(normal.len() - 1)
        }
    };
    let mut kept = common.min(MAX_SEGMENTS);
    loop {
        let whole = kept == segments.len() && reading.resolved.is_none();
        let body: String = segments[..kept].iter().flat_map(|segment| ["/", open(segment)]).collect();
        match (whole, body.len() <= MAX_BYTES) {
            (true, true) => return format!("={body}"),
            (false, true) => return format!("{body}/*"),
            (_, false) => kept -= 1,
        }
    }
}

fn open(segment: &str) -> &str {
    if is_identifier(segment) { "*" } else { segment }
}

/// Whether a segment names one thing among many: a number, a UUID, a digest, an address, or what a pattern cannot spell.
fn is_identifier(segment: &str) -> bool {
    let digits = segment.bytes().filter(u8::is_ascii_digit).count();
    let hex = segment.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    let number = digits > 0 && segment.bytes().all(|b| b.is_ascii_digit() || b"-.,:".contains(&b));
    number || digits > 0 && (hex && segment.len() >= 12 || segment.len() >= 24) || segment.contains(['*', '%', '@'])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authorise::path::{PathPattern, any_holds};
    use crate::authorise::verdict::Verdict;
    use proptest::prelude::*;

    fn template_of(path: &str) -> Option<String> {
        Reading::new(path).ok().map(|reading| template(&reading))
    }

    #[test]
    fn templates() {
        for (path, want) in [
            ("/", Some("=/")),
            ("/v1/items", Some("=/v1/items")),
            ("/v1/items/", Some("=/v1/items/")),
            ("/v1/items/42", Some("=/v1/items/*")),
            ("/v2.1/items", Some("=/v2.1/items")),
            ("/items/2024-01-02/x", Some("=/items/*/x")),
            ("/u/3f2504e0-4f89-11d3-9a0c-0305e82c3301", Some("=/u/*")),
            ("/u/deadbeef", Some("=/u/deadbeef")),
            ("/u/someone@example.org/x?y", Some("=/u/*/x")),
            ("/a%20b/*", Some("=/*/*")),
            ("/v1/a/../x", Some("/v1/*")),
            ("//v1/x", Some("/*")),
            ("/v1/..", Some("/*")),
            ("/a;b/c", Some("/*")),
            ("/a/b/c/d/e/f/g/h/i/j/k/l/m", Some("/a/b/c/d/e/f/g/h/i/j/k/l/*")),
            ("/a%2fb", None),
        ] {
            assert_eq!(template_of(path).as_deref(), want, "{path}");
        }
        let long = format!("/{}/x", "y".repeat(300));
        assert_eq!(template_of(&long).as_deref(), Some("/*"));
    }

    proptest! {
        #[test]
        fn a_template_surely_holds_for_its_path(parts in proptest::collection::vec("[a-c.;%*/0-9]{0,5}|/|\\.\\.|%20", 0..8)) {
            let path = format!("/{}", parts.concat());
            if let Some(template) = template_of(&path) {
                let pattern = PathPattern::parse(&template).expect("a template is a pattern");
                prop_assert_eq!(any_holds(&[pattern], &Reading::new(&path)), Verdict::Yes, "{} for {}", template, path);
            }
        }
    }

    #[test]
    fn sightings_are_bounded() {
        let client = Identity::parse("web.west.example").expect("an identity");
        let service = Target::parse("api:80", 80).expect("a target");
        let headers = http::HeaderMap::new();
        let denied = Denied { reason: crate::authorise::Reason::NoRule, rule: None };
        let mut sightings = Sightings::new(8);
        let mut note = |path: &str, now| {
            let facts = RequestFacts {
                method: &http::Method::GET,
                path,
                query: None,
                headers: &headers,
                host: None,
                grpc: false,
            };
            sightings.note(&client, &service, Some(&facts), Err(&denied), now);
        };
        note("/v1/items/1", 5);
        note("/v1/items/2", 3);
        for i in 0..1000 {
            note(&format!("/p{}x/y", "z".repeat(i % 50)), 7);
        }
        assert!(sightings.seen.len() <= 10);
        let all = sightings.observations();
        let items =
            all.iter().find(|o| matches!(&o.asking, Asking::Http { path: Some(path), .. } if path == "=/v1/items/*"));
        let items = items.expect("two requests of one template");
        assert_eq!((items.count, items.first_seen, items.last_seen), (2, 3, 5));
        assert_eq!(items.code.as_deref(), Some("authorise.no_rule"));
        assert_eq!(all.iter().map(|o| o.count).sum::<u64>() + sightings.beyond(), 1002);
        let mut merged = Sightings::new(8);
        merged.merge(&sightings);
        merged.merge(&sightings);
        assert_eq!(merged.observations().iter().map(|o| o.count).sum::<u64>() + merged.beyond(), 2004);
        let json = serde_json::to_string(&all).expect("written");
        assert_eq!(serde_json::from_str::<Vec<Observation>>(&json).expect("read"), all);
    }
}
