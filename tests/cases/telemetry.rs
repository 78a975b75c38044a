//! What is counted and written down, and that its size has an end.

use isthmus_tests::pki::{Pki, pair};
use isthmus_tests::upstream;
use isthmus_tests::world::Setup;

#[tokio::test]
async fn labels_have_an_end() {
    let web = upstream::http().await;
    let mut setup = Setup::new().set("telemetry", "max_services", "3").set("telemetry", "max_clients", "2");
    for n in 0..6 {
        setup = setup.service(&format!("web{n}"), 80, "as_client", &[web.addr]);
    }
    let world = setup.start().await;
    for n in 0..6 {
        let name = format!("client{n}.ns{n}.serviceaccount.identity.linkerd.cluster.local");
        let client = pair(&Pki::get().west, &[&name]);
        let mut http = world.peer(Some(&client)).h1().await;
        assert_eq!(http.get(&format!("web{n}"), "/").await.status(), 200);
        // Names that are no services cost no label at all.
        assert_eq!(http.get(&format!("absent{n}"), "/").await.status(), 404);
    }
    world.counted("isthmus_relay_requests_total", &[("status", "200")], 6.0).await;
    world.counted("isthmus_relay_requests_total", &[("status", "404"), ("service", "other")], 6.0).await;
    let (_, page) = world.admin("/metrics").await;
    let of = |label: &str| {
        let values: std::collections::BTreeSet<_> = page
            .lines()
            .filter(|line| line.starts_with("isthmus_relay_requests_total{"))
            .filter_map(|line| Some(line.split_once(&format!("{label}=\""))?.1.split_once('"')?.0.to_owned()))
            .collect();
        values
    };
    assert!(of("service").len() <= 4 && of("service").contains("other"), "{:?}", of("service"));
    assert!(of("client").len() <= 3 && of("client").contains("other"), "{:?}", of("client"));
}

#[tokio::test]
async fn the_names_of_all_metrics() {
    let web = upstream::http().await;
    let world = Setup::new().service("web", 80, "as_client", &[web.addr]).start().await;
    world.shop().h1().await.get("web", "/").await;
    world.shop().h1().await.get("absent", "/").await;
    world.counted("isthmus_refusals_total", &[], 1.0).await;
    let (_, page) = world.admin("/metrics").await;
    let mut types: Vec<_> = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    types.sort_unstable();
    insta::assert_snapshot!(types.join("\n"));
}

#[tokio::test]
async fn the_access_log_is_reopened_by_its_name() {
    let web = upstream::http().await;
    let world = Setup::new().service("web", 80, "as_client", &[web.addr]).start().await;
    let mut http = world.shop().h1().await;
    http.get("web", "/before").await;
    world.logged(|line| line["path"] == "/before").await;
    let log = world.folder().join("access.log");
    std::fs::rename(&log, world.folder().join("access.log.1")).unwrap();
    world.app().reload();
    http.get("web", "/after").await;
    world.logged(|line| line["path"] == "/after").await;
    assert!(world.lines().iter().all(|line| line["path"] != "/before"));
}

#[tokio::test]
async fn only_errors_where_the_operator_says_so() {
    let web = upstream::http().await;
    let setup = Setup::new().service("web", 80, "as_client", &[web.addr]).set("telemetry", "access_log", "errors");
    let world = setup.start().await;
    let mut http = world.shop().h1().await;
    for path in ["/", "/status/404", "/status/503", "/"] {
        http.get("web", path).await;
    }
    http.get("absent", "/refused").await;
    world.logged(|line| line["path"] == "/refused").await;
    let paths: Vec<_> = world.lines().iter().map(|line| line["path"].as_str().unwrap_or_default().to_owned()).collect();
    assert_eq!(paths, ["/status/503", "/refused"]);
}

#[tokio::test]
async fn queries_stay_out_of_the_log() {
    let web = upstream::http().await;
    let world = Setup::new().service("web", 80, "as_client", &[web.addr]).start().await;
    world.shop().h1().await.get("web", "/login?token=secret").await;
    let line = world.logged(|line| line["kind"] == "request").await;
    assert_eq!(line["path"], "/login");
    assert!(!line.to_string().contains("secret"));
}

#[tokio::test]
async fn the_stages_add_up() {
    let web = upstream::http().await;
    let world = Setup::new().service("web", 80, "as_client", &[web.addr]).start().await;
    let mut http = world.shop().h1().await;
    http.get("web", "/slow").await;
    drop(http);
    let request = world.logged(|line| line["path"] == "/slow").await;
    let of = |line: &serde_json::Value, key: &str| line[key].as_u64().unwrap_or(0);
    assert!(of(&request, "duration_us") >= 200_000, "{request}");
    let stages: u64 = ["authorise_us", "route_us", "balance_us", "connect_us", "relay_us", "detect_us"]
        .iter()
        .map(|key| of(&request, key))
        .sum();
    let total = of(&request, "duration_us");
    assert!(stages <= total + 1000 && stages + 5000 >= total, "{request}");
    let connection = world.logged(|line| line["kind"] == "connection").await;
    assert!(of(&connection, "tls_us") > 0, "{connection}");
    world.counted("isthmus_tls_handshake_seconds_count", &[], 1.0).await;
}
