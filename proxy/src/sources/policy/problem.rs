//! What is wrong with the words of a policy, and in which file, line and field.
//!
//! **Out** [`Problems`]: never empty, in the order of the files; each line reads `file:line:column: field: what is wrong`,
//! as compilers write it, so that editors find the place.

use std::fmt;

use super::misread::Misread;
use super::place::Place;

/// One thing that is wrong.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Problem {
    /// The file.
    pub file: String,
    /// Where in it.
    pub place: Option<Place>,
    /// The field and what is wrong with it.
    pub message: String,
}

impl Problem {
    pub(super) fn misread(file: &str, misread: &Misread) -> Self {
        Self { file: file.to_owned(), place: misread.place, message: misread.to_string() }
    }

    /// The file and the place in it.
    pub(super) fn whereabouts(&self) -> String {
        match self.place {
            Some(place) => format!("{}:{place}", self.file),
            None => self.file.clone(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.whereabouts(), self.message)
    }
}

/// All that is wrong: never empty.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.0.iter().enumerate() {
            write!(f, "{}{problem}", if at > 0 { "\n" } else { "" })?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}
