//! What the balancers of all workers know of their endpoints, for those who show it.
//!
//! Each worker writes its own entries with plain relaxed stores (nobody else writes them, so no read-modify-write is
//! needed); a reader sums over the workers. Entries vanish when their balancer forgets the endpoint.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::addr::Target;
use crate::endpoint::Endpoint;

/// All entries of all workers.
#[derive(Debug)]
pub struct Registry {
    epoch: Instant,
    entries: Mutex<Vec<Weak<Entry>>>,
}

/// One endpoint of one service, over all workers.
#[derive(Clone, Debug, PartialEq)]
pub struct Load {
    /// The service.
    pub service: Target,
    /// The endpoint's address.
    pub addr: SocketAddr,
    /// Its zone.
    pub zone: Option<Arc<str>>,
    /// Its weight.
    pub weight: u32,
    /// Requests and connections it is working on.
    pub pending: u32,
    /// The estimated round trip in milliseconds, as of the last answer: that of the worker which saw one last.
    pub rtt_ms: f64,
    /// How many workers have ejected it.
    pub ejected_by: u32,
    /// When the last of these ejections ends, from now.
    pub ejected_for: Option<Duration>,
    /// Requests and connections it was given.
    pub requests: u64,
    /// How many of them failed.
    pub failures: u64,
}

/// One worker's view of one endpoint. Written by that worker alone.
#[derive(Debug)]
pub(super) struct Entry {
    service: Target,
    addr: SocketAddr,
    epoch: Instant,
    zone: Mutex<Option<Arc<str>>>,
    weight: AtomicU32,
    /// Seconds, as the bits of an `f64`.
    rtt: AtomicU64,
    /// Microseconds after the epoch when `rtt` was written.
    answered: AtomicU64,
    pub(super) pending: Gauge,
    /// Microseconds after the epoch; 0 for not ejected.
    pub(super) ejected_until: Count,
    pub(super) requests: Count,
    pub(super) failures: Count,
}

/// A number that goes up and down, with one writer.
#[derive(Debug, Default)]
pub(super) struct Gauge(AtomicU32);

/// A number with one writer.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Gauge {
    pub(super) fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self, n: u32) {
        self.0.store(self.get().wrapping_add(n), Ordering::Relaxed);
    }

    pub(super) fn sub(&self, n: u32) {
        self.0.store(self.get().wrapping_sub(n), Ordering::Relaxed);
    }
}

impl Count {
    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    pub(super) fn add(&self, n: u64) {
        self.set(self.get().wrapping_add(n));
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self { epoch: Instant::now(), entries: Mutex::default() }
    }
}

impl Registry {
    /// A view of `endpoint` for one worker's balancer.
    pub(super) fn enter(&self, service: &Target, endpoint: &Endpoint) -> Arc<Entry> {
        let entry = Arc::new(Entry {
            service: service.clone(),
            addr: endpoint.addr,
            epoch: self.epoch,
            zone: Mutex::new(endpoint.zone.clone()),
            weight: AtomicU32::new(endpoint.weight),
            rtt: AtomicU64::default(),
            answered: AtomicU64::default(),
            pending: Gauge::default(),
            ejected_until: Count::default(),
            requests: Count::default(),
            failures: Count::default(),
        });
        let mut entries = self.entries.lock();
        if entries.len() == entries.capacity() {
            // Before it grows: leave out what is gone, or an endpoint that comes and goes would grow it forever.
            entries.retain(|entry| entry.strong_count() > 0);
        }
        entries.push(Arc::downgrade(&entry));
        entry
    }

    /// Every endpoint of every service that some worker has used, in order.
    pub fn snapshot(&self) -> Vec<Load> {
        let entries: Vec<_> = self.entries.lock().iter().filter_map(Weak::upgrade).collect();
        let now = micros(self.epoch.elapsed());
        let mut loads: BTreeMap<(Target, SocketAddr), (Load, u64)> = BTreeMap::new();
        for entry in entries {
            let key = (entry.service.clone(), entry.addr);
            match loads.get_mut(&key) {
                Some((load, answered)) => entry.add_to(load, answered, now),
                None => {
                    let mut load = entry.empty_load();
                    let mut answered = 0;
                    entry.add_to(&mut load, &mut answered, now);
                    loads.insert(key, (load, answered));
                }
            }
        }
        loads.into_values().map(|(load, _)| load).collect()
    }
}

impl Entry {
    pub(super) fn describe(&self, endpoint: &Endpoint) {
        self.zone.lock().clone_from(&endpoint.zone);
        self.weight.store(endpoint.weight, Ordering::Relaxed);
    }

    pub(super) fn show_rtt(&self, seconds: f64, now: Instant) {
        self.rtt.store(seconds.to_bits(), Ordering::Relaxed);
        self.answered.store(micros(now.saturating_duration_since(self.epoch)), Ordering::Relaxed);
    }

    pub(super) fn show_ejected(&self, until: Instant) {
        self.ejected_until.set(micros(until.saturating_duration_since(self.epoch)));
    }

    fn empty_load(&self) -> Load {
        Load {
            service: self.service.clone(),
            addr: self.addr,
            zone: self.zone.lock().clone(),
            weight: self.weight.load(Ordering::Relaxed),
            pending: 0,
            rtt_ms: 0.0,
            ejected_by: 0,
            ejected_for: None,
            requests: 0,
            failures: 0,
        }
    }

    fn add_to(&self, load: &mut Load, answered: &mut u64, now: u64) {
        load.pending = load.pending.saturating_add(self.pending.get());
        load.requests = load.requests.wrapping_add(self.requests.get());
        load.failures = load.failures.wrapping_add(self.failures.get());
        let until = self.ejected_until.get();
        if until > now {
            load.ejected_by += 1;
            let left = Duration::from_micros(until - now);
            load.ejected_for = Some(load.ejected_for.map_or(left, |most| most.max(left)));
        }
        let at = self.answered.load(Ordering::Relaxed);
        if at >= *answered {
            *answered = at;
            load.rtt_ms = f64::from_bits(self.rtt.load(Ordering::Relaxed)) * 1e3;
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
