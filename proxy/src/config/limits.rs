//! Limits that would stop everything: a zero where it does not mean "off", and sizes that no protocol can keep to.
//!
//! **In** a configuration whose every key has been read. **Out** nothing. **Refuses** with the key at fault and what would be
//! right. Where zero is a word of its own ("off", "for ever", "no limit") the key's description says so.

use std::time::Duration;

use super::Config;
use super::file::File;

/// The smallest window of an HTTP/2 connection that can be announced, in bytes (RFC 9113 §6.9.2).
const LEAST_CONNECTION_WINDOW: u64 = 65_535;
/// The largest window, in bytes (RFC 9113 §6.9.1).
const MOST_WINDOW: u64 = (1 << 31) - 1;
/// Below this no hello with a server name and a key share fits, in bytes.
const LEAST_HELLO: u64 = 512;

/// Keys, whether they are zero, and what zero would do.
fn zeros(file: &File) -> [(&'static str, bool, &'static str); 26] {
    let never = |time: super::Time| time.0.is_zero();
    [
        ("accept.max_connections", file.accept.max_connections == 0, "0 would accept nobody; the default is 20000"),
        ("accept.backlog", file.accept.backlog == 0, "0 would queue nobody; the default is 1024"),
        (
            "accept.proxy_timeout",
            never(file.accept.proxy_timeout),
            "0 would refuse every load balancer; the default is 5s",
        ),
        ("tls.handshake_timeout", never(file.tls.handshake_timeout), "0 would end every handshake; the default is 10s"),
        ("tls.max_handshakes", file.tls.max_handshakes == 0, "0 would shake no hands; the default is 2048"),
        (
            "tls.reload_interval",
            never(file.tls.reload_interval),
            "0 would read the files without a pause; the default is 30s",
        ),
        ("detect.timeout", never(file.detect.timeout), "0 would end every session; the default is 10s"),
        ("route.discovery_timeout", never(file.route.discovery_timeout), "0 would find nothing; the default is 3s"),
        ("route.max_services", file.route.max_services == 0, "0 would find no service by demand; the default is 4096"),
        ("route.idle_timeout", never(file.route.idle_timeout), "0 would forget services in use; the default is 5m"),
        (
            "balance.failfast_timeout",
            never(file.balance.failfast_timeout),
            "0 would wait for no endpoint; the default is 3s",
        ),
        ("connect.timeout", never(file.connect.timeout), "0 would reach no endpoint; the default is 1s"),
        (
            "connect.max_connections",
            file.connect.max_connections == 0,
            "0 would reach no endpoint; the default is 1024",
        ),
        ("connect.max_streams", file.connect.max_streams == 0, "0 would reach no endpoint; the default is 100"),
        (
            "connect.max_http2_connections",
            file.connect.max_http2_connections == 0,
            "0 would reach no endpoint; the default is 8",
        ),
        ("connect.max_age", never(file.connect.max_age), "0 would replace every connection at once; the default is 1h"),
        (
            "connect.keepalive_timeout",
            never(file.connect.keepalive_timeout),
            "0 would take every endpoint for dead; the default is 10s",
        ),
        ("http.header_timeout", never(file.http.header_timeout), "0 would end every request; the default is 10s"),
        ("http.idle_timeout", never(file.http.idle_timeout), "0 would end every connection; the default is 10m"),
        ("http.max_requests", file.http.max_requests == 0, "0 would refuse every request; the default is 16384"),
        ("http.max_headers", file.http.max_headers == 0, "0 would refuse every request; the default is 100"),
        ("http.max_streams", file.http.max_streams == 0, "0 would refuse every HTTP/2 request; the default is 1024"),
        ("http.max_send_buffer", file.http.max_send_buffer.0 == 0, "0 would send no response; the default is 64KiB"),
        (
            "http.keepalive_timeout",
            never(file.http.keepalive_timeout),
            "0 would take every client for dead; the default is 3s",
        ),
        ("probe.max_connections", file.probe.max_connections == 0, "0 would answer no probe; the default is 512"),
        ("drain.deadline", never(file.drain.deadline), "0 would cut everything at once; the default is 55s"),
    ]
}

impl Config {
    pub(super) fn check_limits(&self) -> Result<(), (String, String)> {
        let file = &self.file;
        let wrong = |key: &str, message: &str| Err((key.to_owned(), message.to_owned()));
        if let Some((key, _, message)) = zeros(file).into_iter().find(|(_, zero, _)| *zero) {
            return wrong(key, message);
        }
        if file.http.max_header_bytes.0 < 1024 {
            return wrong("http.max_header_bytes", "below 1KiB no real request fits; the default is 16KiB");
        }
        if file.tls.max_hello_bytes.0 < LEAST_HELLO {
            return wrong("tls.max_hello_bytes", "below 512 bytes no real hello fits; the default is 16KiB");
        }
        for (key, window, least) in [
            ("http.stream_window", file.http.stream_window, 1024),
            ("http.connection_window", file.http.connection_window, LEAST_CONNECTION_WINDOW),
            ("connect.stream_window", file.connect.stream_window, 1024),
        ] {
            if !(least..=MOST_WINDOW).contains(&window.0) {
                return wrong(key, &format!("a window of HTTP/2 is from {least} to {MOST_WINDOW} bytes here"));
            }
        }
        if file.http.min_body_rate.0 > 0 && file.http.body_window.0 < Duration::from_secs(1) {
            return wrong("http.body_window", "below 1s no rate can be told; `http.min_body_rate: 0` turns it off");
        }
        for (key, prefix, most) in [
            ("accept.network_prefix_v4", file.accept.network_prefix_v4, 32),
            ("accept.network_prefix_v6", file.accept.network_prefix_v6, 128),
        ] {
            if !(1..=most).contains(&prefix) {
                return wrong(key, &format!("a prefix is a number of bits from 1 to {most}"));
            }
        }
        Ok(())
    }
}
