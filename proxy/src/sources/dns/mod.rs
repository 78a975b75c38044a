//! Services found by DNS: the plainest source, which any cluster has.
//!
//! **In** demanded services. **Out** their addresses, looked up again before they expire. **Refuses** names outside its
//! suffixes (it does not take them).
//!
//! Each service has one small task that lives as long as somebody holds the service. An answer that there is no such name
//! makes the service missing for a while; an answer that does not come changes nothing: what was known stays known, and the
//! question is asked again, less and less often. Answers are sorted before they are compared, so that a server that
//! shuffles them causes no change. (RFC 1035, RFC 2308 for negative answers, RFC 2782 for SRV.)

mod names;
mod resolve;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use self::resolve::{Answer, Known, Resolver};
use super::{Report, Source};
use crate::addr::{Name, Suffix, Target};
use crate::backoff::Backoff;
use crate::endpoint::{Endpoint, Endpoints, Speaks};
use crate::route::{Claim, Service, State};

pub use self::names::{Found, Names};
pub use self::resolve::Unusable;

/// How DNS is asked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The servers to ask; the system's (`/etc/resolv.conf`) where empty.
    pub servers: Vec<SocketAddr>,
    /// Only names below these are looked up.
    pub suffixes: Vec<Suffix>,
    /// Targets whose endpoints are found by SRV instead of by address, and the name to ask for: `_port._tcp.name`.
    pub srv: Vec<(Target, Name)>,
    /// How long to wait for one answer.
    pub timeout: Duration,
    /// How often to ask for it.
    pub attempts: usize,
    /// Answers count as valid for at least this long, whatever their TTL. Five seconds is what CoreDNS gives for
    /// cluster names: asking more often than that brings nothing new.
    pub min_ttl: Duration,
    /// And for at most this long: a record with a TTL of a day must not hide that a service has moved.
    pub max_ttl: Duration,
    /// That a name does not exist counts for at most this long (and at least for `min_ttl`).
    pub max_negative_ttl: Duration,
    /// How long to wait after failed questions.
    pub backoff: Backoff,
    /// Questions asked at the same time, over all services.
    pub concurrency: usize,
    /// Endpoints taken of one answer.
    pub max_endpoints: usize,
    /// Whether services found here count as exported; DNS itself cannot say.
    pub exported: bool,
    /// What their endpoints speak.
    pub speaks: Speaks,
    /// Take addresses that lead to this host or its link. Never from a real server: a name that points at the gateway
    /// itself would open its inner ports to everybody who may reach that name.
    pub allow_local: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            suffixes: vec![Suffix::All],
            srv: Vec::new(),
            // Twice this fits in what a request waits for discovery (3 s), so that a lost packet costs it a second and no more.
            timeout: Duration::from_secs(1),
            attempts: 2,
            min_ttl: Duration::from_secs(5),
            max_ttl: Duration::from_secs(60),
            max_negative_ttl: Duration::from_secs(30),
            backoff: Backoff { min: Duration::from_secs(1), max: Duration::from_secs(30), jitter: 0.3 },
            concurrency: 64,
            max_endpoints: 1000,
            exported: false,
            speaks: Speaks::AsClient,
            allow_local: false,
        }
    }
}

/// The DNS source.
#[derive(Debug)]
pub struct Dns {
    inner: Arc<Inner>,
    runtime: Handle,
}

#[derive(Debug)]
struct Inner {
    claim: Claim,
    settings: Settings,
    resolver: Resolver,
    questions: Semaphore,
    started: Instant,
    /// Milliseconds after `started` of the last answer, plus one; 0 before the first.
    answered: AtomicU64,
    failures: AtomicU64,
    services: AtomicUsize,
}

impl Dns {
    /// A source of rank `claim` whose tasks run on `runtime`. Fails where the system's configuration cannot be read.
    pub fn new(claim: Claim, settings: Settings, runtime: Handle) -> Result<Self, Unusable> {
        let inner = Inner {
            claim,
            resolver: Resolver::new(&settings)?,
            questions: Semaphore::new(settings.concurrency.clamp(1, Semaphore::MAX_PERMITS)),
            settings,
            started: Instant::now(),
            answered: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            services: AtomicUsize::new(0),
        };
        Ok(Self { inner: Arc::new(inner), runtime })
    }
}

impl Source for Dns {
    fn name(&self) -> &'static str {
        "dns"
    }

    fn offer(&self, service: &Arc<Service>) -> bool {
        let name = &service.target().name;
        let ours = self.inner.settings.suffixes.iter().any(|suffix| suffix.holds(name));
        if ours {
            self.runtime.spawn(follow(Arc::clone(&self.inner), Arc::downgrade(service)));
        }
        ours
    }

    fn report(&self) -> Report {
        let inner = &self.inner;
        let age = match inner.answered.load(Ordering::Relaxed) {
            0 => None,
            at => Some(inner.started.elapsed().saturating_sub(Duration::from_millis(at - 1))),
        };
        Report {
            name: "dns",
            age,
            services: inner.services.load(Ordering::Relaxed),
            failures: inner.failures.load(Ordering::Relaxed),
        }
    }
}

/// Counts a followed service until dropped.
struct Followed(Arc<Inner>);

impl Drop for Followed {
    fn drop(&mut self) {
        self.0.services.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Keeps one service current until nobody holds it, or a source of higher rank takes it over.
async fn follow(inner: Arc<Inner>, service: Weak<Service>) {
    inner.services.fetch_add(1, Ordering::Relaxed);
    let followed = Followed(inner);
    let inner = &*followed.0;
    let mut known = Known::default();
    let mut failures = 0;
    loop {
        let Some(service) = service.upgrade() else { return };
        let answer = inner.ask(service.target(), &mut known).await;
        let (state, wait) = match answer {
            Answer::Failed => {
                failures += 1;
                inner.failures.fetch_add(1, Ordering::Relaxed);
                (None, inner.settings.backoff.after(failures))
            }
            Answer::Found { mut endpoints, ttl } => {
                endpoints.list.iter_mut().for_each(|endpoint| endpoint.speaks = inner.settings.speaks);
                (Some(State::Known(Arc::new(endpoints))), inner.refresh(ttl, inner.settings.max_ttl))
            }
            Answer::Missing { ttl } => (Some(State::Missing), inner.refresh(ttl, inner.settings.max_negative_ttl)),
        };
        if let Some(state) = state {
            failures = 0;
            let now = u64::try_from(inner.started.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
            inner.answered.store(now + 1, Ordering::Relaxed);
            if !service.publish(inner.claim, inner.settings.exported, state) {
                return;
            }
        }
        drop(service); // or it would live for ever
        tokio::time::sleep(wait).await;
    }
}

impl Inner {
    async fn ask(&self, target: &Target, known: &mut Known) -> Answer {
        let Ok(_permit) = self.questions.acquire().await else { return Answer::Failed };
        let srv = self.settings.srv.iter().find(|(of, _)| of == target);
        match srv {
            Some((_, name)) => self.resolver.services(name).await,
            None => self.resolver.addresses(target, known).await,
        }
    }

    /// When to ask again: a tenth before the answer expires, less some chance, so that what was learned together is not
    /// asked for together.
    fn refresh(&self, ttl: Duration, most: Duration) -> Duration {
        let valid = ttl.min(most).max(self.settings.min_ttl);
        valid.mul_f64(0.9 - 0.1 * rand::random::<f64>())
    }
}

/// An endpoint as DNS can describe it.
fn endpoint(addr: SocketAddr, weight: u32) -> Endpoint {
    Endpoint { weight, ..Endpoint::new(addr) }
}

/// The same endpoints in the same order, however they were answered.
fn endpoints(mut list: Vec<Endpoint>, most: usize) -> Endpoints {
    list.sort_unstable_by_key(|endpoint| endpoint.addr);
    list.dedup_by_key(|endpoint| endpoint.addr);
    if list.len() > most {
        tracing::warn!(found = list.len(), taken = most, "more endpoints than are taken of one answer");
        list.truncate(most);
    }
    Endpoints { list }
}

#[cfg(test)]
mod tests;
