//! A workload behind a Linkerd proxy, as the gateway meets it on `POD-IP:4143`: TLS with the workload's identity, the
//! transport header, and behind it strictly what the header says. (Linkerd wire document §1, §2, §5.3.)
//!
//! It reads the header's bytes by itself and keeps them: a case compares them with what real proxies sent.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use http::HeaderValue;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use parking_lot::Mutex;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::pki::{Pair, Pki};
use crate::spawn;
use crate::upstream::{self, Upstream};

/// The application protocol that stands for the header.
const ALPN: &[u8] = b"transport.l5d.io/v1";

/// What a header begins with.
const MAGIC: &[u8] = b"transport.l5d.io/v1\r\n\r\n";

/// A connection as it arrived.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Arrival {
    /// The server name that was asked for.
    pub sni: Option<String>,
    /// Whether the header's protocol was agreed on.
    pub alpn: Option<Vec<u8>>,
    /// The protobuf of the header.
    pub header: Option<Vec<u8>>,
}

/// A workload and its proxy.
#[derive(Clone, Debug)]
pub struct Meshed {
    /// Where the proxy listens.
    pub addr: SocketAddr,
    /// The workload.
    pub workload: Upstream,
    arrivals: Arc<Mutex<Vec<Arrival>>>,
}

impl Meshed {
    /// Every connection so far.
    pub fn arrivals(&self) -> Vec<Arrival> {
        self.arrivals.lock().clone()
    }

    /// The headers so far.
    pub fn headers(&self) -> Vec<Vec<u8>> {
        self.arrivals().into_iter().filter_map(|arrival| arrival.header).collect()
    }
}

/// A proxy of today with this certificate.
pub async fn meshed(own: &Pair) -> Meshed {
    proxy(own, &[ALPN]).await
}

/// A proxy that agrees on these protocols.
pub async fn proxy(own: &Pair, alpn: &[&[u8]]) -> Meshed {
    let acceptor = TlsAcceptor::from(Arc::new(config(own, alpn)));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let meshed = Meshed { addr, workload: Upstream::at(addr), arrivals: Arc::default() };
    let serving = meshed.clone();
    drop(spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let _ = socket.set_nodelay(true);
            drop(spawn(serve(serving.clone(), acceptor.clone(), socket)));
        }
    }));
    meshed
}

fn config(own: &Pair, alpn: &[&[u8]]) -> ServerConfig {
    let mut roots = RootCertStore::empty();
    let anchor = Pki::get().anchor.cert_pem();
    roots.add(CertificateDer::from_pem_slice(anchor.as_bytes()).unwrap()).unwrap();
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap();
    let chain = CertificateDer::pem_slice_iter(own.chain.as_bytes()).map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).unwrap();
    let mut config = ServerConfig::builder().with_client_cert_verifier(verifier).with_single_cert(chain, key).unwrap();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config
}

async fn serve(meshed: Meshed, acceptor: TlsAcceptor, socket: TcpStream) {
    let Ok(mut stream) = acceptor.accept(socket).await else { return };
    meshed.workload.connected();
    let (_, session) = stream.get_ref();
    let sni = session.server_name().map(str::to_owned);
    let alpn = session.alpn_protocol().map(<[u8]>::to_vec);
    if alpn.as_deref() != Some(ALPN) {
        meshed.arrivals.lock().push(Arrival { sni, alpn, header: None });
        return workload(meshed.workload, stream, Session::Detected).await;
    }
    let Some(header) = header(&mut stream).await else { return };
    let session = match &header {
        header if header.ends_with(b"\x1a\x02\x0a\x00") => Session::Http1,
        header if header.ends_with(b"\x1a\x02\x12\x00") => Session::Http2,
        // Named by the port: one stands for a workload of bytes, all others are HTTP that nobody spoke of.
        header if header.starts_with(ECHO_PORT) => Session::Bytes,
        _ => Session::Detected,
    };
    meshed.arrivals.lock().push(Arrival { sni, alpn, header: Some(header) });
    workload(meshed.workload, stream, session).await;
}

/// Port 9, discard, echoes here: what a header begins with that names it.
const ECHO_PORT: &[u8] = b"\x08\x09";

async fn header<S: AsyncRead + Unpin>(stream: &mut S) -> Option<Vec<u8>> {
    let mut start = [0; 27];
    stream.read_exact(&mut start).await.ok()?;
    let (magic, length) = start.split_at(MAGIC.len());
    assert_eq!(magic, MAGIC);
    let length = u32::from_be_bytes(length.try_into().unwrap());
    let mut header = vec![0; usize::try_from(length).unwrap()];
    stream.read_exact(&mut header).await.ok()?;
    Some(header)
}

/// What the proxy hands the session to.
#[derive(Clone, Copy, Debug)]
enum Session {
    Bytes,
    Detected,
    Http1,
    Http2,
}

async fn workload<S>(upstream: Upstream, mut stream: S, session: Session)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let upstream = upstream.clone();
        async move {
            let carried =
                request.version() == http::Version::HTTP_2 && request.headers().contains_key("l5d-orig-proto");
            let old = request.uri().path() == "/old";
            let mut answer = upstream::answer(upstream, request).await?;
            if carried {
                let version = if old { "HTTP/1.0" } else { "HTTP/1.1" };
                answer.headers_mut().insert("l5d-orig-proto", HeaderValue::from_static(version));
            }
            Ok::<_, std::convert::Infallible>(answer)
        }
    });
    match session {
        Session::Bytes => {
            let (mut read, mut write) = tokio::io::split(&mut stream);
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
        }
        Session::Detected => {
            let mut server = auto::Builder::new(TokioExecutor::new());
            server.http2().enable_connect_protocol();
            let _ = server.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
        }
        Session::Http1 => {
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades().await;
        }
        Session::Http2 => {
            let _ = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
        }
    }
}
