//! What a peer sees when it is refused: one table from the reason's code to the protocol's own words.
//!
//! **In** a stage's error, as a [`Refused`]. **Out** an HTTP response, or a gRPC trailers-only response, or nothing at
//! all (opaque connections and broken handshakes are closed). What is shown never holds an internal address.
//! (Linkerd wire document §4.8; gRPC over HTTP/2, "Responses"; RFC 9110 §15.)
//!
//! Unlike Linkerd's gateway no row ends the whole multiplexed connection: a failing backend is no reason to take the
//! requests of other clients along. `l5d-proxy-connection: close` is still said where Linkerd says it, as that is
//! advice to the proxy in front of the application.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::HeaderName;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};

use super::http::body::Body;
use crate::connect::{self, Cause};
use crate::fault::{Fault, Refusal};
use crate::record::{Outcome, Record, Stage};

/// A refusal on its way to the record and the peer.
#[derive(Clone, Debug)]
pub(crate) struct Refused {
    pub(crate) stage: Stage,
    pub(crate) fault: Fault,
    pub(crate) code: &'static str,
    /// For the log: the error and its causes. Not for the peer.
    pub(crate) detail: String,
    pub(crate) retry_after: Option<Duration>,
    /// The requests per second and the scope of the rate that was exceeded.
    pub(crate) rate: Option<(u32, &'static str)>,
    /// The policy rule that said so.
    pub(crate) rule: Option<Arc<str>>,
    /// The endpoint's own reset of the stream, which an HTTP/2 client is told as it is.
    pub(crate) reset: Option<Reset>,
}

/// An endpoint's reset of one stream. hyper finds the reason in its sources, and resets the client's stream with it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the endpoint reset the stream")]
pub(crate) struct Reset(#[source] Cause);

impl Refused {
    pub(crate) fn new(stage: Stage, fault: Fault, code: &'static str, detail: &str) -> Self {
        Self { stage, fault, code, detail: detail.to_owned(), retry_after: None, rate: None, rule: None, reset: None }
    }

    /// Says which rule of the policy decided.
    pub(crate) fn by_rule(self, rule: Option<Arc<str>>) -> Self {
        Self { rule, ..self }
    }

    /// An endpoint's error, with the stream's reset where that is what happened.
    pub(crate) fn from_endpoint(error: connect::Error) -> Self {
        let reset = error.stream_reset().map(|cause| Reset(Arc::clone(cause)));
        Self { reset, ..Self::from(error) }
    }

    /// Writes into the record how it ended, and why in words for the log.
    pub(crate) fn close(self, record: &mut Record) {
        if self.rule.is_some() {
            record.rule = self.rule;
        }
        record.outcome = Outcome::Refused { stage: self.stage, fault: self.fault, code: self.code };
        record.detail = Some(self.detail.into());
    }
}

impl<E: Refusal> From<E> for Refused {
    fn from(error: E) -> Self {
        let mut detail = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            let text = error.to_string();
            if !detail.contains(&text) {
                detail.push_str(": ");
                detail.push_str(&text);
            }
            cause = error.source();
        }
        Self {
            stage: stage_of(error.code()),
            fault: error.fault(),
            code: error.code(),
            detail,
            retry_after: error.retry_after(),
            rate: None,
            rule: None,
            reset: None,
        }
    }
}

/// The first part of a code is its stage.
fn stage_of(code: &str) -> Stage {
    let word = code.split('.').next().unwrap_or(code);
    Stage::ALL.into_iter().find(|stage| stage.as_str() == word).unwrap_or(Stage::Relay)
}

/// What one code looks like to a peer.
struct Answer {
    status: u16,
    grpc: u8,
    text: &'static str,
    /// Whether the proxy in front of the application is advised to close the application's connection.
    advise_close: bool,
}

const fn row(status: u16, grpc: u8, text: &'static str, advise_close: bool) -> Answer {
    Answer { status, grpc, text, advise_close }
}

/// The table. gRPC codes: 3 INVALID_ARGUMENT, 4 DEADLINE_EXCEEDED, 5 NOT_FOUND, 7 PERMISSION_DENIED,
/// 8 RESOURCE_EXHAUSTED, 10 ABORTED, 12 UNIMPLEMENTED, 13 INTERNAL, 14 UNAVAILABLE.
fn answer(refused: &Refused) -> Answer {
    match refused.code {
        "authorise.ambiguous_path" => row(400, 3, "ambiguous request path", false),
        "authorise.no_route" => row(404, 5, "route not found", false),
        "authorise.not_exported" => row(404, 5, "service is not exported", false),
        "authorise.rate_limited" | "authorise.concurrency" | "authorise.connections" => {
            row(429, 8, "client limit exceeded", false)
        }
        code if code.starts_with("authorise.") => row(403, 7, "unauthorized request on route", false),
        "route.suffix" | "route.unknown_service" => row(404, 5, "bad gateway domain", false),
        "route.external_name" => row(404, 5, "service leads out of the cluster", false),
        "route.no_such_port" => row(404, 5, "service has no such port", false),
        "route.loop" => row(508, 10, "gateway loop detected", true),
        "route.ipv6_literal" => row(400, 3, "services are named, an IPv6 address names none", false),
        "route.no_authority" | "route.bad_authority" => row(400, 3, "the request names no service", false),
        // UNAVAILABLE, not DEADLINE_EXCEEDED: nothing was sent, and a client may well try again.
        "route.discovery_timeout" => row(504, 14, "service discovery timed out", true),
        "route.lookup_failed" => row(503, 14, "service discovery failed", true),
        "route.capacity" => row(503, 14, "too many services under discovery", true),
        "balance.failfast_wait" | "balance.no_endpoint" => row(504, 4, "logical service in fail-fast", true),
        code if code.starts_with("balance.") => row(503, 14, "service unavailable", true),
        "connect.timeout" => row(504, 4, "connect timed out", true),
        "connect.require_id" => row(500, 13, "unexpected error", true),
        "connect.request_body" => row(400, 3, "malformed request", false),
        "connect.pool_full" => row(503, 14, "service unavailable", true),
        code if code.starts_with("connect.") => row(502, 14, "connection to the service failed", true),
        "relay.body_timeout" => row(408, 4, "the request's body came too slowly", false),
        "relay.overloaded" => row(503, 14, "the gateway is overloaded", false),
        "relay.too_many_headers" => row(431, 8, "too many header fields", false),
        "relay.request_malformed" => row(400, 3, "malformed request", false),
        "relay.upgrade_unsupported" => row(501, 12, "the service does not support this upgrade", false),
        "relay.opaque_service" => row(501, 12, "the service does not speak HTTP", false),
        "relay.route_timeout" => row(504, 4, "route timed out", true),
        "relay.request_timeout" => row(504, 4, "request timed out", true),
        _ => match refused.fault {
            Fault::Client => row(400, 3, "malformed request", false),
            Fault::Policy => row(403, 7, "unauthorized request on route", false),
            Fault::Upstream => row(502, 14, "the service closed the connection", true),
            Fault::Ours => row(500, 13, "unexpected error", true),
        },
    }
}

/// The response for a refused request.
pub(crate) fn response(refused: &Refused, grpc: bool) -> Response<Body> {
    let answer = answer(refused);
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    if let Some(wait) = refused.retry_after {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        if let Some((per_second, scope)) = refused.rate {
            headers.extend(rate_fields(scope, per_second, 0, seconds.max(1)).into_iter().flatten());
        }
    }
    if grpc {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", HeaderValue::from(u16::from(answer.grpc)));
        headers.insert("grpc-message", grpc_message(answer.text));
    }
    headers.insert("l5d-proxy-error", HeaderValue::from_static(answer.text));
    if answer.advise_close {
        headers.insert("l5d-proxy-connection", HeaderValue::from_static("close"));
    }
    *response.status_mut() = if grpc {
        StatusCode::OK
    } else {
        StatusCode::from_u16(answer.status).expect("the table holds valid status codes only")
    };
    response
}

/// The trailers of a gRPC response that its endpoint broke off. INTERNAL, not UNAVAILABLE: a part of the answer is out, and
/// a client that sends the call again by itself would have it done twice.
pub(crate) fn broken_trailers() -> HeaderMap {
    let text = grpc_message("the service closed the connection");
    HeaderMap::from_iter([
        (HeaderName::from_static("grpc-status"), HeaderValue::from_static("13")),
        (HeaderName::from_static("grpc-message"), text),
    ])
}

/// `ratelimit` and `ratelimit-policy` (draft-ietf-httpapi-ratelimit-headers): what is left of a rate, and the rate.
pub(crate) fn rate_fields(
    scope: &str,
    per_second: u32,
    remaining: u32,
    seconds: u64,
) -> Option<[(HeaderName, HeaderValue); 2]> {
    let mut left = field_value(format_args!("\"{scope}\";r={remaining};t={seconds}"))?;
    // Another one in each response: not worth a place in the client's HPACK table (RFC 7541 §6.2.3).
    left.set_sensitive(true);
    let policy = field_value(format_args!("\"{scope}\";q={per_second};w=1"))?;
    Some([(HeaderName::from_static("ratelimit"), left), (HeaderName::from_static("ratelimit-policy"), policy)])
}

/// A short text as a field's value, put together on the stack.
fn field_value(text: std::fmt::Arguments<'_>) -> Option<HeaderValue> {
    let mut buffer = [0; 96];
    let mut rest = &mut buffer[..];
    rest.write_fmt(text).ok()?;
    let left = rest.len();
    HeaderValue::from_bytes(&buffer[..buffer.len() - left]).ok()
}

/// The status that a refusal is recorded under.
pub(crate) fn status(refused: &Refused, grpc: bool) -> (u16, Option<u16>) {
    let answer = answer(refused);
    if grpc { (200, Some(u16::from(answer.grpc))) } else { (answer.status, None) }
}

/// Percent-encodes as the gRPC protocol demands of `grpc-message`: all but printable ASCII, and `%`.
fn grpc_message(text: &str) -> HeaderValue {
    let mut encoded = Vec::with_capacity(text.len());
    for byte in text.bytes() {
        if (b' '..=b'~').contains(&byte) && byte != b'%' {
            encoded.push(byte);
        } else {
            encoded.extend_from_slice(format!("%{byte:02X}").as_bytes());
        }
    }
    HeaderValue::from_maybe_shared(Bytes::from(encoded)).expect("percent-encoded text is a valid field value")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: &'static str, fault: Fault) -> Refused {
        Refused::new(stage_of(code), fault, code, "")
    }

    #[test]
    fn http_and_grpc_see_the_same_reason_in_their_own_words() {
        let loops = refused("route.loop", Fault::Client);
        let http = response(&loops, false);
        assert_eq!(http.status(), 508);
        assert_eq!(http.headers()["l5d-proxy-error"], "gateway loop detected");
        assert_eq!(http.headers()["l5d-proxy-connection"], "close");
        assert!(!http.headers().contains_key("connection"));
        let grpc = response(&loops, true);
        assert_eq!(grpc.status(), 200);
        assert_eq!(grpc.headers()["grpc-status"], "10");
        assert_eq!(grpc.headers()["content-type"], "application/grpc");
    }

    #[test]
    fn limits_say_when_to_come_back() {
        let mut limited = refused("authorise.rate_limited", Fault::Policy);
        limited.retry_after = Some(Duration::from_millis(1200));
        limited.rate = Some((5, "rule_client"));
        let response = response(&limited, false);
        assert_eq!(response.headers()["retry-after"], "2");
        assert_eq!(response.headers()["ratelimit"], "\"rule_client\";r=0;t=2");
        assert_eq!(response.headers()["ratelimit-policy"], "\"rule_client\";q=5;w=1");
    }

    #[test]
    fn codes_name_their_stage() {
        for stage in Stage::ALL {
            assert_eq!(stage_of(&format!("{}.x", stage.as_str())), stage);
        }
    }

    #[test]
    fn messages_are_percent_encoded() {
        assert_eq!(grpc_message("50% of\nit"), "50%25 of%0Ait");
    }
}
