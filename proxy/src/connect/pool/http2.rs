//! HTTP/2: a connection is shared by as many streams as it takes.
//!
//! h2 is used as it is, without hyper's client above it: a request is put on the connection by whoever sends it, and its response
//! wakes that task, where hyper has a channel, a task for the connection and another for each request between the two.
//!
//! The first connection with room is used, so that few are kept; when none has room another is opened, up to the limit,
//! and beyond it requests wait in line for a stream to end. A connection that has grown old keeps working while its
//! successor is dialled, and is then left to finish what it has begun (GOAWAY, RFC 9113 §6.8).

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::client::{ResponseFuture, SendRequest};
use http::header::CONTENT_LENGTH;
use http::{Method, Request, Response, StatusCode};
use http_body::Body;
use tokio::sync::oneshot;

use super::super::Error;
use super::body::{Hold, Source, Streamed};
use super::error::from_h2;
use super::line::Line;
use super::peer::Peer;
use super::pulse::Pulse;
use super::received::Received;
use super::tunnel::Tunnel;
use super::upload::{Stopped, Upload};
use super::{SendError, Stats};

/// How often a request that waited for a connection which then went away is moved to another.
const STALE_TRIES: usize = 3;

#[derive(Debug)]
pub(super) struct Http2<B> {
    conns: RefCell<Vec<Rc<Conn>>>,
    line: Line<Slot<B>>,
    dialing: Cell<usize>,
}

#[derive(Debug)]
pub(super) struct Conn {
    /// Gone once the connection is to take no more streams; h2 ends it when the last has ended.
    sender: RefCell<Option<SendRequest<Bytes>>>,
    pulse: Rc<Pulse>,
    born: u32,
    /// The tick when its last stream ended.
    pub(super) used: Cell<u32>,
}

/// Room for one stream, held until it has ended.
#[derive(Debug)]
pub(super) struct Slot<B> {
    peer: Rc<Peer<B>>,
    conn: Rc<Conn>,
    /// A handle for this one stream: the connection cannot end before it is used, and it never waits for another stream.
    sender: Option<SendRequest<Bytes>>,
}

/// The dial that [`Http2::dialing`] counts.
struct Dialing<B>(Rc<Peer<B>>);

pub(super) async fn send<B>(peer: &Rc<Peer<B>>, mut request: Request<B>) -> Result<Response<Streamed<B>>, SendError<B>>
where
    B: Body<Data = Bytes> + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (slot, mut sender) = match place(peer).await {
        Ok(place) => place,
        Err(error) => return Err(SendError::unsent(error, request)),
    };
    *request.version_mut() = http::Version::HTTP_2;
    let connect = request.method() == Method::CONNECT;
    let (head, body) = request.into_parts();
    let ends = !connect && body.is_end_stream();
    let mut request = Request::from_parts(head, ());
    // What follows CONNECT is no content, and has no length.
    if !ends
        && !connect
        && let Some(length) = body.size_hint().exact()
    {
        request.headers_mut().entry(CONTENT_LENGTH).or_insert(length.into());
    }
    let failed = |error: h2::Error, slot: &Slot<B>| SendError {
        error: if slot.conn.pulse.lost.get() { Error::Timeout } else { from_h2(error) },
        request: None,
    };
    let (response, stream) = sender.send_request(request, ends).map_err(|error| failed(error, &slot))?;
    drop(sender);
    if connect {
        return match response.await {
            Ok(response) => Ok(connected(response, stream, slot)),
            Err(error) => Err(failed(error, &slot)),
        };
    }
    let mut exchange = Exchange { upload: (!ends).then(|| Upload::new(body, stream)), response };
    let answered = poll_fn(|cx| exchange.poll(cx)).await;
    match answered {
        Ok(response) => {
            let slot = Rc::new(slot);
            // The endpoint answers before it has everything: the rest goes on beside the response.
            let rest = exchange.upload.map(|upload| {
                let (answering, answered) = oneshot::channel();
                tokio::task::spawn_local(finish(upload, answered, Rc::clone(&slot)));
                answering
            });
            let (head, stream) = response.into_parts();
            let source = Source::Http2(Received::new(&head.headers, stream));
            let hold = Hold::Http2 { _slot: slot, _rest: rest, upgraded: false };
            Ok(Response::from_parts(head, Streamed::new(source, hold)))
        }
        Err(Failed::Body(error)) => Err(SendError { error: Error::RequestBody(Arc::from(error)), request: None }),
        Err(Failed::Stream(error)) => Err(failed(error, &slot)),
    }
}

/// Sends the rest of a body beside its response, and for a moment after it; the room for the stream is taken up until then.
/// Dropped before its end, it resets the stream: what nobody waits for any more must not hold it, or a client that stops in
/// the middle of an upload would.
async fn finish<B>(upload: Upload<B>, answered: oneshot::Receiver<()>, _slot: Rc<Slot<B>>)
where
    B: Body<Data = Bytes> + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let over = async {
        // It is never sent, only dropped, with the response.
        let _ = answered.await;
        tokio::time::sleep(AFTER_THE_RESPONSE).await;
    };
    tokio::select! {
        _ = upload => {}
        () = over => {}
    }
}

/// How long a request's body may go on after its response has ended. A server that wants the rest answers when it has it (RFC
/// 9113 §8.1); this is for what is on its way already.
const AFTER_THE_RESPONSE: Duration = Duration::from_secs(3);

/// Room for a stream, and the handle to begin it with.
async fn place<B>(peer: &Rc<Peer<B>>) -> Result<(Slot<B>, SendRequest<Bytes>), Error>
where
    B: Body<Data = Bytes> + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    if let Some(mut slot) = find(peer)
        && let Some(sender) = slot.sender.take()
    {
        return Ok((slot, sender));
    }
    for _ in 0..STALE_TRIES {
        let mut slot = Box::pin(wait(peer)).await?;
        if let Some(sender) = slot.sender.take().and_then(open) {
            return Ok((slot, sender));
        }
        // It has begun to go away since the room on it was promised: nobody else should meet it.
        peer.http2.retire(|conn| std::ptr::eq(conn, &*slot.conn));
    }
    Err(Error::Closed(None))
}

/// A request's body on its way, and the wait for the response.
struct Exchange<B> {
    upload: Option<Upload<B>>,
    response: ResponseFuture,
}

enum Failed {
    Body(Box<dyn std::error::Error + Send + Sync>),
    Stream(h2::Error),
}

impl<B> Exchange<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<RecvStream>, Failed>> {
        if let Some(upload) = &mut self.upload
            && let Poll::Ready(sent) = Pin::new(upload).poll(cx)
        {
            self.upload = None;
            if let Err(Stopped::Body(error)) = sent {
                return Poll::Ready(Err(Failed::Body(error)));
            }
        }
        Poll::Ready(ready!(Pin::new(&mut self.response).poll(cx)).map_err(Failed::Stream))
    }
}

/// The answer to CONNECT: where it agrees, the stream carries bytes from here on.
fn connected<B>(response: Response<RecvStream>, stream: h2::SendStream<Bytes>, slot: Slot<B>) -> Response<Streamed<B>> {
    let upgraded = response.status() == StatusCode::OK;
    let (head, receive) = response.into_parts();
    let source = if upgraded {
        Source::Tunnel(Some(Box::new(Tunnel::new(receive, stream))))
    } else {
        Source::Http2(Received::new(&head.headers, receive))
    };
    Response::from_parts(head, Streamed::new(source, Hold::Http2 { _slot: Rc::new(slot), _rest: None, upgraded }))
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
    let most = peer.core.settings.http2_streams.max(1);
    let conns = peer.http2.conns.borrow();
    let (conn, sender) = conns.iter().find_map(|conn| Some((conn, conn.handle(most)?)))?;
    conn.pulse.streams.set(conn.pulse.streams.get() + 1);
    Some(Slot { peer: Rc::clone(peer), conn: Rc::clone(conn), sender: Some(sender) })
}

/// The handle, if its connection takes streams: it lives, and nobody has said that it is going away.
fn open(mut sender: SendRequest<Bytes>) -> Option<SendRequest<Bytes>> {
    // A fresh handle never waits, so nobody needs to be woken.
    let ready = sender.poll_ready(&mut Context::from_waker(Waker::noop()));
    matches!(ready, Poll::Ready(Ok(()))).then_some(sender)
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
        pulse: opened.pulse,
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
        let Some(slot) = room(peer) else { return };
        // Somebody takes it: nothing else has run since the look.
        drop(peer.http2.line.serve(slot));
    }
}

impl Conn {
    /// A handle for one more stream, where there is room for it beside fewer than `most`, or than the endpoint allows. A limit
    /// of nothing is an endpoint that wants to be left alone for now: the one stream that is tried waits in h2.
    fn handle(&self, most: usize) -> Option<SendRequest<Bytes>> {
        let streams = self.pulse.streams.get();
        let sender = open(self.sender.borrow().as_ref().filter(|_| streams < most)?.clone())?;
        (streams < sender.current_max_send_streams().max(1)).then_some(sender)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.pulse.streams.get() == 0
    }
}

impl<B> Drop for Slot<B> {
    fn drop(&mut self) {
        self.conn.pulse.streams.set(self.conn.pulse.streams.get() - 1);
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
    pub(super) fn retire(&self, which: impl Fn(&Conn) -> bool) {
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
        stats.http2_streams += conns.iter().map(|conn| conn.pulse.streams.get()).sum::<usize>();
        stats.waiting += self.line.len();
    }
}
