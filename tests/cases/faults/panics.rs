//! A panic ends what panicked, alone; it is counted; and the gateway goes on.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http_body_util::BodyExt;
use isthmus::app::Observe;
use isthmus::record::{Event, Observer, Record};
use isthmus_tests::load::Load;
use isthmus_tests::peer::{empty, h2_request};
use isthmus_tests::world::{Setup, World};
use isthmus_tests::{soon, upstream};
use parking_lot::Mutex;

/// Goes off where it is told to: in an event of the connection, of the request, of the connect, or as a record is closed.
#[derive(Debug)]
struct Bomb {
    own: Rc<dyn Observer>,
    set: Arc<Mutex<Option<&'static str>>>,
}

impl Bomb {
    fn goes_off(&self, at: &'static str) {
        let mut set = self.set.lock();
        if *set == Some(at) {
            *set = None;
            drop(set);
            panic!("{at}: meant to be");
        }
    }
}

impl Observer for Bomb {
    fn event(&self, event: Event<'_>) {
        self.own.event(event);
        match event {
            Event::Handshake { .. } => self.goes_off("handshake"),
            Event::RequestStarted => self.goes_off("request"),
            Event::Connected { .. } => self.goes_off("connect"),
            _ => {}
        }
    }

    fn closed(&self, record: &Record) {
        self.own.closed(record);
        self.goes_off(if record.request.is_some() { "response" } else { "connection" });
    }
}

fn bomb() -> (Observe, Arc<Mutex<Option<&'static str>>>) {
    let set = Arc::<Mutex<_>>::default();
    let shared = Arc::clone(&set);
    (Arc::new(move |_, own| Rc::new(Bomb { own, set: Arc::clone(&shared) })), set)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wherever_it_happens_only_one_is_hit() {
    let (web, other) = (upstream::http().await, upstream::http().await);
    let (observe, set) = bomb();
    let setup = Setup::new().service("web", 80, "as_client", &[web.addr]).service("other", 80, "http1", &[other.addr]);
    let world = setup.start_observed(observe).await;
    // A stream and quick requests go on all the while, on the same worker, which is the only one.
    let h2 = world.shop().h2().await;
    let mut stream = h2.send(h2_request("GET", "web", "/endless").body(empty()).unwrap()).await.unwrap().into_body();
    let load = Load::start(&world.shop(), "web", "/", (2, 2), Duration::from_millis(2));
    load.more(50).await;
    load.saw().only(&["200"]);
    load.forget();
    // A connect belongs to nobody's task alone: it is counted for the process, where there is a hook for that.
    for (at, count) in [("connect", 0.0), ("request", 1.0), ("response", 2.0), ("handshake", 3.0), ("connection", 4.0)]
    {
        *set.lock() = Some(at);
        match at {
            // Also what waits for a connection that will never be is answered, one way or another.
            "connect" => load_once(&world, "other").await,
            "handshake" | "connection" => drop(world.shop().try_gateway(&[b"http/1.1"]).await),
            _ => {}
        }
        isthmus_tests::until(|| set.lock().is_none()).await;
        load.more(50).await;
        world.counted("isthmus_relay_panics_total", &[], count).await;
    }
    let saw = load.stop().await;
    assert!(saw.all() - saw.of("200") <= 3, "the request and the response that were hit: {saw:?}");
    for _ in 0..3 {
        assert!(soon(stream.frame()).await.unwrap().is_ok(), "the stream goes on");
    }
    assert_eq!(h2.get("other", "/").await.status, 200);
    drop((stream, h2));
    // Nothing is left of those that were hit.
    world.counted("isthmus_accept_open_connections", &[], 0.0).await;
}

async fn load_once(world: &World, service: &str) {
    let load = Load::start(&world.shop(), service, "/", (1, 0), Duration::ZERO);
    load.more(1).await;
    assert_eq!(load.stop().await.of("late"), 0);
}

/// A worker that cannot begin begins again, and what was handed to it meanwhile is served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_panics_starts_again() {
    let web = upstream::http().await;
    let starts = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&starts);
    let observe: Observe = Arc::new(move |_, own| {
        assert!(count.fetch_add(1, Ordering::SeqCst) != 0, "meant to be");
        own
    });
    let world = Setup::new().service("web", 80, "http1", &[web.addr]).workers(2).start_observed(observe).await;
    let load = Load::start(&world.shop(), "web", "/", (2, 2), Duration::from_millis(2));
    load.more(100).await;
    load.stop().await.only(&["200"]);
    assert!(starts.load(Ordering::SeqCst) >= 3);
    assert!(world.count("isthmus_relay_panics_total", &[]).await >= 1.0);
    world.counted("isthmus_accept_open_connections", &[], 0.0).await;
}
