//! What the targets for whole connections share: a gateway in memory, a backend that says what it is told and looks at what it is
//! sent, and a clock that jumps ahead whenever nothing else is to be done.
//!
//! The backend believes nothing: what it is sent must be a request by the letter of RFC 9112, for the one service that the
//! policy knows, from the client that came, and for a path that lies below `/public/` however it is read.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use isthmus::config::Config;
use isthmus::gateway::census::Census;
use isthmus::gateway::in_memory::serve;
use isthmus::gateway::networks::Networks;
use isthmus::gateway::watchers::Watchers;
use isthmus::gateway::{Shared, http::identify};
use isthmus::identity::Identity;
use isthmus::live::Live;
use isthmus::record::{Event, Observer, Record};
use isthmus::route::{Claim, Directory};
use isthmus::sources::fixed::Fixed;
use isthmus::tls::mint::{self, Usage, Validity};
use isthmus::tls::{Alpn, Credentials, File, Pem, server};
use isthmus_probe::endpoint::Endpoint;
use isthmus_probe::health::Health;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::spawn_local;
use tokio::time::timeout;

/// Who calls.
pub const CLIENT: &str = "shop.west.serviceaccount.identity.linkerd.cluster.local";

/// The one service that the policy knows.
pub const SERVICE: &str = "web.ns.svc.cluster.local";

const CONFIG: &str = "
tls: { chain_file: in-memory, key_file: in-memory, bundle_file: in-memory }
authorise:
  rules:
    - name: public
      clients: [shop.west.serviceaccount.identity.linkerd.cluster.local]
      services: ['web.ns.svc.cluster.local:80']
      http: { methods: [GET, POST, PUT], paths: ['/public/*'] }
      action: allow
    - { name: secret, services: ['web.ns.svc.cluster.local'], http: { paths: ['/public/secret/*'] }, action: deny }
detect: { timeout: 5s }
http: { header_timeout: 5s, idle_timeout: 20s, request_timeout: 5s }
connect: { timeout: 5s }
balance: { failfast_timeout: 1s }
telemetry: { access_log: off }
sources:
  dns: { enabled: false }
  services:
    - { name: web.ns.svc.cluster.local, port: 80, exported: true, protocol: http1, endpoints: [{ address: '10.0.0.1:80' }] }
    - { name: other.ns.svc.cluster.local, port: 80, exported: true, protocol: http1, endpoints: [{ address: '10.0.0.2:80' }] }
";

struct Scene {
    config: Config,
    pem: Pem,
    peer: server::Peer,
}

fn scene() -> &'static Scene {
    static SCENE: OnceLock<Scene> = OnceLock::new();
    SCENE.get_or_init(|| {
        isthmus::tls::install();
        let config = Config::parse(std::path::Path::new("fuzz.yaml"), CONFIG).unwrap_or_else(|error| panic!("{error}"));
        let years = Validity::from_now(SystemTime::now(), Duration::from_secs(86_400 * 3650));
        let anchor = mint::anchor("root.linkerd.cluster.local", years).expect("an anchor");
        let leaf = |name: &str| {
            let identity = Identity::parse(name).expect("an identity");
            mint::leaf(&anchor, &[identity], years, Usage::Both).expect("a leaf")
        };
        let own = leaf("gateway.isthmus.serviceaccount.identity.linkerd.cluster.local");
        let pem = Pem {
            chain: File::new("chain", own.cert_pem().as_bytes()),
            key: File::new("key", own.key_pem.as_bytes()),
            bundle: File::new("bundle", anchor.cert_pem().as_bytes()),
            crls: Vec::new(),
        };
        let peer = server::Peer {
            identity: Identity::parse(CLIENT).expect("an identity"),
            chain: Arc::from([leaf(CLIENT).der]),
            not_after: years.not_after,
            authorities: Box::default(),
        };
        Scene { config, pem, peer }
    })
}

fn shared(scene: &Scene) -> Shared {
    let config = &scene.config;
    let credentials = Credentials::from_pem(&scene.pem, &config.credentials()).expect("credentials");
    let (directory, _demands) = Directory::new(config.route());
    Fixed::new(Claim(0), config.services()).publish(&directory);
    let policy = config.policy(Some(credentials.identity())).expect("a policy");
    // The assembly's own end of the drain is leaked: nobody drains here.
    let (drain, watch) = isthmus::drain::channel();
    std::mem::forget(drain);
    Shared {
        tls: config.tls(),
        accept: config.accept(),
        detect: config.detect(),
        route: config.route(),
        balance: config.balance(),
        connect: config.connect(),
        pool: config.pool(),
        relay: config.relay(),
        http: config.http(),
        identify: identify::Settings::default(),
        assertions: None,
        trace: None,
        clusters: Arc::new(config.clusters()),
        credentials: Arc::new(Live::new(credentials)),
        policy: Arc::new(Live::new(policy)),
        directory,
        loads: Arc::default(),
        census: Census::new(0),
        networks: Networks::new(config.networks()),
        watchers: Watchers::new(config.file.authorise.observe, config.file.authorise.observed),
        max_handshakes: 1,
        max_handshakes_per_network: 0,
        probe: Arc::new(Endpoint::new(Health::new(), config.probe())),
        probe_ports: Vec::new(),
        probe_authority: None,
        rechecks: Arc::default(),
        expiry_grace: None,
        distrust_deadline: Duration::from_secs(1),
        drain: watch,
        runtimes: Arc::default(),
    }
}

/// Counts what opens and what closes.
#[derive(Debug, Default)]
struct Balance {
    requests: Cell<i64>,
}

impl Observer for Balance {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::RequestStarted => self.requests.set(self.requests.get() + 1),
            Event::RequestEnded => self.requests.set(self.requests.get() - 1),
            _ => {}
        }
    }

    fn closed(&self, _: &Record) {}
}

/// Longer than all deadlines of the configuration together: who waits longer hangs.
const NO_HANG: Duration = Duration::from_secs(600);

/// One connection: what the client sends, in pieces, and what the backend answers, response by response.
pub fn connection(alpn: Alpn, pieces: Vec<Vec<u8>>, answers: Vec<Vec<u8>>) {
    let scene = scene();
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build_local(Default::default()).expect("a runtime");
    let balance = Rc::new(Balance::default());
    runtime.block_on(async {
        let shared = shared(scene);
        let answers = Rc::new(answers);
        let backend: isthmus::gateway::in_memory::Backend = Rc::new(move |addr| {
            let (theirs, ours) = duplex(16 * 1024);
            spawn_local(answer(addr, ours, Rc::clone(&answers)));
            theirs
        });
        let (client, stream) = duplex(16 * 1024);
        let (mut read, mut write) = tokio::io::split(client);
        let writing = spawn_local(async move {
            for piece in pieces {
                if write.write_all(&piece).await.is_err() {
                    return;
                }
                tokio::task::yield_now().await;
            }
            // A moment for the answers, then the end.
            tokio::time::sleep(Duration::from_secs(6)).await;
            let _ = write.shutdown().await;
        });
        let reading = spawn_local(async move {
            let mut bytes = [0; 4096];
            let mut all = 0;
            while let Ok(read @ 1..) = read.read(&mut bytes).await {
                all += read;
                // Not one of our backends says so much.
                assert!(all < 4 << 20, "the client is sent more than anybody said");
            }
        });
        let observer = Rc::clone(&balance) as Rc<dyn Observer>;
        let served = serve(&shared, observer, backend, (stream, scene.peer.clone(), alpn));
        assert!(timeout(NO_HANG, served).await.is_ok(), "the connection hangs");
        assert!(timeout(NO_HANG, reading).await.is_ok(), "the client hangs");
        drop(writing);
    });
    drop(runtime);
    assert_eq!(balance.requests.get(), 0, "requests that began and ended");
}

/// The backend: looks at each request, and answers with what it was told to.
async fn answer(addr: SocketAddr, mut stream: DuplexStream, answers: Rc<Vec<Vec<u8>>>) {
    assert_eq!(addr, SocketAddr::from(([10, 0, 0, 1], 80)), "the policy lets nobody reach this endpoint");
    let mut seen = Vec::new();
    let mut count = 0;
    let mut bytes = [0; 4096];
    loop {
        while let Some(len) = request(&seen) {
            seen.drain(..len);
            let answer = answers.get(count).map_or(&b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"[..], Vec::as_slice);
            count += 1;
            if answer.is_empty() {
                return; // the connection ends here
            }
            if stream.write_all(answer).await.is_err() {
                return;
            }
        }
        match stream.read(&mut bytes).await {
            Ok(read @ 1..) => seen.extend_from_slice(&bytes[..read]),
            _ => return,
        }
    }
}

/// The length of the request at the beginning, once it is whole.
fn request(seen: &[u8]) -> Option<usize> {
    let end = seen.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)?;
    let head = &seen[..end];
    for (at, byte) in head.iter().enumerate() {
        match byte {
            b'\n' => assert!(at > 0 && head[at - 1] == b'\r', "a bare LF in {:?}", show(head)),
            b'\r' => assert_eq!(head.get(at + 1), Some(&b'\n'), "a bare CR in {:?}", show(head)),
            0 => panic!("NUL in {:?}", show(head)),
            _ => {}
        }
    }
    let mut fields = [httparse::EMPTY_HEADER; 128];
    let mut parsed = httparse::Request::new(&mut fields);
    assert_eq!(parsed.parse(head), Ok(httparse::Status::Complete(end)), "no request: {:?}", show(head));
    let all = |name: &str| -> Vec<&[u8]> {
        parsed.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value).collect()
    };
    assert_eq!(all("host"), [SERVICE.as_bytes()], "another service: {:?}", show(head));
    assert_eq!(all("l5d-client-id"), [CLIENT.as_bytes()], "another client: {:?}", show(head));
    assert!(all("connection").is_empty() && all("upgrade").is_empty() && all("te").iter().all(|te| *te == b"trailers"));
    let method = parsed.method.expect("a method");
    assert!(["GET", "POST", "PUT"].contains(&method), "the policy lets nobody {method}");
    public(parsed.path.expect("a path"));
    let (lengths, codings) = (all("content-length"), all("transfer-encoding"));
    assert!(lengths.len() + codings.len() <= 1, "two framings: {:?}", show(head));
    if let [length] = lengths[..] {
        assert!(!length.is_empty() && length.iter().all(u8::is_ascii_digit), "a length: {:?}", show(length));
        let length: usize = std::str::from_utf8(length).expect("digits").parse().expect("a length that fits");
        return (seen.len() >= end + length).then_some(end + length);
    }
    if let [coding] = codings[..] {
        assert_eq!(coding, b"chunked");
        return chunked(&seen[end..]).map(|len| end + len);
    }
    Some(end)
}

fn chunked(body: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let line = body[at..].windows(2).position(|two| two == b"\r\n")?;
        let size = std::str::from_utf8(&body[at..at + line]).expect("a size");
        let size = usize::from_str_radix(size, 16).unwrap_or_else(|_| panic!("a chunk's size: {size:?}"));
        at += line + 2;
        if size > 0 {
            let end = body.get(at + size..at + size + 2)?;
            assert_eq!(end, b"\r\n", "after a chunk");
            at += size + 2;
            continue;
        }
        // Trailers.
        loop {
            let line = body[at..].windows(2).position(|two| two == b"\r\n")?;
            let field = &body[at..at + line];
            at += line + 2;
            if field.is_empty() {
                return Some(at);
            }
            let name = field.split(|byte| *byte == b':').next().unwrap_or_default().to_ascii_lowercase();
            for never in [&b"content-length"[..], b"host", b"transfer-encoding", b"l5d-client-id", b"authorization"] {
                assert_ne!(name, never, "in trailers");
            }
        }
    }
}

/// However a server reads the path, it lies below `/public/`, and not below `/public/secret/`.
pub fn public(path: &str) {
    let path = path.split('?').next().unwrap_or_default();
    let decoded = decode(path.as_bytes());
    let twice = decode(&decoded);
    for reading in [path.as_bytes(), &decoded, &twice] {
        for slashed in [reading.to_vec(), reading.iter().map(|byte| if *byte == b'\\' { b'/' } else { *byte }).collect()] {
            for stripped in [slashed.clone(), without_parameters(&slashed)] {
                for merged in [false, true] {
                    let normal = normal(&stripped, merged);
                    let readable = String::from_utf8_lossy(&normal);
                    assert!(readable.starts_with("/public/"), "{path:?} may be read as {readable:?}");
                    assert!(!readable.starts_with("/public/secret/"), "{path:?} may be read as {readable:?}");
                }
            }
        }
    }
}

fn decode(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < path.len() {
        let digits = path.get(at + 1..at + 3).and_then(|two| std::str::from_utf8(two).ok());
        let byte = digits.filter(|two| two.bytes().all(|b| b.is_ascii_hexdigit()));
        match byte.and_then(|two| u8::from_str_radix(two, 16).ok()).filter(|_| path[at] == b'%') {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(path[at]);
                at += 1;
            }
        }
    }
    out
}

fn without_parameters(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for (at, segment) in path.split(|byte| *byte == b'/').enumerate() {
        if at > 0 {
            out.push(b'/');
        }
        out.extend(segment.split(|byte| *byte == b';').next().unwrap_or_default());
    }
    out
}

fn normal(path: &[u8], merged: bool) -> Vec<u8> {
    let mut kept: Vec<&[u8]> = Vec::new();
    let segments: Vec<&[u8]> = path.split(|byte| *byte == b'/').skip(1).collect();
    for (at, segment) in segments.iter().enumerate() {
        let last = at + 1 == segments.len();
        match *segment {
            b"." if last => kept.push(b""),
            b"." => {}
            b".." => {
                kept.pop();
                if last {
                    kept.push(b"");
                }
            }
            b"" if merged && !last => {}
            other => kept.push(other),
        }
    }
    kept.iter().flat_map(|segment| [b"/", *segment].concat()).collect()
}

fn show(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
