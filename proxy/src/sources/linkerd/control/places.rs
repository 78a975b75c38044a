//! The addresses of a service, a connection to each, and which of them is asked.
//!
//! **In** answers of DNS. **Out** a [`Call`] on a connection, which counts for as long as its answer or stream lasts.
//! Addresses are asked for again when they are due and somebody calls; an answer that does not come changes nothing.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Uri;
use http_body::{Frame, SizeHint};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout};
use tonic::Status;
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use super::{Settings, chain};
use crate::addr::Host;
use crate::connect;
use crate::live::Live;
use crate::sources::dns::Names;
use crate::tls::{Credentials, client};

/// The addresses, and how they are found.
pub(super) struct Places {
    settings: Settings,
    credentials: Arc<Live<Credentials>>,
    names: Option<Arc<Names>>,
    known: Mutex<Known>,
    /// One question at a time.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Known {
    list: Vec<Arc<Place>>,
    /// When to ask again.
    due: Option<Instant>,
    /// Questions without an answer since the last answer.
    unanswered: u32,
}

/// One address.
struct Place {
    addr: SocketAddr,
    channel: Channel,
    /// Calls and streams under way.
    busy: AtomicUsize,
    trouble: Mutex<Trouble>,
}

#[derive(Default)]
struct Trouble {
    failures: u32,
    /// Until when it is left alone, where there are others.
    until: Option<Instant>,
}

impl Places {
    pub(super) fn new(settings: Settings, credentials: Arc<Live<Credentials>>, names: Option<Arc<Names>>) -> Self {
        Self { settings, credentials, names, known: Mutex::default(), asking: tokio::sync::Mutex::default() }
    }

    /// A call on the better of two addresses.
    pub(super) async fn pick(&self) -> Result<Call, Status> {
        self.renew().await;
        let place = self.better();
        let nowhere = || Status::unavailable(format!("{}: no address of {}", self.settings.name, self.settings.at));
        let place = place.ok_or_else(nowhere)?;
        place.busy.fetch_add(1, Ordering::Relaxed);
        Ok(Call { place, settings: self.settings.clone(), began: Instant::now(), settled: false })
    }

    fn better(&self) -> Option<Arc<Place>> {
        let known = self.known.lock();
        let now = Instant::now();
        let resting = |place: &Place| place.trouble.lock().until.filter(|until| *until > now);
        let well: Vec<&Arc<Place>> = known.list.iter().filter(|place| resting(place).is_none()).collect();
        if well.is_empty() {
            // Better one that may have recovered than none at all.
            return known.list.iter().min_by_key(|place| resting(place)).map(Arc::clone);
        }
        let first = rand::random_range(0..well.len());
        let second = (first + rand::random_range(0..well.len())) % well.len();
        let busy = |index: usize| well[index].busy.load(Ordering::Relaxed);
        Some(Arc::clone(if busy(second) < busy(first) { well[second] } else { well[first] }))
    }

    /// Asks for the addresses where that is due.
    async fn renew(&self) {
        let due = || self.known.lock().due.is_none_or(|due| due <= Instant::now());
        if !due() {
            return;
        }
        let _one = self.asking.lock().await;
        if !due() {
            return; // somebody else has asked meanwhile
        }
        match self.find().await {
            Some((addrs, ttl)) => {
                let mut known = self.known.lock();
                let mut list = Vec::with_capacity(addrs.len());
                for addr in addrs {
                    let same = known.list.iter().find(|place| place.addr == addr);
                    list.push(same.map_or_else(|| Arc::new(self.place(addr)), Arc::clone));
                }
                *known = Known { list, due: ttl.and_then(|ttl| Instant::now().checked_add(ttl)), unanswered: 0 };
                if known.due.is_none() {
                    known.due = Some(Instant::now() + FOR_EVER);
                }
            }
            None => {
                let mut known = self.known.lock();
                known.unanswered = known.unanswered.saturating_add(1);
                known.due = Some(Instant::now() + self.settings.transport.backoff.after(known.unanswered));
                tracing::debug!(service = self.settings.name, at = %self.settings.at, "no address was found");
            }
        }
    }

    async fn find(&self) -> Option<(Vec<SocketAddr>, Option<std::time::Duration>)> {
        match (&self.settings.at.host, &self.names) {
            (Host::Ip(ip), _) => Some((vec![SocketAddr::new(*ip, self.settings.at.port)], None)),
            (Host::Name(name), Some(names)) => {
                let found = names.find(name, self.settings.at.port).await?;
                Some((found.addrs, Some(found.ttl)))
            }
            (Host::Name(_), None) => None,
        }
    }

    fn place(&self, addr: SocketAddr) -> Place {
        let transport = &self.settings.transport;
        // What stands in `:authority`; where the bytes go is the connector's business.
        let uri = Uri::builder().scheme("http").authority(self.settings.at.to_string()).path_and_query("/").build();
        let uri = uri.expect("a host and a port are an authority");
        let mut endpoint = Endpoint::from(uri).keep_alive_timeout(transport.keepalive_timeout);
        if let Some(interval) = transport.keepalive_interval {
            endpoint = endpoint.http2_keep_alive_interval(interval);
        }
        let (settings, credentials) = (self.settings.clone(), Arc::clone(&self.credentials));
        let connector = service_fn(move |_: Uri| dial(addr, settings.clone(), Arc::clone(&credentials)));
        let channel = endpoint.connect_with_connector_lazy(connector);
        Place { addr, channel, busy: AtomicUsize::new(0), trouble: Mutex::default() }
    }
}

/// What a fixed address is good for.
const FOR_EVER: std::time::Duration = std::time::Duration::from_secs(86_400 * 365);

/// A stream of bytes, plain or not.
trait Bytestream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Bytestream for S {}

async fn dial(
    addr: SocketAddr,
    settings: Settings,
    credentials: Arc<Live<Credentials>>,
) -> io::Result<TokioIo<Box<dyn Bytestream>>> {
    let within = settings.transport.connect_timeout;
    // The control plane's addresses are the operator's word, loopback included.
    let socket = connect::Settings { timeout: within, deny_loopback: false, ..connect::Settings::default() };
    let stream = connect::tcp(addr, &socket).await.map_err(io::Error::other)?;
    let Some(server) = &settings.server else { return Ok(TokioIo::new(Box::new(stream))) };
    let credentials = credentials.load_full();
    // No application protocol, as the control plane's own clients offer none.
    let shaken = timeout(within, client::connect(stream, &credentials, server, &[])).await;
    let connected = shaken.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?.map_err(|error| {
        tracing::debug!(service = settings.name, %addr, error = chain(&error), "the handshake failed");
        io::Error::other(error)
    })?;
    Ok(TokioIo::new(Box::new(connected.stream)))
}

/// A call on one address, from the request to the last byte of the answer.
pub(super) struct Call {
    place: Arc<Place>,
    settings: Settings,
    began: Instant,
    /// Whether it is known how it went.
    settled: bool,
}

impl Call {
    pub(super) fn channel(&self) -> Channel {
        self.place.channel.clone()
    }

    pub(super) fn addr(&self) -> SocketAddr {
        self.place.addr
    }

    pub(super) fn failed(&mut self) {
        self.settled = true;
        let mut trouble = self.place.trouble.lock();
        trouble.failures = trouble.failures.saturating_add(1);
        trouble.until = Some(Instant::now() + self.settings.transport.backoff.after(trouble.failures));
    }

    fn well(&mut self) {
        self.settled = true;
        *self.place.trouble.lock() = Trouble::default();
    }

    /// Counts on until the body ends.
    pub(super) fn answered(self, response: http::Response<Body>) -> http::Response<Body> {
        response.map(|body| Body::new(Counted { body, call: self }))
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.place.busy.fetch_sub(1, Ordering::Relaxed);
        // Whoever asked has lost patience before anything came: the address may be one that takes calls and hangs.
        if !self.settled && self.began.elapsed() >= self.settings.transport.connect_timeout {
            self.failed();
        }
    }
}

pin_project! {
    /// An answer's body that keeps its [`Call`] for as long as it lasts.
    struct Counted {
        #[pin]
        body: Body,
        call: Call,
    }
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.project();
        let frame = this.body.poll_frame(cx);
        match &frame {
            Poll::Ready(Some(Err(_))) => this.call.failed(),
            Poll::Ready(_) if !this.call.settled => this.call.well(),
            _ => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
