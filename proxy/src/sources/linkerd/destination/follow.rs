//! One service, followed: its profile, its endpoints, and the policy for bytes, put together and published.
//!
//! **In** three streams. **Out** what the service's state and profile are, whenever that changes. **Refuses** nothing.
//!
//! Profile and endpoints are asked for at the same time, since the name that a profile gives is nearly always the one that
//! was asked for: it saves the first request a round trip. Where it is another, the endpoints are asked for anew.

use std::collections::HashMap;
use std::future::pending;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use linkerd2_proxy_api::destination::destination_client::DestinationClient;
use linkerd2_proxy_api::destination::{DestinationProfile, GetDestination, Update};
use linkerd2_proxy_api::outbound::outbound_policies_client::OutboundPoliciesClient;
use linkerd2_proxy_api::outbound::{OutboundPolicy, TrafficSpec, traffic_spec};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::task::AbortOnDropHandle;
use tonic::Code;

use super::Shared;
use super::endpoints::Table;
use super::opaque::{self, Opaque, To};
use super::profile::{self, Own, Shape};
use crate::addr::Target;
use crate::endpoint::{Endpoint, Endpoints};
use crate::route::{Branch, Budget, Connections, Profile, Service, State};
use crate::sources::linkerd::control::watch::{Loss, News, Watch};

/// How often a quiet service is looked at for whether anybody still holds it.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Counts a followed service until dropped.
struct Followed(Arc<Shared>);

impl Drop for Followed {
    fn drop(&mut self) {
        self.0.services.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Keeps one service current until nobody holds it, or a source of higher rank takes it over.
pub(super) async fn follow(shared: Arc<Shared>, service: Weak<Service>) {
    let Some(target) = service.upgrade().map(|service| service.target().clone()) else { return };
    shared.services.fetch_add(1, Ordering::Relaxed);
    let followed = Followed(shared);
    let mut story = Story::new(&followed.0, target);
    let mut look = interval(LOOK_INTERVAL);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            news = story.profile.next() => story.heard_profile(news),
            news = next(&mut story.own) => story.heard_endpoints(news),
            news = next(&mut story.policy) => story.heard_policy(news),
            _ = look.tick() => {}
        }
        let Some(service) = service.upgrade() else { return };
        if !story.publish(&service) {
            return;
        }
    }
}

/// A stream that may have to rest.
#[derive(Debug)]
struct Stream<T> {
    watch: Watch<T>,
    rests_until: Option<Instant>,
}

impl<T: 'static> Stream<T> {
    fn new(watch: Watch<T>) -> Self {
        Self { watch, rests_until: None }
    }

    /// Cancel safe.
    async fn next(&mut self) -> News<T> {
        if let Some(until) = self.rests_until {
            sleep_until(until).await;
            self.rests_until = None;
        }
        self.watch.next().await
    }

    /// Asks nothing for a while: the answer was definite.
    fn rest(&mut self, time: Duration) {
        self.rests_until = Some(Instant::now() + time);
    }
}

/// The endpoints of one target.
#[derive(Debug)]
struct Gathering {
    target: Target,
    stream: Stream<Update>,
    table: Table,
}

impl Gathering {
    fn new(shared: &Arc<Shared>, target: Target) -> Self {
        let request = destination(shared, &target);
        let watch = Watch::new(shared.destination.clone(), move |control| {
            let request = request.clone();
            async move { DestinationClient::new(control).get(request).await }
        });
        Self { target, stream: Stream::new(watch), table: Table::default() }
    }

    /// What is known after some news; `None` leaves what was known. `known` says whether anything was.
    fn heard(&mut self, news: News<Update>, shared: &Shared, known: bool) -> Option<State> {
        match news {
            News::Message { first, value } => {
                if first {
                    self.table.renew();
                }
                self.table.apply(value, &shared.terms)
            }
            News::Lost(loss) => {
                tracing::debug!(target = %self.target, %loss, "endpoints: the stream is lost");
                let meaning = meaning(&loss, known);
                if matches!(meaning, Some(State::Missing)) {
                    self.stream.rest(shared.settings.negative_ttl);
                }
                meaning
            }
        }
    }
}

trait Next {
    type Message;
    async fn next(&mut self) -> News<Self::Message>;
}

impl Next for Gathering {
    type Message = Update;
    async fn next(&mut self) -> News<Update> {
        self.stream.next().await
    }
}

impl Next for Stream<OutboundPolicy> {
    type Message = OutboundPolicy;
    async fn next(&mut self) -> News<OutboundPolicy> {
        Self::next(self).await
    }
}

/// The next news of a stream that need not be there.
async fn next<N: Next>(stream: &mut Option<N>) -> News<N::Message> {
    match stream {
        Some(stream) => stream.next().await,
        None => pending().await,
    }
}

fn destination(shared: &Shared, target: &Target) -> GetDestination {
    // Without a scheme, as Linkerd's own proxies ask.
    GetDestination { scheme: String::new(), path: target.to_string(), context_token: shared.settings.context.clone() }
}

/// What a lost stream says of a service. Definite answers count whatever was known; errors only where nothing was; and
/// what happens on the way says nothing.
fn meaning(loss: &Loss, known: bool) -> Option<State> {
    match loss.code {
        _ if !loss.by_server => None,
        Code::FailedPrecondition | Code::InvalidArgument | Code::NotFound => Some(State::Missing),
        Code::Aborted | Code::Cancelled | Code::DeadlineExceeded | Code::Ok | Code::Unavailable => None,
        _ if known => None,
        _ => Some(State::Failing),
    }
}

/// All that was heard of one service.
struct Story {
    shared: Arc<Shared>,
    target: Target,
    profile: Stream<DestinationProfile>,
    own: Option<Gathering>,
    policy: Option<Stream<OutboundPolicy>>,
    /// What was made of the profile, or of the answer that there is none.
    shape: Option<Result<Shape, State>>,
    endpoints: Option<State>,
    opaque: Option<Opaque>,
    branches: Branches,
    /// What is published of it all.
    described: Option<Profile>,
}

impl Story {
    fn new(shared: &Arc<Shared>, target: Target) -> Self {
        let request = destination(shared, &target);
        let profile = Watch::new(shared.destination.clone(), move |control| {
            let request = request.clone();
            async move { DestinationClient::new(control).get_profile(request).await }
        });
        let request = TrafficSpec {
            source_workload: shared.settings.workload.clone(),
            target: Some(traffic_spec::Target::Authority(target.to_string())),
        };
        let policy = shared.policy.clone().map(|control| {
            Stream::new(Watch::new(control, move |control| {
                let request = request.clone();
                async move { OutboundPoliciesClient::new(control).watch(request).await }
            }))
        });
        Self {
            own: Some(Gathering::new(shared, target.clone())),
            profile: Stream::new(profile),
            opaque: policy.is_none().then_some(Opaque::AsRequests),
            policy,
            shape: None,
            endpoints: None,
            branches: Branches::new(shared),
            described: None,
            shared: Arc::clone(shared),
            target,
        }
    }

    fn heard_profile(&mut self, news: News<DestinationProfile>) {
        match news {
            News::Message { value, .. } => {
                let shape = profile::shape(value, &self.target, &self.shared.terms);
                match &shape.own {
                    Own::Service(name) if self.own.as_ref().is_some_and(|own| own.target == *name) => {}
                    Own::Service(name) => {
                        self.endpoints = None;
                        self.own = Some(Gathering::new(&self.shared, name.clone()));
                    }
                    Own::Endpoint(_) | Own::Nothing => (self.own, self.endpoints) = (None, None),
                }
                self.shape = Some(Ok(shape));
            }
            News::Lost(loss) => {
                tracing::debug!(target = %self.target, %loss, "profile: the stream is lost");
                let known = matches!(self.shape, Some(Ok(_)));
                match meaning(&loss, known) {
                    None => return,
                    Some(state) => {
                        if matches!(state, State::Missing) {
                            self.profile.rest(self.shared.settings.negative_ttl);
                        }
                        self.shape = Some(Err(state));
                    }
                }
            }
        }
        self.describe();
    }

    fn heard_endpoints(&mut self, news: News<Update>) {
        let Some(own) = &mut self.own else { return };
        let known = matches!(self.endpoints, Some(State::Known(_) | State::Missing));
        if let Some(state) = own.heard(news, &self.shared, known) {
            self.endpoints = Some(state);
        }
    }

    fn heard_policy(&mut self, news: News<OutboundPolicy>) {
        match news {
            News::Message { value, .. } => {
                self.opaque = Some(opaque::opaque(value, &self.target, &self.shared.terms));
            }
            News::Lost(loss) => {
                tracing::debug!(target = %self.target, %loss, "policy: the stream is lost");
                // No policy for it, or none at all: bytes go where requests go.
                let none = loss.by_server && matches!(loss.code, Code::NotFound | Code::Unimplemented);
                if !none && !loss.is_final() {
                    return;
                }
                if let Some(policy) = &mut self.policy {
                    policy.rest(self.shared.settings.negative_ttl);
                }
                self.opaque = Some(Opaque::AsRequests);
            }
        }
        self.describe();
    }

    /// Makes the profile of what is known, and starts and ends the branches that it takes.
    fn describe(&mut self) {
        let Some(Ok(shape)) = &self.shape else {
            self.described = None;
            self.branches = Branches::new(&self.shared);
            return;
        };
        let itself = match &shape.own {
            Own::Service(name) => name,
            Own::Endpoint(_) | Own::Nothing => &self.target,
        };
        let mut used = self.branches.begin(itself);
        let split = shape.split.iter().map(|(target, weight)| used.branch(&To::Service(target.clone()), *weight));
        let split = split.collect();
        let connections = match &self.opaque {
            None => Connections::Pending,
            Some(Opaque::AsRequests) => Connections::AsRequests,
            Some(Opaque::First(list)) => Connections::First(list.iter().map(|to| used.branch(to, 1)).collect()),
            Some(Opaque::Forbidden) => Connections::Forbidden,
            Some(Opaque::Invalid(why)) => Connections::Invalid(why.as_str().into()),
            Some(Opaque::Shared(list)) => {
                Connections::Shared(list.iter().map(|(to, weight)| used.branch(to, *weight)).collect())
            }
        };
        used.end();
        // Terms that stay keep what has been spent of them.
        let spent = self.described.as_ref().and_then(|profile| profile.budget.clone());
        let spent = spent.filter(|budget| shape.budget.map(Budget::new).is_some_and(|new| new == **budget));
        let budget = spent.or_else(|| shape.budget.map(|terms| Arc::new(Budget::new(terms))));
        self.described = Some(Profile { split, rules: shape.rules.clone(), budget, connections });
    }

    /// Publishes what is known, if anything is. Answers whether the service is still ours.
    fn publish(&self, service: &Service) -> bool {
        let (claim, exported) = (self.shared.claim, self.shared.settings.exported);
        let state = match &self.shape {
            None => return true,
            Some(Err(state)) => Some(state.clone()),
            Some(Ok(shape)) => match (&shape.own, &self.endpoints) {
                (Own::Nothing, _) => Some(State::Missing),
                (Own::Endpoint(endpoint), _) => Some(known(endpoint)),
                // There are others to take the traffic.
                (Own::Service(_), Some(State::Missing)) if !shape.split.is_empty() => {
                    Some(State::Known(Arc::default()))
                }
                (Own::Service(_), endpoints) => endpoints.clone(),
            },
        };
        let described = self.described.clone().filter(|profile| *profile != Profile::default());
        service.describe(claim, described) && state.is_none_or(|state| service.publish(claim, exported, state))
    }
}

fn known(endpoint: &Endpoint) -> State {
    State::Known(Arc::new(Endpoints { list: vec![endpoint.clone()] }))
}

/// The services that share the traffic of one, each followed by a task of its own.
struct Branches {
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
    fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: Arc::clone(shared), live: HashMap::new(), single: Vec::new(), nowhere: None }
    }

    /// Begins to say which branches there are; those that are not named before the [end](Used::end) are given up.
    fn begin<'a>(&'a mut self, itself: &'a Target) -> Used<'a> {
        let (live, single) = (std::mem::take(&mut self.live), std::mem::take(&mut self.single));
        Used { branches: self, itself, live, single }
    }
}

/// The branches while they are named.
struct Used<'a> {
    branches: &'a mut Branches,
    itself: &'a Target,
    /// Those that were there and have not been named yet.
    live: HashMap<Target, Live>,
    single: Vec<(Endpoint, Arc<Service>)>,
}

impl Used<'_> {
    fn branch(&mut self, to: &To, weight: u32) -> Branch {
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
    fn end(self) {
        drop(self.live);
    }
}

/// Keeps the endpoints of a branch current until it is given up.
async fn gather(shared: Arc<Shared>, service: Arc<Service>) {
    let mut gathering = Gathering::new(&shared, service.target().clone());
    let mut known = false;
    loop {
        let news = gathering.stream.next().await;
        if let Some(state) = gathering.heard(news, &shared, known) {
            known = matches!(state, State::Known(_) | State::Missing);
            service.publish(shared.claim, true, state);
        }
    }
}
