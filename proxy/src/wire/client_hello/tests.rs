//! ClientHellos built piece by piece, whole, cut into records and broken.

use proptest::prelude::*;

use super::*;

const MAX: usize = 16_384;

fn prefixed8(inside: &[u8]) -> Vec<u8> {
    [&[u8::try_from(inside.len()).expect("short")], inside].concat()
}

fn prefixed16(inside: &[u8]) -> Vec<u8> {
    [&u16::try_from(inside.len()).expect("short").to_be_bytes()[..], inside].concat()
}

fn extension(kind: u16, inside: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &prefixed16(inside)].concat()
}

fn sni(name: &str) -> Vec<u8> {
    extension(0, &prefixed16(&[&[0], &prefixed16(name.as_bytes())[..]].concat()))
}

fn alpn_list(protocols: &[&[u8]]) -> Vec<u8> {
    extension(16, &prefixed16(&protocols.iter().flat_map(|protocol| prefixed8(protocol)).collect::<Vec<_>>()))
}

fn versions(list: &[u8]) -> Vec<u8> {
    extension(43, &prefixed8(list))
}

/// The key share that makes real hellos longer than a segment.
fn key_share() -> Vec<u8> {
    extension(51, &[0x5a; 1260])
}

fn message(extensions: &[Vec<u8>]) -> Vec<u8> {
    let body = [
        &[3, 3][..],
        &[7; 32],
        &prefixed8(&[9; 32]),
        &prefixed16(&[0x13, 1, 0x13, 2]),
        &prefixed8(&[0]),
        &prefixed16(&extensions.concat()),
    ]
    .concat();
    handshake(&body)
}

fn handshake(body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len()).expect("short").to_be_bytes();
    [&[1], &len[1..], body].concat()
}

/// The message in records of at most `len` bytes.
fn records_of(message: &[u8], len: usize) -> Vec<u8> {
    message.chunks(len).flat_map(|fragment| [&[22, 3, 1][..], &prefixed16(fragment)].concat()).collect()
}

fn real() -> Vec<u8> {
    message(&[
        key_share(),
        sni("Gateway.Multicluster.Example."),
        versions(&[3, 4]),
        alpn_list(&[b"transport.l5d.io/v1"]),
    ])
}

fn real_hello() -> ClientHello {
    ClientHello {
        server_name: Some("gateway.multicluster.example".parse().expect("a name")),
        alpn: vec![b"transport.l5d.io/v1".to_vec()],
        tls13: true,
    }
}

fn bad(message: &[u8]) -> Bad {
    match decode(&records_of(message, MAX), MAX) {
        Decoded::Bad(reason) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn whole_and_cut_into_records() {
    for len in [1, 2, 3, 4, 5, 100, 1400, MAX] {
        let bytes = records_of(&real(), len);
        let consumed = bytes.len();
        assert_eq!(decode(&bytes, MAX), Decoded::Done { value: real_hello(), consumed }, "{len}");
        let followed = [&bytes[..], b"\x14\x03\x03\x00\x01\x01"].concat();
        assert_eq!(decode(&followed, MAX), Decoded::Done { value: real_hello(), consumed }, "{len}");
        for prefix in 0..bytes.len() {
            assert_eq!(decode(&bytes[..prefix], MAX), Decoded::More, "{len} {prefix}");
        }
    }
}

#[test]
fn what_is_missing_is_absent() {
    let bytes = records_of(&message(&[]), MAX);
    assert_eq!(decode(&bytes, MAX), Decoded::Done { value: ClientHello::default(), consumed: bytes.len() });
    let old = [&[3, 1][..], &[7; 32], &[0], &prefixed16(&[0, 47]), &prefixed8(&[0])].concat();
    let bytes = records_of(&handshake(&old), MAX);
    assert_eq!(decode(&bytes, MAX), Decoded::Done { value: ClientHello::default(), consumed: bytes.len() });
    let bytes = records_of(&message(&[versions(&[3, 3])]), MAX);
    assert_eq!(decode(&bytes, MAX), Decoded::Done { value: ClientHello::default(), consumed: bytes.len() });
}

#[test]
fn the_cap_holds() {
    let bytes = records_of(&real(), MAX);
    assert!(matches!(decode(&bytes, bytes.len()), Decoded::Done { .. }));
    assert_eq!(decode(&bytes, bytes.len() - 1), Decoded::Bad(Bad::Length));
    // Known from the first nine bytes, before the memory is spent.
    assert_eq!(decode(&bytes[..9], bytes.len() - 1), Decoded::Bad(Bad::Length));
    assert_eq!(decode(b"\x16\x03\x01\x00\x04\x01\xff\xff\xff", MAX), Decoded::Bad(Bad::Length));
    // Tiny records add up.
    let tiny = records_of(&real(), 1);
    assert_eq!(decode(&tiny[..4000], 4000), Decoded::Bad(Bad::Length));
}

#[test]
fn no_record() {
    for bytes in [&b"GET / HTTP/1.1"[..], b"\x15\x03\x01", b"\x16\x02", b"\x80\x2e\x01", b"\x16\x03\x01\x00\x00"] {
        assert_eq!(decode(bytes, MAX), Decoded::Bad(Bad::Record), "{bytes:?}");
    }
    assert_eq!(decode(b"\x16\x03\x01\x40\x01", 1 << 20), Decoded::Bad(Bad::Record));
    assert_eq!(decode(b"\x16\x03\x01\x00\x10\x02", MAX), Decoded::Bad(Bad::Hello));
    // The second record is another kind.
    let mut bytes = records_of(&real(), 700);
    bytes[705] = 23;
    assert_eq!(decode(&bytes, MAX), Decoded::Bad(Bad::Record));
}

#[test]
fn contradicting_lengths() {
    let mut trailing = real();
    trailing.push(0);
    assert_eq!(bad(&trailing), Bad::Hello);
    assert_eq!(bad(&handshake(b"")), Bad::Hello);
    assert_eq!(bad(&handshake(&[0; 34])), Bad::Hello);
    let long_session =
        [&[3, 3][..], &[7; 32], &prefixed8(&[9; 33]), &prefixed16(&[0x13, 1]), &prefixed8(&[0])].concat();
    assert_eq!(bad(&handshake(&long_session)), Bad::Hello);
    let odd_ciphers = [&[3, 3][..], &[7; 32], &prefixed8(&[]), &prefixed16(&[0x13]), &prefixed8(&[0])].concat();
    assert_eq!(bad(&handshake(&odd_ciphers)), Bad::Hello);
}

#[test]
fn broken_extensions() {
    for (extensions, want) in [
        (vec![sni("a"), sni("a")], Bad::Extension),
        (vec![key_share(), key_share()], Bad::Extension),
        (vec![extension(0, b"")], Bad::Extension),
        (vec![extension(0, b"\0\0")], Bad::Extension),
        (vec![extension(0, b"\0\x04\0\0\x01ab")], Bad::Extension),
        (vec![extension(0, &prefixed16(b"\0\0\x01a\0\0\x01b"))], Bad::Extension),
        (vec![sni("")], Bad::ServerName),
        (vec![sni("a b")], Bad::ServerName),
        (vec![sni("[::1]")], Bad::ServerName),
        (vec![extension(16, b"\0\0")], Bad::Extension),
        (vec![alpn_list(&[b""])], Bad::Extension),
        (vec![extension(16, b"\0\x03\x05h2")], Bad::Extension),
        (vec![versions(&[])], Bad::Extension),
        (vec![versions(&[3])], Bad::Extension),
        (vec![extension(43, b"\x02\x03\x04\x00")], Bad::Extension),
        (vec![vec![0, 1]], Bad::Extension),
        (vec![vec![0, 1, 0, 9, 0]], Bad::Extension),
    ] {
        assert_eq!(bad(&message(&extensions)), want, "{extensions:?}");
    }
}

proptest! {
    #[test]
    fn reads_what_was_written(
        name in proptest::option::of("[a-z0-9]{1,20}(\\.[a-z0-9]{1,20}){0,3}"),
        protocols in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..30), 0..4),
        record in 1usize..600,
    ) {
        let mut extensions = vec![versions(&[0x7f, 0x1c, 3, 4]), extension(0x1a1a, b"")];
        extensions.extend(name.as_deref().map(sni));
        if !protocols.is_empty() {
            extensions.push(alpn_list(&protocols.iter().map(|protocol| &protocol[..]).collect::<Vec<_>>()));
        }
        let bytes = records_of(&message(&extensions), record);
        let server_name = name.map(|name| name.parse().expect("a name"));
        let value = ClientHello { server_name, alpn: protocols, tls13: true };
        prop_assert_eq!(decode(&bytes, MAX), Decoded::Done { value, consumed: bytes.len() });
        for len in 0..bytes.len() {
            prop_assert_eq!(decode(&bytes[..len], MAX), Decoded::More);
        }
    }

    #[test]
    fn survives_anything(bytes in prop::collection::vec(any::<u8>(), 0..300), max in 0usize..400) {
        let _ = decode(&bytes, max);
        let _ = decode(&records_of(&handshake(&bytes), 100), MAX);
        let _ = decode(&records_of(&message(&[bytes]), MAX), MAX);
    }

    /// One byte changed in a real hello: never a panic, and never a hello longer than what was given.
    #[test]
    fn survives_a_changed_byte(at in 0usize..1500, byte in any::<u8>()) {
        let mut bytes = records_of(&real(), 1400);
        let at = at % bytes.len();
        bytes[at] = byte;
        if let Decoded::Done { consumed, .. } = decode(&bytes, MAX) {
            prop_assert!(consumed <= bytes.len());
        }
    }
}
