//! The gateway's certificate from a Workload API over a unix socket, which is a stand-in written byte by byte.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use isthmus::tls::ALPN_HTTP11;
use isthmus::tls::mint::Authority;
use isthmus_tests::pki::{Pair, Pki, pair};
use isthmus_tests::spawn;
use isthmus_tests::world::{Setup, World};
use parking_lot::Mutex;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::UnixListener;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

const ID: &str = "spiffe://east.example/ns/mc/sa/gateway";
const SNI: &str = "gateway.example";

/// A message of the stream, or the status that ends it.
type Said = Result<Bytes, u16>;

/// A Workload API: streams what the case says to everybody who asks.
#[derive(Clone, Default)]
struct Api {
    streams: Arc<Mutex<Vec<UnboundedSender<Said>>>>,
    /// What new streams are told first.
    first: Arc<Mutex<Option<Said>>>,
    /// Paths and whether the header that the standard asks for was there.
    asked: Arc<Mutex<Vec<(String, bool)>>>,
}

impl Api {
    fn start(socket: &Path) -> Self {
        let api = Self::default();
        let listener = UnixListener::bind(socket).unwrap();
        let serving = api.clone();
        spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let api = serving.clone();
                let service = service_fn(move |request| {
                    let api = api.clone();
                    async move { Ok::<_, Infallible>(api.answer(&request)) }
                });
                spawn(http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service));
            }
        });
        api
    }

    fn answer(
        &self,
        request: &Request<Incoming>,
    ) -> Response<http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>> {
        let marked = request.headers().get("workload.spiffe.io").is_some_and(|value| value == "true");
        self.asked.lock().push((request.uri().path().to_owned(), marked));
        let (sender, receiver) = unbounded_channel();
        if let Some(first) = self.first.lock().clone() {
            let _ = sender.send(first);
        }
        self.streams.lock().push(sender);
        let frames = stream::unfold(receiver, |mut receiver| async move {
            let frame = match receiver.recv().await? {
                Ok(message) => {
                    let mut framed = BytesMut::new();
                    framed.put_u8(0);
                    framed.put_u32(u32::try_from(message.len()).unwrap());
                    framed.put(message);
                    Frame::data(framed.freeze())
                }
                Err(status) => {
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", HeaderValue::from(status));
                    Frame::trailers(trailers)
                }
            };
            Some((Ok(frame), receiver))
        });
        let body = StreamBody::new(frames).boxed_unsync();
        Response::builder().header("content-type", "application/grpc").body(body).unwrap()
    }

    fn say(&self, said: Said) {
        *self.first.lock() = Some(said.clone());
        self.streams.lock().retain(|stream| stream.send(said.clone()).is_ok());
    }

    fn hang_up(&self) {
        self.streams.lock().clear();
    }
}

/// A length-delimited field of a protobuf message.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut len = bytes.len();
    while len >= 0x80 {
        out.push(u8::try_from(len & 0x7f).unwrap() | 0x80);
        len >>= 7;
    }
    out.push(u8::try_from(len).unwrap());
    out.extend_from_slice(bytes);
    out
}

/// `X509SVIDResponse` with these SVIDs, each with its roots, and a federated bundle.
fn response(svids: &[(&str, &Pair, &[&Authority])], federated: Option<&Authority>) -> Bytes {
    let mut out = Vec::new();
    for (id, pair, roots) in svids {
        let chain: Vec<u8> = CertificateDer::pem_slice_iter(pair.chain.as_bytes())
            .flat_map(|certificate| certificate.unwrap().to_vec())
            .collect();
        let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
        let roots: Vec<u8> = roots.iter().flat_map(|root| root.der().to_vec()).collect();
        let parts = [(1, id.as_bytes()), (2, &chain), (3, key.secret_der()), (4, &roots)];
        let svid: Vec<u8> = parts.into_iter().flat_map(|(number, bytes)| field(number, bytes)).collect();
        out.extend(field(1, &svid));
    }
    if let Some(root) = federated {
        let entry = [field(1, b"spiffe://far.example"), field(2, root.der())].concat();
        out.extend(field(3, &entry));
    }
    out.into()
}

async fn start(folder: &Path, beside: bool) -> (Api, World) {
    let socket = folder.join("agent.sock");
    let api = Api::start(&socket);
    let mut setup = Setup::new()
        .unset("tls", "chain_file")
        .unset("tls", "key_file")
        .unset("tls", "bundle_file")
        .set("tls", "server_names", &format!("[{SNI}]"))
        .set("tls", "reload_interval", "100ms")
        .set("identity", "source", "spiffe")
        .set("identity", "name", ID)
        .set("identity", "spiffe", &format!("{{ socket: 'unix://{}', timeout: 1s }}", socket.display()));
    if beside {
        let bundle = folder.join("bundle.crt");
        std::fs::write(&bundle, Pki::get().next.cert_pem()).unwrap();
        setup = setup.set("tls", "bundle_file", &format!("'{}'", bundle.display()));
    }
    (api, setup.launch().await)
}

async fn roots(world: &World) -> usize {
    world.state().await["identity"]["roots"].as_array().unwrap().len()
}

async fn not_ready(world: &World, words: &str) {
    isthmus_tests::until_async(async || {
        let (status, body) = world.admin("/ready").await;
        status == 503 && body.contains(words)
    })
    .await;
}

async fn ready(world: &World) {
    isthmus_tests::until_async(async || world.admin("/ready").await.0 == 200).await;
}

/// What a client sees: its own certificate is below `issuer`, and the gateway must be `ID`.
async fn answered(world: &World, issuer: &Authority, trusting: &Authority) -> bool {
    let client = pair(issuer, &["spiffe://west.example/ns/shop/sa/web"]);
    let peer = isthmus_tests::peer::Peer::expecting(&trusting.cert_pem(), Some(&client), ID, SNI, world.addrs.gateway);
    let Ok(stream) = peer.try_connect(SNI, &[ALPN_HTTP11]).await else { return false };
    let mut http = isthmus_tests::wire::Http1::new(stream);
    http.send(b"GET / HTTP/1.1\r\nhost: nobody.ns.svc.cluster.local\r\n\r\n").await;
    let mut byte = [0; 1];
    matches!(isthmus_tests::soon(tokio::io::AsyncReadExt::read(&mut http.stream, &mut byte)).await, Ok(1))
}

#[tokio::test]
async fn svids_and_bundles_are_taken_and_rotate_while_the_gateway_serves() {
    let pki = Pki::get();
    let folder = tempfile::tempdir().unwrap();
    let (api, world) = start(folder.path(), false).await;
    not_ready(&world, "no certificate yet").await;
    let (other, ours) = (pair(&pki.east, &["spiffe://east.example/other"]), pair(&pki.east, &[ID]));
    api.say(Ok(response(&[("spiffe://east.example/other", &other, &[&pki.anchor])], None)));
    not_ready(&world, "offers no SVID of 'spiffe://east.example/ns/mc/sa/gateway', but 'spiffe://east.example/other'")
        .await;
    let both: [(&str, &Pair, &[&Authority]); 2] =
        [("spiffe://east.example/other", &other, &[&pki.anchor]), (ID, &ours, &[&pki.anchor])];
    api.say(Ok(response(&both, Some(&pki.foreign))));
    ready(&world).await;
    assert_eq!(roots(&world).await, 1, "no federated root");
    assert!(answered(&world, &pki.west, &pki.anchor).await);
    assert!(!answered(&world, &pki.foreign, &pki.anchor).await, "a federated root vouches for nobody here");
    let (path, marked) = api.asked.lock()[0].clone();
    assert_eq!((path.as_str(), marked), ("/SpiffeWorkloadAPI/FetchX509SVID", true));

    // Another certificate, of another root, both roots trusted for the time being.
    let next = pair(&pki.west_next, &[ID]);
    api.say(Ok(response(&[(ID, &next, &[&pki.anchor, &pki.next])], None)));
    isthmus_tests::until_async(async || roots(&world).await == 2).await;
    assert!(answered(&world, &pki.west, &pki.next).await);
    assert!(answered(&world, &pki.west_next, &pki.next).await);
    assert!(world.count("control_identity_cert_refreshes_total", &[("result", "ok")]).await >= 2.0);
}

#[tokio::test]
async fn an_agent_that_is_away_or_wrong_changes_nothing() {
    let pki = Pki::get();
    let folder = tempfile::tempdir().unwrap();
    let (api, world) = start(folder.path(), false).await;
    let ours = pair(&pki.east, &[ID]);
    // A bundle that does not vouch for the SVID beside it, and no SVID at all.
    for (wrong, words) in [
        (Ok(response(&[(ID, &ours, &[&pki.foreign])], None)), "no trusted root"),
        (Err(7), "cannot be used"),
        (Ok(response(&[], None)), "cannot be used"),
        (Ok(Bytes::from_static(b"\xff\xff")), "cannot be used"),
    ] {
        api.say(wrong);
        not_ready(&world, words).await;
    }
    api.say(Ok(response(&[(ID, &ours, &[&pki.anchor])], None)));
    ready(&world).await;
    let errors = world.count("control_identity_cert_refreshes_total", &[("result", "error")]).await;
    api.hang_up();
    isthmus_tests::until_async(async || {
        world.count("control_identity_cert_refreshes_total", &[("result", "error")]).await > errors
    })
    .await;
    assert!(answered(&world, &pki.west, &pki.anchor).await);
    // It is asked again and heard again.
    let next = pair(&pki.west_next, &[ID]);
    api.say(Ok(response(&[(ID, &next, &[&pki.anchor, &pki.next])], None)));
    isthmus_tests::until_async(async || roots(&world).await == 2).await;
}

#[tokio::test]
async fn roots_of_files_count_beside_those_of_the_api_and_are_followed() {
    let pki = Pki::get();
    let folder = tempfile::tempdir().unwrap();
    let (api, world) = start(folder.path(), true).await;
    let ours = pair(&pki.east, &[ID]);
    api.say(Ok(response(&[(ID, &ours, &[&pki.anchor])], None)));
    ready(&world).await;
    assert_eq!(roots(&world).await, 2);
    assert!(answered(&world, &pki.west_next, &pki.anchor).await);
    std::fs::write(folder.path().join("bundle.crt"), pki.anchor.cert_pem()).unwrap();
    isthmus_tests::until_async(async || roots(&world).await == 1).await;
    assert!(!answered(&world, &pki.west_next, &pki.anchor).await);
}
