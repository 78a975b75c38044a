//! A signed word about the client: a JWT that survives next hops which overwrite every header they know.
//!
//! **In** who the client is and which service it reached. **Out** a token (RFC 7515 compact, ES256) and the key set with
//! which anybody can check it (RFC 7517). **Refuses** to sign where the gateway has no key on P-256.
//!
//! Tokens are made once per connection and service and again at half of their life, not per request. A key that was
//! replaced stays in the key set until the last token that it signed has ended. (RFC 7519; RFC 8725 for what to leave out:
//! there is no claim that a backend could not check, and none that says more than the handshake did.)

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::{ArcSwap, ArcSwapOption};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderValue;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::addr::Name;
use crate::identity::Identity;
use crate::live::Live;
use crate::tls::Credentials;
use crate::tls::sign::{Jwk, Signer};

/// Makes the tokens of all workers and shows the keys.
#[derive(Debug)]
pub struct Assertions {
    lifetime: Duration,
    keys: Keys,
    /// The key that signed last, and those that did before it.
    last: ArcSwapOption<Signer>,
    retired: Mutex<Vec<Retired>>,
    signed: AtomicU64,
}

/// Where the keys come from.
#[derive(Debug)]
enum Keys {
    /// The key of the gateway's own certificate.
    Own(Arc<Live<Credentials>>),
    /// A file of keys: the first signs, the others are shown.
    File(ArcSwap<Vec<Arc<Signer>>>),
}

/// A key that signs no more, and how long tokens of it may be about.
#[derive(Debug)]
struct Retired {
    key: Jwk,
    until: Instant,
}

/// What a token says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claims<'a> {
    /// The gateway.
    pub(crate) issuer: &'a Identity,
    /// The client.
    pub(crate) subject: &'a Identity,
    /// The service.
    pub(crate) audience: &'a Name,
    /// The client's cluster.
    pub(crate) cluster: Option<&'a str>,
    /// The client's address, where it means something.
    pub(crate) network: Option<IpAddr>,
}

/// A token, and when to have another one made.
#[derive(Clone, Debug)]
pub(crate) struct Issued {
    pub(crate) value: HeaderValue,
    pub(crate) renew_at: Instant,
}

impl Assertions {
    /// Signs with the key of the gateway's certificate, whichever it is at the time.
    pub fn of_certificate(lifetime: Duration, credentials: Arc<Live<Credentials>>) -> Self {
        Self::new(lifetime, Keys::Own(credentials))
    }

    /// Signs with the first of `keys`, which are shown all.
    pub fn of_keys(lifetime: Duration, keys: Vec<Signer>) -> Self {
        Self::new(lifetime, Keys::File(ArcSwap::from_pointee(keys.into_iter().map(Arc::new).collect())))
    }

    fn new(lifetime: Duration, keys: Keys) -> Self {
        Self { lifetime, keys, last: ArcSwapOption::empty(), retired: Mutex::default(), signed: AtomicU64::new(0) }
    }

    /// Takes other keys, where they come from a file.
    pub fn replace(&self, keys: Vec<Signer>) {
        if let Keys::File(held) = &self.keys {
            self.signer(); // whatever signed so far is remembered before it goes
            held.store(Arc::new(keys.into_iter().map(Arc::new).collect()));
            self.signer();
        }
    }

    /// How many tokens were signed.
    pub fn signed(&self) -> u64 {
        self.signed.load(Ordering::Relaxed)
    }

    /// The key that signs now. When it is another one than before, that one is kept to be shown a while longer. The lock
    /// is taken at such a change only.
    fn signer(&self) -> Option<Arc<Signer>> {
        let now = match &self.keys {
            Keys::Own(credentials) => credentials.load().signer().cloned(),
            Keys::File(keys) => keys.load().first().cloned(),
        }?;
        let same = |last: &Option<Arc<Signer>>| last.as_ref().is_some_and(|last| last.public() == now.public());
        if !same(&self.last.load()) {
            let mut retired = self.retired.lock();
            let before = self.last.swap(Some(Arc::clone(&now)));
            retired.retain(|old| old.key != *now.public());
            if let Some(before) = before.filter(|before| before.public() != now.public()) {
                let until = Instant::now() + self.lifetime + SKEW;
                retired.push(Retired { key: before.public().clone(), until });
            }
            let over = retired.len().saturating_sub(MAX_RETIRED);
            retired.drain(..over);
        }
        Some(now)
    }

    /// A token that says `claims` from now on. None where there is no key for it.
    pub(crate) fn issue(&self, claims: &Claims<'_>, now: SystemTime) -> Option<Issued> {
        let signer = self.signer()?;
        let renew_at = Instant::now() + self.lifetime / 2;
        let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let header = json!({ "alg": "ES256", "kid": signer.public().kid, "typ": "JWT" });
        let mut said = json!({
            "iss": claims.issuer.as_str(),
            "sub": claims.subject.as_str(),
            "aud": claims.audience.as_str(),
            "iat": seconds,
            "nbf": seconds,
            "exp": seconds + self.lifetime.as_secs(),
        });
        let optional = [
            ("trust_domain", claims.subject.trust_domain().map(str::to_owned)),
            ("cluster", claims.cluster.map(str::to_owned)),
            ("net", claims.network.map(|network| network.to_canonical().to_string())),
        ];
        for (name, value) in optional {
            if let Some(value) = value {
                said[name] = Value::from(value);
            }
        }
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let mut token = format!("{}.{}", encode(&header), encode(&said));
        let signature = signer.sign(token.as_bytes())?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        let mut value = HeaderValue::try_from(token).ok()?;
        // Whoever has it may show it: neither into logs nor into the table of field lines that all clients of a
        // connection to an endpoint share (RFC 7541 §7.1.3).
        value.set_sensitive(true);
        self.signed.fetch_add(1, Ordering::Relaxed);
        Some(Issued { value, renew_at })
    }

    /// The keys that tokens of now may be signed with, as a JWK set.
    pub fn key_set(&self) -> String {
        let signer = self.signer();
        let others = match &self.keys {
            Keys::Own(_) => Vec::new(),
            Keys::File(keys) => keys.load().to_vec(),
        };
        let mut keys: Vec<Jwk> = Vec::new();
        let mut retired = self.retired.lock();
        retired.retain(|old| old.until > Instant::now());
        let shown = signer.iter().chain(&others).map(|signer| signer.public());
        for key in shown.chain(retired.iter().map(|old| &old.key)) {
            if !keys.contains(key) {
                keys.push(key.clone());
            }
        }
        drop(retired);
        let rows = keys.iter().map(|key| {
            json!({ "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": key.kid, "x": key.x, "y": key.y })
        });
        json!({ "keys": rows.collect::<Vec<_>>() }).to_string() + "\n"
    }

    /// Whether there is a key to sign with.
    pub fn can_sign(&self) -> bool {
        self.signer().is_some()
    }
}

/// How far the clocks of those who check may be behind ours.
const SKEW: Duration = Duration::from_secs(60);

/// How many replaced keys are shown. Keys are replaced by hand or once a day; a minute sees no eight of them.
const MAX_RETIRED: usize = 8;

#[cfg(test)]
mod tests;
