//! Detection: no later byte overturns a verdict, and not a byte of the session is lost. The first byte is the ALPN.
#![no_main]

use isthmus::detect::{Hint, Negotiated, Settings, session};
use isthmus::wire::preface::{Sniff, sniff};
use libfuzzer_sys::fuzz_target;
use tokio::io::AsyncReadExt;

thread_local! {
    static RUNTIME: tokio::runtime::Runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
}

fuzz_target!(|input: &[u8]| {
    let Some((alpn, bytes)) = input.split_first() else { return };
    let mut verdict = Sniff::More;
    for len in 0..=bytes.len() {
        let next = sniff(&bytes[..len]);
        assert!(verdict == Sniff::More || next == verdict);
        verdict = next;
    }
    let alpn =
        [Negotiated::None, Negotiated::TransportHeader, Negotiated::H2, Negotiated::Http11][usize::from(alpn % 4)];
    RUNTIME.with(|runtime| runtime.block_on(detect(bytes, alpn)));
});

async fn detect(bytes: &[u8], alpn: Negotiated) {
    let stream = tokio::io::join(bytes, tokio::io::sink());
    let hint = Hint { alpn, sni: None, sni_is_own: false };
    let Ok(mut session) = session(stream, hint, &Settings::default()).await else {
        assert!(matches!(alpn, Negotiated::None | Negotiated::TransportHeader));
        return;
    };
    let mut rest = Vec::new();
    session.stream.read_to_end(&mut rest).await.expect("memory does not fail");
    assert!(bytes.ends_with(&rest));
    assert!(alpn == Negotiated::TransportHeader || rest.len() == bytes.len());
}
