//! Choosing among two to a thousand endpoints, and telling how it went.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use isthmus::addr::Target;
use isthmus::balance::{Balancer, Settings};
use isthmus::endpoint::{Endpoint, Endpoints};

fn picks(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("balance/pick and answer");
    for size in [2_u16, 10, 100, 1000] {
        let list = (0..size).map(|at| Endpoint::new(([10, 0, 0, 1], 1000 + at).into())).collect();
        let endpoints = Arc::new(Endpoints { list });
        let target = Target::parse("web.prod.svc.cluster.local", 80).expect("a target");
        let balancer = Balancer::new(target, Settings::default(), Arc::default());
        group.bench_function(BenchmarkId::new("endpoints", size), |bencher| {
            bencher.iter(|| {
                let pick = balancer.pick(black_box(&endpoints), &[]).expect("an endpoint");
                pick.guard.first_byte();
                pick.guard.succeeded();
            });
        });
    }
    group.finish();
}

criterion_group!(benches, picks);
criterion_main!(benches);
