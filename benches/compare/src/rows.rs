//! The rows of the table: what is asked of each gateway, and in which unit its cost is told.

use crate::client::Talk;
use crate::gateways::Kind;

/// How a row's figure is told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Unit {
    /// Microseconds of the gateway's processor for each request, exchange or handshake.
    Each,
    /// Microseconds of the gateway's processor for each MiB of bodies.
    Mib,
    /// KiB of resident memory for each connection.
    Kib,
    /// MiB of resident memory of the process.
    Mem,
    /// The 99th percentile, in microseconds from the time when the request was due.
    P99,
}

impl Unit {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Each => "µs CPU each",
            Self::Mib => "µs CPU per MiB",
            Self::Kib => "KiB RSS each",
            Self::Mem => "MiB RSS",
            Self::P99 => "µs p99",
        }
    }
}

/// How a row is driven.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Drive {
    /// Connections, and requests under way on each: an answer is followed by the next request.
    Closed(usize, usize),
    /// Requests per second over sixteen connections, with handshakes per second besides.
    Open { rate: f64, storm: f64 },
    /// The same at half of what the row before was able to do.
    Half,
    /// Handshakes, sixteen at once; resumed ones where the gateway offers them.
    Handshakes { resumed: bool },
    /// Nothing: the process as it has started.
    Nothing,
    /// So many connections that had a request each.
    Idle(usize),
}

/// What Isthmus has more of in a row, against its own small case.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Growth {
    pub(crate) services: usize,
    pub(crate) rules: usize,
    pub(crate) connections: usize,
}

/// A row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) unit: Unit,
    pub(crate) drive: Drive,
    /// The service that is asked for.
    service: &'static str,
    say: Say,
    /// Says the service in a transport header, as Linkerd's proxies do: then only Isthmus understands it.
    pub(crate) header: bool,
    pub(crate) growth: Growth,
}

#[derive(Clone, Copy, Debug)]
enum Say {
    Get,
    GetH1,
    Grpc,
    Upload,
    Echo,
    Drink,
    Pour,
    Leave,
}

/// The size of small bodies, of gRPC messages with their five bytes of head, and of large bodies.
pub(crate) const SMALL: usize = 128;
pub(crate) const MESSAGE: usize = 105;
pub(crate) const LARGE: usize = 1 << 20;

const SMALL_H2: Drive = Drive::Closed(16, 16);
const BULK: Drive = Drive::Closed(4, 2);

fn row(name: &'static str, title: &'static str, unit: Unit, drive: Drive, service: &'static str, say: Say) -> Row {
    Row { name, title, unit, drive, service, say, header: false, growth: Growth::default() }
}

/// All rows, in the order of the table.
pub(crate) fn all() -> Vec<Row> {
    use Drive::{Closed, Half, Handshakes, Idle, Nothing, Open};
    use Unit::{Each, Kib, Mem, Mib, P99};
    let small = |name, title, growth| Row { growth, ..row(name, title, Each, SMALL_H2, "small-h2", Say::Get) };
    let headed = |row| Row { header: true, ..row };
    vec![
        row("h2-h2", "HTTP/2 128 B, h2 upstream", Each, SMALL_H2, "small-h2", Say::Get),
        row("h2-h1", "HTTP/2 128 B, h1 upstream", Each, SMALL_H2, "small-h1", Say::Get),
        row("h1-h2", "HTTP/1.1 128 B, h2 upstream", Each, Closed(64, 1), "small-h2", Say::GetH1),
        row("h1-h1", "HTTP/1.1 128 B, h1 upstream", Each, Closed(64, 1), "small-h1", Say::GetH1),
        row("grpc-h2", "gRPC unary 100 B, h2 upstream", Each, SMALL_H2, "grpc-h2", Say::Grpc),
        row("grpc-h1", "gRPC unary 100 B, h1 upstream", Each, SMALL_H2, "grpc-h1", Say::Grpc),
        row("down-h2", "1 MiB down over HTTP/2, h2 upstream", Mib, BULK, "down-h2", Say::Get),
        row("down-h1", "1 MiB down over HTTP/2, h1 upstream", Mib, BULK, "down-h1", Say::Get),
        row("up-h2", "1 MiB up over HTTP/2, h2 upstream", Mib, BULK, "small-h2", Say::Upload),
        row("up-h1", "1 MiB up over HTTP/2, h1 upstream", Mib, BULK, "small-h1", Say::Upload),
        row("echo", "opaque echo 128 B", Each, Closed(64, 1), "echo", Say::Echo),
        row("opaque-down", "opaque bulk down", Mib, Closed(4, 1), "flood", Say::Drink),
        row("opaque-up", "opaque bulk up", Mib, Closed(4, 1), "swallow", Say::Pour),
        row("handshake", "full mTLS handshake", Each, Handshakes { resumed: false }, "small-h2", Say::Leave),
        row("resumed", "resumed handshake", Each, Handshakes { resumed: true }, "small-h2", Say::Leave),
        row("start", "memory after the start", Mem, Nothing, "small-h2", Say::Get),
        row("idle", "idle HTTP/2 connection, 5 000", Kib, Idle(5000), "small-h2", Say::Get),
        row("idle-opaque", "idle opaque connection, 5 000", Kib, Idle(5000), "echo", Say::Echo),
        row("open-2000", "HTTP/2 at 2 000/s", P99, Open { rate: 2000.0, storm: 0.0 }, "small-h2", Say::Get),
        row("open-half", "HTTP/2 at half of saturation", P99, Half, "small-h2", Say::Get),
        row(
            "storm",
            "HTTP/2 at 2 000/s under 500 handshakes/s",
            P99,
            Open { rate: 2000.0, storm: 500.0 },
            "small-h2",
            Say::Get,
        ),
        headed(row("header-h2", "transport header, HTTP/2", Each, SMALL_H2, "small-h2", Say::Get)),
        headed(row("header-h1", "transport header, HTTP/1.1", Each, Closed(64, 1), "small-h1", Say::GetH1)),
        headed(row("header-echo", "transport header, opaque echo", Each, Closed(64, 1), "echo", Say::Echo)),
        small("grow-services", "HTTP/2 128 B, 10 000 services", Growth { services: 10_000, ..Growth::default() }),
        small("grow-rules", "HTTP/2 128 B, 10 000 rules", Growth { rules: 10_000, ..Growth::default() }),
        small("grow-connections", "HTTP/2 128 B, 5 000 connections", Growth { connections: 5000, ..Growth::default() }),
    ]
}

impl Row {
    /// Whether this gateway can do what the row asks.
    pub(crate) fn fits(&self, kind: Kind) -> bool {
        let alone = self.header || self.growth != Growth::default();
        match kind {
            Kind::Isthmus => self.drive != Drive::Handshakes { resumed: true },
            _ if alone => false,
            // It speaks HTTP/2 to servers for gRPC only.
            // Nor does it pass trailers on from HTTP/1.1.
            Kind::Nginx => !matches!(self.name, "h2-h2" | "h1-h2" | "down-h2" | "up-h2" | "grpc-h1"),
            _ => true,
        }
    }

    /// The row that says the same without a transport header.
    pub(crate) fn plain(&self) -> Option<&'static str> {
        match self.name {
            "header-h2" => Some("h2-h2"),
            "header-h1" => Some("h1-h1"),
            "header-echo" => Some("echo"),
            _ => None,
        }
    }

    /// The service that this gateway is asked for: in rows about the client's side nginx may use what it can.
    pub(crate) fn service(&self, kind: Kind) -> &'static str {
        if kind == Kind::Nginx && self.service == "small-h2" { "small-h1" } else { self.service }
    }

    /// What is said.
    pub(crate) fn talk(&self, host: &str) -> Talk {
        match self.say {
            Say::Get => Talk::get(host),
            Say::GetH1 => Talk::get_h1(host),
            Say::Grpc => Talk::grpc(host, MESSAGE),
            Say::Upload => Talk::post(host, LARGE),
            Say::Echo => Talk::Echo(SMALL),
            Say::Drink => Talk::Drink,
            Say::Pour => Talk::Pour,
            Say::Leave => Talk::Leave,
        }
    }

    /// What goes before the first bytes of a session (Linkerd's `transport.l5d.io/v1`).
    pub(crate) fn header(&self, host: &str) -> Vec<u8> {
        if !self.header {
            return Vec::new();
        }
        let mut message = vec![0x08, 80, 0x12, u8::try_from(host.len()).expect("a short name")];
        message.extend_from_slice(host.as_bytes());
        match self.say {
            Say::GetH1 => message.extend_from_slice(&[0x1a, 2, 0x0a, 0]),
            Say::Echo => (),
            _ => message.extend_from_slice(&[0x1a, 2, 0x12, 0]),
        }
        let mut header = b"transport.l5d.io/v1\r\n\r\n".to_vec();
        header.extend_from_slice(&u32::try_from(message.len()).expect("a short message").to_be_bytes());
        header.extend_from_slice(&message);
        header
    }

    /// The bytes that count as body in one request.
    pub(crate) fn mib(&self, completed: u64, down: u64, up: u64) -> f64 {
        let bytes = match self.say {
            Say::Get | Say::Upload => completed * LARGE as u64,
            Say::Drink => down,
            _ => up,
        };
        bytes as f64 / LARGE as f64
    }
}
