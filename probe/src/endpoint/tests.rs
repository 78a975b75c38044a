//! Raw bytes in, raw bytes out: what mirrors of every age send, and what nobody should.

use std::time::Duration;

use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::JoinSet;

use super::*;

fn endpoint() -> Arc<Endpoint> {
    let settings = Settings { path: Some("/-/ambassador/ready".to_owned()), ..Settings::default() };
    Arc::new(Endpoint::new(Health::new(), settings))
}

/// Serves one end of a pipe in the background and gives the other.
fn open(endpoint: &Arc<Endpoint>, tasks: &mut JoinSet<()>) -> DuplexStream {
    let (ours, theirs) = duplex(16 * 1024);
    let endpoint = Arc::clone(endpoint);
    tasks.spawn(async move { endpoint.serve_connection(theirs, ([192, 0, 2, 1], 1).into()).await });
    ours
}

/// Sends `request`, says that no more follows, and reads to the end.
async fn exchange(endpoint: &Arc<Endpoint>, request: &[u8]) -> String {
    let mut tasks = JoinSet::new();
    let mut stream = open(endpoint, &mut tasks);
    stream.write_all(request).await.expect("written");
    stream.shutdown().await.expect("half closed");
    let mut response = Vec::new();
    stream.read_to_end(&mut response).await.expect("read");
    String::from_utf8(response).expect("text")
}

#[tokio::test]
async fn answers_every_way_of_asking() {
    let endpoint = endpoint();
    #[rustfmt::skip]
    let table: &[(&str, &str, &str)] = &[
        ("GET /health HTTP/1.1\r\nhost: x\r\n\r\n", "HTTP/1.1 200 OK", "\r\n\r\nhealthy\n"),
        ("GET //health HTTP/1.1\r\nhost: x\r\n\r\n", "HTTP/1.1 200 OK", "\r\n\r\nhealthy\n"),
        ("GET /ready HTTP/1.1\r\n\r\n", "HTTP/1.1 200 OK", "\r\n\r\nready\n"),
        ("GET //ready HTTP/1.1\r\n\r\n", "HTTP/1.1 200 OK", "\r\n\r\nready\n"),
        ("GET /-/ambassador/ready HTTP/1.1\r\n\r\n", "HTTP/1.1 200 OK", "\r\n\r\nhealthy\n"),
        ("GET //-/ambassador/ready HTTP/1.1\r\n\r\n", "HTTP/1.1 200 OK", "\r\n\r\nhealthy\n"),
        ("GET /health HTTP/1.0\r\n\r\n", "HTTP/1.0 200 OK", "\r\n\r\nhealthy\n"),
        ("GET /health?x=1 HTTP/1.1\r\nhost: probe-gateway-east:4181\r\n\r\n", "HTTP/1.1 200 OK", "\r\n\r\nhealthy\n"),
        ("GET http://gw.example:4181/health HTTP/1.1\r\nhost: other\r\n\r\n", "HTTP/1.1 200 OK", "\r\n\r\nhealthy\n"),
        ("HEAD /health HTTP/1.1\r\n\r\n", "HTTP/1.1 200 OK", "\r\n\r\n"),
        ("GET /health HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello", "HTTP/1.1 200 OK", "\r\n\r\nhealthy\n"),
        ("GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 404 Not Found", "\r\n\r\nnot found\n"),
        ("GET /healthz HTTP/1.1\r\n\r\n", "HTTP/1.1 404 Not Found", "\r\n\r\nnot found\n"),
        ("GET ///health HTTP/1.1\r\n\r\n", "HTTP/1.1 404 Not Found", "\r\n\r\nnot found\n"),
        ("POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n", "HTTP/1.1 404 Not Found", "\r\n\r\nnot found\n"),
        ("POST /health HTTP/1.1\r\ncontent-length: 0\r\n\r\n", "HTTP/1.1 405 Method Not Allowed", "\r\n\r\nmethod not allowed\n"),
        ("DELETE /ready HTTP/1.1\r\n\r\n", "HTTP/1.1 405 Method Not Allowed", "\r\n\r\nmethod not allowed\n"),
        ("HELO there\r\n\r\n", "HTTP/1.1 400 Bad Request", "\r\n\r\n"),
    ];
    for (request, status, end) in table {
        let response = exchange(&endpoint, request.as_bytes()).await;
        assert!(response.starts_with(status), "{request:?} was answered {response:?}");
        assert!(response.ends_with(end), "{request:?} was answered {response:?}");
        let refused = !response.starts_with("HTTP/1.1 200") && !response.starts_with("HTTP/1.0");
        assert_eq!(response.contains("connection: close\r\n"), refused, "{response:?}");
        assert_eq!(response.contains("allow: GET, HEAD\r\n"), status.contains("405"), "{response:?}");
    }
    let head = exchange(&endpoint, b"HEAD /health HTTP/1.1\r\n\r\n").await;
    assert!(head.contains("content-length: 8\r\n"), "{head:?}");
    let counts = endpoint.counts();
    assert_eq!((counts.healthy, counts.not_found, counts.method_not_allowed, counts.failed), (12, 4, 2, 1));
}

#[tokio::test]
async fn several_probes_on_one_connection() {
    let endpoint = endpoint();
    let both = exchange(&endpoint, &b"GET /health HTTP/1.1\r\n\r\n".repeat(2)).await;
    assert_eq!(both.matches("HTTP/1.1 200 OK").count(), 2);
}

#[tokio::test]
async fn says_why_not() {
    let endpoint = endpoint();
    let part = endpoint.health.part("identity", "no certificate");
    let response = exchange(&endpoint, b"GET /ready HTTP/1.1\r\n\r\n").await;
    assert!(response.starts_with("HTTP/1.1 503"), "{response:?}");
    assert!(response.ends_with("\r\n\r\nnot ready: identity: no certificate\n"), "{response:?}");
    part.ready();
    assert!(exchange(&endpoint, b"GET /ready HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 200"));
    endpoint.health.drain();
    let response = exchange(&endpoint, b"GET //health HTTP/1.0\r\n\r\n").await;
    assert!(response.starts_with("HTTP/1.0 503"), "{response:?}");
    assert!(response.ends_with("\r\n\r\nnot ready: draining\n"), "{response:?}");
    assert_eq!(endpoint.counts().not_ready, 2);
    part.not_ready("é".repeat(5000));
    let response = exchange(&endpoint, b"GET /ready HTTP/1.1\r\n\r\n").await;
    assert!(response.len() < 1024, "{}", response.len());
}

async fn h2(endpoint: &Arc<Endpoint>, request: Request<Empty<Bytes>>) -> (http::response::Parts, Bytes) {
    let mut tasks = JoinSet::new();
    let stream = open(endpoint, &mut tasks);
    let io = TokioIo::new(stream);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.expect("handshake");
    tasks.spawn(async move { drop(connection.await) });
    let (parts, body) = sender.send_request(request).await.expect("answered").into_parts();
    (parts, body.collect().await.expect("whole").to_bytes())
}

#[tokio::test]
async fn answers_http2_with_prior_knowledge() {
    let endpoint = endpoint();
    let request = |method: &str, proto: Option<&str>| {
        let builder = Request::builder().method(method).uri("http://gateway:4181/health");
        let builder = proto.into_iter().fold(builder, |builder, value| builder.header(ORIG_PROTO, value));
        builder.body(Empty::new()).expect("a request")
    };
    let (parts, body) = h2(&endpoint, request("GET", Some("HTTP/1.1"))).await;
    assert_eq!((parts.status, parts.version, &body[..]), (StatusCode::OK, Version::HTTP_2, &b"healthy\n"[..]));
    assert_eq!(parts.headers[ORIG_PROTO], "HTTP/1.1");
    let (parts, _) = h2(&endpoint, request("GET", None)).await;
    assert!(!parts.headers.contains_key(ORIG_PROTO));
    let (parts, body) = h2(&endpoint, request("HEAD", None)).await;
    assert_eq!((parts.status, body.len()), (StatusCode::OK, 0));
    assert_eq!(parts.headers[CONTENT_LENGTH], "8");
    endpoint.health.drain();
    let (parts, body) = h2(&endpoint, request("GET", Some("HTTP/1.1"))).await;
    assert_eq!((parts.status, &body[..]), (StatusCode::SERVICE_UNAVAILABLE, &b"not ready: draining\n"[..]));
    assert!(!parts.headers.contains_key(CONNECTION));
}

#[tokio::test(start_paused = true)]
async fn ends_whoever_does_not_ask() {
    let endpoint = endpoint();
    let trickle: &[&[u8]] = &[b"", b"P", b"GET /health HTTP/1.1\r\nhost: ", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"];
    for bytes in trickle {
        let mut tasks = JoinSet::new();
        let mut stream = open(&endpoint, &mut tasks);
        stream.write_all(bytes).await.expect("written");
        let mut rest = Vec::new();
        let before = tokio::time::Instant::now();
        let _ = stream.read_to_end(&mut rest).await;
        let took = before.elapsed();
        assert!((Duration::from_secs(10)..Duration::from_secs(12)).contains(&took), "{bytes:?} took {took:?}");
    }
    assert_eq!(endpoint.counts().timed_out, 4);
}

#[tokio::test(start_paused = true)]
async fn keeps_a_connection_between_probes_but_not_for_ever() {
    let endpoint = endpoint();
    let mut tasks = JoinSet::new();
    let mut stream = open(&endpoint, &mut tasks);
    let mut probes = 0;
    let started = tokio::time::Instant::now();
    let mut buffer = [0; 1024];
    while stream.write_all(b"GET /ready HTTP/1.1\r\n\r\n").await.is_ok() {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(_) => probes += 1,
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    assert!((10..=11).contains(&probes), "{probes}");
    assert!(started.elapsed() <= Duration::from_secs(660), "{:?}", started.elapsed());
}

#[tokio::test]
async fn closes_connections_over_the_limit() {
    let settings = Settings { max_connections: 1, ..Settings::default() };
    let endpoint = Arc::new(Endpoint::new(Health::new(), settings));
    let mut tasks = JoinSet::new();
    let first = open(&endpoint, &mut tasks);
    tokio::task::yield_now().await;
    let mut second = open(&endpoint, &mut tasks);
    assert_eq!(second.read(&mut [0; 8]).await.expect("closed"), 0);
    assert_eq!(endpoint.counts().over_limit, 1);
    drop(first);
}

#[tokio::test]
async fn pages_are_answered_ready_or_not_and_leave_the_probes_paths_alone() {
    let health = Health::new();
    let _part = health.part("identity", "no certificate yet");
    let page = |path, text: &'static str| Page { path, media_type: "application/json", read: Box::new(|| text.into()) };
    let endpoint = Endpoint::new(health, Settings::default())
        .with_page(page("/keys", "{}"))
        .with_page(page("/health", "always fine"));
    let endpoint = Arc::new(endpoint);
    let response = exchange(&endpoint, b"GET /keys HTTP/1.1\r\n\r\n").await;
    assert!(response.starts_with("HTTP/1.1 200") && response.ends_with("\r\n\r\n{}"), "{response}");
    assert!(response.contains("content-type: application/json\r\n"), "{response}");
    let response = exchange(&endpoint, b"HEAD /keys HTTP/1.1\r\n\r\n").await;
    assert!(response.contains("content-length: 2\r\n") && response.ends_with("\r\n\r\n"), "{response}");
    assert!(exchange(&endpoint, b"POST /keys HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 405"));
    assert!(exchange(&endpoint, b"GET /keys/ HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 404"));
    assert!(exchange(&endpoint, b"GET /health HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 503"));
    assert_eq!((endpoint.counts().healthy, endpoint.counts().method_not_allowed), (0, 0));
}
