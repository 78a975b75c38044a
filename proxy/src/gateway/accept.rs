//! Sockets in: a permit before each accept, so that overload waits in the kernel's backlog; then to a worker.
//!
//! **In** a listener. **Out** a socket on the least loaded worker, with its permit and the peer's address. **Refuses**
//! nobody: over the limit nobody is accepted. `accept(2)` errors back off and are counted; no handshake is ever awaited
//! here, as one slow client would stall all.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ipnet::IpNet;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::addr::ClientAddr;
use crate::backoff::Backoff;
use crate::drain::{Alive, Phase, Watch};
use crate::fault::{Fault, Refusal};
use crate::wire::Decoded;
use crate::wire::proxy_header::{self, ProxyHeader};

/// How sockets are taken. Keys below `accept:` in the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Connections that the kernel queues for us.
    pub backlog: i32,
    /// The most connections open at once.
    pub max_connections: usize,
    /// Whether small writes go out at once.
    pub nodelay: bool,
    /// Idle time before the kernel asks whether a peer lives.
    pub keepalive: Option<Duration>,
    /// How long sent bytes may stay unacknowledged before the kernel gives the peer up.
    pub user_timeout: Option<Duration>,
    /// The networks whose connections begin with a PROXY header; none others may.
    pub proxy_networks: Vec<IpNet>,
    /// How long a PROXY header may take.
    pub proxy_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            backlog: 1024,
            max_connections: 20_000,
            nodelay: true,
            keepalive: Some(Duration::from_secs(10)),
            user_timeout: Some(Duration::from_secs(30)),
            proxy_networks: Vec::new(),
            proxy_timeout: Duration::from_secs(5),
        }
    }
}

/// A socket on its way to a worker.
#[derive(Debug)]
pub struct Accepted {
    pub(crate) socket: std::net::TcpStream,
    pub(crate) peer: ClientAddr,
    pub(crate) permit: Permit,
}

/// Held as long as a connection lives: its place in the limit and in its worker's load.
#[derive(Debug)]
pub struct Permit {
    _place: OwnedSemaphorePermit,
    /// Counted for the drain from here on, not only when a worker gets to it.
    _alive: Alive,
    load: Arc<AtomicUsize>,
}

#[cfg(fuzzing)]
impl Permit {
    /// For a connection that no listener accepted.
    pub(super) fn of_nobody(drain: &Watch) -> Self {
        let place = Arc::new(Semaphore::new(1)).try_acquire_owned().expect("a place nobody has taken");
        Self { _place: place, _alive: drain.alive(), load: Arc::new(AtomicUsize::new(1)) }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.load.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A worker as the acceptor sees it.
#[derive(Clone, Debug)]
pub struct Door {
    /// Where sockets are handed in.
    pub sockets: mpsc::UnboundedSender<Accepted>,
    /// How many connections the worker has.
    pub load: Arc<AtomicUsize>,
}

/// Binds a listening socket; an IPv6 one takes IPv4 too.
pub fn bind(addr: SocketAddr, backlog: i32) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(backlog)?;
    Ok(socket.into())
}

/// Counts what the acceptor sees; it runs apart from the workers and their observers.
pub trait Tally: Send {
    /// `accept(2)` failed with this errno name.
    fn accept_failed(&self, error: &str);
}

/// Accepts until the drain begins.
pub async fn run(
    listener: Arc<TcpListener>,
    settings: Settings,
    doors: Vec<Door>,
    mut drain: Watch,
    tally: impl Tally,
) {
    let places = Arc::new(Semaphore::new(settings.max_connections));
    let backoff = Backoff { min: Duration::from_millis(5), max: Duration::from_secs(1), jitter: 0.2 };
    let mut failures = 0;
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            biased;
            () = drain.reached(Phase::Draining) => return,
            next = next => next,
        };
        let Ok(place) = place else { return };
        match accepted.and_then(|(socket, peer)| Ok((prepared(socket, &settings)?, peer))) {
            Ok((socket, peer)) => {
                failures = 0;
                let Some(door) = doors.iter().min_by_key(|door| door.load.load(Ordering::Relaxed)) else { return };
                door.load.fetch_add(1, Ordering::Relaxed);
                let permit = Permit { _place: place, _alive: drain.alive(), load: Arc::clone(&door.load) };
                // A worker that is gone drops the socket, which the client sees as a closed connection.
                let _ = door.sockets.send(Accepted { socket, peer: ClientAddr(canonical(peer)), permit });
            }
            Err(error) => {
                failures += 1;
                tally.accept_failed(errno(&error));
                // The peer left before we came: nothing to wait for.
                if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
                    tracing::warn!(stage = "accept", code = "accept.failed", error = %error, failures, "cannot accept connections");
                    tokio::time::sleep(backoff.after(failures)).await;
                }
            }
        }
    }
}

/// An IPv4 peer of a dual-stack listener shows as an IPv4 address.
fn canonical(peer: SocketAddr) -> SocketAddr {
    SocketAddr::new(peer.ip().to_canonical(), peer.port())
}

/// Sets the socket's options and takes it off the acceptor's runtime, for a worker's.
fn prepared(socket: TcpStream, settings: &Settings) -> io::Result<std::net::TcpStream> {
    socket.set_nodelay(settings.nodelay)?;
    let options = SockRef::from(&socket);
    if let Some(time) = settings.keepalive {
        options.set_tcp_keepalive(&TcpKeepalive::new().with_time(time).with_interval(time))?;
    }
    options.set_tcp_user_timeout(settings.user_timeout)?;
    socket.into_std()
}

fn errno(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(24) => "EMFILE",
        Some(23) => "ENFILE",
        Some(12) => "ENOMEM",
        Some(105) => "ENOBUFS",
        Some(103) => "ECONNABORTED",
        Some(104) => "ECONNRESET",
        _ => "other",
    }
}

/// Reads the PROXY header of a connection that comes from a network configured to send one.
pub(super) async fn proxied(
    socket: &mut TcpStream,
    peer: ClientAddr,
    settings: &Settings,
) -> Result<ClientAddr, Error> {
    if !settings.proxy_networks.iter().any(|network| network.contains(&peer.0.ip())) {
        return Ok(peer);
    }
    let header = tokio::time::timeout(settings.proxy_timeout, read_proxy_header(socket));
    match header.await.map_err(|_| Error::ProxyTimeout)?? {
        ProxyHeader::Local => Ok(peer),
        ProxyHeader::Proxied { source, .. } => Ok(ClientAddr(canonical(source))),
    }
}

/// Reads exactly the header: what follows belongs to TLS, so bytes are peeked before they are taken.
async fn read_proxy_header(socket: &mut TcpStream) -> Result<ProxyHeader, Error> {
    let mut seen = vec![0; proxy_header::MAX_BYTES];
    let mut before = 0;
    loop {
        let len = socket.peek(&mut seen).await?;
        match proxy_header::decode(&seen[..len]) {
            Decoded::Done { value, consumed } => {
                socket.read_exact(&mut seen[..consumed]).await?;
                return Ok(value);
            }
            Decoded::Bad(reason) => return Err(Error::Proxy(reason)),
            Decoded::More if len == 0 => return Err(Error::Eof),
            // Peeking does not show an end behind unread bytes.
            Decoded::More if len == before && socket.ready(Interest::READABLE).await?.is_read_closed() => {
                return Err(Error::Eof);
            }
            // Nor does it wait for *more* bytes than were there before, so a dribbling peer is polled.
            Decoded::More if len == before => tokio::time::sleep(Duration::from_millis(2)).await,
            Decoded::More => before = len,
        }
    }
}

/// Why a socket was not taken further.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the peer left before its PROXY header")]
    Eof,
    #[error("reading the PROXY header failed")]
    Io(#[from] io::Error),
    #[error("malformed PROXY header")]
    Proxy(#[source] proxy_header::Bad),
    #[error("no PROXY header in time")]
    ProxyTimeout,
}

impl Refusal for Error {
    fn fault(&self) -> Fault {
        Fault::Client
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Eof => "accept.eof",
            Self::Io(_) => "accept.io",
            Self::Proxy(_) => "accept.proxy_header",
            Self::ProxyTimeout => "accept.proxy_timeout",
        }
    }
}
