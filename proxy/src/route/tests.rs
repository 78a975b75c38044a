use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::authorise::Admitted;
use crate::endpoint::{Endpoint, Endpoints};

const TABLE: Claim = Claim(0);
const DNS: Claim = Claim(9);

fn settings() -> Settings {
    Settings { suffixes: vec!["svc.cluster.local".parse().expect("a suffix")], ..Settings::default() }
}

fn target(text: &str) -> Target {
    Target::parse(text, 80).expect("a target")
}

fn admitted(text: &str) -> Admitted<Target> {
    Admitted::for_tests(target(text))
}

fn endpoints(ports: &[u16]) -> Arc<Endpoints> {
    let endpoint = |port| Endpoint::new(([10, 0, 0, 1], port).into());
    Arc::new(Endpoints { list: ports.iter().copied().map(endpoint).collect() })
}

fn row(name: &str, ports: &[u16]) -> Published {
    Published { target: target(name), exported: true, endpoints: endpoints(ports) }
}

#[test]
fn authorities() {
    let settings = Settings { default_port: 8080, ..settings() };
    for (authority, want) in [
        (Some("web.ns.svc.cluster.local"), Ok("web.ns.svc.cluster.local:8080")),
        (Some("Web.ns.svc.cluster.local:81"), Ok("web.ns.svc.cluster.local:81")),
        (Some("[::1]:80"), Err("route.ipv6_literal")),
        (Some("10.0.0.1:80"), Err("route.ipv4_literal")),
        (Some("user@web:80"), Err("route.bad_authority")),
        (Some(""), Err("route.no_authority")),
        (None, Err("route.no_authority")),
    ] {
        let got = settings.target(authority).map(|target| target.to_string()).map_err(|error| error.code());
        assert_eq!(got, want.map(str::to_owned), "{authority:?}");
    }
}

#[test]
fn a_request_that_was_here_before_is_refused() {
    let own = Identity::parse("gateway.mc.serviceaccount.identity").expect("an identity");
    let other = Identity::parse("web.ns.serviceaccount.identity").expect("an identity");
    assert_eq!(loops(&own, Some(&other), false), Ok(()));
    assert_eq!(loops(&own, None, false), Ok(()));
    assert_eq!(loops(&own, Some(&other), true), Err(Error::Loop));
    assert_eq!(loops(&own, Some(&own), false), Err(Error::Loop));
}

#[tokio::test]
async fn names_outside_the_suffixes_are_neither_found_nor_demanded() {
    let (directory, mut demands) = Directory::new(settings());
    assert_eq!(directory.find(&admitted("evil.example:80")).map(drop), Err(Error::Suffix));
    assert!(demands.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn an_unknown_target_is_demanded_once_and_answered_when_published() {
    let (directory, mut demands) = Directory::new(settings());
    let web = admitted("web.ns.svc.cluster.local:80");
    let waiting = directory.resolve(&web);
    let answering = async {
        let Demand(service) = demands.recv().await.expect("a demand");
        assert!(service.publish(DNS, true, State::Known(endpoints(&[1]))));
    };
    let (answer, ()) = tokio::join!(waiting, answering);
    assert_eq!(*answer.expect("known").1, *endpoints(&[1]));
    assert!(directory.find(&web).is_ok_and(|service| service.exported()));
    assert!(demands.try_recv().is_err(), "asked for once only");
}

#[tokio::test(start_paused = true)]
async fn silence_ends_in_a_timeout_and_missing_at_once() {
    let (directory, mut demands) = Directory::new(settings());
    let web = admitted("web.ns.svc.cluster.local:80");
    let start = tokio::time::Instant::now();
    assert_eq!(directory.resolve(&web).await.map(drop).map_err(|e| e.code()), Err("route.discovery_timeout"));
    assert_eq!(start.elapsed(), Duration::from_secs(3));
    let Demand(service) = demands.recv().await.expect("a demand");
    service.publish(DNS, false, State::Missing);
    assert_eq!(directory.resolve(&web).await.map(drop), Err(Error::UnknownService));
}

#[tokio::test]
async fn a_source_of_higher_rank_keeps_its_services() {
    let (directory, mut demands) = Directory::new(settings());
    let service = directory.find(&admitted("web.ns.svc.cluster.local:80")).expect("pending");
    assert!(demands.try_recv().is_ok());
    assert!(service.publish(DNS, true, State::Known(endpoints(&[9]))));
    directory.replace(TABLE, vec![row("web.ns.svc.cluster.local:80", &[1])]);
    assert!(!service.publish(DNS, true, State::Known(endpoints(&[9]))), "outranked");
    assert_eq!(*service.known().expect("known"), *endpoints(&[1]));

    // Taken out of the table: missing for who holds it, and asked for anew by the next one.
    directory.replace(TABLE, vec![]);
    assert!(matches!(**service.state(), State::Missing));
    assert!(!Arc::ptr_eq(&service, &directory.find(&admitted("web.ns.svc.cluster.local:80")).expect("pending")));
    assert!(demands.try_recv().is_ok());
}

#[tokio::test]
async fn the_same_endpoints_again_keep_their_pointer() {
    let (directory, _demands) = Directory::new(settings());
    directory.replace(TABLE, vec![row("web.ns.svc.cluster.local:80", &[1, 2])]);
    let service = directory.find(&admitted("web.ns.svc.cluster.local:80")).expect("known");
    let before = service.known().expect("known");
    directory.replace(TABLE, vec![row("web.ns.svc.cluster.local:80", &[1, 2])]);
    assert!(Arc::ptr_eq(&before, &service.known().expect("known")));
    directory.replace(TABLE, vec![row("web.ns.svc.cluster.local:80", &[1])]);
    assert!(!Arc::ptr_eq(&before, &service.known().expect("known")));
}

#[tokio::test(start_paused = true)]
async fn demanded_services_are_bounded_and_forgotten_when_idle() {
    let (directory, mut demands) = Directory::new(Settings { max_demanded: 2, ..settings() });
    let first = directory.find(&admitted("a.ns.svc.cluster.local:80")).expect("room");
    directory.find(&admitted("b.ns.svc.cluster.local:80")).expect("room");
    assert_eq!(directory.find(&admitted("c.ns.svc.cluster.local:80")).map(drop), Err(Error::Capacity));
    // A name that leads nowhere makes room for the next.
    first.publish(DNS, false, State::Missing);
    directory.find(&admitted("c.ns.svc.cluster.local:80")).expect("room again");

    tokio::time::advance(Duration::from_secs(200)).await;
    directory.find(&admitted("b.ns.svc.cluster.local:80")).expect("still there");
    tokio::time::advance(Duration::from_secs(200)).await;
    assert_eq!(directory.sweep(), 1, "c is idle, b is not");
    assert_eq!(directory.services().len(), 1);
    assert_eq!(std::iter::from_fn(|| demands.try_recv().ok()).count(), 3);
}

/// Knows one name, and that it is exported.
#[derive(Debug)]
struct Knows(&'static str);

impl Catalogue for Knows {
    fn exported(&self, target: &Target) -> Option<bool> {
        (target.name.as_str() == self.0).then_some(true)
    }
}

#[tokio::test]
async fn a_catalogue_says_what_is_exported_before_anybody_asks() {
    let (directory, _demands) = Directory::new(settings());
    let web = target("web.ns.svc.cluster.local:80");
    assert!(!directory.exported(&web));
    directory.consult(Arc::new(Knows("web.ns.svc.cluster.local")));
    assert!(directory.exported(&web) && !directory.exported(&target("db.ns.svc.cluster.local:80")));
    // Once a source has spoken for the target itself, its word counts.
    let service = directory.find(&admitted("web.ns.svc.cluster.local:80")).expect("pending");
    assert!(directory.exported(&web), "nobody has spoken yet");
    let changed = service.changed();
    service.publish(DNS, false, State::Refused(Error::NoSuchPort));
    assert!(!directory.exported(&web));
    changed.await;
    assert_eq!(service.endpoints(Duration::ZERO).await.map(drop), Err(Error::NoSuchPort));
    let changed = service.changed();
    service.publish(DNS, true, State::Refused(Error::NoSuchPort));
    changed.await; // by the export alone
}

#[tokio::test]
async fn names_that_lead_nowhere_make_room_for_others() {
    let (directory, _demands) = Directory::new(Settings { max_demanded: 2, ..settings() });
    let find = |name: &str| directory.find(&admitted(name));
    let refused = find("out.ns.svc.cluster.local:80").expect("pending");
    let empty = find("pod-9.web.ns.svc.cluster.local:80").expect("pending");
    assert_eq!(find("web.ns.svc.cluster.local:80").map(drop), Err(Error::Capacity));
    refused.publish(DNS, true, State::Refused(Error::ExternalName));
    empty.publish(DNS, true, State::Known(endpoints(&[])));
    for name in ["web.ns.svc.cluster.local:80", "db.ns.svc.cluster.local:80"] {
        let found = find(name).expect("one that leads nowhere has gone");
        found.publish(DNS, true, State::Known(endpoints(&[1])));
    }
    assert_eq!(find("late.ns.svc.cluster.local:80").map(drop), Err(Error::Capacity));
}
