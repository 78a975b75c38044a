//! `Forwarded` values: an element with our name in it is found, whatever a peer wrote around it, also by the next gateway
//! in what is carried on.
#![no_main]

use isthmus::addr::Target;
use isthmus::identity::Identity;
use isthmus::wire::forwarded::{MAX_HOPS, element, names_us, pairs, relays};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let read: usize = pairs(bytes).map(|(key, value)| key.len() + value.len()).sum();
    assert!(read <= bytes.len());
    let own = Identity::parse("gateway.multicluster.example").expect("an identity");
    let host = Target::parse("web.ns.svc.cluster.local:8080", 80).expect("a target");
    // A peer's text as its identity.
    if let Some(client) = std::str::from_utf8(bytes).ok().and_then(|text| Identity::parse(text).ok()) {
        let ours = element(&own, &client, &host);
        assert!(names_us([&ours], &own));
        let keys: Vec<&[u8]> = pairs(ours.as_bytes()).map(|(key, _)| key).collect();
        assert_eq!(keys, [&b"by"[..], b"for", b"host", b"proto"]);
        assert!(names_us([&element(&client, &own, &host)], &client));
    }
    // A peer's text on the same line.
    let ours = element(&own, &own, &host);
    for joined in [[bytes, b", ", ours.as_bytes()].concat(), [ours.as_bytes(), b", ", bytes].concat()] {
        if let Ok(value) = joined.as_slice().try_into() {
            assert!(names_us([&value], &own));
        }
    }
    // What is carried on of a peer's text and our element after it still names us, and nobody it was for.
    if let Ok(value) = [bytes, b", ", ours.as_bytes()].concat().as_slice().try_into() {
        let carried = relays([&value]);
        assert!(carried.len() <= MAX_HOPS);
        assert!(names_us(&carried, &own));
        assert!(carried.iter().all(|line| pairs(line.as_bytes()).all(|(key, _)| key == b"by")));
    }
});
