//! What a large cluster costs: 10 000 services with 50 000 endpoints in 10 000 slices, from the API server to the
//! directory.
//!
//! The server is the tests' stand-in, in a process of its own, so that the memory that is measured is the gateway's alone.
//! Printed, as they are measured once: memory before, at its most and after the list; the time to the whole list; and the time
//! from a change at the server to its publication. Measured by criterion: what a target means, asked for the first time.

use std::hint::black_box;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, criterion_group};
use isthmus::addr::Target;
use isthmus::backoff::Backoff;
use isthmus::balance::Zone;
use isthmus::route::{Catalogue, Claim};
use isthmus::sources::Source;
use isthmus::sources::kubernetes::{Kubernetes, Settings};
use isthmus_tests::kubernetes::ApiServer;
use isthmus_tests::kubernetes::objects::{http, service_in, slice_of};
use serde_json::{Value, json};
use tokio::time::Instant;

const SERVICES: usize = 10_000;
const ENDPOINTS_EACH: usize = 5;
const NAMESPACES: usize = 100;

/// Set in the process that serves.
const SERVE: &str = "ISTHMUS_BENCH_SERVE";

fn namespace(at: usize) -> String {
    format!("namespace-{}", at % NAMESPACES)
}

fn slice(at: usize, moved: usize) -> Value {
    let endpoints: Vec<_> = (0..ENDPOINTS_EACH)
        .map(|number| {
            let n = at * ENDPOINTS_EACH + number + moved;
            json!({
                "addresses": [format!("10.{}.{}.{}", n >> 16 & 255, n >> 8 & 255, n & 255)],
                "conditions": { "ready": true, "serving": true, "terminating": false },
                "nodeName": format!("node-{}", n % 500), "zone": format!("zone-{}", n % 3),
                "targetRef": { "kind": "Pod", "name": format!("service-{at}-7d9f8c6b5-{number}"), "namespace": namespace(at),
                    "uid": "0b7a4f5e-1c1d-4f7e-9a59-0d0d0d0d0d0d" },
            })
        })
        .collect();
    slice_of(
        &namespace(at),
        &format!("service-{at}"),
        1,
        &json!([{ "name": "http", "port": 8080, "protocol": "TCP" }]),
        &json!(endpoints),
    )
}

/// Serves until standard input ends; each line moves the endpoints of one service.
async fn serve() {
    isthmus::tls::install();
    let api = ApiServer::start().await;
    for at in 0..SERVICES {
        api.apply(&service_in(&namespace(at), &format!("service-{at}"), &http(80)));
        api.apply(&slice(at, 0));
    }
    api.compact();
    println!("{}", api.kubeconfig().display());
    let (sender, mut lines) = tokio::sync::mpsc::unbounded_channel();
    let read = move || std::io::stdin().lines().map_while(Result::ok).for_each(|line| drop(sender.send(line)));
    drop(std::thread::spawn(read));
    while let Some(line) = lines.recv().await {
        let (at, moved) = line.split_once(' ').expect("two numbers");
        api.apply(&slice(at.parse().expect("a number"), moved.parse().expect("a number")));
    }
}

/// A field of `/proc/self/status`, in MiB.
fn memory(field: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("the field");
    let kib: f64 = line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().expect("a number");
    kib / 1024.0
}

fn settings(kubeconfig: &str) -> Settings {
    Settings {
        kubeconfig: Some(kubeconfig.into()),
        namespaces: Vec::new(),
        selector: "mirror.linkerd.io/exported=true".to_owned(),
        cluster_domain: "cluster.local".parse().expect("a name"),
        watch_timeout: Duration::from_secs(60),
        watch_interval: Duration::from_secs(1),
        answer_timeout: Duration::from_secs(30),
        backoff: Backoff { min: Duration::from_secs(1), max: Duration::from_secs(30), jitter: 0.3 },
        page_size: 500,
        allow_local: false,
        own: None,
    }
}

fn target(at: usize) -> Target {
    Target::parse(&format!("service-{at}.{}.svc.cluster.local", namespace(at)), 80).expect("a target")
}

fn large_cluster(criterion: &mut Criterion) {
    isthmus::tls::install();
    let exe = std::env::current_exe().expect("this program");
    let mut server = Command::new(exe)
        .env(SERVE, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the server starts");
    let mut kubeconfig = String::new();
    let mut out = BufReader::new(server.stdout.take().expect("its output"));
    out.read_line(&mut kubeconfig).expect("the way to it");
    let mut orders = server.stdin.take().expect("its input");

    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let before = memory("VmRSS");
    let (source, directory) = runtime.block_on(async {
        let started = Instant::now();
        let settings = settings(kubeconfig.trim());
        let handle = tokio::runtime::Handle::current();
        let source = Kubernetes::start(Claim(0), settings, Zone::default(), None, &handle).expect("it starts");
        let source = Arc::new(source);
        while source.exported(&target(0)) != Some(true) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        println!(
            "whole list: {:.0?} for {} services and {} endpoints",
            started.elapsed(),
            source.report().services,
            source.endpoints()
        );
        println!(
            "memory: {before:.1} MiB before, {:.1} MiB at the most, {:.1} MiB after",
            memory("VmHWM"),
            memory("VmRSS")
        );

        let settings = isthmus::route::Settings {
            suffixes: vec![".".parse().expect("all")],
            max_demanded: 2 * SERVICES,
            ..isthmus::route::Settings::default()
        };
        let (directory, mut demands) = isthmus::route::Directory::new(settings);
        directory.consult(Arc::clone(&source) as Arc<dyn Catalogue>);
        let offered = Arc::clone(&source);
        drop(handle.spawn(async move {
            while let Some(demand) = demands.recv().await {
                assert!(offered.offer(&demand.0), "it is known");
            }
        }));
        (source, directory)
    });
    // From the change at the server, over its watch, to the endpoints that a worker would read.
    let services: Vec<_> = (0..100).map(|at| runtime.block_on(demand(&directory, at * 97))).collect();
    let mut times: Vec<Duration> = Vec::new();
    for (round, (at, service)) in services.iter().enumerate() {
        let old = service.known().expect("known");
        let asked = Instant::now();
        writeln!(orders, "{at} {}", 100_000 + round * 100).expect("the server takes orders");
        while service.known().is_some_and(|now| Arc::ptr_eq(&now, &old)) {
            std::thread::yield_now();
        }
        times.push(asked.elapsed());
    }
    times.sort();
    println!("change to publication: median {:.0?}, p99 {:.0?}", times[times.len() / 2], times[times.len() - 1]);
    println!("memory after 100 changes: {:.1} MiB", memory("VmRSS"));

    criterion.bench_function("kubernetes/whether_a_service_is_exported", |bencher| {
        let targets: Vec<_> = (0..1000).map(target).collect();
        let mut at = 0;
        bencher.iter(|| {
            at = (at + 1) % targets.len();
            black_box(source.exported(black_box(&targets[at])))
        });
    });
    criterion.bench_function("kubernetes/a_service_that_is_asked_for_first", |bencher| {
        let mut at = 0;
        bencher.iter(|| {
            at = (at + 1) % SERVICES;
            let service = services[at % services.len()].1.clone();
            black_box(source.offer(&service))
        });
    });
    drop(orders);
    let _ = server.kill();
    let _ = server.wait();
}

async fn demand(directory: &isthmus::route::Directory, at: usize) -> (usize, Arc<isthmus::route::Service>) {
    let admitted = admitted(target(at));
    let (service, _) = directory.resolve(&admitted).await.expect("it is there");
    (at, service)
}

/// By a policy that allows everybody, as there is no other way to an admitted target.
fn admitted(target: Target) -> isthmus::authorise::Admitted<Target> {
    use isthmus::authorise::{Client, DefaultAction, Policy, Settings};
    let settings = Settings { default: DefaultAction::Authenticated, exported_only: false, ..Settings::default() };
    let policy = Policy::compile(&settings, None, None).expect("a policy");
    let identity = isthmus::identity::Identity::parse("bench.ns.serviceaccount.identity").expect("an identity");
    let client = Client { identity, network: [10, 0, 0, 1].into() };
    policy.connection(&client, target, true).expect("allowed").target
}

criterion_group!(benches, large_cluster);

fn main() {
    if std::env::var_os(SERVE).is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(serve());
        return;
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
}
