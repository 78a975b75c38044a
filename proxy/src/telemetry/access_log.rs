//! The access log: one line for each request and each connection, when it is over.
//!
//! **In** closed records. **Out** lines, as JSON or as `key=value` text with the same names. **Refuses** what the filter
//! and the sample leave out; drops and counts what cannot be written (see [`lines`](super::lines)).
//!
//! The fields, in order; those without a value are left out: `time` (start, RFC 3339), `kind` (`request` or `connection`),
//! `outcome` (`served`, `refused`, `abandoned`), of refusals `stage`, `code` and `fault`, `client_addr`, `client_identity`,
//! `client_cluster`, `client_namespace` and `client_service_account` where they are known, `sni`, `protocol`, `target`,
//! `endpoint`, `rule`, `would_refuse` and `would_refuse_rule` (what a policy that is only audited would have said), of
//! requests `method`, `path`, `route` (the rule of the service's profile), `status`, `grpc_status`, `user_agent`,
//! `traceparent` and `retries`, then `bytes_received`, `bytes_sent`, `duration_us`, and `<stage>_us` for each stage that took
//! time. Texts are escaped to printable ASCII and cut at 2 KiB.

use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use super::escape::Escape;
use super::labels;
use super::lines::{Counts, Destination, Lines};
use crate::record::{Event, Observer, Outcome, Record, Request, Stage};

/// What is written, and where.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Which records are written.
    pub filter: Filter,
    /// How lines look.
    pub format: Format,
    /// Where they go.
    pub destination: Destination,
    /// The share of the records without error that is written, 0.0 to 1.0. Errors are written all.
    pub sample: f64,
    /// Whether `path` shows the query, which often carries secrets.
    pub query: bool,
    /// How many lines may wait to be written.
    pub queue_lines: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            filter: Filter::All,
            format: Format::Json,
            destination: Destination::Stdout,
            sample: 1.0,
            query: false,
            // A second's worth at 8,000 requests a second, some 4 MB.
            queue_lines: 8192,
        }
    }
}

/// Which records are written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Filter {
    /// All, as far as the sample takes them.
    All,
    /// Refused and abandoned ones, statuses from 500 up, and gRPC statuses other than 0.
    Errors,
    /// None.
    Off,
}

/// How lines look.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// One JSON object a line.
    Json,
    /// `key=value`, the value in quotes where it needs them.
    Text,
}

/// The access log. Clones write to the same place.
#[derive(Clone, Debug)]
pub struct AccessLog {
    lines: Lines,
    filter: Filter,
    format: Format,
    sample: f64,
    query: bool,
}

impl AccessLog {
    /// Opens the destination and starts the thread that writes.
    pub fn start(settings: &Settings) -> io::Result<Self> {
        let lines = Lines::start("access-log", settings.destination.clone(), settings.queue_lines)?;
        let Settings { filter, format, sample, query, .. } = *settings;
        Ok(Self { lines, filter, format, sample, query })
    }

    /// Opens a file anew by its name before the next line, after it was moved away.
    pub fn reopen(&self) {
        self.lines.reopen();
    }

    /// Waits until what is queued has been written; see [`Lines::flush`].
    pub fn flush(&self, patience: Duration) -> bool {
        self.lines.flush(patience)
    }

    /// The queue, for the metrics to watch.
    pub fn lines(&self) -> Lines {
        self.lines.clone()
    }

    /// What became of the lines so far.
    pub fn counts(&self) -> Counts {
        self.lines.counts()
    }

    fn wants(&self, record: &Record) -> bool {
        match self.filter {
            Filter::Off => false,
            _ if is_error(record) => true,
            Filter::Errors => false,
            Filter::All => self.sample >= 1.0 || rand::random::<f64>() < self.sample,
        }
    }
}

impl Observer for AccessLog {
    fn event(&self, _: Event<'_>) {}

    fn closed(&self, record: &Record) {
        if self.wants(record) {
            self.lines.write(line(record, self.format, self.query));
        }
    }
}

fn is_error(record: &Record) -> bool {
    let bad = |request: &Request| {
        request.status.is_some_and(|status| status >= 500) || request.grpc_status.is_some_and(|status| status != 0)
    };
    record.outcome != Outcome::Served || record.request.as_deref().is_some_and(bad)
}

/// One line, with its newline.
fn line(record: &Record, format: Format, query: bool) -> Vec<u8> {
    let mut line = Line { out: Vec::with_capacity(768), format };
    line.time(record.started);
    line.text("kind", if record.request.is_some() { "request" } else { "connection" });
    match record.outcome {
        Outcome::Abandoned => line.text("outcome", "abandoned"),
        Outcome::Served => line.text("outcome", "served"),
        Outcome::Refused { stage, fault, code } => {
            line.text("outcome", "refused");
            line.text("stage", stage.as_str());
            line.text("code", code);
            line.text("fault", fault.as_str());
        }
    }
    line.display("client_addr", Some(record.peer.addr));
    line.optional("client_identity", record.peer.identity.as_ref().map(|identity| identity.as_str()));
    line.optional("client_cluster", record.peer.cluster.as_deref());
    if let Some((namespace, account)) = record.peer.identity.as_ref().map(labels::client)
        && !namespace.is_empty()
    {
        line.text("client_namespace", namespace);
        line.text("client_service_account", account);
    }
    line.optional("sni", record.peer.sni.as_ref().map(|name| name.as_str()));
    line.optional("protocol", record.protocol.map(|protocol| protocol.as_str()));
    line.display("target", record.target.as_ref());
    line.display("endpoint", record.endpoint);
    line.optional("rule", record.rule.as_deref());
    if let Some(audit) = &record.audit {
        line.text("would_refuse", audit.code);
        line.optional("would_refuse_rule", audit.rule.as_deref());
    }
    if let Some(request) = &record.request {
        line.text("method", request.method.as_str());
        let path = if query { &request.path } else { request.path.split('?').next().unwrap_or_default() };
        line.text("path", path);
        line.optional("route", request.route.as_deref());
        line.number("status", request.status.map(u64::from));
        line.number("grpc_status", request.grpc_status.map(u64::from));
        line.header("user_agent", request.user_agent.as_ref());
        line.header("traceparent", request.traceparent.as_ref());
        line.number("retries", (request.retries > 0).then_some(u64::from(request.retries)));
    }
    line.number("bytes_received", Some(record.bytes_received));
    line.number("bytes_sent", Some(record.bytes_sent));
    line.number("duration_us", Some(micros(record.duration)));
    for (stage, took) in Stage::ALL.iter().zip(record.stages) {
        line.number(stage_key(*stage), (!took.is_zero()).then(|| micros(took)));
    }
    line.end()
}

const fn stage_key(stage: Stage) -> &'static str {
    match stage {
        Stage::Accept => "accept_us",
        Stage::Tls => "tls_us",
        Stage::Detect => "detect_us",
        Stage::Authorise => "authorise_us",
        Stage::Route => "route_us",
        Stage::Balance => "balance_us",
        Stage::Connect => "connect_us",
        Stage::Relay => "relay_us",
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Microseconds, always six digits, so that lines sort by time.
const TIME: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");

/// A line in the making.
struct Line {
    out: Vec<u8>,
    format: Format,
}

impl Line {
    fn key(&mut self, key: &'static str) {
        let before: &[&str] = match (self.format, self.out.is_empty()) {
            (Format::Json, true) => &["{\"", key, "\":"],
            (Format::Json, false) => &[",\"", key, "\":"],
            (Format::Text, true) => &[key, "="],
            (Format::Text, false) => &[" ", key, "="],
        };
        before.iter().for_each(|part| self.out.extend_from_slice(part.as_bytes()));
    }

    fn text(&mut self, key: &'static str, text: &str) {
        self.value(key, |escape| escape.push(text));
    }

    fn optional(&mut self, key: &'static str, text: Option<&str>) {
        if let Some(text) = text {
            self.text(key, text);
        }
    }

    fn display(&mut self, key: &'static str, value: Option<impl std::fmt::Display>) {
        if let Some(value) = value {
            self.value(key, |escape| {
                let _ = std::fmt::Write::write_fmt(escape, format_args!("{value}"));
            });
        }
    }

    fn header(&mut self, key: &'static str, value: Option<&http::HeaderValue>) {
        if let Some(value) = value {
            self.text(key, &String::from_utf8_lossy(value.as_bytes()));
        }
    }

    fn number(&mut self, key: &'static str, value: Option<u64>) {
        if let Some(value) = value {
            self.key(key);
            // Writing to memory does not fail.
            let _ = write!(self.out, "{value}");
        }
    }

    fn time(&mut self, time: SystemTime) {
        let start = OffsetDateTime::from(time);
        self.value("time", |escape| escape.push(&start.format(TIME).unwrap_or_default()));
    }

    fn value(&mut self, key: &'static str, write: impl FnOnce(&mut Escape<'_>)) {
        self.key(key);
        let start = self.out.len();
        write(&mut Escape::new(&mut self.out));
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"._:/-+@,;~%".contains(byte);
        if self.format == Format::Json || start == self.out.len() || !self.out[start..].iter().all(plain) {
            self.out.insert(start, b'"');
            self.out.push(b'"');
        }
    }

    fn end(mut self) -> Vec<u8> {
        self.out.extend_from_slice(if self.format == Format::Json { b"}\n" } else { b"\n" });
        self.out
    }
}

#[cfg(test)]
mod tests;
