//! `balance`: which endpoint, and what happens when there is none.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use isthmus::endpoint::{Endpoint, Endpoints};
use isthmus::route::{Claim, Published};
use isthmus_tests::peer::{empty, h2_request, target};
use isthmus_tests::world::{Setup, World};
use isthmus_tests::{spawn, upstream};
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

#[tokio::test]
async fn load_is_spread() {
    let (one, two) = (upstream::http().await, upstream::http().await);
    let world = Setup::new().service("web", 80, "http1", &[one.addr, two.addr]).start().await;
    let h2 = world.shop().h2().await;
    // Side by side: one after the other all would go to whichever answered the quicker.
    let requests: Vec<_> = (0..60)
        .map(|_| {
            let h2 = h2.clone();
            spawn(async move { h2.get("web", "/slow").await.status })
        })
        .collect();
    for request in requests {
        assert_eq!(request.await.unwrap(), 200);
    }
    assert_eq!(one.seen().len() + two.seen().len(), 60);
    assert!(one.seen().len() > 15 && two.seen().len() > 15, "{} and {}", one.seen().len(), two.seen().len());
}

#[tokio::test]
async fn an_endpoint_that_fails_is_ejected_and_comes_back() {
    let broken = Arc::new(AtomicBool::new(true));
    let asked = Arc::new(AtomicUsize::new(0));
    let (state, count) = (Arc::clone(&broken), Arc::clone(&asked));
    let flaky = upstream::tcp(move |mut socket, _| {
        let (state, count) = (Arc::clone(&state), Arc::clone(&count));
        async move {
            upstream::read_head(&mut socket).await;
            count.fetch_add(1, Ordering::SeqCst);
            let status = if state.load(Ordering::SeqCst) { "503 Oops" } else { "200 OK" };
            let _ = socket
                .write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").as_bytes())
                .await;
        }
    })
    .await;
    let good = upstream::http().await;
    let setup = Setup::new().service("web", 80, "http1", &[flaky, good.addr]);
    let setup = setup.set("balance", "max_response_failures", "2").set("balance", "ejection_min", "600ms");
    // What is measured is soon forgotten, so that the slower one is asked again too.
    let world = setup.set("balance", "decay", "10ms").start().await;
    let mut http = world.shop().h1().await;
    let mut bad = 0;
    while bad < 2 {
        bad += usize::from(http.get("web", "/").await.status() == 503);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for _ in 0..40 {
        assert_eq!(http.get("web", "/").await.status(), 200, "two failures in a row eject it");
    }
    world.counted("isthmus_balance_ejections_total", &[], 1.0).await;
    let state = world.state().await;
    let ejected: Vec<_> = state["endpoints"].as_array().unwrap().iter().filter(|row| row["ejected_by"] == 1).collect();
    assert_eq!(ejected.len(), 1, "{state}");
    assert_eq!(ejected[0]["address"], flaky.to_string());
    broken.store(false, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(900)).await;
    let before = asked.load(Ordering::SeqCst);
    for _ in 0..20 {
        assert_eq!(http.get("web", "/").await.status(), 200);
    }
    assert!(asked.load(Ordering::SeqCst) > before, "it is back");
}

#[tokio::test]
async fn never_all_of_them_at_once() {
    let (one, two) = (upstream::http().await, upstream::http().await);
    let setup = Setup::new().service("web", 80, "http1", &[one.addr, two.addr]);
    let world = setup.set("balance", "max_response_failures", "1").start().await;
    let mut http = world.shop().h1().await;
    for _ in 0..20 {
        assert_eq!(http.get("web", "/status/500").await.status(), 500, "the backend's own word, not the gateway's");
    }
    assert_eq!(one.seen().len() + two.seen().len(), 20);
}

#[tokio::test]
async fn a_dead_service_fails_fast_and_recovers() {
    let nobody = upstream::nobody();
    let setup = Setup::new().service("web", 80, "http1", &[nobody]).set("balance", "max_connect_failures", "1");
    let setup =
        setup.set("balance", "ejection_min", "1s").set("balance", "ejection_max", "1s").set("http", "max_retries", "0");
    let world = setup.set("balance", "failfast_timeout", "250ms").start().await;
    let mut http = world.shop().h1().await;
    assert_eq!(http.get("web", "/").await.status(), 502, "the connect itself failed");
    let from = Instant::now();
    assert_eq!(http.get("web", "/").await.status(), 504, "this one waited");
    let waited = from.elapsed();
    assert!((Duration::from_millis(200)..Duration::from_millis(900)).contains(&waited), "{waited:?}");
    let from = Instant::now();
    let answer = http.get("web", "/").await;
    assert_eq!((answer.status(), answer.field("l5d-proxy-error")), (503, "service unavailable"));
    assert!(from.elapsed() < Duration::from_millis(150), "{:?}", from.elapsed());
    world.refused("balance.failfast_wait").await;
    world.refused("balance.failfast").await;
    // It comes up, and after its ejection it serves.
    let web = upstream::http_at(nobody).await;
    let mut status = 0;
    for _ in 0..40 {
        status = http.get("web", "/").await.status();
        if status == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!((status, web.seen().is_empty()), (200, false));
}

#[tokio::test]
async fn the_queue_is_bounded() {
    let setup = Setup::new().service("web", 80, "http1", &[]).set("balance", "queue", "3");
    let world = setup.set("balance", "failfast_timeout", "400ms").start().await;
    let h2 = world.shop().h2().await;
    let requests: Vec<_> = (0..8)
        .map(|_| {
            let h2 = h2.clone();
            spawn(async move { h2.ask(h2_request("GET", "web", "/").body(empty()).unwrap()).await.status })
        })
        .collect();
    let mut statuses = Vec::new();
    for request in requests {
        statuses.push(request.await.unwrap());
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [503, 503, 503, 503, 503, 504, 504, 504]);
    world.refused("balance.queue_full").await;
}

fn publish(world: &World, addrs: &[std::net::SocketAddr]) {
    let list = addrs.iter().map(|addr| Endpoint::new(*addr));
    let endpoints = Arc::new(Endpoints { list: list.collect() });
    world.app().directory.replace(Claim(0), vec![Published { target: target("web", 80), exported: true, endpoints }]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_are_replaced_under_load_without_a_failed_request() {
    let first = upstream::http().await;
    let world = Setup::new().service("web", 80, "as_client", &[first.addr]).workers(2).start().await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = Vec::new();
    for n in 0..4 {
        let (shop, stop) = (world.shop(), Arc::clone(&stop));
        clients.push(spawn(async move {
            let mut count = 0_u32;
            if n % 2 == 0 {
                let h2 = shop.h2().await;
                while !stop.load(Ordering::SeqCst) {
                    assert_eq!(h2.get("web", "/").await.status, 200);
                    count += 1;
                }
            } else {
                let mut http = shop.h1().await;
                while !stop.load(Ordering::SeqCst) {
                    assert_eq!(http.get("web", "/").await.status(), 200);
                    count += 1;
                }
            }
            count
        }));
    }
    let mut old = first;
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        let new = upstream::http().await;
        publish(&world, &[old.addr, new.addr]);
        tokio::time::sleep(Duration::from_millis(50)).await;
        publish(&world, &[new.addr]);
        // As a pod does: it ends a moment after it was taken out.
        tokio::time::sleep(Duration::from_millis(50)).await;
        old.stop();
        old = new;
    }
    stop.store(true, Ordering::SeqCst);
    let mut total = 0;
    for client in clients {
        total += client.await.unwrap();
    }
    assert!(total > 100, "{total}");
    world.counted("isthmus_relay_requests_total", &[("status", "200")], f64::from(total)).await;
    assert!(world.lines().iter().all(|line| line["outcome"] != "refused"));
}
