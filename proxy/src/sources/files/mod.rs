//! Values that are made of files, kept as fresh as the files are.
//!
//! **In** a [`Recipe`]: which files, and what to make of them. **Out** a value in a `Live`, replaced whole when the files
//! hold something new and good, and a [`Status`] that says how that goes. **Refuses** a set of files that is half written,
//! contradictory or otherwise no good, naming the file and the reason; what serves goes on serving.
//!
//! Directories are watched, since that is where things happen: kubelet swaps a `..data` symlink beside the files, editors
//! rename over them, and a watch on a file dies with it. But notices get lost (network file systems, exhausted inotify),
//! so they only hurry up what happens anyway: all files are read again at an interval, and what they hold is the truth.

pub mod anchors;
pub mod credentials;
mod read;
mod status;
mod watcher;

use std::path::PathBuf;
use std::time::Duration;

use crate::tls::Credentials;
use crate::tls::files::RootInfo;

pub use self::read::{Piece, Snapshot, snapshot};
pub use self::status::{Problem, Reload, Status};
pub use self::watcher::{Source, watch};

/// Which files, and what to make of them.
pub trait Recipe: Send + Sync + 'static {
    /// What is made.
    type Value: Send + Sync + 'static;

    /// What it is called in logs: `credentials`, `policy`.
    fn name(&self) -> &'static str;

    /// The files, in the order in which `make` wants them.
    fn paths(&self) -> Vec<PathBuf>;

    /// Further files that the first ones name; asked for at every reading, as the answer may change.
    fn more(&self, _: &[Piece]) -> Vec<PathBuf> {
        Vec::new()
    }

    /// Makes the value, or says which file is wrong. Called on a thread that may block.
    fn make(&self, pieces: &[Piece]) -> Result<Self::Value, Wrong>;

    /// The value in a few words for the log.
    fn describe(&self, value: &Self::Value) -> String;

    /// What an operator should know of a value though it keeps nothing from working.
    fn warnings(&self, _: &Self::Value) -> Vec<String> {
        Vec::new()
    }
}

/// A file that is to be put right, and why.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{file}: {reason}")]
pub struct Wrong {
    /// The file's name.
    pub file: String,
    /// What is wrong with it, and what would be right.
    pub reason: String,
}

/// When files are read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Settings {
    /// How often they are read even when nothing told of a change.
    pub interval: Duration,
    /// How long it must have been quiet after a notice: files that belong together are seldom written in one instant.
    pub quiet: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { interval: Duration::from_secs(30), quiet: Duration::from_millis(200) }
    }
}

/// Reads the files and makes the value once, as at the start of the process: there is nothing yet to go on serving with.
pub fn load<R: Recipe>(recipe: &R) -> Result<(R::Value, Snapshot), Wrong> {
    let snapshot = gather(recipe, &mut Vec::new())?;
    let value = recipe.make(&snapshot.pieces)?;
    Ok((value, snapshot))
}

/// Reads the files, and those that they name, as they stood at one moment. `wanted` is which they are, whether they can be read
/// or not.
fn gather<R: Recipe>(recipe: &R, wanted: &mut Vec<PathBuf>) -> Result<Snapshot, Wrong> {
    let first = recipe.paths();
    wanted.clone_from(&first);
    let mut read = snapshot(&first)?;
    for _ in 0..TRIES {
        let named = recipe.more(&read.pieces[..first.len()]);
        let all: Vec<PathBuf> = first.iter().chain(&named).cloned().collect();
        if all.iter().eq(read.pieces.iter().map(|piece| &piece.path)) {
            return Ok(read);
        }
        *wanted = all;
        read = snapshot(wanted)?;
    }
    let file = first.first().map_or_else(String::new, |path| path.display().to_string());
    Err(Wrong { file, reason: "names other files at every reading".to_owned() })
}

/// The trust anchors in a few words.
fn roots(credentials: &Credentials) -> String {
    let roots = credentials.roots().iter();
    let words =
        |root: &RootInfo| format!("'{}' ({})", root.subject, root.fingerprint.get(..12).unwrap_or(&root.fingerprint));
    roots.map(words).collect::<Vec<_>>().join(", ")
}

/// How often files are read before what they name is what was read.
const TRIES: usize = 3;

#[cfg(test)]
mod tests;
