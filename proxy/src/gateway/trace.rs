//! The gateway's own span of a request, where requests are traced.
//!
//! **In** what the client wrote in `traceparent`. **Out** a span: the client's child, or the root of a new trace; and whether it
//! is recorded. The endpoint's `traceparent` then names this span, so that what it does hangs below it (W3C Trace
//! Context §3.3). Without tracing nothing here runs, and the client's field goes through as it came.

use http::{HeaderMap, HeaderName};

use crate::record::Span;
use crate::wire::traceparent::Traceparent;

/// The field's name.
pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Which requests are recorded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// The share of requests without a trace of their own that begin one, 0.0 to 1.0.
    pub sample: f64,
    /// Whether a request that belongs to a trace is recorded if, and only if, its sender says that it is. Else `sample` decides
    /// over it too.
    pub follow_client: bool,
}

impl Settings {
    /// The span of a request with these fields.
    pub(crate) fn begin(&self, headers: &HeaderMap) -> Span {
        let mut lines = headers.get_all(TRACEPARENT).iter();
        // Two lines are no trace (§3.2): which one would it be?
        let parent = match (lines.next(), lines.next()) {
            (Some(line), None) => Traceparent::parse(line.as_bytes()),
            _ => None,
        };
        let chosen = || rand::random::<f64>() < self.sample;
        Span {
            trace: parent.map_or_else(|| some(rand::random), |parent| parent.trace),
            span: some(rand::random),
            parent: parent.map(|parent| parent.span),
            sampled: match parent {
                Some(parent) if self.follow_client => parent.sampled,
                _ => chosen(),
            },
        }
    }
}

/// What is not all zeros, which would mean "none".
fn some<const N: usize>(random: impl Fn() -> [u8; N]) -> [u8; N] {
    loop {
        let bytes = random();
        if bytes != [0; N] {
            return bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(settings: Settings, lines: &[&str]) -> Span {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(TRACEPARENT, line.parse().expect("a value"));
        }
        settings.begin(&headers)
    }

    #[test]
    fn children_follow_their_parents_and_roots_are_chosen() {
        let never = Settings { sample: 0.0, follow_client: true };
        let always = Settings { sample: 1.0, follow_client: true };
        let (yes, no) = (
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00",
        );
        let child = begin(never, &[yes]);
        assert!(
            child.sampled
                && child.trace[0] == 0x4b
                && child.parent == Some([0, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7])
        );
        assert!(!begin(always, &[no]).sampled, "its sender does not record it");
        assert!(begin(Settings { follow_client: false, ..always }, &[no]).sampled);
        assert!(!begin(Settings { follow_client: false, ..never }, &[yes]).sampled);
        for lines in [&[][..], &["nonsense"], &[yes, yes]] {
            let root = begin(always, lines);
            assert!(root.sampled && root.parent.is_none() && root.trace[..2] != [0x4b, 0xf9], "{lines:?}");
            assert!(!begin(never, lines).sampled);
        }
    }
}
