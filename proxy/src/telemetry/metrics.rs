//! All metric families: where workers get their counters, and where a scrape adds them up.
//!
//! **In** [`Front`]s, one per worker, and readers for values that are kept elsewhere. **Out** [`Metrics::render`]: the page.
//!
//! Families are named `isthmus_<stage>_...`. The labels `service` and `client` have an end (`Settings`); beyond it stands
//! `other`; `client_cluster` has the operator's own names. The label `service` is also `other` for names that never turned out to be services.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::encode::{Family, Labels, Values, page};
use super::histogram::Sum;
use super::labels::{Id, Interner, NONE, OTHER, client};
use super::linkerd;
use super::process;
use super::shard::{Decided, Front, Numbers, Shard};
use super::traffic::{self, Pair, Refused};
use crate::record::{Protocol, Stage};

/// How many different label values there may be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Settings {
    /// Values of `service`.
    pub max_services: usize,
    /// Values of `client_namespace` and `client` together.
    pub max_clients: usize,
    /// Series of one family on one worker: services times clients times statuses could be many.
    pub max_series: usize,
    /// Whether the page shows the families of Linkerd's proxies too.
    pub linkerd: bool,
}

impl Default for Settings {
    fn default() -> Self {
        // A series takes some 200 bytes here and much more in the store behind: 20,000 a worker is what both bear.
        Self { max_services: 1000, max_clients: 1000, max_series: 20_000, linkerd: true }
    }
}

/// The metrics of the process.
#[derive(Debug)]
pub struct Metrics {
    numbers: Arc<Numbers>,
    shards: Mutex<Vec<Arc<Shard>>>,
    readers: Mutex<Vec<Reader>>,
    linkerd: bool,
}

/// What kind of value a reader yields.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// It only grows. The family's name gets the suffix `_total`.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// One series of a family that is kept elsewhere.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// Names and values of its labels.
    pub labels: Vec<(&'static str, String)>,
    /// Its value.
    pub value: f64,
}

struct Reader {
    name: &'static str,
    help: &'static str,
    kind: Kind,
    read: Box<dyn Fn() -> Vec<Reading> + Send + Sync>,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Reader").field(&self.name).finish()
    }
}

impl Metrics {
    /// Metrics without counters: workers bring them.
    pub fn new(settings: Settings) -> Self {
        let numbers = Numbers {
            services: Interner::new(settings.max_services),
            clients: Interner::new(settings.max_clients),
            // They are the operator's own names, so this is a bound that no peer can come near.
            clusters: Interner::new(settings.max_clients),
            max_series: settings.max_series,
        };
        Self {
            numbers: Arc::new(numbers),
            shards: Mutex::default(),
            readers: Mutex::default(),
            linkerd: settings.linkerd,
        }
    }

    /// Counters for one more worker. What they counted stays counted when the worker ends.
    pub fn front(&self) -> Front {
        let shard = Arc::new(Shard::default());
        self.shards.lock().push(Arc::clone(&shard));
        Front::new(shard, Arc::clone(&self.numbers))
    }

    /// Adds a family whose values are read when somebody looks. `name` is without `_total`.
    pub fn read(
        &self,
        name: &'static str,
        help: &'static str,
        kind: Kind,
        read: impl Fn() -> Vec<Reading> + Send + Sync + 'static,
    ) {
        self.readers.lock().push(Reader { name, help, kind, read: Box::new(read) });
    }

    /// The page, as OpenMetrics or in the older Prometheus text format.
    pub fn render(&self, openmetrics: bool) -> String {
        let shards = self.shards.lock().clone();
        let mut families = vec![build_info()];
        families.extend(plain(&shards));
        families.extend(by_text(&shards));
        families.extend(durations(&shards));
        families.extend(self.by_service(&shards));
        families.extend(self.readers.lock().iter().map(Reader::family));
        families.extend(process::families());
        if self.linkerd {
            families.extend(linkerd::families(&shards, &self.numbers));
        }
        page(families, openmetrics)
    }

    /// Who spoke with whom since the start, the most lively first.
    pub fn traffic(&self) -> Vec<Pair> {
        traffic::pairs(&self.numbers, &self.shards.lock())
    }

    /// Refusals since the start, by stage, code and fault, the most frequent first.
    pub fn refusals(&self) -> Vec<Refused> {
        traffic::refusals(&self.shards.lock())
    }

    /// The families that tell services and clients apart.
    fn by_service(&self, shards: &[Arc<Shard>]) -> Vec<Family> {
        let services = self.numbers.services.values();
        let clients = self.numbers.clients.values();
        let clusters = self.numbers.clusters.values();
        let cluster = |id: Id| name(id, || clusters.get(&id).map(ToString::to_string));
        let service = |id: Id| name(id, || services.get(&id).map(ToString::to_string));
        let both = |id: Id| match clients.get(&id) {
            Some(identity) => {
                let (namespace, account) = client(identity);
                (namespace.to_owned(), account.to_owned())
            }
            None => (String::new(), name(id, || None)),
        };
        let mut requests = Totals::default();
        let mut routes = Totals::default();
        let mut ended = Totals::default();
        let mut bytes = Totals::default();
        let mut seconds = BTreeMap::<Labels, Sum>::new();
        for shard in shards {
            for (key, count) in shard.requests.lock().iter() {
                let (namespace, account) = both(key.client);
                let labels = vec![
                    ("service", service(key.service)),
                    ("client_cluster", cluster(key.cluster)),
                    ("client_namespace", namespace),
                    ("client", account),
                    ("protocol", protocol(key.protocol)),
                    ("status", status(key.status)),
                    ("grpc_status", grpc_status(key.grpc_status)),
                ];
                requests.add(labels, count);
            }
            for (key, count) in shard.routes.lock().iter() {
                let labels = vec![
                    ("service", service(key.service)),
                    ("route", key.route.to_string()),
                    ("status", status(key.status)),
                ];
                routes.add(labels, count);
            }
            for (key, count) in shard.ended.lock().iter() {
                let (namespace, account) = both(key.client);
                let labels = vec![
                    ("protocol", protocol(key.protocol)),
                    ("service", service(key.service)),
                    ("client_cluster", cluster(key.cluster)),
                    ("client_namespace", namespace),
                    ("client", account),
                    ("outcome", key.outcome.to_owned()),
                ];
                ended.add(labels, count);
            }
            for (key, traffic) in shard.traffic.lock().iter() {
                let side =
                    |direction: &str| vec![("direction", direction.to_owned()), ("service", service(key.service))];
                bytes.add(side("received"), &traffic.received);
                bytes.add(side("sent"), &traffic.sent);
                let labels = vec![("service", service(key.service)), ("protocol", protocol(key.protocol))];
                seconds.entry(labels).or_default().add(&traffic.request_seconds);
            }
        }
        seconds.retain(|_, sum| sum.count() > 0);
        vec![
            requests.family("isthmus_relay_requests", "Requests ended, by service, client and status."),
            routes.family("isthmus_route_requests", "Requests ended, by the rule of their service's profile."),
            ended.family("isthmus_relay_connections", "Connections ended, by protocol, service and client."),
            bytes.family("isthmus_relay_bytes", "Payload bytes from clients (received) and to clients (sent)."),
            Family {
                name: "isthmus_relay_request_seconds",
                help: "Time from a request's head to the end of its response.",
                values: Values::Histograms(seconds.into_iter().collect()),
            },
        ]
    }
}

impl Reader {
    fn family(&self) -> Family {
        let series = (self.read)().into_iter().map(|reading| (reading.labels, reading.value)).collect();
        let values = match self.kind {
            Kind::Counter => Values::FloatCounters(series),
            Kind::Gauge => Values::Gauges(series),
        };
        Family { name: self.name, help: self.help, values }
    }
}

/// Sums of counters with equal labels; several identities may have the same labels.
#[derive(Debug, Default)]
struct Totals(BTreeMap<Labels, u64>);

impl Totals {
    fn add(&mut self, labels: Labels, count: &AtomicU64) {
        *self.0.entry(labels).or_default() += count.load(Ordering::Relaxed);
    }

    fn family(self, name: &'static str, help: &'static str) -> Family {
        Family { name, help, values: Values::Counters(self.0.into_iter().collect()) }
    }
}

fn build_info() -> Family {
    let mut labels =
        vec![("version", env!("CARGO_PKG_VERSION").to_owned()), ("arch", std::env::consts::ARCH.to_owned())];
    if let Some(commit) = option_env!("ISTHMUS_COMMIT") {
        labels.push(("commit", commit.to_owned()));
    }
    let help = "What is running; the value is always 1.";
    Family { name: "isthmus_build_info", help, values: Values::Gauges(vec![(labels, 1.0)]) }
}

/// The families without labels.
fn plain(shards: &[Arc<Shard>]) -> Vec<Family> {
    let counter = |name, help, of: fn(&Shard) -> &AtomicU64| {
        let sum = shards.iter().map(|shard| of(shard).load(Ordering::Relaxed)).sum();
        Family { name, help, values: Values::Counters(vec![(vec![], sum)]) }
    };
    let gauge = |name, help, of: fn(&Shard) -> &AtomicI64| {
        // One worker may open what another closes, so only the sum means anything.
        let sum: i64 = shards.iter().map(|shard| of(shard).load(Ordering::Relaxed)).sum();
        let value = float(u64::try_from(sum).unwrap_or(0));
        Family { name, help, values: Values::Gauges(vec![(vec![], value)]) }
    };
    vec![
        counter("isthmus_accept_connections", "Connections accepted.", |shard| &shard.connections),
        gauge("isthmus_accept_open_connections", "Connections open now.", |shard| &shard.open_connections),
        gauge("isthmus_relay_open_requests", "Requests under way now.", |shard| &shard.open_requests),
        counter("isthmus_relay_retries", "Requests sent again.", |shard| &shard.retries),
        counter("isthmus_relay_panics", "Tasks that panicked and were ended alone.", |shard| &shard.panics),
        counter("isthmus_balance_ejections", "Endpoints ejected by the balancer.", |shard| &shard.ejections),
    ]
}

/// The families whose labels are words of the program.
fn by_text(shards: &[Arc<Shard>]) -> Vec<Family> {
    let mut accept_errors = Totals::default();
    let mut handshakes = Totals::default();
    let mut connects = Totals::default();
    let mut distrusted = Totals::default();
    let mut skipped = Totals::default();
    let mut refusals = Totals::default();
    let mut decisions = Totals::default();
    for shard in shards {
        for (totals, series, label) in [
            (&mut accept_errors, &shard.accept_errors, "error"),
            (&mut handshakes, &shard.handshakes, "result"),
            (&mut connects, &shard.connects, "result"),
            (&mut distrusted, &shard.distrusted, "reason"),
            (&mut skipped, &shard.retries_skipped, "reason"),
        ] {
            for (value, count) in series.lock().iter() {
                totals.add(vec![(label, value.to_string())], count);
            }
        }
        for ((stage, fault, code), count) in shard.refusals.lock().iter() {
            let labels = [("stage", stage.as_str()), ("code", code), ("fault", fault.as_str())];
            refusals.add(labels.map(|(name, value)| (name, value.to_owned())).into(), count);
        }
        for (Decided { rule, decision, .. }, count) in shard.decisions.lock().iter() {
            decisions.add(vec![("rule", rule.to_string()), ("decision", (*decision).to_owned())], count);
        }
    }
    vec![
        accept_errors.family("isthmus_accept_errors", "Failures of accept, by error."),
        handshakes.family("isthmus_tls_handshakes", "Handshakes ended, by result."),
        connects.family("isthmus_connect_attempts", "Connections to endpoints tried, by result."),
        distrusted
            .family("isthmus_tls_distrusted", "Live connections ended because their peer lost its trust, by reason."),
        skipped
            .family("isthmus_route_retries_skipped", "Failed requests that could have been sent again, and were not."),
        refusals.family("isthmus_refusals", "Connections and requests refused, by stage, code and fault."),
        decisions.family(
            "isthmus_authorise_decisions",
            "Decisions of rules: admitted, refused, or would_refuse where only audited.",
        ),
    ]
}

fn durations(shards: &[Arc<Shard>]) -> Vec<Family> {
    let mut handshakes = Sum::default();
    let mut connects = Sum::default();
    let mut stages: [Sum; Stage::ALL.len()] = Default::default();
    for shard in shards {
        handshakes.add(&shard.handshake_seconds);
        connects.add(&shard.connect_seconds);
        stages.iter_mut().zip(&shard.stage_seconds).for_each(|(sum, histogram)| sum.add(histogram));
    }
    let stages = Stage::ALL.iter().zip(stages).map(|(stage, sum)| (vec![("stage", stage.as_str().to_owned())], sum));
    let family = |name, help, series| Family { name, help, values: Values::Histograms(series) };
    vec![
        family("isthmus_tls_handshake_seconds", "Time handshakes took.", vec![(vec![], handshakes)]),
        family("isthmus_connect_seconds", "Time connections to endpoints took.", vec![(vec![], connects)]),
        family("isthmus_stage_seconds", "Time connections and requests spent in each stage.", stages.collect()),
    ]
}

/// The label of a number that may stand for nothing, or for many.
fn name(id: Id, known: impl FnOnce() -> Option<String>) -> String {
    match id {
        NONE => String::new(),
        OTHER => "other".to_owned(),
        _ => known().unwrap_or_else(|| "other".to_owned()),
    }
}

fn protocol(protocol: Option<Protocol>) -> String {
    protocol.map_or("", Protocol::as_str).to_owned()
}

pub(super) fn status(status: u16) -> String {
    match status {
        0 => String::new(),
        1 => "other".to_owned(),
        _ => status.to_string(),
    }
}

pub(super) fn grpc_status(label: u8) -> String {
    match label {
        0 => String::new(),
        1..=17 => (label - 1).to_string(),
        _ => "other".to_owned(),
    }
}

#[expect(clippy::cast_precision_loss, reason = "the page shows floats")]
pub(super) fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests;
