//! `route`: which names are served at all, and loops.

use http::Version;
use isthmus::wire::transport_header::Protocol;
use isthmus_tests::peer::{empty, h2_request, listen};
use isthmus_tests::pki::{GATEWAY, Pki, SHOP, pair};
use isthmus_tests::upstream::{self, Upstream};
use isthmus_tests::world::{Setup, World};

async fn world() -> (World, Upstream) {
    let web = upstream::http().await;
    let setup =
        Setup::new().service("web", 80, "as_client", &[web.addr]).service("web", 8080, "as_client", &[web.addr]);
    (setup.start().await, web)
}

#[tokio::test]
async fn names_are_compared_as_names() {
    let (world, web) = world().await;
    let mut http = world.shop().h1().await;
    for host in [
        "web.ns.svc.cluster.local",
        "WEB.ns.Svc.cluster.local",
        "web.ns.svc.cluster.local.",
        "web.ns.svc.cluster.local:80",
    ] {
        let answer = http.ask(&format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n")).await;
        assert_eq!(answer.status(), 200, "{host}");
        assert_eq!(web.last().field("host"), "web.ns.svc.cluster.local", "the port is left out when 80");
    }
}

#[tokio::test]
async fn names_that_are_never_served() {
    let (world, web) = world().await;
    let mut http = world.shop().h1().await;
    for (host, status, code) in [
        ("intranet.example", 404, "route.suffix"),
        ("xsvc.cluster.local", 404, "route.suffix"),
        ("svc.cluster.local.evil.example", 404, "route.suffix"),
        ("[::1]:80", 400, "route.ipv6_literal"),
        ("web.ns.svc.cluster.local:0", 400, "route.bad_authority"),
        ("web.ns.svc.cluster.local:70000", 400, "route.bad_authority"),
        ("web..svc.cluster.local", 400, "route.bad_authority"),
        ("", 400, "route."),
    ] {
        let answer = http.ask(&format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n")).await;
        assert_eq!(answer.status(), status, "{host}");
        assert_eq!(answer.field("content-length"), "0");
        let line = world
            .logged(|line| {
                line["kind"] == "request"
                    && line["status"] == status
                    && line["code"].as_str().is_some_and(|found| found.starts_with(code))
            })
            .await;
        assert_eq!(line["stage"], "route");
    }
    world.counted("isthmus_refusals_total", &[("code", "route.suffix")], 3.0).await;
    assert!(web.seen().is_empty());
}

#[tokio::test]
async fn a_session_that_names_a_foreign_service_is_closed() {
    let (world, _) = world().await;
    for protocol in [None, Some(Protocol::Http1), Some(Protocol::Http2)] {
        let mut stream = world.shop().header("intranet.example", 80, protocol).await;
        assert_eq!(listen(&mut stream).await.0, b"");
    }
    let line = world.refused("route.suffix").await;
    assert_eq!((&line["kind"], &line["target"]), (&"connection".into(), &"intranet.example:80".into()));
    world.counted("isthmus_refusals_total", &[("code", "route.suffix")], 3.0).await;
}

#[tokio::test]
async fn authority_and_host_must_agree() {
    let (world, web) = world().await;
    let mut http = world.shop().h1().await;
    let absolute = "GET http://web.ns.svc.cluster.local/x?q=1 HTTP/1.1\r\nhost: web.ns.svc.cluster.local\r\n\r\n";
    assert_eq!(http.ask(absolute).await.status(), 200);
    assert_eq!((web.last().uri.as_str(), web.last().field("host").as_str()), ("/x?q=1", "web.ns.svc.cluster.local"));
    let conflict = "GET http://web.ns.svc.cluster.local/ HTTP/1.1\r\nhost: web.ns.svc.cluster.local:8080\r\n\r\n";
    assert_eq!(http.ask(conflict).await.status(), 400);
    let request = h2_request("GET", "web", "/").header("host", "web.ns.svc.cluster.local:8080").body(empty()).unwrap();
    assert_eq!(world.shop().h2().await.ask(request).await.status, 400);
    world.refused("route.bad_authority").await;
    assert_eq!(web.seen().len(), 1);
}

#[tokio::test]
async fn loops_are_refused_however_they_are_written() {
    let (world, web) = world().await;
    let mut http = world.shop().h1().await;
    let h2 = world.shop().h2().await;
    for forwarded in [
        format!("by={GATEWAY};for=x;host=y;proto=https"),
        format!("for=x; by={GATEWAY}"),
        format!("by=other, for=a;by={GATEWAY}"),
        format!("for=a;by=\"{GATEWAY}\""),
        format!("BY = {} ", GATEWAY.to_ascii_uppercase()),
    ] {
        let answer = http
            .ask(&format!("GET / HTTP/1.1\r\nhost: web.ns.svc.cluster.local\r\nforwarded: {forwarded}\r\n\r\n"))
            .await;
        assert_eq!((answer.status(), answer.field("l5d-proxy-error")), (508, "gateway loop detected"), "{forwarded}");
        assert_eq!(answer.field("l5d-proxy-connection"), "close");
        let grpc =
            h2_request("POST", "web", "/").header("content-type", "application/grpc").header("forwarded", &forwarded);
        let answer = h2.ask(grpc.body(empty()).unwrap()).await;
        assert_eq!((answer.status, answer.field("grpc-status")), (200, "10"), "{forwarded}");
    }
    let line = world.refused("route.loop").await;
    assert_eq!(line["status"], 508);
    assert!(web.seen().is_empty());
    let innocent = format!(
        "GET / HTTP/1.1\r\nhost: web.ns.svc.cluster.local\r\nforwarded: for={GATEWAY};by=not.{GATEWAY}\r\n\r\n"
    );
    assert_eq!(http.ask(&innocent).await.status(), 200);
}

#[tokio::test]
async fn a_client_with_the_gateways_own_identity_is_a_loop() {
    let (world, _) = world().await;
    let ourselves = pair(&Pki::get().west, &[GATEWAY]);
    assert_eq!(world.peer(Some(&ourselves)).h1().await.get("web", "/").await.status(), 508);
    let mut stream = world.peer(Some(&ourselves)).opaque("web", 80).await;
    assert_eq!(listen(&mut stream).await.0, b"");
    world.counted("isthmus_refusals_total", &[("code", "route.loop")], 2.0).await;
}

#[tokio::test]
async fn forwarded_is_appended_exactly() {
    let (world, web) = world().await;
    let element = |host: &str| format!("by={GATEWAY};for={SHOP};host={host};proto=https");
    let mut http = world.shop().h1().await;
    http.ask("GET / HTTP/1.1\r\nhost: web.ns.svc.cluster.local:8080\r\nforwarded: by=a;for=b\r\n\r\n").await;
    // Whom a client says that it speaks for is not passed on; by which gateways it came is.
    let expected = ["by=a".to_owned(), element("web.ns.svc.cluster.local:8080")];
    assert_eq!(web.last().all("forwarded"), expected, "as a line of its own");
    world.shop().h2().await.get("web", "/").await;
    assert_eq!(web.last().all("forwarded"), [element("web.ns.svc.cluster.local")]);
    assert_eq!(web.last().version, Version::HTTP_2);
}
