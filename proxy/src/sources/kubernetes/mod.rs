//! The Kubernetes API server as a source of services and their endpoints.
//!
//! **In** Services and EndpointSlices, listed and watched by kube's watchers; and what the directory is asked for. **Out** the
//! endpoints of services below `svc.<cluster domain>`, and of the single pods of headless ones, kept current; whether each is
//! exported, by a label. **Refuses** an ExternalName and ports that a service does not have, with these words.
//!
//! Nothing is ever taken back because the API server cannot be heard: what it said last serves on, for an hour or a week, while
//! the age of it shows (`isthmus_sources_age_seconds`) and the balancer finds out by itself which endpoints are gone.
//!
//! - `client`, `line`: the way to the API server, and how long silence on it is borne.
//! - `watch`: one list and watch, for as long as the gateway runs.
//! - `model`, `protocol`: what is kept of an object.
//! - `store`, `names`: everything that is known, and what a target means by it.
//! - `world`: who has asked, and what they are told.
//!
//! (Kubernetes API concepts, "Efficient detection of changes"; "EndpointSlices"; "DNS for Services and Pods".)

mod client;
mod line;
mod model;
mod names;
mod protocol;
pub mod selector;
mod store;
mod watch;
mod world;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use isthmus_probe::health::Part;
use kube::Api;
use serde_json::{Value, json};
use tokio::runtime::Handle;

use self::line::Line;
use self::names::Names;
use self::watch::{Common, EndpointSlices, Services, follow};
use self::world::World;
use super::{Report, Source};
use crate::addr::{Name, Target};
use crate::backoff::Backoff;
use crate::balance::Zone;
use crate::route::{Catalogue, Claim, Service};

pub use self::client::Unusable as NoClient;

/// How the API server is asked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Who we are and where the API server is; the pod's service account where absent.
    pub kubeconfig: Option<PathBuf>,
    /// Only these are watched, each by itself; all at once where empty.
    pub namespaces: Vec<String>,
    /// Which services are exported, as [`selector`] reads it.
    pub selector: String,
    /// Services are named below `svc.` and this.
    pub cluster_domain: Name,
    /// How long one watch lasts before it is begun anew, at most 290 s. A server that has vanished without a word is noticed
    /// 5 s after that.
    pub watch_timeout: Duration,
    /// How often a watch may be begun at the most.
    pub watch_interval: Duration,
    /// How long an answer, or the next part of a list, may take.
    pub answer_timeout: Duration,
    /// How long to wait after failures.
    pub backoff: Backoff,
    /// Objects asked for at once.
    pub page_size: u32,
    /// Take addresses that lead to this host or its link. Never from a real API server.
    pub allow_local: bool,
    /// The gateway's own address, by which it finds its zone among the endpoints.
    pub own: Option<IpAddr>,
}

/// Why the source cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// The API server cannot be asked.
    #[error(transparent)]
    Client(#[from] NoClient),
    /// The selector is none.
    #[error("sources.kubernetes.selector: {0}")]
    Selector(String),
}

/// The Kubernetes source. Ends its watches when dropped.
#[derive(Debug)]
pub struct Kubernetes {
    world: Arc<World>,
    lines: Vec<Arc<Line>>,
    watches: Vec<tokio::task::JoinHandle<()>>,
}

impl Kubernetes {
    /// Begins to watch on `runtime`, as a source of rank `claim`. `ready` is told when everything has been listed once; `zone` is
    /// where the gateway runs, said here when it is found.
    pub fn start(
        claim: Claim,
        settings: Settings,
        zone: Zone,
        ready: Option<Part>,
        runtime: &Handle,
    ) -> Result<Self, Unusable> {
        let selector = selector::parse(&settings.selector).map_err(Unusable::Selector)?;
        let config = client::config(settings.kubeconfig.as_deref())?;
        let names = Names::new(&settings.cluster_domain);
        let world = Arc::new(World::new(claim, names, selector, (settings.own, zone)));
        let scopes = if settings.namespaces.is_empty() { vec![String::new()] } else { settings.namespaces.clone() };
        world.awaits(2 * scopes.len(), ready);
        let settings = Arc::new(settings);
        let (mut lines, mut watches) = (Vec::new(), Vec::new());
        for scope in &scopes {
            let line = |kind: &str| {
                let what = if scope.is_empty() { kind.to_owned() } else { format!("{kind} in {scope}") };
                Line::new(what, settings.answer_timeout, settings.watch_interval)
            };
            let (services, slices) = (line("services"), line("endpointslices"));
            let (client, other) = (client::client(&config, &services)?, client::client(&config, &slices)?);
            let intake = Services::new(Common::new(&world, scope));
            let api = if scope.is_empty() { Api::all(client) } else { Api::namespaced(client, scope) };
            watches.push(runtime.spawn(follow(api, Arc::clone(&settings), Arc::clone(&services), intake)));
            let intake = EndpointSlices::new(Common::new(&world, scope), settings.allow_local);
            let api = if scope.is_empty() { Api::all(other) } else { Api::namespaced(other, scope) };
            watches.push(runtime.spawn(follow(api, Arc::clone(&settings), Arc::clone(&slices), intake)));
            lines.extend([services, slices]);
        }
        Ok(Self { world, lines, watches })
    }

    /// Whether the kubeconfig can be used, where one is named. A service account is there in its pod only, and is not looked for.
    pub fn check(settings: &Settings) -> Result<(), Unusable> {
        selector::parse(&settings.selector).map_err(Unusable::Selector)?;
        if settings.kubeconfig.is_some() {
            client::config(settings.kubeconfig.as_deref())?;
        }
        Ok(())
    }

    /// Services that carry the label of exported ones.
    pub fn exported_services(&self) -> usize {
        self.world.counts().exported
    }

    /// Endpoints of all services, whatever their condition.
    pub fn endpoints(&self) -> usize {
        self.world.counts().endpoints
    }

    /// How often everything was listed: once at the start, and again whenever the API server could not say what had changed.
    pub fn lists(&self) -> u64 {
        self.lines.iter().map(|line| line.lists()).sum()
    }
}

impl Drop for Kubernetes {
    fn drop(&mut self) {
        self.watches.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

impl Source for Kubernetes {
    fn name(&self) -> &'static str {
        "kubernetes"
    }

    fn offer(&self, service: &Arc<Service>) -> bool {
        self.world.follow(service)
    }

    /// The age is that of the line that has been silent for longest: a service is no newer than the older of its two halves.
    fn report(&self) -> Report {
        let ages: Option<Vec<Duration>> = self.lines.iter().map(|line| line.age()).collect();
        Report {
            name: "kubernetes",
            age: ages.and_then(|ages| ages.into_iter().max()),
            services: self.world.counts().services,
            failures: self.lines.iter().map(|line| line.failures()).sum(),
        }
    }

    fn details(&self) -> Option<Value> {
        let counts = self.world.counts();
        let watches = self.lines.iter().map(|line| {
            json!({
                "watched": line.what,
                "age_seconds": line.age().map(|age| age.as_secs()),
                "lists": line.lists(),
                "failures": line.failures(),
                "problem": line.problem().map(|problem| json!({
                    "reason": problem.reason,
                    "since": problem.since.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
                })),
            })
        });
        Some(json!({
            "listed": self.world.listed(),
            "exported": counts.exported,
            "slices": counts.slices,
            "endpoints": counts.endpoints,
            "zone": self.world.zone().as_deref(),
            "watches": watches.collect::<Vec<_>>(),
        }))
    }
}

impl Catalogue for Kubernetes {
    fn exported(&self, target: &Target) -> Option<bool> {
        self.world.exported(target)
    }
}
