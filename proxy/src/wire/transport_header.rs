//! Linkerd's transport header: how a source proxy names the service it wants on a connection, in one flight with the data.
//!
//! **In** the first application bytes inside TLS. **Out** a [`Header`]: port, name, session protocol. **Refuses** another
//! magic, a length above 64 KiB, a port outside 1 to 65535, a name that is no DNS name, broken protobuf.
//!
//! Layout: `transport.l5d.io/v1\r\n\r\n`, a u32 length (big-endian), then protobuf
//! `Header { int32 port = 1; string name = 2; SessionProtocol { oneof { Http1 = 1; Http2 = 2 } } session_protocol = 3 }`.
//! The three fields are read by hand: a generated reader would bring a build step and take more than is needed.

use bytes::{BufMut, Bytes, BytesMut};

use crate::addr::{InvalidName, Name};
use crate::wire::Decoded;

/// The ALPN protocol that promises this header.
pub const ALPN: &[u8] = b"transport.l5d.io/v1";

/// The longest protobuf part, in bytes: what Linkerd's own reader accepts.
pub const MAX_PROTO_BYTES: usize = 65_536;

/// The longest header altogether, in bytes.
pub const MAX_BYTES: usize = PREFIX_BYTES + MAX_PROTO_BYTES;

const MAGIC: &[u8; 23] = b"transport.l5d.io/v1\r\n\r\n";

/// Magic and length.
const PREFIX_BYTES: usize = MAGIC.len() + 4;

/// What the client says about the session that follows.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Header {
    /// The port, 1 to 65535.
    pub port: u16,
    /// The service's name; absent when a port of the gateway itself is meant.
    pub name: Option<Name>,
    /// What is spoken; absent for bytes of no concern to us. It is to be believed, not checked: the same bytes may look
    /// like HTTP and still be opaque.
    pub protocol: Option<Protocol>,
}

/// The session protocols that a header can name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Protocol {
    /// HTTP/1.0 or HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
}

/// Why bytes are no transport header.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Bad {
    /// The length is above [`MAX_PROTO_BYTES`].
    #[error("the transport header announces {0} bytes")]
    Length(u32),
    /// The first bytes are not the magic.
    #[error("the connection does not begin with a transport header")]
    Magic,
    /// The name is no DNS name.
    #[error("the transport header's name is no DNS name: {0}")]
    Name(InvalidName),
    /// The port is missing or not 1 to 65535.
    #[error("the transport header's port is not 1 to 65535")]
    Port,
    /// The protobuf part is broken.
    #[error("the transport header's protobuf is malformed")]
    Proto,
}

/// Reads a header from the front of `bytes`.
pub fn decode(bytes: &[u8]) -> Decoded<Header, Bad> {
    let known = bytes.len().min(MAGIC.len());
    if bytes[..known] != MAGIC[..known] {
        return Decoded::Bad(Bad::Magic);
    }
    let Some((len, rest)) = bytes.get(MAGIC.len()..).and_then(|rest| rest.split_first_chunk::<4>()) else {
        return Decoded::More;
    };
    let announced = u32::from_be_bytes(*len);
    let len = match usize::try_from(announced) {
        Ok(len) if len <= MAX_PROTO_BYTES => len,
        _ => return Decoded::Bad(Bad::Length(announced)),
    };
    let Some(proto) = rest.get(..len) else { return Decoded::More };
    match decode_proto(proto) {
        Ok(value) => Decoded::Done { value, consumed: PREFIX_BYTES + len },
        Err(reason) => Decoded::Bad(reason),
    }
}

/// How long the header at the front of `bytes` will be altogether, once its length has come.
pub fn needed_bytes(bytes: &[u8]) -> Option<usize> {
    let (len, _) = bytes.get(MAGIC.len()..)?.split_first_chunk::<4>()?;
    usize::try_from(u32::from_be_bytes(*len)).ok()?.checked_add(PREFIX_BYTES)
}

/// Writes a header.
pub fn encode(header: &Header) -> Bytes {
    let mut proto = BytesMut::with_capacity(16);
    proto.put_u8(TAG_PORT);
    put_varint(&mut proto, header.port.into());
    if let Some(name) = &header.name {
        proto.put_u8(TAG_NAME);
        put_varint(&mut proto, name.as_str().len() as u64);
        proto.put_slice(name.as_str().as_bytes());
    }
    match header.protocol {
        None => {}
        Some(Protocol::Http1) => proto.put_slice(&[TAG_PROTOCOL, 2, TAG_HTTP1, 0]),
        Some(Protocol::Http2) => proto.put_slice(&[TAG_PROTOCOL, 2, TAG_HTTP2, 0]),
    }
    let len = u32::try_from(proto.len()).expect("a name has at most 253 bytes");
    let mut out = BytesMut::with_capacity(PREFIX_BYTES + proto.len());
    out.put_slice(MAGIC);
    out.put_u32(len);
    out.put_slice(&proto);
    out.freeze()
}

// Protobuf keys: the field's number, then three bits of wire type (0 varint, 2 length-delimited).
const TAG_PORT: u8 = 1 << 3;
const TAG_NAME: u8 = 2 << 3 | 2;
const TAG_PROTOCOL: u8 = 3 << 3 | 2;
const TAG_HTTP1: u8 = 1 << 3 | 2;
const TAG_HTTP2: u8 = 2 << 3 | 2;

fn decode_proto(mut bytes: &[u8]) -> Result<Header, Bad> {
    let (mut port, mut name, mut protocol) = (0, &b""[..], None);
    while !bytes.is_empty() {
        // Of a repeated field the last one counts, as protobuf says.
        match field(&mut bytes).ok_or(Bad::Proto)? {
            (1, Value::Varint(value)) => port = value,
            (2, Value::Bytes(value)) => name = value,
            (3, Value::Bytes(value)) => protocol = decode_protocol(value)?.or(protocol),
            (1..=3, _) => return Err(Bad::Proto),
            _ => {}
        }
    }
    let port = u16::try_from(port).ok().filter(|port| *port != 0).ok_or(Bad::Port)?;
    let name = match std::str::from_utf8(name).map_err(|_| Bad::Name(InvalidName::Character))? {
        "" => None,
        text => Some(text.parse().map_err(Bad::Name)?),
    };
    Ok(Header { port, name, protocol })
}

fn decode_protocol(mut bytes: &[u8]) -> Result<Option<Protocol>, Bad> {
    let mut protocol = None;
    while !bytes.is_empty() {
        match field(&mut bytes).ok_or(Bad::Proto)? {
            (1, Value::Bytes(inner)) => protocol = Some(empty(inner).map(|()| Protocol::Http1)?),
            (2, Value::Bytes(inner)) => protocol = Some(empty(inner).map(|()| Protocol::Http2)?),
            (1..=2, _) => return Err(Bad::Proto),
            _ => {}
        }
    }
    Ok(protocol)
}

/// A message without fields of its own may still carry unknown ones.
fn empty(mut bytes: &[u8]) -> Result<(), Bad> {
    while !bytes.is_empty() {
        field(&mut bytes).ok_or(Bad::Proto)?;
    }
    Ok(())
}

enum Value<'a> {
    Bytes(&'a [u8]),
    Fixed,
    Varint(u64),
}

/// The next field's number and value. Groups (wire types 3 and 4) do not exist in proto3 and are refused.
fn field<'a>(bytes: &mut &'a [u8]) -> Option<(u64, Value<'a>)> {
    let key = varint(bytes)?;
    let value = match key & 7 {
        0 => Value::Varint(varint(bytes)?),
        1 => skip(bytes, 8).map(|_| Value::Fixed)?,
        2 => {
            let len = usize::try_from(varint(bytes)?).ok()?;
            Value::Bytes(skip(bytes, len)?)
        }
        5 => skip(bytes, 4).map(|_| Value::Fixed)?,
        _ => return None,
    };
    let number = key >> 3;
    // Protobuf numbers fields from 1 to 2^29 - 1.
    (1..1 << 29).contains(&number).then_some((number, value))
}

fn skip<'a>(bytes: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (piece, rest) = bytes.split_at_checked(len)?;
    *bytes = rest;
    Some(piece)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        // The tenth byte has room for one bit.
        if shift == 63 && byte > 1 {
            return None;
        }
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn put_varint(out: &mut BytesMut, mut value: u64) {
    while value > 0x7f {
        out.put_u8((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8((value & 0x7f) as u8);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn framed(proto: &[u8]) -> Vec<u8> {
        let len = u32::try_from(proto.len()).expect("short");
        [MAGIC, &len.to_be_bytes()[..], proto].concat()
    }

    fn header(port: u16, name: Option<&str>, protocol: Option<Protocol>) -> Header {
        Header { port, name: name.map(|name| name.parse().expect("a name")), protocol }
    }

    /// What real source proxies sent.
    #[test]
    fn captured_headers() {
        let web = Some("web.ns.svc.cluster.local");
        let named = b"\x08\x90\x3f\x12\x18web.ns.svc.cluster.local";
        for (proto, want) in [
            ([&named[..], b"\x1a\x02\x12\x00"].concat(), header(8080, web, Some(Protocol::Http2))),
            ([&named[..], b"\x1a\x02\x0a\x00"].concat(), header(8080, web, Some(Protocol::Http1))),
            (named.to_vec(), header(8080, web, None)),
            (b"\x08\xb3\x46".to_vec(), header(9011, None, None)),
            (b"\x08\xb3\x46\x1a\x02\x12\x00".to_vec(), header(9011, None, Some(Protocol::Http2))),
            (b"\x08\xb3\x46\x1a\x02\x0a\x00".to_vec(), header(9011, None, Some(Protocol::Http1))),
        ] {
            let bytes = framed(&proto);
            assert_eq!(encode(&want), bytes);
            let consumed = bytes.len();
            assert_eq!(decode(&bytes), Decoded::Done { value: want.clone(), consumed });
            // Session bytes may follow in the same read.
            let followed = [&bytes[..], b"PRI * HTTP/2.0"].concat();
            assert_eq!(decode(&followed), Decoded::Done { value: want, consumed });
        }
    }

    #[test]
    fn lenient_where_protobuf_is() {
        for (proto, want) in [
            (&b"\x08\x50\x1a\x00"[..], header(80, None, None)),
            (b"\x08\x50\x12\x00", header(80, None, None)),
            (b"\x08\x50\x12\x04Web.", header(80, Some("web"), None)),
            (b"\x12\x03web\x08\x50", header(80, Some("web"), None)),
            (b"\x08\x51\x08\x50", header(80, None, None)),
            (b"\x08\xd0\x80\x00", header(80, None, None)),
            (b"\x08\x50\x20\x05\x2a\x01x\x31aaaabbbb\x3dcccc", header(80, None, None)),
            (b"\x08\x50\x1a\x02\x0a\x00\x1a\x02\x12\x00", header(80, None, Some(Protocol::Http2))),
            (b"\x08\x50\x1a\x04\x0a\x00\x12\x00", header(80, None, Some(Protocol::Http2))),
            (b"\x08\x50\x1a\x04\x12\x02\x08\x01", header(80, None, Some(Protocol::Http2))),
        ] {
            let bytes = framed(proto);
            assert_eq!(decode(&bytes), Decoded::Done { value: want, consumed: bytes.len() }, "{proto:?}");
        }
    }

    #[test]
    fn malformed() {
        for (proto, want) in [
            (&b""[..], Bad::Port),
            (b"\x08\x00", Bad::Port),
            (b"\x08\x80\x80\x04", Bad::Port),
            (b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", Bad::Port),
            (b"\x12\x03web", Bad::Port),
            (b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", Bad::Proto),
            (b"\x08", Bad::Proto),
            (b"\x0a\x01\x50", Bad::Proto),
            (b"\x08\x50\x12\x05web", Bad::Proto),
            (b"\x08\x50\x10\x05", Bad::Proto),
            (b"\x08\x50\x18\x05", Bad::Proto),
            (b"\x08\x50\x1a\x02\x08\x00", Bad::Proto),
            (b"\x08\x50\x1a\x03\x12\x01\xff", Bad::Proto),
            (b"\x08\x50\x23\x24", Bad::Proto),
            (b"\x08\x50\x00\x00", Bad::Proto),
            (b"\x08\x50\x12\x02a b", Bad::Proto),
            (b"\x08\x50\x12\x03a b", Bad::Name(InvalidName::Character)),
            (b"\x08\x50\x12\x02\xff\xfe", Bad::Name(InvalidName::Character)),
            (b"\x08\x50\x12\x04a..b", Bad::Name(InvalidName::Label)),
        ] {
            assert_eq!(decode(&framed(proto)), Decoded::Bad(want), "{proto:?}");
        }
        assert_eq!(decode(b"GET / HTTP/1.1\r\n"), Decoded::Bad(Bad::Magic));
        assert_eq!(decode(b"transport.l5d.io/v2"), Decoded::Bad(Bad::Magic));
        assert_eq!(decode(&[MAGIC, &[0, 1, 0, 1][..]].concat()), Decoded::Bad(Bad::Length(65_537)));
        assert_eq!(decode(&[MAGIC, &[0, 1, 0, 0][..]].concat()), Decoded::More);
    }

    prop_compose! {
        fn any_header()(
            port in 1u16..,
            name in proptest::option::of("[a-z0-9_-]{1,63}(\\.[a-z0-9_-]{1,40}){0,3}"),
            protocol in proptest::sample::select(vec![None, Some(Protocol::Http1), Some(Protocol::Http2)]),
        ) -> Header {
            header(port, name.as_deref(), protocol)
        }
    }

    proptest! {
        #[test]
        fn decode_undoes_encode(header in any_header(), after in prop::collection::vec(any::<u8>(), 0..40)) {
            let encoded = encode(&header);
            let bytes = [&encoded[..], &after].concat();
            prop_assert_eq!(decode(&bytes), Decoded::Done { value: header, consumed: encoded.len() });
            for len in 0..encoded.len() {
                prop_assert_eq!(decode(&bytes[..len]), Decoded::More);
            }
        }

        #[test]
        fn survives_anything(proto in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&proto);
            prop_assert_ne!(decode(&framed(&proto)), Decoded::More);
        }
    }
}
