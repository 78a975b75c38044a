//! The life of one connection, top to bottom: **accept → tls → detect → authorise → route → balance → connect → relay**.
//!
//! **In** an accepted socket. **Out** one closed record. Every line of [`live`] calls one stage, binds one value and ends
//! in `?`; each await has a deadline of its stage's own. What a stage takes it consumes, so that no stream can be used
//! before its handshake or after its hand-over.

use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::FutureExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::accept::{self, Accepted};
use super::census::Entry;
use super::http::{self, Ended, How, Start};
use super::refuse::Refused;
use super::trust::Trust;
use super::{Gateway, networks, probe, tcp};
use crate::addr::ClientAddr;
use crate::authorise::Permit;
use crate::detect::{self, Hint, Naming, Negotiated, Session};
use crate::fault::Fault;
use crate::live::Changes;
use crate::record::{Event, Observer, Outcome, Peer, Protocol, Record, Stage};
use crate::tls::{self, Alpn};

/// Serves one accepted socket to its end. A panic on the way is this connection's alone.
pub(super) async fn serve(gateway: Rc<Gateway>, accepted: Accepted) {
    let Accepted { socket, peer, permit } = accepted;
    let started = Instant::now();
    let permit = Rc::new(permit);
    let peer = Arc::new(Peer { addr: peer.0, identity: None, cluster: None, sni: None });
    let mut record = Record::connection(peer, SystemTime::now());
    let open = Open::new(&gateway.observer);
    match AssertUnwindSafe(live(&gateway, socket, &permit, &mut record)).catch_unwind().await {
        Ok(Ok(())) => {}
        Ok(Err(refused)) => refused.close(&mut record),
        Err(_) => {
            gateway.observer.event(Event::Panicked);
            Refused::new(Stage::Relay, Fault::Ours, "relay.panic", "a bug ended this connection").close(&mut record);
        }
    }
    record.duration = started.elapsed();
    drop(open);
    gateway.observer.closed(&record);
}

/// Says that a connection has opened and, however its task ends, that it has closed: a worker that starts again drops the
/// tasks that it had, and what they counted as open must not stay so.
struct Open(Rc<dyn Observer>);

impl Open {
    fn new(observer: &Rc<dyn Observer>) -> Self {
        observer.event(Event::ConnectionOpened);
        Self(Rc::clone(observer))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.event(Event::ConnectionClosed);
    }
}

async fn live(
    gateway: &Rc<Gateway>,
    socket: std::net::TcpStream,
    permit: &Rc<accept::Permit>,
    record: &mut Record,
) -> Result<(), Refused> {
    let mut mark = Instant::now();
    let mut socket = TcpStream::from_std(socket).map_err(accept::Error::from)?;

    let peer = accept::proxied(&mut socket, ClientAddr(record.peer.addr), &gateway.accept).await?;
    record.peer = Arc::new(Peer { addr: peer.0, identity: None, cluster: None, sni: None });
    let place = gateway.networks.enter(peer.0.ip())?;
    lap(record, Stage::Accept, &mut mark);

    // From before the credentials are loaded: a change during the handshake must not be missed.
    let changes = gateway.credentials.changes();
    // Boxed, here and below: what is over gives its memory back, and an idle connection is as large as what it waits in.
    let secured = Box::pin(secure(gateway, socket, &place, &mut mark, record)).await?;
    place.identified();
    let tls::server::Accepted { stream, peer, sni, alpn } = secured;
    known(gateway, (Box::new(stream), peer, sni, alpn), (permit, place, changes), (record, mark)).await
}

/// From the handshake on: who the peer is is known.
pub(super) async fn known<S>(
    gateway: &Rc<Gateway>,
    (stream, peer, sni, alpn): (S, tls::server::Peer, Option<crate::addr::Name>, Alpn),
    (permit, place, changes): (&Rc<accept::Permit>, networks::Place, Changes),
    (record, mut mark): (&mut Record, Instant),
) -> Result<(), Refused>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let identity = peer.identity.clone();
    let cluster = gateway.clusters.of(&identity, &peer.authorities);
    let addr = record.peer.addr;
    record.peer = Arc::new(Peer { addr, identity: Some(identity), cluster, sni: sni.clone() });
    let census = gateway.census.enter(&record.peer)?;
    let counted = Rc::new(gateway.admit_session(&peer.identity)?);

    let session = detect::session(stream, hint(gateway, alpn, sni), &gateway.detect).await?;
    record.protocol = Some(session.protocol);
    census.speaks(session.protocol);
    lap(record, Stage::Detect, &mut mark);

    let trust = Trust::in_client(gateway, peer, addr, changes);
    let places = Places { census, _accepted: Rc::clone(permit), _network: place, _counted: counted };
    converse(gateway, session, (trust, places), record).await
}

/// What a connection takes up in every count and limit, given back with the last that holds it: an upgraded connection
/// lives on after the HTTP session that it came from.
#[derive(Debug)]
pub(crate) struct Places {
    pub(crate) census: Entry,
    _accepted: Rc<accept::Permit>,
    _network: networks::Place,
    _counted: Rc<Permit>,
}

/// What is said on the session: bytes, requests, or the probe.
async fn converse<S>(
    gateway: &Rc<Gateway>,
    session: Session<S>,
    (trust, places): (Trust, Places),
    record: &mut Record,
) -> Result<(), Refused>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let Session { naming, protocol, stream } = session;
    let client = trust.identity().clone();
    match (naming, protocol) {
        (Naming::Port(port), _) => Box::pin(probe::through_header(gateway, port, stream, record.peer.addr)).await,
        (Naming::Header(target) | Naming::Sni(target), Protocol::Opaque) => {
            record.target = Some(target.clone());
            Box::pin(tcp::serve(gateway, stream, target, &trust, record)).await
        }
        (Naming::Request, Protocol::Opaque) => {
            Err(Refused::new(Stage::Detect, Fault::Client, "detect.unknown_protocol", "bytes that name no service"))
        }
        (naming, protocol) => {
            if let Naming::Header(target) | Naming::Sni(target) = &naming {
                // The session names one service for all its requests: a name that can never be served is refused here,
                // by closing, as every source of such sessions expects.
                record.target = Some(target.clone());
                if gateway.probe_authority.as_ref() != Some(&target.name) {
                    gateway.route.allowed(target)?;
                }
            }
            let start =
                Start { gateway: Rc::clone(gateway), peer: Arc::clone(&record.peer), client, naming, trust, places };
            let ended = match protocol {
                Protocol::Http2 => Box::pin(http::serve_http2(start, stream)).await,
                Protocol::Http1 | Protocol::Opaque => Box::pin(http::serve_http1(start, stream)).await,
            };
            outcome(ended).map(|outcome| record.outcome = outcome)
        }
    }
}

/// The handshake, with its result counted.
async fn secure(
    gateway: &Rc<Gateway>,
    socket: TcpStream,
    from: &networks::Place,
    mark: &mut Instant,
    record: &mut Record,
) -> Result<tls::server::Accepted<TcpStream>, Refused> {
    let credentials = gateway.credentials.load_full();
    let deadline = Instant::now() + gateway.tls.handshake_timeout;
    // Who says nothing takes no place. Whatever this ends with, the handshake says it.
    let _ = tokio::time::timeout_at(deadline, socket.readable()).await;
    let place = match gateway.handshakes.place(from.network, deadline).await {
        Ok(place) => place,
        Err(refused) => {
            let took = lap(record, Stage::Tls, mark);
            gateway.observer.event(Event::Handshake { result: refused.code, took });
            return Err(refused);
        }
    };
    let handshake = tls::server::accept(socket, &credentials, &gateway.tls);
    let secured = tokio::time::timeout_at(deadline, handshake).await.unwrap_or(Err(tls::server::Error::Timeout));
    drop(place);
    let took = lap(record, Stage::Tls, mark);
    let result = secured.as_ref().map_or_else(crate::fault::Refusal::code, |_| "ok");
    gateway.observer.event(Event::Handshake { result, took });
    Ok(secured?)
}

fn hint(gateway: &Gateway, alpn: Alpn, sni: Option<crate::addr::Name>) -> Hint {
    let alpn = match alpn {
        Alpn::TransportHeader => Negotiated::TransportHeader,
        Alpn::H2 => Negotiated::H2,
        Alpn::Http11 => Negotiated::Http11,
        Alpn::None => Negotiated::None,
    };
    let sni_is_own = sni.as_ref().is_none_or(|name| gateway.credentials.load().server_names().contains(name));
    Hint { alpn, sni, sni_is_own }
}

fn outcome(ended: Ended) -> Result<Outcome, Refused> {
    let refused = |fault, code, detail: &str| Err(Refused::new(Stage::Relay, fault, code, detail));
    if let Some(reason) = ended.malformed {
        return refused(Fault::Client, "relay.request_malformed", &reason);
    }
    match ended.how {
        How::Closed | How::Idle => Ok(Outcome::Served),
        How::Cut => refused(Fault::Ours, "relay.drain_deadline", "the drain's deadline came"),
        How::Distrusted(reason) => Err(reason),
        How::Failed => Ok(Outcome::Abandoned),
        How::SlowHead => refused(Fault::Client, "relay.header_timeout", "a request head did not arrive in time"),
    }
}

fn lap(record: &mut Record, stage: Stage, mark: &mut Instant) -> std::time::Duration {
    let now = Instant::now();
    let took = now - *mark;
    record.stages[stage as usize] = took;
    *mark = now;
    took
}
