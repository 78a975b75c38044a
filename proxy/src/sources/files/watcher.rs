//! The watcher: looks when a directory stirs, when the interval is over, and when it is told to.
//!
//! **In** a [`Recipe`], the value that serves and what it was made of. **Out** replacements of the value, and the [`Status`].
//! Reading and making happen on a thread that may block, never on a worker. Ends with the runtime it runs on.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};

use super::status::{News, Status};
use super::{Recipe, Settings, Wrong, gather};
use crate::live::Live;

/// Never quiet for long: after so many quiet times the files are read all the same.
const PATIENCE: u32 = 10;

/// The shortest interval: a zero would read without end.
const MIN_INTERVAL: Duration = Duration::from_millis(10);

/// The handle of a running watcher.
#[derive(Clone, Debug)]
pub struct Source {
    status: Status,
    demand: Arc<Notify>,
}

impl Source {
    /// How it goes.
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// Reads the files now, whatever has or has not happened to them.
    pub fn reload(&self) {
        self.demand.notify_one();
    }
}

/// Starts to watch, on the runtime that this is called on. `serving` is what `live` was made of, where it was made of
/// files. `status` may be shown before there is a watcher.
pub fn watch<R: Recipe>(
    recipe: R,
    live: Arc<Live<R::Value>>,
    serving: Option<[u8; 32]>,
    settings: Settings,
    status: Status,
) -> Source {
    let source = Source { status: status.clone(), demand: Arc::default() };
    let paths = recipe.paths();
    status.begin(names(&paths));
    let watcher = Watcher { recipe: Arc::new(recipe), paths, live, serving, seen: serving, status };
    let demand = Arc::clone(&source.demand);
    drop(tokio::runtime::Handle::current().spawn(watcher.run(demand, settings)));
    source
}

fn names(paths: &[PathBuf]) -> Vec<String> {
    paths.iter().map(|path| path.display().to_string()).collect()
}

struct Watcher<R: Recipe> {
    recipe: Arc<R>,
    paths: Vec<PathBuf>,
    live: Arc<Live<R::Value>>,
    /// The digest of what serves.
    serving: Option<[u8; 32]>,
    /// The digest at the last look.
    seen: Option<[u8; 32]>,
    status: Status,
}

impl<R: Recipe> Watcher<R> {
    async fn run(mut self, demand: Arc<Notify>, settings: Settings) {
        let stirred = Arc::new(Notify::new());
        let mut directories = Directories::new(&self.paths, Arc::clone(&stirred));
        let period = settings.interval.max(MIN_INTERVAL);
        let mut clock = interval_at(Instant::now() + period, period);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // What was written between the first reading and the first watch.
        let mut forced = false;
        loop {
            self.look(forced).await;
            forced = false;
            if directories.renew(&self.paths) {
                // What was written there between the reading and the watch.
                continue;
            }
            tokio::select! {
                () = demand.notified() => forced = true,
                _ = clock.tick() => {}
                () = stirred.notified() => quiet(&stirred, settings.quiet).await,
            }
        }
    }

    /// Reads, makes, and replaces what is new and good.
    async fn look(&mut self, forced: bool) {
        let recipe = Arc::clone(&self.recipe);
        let looked = tokio::task::spawn_blocking(move || {
            let mut paths = Vec::new();
            match gather(&*recipe, &mut paths) {
                Ok(snapshot) => (paths, Some(snapshot.digest), recipe.make(&snapshot.pieces)),
                Err(wrong) => (paths, None, Err(wrong)),
            }
        });
        let Ok((paths, digest, made)) = looked.await else {
            let reason = "reading the files ended in a bug; what serves goes on serving".to_owned();
            return self.bad(None, Wrong { file: self.recipe.name().to_owned(), reason });
        };
        if paths != self.paths {
            self.status.files(names(&paths));
            self.paths = paths;
        }
        match made {
            Ok(value) => self.good(digest, value, forced),
            Err(wrong) => self.bad(digest, wrong),
        }
    }

    fn good(&mut self, digest: Option<[u8; 32]>, value: R::Value, forced: bool) {
        self.seen = digest;
        let (name, new) = (self.recipe.name(), digest != self.serving);
        let recovered = self.status.good(new) == News::Recovered;
        if new {
            for warning in self.recipe.warnings(&value) {
                tracing::warn!(source = name, warning, "replaced with a warning");
            }
            let holding = self.recipe.describe(&value);
            self.live.replace(value);
            self.serving = digest;
            tracing::info!(source = name, holding, "files have changed: replaced");
        } else if recovered {
            tracing::info!(source = name, "the files are in order again, and hold what serves");
        } else if forced {
            tracing::info!(source = name, "read again: nothing has changed");
        }
    }

    fn bad(&mut self, digest: Option<[u8; 32]>, wrong: Wrong) {
        let changed = digest != self.seen;
        self.seen = digest;
        let (name, file, reason) = (self.recipe.name(), wrong.file.clone(), wrong.reason.clone());
        if self.status.bad(wrong, changed) == News::Problem {
            tracing::warn!(source = name, file, reason, "the files are not taken: what served before goes on serving");
        }
    }
}

/// Waits until nothing has stirred for a while.
async fn quiet(stirred: &Notify, quiet: Duration) {
    for _ in 0..PATIENCE {
        if timeout(quiet, stirred.notified()).await.is_err() {
            return;
        }
    }
}

/// The directories of the files, watched.
struct Directories {
    paths: BTreeSet<PathBuf>,
    watcher: Option<RecommendedWatcher>,
    complained: bool,
}

impl Directories {
    fn new(files: &[PathBuf], stirred: Arc<Notify>) -> Self {
        let mut directories = Self { paths: BTreeSet::new(), watcher: None, complained: false };
        let told = move |event: notify::Result<Event>| {
            // An error may be a queue that ran over: look rather than miss something.
            if event.map_or(true, |event| is_change(&event.kind)) {
                stirred.notify_one();
            }
        };
        match notify::recommended_watcher(told) {
            Ok(watcher) => directories.watcher = Some(watcher),
            Err(error) => directories.complain(&error),
        }
        directories.renew(files);
        directories
    }

    /// Watches them, again where they have been replaced meanwhile; for those watched already this does nothing. A
    /// directory whose files are of no interest any more goes on being watched: it costs a look now and then. Tells whether
    /// there is a new one.
    fn renew(&mut self, files: &[PathBuf]) -> bool {
        let before = self.paths.len();
        self.paths.extend(files.iter().map(|path| directory(path)));
        let added = self.paths.len() > before;
        let Some(watcher) = &mut self.watcher else { return added };
        let watch = |path: &PathBuf| watcher.watch(path, RecursiveMode::NonRecursive).err();
        // All of them, whichever cannot be watched.
        let failed = self.paths.iter().filter_map(watch).last();
        match failed {
            Some(error) => self.complain(&error),
            None => self.complained = false,
        }
        added
    }

    fn complain(&mut self, error: &notify::Error) {
        if !std::mem::replace(&mut self.complained, true) {
            tracing::warn!(%error, "changes of files are not told by the system: they are found at the interval only");
        }
    }
}

fn directory(file: &Path) -> PathBuf {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Reading is no change; our own would otherwise wake us for ever.
fn is_change(kind: &EventKind) -> bool {
    match kind {
        EventKind::Access(access) => *access == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}
