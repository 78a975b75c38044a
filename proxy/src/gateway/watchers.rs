//! What the policy saw: decisions worth telling an operator of, per worker, merged when somebody looks.
//!
//! **In** decisions as they are taken. **Out** observations: what was refused, what would have been, and (where the operator
//! asks for it) what was let through. Each worker writes to its own book, so its lock is never waited for but by a look.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use crate::addr::Target;
use crate::authorise::{Admission, Denied, Observation, Observe, RequestFacts, Sightings};
use crate::identity::Identity;

/// All workers' books.
#[derive(Debug)]
pub struct Watchers {
    observe: Observe,
    room: usize,
    books: Mutex<Vec<Arc<Mutex<Sightings>>>>,
}

/// One worker's book.
#[derive(Clone, Debug)]
pub(crate) struct Book {
    observe: Observe,
    sightings: Arc<Mutex<Sightings>>,
}

impl Watchers {
    /// With room for so many kinds of call on each worker.
    pub fn new(observe: Observe, room: usize) -> Arc<Self> {
        Arc::new(Self { observe, room, books: Mutex::default() })
    }

    /// A book for one more worker.
    pub(crate) fn book(&self) -> Book {
        let sightings = Arc::new(Mutex::new(Sightings::new(self.room)));
        self.books.lock().push(Arc::clone(&sightings));
        Book { observe: self.observe, sightings }
    }

    /// What all workers have seen, and how many calls found no room.
    pub fn observations(&self) -> (Vec<Observation>, u64) {
        let mut all = Sightings::new(self.room.saturating_mul(4));
        for book in self.books.lock().iter() {
            all.merge(&book.lock());
        }
        (all.observations(), all.beyond())
    }
}

impl Book {
    /// Notes a decision, where such are noted.
    pub(crate) fn note(
        &self,
        client: &Identity,
        service: &Target,
        facts: Option<&RequestFacts<'_>>,
        decision: Result<&Admission, &Denied>,
    ) {
        let plain = matches!(decision, Ok(admission) if admission.would_refuse.is_none());
        if plain && self.observe == Observe::Refused {
            return;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.sightings.lock().note(client, service, facts, decision, now);
    }
}
