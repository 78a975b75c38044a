//! The probe's doors: its own port over mutual TLS (and in plaintext where that is on), and the gateway port by a
//! transport header that names the probe's port.
//!
//! **In** a listener on the control runtime, apart from the workers, so that an answer never queues behind data. **Out**
//! answers from `isthmus-probe`, which knows no TLS: the streams are handed to it. Nothing here writes a log line per probe.
//! (Contract §1.8: over mTLS, SNI own name, no ALPN, HTTP/1.0, 1.1 or HTTP/2 with prior knowledge.)

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use isthmus_probe::endpoint::Endpoint;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::Gateway;
use super::refuse::Refused;
use crate::backoff::Backoff;
use crate::drain::{Phase, Watch};
use crate::fault::Fault;
use crate::live::Live;
use crate::record::Stage;
use crate::tls::{self, Credentials};

/// The probe's own port.
#[derive(Debug)]
pub struct ProbePort {
    /// Answers.
    pub endpoint: Arc<Endpoint>,
    /// The gateway's identity, which mirrors check.
    pub credentials: Arc<Live<Credentials>>,
    /// How handshakes are held here.
    pub tls: tls::Settings,
    /// Whether plaintext is answered too, for the kubelet and for load balancers.
    pub plaintext: bool,
    /// Whether probes without a client certificate are refused.
    pub require_client_certificate: bool,
    /// How long the first byte may take, which tells TLS from plaintext.
    pub first_byte_timeout: Duration,
}

impl ProbePort {
    /// Serves until the process ends. Stays open during the whole drain, saying 503.
    pub async fn run(self: Arc<Self>, listener: Arc<TcpListener>, mut drain: Watch) {
        let backoff = Backoff { min: Duration::from_millis(5), max: Duration::from_secs(1), jitter: 0.2 };
        let mut failures = 0;
        let handle = tokio::runtime::Handle::current();
        let places = Arc::new(Semaphore::new(MAX_OPEN));
        loop {
            let accepted = tokio::select! {
                biased;
                () = drain.reached(Phase::Cut) => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((socket, peer)) => {
                    failures = 0;
                    // A probe measures latency: its answer must not wait for an acknowledgement.
                    let _ = socket.set_nodelay(true);
                    // Beyond the limit the socket is closed: anybody can come here, and the data's sockets need descriptors.
                    let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
                    let port = Arc::clone(&self);
                    drop(handle.spawn(async move {
                        port.serve(socket, peer).await;
                        drop(place);
                    }));
                }
                Err(error) => {
                    failures += 1;
                    tracing::debug!(stage = "accept", error = %error, "the probe port cannot accept");
                    tokio::time::sleep(backoff.after(failures)).await;
                }
            }
        }
    }

    async fn serve(&self, socket: TcpStream, peer: SocketAddr) {
        if self.plaintext {
            let mut first = [0];
            match tokio::time::timeout(self.first_byte_timeout, socket.peek(&mut first)).await {
                Ok(Ok(1)) if first[0] != TLS_HANDSHAKE => return self.endpoint.serve_connection(socket, peer).await,
                Ok(Ok(1)) => {}
                _ => return,
            }
        }
        let credentials = self.credentials.load_full();
        let stream = if self.require_client_certificate {
            tls::server::accept(socket, &credentials, &self.tls).await.map(|accepted| accepted.stream)
        } else {
            tls::server::accept_anyone(socket, &credentials, &self.tls).await.map(|accepted| accepted.stream)
        };
        match stream {
            Ok(stream) => self.endpoint.serve_connection(stream, peer).await,
            Err(error) => {
                tracing::debug!(stage = "tls", code = crate::fault::Refusal::code(&error), %peer, "a probe was refused");
            }
        }
    }
}

/// Sockets open at once on the probe's port, those included that are still shaking hands; who is served is bounded apart.
const MAX_OPEN: usize = 1024;

/// The first byte of a TLS record that carries a ClientHello (RFC 8446 §5.1).
const TLS_HANDSHAKE: u8 = 22;

/// A transport header without a name asks for a port of the gateway itself. Only the probe is to be had that way: any
/// other port would let a peer reach whatever else listens in the pod.
pub(super) async fn through_header<S>(
    gateway: &Rc<Gateway>,
    port: u16,
    stream: S,
    peer: SocketAddr,
) -> Result<(), Refused>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    if !gateway.probe_ports.contains(&port) {
        let detail =
            format!("a transport header asked for port {port} of the gateway itself; only the probe's is open");
        return Err(Refused::new(Stage::Detect, Fault::Client, "detect.header_port", &detail));
    }
    gateway.probe.serve_connection(stream, peer).await;
    Ok(())
}
