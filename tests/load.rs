//! Load beside a case, with what its clients saw counted: good clients, who connect anew when they have to and send again what
//! was certainly not processed, and who believe only what came whole.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use isthmus::tls::{ALPN_H2, ALPN_HTTP11};
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::peer::{Body, Peer, empty};
use crate::spawn;
use crate::world::service;

/// Nothing that a client of a case waits for takes longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Clients that ask without end.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    saw: Arc<Mutex<Saw>>,
    tasks: Vec<JoinHandle<()>>,
}

/// What clients saw.
#[derive(Clone, Debug, Default)]
pub struct Saw {
    /// How often: a status whose response came whole, `broken` for one that broke off, `nothing` for no response at all,
    /// `late` for none in 20 s.
    pub counts: BTreeMap<String, u64>,
    /// The longest that anyone waited.
    pub slowest: Duration,
    /// Bodies that came whole, where they are not all the same.
    pub bodies: BTreeMap<Vec<u8>, u64>,
}

impl Saw {
    /// How many saw this.
    pub fn of(&self, what: &str) -> u64 {
        self.counts.get(what).copied().unwrap_or(0)
    }

    /// How many asked.
    pub fn all(&self) -> u64 {
        self.counts.values().sum()
    }

    /// Fails where a client saw anything else than these.
    #[track_caller]
    pub fn only(&self, allowed: &[&str]) {
        assert!(self.counts.keys().all(|seen| allowed.contains(&seen.as_str())), "{self:?}");
    }
}

impl Load {
    /// So many HTTP/1 and HTTP/2 clients of `name` that GET `path`, each with a pause after each answer.
    pub fn start(peer: &Peer, name: &str, path: &str, (http1, http2): (usize, usize), pause: Duration) -> Self {
        let (stop, saw) = (Arc::new(AtomicBool::new(false)), Arc::<Mutex<Saw>>::default());
        let uri = format!("http://{}{path}", service(name));
        let tasks = (0..http1 + http2).map(|at| {
            let client = Client { peer: peer.clone(), uri: uri.clone(), newer: at >= http1 };
            spawn(run(client, Arc::clone(&stop), Arc::clone(&saw), pause))
        });
        Self { tasks: tasks.collect(), stop, saw }
    }

    /// What they have seen so far.
    pub fn saw(&self) -> Saw {
        self.saw.lock().clone()
    }

    /// Forgets what they have seen.
    pub fn forget(&self) {
        *self.saw.lock() = Saw::default();
    }

    /// Waits until they have seen so much more.
    #[track_caller]
    pub fn more(&self, count: u64) -> impl Future<Output = ()> {
        let place = std::panic::Location::caller();
        let goal = self.saw.lock().all() + count;
        async move {
            let begun = Instant::now();
            while self.saw.lock().all() < goal {
                assert!(begun.elapsed() < 2 * PATIENCE, "too slow: {place}: {:?}", self.saw());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    /// Waits until `what` has been seen by somebody.
    #[track_caller]
    pub fn until(&self, what: &str) -> impl Future<Output = ()> {
        let place = std::panic::Location::caller();
        async move {
            let begun = Instant::now();
            while self.saw.lock().of(what) == 0 {
                assert!(begun.elapsed() < 2 * PATIENCE, "never {what}: {place}: {:?}", self.saw());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    /// Lets them finish, and says what they saw.
    pub async fn stop(self) -> Saw {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
        let saw = self.saw.lock();
        saw.clone()
    }
}

struct Client {
    peer: Peer,
    uri: String,
    newer: bool,
}

enum Sender {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

async fn run(client: Client, stop: Arc<AtomicBool>, saw: Arc<Mutex<Saw>>, pause: Duration) {
    let mut kept = None;
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let (what, body) = match tokio::time::timeout(PATIENCE, client.ask(&mut kept)).await {
            Ok(Some(response)) => whole(response, &mut kept).await,
            Ok(None) => ("nothing".to_owned(), None),
            Err(_) => ("late".to_owned(), None),
        };
        {
            let mut saw = saw.lock();
            *saw.counts.entry(what).or_default() += 1;
            saw.slowest = saw.slowest.max(begun.elapsed());
            if let Some(body) = body {
                *saw.bodies.entry(body).or_default() += 1;
            }
        }
        tokio::time::sleep(pause).await;
    }
}

async fn whole(response: Response<Incoming>, kept: &mut Option<Sender>) -> (String, Option<Vec<u8>>) {
    let status = response.status().as_u16().to_string();
    let closes = response.headers().contains_key("connection");
    let whole = tokio::time::timeout(PATIENCE, response.into_body().collect()).await;
    if closes {
        *kept = None;
    }
    match whole {
        Ok(Ok(body)) => (status, Some(body.to_bytes().to_vec())),
        Ok(Err(_)) => {
            if matches!(kept, Some(Sender::Http1(_))) {
                *kept = None;
            }
            ("broken".to_owned(), None)
        }
        Err(_) => ("late".to_owned(), None),
    }
}

impl Client {
    /// A response's head, or none.
    async fn ask(&self, kept: &mut Option<Sender>) -> Option<Response<Incoming>> {
        loop {
            let reused = kept.is_some();
            let mut sender = match kept.take() {
                Some(sender) => sender,
                None => self.connect().await?,
            };
            let request = Request::get(&self.uri);
            let sent = match &mut sender {
                Sender::Http1(sender) => {
                    if reused && sender.ready().await.is_err() {
                        continue;
                    }
                    let host = self.uri.trim_start_matches("http://");
                    let (host, path) = host.split_at(host.find('/').unwrap());
                    sender.send_request(Request::get(path).header("host", host).body(empty()).unwrap()).await
                }
                Sender::Http2(sender) => {
                    if reused && sender.ready().await.is_err() {
                        continue;
                    }
                    sender.send_request(request.body(empty()).unwrap()).await
                }
            };
            match sent {
                Ok(response) => {
                    *kept = Some(sender);
                    return Some(response);
                }
                // RFC 9112 §9.3.1 and RFC 9113 §6.8: a kept connection that ends before an answer, or gives the request back.
                Err(error)
                    if reused
                        && (error.is_incomplete_message()
                            || error.is_canceled()
                            || error.is_closed()
                            || went_away(&error)) => {}
                Err(_) => return None,
            }
        }
    }

    async fn connect(&self) -> Option<Sender> {
        let alpn: &[u8] = if self.newer { ALPN_H2 } else { ALPN_HTTP11 };
        let stream = TokioIo::new(self.peer.try_gateway(&[alpn]).await?);
        if self.newer {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.ok()?;
            drop(spawn(connection));
            Some(Sender::Http2(sender))
        } else {
            let (sender, connection) = http1::handshake(stream).await.ok()?;
            drop(spawn(connection));
            Some(Sender::Http1(sender))
        }
    }
}

/// Whether a GOAWAY says that the request was not looked at.
pub fn went_away(error: &hyper::Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<h2::Error>());
    cause.is_some_and(|cause| cause.is_go_away() && cause.reason() == Some(h2::Reason::NO_ERROR))
}
