use std::cell::Cell;
use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;

use http::{Method, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::connect::{self, Error, tcp};
use crate::record::Protocol;

/// Hyper's tasks stay on the test's thread.
#[derive(Clone, Copy, Debug)]
struct LocalExec;

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExec {
    fn execute(&self, future: F) {
        drop(tokio::task::spawn_local(async move {
            future.await;
        }));
    }
}

type TestBody = UnsyncBoxBody<Bytes, std::io::Error>;

/// Dials plainly, counting, after an optional delay.
#[derive(Clone, Default)]
struct Plain {
    dials: Rc<Cell<usize>>,
    delay: Duration,
}

impl Dial for Plain {
    type Stream = TcpStream;

    async fn dial(&self, endpoint: &Endpoint, _: Protocol) -> Result<TcpStream, Error> {
        self.dials.set(self.dials.get() + 1);
        tokio::time::sleep(self.delay).await;
        tcp(endpoint.addr, &connect::Settings { deny_loopback: false, ..connect::Settings::default() }).await
    }
}

struct World {
    pool: Pool<TestBody>,
    dials: Rc<Cell<usize>>,
}

fn world(settings: PoolSettings) -> World {
    slow_world(settings, Duration::ZERO)
}

fn slow_world(settings: PoolSettings, delay: Duration) -> World {
    let dial = Plain { delay, ..Plain::default() };
    World { dials: Rc::clone(&dial.dials), pool: Pool::new(dial, settings) }
}

fn endpoint(addr: SocketAddr) -> Endpoint {
    Endpoint::new(addr)
}

fn empty() -> TestBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

fn get(path: &str) -> Request<TestBody> {
    Request::get(format!("http://web{path}")).header("host", "web").body(empty()).expect("a request")
}

async fn listen() -> (TcpListener, Endpoint) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addr = listener.local_addr().expect("an address");
    (listener, endpoint(addr))
}

/// Serves `/` with "hello", `/slow` never, `/echo` with the request's body, and counts connections.
async fn server(version: Version) -> (Endpoint, Rc<Cell<usize>>) {
    let (listener, endpoint) = listen().await;
    let connections = Rc::new(Cell::new(0));
    let counted = Rc::clone(&connections);
    tokio::task::spawn_local(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("accepts");
            counted.set(counted.get() + 1);
            tokio::task::spawn_local(async move {
                let io = TokioIo::new(stream);
                let service = service_fn(|request: Request<Incoming>| async move {
                    if request.uri().path() == "/slow" {
                        pending::<()>().await;
                    }
                    let body = match request.uri().path() {
                        "/echo" => request.into_body().boxed_unsync(),
                        "/none" => Empty::new().map_err(|never| match never {}).boxed_unsync(),
                        _ => Full::new(Bytes::from_static(b"hello")).map_err(|never| match never {}).boxed_unsync(),
                    };
                    Ok::<_, Infallible>(Response::new(body))
                });
                // Clients may close at any time.
                let _ = match version {
                    Version::Http1 => hyper::server::conn::http1::Builder::new().serve_connection(io, service).await,
                    Version::Http2 => {
                        let mut http2 = hyper::server::conn::http2::Builder::new(LocalExec);
                        http2.max_concurrent_streams(4).serve_connection(io, service).await
                    }
                };
            });
        }
    });
    (endpoint, connections)
}

async fn read(response: Response<Streamed<TestBody>>) -> Bytes {
    response.into_body().collect().await.expect("a body").to_bytes()
}

async fn fetch(world: &World, endpoint: &Endpoint, version: Version) -> Bytes {
    read(world.pool.send(endpoint, get("/"), version).await.expect("a response")).await
}

/// Lets hyper's tasks notice what has happened.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(50)).await;
}

#[tokio::test(flavor = "local")]
async fn http1_connections_are_used_again_at_once() {
    let (endpoint, connections) = server(Version::Http1).await;
    let world = world(PoolSettings::default());
    for path in ["/", "/none", "/", "/echo", "/"] {
        read(world.pool.send(&endpoint, get(path), Version::Http1).await.expect("a response")).await;
        assert_eq!(world.pool.stats().http1_idle, 1, "given back in the poll that ended the body of {path}");
    }
    assert_eq!((connections.get(), world.dials.get()), (1, 1));
}

#[tokio::test(flavor = "local")]
async fn http1_requests_side_by_side_have_connections_of_their_own() {
    let (endpoint, connections) = server(Version::Http1).await;
    let world = world(PoolSettings::default());
    let (one, two) = tokio::join!(fetch(&world, &endpoint, Version::Http1), fetch(&world, &endpoint, Version::Http1));
    assert_eq!((one.as_ref(), two.as_ref()), (&b"hello"[..], &b"hello"[..]));
    assert_eq!(connections.get(), 2);
    let stats = world.pool.stats();
    assert_eq!((stats.endpoints, stats.http1_connections, stats.http1_idle, stats.waiting), (1, 2, 2, 0));
}

#[tokio::test(flavor = "local")]
async fn http1_at_the_limit_requests_wait_for_a_connection() {
    let (endpoint, connections) = server(Version::Http1).await;
    let settings = PoolSettings { http1_connections: 1, waiters: 2, ..PoolSettings::default() };
    let world = world(settings);
    let held = world.pool.send(&endpoint, get("/"), Version::Http1).await.expect("a response");
    let full = async {
        settle().await;
        let error = world.pool.send(&endpoint, get("/"), Version::Http1).await.expect_err("the line is full");
        assert_eq!(error.code(), "connect.pool_full");
        assert!(error.request.is_some() && error.retry_is_safe());
        read(held).await
    };
    let (one, two, three) =
        tokio::join!(fetch(&world, &endpoint, Version::Http1), fetch(&world, &endpoint, Version::Http1), full);
    assert!([one, two, three].iter().all(|body| body == "hello"));
    assert_eq!(connections.get(), 1);
}

#[tokio::test(flavor = "local")]
async fn http1_waiting_has_an_end() {
    let (endpoint, _) = server(Version::Http1).await;
    let settings =
        PoolSettings { http1_connections: 1, wait_timeout: Duration::from_millis(20), ..PoolSettings::default() };
    let world = world(settings);
    let _held = world.pool.send(&endpoint, get("/"), Version::Http1).await.expect("a response");
    let error = world.pool.send(&endpoint, get("/"), Version::Http1).await.expect_err("in vain");
    assert_eq!(error.code(), "connect.pool_full");
}

#[tokio::test(flavor = "local")]
async fn a_body_dropped_early_closes_its_http1_connection() {
    let (endpoint, _) = server(Version::Http1).await;
    let world = world(PoolSettings::default());
    let response = world.pool.send(&endpoint, get("/"), Version::Http1).await.expect("a response");
    drop(response);
    settle().await;
    assert_eq!(world.pool.stats().http1_idle, 0);
    assert_eq!(fetch(&world, &endpoint, Version::Http1).await, "hello");
}

#[tokio::test(flavor = "local")]
async fn a_dropped_request_does_not_take_the_dial_with_it() {
    for version in [Version::Http1, Version::Http2] {
        let (endpoint, connections) = server(version).await;
        let world = slow_world(PoolSettings::default(), Duration::from_millis(30));
        let gone = world.pool.send(&endpoint, get("/"), version);
        assert!(tokio::time::timeout(Duration::from_millis(5), gone).await.is_err(), "still dialling");
        assert_eq!(fetch(&world, &endpoint, version).await, "hello");
        settle().await;
        assert!(connections.get() <= 2);
        let stats = world.pool.stats();
        assert_eq!(stats.waiting, 0);
        assert_eq!(stats.http2_streams, 0);
        assert_eq!(fetch(&world, &endpoint, version).await, "hello");
        assert!(connections.get() <= 2, "the connection of the one who left is used");
    }
}

#[tokio::test(flavor = "local")]
async fn refusals_reach_everybody_who_waits_with_the_request() {
    for version in [Version::Http1, Version::Http2] {
        let (listener, endpoint) = listen().await;
        drop(listener);
        let world = world(PoolSettings::default());
        let send = || world.pool.send(&endpoint, get("/"), version);
        for result in [tokio::join!(send(), send())].into_iter().flat_map(|(one, two)| [one, two]) {
            let error = result.expect_err("refused");
            assert_eq!((error.code(), error.retry_is_safe(), error.request.is_some()), ("connect.refused", true, true));
        }
        assert_eq!(world.pool.stats().waiting, 0);
    }
}

#[tokio::test(flavor = "local")]
async fn a_dial_that_takes_too_long_times_out() {
    let (endpoint, _) = server(Version::Http1).await;
    let settings = PoolSettings { dial_timeout: Duration::from_millis(10), ..PoolSettings::default() };
    let world = slow_world(settings, Duration::from_secs(10));
    let error = world.pool.send(&endpoint, get("/"), Version::Http1).await.expect_err("too slow");
    assert_eq!((error.code(), error.request.is_some()), ("connect.timeout", true));
}

#[tokio::test(flavor = "local")]
async fn idle_connections_that_the_endpoint_closed_are_passed_over() {
    let (listener, endpoint) = listen().await;
    tokio::task::spawn_local(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("accepts");
            let mut head = [0; 1024];
            let _ = stream.read(&mut head).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            // Closed without a word, as a server with a short keep-alive does.
        }
    });
    let world = world(PoolSettings::default());
    for _ in 0..5 {
        assert_eq!(fetch(&world, &endpoint, Version::Http1).await, "ok");
    }
    assert_eq!(world.dials.get(), 5);
}

#[tokio::test(flavor = "local")]
async fn a_connection_closed_under_a_request_is_no_safe_retry() {
    let (listener, endpoint) = listen().await;
    tokio::task::spawn_local(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("accepts");
            let mut head = [0; 1024];
            let _ = stream.read(&mut head).await;
        }
    });
    let world = world(PoolSettings::default());
    let error = world.pool.send(&endpoint, get("/"), Version::Http1).await.expect_err("closed");
    assert_eq!((error.code(), error.retry_is_safe()), ("connect.closed", false));
}

#[tokio::test(flavor = "local")]
async fn answers_that_are_not_http_or_too_large_are_refused() {
    let huge = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(20_000));
    for answer in ["SSH-2.0-OpenSSH_9.6\r\n".to_owned(), huge] {
        let (listener, endpoint) = listen().await;
        tokio::task::spawn_local(async move {
            let (mut stream, _) = listener.accept().await.expect("accepts");
            let mut head = [0; 1024];
            let _ = stream.read(&mut head).await;
            let _ = stream.write_all(answer.as_bytes()).await;
            pending::<()>().await;
        });
        let world = world(PoolSettings::default());
        let error = world.pool.send(&endpoint, get("/"), Version::Http1).await.expect_err("not valid");
        assert_eq!((error.code(), error.retry_is_safe()), ("connect.protocol", false));
    }
}

#[tokio::test(flavor = "local")]
async fn idle_and_forgotten_connections_are_closed() {
    for version in [Version::Http1, Version::Http2] {
        let (endpoint, connections) = server(version).await;
        let settings = PoolSettings {
            http1_idle_timeout: Duration::from_millis(500),
            http2_idle_timeout: Duration::from_millis(500),
            ..PoolSettings::default()
        };
        let world = world(settings);
        fetch(&world, &endpoint, version).await;
        tokio::time::sleep(TICK * 4).await;
        assert_eq!(world.pool.stats(), Stats::default(), "nothing is left of an idle endpoint");
        fetch(&world, &endpoint, version).await;
        assert_eq!(connections.get(), 2);

        let (here, gone) = (Endpoints { list: vec![endpoint.clone()] }, Endpoints::default());
        world.pool.forget(&here, &here);
        assert_eq!(world.pool.stats().endpoints, 1);
        world.pool.forget(&here, &gone);
        assert_eq!(world.pool.stats(), Stats::default());
        fetch(&world, &endpoint, version).await;
        assert_eq!(connections.get(), 3);
    }
}

#[tokio::test(flavor = "local")]
async fn requests_under_way_outlive_the_retirement_of_their_connection() {
    for version in [Version::Http1, Version::Http2] {
        let (endpoint, _) = server(version).await;
        let world = world(PoolSettings::default());
        let (sender, receiver) = tokio::sync::mpsc::channel::<std::io::Result<Frame<Bytes>>>(1);
        let receiver = Cell::new(Some(receiver));
        let stream = futures_util::stream::unfold(receiver.take().expect("just put"), |mut receiver| async move {
            receiver.recv().await.map(|frame| (frame, receiver))
        });
        let mut request = get("/echo");
        *request.method_mut() = Method::POST;
        let request = request.map(|_| StreamBody::new(stream).boxed_unsync());
        sender.send(Ok(Frame::data(Bytes::from_static(b"one ")))).await.expect("room");
        let response = world.pool.send(&endpoint, request, version).await.expect("a response");
        world.pool.renew();
        settle().await;
        sender.send(Ok(Frame::data(Bytes::from_static(b"two")))).await.expect("room");
        drop(sender);
        assert_eq!(read(response).await, "one two");
        assert_eq!(world.pool.stats(), Stats::default());
    }
}

#[tokio::test(flavor = "local")]
async fn upgrades_take_the_connection_out_of_the_pool() {
    let (listener, endpoint) = listen().await;
    tokio::task::spawn_local(async move {
        let (mut stream, _) = listener.accept().await.expect("accepts");
        let mut head = [0; 1024];
        let _ = stream.read(&mut head).await;
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
        stream.write_all(answer).await.expect("writes");
        let (mut reader, mut writer) = stream.split();
        let _ = tokio::io::copy(&mut reader, &mut writer).await;
    });
    let world = world(PoolSettings::default());
    let mut request = get("/");
    request.headers_mut().insert("connection", http::HeaderValue::from_static("upgrade"));
    request.headers_mut().insert("upgrade", http::HeaderValue::from_static("echo"));
    let mut response = world.pool.send(&endpoint, request, Version::Http1).await.expect("a response");
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let mut upgraded = TokioIo::new(hyper::upgrade::on(&mut response).await.expect("upgraded"));
    drop(response);
    assert_eq!(world.pool.stats().http1_idle, 0);
    upgraded.write_all(b"hello").await.expect("writes");
    let mut echo = [0; 5];
    upgraded.read_exact(&mut echo).await.expect("reads");
    assert_eq!(&echo, b"hello");
}

#[tokio::test(flavor = "local")]
async fn http2_streams_share_connections_up_to_the_endpoints_limit() {
    let (endpoint, connections) = server(Version::Http2).await;
    let world = world(PoolSettings { http2_connections: 3, ..PoolSettings::default() });
    for _ in 0..3 {
        fetch(&world, &endpoint, Version::Http2).await;
        settle().await;
    }
    assert_eq!(connections.get(), 1);
    // The server takes four at a time, and these hold theirs.
    let held: Vec<_> = (0..8)
        .map(|_| {
            let (pool, endpoint) = (world.pool.clone(), endpoint.clone());
            tokio::task::spawn_local(async move { pool.send(&endpoint, get("/slow"), Version::Http2).await.map(drop) })
        })
        .collect();
    settle().await;
    assert_eq!(world.pool.stats().http2_streams, 8);
    assert!((2..=3).contains(&connections.get()), "{}", connections.get());
    for task in held {
        task.abort();
    }
    settle().await;
    assert_eq!(world.pool.stats().http2_streams, 0, "cancelled streams make room");
    assert_eq!(fetch(&world, &endpoint, Version::Http2).await, "hello");
}

#[tokio::test(flavor = "local")]
async fn http2_requests_wait_for_a_stream_when_all_connections_are_full() {
    let (endpoint, connections) = server(Version::Http2).await;
    let world = world(PoolSettings { http2_connections: 1, http2_streams: 1, ..PoolSettings::default() });
    let held = world.pool.send(&endpoint, get("/"), Version::Http2).await.expect("a response");
    let (body, ()) = tokio::join!(fetch(&world, &endpoint, Version::Http2), async {
        settle().await;
        assert_eq!(world.pool.stats().waiting, 1);
        drop(held);
    });
    assert_eq!((body.as_ref(), connections.get()), (&b"hello"[..], 1));
}

#[tokio::test(flavor = "local")]
async fn an_old_http2_connection_is_replaced_without_a_wait() {
    let (endpoint, connections) = server(Version::Http2).await;
    let settings = PoolSettings { max_age: TICK, ..PoolSettings::default() };
    let world = slow_world(settings, Duration::from_millis(20));
    fetch(&world, &endpoint, Version::Http2).await;
    tokio::time::sleep(TICK * 2).await;
    fetch(&world, &endpoint, Version::Http2).await;
    assert_eq!(connections.get(), 1, "the old one serves while its successor is dialled");
    settle().await;
    assert_eq!((connections.get(), world.pool.stats().http2_connections), (2, 1));
}

/// An HTTP/2 server by hand: `act` is given every request.
async fn http2_server<F, A>(act: A) -> Endpoint
where
    A: Fn(usize, h2::server::SendResponse<Bytes>) -> F + 'static,
    F: Future<Output = ()> + 'static,
{
    let (listener, endpoint) = listen().await;
    tokio::task::spawn_local(async move {
        let act = Rc::new(act);
        let mut nth = 0;
        loop {
            let (stream, _) = listener.accept().await.expect("accepts");
            let mut connection = h2::server::handshake(stream).await.expect("a preface");
            while let Some(Ok((_, respond))) = connection.accept().await {
                nth += 1;
                tokio::task::spawn_local(act(nth, respond));
            }
        }
    });
    endpoint
}

fn ok(mut respond: h2::server::SendResponse<Bytes>) {
    respond.send_response(Response::new(()), true).expect("sends");
}

#[tokio::test(flavor = "local")]
async fn a_refused_stream_may_be_retried_and_a_reset_one_may_not() {
    for (reason, code, safe) in [
        (h2::Reason::REFUSED_STREAM, "connect.stream_refused", true),
        (h2::Reason::INTERNAL_ERROR, "connect.reset", false),
        (h2::Reason::CANCEL, "connect.reset", false),
    ] {
        let endpoint = http2_server(move |nth, mut respond| async move {
            if nth == 1 { respond.send_reset(reason) } else { ok(respond) }
        })
        .await;
        let world = world(PoolSettings::default());
        let error = world.pool.send(&endpoint, get("/"), Version::Http2).await.expect_err("reset");
        assert_eq!((error.code(), error.retry_is_safe()), (code, safe), "{reason}");
        assert!(world.pool.send(&endpoint, get("/"), Version::Http2).await.is_ok(), "the connection lives on");
        assert_eq!(world.dials.get(), 1);
    }
}

#[tokio::test(flavor = "local")]
async fn streams_above_the_last_of_a_goaway_may_be_retried_and_those_below_finish() {
    let (listener, endpoint) = listen().await;
    tokio::task::spawn_local(async move {
        for connection in 0.. {
            let (mut stream, _) = listener.accept().await.expect("accepts");
            tokio::task::spawn_local(async move {
                if connection > 0 {
                    let mut http2 = h2::server::handshake(stream).await.expect("a preface");
                    while let Some(Ok((_, respond))) = http2.accept().await {
                        ok(respond);
                    }
                    return;
                }
                // By hand: SETTINGS, then once both requests are there, GOAWAY with last stream 1, then the answer to 1.
                stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.expect("writes");
                let mut seen = Vec::new();
                while !has_stream(&seen, 3) {
                    stream.read_buf(&mut seen).await.expect("reads");
                }
                let goaway =
                    [0, 0, 8, 7, 0, 0, 0, 0, 0, /* last stream */ 0, 0, 0, 1, /* NO_ERROR */ 0, 0, 0, 0];
                stream.write_all(&goaway).await.expect("writes");
                tokio::time::sleep(Duration::from_millis(20)).await;
                let headers = [0, 0, 1, 1, 5, 0, 0, 0, 1, 0x88]; // END_STREAM, END_HEADERS, `:status: 200`
                stream.write_all(&headers).await.expect("writes");
                pending::<()>().await;
            });
        }
    });
    let world = world(PoolSettings::default());
    let send = || world.pool.send(&endpoint, get("/"), Version::Http2);
    // Which of the two becomes stream 1 is not ours to say.
    let (one, two) = tokio::join!(send(), send());
    let (below, above) = if one.is_ok() { (one, two) } else { (two, one) };
    assert_eq!(below.expect("finishes").status(), StatusCode::OK);
    let error = above.expect_err("not taken");
    assert_eq!((error.code(), error.retry_is_safe()), ("connect.stream_refused", true));
    assert!(send().await.is_ok(), "on a new connection");
    assert_eq!(world.dials.get(), 2);
}

/// Whether the bytes of a client's connection hold a HEADERS frame of stream `id`.
fn has_stream(bytes: &[u8], id: u8) -> bool {
    let mut rest = bytes.get(24..).unwrap_or_default(); // the preface
    while let [a, b, c, kind, _, _, _, _, stream, after @ ..] = rest {
        if *kind == 1 && *stream == id {
            return true;
        }
        let len = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        rest = after.get(len..).unwrap_or_default();
    }
    false
}

#[tokio::test(flavor = "local")]
async fn endpoints_that_differ_in_identity_share_no_connection() {
    let (endpoint, connections) = server(Version::Http1).await;
    let world = world(PoolSettings::default());
    fetch(&world, &endpoint, Version::Http1).await;
    let heavier = Endpoint { weight: 7, zone: Some("a".into()), ..endpoint.clone() };
    fetch(&world, &heavier, Version::Http1).await;
    assert_eq!(connections.get(), 1, "weight and zone make no difference");
    let tls = crate::endpoint::UpstreamTls {
        identity: crate::identity::Identity::parse("web.ns").expect("an identity"),
        server_name: "web.ns".parse().expect("a name"),
    };
    let other = Endpoint { tls: Some(Arc::new(tls)), ..endpoint };
    fetch(&world, &other, Version::Http1).await;
    assert_eq!(connections.get(), 2);
}

#[tokio::test(flavor = "local")]
async fn a_request_body_that_fails_is_the_clients_fault() {
    for version in [Version::Http1, Version::Http2] {
        let (endpoint, _) = server(version).await;
        let world = world(PoolSettings::default());
        let frames = vec![Ok(Frame::data(Bytes::from_static(b"x"))), Err(std::io::Error::other("gone"))];
        let body = StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync();
        let request = Request::post("http://web/slow").header("host", "web").body(body).expect("a request");
        let error = world.pool.send(&endpoint, request, version).await.expect_err("failed");
        assert_eq!((error.code(), error.fault()), ("connect.request_body", crate::fault::Fault::Client));
        assert!(!error.retry_is_safe());
    }
}

#[tokio::test(flavor = "local")]
async fn a_connection_handed_to_somebody_who_has_left_goes_to_the_next() {
    let (endpoint, connections) = server(Version::Http1).await;
    let world = world(PoolSettings { http1_connections: 1, ..PoolSettings::default() });
    fetch(&world, &endpoint, Version::Http1).await;
    let held = world.pool.send(&endpoint, get("/"), Version::Http1).await.expect("a response");
    {
        let mut leaving = std::pin::pin!(world.pool.send(&endpoint, get("/"), Version::Http1));
        assert!(tokio::time::timeout(Duration::from_millis(5), &mut leaving).await.is_err(), "waits");
        read(held).await; // hands the connection over, and then the one who waited leaves without having looked
    }
    assert_eq!(world.pool.stats().http1_idle, 1);
    fetch(&world, &endpoint, Version::Http1).await;
    assert_eq!(connections.get(), 1);
}
