//! Reads several files as they stood at one moment.
//!
//! **In** paths. **Out** a [`Snapshot`]: their contents, and a digest that tells one set from another. **Refuses** what is
//! no regular file (a FIFO would be waited for, `/dev/zero` read for ever) and what is larger than any such file is.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256};

use super::Wrong;

/// The most that one file may hold, in bytes. A CRL of a million entries has 40 MiB.
const MAX_BYTES: u64 = 64 << 20;

/// How often the files are read before a moment without change is found.
const TRIES: usize = 5;

/// One file as it was read.
#[derive(Clone, Eq, PartialEq)]
pub struct Piece {
    /// Its path.
    pub path: PathBuf,
    /// What it holds.
    pub bytes: Vec<u8>,
}

/// Shows the size only: the contents may be a key.
impl std::fmt::Debug for Piece {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({} bytes)", self.path.display(), self.bytes.len())
    }
}

/// Several files at one moment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Snapshot {
    /// The files, in the order asked for.
    pub pieces: Vec<Piece>,
    /// SHA-256 over names and contents.
    pub digest: [u8; 32],
}

/// Reads all files until two readings in a row are the same. What is the same in both was there together between them,
/// so that a swap in the middle of a reading cannot pair an old certificate with a new key.
pub fn snapshot(paths: &[PathBuf]) -> Result<Snapshot, Wrong> {
    let mut last = once(paths);
    for _ in 1..TRIES {
        let next = once(paths);
        if next == last {
            return next;
        }
        last = next;
    }
    // Never quiet: what was read last is judged, and read again soon.
    last
}

fn once(paths: &[PathBuf]) -> Result<Snapshot, Wrong> {
    let mut digest = Context::new(&SHA256);
    let mut pieces = Vec::with_capacity(paths.len());
    for path in paths {
        let bytes = read(path).map_err(|reason| Wrong { file: path.display().to_string(), reason })?;
        for part in [path.as_os_str().as_encoded_bytes(), &bytes] {
            digest.update(&(part.len() as u64).to_be_bytes());
            digest.update(part);
        }
        pieces.push(Piece { path: path.clone(), bytes });
    }
    let mut sum = [0; 32];
    sum.copy_from_slice(digest.finish().as_ref());
    Ok(Snapshot { pieces, digest: sum })
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let unreadable = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
        std::io::ErrorKind::PermissionDenied => "may not be read by this process".to_owned(),
        _ => format!("cannot be read: {error}"),
    };
    let about = fs::metadata(path).map_err(unreadable)?;
    if !about.is_file() {
        let kind = if about.is_dir() { "a directory" } else { "a device, pipe or socket" };
        return Err(format!("is {kind}, not a file"));
    }
    if about.len() > MAX_BYTES {
        return Err(format!("is larger than {} MiB, which no such file is", MAX_BYTES >> 20));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(about.len()).unwrap_or(0));
    fs::File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes)).map_err(unreadable)?;
    match bytes.len() {
        0 => Err("is empty".to_owned()),
        len if len as u64 > MAX_BYTES => Err(format!("grew beyond {} MiB while it was read", MAX_BYTES >> 20)),
        _ => Ok(bytes),
    }
}
