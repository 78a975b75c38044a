//! One service by name and port, and what is known of its endpoints.
//!
//! **In** what a source publishes. **Out** the current endpoints, at once where they are known, else after a bounded
//! wait. A published value is replaced whole, so a worker that keeps the `Arc` it saw last notices a change by comparing
//! pointers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::Error;
use crate::addr::Target;
use crate::endpoint::Endpoints;

/// What is known of a service's endpoints.
#[derive(Clone, Debug)]
pub enum State {
    /// These are its endpoints; there may be none of them.
    Known(Arc<Endpoints>),
    /// A source says that there is no such service.
    Missing,
    /// No source has answered yet.
    Pending,
    /// A source knows the service, and why nothing can be sent there.
    Refused(Error),
}

/// A source's place in the order of sources: the lower number wins a service that two of them know.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Claim(pub u8);

impl Claim {
    /// No source has spoken yet: everyone outranks it.
    const NOBODY: Self = Self(u8::MAX);
}

/// A service that a peer can ask for. Shared by workers and sources.
#[derive(Debug)]
pub struct Service {
    target: Target,
    exported: AtomicBool,
    state: ArcSwap<State>,
    /// Who published last. Held while publishing, so that a source just outranked cannot overwrite its better.
    claim: Mutex<Claim>,
    /// Whether it stands in a source's table rather than being known by demand.
    tabled: AtomicBool,
    changed: Notify,
    /// Seconds on the directory's clock when it was last asked for.
    used: AtomicU32,
}

impl Service {
    pub(super) fn new(target: Target, now: u32) -> Self {
        Self {
            target,
            exported: AtomicBool::new(false),
            state: ArcSwap::from_pointee(State::Pending),
            claim: Mutex::new(Claim::NOBODY),
            tabled: AtomicBool::new(false),
            changed: Notify::new(),
            used: AtomicU32::new(now),
        }
    }

    /// Its name and port.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Whether the source that published it says that other clusters may see it.
    pub fn exported(&self) -> bool {
        self.exported.load(Ordering::Relaxed)
    }

    /// What is known now.
    pub fn state(&self) -> arc_swap::Guard<Arc<State>> {
        self.state.load()
    }

    /// Its endpoints, where they are known now.
    pub fn known(&self) -> Option<Arc<Endpoints>> {
        match &**self.state.load() {
            State::Known(endpoints) => Some(Arc::clone(endpoints)),
            State::Missing | State::Pending | State::Refused(_) => None,
        }
    }

    /// Its endpoints, after waiting at most `timeout` for the first answer. Cancel safe; holds nothing meanwhile.
    pub async fn endpoints(&self, timeout: Duration) -> Result<Arc<Endpoints>, Error> {
        if let Some(answer) = self.answer() {
            return answer;
        }
        tokio::time::timeout(timeout, self.first_answer()).await.unwrap_or(Err(Error::DiscoveryTimeout))
    }

    /// Ends at the next publication after this call, even if it comes before the future is polled.
    pub fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Replaces what is known and wakes who waits. Answers whether it was taken: a source of higher rank that has
    /// claimed the service keeps it.
    pub fn publish(&self, claim: Claim, exported: bool, state: State) -> bool {
        let mut holder = self.claim.lock();
        if *holder < claim {
            return false;
        }
        *holder = claim;
        let flipped = self.exported.swap(exported, Ordering::Relaxed) != exported;
        // The same endpoints again keep their `Arc`, so that no worker rebuilds what has not changed.
        let unchanged = match (&**self.state.load(), &state) {
            (State::Known(old), State::Known(new)) => old == new,
            (State::Missing, State::Missing) | (State::Pending, State::Pending) => true,
            (State::Refused(old), State::Refused(new)) => old == new,
            _ => false,
        };
        if !unchanged {
            self.state.store(Arc::new(state));
        }
        if !unchanged || flipped {
            self.changed.notify_waiters();
        }
        true
    }

    /// Gives the service up: other sources may claim it again, and until one does it is missing.
    pub(super) fn release(&self, claim: Claim) {
        let mut holder = self.claim.lock();
        if *holder == claim {
            *holder = Claim::NOBODY;
            self.state.store(Arc::new(State::Missing));
            self.changed.notify_waiters();
        }
    }

    /// Whether a source has spoken for it.
    pub(super) fn is_claimed(&self) -> bool {
        !matches!(**self.state.load(), State::Pending)
    }

    pub(super) fn claimed_by(&self) -> Claim {
        *self.claim.lock()
    }

    pub(super) fn tabled(&self) -> bool {
        self.tabled.load(Ordering::Relaxed)
    }

    pub(super) fn set_tabled(&self) {
        self.tabled.store(true, Ordering::Relaxed);
    }

    pub(super) fn used(&self) -> u32 {
        self.used.load(Ordering::Relaxed)
    }

    pub(super) fn touch(&self, now: u32) {
        // Read first: all workers share this cache line, and within a second there is nothing to write.
        if self.used.load(Ordering::Relaxed) != now {
            self.used.store(now, Ordering::Relaxed);
        }
    }

    fn answer(&self) -> Option<Result<Arc<Endpoints>, Error>> {
        match &**self.state.load() {
            State::Known(endpoints) => Some(Ok(Arc::clone(endpoints))),
            State::Missing => Some(Err(Error::UnknownService)),
            State::Pending => None,
            State::Refused(error) => Some(Err(*error)),
        }
    }

    /// Whether it is known and leads nowhere now.
    pub(super) fn leads_nowhere(&self) -> bool {
        match &**self.state.load() {
            State::Known(endpoints) => endpoints.list.is_empty(),
            State::Missing | State::Refused(_) => true,
            State::Pending => false,
        }
    }

    async fn first_answer(&self) -> Result<Arc<Endpoints>, Error> {
        loop {
            // Taken before the look, or a publication between the two would be slept through.
            let changed = self.changed();
            if let Some(answer) = self.answer() {
                return answer;
            }
            changed.await;
        }
    }
}
