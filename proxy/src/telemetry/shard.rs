//! One worker's counters.
//!
//! **In** events and closed records of one worker. **Out** nothing, until a scrape comes and adds the shards up.
//!
//! A [`Front`] belongs to one worker, a `Shard` to it and to the scrape. The front remembers where each series it has
//! met is kept, so that counting it again is one look into its own table and relaxed additions: no lock, no allocation.
//! Only a label set met for the first time takes the shard's lock, which the scrape takes too, and no other worker.

use std::borrow::Borrow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::histogram::Histogram;
use super::labels::{Id, Interner, NONE, OTHER};
use crate::addr::Target;
use crate::fault::Fault;
use crate::identity::Identity;
use crate::mix::Mixed;
use crate::record::{Event, Observer, Outcome, Protocol, Record, Stage};

/// What a worker counts; read by the scrape.
#[derive(Debug, Default)]
pub(super) struct Shard {
    pub(super) connections: AtomicU64,
    pub(super) open_connections: AtomicI64,
    pub(super) open_requests: AtomicI64,
    pub(super) retries: AtomicU64,
    pub(super) ejections: AtomicU64,
    pub(super) panics: AtomicU64,
    pub(super) handshake_seconds: Histogram,
    pub(super) connect_seconds: Histogram,
    pub(super) stage_seconds: [Histogram; Stage::ALL.len()],
    pub(super) accept_errors: Series<Box<str>, AtomicU64>,
    pub(super) handshakes: Series<Box<str>, AtomicU64>,
    pub(super) connects: Series<Box<str>, AtomicU64>,
    pub(super) distrusted: Series<Box<str>, AtomicU64>,
    pub(super) refusals: Series<(Stage, Fault, &'static str), AtomicU64>,
    pub(super) decisions: Series<Decided, AtomicU64>,
    pub(super) requests: Series<RequestKey, AtomicU64>,
    pub(super) routes: Series<RouteKey, AtomicU64>,
    pub(super) retries_skipped: Series<Box<str>, AtomicU64>,
    pub(super) ended: Series<ConnectionKey, AtomicU64>,
    pub(super) traffic: Series<TrafficKey, Traffic>,
}

/// Counts with labels.
pub(super) type Series<K, V> = Mutex<HashMap<K, Arc<V>>>;

/// What a rule decided about requests, or about connections.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct Decided {
    pub(super) rule: Arc<str>,
    pub(super) decision: &'static str,
    pub(super) request: bool,
}

/// A request's labels.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) struct RequestKey {
    pub(super) service: Id,
    pub(super) client: Id,
    pub(super) cluster: Id,
    pub(super) protocol: Option<Protocol>,
    /// 0 where there was none, 1 for what is no status.
    pub(super) status: u16,
    /// As [`grpc_label`] makes it.
    pub(super) grpc_status: u8,
}

/// The labels of a request that falls under a rule of its service's profile.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct RouteKey {
    pub(super) service: Id,
    pub(super) route: Arc<str>,
    /// As in [`RequestKey`].
    pub(super) status: u16,
}

/// A connection's labels.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) struct ConnectionKey {
    pub(super) service: Id,
    pub(super) client: Id,
    pub(super) cluster: Id,
    pub(super) protocol: Option<Protocol>,
    pub(super) outcome: &'static str,
}

/// Who spoke with whom.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) struct TrafficKey {
    pub(super) service: Id,
    pub(super) client: Id,
    pub(super) cluster: Id,
    pub(super) protocol: Option<Protocol>,
}

/// What went between one client and one service.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    /// Requests, or connections where bytes are all that is seen.
    pub(super) ended: AtomicU64,
    /// Those of them that the service or the gateway failed.
    pub(super) failed: AtomicU64,
    pub(super) received: AtomicU64,
    pub(super) sent: AtomicU64,
    pub(super) request_seconds: Histogram,
}

/// What all shards share: the numbers that stand for label values, and the limits.
#[derive(Debug)]
pub(super) struct Numbers {
    pub(super) services: Interner<Target>,
    pub(super) clients: Interner<Identity>,
    pub(super) clusters: Interner<Arc<str>>,
    pub(super) max_series: usize,
}

/// The observer of one worker.
#[derive(Debug)]
pub struct Front {
    shard: Arc<Shard>,
    numbers: Arc<Numbers>,
    accept_errors: Cache<Box<str>, AtomicU64>,
    handshakes: Cache<Box<str>, AtomicU64>,
    connects: Cache<Box<str>, AtomicU64>,
    distrusted: Cache<Box<str>, AtomicU64>,
    refusals: Cache<(Stage, Fault, &'static str), AtomicU64>,
    decisions: Cache<Decided, AtomicU64>,
    requests: Cache<RequestKey, AtomicU64>,
    routes: Cache<RouteKey, AtomicU64>,
    retries_skipped: Cache<Box<str>, AtomicU64>,
    ended: Cache<ConnectionKey, AtomicU64>,
    traffic: Cache<TrafficKey, Traffic>,
}

impl Front {
    pub(super) fn new(shard: Arc<Shard>, numbers: Arc<Numbers>) -> Self {
        Self {
            shard,
            numbers,
            accept_errors: Cache::default(),
            handshakes: Cache::default(),
            connects: Cache::default(),
            distrusted: Cache::default(),
            refusals: Cache::default(),
            decisions: Cache::default(),
            requests: Cache::default(),
            routes: Cache::default(),
            retries_skipped: Cache::default(),
            ended: Cache::default(),
            traffic: Cache::default(),
        }
    }

    /// Which rule decided, and what. Only rules are told apart, which the operator wrote: no peer can fill this.
    fn count_decision(&self, record: &Record) {
        let audited = record.audit.as_ref();
        let Some(rule) = audited.map_or(record.rule.as_ref(), |audit| audit.rule.as_ref().or(record.rule.as_ref()))
        else {
            return;
        };
        let decision = match record.outcome {
            _ if audited.is_some() => "would_refuse",
            Outcome::Refused { stage: Stage::Authorise, .. } => "refused",
            _ => "admitted",
        };
        let key = Decided { rule: Arc::clone(rule), decision, request: record.request.is_some() };
        let coarse = || Decided { rule: Arc::from("other"), ..key };
        self.decisions.at(&self.shard.decisions, &key, || key.clone(), coarse, self.numbers.max_series, add_one);
    }

    fn cluster(&self, record: &Record) -> Id {
        record.peer.cluster.as_ref().map_or(NONE, |cluster| self.numbers.clusters.id(cluster, true))
    }

    fn count_request(&self, record: &Record, service: Id, client: Id, status: Option<u16>, grpc: Option<u16>) {
        let key = RequestKey {
            service,
            client,
            cluster: self.cluster(record),
            protocol: record.protocol,
            status: status_label(status),
            grpc_status: grpc_label(grpc),
        };
        let coarse = || RequestKey { service: OTHER, client: OTHER, ..key };
        self.requests.at(&self.shard.requests, &key, || key, coarse, self.numbers.max_series, add_one);
    }

    /// By the rule of the service's profile. Their names are the operator's own, so no peer can fill this.
    fn count_route(&self, service: Id, route: &Arc<str>, status: Option<u16>) {
        let key = RouteKey { service, route: Arc::clone(route), status: status_label(status) };
        let coarse = || RouteKey { service: OTHER, route: Arc::from("other"), status: key.status };
        self.routes.at(&self.shard.routes, &key, || key.clone(), coarse, self.numbers.max_series, add_one);
    }

    fn count_connection(&self, record: &Record, service: Id, client: Id) {
        let outcome = match record.outcome {
            Outcome::Abandoned => "abandoned",
            Outcome::Refused { .. } => "refused",
            Outcome::Served => "served",
        };
        let key = ConnectionKey { service, client, cluster: self.cluster(record), protocol: record.protocol, outcome };
        let coarse = || ConnectionKey { service: OTHER, client: OTHER, ..key };
        self.ended.at(&self.shard.ended, &key, || key, coarse, self.numbers.max_series, add_one);
    }

    fn count_traffic(&self, record: &Record, service: Id, client: Id) {
        let key = TrafficKey { service, client, cluster: self.cluster(record), protocol: record.protocol };
        let coarse = || TrafficKey { service: OTHER, client: OTHER, ..key };
        self.traffic.at(
            &self.shard.traffic,
            &key,
            || key,
            coarse,
            self.numbers.max_series,
            |traffic| {
                add_one(&traffic.ended);
                if failed(record) {
                    add_one(&traffic.failed);
                }
                traffic.received.fetch_add(record.bytes_received, Ordering::Relaxed);
                traffic.sent.fetch_add(record.bytes_sent, Ordering::Relaxed);
                if record.request.is_some() {
                    traffic.request_seconds.observe(record.duration);
                }
            },
        );
    }
}

impl Observer for Front {
    fn event(&self, event: Event<'_>) {
        let shard = &*self.shard;
        let text = |cache: &Cache<Box<str>, AtomicU64>, series: &Series<Box<str>, AtomicU64>, value: &str| {
            cache.at(series, value, || value.into(), || "other".into(), MAX_TEXTS, add_one);
        };
        match event {
            Event::ConnectionOpened => {
                add_one(&shard.connections);
                shard.open_connections.fetch_add(1, Ordering::Relaxed);
            }
            Event::ConnectionClosed => {
                shard.open_connections.fetch_sub(1, Ordering::Relaxed);
            }
            Event::AcceptFailed(error) => text(&self.accept_errors, &shard.accept_errors, error),
            Event::Handshake { result, took } => {
                text(&self.handshakes, &shard.handshakes, result);
                shard.handshake_seconds.observe(took);
            }
            Event::RequestStarted => {
                shard.open_requests.fetch_add(1, Ordering::Relaxed);
            }
            Event::RequestEnded => {
                shard.open_requests.fetch_sub(1, Ordering::Relaxed);
            }
            Event::Connected { result, took } => {
                text(&self.connects, &shard.connects, result);
                shard.connect_seconds.observe(took);
            }
            Event::Distrusted { reason, .. } => text(&self.distrusted, &shard.distrusted, reason),
            Event::Retried => add_one(&shard.retries),
            Event::RetrySkipped { reason } => text(&self.retries_skipped, &shard.retries_skipped, reason),
            Event::Ejected => add_one(&shard.ejections),
            Event::Panicked => add_one(&shard.panics),
        }
    }

    fn closed(&self, record: &Record) {
        let client = record.peer.identity.as_ref().map_or(NONE, |identity| self.numbers.clients.id(identity, true));
        let service = record.target.as_ref().map_or(NONE, |target| self.numbers.services.id(target, is_known(record)));
        for (stage, took) in self.shard.stage_seconds.iter().zip(record.stages) {
            if !took.is_zero() {
                stage.observe(took);
            }
        }
        if let Outcome::Refused { stage, fault, code } = record.outcome {
            let key = (stage, fault, code);
            let coarse = || (stage, fault, "other");
            self.refusals.at(&self.shard.refusals, &key, || key, coarse, MAX_TEXTS * 8, add_one);
        }
        self.count_decision(record);
        if let Some(request) = &record.request {
            self.count_request(record, service, client, request.status, request.grpc_status);
            if let Some(route) = &request.route {
                self.count_route(service, route, request.status);
            }
            self.count_traffic(record, service, client);
        } else {
            self.count_connection(record, service, client);
            // The bytes of an HTTP connection are those of its requests, which have been counted.
            if record.protocol == Some(Protocol::Opaque) {
                self.count_traffic(record, service, client);
            }
        }
    }
}

/// Whether the target is a service of ours, rather than any name a peer thought of: it came past `route`.
fn is_known(record: &Record) -> bool {
    record.endpoint.is_some() || matches!(record.outcome, Outcome::Refused { stage, .. } if stage >= Stage::Balance)
}

/// Whether the client got less than it could expect from a service in order: the gateway's or the service's failure, not a
/// refusal by the policy and not the client's own mistake. gRPC's codes are those that Linkerd counts as failures.
fn failed(record: &Record) -> bool {
    match record.outcome {
        Outcome::Refused { fault, .. } => matches!(fault, Fault::Ours | Fault::Upstream),
        Outcome::Abandoned | Outcome::Served => record.request.as_ref().is_some_and(|request| {
            request.status.is_some_and(|status| status >= 500)
                || request.grpc_status.is_some_and(|status| matches!(status, 2 | 4 | 7 | 13 | 14 | 15))
        }),
    }
}

/// How many different texts (errno names, codes) one family may hold. They come from the program, not from peers.
const MAX_TEXTS: usize = 64;

/// 0 for none, 1 for what is no status.
fn status_label(status: Option<u16>) -> u16 {
    match status {
        None => 0,
        Some(status @ 100..=599) => status,
        Some(_) => 1,
    }
}

/// 0 for none, one more than the code for the 17 codes there are, 18 for others.
pub(super) fn grpc_label(status: Option<u16>) -> u8 {
    match status {
        None => 0,
        Some(code) => u8::try_from(code).map_or(18, |code| code.saturating_add(1).min(18)),
    }
}

fn add_one(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}

/// Where one worker's series are, without a lock.
#[derive(Debug)]
struct Cache<K, V>(RefCell<HashMap<K, Arc<V>, Mixed>>);

impl<K, V> Default for Cache<K, V> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}

impl<K: Clone + Eq + Hash, V: Default> Cache<K, V> {
    /// Counts at `key`; or, when the table holds `max` series without it, at the coarse one.
    fn at<Q>(
        &self,
        series: &Series<K, V>,
        key: &Q,
        owned: impl FnOnce() -> K,
        coarse: impl FnOnce() -> K,
        max: usize,
        count: impl FnOnce(&V),
    ) where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let mut cache = self.0.borrow_mut();
        if let Some(value) = cache.get(key) {
            return count(value);
        }
        let key = if cache.len() < max { owned() } else { coarse() };
        let value = cache.entry(key).or_insert_with_key(|key| {
            let value = Arc::new(V::default());
            series.lock().insert(key.clone(), Arc::clone(&value));
            value
        });
        count(value);
    }
}
