//! Cluster west's callers: what they do over real sockets, and what comes back, in words.

use std::net::SocketAddr;

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{Request, Response, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::pki::{Pair, Pki};
use crate::addr::{Name, Target};
use crate::identity::Identity;
use crate::tls::caller::Caller;
use crate::tls::{self, ALPN_H2, ALPN_HTTP11, ALPN_TRANSPORT_HEADER, ClientStream};
use crate::wire::transport_header::{self, Header, Protocol};

/// One caller of cluster west.
#[derive(Clone, Debug)]
pub struct West {
    caller: Caller,
    gateway: Name,
    addr: SocketAddr,
}

type Stream = ClientStream<TcpStream>;

impl West {
    /// A caller that shows `pair`, or nothing, to the gateway at `addr`.
    pub fn new(pki: &Pki, pair: Option<&Pair>, addr: SocketAddr) -> anyhow::Result<Self> {
        let pair = pair.map(|pair| (pair.chain.as_bytes(), pair.key.as_bytes()));
        let caller = Caller::new(pki.bundle.as_bytes(), pair, &pki.gateway_identity)?;
        let Identity::Dns(gateway) = pki.gateway_identity.clone() else { bail!("the gateway has a DNS-like identity") };
        Ok(Self { caller, gateway, addr })
    }

    async fn connect(&self, server_name: &Name, alpn: &[&[u8]]) -> anyhow::Result<Stream> {
        let socket = TcpStream::connect(self.addr).await.context("connect")?;
        socket.set_nodelay(true)?;
        Ok(self.caller.connect(socket, server_name, alpn).await?.stream)
    }

    /// A session opened as Linkerd's proxies do, with a transport header.
    async fn header(&self, header: &Header) -> anyhow::Result<Stream> {
        let mut stream = self.connect(&self.gateway, &[ALPN_TRANSPORT_HEADER]).await?;
        stream.write_all(&transport_header::encode(header)).await?;
        Ok(stream)
    }

    /// GET over HTTP/1.1 with ALPN `http/1.1`: status and body.
    pub async fn http1(&self, host: &str, path: &str) -> anyhow::Result<String> {
        let stream = self.connect(&self.gateway, &[ALPN_HTTP11]).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        drop(Handle::current().spawn(connection));
        let request = Request::get(path).header("host", host).body(Full::<Bytes>::default())?;
        told(sender.send_request(request).await).await
    }

    /// GET over HTTP/2 with ALPN `h2`, with one more header field where given: status and body.
    pub async fn http2(&self, authority: &str, path: &str, field: Option<(&str, &str)>) -> anyhow::Result<String> {
        let stream = self.connect(&self.gateway, &[ALPN_H2]).await?;
        let mut request = Request::get(format!("http://{authority}{path}")).version(Version::HTTP_2);
        if let Some((name, value)) = field {
            request = request.header(name, value);
        }
        told(exchange(stream, request.body(Full::default())?).await?).await
    }

    /// A gRPC-shaped unary call on a session with a transport header: the echoed message and the status in the trailers.
    pub async fn grpc(&self, target: &Target, message: &'static [u8]) -> anyhow::Result<String> {
        let header = Header { port: target.port, name: Some(target.name.clone()), protocol: Some(Protocol::Http2) };
        let stream = self.header(&header).await?;
        let request = Request::post(format!("http://{target}/demo.Echo/Say"))
            .version(Version::HTTP_2)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(Bytes::from_static(message)))?;
        let body = exchange(stream, request).await??.into_body().collect().await?;
        let status = body.trailers().and_then(|trailers| trailers.get("grpc-status")).cloned();
        let status = status.context("no grpc-status in the trailers")?;
        Ok(format!("grpc-status {} in trailers, {} bytes echoed", status.to_str()?, body.to_bytes().len()))
    }

    /// A WebSocket over HTTP/1.1: one message there and back.
    pub async fn websocket(&self, host: &str, text: &str) -> anyhow::Result<String> {
        let stream = self.connect(&self.gateway, &[ALPN_HTTP11]).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        drop(Handle::current().spawn(connection.with_upgrades()));
        let request = Request::get("/ws")
            .header("host", host)
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .body(Full::<Bytes>::default())?;
        let mut response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        if response.headers().get("sec-websocket-accept").is_none_or(|value| value != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=") {
            bail!("{status} without the right sec-websocket-accept");
        }
        let upgraded = hyper::upgrade::on(&mut response).await?;
        let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await;
        socket.send(Message::text(text)).await?;
        let echo = socket.next().await.context("the socket ended before its echo")??;
        socket.close(None).await?;
        while let Some(Ok(_)) = socket.next().await {} // until the other side has said goodbye too
        Ok(format!("{status}, echo \"{}\"", echo.to_text()?))
    }

    /// Bytes to an opaque service that the transport header names, and back.
    pub async fn opaque(&self, target: &Target, text: &str) -> anyhow::Result<String> {
        let header = Header { port: target.port, name: Some(target.name.clone()), protocol: None };
        echoed(self.header(&header).await?, text).await
    }

    /// Bytes to an opaque service that SNI names, and back.
    pub async fn sni(&self, server_name: &Name, text: &str) -> anyhow::Result<String> {
        echoed(self.connect(server_name, &[]).await?, text).await
    }

    /// Knocks and waits for the gateway's word. In TLS 1.3 its no to a certificate comes after the handshake.
    pub async fn knock(&self) -> anyhow::Result<String> {
        let mut stream = self.connect(&self.gateway, &[ALPN_H2]).await?;
        let mut first = [0];
        match stream.read(&mut first).await {
            Ok(0) => bail!("closed without a byte"),
            Ok(_) => Ok("let in".to_owned()),
            Err(error) => match tls::alert_in(&error) {
                Some(alert) => bail!("TLS alert {alert}"),
                None => Err(error.into()),
            },
        }
    }

    /// The probe as a service mirror's proxy sends it: TLS without ALPN, HTTP/2, `l5d-orig-proto`.
    pub async fn probe(&self, addr: SocketAddr) -> anyhow::Result<String> {
        let stream = Self { addr, ..self.clone() }.connect(&self.gateway, &[]).await?;
        let request = Request::get(format!("http://probe-gateway-east:{}/health", addr.port()))
            .version(Version::HTTP_2)
            .header("l5d-orig-proto", "HTTP/1.1")
            .body(Full::default())?;
        told(exchange(stream, request).await?).await
    }
}

/// Sends one request over HTTP/2 with prior knowledge.
async fn exchange(stream: Stream, request: Request<Full<Bytes>>) -> anyhow::Result<hyper::Result<Response<Incoming>>> {
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(unanswered)?;
    drop(Handle::current().spawn(connection));
    Ok(sender.send_request(request).await)
}

/// A response in words: status, the refusal's reason where one is given, and the body's first line.
async fn told(response: hyper::Result<Response<Incoming>>) -> anyhow::Result<String> {
    let response = response.map_err(unanswered)?;
    let status = response.status();
    let reason = response.headers().get("l5d-proxy-error").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let body = response.into_body().collect().await?.to_bytes();
    let body = String::from_utf8_lossy(&body);
    let said = reason.unwrap_or_else(|| body.lines().next().unwrap_or_default().to_owned());
    Ok(format!("{} {said}", status.as_u16()))
}

async fn echoed<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, text: &str) -> anyhow::Result<String> {
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await?;
    let mut echo = String::new();
    stream.read_to_string(&mut echo).await?;
    if echo.is_empty() { bail!("closed without a byte") } else { Ok(format!("echo \"{echo}\"")) }
}

/// What an HTTP client's error means here.
fn unanswered(error: hyper::Error) -> anyhow::Error {
    if error.is_closed() || error.is_incomplete_message() || error.is_canceled() {
        return anyhow!("closed without an answer");
    }
    error.into()
}
