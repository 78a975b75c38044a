//! From events and records to lines of the page.

use std::time::{Duration, UNIX_EPOCH};

use isthmus_probe::endpoint::Endpoint;

use super::super::samples;
use super::super::watch::{Certificates, Root};
use super::*;
use crate::drain::Phase;
use crate::fault::Fault;
use crate::record::{Event, Observer, Outcome};

const WEB: &str = "web.shop.serviceaccount.identity.linkerd.cluster.local";

fn assert_lines(page: &str, lines: &[&str]) {
    for line in lines {
        assert!(page.lines().any(|l| l == *line), "{line}\nis not in\n{page}");
    }
}

#[test]
fn shards_add_up() {
    let metrics = Metrics::new(Settings::default());
    for worker in [metrics.front(), metrics.front()] {
        worker.event(Event::ConnectionOpened);
        worker.event(Event::RequestStarted);
        worker.event(Event::AcceptFailed("EMFILE"));
        worker.event(Event::Handshake { result: "ok", took: Duration::from_millis(2) });
        worker.event(Event::Handshake { result: "tls.untrusted", took: Duration::from_millis(2) });
        worker.event(Event::Connected { result: "ok", took: Duration::from_micros(80) });
        for event in [Event::Retried, Event::Ejected, Event::Panicked] {
            worker.event(event);
        }
        worker.closed(&samples::request(WEB, "cart.shop.svc.cluster.local:80", 200));
        worker.closed(&samples::refused(Stage::Authorise, Fault::Policy, "authorise.denied"));
    }
    metrics.front().event(Event::ConnectionClosed);
    assert_lines(
        &metrics.render(true),
        &[
            "isthmus_accept_connections_total{} 2",
            "isthmus_accept_open_connections{} 1.0",
            "isthmus_relay_open_requests{} 2.0",
            "isthmus_accept_errors_total{error=\"EMFILE\"} 2",
            "isthmus_tls_handshakes_total{result=\"ok\"} 2",
            "isthmus_tls_handshakes_total{result=\"tls.untrusted\"} 2",
            "isthmus_tls_handshake_seconds_count{} 4",
            "isthmus_connect_attempts_total{result=\"ok\"} 2",
            "isthmus_connect_seconds_bucket{le=\"0.0001\"} 2",
            "isthmus_relay_retries_total{} 2",
            "isthmus_balance_ejections_total{} 2",
            "isthmus_relay_panics_total{} 2",
            "isthmus_refusals_total{stage=\"authorise\",code=\"authorise.denied\",fault=\"policy\"} 2",
            "isthmus_relay_requests_total{service=\"cart.shop.svc.cluster.local:80\",client_cluster=\"\",client_namespace=\"shop\",\
             client=\"web\",protocol=\"http/2\",status=\"200\",grpc_status=\"\"} 2",
            "isthmus_relay_requests_total{service=\"other\",client_cluster=\"\",client_namespace=\"shop\",\
             client=\"web\",protocol=\"http/2\",status=\"403\",grpc_status=\"\"} 2",
            "isthmus_relay_bytes_total{direction=\"sent\",service=\"cart.shop.svc.cluster.local:80\"} 4000",
            "isthmus_relay_request_seconds_count{service=\"cart.shop.svc.cluster.local:80\",protocol=\"http/2\"} 2",
            "isthmus_stage_seconds_count{stage=\"authorise\"} 4",
            "isthmus_stage_seconds_count{stage=\"accept\"} 0",
            "# EOF",
        ],
    );
}

#[test]
fn connections_and_their_bytes() {
    let metrics = Metrics::new(Settings::default());
    let worker = metrics.front();
    let mut record = samples::request(WEB, "db.shop:5432", 200);
    record.request = None;
    worker.closed(&record); // of HTTP: its bytes are those of its requests
    record.protocol = Some(Protocol::Opaque);
    record.outcome = Outcome::Abandoned;
    worker.closed(&record);
    let page = metrics.render(false);
    assert_lines(
        &page,
        &[
            "isthmus_relay_connections_total{protocol=\"http/2\",service=\"db.shop:5432\",client_cluster=\"\",client_namespace=\"shop\",\
             client=\"web\",outcome=\"served\"} 1",
            "isthmus_relay_connections_total{protocol=\"opaque\",service=\"db.shop:5432\",client_cluster=\"\",client_namespace=\"shop\",\
             client=\"web\",outcome=\"abandoned\"} 1",
            "isthmus_relay_bytes_total{direction=\"received\",service=\"db.shop:5432\"} 10",
        ],
    );
    assert!(!page.contains("isthmus_relay_request_seconds_count"), "{page}");
}

#[test]
fn identities_with_equal_labels_make_one_series() {
    let metrics = Metrics::new(Settings::default());
    let worker = metrics.front();
    for identity in [WEB, "web.shop.serviceaccount.identity.west", "spiffe://west/ns/shop/sa/web"] {
        worker.closed(&samples::request(identity, "cart.shop:80", 200));
    }
    let page = metrics.render(true);
    let lines: Vec<_> = page.lines().filter(|line| line.starts_with("isthmus_relay_requests_total")).collect();
    assert!(lines.len() == 1 && lines[0].ends_with(" 3"), "{lines:?}");
}

#[test]
fn clusters_tell_clients_of_one_name_apart() {
    let metrics = Metrics::new(Settings::default());
    let worker = metrics.front();
    for cluster in ["west", "north", "west"] {
        let mut record = samples::request(WEB, "cart.shop:80", 200);
        let peer = crate::record::Peer::clone(&record.peer);
        record.peer = Arc::new(crate::record::Peer { cluster: Some(cluster.into()), ..peer });
        worker.closed(&record);
    }
    let page = metrics.render(true);
    assert!(page.contains("client_cluster=\"west\",client_namespace=\"shop\",client=\"web\""), "{page}");
    let count = |cluster: &str| {
        let label = format!("client_cluster=\"{cluster}\"");
        let mut lines = page.lines().filter(|l| l.starts_with("isthmus_relay_requests_total") && l.contains(&label));
        lines.next().and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
    };
    assert_eq!((count("west"), count("north")), (Some(2), Some(1)));
}

#[test]
fn label_sets_end() {
    let metrics = Metrics::new(Settings { max_services: 2, max_clients: 3, max_series: 4, linkerd: false });
    let worker = metrics.front();
    for n in 0..50 {
        for status in [200, 404, 503, 999] {
            worker.closed(&samples::request(&format!("c{n}.example"), &format!("s{n}.ns:80"), status));
        }
        worker.closed(&samples::refused(Stage::Route, Fault::Client, "route.unknown"));
        worker.event(Event::AcceptFailed(&format!("E{n}")));
    }
    for n in 0..100 {
        worker.event(Event::Handshake { result: &format!("r{n}"), took: Duration::ZERO });
    }
    let page = metrics.render(true);
    let count = |prefix: &str| page.lines().filter(|line| line.starts_with(prefix)).count();
    assert!(count("isthmus_relay_requests_total{") <= 4 + 5, "{page}");
    assert_eq!(count("isthmus_tls_handshakes_total{"), 65);
    assert!(!page.contains("secret.ns"), "a refused name is no label");
    let total: u64 = page
        .lines()
        .filter(|line| line.starts_with("isthmus_relay_requests_total{"))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum();
    assert_eq!(total, 250, "nothing is lost");
    assert!(page.contains("status=\"other\""), "{page}");
}

#[test]
fn grpc_statuses() {
    let table = [(None, ""), (Some(0), "0"), (Some(16), "16"), (Some(17), "other"), (Some(999), "other")];
    for (status, label) in table {
        assert_eq!(grpc_status(super::super::shard::grpc_label(status)), label, "{status:?}");
    }
}

#[test]
fn values_kept_elsewhere() {
    let metrics = Metrics::new(Settings::default());
    let (drain, watch) = crate::drain::channel();
    metrics.watch_drain(watch);
    metrics.watch_certificates(|| Certificates {
        leaf_expires: Some(UNIX_EPOCH + Duration::from_secs(1000)),
        roots: vec![Root {
            subject: "CN=\"root\"".to_owned(),
            fingerprint: "ab".to_owned(),
            expires: Some(UNIX_EPOCH + Duration::from_secs(2000)),
        }],
    });
    let health = isthmus_probe::health::Health::new();
    metrics.watch_probe(Arc::new(Endpoint::new(health, isthmus_probe::endpoint::Settings::default())));
    drain.advance(Phase::Draining);
    assert_lines(
        &metrics.render(false),
        &[
            "isthmus_drain_phase{} 2.0",
            "isthmus_tls_leaf_expiry_timestamp_seconds{} 1000.0",
            "isthmus_tls_root_expiry_timestamp_seconds{subject=\"CN=\\\"root\\\"\",fingerprint=\"ab\"} 2000.0",
            "# TYPE isthmus_probe_answers_total counter",
            "isthmus_probe_answers_total{result=\"healthy\"} 0.0",
        ],
    );
}

#[test]
fn every_family_says_what_it_is_once() {
    let metrics = Metrics::new(Settings::default());
    let page = metrics.render(false);
    let mut names: Vec<_> = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all);
    assert!(page.contains("isthmus_build_info{version="), "{page}");
    assert!(page.contains("# HELP isthmus_relay_bytes_total Payload"), "{page}");
}
