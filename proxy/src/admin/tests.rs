//! Through the socket: bytes in, bytes out.

use std::sync::Mutex;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

fn sources() -> Sources {
    let filter = Arc::new(Mutex::new("info".to_owned()));
    let read = Arc::clone(&filter);
    Sources {
        explain: Arc::new(|call, exported| {
            call.check().map_err(|error| error.to_string())?;
            Ok(json!({ "call": call, "exported": exported }))
        }),
        sightings: Arc::new(|| json!({ "observations": [], "beyond": 0 })),
        ready: Health::new(),
        metrics: Arc::new(|openmetrics| if openmetrics { "open\n".to_owned() } else { "classic\n".to_owned() }),
        state: Arc::new(|| json!({ "connections": 3 })),
        overview: Arc::new(|| json!({ "ready": true })),
        config: json!({ "listen": "x", "token": "hunter2" }),
        keys: Some(Arc::new(|| "{\"keys\":[]}\n".to_owned())),
        log: LogLevel {
            read: Arc::new(move || read.lock().expect("a lock").clone()),
            set: Arc::new(move |text| {
                if text.contains('!') {
                    return Err("no filter".to_owned());
                }
                text.clone_into(&mut filter.lock().expect("a lock"));
                Ok(())
            }),
        },
    }
}

/// A server in the background; it ends with the set.
async fn start(sources: Sources, settings: Settings) -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let addr = listener.local_addr().expect("an address");
    let mut tasks = JoinSet::new();
    tasks.spawn(serve(Arc::new(listener), sources, settings));
    (addr, tasks)
}

async fn exchange(addr: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.expect("connected");
    stream.write_all(request.as_bytes()).await.expect("written");
    stream.shutdown().await.expect("half closed");
    let mut response = Vec::new();
    let _ = stream.read_to_end(&mut response).await;
    String::from_utf8(response).expect("text")
}

#[tokio::test]
async fn every_page() {
    let (addr, _tasks) = start(sources(), Settings::default()).await;
    let long = format!("PUT /log-level HTTP/1.1\r\ncontent-length: 5000\r\n\r\n{}", "x".repeat(5000));
    let table = [
        ("GET /live HTTP/1.0\r\n\r\n", "200", "live\n"),
        ("GET /ready HTTP/1.1\r\n\r\n", "200", "ready\n"),
        ("HEAD /ready HTTP/1.1\r\n\r\n", "200", "\r\n\r\n"),
        ("POST /ready HTTP/1.1\r\n\r\n", "405", "method not allowed\n"),
        ("GET /metrics HTTP/1.1\r\n\r\n", "200", "classic\n"),
        ("GET /metrics HTTP/1.1\r\naccept: application/openmetrics-text\r\n\r\n", "200", "open\n"),
        ("HEAD /metrics HTTP/1.1\r\n\r\n", "200", "\r\n\r\n"),
        ("DELETE /metrics HTTP/1.1\r\n\r\n", "405", "method not allowed\n"),
        ("GET /state HTTP/1.1\r\n\r\n", "200", "{\n  \"connections\": 3\n}\n"),
        ("GET /config HTTP/1.1\r\n\r\n", "200", "{\n  \"listen\": \"x\",\n  \"token\": \"***\"\n}\n"),
        ("GET /config?format=yaml HTTP/1.1\r\n\r\n", "200", "listen: x\ntoken: \"***\"\n"),
        ("GET /.well-known/jwks.json HTTP/1.1\r\n\r\n", "200", "\r\n\r\n{\"keys\":[]}\n"),
        ("POST /.well-known/jwks.json HTTP/1.1\r\n\r\n", "405", "method not allowed\n"),
        ("GET /log-level HTTP/1.1\r\n\r\n", "200", "\r\n\r\ninfo\n"),
        ("PUT /log-level HTTP/1.1\r\ncontent-length: 5\r\n\r\ndebug", "200", "\r\n\r\ndebug\n"),
        ("GET /log-level HTTP/1.1\r\n\r\n", "200", "\r\n\r\ndebug\n"),
        ("PUT /log-level HTTP/1.1\r\ncontent-length: 1\r\n\r\n!", "400", "no filter\n"),
        ("PUT /log-level HTTP/1.1\r\ncontent-length: 0\r\n\r\n", "400", "such as isthmus=debug,info\n"),
        ("PUT /log-level HTTP/1.1\r\ncontent-length: 1\r\n\r\n", "", ""),
        ("PUT /log-level HTTP/1.1\r\norigin: http://x\r\ncontent-length: 1\r\n\r\nx", "403", "not from a browser\n"),
        (&long, "413", "the body is too long or broke off\n"),
        ("POST /log-level HTTP/1.1\r\n\r\n", "405", "method not allowed\n"),
        ("GET / HTTP/1.1\r\n\r\n", "200", "isthmus=debug,info to change it\n"),
        ("GET /sightings HTTP/1.1\r\n\r\n", "200", "{\n  \"beyond\": 0,\n  \"observations\": []\n}\n"),
        ("POST /sightings HTTP/1.1\r\n\r\n", "405", "method not allowed\n"),
        ("GET /explain HTTP/1.1\r\n\r\n", "400", "client is missing\n"),
        ("GET /explain?client=a.b&service=c:80 HTTP/1.1\r\n\r\n", "200", "\"exported\": null\n}\n"),
        ("GET /explain?client=a.b&service=c HTTP/1.1\r\n\r\n", "400", "service \"c\" is no name:port\n"),
        ("GET /nothing HTTP/1.1\r\n\r\n", "404", "not found\n"),
        ("PUT /nothing HTTP/1.1\r\n\r\n", "404", "not found\n"),
        ("nonsense\r\n\r\n", "400", ""),
    ];
    for (request, status, end) in table {
        let response = exchange(addr, request).await;
        let got = response.split(' ').nth(1).unwrap_or_default();
        assert!(status.is_empty() || got == status, "{request:?} was answered {response:?}");
        assert!(response.ends_with(end), "{request:?} was answered {response:?}");
        assert_eq!(response.contains("allow: "), status == "405", "{response:?}");
    }
}

#[tokio::test]
async fn readiness_with_its_reasons() {
    let sources = sources();
    let health = Arc::clone(&sources.ready);
    let (addr, _tasks) = start(sources, Settings::default()).await;
    let part = health.part("identity", "no certificate");
    let response = exchange(addr, "GET /ready HTTP/1.1\r\n\r\n").await;
    assert!(response.starts_with("HTTP/1.1 503") && response.ends_with("not ready: identity: no certificate\n"));
    part.ready();
    health.drain();
    let response = exchange(addr, "GET /ready HTTP/1.1\r\n\r\n").await;
    assert!(response.starts_with("HTTP/1.1 503") && response.ends_with("not ready: draining\n"));
    assert!(exchange(addr, "GET /live HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn too_many_and_too_slow_questions_do_not_hide_health() {
    let settings = Settings { max_requests: 1, request_timeout: Duration::from_millis(300), ..Settings::default() };
    let (addr, _tasks) = start(sources(), settings).await;
    let mut slow = TcpStream::connect(addr).await.expect("connected");
    slow.write_all(b"PUT /log-level HTTP/1.1\r\ncontent-length: 5\r\n\r\nde").await.expect("written");
    let mut answered = String::new();
    // The slow one takes the only place once its head has arrived.
    for _ in 0..1000 {
        answered = exchange(addr, "GET /state HTTP/1.1\r\n\r\n").await;
        if answered.starts_with("HTTP/1.1 503") {
            break;
        }
    }
    assert!(answered.ends_with("too many questions at once\n"), "{answered:?}");
    assert!(exchange(addr, "GET /ready HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 200"));
    let mut response = String::new();
    let _ = slow.read_to_string(&mut response).await;
    assert!(response.starts_with("HTTP/1.1 504"), "{response:?}");
    assert!(exchange(addr, "GET /state HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn connections_over_the_limit_wait() {
    let settings = Settings { max_connections: 1, ..Settings::default() };
    let (addr, _tasks) = start(sources(), settings).await;
    let mut first = TcpStream::connect(addr).await.expect("connected");
    first.write_all(b"GET /live HTTP/1.1\r\n\r\n").await.expect("written");
    let mut byte = [0];
    first.read_exact(&mut byte).await.expect("answered");
    let mut second = TcpStream::connect(addr).await.expect("connected");
    second.write_all(b"GET /live HTTP/1.0\r\n\r\n").await.expect("written");
    let waited = tokio::time::timeout(Duration::from_millis(50), second.read_exact(&mut byte)).await;
    assert!(waited.is_err(), "it is not its turn");
    drop(first);
    second.read_exact(&mut byte).await.expect("answered");
}
