//! The streams that one service is followed by: how they are asked for, and what it means when one is lost.
//!
//! **In** a target. **Out** streams that are opened anew for ever, with a rest after a definite no. **Refuses** nothing.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use linkerd2_proxy_api::destination::destination_client::DestinationClient;
use linkerd2_proxy_api::destination::{DestinationProfile, GetDestination, Update};
use linkerd2_proxy_api::outbound::outbound_policies_client::OutboundPoliciesClient;
use linkerd2_proxy_api::outbound::{OutboundPolicy, TrafficSpec, traffic_spec};
use tokio::time::{Instant, sleep_until};
use tonic::Code;

use super::Shared;
use super::endpoints::Table;
use crate::addr::Target;
use crate::route::State;
use crate::sources::linkerd::control::watch::{Loss, News, Watch};

/// A stream that may have to rest.
#[derive(Debug)]
pub(super) struct Stream<T> {
    watch: Watch<T>,
    rests_until: Option<Instant>,
}

impl<T: 'static> Stream<T> {
    fn new(watch: Watch<T>) -> Self {
        Self { watch, rests_until: None }
    }

    /// Cancel safe.
    pub(super) async fn next(&mut self) -> News<T> {
        if let Some(until) = self.rests_until {
            sleep_until(until).await;
            self.rests_until = None;
        }
        self.watch.next().await
    }

    /// Asks nothing for a while: the answer was definite.
    pub(super) fn rest(&mut self, time: Duration) {
        self.rests_until = Some(Instant::now() + time);
    }
}

/// The endpoints of one target.
#[derive(Debug)]
pub(super) struct Gathering {
    pub(super) target: Target,
    stream: Stream<Update>,
    table: Table,
}

impl Gathering {
    pub(super) fn new(shared: &Arc<Shared>, target: Target) -> Self {
        let request = destination(shared, &target);
        let watch = Watch::new(shared.destination.clone(), move |control| {
            let request = request.clone();
            async move { DestinationClient::new(control).get(request).await }
        });
        Self { target, stream: Stream::new(watch), table: Table::default() }
    }

    /// Cancel safe.
    pub(super) async fn next(&mut self) -> News<Update> {
        self.stream.next().await
    }

    /// What is known after some news; `None` leaves what was known. `known` says whether anything was.
    pub(super) fn heard(&mut self, news: News<Update>, shared: &Shared, known: bool) -> Option<State> {
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

fn destination(shared: &Shared, target: &Target) -> GetDestination {
    // Without a scheme, as Linkerd's own proxies ask.
    GetDestination { scheme: String::new(), path: target.to_string(), context_token: shared.settings.context.clone() }
}

/// What a lost stream says of a service. Definite answers count whatever was known; errors only where nothing was; and
/// what happens on the way says nothing.
pub(super) fn meaning(loss: &Loss, known: bool) -> Option<State> {
    match loss.code {
        _ if !loss.by_server => None,
        Code::FailedPrecondition | Code::InvalidArgument | Code::NotFound => Some(State::Missing),
        Code::Aborted | Code::Cancelled | Code::DeadlineExceeded | Code::Ok | Code::Unavailable => None,
        _ if known => None,
        _ => Some(State::Failing),
    }
}

impl Stream<DestinationProfile> {
    /// The profile of a target.
    pub(super) fn profile(shared: &Arc<Shared>, target: &Target) -> Self {
        let request = destination(shared, target);
        Self::new(Watch::new(shared.destination.clone(), move |control| {
            let request = request.clone();
            async move { DestinationClient::new(control).get_profile(request).await }
        }))
    }
}

impl Stream<OutboundPolicy> {
    /// The policy for connections of bytes to a target, where somebody is asked for it.
    pub(super) fn policy(shared: &Arc<Shared>, target: &Target) -> Option<Self> {
        let request = TrafficSpec {
            source_workload: shared.settings.workload.clone(),
            target: Some(traffic_spec::Target::Authority(target.to_string())),
        };
        let control = shared.policy.clone()?;
        Some(Self::new(Watch::new(control, move |control| {
            let request = request.clone();
            async move { OutboundPoliciesClient::new(control).watch(request).await }
        })))
    }
}

/// The next news of the endpoints, where they are asked for.
pub(super) async fn endpoints(gathering: &mut Option<Gathering>) -> News<Update> {
    match gathering {
        Some(gathering) => gathering.next().await,
        None => pending().await,
    }
}

/// The next news of the policy, where it is asked for.
pub(super) async fn policy(stream: &mut Option<Stream<OutboundPolicy>>) -> News<OutboundPolicy> {
    match stream {
        Some(stream) => stream.next().await,
        None => pending().await,
    }
}
