//! The policy of a running gateway: files that change, a call explained, calls seen and rules suggested from them.

use std::fs;
use std::path::Path;
use std::time::Duration;

use isthmus::admin::client;
use isthmus::app::{App, Sockets};
use isthmus::authorise::{Call, Grouping, Observation, suggest};
use isthmus::commands::demo::{east, pem, pki::Pki, west::West};
use isthmus::config::Config;
use isthmus::sources::files;
use isthmus::sources::policy::PolicyFile;
use isthmus::tls::Credentials;

const WEB: &str = "web.demo.svc.cluster.local";

fn main_file(http: std::net::SocketAddr, authorise: &str) -> String {
    format!(
        "
accept: {{ listen: '127.0.0.1:0' }}
probe: {{ listen: '127.0.0.1:0' }}
admin: {{ listen: '127.0.0.1:0' }}
tls: {{ chain_file: in-memory, key_file: in-memory, bundle_file: in-memory }}
authorise: {authorise}
sources:
  dns: {{ enabled: false }}
  services: [{{ name: {WEB}, port: 80, exported: true, endpoints: [{{ address: '{http}' }}] }}]
"
    )
}

struct Running {
    app: App,
    west: West,
    admin: String,
    client: String,
}

async fn start(folder: &Path, main: &str) -> Running {
    isthmus::tls::install();
    let pki = Pki::new().expect("certificates");
    let path = folder.join("main.yaml");
    fs::write(&path, main).expect("written");
    let config = Config::load(&path).expect("a configuration");
    let credentials = Credentials::from_pem(&pem(&pki), &config.credentials()).expect("credentials");
    let policy = config.policy_files(Some(credentials.identity().clone()));
    let (_, read) = files::load(&policy).expect("a policy");
    let sockets = Sockets::bind(&config).expect("bound");
    let mut app = App::start(&config, credentials, sockets, None).await.expect("started");
    let settings = files::Settings { interval: Duration::from_secs(3600), quiet: Duration::from_millis(20) };
    app.watch_policy(policy, Some(read.digest), settings);
    let west = West::new(&pki, Some(&pki.client), app.addrs.gateway).expect("a caller");
    let admin = format!("http://{}", app.addrs.admin);
    Running { app, west, admin, client: pki.client_identity.to_string() }
}

impl Running {
    async fn page(&self, page: &str) -> String {
        client::page(&self.admin, page).await.unwrap_or_else(|error| panic!("{page}: {error}"))
    }

    async fn state(&self) -> serde_json::Value {
        serde_json::from_str(&self.page("/state").await).expect("JSON")
    }

    async fn get(&self, path: &str) -> String {
        let told = self.west.http2(WEB, path, None).await.unwrap_or_else(|error| format!("{error:#}"));
        told.chars().take(3).collect()
    }

    /// Waits until the policy's part of `/state` is so.
    async fn until(&self, what: &str, so: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        for _ in 0..2000 {
            let policy = self.state().await["policy"].clone();
            if so(&policy) {
                return policy;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{what} did not come: {}", self.state().await["policy"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policy_files_are_followed_whole_or_not_at_all() {
    let folder = tempfile::tempdir().expect("a folder");
    let http = east::http_service().await.expect("a service");
    let rule = |name: &str, path: &str| {
        format!("rules: [{{ name: {name}, services: [{WEB}], http: {{ paths: [{path}] }}, action: allow }}]")
    };
    fs::write(folder.path().join("a.yaml"), rule("a", "/a/*")).expect("written");
    fs::write(folder.path().join("b.yaml"), rule("b", "/b/*")).expect("written");
    let running = start(folder.path(), &main_file(http, "{ files: [a.yaml, b.yaml] }")).await;
    assert_eq!(
        [running.get("/a/x").await, running.get("/b/x").await, running.get("/c/x").await],
        ["200", "200", "403"]
    );
    let policy = running.state().await["policy"].clone();
    assert_eq!((&policy["rules"], &policy["problem"]), (&2.into(), &serde_json::Value::Null), "{policy}");

    // One of two is wrong: neither is taken.
    fs::write(folder.path().join("a.yaml"), rule("a", "/c/*")).expect("written");
    fs::write(folder.path().join("b.yaml"), "rules:\n  - name: b\n    http: { pahts: [/b/*] }\n    action: allow\n")
        .expect("written");
    let policy = running
        .until("a problem", |policy| policy["problem"]["file"].as_str().is_some_and(|f| f.contains("b.yaml")))
        .await;
    let problem = format!("{}: {}", policy["problem"]["file"], policy["problem"]["reason"]).replace("\\\"", "'");
    assert!(problem.contains("b.yaml:3:13"), "{problem}");
    assert!(problem.contains("rules[0].http.pahts: there is no such field; did you mean 'paths'?"), "{problem}");
    assert_eq!(
        [running.get("/a/x").await, running.get("/b/x").await, running.get("/c/x").await],
        ["200", "200", "403"]
    );
    let metrics = running.page("/metrics").await;
    assert!(metrics.contains("isthmus_authorise_reload_failed{} 1.0"), "{metrics}");

    // Both right: both are taken.
    fs::write(folder.path().join("b.yaml"), rule("b", "/d/*")).expect("written");
    running.until("the end of the problem", |policy| policy["problem"].is_null()).await;
    assert_eq!(
        [running.get("/a/x").await, running.get("/c/x").await, running.get("/d/x").await],
        ["403", "200", "200"]
    );

    // The list of files itself changes.
    fs::write(folder.path().join("main.yaml"), main_file(http, "{ files: [b.yaml] }")).expect("written");
    running.until("one rule", |policy| policy["rules"] == 1).await;
    assert_eq!([running.get("/c/x").await, running.get("/d/x").await], ["403", "200"]);
    let metrics = running.page("/metrics").await;
    let taken = metrics.lines().find_map(|line| line.strip_prefix("isthmus_authorise_reload_total{result=\"ok\"} "));
    assert!(taken.is_some_and(|count| count.parse::<f64>().is_ok_and(|count| count >= 2.0)), "{metrics}");
    running.app.drain(Duration::ZERO, Duration::from_secs(1), std::future::pending()).await;
}

/// The way of a new user: audit, suggest, explain, enforce.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audit_suggest_explain_enforce() {
    let folder = tempfile::tempdir().expect("a folder");
    let http = east::http_service().await.expect("a service");
    let running = start(folder.path(), &main_file(http, "{ mode: audit }")).await;
    for path in ["/items/1", "/items/2", "/v1/carts"] {
        assert_eq!(running.get(path).await, "200", "audit lets {path} through");
    }
    let seen: serde_json::Value = serde_json::from_str(&running.page("/sightings").await).expect("JSON");
    let seen: Vec<Observation> = serde_json::from_value(seen["observations"].clone()).expect("observations");
    assert_eq!(seen.iter().map(|seen| seen.count).sum::<u64>(), 3, "{seen:?}");
    let rules = suggest(&seen, Grouping::default()).into_rules();
    assert_eq!(rules.len(), 1, "{rules:?}");
    let text = serde_saphyr::to_string(&PolicyFile { rules }).expect("written");
    fs::write(folder.path().join("suggested.yaml"), text).expect("written");

    let call = Call { path: Some("/items/3".to_owned()), ..Call::of(&running.client, &format!("{WEB}:80")) };
    let explain = async |call: &Call| -> serde_json::Value {
        let text = client::explain(&running.admin, call, None).await.expect("an explanation");
        serde_json::from_str(&text).expect("JSON")
    };
    let before = explain(&call).await;
    assert_eq!((&before["admitted"], &before["code"]), (&true.into(), &"authorise.no_rule".into()), "{before}");

    fs::write(folder.path().join("main.yaml"), main_file(http, "{ files: [suggested.yaml] }")).expect("written");
    running.until("the rule", |policy| policy["rules"] == 1).await;
    let after = explain(&call).await;
    assert_eq!((&after["admitted"], &after["rule"]), (&true.into(), &"shop-to-web".into()), "{after}");
    for (path, want) in [("/items/1", "200"), ("/items/3", "200"), ("/v1/carts", "200"), ("/admin", "403")] {
        assert_eq!(running.get(path).await, want, "{path}");
    }
    let refused = explain(&Call { path: Some("/admin".to_owned()), ..call }).await;
    assert_eq!((&refused["admitted"], &refused["code"]), (&false.into(), &"authorise.no_rule".into()), "{refused}");
    let unknown = explain(&Call::of(&running.client, "other.demo.svc.cluster.local:80")).await;
    assert_eq!(unknown["code"], "authorise.not_exported", "the gateway's own knowledge decides");
    running.app.drain(Duration::ZERO, Duration::from_secs(1), std::future::pending()).await;
}
