//! One service, followed: its profile, its endpoints, and the policy for bytes, put together and published.
//!
//! **In** three streams. **Out** what the service's state and profile are, whenever that changes. **Refuses** nothing.
//!
//! Profile and endpoints are asked for at the same time, since the name that a profile gives is nearly always the one that
//! was asked for: it saves the first request a round trip. Where it is another, the endpoints are asked for anew.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use linkerd2_proxy_api::destination::{DestinationProfile, Update};
use linkerd2_proxy_api::outbound::OutboundPolicy;
use tokio::time::{MissedTickBehavior, interval};
use tonic::Code;

use super::Shared;
use super::branches::{self, Branches};
use super::opaque::{self, Opaque, To};
use super::profile::{self, Own, Shape};
use super::streams::{self, Gathering, Stream, meaning};
use crate::addr::Target;
use crate::route::{Budget, Connections, Profile, Service, State};
use crate::sources::linkerd::control::watch::News;

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
            news = streams::endpoints(&mut story.own) => story.heard_endpoints(news),
            news = streams::policy(&mut story.policy) => story.heard_policy(news),
            _ = look.tick() => {}
        }
        let Some(service) = service.upgrade() else { return };
        if !story.publish(&service) {
            return;
        }
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
        let policy = Stream::policy(shared, &target);
        Self {
            own: Some(Gathering::new(shared, target.clone())),
            profile: Stream::profile(shared, &target),
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
                (Own::Endpoint(endpoint), _) => Some(branches::known(endpoint)),
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
