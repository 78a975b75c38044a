//! The bounded queue in front of a service without a ready endpoint, and the fail-fast gate.
//!
//! Who comes while nobody is ready waits: pods restart, and a moment's patience is cheaper than an error. When the first
//! of them has waited for `failfast_timeout`, all that wait fail together and the gate shuts: from then on requests are
//! refused at once, because a queue that never moves only fills memory. The first successful pick opens the gate. (Linkerd
//! wire document §5.6; the ones that waited become 504, the refused ones 503.)

use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use tokio::time::Instant;

use super::{Balancer, Error, Pick, Shared};
use crate::endpoint::Endpoints;

impl Balancer {
    /// Chooses an endpoint, waiting within the settings' bounds for one to become ready.
    ///
    /// `current` says what the endpoints are now (`None`: the service is no more); `changed` makes a future that ends at
    /// the next change after the call that made it. Cancel safe: a caller that goes away leaves the queue.
    pub async fn acquire<C, F>(
        &self,
        current: impl Fn() -> Option<Arc<Endpoints>>,
        changed: C,
        avoid: &[SocketAddr],
    ) -> Result<Pick, Error>
    where
        C: Fn() -> F,
        F: Future<Output = ()>,
    {
        let endpoints = current().ok_or(Error::NoEndpoint)?;
        match self.pick(&endpoints, avoid) {
            Ok(pick) => Ok(pick),
            Err(_) => Box::pin(self.wait(current, changed, avoid)).await,
        }
    }

    #[cold]
    async fn wait<C, F>(
        &self,
        current: impl Fn() -> Option<Arc<Endpoints>>,
        changed: C,
        avoid: &[SocketAddr],
    ) -> Result<Pick, Error>
    where
        C: Fn() -> F,
        F: Future<Output = ()>,
    {
        let shared = &self.shared;
        if shared.failing_fast.get() {
            return Err(Error::FailFast);
        }
        let _place = Place::take(shared)?;
        let deadline = Instant::now() + shared.settings.failfast_timeout;
        loop {
            // Both are made before the look, or what happens between look and wait would be slept through.
            let changed = changed();
            let bell = shared.bell.notified();
            let endpoints = current().ok_or(Error::NoEndpoint)?;
            if let Ok(pick) = self.pick(&endpoints, avoid) {
                return Ok(pick);
            }
            if shared.failing_fast.get() || Instant::now() >= deadline {
                if !shared.failing_fast.replace(true) {
                    shared.bell.notify_waiters();
                }
                return Err(Error::FailFastWait);
            }
            let next = shared.nodes.borrow().ready.expires().map_or(deadline, |at| at.min(deadline));
            tokio::select! {
                () = changed => {}
                () = bell => {}
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }
}

/// A place in the queue, given back when dropped.
struct Place(Rc<Shared>);

impl Place {
    fn take(shared: &Rc<Shared>) -> Result<Self, Error> {
        if shared.waiting.get() >= shared.settings.queue {
            return Err(Error::QueueFull);
        }
        shared.waiting.set(shared.waiting.get() + 1);
        Ok(Self(Rc::clone(shared)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.waiting.set(self.0.waiting.get() - 1);
    }
}
