//! One request, top to bottom: **authorise → route → balance → connect → relay**, as for a connection, under hyper.
//!
//! **In** a request and its session. **Out** a response: the endpoint's, the probe's, or a refusal. Its record closes
//! with the last byte of the response. A request is sent again only when it is certain that no endpoint processed it,
//! while its body is still unread, and within the budget (RFC 9110 §9.2.2, RFC 9113 §8.7).

use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::header::{EXPECT, FORWARDED, HOST, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Request, Response, Uri};
use http_body::Body as _;
use http_body_util::Full;
use hyper::body::Incoming;

use super::ask::Ask;
use super::body::{Body, Gate, RequestBody, Wary};
use super::exchange::Exchange;
use super::intake::{Failure as Failed, Least};
use super::plan::{Plan, Verdict};
use super::session::HttpSession;
use super::towards::{self, Towards};
use super::{headers, orig_proto, upgrade};
use crate::balance::{Failure, Guard};
use crate::connect::{Streamed, Version};
use crate::detect::Naming;
use crate::fault::Fault;
use crate::gateway::admit::rate_fields;
use crate::gateway::paced::Pacer;
use crate::gateway::refuse::{self, Refused, Reset};
use crate::gateway::{Gateway, Routed};
use crate::record::{Event, Stage};
use crate::wire::forwarded;

/// Answers one request, or resets its stream where the endpoint did. A panic on the way is this request's alone.
pub(super) async fn handle(session: Rc<HttpSession>, request: Request<Incoming>) -> Result<Response<Body>, Reset> {
    let observer = Rc::clone(&session.gateway.observer);
    let framing = session.framing().filter(|_| upgrade::may_be_wanted(&request)).cloned();
    let mut response = match AssertUnwindSafe(answered(session, request)).catch_unwind().await {
        Ok(answered) => answered?,
        Err(_) => {
            observer.event(Event::Panicked);
            let refused = Refused::new(Stage::Relay, Fault::Ours, "relay.panic", "a bug ended this request");
            refuse::response(&refused, false)
        }
    };
    if let Some(framing) = framing {
        upgrade::settle(&framing, &mut response);
    }
    Ok(response)
}

async fn answered(session: Rc<HttpSession>, request: Request<Incoming>) -> Result<Response<Body>, Reset> {
    let (mut parts, body) = request.into_parts();
    let mut exchange = Box::new(Exchange::begin(&session, &parts));
    let grpc = parts.version == http::Version::HTTP_2
        && parts.headers.get(http::header::CONTENT_TYPE).is_some_and(|t| t.as_bytes().starts_with(b"application/grpc"));
    if let Some(response) = probe(&session, &parts) {
        exchange.request().status = Some(response.status().as_u16());
        return Ok(response.map(|body| Body::ours(body).recording(exchange)));
    }
    let default_port = session.gateway.route.default_port;
    let asked = Ask::read(&mut parts, &session.naming, &session.last_name, default_port);
    // The client's own words for a stream that was reset; one whose request was only carried over HTTP/2 has none.
    let native = asked.as_ref().is_ok_and(|ask| ask.version == http::Version::HTTP_2);
    let answered = match asked {
        _ if parts.headers.len() > session.gateway.http.max_headers => {
            // Over HTTP/1 the guard has said so already.
            let detail = "the request has more header fields than http.max_headers";
            Err(Refused::new(Stage::Relay, Fault::Client, "relay.too_many_headers", detail))
        }
        _ if session.gateway.is_full() => {
            let detail = "as many requests are under way as http.max_requests allows";
            Err(Refused::new(Stage::Relay, Fault::Ours, "relay.overloaded", detail))
        }
        Ok(ask) => {
            exchange.record.target = Some(ask.target.clone());
            proceed(&session, ask, parts, body, &mut exchange).await
        }
        Err(error) => Err(Refused::from(error)),
    };
    match answered {
        Ok(mut response) => {
            exchange.request().status = Some(response.status().as_u16());
            exchange.note_grpc_status(response.headers().get(headers::GRPC_STATUS));
            if let Some(fields) = exchange.standing().and_then(|standing| rate_fields(&standing)) {
                response.headers_mut().extend(fields);
            }
            exchange.grpc = grpc;
            Ok(response.map(|body| body.recording(exchange)))
        }
        Err(refused) => match refused.reset.clone().filter(|_| native) {
            Some(reset) => {
                exchange.reset(refused);
                Err(reset)
            }
            None => {
                let response = refuse::response(&refused, grpc);
                exchange.refused(refused, grpc);
                Ok(response)
            }
        },
    }
}

/// The probe, asked for on the gateway port by its own authority: for sites that can expose one port only.
fn probe(session: &HttpSession, parts: &Parts) -> Option<Response<Full<Bytes>>> {
    let wanted = session.gateway.probe_authority.as_ref()?;
    let asked = match &session.naming {
        // A session that names its service is for that service, whatever its requests say.
        Naming::Header(target) | Naming::Sni(target) => target.name == *wanted,
        Naming::Port(_) => false,
        Naming::Request => {
            let host = parts.uri.host().or_else(|| {
                let host = parts.headers.get(HOST)?.to_str().ok()?;
                Some(host.rsplit_once(':').map_or(host, |(name, _)| name))
            })?;
            host.strip_suffix('.').unwrap_or(host).eq_ignore_ascii_case(wanted.as_str())
        }
    };
    asked.then(|| session.gateway.probe.answer(parts))
}

async fn proceed(
    session: &Rc<HttpSession>,
    ask: Ask,
    mut parts: Parts,
    body: Incoming,
    exchange: &mut Box<Exchange>,
) -> Result<Response<Body>, Refused> {
    let gateway = &session.gateway;
    exchange.passed(Stage::Detect);

    headers::strip_named(&mut parts.headers);
    let admission = gateway.admit_request(session, &ask, &parts);
    exchange.passed(Stage::Authorise);
    let admitted = admission?;
    admitted.write(&mut exchange.record);
    exchange.hold(Rc::clone(&admitted.permit));

    let own = gateway.credentials.load().identity().clone();
    let says_us = forwarded::names_us(parts.headers.get_all(FORWARDED), &own);
    crate::route::loops(&own, Some(&session.client), says_us)?;
    let leaving = match ask.leaves {
        Some(_) => Some(gateway.admit_upgrade(session, &ask, &parts, &admitted.admission)?),
        None => None,
    };
    let pacer = Pacer::new(&admitted.permit);
    let routed = gateway.route(admitted.admission.target).await;
    exchange.passed(Stage::Route);
    let routed = routed?;

    // First what the client meant for this hop only goes, then what we say is put on: `connection` must not be able to
    // name our fields and have them taken off again.
    headers::strip_hop_by_hop(&mut parts.headers);
    session.identify(&ask.target, &mut parts.headers);
    exchange.trace(&mut parts.headers);
    if let Some(held) = leaving {
        // Boxed, as are all waits that most requests never see: a request's future is as large as its largest branch.
        return Box::pin(upgrade::proceed(session, (ask, routed, held), parts, body, exchange)).await;
    }

    let plan = Plan::new(routed.profile(), &parts.method, parts.uri.path());
    exchange.request().route = plan.name();
    let gate = expects_continue(&mut parts);
    let least = Least::of(&parts.headers, gateway.http.min_body_rate, gateway.http.body_window);
    let wary = Wary { pacer, assertion: gateway.identify.assertion_header.clone(), least };
    let body = RequestBody::new(body, Rc::clone(&exchange.intake), gate.clone(), wary);
    if plan.may_retry() {
        body.keep(gateway.http.max_retry_body_bytes);
    }
    let head = Head { method: parts.method, uri: parts.uri, headers: parts.headers };
    let (response, guard, carried_on) = deliver(session, &ask, (&routed, &plan), (head, body), gate, exchange).await?;
    Ok(towards::to_client(response, guard, &ask, carried_on))
}

/// Balance, connect and send, again while that is safe and within the budget.
async fn deliver(
    session: &Rc<HttpSession>,
    ask: &Ask,
    (routed, plan): (&Routed, &Plan),
    (mut head, mut body): (Head, RequestBody),
    gate: Option<Arc<Gate>>,
    exchange: &mut Box<Exchange>,
) -> Result<(Response<Streamed<RequestBody>>, Guard, bool), Refused> {
    let gateway = &session.gateway;
    gateway.retries.request();
    let mut avoid = Vec::new();
    loop {
        let pick = plan.within(routed.pick(&avoid)).await;
        exchange.passed(Stage::Balance);
        let pick = pick??;
        exchange.record.endpoint = Some(pick.endpoint.addr);
        let towards = Towards::new(ask, &pick.endpoint)?;
        let version = towards.version;
        let tried = exchange.request().retries;
        let may_retry = tried < gateway.http.max_retries;
        // HTTP/2 may hand a request back after it was sent (REFUSED_STREAM, GOAWAY): only then is a copy needed.
        // Or where its response may be one that the service's profile lets it be sent again for.
        let handed_back = version == Version::Http2 && body.untouched();
        let copy = (may_retry && (handed_back || plan.may_retry())).then(|| head.headers.clone());
        let request = towards.request(&head.method, &head.uri, head.headers, ask, body.clone());
        let request = hold_back(request, gate.as_ref(), version);
        let bodiless = request.body().is_end_stream();
        let sent = plan.within(gateway.send(&pick.endpoint, request, version)).await;
        exchange.passed(Stage::Connect);
        let sent = sent.inspect_err(|_| {
            // With a body it may be the client that dawdled: that is no verdict on the endpoint.
            if bodiless {
                gateway.failed(&pick.guard, Failure::Timeout);
            }
        });
        let error = match sent? {
            Ok(mut response) => {
                if let Some(gate) = &gate {
                    gate.open();
                }
                pick.guard.first_byte();
                if is_failure(&response) {
                    gateway.failed(&pick.guard, Failure::Status5xx);
                } else {
                    pick.guard.succeeded();
                }
                match (plan.after(&mut response, &body, may_retry), copy) {
                    (Verdict::Again(again), Some(headers)) => {
                        body = again;
                        head.headers = headers;
                        retried(gateway, exchange);
                        avoid.push(pick.endpoint.addr);
                        continue;
                    }
                    (Verdict::Skipped(reason), _) => gateway.observer.event(Event::RetrySkipped { reason }),
                    (Verdict::Again(_) | Verdict::Done, _) => {}
                }
                body.forget();
                let carried_on = towards.carries;
                return Ok((response, pick.guard, carried_on));
            }
            Err(error) => error,
        };
        if let Some(failed) = body.failure() {
            let (code, detail) = match failed {
                Failed::Broken => ("relay.request_malformed", "the client's body broke off"),
                Failed::Slow => ("relay.body_timeout", "the client's body came more slowly than http.min_body_rate"),
            };
            return Err(Refused::new(Stage::Relay, Fault::Client, code, detail));
        }
        if let Some(failure) = error.failure {
            gateway.failed(&pick.guard, failure);
        }
        let again = error.retry_is_safe && may_retry && body.untouched();
        let kept = error.returned.or(copy).filter(|_| again && gateway.retries.take());
        let Some(mut headers) = kept else { return Err(error.refused) };
        if towards.carries {
            headers.remove(orig_proto::L5D_ORIG_PROTO); // the next endpoint may be one that speaks HTTP/1
        }
        head.headers = headers;
        retried(gateway, exchange);
        avoid.push(pick.endpoint.addr);
    }
}

fn retried(gateway: &Gateway, exchange: &mut Exchange) {
    gateway.observer.event(Event::Retried);
    exchange.request().retries += 1;
}

/// Whether a response says that its endpoint is unwell: a 5xx, or the gRPC statuses that mean the same (INTERNAL,
/// UNAVAILABLE, DATA_LOSS) in a response without a body.
fn is_failure<B>(response: &Response<B>) -> bool {
    let grpc = response.headers().get(headers::GRPC_STATUS).map(HeaderValue::as_bytes);
    response.status().is_server_error() || matches!(grpc, Some(b"13" | b"14" | b"15"))
}

/// A request's head, apart from its body.
struct Head {
    method: http::Method,
    uri: Uri,
    headers: HeaderMap,
}

/// Where the client waits for `100 Continue`, lets its body go when the endpoint says so, or after a moment: old servers
/// never say it, and over HTTP/2 flow control does what it is for.
fn hold_back(mut request: Request<RequestBody>, gate: Option<&Arc<Gate>>, version: Version) -> Request<RequestBody> {
    let Some(gate) = gate.map(Arc::clone) else { return request };
    if version == Version::Http2 {
        gate.open();
        return request;
    }
    request.headers_mut().insert(EXPECT, HeaderValue::from_static("100-continue"));
    let patience = Arc::downgrade(&gate);
    tokio::task::spawn_local(async move {
        tokio::time::sleep(CONTINUE_PATIENCE).await;
        if let Some(gate) = patience.upgrade() {
            gate.open();
        }
    });
    hyper::ext::on_informational(&mut request, move |response| {
        if response.status() == http::StatusCode::CONTINUE {
            gate.open();
        }
    });
    request
}

/// How long an endpoint's `100 Continue` is waited for. What curl waits before it sends its body unasked.
const CONTINUE_PATIENCE: Duration = Duration::from_secs(1);

/// Takes `expect: 100-continue` off and gives the gate that holds the body back in its stead.
fn expects_continue(parts: &mut Parts) -> Option<Arc<Gate>> {
    let expects = parts.headers.get(EXPECT)?.as_bytes().eq_ignore_ascii_case(b"100-continue");
    parts.headers.remove(EXPECT);
    expects.then(Arc::<Gate>::default)
}
