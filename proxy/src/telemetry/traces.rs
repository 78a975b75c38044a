//! Spans to an OpenTelemetry collector: one for each recorded request, with an event at the end of each stage.
//!
//! **In** closed records that carry a sampled span. **Out** batches over OTLP/gRPC. **Refuses** to be in the way: the queue is
//! bounded, what finds no room is dropped and counted, and a collector that is away costs spans, never requests.
//! (OTLP 1.x; names by OpenTelemetry's semantic conventions for HTTP and RPC servers.)

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{
    Event as SpanEvent, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{SpanExporter as Exporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter, SpanLinks};
use tokio::sync::mpsc;

use crate::record::{Event, Observer, Outcome, Protocol, Record, Span, Stage};

/// Where spans go.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The collector, as `http://host:port`.
    pub endpoint: String,
    /// `service.name` of all spans.
    pub service_name: String,
    /// How long one batch may take.
    pub timeout: Duration,
    /// How many spans may wait.
    pub queue: usize,
}

/// What became of spans.
#[derive(Clone, Debug, Default)]
pub struct Counts(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    sent: AtomicU64,
    failed: AtomicU64,
    dropped: AtomicU64,
}

impl Counts {
    /// Sent, lost because the collector did not take them, lost because the queue was full.
    pub fn read(&self) -> [(&'static str, u64); 3] {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        [("sent", read(&self.0.sent)), ("failed", read(&self.0.failed)), ("dropped", read(&self.0.dropped))]
    }
}

/// The way of spans to the collector. Each worker has a clone.
#[derive(Clone, Debug)]
pub struct Traces {
    queue: mpsc::Sender<SpanData>,
    counts: Counts,
    scope: InstrumentationScope,
}

/// The most spans of one batch, as OpenTelemetry's SDKs have it.
const BATCH: usize = 512;

/// How long the first span of a batch waits for others. Short enough to watch a request live, long enough to fill a batch.
const LINGER: Duration = Duration::from_secs(1);

impl Traces {
    /// Starts sending, on the runtime it is called on. Fails where the endpoint is no address.
    pub fn start(settings: &Settings) -> Result<Self, String> {
        let mut exporter = Exporter::builder()
            .with_tonic()
            .with_endpoint(&settings.endpoint)
            .with_timeout(settings.timeout)
            .build()
            .map_err(|error| error.to_string())?;
        let resource = Resource::builder()
            .with_service_name(settings.service_name.clone())
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
        exporter.set_resource(&resource.build());
        let (queue, spans) = mpsc::channel(settings.queue.max(1));
        let counts = Counts::default();
        drop(tokio::runtime::Handle::current().spawn(send(exporter, spans, counts.clone())));
        Ok(Self { queue, counts, scope: InstrumentationScope::builder("isthmus").build() })
    }

    /// What becomes of spans.
    pub fn counts(&self) -> Counts {
        self.counts.clone()
    }
}

/// Sends until all senders are gone and the queue is empty.
async fn send(exporter: Exporter, mut spans: mpsc::Receiver<SpanData>, counts: Counts) {
    let mut failing = false;
    let mut batch = Vec::new();
    while spans.recv_many(&mut batch, BATCH).await > 0 {
        let full = tokio::time::sleep(LINGER);
        tokio::pin!(full);
        while batch.len() < BATCH {
            let room = BATCH - batch.len();
            tokio::select! {
                more = spans.recv_many(&mut batch, room) => if more == 0 { break },
                () = &mut full => break,
            }
        }
        let sent = u64::try_from(batch.len()).unwrap_or(u64::MAX);
        match exporter.export(std::mem::take(&mut batch)).await {
            Ok(()) => {
                counts.0.sent.fetch_add(sent, Ordering::Relaxed);
                failing = false;
            }
            Err(error) => {
                counts.0.failed.fetch_add(sent, Ordering::Relaxed);
                // Once per outage: the count says the rest.
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, spans = sent, "the collector of traces does not take spans");
                }
            }
        }
    }
}

impl Observer for Traces {
    fn event(&self, _: Event<'_>) {}

    fn closed(&self, record: &Record) {
        let Some(span) = record.request.as_ref().and_then(|request| request.span).filter(|span| span.sampled) else {
            return;
        };
        if self.queue.try_send(data(record, &span, self.scope.clone())).is_err() {
            self.counts.0.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The span of a record.
fn data(record: &Record, span: &Span, scope: InstrumentationScope) -> SpanData {
    let flags = if span.sampled { TraceFlags::SAMPLED } else { TraceFlags::NOT_SAMPLED };
    let (trace, id) = (TraceId::from_bytes(span.trace), SpanId::from_bytes(span.span));
    let method = record.request.as_ref().map_or("", |request| request.method.as_str());
    SpanData {
        span_context: SpanContext::new(trace, id, flags, false, TraceState::NONE),
        parent_span_id: span.parent.map_or(SpanId::INVALID, SpanId::from_bytes),
        parent_span_is_remote: span.parent.is_some(),
        span_kind: SpanKind::Server,
        name: method.to_owned().into(),
        start_time: record.started,
        end_time: record.started + record.duration,
        attributes: attributes(record),
        dropped_attributes_count: 0,
        events: events(record),
        links: SpanLinks::default(),
        status: status(record),
        instrumentation_scope: scope,
    }
}

fn attributes(record: &Record) -> Vec<KeyValue> {
    let mut all = vec![
        KeyValue::new("network.peer.address", record.peer.addr.ip().to_string()),
        KeyValue::new("network.peer.port", i64::from(record.peer.addr.port())),
        KeyValue::new("network.protocol.name", "http"),
        KeyValue::new("network.protocol.version", if record.protocol == Some(Protocol::Http2) { "2" } else { "1.1" }),
    ];
    let mut say = |name: &'static str, value: Option<String>| all.extend(value.map(|value| KeyValue::new(name, value)));
    say("isthmus.client", record.peer.identity.as_ref().map(|identity| identity.as_str().to_owned()));
    say("isthmus.client_cluster", record.peer.cluster.as_deref().map(str::to_owned));
    say("isthmus.endpoint", record.endpoint.map(|endpoint| endpoint.to_string()));
    say("isthmus.rule", record.rule.as_deref().map(str::to_owned));
    say("server.address", record.target.as_ref().map(|target| target.name.to_string()));
    if let Outcome::Refused { code, .. } = record.outcome {
        say("error.type", Some(code.to_owned()));
    }
    if let Some(request) = &record.request {
        // Queries hold secrets; paths are what rules are about.
        say("url.path", Some(request.path.split('?').next().unwrap_or_default().to_owned()));
        say("http.request.method", Some(request.method.to_string()));
        let agent = request.user_agent.as_ref().and_then(|agent| agent.to_str().ok());
        say("user_agent.original", agent.map(str::to_owned));
        let mut number = |name: &'static str, value: Option<u32>| {
            all.extend(value.map(|value| KeyValue::new(name, i64::from(value))));
        };
        number("http.response.status_code", request.status.map(u32::from));
        number("rpc.grpc.status_code", request.grpc_status.map(u32::from));
        number("http.request.resend_count", (request.retries > 0).then_some(request.retries));
    }
    if let Some(target) = &record.target {
        all.push(KeyValue::new("server.port", i64::from(target.port)));
    }
    all
}

/// The stages that took time, each at the moment when it ended.
fn events(record: &Record) -> SpanEvents {
    let mut at = Duration::ZERO;
    let mut events = SpanEvents::default();
    for (stage, took) in Stage::ALL.iter().zip(record.stages).filter(|(_, took)| !took.is_zero()) {
        at += took;
        let micros = i64::try_from(took.as_micros()).unwrap_or(i64::MAX);
        let ended: SystemTime = record.started + at;
        events.events.push(SpanEvent::new(stage.as_str(), ended, vec![KeyValue::new("took_us", micros)], 0));
    }
    events
}

/// A server's span is in error when it failed, not when the client was wrong (semantic conventions for HTTP spans).
fn status(record: &Record) -> Status {
    let answered = record.request.as_ref().and_then(|request| request.status);
    match record.outcome {
        Outcome::Refused { code, .. } if answered.is_none_or(|status| status >= 500) => Status::error(code),
        _ if answered.is_some_and(|status| status >= 500) => Status::error("the endpoint failed"),
        _ => Status::Unset,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Fault;
    use crate::telemetry::samples;

    const SPAN: Span = Span { trace: [7; 16], span: [8; 8], parent: Some([9; 8]), sampled: true };

    fn traced(mut record: Record, span: Span) -> Record {
        record.request.as_mut().expect("a request").span = Some(span);
        record
    }

    #[test]
    fn a_request_becomes_a_span_with_its_stages() {
        let record = traced(samples::request("web.shop.serviceaccount.identity.west", "cart.ns", 200), SPAN);
        let data = data(&record, &SPAN, InstrumentationScope::default());
        assert_eq!(data.span_context.trace_id(), TraceId::from_bytes([7; 16]));
        assert_eq!((data.parent_span_id, data.parent_span_is_remote), (SpanId::from_bytes([9; 8]), true));
        assert_eq!(data.events.iter().map(|event| event.name.as_ref()).collect::<Vec<_>>(), ["authorise", "relay"]);
        let said = |name: &str| data.attributes.iter().find(|a| a.key.as_str() == name).map(|a| a.value.to_string());
        assert_eq!(said("url.path").as_deref(), Some("/cart"), "without the query");
        assert_eq!(said("http.response.status_code").as_deref(), Some("200"));
        assert_eq!(said("server.address").as_deref(), Some("cart.ns"));
        assert_eq!(data.status, Status::Unset);
        let refused = samples::refused(Stage::Relay, Fault::Upstream, "relay.upstream_reset");
        assert_eq!(status(&refused), Status::Unset, "403 is the client's");
    }

    #[tokio::test]
    async fn what_finds_no_room_is_dropped_and_counted() {
        let settings = Settings {
            endpoint: "http://127.0.0.1:9".to_owned(), // discard: nobody listens
            service_name: "isthmus".to_owned(),
            timeout: Duration::from_secs(1),
            queue: 2,
        };
        let traces = Traces::start(&settings).expect("an address");
        let record = traced(samples::request("a.b", "web.ns", 200), SPAN);
        for _ in 0..5 {
            traces.closed(&record);
        }
        traces.closed(&traced(record, Span { sampled: false, ..SPAN }));
        assert_eq!(traces.counts().read(), [("sent", 0), ("failed", 0), ("dropped", 3)]);
        assert!(Traces::start(&Settings { endpoint: "no address".to_owned(), ..settings }).is_err());
    }
}
