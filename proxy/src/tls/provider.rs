//! The one cryptographic provider, named explicitly wherever a configuration is built.
//!
//! **Out** the suites and groups that Linkerd's proxies speak, past and present: those of before mid-2025 offer nothing
//! but CHACHA20 and the classic groups, so neither may be dropped (Linkerd wire document §1.4).
//! TLS 1.3 only, also where a feature of some dependency turned TLS 1.2 on.

use std::sync::{Arc, LazyLock};

use rustls::SupportedProtocolVersion;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};

/// The versions that every configuration is built with.
pub(super) const VERSIONS: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1],
        ..aws_lc_rs::default_provider()
    })
});

/// The provider.
pub(super) fn provider() -> &'static Arc<CryptoProvider> {
    &PROVIDER
}

/// Makes the provider the process's default, so that no dependency picks another one behind our back. To be called
/// first thing in `main`; a second call changes nothing.
pub fn install() {
    let _ = CryptoProvider::clone(&PROVIDER).install_default();
}

/// SHA-256, from the provider's own suites.
pub(super) fn sha256(data: &[u8]) -> Vec<u8> {
    let suite = cipher_suite::TLS13_AES_128_GCM_SHA256.tls13().expect("the suite is one of TLS 1.3");
    suite.common.hash_provider.hash(data).as_ref().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_version_1_3_is_spoken() {
        assert!(provider().cipher_suites.iter().all(|suite| suite.tls13().is_some()));
    }

    #[test]
    fn the_hash_is_the_known_one() {
        let hex: String = sha256(b"abc").iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
