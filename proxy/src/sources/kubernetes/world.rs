//! What is known, who has asked, and how one reaches the other.
//!
//! **In** changes by the watches, and demands of the directory. **Out** publications. **Refuses** nothing.
//!
//! Nothing is published that nobody has asked for: a cluster has thousands of services, and a gateway is asked for some of them.
//! Who asked is remembered for as long as the directory keeps the service, also where there is none of that name: there may be
//! one later.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use isthmus_probe::health::Part;
use kube::core::Selector;
use parking_lot::{Mutex, RwLock};

use super::model::Slice;
use super::names::Names;
use super::store::{Counts, Key, Store, Tables};
use crate::addr::Target;
use crate::balance::Zone;
use crate::route::{Claim, Service, State};

/// Shared by the source's face and its watches.
#[derive(Debug)]
pub(super) struct World {
    claim: Claim,
    names: Names,
    pub(super) selector: Selector,
    own: Option<IpAddr>,
    zone: Zone,
    store: RwLock<Store>,
    /// By the service's key, those of its targets that somebody has asked for. Held while publishing, so that what was
    /// worked out first is published first.
    followed: Mutex<Followed>,
    /// Watches that have not listed once yet.
    awaited: AtomicUsize,
    ready: Mutex<Option<Part>>,
}

#[derive(Debug, Default)]
struct Followed {
    by_service: HashMap<Key, Vec<Weak<Service>>>,
    /// At this many entries the forgotten ones are looked for.
    sweep_at: usize,
}

impl World {
    pub(super) fn new(claim: Claim, names: Names, selector: Selector, (own, zone): (Option<IpAddr>, Zone)) -> Self {
        Self {
            claim,
            names,
            selector,
            own,
            zone,
            store: RwLock::default(),
            followed: Mutex::default(),
            awaited: AtomicUsize::new(0),
            ready: Mutex::new(None),
        }
    }

    /// Until so many watches have listed once, nothing is published; then `ready` is said, where there is one.
    pub(super) fn awaits(&self, watches: usize, ready: Option<Part>) {
        self.awaited.store(watches, Ordering::Release);
        *self.ready.lock() = ready;
    }

    /// A watch has listed for the first time.
    pub(super) fn listed_once(&self) {
        if self.awaited.fetch_sub(1, Ordering::AcqRel) == 1 {
            let counts = self.counts();
            tracing::info!(
                services = counts.services,
                exported = counts.exported,
                endpoints = counts.endpoints,
                "the Kubernetes API server has told its services"
            );
            if let Some(ready) = self.ready.lock().take() {
                ready.ready();
            }
        }
    }

    /// Whether everything has been listed once.
    pub(super) fn listed(&self) -> bool {
        self.awaited.load(Ordering::Acquire) == 0
    }

    /// Changes the tables of a namespace. What is replaced is given back, so that it is dropped without anybody waiting.
    pub(super) fn change<T>(&self, scope: &str, change: impl FnOnce(&mut Tables) -> T) -> T {
        change(self.store.write().scope(scope))
    }

    pub(super) fn counts(&self) -> Counts {
        self.store.read().counts()
    }

    pub(super) fn zone(&self) -> Option<Arc<str>> {
        self.zone.get().cloned()
    }

    /// Looks for the gateway's own pod among the endpoints: theirs is the only word on zones that needs no right to read nodes.
    pub(super) fn find_own_zone(&self) {
        let Some(own) = self.own.filter(|_| self.zone.get().is_none()) else { return };
        let found = self.store.read().zone_of(own);
        self.found(found);
    }

    /// The same in one slice.
    pub(super) fn look_for_own(&self, slice: &Slice) {
        let Some(own) = self.own.filter(|_| self.zone.get().is_none()) else { return };
        let here = slice.endpoints.iter().find(|endpoint| endpoint.ip == own);
        self.found(here.and_then(|endpoint| endpoint.zone.clone()));
    }

    fn found(&self, zone: Option<Arc<str>>) {
        if let Some(zone) = zone
            && self.zone.find(Arc::clone(&zone))
        {
            tracing::info!(%zone, "the gateway's own zone is known: endpoints in it are preferred");
            self.publish_all();
        }
    }

    /// Whether the target is exported; `None` where there is no such service. Before everything has been listed nothing is:
    /// who was let through then would wait for the list and reach what it turns out not to export.
    pub(super) fn exported(&self, target: &Target) -> Option<bool> {
        let named = self.names.read(&target.name)?;
        if self.listed() { self.store.read().exported(&named) } else { Some(false) }
    }

    /// Somebody asks for a service. Answers whether it is ours to answer for.
    pub(super) fn follow(&self, service: &Arc<Service>) -> bool {
        let Some(named) = self.names.read(&service.target().name) else { return false };
        let mut followed = self.followed.lock();
        followed.remember(named.service, service);
        // Before the first list everything may be ours.
        !self.listed() || self.answer(service)
    }

    /// Publishes what has changed about these services.
    pub(super) fn publish(&self, keys: impl Iterator<Item = Key>) {
        if !self.listed() {
            return;
        }
        let followed = self.followed.lock();
        for key in keys {
            let services = followed.by_service.get(&key).into_iter().flatten();
            services.filter_map(Weak::upgrade).for_each(|service| self.answer_or_miss(&service));
        }
    }

    /// Publishes everything that somebody has asked for. What has not changed is not published again.
    pub(super) fn publish_all(&self) {
        if !self.listed() {
            return;
        }
        let followed = self.followed.lock();
        let services = followed.by_service.values().flatten();
        services.filter_map(Weak::upgrade).for_each(|service| self.answer_or_miss(&service));
    }

    fn answer(&self, service: &Service) -> bool {
        let target = service.target();
        let Some(named) = self.names.read(&target.name) else { return false };
        let zone = self.zone.get().map(|zone| &**zone);
        let found = self.store.read().find(&named, target.port, zone);
        if let Some(found) = &found {
            service.publish(self.claim, found.exported, found.state.clone());
        }
        found.is_some()
    }

    fn answer_or_miss(&self, service: &Service) {
        if !self.answer(service) {
            service.publish(self.claim, false, State::Missing);
        }
    }
}

impl Followed {
    fn remember(&mut self, key: &str, service: &Arc<Service>) {
        if self.by_service.len() >= self.sweep_at {
            self.by_service.retain(|_, services| services.iter().any(|service| service.strong_count() > 0));
            self.sweep_at = (2 * self.by_service.len()).max(64);
        }
        let services = self.by_service.entry(key.into()).or_default();
        services.retain(|service| service.strong_count() > 0);
        services.push(Arc::downgrade(service));
    }
}
