//! Workloads of other clusters: what they show and trust may change while they call, as a mesh proxy's does.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use futures_util::StreamExt;
use http::Request;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use isthmus::addr::{Name, Target};
use isthmus::identity::Identity;
use isthmus::tls::caller::Caller;
use isthmus::tls::{self, ALPN_H2, ALPN_HTTP11, ALPN_TRANSPORT_HEADER, ClientStream};
use isthmus::wire::transport_header::{self, Header};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::world::Pair;

/// One workload and the gateway that it calls.
#[derive(Debug)]
pub(crate) struct Client {
    gateway: Identity,
    addr: SocketAddr,
    caller: Mutex<Caller>,
}

pub(crate) type Stream = ClientStream<TcpStream>;

fn caller(bundle: &str, pair: &Pair, gateway: &Identity) -> Caller {
    Caller::new(bundle.as_bytes(), Some((pair.chain.as_bytes(), pair.key().as_bytes())), gateway).unwrap()
}

impl Client {
    pub(crate) fn new(bundle: &str, pair: &Pair, gateway: &Identity, addr: SocketAddr) -> Arc<Self> {
        let caller = Mutex::new(caller(bundle, pair, gateway));
        Arc::new(Self { gateway: gateway.clone(), addr, caller })
    }

    /// From now on new connections show and trust this.
    pub(crate) fn renew(&self, bundle: &str, pair: &Pair) {
        *self.caller.lock() = caller(bundle, pair, &self.gateway);
    }

    pub(crate) async fn connect(&self, alpn: &[&[u8]]) -> anyhow::Result<Stream> {
        let caller = self.caller.lock().clone();
        let name: Name = self.gateway.as_str().parse()?;
        let socket = TcpStream::connect(self.addr).await.context("connect")?;
        socket.set_nodelay(true)?;
        Ok(caller.connect(socket, &name, alpn).await?.stream)
    }

    /// Bytes to the echo service; the stream has been used once when this returns.
    pub(crate) async fn echo(&self) -> anyhow::Result<Stream> {
        let mut stream = self.connect(&[ALPN_TRANSPORT_HEADER]).await?;
        let target = Target::parse("echo.demo.svc.cluster.local:9000", 0)?;
        let header = Header { port: target.port, name: Some(target.name), protocol: None };
        stream.write_all(&transport_header::encode(&header)).await?;
        ping(&mut stream).await?;
        Ok(stream)
    }

    /// A call whose body never ends; its gRPC status, some day.
    pub(crate) async fn endless(&self, host: &str) -> anyhow::Result<JoinHandle<hyper::Result<Option<String>>>> {
        let stream = self.connect(&[ALPN_H2]).await?;
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        drop(Handle::current().spawn(connection));
        let begin =
            futures_util::stream::iter([Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from_static(b"and")))]);
        let body = StreamBody::new(begin.chain(futures_util::stream::pending()));
        let request =
            Request::post(format!("http://{host}/say")).header("content-type", "application/grpc+x").body(body)?;
        let sent = Handle::current().spawn(async move {
            let answer = sender.send_request(request).await?;
            Ok(answer.headers().get("grpc-status").and_then(|status| status.to_str().ok()).map(str::to_owned))
        });
        tokio::time::sleep(Duration::from_millis(100)).await;
        Ok(sent)
    }

    /// Knocks and waits for the gateway's word; in TLS 1.3 its no to a certificate comes after the handshake.
    pub(crate) async fn knock(&self) -> String {
        let answer = async {
            let mut stream = self.connect(&[ALPN_H2]).await?;
            match stream.read(&mut [0]).await {
                Ok(0) => bail!("closed"),
                Ok(_) => Ok(()),
                Err(error) => bail!("{}", tls::alert_in(&error).unwrap_or_else(|| error.to_string())),
            }
        };
        answer.await.map_or_else(|error| error.to_string(), |()| "let in".to_owned())
    }
}

/// Whether an echo still comes back.
pub(crate) async fn ping(stream: &mut Stream) -> anyhow::Result<()> {
    stream.write_all(b"ping").await?;
    let mut echo = [0; 4];
    tokio::time::timeout(Duration::from_secs(5), stream.read_exact(&mut echo)).await??;
    if &echo == b"ping" { Ok(()) } else { bail!("another echo") }
}

/// Whether the connection ended by a GOAWAY without an error while the request waited for its turn: it was not looked at
/// (RFC 9113 §6.8), and every HTTP/2 client sends it again on another connection.
fn went_away(error: &hyper::Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<h2::Error>());
    cause.is_some_and(|cause| cause.is_go_away() && cause.reason() == Some(h2::Reason::NO_ERROR))
}

/// What a stream of requests came to.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) fine: AtomicU64,
    pub(crate) connections: AtomicU64,
    pub(crate) failed: Mutex<Vec<String>>,
}

/// Requests without end on one connection after the other, until told to stop.
#[derive(Debug)]
pub(crate) struct Traffic {
    stop: Arc<AtomicBool>,
    tally: Arc<Tally>,
    task: JoinHandle<()>,
}

/// How requests are sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Way {
    Http1,
    Http2,
    /// A connection for each request.
    Fresh,
}

impl Traffic {
    pub(crate) fn start(client: Arc<Client>, way: Way, host: &'static str) -> Self {
        let (stop, tally) = (Arc::new(AtomicBool::new(false)), Arc::new(Tally::default()));
        let task = Handle::current().spawn(run(client, way, host, Arc::clone(&stop), Arc::clone(&tally)));
        Self { stop, tally, task }
    }

    /// Waits for `count` more requests.
    pub(crate) async fn more(&self, count: u64) {
        let until = self.tally.fine.load(Ordering::Relaxed) + count;
        crate::world::eventually("more requests", || {
            self.tally.fine.load(Ordering::Relaxed) >= until || !self.tally.failed.lock().is_empty()
        })
        .await;
    }

    pub(crate) async fn end(self) -> Arc<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
        self.tally
    }
}

async fn run(client: Arc<Client>, way: Way, host: &'static str, stop: Arc<AtomicBool>, tally: Arc<Tally>) {
    let mut kept = None;
    while !stop.load(Ordering::Relaxed) {
        match tokio::time::timeout(Duration::from_secs(10), one(&client, way, host, &mut kept, &tally)).await {
            Ok(Ok(())) => drop(tally.fine.fetch_add(1, Ordering::Relaxed)),
            Ok(Err(error)) => tally.failed.lock().push(format!("{way:?} {host}: {error:#}")),
            Err(_) => tally.failed.lock().push(format!("{way:?} {host}: no answer")),
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

enum Sender {
    Http1(http1::SendRequest<Empty<Bytes>>),
    Http2(http2::SendRequest<Empty<Bytes>>),
}

/// One request. It is sent again where that is what every client does: when the connection was left by the gateway before
/// the request was (GOAWAY, RFC 9113 §6.8), or a kept HTTP/1.1 connection closed without an answer (RFC 9112 §9.3.1).
async fn one(
    client: &Client,
    way: Way,
    host: &'static str,
    kept: &mut Option<Sender>,
    tally: &Tally,
) -> anyhow::Result<()> {
    loop {
        let reused = kept.is_some();
        let mut sender = match kept.take() {
            Some(sender) => sender,
            None => {
                tally.connections.fetch_add(1, Ordering::Relaxed);
                open(client, way).await?
            }
        };
        let ready = match &mut sender {
            Sender::Http1(sender) => sender.ready().await.is_ok(),
            Sender::Http2(sender) => sender.ready().await.is_ok(),
        };
        let sent = match &mut sender {
            _ if !ready && reused => continue,
            _ if !ready => bail!("a new connection takes no request"),
            Sender::Http1(sender) => {
                let request = Request::get("/hello").header("host", host).body(Empty::new())?;
                sender.send_request(request).await
            }
            Sender::Http2(sender) => {
                let request = Request::get(format!("http://{host}/hello")).body(Empty::new())?;
                sender.send_request(request).await
            }
        };
        let response = match sent {
            Ok(response) => response,
            Err(error) if reused && (error.is_canceled() || error.is_closed() || error.is_incomplete_message()) => {
                continue;
            }
            Err(error) if reused && went_away(&error) => continue,
            Err(error) => return Err(anyhow::Error::new(error).context(format!("reused: {reused}"))),
        };
        let status = response.status();
        let why = response.headers().get("l5d-proxy-error").cloned();
        response.into_body().collect().await.context("the body")?;
        if status != 200 {
            bail!("{status} {why:?}");
        }
        *kept = Some(sender).filter(|_| way != Way::Fresh);
        return Ok(());
    }
}

async fn open(client: &Client, way: Way) -> anyhow::Result<Sender> {
    let alpn = if way == Way::Http1 { ALPN_HTTP11 } else { ALPN_H2 };
    let stream = client.connect(&[alpn]).await?;
    Ok(if way == Way::Http1 {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        drop(Handle::current().spawn(connection));
        Sender::Http1(sender)
    } else {
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        drop(Handle::current().spawn(connection));
        Sender::Http2(sender)
    })
}
