//! The PROXY protocol header: how a load balancer in front says who really connected.
//!
//! **In** the first bytes of a connection. **Out** [`ProxyHeader`]: the addresses of client and service, or that there are
//! none to know (health checks, unknown families, Unix sockets). **Refuses** what is neither version 1 nor 2, contradicting
//! lengths, more than [`MAX_V2_PAYLOAD_BYTES`] of extensions. (HAProxy's proxy-protocol.txt §2.1, §2.2.)

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::{BufMut, Bytes, BytesMut};

use crate::wire::Decoded;
use crate::wire::reader::Reader;

/// The longest version 1 line with its CRLF, in bytes (§2.1).
pub const MAX_V1_BYTES: usize = 107;

/// The longest version 2 payload that is taken, in bytes. Addresses need at most 216; the rest is extensions, which are
/// skipped; the largest in use carry a certificate's names.
pub const MAX_V2_PAYLOAD_BYTES: usize = 4096;

/// The longest header that is taken, in bytes.
pub const MAX_BYTES: usize = V2_FIXED_BYTES + MAX_V2_PAYLOAD_BYTES;

const V1_MAGIC: &[u8; 6] = b"PROXY ";
const V2_MAGIC: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Magic, command, family and length.
const V2_FIXED_BYTES: usize = 16;

/// Whom the header speaks of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ProxyHeader {
    /// Nobody with an address: the connection stands for itself.
    Local,
    /// A client that the sender connected for. IPv4 addresses written as IPv6 are given as IPv4, so that a rule on
    /// addresses sees one spelling.
    Proxied {
        /// The client.
        source: SocketAddr,
        /// What the client had connected to.
        destination: SocketAddr,
    },
}

/// Why bytes are no PROXY header.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Bad {
    /// An address or port that is none, or of another family than announced.
    #[error("the PROXY header's addresses are malformed")]
    Address,
    /// Neither LOCAL nor PROXY.
    #[error("the PROXY header's command is unknown")]
    Command,
    /// An unknown family or transport.
    #[error("the PROXY header's address family is unknown")]
    Family,
    /// Longer than its version allows, or too short for its addresses.
    #[error("the PROXY header's length is out of bounds")]
    Length,
    /// A version 1 line that is not printable text ending in CRLF.
    #[error("the PROXY header's line is malformed")]
    Line,
    /// The first bytes are no PROXY header's.
    #[error("the connection does not begin with a PROXY header")]
    Magic,
    /// A version that does not exist.
    #[error("the PROXY header's version is unknown")]
    Version,
}

/// Reads a header of either version from the front of `bytes`.
pub fn decode(bytes: &[u8]) -> Decoded<ProxyHeader, Bad> {
    match bytes.first() {
        None => Decoded::More,
        Some(b'P') => decode_v1(bytes),
        Some(_) => decode_v2(bytes),
    }
}

fn decode_v1(bytes: &[u8]) -> Decoded<ProxyHeader, Bad> {
    let known = bytes.len().min(V1_MAGIC.len());
    if bytes[..known] != V1_MAGIC[..known] {
        return Decoded::Bad(Bad::Magic);
    }
    let window = &bytes[..bytes.len().min(MAX_V1_BYTES)];
    let Some(end) = window.iter().position(|b| !matches!(b, b' '..=b'~')) else {
        return if window.len() == MAX_V1_BYTES { Decoded::Bad(Bad::Length) } else { Decoded::More };
    };
    match &window[end..] {
        [b'\r', b'\n', ..] => {}
        [b'\r'] if end + 1 < MAX_V1_BYTES => return Decoded::More,
        [b'\r'] => return Decoded::Bad(Bad::Length),
        _ => return Decoded::Bad(Bad::Line),
    }
    let line = std::str::from_utf8(&window[V1_MAGIC.len()..end]).expect("printable ASCII was checked above");
    match v1_line(line) {
        Ok(value) => Decoded::Done { value, consumed: end + 2 },
        Err(reason) => Decoded::Bad(reason),
    }
}

/// What follows `PROXY `.
fn v1_line(line: &str) -> Result<ProxyHeader, Bad> {
    let mut words = line.split(' ');
    let family = words.next().unwrap_or("");
    if family == "UNKNOWN" {
        return Ok(ProxyHeader::Local); // whatever follows is to be ignored
    }
    let mut ip = || -> Result<IpAddr, Bad> {
        let word = words.next().ok_or(Bad::Address)?;
        match family {
            "TCP4" => word.parse::<Ipv4Addr>().map(IpAddr::V4).map_err(|_| Bad::Address),
            "TCP6" => word.parse::<Ipv6Addr>().map(IpAddr::V6).map_err(|_| Bad::Address),
            _ => Err(Bad::Family),
        }
    };
    let (source, destination) = (ip()?, ip()?);
    let mut port = || words.next().and_then(v1_port).ok_or(Bad::Address);
    let (source, destination) = (address(source, port()?), address(destination, port()?));
    if words.next().is_some() {
        return Err(Bad::Address);
    }
    Ok(ProxyHeader::Proxied { source, destination })
}

/// Digits only, no leading zero: one spelling a port.
fn v1_port(word: &str) -> Option<u16> {
    let canonical = word.bytes().all(|b| b.is_ascii_digit()) && (word == "0" || !word.starts_with('0'));
    if canonical { word.parse().ok() } else { None }
}

fn address(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip.to_canonical(), port)
}

fn decode_v2(bytes: &[u8]) -> Decoded<ProxyHeader, Bad> {
    let known = bytes.len().min(V2_MAGIC.len());
    if bytes[..known] != V2_MAGIC[..known] {
        return Decoded::Bad(Bad::Magic);
    }
    let Some(fixed) = bytes.first_chunk::<V2_FIXED_BYTES>() else { return Decoded::More };
    let [.., command, family, len_high, len_low] = *fixed;
    let len = usize::from(u16::from_be_bytes([len_high, len_low]));
    if len > MAX_V2_PAYLOAD_BYTES {
        return Decoded::Bad(Bad::Length);
    }
    let Some(payload) = bytes[V2_FIXED_BYTES..].get(..len) else { return Decoded::More };
    match v2_payload(command, family, payload) {
        Ok(value) => Decoded::Done { value, consumed: V2_FIXED_BYTES + len },
        Err(reason) => Decoded::Bad(reason),
    }
}

/// What the sender says of the client. The extensions behind the addresses are skipped: nothing here believes them.
fn v2_payload(command: u8, family: u8, payload: &[u8]) -> Result<ProxyHeader, Bad> {
    match command {
        0x20 => return Ok(ProxyHeader::Local), // family and payload are to be ignored
        0x21 => {}
        _ if command >> 4 == 2 => return Err(Bad::Command),
        _ => return Err(Bad::Version),
    }
    let mut reader = Reader::new(payload);
    match family {
        // Unspecified in part or in all: the addresses are to be ignored.
        0x00..=0x02 | 0x10 | 0x20 | 0x30 => Ok(ProxyHeader::Local),
        0x11 | 0x12 => v2_addresses::<4>(&mut reader).ok_or(Bad::Length),
        0x21 | 0x22 => v2_addresses::<16>(&mut reader).ok_or(Bad::Length),
        0x31 | 0x32 => reader.take(216).map(|_| ProxyHeader::Local).ok_or(Bad::Length),
        _ => Err(Bad::Family),
    }
}

fn v2_addresses<const N: usize>(reader: &mut Reader<'_>) -> Option<ProxyHeader>
where
    IpAddr: From<[u8; N]>,
{
    let source = IpAddr::from(reader.array::<N>()?);
    let destination = IpAddr::from(reader.array::<N>()?);
    let (source, destination) = (address(source, reader.u16()?), address(destination, reader.u16()?));
    Some(ProxyHeader::Proxied { source, destination })
}

/// Writes a version 1 header, as a load balancer would.
pub fn encode_v1(header: &ProxyHeader) -> Bytes {
    let ProxyHeader::Proxied { source, destination } = header else {
        return Bytes::from_static(b"PROXY UNKNOWN\r\n");
    };
    let (from, to) = same_family(source.ip(), destination.ip());
    let family = if from.is_ipv4() { "TCP4" } else { "TCP6" };
    format!("PROXY {family} {from} {to} {} {}\r\n", source.port(), destination.port()).into()
}

/// Writes a version 2 header, as a load balancer would.
pub fn encode_v2(header: &ProxyHeader) -> Bytes {
    let mut out = BytesMut::with_capacity(V2_FIXED_BYTES + 36);
    out.put_slice(V2_MAGIC);
    let ProxyHeader::Proxied { source, destination } = header else {
        out.put_slice(&[0x20, 0, 0, 0]);
        return out.freeze();
    };
    match same_family(source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            out.put_slice(&[0x21, 0x11, 0, 12]);
            out.put_slice(&from.octets());
            out.put_slice(&to.octets());
        }
        (from, to) => {
            out.put_slice(&[0x21, 0x21, 0, 36]);
            out.put_slice(&ipv6(from).octets());
            out.put_slice(&ipv6(to).octets());
        }
    }
    out.put_u16(source.port());
    out.put_u16(destination.port());
    out.freeze()
}

/// Both addresses as IPv6 where they differ in family, as the header has room for one family only.
fn same_family(from: IpAddr, to: IpAddr) -> (IpAddr, IpAddr) {
    if from.is_ipv4() == to.is_ipv4() { (from, to) } else { (ipv6(from).into(), ipv6(to).into()) }
}

fn ipv6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn proxied(source: &str, destination: &str) -> ProxyHeader {
        ProxyHeader::Proxied {
            source: source.parse().expect("an address"),
            destination: destination.parse().expect("an address"),
        }
    }

    #[test]
    fn version_1() {
        let longest_unknown = format!("PROXY UNKNOWN {}\r\n", "x".repeat(107 - 16));
        for (line, want) in [
            ("PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n", Ok(proxied("192.0.2.1:56324", "198.51.100.2:443"))),
            ("PROXY TCP6 2001:db8::1 ::1 1 65535\r\n", Ok(proxied("[2001:db8::1]:1", "[::1]:65535"))),
            ("PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n", Ok(proxied("192.0.2.1:1", "[::1]:2"))),
            ("PROXY UNKNOWN\r\n", Ok(ProxyHeader::Local)),
            ("PROXY UNKNOWN ffff::1 whatever\r\n", Ok(ProxyHeader::Local)),
            (&longest_unknown, Ok(ProxyHeader::Local)),
            ("PROXY TCP4 192.0.2.1 198.51.100.2 56324 65536\r\n", Err(Bad::Address)),
            ("PROXY TCP4 192.0.2.1 198.51.100.2 56324 +443\r\n", Err(Bad::Address)),
            ("PROXY TCP4 192.0.2.1 198.51.100.2 56324 0443\r\n", Err(Bad::Address)),
            ("PROXY TCP4 192.0.2.1 198.51.100.2 56324\r\n", Err(Bad::Address)),
            ("PROXY TCP4 192.0.2.1 198.51.100.2 1 2 3\r\n", Err(Bad::Address)),
            ("PROXY TCP4 192.0.2.1 198.51.100.2 1 2 \r\n", Err(Bad::Address)),
            ("PROXY TCP4  192.0.2.1 198.51.100.2 1 2\r\n", Err(Bad::Address)),
            ("PROXY TCP4 192.0.2.01 198.51.100.2 1 2\r\n", Err(Bad::Address)),
            ("PROXY TCP4 ::1 ::1 1 2\r\n", Err(Bad::Address)),
            ("PROXY UDP4 192.0.2.1 198.51.100.2 1 2\r\n", Err(Bad::Family)),
            ("PROXY TCP4 192.0.2.1 198.51.100.2 1 2\n", Err(Bad::Line)),
            ("PROXY TCP4 192.0.2.1 198.51.100.2 1 2\rx", Err(Bad::Line)),
            ("PROXY UNKNOWN \t\r\n", Err(Bad::Line)),
            ("PROXY_", Err(Bad::Magic)),
            ("POST / HTTP/1.1\r\n", Err(Bad::Magic)),
        ] {
            let want = match want {
                Ok(value) => Decoded::Done { value, consumed: line.len() },
                Err(reason) => Decoded::Bad(reason),
            };
            assert_eq!(decode(line.as_bytes()), want, "{line:?}");
        }
        let too_long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(107 - 15));
        assert_eq!(decode(too_long.as_bytes()), Decoded::Bad(Bad::Length));
        assert_eq!(decode(&too_long.as_bytes()[..106]), Decoded::More);
    }

    fn v2(command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
        let len = u16::try_from(payload.len()).expect("short");
        [V2_MAGIC, &[command, family][..], &len.to_be_bytes(), payload].concat()
    }

    #[test]
    fn version_2() {
        let four = b"\xc0\0\x02\x01\xc6\x33\x64\x02\xdc\x04\x01\xbb";
        let with_tlv = [&four[..], b"\x03\0\x04abcd"].concat();
        let six = [&Ipv6Addr::LOCALHOST.octets()[..], &Ipv6Addr::LOCALHOST.octets(), &[0, 1, 0, 2]].concat();
        let want_four = proxied("192.0.2.1:56324", "198.51.100.2:443");
        for (bytes, want) in [
            (v2(0x21, 0x11, four), Ok(want_four)),
            (v2(0x21, 0x11, &with_tlv), Ok(want_four)),
            (v2(0x21, 0x12, four), Ok(want_four)),
            (v2(0x21, 0x21, &six), Ok(proxied("[::1]:1", "[::1]:2"))),
            (v2(0x21, 0x31, &[b'x'; 216]), Ok(ProxyHeader::Local)),
            (v2(0x21, 0x00, b"anything"), Ok(ProxyHeader::Local)),
            (v2(0x20, 0x11, b""), Ok(ProxyHeader::Local)),
            (v2(0x20, 0xff, &[0; 4096]), Ok(ProxyHeader::Local)),
            (v2(0x21, 0x11, &four[..11]), Err(Bad::Length)),
            (v2(0x21, 0x21, &six[..35]), Err(Bad::Length)),
            (v2(0x21, 0x31, &[b'x'; 215]), Err(Bad::Length)),
            (v2(0x20, 0x00, &[0; 4097]), Err(Bad::Length)),
            (v2(0x21, 0x41, four), Err(Bad::Family)),
            (v2(0x21, 0x13, four), Err(Bad::Family)),
            (v2(0x22, 0x11, four), Err(Bad::Command)),
            (v2(0x11, 0x11, four), Err(Bad::Version)),
            (b"\r\n\r\n\0\r\nQUIX".to_vec(), Err(Bad::Magic)),
            (b"\x16\x03\x01".to_vec(), Err(Bad::Magic)),
        ] {
            let want = match want {
                Ok(value) => Decoded::Done { value, consumed: bytes.len() },
                Err(reason) => Decoded::Bad(reason),
            };
            assert_eq!(decode(&bytes), want, "{bytes:?}");
        }
    }

    fn any_header() -> impl Strategy<Value = ProxyHeader> {
        let four = any::<([u8; 4], u16)>().prop_map(|(ip, port)| SocketAddr::from((ip, port)));
        let six = any::<([u8; 16], u16)>().prop_map(|(ip, port)| address(ip.into(), port));
        prop_oneof![
            Just(ProxyHeader::Local),
            (four.clone(), four.clone()).prop_map(|(source, destination)| ProxyHeader::Proxied { source, destination }),
            (six.clone(), six).prop_map(|(source, destination)| ProxyHeader::Proxied { source, destination }),
            (four.clone(), four).prop_map(|(source, mut destination)| {
                destination.set_ip(Ipv6Addr::LOCALHOST.into());
                ProxyHeader::Proxied { source, destination }
            }),
        ]
    }

    proptest! {
        #[test]
        fn decode_undoes_encode(header in any_header(), after in prop::collection::vec(any::<u8>(), 0..40)) {
            for encoded in [encode_v1(&header), encode_v2(&header)] {
                let bytes = [&encoded[..], &after].concat();
                prop_assert_eq!(decode(&bytes), Decoded::Done { value: header, consumed: encoded.len() });
                for len in 0..encoded.len() {
                    prop_assert_eq!(decode(&bytes[..len]), Decoded::More);
                }
            }
        }

        #[test]
        fn survives_anything(tail in prop::collection::vec(any::<u8>(), 0..200), front in 0usize..3) {
            let front = [&b""[..], V1_MAGIC, V2_MAGIC][front];
            let _ = decode(&[front, &tail].concat());
        }
    }
}
