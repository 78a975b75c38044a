//! A stand-in for the Kubernetes API server: real list and watch in JSON, over TLS, with a token; and faults when a case asks.
//!
//! It keeps objects and every change to them under a growing resource version, as the real one does: a watch from an old
//! version is told what has changed since, from one that is too old 410, and a list may come in pages.

pub mod objects;
mod serve;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use crate::pki::{self, Pair, Pki};
use crate::spawn;

/// The name in the server's certificate, as in a cluster.
const NAME: &str = "kubernetes.default.svc";

/// What live watches are made to do.
#[derive(Clone, Debug)]
pub enum Cut {
    /// To end as when their time is up.
    Clean,
    /// To break in the middle of a line.
    MidLine,
    /// To say this in the place of the next event, which is lost.
    Instead(String),
    /// To say this.
    Say(String),
}

/// What becomes of requests.
#[derive(Clone, Debug, Default)]
pub enum Mood {
    /// They are answered.
    #[default]
    Well,
    /// Status, and seconds in `retry-after`.
    Refuse(u16, Option<u64>),
    /// They are read, and that is all.
    Silent,
    /// Lists begin, and then nothing more comes.
    Stuck,
    /// Watches are refused with 410 over HTTP.
    GoneWatches,
    /// Answered by what is no JSON.
    Garbage,
}

/// A request as the server saw it.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Path and query.
    pub path: String,
    /// When.
    pub at: Instant,
}

impl Asked {
    /// Whether it is a watch.
    pub fn is_watch(&self) -> bool {
        self.path.contains("watch=true")
    }
}

/// One change: its version, the collection, the namespace, and the event.
#[derive(Clone, Debug)]
struct Change {
    version: u64,
    kind: &'static str,
    namespace: String,
    event: &'static str,
    object: Value,
}

#[derive(Debug, Default)]
struct State {
    version: u64,
    /// By collection, namespace and name.
    objects: BTreeMap<(&'static str, String, String), Value>,
    changes: Vec<Change>,
    /// Changes up to this version are forgotten.
    compacted: u64,
    /// The rest of a list, by the token that continues it.
    pages: BTreeMap<String, (u64, Vec<Value>)>,
    asked: Vec<Asked>,
    mood: Mood,
    token: String,
    /// Changes of the next event are lost, and this is said instead.
    instead: Option<String>,
}

/// The server.
#[derive(Debug)]
pub struct ApiServer {
    /// Where it listens.
    pub addr: SocketAddr,
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
    cuts: broadcast::Sender<Cut>,
    folder: tempfile::TempDir,
    tls: Arc<Mutex<Arc<rustls::ServerConfig>>>,
    listening: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

impl ApiServer {
    /// Starts empty, at version 1.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let state = State { version: 1, token: "token-1".to_owned(), ..State::default() };
        let server = Self {
            addr,
            state: Arc::new(Mutex::new(state)),
            changed: watch::Sender::new(1),
            cuts: broadcast::Sender::new(64),
            folder: tempfile::tempdir().unwrap(),
            tls: Arc::new(Mutex::new(tls(&Self::pair(&Pki::get().east)))),
            listening: Mutex::new(None),
        };
        std::fs::write(server.folder.path().join("ca.crt"), Pki::get().anchor.cert_pem()).unwrap();
        std::fs::write(server.folder.path().join("token"), "token-1").unwrap();
        server.listen(listener);
        server
    }

    fn pair(issuer: &isthmus::tls::mint::Authority) -> Pair {
        pki::pair(issuer, &[NAME])
    }

    fn listen(&self, listener: TcpListener) {
        let (state, tls) = (Arc::clone(&self.state), Arc::clone(&self.tls));
        let (changed, cuts) = (self.changed.clone(), self.cuts.clone());
        let task = spawn(async move {
            // Ends with this task, and all connections with it.
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let Ok((socket, _)) = listener.accept().await else { return };
                let acceptor = TlsAcceptor::from(Arc::clone(&tls.lock()));
                let connection =
                    serve::Connection { state: Arc::clone(&state), changed: changed.clone(), cuts: cuts.clone() };
                connections.spawn(async move {
                    if let Ok(stream) = acceptor.accept(socket).await {
                        connection.serve(stream).await;
                    }
                });
            }
        });
        *self.listening.lock() = Some(task);
    }

    /// A kubeconfig that leads here, with a token that is read from a file.
    pub fn kubeconfig(&self) -> PathBuf {
        let text = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "clusters": [{ "name": "here", "cluster": {
                "server": format!("https://{}", self.addr),
                "certificate-authority": self.folder.path().join("ca.crt"),
                "tls-server-name": NAME,
            }}],
            "users": [{ "name": "me", "user": { "tokenFile": self.folder.path().join("token") } }],
            "contexts": [{ "name": "here", "context": { "cluster": "here", "user": "me" } }],
        });
        let path = self.folder.path().join("kubeconfig");
        std::fs::write(&path, text.to_string()).unwrap();
        path
    }

    /// Creates or replaces an object, as [`objects`] makes them.
    pub fn apply(&self, object: &Value) {
        self.change(object, false);
    }

    /// Deletes it.
    pub fn delete(&self, object: &Value) {
        self.change(object, true);
    }

    fn change(&self, object: &Value, delete: bool) {
        let kind = objects::collection(object);
        let text = |field: &str| object["metadata"][field].as_str().unwrap().to_owned();
        let (namespace, name) = (text("namespace"), text("name"));
        let mut state = self.state.lock();
        state.version += 1;
        let version = state.version;
        let mut object = object.clone();
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let key = (kind, namespace.clone(), name);
        let old = if delete { state.objects.remove(&key) } else { state.objects.insert(key, object.clone()) };
        let event = match (delete, old) {
            (true, None) => return,
            (true, Some(_)) => "DELETED",
            (false, None) => "ADDED",
            (false, Some(_)) => "MODIFIED",
        };
        state.changes.push(Change { version, kind, namespace, event, object });
        drop(state);
        self.changed.send_replace(version);
    }

    /// Forgets all changes so far: who watches from before is too late.
    pub fn compact(&self) {
        let mut state = self.state.lock();
        state.changes.clear();
        state.compacted = state.version;
    }

    /// The version grows by other people's objects, and nothing that is watched changes.
    pub fn time_passes(&self) {
        self.state.lock().version += 100;
    }

    /// Tells live watches how far the version has come.
    pub fn bookmark(&self) {
        let version = self.state.lock().version.to_string();
        let _ = self.cuts.send(Cut::Say(format!("bookmark {version}")));
    }

    /// Makes live watches do something.
    pub fn cut(&self, cut: Cut) {
        if let Cut::Instead(text) = &cut {
            self.state.lock().instead = Some(text.clone());
        } else {
            let _ = self.cuts.send(cut);
        }
    }

    /// What becomes of requests from now on.
    pub fn mood(&self, mood: Mood) {
        self.state.lock().mood = mood;
    }

    /// Takes only this token from now on.
    pub fn token(&self, token: &str) {
        token.clone_into(&mut self.state.lock().token);
    }

    /// Shows a certificate of another issuer to new connections, and ends those that are.
    pub async fn issuer(&self, issuer: &isthmus::tls::mint::Authority) {
        *self.tls.lock() = tls(&Self::pair(issuer));
        self.stop();
        self.go_on().await;
    }

    /// Is not there any more.
    pub fn stop(&self) {
        if let Some(task) = self.listening.lock().take() {
            task.abort();
        }
    }

    /// Is there again, at the same address.
    pub async fn go_on(&self) {
        let bound = async {
            loop {
                match TcpListener::bind(self.addr).await {
                    Ok(listener) => return listener,
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        };
        self.listen(crate::soon(bound).await);
    }

    /// Every request so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.state.lock().asked.clone()
    }

    /// How many watches stand.
    pub fn watches(&self) -> usize {
        self.cuts.receiver_count()
    }
}

fn tls(pair: &Pair) -> Arc<rustls::ServerConfig> {
    let chain = CertificateDer::pem_slice_iter(pair.chain.as_bytes()).map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
    Arc::new(rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap())
}
