//! A gateway in this process, and everything that can be read off it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use isthmus::app::{Addrs, App, Drained, Sockets, credentials};
use isthmus::config::Config;
use isthmus::tls::{Credentials, File, Pem};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::kubernetes::ApiServer;
use crate::peer::Peer;
use crate::pki::{GATEWAY, Pair, Pki};
use crate::{PATIENCE, soon};

/// A configuration in the making: the defaults of the tests, and what a case sets.
#[derive(Clone, Debug)]
pub struct Setup {
    sections: BTreeMap<String, BTreeMap<String, String>>,
    services: Vec<String>,
    dns: String,
    sources: Vec<String>,
    kubernetes: Option<String>,
    bundle: String,
    gateway: Pair,
    workers: usize,
}

impl Default for Setup {
    fn default() -> Self {
        Self::new()
    }
}

impl Setup {
    /// One worker, nothing slow, everything in the access log, services by table only.
    pub fn new() -> Self {
        let pki = Pki::get();
        let setup = Self {
            sections: BTreeMap::new(),
            services: Vec::new(),
            dns: "{ enabled: false }".to_owned(),
            sources: Vec::new(),
            kubernetes: None,
            bundle: pki.anchor.cert_pem(),
            gateway: pki.gateway.clone(),
            workers: 1,
        };
        setup
            .set("accept", "listen", "'127.0.0.1:0'")
            .set("probe", "listen", "'127.0.0.1:0'")
            .set("admin", "listen", "'127.0.0.1:0'")
            .set("tls", "chain_file", "in-memory")
            .set("tls", "key_file", "in-memory")
            .set("tls", "bundle_file", "in-memory")
            .set("authorise", "default", "authenticated")
            .set("authorise", "exported_only", "false")
            .set("route", "discovery_timeout", "300ms")
            .set("balance", "failfast_timeout", "300ms")
            .set("telemetry", "access_log", "all")
            .set("telemetry", "access_log_file", "access.log")
            .set("drain", "announce", "0")
    }

    /// Sets a key below a section.
    pub fn set(mut self, section: &str, key: &str, value: &str) -> Self {
        self.sections.entry(section.to_owned()).or_default().insert(key.to_owned(), value.to_owned());
        self
    }

    /// Takes a key out again.
    pub fn unset(mut self, section: &str, key: &str) -> Self {
        self.sections.entry(section.to_owned()).or_default().remove(key);
        self
    }

    /// A source besides the table: a line below `sources`.
    pub fn source(mut self, line: impl Into<String>) -> Self {
        self.sources.push(line.into());
        self
    }

    /// A service `NAME.ns.svc.cluster.local` and its endpoints.
    pub fn service(self, name: &str, port: u16, protocol: &str, endpoints: &[SocketAddr]) -> Self {
        self.service_with(name, port, protocol, endpoints, "")
    }

    /// The same with more keys, which begin with a comma.
    pub fn service_with(mut self, name: &str, port: u16, protocol: &str, endpoints: &[SocketAddr], more: &str) -> Self {
        let mut rows = String::new();
        for addr in endpoints {
            let _ = write!(rows, "{{ address: '{addr}' }},");
        }
        let name = service(name);
        self.services.push(format!(
            "{{ name: {name}, port: {port}, exported: true, protocol: {protocol}, endpoints: [{rows}]{more} }}"
        ));
        self
    }

    /// Cluster DNS by a server that never answers: what is not in the table stays under discovery.
    pub fn silent_dns(mut self, server: SocketAddr) -> Self {
        self.dns = format!("{{ enabled: true, servers: ['{server}'], timeout: 60s }}");
        self
    }

    /// Services from an API server too; more keys begin with a comma.
    pub fn kubernetes(mut self, server: &ApiServer, more: &str) -> Self {
        let kubeconfig = server.kubeconfig();
        self.kubernetes = Some(format!(
            "{{ enabled: true, kubeconfig: '{}', allow_local: true, backoff_min: 50ms, backoff_max: 200ms{more} }}",
            kubeconfig.display()
        ));
        self
    }

    /// More than one worker.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// Another trust bundle.
    pub fn bundle(mut self, pem: String) -> Self {
        self.bundle = pem;
        self
    }

    /// Other credentials of the gateway's own.
    pub fn gateway(mut self, pair: Pair) -> Self {
        self.gateway = pair;
        self
    }

    /// The configuration as text.
    pub fn yaml(&self) -> String {
        let mut text = format!("workers: {}\n", self.workers);
        for (section, keys) in self.sections.iter().filter(|(section, _)| *section != "sources") {
            let _ = writeln!(text, "{section}:");
            for (key, value) in keys {
                let _ = writeln!(text, "  {key}: {value}");
            }
        }
        let _ = writeln!(text, "sources:\n  dns: {}", self.dns);
        for (key, value) in self.sections.get("sources").into_iter().flatten() {
            let _ = writeln!(text, "  {key}: {value}");
        }
        for line in &self.sources {
            let _ = writeln!(text, "  {line}");
        }
        if let Some(kubernetes) = &self.kubernetes {
            let _ = writeln!(text, "  kubernetes: {kubernetes}");
        }
        text.push_str("  services:\n");
        for row in &self.services {
            let _ = writeln!(text, "    - {row}");
        }
        if self.services.is_empty() {
            text.push_str("    []\n");
        }
        text
    }

    /// Starts the gateway as `isthmus run` does, with credentials and policy from where the configuration says.
    pub async fn launch(self) -> World {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::parse(&folder.path().join("isthmus.yaml"), &self.yaml()).unwrap();
        let (credentials, keeper) = credentials::prepare(&config).unwrap();
        let sockets = Sockets::bind(&config).unwrap();
        let mut app = App::start(&config, credentials, sockets, None).await.unwrap();
        app.keep_credentials(keeper, &config).unwrap();
        app.follow_policy(&config).unwrap();
        let log = folder.path().join("access.log");
        World { addrs: app.addrs, app: Some(app), config, log, folder }
    }

    /// Starts the gateway with credentials from memory.
    pub async fn start(self) -> World {
        self.start_observed(Arc::new(|_, own| own)).await
    }

    /// Starts the gateway with something around its observers.
    pub async fn start_observed(self, observe: isthmus::app::Observe) -> World {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::parse(&folder.path().join("isthmus.yaml"), &self.yaml()).unwrap();
        let pem = Pem {
            chain: File::new("gateway.crt", self.gateway.chain.as_bytes()),
            key: File::new("gateway.key", self.gateway.key.as_bytes()),
            bundle: File::new("bundle.crt", self.bundle.as_bytes()),
            crls: Vec::new(),
        };
        let credentials = Credentials::from_pem(&pem, &config.credentials()).unwrap();
        let sockets = Sockets::bind(&config).unwrap();
        let mut app = App::start_observed(&config, credentials, sockets, None, observe).await.unwrap();
        app.follow_policy(&config).unwrap();
        let log = folder.path().join("access.log");
        World { addrs: app.addrs, app: Some(app), config, log, folder }
    }
}

/// The full name of a service of these tests.
pub fn service(name: &str) -> String {
    if name.contains('.') { name.to_owned() } else { format!("{name}.ns.svc.cluster.local") }
}

/// A running gateway.
#[derive(Debug)]
pub struct World {
    /// Where it listens.
    pub addrs: Addrs,
    /// Its configuration.
    pub config: Config,
    app: Option<App>,
    log: PathBuf,
    folder: tempfile::TempDir,
}

impl World {
    /// The process's handle.
    pub fn app(&self) -> &App {
        self.app.as_ref().unwrap()
    }

    /// The folder of its files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The usual client.
    pub fn shop(&self) -> Peer {
        self.peer(Some(&Pki::get().shop))
    }

    /// A client with this chain, or none.
    pub fn peer(&self, pair: Option<&Pair>) -> Peer {
        Peer::new(&Pki::get().anchor.cert_pem(), pair, GATEWAY, self.addrs.gateway)
    }

    /// A GET on the admin port: status and body.
    pub async fn admin(&self, path: &str) -> (u16, String) {
        soon(get(self.addrs.admin, path)).await
    }

    /// `/state`.
    pub async fn state(&self) -> Value {
        serde_json::from_str(&self.admin("/state").await.1).unwrap()
    }

    /// The sum of a metric's series that have these labels.
    pub async fn count(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let (_, page) = self.admin("/metrics").await;
        sum(&page, name, labels)
    }

    /// Waits until a metric's series add up to this.
    #[track_caller]
    pub fn counted<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
        value: f64,
    ) -> impl Future<Output = ()> + 'a {
        let place = std::panic::Location::caller();
        async move {
            let mut last = f64::NAN;
            let look = async {
                loop {
                    last = self.count(name, labels).await;
                    if (last - value).abs() < 0.5 {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            if tokio::time::timeout(PATIENCE / 2, look).await.is_err() {
                panic!("{name}{labels:?} is {last}, not {value}: {place}");
            }
        }
    }

    /// The lines of the access log so far.
    pub fn lines(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        text[..whole]
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
            .collect()
    }

    /// Waits for a line of the access log.
    #[track_caller]
    pub fn logged(&self, wanted: impl Fn(&Value) -> bool) -> impl Future<Output = Value> {
        let place = std::panic::Location::caller();
        async move {
            let look = async {
                loop {
                    if let Some(line) = self.lines().into_iter().find(&wanted) {
                        return line;
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            match tokio::time::timeout(PATIENCE / 2, look).await {
                Ok(line) => line,
                Err(_) => {
                    let lines: String = self.lines().iter().map(|line| format!("{line}\n")).collect();
                    panic!("no such line in the access log: {place}\n{lines}")
                }
            }
        }
    }

    /// Waits for a refusal in the metric and in the access log, and gives the line.
    #[track_caller]
    pub fn refused<'a>(&'a self, code: &'a str) -> impl Future<Output = Value> + 'a {
        let logged = self.logged(move |line| line["code"] == code);
        async move {
            let line = logged.await;
            let stage = code.split('.').next().unwrap();
            assert_eq!(line["stage"], stage, "{line}");
            assert_eq!(line["outcome"], "refused", "{line}");
            let fault = line["fault"].as_str().unwrap();
            let labels = [("stage", stage), ("code", code), ("fault", fault)];
            // The log is written by a thread of its own: neither of the two is always the first.
            let same = async {
                loop {
                    let lines = self.lines().iter().filter(|line| line["code"] == code).count();
                    if self.count("isthmus_refusals_total", &labels).await >= lines as f64 {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            let same = tokio::time::timeout(PATIENCE / 2, same).await;
            assert!(same.is_ok(), "{code}: fewer in the metric than in the log");
            line
        }
    }

    /// Drains it at once and says how that went.
    pub async fn drain(mut self, announce: Duration, deadline: Duration) -> Drained {
        let app = self.app.take().unwrap();
        app.drain(announce, deadline, std::future::pending()).await
    }

    /// Takes the process out, for a drain beside what the case goes on doing.
    pub fn take(&mut self) -> App {
        self.app.take().unwrap()
    }
}

/// A plain GET: status and body.
pub async fn get(addr: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text).await;
    let text = String::from_utf8_lossy(&text).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    let body = if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        unchunked(body)
    } else {
        body.to_owned()
    };
    (status, body)
}

fn unchunked(mut body: &str) -> String {
    let mut out = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap_or(0);
        if size == 0 {
            break;
        }
        out.push_str(&rest[..size]);
        body = &rest[size + 2..];
    }
    out
}

/// Adds up the series of a metric that carry these labels.
pub fn sum(page: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    let mut sum = 0.0;
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let Some((series, value)) = line.rsplit_once(' ') else { continue };
        let (found, rest) = series.split_once('{').unwrap_or((series, ""));
        let all = labels.iter().all(|(label, value)| rest.contains(&format!("{label}=\"{value}\"")));
        if found == name && all {
            sum += value.parse::<f64>().unwrap_or(0.0);
        }
    }
    sum
}

/// A number shared with a service behind the gateway.
pub type Shared<T> = Arc<parking_lot::Mutex<T>>;
