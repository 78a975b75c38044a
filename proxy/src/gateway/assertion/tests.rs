//! What a token says, how long it lasts, and which keys check it.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};

use super::*;
use crate::gateway::http::identify::tests::credentials;
use crate::tls::File;
use crate::tls::mint::{self, Validity};

const LIFETIME: Duration = Duration::from_secs(60);
const CLIENT: &str = "web.shop.serviceaccount.identity.linkerd.west.example";

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn decode(text: &str) -> Vec<u8> {
    URL_SAFE_NO_PAD.decode(text).expect("base64url without padding")
}

fn parse(text: &[u8]) -> Value {
    serde_json::from_slice(text).expect("JSON")
}

/// What a backend does: finds the key by its name, checks the signature, and reads the claims. None where it refuses.
fn checked(token: &str, key_set: &str) -> Option<Value> {
    let [header, claims, signature] = token.split('.').collect::<Vec<_>>().try_into().expect("three parts");
    let header_said = parse(&decode(header));
    assert_eq!((&header_said["alg"], &header_said["typ"]), (&json!("ES256"), &json!("JWT")));
    let keys = parse(key_set.as_bytes());
    let key = keys["keys"].as_array().expect("a list").iter().find(|key| key["kid"] == header_said["kid"])?;
    assert_eq!([&key["kty"], &key["crv"], &key["use"], &key["alg"]], ["EC", "P-256", "sig", "ES256"]);
    let coordinate = |name: &str| decode(key[name].as_str().expect("text"));
    let point = [vec![4], coordinate("x"), coordinate("y")].concat();
    let message = format!("{header}.{claims}");
    let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point);
    key.verify(message.as_bytes(), &decode(signature)).ok().map(|()| parse(&decode(claims)))
}

fn token(assertions: &Assertions, now: SystemTime) -> String {
    let (issuer, subject) = (Identity::parse("spiffe://east.example/gw").unwrap(), Identity::parse(CLIENT).unwrap());
    let claims = Claims {
        issuer: &issuer,
        subject: &subject,
        audience: &"cart.shop.svc.cluster.local".parse().unwrap(),
        cluster: Some("west"),
        network: Some([192, 0, 2, 7].into()),
    };
    let issued = assertions.issue(&claims, now).expect("signed");
    assert!(issued.value.is_sensitive());
    issued.value.to_str().expect("ASCII").to_owned()
}

fn keys(count: usize) -> Vec<Signer> {
    let validity = Validity::from_now(SystemTime::now(), LIFETIME);
    let pem: String = (0..count).map(|_| mint::anchor("keys", validity).expect("an anchor").key_pem()).collect();
    Signer::from_pem(&File::new("keys.pem", pem)).expect("keys")
}

fn own(credentials: Credentials) -> (Assertions, Arc<Live<Credentials>>) {
    let live = Arc::new(Live::new(credentials));
    (Assertions::of_certificate(LIFETIME, Arc::clone(&live)), live)
}

#[tokio::test(start_paused = true)]
async fn the_claims_say_who_for_whom_and_how_long() {
    let (assertions, _live) = own(credentials());
    let claims = checked(&token(&assertions, at(1_800_000_000)), &assertions.key_set()).expect("verified");
    assert_eq!(
        claims,
        json!({
            "iss": "spiffe://east.example/gw",
            "sub": CLIENT,
            "aud": "cart.shop.svc.cluster.local",
            "iat": 1_800_000_000,
            "nbf": 1_800_000_000,
            "exp": 1_800_000_060,
            "trust_domain": "west.example",
            "cluster": "west",
            "net": "192.0.2.7",
        })
    );
    assert_eq!(assertions.signed(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_unknown_is_left_out() {
    let (assertions, _live) = own(credentials());
    let identity = Identity::parse("web.example").unwrap();
    let claims = Claims {
        issuer: &identity,
        subject: &identity,
        audience: &"cart".parse().unwrap(),
        cluster: None,
        network: None,
    };
    let issued = assertions.issue(&claims, at(1)).expect("signed");
    assert_eq!(issued.renew_at, Instant::now() + LIFETIME / 2);
    let said = checked(issued.value.to_str().unwrap(), &assertions.key_set()).expect("verified");
    let mut names: Vec<&String> = said.as_object().expect("an object").keys().collect();
    names.sort();
    assert_eq!(names, ["aud", "exp", "iat", "iss", "nbf", "sub"]);
}

#[tokio::test(start_paused = true)]
async fn a_changed_token_does_not_verify() {
    let (assertions, _live) = own(credentials());
    let token = token(&assertions, at(1));
    let [header, _, signature] = token.split('.').collect::<Vec<_>>().try_into().unwrap();
    let forged = URL_SAFE_NO_PAD.encode(r#"{"sub":"admin"}"#);
    assert!(checked(&format!("{header}.{forged}.{signature}"), &assertions.key_set()).is_none());
    let (strangers, _live) = own(credentials());
    assert!(checked(&token, &strangers.key_set()).is_none(), "another gateway's key");
}

#[tokio::test(start_paused = true)]
async fn a_key_that_was_replaced_is_shown_until_its_last_token_has_ended() {
    let (assertions, live) = own(credentials());
    let old = token(&assertions, at(1));
    // Two changes, and nobody looked at the key set in between.
    live.replace(credentials());
    let middle = token(&assertions, at(2));
    live.replace(credentials());
    let new = token(&assertions, at(3));
    let valid = |assertions: &Assertions| [&old, &middle, &new].map(|t| checked(t, &assertions.key_set()).is_some());
    assert_eq!(valid(&assertions), [true, true, true]);
    tokio::time::advance(LIFETIME + SKEW - Duration::from_secs(1)).await;
    assert_eq!(valid(&assertions), [true, true, true]);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(valid(&assertions), [false, false, true]);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_comes_back_is_shown_once() {
    let mut first = keys(2);
    let second = vec![first.pop().expect("two keys")];
    let assertions = Assertions::of_keys(LIFETIME, first);
    let public = |set: &str| parse(set.as_bytes())["keys"].as_array().expect("a list").len();
    assert_eq!(public(&assertions.key_set()), 1);
    assertions.replace(second);
    assert_eq!(public(&assertions.key_set()), 2);
    for _ in 0..20 {
        assertions.replace(keys(1));
    }
    assert!(public(&assertions.key_set()) <= 1 + MAX_RETIRED);
}

#[tokio::test(start_paused = true)]
async fn of_several_keys_the_first_signs_and_all_are_shown() {
    let assertions = Assertions::of_keys(LIFETIME, keys(3));
    let set = parse(assertions.key_set().as_bytes());
    let first = &set["keys"][0]["kid"];
    assert_eq!(set["keys"].as_array().map(Vec::len), Some(3));
    let token = token(&assertions, at(1));
    assert_eq!(parse(&decode(token.split('.').next().unwrap()))["kid"], *first);
}
