//! HTTP/1.1: a connection is lent to one request at a time.
//!
//! Idle connections are a stack, so that the most recently used is taken and the surplus grows old and is closed. A
//! request that finds none waits in line; a dial is started for every one in line, up to the limit, and whichever comes
//! first (a new connection, or one that another request has finished with) goes to the first in line.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body::Body;
use hyper::client::conn::http1::SendRequest;
use tokio::sync::oneshot;

use super::super::Error;
use super::body::{Hold, Source, Streamed};
use super::line::Line;
use super::peer::Peer;
use super::{SendError, Stats};

/// How often a request that met a connection just closed by the endpoint is moved to the next one before a new one is
/// insisted on: a restarted endpoint leaves many dead ones behind.
const STALE_TRIES: usize = 3;

#[derive(Debug)]
pub(super) struct Http1<B> {
    idle: RefCell<Vec<Conn<B>>>,
    line: Line<Lease<B>>,
    /// Connections whose task lives, and dials.
    open: Cell<usize>,
    dialing: Cell<usize>,
}

#[derive(Debug)]
pub(super) struct Conn<B> {
    sender: SendRequest<B>,
    /// Ends the connection in the middle of whatever it does.
    cut: oneshot::Sender<()>,
    /// Ticks: when it was made, and when it was last given back.
    pub(super) born: u32,
    pub(super) returned: u32,
    used: bool,
}

/// A connection out on loan. Dropped before anything was sent on it, it goes back.
#[derive(Debug)]
pub(super) struct Lease<B> {
    peer: Rc<Peer<B>>,
    conn: Option<Conn<B>>,
    /// A request was sent: the connection is good for another only once the response has ended.
    sent: bool,
}

/// One of the connections that [`Http1::open`] counts.
struct Open<B>(Rc<Peer<B>>);

/// One of the dials that [`Http1::dialing`] counts.
struct Dialing<B>(Rc<Peer<B>>);

pub(super) async fn send<B>(peer: &Rc<Peer<B>>, mut request: Request<B>) -> Result<Response<Streamed<B>>, SendError<B>>
where
    B: Body<Data = Bytes> + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    *request.version_mut() = http::Version::HTTP_11;
    let connect = request.method() == Method::CONNECT;
    let mut tries = 0;
    loop {
        let found = if tries < STALE_TRIES { pop(peer) } else { None };
        let mut lease = match found {
            Some(lease) => lease,
            None => match Box::pin(wait(peer)).await {
                Ok(lease) => lease,
                Err(error) => return Err(SendError::unsent(error, request)),
            },
        };
        let Some(mut conn) = lease.conn.take() else { continue };
        let used = std::mem::replace(&mut conn.used, true);
        match conn.sender.try_send_request(request).await {
            Ok(response) => {
                let upgraded =
                    response.status() == StatusCode::SWITCHING_PROTOCOLS || (connect && response.status().is_success());
                (lease.conn, lease.sent) = (Some(conn), true);
                let hold = Hold::Http1 { lease, upgraded };
                return Ok(response.map(|body| Streamed::new(Source::Http1(body), hold)));
            }
            Err(error) => {
                let failed = SendError::from_hyper(error);
                match failed.request {
                    // It was closed while it lay idle, and nothing was sent: any other will do.
                    Some(unsent) if used => request = *unsent,
                    _ => return Err(failed),
                }
                tries += 1;
            }
        }
    }
}

/// The most recently used idle connection that is still good.
fn pop<B>(peer: &Rc<Peer<B>>) -> Option<Lease<B>> {
    loop {
        let conn = peer.http1.idle.borrow_mut().pop()?;
        if conn.sender.is_ready() && !peer.core.older(conn.born, peer.core.settings.max_age) {
            return Some(Lease { peer: Rc::clone(peer), conn: Some(conn), sent: false });
        }
    }
}

#[cold]
async fn wait<B>(peer: &Rc<Peer<B>>) -> Result<Lease<B>, Error>
where
    B: Body<Data = Bytes> + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let settings = &peer.core.settings;
    let place = peer.http1.line.join(settings.waiters)?;
    dial_for_waiters(peer);
    place.wait(settings.wait_timeout).await
}

/// Starts as many dials as there are requests in line, within the limit.
fn dial_for_waiters<B>(peer: &Rc<Peer<B>>)
where
    B: Body<Data = Bytes> + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let http1 = &peer.http1;
    let waiting = http1.line.len();
    while http1.dialing.get() < waiting && http1.open.get() < peer.core.settings.http1_connections.max(1) {
        http1.dialing.set(http1.dialing.get() + 1);
        http1.open.set(http1.open.get() + 1);
        tokio::task::spawn_local(dial(Dialing(Rc::clone(peer)), Open(Rc::clone(peer))));
    }
}

async fn dial<B>(dialing: Dialing<B>, open: Open<B>)
where
    B: Body<Data = Bytes> + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let peer = Rc::clone(&open.0);
    let opened = peer.core.open.http1(&peer.endpoint).await;
    drop(dialing);
    match opened {
        Ok(opened) => {
            let (cut, is_cut) = oneshot::channel();
            tokio::task::spawn_local(async move {
                tokio::select! {
                    () = opened.driver => {}
                    Ok(()) = is_cut => {}
                }
                let peer = Rc::clone(&open.0);
                drop(open);
                dial_for_waiters(&peer);
            });
            let tick = peer.core.tick.get();
            deliver(&peer, Conn { sender: opened.sender, cut, born: tick, returned: tick, used: false });
        }
        Err(error) => {
            drop(open);
            // One failed dial fails one request, the one that has waited for longest; the others have dials of their own.
            peer.http1.line.fail_one(&error);
            dial_for_waiters(&peer);
        }
    }
}

/// Hands a connection that can be used to the first in line, or lays it aside.
fn deliver<B>(peer: &Rc<Peer<B>>, conn: Conn<B>) {
    let lease = Lease { peer: Rc::clone(peer), conn: Some(conn), sent: false };
    let Some(mut lease) = peer.http1.line.serve(lease) else { return };
    let Some(mut conn) = lease.conn.take() else { return };
    let mut idle = peer.http1.idle.borrow_mut();
    if !peer.retired.get() && idle.len() < peer.core.settings.http1_idle {
        conn.returned = peer.core.tick.get();
        idle.push(conn);
    }
}

impl<B: 'static> Lease<B> {
    /// The response has been read to its end: the connection can serve another request, if hyper and its age agree.
    pub(super) fn finish(mut self) {
        let Some(mut conn) = self.conn.take() else { return };
        let peer = Rc::clone(&self.peer);
        if conn.sender.is_closed() || peer.retired.get() || peer.core.older(conn.born, peer.core.settings.max_age) {
            return;
        }
        if conn.sender.is_ready() {
            return deliver(&peer, conn);
        }
        // The request is still being sent although the answer is complete, or hyper has not looked yet.
        let patience = peer.core.settings.http1_idle_timeout;
        tokio::task::spawn_local(async move {
            match tokio::time::timeout(patience, conn.sender.ready()).await {
                Ok(Ok(())) => deliver(&peer, conn),
                // A client that stops in the middle of an upload must not hold the connection for as long as it likes.
                // (Nobody to hear it: it has ended by itself.)
                Ok(Err(_)) | Err(_) => drop(conn.cut.send(())),
            }
        });
    }

    /// The connection is not to be used again.
    pub(super) fn abandon(mut self) {
        self.conn = None;
    }
}

impl<B> Drop for Lease<B> {
    fn drop(&mut self) {
        // Closed where a response was not read to its end: what is left of it would be taken for the next one's.
        if let Some(conn) = self.conn.take()
            && !self.sent
        {
            deliver(&self.peer, conn);
        }
    }
}

impl<B> Drop for Open<B> {
    fn drop(&mut self) {
        self.0.http1.open.set(self.0.http1.open.get() - 1);
    }
}

impl<B> Drop for Dialing<B> {
    fn drop(&mut self) {
        self.0.http1.dialing.set(self.0.http1.dialing.get() - 1);
    }
}

impl<B> Default for Http1<B> {
    fn default() -> Self {
        Self { idle: RefCell::default(), line: Line::default(), open: Cell::new(0), dialing: Cell::new(0) }
    }
}

impl<B> Http1<B> {
    pub(super) fn close_idle(&self, which: impl Fn(&Conn<B>) -> bool) {
        let closed: Vec<_> =
            self.idle.borrow_mut().extract_if(.., |conn| conn.sender.is_closed() || which(conn)).collect();
        drop(closed); // after the borrow has ended
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.get() == 0 && self.line.is_empty()
    }

    pub(super) fn count(&self, stats: &mut Stats) {
        stats.http1_connections += self.open.get() - self.dialing.get();
        stats.http1_idle += self.idle.borrow().len();
        stats.waiting += self.line.len();
    }
}
