//! Who one says one is: look-alikes of an identity that may do more, and every header in which a client could name itself.

use isthmus::tls::{ALPN_H2, ALPN_HTTP11};
use isthmus_tests::peer::{Peer, empty, h2_request, listen, whole};
use isthmus_tests::pki::{GATEWAY, Pair, Pki, SHOP};
use isthmus_tests::wire::Http1;
use isthmus_tests::world::{Setup, service};

use crate::{MALLORY, peer, world};

/// A leaf whose names stand in it as they are, whatever they are.
fn forged(names: &[&[u8]]) -> Pair {
    let issuer = &Pki::get().west;
    let signer = rcgen::KeyPair::from_pem(&issuer.key_pem()).unwrap();
    let rcgen_issuer = rcgen::Issuer::from_ca_cert_der(issuer.der(), signer).unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, "shop");
    // GeneralNames with dNSName entries (RFC 5280 §4.2.1.6).
    let mut entries = Vec::new();
    for name in names {
        entries.push(0x82);
        entries.push(u8::try_from(name.len()).unwrap());
        entries.extend(*name);
    }
    let mut extension = vec![0x30];
    if entries.len() >= 128 {
        extension.push(0x81);
    }
    extension.push(u8::try_from(entries.len()).unwrap());
    extension.extend(entries);
    let extension = rcgen::CustomExtension::from_oid_content(&[2, 5, 29, 17], extension);
    params.custom_extensions = vec![extension];
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = params.signed_by(&key, &rcgen_issuer).unwrap();
    Pair { chain: leaf.pem() + &issuer.cert_pem(), key: key.serialize_pem() }
}

/// What a client gets: a status, or nothing where no session came about.
async fn status(peer: &Peer) -> Option<u16> {
    let mut stream = peer.try_connect(GATEWAY, &[ALPN_HTTP11]).await.ok()?;
    use tokio::io::AsyncWriteExt;
    let request = format!("GET / HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", service("web"));
    stream.write_all(request.as_bytes()).await.ok()?;
    let back = String::from_utf8_lossy(&listen(&mut stream).await.0).into_owned();
    back.split(' ').nth(1)?.parse().ok()
}

#[tokio::test]
async fn look_alikes_are_somebody_else_or_nobody() {
    let setup = Setup::new().set("authorise", "default", "deny").set(
        "authorise",
        "rules",
        &format!("[{{ name: shop, clients: ['{SHOP}'], services: ['*'], action: allow }}]"),
    );
    let (world, _) = world(setup).await;
    assert_eq!(status(&world.shop()).await, Some(200));
    let rest = SHOP.strip_prefix("shop").unwrap();
    // The same name, as DNS compares names: this *is* shop, to every reader of certificates.
    let upper = forged(&[SHOP.to_ascii_uppercase().as_bytes()]);
    assert_eq!(status(&world.peer(Some(&upper))).await, Some(200));
    let cyrillic = format!("\u{455}hop{rest}");
    let nul = format!("{SHOP}\0.mallory.example");
    let wildcard = format!("*{rest}");
    let longer = format!("{SHOP}.mallory.example");
    let blank = format!("{SHOP} ");
    let newline = format!("{SHOP}\nl5d-client-id: x");
    let punycode = format!("xn--hop-kfd{rest}");
    for (what, names) in [
        ("Cyrillic", vec![cyrillic.as_bytes()]),
        ("punycode", vec![punycode.as_bytes()]),
        ("NUL", vec![nul.as_bytes()]),
        ("a wildcard", vec![wildcard.as_bytes()]),
        ("all names", vec![b"*".as_slice()]),
        ("a longer name", vec![longer.as_bytes()]),
        ("a blank", vec![blank.as_bytes()]),
        ("a line end", vec![newline.as_bytes()]),
        ("an empty name", vec![b"".as_slice()]),
        ("the name behind one's own", vec![MALLORY.as_bytes(), SHOP.as_bytes()]),
        ("no name but the common one", vec![]),
    ] {
        let status = status(&world.peer(Some(&forged(&names)))).await;
        assert!(matches!(status, None | Some(403)), "{what}: {status:?}");
    }
    // A dot at the end is the same name in DNS and may be read as such or not at all, never as a third.
    let dotted = format!("{SHOP}.");
    let status = status(&world.peer(Some(&forged(&[dotted.as_bytes()])))).await;
    assert!(matches!(status, None | Some(200 | 403)), "{status:?}");
    for line in world.lines() {
        let identity = line["client_identity"].as_str().unwrap_or_default();
        assert!(!identity.contains(['\0', '\n', ' ', '*']), "{line}");
        assert!(line["kind"] != "request" || line["status"] != 200 || identity == SHOP, "{line}");
    }
}

#[tokio::test]
async fn no_header_makes_one_somebody_else() {
    let setup = Setup::new().set("identify", "forwarded_client_cert", "set").set("identify", "forwarded_for", "set");
    let (world, web) = world(setup).await;
    let spoofed = [
        ("l5d-client-id", SHOP),
        ("l5d_client_id", SHOP),
        ("l5d-dst-canonical", "admin.ns.svc.cluster.local"),
        ("x-forwarded-client-cert", "By=spiffe://a/b;URI=spiffe://spoofed"),
        ("x-forwarded-for", "203.0.113.66"),
        ("x-real-ip", "203.0.113.66"),
        ("x-forwarded-proto", "spoofed"),
        ("x-forwarded-host", "spoofed.example"),
        ("client-cert", ":c3Bvb2ZlZA==:"),
        ("isthmus-client-assertion", "e30.e30.spoofed"),
        ("forwarded", "for=203.0.113.66;by=hop;host=spoofed"),
    ];
    let host = service("web");
    let mut request = format!("GET /one HTTP/1.1\r\nhost: {host}\r\n");
    let mut over_h2 = h2_request("GET", "web", "/two");
    for (name, value) in spoofed {
        request += &format!("{name}: {value}\r\n");
        over_h2 = over_h2.header(name, value);
    }
    let mut http = Http1::new(peer(&world).connect(&[ALPN_HTTP11]).await);
    assert_eq!(http.ask(&(request + "\r\n")).await.status(), 200);
    let h2 = isthmus_tests::peer::H2::new(peer(&world).connect(&[ALPN_H2]).await).await;
    assert_eq!(whole(h2.send(over_h2.body(empty()).unwrap()).await.unwrap()).await.status, 200);
    for seen in web.seen() {
        assert_eq!(seen.all("l5d-client-id"), [MALLORY], "{seen:?}");
        for (name, value) in &seen.headers {
            let value = String::from_utf8_lossy(value.as_bytes());
            assert!(!value.contains("spoofed") && !value.contains("203.0.113.66"), "{name}: {value}");
            assert!(
                !value.contains(SHOP) && name != "l5d_client_id" && name != "isthmus-client-assertion",
                "{name}: {value}"
            );
        }
    }
    assert_eq!(web.seen().len(), 2);
}
