//! What it costs to find out what a session is: by ALPN, by its first bytes, by a transport header.

use std::hint::black_box;
use std::io::Cursor;

use criterion::{Criterion, criterion_group, criterion_main};
use isthmus::detect::{Hint, Negotiated, Settings, session};
use isthmus::wire::transport_header::{Header, Protocol, encode};

fn sessions(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let header = Header {
        port: 8080,
        name: Some("web.prod.svc.cluster.local".parse().expect("a name")),
        protocol: Some(Protocol::Http2),
    };
    let cases = [
        ("alpn", Negotiated::H2, Vec::new()),
        ("preface of HTTP/2", Negotiated::None, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
        ("request line of HTTP/1", Negotiated::None, b"GET /item/1 HTTP/1.1\r\nhost: web\r\n\r\n".to_vec()),
        ("transport header", Negotiated::TransportHeader, encode(&header).to_vec()),
    ];
    let settings = Settings::default();
    let mut group = criterion.benchmark_group("detect");
    for (name, alpn, bytes) in cases {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let hint = Hint { alpn, sni: None, sni_is_own: true };
                let found = runtime.block_on(session(Cursor::new(bytes.clone()), hint, &settings));
                black_box(found.expect("a session").protocol)
            });
        });
    }
    group.finish();
}

criterion_group!(benches, sessions);
criterion_main!(benches);
