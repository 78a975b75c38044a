//! A peer in front of the gateway: TLS with whatever certificate, and on it whatever protocol.

use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Version};
use http_body_util::{BodyExt, Empty, Full, combinators::BoxBody};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use isthmus::addr::{Name, Target};
use isthmus::identity::Identity;
use isthmus::tls::caller::Caller;
use isthmus::tls::{ALPN_H2, ALPN_HTTP11, ALPN_TRANSPORT_HEADER, ClientStream, client};
use isthmus::wire::transport_header::{self, Header, Protocol};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

use crate::pki::Pair;
use crate::wire::Http1;
use crate::world::service;
use crate::{soon, spawn};

/// A stream through TLS.
pub type Tls<S = TcpStream> = ClientStream<S>;

/// A request body.
pub type Body = BoxBody<Bytes, std::convert::Infallible>;

/// A peer.
#[derive(Clone, Debug)]
pub struct Peer {
    caller: Caller,
    addr: SocketAddr,
    server: Name,
}

impl Peer {
    /// Shows `pair` to the server `server` at `addr`.
    pub fn new(bundle: &str, pair: Option<&Pair>, server: &str, addr: SocketAddr) -> Self {
        let pair = pair.map(|pair| (pair.chain.as_bytes(), pair.key.as_bytes()));
        let caller = Caller::new(bundle.as_bytes(), pair, &Identity::parse(server).unwrap()).unwrap();
        Self { caller, addr, server: server.parse().unwrap() }
    }

    /// A peer that asks for another name than the one that it expects to see.
    pub fn expecting(bundle: &str, pair: Option<&Pair>, expected: &str, sni: &str, addr: SocketAddr) -> Self {
        let pair = pair.map(|pair| (pair.chain.as_bytes(), pair.key.as_bytes()));
        let caller = Caller::new(bundle.as_bytes(), pair, &Identity::parse(expected).unwrap()).unwrap();
        Self { caller, addr, server: sni.parse().unwrap() }
    }

    /// The same peer at another port.
    pub fn at(&self, addr: SocketAddr) -> Self {
        Self { addr, ..self.clone() }
    }

    /// Shakes hands on a stream of the case's own making.
    pub async fn shake<S>(&self, stream: S, sni: &str, alpn: &[&[u8]]) -> Result<Tls<S>, client::Error>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        Ok(soon(self.caller.connect(stream, &sni.parse().unwrap(), alpn)).await?.stream)
    }

    /// Connects and shakes hands, asking for `sni`.
    pub async fn try_connect(&self, sni: &str, alpn: &[&[u8]]) -> Result<Tls, client::Error> {
        let socket = soon(TcpStream::connect(self.addr)).await.unwrap();
        socket.set_nodelay(true).unwrap();
        self.shake(socket, sni, alpn).await
    }

    /// Connects and shakes hands, asking for the gateway's own name.
    pub async fn connect(&self, alpn: &[&[u8]]) -> Tls {
        self.try_connect(self.server.as_str(), alpn).await.unwrap()
    }

    /// The same, or nothing where that cannot be had.
    pub async fn try_gateway(&self, alpn: &[&[u8]]) -> Option<Tls> {
        let socket = TcpStream::connect(self.addr).await.ok()?;
        socket.set_nodelay(true).ok()?;
        Some(self.caller.connect(socket, &self.server, alpn).await.ok()?.stream)
    }

    /// HTTP/1.1 by ALPN.
    pub async fn h1(&self) -> Http1<Tls> {
        Http1::new(self.connect(&[ALPN_HTTP11]).await)
    }

    /// HTTP/2 by ALPN.
    pub async fn h2(&self) -> H2 {
        H2::new(self.connect(&[ALPN_H2]).await).await
    }

    /// A session with a transport header.
    pub async fn header(&self, name: &str, port: u16, protocol: Option<Protocol>) -> Tls {
        let mut stream = self.connect(&[ALPN_TRANSPORT_HEADER]).await;
        stream.write_all(&header(name, port, protocol)).await.unwrap();
        stream
    }

    /// HTTP/1 behind a transport header.
    pub async fn header_h1(&self, name: &str, port: u16) -> Http1<Tls> {
        Http1::new(self.header(name, port, Some(Protocol::Http1)).await)
    }

    /// HTTP/2 behind a transport header.
    pub async fn header_h2(&self, name: &str, port: u16) -> H2 {
        H2::new(self.header(name, port, Some(Protocol::Http2)).await).await
    }

    /// Bytes behind a transport header.
    pub async fn opaque(&self, name: &str, port: u16) -> Tls {
        self.header(name, port, None).await
    }
}

/// The bytes of a transport header.
pub fn header(name: &str, port: u16, protocol: Option<Protocol>) -> Bytes {
    let name = (!name.is_empty()).then(|| service(name).parse().unwrap());
    transport_header::encode(&Header { port, name, protocol })
}

/// The target `NAME.ns.svc.cluster.local:PORT`.
pub fn target(name: &str, port: u16) -> Target {
    Target { name: service(name).parse().unwrap(), port }
}

/// An HTTP/2 client.
#[derive(Clone, Debug)]
pub struct H2 {
    sender: http2::SendRequest<Body>,
}

impl H2 {
    /// On any stream, with prior knowledge.
    pub async fn new<S>(stream: S) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let handshake = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(1 << 24)
            .handshake(TokioIo::new(stream));
        let (sender, connection) = soon(handshake).await.unwrap();
        drop(spawn(connection));
        Self { sender }
    }

    /// Sends a request and gives the response's head.
    pub async fn send(&self, request: Request<Body>) -> hyper::Result<Response<Incoming>> {
        let mut sender = self.sender.clone();
        soon(async move {
            sender.ready().await?;
            sender.send_request(request).await
        })
        .await
    }

    /// GET, whole.
    pub async fn get(&self, authority: &str, path: &str) -> Answer {
        self.ask(Request::get(format!("http://{}{path}", with_port(authority))).body(empty()).unwrap()).await
    }

    /// Any request, whole.
    pub async fn ask(&self, request: Request<Body>) -> Answer {
        whole(self.send(request).await.unwrap()).await
    }

    /// Whether the connection takes no more requests.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}

fn with_port(authority: &str) -> String {
    let (name, port) = authority.split_once(':').map_or((authority, None), |(name, port)| (name, Some(port)));
    port.map_or_else(|| service(name), |port| format!("{}:{port}", service(name)))
}

/// An HTTP/2 request's beginning.
pub fn h2_request(method: &str, authority: &str, path: &str) -> http::request::Builder {
    Request::builder().version(Version::HTTP_2).method(method).uri(format!("http://{}{path}", with_port(authority)))
}

/// A whole response.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// Its fields.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// Its trailers.
    pub trailers: HeaderMap,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A field as text; empty where absent.
    pub fn field(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// Reads a response to its end.
pub async fn whole(response: Response<Incoming>) -> Answer {
    let (parts, body) = response.into_parts();
    let body = soon(body.collect()).await.unwrap();
    let trailers = body.trailers().cloned().unwrap_or_default();
    Answer { status: parts.status.as_u16(), headers: parts.headers, body: body.to_bytes(), trailers }
}

/// No body.
pub fn empty() -> Body {
    Empty::new().boxed()
}

/// A body of known length.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed()
}

/// A body that is written while it is sent.
pub fn channel() -> (http_body_util::channel::Sender<Bytes>, Body) {
    let (sender, body) = http_body_util::channel::Channel::new(1);
    (sender, body.boxed())
}

/// What a peer hears when it only listens: bytes until the end, and the alert where one ended it.
pub async fn listen<S: AsyncRead + Unpin>(stream: &mut S) -> (Vec<u8>, Option<String>) {
    let mut bytes = Vec::new();
    match soon(stream.read_to_end(&mut bytes)).await {
        Ok(_) => (bytes, None),
        Err(error) => {
            let alert = isthmus::tls::alert_in(&error).unwrap_or_else(|| format!("{:?}", error.kind()));
            (bytes, Some(alert))
        }
    }
}

/// A stream whose writes leave in pieces of a given size, each in a segment of its own.
#[derive(Debug)]
pub struct Dribble {
    stream: TcpStream,
    piece_bytes: usize,
}

impl Dribble {
    /// To `addr`, in pieces.
    pub async fn connect(addr: SocketAddr, piece_bytes: usize) -> Self {
        let stream = soon(TcpStream::connect(addr)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, piece_bytes }
    }
}

impl AsyncRead for Dribble {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Dribble {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        let piece = buf.len().min(self.piece_bytes);
        Pin::new(&mut self.stream).poll_write(cx, &buf[..piece])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
