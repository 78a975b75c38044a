//! HTTP/2: a connection is shared by as many streams as it takes.
//!
//! The first connection with room is used, so that few are kept; when none has room another is opened, up to the limit,
//! and beyond it requests wait in line for a stream to end. A connection that has grown old keeps working while its
//! successor is dialled, and is then left to finish what it has begun (GOAWAY, RFC 9113 §6.8).

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::Body;
use hyper::client::conn::http2::SendRequest;

use super::super::Error;
use super::body::{Hold, Streamed};
use super::line::Line;
use super::peer::Peer;
use super::{SendError, Stats, bind};

/// How often a request that met a connection just going away is moved to another.
const STALE_TRIES: usize = 3;

#[derive(Debug)]
pub(super) struct Http2<B> {
    conns: RefCell<Vec<Rc<Conn<B>>>>,
    line: Line<Slot<B>>,
    dialing: Cell<usize>,
}

#[derive(Debug)]
pub(super) struct Conn<B> {
    /// Gone once the connection is to take no more streams; hyper ends it when the last has ended.
    sender: RefCell<Option<SendRequest<B>>>,
    limit: Rc<Cell<usize>>,
    streams: Cell<usize>,
    born: u32,
    /// The tick when its last stream ended.
    pub(super) used: Cell<u32>,
}

/// Room for one stream, held until it has ended.
#[derive(Debug)]
pub(super) struct Slot<B> {
    peer: Rc<Peer<B>>,
    conn: Rc<Conn<B>>,
    /// Given along where time may pass before the slot is used, so that the connection cannot be retired meanwhile.
    sender: Option<SendRequest<B>>,
}

/// The dial that [`Http2::dialing`] counts.
struct Dialing<B>(Rc<Peer<B>>);

pub(super) async fn send<B>(peer: &Rc<Peer<B>>, mut request: Request<B>) -> Result<Response<Streamed<B>>, SendError<B>>
where
    B: Body<Data = Bytes> + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    *request.version_mut() = http::Version::HTTP_2;
    let connect = request.method() == Method::CONNECT;
    let mut tries = 0;
    loop {
        let mut slot = match find(peer) {
            Some(slot) => slot,
            None => match wait(peer).await {
                Ok(slot) => slot,
                Err(error) => return Err(SendError::unsent(error, request)),
            },
        };
        // The borrow must not live across the await: others share the connection.
        let sending = match (slot.sender.take(), slot.conn.sender.borrow_mut().as_mut()) {
            (Some(mut own), _) => own.try_send_request(request),
            (None, Some(shared)) => shared.try_send_request(request),
            (None, None) => return Err(SendError::unsent(Error::Closed(None), request)),
        };
        match sending.await {
            Ok(response) => {
                let upgraded = connect && response.status().is_success();
                let hold = Hold::Http2 { _slot: slot, upgraded };
                return Ok(bind(response, |body| Streamed::new(body, hold)));
            }
            Err(error) => {
                let failed = SendError::from_hyper(error);
                match failed.request {
                    Some(unsent) if tries < STALE_TRIES => request = *unsent,
                    _ => return Err(failed),
                }
                // It came back because the connection is going away: nobody else should meet it.
                peer.http2.retire(|conn| std::ptr::eq(conn, &*slot.conn));
                tries += 1;
            }
        }
    }
}

/// Room on an open connection.
fn find<B>(peer: &Rc<Peer<B>>) -> Option<Slot<B>>
where
    B: Body<Data = Bytes> + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let slot = room(peer)?;
    if peer.core.older(slot.conn.born, peer.core.settings.max_age) && peer.http2.dialing.get() == 0 {
        spawn_dial(peer);
    }
    Some(slot)
}

fn room<B>(peer: &Rc<Peer<B>>) -> Option<Slot<B>> {
    let conns = peer.http2.conns.borrow();
    let most = peer.core.settings.http2_streams.max(1);
    let conn = conns.iter().find(|conn| conn.streams.get() < most.min(conn.limit.get()) && conn.is_open())?;
    conn.streams.set(conn.streams.get() + 1);
    Some(Slot { peer: Rc::clone(peer), conn: Rc::clone(conn), sender: None })
}

#[cold]
async fn wait<B>(peer: &Rc<Peer<B>>) -> Result<Slot<B>, Error>
where
    B: Body<Data = Bytes> + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let settings = &peer.core.settings;
    let place = peer.http2.line.join(settings.waiters)?;
    dial_for_waiters(peer);
    place.wait(settings.wait_timeout).await
}

/// Starts dials until those under way can take everybody in line, within the limit.
fn dial_for_waiters<B>(peer: &Rc<Peer<B>>)
where
    B: Body<Data = Bytes> + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (http2, settings) = (&peer.http2, &peer.core.settings);
    let waiting = http2.line.len();
    while http2.dialing.get() * settings.http2_streams.max(1) < waiting
        && http2.conns.borrow().len() + http2.dialing.get() < settings.http2_connections.max(1)
    {
        spawn_dial(peer);
    }
}

fn spawn_dial<B>(peer: &Rc<Peer<B>>)
where
    B: Body<Data = Bytes> + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    peer.http2.dialing.set(peer.http2.dialing.get() + 1);
    tokio::task::spawn_local(dial(Dialing(Rc::clone(peer))));
}

async fn dial<B>(dialing: Dialing<B>)
where
    B: Body<Data = Bytes> + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let peer = Rc::clone(&dialing.0);
    let opened = peer.core.open.http2(&peer.endpoint).await;
    drop(dialing);
    let opened = match opened {
        Ok(opened) => opened,
        // A failed dial fails everybody in line: they all waited for it.
        Err(error) => return peer.http2.line.fail_all(&error),
    };
    let tick = peer.core.tick.get();
    let conn = Rc::new(Conn {
        sender: RefCell::new(Some(opened.sender)),
        limit: opened.limit,
        streams: Cell::new(0),
        born: tick,
        used: Cell::new(tick),
    });
    let max_age = peer.core.settings.max_age;
    peer.http2.retire(|old| peer.core.older(old.born, max_age));
    peer.http2.conns.borrow_mut().push(Rc::clone(&conn));
    let (driver, driven) = (opened.driver, Rc::clone(&peer));
    tokio::task::spawn_local(async move {
        driver.await;
        driven.http2.retire(|other| std::ptr::eq(other, &*conn));
        serve_waiters(&driven);
        dial_for_waiters(&driven);
    });
    serve_waiters(&peer);
    dial_for_waiters(&peer);
    if peer.retired.get() {
        // The pool has let go of this endpoint meanwhile: who waited is served, nobody new will come.
        peer.http2.retire(|_| true);
    }
}

/// Gives the room there is to the first in line.
fn serve_waiters<B>(peer: &Rc<Peer<B>>) {
    while !peer.http2.line.is_empty() {
        let Some(mut slot) = room(peer) else { return };
        slot.sender = slot.conn.sender.borrow().clone();
        // Somebody takes it: nothing else has run since the look.
        drop(peer.http2.line.serve(slot));
    }
}

impl<B> Conn<B> {
    fn is_open(&self) -> bool {
        self.sender.borrow().as_ref().is_some_and(|sender| !sender.is_closed())
    }

    pub(super) fn is_idle(&self) -> bool {
        self.streams.get() == 0
    }
}

impl<B> Drop for Slot<B> {
    fn drop(&mut self) {
        self.conn.streams.set(self.conn.streams.get() - 1);
        self.conn.used.set(self.peer.core.tick.get());
        if !self.peer.http2.line.is_empty() {
            serve_waiters(&self.peer);
        }
    }
}

impl<B> Drop for Dialing<B> {
    fn drop(&mut self) {
        self.0.http2.dialing.set(self.0.http2.dialing.get() - 1);
    }
}

impl<B> Default for Http2<B> {
    fn default() -> Self {
        Self { conns: RefCell::default(), line: Line::default(), dialing: Cell::new(0) }
    }
}

impl<B> Http2<B> {
    /// Lets connections go: they take no more streams, and end with their last.
    pub(super) fn retire(&self, which: impl Fn(&Conn<B>) -> bool) {
        let gone: Vec<_> = self.conns.borrow_mut().extract_if(.., |conn| which(conn)).collect();
        for conn in gone {
            let sender = conn.sender.borrow_mut().take();
            drop(sender);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.conns.borrow().is_empty() && self.dialing.get() == 0 && self.line.is_empty()
    }

    pub(super) fn count(&self, stats: &mut Stats) {
        let conns = self.conns.borrow();
        stats.http2_connections += conns.len();
        stats.http2_streams += conns.iter().map(|conn| conn.streams.get()).sum::<usize>();
        stats.waiting += self.line.len();
    }
}
