//! Who takes connections of bytes, as the control plane's outbound policies say.
//!
//! **In** the messages of `OutboundPolicies.Watch`. **Out** an [`Opaque`]. **Refuses** policies that contradict themselves,
//! and with them the connections they are about. Requests are none of its business. (Linkerd wire document §4.9, §5.2.)

use linkerd2_proxy_api::outbound::opaque_route::{Distribution, Filter, RouteBackend, distribution, filter};
use linkerd2_proxy_api::outbound::{Backend, OpaqueRoute, OutboundPolicy, backend, proxy_protocol};

use super::endpoints::{self, Terms};
use crate::addr::Target;
use crate::endpoint::Endpoint;

/// A policy as it was understood.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Opaque {
    /// Nothing is said of bytes: as for requests.
    AsRequests,
    /// The first of these that has an endpoint.
    First(Vec<To>),
    Forbidden,
    /// Why it makes no sense.
    Invalid(String),
    /// These by weight.
    Shared(Vec<(To, u32)>),
}

/// Where a share of the connections goes.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum To {
    /// One endpoint.
    Endpoint(Endpoint),
    /// Nowhere: this share is refused.
    Nowhere,
    /// The endpoints of this.
    Service(Target),
}

/// Reads a policy for connections to `target`.
pub(super) fn opaque(policy: OutboundPolicy, target: &Target, terms: &Terms) -> Opaque {
    let routes = match policy.protocol.and_then(|protocol| protocol.kind) {
        Some(proxy_protocol::Kind::Opaque(opaque)) => opaque.routes,
        Some(proxy_protocol::Kind::Detect(detect)) => match detect.opaque {
            Some(opaque) => opaque.routes,
            None => return Opaque::AsRequests,
        },
        // A source that calls a connection opaque knows better than what a port is said to speak.
        Some(_) => return Opaque::AsRequests,
        None => return Opaque::Invalid("it names no protocol".to_owned()),
    };
    match routes.into_iter().next() {
        Some(route) => by_route(route, target, terms),
        None => Opaque::Invalid("it holds no route".to_owned()),
    }
}

/// Bytes say nothing of themselves by which one rule could be told from another: the first one counts.
fn by_route(route: OpaqueRoute, target: &Target, terms: &Terms) -> Opaque {
    let Some(rule) = route.rules.into_iter().next() else {
        return Opaque::Invalid("its route holds no rule".to_owned());
    };
    if let Some(refused) = refused(&rule.filters) {
        return refused;
    }
    let to = |backend: Option<RouteBackend>| backend.map_or(To::Nowhere, |backend| to(backend, target, terms));
    match rule.backends.and_then(|Distribution { kind }| kind) {
        None | Some(distribution::Kind::Empty(_)) => Opaque::Invalid("its route leads nowhere".to_owned()),
        Some(distribution::Kind::FirstAvailable(first)) => {
            some(first.backends.into_iter().map(|backend| to(Some(backend))).collect(), Opaque::First)
        }
        Some(distribution::Kind::RandomAvailable(shared)) => {
            let shares = shared.backends.into_iter().map(|share| (to(share.backend), share.weight));
            some(shares.collect(), Opaque::Shared)
        }
    }
}

fn some<T>(list: Vec<T>, make: impl FnOnce(Vec<T>) -> Opaque) -> Opaque {
    if list.is_empty() { Opaque::Invalid("its route leads nowhere".to_owned()) } else { make(list) }
}

/// What filters make of a connection: there are only those that refuse. One that is not known here is taken for the same.
fn refused(filters: &[Filter]) -> Option<Opaque> {
    filters.first().map(|filter| match &filter.kind {
        Some(filter::Kind::Forbidden(_)) => Opaque::Forbidden,
        Some(filter::Kind::Invalid(invalid)) => Opaque::Invalid(invalid.message.clone()),
        None => Opaque::Invalid("it holds a filter that is not known here".to_owned()),
    })
}

fn to(backend: RouteBackend, target: &Target, terms: &Terms) -> To {
    if refused(&backend.filters).is_some() {
        return To::Nowhere;
    }
    match backend.backend.and_then(|Backend { kind, .. }| kind) {
        None => To::Nowhere,
        Some(backend::Kind::Forward(weighted)) => match endpoints::single(&weighted, terms) {
            Ok(endpoint) => To::Endpoint(endpoint),
            Err(reason) => {
                tracing::warn!(%target, %reason, "an endpoint that a policy names cannot be used");
                To::Nowhere
            }
        },
        Some(backend::Kind::Balancer(balancer)) => {
            let kind = balancer.discovery.and_then(|discovery| discovery.kind);
            let path = kind.map(|backend::endpoint_discovery::Kind::Dst(dst)| dst.path);
            match path.as_deref().map(|path| Target::parse(path, target.port)) {
                Some(Ok(target)) => To::Service(target),
                Some(Err(error)) => {
                    tracing::warn!(%target, path, %error, "a service that a policy names cannot be looked up");
                    To::Nowhere
                }
                None => To::Nowhere,
            }
        }
    }
}

#[cfg(test)]
mod tests;
