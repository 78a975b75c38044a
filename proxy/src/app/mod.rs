//! The assembly: all rooms built, connected and started; then waiting, draining, and saying how it went.
//!
//! **In** a checked configuration, credentials, and sockets already bound, so that `run`, `demo` and the tests start the
//! same gateway. **Out** a running [`App`]. **Refuses** to start with what cannot serve; never half starts.
//!
//! Two kinds of threads: workers, each with its own runtime, carry the data; the runtime that this is called on carries
//! acceptor, probe, admin and sources, so that a health answer never queues behind data.

mod assertions;
#[cfg(feature = "linkerd")]
mod control;
pub mod credentials;
mod discovery;
mod kept;
mod kubernetes;
mod linkerd;
mod overview;
mod state;
mod traces;

use std::net::{SocketAddr, TcpListener as StdListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use isthmus_probe::endpoint::{Endpoint as Probe, Page};
use isthmus_probe::health::{Health, Part};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::authorise::Policy;
use crate::config::Config;
use crate::drain::{self, Drain, Phase};
use crate::gateway::accept::{self, Door, Tally};
use crate::gateway::assertion::Assertions;
use crate::gateway::census::Census;
use crate::gateway::networks::Networks;
use crate::gateway::probe::ProbePort;
use crate::gateway::watchers::Watchers;
use crate::gateway::{Shared, worker};
use crate::live::Live;
use crate::record::{Event, Observer};
use crate::route::Directory;
use crate::sources;
use crate::sources::files::{self, credentials::CredentialFiles};
use crate::sources::policy::PolicyFiles;
use crate::telemetry::Fan;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::logs::{LogHandle, Refusals};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::recent::Recent;
use crate::telemetry::shard::Front;
use crate::telemetry::watch::{AUTHORISE_RELOAD, Certificates, ReloadNames, Reloads, Root, TLS_RELOAD};
use crate::tls::Credentials;
use crate::{admin, tls};

/// The listening sockets of one gateway.
#[derive(Debug)]
pub struct Sockets {
    /// `mc-gateway`.
    pub gateway: StdListener,
    /// `mc-probe`.
    pub probe: StdListener,
    /// The operator's.
    pub admin: StdListener,
}

impl Sockets {
    /// Binds all three, or says which cannot be had and why.
    pub fn bind(config: &Config) -> anyhow::Result<Self> {
        let backlog = config.accept().backlog;
        let one = |key: &str, addr: SocketAddr| {
            accept::bind(addr, backlog)
                .with_context(|| format!("cannot listen on {addr} ({key}); is another process there?"))
        };
        let [gateway, probe, admin] = config.listeners();
        Ok(Self {
            gateway: one("accept.listen", gateway)?,
            probe: one("probe.listen", probe)?,
            admin: one("admin.listen", admin)?,
        })
    }
}

/// Where a running gateway listens.
#[derive(Clone, Copy, Debug)]
pub struct Addrs {
    /// `mc-gateway`.
    pub gateway: SocketAddr,
    /// `mc-probe`.
    pub probe: SocketAddr,
    /// The operator's.
    pub admin: SocketAddr,
}

/// A running gateway.
#[derive(Debug)]
pub struct App {
    /// Where it listens.
    pub addrs: Addrs,
    /// What it trusts and shows; replaced by sources.
    pub credentials: Arc<Live<Credentials>>,
    /// Who may reach what; replaced by sources.
    pub policy: Arc<Live<Policy>>,
    /// The services it knows.
    pub directory: Arc<Directory>,
    /// Its metrics.
    pub metrics: Arc<Metrics>,
    access_log: AccessLog,
    health: Arc<Health>,
    drain: Drain,
    reload: files::Status,
    credential_files: Option<files::Source>,
    policy_reload: files::Status,
    policy_files: Option<files::Source>,
    /// Not ready while the gateway has no certificate; whoever gets it one takes this.
    #[cfg_attr(not(feature = "linkerd"), expect(dead_code, reason = "nobody else is to give a certificate"))]
    awaits_certificate: Option<Part>,
    workers: Vec<std::thread::JoinHandle<()>>,
}

/// Puts something around the observer of a worker, on its thread.
pub type Observe = Arc<dyn Fn(usize, Rc<dyn Observer>) -> Rc<dyn Observer> + Send + Sync>;

/// How a drain went.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Drained {
    /// Connections that were alive when it began.
    pub began_with: u64,
    /// Connections that had to be cut.
    pub cut: u64,
    /// From the signal to the end.
    pub took: Duration,
}

impl App {
    /// Starts everything on the runtime it is called on, and the workers beside it.
    pub async fn start(
        config: &Config,
        credentials: Credentials,
        sockets: Sockets,
        log: Option<LogHandle>,
    ) -> anyhow::Result<Self> {
        Self::start_observed(config, credentials, sockets, log, Arc::new(|_, own| own)).await
    }

    /// The same with more observers: each worker's own is handed to `observe`, which gives back what the worker tells. That
    /// one may panic, and the gateway must bear it.
    pub async fn start_observed(
        config: &Config,
        credentials: Credentials,
        sockets: Sockets,
        log: Option<LogHandle>,
        observe: Observe,
    ) -> anyhow::Result<Self> {
        let (drain, watch) = drain::channel();
        let policy = config.policy(Some(credentials.identity())).context("the policy")?;
        let health = Health::new();
        let starting = health.part("start", "the gateway is starting");
        let waiting = "the gateway has no certificate yet";
        let awaits_certificate = (!credentials.has_certificate()).then(|| health.part("identity", waiting));
        let credentials = Arc::new(Live::new(credentials));
        let assertions = assertions::start(config, &credentials)?;
        let probe = Arc::new(probe(config, &health, assertions.as_ref()));
        let (directory, demands) = Directory::new(config.route());
        let metrics = Arc::new(Metrics::new(config.metrics()));
        let access_log = AccessLog::start(&config.access_log()).context("the access log")?;
        let addrs = Addrs {
            gateway: sockets.gateway.local_addr()?,
            probe: sockets.probe.local_addr()?,
            admin: sockets.admin.local_addr()?,
        };
        let balance = config.balance();
        let shared = Shared {
            tls: config.tls(),
            accept: config.accept(),
            detect: config.detect(),
            route: config.route(),
            balance: balance.clone(),
            connect: config.connect(),
            pool: config.pool(),
            relay: config.relay(),
            http: config.http(),
            identify: config.identify(),
            assertions: assertions.clone(),
            trace: config.trace(),
            clusters: Arc::new(config.clusters()),
            credentials,
            policy: Arc::new(Live::new(policy)),
            directory: Arc::clone(&directory),
            loads: Arc::default(),
            census: Census::new(config.file.accept.max_connections_per_identity),
            networks: Networks::new(config.networks()),
            rechecks: Arc::default(),
            watchers: Watchers::new(config.file.authorise.observe, config.file.authorise.observed),
            max_handshakes: config.file.tls.max_handshakes,
            max_handshakes_per_network: config.file.tls.max_handshakes_per_network,
            probe: Arc::clone(&probe),
            probe_ports: vec![config.file.probe.listen.port(), addrs.probe.port()],
            probe_authority: config.file.probe.authority.as_ref().map(|name| name.0.clone()),
            expiry_grace: Some(config.file.tls.expiry_grace.0),
            distrust_deadline: config.file.tls.distrust_deadline.0,
            drain: watch.clone(),
            runtimes: Arc::default(),
        };
        let reload = files::Status::default();
        let recent = Recent::default();
        show(&metrics, &shared, &probe, &access_log);
        show_reloads(&metrics, TLS_RELOAD, reload.clone());
        let policy_reload = files::Status::default();
        show_reloads(&metrics, AUTHORISE_RELOAD, policy_reload.clone());
        if let Some(assertions) = &assertions {
            assertions::show(&metrics, assertions);
        }

        let control = Handle::current();
        let found = kubernetes::start(config, &directory, &health, balance.zone, &metrics)?;
        let sources = discovery::start(config, &directory, &shared.credentials, found)?;
        discovery::show(&metrics, &sources);
        let (demands, asked) = (Arc::new(tokio::sync::Mutex::new(demands)), Arc::clone(&directory));
        let learners = sources.clone();
        kept::task(&control, "sources", move || {
            sources::run(Arc::clone(&asked), Arc::clone(&demands), learners.clone())
        });

        let (doors, workers) = start_workers(config, &shared, &metrics, (&access_log, &recent, observe))?;
        let listener = Arc::new(TcpListener::from_std(sockets.gateway)?);
        let (settings, phases, tallies) = (shared.accept.clone(), watch.clone(), Arc::clone(&metrics));
        kept::task(&control, "acceptor", move || {
            let tally = AcceptTally(tallies.front());
            accept::run(Arc::clone(&listener), settings.clone(), doors.clone(), phases.clone(), tally)
        });

        let port = Arc::new(ProbePort {
            endpoint: Arc::clone(&probe),
            credentials: Arc::clone(&shared.credentials),
            tls: tls::Settings { alpn: false, ..shared.tls.clone() },
            plaintext: config.file.probe.plaintext,
            require_client_certificate: config.file.probe.require_client_certificate,
            first_byte_timeout: shared.detect.timeout,
        });
        let listener = Arc::new(TcpListener::from_std(sockets.probe)?);
        kept::task(&control, "probe", move || Arc::clone(&port).run(Arc::clone(&listener), watch.clone()));

        let seen = state::Seen {
            shared: shared.clone(),
            health: Arc::clone(&health),
            probe: Arc::clone(&probe),
            reload: reload.clone(),
            policy_reload: policy_reload.clone(),
            recent,
            sources,
        };
        let overview = overview::Overview {
            seen,
            metrics: Arc::clone(&metrics),
            max_connections: config.file.accept.max_connections,
        };
        let shown = admin_sources(config, overview, log)?;
        let settings = config.admin();
        let listener = Arc::new(TcpListener::from_std(sockets.admin)?);
        kept::task(&control, "admin", move || admin::serve(Arc::clone(&listener), shown.clone(), settings));

        starting.ready();
        let Shared { credentials, policy, .. } = shared;
        let credential_files = None;
        Ok(Self {
            addrs,
            credentials,
            policy,
            directory,
            metrics,
            access_log,
            health,
            drain,
            reload,
            credential_files,
            policy_reload,
            policy_files: None,
            awaits_certificate,
            workers,
        })
    }

    /// Ends in good order: says no to probes and goes on serving for `announce`, then lets live connections finish, and
    /// cuts what is left at `deadline` (counted from the start) or when `hurry` ends.
    pub async fn drain(self, announce: Duration, deadline: Duration, hurry: impl Future<Output = ()>) -> Drained {
        let started = Instant::now();
        let began_with = self.drain.alive();
        self.health.drain();
        self.drain.advance(Phase::Announced);
        tracing::info!(connections = began_with, announce = ?announce, deadline = ?deadline, "draining: not ready, still serving");
        let finish = async {
            tokio::time::sleep(announce).await;
            self.drain.advance(Phase::Draining);
            tracing::info!(connections = self.drain.alive(), "draining: no new connections");
            while self.drain.alive() > 0 {
                tokio::time::sleep(POLL).await;
            }
        };
        tokio::select! {
            () = finish => {}
            () = tokio::time::sleep_until(started + deadline) => {}
            () = hurry => {}
        }
        let cut = self.drain.alive();
        self.drain.advance(Phase::Draining);
        self.drain.advance(Phase::Cut);
        let workers = self.workers;
        let joined = tokio::task::spawn_blocking(move || {
            workers.into_iter().map(std::thread::JoinHandle::join).all(|end| end.is_ok())
        });
        if !matches!(tokio::time::timeout(LAST_WAIT, joined).await, Ok(Ok(true))) {
            tracing::warn!("a worker did not end in order");
        }
        self.access_log.flush(LAST_WAIT);
        Drained { began_with, cut, took: started.elapsed() }
    }

    /// Keeps the credentials as fresh as the files that they were made of; `serving` is the digest of what serves now.
    pub fn watch_credentials(&mut self, files: CredentialFiles, serving: Option<[u8; 32]>, settings: files::Settings) {
        let live = Arc::clone(&self.credentials);
        self.credential_files = Some(files::watch(files, live, serving, settings, self.reload.clone()));
    }

    /// Keeps the policy as fresh as the files that it was made of; `serving` is the digest of what serves now.
    pub fn watch_policy(&mut self, files: PolicyFiles, serving: Option<[u8; 32]>, settings: files::Settings) {
        let live = Arc::clone(&self.policy);
        let files = PolicyFiles { serving: Some(Arc::clone(&live)), ..files };
        self.policy_files = Some(files::watch(files, live, serving, settings, self.policy_reload.clone()));
    }

    /// Follows the policy of the control plane, where that is where the policy comes from; says whether it is.
    #[cfg(not(feature = "linkerd"))]
    pub fn follow_policy(&mut self, _: &Config) -> anyhow::Result<bool> {
        Ok(false)
    }

    /// How it goes with the files of the policy.
    pub fn policy_reloads(&self) -> files::Reload {
        self.policy_reload.read()
    }

    /// How it goes with the files of the credentials.
    pub fn reloads(&self) -> files::Reload {
        self.reload.read()
    }

    /// SIGHUP: reads files again, and reopens those that are written, for log rotation.
    pub fn reload(&self) {
        self.access_log.reopen();
        for source in [&self.credential_files, &self.policy_files].into_iter().flatten() {
            source.reload();
        }
    }

    /// Whether probes are told yes.
    pub fn is_ready(&self) -> bool {
        self.health.ready().is_ok()
    }
}

/// The probe's endpoint, with the keys of what is signed.
fn probe(config: &Config, health: &Arc<Health>, assertions: Option<&Arc<Assertions>>) -> Probe {
    let probe = Probe::new(Arc::clone(health), config.probe());
    let Some(assertions) = assertions.map(Arc::clone) else { return probe };
    let read = Box::new(move || assertions.key_set());
    probe.with_page(Page { path: assertions::PATH, media_type: assertions::MEDIA_TYPE, read })
}

/// How often a drain looks whether it is done.
const POLL: Duration = Duration::from_millis(10);

/// How long the end waits for threads that should end at once.
const LAST_WAIT: Duration = Duration::from_secs(2);

/// The acceptor's own shard of the metrics.
struct AcceptTally(Front);

impl Tally for AcceptTally {
    fn accept_failed(&self, error: &str) {
        self.0.event(Event::AcceptFailed(error));
    }
}

fn start_workers(
    config: &Config,
    shared: &Shared,
    metrics: &Arc<Metrics>,
    (access_log, recent, observe): (&AccessLog, &Recent, Observe),
) -> anyhow::Result<(Vec<Door>, Vec<std::thread::JoinHandle<()>>)> {
    let count = match config.file.workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        count => count,
    };
    let (metrics, access_log, recent) = (Arc::clone(metrics), access_log.clone(), recent.clone());
    let tracer = traces::start(config, &metrics)?;
    let observer: worker::MakeObserver = Arc::new(move |index| {
        let mut observers: Vec<Rc<dyn Observer>> = vec![
            Rc::new(metrics.front()),
            Rc::new(access_log.clone()),
            Rc::new(Refusals::new(LINES_PER_CODE)),
            Rc::new(recent.clone()),
        ];
        observers.extend(tracer.as_ref().map(|tracer| tracer()));
        observe(index, Rc::new(Fan::new(observers)))
    });
    let mut doors = Vec::new();
    let mut threads = Vec::new();
    for index in 0..count {
        let (sender, receiver) = mpsc::unbounded_channel();
        doors.push(Door { sockets: sender, load: Arc::new(AtomicUsize::new(0)) });
        threads.push(worker::spawn(index, shared.clone(), receiver, Arc::clone(&observer)).context("a worker thread")?);
    }
    Ok((doors, threads))
}

/// Log lines of one refusal code per second and worker.
const LINES_PER_CODE: u32 = 5;

/// What the admin server reads.
fn admin_sources(
    config: &Config,
    overview: overview::Overview,
    log: Option<LogHandle>,
) -> anyhow::Result<admin::Sources> {
    let (seen, metrics) = (overview.seen.clone(), Arc::clone(&overview.metrics));
    let reads = log.clone();
    let keys = seen
        .shared
        .assertions
        .clone()
        .map(|assertions| -> Arc<dyn Fn() -> String + Send + Sync> { Arc::new(move || assertions.key_set()) });
    let (asked, seen_calls) = (seen.shared.clone(), seen.shared.clone());
    Ok(admin::Sources {
        keys,
        explain: Arc::new(move |call, exported| state::explain(&asked, call, exported)),
        sightings: Arc::new(move || state::sightings(&seen_calls)),
        ready: Arc::clone(&seen.health),
        metrics: Arc::new(move |openmetrics| metrics.render(openmetrics)),
        state: Arc::new(move || seen.page()),
        overview: Arc::new(move || overview.page()),
        config: serde_json::to_value(&config.file)?,
        log: admin::LogLevel {
            read: Arc::new(move || reads.as_ref().map(LogHandle::filter).unwrap_or_default()),
            set: Arc::new(move |filter| match &log {
                Some(log) => log.set_filter(filter).map_err(|error| error.to_string()),
                None => Err("this process does not log".to_owned()),
            }),
        },
    })
}

fn show_reloads(metrics: &Metrics, names: ReloadNames, status: files::Status) {
    metrics.watch_reloads(names, move || {
        let reload = status.read();
        Reloads {
            ok: reload.replaced,
            failed: reload.refused,
            failing: reload.problem.is_some(),
            age: reload.age(SystemTime::now()),
        }
    });
}

fn show(metrics: &Arc<Metrics>, shared: &Shared, probe: &Arc<Probe>, access_log: &AccessLog) {
    let credentials = Arc::clone(&shared.credentials);
    metrics.watch_certificates(move || {
        let credentials = credentials.load();
        let roots = credentials.roots().iter().map(|root| Root {
            subject: root.subject.clone(),
            fingerprint: root.fingerprint.clone(),
            expires: Some(root.not_after),
        });
        Certificates {
            leaf_expires: credentials.has_certificate().then(|| credentials.expires()),
            roots: roots.collect(),
        }
    });
    metrics.watch_drain(shared.drain.clone());
    metrics.watch_probe(Arc::clone(probe));
    metrics.watch_access_log(access_log.lines());
    let (runtimes, control) = (Arc::clone(&shared.runtimes), Handle::current().metrics());
    metrics.watch_tasks(move || {
        let workers = runtimes.tasks().into_iter().map(|(worker, tasks)| (format!("worker-{worker}"), tasks));
        workers.chain([("control".to_owned(), control.num_alive_tasks())]).collect()
    });
}
