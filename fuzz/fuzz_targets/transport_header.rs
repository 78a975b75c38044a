//! The transport header: a decoded header encodes to something that decodes to it; a header cut short asks for more.
#![no_main]

use isthmus::wire::Decoded;
use isthmus::wire::transport_header::{MAX_BYTES, decode, encode, needed_bytes};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| match decode(bytes) {
    Decoded::Bad(_) => {}
    Decoded::Done { value, consumed } => {
        assert!(consumed <= bytes.len().min(MAX_BYTES));
        assert_eq!(needed_bytes(bytes), Some(consumed));
        for len in 0..consumed {
            assert_eq!(decode(&bytes[..len]), Decoded::More);
        }
        let again = encode(&value);
        assert_eq!(decode(&again), Decoded::Done { value, consumed: again.len() });
    }
    Decoded::More => assert!(bytes.len() < MAX_BYTES),
});
