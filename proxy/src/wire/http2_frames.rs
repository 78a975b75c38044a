//! What an HTTP/2 client sends, frame by frame, without looking into any: how many resets and how many control frames.
//!
//! **In** chunks of what is read, cut anywhere, from the preface on. **Out** counts, and whether the chunk ended within a
//! header block. **Refuses** nothing: whether frames are valid is the library's to say. Nine bytes of each frame are read
//! and its payload skipped by count. (RFC 9113 §3.4, §4.1, §6.)

/// The client's connection preface, in bytes.
const PREFACE_BYTES: u32 = 24;
/// A frame's head, in bytes.
const HEAD_BYTES: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;

/// What a chunk held.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// RST_STREAM.
    pub resets: u32,
    /// Frames that carry neither a request nor any of its bytes: SETTINGS, PING, PRIORITY, WINDOW_UPDATE, CONTINUATION, empty DATA
    /// that ends nothing, and unknown ones.
    pub control: u32,
}

/// Follows the frames of one connection.
#[derive(Debug)]
pub struct Frames {
    /// Bytes of the frame under way, or of the preface, that are still to come.
    left: u32,
    /// The head of the next frame, as far as it was read.
    head: [u8; HEAD_BYTES],
    read: usize,
    /// The frames since the last END_HEADERS belong to a header block.
    in_block: bool,
    /// The frame under way ends a header block.
    ends_block: bool,
    begun: u64,
}

impl Default for Frames {
    fn default() -> Self {
        Self { left: PREFACE_BYTES, head: [0; HEAD_BYTES], read: 0, in_block: false, ends_block: false, begun: 0 }
    }
}

impl Frames {
    /// Looks at the next bytes.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Counts {
        let mut counts = Counts::default();
        loop {
            let skipped = bytes.len().min(self.left as usize);
            self.left -= u32::try_from(skipped).unwrap_or(self.left);
            bytes = &bytes[skipped..];
            if self.left > 0 {
                return counts;
            }
            if std::mem::take(&mut self.ends_block) {
                self.in_block = false;
            }
            if bytes.is_empty() {
                return counts;
            }
            if self.read == 0
                && let Some((head, rest)) = bytes.split_first_chunk()
            {
                self.begin(*head, &mut counts);
                bytes = rest;
                continue;
            }
            let some = bytes.len().min(HEAD_BYTES - self.read);
            self.head[self.read..self.read + some].copy_from_slice(&bytes[..some]);
            self.read += some;
            bytes = &bytes[some..];
            if self.read < HEAD_BYTES {
                return counts;
            }
            self.read = 0;
            self.begin(self.head, &mut counts);
        }
    }

    /// Whether a frame's head or a header block has begun and not ended.
    pub fn in_head(&self) -> bool {
        self.in_block || self.read > 0
    }

    /// Frames and header blocks begun so far, a header block and what continues it as one.
    pub fn begun(&self) -> u64 {
        self.begun + u64::from(self.read > 0 && !self.in_block)
    }

    fn begin(&mut self, head: [u8; HEAD_BYTES], counts: &mut Counts) {
        let [high, middle, low, kind, flags, ..] = head;
        self.left = u32::from_be_bytes([0, high, middle, low]);
        self.begun += u64::from(kind != CONTINUATION);
        match kind {
            HEADERS | CONTINUATION => {
                counts.control += u32::from(kind == CONTINUATION);
                self.in_block = true;
                self.ends_block = flags & END_HEADERS != 0;
            }
            RST_STREAM => counts.resets += 1,
            DATA if self.left > 0 || flags & END_STREAM != 0 => {}
            _ => counts.control += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let mut bytes = u32::try_from(payload).unwrap().to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags, 0, 0, 0, 1]);
        bytes.resize(bytes.len() + payload, 0xff);
        bytes
    }

    fn session(frames: &[Vec<u8>]) -> Vec<u8> {
        [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frames.concat()].concat()
    }

    #[test]
    fn each_kind_counts_as_what_it_is() {
        let all = session(&[
            frame(4, 0, 18),    // SETTINGS
            frame(1, 0x5, 40),  // HEADERS that end block and stream
            frame(0, 0, 10),    // DATA
            frame(0, 0, 0),     // empty DATA
            frame(0, 1, 0),     // the empty DATA that ends a stream
            frame(3, 0, 4),     // RST_STREAM
            frame(6, 0, 8),     // PING
            frame(8, 0, 4),     // WINDOW_UPDATE
            frame(2, 0, 5),     // PRIORITY
            frame(0xbe, 0, 70), // nobody knows
            frame(1, 0, 3),     // HEADERS
            frame(9, 0x4, 3),   // CONTINUATION
        ]);
        assert_eq!(Frames::default().feed(&all), Counts { resets: 1, control: 7 });
    }

    #[test]
    fn a_header_block_lasts_until_it_ends() {
        let mut frames = Frames::default();
        frames.feed(&session(&[frame(4, 0, 0)]));
        assert!(!frames.in_head());
        frames.feed(&frame(1, 0, 30));
        assert!(frames.in_head(), "not ended by its frame");
        let last = frame(9, 0x4, 30);
        frames.feed(&last[..20]);
        assert!(frames.in_head(), "in the middle of the last frame");
        frames.feed(&last[20..]);
        assert!(!frames.in_head());
        frames.feed(&last[..4]);
        assert!(frames.in_head(), "in the middle of a frame's head");
        assert_eq!(frames.begun(), 3, "SETTINGS, the block of two frames, and what has just begun");
    }

    proptest! {
        #[test]
        fn cuts_change_nothing(
            kinds in prop::collection::vec((0u8..12, any::<u8>(), 0usize..60), 0..20),
            cut in 1usize..50,
        ) {
            let all = session(&kinds.iter().map(|(kind, flags, len)| frame(*kind, *flags, *len)).collect::<Vec<_>>());
            let mut whole = Frames::default();
            let at_once = whole.feed(&all);
            let mut frames = Frames::default();
            let mut sum = Counts::default();
            for chunk in all.chunks(cut) {
                let counts = frames.feed(chunk);
                sum.resets += counts.resets;
                sum.control += counts.control;
            }
            prop_assert_eq!(sum, at_once);
            prop_assert_eq!(frames.in_head(), whole.in_head());
        }
    }
}
