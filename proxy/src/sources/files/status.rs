//! How it goes with a set of files: for logs, metrics and `/state`.
//!
//! **In** what the watcher found. **Out** a [`Reload`] for whoever looks: how often the value was replaced and how often
//! that was refused, what is wrong now and since when, and when all was last in order.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

use super::Wrong;

/// What is known of a set of files now.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Reload {
    /// The files, as they are named to people. Empty where nothing is watched.
    pub files: Vec<String>,
    /// How often the value was replaced.
    pub replaced: u64,
    /// How often a set of files was refused.
    pub refused: u64,
    /// When the value was replaced last.
    pub replaced_at: Option<SystemTime>,
    /// When the files were last read and found in order.
    pub good_at: Option<SystemTime>,
    /// What is wrong with them now.
    pub problem: Option<Problem>,
}

/// What is wrong with a set of files.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Problem {
    /// The file, and why.
    pub wrong: Wrong,
    /// Since when files are wrong, even if first in another way.
    pub since: SystemTime,
    /// When it was seen last.
    pub seen: SystemTime,
}

impl Reload {
    /// How long ago all was in order. None where nothing is watched.
    pub fn age(&self, now: SystemTime) -> Option<Duration> {
        self.good_at.map(|good| now.duration_since(good).unwrap_or_default())
    }
}

/// A [`Reload`] that the watcher writes and others read. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Status(Arc<Mutex<Reload>>);

/// What the watcher should say of a finding.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum News {
    /// Said already, or nothing to say.
    None,
    /// A problem that was not there before, or not this one.
    Problem,
    /// A problem is gone.
    Recovered,
}

impl Status {
    /// What is known now.
    pub fn read(&self) -> Reload {
        self.0.lock().clone()
    }

    pub(super) fn begin(&self, files: Vec<String>) {
        let mut reload = self.0.lock();
        reload.files = files;
        reload.good_at = Some(SystemTime::now());
    }

    /// It is other files now.
    pub(super) fn files(&self, files: Vec<String>) {
        self.0.lock().files = files;
    }

    /// The files are in order; `replaced`: they hold something new.
    pub(super) fn good(&self, replaced: bool) -> News {
        let now = SystemTime::now();
        let mut reload = self.0.lock();
        reload.good_at = Some(now);
        if replaced {
            reload.replaced += 1;
            reload.replaced_at = Some(now);
        }
        if reload.problem.take().is_some() { News::Recovered } else { News::None }
    }

    /// The files are not in order; `changed`: they hold something else than at the last look.
    pub(super) fn bad(&self, wrong: Wrong, changed: bool) -> News {
        let now = SystemTime::now();
        let mut reload = self.0.lock();
        let same = reload.problem.as_ref().is_some_and(|problem| problem.wrong == wrong);
        let since = reload.problem.as_ref().map_or(now, |problem| problem.since);
        reload.problem = Some(Problem { wrong, since, seen: now });
        if changed || !same {
            reload.refused += 1;
        }
        if same { News::None } else { News::Problem }
    }
}
