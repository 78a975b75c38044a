//! Counts for subjects that outsiders choose, in bounded memory and without a lock on the way.
//!
//! **In** a hash of the subject (client identity, or service). **Out** a [`Pin`] on its [`Cell`]. The table has a fixed
//! number of places in sets of eight. A subject that is seen for the first time takes a free place of its set, or that of
//! one that is *idle*: with nothing under way and full buckets, so that forgetting it loses nothing. Where all eight are in use, the
//! subject shares the overflow cell with all others in that position, which bounds memory whatever identities are presented.
//!
//! A lookup reads, pins and checks again: no lock. Only the first sight of a subject takes its set's lock, and never waits for
//! it. The hash is keyed at random, so that nobody can choose identities that crowd one set.

use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::cell::Cell;

const WAYS: usize = 8;

/// Set in `pins` while the place changes hands.
const CHANGING: u32 = 1 << 31;

/// A bounded table of cells.
#[derive(Debug)]
pub(in crate::authorise) struct Table {
    hasher: RandomState,
    sets: Box<[Set]>,
    overflow: Arc<Cell>,
}

#[derive(Debug, Default)]
struct Set {
    places: [Place; WAYS],
    changing: Mutex<()>,
}

#[derive(Debug, Default)]
struct Place {
    /// The hash of the subject; 0 for none.
    subject: AtomicU64,
    /// How many hold the place, and whether it changes hands.
    pins: AtomicU32,
    cell: Cell,
}

/// Holds a cell: while it lives, the cell belongs to the same subject.
#[derive(Debug)]
pub(super) enum Pin {
    /// A place of its own.
    Own { table: Arc<Table>, set: usize, way: usize },
    /// Shared, or not bound to a table.
    Shared(Arc<Cell>),
}

impl Table {
    /// With room for at least `places` subjects.
    pub(super) fn new(places: usize) -> Arc<Self> {
        let sets = places.div_ceil(WAYS).max(1);
        Arc::new(Self {
            hasher: RandomState::new(),
            sets: (0..sets).map(|_| Set::default()).collect(),
            overflow: Arc::default(),
        })
    }

    /// Whether it is as large as one made for so many subjects.
    pub(super) fn has_room_for(&self, places: usize) -> bool {
        self.sets.len() == places.div_ceil(WAYS).max(1)
    }

    /// The cell of a subject.
    pub(super) fn pin(self: &Arc<Self>, subject: impl Hash, now: u64) -> Pin {
        let hash = self.hasher.hash_one(subject).max(1);
        let index = usize::try_from(hash % self.sets.len() as u64).expect("less than a length");
        let set = &self.sets[index];
        let own = |way| Pin::Own { table: Arc::clone(self), set: index, way };
        if let Some(way) = set.find(hash) {
            return own(way);
        }
        let Some(_lock) = set.changing.try_lock() else { return Pin::Shared(Arc::clone(&self.overflow)) };
        // Another worker may have brought the same subject in meanwhile.
        set.find(hash).or_else(|| set.take_over(hash, now)).map_or_else(|| Pin::Shared(Arc::clone(&self.overflow)), own)
    }
}

impl Set {
    /// Finds a subject's place and pins it.
    fn find(&self, hash: u64) -> Option<usize> {
        self.places.iter().position(|place| {
            if place.subject.load(Ordering::Acquire) != hash {
                return false;
            }
            let before = place.pins.fetch_add(1, Ordering::AcqRel);
            // Pinned too late: it is changing hands, or has changed.
            let ours = before & CHANGING == 0 && place.subject.load(Ordering::Acquire) == hash;
            if !ours {
                place.pins.fetch_sub(1, Ordering::AcqRel);
            }
            ours
        })
    }

    /// Gives a free or idle place to a new subject, pinned. The caller holds the lock.
    fn take_over(&self, hash: u64, now: u64) -> Option<usize> {
        self.places.iter().position(|place| {
            if place.pins.compare_exchange(0, CHANGING, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                return false;
            }
            // Nobody holds it, and whoever pins it now will see that it is changing and let go.
            let free = place.subject.load(Ordering::Acquire) == 0 || place.cell.is_idle(now);
            if free {
                place.cell.reset();
                place.subject.store(hash, Ordering::Release);
                place.pins.fetch_add(1, Ordering::AcqRel);
            }
            place.pins.fetch_sub(CHANGING, Ordering::AcqRel);
            free
        })
    }
}

impl Pin {
    /// The cell.
    pub(super) fn cell(&self) -> &Cell {
        match self {
            Self::Own { table, set, way } => &table.sets[*set].places[*way].cell,
            Self::Shared(cell) => cell,
        }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        if let Self::Own { table, set, way } = self {
            table.sets[*set].places[*way].pins.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_shared(pin: &Pin) -> bool {
        matches!(pin, Pin::Shared(_))
    }

    #[test]
    fn a_subject_keeps_its_cell_while_it_is_in_use() {
        let table = Table::new(1);
        let first = table.pin("a", 0);
        first.cell().requests.store(7, Ordering::Relaxed);
        assert_eq!(table.pin("a", 0).cell().requests.load(Ordering::Relaxed), 7);
        // Seven others find a place, the ninth shares.
        let others: Vec<Pin> = (0..7).map(|i| table.pin(i, 0)).collect();
        assert!(!others.iter().any(is_shared));
        assert!(is_shared(&table.pin("ninth", 0)));
        // Pins gone, but `a` has something under way: the ninth takes over another's place.
        drop((first, others));
        for i in 100..200 {
            assert!(!is_shared(&table.pin(i, 0)));
        }
        assert_eq!(table.pin("a", 0).cell().requests.load(Ordering::Relaxed), 7);
    }

    #[test]
    fn many_threads_keep_one_count() {
        let table = Table::new(8);
        let peak = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for seed in 0..4_u64 {
                let (table, peak) = (&table, &peak);
                scope.spawn(move || {
                    for round in 0..20_000_u64 {
                        // More subjects than places, so that places change hands all the time.
                        let pin = table.pin((seed * 7 + round) % 24, 0);
                        if let Pin::Own { .. } = pin {
                            let count = &pin.cell().requests;
                            peak.fetch_max(count.fetch_add(1, Ordering::AcqRel) + 1, Ordering::Relaxed);
                            count.fetch_sub(1, Ordering::AcqRel);
                        }
                    }
                });
            }
        });
        assert!(peak.into_inner() <= 4, "no count can exceed the threads");
        for place in &table.sets[0].places {
            assert_eq!((place.pins.load(Ordering::Relaxed), place.cell.requests.load(Ordering::Relaxed)), (0, 0));
        }
        let mut subjects: Vec<u64> = table.sets[0].places.iter().map(|p| p.subject.load(Ordering::Relaxed)).collect();
        subjects.retain(|subject| *subject != 0);
        subjects.sort_unstable();
        let places = subjects.len();
        subjects.dedup();
        assert_eq!(subjects.len(), places, "no subject has two places");
    }
}
