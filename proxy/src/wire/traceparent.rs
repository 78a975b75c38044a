//! `traceparent`: which trace a request belongs to, and whether it is recorded (W3C Trace Context §3.2).
//!
//! **In** a field value. **Out** its parts; and the value for the next hop. **Refuses** what is malformed with `None`: the
//! request then begins a trace of its own, as §3.2.4 asks. Versions above `00` are read by their first four parts.

use http::HeaderValue;

/// One span, and where it belongs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Traceparent {
    /// The trace. Never all zeros.
    pub trace: [u8; 16],
    /// The span that wrote it. Never all zeros.
    pub span: [u8; 8],
    /// Whether somebody before us records the trace.
    pub sampled: bool,
}

impl Traceparent {
    /// Reads a field value.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let (version, rest) = (hex::<1>(value.get(..2)?)?[0], value.get(2..)?);
        let (trace, span) = (hex::<16>(rest.get(1..33)?)?, hex::<8>(rest.get(34..50)?)?);
        let flags = hex::<1>(rest.get(51..53)?)?[0];
        let dashes = [0, 33, 50].iter().all(|at| rest[*at] == b'-');
        // `00` ends here; a later version may say more, after a dash.
        let ended = rest.len() == 53 || version > 0 && rest[53] == b'-';
        let said = trace != [0; 16] && span != [0; 8] && version != 0xff;
        (dashes && ended && said).then_some(Self { trace, span, sampled: flags & SAMPLED != 0 })
    }

    /// The field value, in version `00`.
    pub fn value(&self) -> HeaderValue {
        let mut text = String::with_capacity(55);
        text.push_str("00-");
        push(&mut text, &self.trace);
        text.push('-');
        push(&mut text, &self.span);
        text.push_str(if self.sampled { "-01" } else { "-00" });
        HeaderValue::try_from(text).expect("digits and dashes are visible ASCII")
    }
}

/// The flag of a recorded trace (§3.2.2.5.1).
const SAMPLED: u8 = 1;

fn push(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from(DIGITS[usize::from(digit)]));
        }
    }
}

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// Lower case only, as the specification has it.
fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    (text.len() == 2 * N).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_the_specification_shows_and_what_it_forbids() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let table = [
            (format!("00-{trace}-00f067aa0ba902b7-01"), Some(true)),
            (format!("00-{trace}-00f067aa0ba902b7-00"), Some(false)),
            (format!("00-{trace}-00f067aa0ba902b7-03"), Some(true)),
            (format!("cc-{trace}-00f067aa0ba902b7-01"), Some(true)),
            (format!("cc-{trace}-00f067aa0ba902b7-01-what-the-future-will-be-like"), Some(true)),
            (format!("cc-{trace}-00f067aa0ba902b7-01.what"), None),
            (format!("00-{trace}-00f067aa0ba902b7-01-more"), None),
            (format!("ff-{trace}-00f067aa0ba902b7-01"), None),
            (format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)), None),
            (format!("00-{trace}-{}-01", "0".repeat(16)), None),
            (format!("00-{}-00f067aa0ba902b7-01", trace.to_uppercase()), None),
            (format!("00_{trace}-00f067aa0ba902b7-01"), None),
            (format!("00-{trace}-00f067aa0ba902b7-0"), None),
            (String::new(), None),
        ];
        for (text, expected) in table {
            assert_eq!(Traceparent::parse(text.as_bytes()).map(|parsed| parsed.sampled), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(trace: [u8; 16], span: [u8; 8], sampled: bool) {
            prop_assume!(trace != [0; 16] && span != [0; 8]);
            let written = Traceparent { trace, span, sampled };
            prop_assert_eq!(Traceparent::parse(written.value().as_bytes()), Some(written));
        }

        #[test]
        fn anything_is_answered(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Traceparent::parse(&bytes);
        }
    }
}
