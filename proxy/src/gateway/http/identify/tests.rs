//! What a client says of itself, in every mode; what is said of it; and how rarely it is written anew.

use std::time::Duration;

use super::*;
use crate::live::Live;
use crate::tls::mint::{self, Usage, Validity};
use crate::tls::{File, Pem, credentials};

const GATEWAY: &str = "gw.mc.serviceaccount.identity.linkerd.cluster.local";
const CLIENT: &str = "web.shop.serviceaccount.identity.linkerd.cluster.local";

/// A gateway's credentials, each time with another key; the leaf may stand for a client's as well.
pub(crate) fn credentials() -> Credentials {
    let validity = Validity::from_now(SystemTime::now(), Duration::from_secs(600));
    let anchor = mint::anchor("root", validity).expect("an anchor");
    let issuer = mint::issuer(&anchor, "issuer", validity, 0).expect("an issuer");
    let leaf = mint::leaf(&issuer, &[id(GATEWAY)], validity, Usage::Both).expect("a leaf");
    let pem = Pem {
        chain: File::new("chain", leaf.cert_pem() + &issuer.cert_pem()),
        key: File::new("key", leaf.key_pem.clone()),
        bundle: File::new("bundle", anchor.cert_pem()),
        crls: Vec::new(),
    };
    Credentials::from_pem(&pem, &credentials::Settings::default()).expect("credentials")
}

fn id(text: &str) -> Identity {
    Identity::parse(text).expect("an identity")
}

/// One session: a client, and what it may be told by.
struct World {
    settings: Settings,
    live: Arc<Live<Credentials>>,
    assertions: Option<Assertions>,
    identity: Identity,
    peer: Peer,
    known: Known,
}

impl World {
    fn new(settings: Settings) -> Self {
        let identity = id(CLIENT);
        let addr = ([192, 0, 2, 7], 40123).into();
        let peer = Peer { addr, identity: Some(identity.clone()), cluster: Some("west".into()), sni: None };
        let live = Arc::new(Live::new(credentials()));
        Self { settings, live, assertions: None, identity, peer, known: Known::default() }
    }

    fn signing(settings: Settings) -> Self {
        let world = Self::new(settings);
        let assertions = Assertions::of_certificate(Duration::from_secs(60), Arc::clone(&world.live));
        Self { assertions: Some(assertions), ..world }
    }

    fn request(&self, target: &str, fields: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name.parse::<HeaderName>().expect("a name"), value.parse().expect("a value"));
        }
        let credentials = self.live.load_full();
        let pen = Pen { settings: &self.settings, credentials: &credentials, assertions: self.assertions.as_ref() };
        let leaf = credentials.chain()[0].to_vec();
        let caller = Caller { identity: &self.identity, peer: &self.peer, leaf: &leaf };
        self.known.write(pen, caller, &Target::parse(target, 80).expect("a target"), &mut headers);
        headers
    }
}

fn all(headers: &HeaderMap, name: &str) -> Vec<String> {
    headers.get_all(name).iter().map(|value| value.to_str().expect("ASCII").to_owned()).collect()
}

/// Everything that a client could say to be taken for somebody else, in spellings that some server understands.
const SPOOFED: [(&str, &str); 23] = [
    ("l5d-client-id", "spoofed"),
    ("l5d_client_id", "spoofed"),
    ("l5d-dst-canonical", "spoofed"),
    ("l5d-require-id", "spoofed"),
    ("x-forwarded-client-cert", "By=x;URI=spoofed"),
    ("x-forwarded-client-cert", "Subject=\"spoofed"),
    ("x_forwarded_client_cert", "URI=spoofed"),
    ("x.forwarded.client.cert", "URI=spoofed"),
    ("x-forwarded-for", "spoofed"),
    ("x_forwarded_for", "spoofed"),
    ("x-forwarded_for", "spoofed"),
    ("x-forwarded-host", "spoofed"),
    ("x-forwarded-port", "spoofed"),
    ("x-forwarded-proto", "spoofed"),
    ("x_forwarded_proto", "spoofed"),
    ("x-real-ip", "spoofed"),
    ("x_real_ip", "spoofed"),
    ("client-cert", ":spoofed=:"),
    ("client-cert-chain", ":spoofed=:"),
    ("isthmus-client-assertion", "spoofed"),
    ("isthmus_client_assertion", "spoofed"),
    ("forwarded", "for=spoofed;host=spoofed;proto=http"),
    ("forwarded", "for=\"spoofed"),
];

#[test]
fn nothing_that_a_client_says_of_itself_arrives_in_any_mode() {
    let modes = [Forwarding::Off, Forwarding::Set, Forwarding::Append];
    for client_cert in modes {
        for forwarded_for in modes {
            for client_id in [true, false] {
                for signs in [true, false] {
                    let settings = Settings { client_id, client_cert, forwarded_for, ..Settings::default() };
                    let world = if signs { World::signing(settings) } else { World::new(settings) };
                    let headers = world.request("web.ns:8080", &SPOOFED);
                    let case = format!("{client_cert:?} {forwarded_for:?} {client_id} {signs}");
                    for (name, value) in &headers {
                        let value = String::from_utf8_lossy(value.as_bytes());
                        assert!(!value.contains("spoofed"), "{case}: {name}: {value}");
                    }
                    let count = |name: &str| headers.get_all(name).iter().count();
                    assert_eq!(count("l5d-client-id"), usize::from(client_id), "{case}");
                    assert_eq!(count("x-forwarded-client-cert"), usize::from(client_cert != Forwarding::Off), "{case}");
                    assert_eq!(count("x-forwarded-for"), usize::from(forwarded_for != Forwarding::Off), "{case}");
                    assert_eq!(count("isthmus-client-assertion"), usize::from(signs), "{case}");
                    assert_eq!((count("forwarded"), count("l5d-dst-canonical")), (1, 1), "{case}");
                }
            }
        }
    }
}

#[test]
fn what_is_said_of_the_client() {
    let settings = Settings { client_cert: Forwarding::Set, forwarded_for: Forwarding::Set, ..Settings::default() };
    let headers = World::new(settings).request("web.ns.svc.cluster.local:8080", &[("x-other", "kept")]);
    assert_eq!(headers["l5d-client-id"], CLIENT);
    assert_eq!(headers["l5d-dst-canonical"], "web.ns.svc.cluster.local:8080");
    assert_eq!(headers["x-forwarded-for"], "192.0.2.7");
    assert_eq!(
        headers["forwarded"],
        format!("by={GATEWAY};for={CLIENT};host=web.ns.svc.cluster.local:8080;proto=https")
    );
    let cert = headers["x-forwarded-client-cert"].to_str().expect("ASCII");
    let hash = cert.strip_prefix(&format!("By={GATEWAY};Hash=")).expect("By and Hash");
    assert!(hash[..64].bytes().all(|b| b.is_ascii_hexdigit()), "{cert}");
    assert_eq!(&hash[64..], format!(";Subject=\"\";DNS={GATEWAY}"), "the test's leaf names the gateway");
    assert_eq!(headers["x-other"], "kept");
}

#[test]
fn a_trusted_proxy_is_believed_about_those_before_it_and_about_nothing_else() {
    let settings = Settings {
        client_cert: Forwarding::Append,
        forwarded_for: Forwarding::Append,
        trusted_proxies: vec![id(CLIENT)],
        ..Settings::default()
    };
    let world = World::new(settings.clone());
    let said = [
        ("x-forwarded-client-cert", "By=spiffe://a/edge;Hash=00;URI=spiffe://a/web"),
        ("x-forwarded-for", "203.0.113.9"),
        ("x-forwarded-for", "198.51.100.2"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "shop.example"),
        ("forwarded", "by=edge;for=203.0.113.9"),
        ("l5d-client-id", "spoofed"),
        ("x_forwarded_proto", "spoofed"),
        ("isthmus-client-assertion", "spoofed"),
    ];
    let headers = world.request("web.ns", &said);
    let cert = all(&headers, "x-forwarded-client-cert");
    assert!(cert.len() == 1 && cert[0].starts_with("By=spiffe://a/edge;Hash=00;URI=spiffe://a/web,By=gw."), "{cert:?}");
    assert_eq!(all(&headers, "x-forwarded-for"), ["203.0.113.9, 198.51.100.2, 192.0.2.7"]);
    assert_eq!(headers["x-forwarded-proto"], "https");
    assert_eq!(headers["x-forwarded-host"], "shop.example");
    assert_eq!(all(&headers, "forwarded")[0], "by=edge;for=203.0.113.9");
    assert_eq!(all(&headers, "l5d-client-id"), [CLIENT]);
    assert!(!headers.contains_key("x_forwarded_proto") && !headers.contains_key("isthmus-client-assertion"));

    // In `set` the gateway's word stands alone, whoever the client is.
    let set = Settings { client_cert: Forwarding::Set, forwarded_for: Forwarding::Set, ..settings };
    let headers = World::new(set).request("web.ns", &said);
    assert!(all(&headers, "x-forwarded-client-cert")[0].starts_with("By=gw."));
    assert_eq!(all(&headers, "x-forwarded-for"), ["192.0.2.7"]);
    assert!(!headers.contains_key("x-forwarded-proto") && !headers.contains_key("x-forwarded-host"));
}

#[test]
fn what_a_trusted_proxy_appends_is_bounded() {
    let settings = Settings {
        client_cert: Forwarding::Append,
        forwarded_for: Forwarding::Append,
        trusted_proxies: vec![id(CLIENT)],
        ..Settings::default()
    };
    let world = World::new(settings);
    let long = format!("By={}", "x".repeat(9000));
    let headers = world.request("web.ns", &[("x-forwarded-client-cert", &long), ("x-forwarded-for", &long)]);
    assert!(headers["x-forwarded-client-cert"].as_bytes().starts_with(b"By=gw."));
    assert_eq!(headers["x-forwarded-for"], "192.0.2.7");
}

#[test]
fn relays_are_carried_on_so_that_circles_are_seen() {
    let headers = World::new(Settings::default())
        .request("web.ns", &[("forwarded", "by=other.gateway;for=spoofed, for=spoofed;by=third.gateway")]);
    let forwarded = all(&headers, "forwarded");
    assert_eq!(forwarded[..2], ["by=other.gateway", "by=third.gateway"]);
    assert_eq!(forwarded.len(), 3);
}

#[test]
fn names_of_no_concern_stay() {
    for name in
        ["x-forwarded", "x-forwarded-forx", "xforwardedfor", "x-request-id", "client-certs", "cookie", "l5d-ctx"]
    {
        assert!(!is_reserved(name, ASSERTION.as_str()), "{name}");
    }
    assert!(is_reserved("x-client-jwt", "x-client-jwt") && is_reserved("x_client_jwt", "x-client-jwt"));
}

#[test]
fn trailers_hold_none_of_it_either() {
    let mut trailers = HeaderMap::new();
    for (name, value) in SPOOFED {
        trailers.append(name.parse::<HeaderName>().expect("a name"), value.parse().expect("a value"));
    }
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    clean_trailers(&mut trailers, &ASSERTION);
    assert_eq!(trailers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["grpc-status"]);
}

#[test]
fn an_address_of_a_load_balancer_is_no_clients() {
    let balancers: Vec<IpNet> = vec!["10.0.0.0/8".parse().expect("a network")];
    for (addr, want) in [
        ("192.0.2.7:1", Some("192.0.2.7")),
        ("[::ffff:192.0.2.7]:1", Some("192.0.2.7")),
        ("[2001:db8::1]:1", Some("2001:db8::1")),
        ("10.1.2.3:1", None),
        ("[::ffff:10.1.2.3]:1", None),
        ("0.0.0.0:1", None),
    ] {
        let got = network(addr.parse().expect("an address"), &balancers).map(|addr| addr.to_string());
        assert_eq!(got.as_deref(), want, "{addr}");
    }
    let settings = Settings {
        forwarded_for: Forwarding::Set,
        balancers: vec!["192.0.2.0/24".parse().unwrap()],
        ..Settings::default()
    };
    assert!(!World::new(settings).request("web.ns", &[]).contains_key("x-forwarded-for"));
}

#[tokio::test(start_paused = true)]
async fn one_signature_serves_a_service_for_half_its_life() {
    let world = World::signing(Settings::default());
    let signed = || world.assertions.as_ref().expect("it signs").signed();
    let token = |target: &str| all(&world.request(target, &[]), "isthmus-client-assertion").remove(0);
    let first = token("web.ns");
    for _ in 0..1000 {
        assert_eq!(token("web.ns"), first);
    }
    assert_eq!(signed(), 1);
    assert_ne!(token("cart.ns"), first, "another audience");
    assert_eq!(signed(), 2);
    tokio::time::advance(Duration::from_secs(29)).await;
    assert_eq!((token("web.ns") == first, signed()), (true, 2));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_ne!(token("web.ns"), first);
    assert_eq!(signed(), 3);
}

#[tokio::test(start_paused = true)]
async fn new_credentials_of_the_gateways_are_used_by_old_sessions() {
    let world = World::signing(Settings::default());
    let first = all(&world.request("web.ns", &[]), "isthmus-client-assertion");
    world.live.replace(credentials());
    assert_ne!(all(&world.request("web.ns", &[]), "isthmus-client-assertion"), first);
    assert_eq!(world.assertions.as_ref().expect("it signs").signed(), 2);
}

#[test]
fn a_session_keeps_a_bounded_number_of_services() {
    let world = World::new(Settings::default());
    for n in 0..1000 {
        let headers = world.request(&format!("s{n}.ns"), &[]);
        assert_eq!(headers["l5d-dst-canonical"], format!("s{n}.ns:80"));
    }
    assert!(world.known.0.borrow().as_ref().expect("prepared").services.len() <= MAX_SERVICES);
}
