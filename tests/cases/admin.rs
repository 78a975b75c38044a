//! The admin port: what the operator sees, and that secrets and strangers do not get there.

use isthmus_tests::pki::{GATEWAY, SHOP};
use isthmus_tests::upstream;
use isthmus_tests::wire::Http1;
use isthmus_tests::world::{Setup, World};
use tokio::net::TcpStream;

async fn world() -> World {
    let web = upstream::http().await;
    Setup::new().service("web", 80, "as_client", &[web.addr]).start().await
}

#[tokio::test]
async fn state_shows_who_what_and_where() {
    let world = world().await;
    let mut http = world.shop().h1().await;
    assert_eq!(http.get("web", "/").await.status(), 200);
    let state = world.state().await;
    assert_eq!((&state["identity"]["name"], &state["ready"]), (&GATEWAY.into(), &true.into()));
    assert_eq!(state["services"][0]["service"], "web.ns.svc.cluster.local:80");
    assert_eq!((&state["clients"][0]["identity"], &state["clients"][0]["requests"]), (&SHOP.into(), &1.into()));
    assert_eq!(
        (&state["connections"][0]["identity"], &state["connections"][0]["protocol"]),
        (&SHOP.into(), &"http/1".into())
    );
    let endpoint = &state["endpoints"][0];
    assert!(endpoint["requests"].as_u64().unwrap() >= 1, "{endpoint}");
}

#[tokio::test]
async fn live_ready_config_and_unknown_paths() {
    let world = world().await;
    for (path, status) in [("/live", 200), ("/ready", 200), ("/config", 200), ("/metrics", 200), ("/nothing", 404)] {
        assert_eq!(world.admin(path).await.0, status, "{path}");
    }
    let (_, config) = world.admin("/config").await;
    assert!(config.contains("discovery_timeout") && config.contains("web.ns.svc.cluster.local"), "{config}");
    let mut http = Http1::new(TcpStream::connect(world.addrs.admin).await.unwrap());
    http.send("POST /state HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!(http.response(false).await.status(), 405);
}

#[tokio::test]
async fn metrics_come_in_both_formats() {
    let world = world().await;
    world.shop().h1().await.get("web", "/").await;
    world.counted("isthmus_relay_requests_total", &[("status", "200")], 1.0).await;
    let mut http = Http1::new(TcpStream::connect(world.addrs.admin).await.unwrap());
    let plain = http.ask("GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(plain.field("content-type").starts_with("text/plain"), "{}", plain.field("content-type"));
    let open = http
        .ask("GET /metrics HTTP/1.1\r\nhost: x\r\naccept: application/openmetrics-text; version=1.0.0\r\n\r\n")
        .await;
    assert!(open.field("content-type").starts_with("application/openmetrics-text"), "{}", open.field("content-type"));
    assert!(open.text().ends_with("# EOF\n") && !plain.text().contains("# EOF"));
}
