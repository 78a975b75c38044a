//! The server name in a ClientHello, before anything has been answered.
//!
//! **In** what a peer has sent so far. **Out** the name it asks for, or that more is needed. **Refuses** what is no
//! ClientHello at the first byte that shows it, and hellos that are too long. Hellos with a post-quantum key share no
//! longer fit one segment, and their extensions come in any order, in one record or in several.
//! (RFC 8446 §4.1.2 and §5.1, RFC 6066 §3.) Only looks: the handshake itself reads the same bytes again, strictly.

use std::borrow::Cow;

/// What has been found.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Found<'a> {
    /// A whole hello, and the name in it. Not checked to be a name.
    Hello(Option<Cow<'a, [u8]>>),
    /// Begins like a hello, and is none.
    Malformed,
    /// So far so good.
    More,
    /// Something else than TLS.
    NotTls,
    /// Longer than allowed, or cut into absurdly many records.
    TooLarge,
}

/// Into how many records a hello may be cut: enough for those who cut on purpose, few enough that looking again after
/// each byte stays cheap.
const MAX_RECORDS: usize = 32;

/// The longest record (RFC 8446 §5.1), in bytes.
const MAX_RECORD_BYTES: usize = 1 << 14;

/// Looks for the server name in `bytes`, of which at most `max` are looked at.
pub(super) fn look(bytes: &[u8], max: usize) -> Found<'_> {
    let mut rest = bytes;
    let mut message: Cow<'_, [u8]> = Cow::Borrowed(&[]);
    for _ in 0..MAX_RECORDS {
        let (fragment, after) = match record(rest) {
            Ok(both) => both,
            Err(found) => return if bytes.len() >= max && found == Found::More { Found::TooLarge } else { found },
        };
        if message.is_empty() {
            message = Cow::Borrowed(fragment);
        } else {
            message.to_mut().extend_from_slice(fragment);
        }
        if message[0] != 1 {
            return Found::NotTls; // TLS, but no ClientHello
        }
        if let Some(header) = message.first_chunk::<4>() {
            let body_len = u32::from_be_bytes([0, header[1], header[2], header[3]]) as usize;
            if body_len > max {
                return Found::TooLarge;
            }
            if message.len() >= 4 + body_len {
                return match message {
                    Cow::Borrowed(message) => name(&message[4..4 + body_len])
                        .map_or(Found::Malformed, |name| Found::Hello(name.map(Cow::Borrowed))),
                    Cow::Owned(message) => name(&message[4..4 + body_len])
                        .map_or(Found::Malformed, |name| Found::Hello(name.map(|name| Cow::Owned(name.to_vec())))),
                };
            }
        }
        rest = after;
    }
    Found::TooLarge
}

/// One handshake record: its fragment, and what follows.
fn record(bytes: &[u8]) -> Result<(&[u8], &[u8]), Found<'static>> {
    let plausible = [|b: u8| b == 22, |b: u8| b == 3, |b: u8| b <= 4];
    if bytes.iter().zip(plausible).any(|(byte, holds)| !holds(*byte)) {
        return Err(Found::NotTls);
    }
    let (header, rest) = bytes.split_first_chunk::<5>().ok_or(Found::More)?;
    let len = usize::from(u16::from_be_bytes([header[3], header[4]]));
    match len {
        0 => Err(Found::Malformed),
        len if len > MAX_RECORD_BYTES => Err(Found::NotTls),
        len => rest.split_at_checked(len).ok_or(Found::More),
    }
}

/// The name in the body of a ClientHello; `None` outside for a body that is none.
fn name(body: &[u8]) -> Option<Option<&[u8]>> {
    let mut body = Reader(body);
    body.take(2 + 32)?; // legacy version, random
    body.vector8()?; // session id
    body.vector16()?; // cipher suites
    body.vector8()?; // compression methods
    if body.0.is_empty() {
        return Some(None); // no extensions at all
    }
    let mut extensions = Reader(body.vector16()?);
    let mut found = None;
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let data = extensions.vector16()?;
        if kind == 0 && found.replace(data).is_some() {
            return None; // which of two names would be meant?
        }
    }
    let Some(data) = found else { return Some(None) };
    let mut names = Reader(Reader(data).vector16()?);
    while !names.0.is_empty() {
        let kind = names.take(1)?[0];
        let name = names.vector16()?;
        if kind == 0 {
            return Some(Some(name));
        }
    }
    Some(None)
}

/// Takes from the front; `None` where less is left than asked for.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(*self.take(2)?.first_chunk()?))
    }

    fn vector8(&mut self) -> Option<&'a [u8]> {
        let len = self.take(1)?[0];
        self.take(len.into())
    }

    fn vector16(&mut self) -> Option<&'a [u8]> {
        let len = self.u16()?;
        self.take(len.into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A ClientHello message for `name`, with some other extension before and after.
    fn hello(name: Option<&[u8]>) -> Vec<u8> {
        fn vector16(data: &[u8]) -> Vec<u8> {
            [&u16::try_from(data.len()).expect("short").to_be_bytes()[..], data].concat()
        }
        let mut extensions = [&[0, 43][..], &vector16(&[2, 3, 4])].concat();
        if let Some(name) = name {
            let list = vector16(&[&[0][..], &vector16(name)].concat());
            extensions.extend([&[0, 0][..], &vector16(&list)].concat());
        }
        extensions.extend([&[0, 51][..], &vector16(&[7; 1216])].concat());
        let body = [&[3, 3][..], &[9; 32], &[0], &vector16(&[0x13, 1]), &[1, 0], &vector16(&extensions)].concat();
        let len = u32::try_from(body.len()).expect("short").to_be_bytes();
        [&[1][..], &len[1..], &body].concat()
    }

    /// Cuts a message into records of `size` bytes.
    fn records(message: &[u8], size: usize) -> Vec<u8> {
        message
            .chunks(size)
            .flat_map(|chunk| {
                [&[22, 3, 1][..], &u16::try_from(chunk.len()).expect("short").to_be_bytes(), chunk].concat()
            })
            .collect()
    }

    #[test]
    fn finds_the_name_in_one_record_or_many() {
        let message = hello(Some(b"gateway.example"));
        for size in [60, 100, 512, 4096] {
            let bytes = records(&message, size);
            for len in 0..bytes.len() {
                assert_eq!(look(&bytes[..len], 16384), Found::More, "{size} {len}");
            }
            let Found::Hello(Some(name)) = look(&bytes, 16384) else { panic!("{size}") };
            assert_eq!(&*name, b"gateway.example");
        }
        assert_eq!(look(&records(&hello(None), 4096), 16384), Found::Hello(None));
    }

    #[test]
    fn says_no_at_the_first_byte_that_shows_it() {
        for (bytes, want) in [
            (&b"G"[..], Found::NotTls),
            (b"PRI * HTTP/2.0", Found::NotTls),
            (b"\x16G", Found::NotTls),
            (b"\x16\x03\x09", Found::NotTls),
            (b"\x16\x03\x01\xff\xff", Found::NotTls),
            (b"\x16\x03\x01\x00\x00", Found::Malformed),
            (b"\x16\x03\x01\x00\x01\x02", Found::NotTls),
            (b"\x16\x03\x01\x00\x04\x01\xff\xff\xff", Found::TooLarge),
            (b"\x16\x03\x01\x00\x04\x01\x00\x00\x00", Found::Malformed),
        ] {
            assert_eq!(look(bytes, 16384), want, "{bytes:?}");
        }
        let bytes = records(&hello(Some(b"gateway.example")), 4096);
        assert_eq!(look(&bytes[..1000], 1000), Found::TooLarge);
        assert_eq!(look(&records(&hello(Some(b"a.b")), 8), 16384), Found::TooLarge);
    }

    proptest! {
        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300), at in 0usize..1400, byte: u8) {
            let _ = look(&bytes, 16384);
            let mut bytes = records(&hello(Some(b"gateway.example")), 700);
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = look(&bytes, 16384);
        }
    }
}
