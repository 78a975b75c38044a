//! Services found at a control plane that behaves and misbehaves: what is asked, what is believed, and what callers see.

use std::net::SocketAddr;
use std::time::Duration;

use http::Request;
use isthmus::addr::Target;
use isthmus_tests::h2raw::{DATA, Frames, HEADERS, PING, SETTINGS};
use isthmus_tests::linkerd::{CONTROL, Mode, Plane};
use isthmus_tests::peer::{H2, empty, full, listen, target};
use isthmus_tests::pki::{Pki, pair};
use isthmus_tests::upstream::{self, read_head};
use isthmus_tests::world::{Setup, World, service};
use isthmus_tests::{soon, until};
use linkerd2_proxy_api::destination::{
    AddrSet, DestinationProfile, GetDestination, NoEndpoints, PathMatch, RequestMatch, RetryBudget, Route, Update,
    WeightedAddr, WeightedAddrSet, WeightedDst, request_match, update,
};
use linkerd2_proxy_api::opaque_route::Forbidden;
use linkerd2_proxy_api::outbound::opaque_route::{
    Distribution, Filter, RouteBackend, Rule, WeightedRouteBackend, distribution, filter,
};
use linkerd2_proxy_api::outbound::{
    Backend, OpaqueRoute, OutboundPolicy, ProxyProtocol, TrafficSpec, backend, proxy_protocol, traffic_spec,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Status;

// === the control plane's words ===

fn weighted(addr: SocketAddr) -> WeightedAddr {
    WeightedAddr { addr: Some(addr.into()), weight: 10_000, ..WeightedAddr::default() }
}

fn add(addrs: &[SocketAddr]) -> Update {
    let set = WeightedAddrSet { addrs: addrs.iter().copied().map(weighted).collect(), ..WeightedAddrSet::default() };
    Update { update: Some(update::Update::Add(set)) }
}

fn remove(addrs: &[SocketAddr]) -> Update {
    let set = AddrSet { addrs: addrs.iter().map(|addr| (*addr).into()).collect() };
    Update { update: Some(update::Update::Remove(set)) }
}

fn no_endpoints(exists: bool) -> Update {
    Update { update: Some(update::Update::NoEndpoints(NoEndpoints { exists })) }
}

/// The profile of a plain service: the name that was asked for.
fn plain(asked: &GetDestination) -> DestinationProfile {
    let name = asked.path.rsplit_once(':').unwrap().0.to_owned();
    DestinationProfile { fully_qualified_name: name, ..DestinationProfile::default() }
}

fn share(name: &str, weight: u32) -> WeightedDst {
    WeightedDst { authority: target(name, 80).to_string(), weight, backend_ref: None }
}

fn no_policy(plane: &Plane) {
    plane.watch_outbound.answer(|_| vec![Err(Status::not_found("no policy"))]);
}

/// A control plane that knows every service, at these addresses.
async fn knowing(addrs: &[SocketAddr]) -> Plane {
    let plane = Plane::tls().await;
    plane.get_profile.answer(|asked| vec![Ok(plain(asked))]);
    let update = add(addrs);
    plane.get.answer(move |_| vec![Ok(update.clone())]);
    no_policy(&plane);
    plane
}

fn section(plane: &Plane, more: &str) -> String {
    let addr = plane.addr;
    format!(
        "linkerd: {{ enabled: true, destination: '{addr}', policy: '{addr}', destination_identity: {CONTROL}, \
         policy_identity: {CONTROL}, namespace: mc, node: n1, pod: gw, max_backoff: 200ms, negative_ttl: 200ms, \
         initial_timeout: 60s{more} }}"
    )
}

fn setup(plane: &Plane) -> Setup {
    Setup::new().source(section(plane, ", allow_local: true")).set("route", "discovery_timeout", "8s")
}

async fn start(plane: &Plane) -> World {
    setup(plane).start().await
}

async fn session(world: &World, name: &str) -> H2 {
    world.shop().header_h2(name, 80).await
}

// === finding and following ===

#[tokio::test]
async fn a_service_is_found_when_it_is_asked_for_and_followed_from_then_on() {
    let (one, two) = (upstream::http().await, upstream::http().await);
    let plane = knowing(&[one.addr]).await;
    let world = start(&plane).await;
    assert_eq!(plane.get.asked(), [], "nobody has asked yet");
    let web = session(&world, "web").await;
    assert_eq!(web.get("web", "/").await.status, 200);
    let asked = GetDestination {
        scheme: String::new(),
        path: target("web", 80).to_string(),
        context_token: r#"{"ns":"mc","nodeName":"n1","pod":"gw"}"#.to_owned(),
    };
    assert_eq!(plane.get_profile.asked(), std::slice::from_ref(&asked));
    assert_eq!(plane.get.asked(), std::slice::from_ref(&asked));
    let spec = TrafficSpec {
        source_workload: r#"{"ns":"mc","pod":"gw"}"#.to_owned(),
        target: Some(traffic_spec::Target::Authority(asked.path)),
    };
    until(|| plane.watch_outbound.asked().first() == Some(&spec)).await;
    let line = world.logged(|line| line["kind"] == "request").await;
    assert_eq!(line["endpoint"], one.addr.to_string());
    world.counted("isthmus_sources_services", &[("source", "linkerd")], 1.0).await;
    assert!(world.count("isthmus_sources_age_seconds", &[("source", "linkerd")]).await < 10.0);

    plane.get.tell(&add(&[two.addr]));
    plane.get.tell(&remove(&[one.addr]));
    world.counted("isthmus_relay_requests_total", &[("status", "200")], 1.0).await;
    until(|| endpoints(&world, "web") == [two.addr]).await;
    let before = one.seen().len();
    assert_eq!(web.get("web", "/").await.status, 200);
    assert_eq!((one.seen().len(), two.seen().len()), (before, 1));

    // It exists and has no endpoints; it exists no longer.
    plane.get.tell(&no_endpoints(true));
    until(|| endpoints(&world, "web").is_empty()).await;
    let answer = web.get("web", "/").await;
    assert_eq!((answer.status, answer.field("l5d-proxy-error")), (504, "logical service in fail-fast"));
    world.refused("balance.failfast_wait").await;
    plane.get.tell(&no_endpoints(false));
    until(|| state(&world, "web") == "missing").await;
    assert_eq!(web.get("web", "/").await.status, 404);
    world.refused("route.unknown_service").await;
    plane.get.tell(&add(&[two.addr]));
    until(|| endpoints(&world, "web") == [two.addr]).await;
    assert_eq!(web.get("web", "/").await.status, 200, "on the same session all the time");
}

/// The addresses that the directory holds for a service.
fn endpoints(world: &World, name: &str) -> Vec<SocketAddr> {
    let found = found(world, &target(name, 80));
    let known = found.and_then(|service| service.known());
    known.map(|known| known.list.iter().map(|endpoint| endpoint.addr).collect()).unwrap_or_default()
}

fn state(world: &World, name: &str) -> &'static str {
    match found(world, &target(name, 80)).map(|service| (**service.state()).clone()) {
        None => "unknown",
        Some(isthmus::route::State::Failing) => "failing",
        Some(isthmus::route::State::Known(_)) => "known",
        Some(isthmus::route::State::Missing) => "missing",
        Some(isthmus::route::State::Pending) => "pending",
        Some(isthmus::route::State::Refused(_)) => "refused",
    }
}

fn found(world: &World, target: &Target) -> Option<std::sync::Arc<isthmus::route::Service>> {
    world.app().directory.services().into_iter().find(|service| service.target() == target)
}

#[tokio::test]
async fn one_watch_serves_all_clients_and_workers_and_ends_when_nobody_wants_it() {
    let web = upstream::http().await;
    let plane = knowing(&[web.addr]).await;
    let setup = setup(&plane).workers(3).set("route", "idle_timeout", "1s");
    let world = setup.start().await;
    for _ in 0..6 {
        assert_eq!(session(&world, "web").await.get("web", "/").await.status, 200);
    }
    assert_eq!((plane.get_profile.asked().len(), plane.get.asked().len()), (1, 1));
    plane.get_profile.by_hand();
    plane.get.by_hand();
    drop(world.shop().header("other", 80, None).await);
    let profile = plane.get_profile.called().await;
    let endpoints = plane.get.called().await;
    until(|| world.app().directory.sweep() > 0 || world.app().directory.services().is_empty()).await;
    until(|| world.app().directory.services().is_empty() || world.app().directory.sweep() > 0).await;
    tokio::join!(profile.gone(), endpoints.gone());
    world.counted("isthmus_sources_services", &[("source", "linkerd")], 0.0).await;
}

// === outages ===

#[tokio::test]
async fn endpoints_outlive_the_control_plane_and_are_replaced_when_it_is_back() {
    let (one, two) = (upstream::http().await, upstream::http().await);
    let plane = knowing(&[one.addr]).await;
    let world = start(&plane).await;
    let web = session(&world, "web").await;
    assert_eq!(web.get("web", "/").await.status, 200);
    plane.door.mode(Mode::Reset);
    plane.door.cut();
    until_counted(&world, "isthmus_sources_failures_total", 4.0).await;
    assert_eq!(web.get("web", "/").await.status, 200, "what is known stays known");
    let other = setup(&plane).set("route", "discovery_timeout", "300ms").start().await;
    let answer = session(&other, "web").await.get("web", "/").await;
    assert_eq!(answer.status, 504, "and what is not known is not known");
    // While it was away the endpoints changed: its first words replace all that was known.
    let update = add(&[two.addr]);
    plane.get.answer(move |_| vec![Ok(update.clone())]);
    plane.door.mode(Mode::Serve);
    until(|| endpoints(&world, "web") == [two.addr]).await;
    assert_eq!(web.get("web", "/").await.status, 200);
    assert_eq!(two.seen().len(), 1);
}

async fn until_counted(world: &World, name: &str, least: f64) {
    let reached = async {
        while world.count(name, &[("source", "linkerd")]).await < least {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon(reached).await;
}

#[tokio::test]
async fn silence_is_answered_for_each_request_while_the_session_lives() {
    let web = upstream::http().await;
    let plane = Plane::tls().await;
    no_policy(&plane);
    let world = setup(&plane).set("route", "discovery_timeout", "1s").start().await;
    // SETTINGS come and PINGs are answered while nothing is known of the service.
    let stream = world.shop().header("web", 80, Some(isthmus::wire::transport_header::Protocol::Http2)).await;
    let mut frames = Frames(stream);
    frames.preface().await;
    frames.find(SETTINGS).await;
    frames.get(1, "web", "/").await;
    frames.send(PING, 0, 0, b"arethere").await;
    let pong = loop {
        let frame = frames.next().await.expect("the session lives");
        assert!(frame.kind != HEADERS && frame.kind != DATA, "answered before the ping: {frame:?}");
        if frame.kind == PING && frame.flags == 1 {
            break frame;
        }
        frames.acknowledge(&frame).await;
    };
    assert_eq!(pong.payload, b"arethere");
    frames.find(HEADERS).await;
    world.refused("route.discovery_timeout").await;

    let session = session(&world, "web").await;
    let answer = session.get("web", "/").await;
    assert_eq!((answer.status, answer.field("l5d-proxy-error")), (504, "service discovery timed out"));
    assert_eq!(answer.field("content-length"), "0");
    let grpc = Request::post("http://web/a.B/C").header("content-type", "application/grpc").body(empty()).unwrap();
    let answer = session.ask(grpc).await;
    assert_eq!((answer.status, answer.field("grpc-status")), (200, "14"), "UNAVAILABLE, with a reason");
    assert_eq!(answer.field("grpc-message"), "service discovery timed out");
    // It speaks at last.
    let (profile, endpoints) = tokio::join!(plane.get_profile.called(), plane.get.called());
    profile.send(plain(&profile.request));
    endpoints.send(add(&[web.addr]));
    until(|| state(&world, "web") == "known").await;
    assert_eq!(session.get("web", "/").await.status, 200, "on the same session");
}

#[tokio::test]
async fn a_client_that_leaves_while_nothing_is_known_is_noticed() {
    let plane = Plane::tls().await;
    no_policy(&plane);
    let world = setup(&plane).set("route", "discovery_timeout", "60s").start().await;
    let mut http = world.shop().header_h1("web", 80).await;
    http.send("GET / HTTP/1.1\r\n\r\n").await;
    let _asked = plane.get_profile.called().await;
    world.counted("isthmus_relay_open_requests", &[], 1.0).await;
    drop(http);
    world.counted("isthmus_relay_open_requests", &[], 0.0).await;
    world.counted("isthmus_accept_open_connections", &[], 0.0).await;
}

#[tokio::test]
async fn answers_of_no_are_told_apart() {
    let web = upstream::http().await;
    let plane = Plane::tls().await;
    no_policy(&plane);
    plane.get.answer(|_| vec![Err(Status::invalid_argument("what?"))]);
    plane.get_profile.answer(|asked| {
        vec![match asked.path.split('.').next().unwrap() {
            "invalid" => Err(Status::invalid_argument("not a service")),
            "precondition" => Err(Status::failed_precondition("not ours")),
            "gone" => Err(Status::not_found("no such service")),
            "unknown" => Err(Status::unknown("service \"unknown\" not found")),
            "internal" => Err(Status::internal("oops")),
            "empty" => Ok(DestinationProfile::default()),
            _ => Ok(plain(asked)),
        }]
    });
    let world = start(&plane).await;
    for (name, status, grpc, text, code) in [
        ("invalid", 404, "5", "bad gateway domain", "route.unknown_service"),
        ("precondition", 404, "5", "bad gateway domain", "route.unknown_service"),
        ("gone", 404, "5", "bad gateway domain", "route.unknown_service"),
        ("empty", 404, "5", "bad gateway domain", "route.unknown_service"),
        ("noaddr", 404, "5", "bad gateway domain", "route.unknown_service"),
        ("unknown", 503, "14", "service discovery failed", "route.lookup_failed"),
        ("internal", 503, "14", "service discovery failed", "route.lookup_failed"),
    ] {
        let session = session(&world, name).await;
        let answer = session.get(name, "/").await;
        assert_eq!((answer.status, answer.field("l5d-proxy-error")), (status, text), "{name}");
        let grpc_request =
            Request::post("http://x/a.B/C").header("content-type", "application/grpc").body(empty()).unwrap();
        assert_eq!(session.ask(grpc_request).await.field("grpc-status"), grpc, "{name}");
        let wanted = target(name, 80).to_string();
        let line = world.logged(|line| line["code"] == code && line["target"] == wanted.as_str()).await;
        assert_eq!((&line["stage"], &line["fault"]), (&"route".into(), &"upstream".into()), "{line}");
    }
    // An error is asked about again soon: the service is there now.
    let update = add(&[web.addr]);
    plane.get.answer(move |_| vec![Ok(update.clone())]);
    plane.get_profile.answer(|asked| vec![Ok(plain(asked))]);
    until(|| state(&world, "unknown") == "known").await;
    assert_eq!(session(&world, "unknown").await.get("unknown", "/").await.status, 200);
    // An error about what is known changes nothing.
    plane.get_profile.answer(|_| vec![Err(Status::unknown("gone mad"))]);
    plane.get.answer(|_| vec![Err(Status::internal("gone mad"))]);
    plane.get_profile.hang_up();
    plane.get.hang_up();
    plane.door.cut();
    let asked = plane.get.asked().len();
    until(|| plane.get.asked().len() > asked + 2).await;
    assert_eq!(session(&world, "unknown").await.get("unknown", "/").await.status, 200);
}

#[tokio::test]
async fn somebody_else_is_not_believed() {
    let web = upstream::http().await;
    let plane = knowing(&[web.addr]).await;
    plane.door.certificate(Some(pair(&Pki::get().foreign, &[CONTROL])));
    let world = setup(&plane).set("route", "discovery_timeout", "500ms").start().await;
    let session = session(&world, "web").await;
    assert_eq!(session.get("web", "/").await.status, 504);
    world.refused("route.discovery_timeout").await;
    assert_eq!(plane.get.asked(), []);
    plane.door.certificate(Some(pair(&Pki::get().east, &[CONTROL])));
    until(|| state(&world, "web") == "known").await;
    assert_eq!(session.get("web", "/").await.status, 200);
}

#[tokio::test]
async fn what_leads_to_this_host_is_left_out() {
    let web = upstream::http().await;
    let plane = knowing(&[web.addr]).await;
    let world = Setup::new().source(section(&plane, "")).set("route", "discovery_timeout", "8s").start().await;
    let answer = session(&world, "web").await.get("web", "/").await;
    assert_eq!((answer.status, web.seen().len()), (504, 0));
    world.refused("balance.failfast_wait").await;
    assert_eq!((state(&world, "web"), endpoints(&world, "web")), ("known", vec![]));
}

#[tokio::test]
async fn the_number_of_services_is_bounded() {
    let web = upstream::http().await;
    let plane = knowing(&[web.addr]).await;
    let world = setup(&plane).set("route", "max_services", "1").start().await;
    assert_eq!(session(&world, "web").await.get("web", "/").await.status, 200);
    let answer = session(&world, "other").await.get("other", "/").await;
    assert_eq!((answer.status, answer.field("l5d-proxy-error")), (503, "too many services under discovery"));
    world.refused("route.capacity").await;
    assert_eq!(plane.get_profile.asked().len(), 1);
}

#[tokio::test]
async fn only_what_counts_as_exported_is_asked_for() {
    let web = upstream::http().await;
    let plane = knowing(&[web.addr]).await;
    let exported_only = |more: &str| {
        Setup::new()
            .set("authorise", "exported_only", "true")
            .source(section(&plane, &format!(", allow_local: true{more}")))
    };
    let world = exported_only("").start().await;
    let answer = session(&world, "web").await.get("web", "/").await;
    assert_eq!((answer.status, answer.field("l5d-proxy-error")), (404, "service is not exported"));
    assert_eq!(plane.get_profile.asked(), [], "who may not reach it does not learn whether it is there");
    let world = exported_only(", exported: true").set("route", "discovery_timeout", "8s").start().await;
    assert_eq!(session(&world, "web").await.get("web", "/").await.status, 200);
}

// === profiles ===

#[tokio::test]
async fn the_name_of_a_pod_leads_to_the_pod() {
    let pod = upstream::http().await;
    let plane = Plane::tls().await;
    no_policy(&plane);
    let endpoint = weighted(pod.addr);
    plane.get_profile.answer(move |_| {
        vec![Ok(DestinationProfile { endpoint: Some(endpoint.clone()), ..DestinationProfile::default() })]
    });
    plane.get.answer(|_| vec![Err(Status::invalid_argument("not a service"))]);
    let world = start(&plane).await;
    let name = "pod-0.db.ns.svc.cluster.local";
    assert_eq!(session(&world, name).await.get(name, "/").await.status, 200);
    assert_eq!(pod.seen().len(), 1);
}

#[tokio::test]
async fn a_split_is_followed_as_it_changes() {
    let (one, two) = (upstream::http().await, upstream::http().await);
    let plane = Plane::tls().await;
    no_policy(&plane);
    let (one_addr, two_addr) = (one.addr, two.addr);
    let v2 = target("web-v2", 80).to_string();
    plane.get.answer(move |asked| vec![Ok(add(&[if asked.path == v2 { two_addr } else { one_addr }]))]);
    let split = |old: u32, new: u32| DestinationProfile {
        fully_qualified_name: service("web"),
        dst_overrides: vec![share("web", old), share("web-v2", new)],
        ..DestinationProfile::default()
    };
    let first = split(1, 0);
    plane.get_profile.answer(move |_| vec![Ok(first.clone())]);
    let world = start(&plane).await;
    let web = session(&world, "web").await;
    let served = || (one.seen().len(), two.seen().len());
    for _ in 0..10 {
        assert_eq!(web.get("web", "/").await.status, 200);
    }
    assert_eq!(served(), (10, 0));
    plane.get_profile.tell(&split(0, 1));
    until(|| weights(&world) == [0, 1]).await;
    for _ in 0..10 {
        assert_eq!(web.get("web", "/").await.status, 200);
    }
    assert_eq!(served(), (10, 10));
    plane.get_profile.tell(&split(1, 1));
    until(|| weights(&world) == [1, 1]).await;
    for _ in 0..100 {
        assert_eq!(web.get("web", "/").await.status, 200);
    }
    let (one_seen, two_seen) = served();
    assert!(one_seen > 20 && two_seen > 20, "by chance, but never all at one: {one_seen} {two_seen}");
    // Everything is followed once: the service itself, and the other.
    let paths: Vec<_> = plane.get.asked().into_iter().map(|asked| asked.path).collect();
    assert_eq!(paths, [target("web", 80).to_string(), target("web-v2", 80).to_string()]);
    // And given up when it is no longer needed.
    plane
        .get_profile
        .tell(&DestinationProfile { fully_qualified_name: service("web"), ..DestinationProfile::default() });
    until(|| weights(&world).is_empty()).await;
    let before = served();
    for _ in 0..10 {
        assert_eq!(web.get("web", "/").await.status, 200);
    }
    assert_eq!(served(), (before.0 + 10, before.1));
}

fn weights(world: &World) -> Vec<u32> {
    let profile = found(world, &target("web", 80)).and_then(|service| service.profile());
    profile.map(|profile| profile.split.iter().map(|branch| branch.weight).collect()).unwrap_or_default()
}

fn route(path: &str) -> Route {
    let path = request_match::Match::Path(PathMatch { regex: path.to_owned() });
    Route {
        condition: Some(RequestMatch { r#match: Some(path) }),
        metrics_labels: [("route".to_owned(), "kind".to_owned())].into(),
        ..Route::default()
    }
}

fn with_routes(plane: &Plane, routes: Vec<Route>, ratio: f32, min_retries_per_second: u32) {
    let ttl = Duration::from_secs(10).try_into().ok();
    let retry_budget = Some(RetryBudget { retry_ratio: ratio, min_retries_per_second, ttl });
    plane
        .get_profile
        .answer(move |asked| vec![Ok(DestinationProfile { routes: routes.clone(), retry_budget, ..plain(asked) })]);
}

#[tokio::test]
async fn a_route_has_its_time_and_says_when_it_is_over() {
    let web = upstream::http().await;
    let plane = knowing(&[web.addr]).await;
    let slow = Route { timeout: Duration::from_millis(200).try_into().ok(), ..route("/hang") };
    with_routes(&plane, vec![slow], 0.0, 0);
    let world = start(&plane).await;
    let session = session(&world, "web").await;
    let answer = session.get("web", "/hang").await;
    assert_eq!((answer.status, answer.field("l5d-proxy-error")), (504, "route timed out"));
    assert_eq!(answer.field("l5d-proxy-connection"), "close");
    let line = world.refused("relay.route_timeout").await;
    assert_eq!((&line["route"], &line["fault"]), (&"kind".into(), &"upstream".into()), "{line}");
    assert!(line["detail"].as_str().is_none_or(|detail| detail.contains("200ms")), "{line}");
    let labels = [("route", "kind"), ("status", "504")];
    world.counted("isthmus_route_requests_total", &labels, 1.0).await;
    until(|| web.cancelled() == 1).await;
    let grpc = Request::post("http://web/hang").header("content-type", "application/grpc").body(empty()).unwrap();
    assert_eq!(session.ask(grpc).await.field("grpc-status"), "4");
    assert_eq!(session.get("web", "/slow").await.status, 200, "no route, no limit; and the session lives");
    let line = world.logged(|line| line["path"] == "/slow").await;
    assert!(line["route"].is_null(), "{line}");
}

/// A service that reads a whole request of this length and answers 503.
async fn failing(body_bytes: usize) -> (SocketAddr, std::sync::Arc<std::sync::atomic::AtomicUsize>) {
    let count = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = std::sync::Arc::clone(&count);
    let addr = upstream::tcp(move |mut socket, _| {
        let counted = std::sync::Arc::clone(&counted);
        async move {
            read_head(&mut socket).await;
            let mut body = vec![0; body_bytes];
            if socket.read_exact(&mut body).await.is_err() {
                return;
            }
            counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            let _ = socket.write_all(b"HTTP/1.1 503 Sorry\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
            let _ = socket.read(&mut [0]).await;
        }
    })
    .await;
    (addr, count)
}

#[tokio::test]
async fn failures_of_a_retryable_route_are_tried_elsewhere_with_their_bodies() {
    let web = upstream::http().await;
    let (bad, failed) = failing(1000).await;
    let plane = knowing(&[web.addr, bad]).await;
    with_routes(&plane, vec![Route { is_retryable: true, ..route("/echo") }], 0.2, 100);
    // The balancer soon forgets what failing costs: else the one that fails would not be asked again.
    let setup = setup(&plane).set("balance", "max_response_failures", "1000").set("balance", "decay", "5ms");
    let world = setup.set("http", "max_retry_body", "2KiB").start().await;
    let mut http = world.shop().header_h1("web", 80).await;
    let body = "b".repeat(1000);
    let before = || failed.load(std::sync::atomic::Ordering::SeqCst);
    while before() < 3 {
        let answer = http.ask(&format!("POST /echo HTTP/1.1\r\ncontent-length: 1000\r\n\r\n{body}")).await;
        assert_eq!((answer.status(), answer.text().len()), (200, 1000));
    }
    let line = world.logged(|line| line["retries"] == 1 && line["status"] == 200).await;
    assert_eq!((&line["route"], &line["endpoint"]), (&"kind".into(), &web.addr.to_string().into()), "{line}");
    world.counted("isthmus_relay_retries_total", &[], 3.0).await;
}

#[tokio::test]
async fn what_cannot_or_may_not_be_sent_again_is_not() {
    let plane = Plane::tls().await;
    no_policy(&plane);
    let (large, _) = failing(3000).await;
    let (small, _) = failing(10).await;
    plane.get.answer(move |asked| vec![Ok(add(&[if asked.path.starts_with("large") { large } else { small }]))]);
    with_routes(&plane, vec![Route { is_retryable: true, ..route("/echo") }], 0.001, 0);
    let setup = setup(&plane).set("balance", "max_response_failures", "1000").set("http", "max_retry_body", "2KiB");
    let world = setup.start().await;
    for (name, length, reason) in [("large", 3000, "body"), ("small", 10, "no_budget")] {
        let mut http = world.shop().header_h1(name, 80).await;
        let body = "b".repeat(length);
        let answer = http.ask(&format!("POST /echo HTTP/1.1\r\ncontent-length: {length}\r\n\r\n{body}")).await;
        assert_eq!(answer.status(), 503, "{name}");
        world.counted("isthmus_route_retries_skipped_total", &[("reason", reason)], 1.0).await;
        // Another route is not retried, and nothing is said of it.
        let answer = http.ask(&format!("POST /other HTTP/1.1\r\ncontent-length: {length}\r\n\r\n{body}")).await;
        assert_eq!(answer.status(), 503, "{name}");
    }
    assert_eq!(world.count("isthmus_route_retries_skipped_total", &[]).await, 2.0);
    assert_eq!(world.count("isthmus_relay_retries_total", &[]).await, 0.0);
}

// === connections of bytes ===

fn policy(rule: Rule) -> OutboundPolicy {
    let routes = vec![OpaqueRoute { metadata: None, rules: vec![rule] }];
    let kind = Some(proxy_protocol::Kind::Opaque(proxy_protocol::Opaque { routes }));
    OutboundPolicy { protocol: Some(ProxyProtocol { kind }), metadata: None }
}

fn forward(addr: SocketAddr) -> Option<RouteBackend> {
    let kind = Some(backend::Kind::Forward(weighted(addr)));
    Some(RouteBackend { backend: Some(Backend { metadata: None, kind, queue: None }), filters: Vec::new() })
}

fn shared(backends: Vec<WeightedRouteBackend>) -> OutboundPolicy {
    let kind = distribution::Kind::RandomAvailable(distribution::RandomAvailable { backends });
    policy(Rule { backends: Some(Distribution { kind: Some(kind) }), filters: Vec::new() })
}

/// A service that says one word to each connection.
async fn saying(word: &'static str) -> SocketAddr {
    upstream::tcp(move |mut socket, _| async move {
        let _ = socket.write_all(word.as_bytes()).await;
        let _ = socket.shutdown().await;
        let _ = socket.read(&mut [0]).await;
    })
    .await
}

async fn heard(world: &World, name: &str) -> String {
    let mut stream = world.shop().opaque(name, 80).await;
    let (bytes, _) = listen(&mut stream).await;
    // In order, or the gateway would rightly say that the client broke off.
    let _ = stream.shutdown().await;
    String::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn bytes_go_where_the_policy_for_bytes_says() {
    let (own, other) = (saying("own").await, saying("other").await);
    let plane = knowing(&[own]).await;
    let world = start(&plane).await;
    assert_eq!(heard(&world, "plain").await, "own", "no policy is as for requests");
    let share = |addr, weight| WeightedRouteBackend { backend: forward(addr), weight };
    let said = shared(vec![share(own, 0), share(other, 1)]);
    plane.watch_outbound.answer(move |_| vec![Ok(said.clone())]);
    assert_eq!(heard(&world, "db").await, "other");
    let line = world.logged(|line| line["endpoint"] == other.to_string()).await;
    assert_eq!((&line["protocol"], &line["outcome"]), (&"opaque".into(), &"served".into()));

    let filters = vec![Filter { kind: Some(filter::Kind::Forbidden(Forbidden {})) }];
    let said = policy(Rule { backends: None, filters });
    plane.watch_outbound.answer(move |_| vec![Ok(said.clone())]);
    assert_eq!(heard(&world, "secret").await, "");
    let line = world.refused("route.opaque_forbidden").await;
    assert_eq!(line["fault"], "policy");
    plane.watch_outbound.answer(|_| vec![Ok(OutboundPolicy::default())]);
    assert_eq!(heard(&world, "odd").await, "");
    world.refused("route.opaque_invalid").await;
    let said = shared(vec![WeightedRouteBackend { backend: None, weight: 1 }]);
    plane.watch_outbound.answer(move |_| vec![Ok(said.clone())]);
    assert_eq!(heard(&world, "nowhere").await, "");
    world.refused("route.unknown_service").await;
}

#[tokio::test]
async fn bytes_wait_for_their_policy_and_requests_do_not() {
    let web = upstream::http().await;
    let plane = knowing(&[web.addr]).await;
    plane.watch_outbound.by_hand();
    let world = setup(&plane).set("route", "discovery_timeout", "2s").start().await;
    assert_eq!(session(&world, "web").await.get("web", "/").await.status, 200);
    let mut stream = world.shop().opaque("web", 80).await;
    let asked = plane.watch_outbound.called().await;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    asked.send(OutboundPolicy {
        protocol: Some(ProxyProtocol { kind: Some(proxy_protocol::Kind::Http1(Default::default())) }),
        metadata: None,
    });
    let (bytes, _) = listen(&mut stream).await;
    assert!(bytes.starts_with(b"HTTP/1.0 200"), "{}", String::from_utf8_lossy(&bytes));
    // One that never comes closes the connection, and says why.
    assert_eq!(heard(&world, "never").await, "");
    world.refused("route.discovery_timeout").await;
}

#[tokio::test]
async fn a_split_of_the_profile_goes_before_the_policy_for_bytes() {
    let (one, two) = (saying("one").await, saying("two").await);
    let plane = Plane::tls().await;
    let v2 = target("db-v2", 80).to_string();
    plane.get.answer(move |asked| vec![Ok(add(&[if asked.path == v2 { two } else { one }]))]);
    plane
        .get_profile
        .answer(|asked| vec![Ok(DestinationProfile { dst_overrides: vec![share("db-v2", 1)], ..plain(asked) })]);
    let filters = vec![Filter { kind: Some(filter::Kind::Forbidden(Forbidden {})) }];
    let said = policy(Rule { backends: None, filters });
    plane.watch_outbound.answer(move |_| vec![Ok(said.clone())]);
    let world = start(&plane).await;
    assert_eq!(heard(&world, "db").await, "two");
}

#[tokio::test]
async fn more_branches_than_allowed_are_not_followed() {
    let one = upstream::http().await;
    let plane = knowing(&[one.addr]).await;
    plane.get_profile.answer(|asked| {
        let dst_overrides = (0..5).map(|n| share(&format!("v{n}"), 1)).collect();
        vec![Ok(DestinationProfile { dst_overrides, ..plain(asked) })]
    });
    let setup = Setup::new().source(section(&plane, ", allow_local: true, max_branches: 2"));
    let world = setup.set("route", "discovery_timeout", "8s").start().await;
    let web = session(&world, "web").await;
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..100 {
        seen.insert(web.get("web", "/").await.status);
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [200, 404], "some are served, the rest is refused");
    assert_eq!(plane.get.asked().len(), 3, "the service itself and two branches");
}

#[tokio::test]
async fn bodies_are_kept_for_retries_only_within_the_limit_over_http2_too() {
    let web = upstream::http().await;
    let plane = knowing(&[web.addr]).await;
    with_routes(&plane, vec![Route { is_retryable: true, ..route("/.*") }], 0.2, 100);
    let world = start(&plane).await;
    let session = session(&world, "web").await;
    // A body many times the limit passes through unharmed where nothing fails.
    let body = vec![b'x'; 1 << 20];
    let answer = session.ask(Request::post("http://web/echo").body(full(body.clone())).unwrap()).await;
    assert_eq!((answer.status, answer.body.len()), (200, body.len()));
    let answer = session.ask(Request::post("http://web/status/503").body(full("small")).unwrap()).await;
    assert_eq!(answer.status, 503, "there is only one, and it fails each time");
    let line = world.logged(|line| line["status"] == 503).await;
    assert_eq!(line["retries"], 2, "http.max_retries");
    world.counted("isthmus_route_retries_skipped_total", &[("reason", "limit")], 1.0).await;
}

#[tokio::test]
async fn a_grpc_call_that_fails_at_once_is_retried_though_its_status_is_in_the_trailers() {
    let web = upstream::http().await;
    let plane = knowing(&[web.addr]).await;
    with_routes(&plane, vec![Route { is_retryable: true, ..route("/grpc/.*") }], 0.2, 100);
    let world = start(&plane).await;
    let session = session(&world, "web").await;
    let call = async |status: &str| {
        let request = Request::post(format!("http://web/grpc/{status}")).header("content-type", "application/grpc");
        session.ask(request.body(empty()).unwrap()).await
    };
    // Where the trailers come later than the head they are not waited for: it must be seen once, not always.
    let mut seen = web.seen().len();
    let retried = async {
        loop {
            let answer = call("14").await;
            assert_eq!((answer.status, &answer.trailers["grpc-status"]), (200, &"14".parse().unwrap()));
            let now = web.seen().len();
            if now - seen == 3 {
                return;
            }
            seen = now;
        }
    };
    soon(retried).await;
    let before = web.seen().len();
    for status in ["0", "5"] {
        assert_eq!(call(status).await.trailers["grpc-status"], status);
    }
    assert_eq!(web.seen().len(), before + 2, "what is no failure is not retried");
}
