//! One connection: HTTP/1.1 written by hand, so that it can be broken anywhere.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;
use tokio_rustls::server::TlsStream;

use super::{Asked, Cut, Mood, State, objects};

pub(super) struct Connection {
    pub(super) state: Arc<Mutex<State>>,
    pub(super) changed: watch::Sender<u64>,
    pub(super) cuts: broadcast::Sender<Cut>,
}

type Stream = TlsStream<TcpStream>;

/// The connection is over.
struct Over;

impl From<std::io::Error> for Over {
    fn from(_: std::io::Error) -> Self {
        Self
    }
}

/// What a path asks for.
struct Query<'a> {
    kind: &'static str,
    /// Empty for all.
    namespace: &'a str,
    pairs: Vec<(&'a str, &'a str)>,
}

impl<'a> Query<'a> {
    fn read(path: &'a str) -> Option<Self> {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let rest = path.strip_prefix("/api/v1/").or_else(|| path.strip_prefix("/apis/discovery.k8s.io/v1/"))?;
        let (namespace, kind) = match rest.strip_prefix("namespaces/") {
            Some(rest) => rest.split_once('/')?,
            None => ("", rest),
        };
        let kind = match kind {
            "services" => "services",
            "endpointslices" => "endpointslices",
            _ => return None,
        };
        let pairs = query.split('&').filter_map(|pair| pair.split_once('=')).collect();
        Some(Self { kind, namespace, pairs })
    }

    fn value(&self, name: &str) -> Option<&'a str> {
        self.pairs.iter().find(|(found, _)| *found == name).map(|(_, value)| *value)
    }
}

impl Connection {
    pub(super) async fn serve(self, mut stream: Stream) {
        let mut read = Vec::new();
        while let Some(head) = head(&mut stream, &mut read).await {
            if self.answer(&mut stream, &head).await.is_err() {
                return;
            }
        }
    }

    async fn answer(&self, stream: &mut Stream, head: &str) -> Result<(), Over> {
        let path = head.split(' ').nth(1).unwrap_or_default();
        let (mood, token) = {
            let mut state = self.state.lock();
            state.asked.push(Asked { path: path.to_owned(), at: Instant::now() });
            (state.mood.clone(), state.token.clone())
        };
        let Some(query) = Query::read(path) else {
            return status(stream, 404, "NotFound", "", None).await;
        };
        let bearer = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("authorization").then(|| value.trim())
        });
        if bearer != Some(&format!("Bearer {token}")) {
            return status(stream, 401, "Unauthorized", "Unauthorized", None).await;
        }
        let watch = query.value("watch") == Some("true");
        match mood {
            Mood::Refuse(code, wait) => {
                let message = format!("{} is forbidden or too much: no", query.kind);
                return status(stream, code, "Refused", &message, wait).await;
            }
            Mood::Silent => {
                tokio::time::sleep(Duration::from_secs(3600)).await;
                return Err(Over);
            }
            Mood::Stuck if !watch => {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{\"kind\":").await?;
                stream.flush().await?;
                tokio::time::sleep(Duration::from_secs(3600)).await;
                return Err(Over);
            }
            Mood::GoneWatches if watch => {
                return status(stream, 410, "Expired", "too old resource version", None).await;
            }
            Mood::Garbage => return body(stream, 200, "<html>not what you think</html>", None).await,
            Mood::Well | Mood::Stuck | Mood::GoneWatches => {}
        }
        if watch { self.watch(stream, &query).await } else { self.list(stream, &query).await }
    }

    async fn list(&self, stream: &mut Stream, query: &Query<'_>) -> Result<(), Over> {
        let limit = query.value("limit").and_then(|limit| limit.parse().ok()).unwrap_or(usize::MAX);
        let text = {
            let mut state = self.state.lock();
            let (version, mut items) = match query.value("continue") {
                Some(token) => state.pages.remove(token).unwrap(),
                None => {
                    let found = state.objects.iter().filter(|((kind, namespace, _), _)| {
                        *kind == query.kind && (query.namespace.is_empty() || namespace == query.namespace)
                    });
                    (state.version, found.map(|(_, object)| object.clone()).collect())
                }
            };
            let rest = items.split_off(limit.min(items.len()));
            let mut metadata = json!({ "resourceVersion": version.to_string() });
            if !rest.is_empty() {
                let token = format!("page-{}-{}", query.kind, rest.len());
                metadata["continue"] = json!(token);
                metadata["remainingItemCount"] = json!(rest.len());
                state.pages.insert(token, (version, rest));
            }
            let (api, kind) = objects::list_kind(query.kind);
            // The objects of a list have neither kind nor version of their own.
            items.iter_mut().filter_map(Value::as_object_mut).for_each(|object| {
                object.remove("kind");
                object.remove("apiVersion");
            });
            json!({ "kind": kind, "apiVersion": api, "metadata": metadata, "items": items }).to_string()
        };
        body(stream, 200, &text, None).await
    }

    async fn watch(&self, stream: &mut Stream, query: &Query<'_>) -> Result<(), Over> {
        let mut at: u64 = query.value("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
        let seconds = query.value("timeoutSeconds").and_then(|seconds| seconds.parse().ok()).unwrap_or(290);
        let ends = tokio::time::Instant::now() + Duration::from_secs(seconds);
        let mut changed = self.changed.subscribe();
        let mut cuts = self.cuts.subscribe();
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
            .await?;
        stream.flush().await?;
        if at < self.state.lock().compacted {
            let gone = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "too old resource version", "reason": "Expired", "code": 410 });
            chunk(stream, &line("ERROR", &gone)).await?;
            return end(stream).await;
        }
        let mut gone = [0];
        loop {
            changed.mark_unchanged();
            for text in self.news(query, &mut at) {
                chunk(stream, &text).await?;
            }
            tokio::select! {
                change = changed.changed() => change.map_err(|_| Over)?,
                () = tokio::time::sleep_until(ends) => return end(stream).await,
                // The client says nothing while it watches: it has gone.
                _ = stream.read(&mut gone) => return Err(Over),
                cut = cuts.recv() => match cut.map_err(|_| Over)? {
                    Cut::Clean => return end(stream).await,
                    Cut::MidLine => {
                        chunk(stream, "{\"type\":\"MODIFIED\",\"object\":{\"kind\":\"Ser").await?;
                        return Err(Over);
                    }
                    Cut::Say(text) => {
                        let text = match text.strip_prefix("bookmark ") {
                            Some(version) => bookmark(query.kind, version),
                            None => text,
                        };
                        chunk(stream, &(text + "\n")).await?;
                    }
                    Cut::Instead(_) => {}
                },
            }
        }
    }

    /// The lines of what has changed since the version `at`, which moves.
    fn news(&self, query: &Query<'_>, at: &mut u64) -> Vec<String> {
        let mut state = self.state.lock();
        let since = *at;
        let new: Vec<_> = state.changes.iter().filter(|change| change.version > since).cloned().collect();
        *at = new.last().map_or(since, |change| change.version);
        let ours = new.into_iter().filter(|change| {
            change.kind == query.kind && (query.namespace.is_empty() || change.namespace == query.namespace)
        });
        let mut lines: Vec<_> = ours.map(|change| line(change.event, &change.object)).collect();
        if let Some(first) = lines.first_mut()
            && let Some(instead) = state.instead.take()
        {
            *first = instead + "\n";
        }
        lines
    }
}

fn line(event: &str, object: &Value) -> String {
    format!("{}\n", json!({ "type": event, "object": object }))
}

fn bookmark(kind: &str, version: &str) -> String {
    let kind = if kind == "services" { "Service" } else { "EndpointSlice" };
    let object = json!({ "kind": kind, "apiVersion": "v1", "metadata": { "resourceVersion": version } });
    json!({ "type": "BOOKMARK", "object": object }).to_string()
}

async fn chunk(stream: &mut Stream, text: &str) -> Result<(), Over> {
    stream.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes()).await?;
    Ok(stream.flush().await?)
}

async fn end(stream: &mut Stream) -> Result<(), Over> {
    stream.write_all(b"0\r\n\r\n").await?;
    Ok(stream.flush().await?)
}

async fn status(stream: &mut Stream, code: u16, reason: &str, message: &str, wait: Option<u64>) -> Result<(), Over> {
    let text = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code });
    body(stream, code, &text.to_string(), wait).await
}

async fn body(stream: &mut Stream, code: u16, text: &str, wait: Option<u64>) -> Result<(), Over> {
    let wait = wait.map_or(String::new(), |wait| format!("retry-after: {wait}\r\n"));
    let head = format!(
        "HTTP/1.1 {code} Said\r\ncontent-type: application/json\r\n{wait}content-length: {}\r\n\r\n",
        text.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(text.as_bytes()).await?;
    Ok(stream.flush().await?)
}

async fn head(stream: &mut Stream, read: &mut Vec<u8>) -> Option<String> {
    loop {
        if let Some(at) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            let rest = read.split_off(at + 4);
            return String::from_utf8(std::mem::replace(read, rest)).ok();
        }
        if stream.read_buf(read).await.ok()? == 0 {
            return None;
        }
    }
}
