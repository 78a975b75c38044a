//! The site: certificates in a mounted folder, services good and bad, and gateways as processes.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use isthmus::tls::caller::Caller;
use isthmus_tests::pki::{GATEWAY, Pki, pair};
use isthmus_tests::{spawn, upstream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::measure::Row;

/// What everything is made of.
pub(crate) struct Site {
    isthmus: PathBuf,
    folder: tempfile::TempDir,
    services: String,
    rotations: AtomicU32,
}

impl Site {
    pub(crate) async fn build(isthmus: PathBuf) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (upstream::http().await, upstream::http().await);
        let echo = upstream::echo_tcp().await;
        let (bad, fickle) = (bad().await, fickle());
        let mut services = String::new();
        for (name, port, protocol, endpoints) in [
            ("web", 80, "as_client", vec![one.addr, two.addr]),
            ("db", 5432, "opaque", vec![echo]),
            ("flaky", 80, "http1", vec![bad, one.addr]),
            ("fickle", 80, "http1", vec![fickle]),
        ] {
            let rows: String = endpoints.iter().map(|addr| format!("{{ address: '{addr}' }}, ")).collect();
            let _ = writeln!(
                services,
                "    - {{ name: {name}.ns.svc.cluster.local, port: {port}, exported: true, protocol: {protocol}, endpoints: [{rows}] }}"
            );
        }
        let site = Self { isthmus, folder, services, rotations: AtomicU32::new(0) };
        site.rotate();
        site
    }

    /// A new leaf of the gateway, and every second time another anchor beside the first, swapped in as kubelet does.
    pub(crate) fn rotate(&self) {
        let pki = Pki::get();
        let leaf = pair(&pki.east, &[GATEWAY]);
        let count = self.rotations.fetch_add(1, Ordering::SeqCst);
        let mut bundle = pki.anchor.cert_pem();
        if count % 2 == 1 {
            bundle.push_str(&pki.next.cert_pem());
        }
        let (mount, fresh) = (self.folder.path(), self.folder.path().join(format!("..{count}")));
        std::fs::create_dir(&fresh).unwrap();
        for (name, text) in [("tls.crt", &leaf.chain), ("tls.key", &leaf.key), ("ca.crt", &bundle)] {
            std::fs::write(fresh.join(name), text).unwrap();
            if count == 0 {
                std::os::unix::fs::symlink(format!("..data/{name}"), mount.join(name)).unwrap();
            }
        }
        std::os::unix::fs::symlink(format!("..{count}"), mount.join("..next")).unwrap();
        std::fs::rename(mount.join("..next"), mount.join("..data")).unwrap();
        if count > 1 {
            let _ = std::fs::remove_dir_all(mount.join(format!("..{}", count - 2)));
        }
    }

    /// A client of the other cluster.
    pub(crate) fn caller(&self) -> Caller {
        let pki = Pki::get();
        let expected = isthmus::identity::Identity::parse(GATEWAY).unwrap();
        let shown = Some((pki.shop.chain.as_bytes(), pki.shop.key.as_bytes()));
        Caller::new(pki.anchor.cert_pem().as_bytes(), shown, &expected).unwrap()
    }

    fn configure(&self, name: &str, addrs: [SocketAddr; 3]) -> PathBuf {
        let (folder, services) = (self.folder.path().display(), &self.services);
        let [gateway, probe, admin] = addrs;
        let text = format!(
            "
workers: 2
accept: {{ listen: '{gateway}' }}
probe: {{ listen: '{probe}' }}
admin: {{ listen: '{admin}' }}
tls:
  chain_file: {folder}/tls.crt
  key_file: {folder}/tls.key
  bundle_file: {folder}/ca.crt
  reload_interval: 2s
authorise: {{ default: authenticated, exported_only: false }}
http: {{ request_timeout: 2s }}
balance: {{ failfast_timeout: 300ms, ejection_max: 2s }}
telemetry: {{ log: error, access_log: all, access_log_file: {folder}/{name}.log }}
drain: {{ announce: 500ms, deadline: 20s }}
sources:
  dns: {{ enabled: false }}
  services:
{services}"
        );
        let path = self.folder.path().join(format!("{name}.yaml"));
        std::fs::write(&path, text).unwrap();
        path
    }

    /// The access log is moved away with each reload, as rotation does, and the old one thrown away.
    pub(crate) fn turn_log(&self, name: &str) {
        let log = self.folder.path().join(format!("{name}.log"));
        let _ = std::fs::rename(&log, log.with_extension("old"));
    }
}

/// Does something else wrong with each connection.
async fn bad() -> SocketAddr {
    upstream::tcp(|mut socket, count| async move {
        let _ = tokio::time::timeout(Duration::from_secs(5), upstream::read_head(&mut socket)).await;
        let words: &[u8] = match count % 7 {
            // Closed without a word, then reset.
            0 => return,
            1 => {
                let _ = socket.set_zero_linger();
                return;
            }
            2 => b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\ntruncated",
            3 => b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nmore than it said",
            4 => b"not HTTP at all\r\n\r\n",
            5 => b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n",
            _ => {
                // Slow beyond the gateway's patience.
                tokio::time::sleep(Duration::from_secs(3)).await;
                return;
            }
        };
        let _ = socket.write_all(words).await;
        let _ = socket.shutdown().await;
    })
    .await
}

/// A service that dies and comes back.
fn fickle() -> SocketAddr {
    let addr = upstream::nobody();
    drop(spawn(async move {
        loop {
            let service = upstream::http_at(addr).await;
            tokio::time::sleep(Duration::from_secs(4)).await;
            service.stop();
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    }));
    addr
}

/// A gateway that is a process.
pub(crate) struct Gateway {
    pub(crate) gateway: SocketAddr,
    probe: SocketAddr,
    admin: SocketAddr,
    name: &'static str,
    child: Child,
    site: std::sync::Arc<Site>,
}

impl Gateway {
    pub(crate) async fn start(site: &std::sync::Arc<Site>, name: &'static str) -> Self {
        Self::start_at(site, name, None).await
    }

    pub(crate) async fn start_at(
        site: &std::sync::Arc<Site>,
        name: &'static str,
        addrs: Option<[SocketAddr; 3]>,
    ) -> Self {
        let addrs = addrs.unwrap_or_else(free);
        let config = site.configure(name, addrs);
        let child = Command::new(&site.isthmus)
            .args([Path::new("run"), Path::new("--config"), &config])
            .stdin(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", site.isthmus.display()));
        let [gateway, probe, admin] = addrs;
        let started = Self { gateway, probe, admin, name, child, site: std::sync::Arc::clone(site) };
        let begun = Instant::now();
        while !started.get("/ready").await.starts_with("HTTP/1.1 200") {
            assert!(begun.elapsed() < Duration::from_secs(20), "the gateway does not start");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        started
    }

    pub(crate) fn addrs(&self) -> [SocketAddr; 3] {
        [self.gateway, self.probe, self.admin]
    }

    async fn get(&self, path: &str) -> String {
        let mut text = String::new();
        if let Ok(mut socket) = TcpStream::connect(self.admin).await {
            let request = format!("GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n");
            let _ = socket.write_all(request.as_bytes()).await;
            let _ = socket.read_to_string(&mut text).await;
        }
        text
    }

    pub(crate) async fn row(&self) -> Row {
        Row::read(&self.get("/metrics").await)
    }

    /// The last look: waits until the clients' connections are gone and idle ones to services have been closed.
    pub(crate) async fn settled(&self, before: &Row) -> Row {
        let begun = Instant::now();
        loop {
            let row = self.row().await;
            let quiet = row.connections <= before.connections && row.requests <= before.requests;
            if (quiet && begun.elapsed() > Duration::from_secs(6)) || begun.elapsed() > Duration::from_secs(30) {
                return row;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    pub(crate) fn signal(&self, signal: &str) {
        if signal == "HUP" {
            self.site.turn_log(self.name);
        }
        let sent = Command::new("kill").args([&format!("-{signal}"), &self.child.id().to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "kill");
    }

    /// SIGTERM, and the wait for an end in good order.
    pub(crate) async fn drain(mut self) -> Result<(), String> {
        self.signal("TERM");
        let begun = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => {
                    return Err(format!("the {} gateway ended with {status}: it cut connections", self.name));
                }
                Ok(None) if begun.elapsed() < Duration::from_secs(30) => {}
                _ => return Err(format!("the {} gateway does not end", self.name)),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ports that nobody has. They are needed by name, as the second gateway's successor takes its place.
fn free() -> [SocketAddr; 3] {
    let sockets = [(); 3].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    sockets.map(|socket| socket.local_addr().unwrap())
}
