use http::{HeaderMap, HeaderValue, Method};
use linkerd2_proxy_api::http_route as api;
use linkerd2_proxy_api::inbound::{Authn, Network, ProxyProtocol, authn, grpc_route, http_route, proxy_protocol};
use linkerd2_proxy_api::{grpc_route as grpc_api, http_types};

use super::*;
use crate::addr::Target;
use crate::authorise::{Client, Policy, RequestFacts, Settings};

/// What is asked of a policy, and what it answers: the authorization's rule, or the code of the refusal.
struct Ask<'a> {
    method: &'a str,
    path: &'a str,
    headers: &'a [(&'a str, &'a str)],
    host: Option<&'a str>,
}

const GET: Ask<'_> = Ask { method: "GET", path: "/", headers: &[], host: None };

fn answer(server: &inbound::Server, ask: &Ask<'_>) -> String {
    let served = super::server(server).expect("a protocol").served;
    let policy = Policy::serve(&Settings { exported_only: false, ..Settings::default() }, &served, None);
    let client = Client {
        identity: Identity::parse("web.shop.serviceaccount.identity.linkerd.east.example").expect("an identity"),
        network: [10, 1, 2, 3].into(),
    };
    let mut headers = HeaderMap::new();
    for (name, value) in ask.headers {
        let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
        headers.append(name, HeaderValue::from_str(value).expect("a value"));
    }
    let (path, query) = ask.path.split_once('?').map_or((ask.path, None), |(path, query)| (path, Some(query)));
    let method = Method::from_bytes(ask.method.as_bytes()).expect("a method");
    let facts = RequestFacts { method: &method, path, query, headers: &headers, host: ask.host, grpc: false };
    let target = Target::parse("api.ns.svc", 80).expect("a target");
    match policy.request(&client, target, true, &facts) {
        Ok(admission) => admission.rule.map_or_else(String::new, |rule| rule.to_string()),
        Err(denied) => crate::fault::Refusal::code(&denied).to_owned(),
    }
}

fn everybody() -> Authz {
    let mesh = authn::PermitMeshTls { clients: Some(Clients::Unauthenticated(authn::PermitUnauthenticated {})) };
    let everywhere: IpNet = "0.0.0.0/0".parse().expect("a network");
    Authz {
        networks: vec![Network { net: Some(everywhere.into()), except: vec![] }],
        authentication: Some(Authn { permit: Some(Permit::MeshTls(mesh)) }),
        labels: [("name".to_owned(), "all".to_owned())].into(),
        ..Authz::default()
    }
}

fn metadata(name: &str) -> Option<Metadata> {
    Some(Metadata { kind: Some(metadata::Kind::Default(name.to_owned())) })
}

fn route(name: &str, matches: Vec<HttpRouteMatch>) -> HttpRoute {
    HttpRoute {
        metadata: metadata(name),
        authorizations: vec![everybody()],
        rules: vec![http_route::Rule { matches, filters: vec![] }],
        ..HttpRoute::default()
    }
}

fn http(routes: Vec<HttpRoute>) -> inbound::Server {
    of(Kind::Http2(proxy_protocol::Http2 { routes, local_rate_limit: None }))
}

fn of(kind: Kind) -> inbound::Server {
    let labels = [("name".to_owned(), "s".to_owned())].into();
    inbound::Server { protocol: Some(ProxyProtocol { kind: Some(kind) }), labels, ..inbound::Server::default() }
}

fn path(kind: path_match::Kind) -> HttpRouteMatch {
    HttpRouteMatch { path: Some(api::PathMatch { kind: Some(kind) }), ..HttpRouteMatch::default() }
}

fn header(name: &str, value: header_match::Value) -> api::HeaderMatch {
    api::HeaderMatch { name: name.to_owned(), value: Some(value) }
}

fn query(name: &str, value: query_param_match::Value) -> api::QueryParamMatch {
    api::QueryParamMatch { name: name.to_owned(), value: Some(value) }
}

/// Each route says by its name what it is for; which one is taken shows in the rule.
#[test]
fn the_most_specific_match_is_taken() {
    let exact = |path: &str| path_match::Kind::Exact(path.to_owned());
    let prefix = |path: &str| path_match::Kind::Prefix(path.to_owned());
    let registered = |method: http_types::http_method::Registered| {
        Some(http_types::HttpMethod { r#type: Some(http_types::http_method::Type::Registered(method.into())) })
    };
    let unregistered = |method: &str| {
        Some(http_types::HttpMethod { r#type: Some(http_types::http_method::Type::Unregistered(method.to_owned())) })
    };
    let mut below = route("below", vec![]);
    below.hosts = vec![HostMatch {
        r#match: Some(host_match::Match::Suffix(host_match::Suffix {
            reverse_labels: vec!["example".to_owned(), "web".to_owned()],
        })),
    }];
    let mut hosted = route("hosted", vec![]);
    hosted.hosts = vec![HostMatch { r#match: Some(host_match::Match::Exact("A.Web.Example".to_owned())) }];
    let server = http(vec![
        route("prefix", vec![path(prefix("/a"))]),
        route("longer", vec![path(prefix("/a/b/"))]),
        route("exact", vec![path(exact("/a/b"))]),
        route("regex", vec![path(path_match::Kind::Regex("/r/[0-9]+".to_owned()))]),
        route(
            "post",
            vec![HttpRouteMatch {
                method: registered(http_types::http_method::Registered::Post),
                ..path(prefix("/a"))
            }],
        ),
        route("purge", vec![HttpRouteMatch { method: unregistered("PURGE"), ..path(prefix("/a")) }]),
        route(
            "env",
            vec![HttpRouteMatch {
                headers: vec![header("x-env", header_match::Value::Exact(b"prod".to_vec()))],
                ..path(prefix("/a"))
            }],
        ),
        route(
            "envs",
            vec![HttpRouteMatch {
                headers: vec![
                    header("x-env", header_match::Value::Exact(b"prod".to_vec())),
                    header("x-who", header_match::Value::Regex("a+".to_owned())),
                ],
                ..path(prefix("/a"))
            }],
        ),
        route(
            "query",
            vec![HttpRouteMatch {
                query_params: vec![query("q", query_param_match::Value::Exact("a b".to_owned()))],
                ..path(prefix("/a"))
            }],
        ),
        below,
        hosted,
    ]);
    for (ask, want) in [
        (Ask { path: "/a", ..GET }, "s/prefix/all"),
        (Ask { path: "/a/x", ..GET }, "s/prefix/all"),
        (Ask { path: "/ab", ..GET }, "authorise.no_route"),
        (Ask { path: "/a/b/c", ..GET }, "s/longer/all"),
        (Ask { path: "/a/b", ..GET }, "s/exact/all"),
        (Ask { path: "/r/12", ..GET }, "s/regex/all"),
        (Ask { path: "/r/12x", ..GET }, "authorise.no_route"),
        (Ask { path: "/x/r/12", ..GET }, "authorise.no_route"),
        (Ask { method: "POST", path: "/a", ..GET }, "s/post/all"),
        (Ask { method: "POST", path: "/a/b/c", ..GET }, "s/longer/all"),
        (Ask { method: "PURGE", path: "/a", ..GET }, "s/purge/all"),
        (Ask { path: "/a", headers: &[("x-env", "prod")], ..GET }, "s/env/all"),
        (Ask { path: "/a", headers: &[("x-env", "prod"), ("x-who", "aaa")], ..GET }, "s/envs/all"),
        (Ask { path: "/a", headers: &[("x-env", "prod"), ("x-who", "aab")], ..GET }, "s/env/all"),
        (Ask { path: "/a", headers: &[("x-env", "dev")], ..GET }, "s/prefix/all"),
        (Ask { path: "/a?q=a+b", ..GET }, "s/query/all"),
        (Ask { path: "/a?x=1&q=a%20b", ..GET }, "s/query/all"),
        (Ask { path: "/a?q=a", ..GET }, "s/prefix/all"),
        (Ask { path: "/a/b", host: Some("x.web.example:80"), ..GET }, "s/below/all"),
        (Ask { path: "/a/b", host: Some("a.web.EXAMPLE"), ..GET }, "s/hosted/all"),
        (Ask { path: "/z", host: Some("web.example"), ..GET }, "authorise.no_route"),
        (Ask { path: "/z", host: Some("xweb.example"), ..GET }, "authorise.no_route"),
    ] {
        assert_eq!(answer(&server, &ask), want, "{} {} {:?} {:?}", ask.method, ask.path, ask.headers, ask.host);
    }
}

/// Where it cannot be told which route is taken, each of them must let the client through.
#[test]
fn doubt_opens_nothing() {
    let prefix = |path: &str| path_match::Kind::Prefix(path.to_owned());
    let mut closed = route("closed", vec![path(prefix("/admin"))]);
    closed.authorizations.clear();
    let mut env = route(
        "env",
        vec![HttpRouteMatch {
            headers: vec![header("x-env", header_match::Value::Exact(b"prod".to_vec()))],
            query_params: vec![query("q", query_param_match::Value::Exact("1".to_owned()))],
            ..HttpRouteMatch::default()
        }],
    );
    env.authorizations.clear();
    let server = http(vec![route("open", vec![]), closed, env]);
    for (ask, want) in [
        (Ask { path: "/", ..GET }, "s/open/all"),
        (Ask { path: "/admin", ..GET }, "authorise.no_rule"),
        (Ask { path: "/Admin", ..GET }, "authorise.ambiguous_path"),
        (Ask { path: "/x/../admin", ..GET }, "authorise.ambiguous_path"),
        (Ask { path: "/%2fadmin", ..GET }, "authorise.ambiguous_path"),
        (Ask { path: "/?q=1", headers: &[("x-env", "prod")], ..GET }, "authorise.no_rule"),
        (Ask { path: "/?q=1", headers: &[("x-env", "prod"), ("x-env", "dev")], ..GET }, "authorise.ambiguous_path"),
        (Ask { path: "/?q=1&q=2", headers: &[("x-env", "prod")], ..GET }, "authorise.ambiguous_path"),
        (Ask { path: "/?q=2", headers: &[("x-env", "prod")], ..GET }, "s/open/all"),
    ] {
        assert_eq!(answer(&server, &ask), want, "{} {:?}", ask.path, ask.headers);
    }
}

/// CONNECT becomes bytes, in which any request can be made: no route that tells requests apart may let it through.
#[test]
fn connect_takes_no_route_of_requests() {
    let delete = http_types::http_method::Type::Registered(http_types::http_method::Registered::Delete.into());
    let method = HttpRouteMatch { method: Some(http_types::HttpMethod { r#type: Some(delete) }), ..Default::default() };
    let routes = vec![route("admins", vec![method]), route("everybody", vec![HttpRouteMatch::default()])];
    let server = http(routes);
    assert_eq!(answer(&server, &GET), "s/everybody/all", "a request takes it");
    let connect = Ask { method: "CONNECT", path: "", host: Some("api.ns.svc"), ..GET };
    assert_eq!(answer(&server, &connect), "authorise.no_route");
}

#[test]
fn grpc_routes_are_for_calls() {
    let call = |service: &str, method: &str| GrpcRouteMatch {
        rpc: Some(grpc_api::GrpcRpcMatch { service: service.to_owned(), method: method.to_owned() }),
        headers: vec![],
    };
    let route = |name: &str, matches| GrpcRoute {
        metadata: metadata(name),
        authorizations: vec![everybody()],
        rules: vec![grpc_route::Rule { matches, filters: vec![] }],
        ..GrpcRoute::default()
    };
    let routes = vec![
        route("one", vec![call("acme.Pay", "Charge")]),
        route("service", vec![call("acme.Pay", "")]),
        route("method", vec![call("", "Health.Check")]),
    ];
    let server = of(Kind::Grpc(proxy_protocol::Grpc { routes }));
    for (method, path, want) in [
        ("POST", "/acme.Pay/Charge", "s/one/all"),
        ("POST", "/acme.Pay/Refund", "s/service/all"),
        ("POST", "/acme.Payments/Refund", "authorise.no_route"),
        ("POST", "/any.Service/Health.Check", "s/method/all"),
        ("POST", "/any.Service/HealthxCheck", "authorise.no_route"),
        ("GET", "/acme.Pay/Charge", "authorise.no_route"),
    ] {
        assert_eq!(answer(&server, &Ask { method, path, ..GET }), want, "{method} {path}");
    }
}

#[test]
fn what_cannot_be_read_is_said_and_lets_nobody_in() {
    let broken = |wanted: HttpRouteMatch| {
        http(vec![route("open", vec![]), HttpRoute { authorizations: vec![], ..route("broken", vec![wanted]) }])
    };
    let regex = |text: &str| header_match::Value::Regex(text.to_owned());
    for (server, problem) in [
        (broken(path(path_match::Kind::Regex("a)|(b".to_owned()))), "a path expression"),
        (broken(path(path_match::Kind::Regex("(".to_owned()))), "a path expression"),
        (
            broken(HttpRouteMatch { path: Some(api::PathMatch { kind: None }), ..Default::default() }),
            "a path of a kind",
        ),
        (broken(HttpRouteMatch { headers: vec![header("x", regex("("))], ..Default::default() }), "a header field"),
        (broken(HttpRouteMatch { headers: vec![header("a b", regex("a"))], ..Default::default() }), "a header field"),
        (
            broken(HttpRouteMatch {
                query_params: vec![api::QueryParamMatch { name: "q".to_owned(), value: None }],
                ..Default::default()
            }),
            "a parameter q",
        ),
        (
            broken(HttpRouteMatch { method: Some(http_types::HttpMethod { r#type: None }), ..Default::default() }),
            "a method",
        ),
    ] {
        let read = super::server(&server).expect("a protocol");
        assert!(read.problems.iter().any(|found| found.contains(problem)), "{problem}: {:?}", read.problems);
        assert_eq!(answer(&server, &GET), "authorise.ambiguous_path", "{problem}");
    }
    let mut no_host = route("open", vec![]);
    no_host.hosts = vec![HostMatch { r#match: None }];
    assert_eq!(answer(&http(vec![no_host]), &GET), "authorise.no_route");
    let mut bad = everybody();
    bad.networks[0].except = vec![linkerd2_proxy_api::net::IpNetwork::default()];
    let server = http(vec![HttpRoute { authorizations: vec![bad], ..route("open", vec![]) }]);
    assert_eq!(answer(&server, &GET), "authorise.no_rule");
    let empty = inbound::Server { protocol: Some(ProxyProtocol { kind: None }), ..inbound::Server::default() };
    assert_eq!(super::server(&empty).map(|_| ()), Err(NoProtocol));
}
