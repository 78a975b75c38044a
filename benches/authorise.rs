//! What a decision costs, and that it costs the same among ten rules and ten thousand.
//!
//! Three shapes of policy: each rule for another service; each rule for another client of one service; each rule for another
//! namespace by wildcard. Each is asked for what its middle rule allows, and for what none does. Beside them: a
//! path that has to be normalised, an explanation to compare with, and the limits on top.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use isthmus::addr::Target;
use isthmus::authorise::{
    Action, Client, HttpSettings, LimitSettings, Mode, Policy, RequestFacts, RuleSettings, Settings,
};
use isthmus::identity::Identity;

const SIZES: [usize; 4] = [10, 100, 1000, 10_000];

fn rule(at: usize, clients: String, services: String) -> RuleSettings {
    let paths = Some(vec!["/v1/*".to_owned(), "=/health".to_owned()]);
    RuleSettings {
        name: format!("rule-{at}"),
        clients: Some(vec![clients]),
        networks: None,
        services: Some(vec![services]),
        http: Some(HttpSettings { paths, methods: Some(vec!["GET".to_owned()]), ..HttpSettings::default() }),
        grpc: None,
        action: Action::Allow,
        limits: LimitSettings::default(),
        limits_per_client: LimitSettings { requests_per_second: Some(100_000_000), ..LimitSettings::default() },
        mode: Mode::Enforce,
    }
}

fn policy(size: usize, shape: fn(usize) -> (String, String)) -> Policy {
    let rules = (0..size)
        .map(|at| {
            let (clients, services) = shape(at);
            rule(at, clients, services)
        })
        .collect();
    Policy::compile(&Settings { rules, ..Settings::default() }, None, None).expect("the policy is valid")
}

fn per_service(at: usize) -> (String, String) {
    ("*.shop.serviceaccount.identity.linkerd.cluster.local".into(), format!("s{at}.prod.svc.cluster.local:80"))
}

fn per_client(at: usize) -> (String, String) {
    (format!("a{at}.shop.serviceaccount.identity.linkerd.cluster.local"), "s.prod.svc.cluster.local:80".into())
}

fn per_namespace(at: usize) -> (String, String) {
    (format!("*.n{at}.serviceaccount.identity.linkerd.cluster.local"), format!("*.n{at}.svc.cluster.local"))
}

fn client(account: &str, namespace: &str) -> Client {
    let identity = format!("{account}.{namespace}.serviceaccount.identity.linkerd.cluster.local");
    Client { identity: Identity::parse(&identity).expect("an identity"), network: [10, 0, 0, 1].into() }
}

fn target(name: &str, namespace: &str) -> Target {
    Target::parse(&format!("{name}.{namespace}.svc.cluster.local:80"), 80).expect("a target")
}

fn decisions(criterion: &mut Criterion) {
    let headers = http::HeaderMap::new();
    for size in SIZES {
        let middle = size / 2;
        let shapes = [
            ("per service", policy(size, per_service), client("web", "shop"), target(&format!("s{middle}"), "prod")),
            ("per client", policy(size, per_client), client(&format!("a{middle}"), "shop"), target("s", "prod")),
            (
                "per namespace",
                policy(size, per_namespace),
                client("web", &format!("n{middle}")),
                target("api", &format!("n{middle}")),
            ),
        ];
        for (shape, policy, client, target) in &shapes {
            let mut group = criterion.benchmark_group(format!("authorise/{shape}"));
            let mut ask = |what: &str, client: &Client, path: &str| {
                group.bench_with_input(BenchmarkId::new(what, size), path, |bench, path| {
                    let (method, host) = (&http::Method::GET, None);
                    let facts = RequestFacts { method, path, query: None, headers: &headers, host, grpc: false };
                    bench.iter(|| black_box(policy.request(client, target.clone(), true, &facts).is_ok()));
                });
            };
            ask("allowed", client, "/v1/items/42");
            ask("another path", client, "/v2/items/42");
            ask("another client", &self::client("mallory", "elsewhere"), "/v1/items/42");
            ask("a path to normalise", client, "/v1/./it%65ms//42;a=b");
        }
    }
}

fn limits(criterion: &mut Criterion) {
    let policy = policy(1000, per_service);
    let headers = http::HeaderMap::new();
    let facts = RequestFacts {
        method: &http::Method::GET,
        path: "/v1/a",
        query: None,
        headers: &headers,
        host: None,
        grpc: false,
    };
    let (client, target) = (client("web", "shop"), target("s7", "prod"));
    let admission = policy.request(&client, target, true, &facts).expect("admitted");
    let now = tokio::time::Instant::now();
    criterion.bench_function("authorise/limits", |bench| {
        bench.iter(|| black_box(policy.limits().admit_request(&client, &admission, now).is_ok()));
    });
}

criterion_group!(benches, decisions, limits);
criterion_main!(benches);
