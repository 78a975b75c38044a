//! The most memory that peers can make a gateway hold, by its configuration: the README's formula, term by term.
//!
//! **In** a configuration and how many workers there are. **Out** terms, each a count times a size, and their sum. Every term
//! takes its worst case as if it were the only one, and all of them together: every client hostile, every endpoint stuck.
//! What a gateway needs in good times is a small part of it. What the kernel holds for sockets is not in it.

use serde::Serialize;

use super::Config;

/// The program, its threads, allocator and tables before anybody connects, in bytes.
const PROCESS_BYTES: u64 = 48 << 20;
/// A worker's runtime, pools and arenas, in bytes.
const WORKER_BYTES: u64 = 4 << 20;
/// A connection's task, records and places: the largest future is asserted below 32 KiB.
const CONNECTION_BYTES: u64 = 40 << 10;
/// What TLS keeps for a connection: keys, a record being read, records being written (64 KiB at most), in bytes.
const TLS_BYTES: u64 = 112 << 10;
/// A handshake besides its hello: the messages of its chain (64 KiB at most) and the arithmetic, in bytes.
const HANDSHAKE_BYTES: u64 = 96 << 10;
/// An opaque connection's buffers when both sides are slow, in bytes.
const OPAQUE_BYTES: u64 = 2 * (64 << 10);
/// HTTP/2 besides its streams: a frame being read, frames being written, header tables, in bytes.
const HTTP2_BYTES: u64 = 64 << 10;
/// A stream of HTTP/2 whose answer of a few lines waits for its client to read it, in bytes.
const STREAM_BYTES: u64 = 3 << 10;
/// A request's task, its record, and what hyper and h2 keep for it on both sides, in bytes.
const REQUEST_BYTES: u64 = 24 << 10;
/// What a head may take in memory for each byte that it is counted as: short fields weigh most.
const HEAD_FACTOR: u64 = 4;
/// An HTTP/1.1 endpoint's connection: its read and write buffer, in bytes.
const ENDPOINT_HTTP1_BYTES: u64 = 2 * (64 << 10);
/// What of a request's body is buffered towards an HTTP/2 endpoint that takes nothing, in bytes.
const ENDPOINT_SEND_BYTES: u64 = 256 << 10;
/// A service, its balancer on one worker, and one endpoint of it, in bytes.
const SERVICE_BYTES: u64 = 4 << 10;
/// A series of a metric on one worker, in bytes, and how many there may be of one family.
const SERIES_BYTES: u64 = 200;
const MAX_SERIES: u64 = 20_000;
/// Families of metrics that have that many.
const LARGE_FAMILIES: u64 = 4;
/// Lines that wait for the access log's file, in bytes.
const LOG_BYTES: u64 = 8 << 20;
/// A probe's or an operator's connection, in bytes.
const SIDE_BYTES: u64 = 256 << 10;
/// Connections of the admin port served at once.
const ADMIN_CONNECTIONS: u64 = 100;
/// What is kept of a client or service that has a limit, in bytes.
const TRACKED_BYTES: u64 = 512;
/// A call that was observed, in bytes.
const OBSERVED_BYTES: u64 = 1 << 10;

/// A part of the sum.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Term {
    /// What it is for.
    pub name: &'static str,
    /// How many there may be.
    pub count: u64,
    /// What each may take, in bytes.
    pub each_bytes: u64,
    /// The product.
    pub bytes: u64,
    /// The formula, in the keys of the configuration.
    pub formula: &'static str,
}

/// The most memory that peers can make a gateway hold.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Bound {
    /// Threads that serve connections.
    pub workers: u64,
    /// The parts.
    pub terms: Vec<Term>,
    /// Their sum, in bytes.
    pub bytes: u64,
}

fn number(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

impl Config {
    /// The bound with so many workers, where the configuration leaves their number to the machine.
    pub fn bound(&self, processors: usize) -> Bound {
        let file = &self.file;
        let workers = number(if file.workers == 0 { processors.max(1) } else { file.workers });
        let connections = number(file.accept.max_connections);
        let requests = workers.saturating_mul(number(file.http.max_requests));
        let head = file.http.max_header_bytes.0;
        let http1 = 2 * (head.max(8 << 10) + (4 << 10));
        let http2 = HTTP2_BYTES + HEAD_FACTOR * head;
        let session = OPAQUE_BYTES.max(http1).max(http2);
        let response = ENDPOINT_HTTP1_BYTES.max(file.connect.stream_window.0);
        let streams = connections.saturating_mul(file.http.max_streams.into());
        let unread_by_connection = connections.saturating_mul(file.http.connection_window.0);
        let unread_by_stream = requests.saturating_mul(file.http.stream_window.0);
        let (unread, unread_each) = if unread_by_connection < unread_by_stream {
            (connections, file.http.connection_window.0)
        } else {
            (requests, file.http.stream_window.0)
        };
        let term = |name, count: u64, each_bytes: u64, formula| {
            let bytes = count.saturating_mul(each_bytes);
            Term { name, count, each_bytes, bytes, formula }
        };
        let terms = vec![
            term("the process", 1, PROCESS_BYTES, "48 MiB"),
            term("workers", workers, WORKER_BYTES, "workers × 4 MiB"),
            term(
                "connections",
                connections,
                CONNECTION_BYTES + TLS_BYTES + session,
                "accept.max_connections × (152 KiB + the largest of: opaque 128 KiB; HTTP/1 2 × (max(http.max_header_bytes, 8 KiB) + 4 KiB); HTTP/2 64 KiB + 4 × http.max_header_bytes)",
            ),
            term(
                "handshakes",
                workers.saturating_mul(number(file.tls.max_handshakes)),
                HANDSHAKE_BYTES + 2 * file.tls.max_hello_bytes.0,
                "workers × tls.max_handshakes × (96 KiB + 2 × tls.max_hello_bytes)",
            ),
            term(
                "streams that wait to be read",
                streams,
                STREAM_BYTES,
                "accept.max_connections × http.max_streams × 3 KiB",
            ),
            term(
                "requests",
                requests,
                REQUEST_BYTES
                    + HEAD_FACTOR * head
                    + file.http.max_send_buffer.0
                    + response
                    + file.http.max_retry_body.0
                    + ENDPOINT_SEND_BYTES,
                "workers × http.max_requests × (280 KiB + 4 × http.max_header_bytes + http.max_send_buffer + http.max_retry_body + max(128 KiB, connect.stream_window))",
            ),
            term(
                "request bodies not yet read",
                unread,
                unread_each,
                "the smaller of: accept.max_connections × http.connection_window; workers × http.max_requests × http.stream_window",
            ),
            term(
                "services",
                number(file.route.max_services).saturating_add(number(file.sources.services.len())),
                SERVICE_BYTES.saturating_mul(1 + workers),
                "(route.max_services + the table's) × 4 KiB × (1 + workers)",
            ),
            term(
                "metrics",
                (1 + workers) * LARGE_FAMILIES * MAX_SERIES,
                SERIES_BYTES,
                "(1 + workers) × 4 × 20 000 × 200 B",
            ),
            term("the access log", 1, LOG_BYTES, "8 MiB"),
            term(
                "limits of clients and services",
                file.authorise.limits_tracked.into(),
                TRACKED_BYTES,
                "authorise.limits_tracked × 512 B",
            ),
            term(
                "observed calls",
                workers.saturating_mul(number(file.authorise.observed)),
                OBSERVED_BYTES,
                "workers × authorise.observed × 1 KiB",
            ),
            term(
                "probe and admin",
                number(file.probe.max_connections).saturating_add(ADMIN_CONNECTIONS),
                SIDE_BYTES,
                "(probe.max_connections + 100) × 256 KiB",
            ),
        ];
        let bytes = terms.iter().fold(0u64, |sum, term| sum.saturating_add(term.bytes));
        Bound { workers, terms, bytes }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn bound(more: &str) -> Bound {
        let text = format!("tls: {{ chain_file: a, key_file: b, bundle_file: c }}\n{more}");
        Config::parse(Path::new("x"), &text).unwrap().bound(2)
    }

    #[test]
    fn every_term_counts_and_more_of_anything_is_never_less() {
        let least = bound("workers: 1\n");
        assert_eq!(least.bytes, least.terms.iter().map(|term| term.bytes).sum::<u64>());
        for more in [
            "workers: 2",
            "accept: { max_connections: 30000 }",
            "tls: { chain_file: a, key_file: b, bundle_file: c, max_handshakes: 5000 }",
            "http: { max_streams: 2000 }",
            "http: { max_requests: 30000 }",
            "http: { max_header_bytes: 64KiB }",
            "http: { max_send_buffer: 1MiB }",
            "http: { stream_window: 1MiB }",
            "connect: { stream_window: 1MiB }",
            "route: { max_services: 10000 }",
            "probe: { max_connections: 1000 }",
        ] {
            let text = if more.starts_with("tls") {
                more.to_owned()
            } else {
                format!("tls: {{ chain_file: a, key_file: b, bundle_file: c }}\n{more}")
            };
            let text = if more.starts_with("workers") { text } else { format!("{text}\nworkers: 1") };
            let larger = Config::parse(Path::new("x"), &text).unwrap().bound(2);
            assert!(larger.bytes > least.bytes, "{more}");
        }
    }

    #[test]
    fn the_machine_says_how_many_workers_where_nobody_else_does() {
        assert_eq!((bound("").workers, bound("workers: 7").workers), (2, 7));
    }
}
