//! What a request asks for: the effective version, the service it names, and whether it wants to leave HTTP.
//!
//! **In** a request's head and how the session was named. **Out** an [`Ask`]. **Refuses** a request that names no
//! service or two different ones, and CONNECT misuse. (RFC 9110 §7.2, §9.3.6; RFC 9113 §8.3.1; RFC 8441 §4;
//! Linkerd wire document §3.2, §4.1, §4.7.)

use std::cell::RefCell;

use http::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderValue, UPGRADE};
use http::request::Parts;
use http::{Method, Version};

use super::headers::L5D_REQUIRE_ID;
use super::orig_proto::{self, Original};
use crate::addr::{InvalidTarget, Target};
use crate::detect::Naming;
use crate::endpoint::Endpoint;
use crate::fault::{Fault, Refusal};
use crate::gateway::refuse::Refused;
use crate::record::Stage;

/// What one request asks for.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) target: Target,
    /// HTTP/2, or HTTP/1 (also when it was carried over HTTP/2 by `l5d-orig-proto`).
    pub(super) version: Version,
    /// Whether an HTTP/1 request came over HTTP/2: its response is marked, too.
    pub(super) carried: bool,
    /// Whether the target goes on in absolute form: as an HTTP/1 client wrote it on a session that names its service.
    pub(super) absolute: bool,
    /// Who the endpoint has to be, where the client says so.
    require_id: Option<HeaderValue>,
    pub(crate) grpc: bool,
    pub(super) leaves: Option<Leaves>,
}

/// How a request asks to leave HTTP on its connection or stream.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Leaves {
    /// CONNECT: bytes to the target from here on.
    Connect,
    /// Extended CONNECT over HTTP/2, with its `:protocol`.
    Extended(HeaderValue),
    /// `Upgrade` over HTTP/1.1, with the protocols asked for.
    Upgrade(HeaderValue),
}

impl Ask {
    pub(super) fn read(parts: &mut Parts, naming: &Naming, last: &LastName, default_port: u16) -> Result<Self, Error> {
        let Original { version, carried, absolute } = orig_proto::received(parts);
        let require_id = parts.headers.remove(L5D_REQUIRE_ID);
        let leaves = leaves(parts, version)?;
        let grpc = parts.version == Version::HTTP_2
            && parts.headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
        let target = match naming {
            // The authority of a request never overrides what the session named; CONNECT may not try.
            Naming::Header(target) | Naming::Sni(target) => target.clone(),
            Naming::Port(_) => return Err(Error::NoAuthority),
            Naming::Request => named(parts, last, default_port)?,
        };
        // Where the request itself names its service, `host` says the same as the absolute form.
        let absolute = absolute && matches!(naming, Naming::Header(_));
        Ok(Self { target, version, carried, absolute, require_id, grpc, leaves })
    }
}

impl Ask {
    /// The method that the policy judges by: a WebSocket's extended CONNECT is what its GET is over HTTP/1 (RFC 8441 §5), and an
    /// HTTP/1 endpoint gets it as that.
    pub(crate) fn method<'a>(&self, parts: &'a Parts) -> &'a Method {
        static GET: Method = Method::GET;
        if matches!(self.leaves, Some(Leaves::Extended(_))) { &GET } else { &parts.method }
    }

    /// Refuses an endpoint that is not who the client requires (`l5d-require-id`).
    pub(super) fn requires(&self, endpoint: &Endpoint) -> Result<(), Refused> {
        let Some(wanted) = &self.require_id else { return Ok(()) };
        let identity = endpoint.tls.as_ref().map(|tls| tls.identity.as_str());
        if identity.is_some_and(|identity| wanted.as_bytes().eq_ignore_ascii_case(identity.as_bytes())) {
            return Ok(());
        }
        let detail = "the endpoint is not who l5d-require-id says";
        Err(Refused::new(Stage::Connect, Fault::Client, "connect.require_id", detail))
    }
}

fn leaves(parts: &Parts, version: Version) -> Result<Option<Leaves>, Error> {
    if parts.method == Method::CONNECT {
        if let Some(protocol) = parts.extensions.get::<hyper::ext::Protocol>() {
            let protocol = HeaderValue::from_str(protocol.as_str()).map_err(|_| Error::Connect)?;
            return Ok(Some(Leaves::Extended(protocol)));
        }
        let authority_only = parts.uri.scheme().is_none() && parts.uri.authority().is_some();
        let over_h1 = parts.version == Version::HTTP_11 && authority_only;
        let over_h2 = parts.version == Version::HTTP_2 && parts.uri.authority().is_some();
        return if over_h1 || over_h2 { Ok(Some(Leaves::Connect)) } else { Err(Error::Connect) };
    }
    if parts.version != Version::HTTP_11 || version != Version::HTTP_11 {
        return Ok(None); // HTTP/1.0 and HTTP/2 know no Upgrade; the field is dropped with the hop-by-hop ones
    }
    let listed = parts.headers.get_all(CONNECTION).iter().any(|value| {
        value.to_str().is_ok_and(|value| value.split(',').any(|name| name.trim().eq_ignore_ascii_case("upgrade")))
    });
    // A list that holds h2c is as bad as h2c alone: a backend might take it up, and speak a protocol that we do not follow.
    let h2c = |value: &HeaderValue| {
        value.as_bytes().split(|byte| *byte == b',').any(|one| one.trim_ascii().eq_ignore_ascii_case(b"h2c"))
    };
    let wanted = parts.headers.get(UPGRADE).filter(|value| !h2c(value));
    Ok(wanted.filter(|_| listed).cloned().map(Leaves::Upgrade))
}

/// The service that the request itself names: `:authority`, the authority of an absolute form, or `host`.
fn named(parts: &Parts, last: &LastName, default_port: u16) -> Result<Target, Error> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Error::Conflict);
    }
    let host = host.map(|host| host.to_str().map_err(|_| Error::NoAuthority)).transpose()?.filter(|h| !h.is_empty());
    let uri = parts.uri.authority().map(http::uri::Authority::as_str);
    let target = match (uri, host) {
        (None, None) => return Err(Error::NoAuthority),
        (Some(only), None) | (None, Some(only)) => last.parse(only, default_port)?,
        (Some(uri), Some(host)) => {
            let target = last.parse(uri, default_port)?;
            // RFC 9112 §3.2.2 lets the absolute form win; RFC 9113 §8.3.1 calls a differing host malformed. A request
            // that names two services is how one rule's decision ends up at another service, so both must agree.
            if target != Target::parse(host, default_port)? {
                return Err(Error::Conflict);
            }
            target
        }
    };
    Ok(target)
}

/// The name that a session read last, and what it means: most clients ask for the same one again.
#[derive(Debug, Default)]
pub(super) struct LastName(RefCell<Option<(Box<str>, Target)>>);

impl LastName {
    fn parse(&self, text: &str, default_port: u16) -> Result<Target, InvalidTarget> {
        if let Some((last, target)) = &*self.0.borrow()
            && **last == *text
        {
            return Ok(target.clone());
        }
        let target = Target::parse(text, default_port)?;
        *self.0.borrow_mut() = Some((text.into(), target.clone()));
        Ok(target)
    }
}

/// Why a request names nothing.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum Error {
    #[error("the authority names no service")]
    Authority(#[from] InvalidTarget),
    #[error("the authority and the host field name different services")]
    Conflict,
    #[error("CONNECT goes with an authority, and an authority alone with CONNECT")]
    Connect,
    #[error("neither an authority nor a host field names a service")]
    NoAuthority,
}

impl Refusal for Error {
    fn fault(&self) -> Fault {
        Fault::Client
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Authority(InvalidTarget::Ipv6) => "route.ipv6_literal",
            Self::Authority(_) | Self::Conflict => "route.bad_authority",
            Self::Connect => "relay.request_malformed",
            Self::NoAuthority => "route.no_authority",
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn ask(request: http::request::Builder, naming: &Naming) -> Result<Ask, Error> {
        let (mut parts, ()) = request.body(()).unwrap().into_parts();
        Ask::read(&mut parts, naming, &LastName::default(), 80)
    }

    fn session() -> Naming {
        Naming::Header(Target::parse("web.ns:8080", 80).unwrap())
    }

    #[test]
    fn the_session_names_the_service_whatever_the_request_says() {
        let asked = ask(Request::get("/").header("host", "other.ns"), &session()).unwrap();
        assert_eq!(asked.target.to_string(), "web.ns:8080");
        assert!(ask(Request::get("/"), &session()).is_ok(), "no host at all is normal here");
    }

    #[test]
    fn authority_and_host_must_agree() {
        let of = |uri: &str, host: Option<&str>| {
            let mut request = Request::get(uri);
            if let Some(host) = host {
                request = request.header("host", host);
            }
            ask(request, &Naming::Request).map(|ask| ask.target.to_string())
        };
        assert_eq!(of("/", Some("Web.ns.")).as_deref(), Ok("web.ns:80"));
        assert_eq!(of("http://web.ns/x", Some("web.ns:80")).as_deref(), Ok("web.ns:80"));
        assert_eq!(of("http://web.ns/x", Some("web.ns:81")), Err(Error::Conflict));
        assert_eq!(of("/", None), Err(Error::NoAuthority));
        assert_eq!(of("/", Some("[::1]:80")), Err(Error::Authority(InvalidTarget::Ipv6)));
    }

    #[test]
    fn an_http1_request_carried_over_http2_is_one_again() {
        let carried = Request::get("/").version(Version::HTTP_2).header("l5d-orig-proto", "HTTP/1.1; absolute-form");
        let asked = ask(carried, &session()).unwrap();
        assert_eq!(asked.version, Version::HTTP_11);
        assert!(asked.carried && asked.absolute);
    }

    #[test]
    fn upgrades_are_told_from_h2c_and_from_fields_that_connection_does_not_list() {
        let of = |connection: &str, upgrade: &str| {
            ask(Request::get("/").header("connection", connection).header("upgrade", upgrade), &session())
                .unwrap()
                .leaves
        };
        assert_eq!(
            of("keep-alive, Upgrade", "websocket"),
            Some(Leaves::Upgrade(HeaderValue::from_static("websocket")))
        );
        assert_eq!(of("upgrade, http2-settings", "h2c"), None);
        assert_eq!(of("upgrade", "websocket, H2C"), None);
        assert_eq!(of("keep-alive", "websocket"), None);
    }

    #[test]
    fn extended_connect_is_judged_as_the_get_that_the_endpoint_sees() {
        let websocket = hyper::ext::Protocol::from_static("websocket");
        let request = Request::builder().method(Method::CONNECT).uri("http://web.ns/chat").version(Version::HTTP_2);
        let (mut parts, ()) = request.extension(websocket).body(()).unwrap().into_parts();
        let asked = Ask::read(&mut parts, &Naming::Request, &LastName::default(), 80).unwrap();
        assert_eq!(asked.method(&parts), Method::GET);
        let (mut parts, ()) =
            Request::builder().method(Method::CONNECT).uri("db.ns:5432").body(()).unwrap().into_parts();
        let asked = Ask::read(&mut parts, &Naming::Request, &LastName::default(), 80).unwrap();
        assert_eq!(asked.method(&parts), Method::CONNECT);
    }

    #[test]
    fn connect_needs_an_authority() {
        let connect = Request::builder().method(Method::CONNECT).uri("db.ns:5432");
        let asked = ask(connect, &Naming::Request).unwrap();
        assert_eq!((asked.leaves, asked.target.to_string()), (Some(Leaves::Connect), "db.ns:5432".to_owned()));
        assert_eq!(ask(Request::builder().method(Method::CONNECT).uri("/x"), &session()).unwrap_err(), Error::Connect);
    }
}
