//! Connections that live while their peer's certificate is revoked or expires, on both sides of the gateway.

use std::time::{Duration, SystemTime};

use isthmus::tls::inspect::{self, unhex};
use isthmus::tls::mint::{self, Authority};
use isthmus::tls::{Der, pem};
use tokio::io::AsyncReadExt;

use crate::client::{Client, Stream, Traffic, Way, ping};
use crate::mount::Mount;
use crate::world::{self, Cluster, DAY, Pair, anchor, files, gateway_of, issuer, pair, workload_of};

/// A revocation list of `by`, of these certificates.
fn crl(by: &Authority, revoked: &[&Der], next: SystemTime) -> String {
    let now = SystemTime::now();
    let serials = revoked.iter().map(|der| (unhex(&inspect::certificate(der).unwrap().serial).unwrap(), now));
    let list = mint::crl(by, &serials.collect::<Vec<_>>(), now - DAY, next).unwrap();
    pem::section("X509 CRL", &list)
}

/// One anchor, an issuer of the gateway's and one of the callers'.
struct Pki {
    anchor: Authority,
    west: Authority,
    gateway: Pair,
    good: Pair,
    bad: Pair,
}

impl Pki {
    fn new() -> Self {
        let anchor = anchor("root.linkerd.cluster.local");
        let (east, west) = (issuer(&anchor), issuer(&anchor));
        let gateway = pair(&east, &gateway_of("east"), DAY);
        let (good, bad) = (pair(&west, &workload_of("good"), DAY), pair(&west, &workload_of("bad"), DAY));
        Self { anchor, west, gateway, good, bad }
    }

    fn mount(&self, crl: Option<&str>) -> Mount {
        Mount::new(&files(&self.gateway, &self.anchor.cert_pem(), crl))
    }

    fn client(&self, pair: &Pair, east: &Cluster) -> std::sync::Arc<Client> {
        Client::new(&self.anchor.cert_pem(), pair, &east.identity, east.app.addrs.gateway)
    }

    async fn east(&self, crl: Option<&str>, settings: &str) -> Cluster {
        let mount = self.mount(crl);
        let crls = crl.map(|_| format!("crl_files: [{}/ca.crl]", mount.path().display())).unwrap_or_default();
        let services = world::echo().await + &world::web("web").await;
        Cluster::start("east", mount, &format!("{crls}\n  {settings}"), &services).await
    }
}

/// Ends soon, and not in order.
async fn is_cut(stream: &mut Stream) {
    let mut rest = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest));
    let ended = read.await.expect("the connection lives on");
    assert!(ended.is_err() || rest.is_empty(), "{ended:?} {rest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_revocation_list_cuts_the_revoked_and_nobody_else() {
    let pki = Pki::new();
    let next = SystemTime::now() + DAY;
    let nobody = crl(&pki.west, &[], next);
    let east = pki.east(Some(&nobody), "").await;
    let (good, bad) = (pki.client(&pki.good, &east), pki.client(&pki.bad, &east));
    let (mut kept, mut lost) = (good.echo().await.unwrap(), bad.echo().await.unwrap());
    let quiet = Traffic::start(good.clone(), Way::Http2, "web.demo.svc.cluster.local");
    quiet.more(3).await;

    let leaf = crl(&pki.west, &[&pki.bad.leaf.der], next);
    east.swap(&files(&pki.gateway, &pki.anchor.cert_pem(), Some(&leaf))).await;
    is_cut(&mut lost).await;
    ping(&mut kept).await.unwrap();
    assert_eq!(bad.knock().await, "CertificateRevoked");
    assert_eq!(east.metric("isthmus_tls_distrusted_total", "reason=\"revoked\"").await, 1.0);

    // Now the callers' whole issuer, by the anchor's own list.
    quiet.more(3).await;
    assert_eq!(*quiet.end().await.failed.lock(), Vec::<String>::new());
    let intermediate = leaf + &crl(&pki.anchor, &[pki.west.der()], next);
    east.swap(&files(&pki.gateway, &pki.anchor.cert_pem(), Some(&intermediate))).await;
    is_cut(&mut kept).await;
    assert_eq!(good.knock().await, "CertificateRevoked");
    let state = east.state().await;
    assert_eq!(state["refused"][0]["code"], "tls.revoked", "{state:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_list_that_ends_refuses_or_not() {
    let pki = Pki::new();
    // The last second counts in full.
    let soon = SystemTime::now() + Duration::from_secs(2);
    let list = crl(&pki.west, &[], soon);
    let (strict, lenient) =
        (pki.east(Some(&list), "expired_crl: refuse").await, pki.east(Some(&list), "expired_crl: warn").await);
    let mut lost = pki.client(&pki.good, &strict).echo().await.unwrap();
    let mut kept = pki.client(&pki.good, &lenient).echo().await.unwrap();
    is_cut(&mut lost).await;
    ping(&mut kept).await.unwrap();
    assert_eq!(strict.metric("isthmus_tls_distrusted_total", "reason=\"crl_expired\"").await, 1.0);
    assert_ne!(pki.client(&pki.good, &strict).knock().await, "let in");
    assert_eq!(pki.client(&pki.good, &lenient).knock().await, "let in");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_ends_while_connected_has_its_grace() {
    let pki = Pki::new();
    let (strict, lenient) = (pki.east(None, "").await, pki.east(None, "expiry_grace: 1h").await);
    let short = pair(&pki.west, &workload_of("short"), Duration::from_secs(2));
    let mut lost = pki.client(&short, &strict).echo().await.unwrap();
    let mut kept = pki.client(&short, &lenient).echo().await.unwrap();
    is_cut(&mut lost).await;
    ping(&mut kept).await.unwrap();
    assert_eq!(strict.metric("isthmus_tls_distrusted_total", "reason=\"expired_while_connected\"").await, 1.0);
    assert_eq!(pki.client(&short, &lenient).knock().await, "CertificateExpired", "the grace is for live ones only");

    // The grace is no shelter: another anchor, and the connection ends.
    let other = anchor("another");
    let gateway = pair(&other, &gateway_of("east"), DAY);
    lenient.swap(&files(&gateway, &other.cert_pem(), None)).await;
    is_cut(&mut kept).await;
    assert_eq!(lenient.metric("isthmus_tls_distrusted_total", "reason=\"untrusted\"").await, 1.0);
}

/// The gateway's own connections to endpoints over mutual TLS: bytes are cut, requests go elsewhere or are refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_is_revoked_is_left() {
    let pki = Pki::new();
    let next = SystemTime::now() + DAY;
    let north_issuer = issuer(&pki.anchor);
    let north_pair = pair(&north_issuer, &gateway_of("north"), DAY);
    // The endpoint of the bytes' service is another gateway's HTTP side: it need not answer to be connected to.
    let north_mount = Mount::new(&files(&north_pair, &pki.anchor.cert_pem(), None));
    let north = Cluster::start("north", north_mount, "", &world::web("far").await).await;
    let nobody = crl(&north_issuer, &[], next);
    let mount = pki.mount(Some(&nobody));
    let settings = format!("crl_files: [{}/ca.crl]\n  distrust_deadline: 300ms", mount.path().display());
    let opaque = world::behind("echo", "opaque", &north).replace("port: 80", "port: 9000");
    let services = world::behind("far", "http2", &north) + &opaque;
    let east = Cluster::start("east", mount, &settings, &services).await;
    let good = pki.client(&pki.good, &east);
    let requests = Traffic::start(good.clone(), Way::Http2, "far.demo.svc.cluster.local");
    requests.more(5).await;
    assert_eq!(*requests.end().await.failed.lock(), Vec::<String>::new());
    let mut bytes = connected(&good).await;
    let endless = good.endless("far.demo.svc.cluster.local").await.unwrap();

    let revoked = crl(&north_issuer, &[&north_pair.leaf.der], next);
    east.swap(&files(&pki.gateway, &pki.anchor.cert_pem(), Some(&revoked))).await;
    is_cut(&mut bytes).await;
    let status = tokio::time::timeout(Duration::from_secs(5), endless).await.expect("the request lives on").unwrap();
    assert_eq!(status.unwrap().as_deref(), Some("14"), "a call under way is cut at the deadline");
    let lost = east.metric("isthmus_tls_distrusted_total", "reason=\"upstream_revoked\"").await;
    assert_eq!(lost, 2.0, "the pooled connection and the one of bytes");
    let requests = Traffic::start(good, Way::Http2, "far.demo.svc.cluster.local");
    tokio::time::sleep(Duration::from_millis(200)).await;
    let tally = requests.end().await;
    assert!(!tally.failed.lock().is_empty(), "a revoked upstream gets no more requests");
    let refused = east.metric("isthmus_connect_attempts_total", "result=\"connect.tls\"").await;
    assert!(refused >= 1.0, "{refused}");
}

/// A connection of bytes whose endpoint is connected to.
async fn connected(client: &Client) -> Stream {
    use isthmus::addr::Target;
    use isthmus::wire::transport_header::{self, Header};
    use tokio::io::AsyncWriteExt;
    let mut stream = client.connect(&[isthmus::tls::ALPN_TRANSPORT_HEADER]).await.unwrap();
    let target = Target::parse("echo.demo.svc.cluster.local:9000", 0).unwrap();
    let header = Header { port: target.port, name: Some(target.name), protocol: None };
    stream.write_all(&transport_header::encode(&header)).await.unwrap();
    // An HTTP/2 preface gets the endpoint's settings back: the way is open.
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut settings = [0; 9];
    tokio::time::timeout(Duration::from_secs(5), stream.read_exact(&mut settings)).await.unwrap().unwrap();
    stream
}
