//! The ClientHello: the cap holds, and a hello cut short asks for more. The first two bytes are the cap.
#![no_main]

use isthmus::wire::Decoded;
use isthmus::wire::client_hello::decode;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((max, bytes)) = input.split_first_chunk::<2>() else { return };
    let max = usize::from(u16::from_be_bytes(*max));
    match decode(bytes, max) {
        Decoded::Bad(_) => {}
        Decoded::Done { value, consumed } => {
            assert!(consumed <= bytes.len().min(max));
            for len in 0..consumed {
                assert_eq!(decode(&bytes[..len], max), Decoded::More);
            }
            assert_eq!(decode(&bytes[..consumed], usize::MAX), Decoded::Done { value, consumed });
        }
        Decoded::More => assert!(bytes.len() < max),
    }
});
