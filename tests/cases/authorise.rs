//! `authorise`: who may reach what, and that the backend learns who called.

use isthmus_tests::peer::{empty, h2_request, listen};
use isthmus_tests::pki::{GATEWAY, Pki, SHOP, pair};
use isthmus_tests::upstream::{self, Upstream};
use isthmus_tests::world::{Setup, World};

const OTHER: &str = "cart.west.serviceaccount.identity.linkerd.cluster.local";

async fn world(setup: impl FnOnce(Setup) -> Setup) -> (World, Upstream) {
    let web = upstream::http().await;
    let base = Setup::new().service("web", 80, "as_client", &[web.addr]).set("authorise", "default", "deny");
    (setup(base).start().await, web)
}

fn rules(setup: Setup) -> Setup {
    let rule = format!(
        "[{{ name: shop-reads, clients: ['{SHOP}'], services: [web.ns.svc.cluster.local], http: {{ methods: [GET] }}, action: allow }}]"
    );
    setup.set("authorise", "rules", &rule)
}

#[tokio::test]
async fn a_rule_decides_by_client_service_and_method() {
    let (world, web) = world(rules).await;
    let mut shop = world.shop().h1().await;
    assert_eq!(shop.get("web", "/a").await.status(), 200);
    let line = world.logged(|line| line["path"] == "/a").await;
    assert_eq!((&line["rule"], &line["client_identity"]), (&"shop-reads".into(), &SHOP.into()));
    let answer = shop.ask("POST /b HTTP/1.1\r\nhost: web.ns.svc.cluster.local\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!((answer.status(), answer.field("l5d-proxy-error")), (403, "unauthorized request on route"));
    let cart = pair(&Pki::get().west, &[OTHER]);
    assert_eq!(world.peer(Some(&cart)).h1().await.get("web", "/c").await.status(), 403);
    let grpc = h2_request("POST", "web", "/g").header("content-type", "application/grpc+proto").body(empty()).unwrap();
    let answer = world.shop().h2().await.ask(grpc).await;
    assert_eq!(
        (answer.status, answer.field("grpc-status"), answer.field("content-type")),
        (200, "7", "application/grpc")
    );
    let line = world.logged(|line| line["path"] == "/g").await;
    assert_eq!(
        (&line["grpc_status"], &line["stage"], &line["fault"]),
        (&7.into(), &"authorise".into(), &"policy".into())
    );
    world.counted("isthmus_refusals_total", &[("stage", "authorise")], 3.0).await;
    assert_eq!(web.seen().len(), 1);
}

#[tokio::test]
async fn without_a_rule_nobody_reaches_bytes_either() {
    let (world, _) = world(|setup| setup).await;
    let mut stream = world.shop().opaque("web", 80).await;
    assert_eq!(listen(&mut stream).await.0, b"");
    world.refused("authorise.no_rule").await;
    assert_eq!(world.shop().h1().await.get("web", "/").await.status(), 403);
}

#[tokio::test]
async fn only_exported_services_are_reached() {
    let web = upstream::http().await;
    let setup = Setup::new().set("authorise", "exported_only", "true").service("web", 80, "as_client", &[web.addr]);
    let world = setup.start().await;
    assert_eq!(world.shop().h1().await.get("web", "/").await.status(), 200);
    let answer = world.shop().h1().await.get("unknown", "/").await;
    assert_eq!((answer.status(), answer.field("l5d-proxy-error")), (404, "service is not exported"));
    world.refused("authorise.not_exported").await;
}

#[tokio::test]
async fn identities_are_told_by_us_and_by_nobody_else() {
    let (world, web) = world(rules).await;
    let mut http = world.shop().h1().await;
    let spoofed = format!(
        "GET / HTTP/1.1\r\nhost: web.ns.svc.cluster.local\r\nl5d-client-id: {OTHER}\r\nL5D-Client-Id: {GATEWAY}\r\nl5d-dst-canonical: evil:1\r\nconnection: l5d-client-id, forwarded\r\n\r\n"
    );
    assert_eq!(http.ask(&spoofed).await.status(), 200);
    let seen = web.last();
    assert_eq!(seen.all("l5d-client-id"), [SHOP]);
    assert_eq!(seen.all("l5d-dst-canonical"), ["web.ns.svc.cluster.local:80"]);
    assert!(seen.all("connection").is_empty());
    assert_eq!(seen.all("forwarded").len(), 1);
}

#[tokio::test]
async fn ambiguous_paths_are_refused_where_rules_name_paths() {
    let rule = format!(
        "[{{ name: public, clients: ['{SHOP}'], services: [web.ns.svc.cluster.local], http: {{ paths: ['/public/*'] }}, action: allow }}]"
    );
    let (world, web) = world(|setup| setup.set("authorise", "rules", &rule)).await;
    let mut http = world.shop().h1().await;
    assert_eq!(http.get("web", "/public/a").await.status(), 200);
    for path in
        ["/private", "/public/../private", "/public/%2e%2e/private", "/public/..%2fprivate", "/public//../private"]
    {
        let status = http.get("web", path).await.status();
        assert!(matches!(status, 400 | 403), "{path}: {status}");
    }
    assert_eq!(web.seen().len(), 1);
}

#[tokio::test]
async fn limits_answer_429_and_say_when_to_come_back() {
    let (world, _) =
        world(|setup| rules(setup).set("authorise", "limits_per_client", "{ requests_per_second: 1, burst: 2 }")).await;
    let mut http = world.shop().h1().await;
    let mut statuses = Vec::new();
    for _ in 0..4 {
        let answer = http.get("web", "/").await;
        if answer.status() == 429 {
            assert!(!answer.field("retry-after").is_empty(), "{answer:?}");
        }
        statuses.push(answer.status());
    }
    assert_eq!(statuses, [200, 200, 429, 429]);
    world.refused("authorise.rate_limited").await;
}
