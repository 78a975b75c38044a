//! How much of what is allowed: request rate, requests under way, connections, bytes per second.
//!
//! **In** who was admitted, where to and by which rule. **Out** a [`Permit`], held for as long as the request or connection
//! lives. **Refuses** with [`Limited`]: which limit, of which scope, and when to try again.
//!
//! Six scopes count: each client of a rule, clients that share a rate, each client, each rule, each service, and all together. They are asked from the
//! narrowest to the widest, so that one client that asks for too much is refused by its own limit and uses nothing of what it
//! shares with others. What narrower scopes have counted is taken back when a wider one refuses.
//!
//! All workers share each count and change it in one atomic step (see `cell`), so counts are exact with two exceptions,
//! both to the safe side and both short. A request that is refused by a wider scope is counted in the narrower ones
//! for the moment until it is taken back. And when a client is first seen by several workers in the same instant, one
//! of them counts that one request in the overflow cell.

mod cell;
mod permit;
mod table;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::fault::{Fault, Refusal};
use crate::identity::Identity;

use super::policy::{Admission, Client};
use super::served::RateLimits;
use super::settings::{LimitSettings, Mode, Settings};
use permit::Kind;
use table::{Pin, Table};

pub(super) use cell::{Bounds, Cell};
pub use permit::{Permit, Standing};

/// What a limit counts.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Limit {
    /// Requests under way.
    Concurrency,
    /// Connections open.
    Connections,
    /// Requests per second.
    Rate,
}

/// Whose count it is.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Scope {
    /// All together.
    All,
    /// One client identity.
    Client,
    /// Several client identities, for which there is a rate of their own.
    Override,
    /// One rule.
    Rule,
    /// One client identity under one rule.
    RuleClient,
    /// One service.
    Service,
}

impl Scope {
    /// The words that logs, metrics and `ratelimit` fields carry.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Client => "client",
            Self::Override => "override",
            Self::Rule => "rule",
            Self::RuleClient => "rule_client",
            Self::Service => "service",
        }
    }
}

/// A limit is reached.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Limited {
    /// What is counted.
    pub limit: Limit,
    /// Whose count it is.
    pub scope: Scope,
    /// How many are allowed: per second, or at once.
    pub most: u32,
    /// When one more would be let through; for what is counted at once, a guess.
    pub retry_after: Duration,
    /// The rule whose limit it is, where it is a rule's.
    pub rule: Option<Arc<str>>,
}

impl fmt::Display for Limited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.limit {
            Limit::Concurrency => "requests under way",
            Limit::Connections => "connections",
            Limit::Rate => "requests per second",
        };
        write!(f, "more than {} {what} ({}", self.most, self.scope.as_str())?;
        match &self.rule {
            Some(rule) => write!(f, " of rule {rule})"),
            None => f.write_str(")"),
        }
    }
}

impl std::error::Error for Limited {}

impl Refusal for Limited {
    fn fault(&self) -> Fault {
        Fault::Policy
    }

    fn code(&self) -> &'static str {
        match self.limit {
            Limit::Concurrency => "authorise.concurrency",
            Limit::Connections => "authorise.connections",
            Limit::Rate => "authorise.rate_limited",
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        Some(self.retry_after)
    }
}

/// What a rule gives to those it lets through.
#[derive(Debug)]
pub(super) struct Grant {
    pub(super) rule: Arc<str>,
    pub(super) mode: Mode,
    pub(super) bounds: Bounds,
    pub(super) per_client: Bounds,
    pub(super) cell: Arc<Cell>,
}

/// The limits of a policy, and what is counted against them. The counts live on when a policy is replaced.
#[derive(Debug)]
pub struct Limits {
    mode: Mode,
    all: Bounds,
    client: Bounds,
    service: Bounds,
    /// Rates of certain clients, which take the place of the rate of each client.
    overrides: HashMap<Identity, Arc<Override>>,
    state: Arc<State>,
}

/// A rate that some clients share.
#[derive(Debug)]
struct Override {
    bounds: Bounds,
    cell: Arc<Cell>,
}

/// The counts.
#[derive(Debug)]
struct State {
    epoch: Instant,
    all: Arc<Cell>,
    clients: Arc<Table>,
    services: Arc<Table>,
}

/// Room for services, which are counted apart from clients so that neither can crowd the other out.
const SERVICES_TRACKED: usize = 4096;

impl Limits {
    /// From words that were checked. Counts are taken over from the policy that is replaced.
    pub(super) fn new(settings: &Settings, served: &RateLimits, replaced: Option<&Self>) -> Self {
        let places = settings.limits_tracked as usize;
        let fresh = || State {
            epoch: Instant::now(),
            all: Arc::default(),
            clients: Table::new(places),
            services: Table::new(SERVICES_TRACKED),
        };
        let state = match replaced.map(|limits| &limits.state) {
            Some(state) if state.clients.has_room_for(places) => Arc::clone(state),
            Some(state) => Arc::new(State {
                epoch: state.epoch,
                all: Arc::clone(&state.all),
                clients: Table::new(places),
                services: Arc::clone(&state.services),
            }),
            None => Arc::new(fresh()),
        };
        let with = |limits: &LimitSettings, rate: Option<u32>| match rate {
            None => Bounds::new(limits),
            rate => Bounds::new(&LimitSettings { requests_per_second: rate, burst: None, ..limits.clone() }),
        };
        let mut overrides = HashMap::new();
        for (rate, clients) in &served.overrides {
            // The count goes on where the same rate was shared by the first of them before.
            let before = replaced.zip(clients.first()).and_then(|(limits, first)| limits.overrides.get(first));
            let cell = before.map_or_else(Arc::default, |before| Arc::clone(&before.cell));
            let shared = Arc::new(Override { bounds: with(&LimitSettings::default(), Some(*rate)), cell });
            overrides.extend(clients.iter().map(|client| (client.clone(), Arc::clone(&shared))));
        }
        Self {
            mode: settings.mode,
            all: with(&settings.limits, served.total),
            client: with(&settings.limits_per_client, served.identity),
            overrides,
            service: Bounds::new(&settings.limits_per_service),
            state,
        }
    }

    /// Counts a connection right after its handshake, against the limits of its client and of all.
    pub fn admit_session(&self, identity: &Identity, now: Instant) -> Result<Permit, Limited> {
        let mut permit = self.permit(now);
        self.client_scope(&mut permit, Kind::Session, identity)?;
        self.fixed_scope(&mut permit, Kind::Session, Scope::All, self.all, &self.state.all)?;
        Ok(permit)
    }

    /// Counts an opaque or upgraded connection, and paces its bytes.
    pub fn admit_connection(&self, client: &Client, admission: &Admission, now: Instant) -> Result<Permit, Limited> {
        self.admit(Kind::Connection, client, admission, now)
    }

    /// Counts a request, and paces its bytes.
    pub fn admit_request(&self, client: &Client, admission: &Admission, now: Instant) -> Result<Permit, Limited> {
        self.admit(Kind::Request, client, admission, now)
    }

    fn admit(&self, kind: Kind, client: &Client, admission: &Admission, now: Instant) -> Result<Permit, Limited> {
        let mut permit = self.permit(now);
        let grant = admission.grant.as_deref();
        if let Some(grant) = grant.filter(|grant| !grant.per_client.is_empty()) {
            let pin = self.state.clients.pin((&*grant.rule, &client.identity), permit.now());
            permit.count(kind, Scope::RuleClient, grant.per_client, pin, self.enforces(Some(grant)), Some(grant))?;
        }
        self.client_scope(&mut permit, kind, &client.identity)?;
        if let Some(grant) = grant.filter(|grant| !grant.bounds.is_empty()) {
            let pin = Pin::Shared(Arc::clone(&grant.cell));
            permit.count(kind, Scope::Rule, grant.bounds, pin, self.enforces(Some(grant)), Some(grant))?;
        }
        if !self.service.is_empty() {
            let pin = self.state.services.pin(admission.target.as_ref(), permit.now());
            permit.count(kind, Scope::Service, self.service, pin, self.enforces(None), None)?;
        }
        self.fixed_scope(&mut permit, kind, Scope::All, self.all, &self.state.all)?;
        Ok(permit)
    }

    fn client_scope(&self, permit: &mut Permit, kind: Kind, identity: &Identity) -> Result<(), Limited> {
        let mut bounds = self.client;
        if let Some(shared) = self.overrides.get(identity) {
            bounds.rate = None;
            let pin = Pin::Shared(Arc::clone(&shared.cell));
            permit.count(kind, Scope::Override, shared.bounds, pin, self.enforces(None), None)?;
        }
        if bounds.is_empty() {
            return Ok(());
        }
        let pin = self.state.clients.pin(("", identity), permit.now());
        permit.count(kind, Scope::Client, bounds, pin, self.enforces(None), None)
    }

    fn fixed_scope(
        &self,
        permit: &mut Permit,
        kind: Kind,
        scope: Scope,
        bounds: Bounds,
        cell: &Arc<Cell>,
    ) -> Result<(), Limited> {
        if bounds.is_empty() {
            return Ok(());
        }
        permit.count(kind, scope, bounds, Pin::Shared(Arc::clone(cell)), self.enforces(None), None)
    }

    fn enforces(&self, grant: Option<&Grant>) -> bool {
        self.mode == Mode::Enforce && grant.is_none_or(|grant| grant.mode == Mode::Enforce)
    }

    fn permit(&self, now: Instant) -> Permit {
        Permit::new(self.state.epoch, now)
    }
}
