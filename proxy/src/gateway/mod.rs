//! The conductor: leads a connection through the stages and knows them all, as nobody else does.
//!
//! `accept.rs` takes sockets; `worker.rs` is a thread that serves them; **`connection.rs` is the life of one connection, top
//! to bottom: start reading there.** `tcp.rs` is its opaque branch, `http/` its request branch; `refuse.rs` the one table
//! of what a refused peer sees.
//!
//! `Gateway` holds the stages as named fields, one value per worker. Every stage is handed its own arguments only.

pub mod accept;
mod admit;
mod ahead;
pub mod assertion;
pub mod census;
pub mod clusters;
mod connection;
mod dial;
mod handshakes;
pub mod http;
#[cfg(fuzzing)]
pub mod in_memory;
pub mod networks;
mod paced;
pub mod probe;
pub mod rechecks;
mod refuse;
mod retries;
mod standing;
mod tcp;
pub mod trace;
mod trust;
pub mod watchers;
pub mod worker;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::Duration;

use ::http::{HeaderMap, Request, Response};
use isthmus_probe::endpoint::Endpoint;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use self::assertion::Assertions;
use self::census::Census;
use self::clusters::Clusters;
use self::dial::Dialer;
use self::handshakes::Handshakes;
use self::http::body::RequestBody;
use self::networks::Networks;
use self::rechecks::Rechecks;
use self::refuse::Refused;
use self::retries::Retries;
use self::trust::Judge;
use self::watchers::{Book, Watchers};
use crate::addr::{Name, Target};
use crate::authorise::{Admitted, Policy};
use crate::balance::{self, Balancer, Failure, Guard, Pick};
use crate::connect::{self, Pool, PoolSettings, Streamed};
use crate::drain::Watch;
use crate::endpoint::Endpoint as EndpointAddr;
use crate::fault::Fault;
use crate::live::{Changes, Live};
use crate::record::{Event, Observer, Stage};
use crate::route::{self, Connections, Directory, Profile, Service, Taker};
use crate::tls::Credentials;
use crate::{detect, relay, tls};

/// What all workers share: settings, and the snapshots that sources fill.
#[derive(Clone, Debug)]
pub struct Shared {
    /// `tls:`
    pub tls: tls::Settings,
    /// `accept:`
    pub accept: accept::Settings,
    /// `detect:`
    pub detect: detect::Settings,
    /// `route:`
    pub route: route::Settings,
    /// `balance:`
    pub balance: balance::Settings,
    /// `connect:`, the sockets.
    pub connect: connect::Settings,
    /// `connect:`, the pools.
    pub pool: PoolSettings,
    /// `relay:`
    pub relay: relay::Settings,
    /// `http:`
    pub http: http::Settings,
    /// `identify:`, the fields.
    pub identify: http::identify::Settings,
    /// `identify:`, the signed assertion, where it is on.
    pub assertions: Option<Arc<Assertions>>,
    /// `telemetry.traces:`, which requests are recorded, where any are.
    pub trace: Option<trace::Settings>,
    /// `identify:`, which cluster is which.
    pub clusters: Arc<Clusters>,
    /// The gateway's own chain, key, roots and CRLs.
    pub credentials: Arc<Live<Credentials>>,
    /// Who may reach what.
    pub policy: Arc<Live<Policy>>,
    /// The services that sources know.
    pub directory: Arc<Directory>,
    /// What the balancers see, for the admin.
    pub loads: Arc<balance::Registry>,
    /// Who is connected.
    pub census: Arc<Census>,
    /// What the policy saw.
    pub watchers: Arc<Watchers>,
    /// Where they come from.
    pub networks: Arc<Networks>,
    /// Handshakes under way at once, per worker.
    pub max_handshakes: usize,
    /// How many of these one source network may have; 0: all.
    pub max_handshakes_per_network: usize,
    /// Answers probes, also those that come through 4143.
    pub probe: Arc<Endpoint>,
    /// The ports that stand for the probe in a transport header without a name.
    pub probe_ports: Vec<u16>,
    /// The authority that stands for the probe on the gateway port.
    pub probe_authority: Option<Name>,
    /// Where chains of live connections are judged again.
    pub rechecks: Arc<Rechecks>,
    /// How long a peer whose certificate expired while connected may stay; None: for ever.
    pub expiry_grace: Option<Duration>,
    /// How long an HTTP session that lost its trust may take to finish.
    pub distrust_deadline: Duration,
    /// The phases of the process.
    pub drain: Watch,
    /// The workers' runtimes.
    pub runtimes: Arc<worker::Runtimes>,
}

/// The stages as one worker has them.
#[derive(Debug)]
pub(crate) struct Gateway {
    pub(crate) tls: tls::Settings,
    pub(crate) accept: accept::Settings,
    pub(crate) detect: detect::Settings,
    pub(crate) route: route::Settings,
    pub(crate) balance: balance::Settings,
    pub(crate) relay: relay::Settings,
    pub(crate) http: http::Settings,
    pub(crate) identify: http::identify::Settings,
    pub(crate) assertions: Option<Arc<Assertions>>,
    pub(crate) trace: Option<trace::Settings>,
    pub(crate) clusters: Arc<Clusters>,
    pub(crate) credentials: Arc<Live<Credentials>>,
    pub(crate) policy: Arc<Live<Policy>>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) loads: Arc<balance::Registry>,
    pub(crate) census: Arc<Census>,
    pub(crate) networks: Arc<Networks>,
    pub(crate) book: Book,
    pub(crate) balancers: Balancers,
    pub(crate) handshakes: Handshakes,
    pub(crate) dialer: Dialer,
    pub(crate) pool: Pool<RequestBody>,
    pub(crate) retries: Retries,
    /// Requests under way on this worker.
    pub(crate) requests: Cell<usize>,
    pub(crate) probe: Arc<Endpoint>,
    pub(crate) probe_ports: Vec<u16>,
    pub(crate) probe_authority: Option<Name>,
    pub(crate) distrust_deadline: Duration,
    pub(crate) drain: Watch,
    pub(crate) observer: Rc<dyn Observer>,
}

impl Gateway {
    /// The stages, and the task that tends their pool: without it they should not be used.
    pub(crate) fn new(shared: &Shared, observer: Rc<dyn Observer>) -> (Rc<Self>, JoinHandle<()>) {
        let judge = Judge {
            credentials: Arc::clone(&shared.credentials),
            rechecks: Arc::clone(&shared.rechecks),
            expiry_grace: shared.expiry_grace,
            observer: Rc::clone(&observer),
        };
        let (dialer, distrusted) = Dialer::new(shared.connect.clone(), judge, shared.distrust_deadline);
        let pool = Pool::new(dialer.clone(), shared.pool.clone());
        let tending = tokio::task::spawn_local(tend(pool.clone(), shared.credentials.changes(), distrusted));
        let gateway = Rc::new(Self {
            tls: shared.tls.clone(),
            accept: shared.accept.clone(),
            detect: shared.detect.clone(),
            route: shared.route.clone(),
            balance: shared.balance.clone(),
            relay: shared.relay,
            http: shared.http.clone(),
            identify: shared.identify.clone(),
            assertions: shared.assertions.clone(),
            trace: shared.trace,
            clusters: Arc::clone(&shared.clusters),
            credentials: Arc::clone(&shared.credentials),
            policy: Arc::clone(&shared.policy),
            directory: Arc::clone(&shared.directory),
            loads: Arc::clone(&shared.loads),
            census: Arc::clone(&shared.census),
            networks: Arc::clone(&shared.networks),
            book: shared.watchers.book(),
            balancers: Balancers::default(),
            handshakes: Handshakes::new(shared.max_handshakes, shared.max_handshakes_per_network),
            pool,
            dialer,
            retries: Retries::new(shared.http.retry_budget),
            requests: Cell::new(0),
            probe: Arc::clone(&shared.probe),
            probe_ports: shared.probe_ports.clone(),
            probe_authority: shared.probe_authority.clone(),
            distrust_deadline: shared.distrust_deadline,
            drain: shared.drain.clone(),
            observer,
        });
        (gateway, tending)
    }

    /// Tells the balancer that an endpoint failed, and everyone when that ejected it.
    pub(crate) fn failed(&self, guard: &Guard, failure: Failure) {
        if guard.failed(failure) {
            self.observer.event(Event::Ejected);
        }
    }

    /// Whether more requests are under way than may be, the one that asks among them.
    pub(crate) fn is_full(&self) -> bool {
        self.requests.get() > self.http.max_requests
    }

    /// Route, then the balancer of whoever takes the request: from here on the endpoints are known, or known to be none.
    pub(crate) async fn route(&self, admitted: Admitted<Target>) -> Result<Routed, Refused> {
        let service = self.found(&admitted).await?;
        let profile = service.profile();
        let taker = profile.as_ref().map_or(Taker::Itself, |profile| profile.request(chance));
        self.routed(service, taker, profile).await
    }

    /// The same for a connection of bytes, which may have takers of its own.
    pub(crate) async fn route_connection(&self, admitted: Admitted<Target>) -> Result<Routed, Refused> {
        let service = self.found(&admitted).await?;
        let profile = service.profile_of_bytes(self.route.discovery_timeout).await?;
        let taker = match &profile {
            None => Taker::Itself,
            Some(profile) => profile.connection(chance).ok_or_else(|| not_for_bytes(profile))?,
        };
        self.routed(service, taker, profile).await
    }

    async fn found(&self, admitted: &Admitted<Target>) -> Result<Arc<Service>, Refused> {
        let service = self.directory.find(admitted)?;
        if service.known().is_none() {
            Box::pin(service.endpoints(self.route.discovery_timeout)).await?;
        }
        Ok(service)
    }

    async fn routed(
        &self,
        service: Arc<Service>,
        taker: Taker,
        profile: Option<Arc<Profile>>,
    ) -> Result<Routed, Refused> {
        let service = match taker {
            Taker::Itself => service,
            Taker::Branch(branch) => {
                if branch.known().is_none() {
                    branch.endpoints(self.route.discovery_timeout).await?;
                }
                branch
            }
        };
        let balancer = self.balancers.of(&service, &self.balance, &self.loads);
        Ok(Routed { service, balancer, profile })
    }
}

/// A number below `bound`, by chance.
fn chance(bound: u64) -> u64 {
    rand::random_range(0..bound.max(1))
}

/// Why the profile has nobody for a connection of bytes.
fn not_for_bytes(profile: &Profile) -> Refused {
    match &profile.connections {
        Connections::Invalid(why) => {
            Refused::new(Stage::Route, Fault::Upstream, "route.opaque_invalid", &format!("invalid policy: {why}"))
        }
        _ => Refused::new(
            Stage::Route,
            Fault::Policy,
            "route.opaque_forbidden",
            "the control plane lets no connection of bytes go there",
        ),
    }
}

/// Keeps the pool to what is trusted. After a change of credentials all TLS connections are given up, in the way that loses
/// no request: new ones are made with the new credentials, and verified by them. The connections of an endpoint whose
/// certificate is trusted no longer are given up likewise; what is still on them then is the dialer's to cut.
async fn tend(pool: Pool<RequestBody>, mut changes: Changes, mut distrusted: mpsc::UnboundedReceiver<EndpointAddr>) {
    loop {
        tokio::select! {
            () = changes.next() => pool.retain(|endpoint| endpoint.tls.is_none()),
            endpoint = distrusted.recv() => match endpoint {
                Some(gone) => pool.retain(|endpoint| endpoint.addr != gone.addr || endpoint.tls != gone.tls),
                None => return,
            },
        }
    }
}

/// Why a request got no response from its endpoint.
#[derive(Debug)]
pub(crate) struct SendFailed {
    pub(crate) refused: Refused,
    /// What it says about the endpoint, if anything.
    pub(crate) failure: Option<Failure>,
    pub(crate) retry_is_safe: bool,
    /// The head, where the request certainly was not sent.
    pub(crate) returned: Option<HeaderMap>,
}

impl Gateway {
    /// Sends a request to an endpoint, within the time a request may take.
    pub(crate) async fn send(
        &self,
        endpoint: &EndpointAddr,
        request: Request<RequestBody>,
        version: connect::Version,
    ) -> Result<Response<Streamed<RequestBody>>, SendFailed> {
        let bodiless = http_body::Body::is_end_stream(request.body());
        let sending = self.pool.send(endpoint, request, version);
        let sent = match self.http.request_timeout {
            None => sending.await,
            Some(limit) => match tokio::time::timeout(limit, sending).await {
                Ok(sent) => sent,
                Err(_) => return Err(SendFailed::late(bodiless)),
            },
        };
        sent.map_err(|error| {
            let failure = match &error.error {
                connect::Error::Closed(_) | connect::Error::Reset(_) | connect::Error::Protocol(_) => {
                    Some(Failure::Reset)
                }
                // No verdict on the endpoint: the pool is full of what clients ask for, or it said politely to try elsewhere.
                connect::Error::PoolFull | connect::Error::RequestBody(_) | connect::Error::StreamRefused(_) => None,
                _ => Some(Failure::Connect),
            };
            let retry_is_safe = error.retry_is_safe();
            let returned = error.request.map(|request| request.into_parts().0.headers);
            SendFailed { refused: Refused::from_endpoint(error.error), failure, retry_is_safe, returned }
        })
    }
}

impl SendFailed {
    /// With a body it may be the client that dawdled: that is no verdict on the endpoint.
    fn late(bodiless: bool) -> Self {
        let detail = "the endpoint did not answer within http.request_timeout";
        let refused = Refused::new(Stage::Relay, Fault::Upstream, "relay.request_timeout", detail);
        Self { refused, failure: bodiless.then_some(Failure::Timeout), retry_is_safe: false, returned: None }
    }
}

/// A service that was admitted and found, and its balancer on this worker.
#[derive(Clone, Debug)]
pub(crate) struct Routed {
    service: Arc<Service>,
    balancer: Balancer,
    profile: Option<Arc<Profile>>,
}

impl Routed {
    /// How the traffic of the service that was asked for is carried.
    pub(crate) fn profile(&self) -> Option<&Arc<Profile>> {
        self.profile.as_ref()
    }

    /// An endpoint, as soon as one is ready and within the balancer's bounds.
    pub(crate) async fn pick(&self, avoid: &[SocketAddr]) -> Result<Pick, balance::Error> {
        self.balancer.acquire(|| self.service.known(), || self.service.changed(), avoid).await
    }
}

/// The balancers of one worker, by service. (By its place in memory, which is not given to another while it stands here:
/// a branch and a service that is asked for by the same name have a balancer each.)
#[derive(Debug, Default)]
pub(crate) struct Balancers(RefCell<HashMap<*const Service, (Weak<Service>, Balancer)>>);

impl Balancers {
    fn of(&self, service: &Arc<Service>, settings: &balance::Settings, loads: &Arc<balance::Registry>) -> Balancer {
        let mut known = self.0.borrow_mut();
        if let Some((_, balancer)) = known.get(&Arc::as_ptr(service)) {
            return balancer.clone();
        }
        // Services come and go with the directory; what it has forgotten is forgotten here when something new comes.
        known.retain(|_, (of, _)| of.strong_count() > 0);
        let balancer = Balancer::new(service.target().clone(), settings.clone(), Arc::clone(loads));
        known.insert(Arc::as_ptr(service), (Arc::downgrade(service), balancer.clone()));
        balancer
    }
}
