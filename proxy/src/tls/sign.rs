//! Signs in the gateway's name: ECDSA on P-256 with SHA-256, which JOSE calls ES256.
//!
//! **In** a private key in PEM (PKCS#8 or SEC 1), bytes to sign. **Out** signatures of 64 bytes and the public key as a
//! JSON Web Key. **Refuses** keys of another kind. The key never leaves: neither `Debug` nor the JWK shows it.
//! (RFC 7518 §3.4 and §6.2; RFC 7638 for the key's name.)

use std::fmt;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;

use super::files::{CredentialsError, File, Problem, at};
use super::provider::sha256;

/// A key that signs.
pub struct Signer {
    key: EcdsaKeyPair,
    public: Jwk,
}

/// A public key on P-256, as a JSON Web Key shows it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Jwk {
    /// Its name: the thumbprint of the key (RFC 7638), so that everybody who has the key has the name.
    pub kid: String,
    /// The first coordinate, in base64url.
    pub x: String,
    /// The second one.
    pub y: String,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Signer").field(&self.public.kid).finish()
    }
}

impl Signer {
    /// All keys in a file, in their order, at least one.
    pub fn from_pem(file: &File) -> Result<Vec<Self>, CredentialsError> {
        let mut signers = Vec::new();
        for key in PrivateKeyDer::pem_slice_iter(&file.contents) {
            let key = key.map_err(|error| at(file, Problem::UnusableKey(error.to_string())))?;
            let signer = Self::from_der(&key);
            signers.push(signer.ok_or_else(|| at(file, Problem::UnusableKey("not on P-256".into())))?);
        }
        if signers.is_empty() { Err(at(file, Problem::NoKey)) } else { Ok(signers) }
    }

    /// The first key of a file, where it is of the right kind.
    pub(super) fn first(file: &File) -> Option<Self> {
        Self::from_der(&PrivateKeyDer::from_pem_slice(&file.contents).ok()?)
    }

    fn from_der(key: &PrivateKeyDer<'_>) -> Option<Self> {
        let key = EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_FIXED_SIGNING, key.secret_der()).ok()?;
        // An uncompressed point: the byte 4, then two coordinates of 32 bytes.
        let point: [u8; 65] = key.public_key().as_ref().try_into().ok()?;
        let public = Jwk::new(&point[1..33], &point[33..]);
        Some(Self { key, public })
    }

    /// The public key.
    pub fn public(&self) -> &Jwk {
        &self.public
    }

    /// The signature of `message`: both numbers, 32 bytes each. None only when the library has no randomness left.
    pub fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        let signature = self.key.sign(&SystemRandom::new(), message).ok()?;
        Some(signature.as_ref().to_vec())
    }
}

impl Jwk {
    fn new(x: &[u8], y: &[u8]) -> Self {
        let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
        // The members that RFC 7638 asks for, in its order, without white space.
        let canonical = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
        Self { kid: URL_SAFE_NO_PAD.encode(sha256(canonical.as_bytes())), x, y }
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};

    use super::*;
    use crate::tls::mint::{self, Validity};

    fn key_pem() -> String {
        let validity = Validity::from_now(std::time::SystemTime::now(), std::time::Duration::from_secs(60));
        mint::anchor("keys", validity).expect("an anchor").key_pem()
    }

    #[test]
    fn what_is_signed_verifies_with_what_is_shown() {
        let file = File::new("keys.pem", key_pem() + &key_pem());
        let signers = Signer::from_pem(&file).expect("two keys");
        assert_eq!(signers.len(), 2);
        assert_ne!(signers[0].public(), signers[1].public());
        for signer in &signers {
            let signature = signer.sign(b"message").expect("signed");
            assert_eq!(signature.len(), 64);
            let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).expect("base64url");
            let point = [vec![4], decode(&signer.public().x), decode(&signer.public().y)].concat();
            let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point);
            assert!(key.verify(b"message", &signature).is_ok());
            assert!(key.verify(b"another", &signature).is_err());
        }
        assert!(!format!("{signers:?}").contains("PRIVATE"));
    }

    #[test]
    fn names_of_keys_are_thumbprints() {
        // The coordinates of RFC 7517, appendix A.1; the name was computed with another program.
        let jwk = Jwk {
            x: "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4".into(),
            y: "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM".into(),
            kid: String::new(),
        };
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).expect("base64url");
        assert_eq!(Jwk::new(&decode(&jwk.x), &decode(&jwk.y)).kid, "cn-I_WNMClehiVp51i_0VpOENW1upEerA8sEam5hn-s");
    }

    #[test]
    fn other_keys_are_refused() {
        let cut = key_pem().replace("END", "");
        for (contents, what) in
            [("", "no private key"), ("nonsense", "no private key"), (cut.as_str(), "cannot be used")]
        {
            let error = Signer::from_pem(&File::new("k.pem", contents)).expect_err("refused");
            assert!(error.to_string().starts_with("k.pem: ") && error.to_string().contains(what), "{error}");
        }
    }
}
