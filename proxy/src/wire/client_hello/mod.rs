//! The TLS ClientHello: read before the TLS library sees it, since a foreign server name is answered with silence.
//!
//! **In** the first bytes of a connection. **Out** server name, ALPN list, whether TLS 1.3 is offered. **Refuses** what is
//! no ClientHello, one larger than the caller's cap, contradicting lengths, repeated extensions. The hello may span
//! several records and, since its key share is post-quantum, several segments. (RFC 8446 §4.1.2, §5.1; RFC 6066 §3;
//! RFC 7301 §3.1.)

use std::borrow::Cow;

use crate::addr::Name;
use crate::wire::Decoded;
use crate::wire::reader::Reader;

/// What a client asks for in its first message.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ClientHello {
    /// The host that is meant (SNI).
    pub server_name: Option<Name>,
    /// The protocols offered (ALPN), in the client's order; empty where the extension is missing.
    pub alpn: Vec<Vec<u8>>,
    /// Whether TLS 1.3 is among the versions offered.
    pub tls13: bool,
}

/// Why bytes are no ClientHello that can be served.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Bad {
    /// An extension that is there twice, or whose inside contradicts its length.
    #[error("the ClientHello's extensions are malformed")]
    Extension,
    /// Another handshake message, or lengths that contradict each other.
    #[error("the first handshake message is no well-formed ClientHello")]
    Hello,
    /// Larger than the cap.
    #[error("the ClientHello is too large")]
    Length,
    /// The bytes are no TLS handshake record.
    #[error("the connection does not begin with a TLS handshake record")]
    Record,
    /// The server name is no DNS name.
    #[error("the ClientHello's server name is no DNS name")]
    ServerName,
}

/// The longest plaintext a record may hold, in bytes (RFC 8446 §5.1).
const MAX_RECORD_BYTES: usize = 1 << 14;

const RECORD_HEADER_BYTES: usize = 5;
const HANDSHAKE_HEADER_BYTES: usize = 4;

const EXTENSION_SERVER_NAME: u16 = 0;
const EXTENSION_ALPN: u16 = 16;
const EXTENSION_SUPPORTED_VERSIONS: u16 = 43;
const TLS13: u16 = 0x0304;

/// Reads a ClientHello from the front of `bytes`, of which it may fill at most `max_bytes`, record headers included.
pub fn decode(bytes: &[u8], max_bytes: usize) -> Decoded<ClientHello, Bad> {
    let (hello, consumed) = match records(bytes, max_bytes) {
        Ok(Some(found)) => found,
        Ok(None) => return Decoded::More,
        Err(reason) => return Decoded::Bad(reason),
    };
    match hello_body(&hello[HANDSHAKE_HEADER_BYTES..]) {
        Ok(value) => Decoded::Done { value, consumed },
        Err(reason) => Decoded::Bad(reason),
    }
}

/// A handshake message, put together from its records, and the bytes that those take.
type Gathered<'a> = (Cow<'a, [u8]>, usize);

/// The first handshake message; `None` while some of it is missing.
/// Nothing is copied until all are there, so that a hello arriving byte by byte costs no more than one that does not.
fn records(bytes: &[u8], max_bytes: usize) -> Result<Option<Gathered<'_>>, Bad> {
    let mut header = Vec::with_capacity(HANDSHAKE_HEADER_BYTES);
    let (mut at, mut gathered) = (0, 0);
    loop {
        let record = &bytes[at..];
        let Some(fragment_len) = record_header(record)? else { return more(bytes, max_bytes) };
        if at + RECORD_HEADER_BYTES + fragment_len > max_bytes {
            return Err(Bad::Length);
        }
        let fragment = &record[RECORD_HEADER_BYTES..];
        let fragment = &fragment[..fragment.len().min(fragment_len)];
        let missing = HANDSHAKE_HEADER_BYTES - header.len();
        header.extend_from_slice(&fragment[..fragment.len().min(missing)]);
        let len = match header[..] {
            [kind, ..] if kind != 1 => return Err(Bad::Hello),
            [_, high, mid, low] => Some(HANDSHAKE_HEADER_BYTES + u24(high, mid, low)),
            _ => None,
        };
        if len.is_some_and(|len| len + RECORD_HEADER_BYTES > max_bytes) {
            return Err(Bad::Length);
        }
        gathered += fragment_len;
        // Nothing may share the last record: the next message comes under other keys (RFC 8446 §5.1).
        if len.is_some_and(|len| gathered > len) {
            return Err(Bad::Hello);
        }
        if fragment.len() < fragment_len {
            return more(bytes, max_bytes);
        }
        at += RECORD_HEADER_BYTES + fragment_len;
        if len == Some(gathered) {
            return Ok(Some((join(&bytes[..at], gathered), at)));
        }
    }
}

fn more<T>(bytes: &[u8], max_bytes: usize) -> Result<Option<T>, Bad> {
    if bytes.len() >= max_bytes { Err(Bad::Length) } else { Ok(None) }
}

/// The length of a record's fragment; each byte is refused as soon as it is seen to be wrong.
fn record_header(bytes: &[u8]) -> Result<Option<usize>, Bad> {
    // The minor version is to be ignored; the major one never was another.
    if bytes.first().is_some_and(|kind| *kind != 22) || bytes.get(1).is_some_and(|major| *major != 3) {
        return Err(Bad::Record);
    }
    let Some(&[_, _, _, high, low]) = bytes.first_chunk() else { return Ok(None) };
    let len = usize::from(u16::from_be_bytes([high, low]));
    // Empty handshake fragments are forbidden: they would let a client send for ever and say nothing.
    if (1..=MAX_RECORD_BYTES).contains(&len) { Ok(Some(len)) } else { Err(Bad::Record) }
}

fn u24(high: u8, mid: u8, low: u8) -> usize {
    usize::from(high) << 16 | usize::from(mid) << 8 | usize::from(low)
}

/// The fragments of whole records, without copying where there is one.
fn join(records: &[u8], len: usize) -> Cow<'_, [u8]> {
    if records.len() == RECORD_HEADER_BYTES + len {
        return Cow::Borrowed(&records[RECORD_HEADER_BYTES..]);
    }
    let mut joined = Vec::with_capacity(len);
    let mut reader = Reader::new(records);
    while let Some(fragment) = reader.take(3).and_then(|_| reader.piece16()) {
        joined.extend_from_slice(fragment);
    }
    Cow::Owned(joined)
}

fn hello_body(body: &[u8]) -> Result<ClientHello, Bad> {
    let mut reader = Reader::new(body);
    let extensions = before_extensions(&mut reader).ok_or(Bad::Hello)?;
    if !reader.is_empty() {
        return Err(Bad::Hello);
    }
    let mut hello = ClientHello::default();
    let mut kinds = Vec::new();
    let mut reader = Reader::new(extensions);
    while !reader.is_empty() {
        let kind = reader.u16().ok_or(Bad::Extension)?;
        let inside = reader.piece16().ok_or(Bad::Extension)?;
        kinds.push(kind);
        match kind {
            EXTENSION_ALPN => hello.alpn = alpn(inside).ok_or(Bad::Extension)?,
            EXTENSION_SERVER_NAME => hello.server_name = server_name(inside)?,
            EXTENSION_SUPPORTED_VERSIONS => hello.tls13 = offers_tls13(inside).ok_or(Bad::Extension)?,
            _ => {}
        }
    }
    kinds.sort_unstable();
    if kinds.windows(2).any(|pair| pair[0] == pair[1]) { Err(Bad::Extension) } else { Ok(hello) }
}

/// Skips version, random, session id, cipher suites and compression methods, and gives the block of extensions.
fn before_extensions<'a>(reader: &mut Reader<'a>) -> Option<&'a [u8]> {
    reader.take(2 + 32)?;
    let session_id = reader.piece8()?;
    let ciphers = reader.piece16()?;
    let compressions = reader.piece8()?;
    if session_id.len() > 32 || ciphers.is_empty() || ciphers.len() % 2 != 0 || compressions.is_empty() {
        return None;
    }
    // A hello of old may end here.
    if reader.is_empty() { Some(&[]) } else { reader.piece16() }
}

fn server_name(inside: &[u8]) -> Result<Option<Name>, Bad> {
    let mut reader = Reader::new(inside);
    let mut list = Reader::new(reader.piece16().ok_or(Bad::Extension)?);
    if !reader.is_empty() || list.is_empty() {
        return Err(Bad::Extension);
    }
    let mut found = None;
    while !list.is_empty() {
        let kind = list.u8().ok_or(Bad::Extension)?;
        let text = list.piece16().ok_or(Bad::Extension)?;
        if kind != 0 {
            continue; // no other kind was ever defined
        }
        let text = std::str::from_utf8(text).map_err(|_| Bad::ServerName)?;
        let name = text.parse().map_err(|_| Bad::ServerName)?;
        if found.replace(name).is_some() {
            return Err(Bad::Extension);
        }
    }
    Ok(found)
}

fn alpn(inside: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut reader = Reader::new(inside);
    let mut list = Reader::new(reader.piece16()?);
    if !reader.is_empty() || list.is_empty() {
        return None;
    }
    let mut protocols = Vec::new();
    while !list.is_empty() {
        let protocol = list.piece8()?;
        if protocol.is_empty() {
            return None;
        }
        protocols.push(protocol.to_vec());
    }
    Some(protocols)
}

fn offers_tls13(inside: &[u8]) -> Option<bool> {
    let mut reader = Reader::new(inside);
    let mut list = Reader::new(reader.piece8()?);
    if !reader.is_empty() || list.is_empty() {
        return None;
    }
    let mut offered = false;
    while !list.is_empty() {
        offered |= list.u16()? == TLS13;
    }
    Some(offered)
}

#[cfg(test)]
mod tests;
