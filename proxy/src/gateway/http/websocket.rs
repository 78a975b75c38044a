//! WebSocket's key and answer, needed where one side speaks HTTP/1.1 `Upgrade` and the other extended CONNECT: over
//! HTTP/2 neither travels, so the gateway makes the key towards an HTTP/1 backend and the answer towards an HTTP/1
//! client. (RFC 6455 §4.1, §4.2.2; RFC 8441 §5.)

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;

/// The fixed text that the answer is made with (RFC 6455 §1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// A fresh `sec-websocket-key`: 16 random bytes in base64.
pub(super) fn key() -> HeaderValue {
    let bytes: [u8; 16] = rand::random();
    HeaderValue::try_from(STANDARD.encode(bytes)).expect("base64 is a valid field value")
}

/// The `sec-websocket-accept` for a key. SHA-1 is what the protocol prescribes; it guards against confusion, not attack.
pub(super) fn accept(key: &HeaderValue) -> HeaderValue {
    let mut context = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    context.update(key.as_bytes());
    context.update(GUID);
    HeaderValue::try_from(STANDARD.encode(context.finish())).expect("base64 is a valid field value")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_the_example_of_the_rfc() {
        assert_eq!(accept(&HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==")), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn keys_are_sixteen_bytes() {
        assert_eq!(STANDARD.decode(key().as_bytes()).unwrap().len(), 16);
    }
}
