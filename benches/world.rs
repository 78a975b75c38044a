//! A gateway in this process with everything on, and its two sides in a child.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, SystemTime};

use isthmus::app::{App, Sockets};
use isthmus::config::Config;
use isthmus::identity::Identity;
use isthmus::tls::mint::{self, Usage, Validity};
use isthmus::tls::{Credentials, File, Pem};
use tokio::runtime::Runtime;

use crate::sides::{ROLE, Row};

/// The gateway's name.
pub const GATEWAY: &str = "gw.isthmus.serviceaccount.identity.linkerd.cluster.local";

const CLIENT: &str = "web.shop.serviceaccount.identity.linkerd.cluster.local";

const YEAR: Duration = Duration::from_secs(365 * 86_400);

/// A gateway under load.
#[derive(Debug)]
pub struct World {
    child: Child,
    tell: ChildStdin,
    told: BufReader<ChildStdout>,
    _app: App,
    _runtime: Runtime,
    _folder: tempfile::TempDir,
}

impl World {
    /// Starts a gateway of one worker, its services and its clients, and waits until all are connected.
    pub fn start(row: Row) -> Self {
        isthmus::tls::install();
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .env(ROLE, row.name())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut tell, mut told) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let services = read(&mut told);
        let config = Config::parse(&folder.path().join("isthmus.yaml"), &config(row, &services)).unwrap();

        let years = Validity::from_now(SystemTime::now(), YEAR);
        let anchor = mint::anchor("root.linkerd.cluster.local", years).unwrap();
        let issuer = mint::issuer(&anchor, "identity.linkerd.cluster.local", years, 0).unwrap();
        let leaf = |name: &str| {
            let leaf = mint::leaf(&issuer, &[Identity::parse(name).unwrap()], years, Usage::Both).unwrap();
            (leaf.cert_pem() + &issuer.cert_pem(), leaf.key_pem)
        };
        let ((chain, key), (client_chain, client_key)) = (leaf(GATEWAY), leaf(CLIENT));
        for (name, text) in
            [("bundle.crt", anchor.cert_pem()), ("client.crt", client_chain), ("client.key", client_key)]
        {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let pem = Pem {
            chain: File::new("gateway.crt", chain.as_bytes()),
            key: File::new("gateway.key", key.as_bytes()),
            bundle: File::new("bundle.crt", anchor.cert_pem().as_bytes()),
            crls: Vec::new(),
        };
        let credentials = Credentials::from_pem(&pem, &config.credentials()).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let app = runtime.block_on(async {
            let sockets = Sockets::bind(&config).unwrap();
            App::start(&config, credentials, sockets, None).await.unwrap()
        });
        writeln!(tell, "{}\n{}", app.addrs.gateway, folder.path().display()).unwrap();
        assert_eq!(read(&mut told), "ready");
        Self { child, tell, told, _app: app, _runtime: runtime, _folder: folder }
    }

    /// Sends so many requests through the gateway and waits for their answers.
    pub fn requests(&mut self, requests: usize) {
        writeln!(self.tell, "go {requests}").unwrap();
        assert_eq!(read(&mut self.told), "done");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read(told: &mut BufReader<ChildStdout>) -> String {
    let mut line = String::new();
    told.read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

/// The time that the gateway's worker has run, by the kernel's own account.
pub fn worker_time() -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
    let name = |task: &std::path::Path| std::fs::read_to_string(task.join("comm")).unwrap_or_default();
    let workers = tasks.filter(|task| name(task).starts_with("worker-"));
    let nanos = |task: std::path::PathBuf| {
        let text = std::fs::read_to_string(task.join("schedstat")).unwrap();
        text.split(' ').next().unwrap().parse::<u64>().unwrap()
    };
    Duration::from_nanos(workers.map(nanos).sum())
}

/// Fifty services of three endpoints, a hundred rules in force, limits with room to spare, metrics as always.
fn config(row: Row, services: &str) -> String {
    let mut endpoints = String::new();
    for addr in services.split(' ') {
        let _ = write!(endpoints, "{{ address: '{addr}' }}, ");
    }
    let mut text = String::from(
        "workers: 1
accept: { listen: '127.0.0.1:0' }
probe: { listen: '127.0.0.1:0' }
admin: { listen: '127.0.0.1:0' }
tls: { chain_file: memory, key_file: memory, bundle_file: memory }
authorise:
  limits_per_client: { requests_per_second: 100000000 }
  rules:
",
    );
    let shop = ["api", "legacy", "web"].map(|name| format!("{name}.shop"));
    let names: Vec<String> = shop.into_iter().chain((0..47).map(|at| format!("s{at}.prod"))).collect();
    for (at, name) in names.iter().enumerate() {
        let _ = writeln!(
            text,
            "    - {{ name: rule-{at}, clients: ['*.shop.serviceaccount.identity.linkerd.cluster.local'], \
             services: ['{name}.svc.cluster.local'], http: {{ methods: [GET, POST] }}, action: allow }}
    - {{ name: no-{at}, services: ['{name}.svc.cluster.local'], http: {{ paths: ['/admin/*'] }}, action: deny }}"
        );
    }
    text.push_str("sources:\n  dns: { enabled: false }\n  services:\n");
    for name in &names {
        let protocol = if name == "legacy.shop" { "http1" } else { "as_client" };
        let _ = writeln!(
            text,
            "    - {{ name: {name}.svc.cluster.local, port: 80, exported: true, protocol: {protocol}, endpoints: [{endpoints}] }}"
        );
    }
    let _ = row;
    text
}
