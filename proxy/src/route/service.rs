//! One service by name and port, and what is known of its endpoints.
//!
//! **In** what a source publishes. **Out** the current endpoints, at once where they are known, else after a bounded
//! wait. A published value is replaced whole, so a worker that keeps the `Arc` it saw last notices a change by comparing
//! pointers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::{Error, Profile};
use crate::addr::Target;
use crate::endpoint::Endpoints;

/// What is known of a service's endpoints.
#[derive(Clone, Debug)]
pub enum State {
    /// Whoever should know was asked and answered with an error; it is asked again.
    Failing,
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
    profile: ArcSwapOption<Profile>,
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
            profile: ArcSwapOption::empty(),
            claim: Mutex::new(Claim::NOBODY),
            tabled: AtomicBool::new(false),
            changed: Notify::new(),
            used: AtomicU32::new(now),
        }
    }

    /// A service that stands in no directory: where a source keeps the endpoints of a [`Branch`](super::Branch). Nobody
    /// can ask for it.
    pub fn apart(target: Target) -> Self {
        Self::new(target, 0)
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
            State::Failing | State::Missing | State::Pending | State::Refused(_) => None,
        }
    }

    /// How its traffic is to be carried, where a source has something to say about it.
    pub fn profile(&self) -> Option<Arc<Profile>> {
        self.profile.load_full()
    }

    /// The same for a connection of bytes, after waiting at most `timeout` for what is said of those. Cancel safe.
    pub async fn profile_of_bytes(&self, timeout: Duration) -> Result<Option<Arc<Profile>>, Error> {
        let known = async {
            loop {
                let changed = self.changed(); // before the look, as below
                let profile = self.profile();
                if !profile.as_ref().is_some_and(|profile| profile.is_pending()) {
                    return profile;
                }
                changed.await;
            }
        };
        tokio::time::timeout(timeout, known).await.map_err(|_| Error::DiscoveryTimeout)
    }

    /// Says how its traffic is to be carried. Answers whether it was taken, as [`publish`](Self::publish) does. What is
    /// said first counts as soon as endpoints are published, so that no request sees the one without the other.
    pub fn describe(&self, claim: Claim, profile: Option<Profile>) -> bool {
        let mut holder = self.claim.lock();
        if *holder < claim {
            return false;
        }
        *holder = claim;
        // The same again keeps its `Arc`, and with it what is left of its budget.
        if self.profile.load().as_deref() != profile.as_ref() {
            self.profile.store(profile.map(Arc::new));
            self.changed.notify_waiters();
        }
        true
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
            (State::Failing, State::Failing) | (State::Missing, State::Missing) | (State::Pending, State::Pending) => {
                true
            }
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
            self.profile.store(None);
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
            State::Failing => Some(Err(Error::LookupFailed)),
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
            State::Failing | State::Missing | State::Refused(_) => true,
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
