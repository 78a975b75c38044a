//! A prober against the endpoint, and against gateways that fail at each step.

use std::collections::VecDeque;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;
use crate::endpoint::Endpoint;
use crate::health::Health;

/// What the next dial meets; the endpoint when nothing is said.
#[derive(Debug)]
enum Fate {
    /// The step fails.
    Fails(Step),
    /// The step never ends.
    Hangs(Step),
    /// The stream answers these bytes to whatever it is sent.
    Says(&'static [u8]),
}

/// Dials a pipe to an endpoint in this process.
#[derive(Clone, Debug)]
struct Pipe {
    endpoint: Arc<Endpoint>,
    fates: Arc<Mutex<VecDeque<Fate>>>,
    dials: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
    tasks: Arc<Mutex<JoinSet<()>>>,
}

impl Pipe {
    fn new(health: Arc<Health>) -> Self {
        Self {
            endpoint: Arc::new(Endpoint::new(health, crate::endpoint::Settings::default())),
            fates: Arc::default(),
            dials: Arc::default(),
            open: Arc::default(),
            tasks: Arc::default(),
        }
    }

    fn meet(&self, fates: impl IntoIterator<Item = Fate>) {
        self.fates.lock().expect("a lock").extend(fates);
    }

    fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    fn dials(&self) -> usize {
        self.dials.load(Ordering::SeqCst)
    }
}

impl Dial for Pipe {
    type Stream = DuplexStream;

    async fn dial(&self, addr: &str, progress: &Progress) -> Result<DuplexStream, DialError> {
        assert_eq!(addr, "gateway.west:4181");
        self.dials.fetch_add(1, Ordering::SeqCst);
        let fate = self.fates.lock().expect("a lock").pop_front();
        match fate {
            Some(Fate::Fails(step)) => return Err(DialError { step, message: "no luck".to_owned() }),
            Some(Fate::Hangs(step)) if step < Step::Http => {
                progress.enter(step);
                std::future::pending::<()>().await;
            }
            _ => {}
        }
        let (ours, mut theirs) = duplex(16 * 1024);
        let (endpoint, open) = (Arc::clone(&self.endpoint), Arc::clone(&self.open));
        open.fetch_add(1, Ordering::SeqCst);
        self.tasks.lock().expect("a lock").spawn(async move {
            match fate {
                Some(Fate::Says(bytes)) => {
                    let _ = theirs.read(&mut [0; 1024]).await;
                    let _ = theirs.write_all(bytes).await;
                    let _ = theirs.read_to_end(&mut Vec::new()).await;
                }
                Some(_) => drop(theirs.read_to_end(&mut Vec::new()).await),
                None => endpoint.serve_connection(theirs, ([192, 0, 2, 1], 1).into()).await,
            }
            open.fetch_sub(1, Ordering::SeqCst);
        });
        Ok(ours)
    }
}

fn prober(pipe: &Pipe, settings: Settings) -> (Prober<Pipe>, Reader) {
    let target = Target {
        cluster: "west".to_owned(),
        addr: "gateway.west:4181".to_owned(),
        authority: "probe-gateway-west:4181".to_owned(),
        path: "//health".to_owned(),
    };
    Prober::new(pipe.clone(), target, settings).expect("a valid target")
}

/// Lets everything that is ready happen.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn asks_both_ways_and_keeps_its_connection() {
    for mode in [Mode::Http1, Mode::Http2] {
        let pipe = Pipe::new(Health::new());
        let (mut prober, _) = prober(&pipe, Settings { mode, ..Settings::default() });
        for _ in 0..3 {
            prober.probe().await.expect("alive");
        }
        assert_eq!((pipe.dials(), pipe.open()), (1, 1), "{mode:?}");
        // Longer than the endpoint keeps an idle connection: the prober finds it closed and dials again.
        sleep(Duration::from_secs(100)).await;
        prober.probe().await.expect("alive");
        assert_eq!((pipe.dials(), pipe.open()), (2, 1), "{mode:?}");
        drop(prober);
        settle().await;
        assert_eq!(pipe.open(), 0, "{mode:?}");
        assert_eq!(pipe.endpoint.counts().healthy, 4);
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_probe_leaves_no_connection() {
    for mode in [Mode::Http1, Mode::Http2] {
        let health = Health::new();
        let pipe = Pipe::new(Arc::clone(&health));
        health.drain();
        let (mut prober, _) = prober(&pipe, Settings { mode, ..Settings::default() });
        for _ in 0..3 {
            let failure = prober.probe().await.expect_err("it drains");
            assert_eq!(failure.to_string(), "status: 503: not ready: draining");
        }
        settle().await;
        assert_eq!((pipe.dials(), pipe.open()), (3, 0), "{mode:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn says_which_step_failed() {
    let table = [
        (Mode::Http2, Fate::Fails(Step::Name), Step::Name, "no luck"),
        (Mode::Http2, Fate::Fails(Step::Tls), Step::Tls, "no luck"),
        (Mode::Http2, Fate::Hangs(Step::Name), Step::Name, "timed out after 30s"),
        (Mode::Http2, Fate::Hangs(Step::Connect), Step::Connect, "timed out after 30s"),
        (Mode::Http2, Fate::Hangs(Step::Tls), Step::Tls, "timed out after 30s"),
        (Mode::Http2, Fate::Hangs(Step::Http), Step::Http, "timed out after 30s"),
        (Mode::Http1, Fate::Hangs(Step::Http), Step::Http, "timed out after 30s"),
        (Mode::Http2, Fate::Says(b"SSH-2.0-OpenSSH\r\n"), Step::Http, ""),
        (Mode::Http1, Fate::Says(b"SSH-2.0-OpenSSH\r\n"), Step::Http, "invalid HTTP version parsed"),
        (Mode::Http1, Fate::Says(b"HTTP/1.1 204 No Content\r\n\r\n"), Step::Status, "204"),
        (Mode::Http1, Fate::Says(b"HTTP/1.1 500 Oh\r\ncontent-length: 9\r\n\r\nhe"), Step::Status, "500"),
        (Mode::Http1, Fate::Says(b"HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n"), Step::Status, "302"),
        (Mode::Http1, Fate::Says(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhe"), Step::Http, "timed out after 30s"),
    ];
    for (mode, fate, step, message) in table {
        let pipe = Pipe::new(Health::new());
        let case = format!("{mode:?} {fate:?}");
        pipe.meet([fate]);
        let (mut prober, _) = prober(&pipe, Settings { mode, ..Settings::default() });
        let failure = prober.probe().await.expect_err("it fails");
        assert_eq!(failure.step, step, "{case}: {failure}");
        assert!(failure.message.contains(message), "{case}: {failure}");
        settle().await;
        assert_eq!(pipe.open(), 0, "{case}");
    }
}

#[tokio::test(start_paused = true)]
async fn three_failures_in_a_row_are_death_and_one_success_is_life() {
    let pipe = Pipe::new(Health::new());
    let (prober, reader) = prober(&pipe, Settings::default());
    let mut tasks = JoinSet::new();
    tasks.spawn(prober.run());
    settle().await;
    let seen = || {
        let status = reader.status();
        (status.alive, status.failures_in_row, status.successful, status.unsuccessful)
    };
    // A period and its jitter lie between 3 s and 3.3 s.
    let period = || sleep(Duration::from_millis(3300));
    assert_eq!((seen(), pipe.dials()), ((true, 0, 0, 0), 0), "optimistic, and the first probe waits a period");
    sleep(Duration::from_millis(2999)).await;
    assert_eq!(pipe.dials(), 0);
    pipe.meet([Fate::Fails(Step::Connect), Fate::Fails(Step::Connect)]);
    sleep(Duration::from_millis(302)).await;
    assert_eq!(seen(), (true, 1, 0, 0));
    period().await;
    assert_eq!(seen(), (true, 2, 0, 0), "below the threshold nothing is counted");
    period().await;
    assert_eq!(seen(), (true, 0, 1, 0), "a success forgives");
    drop(tasks);
    let (prober, reader) = self::prober(&pipe, Settings { first_at_once: true, ..Settings::default() });
    let mut tasks = JoinSet::new();
    pipe.meet((0..4).map(|_| Fate::Fails(Step::Tls)));
    tasks.spawn(prober.run());
    settle().await;
    assert_eq!(reader.status().failures_in_row, 1);
    sleep(Duration::from_millis(6700)).await;
    let status = reader.status();
    assert_eq!((status.alive, status.failures_in_row, status.unsuccessful), (false, 3, 1));
    assert_eq!(status.last_error.as_ref().map(ToString::to_string), Some("tls: no luck".to_owned()));
    sleep(Duration::from_millis(3300)).await;
    assert_eq!((reader.status().alive, reader.status().unsuccessful), (false, 2));
    sleep(Duration::from_millis(3300)).await;
    let status = reader.status();
    assert_eq!((status.alive, status.failures_in_row, status.successful), (true, 0, 1));
    assert!(status.last_error.is_some(), "what went wrong stays to be seen");
}

#[test]
fn targets_that_make_no_request() {
    let pipe = || Pipe::new(Health::new());
    let target = |authority: &str, path: &str| Target {
        cluster: String::new(),
        addr: String::new(),
        authority: authority.to_owned(),
        path: path.to_owned(),
    };
    for (authority, path) in [("a b", "/"), ("", "/"), ("gw", "/ x"), ("gw\r\nx: y", "/"), ("gw", "/\r\n")] {
        for mode in [Mode::Http1, Mode::Http2] {
            let made = Prober::new(pipe(), target(authority, path), Settings { mode, ..Settings::default() });
            assert!(made.is_err(), "{mode:?} {authority:?} {path:?}");
        }
    }
}
