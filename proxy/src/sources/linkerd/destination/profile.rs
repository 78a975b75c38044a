//! What a control plane says of a service as a whole, in the words of the stages.
//!
//! **In** the messages of `Destination.GetProfile`. **Out** a [`Shape`]: where the service's endpoints are asked for, who
//! shares its traffic, and its rules. **Refuses** single rules that make no sense; the others count.
//! (Linkerd wire document §4.3, §5.1, §5.7.)

use std::sync::Arc;

use http::Method;
use linkerd2_proxy_api::destination::{
    DestinationProfile, RequestMatch, ResponseMatch, RetryBudget, Route, request_match, response_match,
};
use regex::RegexBuilder;

use super::endpoints::{self, Terms as EndpointTerms};
use crate::addr::{Name, Target};
use crate::endpoint::Endpoint;
use crate::route::{Condition, ResponseCondition, Rule, Terms};

/// A profile as it was understood.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Shape {
    /// Where the service itself is.
    pub(super) own: Own,
    /// Who shares its traffic, by weight.
    pub(super) split: Vec<(Target, u32)>,
    pub(super) rules: Vec<Rule>,
    pub(super) budget: Option<Terms>,
}

/// Where a service is.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Own {
    /// At this one endpoint: it was asked for by the name of a pod.
    Endpoint(Endpoint),
    /// Nowhere: there is a name, and nothing behind it.
    Nothing,
    /// Where the endpoints of this are.
    Service(Target),
}

/// The largest compiled pattern of a path, in bytes. A route's path has tens of them; a pattern that grows beyond this
/// would cost every request.
const MAX_PATTERN_BYTES: usize = 256 * 1024;

/// Reads a profile of `target`.
pub(super) fn shape(profile: DestinationProfile, target: &Target, terms: &EndpointTerms) -> Shape {
    let own = own(&profile, target, terms);
    // The rules of an opaque service are about requests that nobody sees.
    let routes = if profile.opaque_protocol { Vec::new() } else { profile.routes };
    let split = if matches!(own, Own::Service(_)) { profile.dst_overrides } else { Vec::new() };
    let read = |authority: &str| match Target::parse(authority, target.port) {
        Ok(target) => Some(target),
        Err(error) => {
            tracing::warn!(%target, authority, %error, "a share of the traffic goes to a name that is none: left out");
            None
        }
    };
    Shape {
        own,
        split: split.iter().filter_map(|share| Some((read(&share.authority)?, share.weight))).collect(),
        rules: routes.into_iter().filter_map(|route| rule(route, target)).collect(),
        budget: profile.retry_budget.and_then(budget),
    }
}

fn own(profile: &DestinationProfile, target: &Target, terms: &EndpointTerms) -> Own {
    if !profile.fully_qualified_name.is_empty() {
        return match profile.fully_qualified_name.parse::<Name>() {
            Ok(name) => Own::Service(Target { name, port: target.port }),
            Err(error) => {
                tracing::warn!(%target, name = profile.fully_qualified_name, %error, "a service's full name is none");
                Own::Nothing
            }
        };
    }
    match profile.endpoint.as_ref().map(|endpoint| endpoints::single(endpoint, terms)) {
        None => Own::Nothing,
        Some(Ok(endpoint)) => Own::Endpoint(endpoint),
        Some(Err(reason)) => {
            tracing::warn!(%target, %reason, "the endpoint of a pod's name cannot be used");
            Own::Nothing
        }
    }
}

fn rule(route: Route, target: &Target) -> Option<Rule> {
    let name = route.metrics_labels.get("route").map(|name| Arc::from(name.as_str()));
    let Some(condition) = route.condition.and_then(condition) else {
        tracing::warn!(%target, route = name.as_deref(), "a route whose condition makes no sense is left out");
        return None;
    };
    let classes = route.response_classes.into_iter();
    Some(Rule {
        name,
        condition,
        timeout: route.timeout.and_then(endpoints::duration),
        retryable: route.is_retryable,
        classes: classes.filter_map(|class| Some((response(class.condition?)?, class.is_failure))).collect(),
    })
}

/// None as soon as one part makes no sense: a condition that lost a part would hold for other requests than were meant.
fn condition(matches: RequestMatch) -> Option<Condition> {
    let all = |seq: request_match::Seq| seq.matches.into_iter().map(condition).collect::<Option<Vec<_>>>();
    Some(match matches.r#match? {
        request_match::Match::All(seq) => Condition::All(all(seq)?),
        request_match::Match::Any(seq) => Condition::Any(all(seq)?),
        request_match::Match::Method(method) => Condition::Method(Method::try_from(method).ok()?),
        request_match::Match::Not(one) => Condition::Not(Box::new(condition(*one)?)),
        request_match::Match::Path(path) => {
            let anchored = anchored(&path.regex);
            Condition::Path(RegexBuilder::new(&anchored).size_limit(MAX_PATTERN_BYTES).build().ok()?)
        }
    })
}

/// A pattern is about the whole path. In a group of its own, so that an alternative at its top is anchored at both ends:
/// `/a|/b` must not become `^/a` or `/b$`.
fn anchored(pattern: &str) -> String {
    format!("^(?:{pattern})$")
}

fn response(matches: ResponseMatch) -> Option<ResponseCondition> {
    let all = |seq: response_match::Seq| seq.matches.into_iter().map(response).collect::<Option<Vec<_>>>();
    let status = |value: u32| u16::try_from(value).ok();
    Some(match matches.r#match? {
        response_match::Match::All(seq) => ResponseCondition::All(all(seq)?),
        response_match::Match::Any(seq) => ResponseCondition::Any(all(seq)?),
        response_match::Match::Not(one) => ResponseCondition::Not(Box::new(response(*one)?)),
        // One of the two alone means this one status.
        response_match::Match::Status(range) => match (status(range.min)?, status(range.max)?) {
            (0, 0) => return None,
            (0, only) | (only, 0) => ResponseCondition::Status(only, only),
            (min, max) => ResponseCondition::Status(min, max),
        },
    })
}

/// None where there is nothing to spend.
fn budget(budget: RetryBudget) -> Option<Terms> {
    let ttl = budget.ttl.and_then(endpoints::duration)?;
    let some = budget.retry_ratio > 0.0 || budget.min_retries_per_second > 0;
    some.then_some(Terms { ratio: budget.retry_ratio, min_per_second: budget.min_retries_per_second, ttl })
}

#[cfg(test)]
mod tests;
