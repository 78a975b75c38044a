//! Records to lines, and which records.

use std::sync::Arc;

use proptest::prelude::*;

use super::super::samples;
use super::*;
use crate::fault::Fault;
use crate::record::Peer;

const WEB: &str = "web.shop.serviceaccount.identity.west";

fn text(record: &Record, format: Format) -> String {
    String::from_utf8(line(record, format, false)).expect("text")
}

#[test]
fn a_request_as_json() {
    let record = samples::request(WEB, "cart.shop:80", 200);
    assert_eq!(
        text(&record, Format::Json),
        "{\"time\":\"2026-05-28T20:26:40.123456Z\",\"kind\":\"request\",\"outcome\":\"served\",\
         \"client_addr\":\"192.0.2.7:40123\",\"client_identity\":\"web.shop.serviceaccount.identity.west\",\
         \"client_namespace\":\"shop\",\"client_service_account\":\"web\",\"sni\":\"gateway.example\",\"protocol\":\"http/2\",\"target\":\"cart.shop:80\",\"endpoint\":\"10.0.0.1:8080\",\
         \"rule\":\"shop\",\"method\":\"GET\",\"path\":\"/cart\",\"status\":200,\"user_agent\":\"curl/8\",\
         \"bytes_received\":10,\"bytes_sent\":2000,\"duration_us\":7000,\"authorise_us\":3,\"relay_us\":7000}\n"
    );
}

#[test]
fn a_refused_connection_as_text() {
    let mut record = samples::refused(Stage::Tls, Fault::Client, "tls.untrusted");
    record.request = None;
    record.target = None;
    record.rule = Some("the rule".into());
    record.protocol = None;
    assert_eq!(
        text(&record, Format::Text),
        "time=2026-05-28T20:26:40.123456Z kind=connection outcome=refused stage=tls code=tls.untrusted fault=client \
         client_addr=192.0.2.7:40123 client_identity=web.shop.serviceaccount.identity.west client_namespace=shop client_service_account=web sni=gateway.example \
         rule=\"the rule\" bytes_received=10 bytes_sent=2000 duration_us=7000 authorise_us=3 relay_us=7000\n"
    );
}

#[test]
fn a_client_is_told_by_cluster_namespace_and_account() {
    let shown = |identity: &str, cluster: Option<&str>| {
        let mut record = samples::request(identity, "cart.shop:80", 200);
        record.peer = Arc::new(Peer { cluster: cluster.map(Into::into), ..Peer::clone(&record.peer) });
        let line: serde_json::Value = serde_json::from_str(&text(&record, Format::Json)).expect("JSON");
        ["client_cluster", "client_namespace", "client_service_account"]
            .map(|key| line[key].as_str().map(str::to_owned))
    };
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(shown(WEB, Some("west")), [some("west"), some("shop"), some("web")]);
    assert_eq!(shown("spiffe://west/ns/shop/sa/web", None), [None, some("shop"), some("web")]);
    assert_eq!(shown("spiffe://west/web", Some("west")), [some("west"), None, None]);
}

#[test]
fn a_query_shows_only_where_asked_for() {
    let record = samples::request(WEB, "cart.shop:80", 200);
    let shown = |query| String::from_utf8(line(&record, Format::Json, query)).expect("text").contains("token");
    assert!(!shown(false));
    assert!(shown(true));
}

#[test]
fn which_records_are_written() {
    let served = samples::request(WEB, "cart.shop:80", 200);
    let failed = samples::request(WEB, "cart.shop:80", 503);
    let refused = samples::refused(Stage::Route, Fault::Policy, "route.unknown");
    let mut grpc = samples::request(WEB, "cart.shop:80", 200);
    grpc.request.as_mut().expect("a request").grpc_status = Some(13);
    let dir = tempfile::tempdir().expect("a directory");
    let table = [
        (Filter::All, 1.0, [true, true, true, true]),
        (Filter::All, 0.0, [false, true, true, true]),
        (Filter::Errors, 1.0, [false, true, true, true]),
        (Filter::Off, 1.0, [false; 4]),
    ];
    for (filter, sample, expected) in table {
        let destination = Destination::File(dir.path().join("log"));
        let settings = Settings { filter, sample, destination, ..Settings::default() };
        let log = AccessLog::start(&settings).expect("starts");
        let wanted = [&served, &failed, &refused, &grpc].map(|record| log.wants(record));
        assert_eq!(wanted, expected, "{filter:?} {sample}");
    }
}

#[test]
fn a_record_arrives_in_the_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("log");
    let settings = Settings { destination: Destination::File(path.clone()), ..Settings::default() };
    let log = AccessLog::start(&settings).expect("starts");
    log.closed(&samples::request(WEB, "cart.shop:80", 200));
    log.event(Event::Panicked);
    assert!(log.flush(Duration::from_secs(20)));
    let written = std::fs::read_to_string(path).expect("readable");
    assert_eq!(written.lines().count(), 1);
    assert_eq!(log.counts().written, 1);
}

proptest! {
    #[test]
    fn strangers_cannot_forge_lines(path in any::<String>(), agent in prop::collection::vec(any::<u8>(), 0..64)) {
        let mut record = samples::request(WEB, "cart.shop:80", 200);
        record.peer = Arc::new(Peer { identity: None, sni: None, ..Peer::clone(&record.peer) });
        let request = record.request.as_mut().expect("a request");
        request.path = path.clone().into();
        request.user_agent = http::HeaderValue::from_bytes(&agent).ok();
        for format in [Format::Json, Format::Text] {
            let line = line(&record, format, true);
            prop_assert_eq!(line.iter().filter(|byte| !(b' '..=b'~').contains(*byte)).count(), 1, "only its newline");
            if format == Format::Json {
                let value: serde_json::Value = serde_json::from_slice(&line).expect("JSON");
                if path.len() <= 2048 {
                    prop_assert_eq!(value["path"].as_str(), Some(path.as_str()));
                }
                prop_assert!(value.get("client_identity").is_none());
            }
        }
    }
}
