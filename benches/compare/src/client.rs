//! What calls the gateways: requests that were written beforehand, answers that are counted and not read.

use std::rc::Rc;

use crate::backend::{AHEAD, content_length, find};
use crate::h2::{self, Block, Field, Frame, Frames, Sending, Sent, kind};
use crate::stats::Tally;

/// What a connection says after its handshake.
#[derive(Debug)]
pub(crate) enum Talk {
    /// HTTP/2 requests with a body of so many bytes; the answers have a body, and trailers or none.
    H2 { head: Block, body: usize, trailers: bool },
    /// HTTP/1.1 requests, one after the other.
    H1 { request: Vec<u8> },
    /// So many bytes, which are to come back.
    Echo(usize),
    /// One byte, then it takes what comes.
    Drink,
    /// Bytes without end.
    Pour,
    /// Nothing: it takes its leave as soon as the handshake is done, and waits until the gateway has too.
    Leave,
}

impl Talk {
    /// A GET.
    pub(crate) fn get(host: &str) -> Self {
        let fields = [
            Field::Static(2),
            Field::Static(7),
            Field::Named(1, host.into()),
            Field::Named(4, "/bench/items".into()),
            Field::Named(58, "isthmus-compare".into()),
            Field::Named(19, "*/*".into()),
        ];
        Self::H2 { head: Block::new(&fields, 0), body: 0, trailers: false }
    }

    /// A POST with a body.
    pub(crate) fn post(host: &str, body: usize) -> Self {
        let fields = [
            Field::Static(3),
            Field::Static(7),
            Field::Named(1, host.into()),
            Field::Named(4, "/bench/items".into()),
            Field::Named(58, "isthmus-compare".into()),
            Field::Named(28, body.to_string()),
        ];
        Self::H2 { head: Block::new(&fields, 0), body, trailers: false }
    }

    /// A unary gRPC call.
    pub(crate) fn grpc(host: &str, body: usize) -> Self {
        let fields = [
            Field::Static(3),
            Field::Static(7),
            Field::Named(1, host.into()),
            Field::Named(4, "/bench.Items/Read".into()),
            Field::Named(58, "isthmus-compare".into()),
            Field::Named(31, "application/grpc".into()),
            Field::New("te", "trailers".into()),
        ];
        Self::H2 { head: Block::new(&fields, 0), body, trailers: true }
    }

    /// A GET over HTTP/1.1.
    pub(crate) fn get_h1(host: &str) -> Self {
        let request =
            format!("GET /bench/items HTTP/1.1\r\nhost: {host}\r\nuser-agent: isthmus-compare\r\naccept: */*\r\n\r\n");
        Self::H1 { request: request.into_bytes() }
    }

    /// The name of the protocol in the handshake.
    pub(crate) fn alpn(&self) -> Option<&'static [u8]> {
        match self {
            Self::H2 { .. } | Self::Leave => Some(b"h2"),
            Self::H1 { .. } => Some(b"http/1.1"),
            _ => None,
        }
    }
}

/// The talk of one connection.
#[derive(Debug)]
pub(crate) struct Talker {
    talk: Rc<Talk>,
    /// Plain bytes to be sent.
    pub(crate) say: Vec<u8>,
    state: State,
}

#[derive(Debug)]
enum State {
    H2(Box<H2>),
    /// The time of the request under way; what has come of the answer; how much of its body is still to come.
    H1 {
        since: Option<u64>,
        partial: Vec<u8>,
        left: usize,
    },
    Echo {
        since: Option<u64>,
        left: usize,
    },
    Bytes,
}

#[derive(Debug)]
struct H2 {
    frames: Frames,
    head: Sent,
    sending: Sending,
    next: u32,
    flying: Vec<(u32, u64)>,
    received: u32,
}

impl Talker {
    /// Begins a talk; `header` goes before everything else.
    pub(crate) fn new(talk: Rc<Talk>, header: &[u8]) -> Self {
        let mut say = header.to_vec();
        let state = match &*talk {
            Talk::H2 { head, .. } => {
                say.extend_from_slice(h2::PREFACE);
                h2::opening(&mut say, true);
                State::H2(Box::new(H2 {
                    frames: Frames::default(),
                    head: Sent::new(head.clone()),
                    sending: Sending::default(),
                    next: 1,
                    flying: Vec::new(),
                    received: 0,
                }))
            }
            Talk::H1 { .. } => State::H1 { since: None, partial: Vec::new(), left: 0 },
            Talk::Echo(_) => State::Echo { since: None, left: 0 },
            Talk::Drink => {
                say.push(b'x');
                State::Bytes
            }
            Talk::Pour | Talk::Leave => State::Bytes,
        };
        Self { talk, say, state }
    }

    /// How many requests are under way.
    pub(crate) fn flying(&self) -> usize {
        match &self.state {
            State::H2(state) => state.flying.len(),
            State::H1 { since, .. } | State::Echo { since, .. } => usize::from(since.is_some()),
            State::Bytes => 0,
        }
    }

    /// Begins a request that counts from `since`.
    pub(crate) fn launch(&mut self, now: u64) {
        match (&mut self.state, &*self.talk) {
            (State::H2(state), Talk::H2 { body, .. }) => {
                let stream = state.next;
                state.next += 2;
                h2::headers(&mut self.say, state.head.next(), *body == 0, stream);
                if *body > 0 {
                    state.sending.start(stream, *body);
                }
                state.flying.push((stream, now));
            }
            (State::H1 { since, .. }, Talk::H1 { request }) => {
                self.say.extend_from_slice(request);
                *since = Some(now);
            }
            (State::Echo { since, left }, Talk::Echo(length)) => {
                self.say.resize(self.say.len() + length, b'x');
                *since = Some(now);
                *left = *length;
            }
            _ => (),
        }
    }

    /// Appends what windows and the socket allow of long bodies.
    pub(crate) fn pump(&mut self) {
        match (&mut self.state, &*self.talk) {
            (State::H2(state), _) if !state.sending.is_idle() => state.sending.pump(&mut self.say, AHEAD, None),
            (_, Talk::Pour) => self.say.resize(AHEAD, b'x'),
            _ => (),
        }
    }

    /// Takes plain bytes; each answer that they complete is counted, and asked for again when `again`.
    pub(crate) fn receive(&mut self, data: &[u8], now: u64, again: bool, tally: &mut Tally) {
        tally.bytes_down += data.len() as u64;
        let mut finished = 0;
        match (&mut self.state, &*self.talk) {
            (State::H2(state), Talk::H2 { trailers, .. }) => {
                finished = state.receive(data, now, *trailers, &mut self.say, tally);
            }
            (State::H1 { since, partial, left }, _) => {
                if !h1(data, partial, left, tally) {
                    return;
                }
                if let Some(since) = since.take() {
                    tally.complete(now.saturating_sub(since));
                }
                finished = 1;
            }
            (State::Echo { since, left }, _) => {
                *left = left.saturating_sub(data.len());
                if *left == 0
                    && let Some(since) = since.take()
                {
                    tally.complete(now.saturating_sub(since));
                    finished = 1;
                }
            }
            _ => (),
        }
        if again {
            (0..finished).for_each(|_| self.launch(now));
        }
    }
}

impl H2 {
    fn receive(&mut self, data: &[u8], now: u64, trailers: bool, say: &mut Vec<u8>, tally: &mut Tally) -> usize {
        let mut finished = 0;
        let Self { frames, sending, flying, received, .. } = self;
        frames.feed(data, |frame: Frame<'_>| {
            match frame.kind {
                kind::DATA if trailers && frame.ends_stream() => tally.fail(|| "an answer without trailers".into()),
                kind::DATA => {
                    *received += u32::try_from(frame.length).unwrap_or(0);
                    if *received > h2::REFILL {
                        h2::window(say, 0, *received);
                        *received = 0;
                    }
                }
                kind::HEADERS => {
                    // A head begins with the status and is followed by a body; what ends the stream are trailers.
                    let right =
                        if frame.ends_stream() { trailers && !is_ok(frame.payload) } else { is_ok(frame.payload) };
                    if !right {
                        tally.fail(|| format!("an answer that is not 200: {:02x?}", frame.payload));
                    }
                }
                kind::SETTINGS if frame.flags & h2::ACK == 0 => {
                    sending.heed(&frame);
                    h2::head(say, 0, kind::SETTINGS, h2::ACK, 0);
                }
                kind::PING if frame.flags & h2::ACK == 0 => {
                    h2::head(say, 8, kind::PING, h2::ACK, 0);
                    say.extend_from_slice(frame.payload);
                }
                kind::WINDOW_UPDATE => sending.heed(&frame),
                // nginx resets streams that are complete, without an error.
                kind::RST_STREAM if !flying.iter().any(|(stream, _)| *stream == frame.stream) => (),
                kind::RST_STREAM | kind::GOAWAY => {
                    tally.fail(|| {
                        format!("frame type {} on stream {}: {:02x?}", frame.kind, frame.stream, frame.payload)
                    });
                    flying.retain(|(stream, _)| *stream != frame.stream);
                }
                _ => (),
            }
            if frame.ends_stream()
                && let Some(at) = flying.iter().position(|(stream, _)| *stream == frame.stream)
            {
                let (_, since) = flying.swap_remove(at);
                tally.complete(now.saturating_sub(since));
                finished += 1;
            }
        });
        finished
    }
}

/// Whether a header block begins with `:status: 200`, perhaps after a change of the table's size.
fn is_ok(block: &[u8]) -> bool {
    let first = block.iter().position(|byte| byte & 0xe0 != 0x20).unwrap_or(0);
    block.get(first) == Some(&0x88)
}

/// Whether the answer is complete with these bytes.
fn h1(data: &[u8], partial: &mut Vec<u8>, left: &mut usize, tally: &mut Tally) -> bool {
    if *left > 0 {
        *left = left.saturating_sub(data.len());
        return *left == 0;
    }
    // Answers mostly come whole: then nothing is copied.
    let whole;
    let answer = if partial.is_empty() {
        data
    } else {
        partial.extend_from_slice(data);
        whole = std::mem::take(partial);
        &whole
    };
    let Some(end) = find(answer, b"\r\n\r\n") else {
        *partial = answer.to_vec();
        return false;
    };
    if !answer.starts_with(b"HTTP/1.1 200") {
        tally.fail(|| format!("an answer that is not 200: {}", String::from_utf8_lossy(&answer[..end])));
    }
    match content_length(&answer[..end + 4]) {
        Some(length) => *left = (end + 4 + length).saturating_sub(answer.len()),
        None if answer.ends_with(b"0\r\n\r\n") => *left = 0,
        None => {
            *partial = answer.to_vec();
            return false;
        }
    }
    *left == 0
}
