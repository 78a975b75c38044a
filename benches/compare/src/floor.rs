//! The bare floor: the smallest gateway on the same libraries, to be measured against.
//!
//! One thread. Mutual TLS by tokio-rustls, hyper towards the client, hyper towards one endpoint, connections to it kept. No
//! routing, no policy, no metrics, no limits, no deadlines: not a gateway anybody should run.
#![allow(clippy::unwrap_used, reason = "it has nobody to report to")]

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use clap::Parser;
use http::{HeaderName, Request, Response, Uri, Version, header};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::{http1 as client1, http2 as client2};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{LocalSet, spawn_local};
use tokio_rustls::TlsAcceptor;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
struct Flags {
    /// The folder that holds gateway.crt, gateway.key and anchor.crt.
    #[arg(long)]
    dir: PathBuf,
    /// LISTEN=UPSTREAM where the upstream speaks HTTP/2.
    #[arg(long)]
    h2: Vec<String>,
    /// LISTEN=UPSTREAM where the upstream speaks HTTP/1.1.
    #[arg(long)]
    h1: Vec<String>,
    /// LISTEN=UPSTREAM of bytes.
    #[arg(long)]
    tcp: Vec<String>,
}

#[derive(Clone, Copy)]
enum Speaks {
    H1,
    H2,
    Bytes,
}

fn main() -> Result<()> {
    let flags = Flags::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, serve(flags))
}

async fn serve(flags: Flags) -> Result<()> {
    let acceptor = TlsAcceptor::from(Arc::new(tls(&flags)?));
    let kinds = [(flags.h2, Speaks::H2), (flags.h1, Speaks::H1), (flags.tcp, Speaks::Bytes)];
    for (pairs, speaks) in kinds {
        for pair in pairs {
            let (listen, upstream) = pair.split_once('=').context("LISTEN=UPSTREAM")?;
            let listener = TcpListener::bind(listen).await?;
            spawn_local(accept(listener, acceptor.clone(), Upstream::new(upstream.parse()?, speaks)));
        }
    }
    std::future::pending().await
}

fn tls(flags: &Flags) -> Result<ServerConfig> {
    let provider = Arc::new(CryptoProvider {
        cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256],
        kx_groups: vec![aws_lc_rs::kx_group::X25519],
        ..aws_lc_rs::default_provider()
    });
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(flags.dir.join("anchor.crt"))?)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build()?;
    let chain = CertificateDer::pem_file_iter(flags.dir.join("gateway.crt"))?.collect::<Result<Vec<_>, _>>()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, PrivateKeyDer::from_pem_file(flags.dir.join("gateway.key"))?)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    Ok(config)
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, upstream: Rc<Upstream>) {
    loop {
        let Ok((socket, _)) = listener.accept().await else { continue };
        let (acceptor, upstream) = (acceptor.clone(), upstream.clone());
        spawn_local(async move {
            let _ = connection(socket, acceptor, upstream).await;
        });
    }
}

async fn connection(socket: TcpStream, acceptor: TlsAcceptor, upstream: Rc<Upstream>) -> Result<()> {
    socket.set_nodelay(true)?;
    let mut stream = acceptor.accept(socket).await?;
    if matches!(upstream.speaks, Speaks::Bytes) {
        let mut out = TcpStream::connect(upstream.address).await?;
        out.set_nodelay(true)?;
        tokio::io::copy_bidirectional_with_sizes(&mut stream, &mut out, 65_536, 65_536).await?;
        return Ok(());
    }
    let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let service = service_fn(move |request| forward(upstream.clone(), request));
    if h2 {
        http2::Builder::new(Local)
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .serve_connection(TokioIo::new(stream), service)
            .await?;
    } else {
        http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service).await?;
    }
    Ok(())
}

/// Tasks stay on the thread.
#[derive(Clone)]
struct Local;

impl<F: Future + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, future: F) {
        spawn_local(async move {
            future.await;
        });
    }
}

struct Upstream {
    address: SocketAddr,
    speaks: Speaks,
    /// One connection for all over HTTP/2.
    h2: RefCell<Option<client2::SendRequest<Incoming>>>,
    connecting: Cell<bool>,
    /// Those that are free over HTTP/1.1.
    h1: RefCell<Vec<client1::SendRequest<Incoming>>>,
}

impl Upstream {
    fn new(address: SocketAddr, speaks: Speaks) -> Rc<Self> {
        Rc::new(Self {
            address,
            speaks,
            h2: RefCell::new(None),
            connecting: Cell::new(false),
            h1: RefCell::new(Vec::new()),
        })
    }

    async fn sender2(&self) -> Result<client2::SendRequest<Incoming>> {
        loop {
            if let Some(sender) = &*self.h2.borrow()
                && !sender.is_closed()
            {
                return Ok(sender.clone());
            }
            if self.connecting.replace(true) {
                tokio::task::yield_now().await;
                continue;
            }
            let socket = TcpStream::connect(self.address).await?;
            socket.set_nodelay(true)?;
            let (sender, connection) = client2::Builder::new(Local)
                .initial_stream_window_size(1 << 20)
                .initial_connection_window_size(4 << 20)
                .handshake(TokioIo::new(socket))
                .await?;
            spawn_local(connection);
            *self.h2.borrow_mut() = Some(sender);
            self.connecting.set(false);
        }
    }

    async fn sender1(&self) -> Result<client1::SendRequest<Incoming>> {
        while let Some(sender) = { self.h1.borrow_mut().pop() } {
            if !sender.is_closed() && sender.is_ready() {
                return Ok(sender);
            }
        }
        let socket = TcpStream::connect(self.address).await?;
        socket.set_nodelay(true)?;
        let (mut sender, connection) = client1::handshake(TokioIo::new(socket)).await?;
        spawn_local(connection);
        sender.ready().await?;
        Ok(sender)
    }
}

const HOP: [HeaderName; 2] = [header::CONNECTION, header::TRANSFER_ENCODING];

async fn forward(upstream: Rc<Upstream>, mut request: Request<Incoming>) -> Result<Response<Return>> {
    let h2 = request.version() == Version::HTTP_2;
    HOP.iter().for_each(|name| drop(request.headers_mut().remove(name)));
    if matches!(upstream.speaks, Speaks::H2) {
        if !h2 {
            let host = request.headers_mut().remove(header::HOST).context("a host")?;
            let path = request.uri().path_and_query().context("a path")?.clone();
            let uri = Uri::builder().scheme("http").authority(host.as_bytes()).path_and_query(path).build()?;
            *request.uri_mut() = uri;
        }
        *request.version_mut() = Version::HTTP_2;
        let response = upstream.sender2().await?.send_request(request).await?;
        return Ok(answer(response, h2, None));
    }
    if h2 {
        let host = request.uri().authority().context("an authority")?.as_str().parse()?;
        request.headers_mut().insert(header::HOST, host);
        let path = request.uri().path_and_query().context("a path")?.clone();
        *request.uri_mut() = Uri::from(path);
        *request.version_mut() = Version::HTTP_11;
    }
    let mut sender = upstream.sender1().await?;
    let response = sender.send_request(request).await?;
    Ok(answer(response, h2, Some((sender, upstream))))
}

fn answer(mut response: Response<Incoming>, h2: bool, lent: Lent) -> Response<Return> {
    HOP.iter().for_each(|name| drop(response.headers_mut().remove(name)));
    *response.version_mut() = if h2 { Version::HTTP_2 } else { Version::HTTP_11 };
    response.map(|body| Return { body, lent })
}

type Lent = Option<(client1::SendRequest<Incoming>, Rc<Upstream>)>;

/// A body that gives its connection back when it has ended.
struct Return {
    body: Incoming,
    lent: Lent,
}

impl Body for Return {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Return {
    fn drop(&mut self) {
        if let Some((mut sender, upstream)) = self.lent.take() {
            if sender.is_ready() {
                upstream.h1.borrow_mut().push(sender);
                return;
            }
            // The connection's task has not yet seen the end.
            spawn_local(async move {
                if sender.ready().await.is_ok() {
                    upstream.h1.borrow_mut().push(sender);
                }
            });
        }
    }
}
