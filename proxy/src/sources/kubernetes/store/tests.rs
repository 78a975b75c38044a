use serde_json::{Value, json};

use super::super::model::Texts;
use super::super::names::Names;
use super::super::selector;
use super::*;
use crate::addr::Target;

/// A store that is filled with objects as the API server writes them.
#[derive(Default)]
struct Cluster {
    store: Store,
    texts: Texts,
}

impl Cluster {
    fn service(mut self, name: &str, mut spec: Value) -> Self {
        let selector = selector::parse("exported=true").expect("a selector");
        let labels = spec.get_mut("labels").map(Value::take).unwrap_or_else(|| json!({}));
        let object = json!({ "metadata": { "name": name, "labels": labels }, "spec": spec });
        let object = serde_json::from_value(object).expect("a Service");
        let service = Service::read(&object, &selector, &mut self.texts);
        self.store.scope("").services.insert(format!("{name}.prod").into(), service);
        self
    }

    fn slice(mut self, name: &str, service: &str, ports: Value, endpoints: Value) -> Self {
        let object = json!({
            "metadata": { "name": name }, "addressType": "IPv4", "ports": ports, "endpoints": endpoints,
        });
        let slice = Slice::read(&serde_json::from_value(object).expect("a slice"), false, &mut self.texts);
        self.store.scope("").slices.put(&format!("{name}.prod"), format!("{service}.prod").into(), slice);
        self
    }

    fn found(&self, target: &str, zone: Option<&str>) -> Option<Found> {
        let target = Target::parse(target, 80).expect("a target");
        let names = Names::new(&"cluster.local".parse().expect("a name"));
        self.store.find(&names.read(&target.name)?, target.port, zone)
    }

    fn list(&self, target: &str, zone: Option<&str>) -> Vec<endpoint::Endpoint> {
        match self.found(target, zone).expect("a service").state {
            State::Known(endpoints) => endpoints.list.clone(),
            state => panic!("{state:?}"),
        }
    }

    /// Address and weight, in order.
    fn weights(&self, target: &str) -> Vec<(String, u32)> {
        let mut list: Vec<_> =
            self.list(target, None).iter().map(|endpoint| (endpoint.addr.to_string(), endpoint.weight)).collect();
        list.sort();
        list
    }

    fn refused(&self, target: &str) -> Error {
        match self.found(target, None).expect("a service").state {
            State::Refused(error) => error,
            state => panic!("{state:?}"),
        }
    }
}

const WEB: &str = "web.prod.svc.cluster.local";

fn at(address: &str) -> Value {
    json!({ "addresses": [address] })
}

fn rows(weights: &[(&str, u32)]) -> Vec<(String, u32)> {
    weights.iter().map(|(addr, weight)| ((*addr).to_owned(), *weight)).collect()
}

#[test]
fn ports_are_joined_by_name_and_slices_may_differ() {
    let cluster = Cluster::default()
        .service("web", json!({ "ports": [{ "name": "http", "port": 80 }, { "name": "grpc", "port": 81, "appProtocol": "kubernetes.io/h2c" }] }))
        .slice("web-1", "web", json!([{ "name": "http", "port": 8080 }, { "name": "grpc", "port": 9000 }]), json!([at("10.0.0.1")]))
        // A named target port that other pods give another number: a slice of its own.
        .slice("web-2", "web", json!([{ "name": "http", "port": 8888 }, { "name": "grpc", "port": 9000 }]), json!([at("10.0.0.2")]))
        .slice("other-1", "other", json!([{ "name": "http", "port": 1 }]), json!([at("10.0.0.9")]));
    assert_eq!(cluster.weights(WEB), rows(&[("10.0.0.1:8080", 100), ("10.0.0.2:8888", 100)]));
    let grpc = cluster.list(&format!("{WEB}:81"), None);
    assert_eq!(grpc.len(), 2);
    assert!(grpc.iter().all(|endpoint| endpoint.addr.port() == 9000 && endpoint.speaks == Speaks::Http2));
    assert_eq!(cluster.refused(&format!("{WEB}:8080")), Error::NoSuchPort, "the pods' port is not the service's");
    assert!(cluster.found("nobody.prod.svc.cluster.local", None).is_none());
}

#[test]
fn an_external_name_and_a_service_without_ports_are_refused() {
    let cluster = Cluster::default()
        .service("out", json!({ "type": "ExternalName", "externalName": "example.com", "ports": [{ "port": 80 }] }))
        .service("web", json!({ "ports": [] }))
        .slice("web-1", "web", json!([{ "port": 80 }]), json!([at("10.0.0.1")]));
    assert_eq!(cluster.refused("out.prod.svc.cluster.local"), Error::ExternalName);
    assert_eq!(cluster.refused(WEB), Error::NoSuchPort);
}

#[test]
fn draining_endpoints_take_load_only_where_nobody_else_can() {
    let draining =
        json!({ "addresses": ["10.0.0.2"], "conditions": { "ready": false, "serving": true, "terminating": true } });
    let down = json!({ "addresses": ["10.0.0.3"], "conditions": { "ready": false } });
    let cluster = |endpoints: Value| {
        Cluster::default().service("web", json!({ "ports": [{ "port": 80 }] })).slice(
            "web-1",
            "web",
            json!([{ "name": "", "port": 80 }]),
            endpoints,
        )
    };
    let with_ready = cluster(json!([at("10.0.0.1"), draining, down]));
    assert_eq!(with_ready.weights(WEB), rows(&[("10.0.0.1:80", 100), ("10.0.0.2:80", 0)]));
    let without = cluster(json!([draining, down]));
    assert_eq!(without.weights(WEB), rows(&[("10.0.0.2:80", 100)]));
    assert!(cluster(json!([down])).weights(WEB).is_empty());
}

#[test]
fn a_pod_of_two_families_is_one_endpoint() {
    let cluster = |families: Value, first: Value| {
        Cluster::default()
            .service("web", json!({ "ipFamilies": families, "ports": [{ "port": 80 }] }))
            .slice("web-4", "web", json!([{ "name": "", "port": 80 }]), first)
            .slice("web-6", "web", json!([{ "name": "", "port": 80 }]), json!([at("fd00::1")]))
    };
    let both = json!(["IPv4", "IPv6"]);
    assert_eq!(cluster(both.clone(), json!([at("10.0.0.1")])).weights(WEB), rows(&[("10.0.0.1:80", 100)]));
    let six = cluster(json!(["IPv6", "IPv4"]), json!([at("10.0.0.1")]));
    assert_eq!(six.weights(WEB), rows(&[("[fd00::1]:80", 100)]));
    assert_eq!(cluster(both, json!([])).weights(WEB), rows(&[("[fd00::1]:80", 100)]), "nobody has the first one's");
    let unsaid = cluster(json!([]), json!([at("10.0.0.1")]));
    assert_eq!(unsaid.weights(WEB).len(), 2);
}

#[test]
fn pods_of_a_headless_service_have_names_and_ports_of_their_own() {
    let pod = |address: &str, name: &str| json!({ "addresses": [address], "hostname": name });
    let cluster = Cluster::default()
        .service("web", json!({ "clusterIP": "None", "ports": [{ "name": "http", "port": 80 }] }))
        .slice(
            "web-1",
            "web",
            json!([{ "name": "http", "port": 8080 }]),
            json!([pod("10.0.0.1", "web-0"), pod("10.0.0.2", "Web-1")]),
        );
    assert_eq!(cluster.weights(WEB).len(), 2);
    assert_eq!(cluster.weights(&format!("web-0.{WEB}")), rows(&[("10.0.0.1:8080", 100)]));
    assert_eq!(cluster.weights(&format!("web-1.{WEB}")), rows(&[("10.0.0.2:8080", 100)]));
    assert!(cluster.weights(&format!("web-2.{WEB}")).is_empty(), "a pod that is not there, or not yet");
    assert_eq!(cluster.weights(&format!("web-0.{WEB}:8080")), rows(&[("10.0.0.1:8080", 100)]));
    assert_eq!(cluster.refused(&format!("web-0.{WEB}:8081")), Error::NoSuchPort);
}

#[test]
fn hints_count_when_all_have_them_and_some_are_ours() {
    let hinted = |address: &str, zone: &str, hints: &[&str]| {
        let hints: Vec<_> = hints.iter().map(|zone| json!({ "name": zone })).collect();
        json!({ "addresses": [address], "zone": zone, "hints": { "forZones": hints } })
    };
    let cluster = |second: Value| {
        Cluster::default().service("web", json!({ "ports": [{ "port": 80 }] })).slice(
            "web-1",
            "web",
            json!([{ "name": "", "port": 80 }]),
            json!([hinted("10.0.0.1", "b", &["b", "a"]), second]),
        )
    };
    let zones = |cluster: &Cluster, own: &str| -> Vec<_> {
        cluster.list(WEB, Some(own)).iter().map(|endpoint| endpoint.zone.as_deref().unwrap_or("-").to_owned()).collect()
    };
    let all = cluster(hinted("10.0.0.2", "a", &["c"]));
    assert_eq!(zones(&all, "a"), ["a", "c"], "the one in b is meant for us, the one here is not");
    assert_eq!(zones(&all, "d"), ["b", "a"], "nobody is meant for us: where they run");
    assert_eq!(zones(&cluster(hinted("10.0.0.2", "a", &[])), "a"), ["b", "a"], "not all are hinted");
}

#[test]
fn weights_come_from_slices_and_an_address_counts_once() {
    let cluster = Cluster::default()
        .service("web", json!({ "ports": [{ "port": 80 }] }))
        .slice("web-1", "web", json!([{ "name": "", "port": 80 }]), json!([at("10.0.0.1"), at("10.0.0.1")]))
        .slice("web-2", "web", json!([{ "name": "", "port": 80 }]), json!([at("10.0.0.1")]));
    assert_eq!(cluster.weights(WEB), rows(&[("10.0.0.1:80", 100)]));
}

#[test]
fn a_slice_can_move_to_another_service_and_go() {
    let mut cluster = Cluster::default()
        .service("web", json!({ "labels": { "exported": "true" }, "ports": [{ "port": 80 }] }))
        .service("new", json!({ "ports": [{ "port": 80 }] }))
        .slice("s.1", "web", json!([{ "name": "", "port": 80 }]), json!([at("10.0.0.1")]));
    assert!(cluster.found(WEB, None).is_some_and(|found| found.exported));
    let slices = &mut cluster.store.scope("").slices;
    let slice = slices.of("web.prod")[0].clone();
    assert_eq!(
        slices.put("s.1.prod", "web.prod".into(), slice.clone()),
        [None, None],
        "the same again changes nothing"
    );
    assert_eq!(slices.put("s.1.prod", "new.prod".into(), slice), [Some("web.prod".into()), Some("new.prod".into())]);
    assert!(cluster.weights(WEB).is_empty());
    assert_eq!(cluster.weights("new.prod.svc.cluster.local").len(), 1);
    assert_eq!(cluster.store.counts(), Counts { services: 2, exported: 1, slices: 1, endpoints: 1 });
    assert_eq!(cluster.store.scope("").slices.remove("s.1.prod"), Some("new.prod".into()));
    assert_eq!(cluster.store.scope("").slices.remove("s.1.prod"), None);
    assert_eq!(cluster.store.counts().endpoints, 0);
}
