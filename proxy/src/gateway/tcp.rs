//! The opaque branch: **authorise → route → balance → connect → relay** for a connection of bytes.
//!
//! **In** a session that is not HTTP and names a target. **Out** the bytes it moved, in its record. **Refuses** by closing
//! the connection, as nothing else is understood there. A failed connect is tried at another endpoint, since no byte of
//! the session has been sent yet.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::admit::Admitted;
use super::ahead;
use super::dial::Upstream;
use super::http::session::HttpSession;
use super::paced::Paced;
use super::refuse::Refused;
use super::standing::Standing;
use super::trust::Trust;
use super::{Gateway, Routed};
use crate::addr::Target;
use crate::authorise::Permit;
use crate::balance::{Failure, Guard};
use crate::connect::Dial;
use crate::drain::Phase;
use crate::endpoint::Endpoint;
use crate::fault::Fault;
use crate::record::{Outcome, Protocol, Record, Stage};
use crate::relay;

/// Serves one opaque session to its end.
pub(super) async fn serve<S>(
    gateway: &Rc<Gateway>,
    stream: S,
    target: Target,
    trust: &Trust,
    record: &mut Record,
) -> Result<(), Refused>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut mark = Instant::now();
    let mut passed = |record: &mut Record, stage: Stage| {
        let now = Instant::now();
        record.stages[stage as usize] = now - mark;
        mark = now;
    };
    let client = trust.identity();
    let (admitted, standing) = gateway.admit_connection(&record.peer, client, target, trust)?;
    admitted.write(record);
    let Admitted { admission, permit } = admitted;
    passed(record, Stage::Authorise);
    crate::route::loops(gateway.credentials.load().identity(), Some(client), false)?;
    let reached = async {
        let routed = gateway.route_connection(admission.target).await?;
        passed(record, Stage::Route);
        open(gateway, &routed, |_| Ok(())).await
    };
    let (stream, (upstream, guard, endpoint)) = ahead::watched(stream, gateway.drain.clone(), reached).await?;
    record.endpoint = Some(endpoint);
    passed(record, Stage::Connect);
    let line = Line { gateway: Rc::clone(gateway), record: None, standing, permit, _session: None };
    let ended = line.pump(stream, upstream).await;
    passed(record, Stage::Relay);
    ended.write(record);
    drop(guard);
    Ok(())
}

/// Balance and connect, at another endpoint while connecting fails.
pub(super) async fn open(
    gateway: &Rc<Gateway>,
    routed: &Routed,
    fits: impl Fn(&Endpoint) -> Result<(), Refused>,
) -> Result<(Upstream, Guard, SocketAddr), Refused> {
    let mut avoid = Vec::new();
    loop {
        let pick = routed.pick(&avoid).await?;
        fits(&pick.endpoint)?;
        match gateway.dialer.dial(&pick.endpoint, Protocol::Opaque).await {
            Ok(stream) => {
                pick.guard.connected();
                pick.guard.first_byte();
                pick.guard.succeeded();
                return Ok((stream, pick.guard, pick.endpoint.addr));
            }
            Err(error) => {
                gateway.failed(&pick.guard, Failure::Connect);
                avoid.push(pick.endpoint.addr);
                if avoid.len() > gateway.http.max_retries as usize {
                    return Err(error.into());
                }
            }
        }
    }
}

/// Bytes both ways until either side, a clock, the policy or the drain ends it.
pub(super) struct Line {
    gateway: Rc<Gateway>,
    /// Set where the line outlives its request and so keeps a record of its own.
    record: Option<Box<Record>>,
    standing: Standing,
    permit: Rc<Permit>,
    /// Likewise: the session that the request came from, and with it its places in every count and limit.
    _session: Option<Rc<HttpSession>>,
}

/// What a line moved and how it ended.
struct Moved {
    received: u64,
    sent: u64,
    ended: Result<(), Refused>,
}

impl Moved {
    fn write(self, record: &mut Record) {
        record.bytes_received = self.received;
        record.bytes_sent = self.sent;
        match self.ended {
            Ok(()) => record.outcome = Outcome::Served,
            Err(refused) => refused.close(record),
        }
    }
}

impl Line {
    /// A line for an upgraded request: it is recorded as an opaque connection of its own.
    pub(super) fn new(
        session: &Rc<HttpSession>,
        (permit, standing): (Rc<Permit>, Standing),
        endpoint: SocketAddr,
    ) -> Self {
        let record = Record {
            protocol: Some(Protocol::Opaque),
            target: Some(standing.target().clone()),
            endpoint: Some(endpoint),
            ..Record::connection(Arc::clone(&session.peer), SystemTime::now())
        };
        Self {
            gateway: Rc::clone(&session.gateway),
            record: Some(Box::new(record)),
            standing,
            permit,
            _session: Some(Rc::clone(session)),
        }
    }

    /// Relays and closes the line's own record.
    pub(super) async fn relay<A, B>(mut self, client: A, upstream: B)
    where
        A: AsyncRead + AsyncWrite + Unpin,
        B: AsyncRead + AsyncWrite + Unpin,
    {
        let started = Instant::now();
        let moved = self.pump(client, upstream).await;
        if let Some(mut record) = self.record.take() {
            record.duration = started.elapsed();
            record.stages[Stage::Relay as usize] = record.duration;
            moved.write(&mut record);
            self.gateway.observer.closed(&record);
        }
    }

    async fn pump<A, B>(&self, client: A, upstream: B) -> Moved
    where
        A: AsyncRead + AsyncWrite + Unpin,
        B: AsyncRead + AsyncWrite + Unpin,
    {
        let (client, upstream) = (Paced::new(client, &self.permit), Paced::new(upstream, &self.permit));
        let counters = relay::Counters::default();
        let mut phases = self.gateway.drain.clone();
        let ended = tokio::select! {
            biased;
            ended = relay::pump(client, upstream, &self.gateway.relay, &counters) => ended.result.map_err(Refused::from),
            () = phases.reached(Phase::Cut) => {
                Err(Refused::new(Stage::Relay, Fault::Ours, "relay.drain_deadline", "the drain's deadline came"))
            }
            refused = self.standing.lost() => Err(refused),
        };
        Moved { received: counters.received(), sent: counters.sent(), ended }
    }
}
