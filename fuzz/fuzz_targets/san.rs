//! Names out of certificates: bytes that call themselves a certificate, and certificates around a list of names made of the
//! input. What counts as an identity stands in a name, whole. The first byte says which of the two.
#![no_main]

use isthmus::tls::inspect::{certificate, describe};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((kind, bytes)) = input.split_first() else { return };
    if kind % 2 == 0 {
        harmless(bytes);
        return;
    }
    // Names of kinds (RFC 5280 §4.2.1.6) and lengths that the input says.
    let (mut names, mut rest) = (Vec::new(), bytes);
    while let [kind, len, tail @ ..] = rest {
        let (value, tail) = tail.split_at(usize::from(*len).min(tail.len()));
        names.push((0x80 | (kind % 9), value));
        rest = tail;
    }
    let list: Vec<u8> = names.iter().flat_map(|(kind, value)| tlv(*kind, value)).collect();
    let der = around(&list);
    harmless(&der);
    let Ok(read) = certificate(&der) else { return };
    for identity in &read.identities {
        let text = identity.as_str().as_bytes();
        let is = |(kind, value): &(u8, &[u8])| {
            // DNS names, in any case and with or without the dot at the end; URIs as they stand, but for the case.
            let name = value.strip_suffix(b".").unwrap_or(value);
            (*kind == 0x82 && name.eq_ignore_ascii_case(text)) || (*kind == 0x86 && value.eq_ignore_ascii_case(text))
        };
        assert!(names.iter().any(is), "{identity} stands in no name of {names:?}");
    }
    assert!(read.identities.len() <= names.len());
});

fn harmless(der: &[u8]) {
    let shown = describe(der);
    assert!(shown.chars().count() <= 401 && !shown.chars().any(char::is_control), "{shown:?}");
    if let Ok(read) = certificate(der) {
        for identity in read.identities {
            assert!(identity.as_str().bytes().all(|byte| byte.is_ascii_graphic() && !b"\"\\".contains(&byte)));
        }
    }
}

fn tlv(tag: u8, value: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    let len = value.len();
    let short = |byte: usize| u8::try_from(byte & 0xff).expect("one byte");
    match len {
        0..128 => out.push(short(len)),
        128..256 => out.extend([0x81, short(len)]),
        256..65_536 => out.extend([0x82, short(len >> 8), short(len)]),
        _ => out.extend([0x83, short(len >> 16), short(len >> 8), short(len)]),
    }
    out.extend(value);
    out
}

/// A certificate as far as one is read: its signature is nobody's.
fn around(names: &[u8]) -> Vec<u8> {
    let ecdsa = tlv(0x30, &[6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2]);
    let validity = tlv(0x30, &[tlv(0x17, b"260101000000Z"), tlv(0x17, b"360101000000Z")].concat());
    let kind = tlv(0x30, &[6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7]);
    let key = tlv(0x30, &[kind, tlv(3, &[[0, 4].as_slice(), &[7; 64]].concat())].concat());
    let san = tlv(0x30, &[tlv(6, &[0x55, 0x1d, 0x11]), tlv(4, &tlv(0x30, names))].concat());
    let extensions = tlv(0xa3, &tlv(0x30, &san));
    let empty = tlv(0x30, &[]);
    let parts = [tlv(0xa0, &[2, 1, 2]), tlv(2, &[1]), ecdsa.clone(), empty.clone(), validity, empty, key, extensions];
    tlv(0x30, &[tlv(0x30, &parts.concat()), ecdsa, tlv(3, &[0, 0x30, 6, 2, 1, 1, 2, 1, 1])].concat())
}
