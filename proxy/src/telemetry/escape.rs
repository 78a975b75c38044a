//! Text from strangers, made safe for a line of a log.
//!
//! **In** any text. **Out** the inside of a JSON string of printable ASCII: no newline, no terminal sequence and no
//! direction mark of others' making reaches a reader, and nothing is lost, as a JSON parser gives the text back. What
//! is longer than a log line should bear is cut, and the cut is marked. (RFC 8259 §7.)

use std::fmt;

/// Writes the inside of a JSON string to a buffer.
#[derive(Debug)]
pub(super) struct Escape<'a> {
    out: &'a mut Vec<u8>,
    /// Bytes of input that may still come.
    room: usize,
}

/// The longest text of one field, in bytes before escaping: longer than any honest path, identity or user agent.
const MAX_TEXT_BYTES: usize = 2048;

/// Stands for what was cut off.
const CUT: &[u8] = b"...";

impl<'a> Escape<'a> {
    pub(super) fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out, room: MAX_TEXT_BYTES }
    }

    /// Writes one piece, as far as there is room.
    pub(super) fn push(&mut self, text: &str) {
        if self.room == 0 {
            return;
        }
        let cut = text.len() > self.room;
        let text = if cut { &text[..text.floor_char_boundary(self.room)] } else { text };
        self.room = if cut { 0 } else { self.room - text.len() };
        let mut clean = 0;
        for (at, character) in text.char_indices() {
            if matches!(character, ' '..='~') && character != '"' && character != '\\' {
                continue;
            }
            self.out.extend_from_slice(&text.as_bytes()[clean..at]);
            clean = at + character.len_utf8();
            self.escape(character);
        }
        self.out.extend_from_slice(&text.as_bytes()[clean..]);
        if cut {
            self.out.extend_from_slice(CUT);
        }
    }

    fn escape(&mut self, character: char) {
        let short = match character {
            '"' => b'"',
            '\\' => b'\\',
            '\n' => b'n',
            '\r' => b'r',
            '\t' => b't',
            _ => {
                let hex = |nibble: u16| b"0123456789abcdef"[usize::from(nibble & 15)];
                for unit in character.encode_utf16(&mut [0; 2]) {
                    let digits = [hex(*unit >> 12), hex(*unit >> 8), hex(*unit >> 4), hex(*unit)];
                    self.out.extend_from_slice(b"\\u");
                    self.out.extend_from_slice(&digits);
                }
                return;
            }
        };
        self.out.extend_from_slice(&[b'\\', short]);
    }
}

impl fmt::Write for Escape<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(text);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn escaped(text: &str) -> String {
        let mut out = Vec::new();
        Escape::new(&mut out).push(text);
        String::from_utf8(out).expect("ASCII")
    }

    #[test]
    fn what_is_dangerous_is_spelled_out() {
        let table = [
            ("plain /path?x=1", "plain /path?x=1"),
            ("a\nb\r\t", r"a\nb\r\t"),
            ("\"\\", r#"\"\\"#),
            ("\x1b[31m\x7f\0", r"\u001b[31m\u007f\u0000"),
            ("é\u{2028}\u{202e}\u{1f600}", r"\u00e9\u2028\u202e\ud83d\ude00"),
        ];
        for (text, expected) in table {
            assert_eq!(escaped(text), expected);
        }
    }

    #[test]
    fn what_is_long_is_cut_at_a_character() {
        let text = escaped(&"é".repeat(5000));
        assert_eq!(text.len(), 1024 * 6 + 3);
        assert!(text.ends_with("\\u00e9..."));
        assert_eq!(escaped(&"x".repeat(2048)).len(), 2048);
        let mut out = Vec::new();
        let mut escape = Escape::new(&mut out);
        escape.push(&"x".repeat(2047));
        escape.push("é");
        escape.push("more");
        assert_eq!(out.len(), 2047 + 3);
    }

    proptest! {
        #[test]
        fn a_parser_gives_it_back(text in any::<String>()) {
            prop_assume!(text.len() <= 2048);
            let escaped = escaped(&text);
            prop_assert!(escaped.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
            let back: String = serde_json::from_str(&format!("\"{escaped}\"")).expect("a JSON string");
            prop_assert_eq!(back, text);
        }
    }
}
