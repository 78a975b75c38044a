//! Names, targets, suffixes and identities: what was read and shown again reads as the same, and is harmless to show.
#![no_main]

use isthmus::addr::{Name, Suffix, Target};
use isthmus::identity::Identity;
use libfuzzer_sys::fuzz_target;

fn harmless(text: &str) {
    assert!(text.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\'), "{text:?}");
}

fuzz_target!(|text: &str| {
    for identity in [Identity::parse(text), Identity::from_dns(text), Identity::from_uri(text)].into_iter().flatten() {
        harmless(identity.as_str());
        assert_eq!(Identity::parse(identity.as_str()), Ok(identity.clone()));
    }
    if let Ok(name) = text.parse::<Name>() {
        harmless(name.as_str());
        assert_eq!(name.as_str().parse(), Ok(name.clone()));
        assert!(Suffix::All.holds(&name) && Suffix::Below(name.clone()).holds(&name));
    }
    if let Ok(suffix) = text.parse::<Suffix>() {
        assert_eq!(suffix.to_string().parse(), Ok(suffix));
    }
    if let Ok(target) = Target::parse(text, 80) {
        let shown = target.to_string();
        harmless(&shown);
        assert_ne!(target.port, 0);
        assert_eq!(Target::parse(&shown, 1), Ok(target));
    }
});
