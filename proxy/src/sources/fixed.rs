//! A table of services that the operator has written down.
//!
//! **In** rows from the configuration. **Out** the same, published to the directory; a reload replaces them whole.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use super::{Report, Source};
use crate::route::{Claim, Directory, Published, Service, State};

/// The table.
#[derive(Debug)]
pub struct Fixed {
    claim: Claim,
    rows: ArcSwap<Vec<Published>>,
}

impl Fixed {
    /// A table of rank `claim`, not yet published.
    pub fn new(claim: Claim, rows: Vec<Published>) -> Self {
        Self { claim, rows: ArcSwap::from_pointee(rows) }
    }

    /// Publishes the table.
    pub fn publish(&self, directory: &Directory) {
        directory.replace(self.claim, self.rows.load().to_vec());
    }

    /// Replaces the table and publishes it.
    pub fn replace(&self, rows: Vec<Published>, directory: &Directory) {
        self.rows.store(Arc::new(rows));
        self.publish(directory);
    }
}

impl Source for Fixed {
    fn name(&self) -> &'static str {
        "fixed"
    }

    /// Only when the service came to be known by demand before the table was published, or while another source let go
    /// of it: usually the directory holds the rows already.
    fn offer(&self, service: &Arc<Service>) -> bool {
        self.rows
            .load()
            .iter()
            .find(|row| row.target == *service.target())
            .is_some_and(|row| service.publish(self.claim, row.exported, State::Known(Arc::clone(&row.endpoints))))
    }

    fn report(&self) -> Report {
        Report { name: "fixed", age: Some(Duration::ZERO), services: self.rows.load().len(), failures: 0 }
    }
}
