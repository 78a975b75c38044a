//! Services behind the gateway: one that speaks all of HTTP, and TCP ones that do what a case tells them.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::spawn;

/// A request as a service saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The method.
    pub method: Method,
    /// The target as it stood in the request, with `:authority` over HTTP/2.
    pub uri: String,
    /// The version.
    pub version: Version,
    /// The fields.
    pub headers: HeaderMap,
}

impl Seen {
    /// The values of a field.
    pub fn all(&self, name: &str) -> Vec<String> {
        self.headers.get_all(name).iter().map(|value| value.to_str().unwrap().to_owned()).collect()
    }

    /// A field's value; empty where absent.
    pub fn field(&self, name: &str) -> String {
        self.all(name).into_iter().next().unwrap_or_default()
    }
}

/// A service.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// Where it listens.
    pub addr: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    connections: Arc<AtomicUsize>,
    cancelled: Arc<AtomicUsize>,
    produced: Arc<AtomicUsize>,
    stop: tokio::sync::watch::Sender<bool>,
}

impl Upstream {
    /// One that has not begun to listen.
    pub(crate) fn at(addr: SocketAddr) -> Self {
        Self {
            addr,
            seen: Arc::default(),
            connections: Arc::default(),
            cancelled: Arc::default(),
            produced: Arc::default(),
            stop: tokio::sync::watch::Sender::new(false),
        }
    }

    /// Counts a connection that somebody else has accepted.
    pub(crate) fn connected(&self) {
        self.connections.fetch_add(1, Ordering::SeqCst);
    }

    /// Every request so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().clone()
    }

    /// The last request.
    pub fn last(&self) -> Seen {
        self.seen.lock().last().cloned().expect("no request has come")
    }

    /// How many connections have been accepted.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// How many requests to `/hang` were given up by their sender.
    pub fn cancelled(&self) -> usize {
        self.cancelled.load(Ordering::SeqCst)
    }

    /// How many bytes of `/endless` have been asked for.
    pub fn produced(&self) -> usize {
        self.produced.load(Ordering::SeqCst)
    }

    /// Ends gracefully: no new connections, those that live finish what they have begun.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }
}

/// An HTTP service that speaks HTTP/1 and HTTP/2 with prior knowledge.
///
/// `/echo` gives the body back as it comes, trailers included; `/status/N` answers so; `/trailers` has some; `/hang` never
/// answers; `/slow` answers after 200 ms; `/endless` goes on for as long as somebody reads; `/ws` switches protocols and
/// echoes; `/notes` has what a proxy must take off; `/grpc/N` ends so in its trailers; `/head` announces a length.
pub async fn http() -> Upstream {
    http_at((Ipv4Addr::LOCALHOST, 0).into()).await
}

/// The same at an address.
pub async fn http_at(addr: SocketAddr) -> Upstream {
    let listener = TcpListener::bind(addr).await.unwrap();
    let upstream = Upstream::at(listener.local_addr().unwrap());
    let serving = upstream.clone();
    let mut stopped = upstream.stop.subscribe();
    drop(spawn(async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = async { drop(stopped.wait_for(|stop| *stop).await) } => return,
            };
            let Ok((socket, _)) = accepted else { return };
            serving.connections.fetch_add(1, Ordering::SeqCst);
            drop(spawn(serve(serving.clone(), socket)));
        }
    }));
    upstream
}

async fn serve(upstream: Upstream, socket: TcpStream) {
    let _ = socket.set_nodelay(true);
    let mut stopped = upstream.stop.subscribe();
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http2().enable_connect_protocol();
    let service = service_fn(move |request| answer(upstream.clone(), request));
    let connection = server.serve_connection_with_upgrades(TokioIo::new(socket), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => {}
        () = async { drop(stopped.wait_for(|stop| *stop).await) } => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

/// A response.
pub(crate) type Answer = Response<BoxBody<Bytes, hyper::Error>>;

/// Counts when it is dropped before it was disarmed.
struct Cancelled(Arc<AtomicUsize>);

impl Drop for Cancelled {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Answers one request.
pub(crate) async fn answer(upstream: Upstream, request: Request<Incoming>) -> Result<Answer, Infallible> {
    upstream.seen.lock().push(Seen {
        method: request.method().clone(),
        uri: request.uri().to_string(),
        version: request.version(),
        headers: request.headers().clone(),
    });
    let path = request.uri().path().to_owned();
    if let Some(status) = path.strip_prefix("/status/") {
        let mut answer = text("");
        *answer.status_mut() = status.parse().unwrap();
        return Ok(answer);
    }
    if let Some(status) = path.strip_prefix("/grpc/") {
        return Ok(grpc(status));
    }
    Ok(match path.as_str() {
        "/echo" => echo(request),
        "/trailers" => trailers(),
        "/hang" => {
            let _cancelled = Cancelled(upstream.cancelled);
            std::future::pending::<()>().await;
            text("")
        }
        "/slow" => {
            tokio::time::sleep(Duration::from_millis(200)).await;
            text("slow\n")
        }
        "/endless" => endless(upstream.produced),
        "/ws" => websocket(request),
        "/notes" => notes(),
        _ => {
            let head = request.method() == Method::HEAD;
            let length = request.into_body().collect().await.map_or(0, |body| body.to_bytes().len());
            let words = format!("hello, {length} bytes\n");
            // Over HTTP/2 hyper would send the body of an answer to HEAD, which no client takes.
            let mut answer = text(if head { "" } else { &words });
            if head {
                answer.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(words.len()));
            }
            answer
        }
    })
}

fn text(text: &str) -> Answer {
    Response::new(Full::new(Bytes::copy_from_slice(text.as_bytes())).map_err(|never| match never {}).boxed())
}

fn echo(request: Request<Incoming>) -> Answer {
    let kind = request.headers().get(header::CONTENT_TYPE).cloned();
    let mut answer = Response::new(request.into_body().boxed());
    if let Some(kind) = kind {
        answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    }
    answer
}

fn trailers() -> Answer {
    let mut fields = HeaderMap::new();
    fields.insert("x-sum", HeaderValue::from_static("42"));
    let frames = [Ok(Frame::data(Bytes::from_static(b"part"))), Ok(Frame::trailers(fields))];
    let mut answer = Response::new(BodyExt::boxed(StreamBody::new(futures_util::stream::iter(frames))));
    answer.headers_mut().insert(header::TRAILER, HeaderValue::from_static("x-sum"));
    answer
}

/// One frame of `/endless`, in bytes.
const PIECE_BYTES: usize = 16 * 1024;

/// A gRPC answer without a message: a head, and then its status in trailers.
fn grpc(status: &str) -> Answer {
    let mut fields = HeaderMap::new();
    fields.insert("grpc-status", HeaderValue::from_str(status).unwrap());
    let frames = [Ok(Frame::trailers(fields))];
    let mut answer = Response::new(BodyExt::boxed(StreamBody::new(futures_util::stream::iter(frames))));
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    answer
}

fn endless(produced: Arc<AtomicUsize>) -> Answer {
    let frames = futures_util::stream::repeat_with(move || {
        produced.fetch_add(PIECE_BYTES, Ordering::SeqCst);
        Ok(Frame::data(Bytes::from_static(&[b'x'; PIECE_BYTES])))
    });
    Response::new(BodyExt::boxed(StreamBody::new(frames)))
}

fn notes() -> Answer {
    let mut answer = text("notes\n");
    for (name, value) in [
        ("l5d-proxy-error", "10.0.0.1:80: broken"),
        ("l5d-proxy-connection", "close"),
        ("keep-alive", "timeout=5"),
        ("x-kept", "yes"),
    ] {
        answer.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    answer
}

/// Echoes bytes after a switch: by `Upgrade` over HTTP/1, by extended CONNECT over HTTP/2.
fn websocket(mut request: Request<Incoming>) -> Answer {
    let mut answer = text("");
    if request.version() == Version::HTTP_2 {
        if request.extensions().get::<hyper::ext::Protocol>().is_none() {
            *answer.status_mut() = StatusCode::BAD_REQUEST;
            return answer;
        }
    } else {
        let Some(key) = request.headers().get(header::SEC_WEBSOCKET_KEY) else {
            *answer.status_mut() = StatusCode::UPGRADE_REQUIRED;
            return answer;
        };
        let accept = accept_key(key.as_bytes());
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let fields = answer.headers_mut();
        fields.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        fields.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        fields.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    let upgrade = hyper::upgrade::on(&mut request);
    drop(spawn(async move {
        let Ok(stream) = upgrade.await else { return };
        let (mut read, mut write) = tokio::io::split(TokioIo::new(stream));
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
    }));
    answer
}

/// The `sec-websocket-accept` for a key.
pub fn accept_key(key: &[u8]) -> HeaderValue {
    use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
    HeaderValue::try_from(derive_accept_key(key)).unwrap()
}

/// A TCP service that does what the case says with each connection; the number counts them.
pub async fn tcp<F, Fut>(serve: F) -> SocketAddr
where
    F: Fn(TcpStream, usize) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    drop(spawn(async move {
        let mut count = 0;
        while let Ok((socket, _)) = listener.accept().await {
            let _ = socket.set_nodelay(true);
            drop(spawn(serve(socket, count)));
            count += 1;
        }
    }));
    addr
}

/// Sends back what it gets, and ends when the client does.
pub async fn echo_tcp() -> SocketAddr {
    tcp(|mut socket, _| async move {
        let (mut read, mut write) = socket.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
    })
    .await
}

/// An HTTP/1 service of fixed words: it reads a head, writes it down, answers and closes.
pub async fn scripted(script: &'static str) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let heads = Arc::new(Mutex::new(Vec::new()));
    let written = Arc::clone(&heads);
    let addr = tcp(move |mut socket, _| {
        let heads = Arc::clone(&written);
        async move {
            let head = read_head(&mut socket).await;
            heads.lock().push(head);
            let _ = socket.write_all(script.as_bytes()).await;
            let _ = socket.shutdown().await;
            let mut rest = Vec::new();
            let _ = tokio::time::timeout(Duration::from_secs(1), socket.read_to_end(&mut rest)).await;
        }
    })
    .await;
    (addr, heads)
}

/// Reads up to the blank line.
pub async fn read_head(socket: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match socket.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8_lossy(&head).into_owned()
}

/// An address where nobody listens.
pub fn nobody() -> SocketAddr {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap()
}
