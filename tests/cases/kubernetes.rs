//! Discovery from Kubernetes, from an object at the API server to the endpoint that a request through the gateway reaches.

use std::time::Duration;

use http::Version;
use isthmus_tests::kubernetes::objects::{
    endpoint, http as http_port, service, service_in, slice, slice_of, withdrawn,
};
use isthmus_tests::kubernetes::{ApiServer, Cut, Mood};
use isthmus_tests::peer::listen;
use isthmus_tests::pki::Pki;
use isthmus_tests::upstream::{self, Upstream};
use isthmus_tests::world::{Setup, World};
use isthmus_tests::{soon, until};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A gateway that serves what is exported and nothing else.
fn setup(api: &ApiServer, more: &str) -> Setup {
    Setup::new().set("authorise", "exported_only", "true").kubernetes(api, more)
}

async fn ready(world: &World) {
    until(|| world.app().is_ready()).await;
}

/// A gateway that knows the service `web` with one endpoint, and watches for more.
async fn one() -> (ApiServer, World, Upstream) {
    let (api, web) = (ApiServer::start().await, upstream::http().await);
    api.apply(&service("web", &http_port(80)));
    api.apply(&slice("web", 1, web.addr));
    let world = setup(&api, "").start().await;
    ready(&world).await;
    until(|| api.watches() == 2).await;
    (api, world, web)
}

/// Asks until the status is this one.
#[track_caller]
fn answers<'a>(world: &'a World, name: &'a str, status: u16) -> impl Future<Output = ()> + 'a {
    let place = std::panic::Location::caller();
    async move {
        let mut last = 0;
        let look = async {
            let mut http = world.shop().h1().await;
            loop {
                last = http.get(name, "/").await.status();
                if last == status {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        assert!(
            tokio::time::timeout(isthmus_tests::PATIENCE, look).await.is_ok(),
            "{name}: {last}, not {status}: {place}"
        );
    }
}

/// What `/state` says of the source.
async fn details(world: &World) -> Value {
    let state = world.state().await;
    let sources = state["sources"].as_array().unwrap().clone();
    sources.into_iter().find(|source| source["source"] == "kubernetes").unwrap()
}

/// Waits for a problem whose reason holds these words.
#[track_caller]
fn complains<'a>(world: &'a World, words: &'a str) -> impl Future<Output = ()> + 'a {
    let place = std::panic::Location::caller();
    async move {
        let mut last = Value::Null;
        let look = async {
            loop {
                last = details(world).await;
                if last["details"]["watches"].to_string().contains(words) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        assert!(tokio::time::timeout(isthmus_tests::PATIENCE, look).await.is_ok(), "no {words:?} in {last}: {place}");
    }
}

#[tokio::test]
async fn what_carries_the_label_is_served_and_what_loses_it_is_not() {
    let (api, world, web) = one().await;
    let mut http = world.shop().h1().await;
    assert_eq!(http.get("web", "/").await.status(), 200);
    assert_eq!(web.seen().len(), 1);

    api.apply(&withdrawn(&service("web", &http_port(80))));
    answers(&world, "web", 404).await;
    world.refused("authorise.not_exported").await;
    let before = web.seen().len();
    assert_eq!(http.get("web", "/").await.status(), 404, "also on the connection of before");
    assert_eq!(web.seen().len(), before);

    api.apply(&service("web", &http_port(80)));
    answers(&world, "web", 200).await;
    api.delete(&service("web", &http_port(80)));
    answers(&world, "web", 404).await;
    world.counted("isthmus_sources_services", &[("source", "kubernetes")], 0.0).await;
}

#[tokio::test]
async fn a_live_connection_of_bytes_ends_when_its_service_loses_the_label() {
    let (api, echo) = (ApiServer::start().await, upstream::echo_tcp().await);
    api.apply(&service("db", &http_port(5432)));
    api.apply(&slice("db", 1, echo));
    let world = setup(&api, "").start().await;
    ready(&world).await;
    let mut stream = world.shop().opaque("db", 5432).await;
    stream.write_all(b"select").await.unwrap();
    let mut answer = [0; 6];
    soon(stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"select");

    api.apply(&withdrawn(&service("db", &http_port(5432))));
    let (rest, _) = soon(listen(&mut stream)).await;
    assert!(rest.is_empty());
    let line = world.logged(|line| line["code"] == "authorise.not_exported").await;
    assert_eq!(line["target"], "db.ns.svc.cluster.local:5432", "{line}");
}

#[tokio::test]
async fn endpoints_of_several_slices_come_and_go() {
    let (api, world, one) = one().await;
    answers(&world, "web", 200).await;
    let two = upstream::http().await;
    // Another number for the same port: a slice of its own.
    api.apply(&slice("web", 2, two.addr));
    api.delete(&slice("web", 1, one.addr));
    let mut http = world.shop().h1().await;
    let moved = async {
        while two.seen().is_empty() {
            http.get("web", "/").await;
        }
    };
    soon(moved).await;
    let before = one.seen().len();
    for _ in 0..20 {
        assert_eq!(http.get("web", "/").await.status(), 200);
    }
    assert_eq!(one.seen().len(), before, "the first is gone");
    api.delete(&slice("web", 2, two.addr));
    answers(&world, "web", 504).await;
    world.refused("balance.failfast_wait").await;
}

#[tokio::test]
async fn a_draining_endpoint_takes_no_new_requests_while_another_is_ready() {
    let (api, world, leaving) = one().await;
    answers(&world, "web", 200).await;
    let staying = upstream::http().await;
    let drains = |ready: bool| {
        let mut drains = endpoint(leaving.addr);
        drains["conditions"] = json!({ "ready": ready, "serving": true, "terminating": !ready });
        slice_of("ns", "web", 1, &json!([{ "name": "http", "port": leaving.addr.port() }]), &json!([drains]))
    };
    api.apply(&drains(false));
    // It is all there is: it goes on.
    answers(&world, "web", 200).await;
    api.apply(&slice("web", 2, staying.addr));
    let mut http = world.shop().h1().await;
    let moved = async {
        while staying.seen().is_empty() {
            http.get("web", "/").await;
        }
    };
    soon(moved).await;
    let before = leaving.seen().len();
    for _ in 0..30 {
        assert_eq!(http.get("web", "/").await.status(), 200);
    }
    assert_eq!(leaving.seen().len(), before);
}

#[tokio::test]
async fn ports_names_and_protocols_that_a_service_does_not_have_are_refused_by_what_is_wrong() {
    let (api, world, web) = one().await;
    let mut external = service("out", &http_port(80));
    external["spec"]["type"] = json!("ExternalName");
    external["spec"]["externalName"] = json!("example.com");
    api.apply(&external);
    api.apply(&service("none", &json!([])));
    api.apply(&service("opaque", &http_port(80)));
    let mut opaque = service("opaque", &http_port(80));
    opaque["metadata"]["annotations"] = json!({ "config.linkerd.io/opaque-ports": "80" });
    api.apply(&opaque);
    api.apply(&slice("opaque", 1, web.addr));
    world.counted("isthmus_sources_services", &[("source", "kubernetes")], 4.0).await;
    let mut http = world.shop().h1().await;
    for (host, status, error, code) in [
        ("web.ns.svc.cluster.local:81", 404, "service has no such port", "route.no_such_port"),
        ("none.ns.svc.cluster.local", 404, "service has no such port", "route.no_such_port"),
        ("out.ns.svc.cluster.local", 404, "service leads out of the cluster", "route.external_name"),
        ("opaque.ns.svc.cluster.local", 501, "the service does not speak HTTP", "relay.opaque_service"),
        ("nobody.ns.svc.cluster.local", 404, "service is not exported", "authorise.not_exported"),
    ] {
        let answer = http.ask(&format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n")).await;
        assert_eq!((answer.status(), answer.field("l5d-proxy-error")), (status, error), "{host}");
        world.refused(code).await;
    }
    let state = world.state().await;
    let rows = state["services"].as_array().unwrap();
    assert!(rows.iter().any(|row| row["state"] == "route.external_name"), "{rows:?}");
}

#[tokio::test]
async fn one_pod_of_a_headless_service_can_be_named() {
    let (api, zero, one) = (ApiServer::start().await, upstream::http().await, upstream::http().await);
    let mut headless = service("db", &http_port(80));
    headless["spec"]["clusterIP"] = json!("None");
    api.apply(&headless);
    for (number, pod) in [(0, &zero), (1, &one)] {
        let mut named = endpoint(pod.addr);
        named["hostname"] = json!(format!("db-{number}"));
        api.apply(&slice_of(
            "ns",
            "db",
            number,
            &json!([{ "name": "http", "port": pod.addr.port() }]),
            &json!([named]),
        ));
    }
    let world = setup(&api, "").start().await;
    ready(&world).await;
    let mut http = world.shop().h1().await;
    for _ in 0..5 {
        assert_eq!(http.get("db-1.db.ns.svc.cluster.local", "/").await.status(), 200);
    }
    assert_eq!((zero.seen().len(), one.seen().len()), (0, 5));
    assert_eq!(http.get("db-0.db.ns.svc.cluster.local", "/").await.status(), 200);
    assert_eq!((zero.seen().len(), one.seen().len()), (1, 5));
    assert_eq!(http.get("db-2.db.ns.svc.cluster.local", "/").await.status(), 504, "there is no such pod now");
}

#[tokio::test]
async fn the_protocol_of_a_port_is_spoken_to_its_endpoints() {
    let (api, web) = (ApiServer::start().await, upstream::http().await);
    for (name, protocol) in [("h2c", "kubernetes.io/h2c"), ("ws", "kubernetes.io/ws")] {
        api.apply(&service(name, &json!([{ "name": "http", "port": 80, "appProtocol": protocol }])));
        api.apply(&slice(name, 1, web.addr));
    }
    let world = setup(&api, "").start().await;
    ready(&world).await;
    assert_eq!(world.shop().h1().await.get("h2c", "/").await.status(), 200);
    assert_eq!(web.last().version, Version::HTTP_2);
    assert_eq!(world.shop().h2().await.get("ws", "/").await.status, 200);
    assert_eq!(web.last().version, Version::HTTP_11);
}

#[tokio::test]
async fn the_own_zone_is_found_among_the_endpoints_and_preferred() {
    let (api, here, near, far) =
        (ApiServer::start().await, upstream::http().await, upstream::http().await, upstream::http().await);
    api.apply(&service("web", &http_port(80)));
    let zoned = |pod: &Upstream, number: usize, zone: &str| {
        let mut zoned = endpoint(pod.addr);
        zoned["zone"] = json!(zone);
        slice_of("ns", "web", number, &json!([{ "name": "http", "port": pod.addr.port() }]), &json!([zoned]))
    };
    api.apply(&zoned(&here, 1, "a"));
    api.apply(&zoned(&near, 2, "a"));
    api.apply(&zoned(&far, 3, "b"));
    // The gateway's own pod, as the slice of its own Service lists it.
    let own = json!({ "addresses": ["10.1.2.3"], "conditions": { "ready": false }, "zone": "a" });
    let gateway = slice_of("isthmus", "gateway", 1, &json!([{ "name": "mc-gateway", "port": 4143 }]), &json!([own]));
    let world = setup(&api, ", pod_ip: 10.1.2.3").start().await;
    ready(&world).await;
    api.apply(&gateway);
    let found = async {
        while details(&world).await["details"]["zone"] != "a" {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon(found).await;
    let mut http = world.shop().h1().await;
    for _ in 0..30 {
        assert_eq!(http.get("web", "/").await.status(), 200);
    }
    assert_eq!(far.seen().len(), 0, "two in the own zone are enough");
    api.delete(&zoned(&near, 2, "a"));
    let spilled = async {
        while far.seen().is_empty() {
            assert_eq!(http.get("web", "/").await.status(), 200);
        }
    };
    soon(spilled).await;
}

#[tokio::test]
async fn a_watch_that_breaks_anywhere_is_taken_up_where_it_was() {
    let (api, world, _web) = one().await;
    for (round, cut) in [
        Cut::Clean,
        Cut::MidLine,
        Cut::Say("not json at all".to_owned()),
        Cut::Say(json!({ "type": "MODIFIED", "object": { "spec": 7 } }).to_string()),
        Cut::Say(
            json!({ "type": "ERROR", "object": { "kind": "Status", "code": 500, "message": "etcd" } }).to_string(),
        ),
        Cut::Instead("{\"type\":\"MODIFIED\",\"object\":{\"metadata\":{\"name\":3}}}".to_owned()),
    ]
    .into_iter()
    .enumerate()
    {
        let before = api.asked().len();
        let lost = matches!(cut, Cut::Instead(_));
        api.cut(cut);
        let name = format!("late-{round}");
        if !lost {
            until(|| api.asked().len() > before || round == 4).await;
        }
        // In the place of a change that nobody can read comes a whole list.
        api.apply(&service(&name, &http_port(80)));
        answers(&world, &name, 504).await;
        answers(&world, "web", 200).await;
        until(|| api.watches() == 2).await;
    }
}

#[tokio::test]
async fn an_idle_watch_is_taken_up_by_its_bookmark_without_a_list() {
    let (api, world, _web) = one().await;
    let lists = || api.asked().iter().filter(|asked| !asked.is_watch()).count();
    assert_eq!(lists(), 2);
    api.time_passes();
    api.bookmark();
    api.compact();
    // The bookmark has been read when what comes after it has.
    api.apply(&service("after", &http_port(80)));
    answers(&world, "after", 504).await;
    let before = api.asked().len();
    api.cut(Cut::Clean);
    until(|| api.asked().len() >= before + 2).await;
    api.apply(&service("later", &http_port(80)));
    answers(&world, "later", 504).await;
    assert_eq!(lists(), 2, "{:?}", api.asked());
}

#[tokio::test]
async fn a_version_that_is_gone_is_followed_by_a_list_of_what_is_now() {
    let (api, world, web) = one().await;
    answers(&world, "web", 200).await;
    let new = upstream::http().await;
    for over_http in [false, true] {
        if over_http {
            api.mood(Mood::GoneWatches);
        }
        // While nobody watches: the service's only endpoint is replaced, and the past forgotten.
        api.stop();
        let (old, other) = if over_http { (&new, &web) } else { (&web, &new) };
        api.delete(&slice("web", 1, old.addr));
        api.apply(&slice("web", 2, other.addr));
        api.delete(&slice("web", 2, old.addr));
        api.apply(&slice("web", 2, other.addr));
        api.compact();
        let (seen, before) = (other.seen().len(), world.count("isthmus_sources_kubernetes_lists_total", &[]).await);
        api.go_on().await;
        if over_http {
            until(|| api.asked().iter().filter(|asked| !asked.is_watch()).count() >= 8).await;
            api.mood(Mood::Well);
        }
        let mut http = world.shop().h1().await;
        let moved = async {
            while other.seen().len() == seen {
                http.get("web", "/").await;
            }
        };
        soon(moved).await;
        assert!(world.count("isthmus_sources_kubernetes_lists_total", &[]).await > before);
        until(|| api.watches() == 2).await;
    }
}

#[tokio::test]
async fn while_the_api_server_is_away_what_it_said_last_serves_and_grows_old() {
    let (api, world, web) = one().await;
    let labels = [("source", "kubernetes")];
    api.stop();
    complains(&world, "services").await;
    let failed = async {
        while world.count("isthmus_sources_failures_total", &labels).await < 4.0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon(failed).await;
    let age = world.count("isthmus_sources_age_seconds", &labels).await;
    answers(&world, "web", 200).await;
    assert!(world.app().is_ready());
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(world.count("isthmus_sources_age_seconds", &labels).await >= age + 0.25, "it grows old");
    assert!(!web.seen().is_empty());
    let state = details(&world).await;
    assert!(state["details"]["watches"][0]["problem"]["since"].as_u64().unwrap() > 0, "{state}");

    api.apply(&service("new", &http_port(80)));
    api.go_on().await;
    answers(&world, "new", 504).await;
    let heard = async {
        while world.count("isthmus_sources_age_seconds", &labels).await > 0.25
            || details(&world).await["details"]["watches"].to_string().contains("reason")
        {
            api.bookmark();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon(heard).await;
}

#[tokio::test]
async fn a_server_that_asks_to_be_left_alone_is_left_alone() {
    let (api, world, _web) = one().await;
    api.mood(Mood::Refuse(429, Some(2)));
    api.cut(Cut::Clean);
    complains(&world, "too much").await;
    let asked = api.asked();
    until(|| api.asked().len() >= asked.len() + 2).await;
    let times: Vec<_> = api
        .asked()
        .iter()
        .filter(|asked| asked.is_watch() && asked.path.contains("services"))
        .map(|asked| asked.at)
        .collect();
    let [.., one, two] = times[..] else { panic!("{times:?}") };
    assert!(two - one >= Duration::from_millis(1900), "after {:?}", two - one);
    answers(&world, "web", 200).await;
    api.mood(Mood::Well);
    api.apply(&service("new", &http_port(80)));
    answers(&world, "new", 504).await;
}

#[tokio::test]
async fn not_ready_until_the_api_server_has_spoken_and_it_says_why_not() {
    let (api, web) = (ApiServer::start().await, upstream::http().await);
    api.apply(&service("web", &http_port(80)));
    api.apply(&slice("web", 1, web.addr));
    api.mood(Mood::Refuse(403, None));
    let world = setup(&api, ", answer_timeout: 300ms").start().await;
    complains(&world, "needs list and watch on services").await;
    assert!(!world.app().is_ready());
    let state = world.state().await;
    assert!(state["not_ready"].as_str().unwrap().contains("has not told its services yet"), "{state}");
    assert_eq!(world.shop().h1().await.get("web", "/").await.status(), 404, "nothing is exported that nobody has said");
    for (mood, words) in [
        (Mood::Silent, "silent"),
        (Mood::Stuck, "silent"),
        (Mood::Garbage, "expected value"),
        (Mood::Refuse(500, None), "InternalError"),
    ] {
        api.mood(mood.clone());
        let words = if matches!(mood, Mood::Refuse(..)) { "Refused" } else { words };
        complains(&world, words).await;
        assert!(!world.app().is_ready());
    }
    api.token("token-2");
    api.mood(Mood::Well);
    complains(&world, "is the service account's token mounted").await;
    api.token("token-1");
    api.issuer(&Pki::get().foreign).await;
    complains(&world, "UnknownIssuer").await;
    assert!(!world.app().is_ready());
    api.issuer(&Pki::get().east).await;
    ready(&world).await;
    answers(&world, "web", 200).await;
}

#[tokio::test]
async fn ready_at_once_where_it_is_not_required() {
    let (api, web) = (ApiServer::start().await, upstream::http().await);
    api.mood(Mood::Silent);
    let world = setup(&api, ", required: false").service("table", 80, "http1", &[web.addr]).start().await;
    ready(&world).await;
    assert_eq!(world.shop().h1().await.get("table", "/").await.status(), 200);
}

#[tokio::test]
async fn only_the_named_namespaces_are_watched_each_by_itself() {
    let (api, web) = (ApiServer::start().await, upstream::http().await);
    for namespace in ["ns", "prod", "secret"] {
        api.apply(&service_in(namespace, "web", &http_port(80)));
        let port = json!([{ "name": "http", "port": web.addr.port() }]);
        api.apply(&slice_of(namespace, "web", 1, &port, &json!([endpoint(web.addr)])));
    }
    let world = setup(&api, ", namespaces: [ns, prod]").start().await;
    ready(&world).await;
    let mut http = world.shop().h1().await;
    assert_eq!(http.get("web.ns.svc.cluster.local", "/").await.status(), 200);
    assert_eq!(http.get("web.prod.svc.cluster.local", "/").await.status(), 200);
    assert_eq!(http.get("web.secret.svc.cluster.local", "/").await.status(), 404);
    assert!(api.asked().iter().all(|asked| asked.path.contains("/namespaces/")), "{:?}", api.asked());
}

#[tokio::test]
async fn long_lists_come_in_pages() {
    let api = ApiServer::start().await;
    for number in 0..23 {
        api.apply(&service(&format!("web-{number}"), &http_port(80)));
    }
    let world = setup(&api, ", page_size: 5").start().await;
    ready(&world).await;
    world.counted("isthmus_sources_services", &[("source", "kubernetes")], 23.0).await;
    world.counted("isthmus_sources_kubernetes_exported_services", &[], 23.0).await;
    let pages = api.asked().iter().filter(|asked| asked.path.contains("/services?") && !asked.is_watch()).count();
    assert_eq!(pages, 5);
    answers(&world, "web-22", 504).await;
}
