//! Which bytes may stand where in a head, and how to run over many of them.
//!
//! **In** bytes. **Out** whether one is of a class, how many at the front are. One table serves names, targets and values;
//! values, which are most of a head, are taken eight bytes at a time. (RFC 9110 §5.5, §5.6.2; RFC 9112 §3.2.)

/// The beginning of a token, long enough to tell the names that matter, and its length.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Word {
    bytes: [u8; 17],
    pub(super) len: usize,
}

impl Word {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        if let Some(room) = self.bytes.get_mut(self.len..) {
            let len = room.len().min(bytes.len());
            room[..len].copy_from_slice(&bytes[..len]);
        }
        self.len += bytes.len();
    }

    /// Whether the word is `text`, which is no longer than what is kept.
    pub(super) fn is(&self, text: &[u8], ignore_case: bool) -> bool {
        match self.bytes.get(..self.len) {
            Some(word) if ignore_case => word.eq_ignore_ascii_case(text),
            word => word == Some(text),
        }
    }
}

/// A byte of a token (RFC 9110 §5.6.2).
pub(super) const TOKEN: u8 = 1;
/// A byte of a request target: visible, and no `#`, since a fragment is never sent.
pub(super) const TARGET: u8 = 2;
/// A byte of a header's value: anything but control characters, which the tab is not one of here.
pub(super) const VALUE: u8 = 4;

static CLASSES: [u8; 256] = classes();

const fn classes() -> [u8; 256] {
    let mut table = [0; 256];
    let mut index = 0u8;
    loop {
        let visible = index.is_ascii_graphic();
        let delimiter = matches!(
            index,
            b'"' | b'('
                | b')'
                | b','
                | b'/'
                | b':'
                | b';'
                | b'<'
                | b'='
                | b'>'
                | b'?'
                | b'@'
                | b'['
                | b'\\'
                | b']'
                | b'{'
                | b'}'
        );
        let mut class = 0;
        if visible && !delimiter {
            class |= TOKEN;
        }
        if visible && index != b'#' {
            class |= TARGET;
        }
        if visible || matches!(index, b'\t' | b' ') || index >= 0x80 {
            class |= VALUE;
        }
        table[index as usize] = class;
        if index == u8::MAX {
            return table;
        }
        index += 1;
    }
}

/// Whether a byte is of a class.
pub(super) fn is(byte: u8, class: u8) -> bool {
    CLASSES[usize::from(byte)] & class != 0
}

/// How many bytes from the front are of a class.
pub(super) fn run_of(bytes: &[u8], class: u8) -> usize {
    bytes.iter().position(|byte| !is(*byte, class)).unwrap_or(bytes.len())
}

/// As `run_of` for [`VALUE`], eight bytes at a time: values are most of a head.
pub(super) fn run_of_value(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Some(eight) = bytes[at..].first_chunk::<8>() {
        let word = u64::from_ne_bytes(*eight);
        // The high bit of a byte is set where it is below a space or is DEL; the bytes above a hit may be hit falsely,
        // and tabs are, so a hit only means to look closer.
        let below_space = word.wrapping_sub(EACH * 0x20) & !word;
        let not_del = word ^ (EACH * 0x7f);
        let del = not_del.wrapping_sub(EACH) & !not_del;
        if (below_space | del) & (EACH * 0x80) != 0 {
            let run = run_of(eight, VALUE);
            at += run;
            if run < eight.len() {
                return at;
            }
        } else {
            at += eight.len();
        }
    }
    at + run_of(&bytes[at..], VALUE)
}

const EACH: u64 = 0x0101_0101_0101_0101;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn eight_at_a_time_is_one_at_a_time(bytes in prop::collection::vec(
            prop_oneof![4 => 0x20u8..0x7f, 1 => any::<u8>(), 1 => Just(b'\t')], 0..60,
        )) {
            prop_assert_eq!(run_of_value(&bytes), run_of(&bytes, VALUE));
        }
    }
}
