//! What a hostile client may try on a running gateway: certificates, a gateway and its services in this process, real sockets.

#![expect(clippy::unwrap_used, reason = "what cannot be set up fails the test")]

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use isthmus::app::{App, Sockets};
use isthmus::commands::demo::pem;
use isthmus::commands::demo::pki::Pki;
use isthmus::config::Config;
use isthmus::identity::Identity;
use isthmus::tls::caller::Caller;
use isthmus::tls::{self, ALPN_HTTP11, ClientStream, Credentials};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(5);

/// A service that tells what it received, and answers every read that ends a request.
async fn service() -> (SocketAddr, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (told, received) = mpsc::unbounded_channel();
    drop(Handle::current().spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let told = told.clone();
            drop(Handle::current().spawn(async move {
                let (mut all, mut some) = (String::new(), [0; 4096]);
                while let Ok(len @ 1..) = socket.read(&mut some).await {
                    all.push_str(&String::from_utf8_lossy(&some[..len]));
                    let chunked = all.contains("transfer-encoding: chunked");
                    if all.starts_with("GET /huge ") && all.ends_with("\r\n\r\n") {
                        return huge(socket, &told).await;
                    }
                    if all.ends_with(if chunked { "0\r\n\r\n" } else { "\r\n\r\n" }) {
                        let _ = told.send(std::mem::take(&mut all));
                        let _ = socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
                    }
                }
            }));
        }
    }));
    (addr, received)
}

/// Sends a body for as long as somebody takes it, and tells how much that was.
async fn huge(mut socket: TcpStream, told: &mpsc::UnboundedSender<String>) {
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {HUGE}\r\n\r\n");
    socket.write_all(head.as_bytes()).await.unwrap();
    let (mut sent, piece) = (0, vec![b'x'; 64 << 10]);
    while sent < HUGE {
        match timeout(Duration::from_secs(1), socket.write(&piece)).await {
            Ok(Ok(len)) => sent += len,
            _ => break,
        }
    }
    let _ = told.send(sent.to_string());
}

const HUGE: usize = 256 << 20;

const ALL: &str = "    - { name: all, action: allow }";

struct World {
    _app: App,
    addr: SocketAddr,
    pki: Pki,
    received: mpsc::UnboundedReceiver<String>,
}

impl World {
    /// A gateway in front of `web.demo.svc.cluster.local:80`, with these rules.
    async fn new(rules: &str) -> Self {
        tls::install();
        let (web, received) = service().await;
        let yaml = format!(
            r"
accept: {{ listen: '127.0.0.1:0' }}
probe: {{ listen: '127.0.0.1:0' }}
admin: {{ listen: '127.0.0.1:0' }}
tls: {{ chain_file: in-memory, key_file: in-memory, bundle_file: in-memory }}
connect: {{ deny_loopback: false }}
authorise:
  rules:
{rules}
sources:
  dns: {{ enabled: false }}
  services:
    - {{ name: web.demo.svc.cluster.local, port: 80, exported: true, endpoints: [{{ address: '{web}' }}] }}
"
        );
        let config = Config::parse(Path::new("hostile.yaml"), &yaml).unwrap();
        let pki = Pki::new().unwrap();
        let credentials = Credentials::from_pem(&pem(&pki), &config.credentials()).unwrap();
        let app = App::start(&config, credentials, Sockets::bind(&config).unwrap(), None).await.unwrap();
        Self { addr: app.addrs.gateway, _app: app, pki, received }
    }

    /// Sends `bytes` in pieces over HTTP/1 and gives what came back until a moment's silence or the end.
    async fn say(&self, pieces: &[&str]) -> String {
        let mut stream = self.connect().await;
        let mut all = Vec::new();
        for piece in pieces {
            stream.write_all(piece.as_bytes()).await.unwrap();
            let mut some = [0; 4096];
            while let Ok(Ok(len @ 1..)) = timeout(Duration::from_millis(500), stream.read(&mut some)).await {
                all.extend_from_slice(&some[..len]);
            }
        }
        String::from_utf8_lossy(&all).into_owned()
    }

    async fn connect(&self) -> ClientStream<TcpStream> {
        let pair = Some((self.pki.client.chain.as_bytes(), self.pki.client.key.as_bytes()));
        let caller = Caller::new(self.pki.bundle.as_bytes(), pair, &self.pki.gateway_identity).unwrap();
        let Identity::Dns(name) = self.pki.gateway_identity.clone() else { panic!("a DNS-like identity") };
        let socket = TcpStream::connect(self.addr).await.unwrap();
        caller.connect(socket, &name, &[ALPN_HTTP11]).await.unwrap().stream
    }

    async fn received(&mut self) -> String {
        timeout(PATIENCE, self.received.recv()).await.expect("the service was asked").expect("the service lives")
    }
}

#[tokio::test]
async fn an_upgrade_that_is_not_granted_leaves_the_guard_in_place() {
    let world = World::new(ALL).await;
    let first = "GET /a HTTP/1.1\r\nhost: web.demo.svc.cluster.local\r\nupgrade: anything\r\n\r\n";
    // Bare line feeds, which hyper takes and the guard does not.
    let second = "GET /b HTTP/1.1\nhost: web.demo.svc.cluster.local\n\n";
    let answers = world.say(&[first, second]).await;
    assert_eq!(answers.matches("HTTP/1.1 200").count(), 1, "{answers}");
    // A second that is well-formed is served.
    let well_formed = second.replace('\n', "\r\n");
    let answers = world.say(&[first, &well_formed]).await;
    assert_eq!(answers.matches("HTTP/1.1 200").count(), 2, "{answers}");
    // Sent at once, the second is not looked at, and so not served.
    let answers = world.say(&[&format!("{first}{second}")]).await;
    assert_eq!(answers.matches("HTTP/1.1 200").count(), 1, "{answers}");
}

#[tokio::test]
async fn connect_does_not_lead_around_a_deny_rule() {
    let world =
        World::new(&format!("{ALL}\n    - {{ name: no-deletes, http: {{ methods: [DELETE] }}, action: deny }}")).await;
    let answers = world
        .say(&["CONNECT web.demo.svc.cluster.local:80 HTTP/1.1\r\nhost: web.demo.svc.cluster.local:80\r\n\r\n"])
        .await;
    assert!(answers.starts_with("HTTP/1.1 403"), "{answers}");
}

#[tokio::test]
async fn a_field_that_the_endpoint_will_not_see_decides_nothing() {
    let rule = "    - { name: readers, http: { headers: { x-mode: [read] } }, action: allow }";
    let mut world = World::new(rule).await;
    let fields = "host: web.demo.svc.cluster.local\r\nx-mode: read\r\nl5d_client_id: root\r\n";
    let answers = world.say(&[&format!("GET /a HTTP/1.1\r\n{fields}connection: x-mode\r\n\r\n")]).await;
    assert!(answers.starts_with("HTTP/1.1 403"), "{answers}");
    let answers = world.say(&[&format!("GET /a HTTP/1.1\r\n{fields}\r\n")]).await;
    assert!(answers.starts_with("HTTP/1.1 200"), "{answers}");
    let seen = world.received().await;
    assert!(seen.contains("x-mode: read") && !seen.contains("root"), "{seen}");
}

#[tokio::test]
async fn the_body_of_a_get_is_not_lost() {
    let mut world = World::new(ALL).await;
    let answers = world
        .say(&["GET /a HTTP/1.1\r\nhost: web.demo.svc.cluster.local\r\ntransfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"])
        .await;
    assert!(answers.starts_with("HTTP/1.1 200"), "{answers}");
    assert!(world.received().await.contains("4\r\nbody\r\n"));
}

#[tokio::test]
async fn a_client_that_does_not_read_is_not_buffered_for() {
    let mut world = World::new(ALL).await;
    let mut stream = world.connect().await;
    let request = "GET /huge HTTP/1.1\r\nhost: web.demo.svc.cluster.local\r\n\r\n";
    // The beginning of another request must not change it.
    stream.write_all(format!("{request}G").as_bytes()).await.unwrap();
    let sent: usize = timeout(4 * PATIENCE, world.received.recv()).await.unwrap().unwrap().parse().unwrap();
    assert!(sent < 64 << 20, "{sent} bytes left the service, and nobody has read them");
}
