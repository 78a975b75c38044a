//! The PROXY header, both versions: what it says survives being written again; a header cut short asks for more.
#![no_main]

use isthmus::wire::Decoded;
use isthmus::wire::proxy_header::{MAX_BYTES, decode, encode_v1, encode_v2};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| match decode(bytes) {
    Decoded::Bad(_) => {}
    Decoded::Done { value, consumed } => {
        assert!(consumed <= bytes.len().min(MAX_BYTES));
        for len in 0..consumed {
            assert_eq!(decode(&bytes[..len]), Decoded::More);
        }
        for again in [encode_v1(&value), encode_v2(&value)] {
            assert_eq!(decode(&again), Decoded::Done { value, consumed: again.len() });
        }
    }
    Decoded::More => assert!(bytes.len() < MAX_BYTES),
});
