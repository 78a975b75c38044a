//! A folder of files that is swapped as kubelet swaps a Secret's or a ConfigMap's: a directory of its own for each version,
//! and `..data`, a symbolic link that is renamed over to it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;

/// The folder.
#[derive(Debug)]
pub(crate) struct Mount {
    folder: TempDir,
    version: AtomicU32,
}

impl Mount {
    /// With its first version.
    pub(crate) fn new(files: &[(&str, &str)]) -> Self {
        let mount = Self { folder: TempDir::new().unwrap(), version: AtomicU32::new(0) };
        mount.publish(files);
        mount
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The next version, all at once.
    pub(crate) fn publish(&self, files: &[(&str, &str)]) {
        let at = |name: &str| -> PathBuf { self.folder.path().join(name) };
        let version = format!("..2026_11_20_14_00_00.{:010}", self.version.fetch_add(1, Ordering::Relaxed));
        fs::create_dir(at(&version)).unwrap();
        for (name, contents) in files {
            fs::write(at(&version).join(name), contents).unwrap();
        }
        let old = fs::read_link(at("..data")).ok();
        symlink(&version, at("..data_tmp")).unwrap();
        fs::rename(at("..data_tmp"), at("..data")).unwrap();
        for (name, _) in files {
            if fs::symlink_metadata(at(name)).is_err() {
                symlink(Path::new("..data").join(name), at(name)).unwrap();
            }
        }
        if let Some(old) = old {
            fs::remove_dir_all(self.folder.path().join(old)).unwrap();
        }
    }
}
