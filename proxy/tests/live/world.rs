//! Clusters, each with a gateway in this process, its certificates in a mounted folder, and services behind it.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use isthmus::app::{App, Sockets};
use isthmus::commands::demo::east;
use isthmus::config::Config;
use isthmus::identity::Identity;
use isthmus::sources::files;
use isthmus::tls::mint::{self, Authority, Leaf, Usage, Validity};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::mount::Mount;

pub(crate) const DAY: Duration = Duration::from_secs(86_400);

pub(crate) fn anchor(name: &str) -> Authority {
    mint::anchor(name, Validity::from_now(SystemTime::now(), DAY * 3650)).unwrap()
}

/// Every cluster's issuer has the same name, as Linkerd's have.
pub(crate) fn issuer(anchor: &Authority) -> Authority {
    mint::issuer(anchor, "identity.linkerd.cluster.local", Validity::from_now(SystemTime::now(), DAY * 365), 0).unwrap()
}

/// A chain and its key.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    pub(crate) leaf: Leaf,
    pub(crate) chain: String,
}

impl Pair {
    pub(crate) fn key(&self) -> &str {
        &self.leaf.key_pem
    }
}

pub(crate) fn pair(issuer: &Authority, identity: &Identity, lives: Duration) -> Pair {
    let validity = Validity::from_now(SystemTime::now(), lives);
    let leaf = mint::leaf(issuer, std::slice::from_ref(identity), validity, Usage::Both).unwrap();
    let chain = leaf.cert_pem() + &issuer.cert_pem();
    Pair { leaf, chain }
}

pub(crate) fn gateway_of(cluster: &str) -> Identity {
    Identity::parse(&format!("gateway.{cluster}.serviceaccount.identity.linkerd.cluster.local")).unwrap()
}

pub(crate) fn workload_of(cluster: &str) -> Identity {
    Identity::parse(&format!("shop.{cluster}.serviceaccount.identity.linkerd.cluster.local")).unwrap()
}

/// A running gateway.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) identity: Identity,
    pub(crate) app: App,
    pub(crate) mount: Mount,
}

/// What stands in the mount.
pub(crate) fn files<'a>(pair: &'a Pair, bundle: &'a str, crl: Option<&'a str>) -> Vec<(&'static str, &'a str)> {
    let mut files = vec![("tls.crt", pair.chain.as_str()), ("tls.key", pair.key()), ("ca.crt", bundle)];
    files.extend(crl.map(|crl| ("ca.crl", crl)));
    files
}

impl Cluster {
    /// Starts a gateway. `settings` are further lines of `tls:`, `services` rows of the table.
    pub(crate) async fn start(name: &str, mount: Mount, settings: &str, services: &str) -> Self {
        isthmus::tls::install();
        let folder = mount.path().display();
        let yaml = format!(
            "
workers: 2
accept: {{ listen: '127.0.0.1:0' }}
probe: {{ listen: '127.0.0.1:0' }}
admin: {{ listen: '127.0.0.1:0' }}
tls:
  chain_file: {folder}/tls.crt
  key_file: {folder}/tls.key
  bundle_file: {folder}/ca.crt
  {settings}
telemetry: {{ access_log: off }}
authorise: {{ default: authenticated }}
connect: {{ deny_loopback: false }}
sources:
  dns: {{ enabled: false }}
  services:
{services}
"
        );
        let config = Config::parse(Path::new("/test.yaml"), &yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"));
        let recipe = config.credential_files();
        let (credentials, read) = files::load(&recipe).unwrap();
        let sockets = Sockets::bind(&config).unwrap();
        let mut app = App::start(&config, credentials, sockets, None).await.unwrap();
        app.watch_credentials(recipe, Some(read.digest), config.files());
        Self { identity: gateway_of(name), app, mount }
    }

    /// Swaps the mount and waits until the gateway has taken it.
    pub(crate) async fn swap(&self, files: &[(&str, &str)]) {
        let before = self.app.credentials.version();
        self.mount.publish(files);
        eventually("the mount is taken", || self.app.credentials.version() > before).await;
    }

    pub(crate) async fn state(&self) -> Value {
        serde_json::from_str(&get(self.app.addrs.admin, "/state").await).unwrap()
    }

    /// The value of a metric, summed over the series that contain `labels`.
    pub(crate) async fn metric(&self, name: &str, labels: &str) -> f64 {
        let page = get(self.app.addrs.admin, "/metrics").await;
        let lines = page.lines().filter(|line| line.starts_with(name) && line.contains(labels));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }
}

/// A row of the table: an HTTP service, plain.
pub(crate) async fn web(name: &str) -> String {
    let addr = east::http_service().await.unwrap();
    format!(
        "    - {{ name: {name}.demo.svc.cluster.local, port: 80, exported: true, endpoints: [{{ address: '{addr}' }}] }}\n"
    )
}

/// A row of the table: bytes that come back.
pub(crate) async fn echo() -> String {
    let addr = east::tcp_echo().await.unwrap();
    format!(
        "    - {{ name: echo.demo.svc.cluster.local, port: 9000, exported: true, protocol: opaque, endpoints: [{{ address: '{addr}' }}] }}\n"
    )
}

/// A row of the table: an endpoint that is another gateway, over mutual TLS.
pub(crate) fn behind(name: &str, protocol: &str, gateway: &Cluster) -> String {
    let (addr, identity) = (gateway.app.addrs.gateway, &gateway.identity);
    format!(
        "    - {{ name: {name}.demo.svc.cluster.local, port: 80, exported: true, protocol: {protocol}, tls: {{ identity: {identity} }}, \
         endpoints: [{{ address: '{addr}' }}] }}\n"
    )
}

async fn get(addr: SocketAddr, path: &str) -> String {
    let mut socket = TcpStream::connect(addr).await.unwrap();
    socket.write_all(format!("GET {path} HTTP/1.0\r\nhost: localhost\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// Waits for something that is about to happen elsewhere.
pub(crate) async fn eventually(what: &str, is: impl Fn() -> bool) {
    for _ in 0..1000 {
        if is() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}
