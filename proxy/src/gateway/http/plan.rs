//! How one request is treated by its service's profile: how long it may take, and whether it is sent again.
//!
//! **In** the profile and the request's head. **Out** a deadline, and after each response the word whether another attempt
//! is made. **Refuses** with `relay.route_timeout` when the time is over. (Linkerd wire document §5.7.)
//!
//! Unlike Linkerd's gateway, which says 500 for it, a timeout is 504 here: no source treats the two differently, and people
//! who read a log do.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method, Response};
use tokio::time::Instant;

use super::body::RequestBody;
use crate::connect::Streamed;
use crate::fault::Fault;
use crate::gateway::refuse::Refused;
use crate::record::Stage;
use crate::route::{Budget, Profile, Rule};

/// The rule that one request falls under, if any.
#[derive(Debug)]
pub(super) struct Plan {
    profile: Option<(Arc<Profile>, usize)>,
    deadline: Option<Instant>,
}

/// What becomes of a request after a response.
#[derive(Debug)]
pub(super) enum Verdict {
    /// The response is the client's.
    Done,
    /// The response is a failure and could have been retried, but for this.
    Skipped(&'static str),
    /// It is sent again, with this body.
    Again(RequestBody),
}

impl Plan {
    /// The plan for a request that has just been routed; its time begins now.
    pub(super) fn new(profile: Option<&Arc<Profile>>, method: &Method, path: &str) -> Self {
        let found = profile.and_then(|profile| Some((Arc::clone(profile), profile.rule(method, path)?)));
        let mut plan = Self { profile: found, deadline: None };
        plan.deadline = plan.rule().and_then(|rule| rule.timeout).map(|timeout| Instant::now() + timeout);
        if let Some(budget) = plan.budget() {
            budget.request();
        }
        plan
    }

    fn rule(&self) -> Option<&Rule> {
        let (profile, at) = self.profile.as_ref()?;
        profile.rules.get(*at)
    }

    /// What a retry is paid from; none where there are no retries.
    fn budget(&self) -> Option<&Arc<Budget>> {
        let (profile, _) = self.profile.as_ref()?;
        profile.budget.as_ref().filter(|_| self.rule().is_some_and(|rule| rule.retryable))
    }

    /// The rule's name.
    pub(super) fn name(&self) -> Option<Arc<str>> {
        self.rule()?.name.clone()
    }

    /// Whether the request's head and body are worth keeping.
    pub(super) fn may_retry(&self) -> bool {
        self.budget().is_some()
    }

    /// Runs one step within the time that the rule allows.
    pub(super) async fn within<T>(&self, step: impl Future<Output = T>) -> Result<T, Refused> {
        match self.deadline {
            None => Ok(step.await),
            Some(deadline) => tokio::time::timeout_at(deadline, step).await.map_err(|_| self.late()),
        }
    }

    fn late(&self) -> Refused {
        let rule = self.rule();
        let name = rule.and_then(|rule| rule.name.as_deref()).unwrap_or("without a name");
        let timeout = rule.and_then(|rule| rule.timeout).unwrap_or(Duration::ZERO);
        let detail = format!("no response within the {timeout:?} that the service's profile allows the route {name}");
        Refused::new(Stage::Relay, Fault::Upstream, "relay.route_timeout", &detail)
    }

    /// Whether a response goes to the client, or its request to another endpoint. `more` says whether another attempt is
    /// within the gateway's own limit.
    pub(super) fn after<B>(&self, response: &mut Response<Streamed<B>>, body: &RequestBody, more: bool) -> Verdict {
        let (Some(rule), Some(budget)) = (self.rule(), self.budget()) else { return Verdict::Done };
        let grpc = grpc_status(response.headers()).or_else(|| grpc_status(response.body_mut().early_trailers()?));
        if !rule.is_failure(response.status().as_u16(), grpc) {
            return Verdict::Done;
        }
        if !more {
            return Verdict::Skipped("limit");
        }
        // The body first: what cannot be sent again costs nothing.
        let Some(again) = body.again() else { return Verdict::Skipped("body") };
        if budget.take() { Verdict::Again(again) } else { Verdict::Skipped("no_budget") }
    }
}

fn grpc_status(fields: &HeaderMap) -> Option<u16> {
    fields.get("grpc-status")?.to_str().ok()?.parse().ok()
}
