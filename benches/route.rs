//! Finding a service among ten to ten thousand: the name read from an authority, and the directory asked for it.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use isthmus::addr::{Suffix, Target};
use isthmus::authorise::{self, Client, DefaultAction, Policy};
use isthmus::endpoint::{Endpoint, Endpoints};
use isthmus::identity::Identity;
use isthmus::route::{Claim, Directory, Published, Settings};

fn name(at: usize) -> String {
    format!("s{at}.prod.svc.cluster.local:80")
}

fn target(at: usize) -> Target {
    Target::parse(&name(at), 80).expect("a target")
}

fn services(criterion: &mut Criterion) {
    let open = authorise::Settings {
        default: DefaultAction::Authenticated,
        exported_only: false,
        ..authorise::Settings::default()
    };
    let policy = Policy::compile(&open, None, None).expect("valid");
    let client = Client { identity: Identity::parse("web.shop").expect("an identity"), network: [10, 0, 0, 1].into() };
    let mut group = criterion.benchmark_group("route");
    group.bench_function("authority", |bencher| {
        let text = name(5);
        bencher.iter(|| Target::parse(black_box(&text), 80).expect("a target"));
    });
    for size in [10, 100, 1000, 10_000] {
        let settings = Settings { suffixes: vec![Suffix::All], ..Settings::default() };
        let (directory, _demands) = Directory::new(settings);
        let endpoints = Arc::new(Endpoints { list: vec![Endpoint::new(([10, 0, 0, 1], 80).into())] });
        let table = (0..size)
            .map(|at| Published { target: target(at), exported: true, endpoints: Arc::clone(&endpoints) })
            .collect();
        directory.replace(Claim(0), table);
        let admitted = policy.connection(&client, target(size / 2), true).expect("admitted").target;
        group.bench_function(BenchmarkId::new("services", size), |bencher| {
            bencher.iter(|| directory.find(black_box(&admitted)).expect("a service"));
        });
    }
    group.finish();
}

criterion_group!(benches, services);
criterion_main!(benches);
