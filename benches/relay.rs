//! Bytes through the relay, by the size in which they come: small ones cost by their number, large ones by their length.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use isthmus::relay::{Counters, Settings, pump};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

/// What goes through in one turn, in bytes.
const TOTAL: usize = 1 << 20;

async fn one_way(size: usize) {
    let ((mut client, near), (far, mut service)) = (duplex(256 * 1024), duplex(256 * 1024));
    let (settings, counters) = (Settings::default(), Counters::default());
    let chunk = vec![7; size];
    let sending = async {
        for _ in 0..TOTAL / size {
            client.write_all(&chunk).await.expect("writes");
        }
        client.shutdown().await.expect("ends");
    };
    let receiving = async {
        let mut buffer = vec![0; 64 * 1024];
        while service.read(&mut buffer).await.expect("reads") > 0 {}
        service.shutdown().await.expect("ends");
    };
    let (ended, (), ()) = tokio::join!(pump(near, far, &settings, &counters), sending, receiving);
    assert_eq!(ended.received, TOTAL as u64);
}

fn bytes(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let mut group = criterion.benchmark_group("relay/one way");
    group.throughput(Throughput::Bytes(TOTAL as u64));
    for size in [128, 4096, 16_384, 65_536] {
        group.bench_function(BenchmarkId::new("bytes at once", size), |bencher| {
            bencher.iter(|| runtime.block_on(one_way(size)));
        });
    }
    group.finish();
}

criterion_group!(benches, bytes);
criterion_main!(benches);
