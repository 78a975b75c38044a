//! Upstream HTTP connections of one worker: kept open, shared, and given up in time.
//!
//! **In** an endpoint and a request. **Out** the response, its body holding on to the connection (HTTP/1.1) or stream
//! (HTTP/2) until it has ended. **Refuses** with a [`SendError`] that gives the request back where it certainly was not
//! sent.
//!
//! `http1` lends connections out one request at a time, the most recently used first; `http2` shares them. A request
//! that finds a connection costs no allocation, lock, timer or clock of ours: ages are counted in ticks of one coarse
//! timer per pool. Dials run in tasks of their own; whoever waits gets the next connection that comes free, whichever it is.

mod body;
mod error;
mod http1;
mod http2;
mod line;
mod open;
mod peer;
mod pulse;
mod received;
mod tunnel;
mod upload;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;

use self::open::{Open, Opener};
use self::peer::Peer;
use super::Dial;
use crate::endpoint::{Endpoint, Endpoints};

pub use self::body::Streamed;
pub(super) use self::error::is_stream_reset;
pub use self::error::{BodyError, SendError};
pub use self::tunnel::Tunnel;

/// How connections are kept and what is allowed on them.
#[derive(Clone, Debug)]
pub struct PoolSettings {
    /// From the start of a dial to a connection that can be used: TCP, TLS, what must come first, HTTP preface.
    pub dial_timeout: Duration,
    /// HTTP/1.1 connections per endpoint and worker, idle ones included.
    pub http1_connections: usize,
    /// How many of them may be idle.
    pub http1_idle: usize,
    /// How long they may be idle. Three seconds: common servers close after five, and a request that meets the closing
    /// may be lost, as HTTP/1.1 has no way to say that it was not looked at.
    pub http1_idle_timeout: Duration,
    /// HTTP/2 connections per endpoint and worker.
    pub http2_connections: usize,
    /// Streams on one of them before the next is opened; the endpoint's own limit counts where it is lower.
    pub http2_streams: usize,
    /// How long a connection without streams is kept. GOAWAY makes closing safe, so this only weighs memory against
    /// handshakes.
    pub http2_idle_timeout: Duration,
    /// Flow-control window of a stream, in bytes: 256 KiB at a round trip of 1 ms is 256 MB/s. The connection's window is
    /// this times `http2_streams`, so that clients who do not read can never close it for the others who share it.
    pub http2_window: u32,
    /// How often to ask an endpoint with open streams whether it is alive (PING). Off: gRPC servers count pings more
    /// frequent than one in five minutes as abuse and end the connection; the kernel's keepalive serves instead.
    pub http2_ping_interval: Option<Duration>,
    /// How long to wait for the answer to a PING.
    pub http2_ping_timeout: Duration,
    /// The largest response head taken, in bytes.
    pub max_head_bytes: u32,
    /// Connections older than this are replaced: new ones are verified against current certificates, and spread anew
    /// where the address is a virtual one.
    pub max_age: Duration,
    /// How many requests may wait for a connection, per endpoint, worker and version.
    pub waiters: usize,
    /// How long they wait.
    pub wait_timeout: Duration,
}

impl Default for PoolSettings {
    fn default() -> Self {
        Self {
            dial_timeout: Duration::from_secs(1),
            http1_connections: 1024,
            http1_idle: 256,
            http1_idle_timeout: Duration::from_secs(3),
            http2_connections: 8,
            http2_streams: 100,
            http2_idle_timeout: Duration::from_secs(60),
            http2_window: 256 * 1024,
            http2_ping_interval: None,
            http2_ping_timeout: Duration::from_secs(10),
            max_head_bytes: 16 * 1024,
            max_age: Duration::from_secs(3600),
            waiters: 1024,
            wait_timeout: Duration::from_secs(3),
        }
    }
}

/// The version to speak with the endpoint.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Version {
    /// HTTP/1.1. The request needs an origin-form URI and a `host` field.
    Http1,
    /// HTTP/2. The request needs a URI with scheme and authority.
    Http2,
}

/// What a pool holds, for those who show it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Stats {
    /// Endpoints with at least one connection, or somebody waiting for one.
    pub endpoints: usize,
    /// Open HTTP/1.1 connections.
    pub http1_connections: usize,
    /// Those of them that are idle.
    pub http1_idle: usize,
    /// Open HTTP/2 connections that take streams.
    pub http2_connections: usize,
    /// Streams on them.
    pub http2_streams: usize,
    /// Requests waiting for a connection.
    pub waiting: usize,
}

/// The HTTP connections of one worker. Clones are the same pool. `B` is the body of requests.
#[derive(Debug)]
pub struct Pool<B> {
    shared: Rc<Shared<B>>,
}

#[derive(Debug)]
struct Shared<B> {
    core: Rc<Core<B>>,
    /// By address; more than one where the same address is to be spoken to in different ways.
    peers: RefCell<HashMap<SocketAddr, Vec<Rc<Peer<B>>>>>,
    sweeping: Cell<bool>,
}

/// What all peers of a pool share.
struct Core<B> {
    open: Box<dyn Open<B>>,
    settings: PoolSettings,
    /// Counts [`TICK`]s.
    tick: Cell<u32>,
}

/// The resolution of ages: fine enough for idle timeouts of seconds, coarse enough to cost nothing.
const TICK: Duration = Duration::from_millis(500);

impl<B> Clone for Pool<B> {
    fn clone(&self) -> Self {
        Self { shared: Rc::clone(&self.shared) }
    }
}

impl<B> Pool<B>
where
    B: Body<Data = Bytes> + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// A pool whose connections are made by `dial`.
    pub fn new<D: Dial>(dial: D, settings: PoolSettings) -> Self {
        let open = Box::new(Opener::new(dial, &settings));
        let core = Rc::new(Core { open, settings, tick: Cell::new(0) });
        Self { shared: Rc::new(Shared { core, peers: RefCell::default(), sweeping: Cell::new(false) }) }
    }

    /// Sends a request and waits for the head of its response.
    ///
    /// Dropping the future cancels the request: an HTTP/2 stream is reset, an HTTP/1.1 connection closed. Must be called
    /// within a local runtime.
    pub async fn send(
        &self,
        endpoint: &Endpoint,
        request: Request<B>,
        version: Version,
    ) -> Result<Response<Streamed<B>>, SendError<B>> {
        let peer = self.peer(endpoint);
        match version {
            Version::Http1 => http1::send(&peer, request).await,
            Version::Http2 => http2::send(&peer, request).await,
        }
    }

    /// Gives up the connections to endpoints that were in `old` and are not in `new`: idle ones are closed, the others
    /// when they have done what they are doing.
    pub fn forget(&self, old: &Endpoints, new: &Endpoints) {
        self.retain(|endpoint| {
            !old.list.iter().any(|other| peer::same(endpoint, other))
                || new.list.iter().any(|other| peer::same(endpoint, other))
        });
    }

    /// Gives up all connections, in the same way: after a change of credentials, say.
    pub fn renew(&self) {
        self.retain(|_| false);
    }

    /// Gives up the connections to endpoints for which `keep` says no.
    pub fn retain(&self, keep: impl Fn(&Endpoint) -> bool) {
        let mut gone = Vec::new();
        self.shared.peers.borrow_mut().retain(|_, peers| {
            peers.retain(|peer| {
                let keep = keep(&peer.endpoint);
                if !keep {
                    gone.push(Rc::clone(peer));
                }
                keep
            });
            !peers.is_empty()
        });
        for peer in gone {
            peer.retire();
        }
    }

    /// What the pool holds now.
    pub fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        for peer in self.shared.peers.borrow().values().flatten() {
            stats.endpoints += 1;
            peer.count(&mut stats);
        }
        stats
    }

    fn peer(&self, endpoint: &Endpoint) -> Rc<Peer<B>> {
        if let Some(peers) = self.shared.peers.borrow().get(&endpoint.addr)
            && let Some(peer) = peers.iter().find(|peer| peer::same(&peer.endpoint, endpoint))
        {
            return Rc::clone(peer);
        }
        self.new_peer(endpoint)
    }

    #[cold]
    fn new_peer(&self, endpoint: &Endpoint) -> Rc<Peer<B>> {
        let peer = Rc::new(Peer::new(endpoint.clone(), Rc::clone(&self.shared.core)));
        self.shared.peers.borrow_mut().entry(endpoint.addr).or_default().push(Rc::clone(&peer));
        if !self.shared.sweeping.replace(true) {
            let shared = Rc::downgrade(&self.shared);
            // Ends when the pool is gone.
            tokio::task::spawn_local(async move {
                loop {
                    tokio::time::sleep(TICK).await;
                    let Some(shared) = shared.upgrade() else { return };
                    shared.sweep();
                }
            });
        }
        peer
    }
}

impl<B> Shared<B>
where
    B: Body<Data = Bytes> + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn sweep(&self) {
        self.core.tick.set(self.core.tick.get().wrapping_add(1));
        let peers: Vec<_> = self.peers.borrow().values().flatten().cloned().collect();
        for peer in &peers {
            peer.sweep();
        }
        drop(peers);
        self.peers.borrow_mut().retain(|_, peers| {
            // One that somebody holds besides the map is in use.
            peers.retain(|peer| Rc::strong_count(peer) > 1 || !peer.is_empty());
            !peers.is_empty()
        });
    }
}

impl<B> Core<B> {
    fn ticks(duration: Duration) -> u32 {
        u32::try_from(duration.as_millis().div_ceil(TICK.as_millis())).unwrap_or(u32::MAX)
    }

    /// Whether more than `limit` has passed since tick `since`.
    fn older(&self, since: u32, limit: Duration) -> bool {
        self.tick.get().wrapping_sub(since) >= Self::ticks(limit).max(1)
    }
}

impl<B> std::fmt::Debug for Core<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core").field("settings", &self.settings).field("tick", &self.tick).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
