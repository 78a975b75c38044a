//! One request in flight, as it will be recorded: begun when the head is read, closed when the last byte of the
//! response has gone or either side gave up. It lives in the response's body, so however the request ends, by its end,
//! by an error or by being dropped, the record is closed exactly once.

use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use http::{HeaderMap, HeaderValue};
use tokio::time::Instant;

use super::intake::{Failure, Intake};
use super::session::HttpSession;
use super::stalled;
use crate::authorise::{self, Permit};
use crate::fault::Fault;
use crate::gateway::Gateway;
use crate::gateway::paced::Pacer;
use crate::gateway::refuse::{self, Refused};
use crate::gateway::trace::TRACEPARENT;
use crate::record::{Event, Outcome, Protocol, Record, Request, Stage};
use crate::wire::traceparent::Traceparent;

/// A request in flight.
#[derive(Debug)]
pub(crate) struct Exchange {
    session: Rc<HttpSession>,
    started: Instant,
    /// Set when the current stage began; the time since goes to that stage when the next begins.
    mark: Instant,
    pub(crate) record: Record,
    /// Written by the request's body, which lives apart from the response's.
    pub(super) intake: Rc<Intake>,
    /// Counts against the limits until the exchange has ended.
    permit: Option<Rc<Permit>>,
    /// The client awaits a gRPC status, in trailers where the head has gone.
    pub(super) grpc: bool,
    settled: bool,
}

impl Exchange {
    pub(super) fn begin(session: &Rc<HttpSession>, parts: &http::request::Parts) -> Self {
        session.request_started();
        session.gateway.observer.event(Event::RequestStarted);
        let now = Instant::now();
        let protocol = if parts.version == http::Version::HTTP_2 { Protocol::Http2 } else { Protocol::Http1 };
        let path = parts.uri.path_and_query().map_or("", |path| path.as_str());
        Self {
            session: Rc::clone(session),
            started: now,
            mark: now,
            record: Record {
                protocol: Some(protocol),
                request: Some(Box::new(Request {
                    method: parts.method.clone(),
                    path: path.into(),
                    status: None,
                    grpc_status: None,
                    user_agent: parts.headers.get(http::header::USER_AGENT).cloned(),
                    traceparent: parts.headers.get(TRACEPARENT).cloned(),
                    span: session.gateway.trace.map(|trace| trace.begin(&parts.headers)),
                    retries: 0,
                    route: None,
                })),
                ..Record::connection(Arc::clone(&session.peer), SystemTime::now())
            },
            intake: Rc::default(),
            permit: None,
            grpc: false,
            settled: false,
        }
    }

    /// Holds the permit until the end.
    pub(super) fn hold(&mut self, permit: Rc<Permit>) {
        self.permit = Some(permit);
    }

    /// How the request stands against the rate with the least left.
    pub(super) fn standing(&self) -> Option<authorise::Standing> {
        self.permit.as_ref().and_then(|permit| permit.standing())
    }

    /// What rests after response bytes, where a limit says so.
    pub(super) fn pacer(&self) -> Pacer {
        self.permit.as_ref().map(Pacer::new).unwrap_or_default()
    }

    pub(super) fn gateway(&self) -> &Gateway {
        &self.session.gateway
    }

    /// The stage that just ended took the time since the last one ended.
    pub(super) fn passed(&mut self, stage: Stage) {
        let now = Instant::now();
        self.record.stages[stage as usize] += now - self.mark;
        self.mark = now;
    }

    pub(super) fn request(&mut self) -> &mut Request {
        self.record.request.as_mut().expect("an exchange always records a request")
    }

    /// Makes what the endpoint does hang below the gateway's span, where there is one.
    pub(super) fn trace(&mut self, headers: &mut HeaderMap) {
        let Some(span) = self.request().span else { return };
        let value = Traceparent { trace: span.trace, span: span.span, sampled: span.sampled }.value();
        headers.insert(TRACEPARENT, value.clone());
        self.request().traceparent = Some(value);
    }

    /// Writes down that the gateway itself answers, and why.
    pub(super) fn refused(&mut self, refused: Refused, grpc: bool) {
        let (status, grpc_status) = refuse::status(&refused, grpc);
        self.request().status = Some(status);
        self.request().grpc_status = grpc_status;
        self.settled = true;
        refused.close(&mut self.record);
    }

    /// Writes down that the stream was reset, as the endpoint reset it.
    pub(super) fn reset(&mut self, refused: Refused) {
        self.settled = true;
        refused.close(&mut self.record);
    }

    /// The response's body ended as its sender meant it to.
    pub(super) fn served(&mut self) {
        self.settle(Outcome::Served);
    }

    /// The response broke off in the middle: the endpoint did, or was told that the request did.
    pub(super) fn broken(&mut self) {
        let (fault, code) = match self.intake.failure.get() {
            None => (Fault::Upstream, "relay.upstream_reset"),
            Some(Failure::Broken) => (Fault::Client, "relay.request_malformed"),
            Some(Failure::Slow) => (Fault::Client, "relay.body_timeout"),
        };
        self.settle(Outcome::Refused { stage: Stage::Relay, fault, code });
    }

    pub(super) fn sent(&mut self, bytes: u64) {
        self.record.bytes_sent += bytes;
    }

    /// Reads `grpc-status` from a head or from trailers.
    pub(super) fn note_grpc_status(&mut self, value: Option<&HeaderValue>) {
        if let Some(status) = value.and_then(|value| value.to_str().ok()).and_then(|text| text.parse().ok()) {
            self.request().grpc_status = Some(status);
        }
    }

    fn settle(&mut self, outcome: Outcome) {
        if !self.settled {
            self.settled = true;
            self.record.outcome = outcome;
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.passed(Stage::Relay);
        self.record.duration = self.started.elapsed();
        self.record.bytes_received = self.intake.bytes.get();
        if stalled::is_ending() {
            self.settle(Outcome::Refused { stage: Stage::Relay, fault: Fault::Client, code: "relay.response_stalled" });
        }
        self.session.gateway.observer.event(Event::RequestEnded);
        self.session.gateway.observer.closed(&self.record);
        self.session.request_ended();
    }
}
