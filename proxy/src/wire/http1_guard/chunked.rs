//! The chunked transfer coding, up to its last chunk; the trailers are header lines and read as such.
//!
//! **In** bytes of a body. **Out** how many were taken and whether the last chunk was. **Refuses** sizes of more than 16
//! digits or with anything but hex digits, long extensions, any line end but CRLF. (RFC 9112 §7.1.)

use super::{Bad, Reason, take};

/// Enough for a 64-bit size; leading zeros count.
const MAX_SIZE_DIGITS: u8 = 16;

/// The longest extension of a chunk, in bytes. Nobody uses them but to hide something in them.
const MAX_EXTENSION_BYTES: u16 = 256;

/// Where in the coding the stream is.
#[derive(Debug)]
pub(super) struct Chunked {
    state: State,
    /// The chunk's size while its line is read, then the bytes of it still to come.
    left: u64,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Data,
    DataCr,
    DataLf,
    /// The bytes of extension so far.
    Extension(u16),
    /// The digits so far.
    Size(u8),
    SizeLf,
}

impl Chunked {
    pub(super) fn new() -> Self {
        Self { state: State::Size(0), left: 0 }
    }

    /// Takes bytes until they end or the last chunk's line does.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<(usize, bool), Bad> {
        let mut at = 0;
        while at < bytes.len() {
            if let State::Data = self.state {
                at += take(&mut self.left, bytes.len() - at);
                if self.left == 0 {
                    self.state = State::DataCr;
                }
                continue;
            }
            self.byte(bytes[at]).ok_or(Bad { reason: Reason::Chunk, at })?;
            at += 1;
            if matches!(self.state, State::Data) && self.left == 0 {
                return Ok((at, true));
            }
        }
        Ok((at, false))
    }

    /// Takes a byte of framing; `None` refuses it.
    fn byte(&mut self, byte: u8) -> Option<()> {
        self.state = match (self.state, byte) {
            (State::Size(digits), b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') if digits < MAX_SIZE_DIGITS => {
                let digit = char::from(byte).to_digit(16)?;
                self.left = self.left << 4 | u64::from(digit);
                State::Size(digits + 1)
            }
            (State::Size(1..), b';') => State::Extension(0),
            (State::Size(1..) | State::Extension(_), b'\r') => State::SizeLf,
            (State::Extension(len), b'\t' | b' '..=b'~') if len < MAX_EXTENSION_BYTES => State::Extension(len + 1),
            (State::SizeLf, b'\n') => State::Data,
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size(0),
            _ => return None,
        };
        Some(())
    }
}
