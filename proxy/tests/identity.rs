//! The client stays known, through the front door: a request over real TLS, and what its backend was told.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use isthmus::app::{App, Sockets};
use isthmus::config::Config;
use isthmus::identity::Identity;
use isthmus::tls::caller::Caller;
use isthmus::tls::mint::{self, Authority, Usage, Validity};
use isthmus::tls::{Credentials, File, Pem, credentials};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const GATEWAY: &str = "gw.mc.serviceaccount.identity.linkerd.cluster.local";
const CLIENT: &str = "web.shop.serviceaccount.identity.linkerd.cluster.local";
const SERVICE: &str = "echo.prod.svc.cluster.local";

struct Pki {
    anchor: Authority,
    west: Authority,
    east: Authority,
}

impl Pki {
    fn new() -> Self {
        let anchor = mint::anchor("root", validity()).expect("an anchor");
        let west = mint::issuer(&anchor, "identity.linkerd.cluster.local", validity(), 0).expect("an issuer");
        let east = mint::issuer(&anchor, "identity.linkerd.cluster.local", validity(), 0).expect("an issuer");
        Self { anchor, west, east }
    }

    /// Chain and key.
    fn pair(&self, issuer: &Authority, name: &str) -> (String, String) {
        let names = [Identity::parse(name).expect("an identity")];
        let leaf = mint::leaf(issuer, &names, validity(), Usage::Both).expect("a leaf");
        (leaf.cert_pem() + &issuer.cert_pem(), leaf.key_pem)
    }

    fn gateway(&self) -> Credentials {
        let (chain, key) = self.pair(&self.east, GATEWAY);
        let pem = Pem {
            chain: File::new("chain", chain),
            key: File::new("key", key),
            bundle: File::new("bundle", self.anchor.cert_pem()),
            crls: Vec::new(),
        };
        Credentials::from_pem(&pem, &credentials::Settings::default()).expect("credentials")
    }
}

fn validity() -> Validity {
    Validity::from_now(SystemTime::now(), Duration::from_secs(3600))
}

/// A backend that answers with the head of each request as it came.
async fn backend() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let addr = listener.local_addr().expect("an address");
    tokio::task::spawn_local(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::task::spawn_local(async move {
                while let Some(head) = head(&mut socket).await {
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{head}", head.len());
                    if socket.write_all(answer.as_bytes()).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    addr
}

/// Reads up to the empty line.
async fn head(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    String::from_utf8(head).ok()
}

/// Sends a GET with these fields and gives the body of the answer.
async fn get(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), path: &str, fields: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: {SERVICE}:8080\r\n{fields}\r\n");
    stream.write_all(request.as_bytes()).await.expect("written");
    let answer = head(stream).await.expect("answered");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let length = answer.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
    let mut body = vec![0; length.parse().expect("a number")];
    stream.read_exact(&mut body).await.expect("a body");
    String::from_utf8(body).expect("text")
}

async fn fetch(addr: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.expect("connected");
    let request = format!("GET {path} HTTP/1.0\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("read");
    answer.split_once("\r\n\r\n").expect("an empty line").1.to_owned()
}

/// The values of a field in a request's head.
fn values<'a>(head: &'a str, name: &str) -> Vec<&'a str> {
    let of = |line: &'a str| line.split_once(": ").filter(|(n, _)| *n == name).map(|(_, value)| value);
    head.lines().filter_map(of).collect()
}

fn config(backend: SocketAddr, identify: &str) -> Config {
    let text = format!(
        "workers: 1
accept: {{ listen: '127.0.0.1:0' }}
probe: {{ listen: '127.0.0.1:0', plaintext: true }}
admin: {{ listen: '127.0.0.1:0' }}
tls: {{ chain_file: in-memory, key_file: in-memory, bundle_file: in-memory }}
authorise: {{ default: authenticated, exported_only: false }}
drain: {{ announce: 0 }}
identify: {identify}
sources:
  dns: {{ enabled: false }}
  services: [{{ name: {SERVICE}, port: 8080, exported: true, endpoints: [{{ address: '{backend}' }}] }}]
"
    );
    Config::parse(Path::new("test.yaml"), &text).expect("a configuration")
}

async fn start(pki: &Pki, backend: SocketAddr, identify: &str) -> App {
    let config = config(backend, identify);
    let sockets = Sockets::bind(&config).expect("bound");
    App::start(&config, pki.gateway(), sockets, None).await.expect("started")
}

async fn connect(pki: &Pki, app: &App) -> impl AsyncRead + AsyncWrite + Unpin + use<> {
    let (chain, key) = pki.pair(&pki.west, CLIENT);
    let gateway = Identity::parse(GATEWAY).expect("an identity");
    let pair = Some((chain.as_bytes(), key.as_bytes()));
    let caller = Caller::new(pki.anchor.cert_pem().as_bytes(), pair, &gateway).expect("a caller");
    let socket = TcpStream::connect(app.addrs.gateway).await.expect("connected");
    let name = GATEWAY.parse().expect("a name");
    caller.connect(socket, &name, &[b"http/1.1"]).await.expect("a handshake").stream
}

const SPOOFED: &str = "l5d-client-id: spoofed\r\nx-forwarded-client-cert: URI=spoofed\r\nx_forwarded_for: spoofed\r\n\
    x-forwarded-for: spoofed\r\nx-forwarded-proto: spoofed\r\nx-forwarded-host: spoofed\r\nforwarded: for=spoofed\r\n\
    isthmus-client-assertion: spoofed\r\nconnection: l5d-client-id, x-forwarded-client-cert, isthmus-client-assertion\r\n";

fn checked(token: &str, keys: &str) -> Option<Value> {
    let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).expect("base64url");
    let parse = |bytes: &[u8]| -> Value { serde_json::from_slice(bytes).expect("JSON") };
    let (message, signature) = token.rsplit_once('.')?;
    let (header, claims) = message.split_once('.')?;
    let keys = parse(keys.as_bytes());
    let key = keys["keys"].as_array()?.iter().find(|key| key["kid"] == parse(&decode(header))["kid"])?;
    let point = [vec![4], decode(key["x"].as_str()?), decode(key["y"].as_str()?)].concat();
    let verified =
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message.as_bytes(), &decode(signature));
    verified.ok().map(|()| parse(&decode(claims)))
}

fn run(test: impl Future<Output = ()>) {
    isthmus::tls::install();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

#[test]
fn a_backend_is_told_who_called_and_nothing_that_the_caller_made_up() {
    run(async {
        let pki = Pki::new();
        let cluster = &pki.west.about().fingerprint;
        let identify = format!(
            "{{ forwarded_client_cert: set, forwarded_for: set, authorities: {{ '{cluster}': west }}, \
             trust_domains: {{ cluster.local: east }}, assertion: {{ enabled: true }} }}"
        );
        let app = start(&pki, backend().await, &identify).await;
        let mut client = connect(&pki, &app).await;
        let told = get(&mut client, "/", SPOOFED).await;
        assert!(!told.contains("spoofed"), "{told}");
        assert_eq!(values(&told, "l5d-client-id"), [CLIENT]);
        assert_eq!(values(&told, "x-forwarded-for"), ["127.0.0.1"]);
        let cert = values(&told, "x-forwarded-client-cert");
        assert!(cert[0].starts_with(&format!("By={GATEWAY};Hash=")) && cert[0].ends_with(&format!(";DNS={CLIENT}")));

        // The same token for the whole session, and everybody can check it.
        let token = values(&told, "isthmus-client-assertion")[0].to_owned();
        for _ in 0..20 {
            assert_eq!(values(&get(&mut client, "/", "").await, "isthmus-client-assertion"), [token.as_str()]);
        }
        let keys = fetch(app.addrs.admin, "/.well-known/jwks.json").await;
        assert_eq!(fetch(app.addrs.probe, "/.well-known/jwks.json").await, keys);
        let claims = checked(&token, &keys).expect("verified");
        let expected = [("iss", GATEWAY), ("sub", CLIENT), ("aud", SERVICE), ("cluster", "west"), ("net", "127.0.0.1")];
        for (name, value) in expected {
            assert_eq!(claims[name], value, "{claims}");
        }
        assert_eq!(claims["trust_domain"], "cluster.local");

        // New credentials: the session lives on, with tokens of the new key; the old ones still verify.
        app.credentials.replace(pki.gateway());
        let after = get(&mut client, "/", "").await;
        let renewed = values(&after, "isthmus-client-assertion")[0];
        let both = fetch(app.addrs.admin, "/.well-known/jwks.json").await;
        assert!(renewed != token && checked(renewed, &keys).is_none() && checked(renewed, &both).is_some());
        assert!(checked(&token, &both).is_some());

        let metrics = app.metrics.render(true);
        assert!(metrics.contains("isthmus_identify_assertions_signed_total{} 2"), "{metrics}");
        assert!(metrics.contains("client_cluster=\"west\",client_namespace=\"shop\",client=\"web\""), "{metrics}");
        app.drain(Duration::ZERO, Duration::ZERO, std::future::ready(())).await;
    });
}

#[test]
fn with_everything_off_a_spoofed_header_is_gone_all_the_same() {
    run(async {
        let pki = Pki::new();
        let app = start(&pki, backend().await, "{ client_id: false }").await;
        let mut client = connect(&pki, &app).await;
        let told = get(&mut client, "/", SPOOFED).await;
        assert!(!told.contains("spoofed"), "{told}");
        for name in ["l5d-client-id", "x-forwarded-for", "x-forwarded-client-cert", "isthmus-client-assertion"] {
            assert!(values(&told, name).is_empty(), "{name}: {told}");
        }
        assert!(fetch(app.addrs.admin, "/.well-known/jwks.json").await.contains("not found"));
        app.drain(Duration::ZERO, Duration::ZERO, std::future::ready(())).await;
    });
}

#[test]
fn keys_from_a_file_sign_and_are_replaced_with_it() {
    run(async {
        let (pki, folder) = (Pki::new(), tempfile::tempdir().expect("a folder"));
        let file = folder.path().join("keys.pem");
        let key = || mint::anchor("keys", validity()).expect("an anchor").key_pem();
        let (first, second) = (key(), key());
        std::fs::write(&file, first.clone() + &second).expect("written");
        let identify = format!("{{ assertion: {{ enabled: true, key_file: '{}' }} }}", file.display());
        let mut config = config(backend().await, &identify);
        config.file.tls.reload_interval.0 = Duration::from_millis(100);
        let sockets = Sockets::bind(&config).expect("bound");
        let app = App::start(&config, pki.gateway(), sockets, None).await.expect("started");
        let keys = async || fetch(app.addrs.admin, "/.well-known/jwks.json").await;
        let before = keys().await;
        assert_eq!(before.matches("\"kid\"").count(), 2, "the next key is shown before it signs");

        std::fs::write(&file, "half a key").expect("written");
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(keys().await, before, "what cannot be read changes nothing");

        std::fs::write(&file, second).expect("written");
        let mut client = connect(&pki, &app).await;
        let mut seen = false;
        for _ in 0..100 {
            let told = get(&mut client, "/", "").await;
            assert!(checked(values(&told, "isthmus-client-assertion")[0], &before).is_some(), "both keys were shown");
            let now = keys().await;
            let kid = |set: &str| serde_json::from_str::<Value>(set).expect("JSON")["keys"][0]["kid"].clone();
            seen = kid(&now) != kid(&before);
            if seen {
                assert_eq!(now.matches("\"kid\"").count(), 2, "the old key is shown a while longer");
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(seen, "the new file was read");
        app.drain(Duration::ZERO, Duration::ZERO, std::future::ready(())).await;
    });
}

#[test]
fn a_gateway_that_cannot_sign_does_not_start() {
    run(async {
        let pki = Pki::new();
        let config = config(backend().await, "{ assertion: { enabled: true, key_file: /nowhere/keys.pem } }");
        let sockets = Sockets::bind(&config).expect("bound");
        let error = App::start(&config, pki.gateway(), sockets, None).await.expect_err("refused");
        assert!(error.to_string().contains("/nowhere/keys.pem"), "{error:#}");
    });
}

#[test]
fn the_examples_of_the_documentation_are_configurations() {
    let text = include_str!("../../docs/identity.md");
    let examples: Vec<&str> =
        text.split("```yaml config\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert_eq!(examples.len(), 7);
    for example in examples {
        Config::parse(Path::new("docs/identity.md"), example).unwrap_or_else(|error| panic!("{error}\n{example}"));
    }
}
