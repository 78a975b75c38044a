//! How the process ends: the phases that everything alive can see, and the count of what is still alive.
//!
//! Serving → Announced (readiness says no, traffic is still taken) → Draining (no new connections, live ones are asked
//! to finish) → Cut (what is left is dropped). One [`Drain`] turns the phases; every task holds a [`Watch`].
//! What is "still alive" is what still holds an [`Alive`] token.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

/// Where the process is in its life. Later phases are greater.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Phase {
    /// Normal work.
    Serving,
    /// Readiness and probe answer no; connections are still accepted and served.
    Announced,
    /// No new connections; live ones finish what they have begun.
    Draining,
    /// What is left is ended at once.
    Cut,
}

/// Turns the phases. Held by `app` alone.
#[derive(Debug)]
pub struct Drain {
    phase: watch::Sender<Phase>,
    alive: Arc<AtomicU64>,
}

/// Sees the phases.
#[derive(Clone, Debug)]
pub struct Watch {
    phase: watch::Receiver<Phase>,
    alive: Arc<AtomicU64>,
}

/// Counts one connection or stream as alive until dropped.
#[derive(Debug)]
pub struct Alive(Arc<AtomicU64>);

/// Makes the two ends.
pub fn channel() -> (Drain, Watch) {
    let (sender, receiver) = watch::channel(Phase::Serving);
    let alive = Arc::new(AtomicU64::new(0));
    (Drain { phase: sender, alive: Arc::clone(&alive) }, Watch { phase: receiver, alive })
}

impl Drain {
    /// Moves on to `phase`; never moves back.
    pub fn advance(&self, phase: Phase) {
        self.phase.send_if_modified(|now| {
            let later = phase > *now;
            if later {
                *now = phase;
            }
            later
        });
    }

    /// How many [`Alive`] tokens are held now.
    pub fn alive(&self) -> u64 {
        self.alive.load(Ordering::Relaxed)
    }
}

impl Watch {
    /// The phase now.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Waits until `phase` (or a later one) has come. Cancel safe. Never ends if the process never gets there.
    pub async fn reached(&mut self, phase: Phase) {
        if self.phase.wait_for(|now| *now >= phase).await.is_err() {
            // The owner is gone without a word: the process is being torn down by other means.
            std::future::pending::<()>().await;
        }
    }

    /// How many [`Alive`] tokens are held now.
    pub fn living(&self) -> u64 {
        self.alive.load(Ordering::Relaxed)
    }

    /// Counts the holder as alive until the token is dropped.
    pub fn alive(&self) -> Alive {
        self.alive.fetch_add(1, Ordering::Relaxed);
        Alive(Arc::clone(&self.alive))
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn phases_only_move_on() {
        let (drain, mut watch) = channel();
        let token = watch.alive();
        assert_eq!((watch.phase(), drain.alive()), (Phase::Serving, 1));
        drain.advance(Phase::Draining);
        drain.advance(Phase::Announced);
        watch.reached(Phase::Announced).await;
        assert_eq!(watch.phase(), Phase::Draining);
        drop(token);
        assert_eq!(drain.alive(), 0);
    }
}
