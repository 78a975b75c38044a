//! Connect, then the upstream handshake where the endpoint wants one, then the transport header where its proxy is to be
//! told where to go on: the one place where `connect` and `tls` meet.
//!
//! **In** an endpoint. **Out** a stream, plain or mutual TLS with the endpoint's expected identity. **Refuses** like
//! `connect`, with TLS failures as the upstream's fault. (Linkerd wire document §5.3.)
//!
//! A TLS stream carries the [`Trust`] in its endpoint with it: when that is lost, the pool is told, so that no new request
//! goes there, and what is left on the stream is cut: bytes at once, requests after `tls.distrust_deadline`.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::trust::{Judge, Trust};
use super::worker::beside;
use crate::connect::{self, Dial};
use crate::endpoint::{Endpoint, Tunnel, UpstreamTls};
use crate::fault::Refusal;
use crate::record::{Event, Protocol};
use crate::tls::verify::Reason;
use crate::tls::{self, Alpn, ClientStream};
use crate::wire::transport_header::{self, Header};

/// Dials endpoints with the gateway's own credentials.
#[derive(Clone, Debug)]
pub(crate) struct Dialer {
    settings: connect::Settings,
    judge: Judge,
    distrust_deadline: Duration,
    /// Told of the endpoints that are trusted no longer.
    distrusted: mpsc::UnboundedSender<Endpoint>,
}

impl Dialer {
    /// A dialer, and the news of endpoints that lose their trust while connected.
    pub(super) fn new(
        settings: connect::Settings,
        judge: Judge,
        distrust_deadline: Duration,
    ) -> (Self, mpsc::UnboundedReceiver<Endpoint>) {
        let (distrusted, news) = mpsc::unbounded_channel();
        (Self { settings, judge, distrust_deadline, distrusted }, news)
    }

    pub(super) fn judge(&self) -> &Judge {
        &self.judge
    }

    async fn opened(&self, endpoint: &Endpoint, protocol: Protocol) -> Result<Upstream, connect::Error> {
        #[cfg(fuzzing)]
        if let Some(stream) = super::in_memory::dialled(endpoint.addr) {
            return Ok(Upstream::Memory(stream));
        }
        let tcp = connect::tcp(endpoint.addr, &self.settings).await?;
        match &endpoint.tls {
            None => Ok(Upstream::Plain(tcp)),
            Some(expected) => self.secured(tcp, endpoint, expected, protocol).await,
        }
    }

    async fn secured(
        &self,
        tcp: TcpStream,
        endpoint: &Endpoint,
        expected: &UpstreamTls,
        protocol: Protocol,
    ) -> Result<Upstream, connect::Error> {
        let alpn: &[&[u8]] = match protocol {
            _ if endpoint.tunnel.is_some() => &[transport_header::ALPN],
            Protocol::Http1 => &[b"http/1.1"],
            Protocol::Http2 => &[b"h2"],
            Protocol::Opaque => &[],
        };
        let changes = self.judge.credentials.changes(); // before the credentials, so that no change falls between
        let credentials = self.judge.credentials.load_full();
        let mut connected = tls::client::connect(tcp, &credentials, expected, alpn).await.map_err(refused)?;
        // As Linkerd does it: who does not select the protocol reads no header, and gets the session as it is.
        if let Some(tunnel) = endpoint.tunnel.as_ref().filter(|_| connected.alpn == Alpn::TransportHeader) {
            let header = transport_header::encode(&header(tunnel, protocol));
            connected.stream.write_all(&header).await.map_err(connect::Error::from_io)?;
            connected.stream.flush().await.map_err(connect::Error::from_io)?;
        }
        let judge = self.judge.clone();
        let trust = Trust::in_upstream(judge, connected.chain, &expected.identity, endpoint.addr, changes);
        let (alive, gone) = oneshot::channel();
        let secured = Secured { stream: connected.stream, cut: Arc::default(), _alive: alive };
        let patience = if protocol == Protocol::Opaque { Duration::ZERO } else { self.distrust_deadline };
        let (cut, distrusted, endpoint) = (Arc::clone(&secured.cut), self.distrusted.clone(), endpoint.clone());
        beside(&self.judge.observer, async move {
            let ended = async {
                trust.lost().await;
                // Nobody there to hear it: the worker is ending.
                let _ = distrusted.send(endpoint);
                tokio::time::sleep(patience).await;
                cut.now();
            };
            tokio::select! {
                biased;
                _ = gone => {}
                () = ended => {}
            }
        });
        Ok(Upstream::Tls(Box::new(secured)))
    }
}

/// What the endpoint's proxy is told of the session behind the header.
fn header(tunnel: &Tunnel, protocol: Protocol) -> Header {
    let protocol = match protocol {
        _ if tunnel.opaque => None,
        Protocol::Http1 => Some(transport_header::Protocol::Http1),
        Protocol::Http2 => Some(transport_header::Protocol::Http2),
        Protocol::Opaque => None,
    };
    Header { port: tunnel.port, name: tunnel.name.clone(), protocol }
}

fn refused(error: tls::client::Error) -> connect::Error {
    let somebody_else = matches!(&error, tls::client::Error::Certificate { reason: Reason::Identity { .. }, .. });
    if somebody_else { connect::Error::Identity(Arc::new(error)) } else { connect::Error::Tls(Arc::new(error)) }
}

impl Dial for Dialer {
    type Stream = Upstream;

    async fn dial(&self, endpoint: &Endpoint, protocol: Protocol) -> Result<Upstream, connect::Error> {
        let started = Instant::now();
        let dialed = tokio::time::timeout(self.settings.timeout, self.opened(endpoint, protocol)).await;
        let dialed = dialed.unwrap_or(Err(connect::Error::Timeout));
        let result = dialed.as_ref().map_or_else(Refusal::code, |_| "ok");
        self.judge.observer.event(Event::Connected { result, took: started.elapsed() });
        dialed
    }
}

/// A stream to an endpoint.
#[derive(Debug)]
pub(crate) enum Upstream {
    #[cfg(fuzzing)]
    Memory(tokio::io::DuplexStream),
    Plain(TcpStream),
    Tls(Box<Secured>),
}

/// A stream that ends when its endpoint is trusted no longer.
#[derive(Debug)]
pub(crate) struct Secured {
    stream: ClientStream<TcpStream>,
    cut: Arc<Cut>,
    /// Dropped with the stream, which ends the watch over it.
    _alive: oneshot::Sender<()>,
}

/// Ends a stream from outside. (Of atomics, as hyper hands upgraded streams out in a type that must be `Send`.)
#[derive(Debug, Default)]
struct Cut {
    done: AtomicBool,
    /// Whoever reads; who only writes meets the end at its next write.
    reader: AtomicWaker,
}

impl Cut {
    fn now(&self) {
        self.done.store(true, Ordering::Release);
        self.reader.wake();
    }

    fn check(&self) -> io::Result<()> {
        if self.done.load(Ordering::Acquire) {
            return Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the endpoint's certificate is no longer trusted",
            ));
        }
        Ok(())
    }
}

impl AsyncRead for Secured {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.cut.reader.register(cx.waker());
        self.cut.check()?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Secured {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.cut.check()?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.cut.check()?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

macro_rules! either {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            #[cfg(fuzzing)]
            Upstream::Memory($stream) => $call,
            Upstream::Plain($stream) => $call,
            Upstream::Tls($stream) => $call,
        }
    };
}

impl AsyncRead for Upstream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Upstream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        either!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}
