//! The rotation of a trust anchor as operators do it, and the swap of a mount, both under load.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;

use crate::client::{Client, Traffic, Way};
use crate::mount::Mount;
use crate::world::{self, Cluster, DAY, Pair, anchor, files, gateway_of, issuer, pair, workload_of};

const WEB: &str = "web.demo.svc.cluster.local";
const FAR: &str = "far.demo.svc.cluster.local";
const SOURCES: [&str; 2] = ["west", "north"];

/// Each cluster's issuer makes a leaf for its gateway and one for its workload.
fn issued(anchor: &isthmus::tls::mint::Authority) -> Vec<(Pair, Pair)> {
    ["east", "west", "north"]
        .into_iter()
        .map(|cluster| {
            let issuer = issuer(anchor);
            (pair(&issuer, &gateway_of(cluster), DAY), pair(&issuer, &workload_of(cluster), DAY))
        })
        .collect()
}

/// Old anchor → both → peers re-issued under the new → the new alone. West and north call east all the while, over HTTP/1
/// and HTTP/2, on kept connections and on new ones; part of it goes on from east to a service of north, over the
/// gateways' own mutual TLS. The new anchor has the old one's name, as `step` would make it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trust_anchor_is_rotated_and_no_request_fails() {
    let (old, new) = (anchor("root.linkerd.cluster.local"), anchor("root.linkerd.cluster.local"));
    let (before, after) = (issued(&old), issued(&new));
    let both = old.cert_pem() + &new.cert_pem();
    let mount = |index: usize| Mount::new(&files(&before[index].0, &old.cert_pem(), None));

    let north = Cluster::start("north", mount(2), "", &(world::web("far").await + &world::web("web").await)).await;
    let west = Cluster::start("west", mount(1), "", &world::web("web").await).await;
    let services = world::web("web").await + &world::behind("far", "http2", &north);
    let east = Cluster::start("east", mount(0), "", &services).await;
    let clusters = [&east, &west, &north];

    let client = |index: usize| Client::new(&old.cert_pem(), &before[index].1, &east.identity, east.app.addrs.gateway);
    let clients = [client(1), client(2)];
    let mut traffic = Vec::new();
    for client in &clients {
        for (way, host) in
            [(Way::Http2, WEB), (Way::Http1, WEB), (Way::Fresh, WEB), (Way::Http2, FAR), (Way::Http1, FAR)]
        {
            traffic.push(Traffic::start(client.clone(), way, host));
        }
    }
    let more = async || drop(join_all(traffic.iter().map(|one| one.more(20))).await);
    more().await;

    // Everybody learns of the new anchor, in no particular order.
    for (index, cluster) in clusters.iter().enumerate() {
        cluster.swap(&files(&before[index].0, &both, None)).await;
    }
    clients.iter().zip([1, 2]).for_each(|(client, index)| client.renew(&both, &before[index].1));
    more().await;

    // Everybody is re-issued, gateways and workloads mixed. Kept connections stay on the old certificates.
    clients[1].renew(&both, &after[2].1);
    for (index, cluster) in clusters.iter().enumerate() {
        cluster.swap(&files(&after[index].0, &both, None)).await;
        more().await;
    }
    clients[0].renew(&both, &after[1].1);
    more().await;
    assert_eq!(east.metric("isthmus_tls_distrusted_total", "").await, 0.0, "until here everybody is trusted");

    // The old anchor goes: connections that came with an old certificate are drained.
    for (index, cluster) in clusters.iter().enumerate() {
        cluster.swap(&files(&after[index].0, &new.cert_pem(), None)).await;
    }
    clients.iter().zip([1, 2]).for_each(|(client, index)| client.renew(&new.cert_pem(), &after[index].1));
    more().await;

    let mut sum = 0;
    for one in traffic {
        let tally = one.end().await;
        let failed = tally.failed.lock();
        assert!(failed.is_empty(), "{} requests failed: {:?}", failed.len(), failed.first());
        sum += tally.fine.load(Ordering::Relaxed);
    }
    assert!(sum >= 10 * 20 * 6, "{sum} requests");
    let drained = east.metric("isthmus_tls_distrusted_total", "reason=\"untrusted\"").await;
    assert!(drained >= 8.0, "the kept connections, HTTP/1 and HTTP/2, of both clusters were drained: {drained}");
    for cluster in clusters {
        let reload = cluster.app.reloads();
        assert_eq!((reload.replaced, reload.refused), (3, 0), "{reload:?}");
    }
    stragglers_learn_why(&east, &before[1].1, &new.cert_pem()).await;
}

/// Who missed the rotation is told no, and the operator why.
async fn stragglers_learn_why(east: &Cluster, old: &Pair, bundle: &str) {
    let straggler = Client::new(bundle, old, &east.identity, east.app.addrs.gateway);
    assert_eq!(straggler.knock().await, "UnknownCA");
    tokio::time::sleep(Duration::from_millis(50)).await;
    let state = east.state().await;
    let refused = &state["refused"][0];
    assert_eq!(refused["code"], "tls.untrusted", "{state:#}");
    let reason = refused["reason"].as_str().unwrap();
    for part in
        ["another key", "shop.west.serviceaccount.identity.linkerd.cluster.local", "identity.linkerd.cluster.local"]
    {
        assert!(reason.contains(part), "{part}: {reason}");
    }
    let counted = east.metric("isthmus_refusals_total", "code=\"tls.untrusted\"").await;
    assert!(counted >= 1.0, "{counted}");
}

/// The mount is swapped as kubelet does it, again and again, under load: every swap is taken, nothing is noticed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mount_is_swapped_under_load() {
    let anchor = anchor("root.linkerd.cluster.local");
    let issuers = SOURCES.map(|_| issuer(&anchor));
    let identity = gateway_of("east");
    let gateway = || pair(&issuers[0], &identity, DAY);
    let mount = Mount::new(&files(&gateway(), &anchor.cert_pem(), None));
    let east = Cluster::start("east", mount, "", &world::web("web").await).await;
    let traffic: Vec<_> = SOURCES
        .iter()
        .zip(&issuers)
        .flat_map(|(cluster, issuer)| {
            let shop = pair(issuer, &workload_of(cluster), DAY);
            let client = Client::new(&anchor.cert_pem(), &shop, &east.identity, east.app.addrs.gateway);
            [Way::Http1, Way::Http2, Way::Fresh].map(|way| Traffic::start(client.clone(), way, WEB))
        })
        .collect();
    for _ in 0..8 {
        east.swap(&files(&gateway(), &anchor.cert_pem(), None)).await;
        join_all(traffic.iter().map(|one| one.more(5))).await;
    }
    for one in traffic {
        let tally = one.end().await;
        assert_eq!(*tally.failed.lock(), Vec::<String>::new());
    }
    let reload = east.app.reloads();
    assert_eq!((reload.replaced, reload.refused), (8, 0), "{reload:?}");
    assert_eq!(east.metric("isthmus_tls_distrusted_total", "").await, 0.0);
    assert_eq!(east.metric("isthmus_tls_reload_total", "result=\"ok\"").await, 8.0);

    // Half a swap later: the key of another certificate.
    let (one, other) = (gateway(), gateway());
    east.mount.publish(&[("tls.crt", &one.chain), ("tls.key", other.key()), ("ca.crt", &anchor.cert_pem())]);
    world::eventually("the mismatch is found", || east.app.reloads().problem.is_some()).await;
    let state = east.state().await;
    let problem = &state["reload"]["problem"];
    assert!(problem["file"].as_str().unwrap().ends_with("/tls.key"), "{problem}");
    assert!(problem["reason"].as_str().unwrap().contains("must be replaced together"), "{problem}");
    assert_eq!(east.metric("isthmus_tls_reload_failed", "").await, 1.0);
    assert_eq!(east.metric("isthmus_tls_reload_total", "result=\"failed\"").await, 1.0);
    assert!(east.metric("isthmus_tls_reload_age_seconds", "").await < 60.0);
}
