//! How long the first request takes while the gateway knows nothing yet, and how soon it goes on after the control plane
//! was away. Prints a table of milliseconds: the least, the middle, the ninth tenth, the most.
//!
//! Everything is in this process and on loopback: a client with mutual TLS, the gateway with one worker, a control plane
//! with mutual TLS, and a service without TLS. So the rows say what the gateway adds, not what networks do.

use std::time::Duration;

use isthmus_tests::linkerd::{CONTROL, Mode, Plane};
use isthmus_tests::upstream;
use isthmus_tests::world::{Setup, World};
use linkerd2_proxy_api::destination::{DestinationProfile, Update, WeightedAddr, WeightedAddrSet, update};
use tokio::time::Instant;
use tonic::Status;

const SAMPLES: usize = 30;

async fn plane(addr: std::net::SocketAddr) -> Plane {
    let plane = Plane::tls().await;
    plane.get_profile.answer(|asked| {
        let name = asked.path.rsplit_once(':').map_or(asked.path.as_str(), |(name, _)| name);
        vec![Ok(DestinationProfile { fully_qualified_name: name.to_owned(), ..DestinationProfile::default() })]
    });
    plane.get.answer(move |_| {
        let one = WeightedAddr { addr: Some(addr.into()), weight: 1, ..WeightedAddr::default() };
        let set = WeightedAddrSet { addrs: vec![one], ..WeightedAddrSet::default() };
        vec![Ok(Update { update: Some(update::Update::Add(set)) })]
    });
    plane.watch_outbound.answer(|_| vec![Err(Status::not_found("none"))]);
    plane
}

async fn gateway(plane: &Plane) -> World {
    let addr = plane.addr;
    let source = format!(
        "linkerd: {{ enabled: true, destination: '{addr}', policy: '{addr}', destination_identity: {CONTROL}, \
         policy_identity: {CONTROL}, allow_local: true }}"
    );
    Setup::new().source(source).set("route", "discovery_timeout", "30s").start().await
}

/// Times one request and insists that it is served.
async fn timed(world: &World, name: &str) -> Duration {
    let session = world.shop().header_h2(name, 80).await;
    let began = Instant::now();
    let answer = session.get(name, "/").await;
    assert_eq!(answer.status, 200, "{}", answer.field("l5d-proxy-error"));
    began.elapsed()
}

fn row(what: &str, mut samples: Vec<Duration>) {
    samples.sort_unstable();
    let millis = |at: usize| samples[at.min(samples.len() - 1)].as_secs_f64() * 1000.0;
    let (least, middle) = (millis(0), millis(samples.len() / 2));
    let (tenth, most) = (millis(samples.len() * 9 / 10), millis(samples.len()));
    println!("| {what:<58} | {least:>8.2} | {middle:>8.2} | {tenth:>8.2} | {most:>8.2} |");
}

async fn table() {
    let web = upstream::http().await;
    println!("| {:<58} | {:>8} | {:>8} | {:>8} | {:>8} |", "milliseconds", "min", "p50", "p90", "max");
    println!("|{}|{}|{}|{}|{}|", "-".repeat(60), "-".repeat(10), "-".repeat(10), "-".repeat(10), "-".repeat(10));

    let mut cold = Vec::new();
    let plane = plane(web.addr).await;
    for _ in 0..SAMPLES {
        let world = gateway(&plane).await;
        cold.push(timed(&world, "web").await);
    }
    row("first request of all: nothing connected, nothing known", cold);

    let world = gateway(&plane).await;
    timed(&world, "web").await;
    let (mut further, mut warm) = (Vec::new(), Vec::new());
    for n in 0..SAMPLES {
        further.push(timed(&world, &format!("further-{n}")).await);
        warm.push(timed(&world, "web").await);
    }
    row("first request for a further service: connected", further);
    row("request for a known service", warm);

    let (mut during, mut back) = (Vec::new(), Vec::new());
    for n in 0..SAMPLES / 3 {
        plane.door.mode(Mode::Reset);
        plane.door.cut();
        tokio::time::sleep(Duration::from_millis(500)).await;
        during.push(timed(&world, "web").await);
        // One that nobody has asked for yet waits for the control plane; what counts is from its return on.
        let name = format!("waiting-{n}");
        let session = world.shop().header_h2(&name, 80).await;
        let asked = isthmus_tests::spawn(async move {
            let answer = session.get(&name, "/").await;
            (answer.status, Instant::now())
        });
        tokio::time::sleep(Duration::from_millis(200)).await;
        plane.door.mode(Mode::Serve);
        let returned = Instant::now();
        let (status, answered) = asked.await.expect("no panic");
        assert_eq!(status, 200);
        back.push(answered - returned);
    }
    row("request for a known service, the control plane away", during);
    row("from its return to the answer of a request that waited", back);
}

fn main() {
    // `cargo test` runs benches too, to see that they build and start: there is nothing to measure then.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(table());
}
