//! Reads YAML into a type, or says what is wrong with it so that it can be put right.
//!
//! **In** a text. **Out** the value. **Refuses** with a [`Misread`]: line and column, the field by its path, what was found
//! there, what is wrong with it, and the nearest word where one was mistyped. Only the first mistake is found: what a reader
//! of types cannot read it cannot look behind.

use std::fmt;

use serde::de::DeserializeOwned;
use serde_saphyr::Error;

use super::place::{Node, Place, Standing, join};
use crate::authorise::nearest;

/// What cannot be read, and where.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Misread {
    /// Where, as far as it is known.
    pub place: Option<Place>,
    /// The field, as a path from the top: `rules[0].http.methods`; empty where the text as a whole is meant.
    pub field: String,
    /// What was found there, what is wrong with it, and what would be right.
    pub message: String,
}

impl fmt::Display for Misread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() { f.write_str(&self.message) } else { write!(f, "{}: {}", self.field, self.message) }
    }
}

/// Reads a text.
pub fn read<T: DeserializeOwned>(text: &str) -> Result<T, Misread> {
    serde_saphyr::from_str(text).map_err(|error| {
        let mut inner = error.without_snippet();
        while let Error::AliasError { error, .. } = inner {
            inner = error.without_snippet();
        }
        told(inner, text)
    })
}

fn told(error: &Error, text: &str) -> Misread {
    let place = error.location().map(Place::from).filter(|place| place.line > 0);
    let map = matches!(error, Error::SerdeMissingField { .. });
    let standing = place.and_then(|place| {
        let node = Node::read(text)?;
        if !map {
            return node.at(place, false);
        }
        // The parser may have got as far as the last key of the map before it missed one.
        node.at(place, true).or_else(|| {
            let inner = node.at(place, false)?;
            let path = inner.path.rsplit_once('.').map_or("", |(outer, _)| outer).to_owned();
            Some(Standing { path, found: inner.found })
        })
    });
    let found = standing.as_ref().map_or("this", |standing| &standing.found);
    let path = standing.as_ref().map_or("", |standing| &standing.path);
    let (field, message) = match error {
        Error::SerdeUnknownField { field, expected, .. } => {
            let field = field.trim_matches('`');
            (if path.is_empty() { field.to_owned() } else { path.to_owned() }, unknown_field(field, expected))
        }
        Error::SerdeUnknownVariant { variant, expected, .. } => {
            let of = format!("{variant:?}: not one of {}", expected.join(", "));
            (path.to_owned(), of + &did_you_mean(nearest(variant, expected.iter().copied())))
        }
        Error::SerdeMissingField { field, .. } => (join(path, field), "is missing".to_owned()),
        Error::InvalidScalar { ty, .. } => (path.to_owned(), format!("{found}: not {}", scalar(ty))),
        Error::NullIntoString { .. } => (path.to_owned(), "nothing stands here, and a text is expected".to_owned()),
        Error::Unexpected { expected, .. } => (path.to_owned(), format!("{found}: not {}", shape(expected))),
        Error::SerdeInvalidType { expected, .. } | Error::SerdeInvalidValue { expected, .. } => {
            (path.to_owned(), format!("{found}: not {expected}"))
        }
        Error::DuplicateMappingKey { .. } => (path.to_owned(), "this key stands here twice".to_owned()),
        other => {
            let message = without_place(&other.to_string());
            (path.to_owned(), address(&message).map_or(message, |right| format!("{found}: not {right}")))
        }
    };
    Misread { place, field, message }
}

fn unknown_field(field: &str, expected: &[&'static str]) -> String {
    let inside = |inner: [&'static str; 4]| expected.contains(&"http").then(|| nearest(field, inner)).flatten();
    match nearest(field, expected.iter().copied()) {
        Some(word) => format!("there is no such field{}", did_you_mean(Some(word))),
        None => match inside(["headers", "hosts", "methods", "paths"]) {
            Some(word) => format!("there is no such field; did you mean \"http.{word}\"?"),
            None => format!("there is no such field; there are {}", expected.join(", ")),
        },
    }
}

fn did_you_mean(word: Option<&str>) -> String {
    word.map_or_else(String::new, |word| format!("; did you mean {word:?}?"))
}

/// A scalar's type in words.
fn scalar(kind: &str) -> String {
    match kind {
        "bool" | "boolean" => "true or false".to_owned(),
        "u8" => "a whole number from 0 to 255".to_owned(),
        "u16" => "a whole number from 0 to 65535".to_owned(),
        "u32" => format!("a whole number from 0 to {}", u32::MAX),
        kind if kind.starts_with('u') => "a whole number".to_owned(),
        kind if kind.starts_with('f') => "a number".to_owned(),
        kind => kind.to_owned(),
    }
}

/// What would be right where the standard library reads an address and says no more than that it cannot.
fn address(message: &str) -> Option<&'static str> {
    match message {
        "invalid socket address syntax" => Some("an address and a port, such as 127.0.0.1:4143 or \"[::]:4143\""),
        "invalid IP address syntax" => Some("a network, such as 10.0.0.0/8"),
        _ => None,
    }
}

/// What the parser expects, in an operator's words.
fn shape(expected: &str) -> &str {
    match expected {
        "mapping start" => "a map (`key: value`)",
        "sequence start" => "a list (`[…]`, or lines that begin with `- `)",
        "string scalar" => "a text",
        other => other,
    }
}

/// The first line of a parser's message without the place, which is told apart.
fn without_place(message: &str) -> String {
    let line = message.lines().next().unwrap_or(message);
    let line = line.strip_prefix("error: ").unwrap_or(line);
    line.rsplit_once(" at line ").map_or(line, |(before, _)| before).to_owned()
}
