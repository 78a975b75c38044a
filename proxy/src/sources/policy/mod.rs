//! The policy out of files: the main configuration's `authorise` section, and the policy files that it names.
//!
//! **In** the paths. **Out** a compiled [`Policy`], kept as fresh as the files; the counts of its limits go on from one to the
//! next. **Refuses** the whole set when anything in it is wrong, with file, line, column, field and the nearest right word; the policy
//! that serves goes on serving.

pub mod misread;
pub mod place;
mod problem;
#[cfg(test)]
mod tests;
mod words;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use self::problem::{Problem, Problems};
pub use self::words::{PolicyFile, Text, Words};
use super::files::{Piece, Recipe, Wrong};
use crate::authorise::Policy;
use crate::identity::Identity;
use crate::live::Live;

/// The files of a policy.
#[derive(Clone, Debug)]
pub struct PolicyFiles {
    /// The main configuration file.
    pub main: PathBuf,
    /// The gateway's identity, whose trust domain a `*` may stand for.
    pub own: Option<Identity>,
    /// The policy that serves, whose counts go on.
    pub serving: Option<Arc<Live<Policy>>>,
}

impl Recipe for PolicyFiles {
    type Value = Policy;

    fn name(&self) -> &'static str {
        "policy"
    }

    fn paths(&self) -> Vec<PathBuf> {
        vec![self.main.clone()]
    }

    fn more(&self, pieces: &[Piece]) -> Vec<PathBuf> {
        let main = pieces.first().and_then(|piece| std::str::from_utf8(&piece.bytes).ok());
        // What does not read names no files; `make` says what is wrong with it.
        let named = main.and_then(|main| words::section(main).ok()).map(|section| section.files);
        named.unwrap_or_default().iter().map(|file| beside(&self.main, file)).collect()
    }

    fn make(&self, pieces: &[Piece]) -> Result<Policy, Wrong> {
        let texts = texts(pieces)?;
        let mut texts = texts.iter().map(|(file, text)| Text { file, text });
        let main = texts.next().unwrap_or(Text { file: "", text: "" });
        let files: Vec<Text<'_>> = texts.collect();
        let replaced = self.serving.as_ref().map(|live| live.load_full());
        let words = Words::read(main, &files).map_err(wrong)?;
        words.compile(self.own.as_ref(), replaced.as_deref()).map_err(wrong)
    }

    fn describe(&self, policy: &Policy) -> String {
        format!("{} rules", policy.rules())
    }
}

/// A path as a file beside it is named in `main`.
pub fn beside(main: &Path, file: &Path) -> PathBuf {
    main.parent().map_or_else(|| file.to_owned(), |folder| folder.join(file))
}

/// The files as texts, with their names.
pub fn texts(pieces: &[Piece]) -> Result<Vec<(String, &str)>, Wrong> {
    let mut texts = Vec::with_capacity(pieces.len());
    for piece in pieces {
        let file = piece.path.display().to_string();
        match std::str::from_utf8(&piece.bytes) {
            Ok(text) => texts.push((file, text)),
            Err(error) => {
                let reason = format!("is no text: byte {} is not UTF-8", error.valid_up_to());
                return Err(Wrong { file, reason });
            }
        }
    }
    Ok(texts)
}

/// The first place stands for the file, so that the whole reads as a list of places.
fn wrong(problems: Problems) -> Wrong {
    let file = problems.0.first().map_or_else(String::new, Problem::whereabouts);
    let text = problems.to_string();
    let reason = text.strip_prefix(&format!("{file}: ")).unwrap_or(&text).to_owned();
    Wrong { file, reason }
}
