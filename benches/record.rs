//! What counting and logging a request costs, once its record is closed.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use criterion::{Criterion, criterion_group, criterion_main};
use isthmus::addr::Target;
use isthmus::identity::Identity;
use isthmus::record::{Observer, Outcome, Peer, Protocol, Record, Request};
use isthmus::telemetry::access_log::{AccessLog, Filter, Format, Settings};
use isthmus::telemetry::lines::Destination;
use isthmus::telemetry::metrics::{self, Metrics};

fn record() -> Record {
    let identity = Identity::parse("web.shop.serviceaccount.identity.linkerd.cluster.local").expect("an identity");
    let peer = Peer { addr: ([192, 0, 2, 7], 40123).into(), identity: Some(identity), cluster: None, sni: None };
    Record {
        duration: Duration::from_micros(700),
        protocol: Some(Protocol::Http2),
        target: Some(Target::parse("api.shop.svc.cluster.local", 80).expect("a target")),
        endpoint: Some(([10, 0, 0, 1], 8080).into()),
        rule: Some("shop".into()),
        bytes_sent: 128,
        stages: [Duration::from_micros(90); 8],
        request: Some(Box::new(Request {
            method: http::Method::GET,
            path: "/item/1".into(),
            status: Some(200),
            grpc_status: None,
            user_agent: Some(http::HeaderValue::from_static("bench/1")),
            traceparent: None,
            span: None,
            route: None,
            retries: 0,
        })),
        outcome: Outcome::Served,
        ..Record::connection(Arc::new(peer), SystemTime::now())
    }
}

fn records(criterion: &mut Criterion) {
    let record = record();
    let mut group = criterion.benchmark_group("record");
    let front = Metrics::new(metrics::Settings::default()).front();
    group.bench_function("metrics", |bencher| bencher.iter(|| front.closed(&record)));
    for (name, filter, format) in [
        ("access log, JSON", Filter::All, Format::Json),
        ("access log, text", Filter::All, Format::Text),
        ("access log, errors only", Filter::Errors, Format::Json),
    ] {
        let destination = Destination::File("/dev/null".into());
        let log = AccessLog::start(&Settings { filter, format, destination, ..Settings::default() }).expect("a log");
        group.bench_function(name, |bencher| bencher.iter(|| log.closed(&record)));
    }
    group.finish();
}

criterion_group!(benches, records);
criterion_main!(benches);
