use super::*;
use crate::tls::mint::{self, Validity};

#[test]
fn plaintext_stays_on_this_host() {
    let at = |text: &str| text.parse::<HostPort>().expect("host and port");
    for (text, loopback) in [
        ("127.0.0.1:8080", true),
        ("[::1]:8080", true),
        ("[::ffff:127.0.0.1]:1", true),
        ("localhost:8080", true),
        ("localhost.:8080", true),
        ("10.0.0.1:8080", false),
        ("linkerd-policy.linkerd.svc.cluster.local.:8090", false),
        ("localhost.example:1", false),
    ] {
        assert_eq!(at(text).is_loopback(), loopback, "{text}");
    }
    for bad in ["", "host", "host:", "host:0", "host:65536", ":80", "127.0.0.1:0", "a b:80", "host:+1"] {
        assert!(bad.parse::<HostPort>().is_err(), "{bad}");
    }
    let settings = |at| Settings { name: "policy", at, server: None, transport: Transport::default() };
    let anchor = mint::anchor("a", Validity::from_now(std::time::SystemTime::now(), Duration::from_secs(60)));
    let anchor = anchor.expect("an anchor");
    let leaf = mint::leaf(
        &anchor,
        &[crate::identity::Identity::parse("gw.example").expect("an identity")],
        Validity::from_now(std::time::SystemTime::now(), Duration::from_secs(60)),
        mint::Usage::Both,
    )
    .expect("a leaf");
    let file = |name: &str, text: String| crate::tls::File::new(name, text);
    let pem = crate::tls::Pem {
        chain: file("chain", leaf.cert_pem()),
        key: file("key", leaf.key_pem.clone()),
        bundle: file("bundle", anchor.cert_pem()),
        crls: Vec::new(),
    };
    let credentials = Credentials::from_pem(&pem, &crate::tls::credentials::Settings::default()).expect("credentials");
    let credentials = Arc::new(Live::new(credentials));
    let make = |text| Control::new(settings(at(text)), Arc::clone(&credentials), None).map(drop);
    assert_eq!(make("10.0.0.1:8080"), Err(Unfit::Plaintext(at("10.0.0.1:8080"))));
    assert_eq!(make("policy.linkerd:1"), Err(Unfit::Plaintext(at("policy.linkerd:1"))));
    assert_eq!(make("localhost:1"), Ok(()));
}
