//! How a request travels to the endpoint that was picked for it, and its response back to the client.
//!
//! **In** what a request asks for, and an endpoint. **Out** the request in the endpoint's own words: version, form of the
//! target, `host` and `:authority`, the mark of `l5d-orig-proto`; and the response in the client's. **Refuses** HTTP for an
//! opaque endpoint, and an endpoint that is not who the client requires. (Linkerd wire document §3.2, §4.5, §5.4, §11.3;
//! RFC 9110 §7.6, RFC 9112 §3.2.)

use http::header::{CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderValue, TRANSFER_ENCODING};
use http::uri::{Authority, PathAndQuery};
use http::{Request, Response, Uri};
use http_body::Body as _;

use super::ask::Ask;
use super::body::{Body, RequestBody};
use super::{headers, orig_proto};
use crate::addr::Target;
use crate::balance::Guard;
use crate::connect::{Streamed, Version};
use crate::endpoint::{Endpoint, Speaks};
use crate::fault::Fault;
use crate::gateway::refuse::Refused;
use crate::record::Stage;

/// A way to one endpoint.
#[derive(Clone, Copy, Debug)]
pub(super) struct Towards<'a> {
    pub(super) version: Version,
    /// The request is an HTTP/1 one that is carried over HTTP/2.
    pub(super) carries: bool,
    authority: Option<&'a Target>,
}

impl<'a> Towards<'a> {
    /// HTTP/2 requests go on as HTTP/2 and HTTP/1 requests as HTTP/1, unless the endpoint says what it speaks. Those that
    /// leave HTTP are not carried: their session has to become bytes.
    pub(super) fn new(ask: &Ask, endpoint: &'a Endpoint) -> Result<Self, Refused> {
        ask.requires(endpoint)?;
        let native = ask.version == http::Version::HTTP_2;
        let carries = endpoint.orig_proto && !native && ask.leaves.is_none();
        let version = match endpoint.speaks {
            Speaks::AsClient if native || carries => Version::Http2,
            Speaks::AsClient | Speaks::Http1 => Version::Http1,
            Speaks::Http2 => Version::Http2,
            Speaks::Opaque => {
                let detail = "an opaque service was asked for by HTTP";
                return Err(Refused::new(Stage::Relay, Fault::Client, "relay.opaque_service", detail));
            }
        };
        let carries = carries && endpoint.speaks == Speaks::AsClient;
        Ok(Self { version, carries, authority: endpoint.authority.as_deref() })
    }

    /// The same way in another version, for what crosses between them by a switch of protocols.
    pub(super) fn by(self, version: Version) -> Self {
        Self { version, carries: false, ..self }
    }

    /// The request for the endpoint.
    pub(super) fn request(
        self,
        method: &http::Method,
        uri: &Uri,
        headers: HeaderMap,
        ask: &Ask,
        body: RequestBody,
    ) -> Request<RequestBody> {
        let mut request = Request::new(body);
        *request.method_mut() = method.clone();
        *request.headers_mut() = headers;
        match self.version {
            Version::Http2 => self.over_http2(&mut request, uri, ask),
            Version::Http1 => self.over_http1(&mut request, uri, ask),
        }
        if self.authority.is_some() {
            // What stands in it is the name at this gateway, which the next one does not know.
            request.headers_mut().remove(headers::L5D_DST_CANONICAL);
        }
        request
    }

    fn over_http2(self, request: &mut Request<RequestBody>, uri: &Uri, ask: &Ask) {
        // `:authority` stays what an HTTP/2 client wrote, or stood in the absolute form; else it is what `host` will be.
        let native = ask.version == http::Version::HTTP_2;
        let kept = uri.authority().filter(|_| native || self.carries).cloned();
        let authority = self.overridden().or(kept).unwrap_or_else(|| authority_of(&headers::host_of(&ask.target)));
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(orig_proto::scheme(uri));
        parts.authority = Some(authority);
        parts.path_and_query = Some(path_of(uri));
        *request.version_mut() = http::Version::HTTP_2;
        *request.uri_mut() = Uri::from_parts(parts).expect("scheme, authority and path make a valid URI");
        let fields = request.headers_mut();
        fields.remove(HOST);
        // What an attempt at an endpoint of HTTP/1 put on, before this one.
        fields.remove(TRANSFER_ENCODING);
        fields.remove(EXPECT);
        headers::one_length(fields);
        if self.carries {
            if self.authority.is_none() {
                fields.insert(HOST, headers::host_of(&ask.target));
            }
            orig_proto::mark_request(fields, ask.version, ask.absolute);
        } else if !native {
            // An application's own word: here it would turn the request back into what it no longer is.
            fields.remove(orig_proto::L5D_ORIG_PROTO);
        }
    }

    fn over_http1(self, request: &mut Request<RequestBody>, uri: &Uri, ask: &Ask) {
        *request.uri_mut() = match uri.authority() {
            // It was meant for a proxy, and goes on to be one's.
            Some(authority) if ask.absolute => {
                let mut parts = http::uri::Parts::default();
                parts.scheme = Some(orig_proto::scheme(uri));
                parts.authority = Some(self.overridden().unwrap_or_else(|| authority.clone()));
                parts.path_and_query = Some(path_of(uri));
                Uri::from_parts(parts).expect("scheme, authority and path make a valid URI")
            }
            _ => Uri::from(path_of(uri)),
        };
        let host = match self.authority {
            Some(target) => HeaderValue::from_str(&target.to_string()).expect(VALID),
            None => headers::host_of(&ask.target),
        };
        headers::join_cookies(request.headers_mut());
        headers::one_length(request.headers_mut());
        request.headers_mut().insert(HOST, host);
        // hyper believes that a GET of unknown length has no body, and would drop it.
        if !request.body().is_end_stream() && !request.headers().contains_key(CONTENT_LENGTH) {
            request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
    }

    fn overridden(self) -> Option<Authority> {
        let target = self.authority?;
        Some(Authority::try_from(target.to_string()).expect(VALID))
    }
}

/// The endpoint's response, fit for the client.
pub(super) fn to_client(
    response: Response<Streamed<RequestBody>>,
    guard: Guard,
    ask: &Ask,
    carried_on: bool,
) -> Response<Body> {
    let mut response = response.map(|body| Body::upstream(body, Some(guard)));
    headers::clean_response(response.headers_mut());
    let version = match ask.version {
        _ if carried_on => orig_proto::answered(response.headers_mut(), ask.version),
        // The endpoint was asked by HTTP/1.1, and what it answers to that says nothing to an application of HTTP/1.0.
        http::Version::HTTP_10 => http::Version::HTTP_10,
        _ => response.version(),
    };
    if ask.carried {
        orig_proto::mark_response(response.headers_mut(), version, ask.version);
    }
    // hyper writes the version of the client's connection; the endpoint's must not leak into it.
    *response.version_mut() = http::Version::default();
    response.extensions_mut().clear();
    response
}

const VALID: &str = "a validated name and a port make a valid authority";

fn path_of(uri: &Uri) -> PathAndQuery {
    uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"))
}

fn authority_of(host: &HeaderValue) -> Authority {
    Authority::try_from(host.as_bytes()).expect("a validated name is a valid authority")
}
