//! Connect, then the upstream handshake where the endpoint wants one: the one place where `connect` and `tls` meet.
//!
//! **In** an endpoint. **Out** a stream, plain or mutual TLS with the endpoint's expected identity. **Refuses** like
//! `connect`, with TLS failures as the upstream's fault.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::connect::{self, Dial};
use crate::endpoint::Endpoint;
use crate::fault::Refusal;
use crate::live::Live;
use crate::record::{Event, Observer, Protocol};
use crate::tls::verify::Reason;
use crate::tls::{self, ClientStream, Credentials};

/// Dials endpoints with the gateway's own credentials.
#[derive(Clone, Debug)]
pub(crate) struct Dialer {
    settings: connect::Settings,
    credentials: Arc<Live<Credentials>>,
    observer: Rc<dyn Observer>,
}

impl Dialer {
    pub(super) fn new(
        settings: connect::Settings,
        credentials: Arc<Live<Credentials>>,
        observer: Rc<dyn Observer>,
    ) -> Self {
        Self { settings, credentials, observer }
    }

    async fn secured(&self, endpoint: &Endpoint, protocol: Protocol) -> Result<Upstream, connect::Error> {
        let tcp = connect::tcp(endpoint.addr, &self.settings).await?;
        let Some(expected) = &endpoint.tls else { return Ok(Upstream::Plain(tcp)) };
        let alpn: &[&[u8]] = match protocol {
            Protocol::Http1 => &[b"http/1.1"],
            Protocol::Http2 => &[b"h2"],
            Protocol::Opaque => &[],
        };
        let credentials = self.credentials.load_full();
        let connected = tls::client::connect(tcp, &credentials, expected, alpn).await.map_err(refused)?;
        Ok(Upstream::Tls(Box::new(connected.stream)))
    }
}

fn refused(error: tls::client::Error) -> connect::Error {
    let somebody_else = matches!(&error, tls::client::Error::Certificate { reason: Reason::Identity { .. }, .. });
    if somebody_else { connect::Error::Identity(Arc::new(error)) } else { connect::Error::Tls(Arc::new(error)) }
}

impl Dial for Dialer {
    type Stream = Upstream;

    async fn dial(&self, endpoint: &Endpoint, protocol: Protocol) -> Result<Upstream, connect::Error> {
        let started = Instant::now();
        let dialed = tokio::time::timeout(self.settings.timeout, self.secured(endpoint, protocol)).await;
        let dialed = dialed.unwrap_or(Err(connect::Error::Timeout));
        let result = dialed.as_ref().map_or_else(Refusal::code, |_| "ok");
        self.observer.event(Event::Connected { result, took: started.elapsed() });
        dialed
    }
}

/// A stream to an endpoint.
#[derive(Debug)]
pub(crate) enum Upstream {
    Plain(TcpStream),
    Tls(Box<ClientStream<TcpStream>>),
}

macro_rules! either {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut() {
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
