//! A value that is replaced whole while everything reads it: credentials, policy.
//!
//! Reading is an arc-swap load, cheap on the data path and without a lock. Who must act on a change (a connection whose
//! peer may no longer be trusted) waits on a [`Changes`].

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use tokio::sync::watch;

/// The current value and the news of its replacement.
#[derive(Debug)]
pub struct Live<T> {
    value: ArcSwap<T>,
    version: watch::Sender<u64>,
}

/// Tells of replacements that come after it was made.
#[derive(Clone, Debug)]
pub struct Changes(watch::Receiver<u64>);

impl<T> Live<T> {
    /// Starts with `value`.
    pub fn new(value: T) -> Self {
        Self { value: ArcSwap::from_pointee(value), version: watch::Sender::new(0) }
    }

    /// The value now, for a short look.
    pub fn load(&self) -> Guard<Arc<T>> {
        self.value.load()
    }

    /// The value now, to keep.
    pub fn load_full(&self) -> Arc<T> {
        self.value.load_full()
    }

    /// Replaces the value and tells everyone who waits.
    pub fn replace(&self, value: T) {
        self.value.store(Arc::new(value));
        self.version.send_modify(|version| *version += 1);
    }

    /// How often the value has been replaced.
    pub fn version(&self) -> u64 {
        *self.version.borrow()
    }

    /// News of the replacements from now on.
    pub fn changes(&self) -> Changes {
        Changes(self.version.subscribe())
    }
}

impl Changes {
    /// Waits for the next replacement. Cancel safe. Never ends when the value is gone.
    pub async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tells_of_replacements() {
        let live = Live::new(1);
        let mut changes = live.changes();
        live.replace(2);
        changes.next().await;
        assert_eq!((**live.load(), live.version()), (2, 1));
    }
}
