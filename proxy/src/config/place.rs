//! Where a key stands in the text: for faults that are found only when the whole is read, between two keys or in a value
//! that is well formed but makes no sense.
//!
//! **In** the text and a dotted key such as `sources.services[1].name`. **Out** line and column of its value; where the key
//! is absent, of what it should stand in. The text is read once more, as a bare tree with positions: that happens only on
//! the way to an error.

use std::collections::HashMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// Line and column of a key's value, both from 1.
pub(super) fn of(text: &str, key: &str) -> Option<(u64, u64)> {
    let root: Spanned<Node> = serde_saphyr::from_str(text).ok()?;
    let mut at = &root;
    for word in key.split(['.', '[']) {
        let next = match (&at.value, word.strip_suffix(']')) {
            (Node::List(rows), Some(index)) => index.parse().ok().and_then(|index: usize| rows.get(index)),
            (Node::Map(fields), None) => fields.get(word),
            _ => None,
        };
        let Some(next) = next else { break };
        at = next;
    }
    let location = at.referenced;
    Some((location.line(), location.column()))
}

/// YAML, as far as positions go.
enum Node {
    Leaf,
    List(Vec<Spanned<Node>>),
    Map(HashMap<String, Spanned<Node>>),
}

struct Nodes;

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Nodes)
    }
}

macro_rules! leaves {
    ($($visit:ident: $type:ty,)*) => {$(
        fn $visit<E: Error>(self, _: $type) -> Result<Node, E> {
            Ok(Node::Leaf)
        }
    )*};
}

impl<'de> Visitor<'de> for Nodes {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    leaves!(visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_i128: i128, visit_u128: u128, visit_f64: f64, visit_str: &str,);

    fn visit_unit<E: Error>(self) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_none<E: Error>(self) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut rows: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(row) = rows.next_element()? {
            list.push(row);
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Node, A::Error> {
        let mut map = HashMap::new();
        while let Some(name) = fields.next_key::<String>()? {
            map.insert(name, fields.next_value()?);
        }
        Ok(Node::Map(map))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Node::Leaf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_where_they_stand() {
        let text = "# a: comment\na: { b: 1, c: [x, y] }\nd:\n  - e: 1\n    f: 2\n  - f: 3\n    e: '4'\n";
        for (key, place) in [
            ("a.b", (2, 9)),
            ("a.c[1]", (2, 19)),
            ("d[0].f", (5, 8)),
            ("d[1].e", (7, 8)),
            ("d[1].f", (6, 8)),
            ("d[1].absent", (6, 5)),
            ("a.absent", (2, 4)),
            ("absent", (2, 1)),
        ] {
            assert_eq!(of(text, key), Some(place), "{key}");
        }
        assert_eq!(of("a: [", "a"), None);
    }
}
