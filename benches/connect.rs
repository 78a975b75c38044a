//! A request through a pool that has its connections: what lies between a chosen endpoint and the bytes of its answer.
//!
//! Over loopback, one at a time, so the kernel's part is in it: compare the versions with each other, and with themselves.

use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use isthmus::connect::{self, Dial, Error, Pool, PoolSettings, Version};
use isthmus::endpoint::Endpoint;
use isthmus::record::Protocol;
use tokio::net::{TcpListener, TcpStream};

/// Plain TCP.
struct Plain;

impl Dial for Plain {
    type Stream = TcpStream;

    async fn dial(&self, endpoint: &Endpoint, _: Protocol) -> Result<TcpStream, Error> {
        let settings = connect::Settings { deny_loopback: false, ..connect::Settings::default() };
        connect::tcp(endpoint.addr, &settings).await
    }
}

/// A service on a thread of its own.
fn service() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    listener.set_nonblocking(true).expect("can wait");
    let addr = listener.local_addr().expect("an address");
    drop(std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let listener = TcpListener::from_std(listener).expect("listens");
            while let Ok((socket, _)) = listener.accept().await {
                let answer = |_| async { Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(&[7; 128])))) };
                drop(runtime.handle().spawn(async move {
                    let server = auto::Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection(TokioIo::new(socket), service_fn(answer)).await;
                }));
            }
        });
    }));
    addr
}

fn requests(criterion: &mut Criterion) {
    let endpoint = Endpoint::new(service());
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build_local(Default::default()).expect("a runtime");
    let pool: Pool<Empty<Bytes>> = Pool::new(Plain, PoolSettings::default());
    let mut group = criterion.benchmark_group("connect/pooled");
    for (name, version) in [("HTTP/1.1", Version::Http1), ("HTTP/2", Version::Http2)] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                runtime.block_on(async {
                    let uri = if version == Version::Http1 { "/item/1" } else { "http://web/item/1" };
                    let request = Request::get(uri).header("host", "web").body(Empty::new()).expect("a request");
                    let response = pool.send(&endpoint, request, version).await.expect("a response");
                    assert_eq!(response.into_body().collect().await.expect("a body").to_bytes().len(), 128);
                });
            });
        });
    }
    group.finish();
}

criterion_group!(benches, requests);
criterion_main!(benches);
