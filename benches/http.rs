//! One request through the whole gateway, everything on: its worker's time, and what it allocates.
//!
//! `cargo bench -p isthmus-benches --bench http` is criterion's report; the time is what the worker's thread ran, not what
//! the clock on the wall says. `-- --count ROW REQUESTS` counts allocations and time once and prints one line, and is what
//! to run below callgrind.

use std::alloc::System;
use std::time::Duration;

use criterion::Criterion;
use isthmus_benches::sides::{self, ROLE, Row};
use isthmus_benches::world::{World, worker_time};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn main() {
    if let Ok(row) = std::env::var(ROLE) {
        return sides::run(&row);
    }
    let words: Vec<String> = std::env::args().collect();
    if let Some(at) = words.iter().position(|word| word == "--count") {
        let row = Row::ALL.into_iter().find(|row| row.name() == words[at + 1]).expect("a row");
        return count(row, words[at + 2].parse().expect("a number of requests"));
    }
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("http");
    group.sample_size(10).measurement_time(Duration::from_secs(5));
    for row in Row::ALL {
        let mut world = World::start(row);
        group.bench_function(row.name(), |bencher| {
            bencher.iter_custom(|requests| {
                let before = worker_time();
                world.requests(usize::try_from(requests).expect("fits"));
                worker_time() - before
            });
        });
    }
    group.finish();
    criterion.final_summary();
}

fn count(row: Row, requests: usize) {
    let mut world = World::start(row);
    world.requests((requests / 10).min(1000)); // connections, tables and buffers as they will be
    let (before, region) = (worker_time(), Region::new(ALLOCATOR));
    world.requests(requests);
    let (ran, change) = (worker_time() - before, region.change());
    let per = |count: usize| {
        f64::from(u32::try_from(count).expect("fits")) / f64::from(u32::try_from(requests).expect("fits"))
    };
    println!(
        "{}: {:.2} us, {:.1} allocations, {:.1} reallocations, {:.0} bytes a request",
        row.name(),
        ran.as_secs_f64() * 1e6 / f64::from(u32::try_from(requests).expect("fits")),
        per(change.allocations),
        per(change.reallocations),
        per(change.bytes_allocated / requests) * f64::from(u32::try_from(requests).expect("fits")),
    );
}
