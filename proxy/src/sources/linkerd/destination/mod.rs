//! Services as a control plane knows them, asked for when somebody wants them and followed for as long as they are used.
//!
//! **In** demanded services, and the streams of `Destination.GetProfile`, `Destination.Get` and `OutboundPolicies.Watch` for
//! each. **Out** endpoints and profiles. **Refuses** nothing itself: names are the control plane's to know.
//!
//! Each service has one task, which all workers and clients share; it ends when the directory has forgotten the service, so
//! that the directory's bounds are the bounds here. What a stream has said stays true until it says something else: a
//! control plane that is away takes nothing back. Nothing here is about Kubernetes: any server of this API will do.
//! (Linkerd wire document §4.2, §5.)
//!
//! | the control plane says of a service | a request for it gets |
//! |---|---|
//! | nothing, in `route.discovery_timeout` | 504 / UNAVAILABLE, `route.discovery_timeout` |
//! | INVALID_ARGUMENT, FAILED_PRECONDITION, NOT_FOUND, or a profile without name and endpoint | 404 / NOT_FOUND, `route.unknown_service` |
//! | UNKNOWN (as today's controller says of a service that is not there) or another error, and nothing before | 503 / UNAVAILABLE, `route.lookup_failed` |
//! | an error, after it was known | the endpoints that are known |

mod branches;
mod endpoints;
mod follow;
mod opaque;
mod profile;
mod streams;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;

use super::control::Control;
use crate::route::{Claim, Service};
use crate::sources::{Report, Source};

/// How services are asked for.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The context token, which the control plane reads and nobody else: `{"ns":…, "nodeName":…, "pod":…}`.
    pub context: String,
    /// The workload, as outbound policies are asked for it: `{"ns":…, "pod":…}`.
    pub workload: String,
    /// Whether services found here count as exported; the API does not say.
    pub exported: bool,
    /// This pod's addresses: endpoints there are left out.
    pub own: Vec<IpAddr>,
    /// Takes endpoints at loopback addresses. Never from a real control plane.
    pub allow_local: bool,
    /// The most endpoints of one service.
    pub max_endpoints: usize,
    /// The most services that share the traffic of one.
    pub max_branches: usize,
    /// How long a definite no is believed before the question is asked again.
    pub negative_ttl: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            context: String::new(),
            workload: String::new(),
            exported: false,
            own: Vec::new(),
            allow_local: false,
            max_endpoints: 5000,
            max_branches: 32,
            negative_ttl: Duration::from_secs(30),
        }
    }
}

/// Services by a control plane.
#[derive(Debug)]
pub struct Destinations {
    shared: Arc<Shared>,
    runtime: Handle,
}

/// What the tasks of all services share.
#[derive(Debug)]
struct Shared {
    claim: Claim,
    settings: Settings,
    destination: Control,
    /// None: connections of bytes go where requests go.
    policy: Option<Control>,
    terms: endpoints::Terms,
    services: AtomicUsize,
}

impl Destinations {
    /// A source of rank `claim` that asks `destination` for services, and `policy`, where there is one, who takes their
    /// connections of bytes. Its tasks run on `runtime`.
    pub fn new(
        claim: Claim,
        settings: Settings,
        destination: Control,
        policy: Option<Control>,
        runtime: Handle,
    ) -> Self {
        let terms = endpoints::Terms {
            own: settings.own.clone(),
            allow_local: settings.allow_local,
            most: settings.max_endpoints,
        };
        let shared = Shared { claim, settings, destination, policy, terms, services: AtomicUsize::new(0) };
        Self { shared: Arc::new(shared), runtime }
    }
}

impl Source for Destinations {
    fn name(&self) -> &'static str {
        "linkerd"
    }

    fn offer(&self, service: &Arc<Service>) -> bool {
        self.runtime.spawn(follow::follow(Arc::clone(&self.shared), Arc::downgrade(service)));
        true
    }

    fn report(&self) -> Report {
        let shared = &self.shared;
        let services = shared.services.load(Ordering::Relaxed);
        let standing = shared.destination.standing();
        let policies = shared.policy.as_ref().map_or(0, |policy| policy.standing().failures);
        // Who follows nothing hears nothing, and nothing is old.
        let age = standing.age.map(|age| if services == 0 { Duration::ZERO } else { age });
        Report { name: self.name(), age, services, failures: standing.failures + policies }
    }
}
