//! All services that the gateway knows or is asking about.
//!
//! **In** whole tables from sources that know everything they serve ([`Directory::replace`]), and admitted targets from
//! workers. **Out** an `Arc<Service>`. **Refuses** a target outside the suffixes, and another unknown one when as many
//! as the settings allow are being watched already.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Claim, Error, Service, Settings, State};
use crate::addr::Target;
use crate::authorise::Admitted;
use crate::endpoint::Endpoints;

/// A service that somebody asked for and no source has published: the sources are asked in their order.
#[derive(Clone, Debug)]
pub struct Demand(pub Arc<Service>);

/// Where the sources receive demands. Unbounded as a channel, bounded by [`Settings::max_demanded`] as a count.
pub type Demands = mpsc::UnboundedReceiver<Demand>;

/// One row of a table that a source publishes as a whole.
#[derive(Clone, Debug)]
pub struct Published {
    /// Name and port.
    pub target: Target,
    /// Whether other clusters may see it.
    pub exported: bool,
    /// Where it is.
    pub endpoints: Arc<Endpoints>,
}

/// A source that knows, before anybody has asked for a service, whether it is exported.
pub trait Catalogue: fmt::Debug + Send + Sync {
    /// Whether other clusters may see it; `None` where this source knows of no such service. Must not block.
    fn exported(&self, target: &Target) -> Option<bool>;
}

type Map = HashMap<Target, Arc<Service>>;

/// Finds services by target. Shared by all workers and sources.
#[derive(Debug)]
pub struct Directory {
    settings: Settings,
    map: ArcSwap<Map>,
    /// Held by writers only, and never across an await.
    writing: Mutex<()>,
    demands: mpsc::UnboundedSender<Demand>,
    /// Asked for what nobody has asked for yet.
    catalogues: ArcSwap<Vec<Arc<dyn Catalogue>>>,
    epoch: Instant,
}

impl Directory {
    /// An empty directory, and the end where the sources hear what is asked for.
    pub fn new(settings: Settings) -> (Arc<Self>, Demands) {
        let (demands, receiver) = mpsc::unbounded_channel();
        let directory = Self {
            settings,
            map: ArcSwap::default(),
            writing: Mutex::new(()),
            demands,
            catalogues: ArcSwap::default(),
            epoch: Instant::now(),
        };
        (Arc::new(directory), receiver)
    }

    /// What it was made with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The service of an admitted target. One that nobody knows yet is entered as pending and demanded of the sources.
    pub fn find(&self, target: &Admitted<Target>) -> Result<Arc<Service>, Error> {
        let target = target.as_ref();
        self.settings.allowed(target)?;
        match self.map.load().get(target) {
            Some(service) => {
                service.touch(self.now());
                Ok(Arc::clone(service))
            }
            None => self.demand(target),
        }
    }

    /// Whether a source marks the target as exported. What no source has spoken for yet is what a catalogue says, or what a
    /// demand would find.
    pub fn exported(&self, target: &Target) -> bool {
        match self.map.load().get(target) {
            Some(service) if service.is_claimed() => service.exported(),
            _ => {
                let catalogues = self.catalogues.load();
                let said = catalogues.iter().find_map(|catalogue| catalogue.exported(target));
                said.unwrap_or(self.settings.demanded_exported)
            }
        }
    }

    /// The service of a target, where it is known; nobody is asked for it.
    pub fn known(&self, target: &Target) -> Option<Arc<Service>> {
        self.map.load().get(target).cloned()
    }

    /// Adds a source that knows more services than anybody has asked for, behind those that were added before.
    pub fn consult(&self, catalogue: Arc<dyn Catalogue>) {
        self.catalogues.rcu(|known| {
            let mut known = Vec::clone(known);
            known.push(Arc::clone(&catalogue));
            known
        });
    }

    /// The service and its endpoints, waiting for the first answer within the settings' bound.
    pub async fn resolve(&self, target: &Admitted<Target>) -> Result<(Arc<Service>, Arc<Endpoints>), Error> {
        let service = self.find(target)?;
        let endpoints = service.endpoints(self.settings.discovery_timeout).await?;
        Ok((service, endpoints))
    }

    /// Replaces everything that the source `claim` has published as a table by `table`. What is no longer in it becomes
    /// missing and is forgotten, so that the next request for it asks the other sources.
    pub fn replace(&self, claim: Claim, table: Vec<Published>) {
        let _writing = self.writing.lock();
        let mut map = Map::clone(&self.map.load());
        let mut kept = HashSet::with_capacity(table.len());
        for row in table {
            let service =
                map.entry(row.target.clone()).or_insert_with(|| Arc::new(Service::new(row.target.clone(), self.now())));
            if service.publish(claim, row.exported, State::Known(row.endpoints)) {
                service.set_tabled();
                kept.insert(row.target);
            }
        }
        map.retain(|target, service| {
            let gone = service.claimed_by() == claim && !kept.contains(target);
            if gone {
                service.release(claim);
            }
            !gone
        });
        self.map.store(Arc::new(map));
    }

    /// Forgets demanded services that nobody has used for the settings' time. Called now and then by the sources.
    /// What stands in a source's table is that source's to take back.
    pub fn sweep(&self) -> usize {
        let idle = u32::try_from(self.settings.idle_timeout.as_secs()).unwrap_or(u32::MAX);
        let now = self.now();
        self.forget(|service| !service.tabled() && now.saturating_sub(service.used()) > idle)
    }

    /// Every service, for those who show or count them.
    pub fn services(&self) -> Vec<Arc<Service>> {
        self.map.load().values().cloned().collect()
    }

    #[cold]
    fn demand(&self, target: &Target) -> Result<Arc<Service>, Error> {
        let _writing = self.writing.lock();
        // Another worker may have been quicker.
        let current = self.map.load();
        if let Some(service) = current.get(target) {
            return Ok(Arc::clone(service));
        }
        let mut map = Map::clone(&current);
        let demanded = map.values().filter(|service| !service.tabled()).count();
        if demanded >= self.settings.max_demanded && !make_room(&mut map) {
            return Err(Error::Capacity);
        }
        let service = Arc::new(Service::new(target.clone(), self.now()));
        map.insert(target.clone(), Arc::clone(&service));
        if self.demands.send(Demand(Arc::clone(&service))).is_err() {
            // Nobody to ask: the sources have ended. Nothing is remembered.
            return Err(Error::UnknownService);
        }
        self.map.store(Arc::new(map));
        Ok(service)
    }

    fn forget(&self, mut gone: impl FnMut(&Service) -> bool) -> usize {
        let _writing = self.writing.lock();
        let current = self.map.load();
        if !current.values().any(|service| gone(service)) {
            return 0;
        }
        let mut map = Map::clone(&current);
        map.retain(|_, service| !gone(service));
        let forgotten = current.len() - map.len();
        self.map.store(Arc::new(map));
        forgotten
    }

    /// Seconds since the directory was made: exact enough for idleness, and small enough to compare without a lock.
    fn now(&self) -> u32 {
        u32::try_from(self.epoch.elapsed().as_secs()).unwrap_or(u32::MAX)
    }
}

/// Drops the service that leads nowhere and has been unused for longest: names that lead nowhere must not keep out those that
/// do.
fn make_room(map: &mut Map) -> bool {
    let nowhere = map.iter().filter(|(_, service)| !service.tabled() && service.leads_nowhere());
    let oldest = nowhere.min_by_key(|(_, service)| service.used()).map(|(target, _)| target.clone());
    oldest.is_some_and(|target| map.remove(&target).is_some())
}
