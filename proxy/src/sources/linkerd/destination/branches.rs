//! The services that share the traffic of one, each followed by a task of its own for as long as it is named.
//!
//! **In** the names and endpoints that a profile or a policy gives shares to. **Out** the [`Branch`]es. **Refuses** (by a
//! branch that leads nowhere) what nobody can be found behind, and more services than may be followed.

use std::collections::HashMap;
use std::sync::Arc;

use tokio_util::task::AbortOnDropHandle;

use super::Shared;
use super::opaque::To;
use super::streams::Gathering;
use crate::addr::Target;
use crate::endpoint::{Endpoint, Endpoints};
use crate::route::{Branch, Service, State};

/// The services that share the traffic of one, each followed by a task of its own.
pub(super) struct Branches {
    shared: Arc<Shared>,
    live: HashMap<Target, Live>,
    /// Single endpoints that a policy names.
    single: Vec<(Endpoint, Arc<Service>)>,
    nowhere: Option<Arc<Service>>,
}

struct Live {
    service: Arc<Service>,
    _task: AbortOnDropHandle<()>,
}

impl Branches {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: Arc::clone(shared), live: HashMap::new(), single: Vec::new(), nowhere: None }
    }

    /// Begins to say which branches there are; those that are not named before the [end](Used::end) are given up.
    pub(super) fn begin<'a>(&'a mut self, itself: &'a Target) -> Used<'a> {
        let (live, single) = (std::mem::take(&mut self.live), std::mem::take(&mut self.single));
        Used { branches: self, itself, live, single }
    }
}

/// The branches while they are named.
pub(super) struct Used<'a> {
    branches: &'a mut Branches,
    itself: &'a Target,
    /// Those that were there and have not been named yet.
    live: HashMap<Target, Live>,
    single: Vec<(Endpoint, Arc<Service>)>,
}

impl Used<'_> {
    pub(super) fn branch(&mut self, to: &To, weight: u32) -> Branch {
        let service = match to {
            To::Service(target) if target == self.itself => None,
            To::Service(target) => Some(self.live(target)),
            To::Endpoint(endpoint) => Some(self.single(endpoint)),
            To::Nowhere => Some(self.nowhere()),
        };
        Branch { weight, service }
    }

    fn live(&mut self, target: &Target) -> Arc<Service> {
        if let Some(live) = self.branches.live.get(target) {
            return Arc::clone(&live.service);
        }
        if let Some(live) = self.live.remove(target) {
            let service = Arc::clone(&live.service);
            self.branches.live.insert(target.clone(), live);
            return service;
        }
        let shared = &self.branches.shared;
        if self.branches.live.len() >= shared.settings.max_branches {
            tracing::warn!(service = %self.itself, %target, "a share of the traffic is refused: it has more than may be followed");
            return self.nowhere();
        }
        let service = Arc::new(Service::apart(target.clone()));
        let task = gather(Arc::clone(shared), Arc::clone(&service));
        let task = AbortOnDropHandle::new(tokio::runtime::Handle::current().spawn(task));
        self.branches.live.insert(target.clone(), Live { service: Arc::clone(&service), _task: task });
        service
    }

    fn single(&mut self, endpoint: &Endpoint) -> Arc<Service> {
        let same = |(other, _): &(Endpoint, Arc<Service>)| other == endpoint;
        let service = self.branches.single.iter().chain(&self.single).find(|one| same(one)).map(|(_, s)| Arc::clone(s));
        let service = service.unwrap_or_else(|| {
            let service = Arc::new(Service::apart(self.itself.clone()));
            service.publish(self.branches.shared.claim, true, known(endpoint));
            service
        });
        self.branches.single.push((endpoint.clone(), Arc::clone(&service)));
        service
    }

    fn nowhere(&mut self) -> Arc<Service> {
        let claim = self.branches.shared.claim;
        let make = || {
            let service = Service::apart(self.itself.clone());
            service.publish(claim, false, State::Missing);
            Arc::new(service)
        };
        Arc::clone(self.branches.nowhere.get_or_insert_with(make))
    }

    /// Gives up the branches that were not named.
    pub(super) fn end(self) {
        drop(self.live);
    }
}

/// A service that has one endpoint.
pub(super) fn known(endpoint: &Endpoint) -> State {
    State::Known(Arc::new(Endpoints { list: vec![endpoint.clone()] }))
}

/// Keeps the endpoints of a branch current until it is given up.
async fn gather(shared: Arc<Shared>, service: Arc<Service>) {
    let mut gathering = Gathering::new(&shared, service.target().clone());
    let mut known = false;
    loop {
        let news = gathering.next().await;
        if let Some(state) = gathering.heard(news, &shared, known) {
            known = matches!(state, State::Known(_) | State::Missing);
            service.publish(shared.claim, true, state);
        }
    }
}
