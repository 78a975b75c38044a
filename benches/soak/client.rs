//! The clients: HTTP/1, HTTP/2, streams as gRPC makes them, bytes, WebSockets, and those that behave badly.
//!
//! They do what good clients do when a gateway drains: they connect anew, and send again what was certainly not processed
//! (GOAWAY, a kept connection that closed before an answer). What is lost beyond that counts as failed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body_util::channel::Channel;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use isthmus::tls::caller::Caller;
use isthmus::tls::{ALPN_H2, ALPN_HTTP11, ALPN_TRANSPORT_HEADER, ClientStream};
use isthmus_tests::peer::header;
use isthmus_tests::pki::GATEWAY;
use isthmus_tests::spawn;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::site::Site;

type Stream = ClientStream<TcpStream>;
type Body = BoxBody<Bytes, std::convert::Infallible>;

/// The kinds of clients, and whether the services they ask are such that some of it must fail.
const KINDS: [(&str, bool); 9] = [
    ("HTTP/1", false),
    ("HTTP/2", false),
    ("streams", false),
    ("bytes", false),
    ("WebSocket", false),
    ("uploads", false),
    ("flaky service", true),
    ("service that dies and comes back", true),
    ("rude", true),
];

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What became of one kind of client's work.
pub(crate) struct Tally {
    pub(crate) fine: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) may_fail: bool,
    slowest: Mutex<Duration>,
    example: Mutex<String>,
}

impl Tally {
    fn took(&self, time: Duration) {
        let mut slowest = self.slowest.lock();
        *slowest = time.max(*slowest);
    }

    pub(crate) fn example(&self) -> String {
        self.example.lock().clone()
    }
}

/// What all clients saw.
pub(crate) struct Seen(Vec<Tally>);

impl Seen {
    fn new() -> Self {
        let tally = |(_, may_fail)| Tally {
            fine: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            may_fail,
            slowest: Mutex::default(),
            example: Mutex::default(),
        };
        Self(KINDS.map(tally).into())
    }

    pub(crate) fn kinds(&self) -> impl Iterator<Item = (&'static str, &Tally)> {
        KINDS.iter().map(|(name, _)| *name).zip(&self.0)
    }

    pub(crate) fn sum(&self) -> (u64, u64) {
        let add = |(fine, failed), tally: &Tally| {
            (fine + tally.fine.load(Ordering::Relaxed), failed + tally.failed.load(Ordering::Relaxed))
        };
        self.0.iter().fold((0, 0), add)
    }

    pub(crate) fn print(&self) {
        println!("| clients | fine | failed | slowest ms | such as |\n|---|---|---|---|---|");
        for (kind, tally) in self.kinds() {
            let (fine, failed) = (tally.fine.load(Ordering::Relaxed), tally.failed.load(Ordering::Relaxed));
            println!("| {kind} | {fine} | {failed} | {} | {} |", tally.slowest.lock().as_millis(), tally.example());
        }
        println!();
    }
}

/// The gateways that new connections go to.
struct Front {
    all: Mutex<Vec<SocketAddr>>,
    turn: AtomicUsize,
}

impl Front {
    fn next(&self) -> SocketAddr {
        let all = self.all.lock();
        all[self.turn.fetch_add(1, Ordering::Relaxed) % all.len()]
    }
}

pub(crate) struct Clients {
    pub(crate) seen: Arc<Seen>,
    front: Arc<Front>,
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Clients {
    pub(crate) fn start(site: &Site, gateways: [SocketAddr; 2], rate: f64) -> Self {
        let front = Arc::new(Front { all: Mutex::new(gateways.to_vec()), turn: AtomicUsize::new(0) });
        let (seen, stop) = (Arc::new(Seen::new()), Arc::new(AtomicBool::new(false)));
        let mut tasks = Vec::new();
        /// Clients of each kind.
        const EACH: u32 = 3;
        let pause = Duration::from_secs_f64(f64::from(EACH) * 9.0 / rate);
        for (kind, _) in KINDS.iter().enumerate() {
            for _ in 0..EACH {
                let client = Client { caller: site.caller(), front: Arc::clone(&front) };
                let (seen, stop) = (Arc::clone(&seen), Arc::clone(&stop));
                tasks.push(spawn(run(client, kind, seen, stop, pause)));
            }
        }
        Self { seen, front, stop, tasks }
    }

    /// No new connections to this gateway.
    pub(crate) fn leave(&self, gateway: SocketAddr) {
        self.front.all.lock().retain(|addr| *addr != gateway);
    }

    /// It is back.
    pub(crate) fn come(&self, gateway: SocketAddr) {
        self.front.all.lock().push(gateway);
    }

    pub(crate) async fn stop(self) -> Arc<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
        self.seen
    }
}

/// One piece of work after the other at an even pace.
async fn run(client: Client, kind: usize, seen: Arc<Seen>, stop: Arc<AtomicBool>, pause: Duration) {
    let mut kept = Kept::default();
    let tally = &seen.0[kind];
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let work = async {
            match kind {
                0 => client.http1(&mut kept, "web", "/").await,
                1 => client.http2(&mut kept, "web", "/slow").await,
                2 => client.stream(&mut kept).await,
                3 => client.bytes().await,
                4 => client.websocket().await,
                5 => client.upload(&mut kept).await,
                6 => client.http1(&mut kept, "flaky", "/").await,
                7 => client.http1(&mut kept, "fickle", "/").await,
                _ => client.rude().await,
            }
        };
        match timeout(PATIENCE, work).await.unwrap_or_else(|_| Err("no end in time".into())) {
            Ok(()) => drop(tally.fine.fetch_add(1, Ordering::Relaxed)),
            Err(error) => {
                kept = Kept::default();
                tally.failed.fetch_add(1, Ordering::Relaxed);
                *tally.example.lock() = error.to_string();
            }
        }
        let took = begun.elapsed();
        tally.took(took);
        // A little of chance, so that clients do not march in step.
        tokio::time::sleep(pause.saturating_sub(took).mul_f64(0.5 + rand::random::<f64>())).await;
    }
}

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// A connection that is used again, for a while.
#[derive(Default)]
struct Kept {
    http1: Option<http1::SendRequest<Body>>,
    http2: Option<http2::SendRequest<Body>>,
    used: u32,
}

/// After so many uses a connection is given up, so that there are always new ones too.
const USES: u32 = 50;

struct Client {
    caller: Caller,
    front: Arc<Front>,
}

fn full(bytes: Vec<u8>) -> Body {
    Full::new(Bytes::from(bytes)).boxed()
}

impl Client {
    async fn connect(&self, alpn: &[&[u8]]) -> Outcome<Stream> {
        let socket = TcpStream::connect(self.front.next()).await?;
        socket.set_nodelay(true)?;
        Ok(self.caller.connect(socket, &GATEWAY.parse()?, alpn).await?.stream)
    }

    async fn http1(&self, kept: &mut Kept, service: &str, path: &str) -> Outcome {
        loop {
            let reused = kept.http1.is_some();
            let mut sender = match kept.http1.take() {
                Some(sender) => sender,
                None => {
                    let (sender, connection) =
                        http1::handshake(TokioIo::new(self.connect(&[ALPN_HTTP11]).await?)).await?;
                    drop(spawn(connection));
                    sender
                }
            };
            if reused && sender.ready().await.is_err() {
                continue;
            }
            let request = Request::get(path).header("host", format!("{service}.ns.svc.cluster.local"));
            match sender.send_request(request.body(full(Vec::new()))?).await {
                Ok(response) => {
                    let closes = response.headers().contains_key("connection");
                    good(response).await?;
                    kept.used += 1;
                    kept.http1 = Some(sender).filter(|_| !closes && !kept.used.is_multiple_of(USES));
                    return Ok(());
                }
                // RFC 9112 §9.3.1: a kept connection that closes without an answer. The method is idempotent.
                Err(error) if reused && (error.is_incomplete_message() || error.is_canceled() || error.is_closed()) => {
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Any request over HTTP/2; `make` makes it anew where it has to be sent again.
    async fn over_http2(
        &self,
        kept: &mut Kept,
        make: impl Fn() -> Outcome<Request<Body>>,
    ) -> Outcome<Response<Incoming>> {
        loop {
            let reused = kept.http2.is_some();
            let mut sender = match kept.http2.take() {
                Some(sender) => sender,
                None => {
                    let stream = TokioIo::new(self.connect(&[ALPN_H2]).await?);
                    let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
                    drop(spawn(connection));
                    sender
                }
            };
            if reused && sender.ready().await.is_err() {
                continue;
            }
            match sender.send_request(make()?).await {
                Ok(response) => {
                    kept.used += 1;
                    kept.http2 = Some(sender).filter(|_| !kept.used.is_multiple_of(USES));
                    return Ok(response);
                }
                // RFC 9113 §6.8: what GOAWAY leaves out was not processed.
                Err(error) if reused && (error.is_canceled() || error.is_closed() || went_away(&error)) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn http2(&self, kept: &mut Kept, service: &str, path: &str) -> Outcome {
        let uri = format!("http://{service}.ns.svc.cluster.local{path}");
        good(self.over_http2(kept, || Ok(Request::get(&uri).body(full(Vec::new()))?)).await?).await
    }

    async fn upload(&self, kept: &mut Kept) -> Outcome {
        let size = rand::random_range(0..200_000);
        let sent: Vec<u8> = std::iter::repeat_with(rand::random).take(size).collect();
        let make = || Ok(Request::post("http://web.ns.svc.cluster.local/echo").body(full(sent.clone()))?);
        let response = self.over_http2(kept, make).await?;
        let back = response.into_body().collect().await?.to_bytes();
        if back == sent { Ok(()) } else { Err("another body came back".into()) }
    }

    /// Messages there and back on one stream, then trailers, as gRPC does.
    async fn stream(&self, kept: &mut Kept) -> Outcome {
        let sender = Mutex::new(None);
        let make = || {
            let (tell, body) = Channel::new(4);
            *sender.lock() = Some(tell);
            let request = Request::post("http://web.ns.svc.cluster.local/echo").version(Version::HTTP_2);
            Ok(request.header("content-type", "application/grpc").header("te", "trailers").body(body.boxed())?)
        };
        let response = self.over_http2(kept, make).await?;
        let mut tell = sender.into_inner().ok_or("never sent")?;
        let mut body = response.into_body();
        for count in 0..rand::random_range(1..6_u8) {
            tell.send_data(Bytes::from(vec![count; 600])).await?;
            let mut got = 0;
            while got < 600 {
                let frame = body.frame().await.ok_or("the stream ended early")??;
                got += frame.data_ref().map_or(0, Bytes::len);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
        tell.send(Frame::trailers(trailers)).await?;
        drop(tell);
        let rest = body.collect().await?;
        if rest.trailers().is_some_and(|trailers| trailers.contains_key("grpc-status")) {
            Ok(())
        } else {
            Err("no trailers".into())
        }
    }

    async fn bytes(&self) -> Outcome {
        let mut stream = self.connect(&[ALPN_TRANSPORT_HEADER]).await?;
        stream.write_all(&header("db", 5432, None)).await?;
        rounds(&mut stream).await?;
        stream.shutdown().await?;
        if stream.read(&mut [0]).await? == 0 { Ok(()) } else { Err("bytes after the end".into()) }
    }

    async fn websocket(&self) -> Outcome {
        let mut stream = self.connect(&[ALPN_HTTP11]).await?;
        stream
            .write_all(
                b"GET /ws HTTP/1.1\r\nhost: web.ns.svc.cluster.local\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                  sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            )
            .await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        if !head.starts_with(b"HTTP/1.1 101") {
            return Err(String::from_utf8_lossy(&head).into());
        }
        rounds(&mut stream).await
    }

    /// One who gives up in the middle: of the handshake, of a head, of a body, of a stream; or knocks with nonsense.
    async fn rude(&self) -> Outcome {
        match rand::random_range(0..6_u8) {
            0 => {
                let mut socket = TcpStream::connect(self.front.next()).await?;
                socket.write_all(b"GET / HTTP/1.1\r\n\r\n").await?;
                let _ = socket.read(&mut [0; 64]).await;
            }
            1 => {
                let mut socket = TcpStream::connect(self.front.next()).await?;
                socket.write_all(&[22, 3, 1, 1, 0, 1, 0]).await?;
            }
            2 => {
                let mut stream = self.connect(&[ALPN_HTTP11]).await?;
                stream
                    .write_all(b"POST /echo HTTP/1.1\r\nhost: web.ns.svc.cluster.local\r\ncontent-length: 900\r\n\r\nx")
                    .await?;
            }
            3 => {
                let mut stream = self.connect(&[ALPN_HTTP11]).await?;
                stream.write_all(b"GET / HTTP/1.1\r\nhost: web.ns").await?;
            }
            4 => {
                let mut stream = self.connect(&[ALPN_TRANSPORT_HEADER]).await?;
                stream.write_all(&[0, 0, 0, 5, 1, 2, 3]).await?;
            }
            _ => {
                let stream = TokioIo::new(self.connect(&[ALPN_H2]).await?);
                let (mut sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
                drop(spawn(connection));
                for path in ["/hang", "/endless", "/slow"] {
                    let uri = format!("http://web.ns.svc.cluster.local{path}");
                    let request = sender.send_request(Request::get(uri).body(full(Vec::new()))?);
                    let _ = timeout(Duration::from_millis(30), request).await; // the stream is reset
                }
            }
        }
        Ok(())
    }
}

/// Bytes there and back.
async fn rounds(stream: &mut Stream) -> Outcome {
    for _ in 0..rand::random_range(1..8_u8) {
        let sent: Vec<u8> = std::iter::repeat_with(rand::random).take(rand::random_range(1..20_000)).collect();
        let (mut read, mut write) = tokio::io::split(&mut *stream);
        let mut back = vec![0; sent.len()];
        tokio::try_join!(
            async {
                write.write_all(&sent).await?;
                write.flush().await
            },
            async { read.read_exact(&mut back).await.map(drop) }
        )?;
        if back != sent {
            return Err("other bytes came back".into());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

async fn good(response: Response<Incoming>) -> Outcome {
    let status = response.status();
    response.into_body().collect().await?;
    if status == 200 { Ok(()) } else { Err(format!("status {status}").into()) }
}

fn went_away(error: &hyper::Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<h2::Error>());
    cause.is_some_and(|cause| cause.is_go_away() && cause.reason() == Some(h2::Reason::NO_ERROR))
}
