//! Which endpoint serves: power of two choices over peak EWMA, with weights, zones and passive ejection.
//!
//! **In** a service's [`Endpoints`], as they are now. **Out** a [`Pick`]: one endpoint, and a
//! [`Guard`] through which its fate comes back. **Refuses** when there is no endpoint, when none is ready within a bounded
//! wait, and at once while the service is failing fast.
//!
//! One [`Balancer`] per worker and service: nothing here is shared but the [`Registry`], which only shows.
//!
//! - `load` estimates what a request to an endpoint costs: round trip × (pending + 1), the round trip a peak EWMA.
//! - `node` is one endpoint's life: live, ejected, on trial.
//! - `ready` is who may be chosen now, and the choice between two.
//! - `wait` is the bounded queue in front and the fail-fast gate.

mod guard;
mod load;
mod node;
mod ready;
mod registry;
mod wait;

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use self::load::Clock;
use self::node::Node;
use self::ready::Ready;
use crate::addr::Target;
use crate::backoff::Backoff;
use crate::endpoint::{Endpoint, Endpoints};
use crate::fault::{Fault, Refusal};

pub use self::guard::{Failure, Guard};
pub use self::registry::{Load, Registry};

/// What the operator says about balancing.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The round trip assumed of an endpoint that has not answered yet; at least 1 ms, because an endpoint that is
    /// believed to be infinitely fast would be given everything at once.
    pub first_rtt: Duration,
    /// How fast an old round trip is forgotten: after this time it counts for 1/e.
    pub decay: Duration,
    /// The round trip that a failure counts as, at least. Without it an endpoint that fails in no time looks like the
    /// fastest of all and draws the traffic to itself.
    pub failure_rtt: Duration,
    /// Failed connects in a row that eject. Three: one lost SYN must not cost an endpoint, and a pod that is gone
    /// refuses at once, so three cost nothing but safe retries.
    pub max_connect_failures: u32,
    /// Failed responses (5xx, resets, timeouts) in a row that eject. Five: more than one client's unlucky retries.
    pub max_response_failures: u32,
    /// How long an ejection lasts: longer each time until a trial succeeds.
    pub ejection: Backoff,
    /// The share of endpoints that may be ejected for their responses. With more, the fault is more likely common to
    /// all (a broken dependency, a bad client) and ejecting only concentrates the load: such ejections are then ignored.
    /// Endpoints that take no connections stay out regardless: nothing can be served by them.
    pub max_ejected: f64,
    /// The zone the gateway runs in: its endpoints are preferred while enough of them are ready.
    pub zone: Zone,
    /// The share of the own zone's endpoints that must be ready for the zone to be kept to.
    pub zone_min_ready: f64,
    /// The least number of ready endpoints for the zone to be kept to: a lone one would bear everything.
    pub zone_min_endpoints: usize,
    /// How many may wait for an endpoint to become ready, per worker and service.
    pub queue: usize,
    /// How long they wait before all of them fail and the service fails fast.
    pub failfast_timeout: Duration,
}

/// The zone the gateway runs in: said by the operator, or found by a source while requests are served already. Clones are the
/// same zone.
#[derive(Clone, Debug, Default)]
pub struct Zone(Arc<OnceLock<Arc<str>>>);

impl Zone {
    /// A zone that is known from the start.
    pub fn known(zone: &str) -> Self {
        let known = Self::default();
        known.find(zone.into());
        known
    }

    /// The zone, where it is known.
    pub fn get(&self) -> Option<&Arc<str>> {
        self.0.get()
    }

    /// Says which zone it is. Answers whether that was not known before: the first word counts.
    pub fn find(&self, zone: Arc<str>) -> bool {
        self.0.set(zone).is_ok()
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            first_rtt: Duration::from_millis(30),
            decay: Duration::from_secs(10),
            failure_rtt: Duration::from_millis(250),
            max_connect_failures: 3,
            max_response_failures: 5,
            ejection: Backoff { min: Duration::from_secs(1), max: Duration::from_secs(60), jitter: 0.2 },
            max_ejected: 0.5,
            zone: Zone::default(),
            zone_min_ready: 0.7,
            zone_min_endpoints: 2,
            queue: 1024,
            failfast_timeout: Duration::from_secs(3),
        }
    }
}

/// Why no endpoint was given.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    /// Endpoints exist, but none of them may be used now.
    #[error("every endpoint of the service is ejected")]
    AllEjected,
    /// The service is failing fast: refused at once.
    #[error("the service has no ready endpoint and fails fast")]
    FailFast,
    /// Waited, and in vain.
    #[error("no endpoint of the service became ready in time")]
    FailFastWait,
    /// The service has no endpoints (that take load).
    #[error("the service has no endpoints")]
    NoEndpoint,
    /// Too many are waiting already.
    #[error("too many requests wait for an endpoint of the service")]
    QueueFull,
}

impl Refusal for Error {
    fn fault(&self) -> Fault {
        Fault::Upstream
    }

    fn code(&self) -> &'static str {
        match self {
            Self::AllEjected => "balance.all_ejected",
            Self::FailFast => "balance.failfast",
            Self::FailFastWait => "balance.failfast_wait",
            Self::NoEndpoint => "balance.no_endpoint",
            Self::QueueFull => "balance.queue_full",
        }
    }

    fn retry_is_safe(&self) -> bool {
        true // Nothing was sent.
    }
}

/// A chosen endpoint.
#[derive(Debug)]
pub struct Pick {
    /// Where the request or connection goes.
    pub endpoint: Rc<Endpoint>,
    /// Held for as long as the endpoint works on it.
    pub guard: Guard,
}

/// Chooses among the endpoints of one service, on one worker. Clones are the same balancer.
#[derive(Clone, Debug)]
pub struct Balancer {
    shared: Rc<Shared>,
}

/// What the balancer's guards reach back to.
#[derive(Debug)]
struct Shared {
    settings: Settings,
    target: Target,
    registry: Arc<Registry>,
    clock: Clock,
    chance: ready::Chance,
    nodes: RefCell<Nodes>,
    /// The ready set no longer fits the nodes' phases.
    stale: Cell<bool>,
    /// Counts picks, so that failures can be told to overlap.
    picks: Cell<u64>,
    /// Rung when an endpoint comes back or everybody is told to give up.
    bell: Notify,
    waiting: Cell<usize>,
    failing_fast: Cell<bool>,
}

#[derive(Debug, Default)]
struct Nodes {
    /// The value the nodes were made from.
    seen: Option<Arc<Endpoints>>,
    list: Vec<Rc<Node>>,
    ready: Ready,
}

impl Balancer {
    /// A balancer for the service `target`, whose loads show up in `registry`.
    pub fn new(target: Target, settings: Settings, registry: Arc<Registry>) -> Self {
        let shared = Shared {
            clock: Clock::new(&settings),
            chance: ready::Chance::new(rand::random()),
            settings,
            target,
            registry,
            nodes: RefCell::default(),
            stale: Cell::new(true),
            picks: Cell::new(0),
            bell: Notify::new(),
            waiting: Cell::new(0),
            failing_fast: Cell::new(false),
        };
        Self { shared: Rc::new(shared) }
    }

    /// Chooses now or refuses now. `avoid` are addresses that have failed this very request; they are taken only where
    /// nothing else is ready.
    pub fn pick(&self, endpoints: &Arc<Endpoints>, avoid: &[SocketAddr]) -> Result<Pick, Error> {
        let shared = &self.shared;
        let now = Instant::now();
        let mut nodes = shared.nodes.borrow_mut();
        if !nodes.seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, endpoints)) {
            nodes.update(shared, endpoints);
        }
        let Nodes { list, ready, .. } = &mut *nodes;
        if shared.stale.get() || ready.expired(now) || ready.overtaken(&shared.settings) {
            ready.rebuild(list, &shared.settings, now);
            shared.stale.set(false);
        }
        let Some(node) = ready.choose(list, &shared.chance, avoid, &shared.clock, now) else {
            return Err(if ready.eligible() == 0 { Error::NoEndpoint } else { Error::AllEjected });
        };
        let node = Rc::clone(node);
        drop(nodes);
        if !node.on_trial() {
            // A trial opens the gate when it succeeds, not when it begins.
            shared.failing_fast.set(false);
        }
        Ok(Pick { endpoint: node.endpoint(), guard: Guard::new(node, Rc::clone(shared), now) })
    }

    /// Whether requests are refused at once for want of an endpoint.
    pub fn failing_fast(&self) -> bool {
        self.shared.failing_fast.get()
    }
}

impl Nodes {
    /// Takes over a new set of endpoints. What is known of an address stays known while the address stays.
    #[cold]
    fn update(&mut self, shared: &Shared, endpoints: &Arc<Endpoints>) {
        let mut old: std::collections::HashMap<SocketAddr, Rc<Node>> =
            self.list.drain(..).map(|node| (node.addr(), node)).collect();
        for endpoint in &endpoints.list {
            let node = match old.remove(&endpoint.addr) {
                Some(node) => {
                    node.replace(endpoint);
                    node
                }
                None => Rc::new(Node::new(endpoint, &shared.clock, shared.registry.enter(&shared.target, endpoint))),
            };
            self.list.push(node);
        }
        self.seen = Some(Arc::clone(endpoints));
        shared.stale.set(true);
    }
}

#[cfg(test)]
mod tests;
