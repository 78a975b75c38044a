//! A full mutual handshake as the gateway holds it, with one, three and ten trust anchors.
//!
//! Both sides are in it, over memory: two key exchanges, two signatures, two chains verified. What the number of anchors adds
//! is the gateway's alone.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use isthmus::endpoint::UpstreamTls;
use isthmus::identity::Identity;
use isthmus::tls::mint::{self, Authority, Usage, Validity};
use isthmus::tls::{Credentials, File, Pem, Settings, client, credentials, server};

const NAME: &str = "gw.isthmus.serviceaccount.identity.linkerd.cluster.local";

fn authority(name: &str) -> Authority {
    mint::anchor(name, Validity::from_now(SystemTime::now(), Duration::from_secs(86_400))).expect("an anchor")
}

/// Credentials below `anchor` that trust `others` beside it.
fn credentials(anchor: &Authority, others: &[Authority]) -> Arc<Credentials> {
    let day = Validity::from_now(SystemTime::now(), Duration::from_secs(86_400));
    let issuer = mint::issuer(anchor, "identity.linkerd.cluster.local", day, 0).expect("an issuer");
    let leaf = mint::leaf(&issuer, &[Identity::parse(NAME).expect("valid")], day, Usage::Both).expect("a leaf");
    let bundle: String = others.iter().chain([anchor]).map(Authority::cert_pem).collect();
    let pem = Pem {
        chain: File::new("gateway.crt", (leaf.cert_pem() + &issuer.cert_pem()).as_bytes()),
        key: File::new("gateway.key", leaf.key_pem.as_bytes()),
        bundle: File::new("bundle.crt", bundle.as_bytes()),
        crls: Vec::new(),
    };
    Arc::new(Credentials::from_pem(&pem, &credentials::Settings::default()).expect("valid credentials"))
}

async fn shake(ours: &Arc<Credentials>, theirs: &Arc<Credentials>, wanted: &UpstreamTls) {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let settings = Settings::default();
    let (accepted, connected) =
        tokio::join!(server::accept(near, ours, &settings), client::connect(far, theirs, wanted, &[b"h2"]));
    assert_eq!(accepted.expect("accepted").peer.identity.as_str(), NAME);
    connected.expect("connected");
}

fn handshakes(criterion: &mut Criterion) {
    isthmus::tls::install();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let wanted =
        UpstreamTls { identity: Identity::parse(NAME).expect("valid"), server_name: NAME.parse().expect("a name") };
    let mut group = criterion.benchmark_group("handshake/full, both sides");
    for roots in [1, 3, 10] {
        let anchor = authority("root.linkerd.cluster.local");
        let others: Vec<_> = (1..roots).map(|at| authority(&format!("root-{at}.linkerd.cluster.local"))).collect();
        let (ours, theirs) = (credentials(&anchor, &others), credentials(&anchor, &[]));
        group.bench_function(BenchmarkId::new("anchors", roots), |bencher| {
            bencher.iter(|| runtime.block_on(shake(&ours, &theirs, &wanted)));
        });
    }
    group.finish();
}

criterion_group!(benches, handshakes);
criterion_main!(benches);
