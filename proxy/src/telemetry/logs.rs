//! The process's own log: `tracing` to standard error, its level changeable at run time.
//!
//! **In** a filter in the syntax of `RUST_LOG`, a format. **Out** lines on standard error; a [`LogHandle`] through which the
//! admin server reads and sets the filter; [`Refusals`], which writes refusals without letting the same one flood.
//! **Refuses** filters that do not parse.
//!
//! Lines are written by a thread of their own: a standard error that nobody reads must not stop a worker. Control
//! characters inside a line are spelled out, so that one event is one line whatever a peer sent.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::Subscriber;
use tracing_subscriber::filter::{EnvFilter, ParseError};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::Registry;
use tracing_subscriber::reload;

use super::lines::{Destination, Lines};
use crate::fault::Fault;
use crate::record::{Event, Observer, Outcome, Record};

/// How the process logs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Settings {
    /// What is logged, such as `info` or `isthmus=debug,warn`.
    pub filter: String,
    /// How lines look.
    pub format: Format,
    /// Whether text is coloured: for a person's terminal only.
    pub colour: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { filter: "info".to_owned(), format: Format::Text, colour: false }
    }
}

/// How lines look.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// Why logging could not be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter does not parse, or is too long.
    #[error("the log filter is not valid: {0}")]
    Filter(String),
    /// The stream or the thread behind it cannot be had.
    #[error("the log cannot be written")]
    Io(#[from] io::Error),
    /// Something else has set up logging in this process.
    #[error("logging is already set up")]
    Taken,
}

/// Reads and sets what is logged. Clones are the same.
#[derive(Clone, Debug)]
pub struct LogHandle {
    reload: reload::Handle<EnvFilter, Registry>,
    filter: Arc<Mutex<String>>,
    lines: Lines,
}

/// Writes what is still queued when it is dropped, at the end of `main`.
#[derive(Debug)]
pub struct Guard(Lines);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.flush(PATIENCE);
    }
}

/// How long the end of the process waits for the last lines.
const PATIENCE: Duration = Duration::from_secs(1);

/// How many lines may wait to be written.
const QUEUE_LINES: usize = 4096;

/// The longest filter, in bytes.
const MAX_FILTER_BYTES: usize = 1024;

/// Sets logging up for the whole process.
pub fn start(settings: &Settings) -> Result<(LogHandle, Guard), Error> {
    let lines = Lines::start("log", Destination::Stderr, QUEUE_LINES)?;
    let (subscriber, handle) = build(settings, lines.clone())?;
    tracing::subscriber::set_global_default(subscriber).map_err(|_| Error::Taken)?;
    log_panics();
    Ok((handle, Guard(lines)))
}

/// Panics since [`start`], wherever in the process.
static PANICS: AtomicU64 = AtomicU64::new(0);

/// How many panics there have been since logging was set up. Anything above 0 is a bug.
pub fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

/// Counts and logs panics like everything else. The standard library's own hook would write to standard error itself,
/// where a reader that has stopped reading would stop the worker.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        let message = panic.payload_as_str().unwrap_or_default();
        let place = panic.location().map(tracing::field::display);
        let thread = std::thread::current();
        tracing::error!(code = "panic", message, place, thread = thread.name(), "a bug: something panicked");
    }));
}

fn build(settings: &Settings, lines: Lines) -> Result<(Box<dyn Subscriber + Send + Sync>, LogHandle), Error> {
    let (filter, reload) = reload::Layer::new(parse(&settings.filter)?);
    let handle = LogHandle { reload, filter: Arc::new(Mutex::new(settings.filter.clone())), lines: lines.clone() };
    let out = Out { lines, colour: settings.colour };
    let base = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(out).with_ansi(settings.colour);
    let subscriber: Box<dyn Subscriber + Send + Sync> = match settings.format {
        Format::Json => Box::new(base.with(layer.json().flatten_event(true))),
        Format::Text => Box::new(base.with(layer)),
    };
    Ok((subscriber, handle))
}

fn parse(filter: &str) -> Result<EnvFilter, Error> {
    if filter.len() > MAX_FILTER_BYTES {
        return Err(Error::Filter(format!("longer than {MAX_FILTER_BYTES} bytes")));
    }
    EnvFilter::builder().parse(filter).map_err(|error: ParseError| Error::Filter(error.to_string()))
}

impl LogHandle {
    /// What is logged now.
    pub fn filter(&self) -> String {
        self.filter.lock().clone()
    }

    /// Changes what is logged from now on.
    pub fn set_filter(&self, filter: &str) -> Result<(), Error> {
        let parsed = parse(filter)?;
        let mut now = self.filter.lock();
        self.reload.reload(parsed).map_err(|error| Error::Filter(error.to_string()))?;
        filter.clone_into(&mut now);
        Ok(())
    }

    /// Waits until what is queued has been written; see [`Lines::flush`].
    pub fn flush(&self, patience: Duration) -> bool {
        self.lines.flush(patience)
    }
}

/// Where `tracing` writes: each event comes as one piece.
#[derive(Clone, Debug)]
struct Out {
    lines: Lines,
    colour: bool,
}

impl<'a> MakeWriter<'a> for Out {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl io::Write for Out {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = event.strip_suffix(b"\n").unwrap_or(event);
        let mut line = Vec::with_capacity(event.len() + 1);
        for byte in text {
            match byte {
                0x1b if self.colour => line.push(*byte),
                0..=0x1f | 0x7f => line.extend(byte.escape_ascii()),
                _ => line.push(*byte),
            }
        }
        line.push(b'\n');
        self.lines.write(line);
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Lets at most so many lines per code through each second, and counts the others. One per worker.
#[derive(Debug)]
pub struct Limiter {
    per_second: u32,
    windows: RefCell<HashMap<&'static str, Window>>,
}

#[derive(Debug)]
struct Window {
    began: Instant,
    passed: u32,
    suppressed: u64,
}

impl Limiter {
    /// A limiter; with 0 nothing passes.
    pub fn new(per_second: u32) -> Self {
        Self { per_second, windows: RefCell::default() }
    }

    /// Whether a line about `code` may be written now; if so, how many were not written since the last one.
    pub fn admit(&self, code: &'static str) -> Option<u64> {
        let now = Instant::now();
        let mut windows = self.windows.borrow_mut();
        let window = windows.entry(code).or_insert(Window { began: now, passed: 0, suppressed: 0 });
        if now.duration_since(window.began) >= Duration::from_secs(1) {
            window.began = now;
            window.passed = 0;
        }
        if window.passed >= self.per_second {
            window.suppressed += 1;
            return None;
        }
        window.passed += 1;
        Some(std::mem::take(&mut window.suppressed))
    }
}

/// Writes refusals to the log: at `warn` what the gateway or a service behind it did, at `info` what peers did and what
/// the policy refused, at `debug` what any open port sees all day. One per worker.
#[derive(Debug)]
pub struct Refusals {
    limiter: Limiter,
}

impl Refusals {
    /// At most `per_second` lines of each code a second.
    pub fn new(per_second: u32) -> Self {
        Self { limiter: Limiter::new(per_second) }
    }
}

/// What comes from port scans and health checks rather than from peers that meant us.
const NOISE: [&str; 9] = [
    "accept.eof",
    "accept.io",
    "detect.eof",
    "relay.client_reset",
    "tls.eof",
    "tls.foreign_sni",
    "tls.io",
    "tls.no_sni",
    "tls.plaintext",
];

/// Whether a refusal is of the kind that any open port sees all day.
pub(super) fn is_noise(code: &str, fault: Fault) -> bool {
    fault == Fault::Client && NOISE.contains(&code)
}

impl Observer for Refusals {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::Panicked => {
                if let Some(suppressed) = self.limiter.admit("panicked") {
                    tracing::error!(suppressed, "a task panicked and was ended alone");
                }
            }
            // Each one has an identity that an operator may look for, and each is a connection that was there before: as
            // many as there were connections, and no more.
            Event::Distrusted { reason, identity, addr, detail } => {
                tracing::warn!(stage = "tls", code = reason, %identity, peer = %addr, reason = detail, "no longer trusted");
            }
            _ => {}
        }
    }

    fn closed(&self, record: &Record) {
        let Outcome::Refused { stage, fault, code } = record.outcome else { return };
        let noise = is_noise(code, fault);
        let enabled = match fault {
            Fault::Ours | Fault::Upstream => true,
            _ if noise => tracing::enabled!(tracing::Level::DEBUG),
            Fault::Client | Fault::Policy => tracing::enabled!(tracing::Level::INFO),
        };
        // What nobody would read must not use up the window.
        let Some(suppressed) = enabled.then(|| self.limiter.admit(code)).flatten() else { return };
        let identity = record.peer.identity.as_ref().map(tracing::field::display);
        let service = record.target.as_ref().map(tracing::field::display);
        let reason = record.detail.as_deref().unwrap_or_default();
        let (stage, client) = (stage.as_str(), record.peer.addr);
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(stage, code, fault = fault.as_str(), %client, identity, service, reason, suppressed, "refused")
            };
        }
        match fault {
            Fault::Ours | Fault::Upstream => line!(warn),
            _ if noise => line!(debug),
            Fault::Client | Fault::Policy => line!(info),
        }
    }
}

#[cfg(test)]
mod tests;
