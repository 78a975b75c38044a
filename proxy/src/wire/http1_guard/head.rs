//! A request's head, or the trailers of a chunked body, byte by byte.
//!
//! **In** bytes. **Out** how the body is framed and whether the request asks for another protocol. **Refuses** everything
//! that two parsers could read in two ways. Runs of ordinary bytes are skipped in tight loops; only the few bytes between
//! them, and the values of headers that frame the message, go through the state machine. (RFC 9112 §2 to §6.)

use super::bytes::{TARGET, TOKEN, VALUE, Word, is, run_of, run_of_value};
use super::{Bad, Limits, Reason};

/// How the body behind a head is framed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Body {
    Chunked,
    Length(u64),
}

/// A head being read.
#[derive(Debug)]
pub(super) struct Head {
    state: State,
    /// Bytes that the head may still take.
    room: usize,
    /// Header lines that may still come.
    headers_left: usize,
    /// The method or a header's name, as far as it matters.
    word: Word,
    section: Section,
    connect: bool,
    host: bool,
    upgrade: bool,
    length: Option<u64>,
    chunked: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Section {
    /// The method was PRI: by its version it can only be the HTTP/2 preface.
    Request {
        http10: bool,
        pri: bool,
    },
    Trailers,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    /// Before a request; whether an empty line was skipped.
    Start {
        skipped: bool,
    },
    StartLf,
    Method,
    /// Whether a byte of the target was seen.
    Target {
        some: bool,
    },
    /// The bytes of [`VERSION`] seen.
    Version(usize),
    VersionDigit,
    LineCr,
    LineLf,
    Field,
    Name,
    Value(Value),
    EndLf,
    Done,
}

/// Whose value is read, and how far.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Value {
    /// `chunked`: the letters seen.
    Coding(usize),
    Length(Digits),
    Plain,
    /// `h2c`: the letters seen.
    Upgrade(usize),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Digits {
    After,
    Before,
    Within,
}

const VERSION: &[u8] = b"HTTP/1.";
const CHUNKED: &[u8] = b"chunked";
const H2C: &[u8] = b"h2c";

/// The largest length believed, in bytes: beyond it sums could overflow.
const MAX_LENGTH: u64 = 1 << 63;

impl Head {
    /// Before a request.
    pub(super) fn request(limits: Limits) -> Self {
        Self {
            state: State::Start { skipped: false },
            room: limits.max_head_bytes,
            headers_left: limits.max_headers,
            word: Word::default(),
            section: Section::Request { http10: false, pri: false },
            connect: false,
            host: false,
            upgrade: false,
            length: None,
            chunked: false,
        }
    }

    /// After the last chunk.
    pub(super) fn trailers(limits: Limits) -> Self {
        Self { state: State::Field, section: Section::Trailers, ..Self::request(limits) }
    }

    /// Whether no byte of it was read, save perhaps the empty line that may stand before a request.
    pub(super) fn is_untouched(&self) -> bool {
        matches!(self.state, State::Start { .. })
    }

    /// The body's framing and whether an upgrade is asked for; of a head that ended.
    pub(super) fn outcome(&self) -> (Body, bool) {
        let body = if self.chunked { Body::Chunked } else { Body::Length(self.length.unwrap_or(0)) };
        // HTTP/1.0 knows no Upgrade: it is to be ignored there (RFC 9110 §7.8).
        let http11 = matches!(self.section, Section::Request { http10: false, .. });
        (body, self.connect || (self.upgrade && http11))
    }

    /// Takes bytes until they end or the head does.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<(usize, bool), Bad> {
        let within = &bytes[..bytes.len().min(self.room)];
        let mut at = 0;
        loop {
            at += self.run(&within[at..]);
            let Some(&byte) = within.get(at) else { break };
            self.byte(byte).map_err(|reason| Bad { reason, at })?;
            at += 1;
            if self.state == State::Done {
                return Ok((at, true));
            }
        }
        self.room -= at;
        if at < bytes.len() { Err(Bad { reason: Reason::HeadTooLarge, at }) } else { Ok((at, false)) }
    }

    /// Skips the bytes that leave the state as it is.
    fn run(&mut self, bytes: &[u8]) -> usize {
        match self.state {
            State::Method | State::Name => {
                let len = run_of(bytes, TOKEN);
                self.word.push(&bytes[..len]);
                len
            }
            State::Target { some: true } => run_of(bytes, TARGET),
            State::Value(Value::Plain) => run_of_value(bytes),
            _ => 0,
        }
    }

    /// Takes one byte.
    fn byte(&mut self, byte: u8) -> Result<(), Reason> {
        self.state = match self.state {
            State::Start { skipped: false } if byte == b'\r' => State::StartLf,
            State::Start { .. } => {
                self.word = Word::default();
                self.token(byte, Reason::Method)?;
                State::Method
            }
            State::StartLf => expect(byte, b'\n', Reason::LineEnd, State::Start { skipped: true })?,
            State::Method => {
                expect(byte, b' ', Reason::Method, ())?;
                self.connect = self.word.is(b"CONNECT", false);
                self.section = Section::Request { http10: false, pri: self.word.is(b"PRI", false) };
                State::Target { some: false }
            }
            State::Target { .. } if is(byte, TARGET) => State::Target { some: true },
            State::Target { some: true } if byte == b' ' => State::Version(0),
            State::Target { .. } => return Err(Reason::Target),
            State::Version(seen) => {
                let next = if seen + 1 == VERSION.len() { State::VersionDigit } else { State::Version(seen + 1) };
                expect(byte, VERSION[seen], self.bad_version(), next)?
            }
            State::VersionDigit => {
                let Section::Request { pri, .. } = self.section else { return Err(Reason::Version) };
                self.section = match byte {
                    b'0' => Section::Request { http10: true, pri },
                    b'1' => Section::Request { http10: false, pri },
                    _ => return Err(Reason::Version),
                };
                State::LineCr
            }
            State::LineCr => expect(byte, b'\r', Reason::LineEnd, State::LineLf)?,
            State::LineLf => expect(byte, b'\n', Reason::LineEnd, State::Field)?,
            State::Field => self.field(byte)?,
            State::Name => {
                expect(byte, b':', Reason::HeaderName, ())?;
                State::Value(self.named()?)
            }
            State::Value(value) if byte == b'\r' => {
                self.value_ended(value)?;
                State::LineLf
            }
            State::Value(value) => State::Value(self.value(value, byte)?),
            State::EndLf => {
                expect(byte, b'\n', Reason::LineEnd, ())?;
                if self.connect && (self.chunked || self.length.unwrap_or(0) > 0) {
                    return Err(Reason::ConnectBody);
                }
                State::Done
            }
            State::Done => State::Done,
        };
        Ok(())
    }

    /// The first byte of a header line, or of the empty line that ends them.
    fn field(&mut self, byte: u8) -> Result<State, Reason> {
        match byte {
            b'\r' => return Ok(State::EndLf),
            b'\n' => return Err(Reason::LineEnd),
            b' ' | b'\t' => return Err(Reason::Fold),
            _ => {}
        }
        self.word = Word::default();
        self.token(byte, Reason::HeaderName)?;
        self.headers_left = self.headers_left.checked_sub(1).ok_or(Reason::TooManyHeaders)?;
        Ok(State::Name)
    }

    fn token(&mut self, byte: u8, reason: Reason) -> Result<(), Reason> {
        self.word.push(&[byte]);
        if is(byte, TOKEN) { Ok(()) } else { Err(reason) }
    }

    fn bad_version(&self) -> Reason {
        match self.section {
            Section::Request { pri: true, .. } => Reason::Http2Preface,
            _ => Reason::Version,
        }
    }

    /// What the value is of the header whose name has just ended.
    fn named(&mut self) -> Result<Value, Reason> {
        let value = match self.word.len {
            4 if self.word.is(b"host", true) => {
                if std::mem::replace(&mut self.host, true) {
                    return Err(Reason::Host);
                }
                Value::Plain
            }
            7 if self.word.is(b"upgrade", true) => return Ok(Value::Upgrade(0)),
            14 if self.word.is(b"content-length", true) => {
                if self.length.replace(0).is_some() {
                    return Err(Reason::ContentLength);
                }
                Value::Length(Digits::Before)
            }
            17 if self.word.is(b"transfer-encoding", true) => {
                let http10 = matches!(self.section, Section::Request { http10: true, .. });
                if std::mem::replace(&mut self.chunked, true) || http10 {
                    return Err(Reason::TransferEncoding);
                }
                Value::Coding(0)
            }
            _ => return Ok(Value::Plain),
        };
        if self.section == Section::Trailers {
            return Err(Reason::ForbiddenTrailer);
        }
        if self.chunked && self.length.is_some() { Err(Reason::Framing) } else { Ok(value) }
    }

    /// A byte of a value, other than the CR at its end.
    fn value(&mut self, value: Value, byte: u8) -> Result<Value, Reason> {
        if byte == b'\n' {
            return Err(Reason::LineEnd);
        }
        if !is(byte, VALUE) {
            return Err(Reason::HeaderValue);
        }
        let space = matches!(byte, b' ' | b'\t');
        Ok(match value {
            Value::Coding(seen) if space && (seen == 0 || seen == CHUNKED.len()) => value,
            Value::Coding(seen) if CHUNKED.get(seen) == Some(&byte.to_ascii_lowercase()) => Value::Coding(seen + 1),
            Value::Coding(_) => return Err(Reason::TransferEncoding),
            Value::Length(Digits::Before | Digits::After) if space => value,
            Value::Length(Digits::Within) if space => Value::Length(Digits::After),
            Value::Length(Digits::Before | Digits::Within) if byte.is_ascii_digit() => {
                let length = self.length.unwrap_or(0).checked_mul(10).and_then(|n| n.checked_add((byte - b'0').into()));
                self.length = Some(length.filter(|n| *n <= MAX_LENGTH).ok_or(Reason::ContentLength)?);
                Value::Length(Digits::Within)
            }
            Value::Length(_) => return Err(Reason::ContentLength),
            Value::Plain => Value::Plain,
            Value::Upgrade(seen) if space && (seen == 0 || seen == H2C.len()) => value,
            Value::Upgrade(seen) if H2C.get(seen) == Some(&byte.to_ascii_lowercase()) => Value::Upgrade(seen + 1),
            Value::Upgrade(_) => {
                self.upgrade = true;
                Value::Plain
            }
        })
    }

    /// The value has ended: is it whole?
    fn value_ended(&mut self, value: Value) -> Result<(), Reason> {
        match value {
            Value::Coding(seen) if seen < CHUNKED.len() => Err(Reason::TransferEncoding),
            Value::Length(Digits::Before) => Err(Reason::ContentLength),
            Value::Upgrade(seen) => {
                // `h2c` is never granted (RFC 9113 §3.1 took it back), so the request stays an ordinary one.
                self.upgrade |= seen != 0 && seen != H2C.len();
                Ok(())
            }
            Value::Coding(_) | Value::Length(_) | Value::Plain => Ok(()),
        }
    }
}

fn expect<T: PartialEq, N>(got: T, want: T, reason: Reason, next: N) -> Result<N, Reason> {
    if got == want { Ok(next) } else { Err(reason) }
}
