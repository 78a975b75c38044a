//! The gateway's certificate from an identity controller that behaves and misbehaves, and from a Workload API.

use std::path::Path;
use std::time::Duration;

use isthmus::identity::Identity;
use isthmus::tls::ALPN_HTTP11;
use isthmus::tls::mint::Authority;
use isthmus_tests::linkerd::{CONTROL, Mode, Plane, issue};
use isthmus_tests::pki::{GATEWAY, Pki, pair};
use isthmus_tests::soon;
use isthmus_tests::world::{Setup, World};
use linkerd2_proxy_api::identity::{CertifyRequest, CertifyResponse};
use tonic::Status;

const HOUR: Duration = Duration::from_secs(3600);

fn setup(plane: &Plane, folder: &Path) -> Setup {
    std::fs::write(folder.join("token"), "the-token").unwrap();
    std::fs::write(folder.join("bundle.crt"), Pki::get().anchor.cert_pem()).unwrap();
    let path = |name: &str| format!("'{}'", folder.join(name).display());
    let server = "linkerd-identity.linkerd.serviceaccount.identity.linkerd.cluster.local";
    plane.door.certificate(Some(pair(&Pki::get().east, &[server])));
    Setup::new()
        .unset("tls", "chain_file")
        .unset("tls", "key_file")
        .set("tls", "bundle_file", &path("bundle.crt"))
        .set("tls", "reload_interval", "100ms")
        .set("identity", "source", "linkerd")
        .set("identity", "name", GATEWAY)
        .set(
            "identity",
            "linkerd",
            &format!(
                "{{ address: '{}', server: {server}, token_file: {}, timeout: 3s, min_refresh: 200ms }}",
                plane.addr,
                path("token")
            ),
        )
        .set("probe", "plaintext", "true")
}

fn issuer() -> &'static Authority {
    &Pki::get().east
}

/// Whether the gateway serves: a request goes through.
async fn serves(world: &World) -> bool {
    let Ok(stream) = world.shop().try_connect(GATEWAY, &[ALPN_HTTP11]).await else { return false };
    drop(stream);
    true
}

async fn waits_for(world: &World, words: &str) {
    isthmus_tests::until_async(async || {
        let (status, body) = world.admin("/ready").await;
        status == 503 && body.contains(words)
    })
    .await;
}

async fn is_ready(world: &World) {
    isthmus_tests::until_async(async || world.admin("/ready").await.0 == 200).await;
}

#[tokio::test]
async fn the_gateway_starts_without_a_certificate_and_serves_once_it_has_one() {
    let folder = tempfile::tempdir().unwrap();
    let plane = Plane::plaintext().await;
    let world = setup(&plane, folder.path()).launch().await;
    let call = plane.certify.called().await;
    assert_eq!((call.request.identity.as_str(), call.request.token.as_slice()), (GATEWAY, &b"the-token"[..]));
    let about = isthmus::tls::inspect::request(&call.request.certificate_signing_request).unwrap();
    assert!(about.subject.is_empty(), "longer names than 64 characters fit no CN: {about:?}");
    assert!(about.names.len() == 1 && about.names[0].contains(GATEWAY), "{about:?}");
    assert_eq!(plane.door.seen(), [None], "nobody has a certificate before there is one");

    waits_for(&world, "no certificate yet").await;
    assert!(!serves(&world).await);
    let line = world.refused("tls.not_yet").await;
    assert_eq!(line["fault"], "ours");
    assert_eq!(world.state().await["identity"]["not_after"], serde_json::Value::Null);

    plane.certify.answer(|request| vec![Ok(issue(issuer(), request, HOUR))]);
    drop(call);
    is_ready(&world).await;
    assert!(serves(&world).await);
    world.counted("control_identity_cert_refreshes_total", &[("result", "ok")], 1.0).await;
    assert!(world.count("control_identity_cert_expiration_timestamp_seconds", &[]).await > 1e9);
}

#[tokio::test]
async fn answers_that_do_not_fit_are_not_taken() {
    let pki = Pki::get();
    let folder = tempfile::tempdir().unwrap();
    let plane = Plane::plaintext().await;
    let world = setup(&plane, folder.path()).launch().await;
    type Answer = fn(&CertifyRequest) -> Result<CertifyResponse, Status>;
    let wrong: [(&str, Answer); 7] = [
        ("does not belong", |_| Ok(answer_for("other.isthmus.serviceaccount.identity.linkerd.cluster.local"))),
        ("not taken", |_| Ok(CertifyResponse::default())),
        ("does not belong", |_| Ok(answer_for(GATEWAY))),
        ("no trusted root", |request| Ok(issue(&Pki::get().foreign, request, HOUR))),
        ("expired", |request| Ok(expired(request))),
        ("not taken", |_| Ok(CertifyResponse { leaf_certificate: vec![1, 2, 3], ..Default::default() })),
        ("FailedPrecondition", |_| Err(Status::failed_precondition("the token is not ours"))),
    ];
    for (words, answer) in wrong {
        plane.certify.answer(move |request| vec![answer(request)]);
        waits_for(&world, words).await;
        assert!(!serves(&world).await, "{words}");
    }
    // Silence, for longer than a call may take.
    plane.certify.answer(|_| Vec::new());
    waits_for(&world, "did not answer").await;
    // And at the door.
    for (mode, words) in [(Mode::Reset, "Unavailable"), (Mode::Silent, "Unavailable"), (Mode::Deaf, "did not answer")] {
        plane.door.mode(mode);
        plane.door.cut();
        waits_for(&world, words).await;
    }
    plane.door.mode(Mode::Serve);
    plane.door.certificate(Some(pair(&pki.east, &[CONTROL])));
    plane.door.cut();
    waits_for(&world, "it names 'linkerd-destination.").await;
    let server = "linkerd-identity.linkerd.serviceaccount.identity.linkerd.cluster.local";
    plane.door.certificate(Some(pair(&pki.east, &[server])));
    plane.certify.answer(|request| vec![Ok(issue(issuer(), request, HOUR))]);
    is_ready(&world).await;
    assert!(serves(&world).await);
}

/// A leaf for a key that is not the gateway's.
fn answer_for(name: &str) -> CertifyResponse {
    let request = isthmus::tls::mint::request(&[Identity::parse(name).unwrap()]).unwrap();
    let request = CertifyRequest { certificate_signing_request: request.der, ..Default::default() };
    issue(issuer(), &request, HOUR)
}

fn expired(request: &CertifyRequest) -> CertifyResponse {
    use isthmus::tls::mint::{Usage, Validity, sign_request};
    let now = std::time::SystemTime::now();
    let validity = Validity { not_before: now - HOUR * 2, not_after: now - HOUR };
    let leaf = sign_request(issuer(), &request.certificate_signing_request, validity, Usage::Both).unwrap();
    CertifyResponse {
        leaf_certificate: leaf.der.to_vec(),
        intermediate_certificates: vec![issuer().der().to_vec()],
        valid_until: None,
    }
}

#[tokio::test]
async fn a_certificate_is_renewed_with_the_token_of_the_moment_and_kept_while_that_fails() {
    let folder = tempfile::tempdir().unwrap();
    let plane = Plane::plaintext().await;
    let world = setup(&plane, folder.path()).launch().await;
    let first = plane.certify.called().await;
    // Renewed after some four seconds.
    first.send(issue(issuer(), &first.request, Duration::from_secs(6)));
    is_ready(&world).await;
    let ends = world.state().await["identity"]["not_after"].as_u64().unwrap();
    std::fs::write(folder.path().join("token"), "another-token").unwrap();
    let second = plane.certify.called().await;
    assert_eq!(second.request.token, b"another-token");
    assert_eq!(
        second.request.certificate_signing_request, first.request.certificate_signing_request,
        "one key for the life of the process"
    );
    assert!(plane.door.seen().iter().all(Option::is_none), "the controller is always spoken to as nobody");
    second.fail(Status::unavailable("not now"));
    let third = plane.certify.called().await;
    assert_eq!(world.state().await["identity"]["not_after"], ends, "the old one is kept");
    plane.certify.answer(|request| vec![Ok(issue(issuer(), request, HOUR))]);
    drop(third);
    world.counted("control_identity_cert_refreshes_total", &[("result", "ok")], 2.0).await;
    assert!(world.count("control_identity_cert_refreshes_total", &[("result", "error")]).await >= 1.0);
    assert!(serves(&world).await);
}

#[tokio::test]
async fn an_unreadable_token_is_said_and_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let plane = Plane::plaintext().await;
    let setup = setup(&plane, folder.path());
    let token = folder.path().join("token");
    plane.certify.answer(|request| vec![Ok(issue(issuer(), request, HOUR))]);
    std::fs::remove_file(&token).unwrap();
    let world = setup.launch().await;
    waits_for(&world, "cannot be used").await;
    std::fs::write(&token, "").unwrap();
    waits_for(&world, "it is empty").await;
    std::fs::write(&token, "x".repeat(65 * 1024)).unwrap();
    waits_for(&world, "more than 65536 bytes").await;
    std::fs::write(&token, "fine").unwrap();
    is_ready(&world).await;
}

#[tokio::test]
async fn roots_are_replaced_while_the_certificate_stays() {
    let pki = Pki::get();
    let folder = tempfile::tempdir().unwrap();
    let plane = Plane::plaintext().await;
    let world = setup(&plane, folder.path()).launch().await;
    plane.certify.answer(|request| vec![Ok(issue(issuer(), request, HOUR))]);
    is_ready(&world).await;
    let newcomer = pair(&pki.west_next, &["new.west.serviceaccount.identity.linkerd.cluster.local"]);
    let peer = world.peer(Some(&newcomer));
    let bundle = folder.path().join("bundle.crt");
    std::fs::write(&bundle, pki.anchor.cert_pem() + &pki.next.cert_pem()).unwrap();
    isthmus_tests::until_async(async || world.state().await["identity"]["roots"].as_array().unwrap().len() == 2).await;
    let mut stream = soon(peer.try_connect(GATEWAY, &[ALPN_HTTP11])).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stream, b"GET / HTTP/1.1\r\nhost: nobody.ns.svc.cluster.local\r\n\r\n")
        .await
        .unwrap();
    let mut byte = [0; 1];
    assert_eq!(soon(tokio::io::AsyncReadExt::read(&mut stream, &mut byte)).await.unwrap(), 1, "an answer, no alert");
    assert_eq!(plane.certify.asked().len(), 1, "the certificate fits the new roots as well");

    // A bundle that does not vouch for the gateway itself: another certificate first, and both are in force together.
    plane.certify.by_hand();
    std::fs::write(&bundle, pki.next.cert_pem()).unwrap();
    plane.door.certificate(Some(pair(
        &pki.west_next,
        &["linkerd-identity.linkerd.serviceaccount.identity.linkerd.cluster.local"],
    )));
    plane.door.cut();
    let call = plane.certify.called().await;
    assert_eq!(world.state().await["identity"]["roots"].as_array().unwrap().len(), 2, "nothing is cut off meanwhile");
    plane.certify.answer(|request| vec![Ok(issue(&Pki::get().west_next, request, HOUR))]);
    drop(call);
    isthmus_tests::until_async(async || world.state().await["identity"]["roots"].as_array().unwrap().len() == 1).await;
}
