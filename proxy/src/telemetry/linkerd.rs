//! The families under the names and labels that dashboards for a Linkerd gateway read, beside our own.
//!
//! **In** the counters that the workers keep anyway. **Out** the same sums once more, in Linkerd's words, made when somebody
//! looks: a request costs nothing for it. What bounds our own labels bounds these too. (Linkerd wire document §8.3.)
//!
//! As with Linkerd's own gateway, what requests did is found under `direction="outbound"`, and under `direction="inbound"` the
//! connections of sources and what the policy said. Addresses of endpoints are no labels here: their number has no end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::encode::{Family, Labels, Values};
use super::histogram::Sum;
use super::labels::{Id, NONE, OTHER};
use super::shard::{Decided, Numbers, RequestKey, Shard};
use crate::addr::{Name, Target};
use crate::record::Stage;

/// All of them.
pub(super) fn families(shards: &[Arc<Shard>], numbers: &Numbers) -> Vec<Family> {
    let mut families = requests(shards, numbers);
    families.extend(connections(shards, numbers));
    families.extend(policy(shards));
    families.extend(errors(shards));
    families
}

/// Sums by labels.
#[derive(Debug, Default)]
struct Sums(BTreeMap<Labels, u64>);

impl Sums {
    fn add(&mut self, labels: Labels, count: u64) {
        *self.0.entry(labels).or_default() += count;
    }

    fn counter(self, name: &'static str, help: &'static str) -> Family {
        Family { name, help, values: Values::Counters(self.0.into_iter().collect()) }
    }
}

fn requests(shards: &[Arc<Shard>], numbers: &Numbers) -> Vec<Family> {
    let services = numbers.services.values();
    let towards = |id: Id| {
        let mut labels = side("outbound");
        match services.get(&id) {
            Some(target) => labels.extend(destination(target)),
            None => labels.push(("authority", if id == OTHER { "other" } else { "" }.to_owned())),
        }
        labels
    };
    let mut requests = Sums::default();
    let mut responses = Sums::default();
    let mut latency = BTreeMap::<Labels, Sum>::new();
    for shard in shards {
        for (key, count) in shard.requests.lock().iter() {
            let count = count.load(Ordering::Relaxed);
            let mut labels = towards(key.service);
            requests.add(labels.clone(), count);
            labels.extend(class(*key));
            responses.add(labels, count);
        }
        for (key, traffic) in shard.traffic.lock().iter() {
            latency.entry(towards(key.service)).or_default().add(&traffic.request_seconds);
        }
    }
    latency.retain(|_, sum| sum.count() > 0);
    vec![
        requests.counter("request", "Requests carried, as Linkerd's proxies count them."),
        responses.counter("response", "Responses, by status and whether they count as a success."),
        Family {
            name: "response_latency_ms",
            help: "Milliseconds from a request's head to the end of its response.",
            values: Values::MillisHistograms(latency.into_iter().collect()),
        },
    ]
}

fn connections(shards: &[Arc<Shard>], numbers: &Numbers) -> Vec<Family> {
    let services = numbers.services.values();
    let clients = numbers.clients.values();
    let source = |id: Id| {
        let mut labels = peer("inbound", "src");
        let client = clients.get(&id).map_or(if id == NONE { "" } else { "other" }, |identity| identity.as_str());
        labels.push(("client_id", client.to_owned()));
        labels
    };
    let mut opened = Sums::default();
    let mut closed = Sums::default();
    let mut read = Sums::default();
    let mut written = Sums::default();
    let mut open = 0;
    for shard in shards {
        opened.add(peer("inbound", "src"), shard.connections.load(Ordering::Relaxed));
        // One worker may open what another closes, so only the sum means anything.
        open += shard.open_connections.load(Ordering::Relaxed);
        let reached = shard.connects.lock().get("ok").map_or(0, |count| count.load(Ordering::Relaxed));
        opened.add(peer("outbound", "dst"), reached);
        for (key, count) in shard.ended.lock().iter() {
            closed.add(source(key.client), count.load(Ordering::Relaxed));
        }
        for (key, traffic) in shard.traffic.lock().iter() {
            let (received, sent) = (traffic.received.load(Ordering::Relaxed), traffic.sent.load(Ordering::Relaxed));
            read.add(source(key.client), received);
            written.add(source(key.client), sent);
            if let Some(target) = services.get(&key.service) {
                let labels: Labels = peer("outbound", "dst").into_iter().chain(destination(target)).collect();
                read.add(labels.clone(), sent);
                written.add(labels, received);
            }
        }
    }
    let open = super::metrics::float(u64::try_from(open).unwrap_or(0));
    vec![
        opened.counter("tcp_open", "Connections opened: by sources (src), and to endpoints (dst)."),
        Family {
            name: "tcp_open_connections",
            help: "Connections of sources open now.",
            values: Values::Gauges(vec![(peer("inbound", "src"), open)]),
        },
        closed.counter("tcp_close", "Connections of sources that have ended."),
        read.counter("tcp_read_bytes", "Payload bytes read from sources (src) and from endpoints (dst)."),
        written.counter("tcp_write_bytes", "Payload bytes written to sources (src) and to endpoints (dst)."),
    ]
}

fn policy(shards: &[Arc<Shard>]) -> Vec<Family> {
    let mut sums: [Sums; 4] = Default::default();
    for shard in shards {
        for (decided, count) in shard.decisions.lock().iter() {
            let Decided { rule, decision, request } = decided;
            // What is only audited was let through.
            let denied = *decision == "refused";
            let labels = [("authz_group", ""), ("authz_kind", "rule"), ("authz_name", &**rule), ("tls", "true")];
            let labels = labels.map(|(name, value)| (name, value.to_owned())).into();
            sums[usize::from(!request) * 2 + usize::from(denied)].add(labels, count.load(Ordering::Relaxed));
        }
    }
    let [http_allow, http_deny, tcp_allow, tcp_deny] = sums;
    vec![
        http_allow.counter("inbound_http_authz_allow", "Requests that a rule of the policy let through."),
        http_deny.counter("inbound_http_authz_deny", "Requests that a rule of the policy refused."),
        tcp_allow.counter("inbound_tcp_authz_allow", "Opaque connections that a rule of the policy let through."),
        tcp_deny.counter("inbound_tcp_authz_deny", "Opaque connections that a rule of the policy refused."),
    ]
}

fn errors(shards: &[Arc<Shard>]) -> Vec<Family> {
    let mut http = Sums::default();
    let mut tcp = Sums::default();
    for shard in shards {
        for ((stage, _, code), count) in shard.refusals.lock().iter() {
            let Some(error) = error(*stage, code) else { continue };
            let labels = vec![("error", error.to_owned())];
            let before_http = *stage < Stage::Authorise || *code == "route.suffix";
            let sums = if before_http { &mut tcp } else { &mut http };
            sums.add(labels, count.load(Ordering::Relaxed));
        }
    }
    vec![
        http.counter(
            "inbound_http_errors",
            "Requests and sessions that failed at the gateway, by Linkerd's words for it.",
        ),
        tcp.counter("inbound_tcp_errors", "Connections that failed before a session began, by Linkerd's words for it."),
    ]
}

/// Linkerd's word for a refusal. What the policy says is no error there, and counted apart.
fn error(stage: Stage, code: &str) -> Option<&'static str> {
    match code {
        "route.suffix" => return Some("gateway domain invalid"),
        "route.loop" => return Some("gateway loop"),
        "balance.queue_full" => return Some("loadshed"),
        "tls.timeout" => return Some("tls detection timeout"),
        _ => {}
    }
    match stage {
        Stage::Authorise => None,
        Stage::Balance => Some("failfast"),
        Stage::Accept | Stage::Connect => Some("i/o"),
        Stage::Detect | Stage::Relay | Stage::Route | Stage::Tls => Some("unexpected"),
    }
}

fn side(direction: &str) -> Labels {
    vec![("direction", direction.to_owned())]
}

fn peer(direction: &str, peer: &str) -> Labels {
    let mut labels = side(direction);
    labels.push(("peer", peer.to_owned()));
    if peer == "src" {
        labels.push(("tls", "true".to_owned())); // nobody else comes in
    }
    labels
}

/// The authority, and what a name of Kubernetes says of service and namespace.
fn destination(target: &Target) -> Labels {
    let mut labels = vec![("authority", target.to_string())];
    if let Some((service, namespace)) = kubernetes(&target.name) {
        labels.push(("dst_namespace", namespace.to_owned()));
        labels.push(("dst_service", service.to_owned()));
    }
    labels
}

/// Service and namespace of `SERVICE.NAMESPACE.svc.…`, and of a pod's name below it.
fn kubernetes(name: &Name) -> Option<(&str, &str)> {
    let labels: Vec<&str> = name.as_str().splitn(5, '.').collect();
    match labels[..] {
        [service, namespace, "svc", ..] | [_, service, namespace, "svc", ..] => Some((service, namespace)),
        _ => None,
    }
}

/// Status and success. A gRPC call fails by its own status, in the codes that are a server's failure; HTTP by 5xx.
fn class(key: RequestKey) -> Labels {
    let failed = match key.grpc_status {
        0 => key.status >= 500,
        label => FAILURES.contains(&(label - 1)),
    };
    vec![
        ("status_code", super::metrics::status(key.status)),
        ("classification", if failed { "failure" } else { "success" }.to_owned()),
        ("grpc_status", super::metrics::grpc_status(key.grpc_status)),
    ]
}

/// UNKNOWN, DEADLINE_EXCEEDED, PERMISSION_DENIED, INTERNAL, UNAVAILABLE, DATA_LOSS: what Linkerd classifies as failures.
const FAILURES: [u8; 6] = [2, 4, 7, 13, 14, 15];

#[cfg(test)]
mod tests {
    use super::super::metrics::{Metrics, Settings};
    use super::super::samples;
    use super::*;
    use crate::fault::Fault;
    use crate::record::{Event, Observer};

    const WEB: &str = "web.shop.serviceaccount.identity.linkerd.cluster.local";

    fn page(linkerd: bool) -> String {
        let metrics = Metrics::new(Settings { linkerd, ..Settings::default() });
        let front = metrics.front();
        front.event(Event::ConnectionOpened);
        front.event(Event::Connected { result: "ok", took: std::time::Duration::ZERO });
        for status in [200, 200, 404, 503] {
            front.closed(&samples::request(WEB, "api.prod.svc.cluster.local:8080", status));
        }
        let mut grpc = samples::request(WEB, "api.prod.svc.cluster.local:8080", 200);
        grpc.request.as_mut().expect("a request").grpc_status = Some(14);
        front.closed(&grpc);
        front.closed(&samples::refused(Stage::Authorise, Fault::Policy, "authorise.denied"));
        front.closed(&samples::refused(Stage::Route, Fault::Client, "route.loop"));
        front.closed(&samples::refused(Stage::Balance, Fault::Upstream, "balance.failfast"));
        metrics.render(false)
    }

    #[test]
    fn what_a_gateways_dashboard_asks_for() {
        let page = page(true);
        let api = "direction=\"outbound\",authority=\"api.prod.svc.cluster.local:8080\",dst_namespace=\"prod\",dst_service=\"api\"";
        for line in [
            format!("request_total{{{api}}} 5"),
            format!("response_total{{{api},status_code=\"200\",classification=\"success\",grpc_status=\"\"}} 2"),
            format!("response_total{{{api},status_code=\"404\",classification=\"success\",grpc_status=\"\"}} 1"),
            format!("response_total{{{api},status_code=\"503\",classification=\"failure\",grpc_status=\"\"}} 1"),
            format!("response_total{{{api},status_code=\"200\",classification=\"failure\",grpc_status=\"14\"}} 1"),
            format!("response_latency_ms_count{{{api}}} 5"),
            format!("response_latency_ms_sum{{{api}}} 35.0"),
            format!("response_latency_ms_bucket{{le=\"10.0\",{api}}} 5"),
            "tcp_open_total{direction=\"inbound\",peer=\"src\",tls=\"true\"} 1".to_owned(),
            "tcp_open_connections{direction=\"inbound\",peer=\"src\",tls=\"true\"} 1".to_owned(),
            "tcp_open_total{direction=\"outbound\",peer=\"dst\"} 1".to_owned(),
            format!(
                "tcp_write_bytes_total{{direction=\"inbound\",peer=\"src\",tls=\"true\",client_id=\"{WEB}\"}} 10000"
            ),
            "inbound_http_authz_allow_total{authz_group=\"\",authz_kind=\"rule\",authz_name=\"shop\",tls=\"true\"} 7"
                .to_owned(),
            "inbound_http_authz_deny_total{authz_group=\"\",authz_kind=\"rule\",authz_name=\"shop\",tls=\"true\"} 1"
                .to_owned(),
            "inbound_http_errors_total{error=\"gateway loop\"} 1".to_owned(),
            "inbound_http_errors_total{error=\"failfast\"} 1".to_owned(),
        ] {
            assert!(page.contains(&line), "{line} is not in\n{page}");
        }
    }

    #[test]
    fn where_it_is_off_there_is_nothing_of_it() {
        let page = page(false);
        let foreign: Vec<_> = page
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "))
            .filter(|line| !line.starts_with("isthmus_") && !line.starts_with("process_"))
            .collect();
        assert!(foreign.is_empty(), "{foreign:?}");
    }

    #[test]
    fn names_of_kubernetes() {
        for (name, want) in [
            ("web.ns.svc.cluster.local", Some(("web", "ns"))),
            ("web-0.web.ns.svc.cluster.local", Some(("web", "ns"))),
            ("web.example", None),
            ("a.b.c.d.svc.cluster.local", None),
        ] {
            assert_eq!(kubernetes(&name.parse().expect("a name")), want, "{name}");
        }
    }
}
