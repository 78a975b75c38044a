//! Requests that leave HTTP: CONNECT, `Upgrade`, extended CONNECT; and the same between the versions.
//!
//! **In** a request that asked to leave, already routed. **Out** the answer that lets it go (101 over HTTP/1, 200 for
//! CONNECT and over HTTP/2) and, beside it, a relay between the two sides; or the endpoint's own refusal, passed on.
//! (RFC 9110 §7.8 and §9.3.6, RFC 8441, RFC 6455.)
//!
//! | client | endpoint | what travels |
//! |---|---|---|
//! | CONNECT | bytes | a connection to the endpoint, no HTTP behind us |
//! | h1 CONNECT, on a session that names its service | h1 | as it is: the service is a proxy, and is meant |
//! | h1 `Upgrade` | h1 | as it is |
//! | h1 `Upgrade: websocket` | h2 | extended CONNECT; the accept key is made here |
//! | h2 extended CONNECT | h1 | `Upgrade` with a key made here, its answer checked here |
//! | h2 extended CONNECT | h2 | as it is |

use std::net::SocketAddr;
use std::rc::Rc;

use http::header::{
    CONNECTION, CONTENT_LENGTH, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION,
    TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Uri};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::either::Either;

use super::ask::{Ask, Leaves};
use super::body::{Body, RequestBody};
use super::exchange::Exchange;
use super::guarded::Framing;
use super::session::HttpSession;
use super::towards::Towards;
use super::{headers, websocket};
use crate::authorise::Permit;
use crate::balance::Guard;
use crate::connect::{Streamed, Version};
use crate::detect::Naming;
use crate::endpoint::Speaks;
use crate::fault::Fault;
use crate::gateway::Routed;
use crate::gateway::refuse::Refused;
use crate::gateway::standing::Standing;
use crate::gateway::tcp::{self, Line};
use crate::gateway::worker::beside;
use crate::record::Stage;

/// What an upgraded connection holds while it lives: its count against the limits, and what asks again whether it may stay.
type Held = (Rc<Permit>, Standing);

/// Lets one request leave HTTP.
pub(super) async fn proceed(
    session: &Rc<HttpSession>,
    (ask, routed, held): (Ask, Routed, Held),
    parts: Parts,
    body: Incoming,
    exchange: &mut Box<Exchange>,
) -> Result<Response<Body>, Refused> {
    let client = hyper::upgrade::on(Request::from_parts(parts.clone(), body));
    let (to, over_h2) = match ask.leaves.clone() {
        Some(Leaves::Connect) if session.framing().is_some() && matches!(session.naming, Naming::Header(_)) => {
            (To::Connect, false)
        }
        None | Some(Leaves::Connect) => return connect(session, &ask, routed, client, held, exchange).await,
        Some(Leaves::Upgrade(protocol)) => (To::Protocol(protocol), false),
        Some(Leaves::Extended(protocol)) => (To::Protocol(protocol), true),
    };
    switch(session, Switch { ask, routed, parts, client, held, to, over_h2 }, exchange).await
}

/// CONNECT: the authority names a TCP target; the endpoint gets the bytes.
async fn connect(
    session: &Rc<HttpSession>,
    ask: &Ask,
    routed: Routed,
    client: OnUpgrade,
    held: Held,
    exchange: &mut Box<Exchange>,
) -> Result<Response<Body>, Refused> {
    let gateway = &session.gateway;
    let (stream, guard, endpoint) = tcp::open(gateway, &routed, |endpoint| ask.requires(endpoint)).await?;
    exchange.passed(Stage::Connect);
    exchange.record.endpoint = Some(endpoint);
    join(session, held, client, (stream, endpoint), guard);
    Ok(Response::new(Body::empty()))
}

/// What a switch of protocols needs.
struct Switch {
    ask: Ask,
    routed: Routed,
    parts: Parts,
    client: OnUpgrade,
    held: Held,
    to: To,
    /// Whether the client asked by extended CONNECT.
    over_h2: bool,
}

/// What HTTP is left for.
enum To {
    /// Whatever the proxy behind makes of CONNECT.
    Connect,
    /// A named protocol.
    Protocol(HeaderValue),
}

async fn switch(
    session: &Rc<HttpSession>,
    switch: Switch,
    exchange: &mut Box<Exchange>,
) -> Result<Response<Body>, Refused> {
    let gateway = &session.gateway;
    let Switch { ask, routed, parts, client, held, to, over_h2 } = switch;
    let websocket = matches!(&to, To::Protocol(protocol) if protocol.as_bytes().eq_ignore_ascii_case(b"websocket"));
    let mut avoid = Vec::new();
    let (pick, mut answer, our_key, to_h2) = loop {
        let pick = routed.pick(&avoid).await?;
        exchange.passed(Stage::Balance);
        exchange.record.endpoint = Some(pick.endpoint.addr);
        // What leaves HTTP goes to an endpoint that speaks as the client does by HTTP/1, on a session of its own.
        let to_h2 = match pick.endpoint.speaks {
            Speaks::Http2 => true,
            Speaks::AsClient | Speaks::Http1 => false,
            Speaks::Opaque => return Err(unsupported("an opaque service was asked for by HTTP")),
        };
        if (to_h2 || over_h2) && !websocket {
            return Err(unsupported("only WebSocket crosses between HTTP/1 and HTTP/2"));
        }
        let version = if to_h2 { Version::Http2 } else { Version::Http1 };
        let towards = Towards::new(&ask, &pick.endpoint)?.by(version);
        let (request, key) = match (version, &to) {
            (Version::Http2, _) => extended(towards, &parts, &ask),
            (Version::Http1, To::Protocol(protocol)) => upgrade(towards, &parts, &ask, protocol, over_h2),
            (Version::Http1, To::Connect) => (onward_connect(towards, &parts, &ask), None),
        };
        let sent = gateway.send(&pick.endpoint, request, version).await;
        exchange.passed(Stage::Connect);
        match sent {
            Ok(answer) => break (pick, answer, key, to_h2),
            Err(error) => {
                if let Some(failure) = error.failure {
                    gateway.failed(&pick.guard, failure);
                }
                let again = error.retry_is_safe && avoid.len() < gateway.http.max_retries as usize;
                if !again || !gateway.retries.take() {
                    return Err(error.refused);
                }
                avoid.push(pick.endpoint.addr);
            }
        }
    };
    pick.guard.first_byte();
    let agreed = match &to {
        To::Connect => answer.status().is_success(),
        To::Protocol(_) if to_h2 => answer.status() == StatusCode::OK,
        To::Protocol(_) => answer.status() == StatusCode::SWITCHING_PROTOCOLS,
    };
    if !agreed {
        pick.guard.succeeded();
        return declined(answer, over_h2);
    }
    if let Some(key) = our_key
        && answer.headers().get(SEC_WEBSOCKET_ACCEPT) != Some(&websocket::accept(&key))
    {
        return Err(Refused::new(
            Stage::Relay,
            Fault::Upstream,
            "relay.upgrade_refused",
            "the endpoint's sec-websocket-accept does not answer our key",
        ));
    }
    let tunnel = answer.body_mut().take_tunnel();
    let upstream = hyper::upgrade::on(&mut answer);
    let client_key = parts.headers.get(SEC_WEBSOCKET_KEY);
    let response = agreed_response(&answer, &to, client_key, over_h2);
    if let Some(framing) = session.framing() {
        framing.upgraded();
    }
    let upstream = async move {
        Ok(match tunnel {
            Some(stream) => Either::Left(stream),
            None => Either::Right(TokioIo::new(upstream.await?)),
        })
    };
    let endpoint = pick.endpoint.addr;
    join_later(session, held, client, (upstream, endpoint), (pick.guard, answer.into_body()));
    Ok(response)
}

fn unsupported(detail: &str) -> Refused {
    Refused::new(Stage::Relay, Fault::Client, "relay.upgrade_unsupported", detail)
}

/// Extended CONNECT towards an HTTP/2 endpoint (RFC 8441 §4). The key is meaningless there.
fn extended(towards: Towards<'_>, parts: &Parts, ask: &Ask) -> (Request<RequestBody>, Option<HeaderValue>) {
    let mut request = towards.request(&parts.method, &parts.uri, parts.headers.clone(), ask, RequestBody::empty());
    *request.method_mut() = Method::CONNECT;
    request.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
    request.headers_mut().remove(SEC_WEBSOCKET_KEY);
    request.headers_mut().remove(CONTENT_LENGTH);
    (request, None)
}

/// `Upgrade` towards an HTTP/1 endpoint, with a key of ours when the client came by HTTP/2 and has none.
fn upgrade(
    towards: Towards<'_>,
    parts: &Parts,
    ask: &Ask,
    protocol: &HeaderValue,
    over_h2: bool,
) -> (Request<RequestBody>, Option<HeaderValue>) {
    let mut request = towards.request(&parts.method, &parts.uri, parts.headers.clone(), ask, RequestBody::empty());
    if over_h2 {
        *request.method_mut() = Method::GET;
    }
    let headers = request.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol.clone());
    headers.remove(CONTENT_LENGTH);
    if !over_h2 {
        return (request, None);
    }
    let key = websocket::key();
    headers.insert(SEC_WEBSOCKET_KEY, key.clone());
    headers.entry(SEC_WEBSOCKET_VERSION).or_insert(HeaderValue::from_static("13"));
    (request, Some(key))
}

/// CONNECT as the client sent it: what it names is the business of the proxy that it is for (RFC 9110 §9.3.6).
fn onward_connect(towards: Towards<'_>, parts: &Parts, ask: &Ask) -> Request<RequestBody> {
    let mut request = towards.request(&parts.method, &parts.uri, parts.headers.clone(), ask, RequestBody::empty());
    if let Some(authority) = parts.uri.authority().cloned() {
        let mut form = http::uri::Parts::default();
        form.authority = Some(authority);
        *request.uri_mut() = Uri::from_parts(form).expect("an authority alone is a valid URI");
    }
    request.headers_mut().remove(CONTENT_LENGTH);
    request
}

/// The endpoint stays with HTTP: its answer goes to the client as it is. But to CONNECT a 2xx would mean that the protocol was
/// switched, so such an answer cannot be passed on.
fn declined(answer: Response<Streamed<RequestBody>>, over_h2: bool) -> Result<Response<Body>, Refused> {
    if over_h2 && answer.status().is_success() {
        let detail = "the endpoint answered the upgrade as if it were an ordinary request";
        return Err(Refused::new(Stage::Relay, Fault::Upstream, "relay.upgrade_refused", detail));
    }
    let mut response = answer.map(|body| Body::upstream(body, None));
    headers::clean_response(response.headers_mut());
    *response.version_mut() = http::Version::default();
    Ok(response)
}

/// Whether the guard over an HTTP/1 connection may take this request for one that leaves HTTP.
pub(super) fn may_be_wanted<B>(request: &Request<B>) -> bool {
    request.method() == Method::CONNECT || request.headers().contains_key(UPGRADE)
}

/// After the answer to such a request: where it stays with HTTP, whatever the reason, what follows is guarded again. The
/// connection ends when the client has already sent bytes that were not looked at: they must not be read as a request.
pub(super) fn settle(framing: &Framing, response: &mut Response<Body>) {
    if !framing.declined() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
}

fn agreed_response(
    answer: &Response<Streamed<RequestBody>>,
    to: &To,
    client_key: Option<&HeaderValue>,
    over_h2: bool,
) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.headers_mut() = answer.headers().clone();
    headers::clean_response(response.headers_mut());
    response.headers_mut().remove(TRANSFER_ENCODING);
    response.headers_mut().remove(CONTENT_LENGTH);
    if over_h2 {
        response.headers_mut().remove(SEC_WEBSOCKET_ACCEPT);
        return response;
    }
    let To::Protocol(protocol) = to else {
        *response.status_mut() = answer.status();
        return response;
    };
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(UPGRADE, protocol.clone());
    if !response.headers().contains_key(SEC_WEBSOCKET_ACCEPT)
        && let Some(key) = client_key
    {
        response.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, websocket::accept(key));
    }
    response
}

fn join<U>(session: &Rc<HttpSession>, held: Held, client: OnUpgrade, (upstream, at): (U, SocketAddr), guard: Guard)
where
    U: AsyncRead + AsyncWrite + Unpin + 'static,
{
    if let Some(framing) = session.framing() {
        framing.upgraded();
    }
    join_later(session, held, client, (std::future::ready(Ok(upstream)), at), guard);
}

/// Waits until both sides have left HTTP, then relays between them as an opaque connection with a record of its own.
fn join_later<U>(
    session: &Rc<HttpSession>,
    held: Held,
    client: OnUpgrade,
    (upstream, endpoint): (impl Future<Output = hyper::Result<U>> + 'static, SocketAddr),
    busy: impl std::fmt::Debug + 'static,
) where
    U: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let line = Line::new(session, held, endpoint);
    beside(&session.gateway.observer, async move {
        match futures_util::future::try_join(client, upstream).await {
            Ok((client, upstream)) => line.relay(TokioIo::new(client), upstream).await,
            Err(error) => tracing::debug!(stage = "relay", %error, "an upgrade was agreed but never happened"),
        }
        drop(busy); // until here the endpoint counts as busy, and its stream as open
    });
}
