//! Backends that refuse, reset, hang, trickle, truncate, lie, chatter, die and come back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use isthmus_tests::load::{Load, Saw};
use isthmus_tests::world::{Setup, World};
use isthmus_tests::{soon, upstream};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::Instant;

/// Answers every request well, and says that it did.
async fn well(socket: &mut TcpStream) {
    while upstream::read_head(socket).await.ends_with("\r\n\r\n") {
        if socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nwell").await.is_err() {
            return;
        }
    }
}

async fn healthy() -> SocketAddr {
    upstream::tcp(|mut socket, _| async move { well(&mut socket).await }).await
}

/// Does the same to every request.
async fn each<F, Fut>(act: F) -> SocketAddr
where
    F: Fn(TcpStream) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    upstream::tcp(move |mut socket, _| {
        let act = act.clone();
        async move {
            if upstream::read_head(&mut socket).await.ends_with("\r\n\r\n") {
                act(socket).await;
            }
        }
    })
    .await
}

/// One service of these endpoints, besides one that is healthy and asked all the while.
async fn world(endpoints: &[SocketAddr], change: impl FnOnce(Setup) -> Setup) -> World {
    let setup = Setup::new().service("web", 80, "http1", endpoints).service("calm", 80, "http1", &[healthy().await]);
    let setup = setup.set("balance", "ejection_min", "300ms").set("balance", "ejection_max", "600ms");
    change(setup.workers(2)).start().await
}

/// Runs load against the service with the fault and against the calm one; the clients of that one notice nothing.
async fn under_load(world: &World, requests: u64) -> Saw {
    let shop = world.shop();
    let pause = Duration::from_millis(5);
    let calm = Load::start(&shop, "calm", "/", (2, 2), pause);
    let load = Load::start(&shop, "web", "/", (3, 3), pause);
    load.more(requests).await;
    let saw = load.stop().await;
    let calm = calm.stop().await;
    calm.only(&["200"]);
    assert!(calm.all() > requests / 20, "{calm:?}");
    saw
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_refuses_costs_nobody_anything() {
    let world = world(&[upstream::nobody(), healthy().await, healthy().await], |setup| setup).await;
    under_load(&world, 400).await.only(&["200"]);
    // It is tried now and then, and no more than that.
    let refused = world.count("isthmus_connect_attempts_total", &[("result", "connect.refused")]).await;
    assert!((1.0..80.0).contains(&refused), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_all_refuse_clients_are_told_soon() {
    let world = world(&[upstream::nobody(), upstream::nobody()], |setup| setup).await;
    let saw = under_load(&world, 400).await;
    saw.only(&["502", "503", "504"]);
    assert!(saw.of("503") > saw.of("504"), "failing fast is the rule: {saw:?}");
    assert!(saw.slowest < Duration::from_secs(4), "{saw:?}");
}

/// A reset after the request has gone may mean that it was processed: it is not sent again, and costs what it hit until the
/// endpoint is ejected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_resets_before_its_response_is_left() {
    let bad = each(|socket| async move { socket.set_zero_linger().unwrap() }).await;
    let world = world(&[bad, healthy().await, healthy().await], |setup| setup).await;
    let saw = under_load(&world, 600).await;
    saw.only(&["200", "502"]);
    assert!(saw.of("502") > 0 && saw.of("502") * 5 < saw.all(), "{saw:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_response_that_breaks_off_never_looks_whole() {
    for head in ["content-length: 100", "transfer-encoding: chunked"] {
        for reset in [false, true] {
            let bad = each(move |mut socket| async move {
                let words = format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n4\r\nhalf\r\n");
                let _ = socket.write_all(words.as_bytes()).await;
                if reset {
                    // After the bytes have gone: a reset takes what is still on its way.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    socket.set_zero_linger().unwrap();
                }
            })
            .await;
            let world = world(&[bad], |setup| setup).await;
            let saw = under_load(&world, 100).await;
            saw.only(&["broken", "502", "503", "504"]);
            assert!(saw.of("broken") > 0, "{saw:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_hangs_is_given_up_and_left() {
    let bad = each(|socket| async move {
        std::future::pending::<()>().await;
        drop(socket);
    })
    .await;
    let world = world(&[bad, healthy().await, healthy().await], |setup| {
        setup.set("http", "request_timeout", "300ms").set("balance", "ejection_max", "60s")
    })
    .await;
    let saw = under_load(&world, 600).await;
    saw.only(&["200", "504"]);
    assert!(saw.of("504") > 0 && saw.of("504") * 10 < saw.all(), "{saw:?}");
    // Nothing is left of the requests that were given up.
    world.counted("isthmus_relay_open_requests", &[], 0.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_trickles_holds_up_its_own_clients_only() {
    let bad = each(|mut socket| async move {
        for byte in b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\nconnection: close\r\n\r\n0123456789" {
            let _ = socket.write_all(&[*byte]).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let world = world(&[bad], |setup| setup).await;
    let saw = under_load(&world, 40).await;
    saw.only(&["200"]);
    assert_eq!(saw.bodies.keys().collect::<Vec<_>>(), [b"0123456789"], "{saw:?}");
}

/// Bytes behind a response's length belong to nobody: least of all to the next request on the connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_lies_about_its_length_cannot_answer_for_others() {
    let liar = upstream::tcp(|mut socket, _| async move {
        while upstream::read_head(&mut socket).await.ends_with("\r\n\r\n") {
            let words =
                b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ntrueHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil";
            if socket.write_all(words).await.is_err() {
                return;
            }
        }
    })
    .await;
    let world = world(&[liar], |setup| setup).await;
    let saw = under_load(&world, 600).await;
    saw.only(&["200", "502"]);
    assert_eq!(saw.bodies.keys().filter(|body| body.as_slice() == b"evil").count(), 0, "{saw:?}");
    assert!(saw.of("200") > saw.of("502"), "{saw:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_says_1xx_for_ever_is_given_up() {
    let said = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&said);
    let bad = each(move |mut socket| {
        let count = Arc::clone(&count);
        async move {
            // At a pace: what is asked here is whether it ends.
            while socket.write_all(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n").await.is_ok() {
                count.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    })
    .await;
    let world = world(&[bad], |setup| setup.set("http", "request_timeout", "300ms")).await;
    let saw = under_load(&world, 60).await;
    saw.only(&["503", "504"]);
    assert!(saw.of("504") > 0, "{saw:?}");
    world.counted("isthmus_relay_open_requests", &[], 0.0).await;
    // Its connections end with the requests.
    let mut before = said.load(Ordering::Relaxed);
    soon(async {
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let now = said.load(Ordering::Relaxed);
            if now == before {
                return;
            }
            before = now;
        }
    })
    .await;
}

/// Half of them slow: of each two that are looked at, the faster one is asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_ones_are_left_to_themselves() {
    let slow_served = Arc::new(AtomicUsize::new(0));
    let mut endpoints = vec![healthy().await, healthy().await];
    for _ in 0..2 {
        let served = Arc::clone(&slow_served);
        let slow = upstream::tcp(move |mut socket, _| {
            let served = Arc::clone(&served);
            async move {
                while upstream::read_head(&mut socket).await.ends_with("\r\n\r\n") {
                    served.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(300)).await;
                    if socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nslow").await.is_err() {
                        return;
                    }
                }
            }
        })
        .await;
        endpoints.push(slow);
    }
    let world = world(&endpoints, |setup| setup).await;
    let saw = under_load(&world, 1000).await;
    saw.only(&["200"]);
    let slow = slow_served.load(Ordering::Relaxed);
    assert!(slow > 0, "they are asked at all");
    // Both choices of two fall on the slow half in a sixth of the cases: without the balancer it would be half.
    assert!(slow as u64 * 4 < saw.all(), "{slow} of {} went to the slow half", saw.all());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_dead_then_one_back() {
    let (first, second) = (upstream::nobody(), upstream::nobody());
    let world = world(&[first, second], |setup| setup).await;
    let load = Load::start(&world.shop(), "web", "/", (2, 2), Duration::from_millis(20));
    load.until("503").await;
    load.forget();
    let from = Instant::now();
    let one = upstream::http_at(second).await;
    load.until("200").await;
    let took = from.elapsed();
    // ejection_max, and what a busy machine needs.
    assert!(took < Duration::from_millis(600) + Duration::from_secs(15), "{took:?}");
    // One is dead still: that is found out beside the load, and costs nobody anything, once it has been found out.
    for _ in 0..10 {
        load.forget();
        load.more(100).await;
        let saw = load.saw();
        if saw.of("200") == saw.all() {
            break;
        }
    }
    load.saw().only(&["200"]);
    // And down again, and up.
    one.stop();
    load.until("503").await;
    let _one = upstream::http_at(second).await;
    load.forget();
    load.until("200").await;
    let saw = load.stop().await;
    assert_eq!(saw.of("nothing") + saw.of("late"), 0, "{saw:?}");
}

/// A backend that is replaced while it is asked, by a rolling restart that does not wait for anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_dies_and_comes_back_again_and_again() {
    let (steady, fickle) = (upstream::http().await, upstream::nobody());
    let world = world(&[steady.addr, fickle], |setup| setup).await;
    let load = Load::start(&world.shop(), "web", "/", (3, 3), Duration::from_millis(5));
    for _ in 0..4 {
        let alive = upstream::http_at(fickle).await;
        load.more(100).await;
        alive.stop();
        load.more(100).await;
    }
    let saw = load.stop().await;
    // A request that it had taken when it died may have been processed: that one is not sent again.
    saw.only(&["200", "502"]);
    assert!(saw.of("502") * 50 <= saw.all(), "{saw:?}");
}
