//! The operator's words: what is wrong with them is said where it stands; and the binary's other doors.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use assert_cmd::Command;
use isthmus::config::{Config, reference};
use isthmus_tests::pki::{GATEWAY, Pki};
use isthmus_tests::{soon, upstream};
use tokio::io::{AsyncBufReadExt, BufReader};

const TLS: &str = "tls: { chain_file: a, key_file: b, bundle_file: c }\n";

/// Texts, and where and what their first fault is.
fn wrong() -> Vec<(String, &'static str)> {
    let with = |text: &str| format!("{TLS}{text}");
    vec![
        (String::new(), "x.yaml:1:1: tls.chain_file: missing"),
        ("tls:\n  chain_file: a\n".to_owned(), "x.yaml:1:1: tls.key_file: missing"),
        ("tls:\n  chain_file: a\n  key_file: ''\n  bundle_file: c\n".to_owned(), "x.yaml:3:13: tls.key_file: missing"),
        (with("htp: {}\n"), "x.yaml:2:1: htp: there is no such field; did you mean \"http\"?"),
        (
            with("http:\n  max_retry: 1\n"),
            "x.yaml:3:3: http.max_retry: there is no such field; did you mean \"max_retries\"?",
        ),
        (
            with("http:\n  header_timeout: 10\n"),
            "x.yaml:3:19: http.header_timeout: `10` is no duration; write a number and ms, s, m, h or d",
        ),
        (with("http:\n  header_timeout: soon\n"), "x.yaml:3:19: http.header_timeout: `soon` is no duration"),
        (with("http:\n  stream_window: 1KB\n"), "x.yaml:3:18: http.stream_window: `1KB` is no size"),
        (with("http:\n  max_streams: 0\n"), "x.yaml:3:16: http.max_streams: 0 would refuse every HTTP/2 request"),
        (with("http:\n  max_header_bytes: 100\n"), "x.yaml:3:21: http.max_header_bytes: below 1KiB"),
        (with("http:\n  retry_budget: 1.5\n"), "x.yaml:3:17: http.retry_budget: a share is a number from 0.0 to 1.0"),
        (
            with("sources:\n  linkerd:\n    enabled: true\n    destination_identity: null\n"),
            "x.yaml:5:27: sources.linkerd.destination_identity: missing; linkerd-dst-headless.linkerd.svc.cluster.local:8086 \
             is not this host, and only this host is spoken to in plaintext",
        ),
        (
            with("sources:\n  linkerd:\n    enabled: true\n    policy_identity: null\n"),
            "x.yaml:5:22: sources.linkerd.policy_identity: missing; linkerd-policy.linkerd",
        ),
        (
            with("sources:\n  linkerd: { enabled: true, max_branches: 0 }\n"),
            "x.yaml:3:43: sources.linkerd.max_branches: 0 would leave nothing",
        ),
        (
            with("sources:\n  linkerd: { enabled: true, negative_ttl: 0 }\n"),
            "x.yaml:3:43: sources.linkerd.negative_ttl: 0 would ask without end",
        ),
        (
            with("sources:\n  linkerd:\n    destination: linkerd\n"),
            "x.yaml:4:18: sources.linkerd.destination: `linkerd` is no host and port: a port is a number",
        ),
        (with("balance: { queue: 5, max_ejected: -1 }\n"), "x.yaml:2:35: balance.max_ejected: a share is a number"),
        (
            with("telemetry:\n  log: info\n  # a comment: with access_log_sample: in it\n  access_log_sample: 2\n"),
            "x.yaml:5:22: telemetry.access_log_sample: a share",
        ),
        (
            with("telemetry: { access_log: some }\n"),
            "x.yaml:2:26: telemetry.access_log: \"some\": not one of all, errors, off",
        ),
        (
            with("accept:\n  listen: 4143\n"),
            "x.yaml:3:11: accept.listen: \"4143\": not an address and a port, such as 127.0.0.1:4143",
        ),
        (
            with("accept:\n  listen: localhost:4143\n"),
            "x.yaml:3:11: accept.listen: \"localhost:4143\": not an address and a port",
        ),
        (with("accept:\n  max_connections: 0\n"), "x.yaml:3:20: accept.max_connections: 0 would accept nobody"),
        (with("accept:\n  max_connections: -1\n"), "x.yaml:3:20: accept.max_connections: \"-1\": not a whole number"),
        (
            with("accept:\n  proxy_networks: [10.0.0.0/40]\n"),
            "x.yaml:3:20: accept.proxy_networks[0]: \"10.0.0.0/40\": not a network",
        ),
        (with("accept:\n  listen: '[::]:4181'\n"), "x.yaml:1:1: probe.listen: port 4181 is taken by another listener"),
        (
            with("accept: { listen: '[::]:9' }\nadmin:\n  listen: 127.0.0.1:9\n"),
            "x.yaml:4:11: admin.listen: port 9 is taken",
        ),
        (with("probe:\n  path: health\n"), "x.yaml:3:9: probe.path: a path begins with a slash"),
        (with("drain:\n  announce: 60s\n"), "drain.deadline: shorter than drain.announce"),
        (with("drain:\n  announce: 5s\n  deadline: 1s\n"), "x.yaml:4:13: drain.deadline: shorter than drain.announce"),
        (with("route:\n  suffixes: [svc..local]\n"), "x.yaml:3:14: route.suffixes[0]: `svc..local` is no DNS suffix"),
        (
            with(
                "sources:\n  services:\n    - name: web.svc.cluster.local\n      port: 80\n      endpoints: []\n    - name: web.svc.cluster.local\n      port: 80\n      endpoints: []\n",
            ),
            "x.yaml:7:13: sources.services[1].name: web.svc.cluster.local:80 stands in the table twice",
        ),
        (
            with("sources:\n  services:\n    - name: web.example\n      port: 80\n      endpoints: []\n"),
            "x.yaml:4:13: sources.services[0].name: web.example lies outside route.suffixes",
        ),
        (
            with("sources:\n  services:\n    - { port: 0, name: web.svc.cluster.local, endpoints: [] }\n"),
            "x.yaml:4:15: sources.services[0].port: a port is a number from 1 to 65535",
        ),
        (
            with(
                "sources:\n  services:\n    - name: web.svc.cluster.local\n      port: 80\n      endpoints: [{ address: web:80 }]\n",
            ),
            "x.yaml:6:30:",
        ),
        (
            with(
                "sources:\n  services:\n    - name: web.svc.cluster.local\n      port: 80\n      tls:\n        identity: spiffe://x/y\n      endpoints: []\n",
            ),
            "x.yaml:6:7: sources.services[0].tls: an identity that is a URI needs a server_name",
        ),
        (
            with("sources:\n  services:\n    - name: web.svc.cluster.local\n      endpoints: []\n"),
            "x.yaml:5:7: sources.services[0].port: is missing",
        ),
        (
            with("sources:\n  kubernetes:\n    enabled: true\n    selector: a b\n"),
            "x.yaml:5:15: sources.kubernetes.selector: `a b` is no label; one is such as mirror.linkerd.io/exported",
        ),
        (
            with("sources:\n  kubernetes: { enabled: true, selector: '' }\n"),
            "x.yaml:3:42: sources.kubernetes.selector: a selector names at least one label",
        ),
        (
            with("sources:\n  kubernetes:\n    namespaces: [Prod]\n"),
            "x.yaml:4:18: sources.kubernetes.namespaces[0]: `Prod` is no namespace",
        ),
        (
            with("sources:\n  kubernetes:\n    enabled: true\n    namespaces: [prod, prod]\n"),
            "x.yaml:5:24: sources.kubernetes.namespaces[1]: prod stands in the list twice",
        ),
        (
            with("sources:\n  kubernetes:\n    enabled: true\n    watch_timeout: 291s\n"),
            "x.yaml:5:20: sources.kubernetes.watch_timeout: a watch lasts from 1s to 290s",
        ),
        (
            with("sources:\n  kubernetes:\n    enabled: true\n    watch_timeout: 500ms\n"),
            "x.yaml:5:20: sources.kubernetes.watch_timeout: a watch lasts from 1s to 290s",
        ),
        (
            with("sources:\n  kubernetes:\n    enabled: true\n    answer_timeout: 0\n"),
            "x.yaml:5:21: sources.kubernetes.answer_timeout: 0 would ask the API server without a pause",
        ),
        (
            with("sources:\n  kubernetes:\n    enabled: true\n    backoff_max: 500ms\n"),
            "x.yaml:5:18: sources.kubernetes.backoff_max: shorter than sources.kubernetes.backoff_min",
        ),
        (
            with("sources:\n  kubernetes:\n    enabled: true\n    page_size: 0\n"),
            "x.yaml:5:16: sources.kubernetes.page_size: 0 would ask for everything at once",
        ),
        (
            with("sources:\n  kubernetes:\n    enabled: true\n    cluster_domain: east.example\n"),
            "x.yaml:5:21: sources.kubernetes.cluster_domain: no service below svc.east.example lies within route.suffixes",
        ),
        (with("sources:\n  kubernetes:\n    pod_ip: here\n"), "x.yaml:4:13: sources.kubernetes.pod_ip: \"here\": not"),
        (
            with("authorise:\n  default: maybe\n"),
            "x.yaml:3:12: authorise.default: \"maybe\": not one of authenticated, deny",
        ),
        (
            with(
                "authorise:\n  rules:\n    - { name: a, action: allow, services: [web] }\n    - name: b\n      action: allow\n      http:\n        methods: [get]\n",
            ),
            "x.yaml:8:19: authorise.rules[1].http.methods[0]: \"get\": not a method: methods are written in capitals; did you mean \"GET\"?",
        ),
        (
            with("authorise:\n  limits: { requests_per_second: 0 }\n"),
            "x.yaml:3:34: authorise.limits.requests_per_second: \"0\": a limit of zero",
        ),
        (with("probe: { plaintext: maybe }\n"), "x.yaml:2:21: probe.plaintext: \"maybe\": not true or false"),
        (format!("{TLS}{TLS}"), "x.yaml:2:1: "),
        ("- a\n- b\n".to_owned(), "x.yaml:1:1:"),
        ("tls: { chain_file: a\n".to_owned(), "x.yaml:"),
    ]
}

#[test]
fn what_is_wrong_is_said_where_it_stands() {
    let mut failures = Vec::new();
    for (text, expected) in wrong() {
        let read = Config::parse(Path::new("x.yaml"), &text).map_err(|error| error.to_string());
        match read.and_then(|config| config.policy(None).map_err(|error| error.to_string())) {
            Ok(_) => failures.push(format!("taken, instead of {expected}:\n{text}")),
            Err(error) if error.contains(expected) => {}
            Err(error) => failures.push(format!("{error}\n   instead of {expected}\n{text}")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Rows of the table of services that cannot be meant as they are written.
#[test]
fn services_that_contradict_themselves_are_named() {
    let tls = "tls: { identity: web.ns.example }";
    for (keys, expected) in [
        (
            "tls: { identity: 'spiffe://a.example/web' }",
            "services[0].tls: an identity that is a URI needs a server_name",
        ),
        ("transport_header: { port: 80 }", "services[0].transport_header: needs `tls`"),
        (
            &format!("{tls}, transport_header: {{ port: 0 }}"),
            "services[0].transport_header.port: a port is a number from 1",
        ),
        (&format!("{tls}, transport_header: {{ name: web }}"), "services[0].transport_header.port: is missing"),
        ("orig_proto: true, protocol: http1", "services[0].orig_proto: goes with `protocol: as_client` only"),
        ("authority: 'a b:80'", "`a b:80` is no authority"),
        ("authority: 'web.ns:0'", "`web.ns:0` is no authority"),
        ("http2: { max_frame: 1KiB }", "services[0].http2.max_frame: a frame's limit is 16384 to 16777215 bytes"),
        ("http2: { stream_window: 1KiB }", "services[0].http2.stream_window: a window is 16KiB"),
        ("http2: { connection_window: 4GiB }", "services[0].http2.connection_window: a window is 16KiB"),
        ("http2: { window: 1KiB }", "there is no such field"),
    ] {
        let text = format!(
            "{TLS}sources:\n  services:\n    - {{ name: web.ns.svc.cluster.local, port: 80, endpoints: [], {keys} }}\n"
        );
        let error = Config::parse(Path::new("x.yaml"), &text).expect_err(keys).to_string();
        assert!(error.starts_with("x.yaml:4:") && error.contains(expected), "{keys}: {error}");
    }
}

#[test]
fn the_reference_is_a_configuration() {
    let mut text = reference::reference();
    for key in ["chain_file", "key_file", "bundle_file"] {
        let empty = format!("  {key}: \"\"\n");
        assert!(text.contains(&empty), "{key}");
        text = text.replace(&empty, &format!("  {key}: {key}.pem\n"));
    }
    let config = Config::parse(Path::new("reference.yaml"), &text).unwrap();
    let least = Config::parse(
        Path::new("reference.yaml"),
        "tls: { chain_file: chain_file.pem, key_file: key_file.pem, bundle_file: bundle_file.pem }\n",
    );
    assert_eq!(config.file, least.unwrap().file, "the reference says nothing but the defaults");
}

#[test]
fn the_schema() {
    insta::assert_snapshot!(serde_json::to_string_pretty(&reference::schema()).unwrap());
}

/// Zeros that mean nothing good are refused where they stand; zeros that mean "off" are taken.
#[test]
fn zeros_are_off_or_refused() {
    let parse = |section: &str, key: &str, value: &str| {
        let text = match section {
            "tls" => format!("tls:\n  {key}: {value}\n  chain_file: a\n  key_file: b\n  bundle_file: c\n"),
            _ => format!("{section}:\n  {key}: {value}\n{TLS}"),
        };
        Config::parse(Path::new("x.yaml"), &text).map(|_| ()).map_err(|error| error.to_string())
    };
    for refused in [
        "accept.max_connections",
        "accept.backlog",
        "accept.proxy_timeout",
        "accept.network_prefix_v4",
        "accept.network_prefix_v6",
        "tls.handshake_timeout",
        "tls.max_handshakes",
        "tls.max_hello_bytes",
        "tls.reload_interval",
        "detect.timeout",
        "route.discovery_timeout",
        "route.max_services",
        "route.idle_timeout",
        "balance.failfast_timeout",
        "connect.timeout",
        "connect.max_connections",
        "connect.max_streams",
        "connect.max_http2_connections",
        "connect.max_age",
        "connect.keepalive_timeout",
        "connect.stream_window",
        "http.header_timeout",
        "http.idle_timeout",
        "http.max_requests",
        "http.max_header_bytes",
        "http.max_headers",
        "http.max_streams",
        "http.stream_window",
        "http.connection_window",
        "http.max_send_buffer",
        "http.body_window",
        "http.keepalive_timeout",
        "probe.max_connections",
    ] {
        let (section, key) = refused.split_once('.').unwrap();
        let said = parse(section, key, "0").unwrap_err();
        let place = format!("x.yaml:2:{}: {refused}: ", key.len() + 5);
        assert!(said.starts_with(&place), "{said}");
    }
    for off in [
        "accept.max_connections_per_identity",
        "accept.max_connections_per_network",
        "accept.max_unidentified_per_network",
        "accept.keepalive",
        "accept.user_timeout",
        "tls.max_handshakes_per_network",
        "tls.expiry_grace",
        "relay.idle_timeout",
        "relay.total_timeout",
        "http.min_body_rate",
        "http.stall_timeout",
        "http.max_resets",
        "http.max_control_frames",
        "http.max_age",
        "http.request_timeout",
        "http.keepalive_interval",
    ] {
        let (section, key) = off.split_once('.').unwrap();
        assert_eq!(parse(section, key, "0"), Ok(()), "{off}");
    }
    // What HTTP/2 cannot say.
    assert!(parse("http", "stream_window", "3GiB").unwrap_err().contains("a window of HTTP/2 is from"));
    assert!(parse("http", "connection_window", "60KiB").unwrap_err().contains("a window of HTTP/2 is from 65535"));
    assert!(parse("accept", "network_prefix_v4", "33").unwrap_err().contains("from 1 to 32"));
}

fn isthmus() -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin("isthmus"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ISTHMUS_")) {
        command.env_remove(name);
    }
    // Help wraps at the terminal's width.
    command.env("COLUMNS", "100");
    command
}

#[test]
fn the_help_of_all_doors() {
    let mut all = String::new();
    for door in [&[][..], &["run"], &["demo"], &["certs"], &["config"]] {
        let output = isthmus().args(door).arg("--help").output().unwrap();
        assert!(output.status.success());
        all += &format!("$ isthmus {} --help\n{}\n", door.join(" "), String::from_utf8(output.stdout).unwrap());
    }
    insta::assert_snapshot!(all);
}

/// A folder with a configuration and the certificates that it names.
fn folder(more: &str) -> (tempfile::TempDir, PathBuf) {
    let pki = Pki::get();
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("chain.pem", &pki.gateway.chain);
    write("key.pem", &pki.gateway.key);
    write("bundle.pem", &pki.anchor.cert_pem());
    let text = format!(
        "tls: {{ chain_file: chain.pem, key_file: key.pem, bundle_file: bundle.pem }}\naccept: {{ listen: '127.0.0.1:0' }}\nprobe: {{ listen: '127.0.0.1:0' }}\nadmin: {{ listen: '127.0.0.1:0' }}\n{more}"
    );
    write("isthmus.yaml", &text);
    let path = folder.path().join("isthmus.yaml");
    (folder, path)
}

#[test]
fn exit_codes() {
    isthmus().arg("--version").assert().code(0);
    isthmus().arg("config").arg("reference").assert().code(0);
    isthmus().arg("config").arg("schema").assert().code(0);
    isthmus().assert().code(64);
    isthmus().arg("fly").assert().code(64);
    isthmus().args(["run", "--config"]).assert().code(64);
    let absent = isthmus().args(["run", "--config", "/nonexistent/isthmus.yaml"]).assert().code(64);
    assert!(String::from_utf8_lossy(&absent.get_output().stderr).contains("/nonexistent/isthmus.yaml: cannot be read"));
    let (_held, path) = folder("");
    let fine = isthmus().args(["run", "--check", "--config"]).arg(&path).assert().code(0);
    assert!(String::from_utf8_lossy(&fine.get_output().stdout).contains(GATEWAY));
    let (_held, path) = folder("http: { max_retries: many }\n");
    let bad = isthmus().args(["run", "--check", "--config"]).arg(&path).assert().code(64);
    let said = String::from_utf8_lossy(&bad.get_output().stderr).into_owned();
    assert!(said.contains("isthmus.yaml:5:22: http.max_retries: \"many\": not a whole number"), "{said}");
    let (held, path) = folder("");
    std::fs::write(held.path().join("key.pem"), "nothing").unwrap();
    let bad = isthmus().args(["run", "--check", "--config"]).arg(&path).assert().code(64);
    assert!(String::from_utf8_lossy(&bad.get_output().stderr).contains("key.pem"));
    // What discovery needs: a kubeconfig that is named is read, and a service account is there in a pod only.
    let (_held, path) = folder("sources: { kubernetes: { enabled: true, kubeconfig: nowhere } }\n");
    let bad = isthmus().args(["run", "--check", "--config"]).arg(&path).assert().code(64);
    let said = String::from_utf8_lossy(&bad.get_output().stderr).into_owned();
    assert!(said.contains("nowhere (sources.kubernetes.kubeconfig) cannot be used"), "{said}");
    let (_held, path) = folder("sources: { kubernetes: { enabled: true } }\n");
    isthmus().args(["run", "--check", "--config"]).arg(&path).assert().code(0);
    let outside = isthmus().env_remove("KUBERNETES_SERVICE_HOST").args(["run", "--config"]).arg(&path).assert().code(1);
    let said = String::from_utf8_lossy(&outside.get_output().stderr).into_owned();
    assert!(said.contains("there is no service account to ask the API server with"), "{said}");
    // A port that is taken: it could not start.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (_held, path) = folder("");
    let listen = taken.local_addr().unwrap().to_string();
    let taken = isthmus().args(["run", "--admin-listen", &listen, "--config"]).arg(&path).assert().code(1);
    let said = String::from_utf8_lossy(&taken.get_output().stderr).into_owned();
    assert!(said.contains(&listen) && said.contains("admin.listen"), "{said}");
}

/// A gateway as a process of its own.
struct Process {
    child: tokio::process::Child,
    out: tokio::io::Lines<BufReader<tokio::process::ChildStderr>>,
    _folder: tempfile::TempDir,
}

impl Process {
    async fn start(more: &str) -> (Self, String) {
        let (folder, path) = folder(more);
        let mut child = tokio::process::Command::new(assert_cmd::cargo::cargo_bin("isthmus"))
            .args(["run", "--config"])
            .arg(&path)
            .env("NO_COLOR", "1")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut process = Self { child, out, _folder: folder };
        let serving = process.line("serving").await;
        (process, serving)
    }

    async fn line(&mut self, words: &str) -> String {
        loop {
            let line = soon(self.out.next_line()).await.unwrap().unwrap_or_else(|| panic!("never said {words}"));
            if line.contains(words) {
                return line;
            }
        }
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().unwrap().to_string();
        let sent = std::process::Command::new("kill").args(["-s", name, &id]).status().unwrap();
        assert!(sent.success());
    }
}

fn said(line: &str, key: &str) -> String {
    let at = line.find(&format!("{key}=")).unwrap_or_else(|| panic!("{key} in {line}"));
    line[at + key.len() + 1..].split_whitespace().next().unwrap().trim_matches('"').to_owned()
}

#[tokio::test]
async fn sigterm_drains_and_says_how_it_went() {
    let web = upstream::http().await;
    let services = format!(
        "sources: {{ dns: {{ enabled: false }}, services: [{{ name: web.ns.svc.cluster.local, port: 80, exported: true, endpoints: [{{ address: '{}' }}] }}] }}\nauthorise: {{ default: authenticated }}\ndrain: {{ announce: 300ms, deadline: 5s }}\n",
        web.addr
    );
    let (mut process, serving) = Process::start(&services).await;
    let gateway = said(&serving, "gateway").parse().unwrap();
    let probe: std::net::SocketAddr = said(&serving, "probe").parse().unwrap();
    let bundle = Pki::get().anchor.cert_pem();
    let shop = isthmus_tests::peer::Peer::new(&bundle, Some(&Pki::get().shop), GATEWAY, gateway);
    let mut http = shop.h1().await;
    assert_eq!(http.get("web", "/").await.status(), 200);
    process.signal("TERM");
    process.line("draining: not ready").await;
    let no = isthmus_tests::wire::Http1::new(shop.at(probe).connect(&[]).await).get("x", "/ready").await;
    assert_eq!(no.status(), 503);
    assert_eq!(http.get("web", "/").await.status(), 200, "still served");
    drop(http);
    let summary = process.line("drained").await;
    assert_eq!((said(&summary, "cut"), said(&summary, "connections")), ("0".to_owned(), "1".to_owned()), "{summary}");
    assert_eq!(soon(process.child.wait()).await.unwrap().code(), Some(0));
}

#[tokio::test]
async fn a_second_sigterm_cuts_and_the_exit_code_tells() {
    let db = upstream::echo_tcp().await;
    let services = format!(
        "sources: {{ dns: {{ enabled: false }}, services: [{{ name: db.ns.svc.cluster.local, port: 5432, exported: true, protocol: opaque, endpoints: [{{ address: '{db}' }}] }}] }}\nauthorise: {{ default: authenticated }}\n"
    );
    let (mut process, serving) = Process::start(&services).await;
    let gateway = said(&serving, "gateway").parse().unwrap();
    let bundle = Pki::get().anchor.cert_pem();
    let shop = isthmus_tests::peer::Peer::new(&bundle, Some(&Pki::get().shop), GATEWAY, gateway);
    let mut stream = shop.opaque("db", 5432).await;
    tokio::io::AsyncWriteExt::write_all(&mut stream, b"x").await.unwrap();
    soon(tokio::io::AsyncReadExt::read_u8(&mut stream)).await.unwrap();
    process.signal("TERM");
    process.line("draining: not ready").await;
    process.signal("TERM");
    let summary = process.line("drained").await;
    assert_eq!(said(&summary, "cut"), "1", "{summary}");
    assert_eq!(soon(process.child.wait()).await.unwrap().code(), Some(1));
    tokio::time::sleep(Duration::ZERO).await;
}
