//! A table of profiles and what is made of them.

use std::net::SocketAddr;
use std::time::Duration;

use linkerd2_proxy_api::destination::{
    HttpStatusRange, PathMatch, ResponseClass, WeightedAddr, WeightedDst, request_match::Match,
};
use linkerd2_proxy_api::http_types::HttpMethod;

use super::*;

fn target() -> Target {
    Target::parse("web.ns.svc.cluster.local", 8080).expect("a target")
}

fn terms() -> EndpointTerms {
    EndpointTerms { own: Vec::new(), allow_local: false, most: 10 }
}

fn read(profile: DestinationProfile) -> Shape {
    shape(profile, &target(), &terms())
}

fn named() -> DestinationProfile {
    DestinationProfile { fully_qualified_name: "web.ns.svc.cluster.local".to_owned(), ..DestinationProfile::default() }
}

fn pod(addr: &str) -> Option<WeightedAddr> {
    let addr: SocketAddr = addr.parse().expect("an address");
    Some(WeightedAddr { addr: Some(addr.into()), ..WeightedAddr::default() })
}

fn request(one: Match) -> RequestMatch {
    RequestMatch { r#match: Some(one) }
}

fn path(regex: &str) -> RequestMatch {
    request(Match::Path(PathMatch { regex: regex.to_owned() }))
}

fn method(method: Method) -> RequestMatch {
    request(Match::Method(HttpMethod::from(method)))
}

fn all(matches: Vec<RequestMatch>) -> RequestMatch {
    request(Match::All(request_match::Seq { matches }))
}

fn route(condition: RequestMatch) -> Route {
    Route { condition: Some(condition), ..Route::default() }
}

#[test]
fn where_a_service_is() {
    let own = |profile| read(profile).own;
    assert_eq!(own(named()), Own::Service(target()));
    assert_eq!(own(DestinationProfile { endpoint: pod("10.0.0.1:80"), ..named() }), Own::Service(target()));
    assert_eq!(own(DestinationProfile::default()), Own::Nothing);
    let endpoint = Endpoint::new("10.0.0.1:80".parse().expect("an address"));
    let alone = DestinationProfile { endpoint: pod("10.0.0.1:80"), ..DestinationProfile::default() };
    assert_eq!(own(alone), Own::Endpoint(endpoint), "of weight 1, as none was given");
    let ours = DestinationProfile { endpoint: pod("127.0.0.1:80"), ..DestinationProfile::default() };
    assert_eq!(own(ours), Own::Nothing);
    let other = DestinationProfile { fully_qualified_name: "other.ns.svc.cluster.local.".to_owned(), ..named() };
    assert_eq!(own(other), Own::Service(Target::parse("other.ns.svc.cluster.local", 8080).expect("a target")));
    let odd = DestinationProfile { fully_qualified_name: "a b".to_owned(), ..named() };
    assert_eq!(own(odd), Own::Nothing);
}

#[test]
fn who_shares_the_traffic() {
    let share = |authority: &str, weight| WeightedDst { authority: authority.to_owned(), weight, backend_ref: None };
    let dst_overrides =
        vec![share("web.ns.svc.cluster.local.:8080", 9), share("b.ns.svc.cluster.local", 1), share("a b", 5)];
    let split = |profile| read(profile).split.into_iter().map(|(t, w)| (t.to_string(), w)).collect::<Vec<_>>();
    let want = [("web.ns.svc.cluster.local:8080".to_owned(), 9), ("b.ns.svc.cluster.local:8080".to_owned(), 1)];
    assert_eq!(split(DestinationProfile { dst_overrides: dst_overrides.clone(), ..named() }), want);
    let alone = DestinationProfile { dst_overrides, endpoint: pod("10.0.0.1:80"), ..DestinationProfile::default() };
    assert_eq!(split(alone), [], "one endpoint is not split");
}

#[test]
fn rules_hold_for_what_they_say() {
    let timeout = Some(prost_types::Duration { seconds: 0, nanos: 300_000_000 });
    let class = |min, max, is_failure| ResponseClass {
        condition: Some(ResponseMatch { r#match: Some(response_match::Match::Status(HttpStatusRange { min, max })) }),
        is_failure,
    };
    let books = Route {
        metrics_labels: [("route".to_owned(), "GET /books".to_owned())].into(),
        is_retryable: true,
        timeout,
        response_classes: vec![class(429, 0, true), class(500, 599, true), class(0, 0, true), ResponseClass::default()],
        ..route(all(vec![method(Method::GET), path("/books/[^/]+")]))
    };
    let rest = route(all(vec![]));
    let shape = read(DestinationProfile { routes: vec![books, rest], ..named() });
    let [books, rest] = &shape.rules[..] else { panic!("{:?}", shape.rules) };
    assert_eq!(books.name.as_deref(), Some("GET /books"));
    assert_eq!(books.timeout, Some(Duration::from_millis(300)));
    assert!(books.retryable && !rest.retryable);
    let statuses = [ResponseCondition::Status(429, 429), ResponseCondition::Status(500, 599)];
    assert_eq!(books.classes.iter().map(|(condition, _)| condition.clone()).collect::<Vec<_>>(), statuses);
    for (method, path, want) in
        [(Method::GET, "/books/7", true), (Method::GET, "/books/7/8", false), (Method::POST, "/books/7", false)]
    {
        assert_eq!(books.condition.holds(&method, path), want, "{method} {path}");
    }
    assert!(rest.condition.holds(&Method::PUT, "/anything"));
    assert_eq!(rest.timeout, None);
}

#[test]
fn patterns_are_about_the_whole_path() {
    let holds =
        |regex: &str, text: &str| condition(path(regex)).is_some_and(|condition| condition.holds(&Method::GET, text));
    for regex in ["/a", "^/a", "/a$", "^/a$"] {
        assert!(holds(regex, "/a"), "{regex}");
        assert!(!holds(regex, "/a/b") && !holds(regex, "/x/a"), "{regex}");
    }
    assert!(holds("/a|/b", "/a") && holds("/a|/b", "/b"));
    assert!(!holds("/a|/b", "/ax") && !holds("/a|/b", "/xx/b"));
    assert!(holds(r"/price\$", "/price$"));
}

#[test]
fn rules_that_make_no_sense_are_left_out_whole() {
    let deep = (0..5).fold(path("("), |inner, _| request(Match::Not(Box::new(all(vec![inner])))));
    for broken in [
        route(path("(")),
        route(path("(a{1000}){1000}")),
        route(deep),
        route(RequestMatch::default()),
        Route::default(),
        route(request(Match::Method(HttpMethod::default()))),
        route(request(Match::Any(request_match::Seq { matches: vec![path("/"), RequestMatch::default()] }))),
    ] {
        let shape = read(DestinationProfile { routes: vec![broken, route(path("/fine"))], ..named() });
        assert_eq!(shape.rules.len(), 1, "{:?}", shape.rules);
    }
    let opaque = DestinationProfile { opaque_protocol: true, routes: vec![route(path("/"))], ..named() };
    assert_eq!(read(opaque).rules, []);
}

#[test]
fn a_budget_of_nothing_is_none() {
    let ttl = Some(prost_types::Duration { seconds: 10, nanos: 0 });
    let of = |retry_ratio, min_retries_per_second, ttl| {
        let budget = RetryBudget { retry_ratio, min_retries_per_second, ttl };
        read(DestinationProfile { retry_budget: Some(budget), ..named() }).budget
    };
    let chart = Terms { ratio: 0.2, min_per_second: 10, ttl: Duration::from_secs(10) };
    assert_eq!(of(0.2, 10, ttl), Some(chart));
    assert_eq!(of(0.0, 0, ttl), None);
    assert_eq!(of(0.2, 10, None), None);
    assert_eq!(of(f32::NAN, 0, ttl), None);
}
