//! The connections to a control plane, against a real server that behaves and misbehaves.

use std::sync::Arc;
use std::time::Duration;

use isthmus::backoff::Backoff;
use isthmus::endpoint::UpstreamTls;
use isthmus::identity::Identity;
use isthmus::live::Live;
use isthmus::sources::dns::Names;
use isthmus::sources::linkerd::control::watch::{Loss, News, Watch};
use isthmus::sources::linkerd::control::{Control, Guards, Settings, Transport};
use isthmus::tls::{Credentials, File, Pem};
use isthmus_tests::linkerd::{CONTROL, Mode, Plane};
use isthmus_tests::pki::{GATEWAY, Pki, pair};
use isthmus_tests::soon;
use linkerd2_proxy_api::inbound::inbound_server_policies_client::InboundServerPoliciesClient;
use linkerd2_proxy_api::inbound::{PortSpec, Server};
use tonic::{Code, Status};

fn credentials() -> Arc<Live<Credentials>> {
    let pki = Pki::get();
    let pem = Pem {
        chain: File::new("gateway.crt", pki.gateway.chain.as_bytes()),
        key: File::new("gateway.key", pki.gateway.key.as_bytes()),
        bundle: File::new("bundle.crt", pki.anchor.cert_pem()),
        crls: Vec::new(),
    };
    Arc::new(Live::new(Credentials::from_pem(&pem, &Default::default()).unwrap()))
}

fn control(plane: &Plane, tls: bool, streams: Guards) -> Control {
    let identity = Identity::parse(CONTROL).unwrap();
    let server = UpstreamTls { identity, server_name: CONTROL.parse().unwrap() };
    let backoff = Backoff { min: Duration::from_millis(10), max: Duration::from_millis(50), jitter: 0.0 };
    let transport = Transport { backoff, streams, ..Transport::default() };
    let settings = Settings { name: "policy", at: plane.addr.into(), server: tls.then_some(server), transport };
    Control::new(settings, credentials(), None::<Arc<Names>>).unwrap()
}

fn watch(control: &Control) -> Watch<Server> {
    Watch::new(control.clone(), |control| async move {
        let spec = PortSpec { workload: "w".to_owned(), port: 4143 };
        InboundServerPoliciesClient::new(control).watch_port(spec).await
    })
}

fn labelled(name: &str) -> Server {
    Server { labels: [("name".to_owned(), name.to_owned())].into(), ..Server::default() }
}

async fn message(watch: &mut Watch<Server>) -> (bool, String) {
    match soon(watch.next()).await {
        News::Message { first, value } => (first, value.labels["name"].clone()),
        News::Lost(loss) => panic!("{loss}"),
    }
}

async fn lost(watch: &mut Watch<Server>) -> Loss {
    match soon(watch.next()).await {
        News::Message { .. } => panic!("a message"),
        News::Lost(loss) => loss,
    }
}

#[tokio::test]
async fn a_stream_over_mutual_tls_is_followed_through_cuts() {
    let plane = Plane::tls().await;
    let control = control(&plane, true, Guards::default());
    let mut watch = watch(&control);
    plane.watch_port.answer(|_| vec![Ok(labelled("a"))]);
    assert_eq!(message(&mut watch).await, (true, "a".to_owned()));
    plane.watch_port.tell(&labelled("b"));
    assert_eq!(message(&mut watch).await, (false, "b".to_owned()));
    assert_eq!(plane.door.seen(), [Some(Identity::parse(GATEWAY).unwrap())], "we say who we are");
    plane.door.cut();
    let loss = lost(&mut watch).await;
    assert!(!loss.by_server && !loss.is_final(), "{loss}");
    assert_eq!(message(&mut watch).await, (true, "a".to_owned()));
    assert_eq!(control.standing().failures, 1);
    assert!(control.standing().age.is_some());
}

#[tokio::test]
async fn what_the_server_says_is_told_from_what_happens_on_the_way() {
    let plane = Plane::plaintext().await;
    let control = control(&plane, false, Guards::default());
    let mut watch = watch(&control);
    for (status, is_final) in [
        (Status::invalid_argument("what?"), true),
        (Status::failed_precondition("not now"), true),
        (Status::unknown("no such service"), false),
        (Status::not_found("nobody"), false),
    ] {
        let answer = status.clone();
        plane.watch_port.answer(move |_| vec![Err(answer.clone())]);
        let loss = lost(&mut watch).await;
        assert_eq!((loss.code, loss.message.as_str()), (status.code(), status.message()));
        assert_eq!((loss.by_server, loss.is_final()), (true, is_final), "{loss}");
    }
    plane.watch_port.by_hand();
    plane.door.mode(Mode::Reset);
    plane.door.cut();
    let loss = lost(&mut watch).await;
    assert_eq!((loss.code, loss.by_server), (Code::Unavailable, false), "{loss}");
}

#[tokio::test]
async fn somebody_else_is_not_spoken_to() {
    let pki = Pki::get();
    let plane = Plane::tls().await;
    let control = control(&plane, true, Guards::default());
    let mut watch = watch(&control);
    plane.watch_port.answer(|_| vec![Ok(labelled("a"))]);
    for (wrong, why) in [
        (pair(&pki.foreign, &[CONTROL]), "no trusted root"),
        (pair(&pki.east, &["other.linkerd.serviceaccount.identity.linkerd.cluster.local"]), "it names 'other."),
    ] {
        plane.door.certificate(Some(wrong));
        let loss = lost(&mut watch).await;
        assert!(loss.message.contains(why), "{loss}");
    }
    // Any of its names may be the one, as long as one is.
    plane.door.certificate(Some(pair(&pki.east, &["first.example", CONTROL])));
    assert_eq!(message(&mut watch).await, (true, "a".to_owned()));
}

#[tokio::test]
async fn silence_at_every_depth_is_noticed() {
    let plane = Plane::tls().await;
    let guards = Guards { initial_timeout: Duration::from_millis(1500), ..Guards::default() };
    let control = control(&plane, true, guards);
    let mut watch = watch(&control);
    for mode in [Mode::Silent, Mode::Deaf, Mode::Serve] {
        plane.door.mode(mode);
        let loss = lost(&mut watch).await;
        assert_eq!((loss.code, loss.by_server), (Code::Unavailable, false), "{mode:?}: {loss}");
        plane.door.cut();
    }
    plane.watch_port.answer(|_| vec![Ok(labelled("a"))]);
    assert_eq!(message(&mut watch).await, (true, "a".to_owned()));
}

#[tokio::test]
async fn a_stream_that_is_silent_or_old_is_made_anew_and_nothing_is_lost() {
    for guards in [
        Guards { idle_timeout: Some(Duration::from_millis(100)), ..Guards::default() },
        Guards { lifetime: Some(Duration::from_millis(100)), ..Guards::default() },
    ] {
        let plane = Plane::plaintext().await;
        let control = control(&plane, false, guards);
        let mut watch = watch(&control);
        plane.watch_port.answer(|_| vec![Ok(labelled("a"))]);
        for _ in 0..3 {
            assert_eq!(message(&mut watch).await, (true, "a".to_owned()), "{guards:?}");
        }
        assert_eq!(control.standing().failures, 0, "{guards:?}");
    }
}
