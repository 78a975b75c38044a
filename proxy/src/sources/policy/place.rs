//! Where things stand in a YAML text.
//!
//! **In** a text that is YAML. **Out** a [`Node`]: the shape of what stands there, each key and value with its line and column, so
//! that whoever finds `rules[2].http.paths[0]` wrong can say where that is; and, the other way, what stands at a place
//! that the parser complains of. **Refuses** (with nothing) what is no YAML.
//!
//! The text is read a second time for it, and only when something is wrong.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Location, Spanned};

/// A line and a column, both from 1.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Place {
    /// The line.
    pub line: u64,
    /// The character in it.
    pub column: u64,
}

impl From<Location> for Place {
    fn from(location: Location) -> Self {
        Self { line: location.line(), column: location.column() }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// A value and where it stands.
#[derive(Clone, Debug)]
pub struct Node {
    place: Place,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    /// A scalar, as text.
    Leaf(String),
    List(Vec<Node>),
    Map(Vec<(String, Place, Node)>),
}

/// What stands at a place.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Standing {
    /// The path that leads there: `rules[2].http.paths[0]`; empty for the whole text.
    pub path: String,
    /// The value in a few words.
    pub found: String,
}

impl Node {
    /// Reads a text.
    pub fn read(text: &str) -> Option<Self> {
        // A key that stands there twice is a mistake like others: it is to be found.
        let options = serde_saphyr::options! { duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins };
        serde_saphyr::from_str_with_options(text, options).ok()
    }

    /// Whether it is a map that has such a key.
    pub fn has(&self, key: &str) -> bool {
        matches!(&self.kind, Kind::Map(entries) if entries.iter().any(|(name, ..)| name == key))
    }

    /// The place of what a path leads to, or of the innermost part of it that is there.
    pub fn place_of(&self, path: &str) -> Place {
        let (mut node, mut rest, mut key) = (self, path, None);
        loop {
            let next = match &node.kind {
                Kind::Leaf(_) => None,
                Kind::List(items) => index(rest).and_then(|(at, rest)| Some((items.get(at)?, None, rest))),
                Kind::Map(entries) => {
                    // The longest: the name of a header field may have dots.
                    let fits = entries.iter().filter_map(|(key, place, node)| {
                        let rest = after(rest.trim_start_matches('.'), key)?;
                        Some((key.len(), (node, Some(*place), rest)))
                    });
                    fits.max_by_key(|(length, _)| *length).map(|(_, next)| next)
                }
            };
            match next {
                Some((inner, place, left)) => (node, key, rest) = (inner, place, left),
                // A map or list begins with its first entry; what is meant is its key.
                None => return key.filter(|_| !matches!(node.kind, Kind::Leaf(_))).unwrap_or(node.place),
            }
        }
    }

    /// What stands at a place. `map`: of those that begin there, the map is meant, not its first key.
    pub fn at(&self, place: Place, map: bool) -> Option<Standing> {
        let mut found = None;
        self.walk(String::new(), &mut |path, at, node| {
            let is_map = matches!(node.kind, Kind::Map(_));
            if at == place && (!map || is_map) {
                found = Some(Standing { path: path.to_owned(), found: node.in_words() });
            }
        });
        found
    }

    fn walk(&self, path: String, visit: &mut impl FnMut(&str, Place, &Self)) {
        visit(&path, self.place, self);
        match &self.kind {
            Kind::Leaf(_) => {}
            Kind::List(items) => {
                for (at, item) in items.iter().enumerate() {
                    item.walk(format!("{path}[{at}]"), visit);
                }
            }
            Kind::Map(entries) => {
                for (key, place, value) in entries {
                    let path = join(&path, key);
                    visit(&path, *place, value);
                    value.walk(path, visit);
                }
            }
        }
    }

    fn in_words(&self) -> String {
        match &self.kind {
            Kind::Leaf(text) if text.is_empty() => "nothing".to_owned(),
            Kind::Leaf(text) => format!("{:?}", text.chars().take(200).collect::<String>()),
            Kind::List(items) => format!("a list of {}", items.len()),
            Kind::Map(entries) => {
                let keys: Vec<&str> = entries.iter().take(4).map(|(key, ..)| key.as_str()).collect();
                format!("a map with {}{}", keys.join(", "), if entries.len() > 4 { ", …" } else { "" })
            }
        }
    }
}

/// A key below a path.
pub(super) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// `[2].x` is 2 and `.x`.
fn index(path: &str) -> Option<(usize, &str)> {
    let (at, rest) = path.strip_prefix('[')?.split_once(']')?;
    Some((at.parse().ok()?, rest))
}

/// What follows a key at the head of a path.
fn after<'a>(path: &'a str, key: &str) -> Option<&'a str> {
    let rest = path.strip_prefix(key)?;
    (rest.is_empty() || rest.starts_with(['.', '['])).then_some(rest)
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Kind>::deserialize(deserializer)?;
        Ok(Self { place: spanned.referenced.into(), kind: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Kind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Anything)
    }
}

struct Anything;

impl<'de> Visitor<'de> for Anything {
    type Value = Kind;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Kind, E> {
        Ok(Kind::Leaf(value.to_string()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Kind, E> {
        Ok(Kind::Leaf(value.to_string()))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Kind, E> {
        Ok(Kind::Leaf(value.to_string()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Kind, E> {
        Ok(Kind::Leaf(value.to_string()))
    }

    fn visit_i128<E: Error>(self, value: i128) -> Result<Kind, E> {
        Ok(Kind::Leaf(value.to_string()))
    }

    fn visit_u128<E: Error>(self, value: u128) -> Result<Kind, E> {
        Ok(Kind::Leaf(value.to_string()))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Kind, E> {
        Ok(Kind::Leaf(text.to_owned()))
    }

    fn visit_unit<E: Error>(self) -> Result<Kind, E> {
        Ok(Kind::Leaf(String::new()))
    }

    fn visit_none<E: Error>(self) -> Result<Kind, E> {
        Ok(Kind::Leaf(String::new()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Kind, A::Error> {
        let mut all = Vec::new();
        while let Some(item) = items.next_element()? {
            all.push(item);
        }
        Ok(Kind::List(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Kind, A::Error> {
        let mut all = Vec::new();
        while let Some(key) = entries.next_key::<Spanned<String>>()? {
            all.push((key.value, key.referenced.into(), entries.next_value()?));
        }
        Ok(Kind::Map(all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
rules:
  - name: a
    http: { paths: [/x, /y], headers: { x.env: [p], x: [q] } }
    clients:
      - one
  - name: b
";

    #[test]
    fn paths_to_places_and_back() {
        let node = Node::read(TEXT).expect("YAML");
        for (path, place) in [
            ("rules[0].name", "2:11"),
            ("rules[0].http.paths[1]", "3:25"),
            ("rules[0].http.headers.x.env[0]", "3:49"),
            ("rules[0].http.headers.x[0]", "3:57"),
            ("rules[0].clients", "4:5"),
            ("rules[0].clients[0]", "5:9"),
            ("rules[1]", "6:5"),
            ("rules[1].limits.burst", "6:5"),
            ("rules[7]", "1:1"),
            ("nothing.here", "1:1"),
        ] {
            assert_eq!(node.place_of(path).to_string(), place, "{path}");
        }
        for (line, column, map, want) in [
            (2, 5, true, Some("rules[0]")),
            (2, 5, false, Some("rules[0].name")),
            (3, 25, false, Some("rules[0].http.paths[1]")),
            (1, 1, true, Some("")),
            (9, 9, false, None),
        ] {
            let path = node.at(Place { line, column }, map).map(|standing| standing.path);
            assert_eq!(path.as_deref(), want, "{line}:{column}");
        }
        assert!(Node::read("a: [").is_none());
    }
}
