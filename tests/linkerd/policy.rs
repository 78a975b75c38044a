//! The policy of Linkerd's policy controller, through the front door.

use isthmus_tests::linkerd::Plane;
use isthmus_tests::peer::{empty, h2_request, listen};
use isthmus_tests::pki::{Pki, SHOP, pair};
use isthmus_tests::upstream;
use isthmus_tests::world::{Setup, World};
use linkerd2_proxy_api::http_route::{self as routes, HostMatch, HttpRouteMatch, host_match, path_match};
use linkerd2_proxy_api::inbound::authn::{Permit, PermitMeshTls, permit_mesh_tls};
use linkerd2_proxy_api::inbound::http_local_rate_limit::{Limit, Override, r#override::ClientIdentities};
use linkerd2_proxy_api::inbound::proxy_protocol::{Detect, Http1, Kind, Opaque};
use linkerd2_proxy_api::inbound::{
    Authn, Authz, HttpLocalRateLimit, HttpRoute, Identity, IdentitySuffix, Network, ProxyProtocol, Server, http_route,
};
use linkerd2_proxy_api::meta::{Metadata, Resource, metadata};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Status;

const CART: &str = "cart.west.serviceaccount.identity.linkerd.cluster.local";
const SPIRE: &str = "spiffe://west.example/ns/shop/sa/web";
const WORKLOAD: &str = r#"{"ns":"linkerd-multicluster","pod":"linkerd-gateway-0"}"#;

fn named(kind: &str, name: &str) -> Option<Metadata> {
    let resource = Resource { kind: kind.to_owned(), name: name.to_owned(), ..Resource::default() };
    Some(Metadata { kind: Some(metadata::Kind::Resource(resource)) })
}

/// Everybody from everywhere.
fn networks() -> Vec<Network> {
    vec![network("0.0.0.0/0", &[]), network("::/0", &[])]
}

fn network(net: &str, except: &[&str]) -> Network {
    let read = |text: &&str| -> linkerd2_proxy_api::net::IpNetwork {
        let (ip, prefix) = text.split_once('/').unwrap();
        (ip.parse::<std::net::IpAddr>().unwrap(), prefix.parse::<u8>().unwrap()).into()
    };
    Network { net: Some(read(&net)), except: except.iter().map(read).collect() }
}

fn authz(name: &str, identities: &[&str], suffixes: &[&[&str]]) -> Authz {
    let identities = identities.iter().map(|name| Identity { name: (*name).to_owned() }).collect();
    let suffix = |parts: &&[&str]| IdentitySuffix { parts: parts.iter().map(|part| (*part).to_owned()).collect() };
    let permitted =
        permit_mesh_tls::PermitClientIdentities { identities, suffixes: suffixes.iter().map(suffix).collect() };
    let clients = Some(permit_mesh_tls::Clients::Identities(permitted));
    Authz {
        networks: networks(),
        authentication: Some(Authn { permit: Some(Permit::MeshTls(PermitMeshTls { clients })) }),
        metadata: named("AuthorizationPolicy", name),
        ..Authz::default()
    }
}

/// `*`
fn any_meshed() -> Authz {
    authz("any-meshed", &[], &[&[]])
}

fn route(name: &str, prefix: &str, authorizations: Vec<Authz>) -> HttpRoute {
    let path = routes::PathMatch { kind: Some(path_match::Kind::Prefix(prefix.to_owned())) };
    let matches = vec![HttpRouteMatch { path: Some(path), ..HttpRouteMatch::default() }];
    HttpRoute {
        metadata: named("HTTPRoute", name),
        authorizations,
        rules: vec![http_route::Rule { matches, ..http_route::Rule::default() }],
        ..HttpRoute::default()
    }
}

fn server(kind: Kind, authorizations: Vec<Authz>) -> Server {
    Server {
        protocol: Some(ProxyProtocol { kind: Some(kind) }),
        authorizations,
        labels: [("name".to_owned(), "linkerd-gateway".to_owned())].into(),
        ..Server::default()
    }
}

/// What the chart installs: no protocol, the same authorizations for bytes and for requests.
fn detect(authorizations: Vec<Authz>) -> Server {
    let http_routes = vec![route("default", "/", authorizations.clone())];
    server(Kind::Detect(Detect { http_routes, ..Detect::default() }), authorizations)
}

fn detect_routes(http_routes: Vec<HttpRoute>) -> Server {
    server(Kind::Detect(Detect { http_routes, ..Detect::default() }), Vec::new())
}

struct Scene {
    plane: Plane,
    world: World,
    said: parking_lot::Mutex<Option<Server>>,
}

async fn scene(default: &str) -> Scene {
    let plane = Plane::tls().await;
    let web = upstream::http().await;
    let echo = upstream::echo_tcp().await;
    let linkerd = format!("{{ workload: '{WORKLOAD}', default: {default}, cluster_networks: [10.0.0.0/8] }}");
    let source = format!(
        "{{ policy: '{}', policy_identity: {}, max_backoff: 200ms, initial_timeout: 20s }}",
        plane.addr,
        isthmus_tests::linkerd::CONTROL,
    );
    let setup = Setup::new()
        .service("web", 80, "as_client", &[web.addr])
        .service("bytes", 80, "opaque", &[echo])
        .set("authorise", "source", "linkerd")
        .set("authorise", "linkerd", &linkerd)
        .set("sources", "linkerd", &source);
    Scene { plane, world: setup.start().await, said: parking_lot::Mutex::default() }
}

impl Scene {
    async fn with(first: &Server) -> Self {
        let scene = scene("deny").await;
        let first = first.clone();
        scene.plane.watch_port.answer(move |_| vec![Ok(first.clone())]);
        scene.world.counted("isthmus_authorise_served_total", &[("result", "ok")], 1.0).await;
        scene
    }

    /// Says something else, and waits until it counts.
    async fn say(&self, next: &Server) {
        if self.said.lock().replace(next.clone()).as_ref() == Some(next) {
            return;
        }
        let taken = self.world.count("isthmus_authorise_served_total", &[("result", "ok")]).await;
        self.plane.watch_port.tell(next);
        self.world.counted("isthmus_authorise_served_total", &[("result", "ok")], taken + 1.0).await;
    }

    async fn get(&self, client: &str, path: &str) -> u16 {
        let pair = pair(&Pki::get().west, &[client]);
        self.world.peer(Some(&pair)).h1().await.get("web", path).await.status()
    }
}

#[tokio::test]
async fn until_the_controller_answers_the_default_counts_and_its_word_stays_while_it_is_away() {
    let Scene { plane, world, .. } = scene("deny").await;
    let call = plane.watch_port.called().await;
    assert_eq!((call.request.workload.as_str(), call.request.port), (WORKLOAD, 4143));
    let (status, body) = world.admin("/ready").await;
    assert!(status == 503 && body.contains("policy"), "{status} {body}");
    assert_eq!(world.shop().h1().await.get("web", "/").await.status(), 403);
    let line = world.refused("authorise.no_rule").await;
    assert_eq!(line["rule"], "default/default", "{line}");

    call.send(detect(vec![any_meshed()]));
    isthmus_tests::until_async(async || world.admin("/ready").await.0 == 200).await;
    assert_eq!(world.shop().h1().await.get("web", "/a").await.status(), 200);
    let line = world.logged(|line| line["path"] == "/a").await;
    assert_eq!(line["rule"], "linkerd-gateway/default/any-meshed", "server, route, authorization: {line}");

    // Every way in which the controller can go away.
    for away in 0..3 {
        match away {
            0 => plane.door.cut(),
            1 => plane.watch_port.called().await.fail(Status::invalid_argument("no such port")),
            _ => drop(plane.watch_port.called().await),
        }
        world.counted("isthmus_authorise_served_problems", &[], 1.0).await;
        assert_eq!(world.shop().h1().await.get("web", "/").await.status(), 200, "{away}");
        assert_eq!(world.admin("/ready").await.0, 200);
    }
    plane.watch_port.called().await.send(detect(vec![authz("cart", &[CART], &[])]));
    isthmus_tests::until_async(async || world.shop().h1().await.get("web", "/").await.status() == 403).await;
}

#[tokio::test]
async fn before_an_answer_linkerds_own_words_count() {
    for (default, status, rule) in [
        ("all-authenticated", 200, Some("default/default/all-authenticated")),
        ("cluster-authenticated", 403, Some("default/default")),
        ("audit", 200, None),
        ("deny", 403, Some("default/default")),
    ] {
        let Scene { world, .. } = scene(default).await;
        assert_eq!(world.shop().h1().await.get("web", "/a").await.status(), status, "{default}");
        let line = world.logged(|line| line["path"] == "/a").await;
        assert_eq!(line["rule"].as_str(), rule, "{default}: {line}");
        if default == "audit" {
            assert_eq!(line["would_refuse"], "authorise.no_rule", "{line}");
        }
    }
}

#[tokio::test]
async fn clients_are_admitted_by_identity_suffix_and_network() {
    let suffix: &[&str] = &["west", "serviceaccount", "identity", "linkerd", "cluster", "local"];
    let elsewhere = "shop.east.serviceaccount.identity.linkerd.cluster.local";
    let mut near = any_meshed();
    near.networks = vec![network("127.0.0.0/8", &[])];
    let mut far = any_meshed();
    far.networks = vec![network("10.0.0.0/8", &[])];
    let mut all_but = any_meshed();
    all_but.networks = vec![network("127.0.0.0/8", &["127.0.0.1/32"])];
    let mut nowhere = any_meshed();
    nowhere.networks = Vec::new();
    let plain = Authz {
        networks: networks(),
        authentication: Some(Authn { permit: Some(Permit::Unauthenticated(Default::default())) }),
        ..Authz::default()
    };
    let in_words = Authz { networks: networks(), authentication: None, ..Authz::default() };
    let spire = authz("spire", &[SPIRE], &[]);
    let spire_wide = authz("spire", &[], &[&["west", "example"]]);
    let spire_ns = authz("spire", &[], &[&["shop", "serviceaccount", "identity", "linkerd", "west", "example"]]);
    let other_ns = authz("spire", &[], &[&["cart", "serviceaccount", "identity", "linkerd", "west", "example"]]);
    let scene = Scene::with(&detect(vec![])).await;
    for (authz, client, status, what) in [
        (authz("one", &[SHOP], &[]), SHOP, 200, "named"),
        (authz("one", &[SHOP], &[]), CART, 403, "not named"),
        (authz("ns", &[], &[suffix]), CART, 200, "its namespace is named"),
        (authz("ns", &[], &[suffix]), elsewhere, 403, "another namespace"),
        (any_meshed(), SPIRE, 200, "a SPIFFE id is somebody, too"),
        (spire, SPIRE, 200, "named"),
        (spire_wide.clone(), SPIRE, 200, "its trust domain is named"),
        (spire_ns, SPIRE, 200, "its namespace is named"),
        (other_ns, SPIRE, 403, "another namespace"),
        (spire_wide, "spiffe://evil.west.example/ns/shop/sa/web", 403, "another trust domain"),
        (near, SHOP, 200, "from here"),
        (far, SHOP, 403, "not from here: loopback is a network like others"),
        (all_but, SHOP, 403, "taken out"),
        (nowhere, SHOP, 403, "no network is no network"),
        (plain, SHOP, 200, "no certificate would be needed"),
        (in_words, SHOP, 403, "what cannot be read lets nobody in"),
    ] {
        scene.say(&detect(vec![authz])).await;
        assert_eq!(scene.get(client, "/").await, status, "{client}: {what}");
    }
}

#[tokio::test]
async fn only_the_most_specific_route_decides() {
    let admin = route("admin", "/admin", vec![authz("cart", &[CART], &[])]);
    let all = route("all", "/", vec![any_meshed()]);
    let mut hosted = route("hosted", "/", vec![authz("cart", &[CART], &[])]);
    hosted.hosts = vec![HostMatch { r#match: Some(host_match::Match::Exact("other.ns.svc.cluster.local".to_owned())) }];
    let scene = Scene::with(&detect_routes(vec![all.clone(), admin.clone(), hosted])).await;
    for (client, path, status) in [
        (SHOP, "/", 200),
        (SHOP, "/admin", 403),
        (SHOP, "/admin/users", 403),
        (SHOP, "/administrator", 200),
        (CART, "/admin/users", 200),
        // Paths that some servers would take for one below /admin: both routes must let the client through.
        (SHOP, "/ADMIN/users", 400),
        (SHOP, "/x/../admin", 400),
        (SHOP, "//admin", 400),
        (CART, "/x/../admin", 200),
    ] {
        assert_eq!(scene.get(client, path).await, status, "{client} {path}");
    }
    scene.say(&detect_routes(vec![admin])).await;
    let mut shop = scene.world.shop().h1().await;
    let answer = shop.get("web", "/nowhere").await;
    assert_eq!((answer.status(), answer.field("l5d-proxy-error")), (404, "route not found"));
    scene.world.refused("authorise.no_route").await;
}

#[tokio::test]
async fn requests_are_judged_one_by_one_and_bytes_are_cut() {
    let scene = Scene::with(&detect(vec![any_meshed()])).await;
    let shop = scene.world.shop();
    let h2 = shop.h2().await;
    assert_eq!(h2.get("web", "/").await.status, 200);
    let mut bytes = shop.opaque("bytes", 80).await;
    bytes.write_all(b"ping").await.unwrap();
    let mut back = [0; 4];
    isthmus_tests::soon(bytes.read_exact(&mut back)).await.unwrap();
    let line_of = |code: &'static str| scene.world.logged(move |line| line["code"] == code);

    scene.say(&detect(vec![authz("cart", &[CART], &[])])).await;
    assert_eq!(listen(&mut bytes).await.0, b"", "cut");
    assert_eq!(h2.get("web", "/").await.status, 403, "the same connection");
    let line = line_of("authorise.no_rule").await;
    assert!(line["rule"].as_str().unwrap().starts_with("linkerd-gateway"), "{line}");
    scene.say(&detect(vec![any_meshed()])).await;
    assert_eq!(h2.get("web", "/").await.status, 200, "and again");
}

#[tokio::test]
async fn a_server_with_a_protocol_takes_nothing_else() {
    let scene = Scene::with(&server(Kind::Opaque(Opaque {}), vec![any_meshed()])).await;
    assert_eq!(scene.get(SHOP, "/").await, 404);
    let mut bytes = scene.world.shop().opaque("bytes", 80).await;
    bytes.write_all(b"ping").await.unwrap();
    isthmus_tests::soon(bytes.read_exact(&mut [0; 4])).await.unwrap();
    let http = Http1 { routes: vec![route("all", "/", vec![any_meshed()])], ..Http1::default() };
    scene.say(&server(Kind::Http1(http), vec![any_meshed()])).await;
    assert_eq!(listen(&mut bytes).await.0, b"", "cut");
    assert_eq!(scene.get(SHOP, "/").await, 200);
    let mut bytes = scene.world.shop().opaque("bytes", 80).await;
    assert_eq!(listen(&mut bytes).await.0, b"");
}

#[tokio::test]
async fn rates_are_counted_in_all_by_client_and_by_override() {
    let limited = |total: Option<u32>, identity: Option<u32>, overrides: Vec<(u32, &[&str])>| {
        let limit = |requests_per_second| Limit { requests_per_second };
        let overrides = overrides.into_iter().map(|(rate, clients)| Override {
            limit: Some(limit(rate)),
            clients: Some(ClientIdentities {
                identities: clients.iter().map(|name| Identity { name: (*name).to_owned() }).collect(),
            }),
        });
        let limit = HttpLocalRateLimit {
            metadata: named("HTTPLocalRateLimitPolicy", "calm"),
            total: total.map(limit),
            identity: identity.map(limit),
            overrides: overrides.collect(),
        };
        let http_routes = vec![route("all", "/", vec![any_meshed()])];
        server(Kind::Detect(Detect { http_routes, http_local_rate_limit: Some(limit), ..Detect::default() }), vec![])
    };
    let scene = Scene::with(&limited(None, Some(1), vec![(3, &[CART, SPIRE])])).await;
    let burst = async |client: &str, count: usize| {
        let pair = pair(&Pki::get().west, &[client]);
        let h2 = scene.world.peer(Some(&pair)).h2().await;
        let mut statuses = Vec::new();
        for _ in 0..count {
            statuses.push(h2.get("web", "/").await.status);
        }
        statuses.into_iter().filter(|status| *status == 429).count()
    };
    assert!(burst(SHOP, 12).await >= 1, "one a second for each client");
    assert!(burst("else.west.serviceaccount.identity.linkerd.cluster.local", 1).await == 0, "a count of its own");
    assert!(burst(CART, 24).await >= 1, "three a second");
    let line = scene.world.logged(|line| line["code"] == "authorise.rate_limited").await;
    assert_eq!(line["status"], 429);
    scene.say(&limited(Some(1), None, vec![])).await;
    assert!(burst(SHOP, 12).await >= 1, "one a second for all");
}

#[tokio::test]
async fn a_message_that_says_nothing_changes_nothing() {
    let scene = Scene::with(&detect(vec![any_meshed()])).await;
    scene.plane.watch_port.tell(&Server::default());
    scene.world.counted("isthmus_authorise_served_total", &[("result", "failed")], 1.0).await;
    assert_eq!(scene.get(SHOP, "/").await, 200);
    scene.world.counted("isthmus_authorise_served_problems", &[], 1.0).await;
}

#[tokio::test]
async fn explain_names_server_route_and_authorization() {
    let admin = route("admin", "/admin", vec![authz("cart", &[CART], &[])]);
    let all = route("all", "/", vec![any_meshed()]);
    let scene = Scene::with(&detect_routes(vec![all, admin])).await;
    let query = format!("/explain?client={SHOP}&service=web.ns.svc.cluster.local:80&method=GET&path=/admin");
    let (status, body) = scene.world.admin(&query).await;
    assert_eq!(status, 200, "{body}");
    for words in [
        "linkerd-gateway/admin/cart",
        "no authorization of linkerd-gateway/admin allows it",
        "linkerd-gateway/all/any-meshed",
        "\"route\"",
    ] {
        assert!(body.contains(words), "{words}: {body}");
    }
    let grpc = h2_request("POST", "web", "/admin").header("content-type", "application/grpc").body(empty()).unwrap();
    assert_eq!(scene.world.shop().h2().await.ask(grpc).await.field("grpc-status"), "7");
}
